"""Drawn edges, lines, corners and curves: what the filters of a first layer find."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cnnlab.data.drawing import Size, arc, edge, stroke, towards
from cnnlab.data.source import DataSpec, Images, Source
from cnnlab.runtime.checks import int_or_pair, integer, number
from cnnlab.runtime.randomness import derive, uniforms

SMALLEST = 8  # pixels: in less, a corner and a curve are the same blot
LARGEST = 1024
MOST_NOISE = 100.0
MOST_PIXELS = 1 << 34  # of a split, a byte each
CHUNK = 1 << 20  # pixels drawn at a time: a bound on memory
TILT = math.radians(10)  # how far a line may be off its direction


class Shapes(Source):
    """`train_count` + `test_count` grey images of `size` pixels, each of one shape, in equal numbers.

    Edges between a dark and a bright half, lines in four directions, corners and curves, at any place and contrast.
    `thickness` of a line is between two numbers of pixels; `noise` is the standard deviation of what is added to each
    pixel, as a fraction of white. An image is a pure function of `drawing_seed`, its split and its position there: more
    images leave the others as they are. Raises `ArgumentError`.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        train_count: int,
        test_count: int,
        thickness: tuple[float, float],
        noise: float,
        drawing_seed: int,
    ) -> None:
        self.size = int_or_pair("size", size, SMALLEST, LARGEST)
        most = MOST_PIXELS // math.prod(self.size)
        self.counts = {
            "train": integer("train_count", train_count, len(SHAPES), most),
            "test": integer("test_count", test_count, len(SHAPES), most),
        }
        thinnest = number("thickness[0]", thickness[0], 0, open_minimum=True)
        self.thickness = (thinnest, number("thickness[1]", thickness[1], thinnest, LARGEST))
        self.noise = number("noise", noise, 0, MOST_NOISE)
        self.drawing_seed = integer("drawing_seed", drawing_seed, 0)

    def describe(self) -> DataSpec:
        return DataSpec((1, *self.size), self.counts, tuple(SHAPES))

    def read(self, split: str) -> Images:
        index_N = torch.arange(self.counts[split])
        key = derive(self.drawing_seed, "shapes", split)
        chunks = index_N.split(max(1, CHUNK // math.prod(self.size)))
        return Images.of(torch.cat([self._images(chunk_N, key) for chunk_N in chunks]), _labels(index_N))

    def cover(self, split: str, index_N: Tensor) -> Tensor:
        """(N, height, width) in [0, 1]: how much of each pixel an image's shape covers; of an edge, its bright side."""
        return self._cover(index_N, uniforms(derive(self.drawing_seed, "shapes", split), index_N, DRAWS))

    def _cover(self, index_N: Tensor, draws_ND: Tensor) -> Tensor:
        cover_NHW = torch.empty(len(index_N), *self.size)
        for label, draw in enumerate(SHAPES.values()):
            rows = _labels(index_N) == label
            cover_NHW[rows] = draw(_Draws(draws_ND[rows], self.size, self.thickness))
        return cover_NHW

    def _images(self, index_N: Tensor, key: int) -> Tensor:
        """(N, 1, height, width) uint8."""
        height, width = self.size
        draws_ND = uniforms(key, index_N, DRAWS + height * width)
        shape_draws_ND, noise_draws_ND = draws_ND.split((DRAWS, height * width), dim=1)
        cover_NHW = self._cover(index_N, shape_draws_ND)
        contrast_N11 = _between(draws_ND[:, :1], 0.5, 1)[:, :, None]
        noise_NHW = self.noise * _normal(noise_draws_ND).reshape(-1, height, width)
        return ((contrast_N11 * cover_NHW + noise_NHW) * 255).round().clamp(0, 255).to(torch.uint8)[:, None]


DRAWS = 7  # of a shape: its contrast, and six for its place and form


class _Draws:
    """The random numbers of N shapes of one class, as lengths and places in an image of `size`."""

    def __init__(self, draws_ND: Tensor, size: Size, thickness: tuple[float, float]) -> None:
        _, self.x_N, self.y_N, self.angle_N, self.length_N, self.form_N, thick_N = draws_ND.unbind(1)
        self.size = size
        self.unit = min(size)
        self.thickness_N = _between(thick_N, *thickness)

    def middle(self, spread: float) -> Tensor:
        """(N, 2) places within `spread` of the image's middle, as a fraction of its height and width."""
        height, width = self.size
        x_N = width * _between(self.x_N, 0.5 - spread, 0.5 + spread)
        return torch.stack((x_N, height * _between(self.y_N, 0.5 - spread, 0.5 + spread)), 1)

    def tilted(self, angle: float) -> Tensor:
        return _between(self.angle_N, angle - TILT, angle + TILT)

    def any_angle(self) -> Tensor:
        return _between(self.angle_N, -math.pi, math.pi)


def _edges(angle: float) -> Callable[[_Draws], Tensor]:
    """Half planes whose brighter side is the one at `angle`, or the one opposite."""

    def draw(draws: _Draws) -> Tensor:
        flipped_N = math.pi * (draws.form_N < 0.5)
        return edge(draws.middle(0.25), draws.tilted(angle) + flipped_N, draws.size)

    return draw


def _lines(angle: float) -> Callable[[_Draws], Tensor]:
    def draw(draws: _Draws) -> Tensor:
        middle_N2 = draws.middle(0.2)
        half_N1 = draws.unit * _between(draws.length_N, 0.25, 0.4)[:, None]
        reach_N2 = half_N1 * towards(draws.tilted(angle))
        return stroke(middle_N2 - reach_N2, middle_N2 + reach_N2, draws.thickness_N, draws.size)

    return draw


def _corners(draws: _Draws) -> Tensor:
    """Two lines from one point, with 60° to 120° between them."""
    middle_N2, axis_N = draws.middle(0.12), draws.any_angle()
    arm_N1 = draws.unit * _between(draws.length_N, 0.35, 0.5)[:, None]
    opening_N = _between(draws.form_N, math.radians(60), math.radians(120))
    vertex_N2 = middle_N2 - arm_N1 * towards(axis_N) / 3
    arms = [
        stroke(vertex_N2, vertex_N2 + arm_N1 * towards(axis_N + side * opening_N / 2), draws.thickness_N, draws.size)
        for side in (-1, 1)
    ]
    return torch.maximum(*arms)


def _curves(draws: _Draws) -> Tensor:
    """Arcs of 120° to 240°."""
    radius_N = draws.unit * _between(draws.length_N, 0.2, 0.35)
    sweep_N = _between(draws.form_N, math.radians(120), math.radians(240))
    return arc(draws.middle(0.12), radius_N, draws.any_angle(), sweep_N, draws.thickness_N, draws.size)


SHAPES: dict[str, Callable[[_Draws], Tensor]] = {
    "vertical_edge": _edges(0),
    "horizontal_edge": _edges(math.pi / 2),
    "vertical_line": _lines(math.pi / 2),
    "horizontal_line": _lines(0),
    "rising_line": _lines(-math.pi / 4),
    "falling_line": _lines(math.pi / 4),
    "corner": _corners,
    "curve": _curves,
}


def _labels(index_N: Tensor) -> Tensor:
    """The classes take turns, so that each beginning of a split has all of them."""
    return index_N % len(SHAPES)


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from those in [0, 1), by the inverse of the distribution function."""
    middle_of_step = uniform.double() + 2.0**-25  # `uniforms` come in steps of 2⁻²⁴; 0 has no inverse
    return (math.sqrt(2) * torch.erfinv(2 * middle_of_step - 1)).float()
