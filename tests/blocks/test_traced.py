"""Blocks in a traced and in a compiled step, and with images laid out channels_last: the same as eagerly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlab.engine.backends import compiled
from cnnlab.engine.backends.compiled import Compiled, missing_compiler
from cnnlab.engine.execution import Execution
from cnnlab.engine.step import forward_backward
from cnnlab.losses import CrossEntropy
from cnnlab.network import build_network
from cnnlab.runtime.batch import Batch

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)
WITHIN = {  # keep an image of 4×8×8
    "depthwise_conv": {"type": "depthwise_conv", "kernel_size": 3, "padding": 1},
    "separable_conv": {"type": "separable_conv", "out_channels": 4, "kernel_size": 3, "padding": 1},
    "conv_transpose": {"type": "conv_transpose", "out_channels": 4, "kernel_size": 3, "padding": 1},
    "layer_norm2d": "layer_norm2d",
    "local_response_norm": {"type": "local_response_norm", "size": 3},
    "squeeze_excitation": {"type": "squeeze_excitation", "squeeze_channels": 2, "activation": "silu"},
    "drop_path": {"type": "drop_path", "p": 0.5},
    "layer_scale": {"type": "layer_scale", "init_value": 0.5},
    "scale": {"type": "scale", "factor": 0.5},
    "subsampling": {"type": "subsampling", "kernel_size": 2, "stride": 1},
    "upsample": {"type": "upsample", "scale_factor": 2, "mode": "bilinear"},
    "space_to_depth": {"type": "space_to_depth", "downscale_factor": 2},
    "depth_to_space": {"type": "depth_to_space", "upscale_factor": 2},
    "prelu": "prelu",
    "glu": "glu",
    "hardswish": "hardswish",
}
IMAGES = {**WITHIN, "flatten": "flatten"}
SEQUENCES = {
    "image_to_sequence": "image_to_sequence",
    "class_token": "class_token",
    "positional_embedding": "positional_embedding",
    "layer_norm": "layer_norm",
    "attention": {"type": "attention", "num_heads": 2, "dropout": 0.2},
    "drop_path": {"type": "drop_path", "p": 0.3},
    "layer_scale": {"type": "layer_scale", "init_value": 0.5},
    "mlp": {"type": "linear", "out_features": 6},
    "first_token": "first_token",
}


def network_of(blocks: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return build_network(SHAPE, {**blocks, "output": {"type": "linear", "out_features": 3}})


def gradients(network: nn.Module, passes: Any, execution: Execution) -> list[Tensor]:
    """The loss and all gradients of a step, with seeded draws."""
    execution.place(network, CPU)
    torch.manual_seed(1)
    x_NCHW, target_N = torch.randn(6, *SHAPE), torch.randint(0, 3, (6,))
    batch = Batch(x_NCHW, target_N, torch.arange(6))
    loss, _ = passes(network, CrossEntropy(), batch, execution=execution, scaler=execution.scaler(CPU))
    return [loss.detach(), *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("blocks", [IMAGES, SEQUENCES], ids=["images", "sequences"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_traced_step_has_the_gradients_of_an_eager_one(
    blocks: dict[str, Any], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    monkeypatch.setattr(compiled, "_compile", lambda function, inputs: make_fx(function, tracing_mode="fake")(*inputs))
    execution = Execution(layout=layout)
    eager = gradients(network_of(blocks), forward_backward, execution)
    torch.testing.assert_close(gradients(network_of(blocks), Compiled(6), execution), eager)


@pytest.mark.parametrize("name", WITHIN)
def test_a_block_computes_the_same_for_images_laid_out_channels_last(name: str) -> None:
    layer = network_of({name: WITHIN[name], "flatten": "flatten"})[0].eval()  # type: ignore[index]
    x_NCHW = torch.randn(6, *SHAPE)
    torch.testing.assert_close(layer(x_NCHW.contiguous(memory_format=torch.channels_last)), layer(x_NCHW))


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler(CPU) is not None, reason="there is no C++ compiler")
@pytest.mark.parametrize("blocks", [IMAGES, SEQUENCES], ids=["images", "sequences"])
def test_a_compiled_step_has_the_gradients_of_an_eager_one(blocks: dict[str, Any]) -> None:
    without_draws = {name: spec for name, spec in blocks.items() if name != "drop_path"}
    if "attention" in blocks:
        without_draws["attention"] = {"type": "attention", "num_heads": 2}
    execution = Execution(layout="channels_last")
    eager = gradients(network_of(without_draws), forward_backward, execution)
    torch.testing.assert_close(
        gradients(network_of(without_draws), Compiled(6), execution), eager, rtol=1e-4, atol=1e-5
    )
