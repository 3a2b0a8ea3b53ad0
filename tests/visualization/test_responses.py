"""Answers of layers by hand, and images that maximise them in closed form."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnlab.data.drawing import edge
from cnnlab.network import build_network
from cnnlab.runtime.errors import ArgumentError
from cnnlab.visualization.responses import grey_noise, maximise, response, unit_means

VERTICAL = [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]]  # dark on the left, bright on the right
MEAN, SD = 33.0, 78.0
START_CHW = grey_noise((1, 6, 6))


class Normalised(nn.Module):
    """A network behind the normalisation of its images of 0…255."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x_NCHW: Tensor) -> Any:
        return self.layers((x_NCHW - MEAN) / SD)


def planted(**blocks: Any) -> nn.Sequential:
    given = {"type": "given", "weight": VERTICAL}
    conv = {"type": "conv", "out_channels": 2, "kernel_size": 3, "init": given}
    return build_network((1, 28, 28), {"conv": conv, **blocks})


def deep() -> Normalised:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)
    return Normalised(conv, norm, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(80, 4))


def linear(*units: list[float], bias: float = 0.0) -> nn.Linear:
    layer = nn.Linear(len(units[0]), len(units))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(units))
        layer.bias.fill_(bias)
    return layer


def test_the_response_of_a_convolution_is_the_cross_correlation_by_hand() -> None:
    x_NCHW = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    network = planted(relu="relu", pool={"type": "max_pool", "kernel_size": 2})
    by_hand_NCHW = functional.conv2d(x_NCHW, torch.tensor([[VERTICAL], [VERTICAL]], dtype=torch.float32))
    torch.testing.assert_close(response(network, network.conv, x_NCHW), by_hand_NCHW + network.conv.bias.view(2, 1, 1))


@pytest.mark.parametrize("column", [3, 14, 24])
def test_a_planted_filter_peaks_on_the_planted_edge(column: int) -> None:
    """The edge runs through the middle of that column; the map lacks one column on each side."""
    x_NCHW = edge(torch.tensor([[column + 0.5, column + 0.5]]), torch.tensor([0.0]), (28, 28))[:, None]
    network = planted(relu="relu")
    map_HW = response(network, network.conv, x_NCHW)[0, 0]
    assert map_HW.argmax(1).unique().tolist() == [column - 1]


def test_a_later_layer_that_works_in_place_does_not_change_the_response() -> None:
    norm, relu = nn.BatchNorm2d(1), nn.ReLU(inplace=True)
    network = nn.Sequential(norm, relu)
    x_NCHW = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert response(network, norm, x_NCHW).min() < 0
    assert response(network, relu, x_NCHW).min() == 0


def test_the_response_is_that_of_evaluation_mode() -> None:
    network = deep().train()
    x_NCHW = START_CHW.expand(2, 1, 6, 6)
    answer_NF = response(network, network.layers[5], x_NCHW)
    torch.testing.assert_close(answer_NF, copy.deepcopy(network).eval()(x_NCHW))
    assert all(module.training for module in network.modules())


def test_a_layer_that_returns_no_tensor_or_is_not_called_is_refused() -> None:
    lstm = nn.LSTM(6, 3)
    network = nn.Sequential(nn.Flatten(0, 1), lstm)
    with pytest.raises(ArgumentError, match="received a tuple"):
        response(network, lstm, torch.zeros(2, 1, 6, 6))
    with pytest.raises(ArgumentError, match=r"a tensor of \(2, 6, 6\)"):
        response(network, network[0], torch.zeros(2, 1, 6, 6))
    with pytest.raises(ArgumentError, match="does not call it"):
        response(network, nn.ReLU(), torch.zeros(2, 1, 6, 6))


def test_a_linear_units_best_image_is_white_where_its_weight_is_positive() -> None:
    generator = torch.Generator().manual_seed(1)
    weight_UF = torch.randn(3, 36, generator=generator)
    layer = linear(*weight_UF.tolist(), bias=0.25)
    found = maximise(Normalised(nn.Flatten(), layer), layer, START_CHW, 3)
    optimum_UF = torch.where(weight_UF > 0, 255.0, 0.0)
    torch.testing.assert_close(found.x_UCHW.flatten(1), optimum_UF, rtol=0, atol=0)
    torch.testing.assert_close(found.value_U, (weight_UF * (optimum_UF - MEAN) / SD).sum(1) + 0.25)


def test_a_pixel_that_a_unit_does_not_see_stays_as_it_was() -> None:
    layer = linear([1.0, 0.0, -1.0, 0.0])
    start_CHW = grey_noise((1, 2, 2))
    found = maximise(Normalised(nn.Flatten(), layer), layer, start_CHW, 1).x_UCHW[0, 0]
    assert found.tolist() == [[255, start_CHW[0, 0, 1]], [0, start_CHW[0, 1, 1]]]


def test_a_unit_that_is_silent_at_the_start_finds_its_image() -> None:
    """w·x of the normalised start is about 1.2·4, far below the bias; of the white image it is 4·222/78."""
    layer, relu = linear([1.0, 1.0, 1.0, 1.0], bias=-10.0), nn.ReLU()
    found = maximise(Normalised(nn.Flatten(), layer, relu), relu, grey_noise((1, 2, 2)), 1)
    assert found.x_UCHW.unique().tolist() == [255]
    assert found.value_U.item() == pytest.approx(4 * (255 - MEAN) / SD - 10)


@pytest.mark.parametrize(("layer", "units"), [(0, 5), (2, 3), (5, 4)])
def test_the_image_found_beats_noise_grey_black_and_white(layer: int, units: int) -> None:
    network = deep()
    found = maximise(network, network.layers[layer], START_CHW, units)
    plain_NCHW = torch.tensor([127.5, 0, 255])[:, None, None, None].expand(3, 1, 6, 6)
    images_NCHW = torch.cat([START_CHW[None], plain_NCHW, found.x_UCHW])
    means_NU = unit_means(response(network, network.layers[layer], images_NCHW))[:, :units]
    torch.testing.assert_close(found.value_U, means_NU[4:].diagonal())
    assert (found.value_U >= means_NU[:4].amax(0)).all()
    assert (found.value_U > means_NU[0]).all()
    assert (found.x_UCHW.min() >= 0) & (found.x_UCHW.max() <= 255)


def test_the_network_is_left_as_it_was() -> None:
    network = deep().train()
    network.layers[1].eval()  # frozen
    network.layers[0].weight.requires_grad_(False)
    before = copy.deepcopy(network)
    with torch.no_grad():
        maximise(network, network.layers[5], START_CHW, 4, steps=3)
    for (name, value), old in zip(network.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, old), name
    for parameter, old in zip(network.parameters(), before.parameters(), strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad == old.requires_grad
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    assert not any(module._forward_hooks for module in network.modules())


def test_a_layer_without_a_gradient_leaves_the_start() -> None:
    layer = nn.Flatten()
    layer.register_forward_hook(lambda module, arguments, output: output.detach())
    found = maximise(Normalised(layer), layer, START_CHW, 2)
    assert torch.equal(found.x_UCHW, START_CHW.expand(2, 1, 6, 6))


def test_the_best_image_of_all_steps_is_kept() -> None:
    hill = nn.Flatten()
    hill.register_forward_hook(lambda module, arguments, output: -(output - 100).abs())
    found = maximise(hill, hill, torch.full((1, 1, 1), 101.0), 1, steps=1, rate=50.0)  # the step leads past the top
    assert (found.x_UCHW.item(), found.value_U.item()) == (101, -1)


def test_the_same_is_found_again_whatever_was_drawn_between() -> None:
    network = deep()
    first = maximise(network, network.layers[0], grey_noise((1, 6, 6)), 5)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    second = maximise(network, network.layers[0], grey_noise((1, 6, 6)), 5)
    assert torch.equal(first.x_UCHW, second.x_UCHW)
    assert torch.equal(first.value_U, second.value_U)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_recurrent_layers_unit_is_maximised_too() -> None:
    blocks = {"gru": {"type": "gru", "hidden_size": 3}, "output": {"type": "linear", "out_features": 2}}
    network = Normalised(build_network((1, 6, 6), blocks))
    layer = network.layers[0].gru
    found = maximise(network, layer, START_CHW, 3)
    assert (found.value_U > response(network, layer, START_CHW[None])[0]).all()
