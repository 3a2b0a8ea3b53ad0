import os
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor

from cnnlab.data.mnist import KMNIST, MNIST, FashionMNIST
from cnnlab.runtime.errors import ConfigError

FAMILY = [MNIST, FashionMNIST, KMNIST]
REAL = Path(os.environ.get("CNNLAB_DATA", "")) / "MNIST" / "raw" / "train-images-idx3-ubyte"


def idx(values: Tensor) -> bytes:
    """The IDX format: two zeros, 8 for unsigned bytes, the number of dimensions, the sizes big-endian, the bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + values.numpy().tobytes()


def write_family(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Seven training and three test pictures where torchvision looks for them; returns them."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    written = {}
    for split, prefix, count in (("train", "train", 7), ("test", "t10k", 3)):
        x_NHW = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        y_N = torch.randint(0, 10, (count,), dtype=torch.uint8, generator=generator)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(x_NHW))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(y_N))
        written[split] = (x_NHW, y_N)
    return written


def no_network(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """torchvision makes its folder, then fails to fill it."""

    def download(dataset: Any) -> NoReturn:
        Path(dataset.raw_folder).mkdir(parents=True, exist_ok=True)
        raise error

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)


@pytest.mark.parametrize("source", FAMILY)
@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_the_bytes_of_the_idx_files(tmp_path: Path, source: type[MNIST], split: str) -> None:
    x_NHW, y_N = write_family(tmp_path / source.__name__ / "raw")[split]
    pictures = source(str(tmp_path)).read(split)
    assert pictures.x_NCHW.dtype == torch.uint8
    assert torch.equal(pictures.x_NCHW, x_NHW[:, None])
    assert torch.equal(pictures.y_N, y_N.long())
    assert torch.equal(pictures.index_N, torch.arange(len(y_N)))


@pytest.mark.parametrize("source", FAMILY)
def test_describes_itself_without_files(tmp_path: Path, source: type[MNIST]) -> None:
    spec = source(str(tmp_path / "nowhere")).describe()
    assert spec.input_shape == (1, 28, 28)
    assert spec.counts == {"train": 60_000, "test": 10_000}
    assert spec.classes == len(set(spec.class_names)) == 10
    assert not list(tmp_path.iterdir())


def test_class_names_are_those_of_torchvision() -> None:
    assert list(FashionMNIST("").describe().class_names) == torchvision.datasets.FashionMNIST.classes
    assert list(KMNIST("").describe().class_names) == torchvision.datasets.KMNIST.classes


def test_files_that_are_there_are_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_family(tmp_path / "MNIST" / "raw")
    no_network(monkeypatch, AssertionError("a download was tried"))
    MNIST(str(tmp_path)).check()
    assert capsys.readouterr() == ("", "")


def test_missing_files_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda dataset: write_family(Path(dataset.raw_folder)))
    MNIST(str(tmp_path / "data")).check()
    assert len(MNIST(str(tmp_path / "data")).read("train")) == 7
    assert str(tmp_path / "data" / "MNIST" / "raw") in capsys.readouterr().err


@pytest.mark.parametrize("part", ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"])
def test_one_missing_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    write_family(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / f"{part}-ubyte").unlink()
    no_network(monkeypatch, RuntimeError("no network"))
    with pytest.raises(ConfigError):
        MNIST(str(tmp_path)).check()


@pytest.mark.parametrize("source", FAMILY)
@pytest.mark.parametrize("error", [RuntimeError("Error downloading train"), URLError("no route to host")])
def test_a_failed_download_tells_where_it_looked_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: type[MNIST], error: Exception
) -> None:
    no_network(monkeypatch, error)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        source("data").check()  # a relative root is shown as an absolute path
    message = str(caught.value)
    assert message.startswith("data.root: ")
    assert str(tmp_path / "data" / source.__name__ / "raw") in message
    assert str(error) in message
    assert f"torchvision.datasets.{source.__name__}('data', download=True)" in message
    assert "CNNLAB_DATA" in message


def test_a_failed_download_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch, RuntimeError("no network"))
    with pytest.raises(ConfigError):
        MNIST(str(tmp_path / "deep" / "data")).check()
    assert not list(tmp_path.iterdir())


def test_a_failed_download_leaves_the_users_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "mine.txt").write_text("mine")
    no_network(monkeypatch, RuntimeError("no network"))
    with pytest.raises(ConfigError):
        MNIST(str(tmp_path)).check()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["MNIST", "MNIST/mine.txt"]


@pytest.mark.skipif(not REAL.is_file(), reason="CNNLAB_DATA names no folder with MNIST/raw")
def test_the_real_mnist_has_its_known_mean_and_deviation() -> None:
    pictures = MNIST(os.environ["CNNLAB_DATA"]).read("train")
    counts = pictures.x_NCHW.flatten().bincount(minlength=256).double()
    levels = torch.arange(256).double()
    mean = (counts * levels).sum() / counts.sum()
    sd = ((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt()
    assert len(pictures) == 60_000
    assert float(mean) == pytest.approx(33.318, abs=5e-4)
    assert float(sd) == pytest.approx(78.567, abs=1e-3)
