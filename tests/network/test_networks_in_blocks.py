"""configs/model/blocks against torchvision's networks: parameters, MACs and outputs."""

from typing import Any

import pytest
import torch
import yaml
from torchvision import models

from cnnlab.config.compose import CONFIGS
from cnnlab.network import NetworkPlan, plan_network
from cnnlab.runtime.errors import Complaints

NAMES = ["squeezenet1_1"]
INPUT_SHAPE, CLASSES = (3, 96, 96), 10


def planned(blocks: dict[str, Any]) -> NetworkPlan:
    complaints = Complaints()
    plan = plan_network(INPUT_SHAPE, blocks, complaints, classes=CLASSES)
    complaints.raise_if_any()
    assert plan is not None
    return plan


@pytest.mark.parametrize("name", NAMES)
def test_it_is_torchvisions_network(name: str) -> None:
    ours = planned(yaml.safe_load((CONFIGS / "model" / "blocks" / f"{name}.yaml").read_text())["blocks"])
    (theirs,) = planned({"all": {"type": "torchvision", "name": name, "num_classes": CLASSES}}).rows
    assert (sum(row.parameters for row in ours.rows), sum(row.macs for row in ours.rows)) == (
        theirs.parameters,
        theirs.macs,
    )
    network, published = ours.build().double().eval(), models.get_model(name, num_classes=CLASSES).double().eval()
    # both list their tensors in the order of the forward pass
    network.load_state_dict(dict(zip(network.state_dict(), published.state_dict().values(), strict=True)))
    x_NCHW = torch.randn(2, *INPUT_SHAPE, dtype=torch.float64)
    with torch.no_grad():
        expected = published(x_NCHW)
        assert expected.any()
        torch.testing.assert_close(network(x_NCHW), expected, rtol=1e-9, atol=0)
