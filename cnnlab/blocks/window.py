"""Windows that slide over an image: what convolutions and poolings have in common."""

from dataclasses import dataclass
from typing import Any

from cnnlab.blocks.facts import Facts, Shape, expect_image, format_shape
from cnnlab.blocks.receptive_field import Field, ReceptiveField
from cnnlab.runtime.checks import int_or_pair
from cnnlab.runtime.errors import ArgumentError, ConfigError

Pair = tuple[int, int]
LONGEST = 1 << 16  # side, stride or border of a window


def sides(argument: str, value: Any, minimum: int) -> Pair:
    """A number or a pair (height, width) of pixels. Raises `ArgumentError`."""
    return int_or_pair(argument, value, minimum, LONGEST)


def check_pool_padding(padding: Any, kernel_size: Any) -> None:
    """Raises `ArgumentError` where a window could be all padding."""
    borders, kernel = sides("padding", padding, 0), sides("kernel_size", kernel_size, 1)
    if any(border > size // 2 for border, size in zip(borders, kernel, strict=True)):
        raise ArgumentError(
            "padding", f"expected at most half of the kernel_size {kernel_size!r}, received {padding!r}"
        )


@dataclass(frozen=True)
class Axis:
    """A window along the height or the width; `border` is the padding of both sides together."""

    kernel: int
    stride: int
    border: int
    dilation: int
    ceil: bool = False
    padding_mode: str = "zeros"

    @property
    def span(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    @property
    def smallest(self) -> int:
        """The smallest height or width with an output of one row or column."""
        mirrored = {"reflect": self.border // 2 + 1, "circular": self.border // 2}.get(self.padding_mode, 1)
        return max(1, self.span - self.border - (self.stride - 1 if self.ceil else 0), mirrored)

    def output(self, size: int) -> int:
        """⌊(W + 2P − D(K − 1) − 1) / S⌋ + 1; with `ceil`, one more where the last window begins on the image."""
        steps, rest = divmod(size + self.border - self.span, self.stride)
        begins_inside = (steps + 1) * self.stride < size + self.border // 2
        return steps + 1 + (self.ceil and rest > 0 and begins_inside)

    def dropped(self, size: int) -> int:
        """How many rows or columns of the image, at the end, no window covers."""
        left = size + self.border - self.span - (self.output(size) - 1) * self.stride
        return max(0, left - self.border // 2)  # the border's own rows are no loss


@dataclass(frozen=True)
class Window:
    """A window along the height and the width."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, module: Any) -> "Window":
        """From the attributes that torch's convolutions and poolings have. Raises `ArgumentError`."""
        kernel, stride = sides("kernel_size", module.kernel_size, 1), sides("stride", module.stride, 1)
        dilation = sides("dilation", getattr(module, "dilation", 1), 1)
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        borders = {"valid": [0, 0], "same": spans}.get(str(module.padding))
        if borders is None:
            borders = [2 * padding for padding in sides("padding", module.padding, 0)]
        ceil, padding_mode = getattr(module, "ceil_mode", False), getattr(module, "padding_mode", "zeros")
        rows, columns = (
            Axis(*sizes, ceil, padding_mode) for sizes in zip(kernel, stride, borders, dilation, strict=True)
        )
        return cls(rows, columns)

    def facts(self, shape: Shape, channels: int, macs_per_unit: int = 0) -> Facts:
        """For so many output channels and multiply-accumulates per unit. Raises `ConfigError`."""
        self.check(shape)
        height, width = self.rows.output(shape[1]), self.columns.output(shape[2])
        macs = macs_per_unit * channels * height * width
        return Facts((channels, height, width), macs, self.field, self.label, self.remark(shape))

    def check(self, shape: Shape) -> None:
        """Raises `ConfigError` with the arithmetic and the smallest legal input where the window does not fit."""
        expect_image(shape)
        for axis, size, name in ((self.rows, shape[1], "height"), (self.columns, shape[2], "width")):
            if size >= axis.smallest:
                continue
            arithmetic = f"its padding mirrors {axis.border // 2} of {size} ({name})"
            if size + axis.border < axis.span:
                arithmetic = f"{name} ({size} + {axis.border} − {axis.span}) / {axis.stride} + 1 < 1"
            smallest = (shape[0], self.rows.smallest, self.columns.smallest)
            raise ConfigError(
                f"kernel {format_shape(self.kernel)} does not fit its input {format_shape(shape)}: {arithmetic}; the "
                f"smallest legal input is {format_shape(smallest)}"
            )

    def field(self, field: Field) -> Field:
        return field and ReceptiveField(
            *(
                reach.windowed(axis.kernel, axis.stride, axis.border // 2, axis.dilation)
                for reach, axis in ((field.rows, self.rows), (field.columns, self.columns))
            )
        )

    @property
    def kernel(self) -> Pair:
        return self.rows.kernel, self.columns.kernel

    @property
    def label(self) -> str:
        """`3×3 / 2`, without the stride where it is 1."""
        stride = self.rows.stride, self.columns.stride
        if stride == (1, 1):
            return format_shape(self.kernel)
        return f"{format_shape(self.kernel)} / {stride[0] if stride[0] == stride[1] else format_shape(stride)}"

    def remark(self, shape: Shape) -> str:
        """Says what rows or columns no window covers, unless the stride is to skip pixels, as a 1×1 / 2 shortcut's."""
        if self.rows.stride > self.rows.span or self.columns.stride > self.columns.span:
            return ""
        lost = ((self.rows.dropped(shape[1]), "row"), (self.columns.dropped(shape[2]), "column"))
        counts = [f"{count} {name}{'s' if count > 1 else ''}" for count, name in lost if count]
        return f"drops {', '.join(counts)}" if counts else ""
