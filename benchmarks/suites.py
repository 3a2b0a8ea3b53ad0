"""What is compared with what. The first contestant of a benchmark is the one that the others are compared with."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, Contestant

CONTESTANTS = REPOSITORY / "benchmarks" / "contestants"
CONFIGS = REPOSITORY / "benchmarks" / "configs"
ONE_EPOCH = ("data=mnist", "schedule=constant", "trainer.epochs=1", "seed={round}")
GROWTH_IMAGES = 3_840  # trained on at every point of the growth benchmarks
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Benchmark:
    """`title` is what every contestant does; `figures` are shown, in this order.

    With `same_work`, all have to have equally many parameters and steps.
    """

    title: str
    contestants: Callable[[], list[Contestant]]
    figures: Sequence[str]
    same_work: bool = True


def python(name: str, script: str | Path, *arguments: str, **more: Any) -> Contestant:
    return Contestant(name, (sys.executable, str(script), *arguments), **more)


def cnnlab(name: str, *overrides: str, **more: Any) -> Contestant:
    arguments = ("--config-dir", str(CONFIGS), "run_dir={folder}/run", *overrides)
    return python(name, REPOSITORY / "train.py", *arguments, **more)


def by_hand(name: str, *arguments: str, **more: Any) -> Contestant:
    return python(name, CONTESTANTS / "by_hand.py", *arguments, "--seed", "{round}", **more)


def peers(network: str) -> list[Contestant]:
    return [
        python("Lightning", CONTESTANTS / "with_lightning.py", network),
        python("Lightning, 2 workers", CONTESTANTS / "with_lightning.py", network, "--workers", "2"),
        python("Keras 3", CONTESTANTS / "with_keras.py", network),
    ]


def cnn() -> list[Contestant]:
    return [
        by_hand("by hand", "cnn"),
        by_hand("by hand, channels_last", "cnn", "--layout", "channels_last"),
        cnnlab("cnnlab", "model=cnn", *ONE_EPOCH),
        *peers("cnn"),
    ]


def mlp() -> list[Contestant]:
    return [
        by_hand("by hand", "normed_mlp"),
        cnnlab("cnnlab", "model=normed_mlp", *ONE_EPOCH),
        *peers("normed_mlp"),
    ]


def tiny() -> list[Contestant]:
    """All of the book's first experiment: its compilation is worth it if it is paid back within."""
    lesson = ("--batch", "10", "--images", "50000", "--epochs", "30")
    return [
        by_hand("by hand", "sigmoid", *lesson, environment=ONE_THREAD),
        cnnlab("cnnlab", "experiment=book/c1-30", "seed={round}", environment=ONE_THREAD),
    ]


def accuracy() -> list[Contestant]:
    fast = ("experiment=mnist_fast", "seed={round}")
    return [
        by_hand("by hand, one epoch", "cnn"),
        cnnlab("cnnlab, mnist_fast", *fast),
        cnnlab("cnnlab, mnist_fast, one epoch", *fast, "trainer.epochs=1"),
    ]


def images() -> list[Contestant]:
    own, torchvision = CONTESTANTS / "images_cnnlab.py", CONTESTANTS / "images_torchvision.py"
    return [
        python("ImageFolder, 2 workers", torchvision, "--workers", "2"),
        python("ImageFolder, in the process", torchvision),
        python("cnnlab", own),
        python("cnnlab, streaming", own, "data.memory_fraction=0.0001"),
    ]


def augment(name: str) -> list[Contestant]:
    torchvision = CONTESTANTS / "augment_torchvision.py"
    return [
        python("torchvision, PIL images, 2 workers", torchvision, name, "pil"),
        python("torchvision, tensors, 2 workers", torchvision, name, "tensor"),
        python("cnnlab", CONTESTANTS / "augment_cnnlab.py", name),
        python("cnnlab, one thread", CONTESTANTS / "augment_cnnlab.py", name, environment=ONE_THREAD),
    ]


def busy() -> list[Contestant]:
    return [python("cnnlab", CONTESTANTS / "busy.py", str(batch), at=batch) for batch in (128, 1024, 1536, 2048, 4096)]


def start() -> list[Contestant]:
    return [
        Contestant("import torch", (sys.executable, "-c", "import torch")),
        python("train.py --help", REPOSITORY / "train.py", "--help"),
        python("train.py data=nope", REPOSITORY / "train.py", "data=nope", exit_status=2),
        python("train.py, to its first step", CONTESTANTS / "first_step.py"),
    ]


def jobs() -> list[Contestant]:
    script = CONTESTANTS / "jobs.py"
    return [python("a new interpreter for each", script, "--fresh"), python("cnnlab", script)]


def growth(axis: str, values: Sequence[int]) -> list[Contestant]:
    """Both at every value of `batch`, `width` (channels of the first convolution) or `depth` (convolutions more)."""
    contestants = []
    for value in values:
        batch = value if axis == "batch" else 128
        steps = GROWTH_IMAGES // batch
        overrides = [f"data.batch_size={batch}", f"trainer.max_steps={steps}", "model=cnn"]
        if axis == "width":
            overrides += [f"model.blocks.conv{n + 1}.out_channels={value * 2**n}" for n in range(3)]
        elif axis == "depth":
            overrides[-1:] = ["model=deep_cnn", f"model.blocks.more.repeat={value}"]
        same = ("--steps", str(steps), f"--{axis}", str(value))
        contestants += [
            by_hand("by hand", "cnn", *same, at=value),
            by_hand("by hand, channels_last", "cnn", "--layout", "channels_last", *same, at=value),
            cnnlab("cnnlab", *ONE_EPOCH, *overrides, at=value),
        ]
    return contestants


def features() -> list[Contestant]:
    script = CONTESTANTS / "features.py"
    return [
        python("every epoch computes them", script, "trainer.features=false"),
        python("cnnlab", script),
    ]


ON_CUDA = ("busy",)
EPOCH = ("train_seconds", "command_seconds", "peak_mb", "accuracy")
BENCHMARKS = {
    "cnn": Benchmark(
        "CNN 16-32-64 (`model=cnn`), one epoch of MNIST in batches of 128, then the test split", cnn, EPOCH
    ),
    "mlp": Benchmark(
        "784-64-128-64-10 with batch norm, one epoch of MNIST in batches of 128, then the test split", mlp, EPOCH
    ),
    "tiny": Benchmark(
        "784-30-10 sigmoid (`experiment=book/c1-30`), 30 epochs of 50,000 images in batches of 10, one thread",
        tiny,
        ("step_us", "train_seconds", "command_seconds", "peak_mb"),
    ),
    "accuracy": Benchmark(
        "MNIST from scratch, another seed each time, beside the loop's single epoch of CNN 16-32-64",
        accuracy,
        ("accuracy", "seconds_to_99", "seconds_to_99.3", "train_seconds"),
        same_work=False,
    ),
    "images": Benchmark(
        "50,000 JPEGs of 32×32 pixels, shifted and mirrored, in batches of 128, no network",
        images,
        ("first_epoch_seconds", "later_epoch_seconds", "next_run_seconds", "peak_mb"),
    ),
    **{
        name: Benchmark(
            f"`{name}` on 32×32 colour images from memory, in normalised batches of 512, no network",
            lambda name=name: augment(name),
            ("images_per_second", "peak_mb"),
        )
        for name in ("rand_augment", "color_jitter", "random_affine")
    },
    "busy": Benchmark(
        "CNN 16-32-64 (`model=cnn`) against the batch size: a step, and how much of its time the GPU computes",
        busy,
        ("step_us", "busy"),
    ),
    "start": Benchmark("from the command to what it is for", start, ("command_seconds",)),
    "jobs": Benchmark(
        "a job of a sweep on the UCI digits, beyond its training",
        jobs,
        ("overhead_seconds", "first_overhead_seconds", "command_seconds"),
    ),
    "features": Benchmark(
        "training a new head for a frozen ResNet-18, 2,000 images of 64×64 pixels; validation and checkpoints aside",
        features,
        ("first_epoch_seconds", "later_epoch_seconds", "peak_mb", "accuracy"),
    ),
    "growth_batch": Benchmark(
        "CNN 16-32-64 against the batch size", lambda: growth("batch", (8, 32, 128, 512)), ("images_per_second",)
    ),
    "growth_width": Benchmark(
        "CNN against the channels of its first convolution; the others have two and four times as many",
        lambda: growth("width", (4, 8, 16, 32)),
        ("images_per_second",),
    ),
    "growth_depth": Benchmark(
        "CNN 16-32-64 against further convolutions of 32 channels at 14×14",
        lambda: growth("depth", (1, 2, 4, 8)),
        ("images_per_second",),
    ),
}
