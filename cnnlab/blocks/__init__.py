"""The blocks that YAML can name: plain `nn.Module`s with plain constructor values."""

from collections.abc import Callable

from torch import nn

from cnnlab.blocks.activation import LeakyReLU, Softmax, Step, TwoClasses
from cnnlab.blocks.conv import Conv
from cnnlab.blocks.dropout import Dropout, Dropout2d
from cnnlab.blocks.linear import Linear
from cnnlab.blocks.normalization import BatchNorm, GroupNorm, LayerNorm
from cnnlab.blocks.permutation import PermutePixels
from cnnlab.blocks.pooling import (
    AdaptiveAvgPool,
    AdaptiveMaxPool,
    AvgPool,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool,
)
from cnnlab.blocks.recurrent import GRU, LSTM, RNN
from cnnlab.blocks.sequential import Residual, Sequential
from cnnlab.blocks.shortcut import ZeroPadShortcut
from cnnlab.blocks.torchvision_networks import torchvision_network

BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "conv": Conv,
    "batch_norm": BatchNorm,
    "group_norm": GroupNorm,
    "layer_norm": LayerNorm,
    "relu": nn.ReLU,
    "leaky_relu": LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softmax": Softmax,
    "step": Step,
    "two_classes": TwoClasses,
    "max_pool": MaxPool,
    "avg_pool": AvgPool,
    "global_avg_pool": GlobalAvgPool,
    "global_max_pool": GlobalMaxPool,
    "adaptive_avg_pool": AdaptiveAvgPool,
    "adaptive_max_pool": AdaptiveMaxPool,
    "dropout": Dropout,
    "dropout2d": Dropout2d,
    "flatten": nn.Flatten,
    "linear": Linear,
    "rnn": RNN,
    "gru": GRU,
    "lstm": LSTM,
    "permute_pixels": PermutePixels,
    "residual": Residual,
    "sequential": Sequential,
    "zero_pad_shortcut": ZeroPadShortcut,
    "torchvision": torchvision_network,
}
