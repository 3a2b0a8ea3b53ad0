import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights

from cnnlab.data.normalization import Normalization, check_method, check_normalization, normalized
from cnnlab.data.source import Images
from cnnlab.runtime.errors import ArgumentError


def images() -> Tensor:
    """(40, 3, 9, 7) bytes; the channels differ in mean and spread."""
    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.rand(40, 3, 9, 7, generator=generator)
    highest_C11 = torch.tensor([255.0, 100.0, 20.0])[:, None, None]
    return (x_NCHW * highest_C11 + torch.tensor([0.0, 50.0, 230.0])[:, None, None]).to(torch.uint8)


def apply(normalization: Normalization, x_NCHW: Tensor) -> Tensor:
    return normalized(x_NCHW, *normalization.tensors(torch.device("cpu")))


def test_standardize_gives_each_channel_mean_0_and_deviation_1() -> None:
    x_NCHW = images()
    seen_NCHW = apply(Normalization.fit("standardize", x_NCHW), x_NCHW).double()
    assert seen_NCHW.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert seen_NCHW.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_standardize_of_hand_countable_pixels() -> None:
    normalization = Normalization.fit("standardize", torch.tensor([0, 0, 0, 200], dtype=torch.uint8).view(1, 1, 2, 2))
    assert normalization.mean_C == (50.0,)
    assert normalization.sd_C == (pytest.approx((3 / 4 * 50**2 + 1 / 4 * 150**2) ** 0.5),)


def test_what_is_measured_chunk_by_chunk_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = torch.tensor([3, 39, 0, 17, 18])
    expected = Normalization.fit("standardize", images()[chosen])
    monkeypatch.setattr("cnnlab.data.source.CHUNK", 400)  # two images
    selected = Images.of(images(), torch.zeros(40)).select(chosen)
    assert Normalization.fit("standardize", selected) == expected


def test_unit_maps_black_to_0_and_white_to_1_and_none_keeps_the_bytes() -> None:
    x_NCHW = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert apply(Normalization.fit("unit", x_NCHW), x_NCHW).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert torch.equal(apply(Normalization.fit("none", x_NCHW), x_NCHW), x_NCHW.float())


def test_imagenet_is_what_torchvisions_networks_expect() -> None:
    x_NCHW = images()
    expected = ResNet18_Weights.DEFAULT.transforms()
    mean_C, sd_C = torch.tensor(expected.mean)[:, None, None], torch.tensor(expected.std)[:, None, None]
    seen_NCHW = apply(Normalization.fit("imagenet", x_NCHW), x_NCHW)
    torch.testing.assert_close(seen_NCHW, (x_NCHW / 255 - mean_C) / sd_C)


def test_imagenet_takes_the_mean_over_channels_for_grey_images_and_refuses_two_channels() -> None:
    normalization = Normalization.fit("imagenet", torch.zeros(2, 1, 3, 3, dtype=torch.uint8))
    assert normalization.mean_C == (pytest.approx(255 * (0.485 + 0.456 + 0.406) / 3),)
    assert normalization.sd_C == (pytest.approx(255 * (0.229 + 0.224 + 0.225) / 3),)
    with pytest.raises(ArgumentError, match="normalize: imagenet is for images of 1 channel or 3, and these have 2"):
        Normalization.fit("imagenet", torch.zeros(2, 2, 3, 3, dtype=torch.uint8))


def test_given_numbers_are_in_units_of_0_to_1() -> None:
    x_NCHW = images()
    given = {"mean": [0.5, 0.25, 0], "std": [0.5, 0.25, 1]}
    seen_NCHW = apply(Normalization.fit(given, x_NCHW), x_NCHW)
    mean_C, sd_C = torch.tensor(given["mean"])[:, None, None], torch.tensor(given["std"])[:, None, None]
    torch.testing.assert_close(seen_NCHW, (x_NCHW / 255 - mean_C) / sd_C)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("imagnet", "normalize: expected one of .* did you mean 'imagenet'"),
        ({"mean": [0, 0, 0]}, "normalize: expected {mean: .NUMBER, …., std: .NUMBER, ….}, received"),
        ({"mean": [0, 0, 0], "std": 1}, "normalize: expected {mean"),
        ({"mean": [0, 0, "a"], "std": [1, 1, 1]}, "normalize.mean: expected a number that is finite, received 'a'"),
        ({"mean": [0, 0, 0], "std": [1, 0, 1]}, "normalize.std: expected a number ≥ 1e-06, received 0"),
    ],
)
def test_what_is_no_method_is_refused(given: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_method(given)


def test_given_numbers_are_one_for_each_channel() -> None:
    with pytest.raises(
        ArgumentError, match=r"normalize.mean: expected a number for each of the 1 channels, .*\[0, 0\]"
    ):
        check_normalization({"mean": [0, 0], "std": [1]}, 1)


def test_a_channel_of_one_value_becomes_zero() -> None:
    x_NCHW = images()
    x_NCHW[:, 1] = 77
    seen_NCHW = apply(Normalization.fit("standardize", x_NCHW), x_NCHW)
    assert seen_NCHW.isfinite().all()
    assert not seen_NCHW[:, 1].any()


def test_neither_the_order_of_the_images_nor_the_number_of_threads_moves_a_bit() -> None:
    x_NCHW = images().repeat(20, 1, 1, 1)
    measured, threads = [Normalization.fit("standardize", x_NCHW.flip(0))], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            measured.append(Normalization.fit("standardize", x_NCHW))
    finally:
        torch.set_num_threads(threads)
    assert len(set(measured)) == 1
