"""What TensorBoard shows while a run trains, and that the run is as without it."""

from pathlib import Path

import pytest
import torch
from commands import ok
from fast_run import train_fast
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

SHORT = (
    "data.limit=128",
    "trainer.max_steps=12",
    "trainer.validate_every_epochs=1",
    "trainer.validate_every_steps=null",
)


class Odd(nn.Module):
    """Works in place, keeps state outside of buffers, and changes with each call, in whatever mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("mean", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean += 0.1 * (x.detach().mean() - self.mean)
        return x.mul_(1 + 0.01 * (self.calls % 7)).add_(0.01 * torch.rand(()))


def weights(path: Path) -> bytes:
    return b"".join(
        file.read_bytes() for file in sorted(path.rglob("*.safetensors")) if file.name != "state.safetensors"
    )


EXECUTIONS = [
    (),
    pytest.param(("trainer.execution.layout=contiguous", "trainer.ema=0.9"), marks=pytest.mark.slow),
    pytest.param(("trainer.execution.precision=bf16", "trainer.accumulate=2"), marks=pytest.mark.slow),
    pytest.param(("trainer.execution.compile=true",), marks=pytest.mark.slow),
    pytest.param(("data.memory_fraction=1e-12", "data.workers=1"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_run_with_images_has_the_bits_of_one_without(in_tmp_path: Path, execution: tuple[str, ...]) -> None:
    odd = "+model.blocks.odd={type: test_images_while_training.Odd, after: conv1}"
    settings = (*SHORT, odd, *execution)
    ok(train_fast("run_dir=shown", "trainer.snapshot_every_epochs=1", *settings))
    ok(train_fast("run_dir=plain", "observers=quiet", *settings))
    assert weights(Path("shown")) == weights(Path("plain"))
    events = EventAccumulator("shown", size_guidance={"images": 0})
    events.Reload()
    assert [image.step for image in events.Images("filters/conv1.weight")] == [4, 8, 12]
    assert {"images/training", "maps/conv1"} <= set(events.Tags()["images"])


def test_debug_runs_have_no_images(completed_run: Path) -> None:
    events = EventAccumulator(str(completed_run), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == []
