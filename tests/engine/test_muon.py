"""Muon on kernels, against `torch.optim.Muon` on matrices."""

import pytest
import torch
from torch import nn

from cnnlab.engine.muon import Muon


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (6, 1, 2, 2), (2, 5, 1, 1)])
@pytest.mark.parametrize("options", [{}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.3}])
def test_a_kernel_moves_as_the_matrix_of_its_rows(
    layout: torch.memory_format, shape: tuple[int, ...], options: dict[str, float]
) -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = nn.Parameter(torch.randn(shape, generator=generator).contiguous(memory_format=layout))
    order = (0, 1, 2, 3) if layout == torch.contiguous_format else (0, 2, 3, 1)  # as it lies in memory
    matrix = nn.Parameter(kernel.detach().permute(order).reshape(shape[0], -1).clone())
    ours, theirs = Muon([{"params": [kernel]}], 0.1, **options), torch.optim.Muon([matrix], 0.1, **options)
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        kernel.grad, matrix.grad = gradient, gradient.permute(order).reshape(shape[0], -1)
        ours.step()
        theirs.step()
        assert torch.equal(kernel.permute(order).reshape(shape[0], -1), matrix)


def test_the_update_is_orthogonal() -> None:
    """Rows of the update times their transpose are near lr² on the diagonal, and near 0 beside it."""
    kernel = nn.Parameter(torch.zeros(4, 3, 3, 3))
    kernel.grad = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    Muon([{"params": [kernel]}], 1.0, weight_decay=0.0).step()
    singular = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert 0.6 < singular.min() <= singular.max() < 1.3  # https://kellerjordan.github.io/posts/muon/: about 0.7 to 1.2


def test_a_bias_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"two dimensions or more, and conv1.bias has 1: expected a name pattern"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))], "names": ["conv1.bias"]}])
    with pytest.raises(ValueError, match="momentum should be >= 0"):
        Muon([{"params": [nn.Parameter(torch.zeros(3, 3))]}], momentum=-1.0)
