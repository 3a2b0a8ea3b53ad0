import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlab.engine.execution import Execution
from cnnlab.engine.step import StepResult, count_correct, train_step
from cnnlab.runtime.batch import Batch

CPU = torch.device("cpu")
LR = 0.1


def network() -> nn.Module:
    """A small CNN in float64; 2×5×5 images, three classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double()


def batch(count: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x_NCHW = torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    return Batch(x_NCHW, torch.randint(0, 3, (count,), generator=generator), torch.arange(count))


def take_step(model: nn.Module, images: Batch, precision: str = "fp32", **changes: Any) -> StepResult:
    execution = Execution(precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    return train_step(
        model, F.cross_entropy, optimizer, images, execution=execution, scaler=execution.scaler(CPU), **changes
    )


def gradients_by_hand(model: nn.Module, images: Batch) -> list[Tensor]:
    loss = F.cross_entropy(model(images.x_NCHW), images.target)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def norm_of(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float((tensor**2).sum()) for tensor in tensors))


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def assert_near(received: list[Tensor], expected: list[Tensor]) -> None:
    assert len(received) == len(expected)
    for mine, theirs in zip(received, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_one_sgd_step_subtracts_lr_times_the_gradient_and_forgets_an_earlier_one() -> None:
    model, images = network(), batch()
    expected = [p.detach() - LR * g for p, g in zip(model.parameters(), gradients_by_hand(model, images), strict=True)]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    take_step(model, images)
    assert_near([p.detach() for p in model.parameters()], expected)


@pytest.mark.parametrize("expected_sizes", [[3, 3, 1], [2, 2, 2, 1]], ids=str)
def test_microbatches_of_any_size_add_up_to_the_gradient_of_the_whole_batch(expected_sizes: list[int]) -> None:
    model, images, sizes, layouts = network(), batch(), [], []
    expected = gradients_by_hand(model, images)
    model[0].register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    model[0].register_forward_pre_hook(
        lambda module, arguments: layouts.append(arguments[0].is_contiguous(memory_format=torch.channels_last))
    )
    take_step(model, images, accumulate=len(expected_sizes))
    assert sizes == expected_sizes
    assert all(layouts)
    assert_near(grads(model), expected)


def test_halves_of_a_batch_that_know_its_size_add_up_to_its_gradient() -> None:
    """As two ranks do: each takes its own images, and gradients and losses are summed."""
    whole = batch(7)
    halves = [replace(whole[places], global_count=7) for places in (slice(0, 4), slice(4, 7))]
    gradients, losses = [], []
    for half in halves:
        model = network()
        losses.append(take_step(model, half, accumulate=2).loss)
        gradients.append(grads(model))
    model = network()
    expected = gradients_by_hand(model, whole)
    assert_near([a + b for a, b in zip(*gradients, strict=True)], expected)
    assert_near([losses[0] + losses[1]], [take_step(model, whole).loss])


def test_what_runs_may_be_another_callable_than_the_module_with_the_parameters() -> None:
    model, images = network(), batch()
    expected = gradients_by_hand(model, images)
    execution, calls = Execution(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def run(x_NCHW: Tensor) -> Tensor:
        calls.append(len(x_NCHW))
        return torch.utils.checkpoint.checkpoint(model, x_NCHW, use_reentrant=False)

    train_step(run, F.cross_entropy, optimizer, images, execution=execution, scaler=execution.scaler(CPU))
    assert calls == [7]
    assert_near(grads(model), expected)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_loss_and_correct_predictions_are_those_before_the_update(accumulate: int) -> None:
    model, images = network(), batch(50)
    output_NK = model(images.x_NCHW).detach()
    correct = int((output_NK.argmax(1) == images.target).sum())
    assert 0 < correct < 50
    result = take_step(model, images, accumulate=accumulate)
    assert float(result.loss) == pytest.approx(float(F.cross_entropy(output_NK, images.target)), rel=1e-6)
    assert int(result.correct) == correct
    assert not result.loss.requires_grad


def test_class_probabilities_do_for_targets() -> None:
    model, images = network(), batch()
    soft = Batch(images.x_NCHW, F.one_hot(images.target, 3).double(), images.index_N)
    expected = gradients_by_hand(model, images)  # certain probabilities are class indices
    result = take_step(model, soft, accumulate=3)
    assert_near(grads(model), expected)
    assert int(result.correct) == int(take_step(network(), images).correct)


def test_the_measured_norm_is_the_root_of_the_sum_of_squares() -> None:
    model, images = network(), batch()
    assert take_step(copy.deepcopy(model), images).gradient_norm is None
    model[0].requires_grad_(False)  # a parameter without a gradient is left out
    result = take_step(model, images, measure_norm=True)
    assert result.gradient_norm is not None
    assert float(result.gradient_norm) == pytest.approx(norm_of([p.grad for p in model[3].parameters()]), rel=1e-12)


def test_clipping_shortens_the_gradient_keeps_its_direction_and_leaves_a_shorter_one_alone() -> None:
    model, images = network(), batch()
    before = gradients_by_hand(model, images)
    length = norm_of(before)
    assert length > 0.05
    for clip_norm, factor in ((1000.0, 1.0), (0.05, 0.05 / (length + 1e-6))):
        clipped = copy.deepcopy(model)
        result = take_step(clipped, images, clip_norm=clip_norm, accumulate=3)
        assert_near(grads(clipped), [factor * gradient for gradient in before])
        assert result.gradient_norm is not None
        assert float(result.gradient_norm) == pytest.approx(length, rel=1e-12)  # as it was before


def test_bf16_stays_near_fp32() -> None:
    images = replace(batch(), x_NCHW=batch().x_NCHW.float())
    expected = take_step(network().float(), images).loss
    model, seen = network().float(), []
    model[3].register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
    received = take_step(model, images, precision="bf16").loss
    assert seen == [torch.bfloat16]
    assert received.isfinite()
    assert float(received) == pytest.approx(float(expected), rel=0.02)  # bf16 has 8 significant bits
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_scaled_gradients_are_unscaled_before_they_are_clipped() -> None:
    images, seen = replace(batch(), x_NCHW=batch().x_NCHW.float()), []
    for enabled in (True, False):
        model, execution = network().float(), Execution()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)  # a power of two rounds nothing
        options: dict[str, Any] = {"execution": execution, "scaler": scaler, "clip_norm": 0.05}
        result = train_step(model, F.cross_entropy, optimizer, images, **options)
        seen.append(([parameter.tolist() for parameter in model.parameters()], result.gradient_norm))
    assert seen[0] == seen[1]


def test_fp16_skips_an_update_that_overflows_and_halves_its_scale() -> None:
    huge = replace(batch(), x_NCHW=batch().x_NCHW.float() * 1e30)
    model, execution = network().float(), Execution("fp16")
    before = [p.detach().clone() for p in model.parameters()]
    scaler = execution.scaler(CPU)
    scale = scaler.get_scale()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    train_step(model, F.cross_entropy, optimizer, huge, execution=execution, scaler=scaler)
    assert scaler.get_scale() == scale / 2
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_prediction_is_correct_where_the_largest_output_is_the_targets() -> None:
    output_NK = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [-1.0, -0.5, -3.0]])  # 0, 1, 1
    assert int(count_correct(output_NK, torch.tensor([0, 1, 2]))) == 2
    soft_NK = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.4, 0.6], [0.1, 0.8, 0.1]])
    assert int(count_correct(output_NK, soft_NK)) == 2
