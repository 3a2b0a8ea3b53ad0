import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnlab.runtime.repeatable import Repeatable


class Moody(nn.Module):
    """Works in place, counts, drops out always, and keeps state of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0
        self.last = torch.zeros(3)

    def forward(self, x_NF: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        self.fresh = 5 + getattr(self, "fresh", 0)
        output_NF = x_NF * self.calls + self.seen + self.fresh + self.last.sum()
        self.last = output_NF.detach()[0]
        return functional.dropout(output_NF, 0.5).relu_()


def test_each_call_answers_as_the_first_and_leaves_nothing() -> None:
    module = Moody()
    model = Repeatable(module)
    x_NF = torch.ones(4, 3)
    generator = torch.get_rng_state()
    first = model(x_NF)
    assert torch.equal(model(x_NF), first)
    assert torch.equal(torch.get_rng_state(), generator)
    assert module.training
    model.restore()
    assert (module.calls, float(module.seen), module.last.tolist()) == (0, 0.0, [0.0, 0.0, 0.0])
    assert not hasattr(module, "fresh")


def test_a_gradient_survives_a_later_call() -> None:
    norm = nn.BatchNorm1d(3)
    model = Repeatable(norm)
    x_NF = torch.rand(4, 3, requires_grad=True)
    first = model(x_NF).sum()
    model(torch.rand(4, 3))
    (gradient_NF,) = torch.autograd.grad(first, x_NF)
    torch.testing.assert_close(gradient_NF, torch.full((4, 3), (1 + norm.eps) ** -0.5))
