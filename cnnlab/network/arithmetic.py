"""Arithmetic where a number may stand in a block's arguments: `6 * in_channels`, resolved for the incoming shape.

Numbers are exact fractions, so that `0.1 * 30` is 3.
"""

import ast
import operator
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from cnnlab.blocks.facts import Shape, format_shape
from cnnlab.runtime.errors import ConfigError, did_you_mean, listing

OF_IMAGES = ("in_channels", "height", "width")
OF_FEATURES = ("in_features",)
NAMES = (*OF_IMAGES, *OF_FEATURES, "classes", "index")
LONGEST = 100  # characters
LARGEST = 10**18
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Expression:
    """Parsed arithmetic: `known` has the names whose numbers are known without the incoming shape."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]
    known: Mapping[str, int]
    fraction: bool  # the result need not be whole

    @property
    def calculates(self) -> bool:
        return not isinstance(self.tree, ast.Name)

    @property
    def waits(self) -> bool:
        return not self.known.keys() >= set(self.names)

    def value(self, shape: Shape | None = None) -> int | float:
        """The result for the incoming shape. Raises `ConfigError` where it is no number, or not whole but must be."""
        known = {**self.known, **(_sizes(shape) if shape else {})}
        for name in self.names:
            if name not in known:
                raise ConfigError(f"{self.text}: {_why_unknown(name, shape)}")
        given = ", ".join(f"{name} = {known[name]}" for name in self.names)
        at = f" for {given}" if given else ""
        try:
            result = _evaluate(self.tree, known)
        except ZeroDivisionError:
            raise ConfigError(f"{self.text} divides by 0{at}") from None
        if abs(result) > LARGEST:
            raise ConfigError(f"{self.text} is beyond ±{LARGEST:.0e}{at}")
        if result.denominator > 1 and not self.fraction:
            raise ConfigError(f"{self.text} is {float(result):g}{at}: expected a whole number; // rounds down")
        return int(result) if result.denominator == 1 else float(result)


def _sizes(shape: Shape) -> dict[str, int]:
    """The names that stand for a size of what reaches a layer."""
    return dict(zip(OF_IMAGES, shape, strict=True)) if len(shape) == 3 else {"in_features": shape[-1]}


def _why_unknown(name: str, shape: Shape | None) -> str:
    if name == "index":
        return "'index' counts repetitions from 0: expected it within blocks that 'repeat'"
    if shape is None:
        return f"the number of {name} is unknown here"
    what = f"an image of {format_shape(shape)} reaches" if len(shape) == 3 else f"{format_shape(shape)} features reach"
    return f"{what} it, without {name!r}: expected {listing(_sizes(shape))}"


def waits(value: Any) -> bool:
    """Whether an argument has arithmetic that depends on the incoming shape."""
    return any(map(waits, value)) if isinstance(value, tuple) else isinstance(value, Expression) and value.waits


def calculated(value: Any, shape: Shape | None = None) -> Any:
    """An argument with the results of its arithmetic. Raises `ConfigError`."""
    if isinstance(value, tuple):
        return tuple(calculated(item, shape) for item in value)
    return value.value(shape) if isinstance(value, Expression) else value


def texts(value: Any) -> str:
    """An argument's arithmetic as it stands in the config."""
    if isinstance(value, tuple):
        return f"[{listing(map(texts, value))}]"
    return value.text if isinstance(value, Expression) else str(value)


def find_expressions(value: Any, hint: Any, known: Mapping[str, int]) -> Any:
    """The value with an `Expression` for each string that is one; `hint` is the argument's annotation.

    Where a string may stand, too, arithmetic has an operator and, without an annotation, a name. Raises `ConfigError`
    for arithmetic that cannot be understood, and for a name that is neither `known` nor a size of what arrives.
    """
    kinds = _kinds(hint)
    if not any(kind in kinds for kind in (int, float, Any)):
        return value
    if isinstance(value, list | tuple):
        return tuple(find_expressions(item, hint, known) for item in value)
    if not isinstance(value, str) or value == "classes":
        return value
    text_may_stand = str in kinds or Any in kinds
    try:
        found = _parse(value, known, fraction=float in kinds or Any in kinds)
    except ConfigError:
        if text_may_stand or not any(part in value for part in (*NAMES, *"+-*/")):
            return value
        raise
    if found is None or (text_may_stand and not _is_surely_one(found, name_needed=Any in kinds)):
        return value
    return found if _names_are_known(found) else value


def _is_surely_one(expression: Expression, name_needed: bool) -> bool:
    """Whether it cannot be meant as a plain string."""
    legal = all(name in NAMES for name in expression.names)
    return expression.calculates and legal and bool(expression.names or not name_needed)


def _names_are_known(expression: Expression) -> bool:
    """False for a word alone that is no misspelt name: an annotation says what was expected. Raises `ConfigError`."""
    for name in expression.names:
        if name not in NAMES:
            near = did_you_mean(name, NAMES)
            if not expression.calculates and not near:
                return False
            raise ConfigError(f"{expression.text}: there is no name {name!r};{near} expected one of {listing(NAMES)}")
        if name not in (*expression.known, *OF_IMAGES, *OF_FEATURES):
            raise ConfigError(f"{expression.text}: {_why_unknown(name, None)}")
    return True


def _kinds(hint: Any) -> list[Any]:
    """The plain types in an annotation."""
    if typing.get_origin(hint) is typing.Literal:
        return [str]
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, list, Sequence):
        return [kind for part in typing.get_args(hint) for kind in _kinds(part)]
    return [hint]


def _parse(text: str, known: Mapping[str, int], fraction: bool) -> Expression | None:
    """None for a number alone, which needs no quotes. Raises `ConfigError`."""
    if len(text) > LONGEST:
        raise ConfigError(f"expected arithmetic of at most {LONGEST} characters, received {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # as of `2in_channels`
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, SyntaxWarning, ValueError, MemoryError, RecursionError) as error:
        raise ConfigError(f"expected arithmetic such as 6 * in_channels, received {text!r}") from error
    names: dict[str, None] = {}
    _check(tree, names)
    if isinstance(tree, ast.Constant) or (isinstance(tree, ast.UnaryOp) and not names):
        return None
    return Expression(text.strip(), tree, tuple(names), known, fraction)


def _check(node: ast.expr, names: dict[str, None]) -> None:
    """Collects the names. Raises `ConfigError` for anything but numbers, names, + - * // / and a minus."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        _check(node.left, names)
        _check(node.right, names)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check(node.operand, names)
    elif isinstance(node, ast.Name):
        names[node.id] = None
    elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
        raise ConfigError(
            f"expected arithmetic of numbers, names, + - * // / and parentheses, received {ast.unparse(node)!r}"
        )


def _evaluate(node: ast.expr, known: Mapping[str, int]) -> Fraction:
    if isinstance(node, ast.BinOp):
        return Fraction(OPERATORS[type(node.op)](_evaluate(node.left, known), _evaluate(node.right, known)))
    if isinstance(node, ast.UnaryOp):
        return -_evaluate(node.operand, known)
    if isinstance(node, ast.Name):
        return Fraction(known[node.id])
    assert isinstance(node, ast.Constant)
    return Fraction(repr(node.value))
