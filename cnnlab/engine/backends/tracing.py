"""Forward pass, loss and backward pass as the row of tensor operations that they are.

On a CPU a small network's step is a hundred operations of a few microseconds each; modules, and autograd's graph, take
as long again. Written down once and repeated from then on, the same operations compute the same bits.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from cnnlab.engine.execution import Execution
from cnnlab.engine.step import forward_backward
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import first_line
from cnnlab.runtime.randomness import capture_generators, put_back, same_generators

WARM_UP = 2  # parts that are worked off as ever, before one is written down
LONG = 0.1  # seconds that passes take; of longer ones, what could be saved is less than a hundredth
ROUNDS = 5  # of parts that are timed, one as ever and one repeated

Replay = Callable[[Tensor, Tensor], Sequence[Tensor]]  # of images and target: cost, correct predictions, gradients

_aten = torch.ops.aten
# torch's own functions, with the same arguments and results, where calling the operation takes longer than they
_DIRECT: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
    _aten.add_.Tensor: Tensor.add_,
    _aten.addmm.default: torch.addmm,
    _aten.argmax.default: torch.argmax,
    _aten.convolution.default: torch.convolution,
    _aten.eq.Tensor: torch.eq,
    _aten.mean.default: torch.mean,
    _aten.mm.default: torch.mm,
    _aten.mul.Tensor: torch.mul,
    _aten.native_batch_norm.default: torch.native_batch_norm,
    _aten.relu.default: torch.relu,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.sub.Tensor: torch.sub,
    _aten.sum.default: torch.sum,
    _aten.sum.dim_IntList: torch.sum,
    _aten.t.default: torch.t,
    _aten.tanh.default: torch.tanh,
    _aten.view.default: Tensor.view,
}
# the numbers in a tensor decide what they return: for another batch, other operations may have to follow
_DECIDING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class TracedPasses:
    """`forward_backward`, written down once for parts of a batch of `images`, and repeated where that is faster.

    The first repetition is compared with `forward_backward` bit by bit: cost, correct predictions, gradients, buffers
    and generators. Where they differ, or where something cannot be written down, the passes go on as ever, and `say` is
    told why. A few more steps are timed, half of them repeated; then it is decided. What has another form than the part
    that was written down goes on as ever, too. What a module decides in Python is decided once: the comparison may not
    show it.
    """

    def __init__(self, images: int, say: Callable[[str], None] | None = None) -> None:
        self.images = images
        self.say = say
        self.replay: Replay | None = None
        self.proven = False
        self.repeats: bool | None = None  # None until it is decided
        self._form: object = None  # of the part that was written down
        self._trained: list[nn.Parameter] = []
        self._seen = 0
        self._times: tuple[list[float], list[float]] = [], []  # of a part as ever and repeated, in seconds

    def __call__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        part: Batch,
        share: float,
        *,
        execution: Execution,
        scaler: torch.amp.GradScaler,
    ) -> tuple[Tensor, Tensor]:
        form = share, *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in (part.x_NCHW, part.target))
        if self.repeats and form == self._form:
            return self._repeat(part)

        def usual() -> tuple[Tensor, Tensor]:
            return forward_backward(network, loss, part, share, execution=execution, scaler=scaler)

        if self.repeats is not None or len(part) != self.images or self._form not in (None, form):
            return usual()
        if any(parameter.grad is not None for parameter in network.parameters()):
            return usual()  # not the first part of its batch
        self._seen += 1
        if self._seen <= WARM_UP:
            seconds, result = _timed(usual)
            if self._seen == WARM_UP and seconds > LONG:
                self.repeats = False
            return result
        if self.proven:
            return self._compare_times(part, usual)
        whole = nn.ModuleList(module for module in (network, loss) if isinstance(module, nn.Module))
        if self.replay is not None:
            return self._prove(whole, part, usual)
        self._form = form
        self._write(whole, part, usual)
        return usual()

    def _repeat(self, part: Batch) -> tuple[Tensor, Tensor]:
        assert self.replay is not None
        cost, correct, *gradients = self.replay(part.x_NCHW, part.target)
        with torch.no_grad():
            if self._trained[0].grad is None:
                for parameter, gradient in zip(self._trained, gradients, strict=True):
                    parameter.grad = gradient
            else:
                torch._foreach_add_(_gradients(self._trained), gradients)
        return cost, correct

    def _write(self, whole: nn.Module, part: Batch, usual: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Without effect on the training: while it is written down, torch may compute another way to the same end."""
        trace = Trace([part.x_NCHW, part.target], [*whole.parameters(), *whole.buffers()])
        with _left_alone(whole):
            with trace:
                cost, correct = usual()
            self._trained = [parameter for parameter in whole.parameters() if parameter.grad is not None]
            self.replay = trace.function([cost, correct, *_gradients(self._trained)])
        for parameter in self._trained:
            parameter.grad = None
        if trace.obstacle:
            self._give_up(trace.obstacle)

    def _prove(
        self, whole: nn.Module, part: Batch, usual: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        assert self.replay is not None
        repeated: list[Tensor] = []
        reason = "repeated, it does not compute the same bits"
        with _left_alone(whole):
            try:
                repeated = [*self.replay(part.x_NCHW, part.target), *(buffer.clone() for buffer in whole.buffers())]
            except (RuntimeError, TypeError) as error:
                reason = first_line(error)
            drawn = capture_generators()
        cost, correct = usual()
        expected = [cost, correct, *_gradients(self._trained), *whole.buffers()]
        same = len(repeated) == len(expected) and all(map(torch.equal, repeated, expected))
        self.proven = same and same_generators(drawn, capture_generators())
        if not self.proven:
            self._give_up(reason)
        return cost, correct

    def _compare_times(self, part: Batch, usual: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        as_ever, repeated = self._times
        if len(as_ever) == len(repeated):
            seconds, result = _timed(usual)
            as_ever.append(seconds)
        else:
            seconds, result = _timed(lambda: self._repeat(part))
            repeated.append(seconds)
        if len(repeated) == ROUNDS:
            self.repeats = statistics.median(repeated) < statistics.median(as_ever)
            if not self.repeats:
                self._give_up("they take no longer so")
        return result

    def _give_up(self, reason: str) -> None:
        self.repeats, self.replay, self._trained = False, None, []
        if self.say:
            self.say(f"trainer.execution.trace: steps go on untraced: {reason}")


@contextmanager
def _left_alone(whole: nn.Module) -> Iterator[None]:
    """Buffers and generators are afterwards what they were, and each buffer the tensor that it was."""
    held = [(module, *named) for module in whole.modules() for named in module.named_buffers(recurse=False)]
    with put_back([buffer for _, _, buffer in held]):
        yield
    for module, name, buffer in held:
        setattr(module, name, buffer)


def _timed(passes: Callable[[], tuple[Tensor, Tensor]]) -> tuple[float, tuple[Tensor, Tensor]]:
    started = time.perf_counter()
    result = passes()
    return time.perf_counter() - started, result


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@dataclass(frozen=True)
class _Value:
    """A tensor by its name in the trace: whose memory it looks at, and how."""

    name: str
    memory: str
    view: tuple[Any, ...]


@dataclass(frozen=True)
class _Line:
    operation: Any
    arguments: str
    uses: set[str]
    gives: list[str]
    as_tuple: bool

    @property
    def dispensable(self) -> bool:
        """Whether nobody misses it who does not use its results: a view, or fresh memory without random numbers."""
        draws = torch.Tag.nondeterministic_seeded in self.operation.tags
        return self.operation.is_view or (not self.uses and not draws)

    def text(self, operation: str, done: Sequence[str]) -> str:
        target = f"{', '.join(self.gives)}{',' * self.as_tuple} = " if {*self.gives} - {"_"} else ""
        return f"{target}{operation}({self.arguments})" + (f"; del {', '.join(done)}" if done else "")


class Trace(TorchDispatchMode):
    """A context that writes down which operations torch carries out below autograd.

    They may use `inputs`, `constants`, which a replay reads where they lie, and what was computed from both; any other
    tensor is an `obstacle`, as is what asks for a number. No tensor is kept for the writing. What looks at memory just
    as another view does, such as the transpose of a transpose, is the same value.
    """

    def __init__(self, inputs: Sequence[Tensor], constants: Iterable[Tensor]) -> None:
        super().__init__()
        self.obstacle = ""
        self._inputs = [f"input{number}" for number in range(len(inputs))]
        self._values = WeakTensorKeyDictionary()
        self._views: dict[tuple[str, tuple[Any, ...]], _Value] = {}
        self._lines: list[_Line] = []
        self._names: dict[str, Any] = {}
        for name, tensor in zip(self._inputs, inputs, strict=True):
            self._know(tensor, name)
        for tensor in constants:
            if tensor not in self._values:
                self._know(tensor, self._constant(tensor))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's compiler would be imported, for seconds, to exempt what nobody compiles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.obstacle:
            self._write(func, args, kwargs or {}, result)
        return result

    def function(self, results: Sequence[Tensor]) -> Replay | None:
        """What was written, as a function of the inputs that gives the `results`; None where there is an obstacle.

        Each value is let go as soon as nothing needs it any more.
        """
        returned = [value.name for value in map(self._value, results) if value]
        if self.obstacle:
            return None
        needed, mentioned = {*returned}, {*returned, *self._inputs, *self._names, "_"}
        source = [f"return {', '.join(returned)},"]
        for line in reversed(self._lines):
            if line.dispensable and needed.isdisjoint(line.gives):
                continue
            needed |= line.uses
            done = sorted({*line.uses, *line.gives} - mentioned)
            mentioned.update(done)
            source.append(line.text(self._constant(_DIRECT.get(line.operation, line.operation)), done))
        source.append(f"def replay({', '.join(self._inputs)}):")
        exec("\n    ".join(reversed(source)), self._names)
        replay: Replay = self._names["replay"]

        def below_autograd(*inputs: Tensor) -> Sequence[Tensor]:
            with torch._C._AutoDispatchBelowAutograd():  # where the operations were written down
                return replay(*inputs)

        return below_autograd

    def _write(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        uses: set[str] = set()
        arguments = [self._text(argument, uses) for argument in args]
        arguments += [f"{name}={self._text(argument, uses)}" for name, argument in kwargs.items()]
        results = [*result] if isinstance(result, tuple | list) else [result]
        if _DECIDING.intersection(operation.tags) or not all(one is None or isinstance(one, Tensor) for one in results):
            self.obstacle = f"{operation} asks for a value"
        if self.obstacle:
            return
        memory = self._values[args[0]].memory if operation.is_view and isinstance(args[0], Tensor) else None
        if memory is not None and isinstance(result, Tensor):
            same = self._views.get((memory, _view(result)))
            if same is not None:
                self._values[result] = same
                return
            if memory in self._names:  # it stays where it is, and so does what looks at it
                self._know(result, self._constant(result), memory)
                return
        gives = [self._name_for(one, f"v{len(self._lines)}_{place}", memory) for place, one in enumerate(results)]
        self._lines.append(_Line(operation, ", ".join(arguments), uses, gives, not isinstance(result, Tensor)))

    def _name_for(self, result: Tensor | None, name: str, memory: str | None) -> str:
        """`name`, for a new tensor; for one that was there before, and was written to, it keeps its own."""
        if result is None:
            return "_"
        known = self._values.get(result)
        if known is not None:
            if known.view != _view(result):
                self._turn(result, known)
            return "_"
        self._know(result, name, memory)
        return name

    def _turn(self, tensor: Tensor, known: _Value) -> None:
        """It was told to look at its memory in another way: whatever shares its name does so in a replay."""
        if any(value.name == known.name and other is not tensor for other, value in self._values.items()):
            self.obstacle = "a tensor changes its shape"
        del self._views[known.memory, known.view]
        self._know(tensor, known.name, known.memory)

    def _know(self, tensor: Tensor, name: str, memory: str | None = None) -> None:
        value = _Value(name, memory or name, _view(tensor))
        self._values[tensor] = value
        self._views.setdefault((value.memory, value.view), value)

    def _value(self, tensor: Tensor) -> _Value | None:
        value: _Value | None = self._values.get(tensor)
        if value is None:
            self.obstacle = self.obstacle or "a tensor is neither computed nor a parameter or buffer"
        return value

    def _text(self, argument: Any, uses: set[str]) -> str:
        """How the argument is written; the tensors in it are added to `uses`."""
        if isinstance(argument, Tensor):
            value = self._value(argument)
            uses.update({value.name} if value else ())
            return value.name if value else ""
        if isinstance(argument, list | tuple):
            return f"[{', '.join(self._text(one, uses) for one in argument)}]"
        return repr(argument) if argument is None or isinstance(argument, int) else self._constant(argument)

    def _constant(self, thing: Any) -> str:
        name = f"c{len(self._names)}"
        self._names[name] = thing
        return name


def _view(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
