import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnnlab.engine.evaluation import evaluate
from cnnlab.engine.execution import Execution
from cnnlab.runtime.batch import Batch


def pictures(count: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(count, 3, 2, 2, generator=generator)
    return x_NCHW, torch.randint(0, 4, (count,), generator=generator)


def batches(*sizes: int) -> list[Batch]:
    x_NCHW, y_N = pictures(sum(sizes))
    parts = zip(x_NCHW.split(sizes), y_N.split(sizes), torch.arange(sum(sizes)).split(sizes), strict=True)
    return [Batch(*part) for part in parts]


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 5, 1), *middle, nn.Flatten(), nn.Linear(20, 4))


@pytest.mark.parametrize("sizes", [(11,), (5, 5, 1), (1, 2, 8)])
def test_unequal_batches_give_the_mean_over_all_pictures(sizes: tuple[int, ...]) -> None:
    model = network()
    x_NCHW, y_N = pictures()
    logits_NK = model(x_NCHW).detach().double()
    by_hand = [-float(logits_K.log_softmax(0)[y]) for logits_K, y in zip(logits_NK, y_N, strict=True)]
    measured = evaluate(model, F.cross_entropy, batches(*sizes), Execution())
    assert measured["loss"] == pytest.approx(sum(by_hand) / 11, rel=1e-6)
    assert measured["accuracy"] == sum(int(k) == int(y) for k, y in zip(logits_NK.argmax(1), y_N, strict=True)) / 11


def test_class_probabilities_do_for_targets() -> None:
    model = network()
    hard = batches(4, 3)
    soft = [Batch(b.x_NCHW, F.one_hot(b.target, 4).float(), b.index_N) for b in hard]
    expected = evaluate(model, F.cross_entropy, hard, Execution())
    assert evaluate(model, F.cross_entropy, soft, Execution()) == pytest.approx(expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_in_which_it_was(training: bool) -> None:
    model = network(nn.Dropout(0.5)).train(training)
    evaluate(model, F.cross_entropy, batches(3), Execution())
    assert all(module.training is training for module in model.modules())


def test_nothing_is_dropped_out() -> None:
    model = network(nn.Dropout(0.5)).train()
    expected = evaluate(network(nn.Identity()), F.cross_entropy, batches(5, 2), Execution())
    assert evaluate(model, F.cross_entropy, batches(5, 2), Execution()) == expected


def test_batch_norm_uses_its_running_statistics_and_leaves_them() -> None:
    norm = nn.BatchNorm2d(5)
    model = network(norm).train()
    with torch.no_grad():
        model(pictures()[0])
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    together = evaluate(model, F.cross_entropy, batches(11), Execution())
    one_by_one = evaluate(model, F.cross_entropy, batches(*[1] * 11), Execution())
    assert together == pytest.approx(one_by_one, rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_no_graph_is_built() -> None:
    model, seen = network(), []
    model.register_forward_hook(lambda module, arguments, output: seen.append(output.requires_grad))
    evaluate(model, F.cross_entropy, batches(3), Execution())
    assert seen == [False]


def test_the_precision_is_that_of_the_execution() -> None:
    model, seen = network(), []
    model.register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
    in_bf16 = evaluate(model, F.cross_entropy, batches(5, 6), Execution("bf16"))
    in_fp32 = evaluate(model, F.cross_entropy, batches(5, 6), Execution("fp32"))
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert in_bf16["loss"] == pytest.approx(in_fp32["loss"], rel=0.03)


def test_every_module_keeps_its_own_mode() -> None:
    model = network(nn.Dropout(), nn.BatchNorm2d(5))
    model[2].eval()  # frozen
    before = [module.training for module in model.modules()]
    evaluate(model, F.cross_entropy, batches(4), Execution())
    assert [module.training for module in model.modules()] == before


def test_the_modes_are_kept_where_the_network_fails() -> None:
    model = network(nn.Dropout())
    with pytest.raises(RuntimeError):
        evaluate(model, F.cross_entropy, [Batch(torch.zeros(1, 9, 2, 2), torch.zeros(1), torch.zeros(1))], Execution())
    assert model.training
