"""Specs become classes and arguments, with every complaint collected."""

import abc
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from cnnlab.components import Component, Registry, Trust, bind, find_factory, split_spec, type_problem
from cnnlab.runtime.checks import integer
from cnnlab.runtime.errors import Complaints, ConfigError


class Shape:
    """The base class of what these specs name."""


class Circle(Shape):
    def __init__(self, radius: float, name: str = "circle") -> None:
        self.radius, self.name = radius, name


class Square(Shape):
    def __init__(self, side: int, offset: int | tuple[int, int] = 0, filled: bool = True) -> None:
        self.side, self.offset, self.filled = integer("side", side, 1), offset, filled


class Anything(Shape):
    def __init__(self, **options: Any) -> None:
        self.options = options


class Polygon(Shape, abc.ABC):
    @abc.abstractmethod
    def corners(self) -> int: ...


class Ratio(Shape):
    def __init__(self, divisor: int) -> None:
        self.value = 1 / divisor


TABLE: dict[str, Callable[..., Shape]] = {"circle": Circle, "square": Square, "anything": Anything, "ratio": Ratio}
SHAPE = Registry("shape", TABLE, Shape, ("torch.nn",))
CLOSED = Registry("shape", TABLE)
MODULE = Registry("block", {"relu": nn.ReLU}, nn.Module, ("torch.nn",))


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Writes a module that a user could have, and gives its name; it is importable during one test."""

    def write(source: str) -> str:
        name = f"users_own_{abs(hash(request.node.nodeid))}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return write


def bound(spec: Any, **options: Any) -> Component:
    complaints = Complaints()
    component = bind(spec, "shapes.mine", SHAPE, complaints, **options)
    complaints.raise_if_any()
    assert component is not None
    return component


def complaints_about(spec: Any, **options: Any) -> list[str]:
    complaints = Complaints()
    assert bind(spec, "shapes.mine", SHAPE, complaints, **options) is None
    return complaints.messages


def test_a_name_is_a_spec_without_arguments_and_a_mapping_a_type_and_arguments() -> None:
    assert split_spec("circle", "shapes.mine") == ("circle", {})
    spec = {"type": "circle", "radius": 2}
    assert split_spec(spec, "shapes.mine") == ("circle", {"radius": 2})
    assert spec == {"type": "circle", "radius": 2}


@pytest.mark.parametrize("spec", [None, "", ["circle"], {"radius": 2}, {"type": None}, {"type": 3}], ids=str)
def test_what_has_no_type_is_refused_with_its_key(spec: Any) -> None:
    with pytest.raises(ConfigError, match=r"^shapes\.mine: expected a .*type"):
        split_spec(spec, "shapes.mine")


SHAPES = "expected one of anything, circle, ratio, square"


@pytest.mark.parametrize(
    ("name", "registry", "message"),
    [
        (
            "sqare",
            SHAPE,
            f"there is no shape 'sqare'; did you mean 'square'? {SHAPES}, or a dotted name such as torch.nn.",
        ),
        ("torch.nn.ReLU", CLOSED, f"there is no shape 'torch.nn.ReLU'; {SHAPES}"),
        ("torch.nn.Hardswich", MODULE, "module 'torch.nn' has no 'Hardswich'; did you mean 'Hardswish'"),
        (
            "collections.OrderedDict",
            MODULE,
            "collections.OrderedDict is no block: expected a subclass of torch.nn.modules.",
        ),
        ("torch.nn.functional.relu", MODULE, "torch.nn.functional.relu is no block: expected a subclass of torch.nn."),
        (f"{__name__}.Polygon", SHAPE, f"{__name__}.Polygon is abstract"),
    ],
)
def test_what_names_no_class_to_build_is_refused_with_the_nearest_name(
    name: str, registry: Registry, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        find_factory(name, "shapes.mine", registry, Trust())
    assert str(caught.value).startswith(f"shapes.mine: {message}")


def test_a_module_that_cannot_be_imported_is_named_with_its_error(user_module: Callable[..., str]) -> None:
    module = user_module("raise RuntimeError('not today')\n")
    for name, error in ((module, "RuntimeError: not today"), ("no_such_package", "ModuleNotFound")):
        with pytest.raises(ConfigError, match=rf"^blocks\.mine: cannot import '{name}\.Mine': {error}"):
            find_factory(f"{name}.Mine", "blocks.mine", MODULE, Trust())


def test_an_untrusted_class_is_refused_before_it_is_imported(user_module: Callable[..., str], tmp_path: Path) -> None:
    module = user_module(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="which is not part of cnnlab"):
        find_factory(f"{module}.Mine", "blocks.mine", MODULE, Trust(everything=False))
    assert not (tmp_path / "was_run").exists()


def test_the_refusal_of_an_untrusted_class_prints_the_command_that_trusts_it() -> None:
    trust = Trust(everything=False, names=("my.Other",), again=lambda names: f"resume=runs/a trust={names}")
    with pytest.raises(ConfigError) as caught:
        trust.check("model.blocks.mine", "my.pkg.Block")
    assert str(caught.value).startswith("model.blocks.mine: ")
    assert str(caught.value).endswith("resume=runs/a trust=['my.Other', 'my.pkg.Block']")


def test_a_class_that_the_command_repeats_is_trusted_and_no_other_of_its_module(
    user_module: Callable[..., str],
) -> None:
    module = user_module("from torch import nn\nclass Mine(nn.Module): ...\nclass Other(nn.Module): ...\n")
    trust = Trust(everything=False, names=(f"{module}.Mine",))
    assert find_factory(f"{module}.Mine", "blocks.mine", MODULE, trust).__name__ == "Mine"
    with pytest.raises(ConfigError, match="Other"):
        find_factory(f"{module}.Other", "blocks.mine", MODULE, trust)


@pytest.mark.parametrize("name", ["relu", "torch.nn.Hardswish"])
def test_our_own_and_torch_classes_need_no_trust(name: str) -> None:
    assert find_factory(name, "blocks.mine", MODULE, Trust(everything=False)) in (nn.ReLU, nn.Hardswish)


def test_binding_gives_the_arguments_and_builds_the_class() -> None:
    component = bound({"type": "circle", "radius": 2, "name": "big"})
    assert (component.key, component.type, component.factory) == ("shapes.mine", "circle", Circle)
    assert component.arguments == {"radius": 2, "name": "big"}
    circle = component.build(radius=5)  # what the caller provides wins
    assert (type(circle), circle.radius, circle.name) == (Circle, 5, "big")
    assert bound({"type": "anything", "colour": "red"}).build().options == {"colour": "red"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("circle", "radius: circle needs it, and it is missing"),
        (
            {"type": "circle", "radius": 1, "nme": "x"},
            "nme: circle has no argument 'nme'; did you mean 'name'? it takes radius, name",
        ),
        ({"type": "square", "side": "long"}, "side: expected a whole number, received 'long'"),
        (
            {"type": "square", "side": "clases"},
            "side: expected a whole number, received 'clases'; did you mean 'classes'?",
        ),
    ],
    ids=str,
)
def test_a_missing_unknown_or_ill_typed_argument_is_reported_at_its_key(spec: Any, message: str) -> None:
    assert complaints_about(spec, constants={"classes": 10}) == [f"shapes.mine.{message}"]
    assert bound("circle", provided=("radius",)).arguments == {}


def test_every_mistake_of_a_spec_is_reported() -> None:
    keys = [message.split(":")[0] for message in complaints_about({"type": "square", "sied": 1, "filled": "yes"})]
    assert keys == ["shapes.mine.sied", "shapes.mine.filled", "shapes.mine.side"]


def test_a_constant_stands_for_its_number_alone_or_within_a_list() -> None:
    component = bound({"type": "square", "side": "classes", "offset": ["classes", 2]}, constants={"classes": 10})
    assert component.arguments == {"side": 10, "offset": (10, 2)}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"type": "square", "side": 0}, r"^shapes\.mine\.side: expected a whole number ≥ 1, received 0$"),
        ({"type": "ratio", "divisor": 0}, r"^shapes\.mine: division by zero"),
    ],
)
def test_a_value_that_the_constructor_refuses_is_reported_at_its_key(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bound(spec).build()


def test_a_registry_knows_the_table_s_name_of_a_factory() -> None:
    assert SHAPE.name_of(Circle) == "circle"
    assert SHAPE.name_of(Polygon) == "Polygon"


FITTING: list[tuple[Any, Any]] = [(3, int), (3, float), (0.5, float), ("x", str), (True, bool), (None, int | None)]
FITTING += [((3, 4), int | tuple[int, int]), ((1, 2, 3), tuple[int, ...]), ((), tuple[int, ...]), ({1, 2}, Any)]
FITTING += [("sum", Literal["mean", "sum"]), ({"a": 1}, dict[str, int]), (nn.ReLU(), nn.Module)]


@pytest.mark.parametrize(("value", "hint"), FITTING, ids=str)
def test_a_value_of_the_annotated_type_is_no_problem(value: Any, hint: Any) -> None:
    assert type_problem(value, hint) is None


FORBIDDEN: dict[str, list[tuple[Any, Any]]] = {
    "a whole number": [(0.5, int), (True, int), ("3", int)],
    "a number": [(True, float)],
    "a string": [(1, str)],
    "true or false": [("true", bool)],
    "a finite number": [(math.nan, float), (-math.inf, float), (math.nan, Any), ((math.nan, 1.0), tuple[float, float])],
    "a whole number or null": [("x", int | None)],
    "a whole number or a list of 2": [((1, 2, 3), int | tuple[int, int])],
    "a list of 2": [((1, 0.5), tuple[int, int])],
    "a list (each item a number) or a string or null": [(3, Sequence[float] | str | None)],
    "a list (each item a whole number)": [((1, "a"), list[int]), ("abc", Sequence[int])],
    "one of mean, sum": [("max", Literal["mean", "sum"])],
    "one of 1, 2": [(True, Literal[1, 2])],
    "a mapping": [((1,), dict[str, int])],
    "a mapping of layer name → block": [("relu", nn.Module)],
}


@pytest.mark.parametrize(
    ("value", "hint", "expected"), [(*row, expected) for expected in FORBIDDEN for row in FORBIDDEN[expected]], ids=str
)
def test_a_value_of_another_type_is_refused_with_what_was_expected(value: Any, hint: Any, expected: str) -> None:
    assert type_problem(value, hint) == expected
