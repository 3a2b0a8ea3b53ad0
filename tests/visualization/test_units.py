"""Layers as they are called, receptive fields as boxes, exciting images and silenced channels."""

import torch
from torch import nn

from cnnlab.network.plan import plan_network
from cnnlab.runtime.errors import Complaints
from cnnlab.visualization.units import ablation, called_layers, cam_layer, exciting, field_box, stages

BLOCKS = {
    "conv1": {"type": "conv", "out_channels": 4, "kernel_size": 3, "padding": 1},
    "relu1": "relu",
    "pool1": {"type": "avg_pool", "kernel_size": 2},
    "conv2": {"type": "conv", "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1},
    "relu2": "relu",
    "flatten": "flatten",
    "hidden": {"type": "linear", "out_features": 5},
    "sigmoid1": "sigmoid",
    "output": {"type": "linear", "out_features": 3},
}


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()


def test_the_box_is_the_reach_of_the_gradient() -> None:
    plan = plan_network((1, 20, 20), BLOCKS, Complaints())
    assert plan
    network = plan.build()
    for name, parameter in network.named_parameters():
        nn.init.ones_(parameter) if name.endswith("weight") else nn.init.zeros_(parameter)
    for layer in ("conv1", "pool1", "relu2"):
        field = next(row.field for row in plan.rows if row.path == layer)
        assert field
        for row, column in ((0, 0), (2, 3), (4, 4)):
            x_NCHW = torch.ones(1, 1, 20, 20, requires_grad=True)
            output = x_NCHW
            for name, module in network.named_children():
                output = module(output)
                if name == layer:
                    break
            (gradient_NCHW,) = torch.autograd.grad(output[0, 0, row, column], x_NCHW)
            seen = gradient_NCHW[0, 0].nonzero()
            expected = (*seen.amin(0).tolist(), *seen.amax(0).tolist())
            assert field_box(field, row, column, (20, 20)) == expected, (layer, row, column)


def test_stages_are_what_the_next_weights_see_and_the_output_is_none() -> None:
    plan = plan_network((1, 20, 20), BLOCKS, Complaints())
    assert plan
    network = plan.build().eval()
    layers = called_layers(network, network, torch.ones(1, 1, 20, 20))
    assert [layer.name for layer in stages(layers, 9)] == ["pool1", "relu2", "sigmoid1"]
    assert [layer.name for layer in stages(layers, 2)] == ["pool1", "sigmoid1"]
    chosen = cam_layer(layers)
    assert chosen
    assert chosen.name == "relu2"
    dense = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    assert cam_layer(called_layers(dense, dense, torch.ones(1, 1, 2, 2))) is None


def test_a_channels_most_exciting_image_beats_every_other() -> None:
    network = convolutional()
    x_NCHW = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = exciting(network, network[1], x_NCHW.split(16), 3)
    with torch.no_grad():
        maps_NCHW = network[1](network[0](x_NCHW))  # before the ReLU, which works in place
    best_NC = maps_NCHW.amax((2, 3))
    assert torch.equal(found.row_CM[:, 0], best_NC.argmax(0))
    for channel in range(4):
        row, place = int(found.row_CM[channel, 0]), int(found.place_CM[channel, 0])
        assert maps_NCHW[row, channel].flatten()[place] == best_NC[:, channel].amax()
        others = [n for n in range(40) if n not in found.row_CM[channel].tolist()]
        assert best_NC[others, channel].amax() <= found.value_CM[channel, -1]


def test_ablation_equals_a_network_without_the_channel() -> None:
    network = convolutional()
    x_NCHW = torch.rand(60, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    target_N = torch.arange(60) % 3
    network[4] = nn.Conv2d(4, 6, 2)
    network[6] = nn.Linear(6, 3)
    whole_K, without_CK = ablation(network, network[3], 4, x_NCHW, target_N, 3)
    for channel in range(4):
        kept = [c for c in range(4) if c != channel]
        smaller = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 6, 2), nn.Flatten(), network[6]
        )
        state = {
            "0.weight": network[0].weight[kept],
            "0.bias": network[0].bias[kept],
            "3.weight": network[4].weight[:, kept],
        }
        state |= {"3.bias": network[4].bias, "5.weight": network[6].weight, "5.bias": network[6].bias}
        smaller.load_state_dict(state)
        with torch.no_grad():
            correct_N = smaller(x_NCHW / (1 + 1e-5) ** 0.5).argmax(1) == target_N  # the norm divides by √(1 + ε)
        expected_K = torch.stack([correct_N[target_N == k].float().mean() for k in range(3)])
        torch.testing.assert_close(without_CK[channel], expected_K)
    with torch.no_grad():
        correct_N = network(x_NCHW).argmax(1) == target_N
    torch.testing.assert_close(whole_K.mean(), correct_N.float().mean())
