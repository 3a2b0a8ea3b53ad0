"""The networks of configs/model/blocks have the parameters, multiply-accumulates and outputs of their references.

Weights are copied in the order of the forward pass.
"""

import pytest
import torch
from known_networks import FAST, FOLDER, KNOWN, Known, compared, planned
from torchvision.models.convnext import CNBlock

from cnnlab.blocks import DropPath


def slow_unless_fast(known: Known) -> object:
    return pytest.param(known, id=known.name, marks=() if known.name in FAST else pytest.mark.slow)


@pytest.mark.parametrize("known", [slow_unless_fast(known) for known in KNOWN])
def test_a_known_network_has_its_parameters_macs_and_outputs(known: Known) -> None:
    found = compared(known)
    assert len({*found.parameters}) == 1
    assert len({*found.macs}) == 1
    assert found.output.shape == found.expected.shape == (1, known.classes)
    assert found.expected.norm() > 0
    assert found.difference <= 1e-9


@pytest.mark.parametrize(("name", "millions"), [("wrn16_4", 2.7), ("resnext29", 34.4), ("densenet_bc100", 0.8)])
def test_a_known_network_has_as_many_parameters_as_were_published(name: str, millions: float) -> None:
    plan = planned(next(known for known in KNOWN if known.name == name))
    assert round(sum(row.parameters for row in plan.rows) / 1e6, 1) == millions


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0"])
def test_paths_are_dropped_as_in_torchvisions(name: str) -> None:
    known = next(known for known in KNOWN if known.name == name)
    with torch.device("meta"):
        network, reference = planned(known).build(), known.reference()
    added = [block for block in reference.modules() if getattr(block, "use_res_connect", isinstance(block, CNBlock))]
    expected = [block.stochastic_depth.p for block in added]
    assert [block.p for block in network.modules() if isinstance(block, DropPath)] == pytest.approx(expected)


def test_every_network_of_the_folder_is_compared() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {known.name for known in KNOWN}
