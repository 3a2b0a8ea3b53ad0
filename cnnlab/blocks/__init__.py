"""The blocks that YAML can name: plain `nn.Module`s with plain constructor values."""

from collections.abc import Callable

from torch import nn

from cnnlab.blocks.activation import GLU, LeakyReLU, Softmax, Step, TwoClasses
from cnnlab.blocks.conv import Conv, ConvTranspose, DepthwiseConv, SeparableConv
from cnnlab.blocks.dropout import Dropout, Dropout2d, DropPath
from cnnlab.blocks.join import JOINS, Branches
from cnnlab.blocks.linear import Linear
from cnnlab.blocks.normalization import BatchNorm, GroupNorm, LayerNorm, LayerNorm2d
from cnnlab.blocks.permutation import PermutePixels
from cnnlab.blocks.pooling import (
    AdaptiveAvgPool,
    AdaptiveMaxPool,
    AvgPool,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool,
    Subsampling,
)
from cnnlab.blocks.recurrent import GRU, LSTM, RNN
from cnnlab.blocks.scaling import LayerScale, Scale, SqueezeExcitation
from cnnlab.blocks.sequence import Attention, ClassToken, FirstToken, ImageToSequence, PositionalEmbedding
from cnnlab.blocks.sequential import Residual, Sequential
from cnnlab.blocks.shortcut import ZeroPadShortcut
from cnnlab.blocks.timm_networks import timm_network
from cnnlab.blocks.torchvision_networks import torchvision_network

BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "conv": Conv,
    "depthwise_conv": DepthwiseConv,
    "separable_conv": SeparableConv,
    "conv_transpose": ConvTranspose,
    "batch_norm": BatchNorm,
    "group_norm": GroupNorm,
    "layer_norm": LayerNorm,
    "layer_norm2d": LayerNorm2d,
    "local_response_norm": nn.LocalResponseNorm,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": LeakyReLU,
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "glu": GLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softmax": Softmax,
    "step": Step,
    "two_classes": TwoClasses,
    "max_pool": MaxPool,
    "avg_pool": AvgPool,
    "subsampling": Subsampling,
    "global_avg_pool": GlobalAvgPool,
    "global_max_pool": GlobalMaxPool,
    "adaptive_avg_pool": AdaptiveAvgPool,
    "adaptive_max_pool": AdaptiveMaxPool,
    "dropout": Dropout,
    "dropout2d": Dropout2d,
    "drop_path": DropPath,
    "scale": Scale,
    "layer_scale": LayerScale,
    "squeeze_excitation": SqueezeExcitation,
    "upsample": nn.Upsample,
    "space_to_depth": nn.PixelUnshuffle,
    "depth_to_space": nn.PixelShuffle,
    "flatten": nn.Flatten,
    "linear": Linear,
    "rnn": RNN,
    "gru": GRU,
    "lstm": LSTM,
    "image_to_sequence": ImageToSequence,
    "class_token": ClassToken,
    "first_token": FirstToken,
    "positional_embedding": PositionalEmbedding,
    "attention": Attention,
    "permute_pixels": PermutePixels,
    "identity": nn.Identity,
    "residual": Residual,
    "sequential": Sequential,
    "branches": Branches,
    **JOINS,
    "zero_pad_shortcut": ZeroPadShortcut,
    "torchvision": torchvision_network,
    "timm": timm_network,
}
