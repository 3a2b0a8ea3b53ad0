"""What training and evaluation load from a checkpoint."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cnnlab.engine.checkpoint import Checkpoint, Checkpoints
from cnnlab.losses import CrossEntropy
from cnnlab.run.loaders import load_loss, load_weights
from cnnlab.runtime.errors import ConfigError


class RunningLoss(nn.Module):
    """Keeps a mean in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0))

    def forward(self, output_NK: Tensor, target: Tensor) -> Tensor:
        return output_NK.mean() + self.mean


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    checkpoints = Checkpoints(tmp_path)
    state = {"train_state": {"loss": {"mean": torch.tensor(2.5)}}}
    checkpoints.save(1, {"weight": torch.zeros(1)}, state, {}, best_step=1)
    return checkpoints.resolve("best")


def test_a_loss_gets_the_state_that_it_had_at_the_checkpoint(checkpoint: Checkpoint) -> None:
    loss = RunningLoss()
    load_loss(loss, checkpoint)
    assert loss.mean == 2.5


def test_the_state_of_another_loss_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="holds the state of another loss"):
        load_loss(nn.Sequential(RunningLoss()), checkpoint)


def test_a_loss_without_state_leaves_the_checkpoint_unread(checkpoint: Checkpoint) -> None:
    (checkpoint.folder / "state.safetensors").unlink()
    load_loss(CrossEntropy(weight=[1.0, 2.0]), checkpoint)


def network(features: int, *names: str) -> nn.Module:
    return nn.Sequential(OrderedDict((name, nn.Linear(2, features)) for name in names))


def test_another_networks_weights_are_refused_with_five_keys() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint: folder holds another network: .*; and 3 more") as refusal:
        load_weights(network(3, "a", "b"), network(3, "c", "d").state_dict(), Path("folder"))
    assert str(refusal.value).count(" is not in the ") == 5


def test_weights_of_another_size_are_refused_with_both_sizes() -> None:
    with pytest.raises(ConfigError, match=r"a\.weight is \[4, 2\] in the checkpoint and \[3, 2\] in the network"):
        load_weights(network(3, "a"), network(4, "a").state_dict(), Path("folder"))
