import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from cnnlab.data.digits import Digits
from cnnlab.data.source import Images


@pytest.fixture(scope="module")
def splits() -> dict[str, Images]:
    return {split: Digits().read(split) for split in ("train", "test")}


@pytest.mark.parametrize(("split", "count"), [("train", 1437), ("test", 360)])
def test_describe_agrees_with_read(splits: dict[str, Images], split: str, count: int) -> None:
    spec = Digits().describe()
    assert spec.counts[split] == len(splits[split]) == count
    assert tuple(splits[split].x_NCHW.shape[1:]) == spec.input_shape == (1, 8, 8)
    assert spec.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_those_of_scikit_learn_stretched_to_255_each_time(splits: dict[str, Images], split: str) -> None:
    images, theirs = splits[split], load_digits()
    index_N = images.index_N.numpy()
    assert np.array_equal(images.x_NCHW[:, 0].numpy(), np.rint(theirs.images[index_N] * 255 / 16))
    assert np.array_equal(images.y_N.numpy(), theirs.target[index_N])
    torch.manual_seed(12345)
    assert Digits().read(split).digest() == images.digest()


def test_train_and_test_are_disjoint_and_together_everything(splits: dict[str, Images]) -> None:
    indices = splits["train"].index_N.tolist() + splits["test"].index_N.tolist()
    assert sorted(indices) == list(range(1797))


def test_the_test_split_has_each_class_by_its_fraction(splits: dict[str, Images]) -> None:
    sizes = np.bincount(load_digits().target)
    shares = sizes * 360 / 1797
    assert np.all(np.abs(splits["test"].y_N.bincount().numpy() - shares) < 1)
