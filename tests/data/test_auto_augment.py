"""Every operation at every magnitude, and what is drawn, is that of torchvision for uint8 images."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from cnnlab.data.auto_augment import OPERATIONS, RandAugment, TrivialAugmentWide, magnitudes, wide_magnitudes
from cnnlab.runtime.errors import ArgumentError, ConfigError
from cnnlab.runtime.randomness import uniforms

FIRST = torch.tensor(0)
BINS, HEIGHT, WIDTH = 31, 20, 16
THEIRS: dict[str, Any] = {"rand_augment": v2.RandAugment, "trivial_augment_wide": v2.TrivialAugmentWide}
OURS: dict[str, Any] = {"rand_augment": RandAugment, "trivial_augment_wide": TrivialAugmentWide}
IDENTIFIERS = {name.lower(): name for name in v2.RandAugment._AUGMENTATION_SPACE}  # autocontrast: AutoContrast


def identifier(operation: str) -> str:
    return IDENTIFIERS[operation.replace("_", "")]


def images(count: int, channels: int) -> Tensor:
    """Smooth ones of few levels, one of a single level, one of two; uint8."""
    noise = torch.rand(count, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) ** 2 * 255
    x_NCHW = F.avg_pool2d(noise, 3, 1, 1).to(torch.uint8)
    x_NCHW[0], x_NCHW[1, :, :4] = 90, 255
    return x_NCHW


def table(kind: str) -> Tensor:
    return magnitudes(BINS, HEIGHT, WIDTH) if kind == "rand_augment" else wide_magnitudes(BINS)


def theirs(kind: str, operation: str, x_NCHW: Tensor, magnitude: float, **options: Any) -> Tensor:
    made = THEIRS[kind](**options)
    return made._apply_image_or_video_transform(
        x_NCHW, identifier(operation), magnitude, interpolation=made.interpolation, fill=made._fill
    )


def their_magnitudes(kind: str, operation: str) -> list[float]:
    function, signed = THEIRS[kind]._AUGMENTATION_SPACE[identifier(operation)]
    values = function(BINS, HEIGHT, WIDTH)
    steps = [0.0] * BINS if values is None else values.tolist()
    return [*steps, *(-step for step in steps)] if signed else steps


def our_magnitudes(kind: str, operation: str) -> Tensor:
    row = table(kind)[OPERATIONS.index(operation)]
    _, signed = THEIRS[kind]._AUGMENTATION_SPACE[identifier(operation)]
    return torch.cat([row, -row]) if signed else row


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", OURS)
def test_an_operation_is_torchvisions_at_every_magnitude(kind: str, operation: str, channels: int) -> None:
    x_NCHW, ours = images(3, channels), our_magnitudes(kind, operation)
    place = torch.full((3 * len(ours),), OPERATIONS.index(operation))
    batch = x_NCHW.float().repeat(len(ours), 1, 1, 1)
    changed = OURS[kind]().applied(batch, place, ours.repeat_interleave(3)).unflatten(0, (-1, 3))
    for our_NCHW, magnitude in zip(changed, their_magnitudes(kind, operation), strict=True):
        expected = theirs(kind, operation, x_NCHW, magnitude)
        compared = torch.ones_like(expected, dtype=torch.bool)
        if operation.startswith(("shear", "rotate")):
            # half-way between two pixels, as at 5 rows of 20 for a shear of 0.2, rounding alone decides which is the
            # nearest: there, a nudge of the magnitude changes torchvision's own result
            near = [theirs(kind, operation, x_NCHW, magnitude + nudge) for nudge in (-1e-4, 1e-4)]
            compared = near[0] == near[1]
            assert compared.float().mean() >= 0.75
        assert torch.equal(our_NCHW[compared], expected[compared].float())


@pytest.mark.parametrize("operation", OPERATIONS[:5])
def test_bilinear_moves_are_torchvisions(operation: str) -> None:
    x_NCHW, ours = images(3, 3), our_magnitudes("rand_augment", operation)
    augment = RandAugment(interpolation="bilinear")
    for our_magnitude, magnitude in zip(ours, their_magnitudes("rand_augment", operation), strict=True):
        place = torch.full((3,), OPERATIONS.index(operation))
        changed = augment.applied(x_NCHW.float(), place, our_magnitude.expand(3))
        expected = theirs("rand_augment", operation, x_NCHW, magnitude, interpolation=v2.InterpolationMode.BILINEAR)
        difference = (changed - expected).abs()
        assert difference.max() <= 1  # a half is rounded after sums in another order
        assert (difference == 0).float().mean() > 0.97


def test_what_moves_in_is_filled() -> None:
    place, magnitude = torch.full((3,), OPERATIONS.index("translate_x")), torch.full((3,), 4.0)
    changed = RandAugment(fill=(1, 2, 3)).applied(images(3, 3).float(), place, magnitude)
    expected = theirs("rand_augment", "translate_x", images(3, 3), 4.0, fill=[1, 2, 3])
    assert torch.equal(changed, expected.float())


def test_rand_augment_draws_operations_and_directions() -> None:
    x_NCHW, u_ND = images(60, 3), uniforms(3, torch.arange(60), 4)
    changed = RandAugment(num_ops=2, magnitude=7)(x_NCHW.float() + 0.3, u_ND, FIRST)  # rounded first
    for x_CHW, our_CHW, drawn in zip(x_NCHW, changed, u_ND.tolist(), strict=True):
        for u, sign in (drawn[:2], drawn[2:]):
            operation = OPERATIONS[int(u * len(OPERATIONS))]
            steps = their_magnitudes("rand_augment", operation)
            # those with a direction have both signs in the list
            magnitude = steps[7 + BINS if sign < 0.5 and len(steps) > BINS else 7]
            x_CHW = theirs("rand_augment", operation, x_CHW, magnitude)
        assert (our_CHW == x_CHW).float().mean() > 0.98  # but for nearest pixels at a tie


def test_trivial_augment_draws_one_operation_and_its_magnitude() -> None:
    x_NCHW, u_ND = images(60, 3), uniforms(3, torch.arange(60), 3)
    changed = TrivialAugmentWide()(x_NCHW.float(), u_ND, FIRST)
    for x_CHW, our_CHW, (u, sign, level) in zip(x_NCHW, changed, u_ND.tolist(), strict=True):
        operation = OPERATIONS[int(u * len(OPERATIONS))]
        steps, step = their_magnitudes("trivial_augment_wide", operation), int(level * BINS)
        magnitude = steps[step + BINS if sign < 0.5 and len(steps) > BINS else step]
        expected = theirs("trivial_augment_wide", operation, x_CHW, magnitude)
        assert (our_CHW == expected).float().mean() > 0.98  # but for nearest pixels at a tie


def test_all_operations_are_drawn_equally_often() -> None:
    count = 14_000
    augment = TrivialAugmentWide()
    drawn, _ = augment.drawn(
        table("trivial_augment_wide"), *uniforms(1, torch.arange(count), 2).T, torch.zeros(count).long()
    )
    counts = drawn.bincount()
    assert len(counts) == len(OPERATIONS) == 14
    assert (counts - 1_000).abs().max() < 5 * (count / 14 * 13 / 14) ** 0.5  # five standard deviations


def test_images_beyond_the_range_are_brought_into_it() -> None:
    x_NCHW = torch.linspace(-20, 300, 3 * HEIGHT * WIDTH).reshape(1, 3, HEIGHT, WIDTH).expand(50, -1, -1, -1)
    changed = RandAugment()(x_NCHW, uniforms(3, torch.arange(50), 4), FIRST)
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert torch.equal(changed, changed.round())


def test_no_operation_changes_nothing() -> None:
    x_NCHW = images(2, 3).float()
    assert torch.equal(RandAugment(num_ops=0)(x_NCHW, torch.empty(2, 0), FIRST), x_NCHW)


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"magnitude": 31}, "magnitude"),
        ({"magnitude": 4, "num_magnitude_bins": 4}, "magnitude"),
        ({"num_ops": -1}, "num_ops"),
        ({"num_magnitude_bins": 1}, "num_magnitude_bins"),
        ({"interpolation": "bicubic"}, "interpolation"),
        ({"fill": (1.0, 256.0)}, "fill"),
    ],
)
def test_values_out_of_range_are_refused(given: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        RandAugment(**given)
    assert caught.value.argument == argument


def test_images_of_other_channels_than_torchvisions_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 channel or 3, and these have 2"):
        RandAugment().check((2, 8, 8))
    with pytest.raises(ArgumentError, match=r"channels \(1\), received 3"):
        TrivialAugmentWide(fill=(1, 2, 3)).check((1, 8, 8))
