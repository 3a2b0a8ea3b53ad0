"""The MNIST family through torchvision's own classes, downloaded where missing."""

import contextlib
import sys
from pathlib import Path
from typing import Any

from cnnlab.data.source import DataSpec, Pictures, Source
from cnnlab.runtime.errors import ConfigError, first_line

FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class MNIST(Source):
    """60,000 + 10,000 grey 28×28 handwritten digits (LeCun, Cortes and Burges).

    Files lie under `root/MNIST/raw`, where torchvision puts them.
    """

    class_names: tuple[str, ...] = tuple(str(digit) for digit in range(10))

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def describe(self) -> DataSpec:
        return DataSpec((1, 28, 28), {"train": 60_000, "test": 10_000}, self.class_names)

    def check(self) -> None:
        name = type(self).__name__
        tried = (self.root / name / "raw").resolve()
        if all((tried / f"{part}-ubyte").is_file() for part in FILES):
            return
        missing = [folder for folder in (tried, *tried.parents) if not folder.exists()]
        print(f"{name} is not in {tried}: downloading it", file=sys.stderr)
        try:
            self._dataset_class()(self.root, download=True)
        except Exception as error:  # torchvision raises RuntimeError, URLError, OSError, EOFError, …
            for folder in missing:  # what torchvision made for nothing
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise ConfigError(
                f"data.root: {name} was not found in {tried} and could not be downloaded "
                f"({first_line(error).rstrip(':')}); on a machine with a network run\n"
                f"  python -c \"import torchvision; torchvision.datasets.{name}('data', download=True)\"\n"
                f"and set data.root (or the environment variable CNNLAB_DATA) to that folder"
            ) from error

    def read(self, split: str) -> Pictures:
        try:
            dataset = self._dataset_class()(self.root, train=split == "train")
            return Pictures.of(dataset.data[:, None], dataset.targets)
        except (RuntimeError, ValueError, AssertionError, EOFError, OSError) as error:
            folder = (self.root / type(self).__name__ / "raw").resolve()
            raise ConfigError(
                f"data.root: the {split} files in {folder} are damaged ({first_line(error)}): delete them, and they "
                f"are downloaded again"
            ) from error

    def _dataset_class(self) -> Any:
        import torchvision.datasets  # a second, and only the data sets of torchvision need it

        return getattr(torchvision.datasets, type(self).__name__)


class FashionMNIST(MNIST):
    """60,000 + 10,000 grey 28×28 pictures of clothes (arXiv 1708.07747), under `root/FashionMNIST/raw`."""

    class_names = FASHION


class KMNIST(MNIST):
    """60,000 + 10,000 grey 28×28 Kuzushiji characters (arXiv 1812.01718), under `root/KMNIST/raw`."""

    class_names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
