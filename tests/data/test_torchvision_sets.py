import hashlib
import pickle
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from torch import Tensor

from cnnlab.data.torchvision_sets import CIFAR10, CIFAR100, KMNIST, MNIST, SVHN, FashionMNIST, TorchvisionSet
from cnnlab.runtime.errors import ConfigError

FAMILY = [MNIST, FashionMNIST, KMNIST]


def idx(values: Tensor) -> bytes:
    """The IDX format: two zeros, 8 for unsigned bytes, the number of dimensions, the sizes big-endian, the bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.dim()]) + sizes + values.numpy().tobytes()


def write_family(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Seven training and three test images where torchvision looks for them; returns them."""
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


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, source: type[CIFAR10]) -> dict[str, Any]:
    """Batches of two images in the pickled format, known to torchvision by their MD5; returns what each holds."""
    known = getattr(torchvision.datasets, source.__name__)
    folder = root / known.base_folder
    folder.mkdir(parents=True)
    labels = "labels" if source is CIFAR10 else "fine_labels"
    generator = np.random.default_rng(0)
    batches = {}
    for table in ("train_list", "test_list"):
        names = [name for name, _ in getattr(known, table)]
        for name in names:
            pixels = generator.integers(0, 256, (2, 3072), dtype=np.uint8)  # red, green, blue planes, row by row
            batches[name] = {"data": pixels, labels: generator.integers(0, source.spec.classes, 2).tolist()}
            (folder / name).write_bytes(pickle.dumps(batches[name]))
        monkeypatch.setattr(known, table, [[name, md5(folder / name)] for name in names])
    meta = folder / known.meta["filename"]
    meta.write_bytes(pickle.dumps({known.meta["key"]: list(source.spec.class_names)}))
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": md5(meta)})
    return batches


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The MATLAB files: X of (H, W, C, N), y of (N, 1) with 10 for the digit 0."""
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    written, table = {}, dict(torchvision.datasets.SVHN.split_list)
    for split, count in (("train", 5), ("test", 3)):
        x_HWCN = generator.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        y_N = np.array([10, 1, 9, 10, 3][:count], dtype=np.uint8)
        url, name, _ = table[split]
        scipy.io.savemat(root / name, {"X": x_HWCN, "y": y_N[:, None]})
        table[split] = [url, name, md5(root / name)]
        written[split] = (x_HWCN, y_N)
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", table)
    return written


def no_network(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """torchvision makes its folder for the MNIST family, then fails to fill it; the others fail at once."""

    def refuse(*arguments: Any, **options: object) -> NoReturn:
        if isinstance(arguments[0], torchvision.datasets.MNIST):
            Path(arguments[0].raw_folder).mkdir(parents=True, exist_ok=True)
        raise error

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", refuse)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", refuse)


@pytest.mark.parametrize("source", FAMILY)
def test_reads_the_bytes_of_the_idx_files(tmp_path: Path, source: type[MNIST]) -> None:
    for split, (x_NHW, y_N) in write_family(tmp_path / source.__name__ / "raw").items():
        images = source(str(tmp_path)).read(split)
        assert images.x_NCHW.dtype == torch.uint8
        assert torch.equal(images.x_NCHW, x_NHW[:, None])
        assert torch.equal(images.y_N, y_N.long())


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_reads_the_batches_of_cifar_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: type[CIFAR10]
) -> None:
    batches = write_cifar(tmp_path, monkeypatch, source)
    for split, test in (("train", False), ("test", True)):
        chosen = [batch for name, batch in batches.items() if name.startswith("test") is test]
        images = source(str(tmp_path)).read(split)
        pixels = np.concatenate([batch["data"] for batch in chosen]).reshape(-1, 3, 32, 32)
        assert np.array_equal(images.x_NCHW.numpy(), pixels)
        assert images.x_NCHW.is_contiguous()
        assert images.y_N.tolist() == [label for batch in chosen for label in list(batch.values())[1]]


def test_reads_the_matlab_files_of_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, (x_HWCN, y_N) in write_svhn(tmp_path, monkeypatch).items():
        images = SVHN(str(tmp_path)).read(split)
        assert np.array_equal(images.x_NCHW.numpy(), x_HWCN.transpose(3, 2, 0, 1))
        assert images.y_N.tolist() == [int(label) % 10 for label in y_N]


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_pickle_that_is_not_the_published_one_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: type[CIFAR10], split: str
) -> None:
    write_cifar(tmp_path, monkeypatch, source)
    for file in source.files:
        (tmp_path / source.folder / file).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(ConfigError, match=rf"data\.root: the {split} files in .* are damaged .*corrupted"):
        source(str(tmp_path)).read(split)
    assert not (tmp_path / "canary").exists()


def test_a_changed_file_of_svhn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path, monkeypatch)
    with (tmp_path / "train_32x32.mat").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ConfigError, match="corrupted"):
        SVHN(str(tmp_path)).read("train")


@pytest.mark.parametrize(
    ("source", "shape", "counts", "classes"),
    [
        *((source, (1, 28, 28), (60_000, 10_000), 10) for source in FAMILY),
        (CIFAR100, (3, 32, 32), (50_000, 10_000), 100),
        (SVHN, (3, 32, 32), (73_257, 26_032), 10),
    ],
)
def test_a_set_describes_itself_without_files(
    source: type[TorchvisionSet], shape: tuple[int, ...], counts: tuple[int, int], classes: int
) -> None:
    spec = source("/nowhere").describe()
    assert (spec.input_shape, tuple(spec.counts.values())) == (shape, counts)
    assert spec.classes == len(set(spec.class_names)) == classes


def test_the_files_and_classes_are_those_of_torchvision() -> None:
    known = torchvision.datasets
    for source, theirs in ((CIFAR10, known.CIFAR10), (CIFAR100, known.CIFAR100)):
        names = {name for name, _ in theirs.train_list + theirs.test_list} | {theirs.meta["filename"]}
        assert (set(source.files), source.folder) == (names, theirs.base_folder)
    assert set(SVHN.files) == {known.SVHN.split_list[split][1] for split in ("train", "test")}
    assert list(FashionMNIST.spec.class_names) == known.FashionMNIST.classes
    assert list(KMNIST.spec.class_names) == known.KMNIST.classes
    assert list(CIFAR100.spec.class_names) == sorted(CIFAR100.spec.class_names)


def test_both_files_of_svhn_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path / "elsewhere", monkeypatch)
    asked = []

    def fetch(url: str, root: Any, filename: str, digest: str) -> None:
        asked.append(filename)
        Path(root).mkdir(parents=True, exist_ok=True)
        (Path(root) / filename).write_bytes((tmp_path / "elsewhere" / filename).read_bytes())

    monkeypatch.setattr("torchvision.datasets.svhn.download_url", fetch)
    SVHN(str(tmp_path / "data")).check()
    assert asked == ["train_32x32.mat", "test_32x32.mat"]


def test_files_that_are_there_are_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_family(tmp_path / "MNIST" / "raw")
    write_cifar(tmp_path, monkeypatch, CIFAR10)
    no_network(monkeypatch, AssertionError("a download was tried"))
    for source in (MNIST, CIFAR10):
        source(str(tmp_path)).check()
    assert capsys.readouterr() == ("", "")


def test_missing_files_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda dataset: write_family(Path(dataset.raw_folder)))
    MNIST(str(tmp_path / "data")).check()
    assert len(MNIST(str(tmp_path / "data")).read("train")) == 7
    assert str(tmp_path / "data" / "MNIST" / "raw") in capsys.readouterr().err


@pytest.mark.parametrize("source", [MNIST, CIFAR10, SVHN])
@pytest.mark.parametrize("error", [RuntimeError("Error downloading train"), URLError("no route to host")], ids=str)
def test_a_failed_download_leaves_no_folder_and_reports_where_it_looked_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: type[TorchvisionSet], error: Exception
) -> None:
    no_network(monkeypatch, error)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        source("data").check()  # a relative root is shown as an absolute path
    message = str(caught.value)
    assert message.startswith(f"data.root: {source.__name__} was not found in {tmp_path / 'data' / source.folder}")
    assert f"torchvision.datasets.{source.__name__}('data', " in message
    assert str(error) in message
    assert "CNNLAB_DATA" in message
    assert not list(tmp_path.iterdir())


def test_one_missing_file_is_noticed_and_a_failed_download_leaves_the_users_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    before = sorted(tmp_path.rglob("*"))
    no_network(monkeypatch, RuntimeError("no network"))
    with pytest.raises(ConfigError):
        MNIST(str(tmp_path)).check()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.mnist
def test_the_real_mnist_has_its_known_mean_and_deviation(mnist_root: Path) -> None:
    images = MNIST(str(mnist_root)).read("train")
    counts = images.x_NCHW.flatten().bincount(minlength=256).double()
    levels = torch.arange(256).double()
    mean = (counts * levels).sum() / counts.sum()
    sd = ((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt()
    assert len(images) == 60_000
    assert float(mean) == pytest.approx(33.318, abs=5e-4)
    assert float(sd) == pytest.approx(78.567, abs=1e-3)
