"""Recurrent layers that read an image as a sequence and return their last hidden state."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from cnnlab.blocks.facts import MOST_CHANNELS, Facts, Shape, expect_image, format_shape
from cnnlab.blocks.receptive_field import whole
from cnnlab.runtime.checks import integer, number, one_of
from cnnlab.runtime.errors import ArgumentError

ORDERS = ("rows", "pixels")
MOST_LAYERS = 100


class Recurrent(nn.Module):
    """The base of `rnn`, `gru` and `lstm`: (N, C, H, W) → (N, `hidden_size`), or twice as many if `bidirectional`.

    `order` says what one step reads: `rows` the C·W values of a row, in H steps from the top; `pixels` the C values of
    a pixel, in H·W steps, row by row; after `permute_pixels` that is the permuted sequence. The output is the last
    layer's hidden state at the end, followed by the backward direction's at the image's beginning.

    Each of the `num_layers` layers is one of torch's, of one layer: `layers.0.weight_ih_l0`, … are named, shaped and
    drawn as there. Between them, `dropout` draws from torch's generator on every device, so that a resumed run draws
    the same; cuDNN's own would come from a state that no checkpoint holds. `bias` adds one to each gate. Raises
    `ArgumentError`.
    """

    def __init__(
        self,
        layer: Callable[..., nn.RNNBase],
        input_shape: tuple[int, int, int],
        hidden_size: int,
        num_layers: int,
        bias: bool,
        dropout: float,
        bidirectional: bool,
        order: str,
        **more: Any,
    ) -> None:
        super().__init__()
        integer("hidden_size", hidden_size, 1, MOST_CHANNELS)
        number("dropout", dropout, 0, 1, open_maximum=True)
        if dropout and integer("num_layers", num_layers, 1, MOST_LAYERS) == 1:
            raise ArgumentError(
                "dropout", f"it acts between layers: expected num_layers of 2 or more beside it, received {dropout!r}"
            )
        self.order = one_of("order", order, ORDERS)
        expect_image(input_shape, "; layers are stacked with num_layers")
        channels, _, width = input_shape
        sizes = [channels * width if order == "rows" else channels]
        sizes += [hidden_size * (2 if bidirectional else 1)] * (integer("num_layers", num_layers, 1, MOST_LAYERS) - 1)
        self.layers = nn.ModuleList(
            layer(size, hidden_size, bias=bias, bidirectional=bidirectional, **more) for size in sizes
        )
        self.dropout = nn.Dropout(dropout)
        self.features = hidden_size * (2 if bidirectional else 1)

    def facts(self, shape: Shape) -> Facts:
        """Each step multiplies every weight once; what gates do value by value is no multiply-accumulate."""
        expect_image(shape)
        channels, height, width = shape
        if self.layers[0].input_size != channels * (width if self.order == "rows" else 1):
            raise ArgumentError(
                "input_shape", f"expected {format_shape(shape)}, which is inferred where it is left out"
            )
        weights = sum(parameter.numel() for parameter in self.parameters() if parameter.dim() == 2)
        steps = height if self.order == "rows" else height * width
        return Facts((self.features,), weights * steps, whole)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_TNF = self.sequence(x_NCHW)
        for layer in self.layers[:-1]:
            x_TNF = self.dropout(layer(x_TNF)[0])
        _, last = self.layers[-1](x_TNF)
        hidden_DNF = last[0] if isinstance(last, tuple) else last  # an LSTM's cell state stays inside
        return hidden_DNF.transpose(0, 1).flatten(1)

    def sequence(self, x_NCHW: Tensor) -> Tensor:
        """(T, N, F): the T steps of each image, with F values in each."""
        if self.order == "rows":
            return x_NCHW.permute(2, 0, 1, 3).flatten(2)
        return x_NCHW.flatten(2).permute(2, 0, 1).contiguous()


class RNN(Recurrent):
    """h_t = nonlinearity(W_ih·x_t + W_hh·h_{t−1} + b) (`torch.nn.RNN`); `nonlinearity` is `tanh` or `relu`."""

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        order: str = "rows",
    ) -> None:
        one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(
            nn.RNN,
            input_shape,
            hidden_size,
            num_layers,
            bias,
            dropout,
            bidirectional,
            order,
            nonlinearity=nonlinearity,
        )


class Gated(Recurrent):
    """The constructor of `gru` and `lstm`."""

    layer: ClassVar[type[nn.RNNBase]]

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        order: str = "rows",
    ) -> None:
        super().__init__(self.layer, input_shape, hidden_size, num_layers, bias, dropout, bidirectional, order)


class GRU(Gated):
    """Gated recurrent units (arXiv 1406.1078, in the variant of `torch.nn.GRU`)."""

    layer = nn.GRU


class LSTM(Gated):
    """Long short-term memory (Hochreiter and Schmidhuber 1997, in the variant of `torch.nn.LSTM`)."""

    layer = nn.LSTM
