"""Where the frozen beginning of a network ends: up to there an image has the same features in every epoch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cnnlab.blocks.graph import INPUT, Graph, sources_of_graph
from cnnlab.blocks.sequential import Sequential
from cnnlab.runtime.errors import ArgumentError, first_line
from cnnlab.runtime.eval_mode import in_evaluation_mode
from cnnlab.runtime.randomness import capture_generators, put_back, same_generators

# packages whose modules compute an image's features from that image alone, as far as their mode and numbers tell
KNOWN = ("cnnlab", "torch", "torchvision", "timm")
CHAINS: tuple[Callable[..., Any], ...] = (nn.Sequential.forward, Sequential.forward, Graph.forward)
ALIKE = 1e-3  # of the largest feature: other batch sizes round differently, other statistics differ by much more


class Stage(NamedTuple):
    """A module by its path, and the paths of the stages that it reads."""

    path: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """The stages after a frozen trunk, which read its output as `INPUT`; `shape` is that of an image's features."""

    stages: tuple[Stage, ...]
    shape: tuple[int, ...] = ()

    @property
    def path(self) -> str:
        """The first module after the trunk."""
        return self.stages[0].path

    def keeps(self, name: str) -> bool:
        """True if a parameter, buffer or module of this name comes after the trunk."""
        return any(name == stage.path or name.startswith(f"{stage.path}.") for stage in self.stages)

    def head(self, network: nn.Module) -> "Head":
        """What is left of the network, or of a copy of it, to run on features."""
        return Head(network, self.stages)

    def features(self, network: nn.Module, x_NCHW: Tensor) -> Tensor:
        """The trunk's output; nothing after it is computed."""
        return reaching(network, self.path, x_NCHW)


class Head(nn.Module):
    """The stages after a trunk. Its modules are the network's own, and have the names that they have there."""

    def __init__(self, network: nn.Module, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = stages
        for stage in stages:
            *parents, name = stage.path.split(".")
            holder: nn.Module = self
            for parent in parents:
                if parent not in holder._modules:
                    holder.add_module(parent, nn.Module())
                holder = holder.get_submodule(parent)
            holder.add_module(name, network.get_submodule(stage.path))

    def forward(self, x: Tensor) -> Tensor:
        outputs = {INPUT: x}
        for path, sources in self.stages:
            outputs[path] = x = self.get_submodule(path)(*(outputs[source] for source in sources))
        return x


class _ReachedError(Exception):
    """The forward pass has come to the module that was waited for."""


def reaching(network: nn.Module, path: str, x_NCHW: Tensor) -> Any:
    """What reaches a module as its first argument; nothing after it is computed."""

    def stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _ReachedError(inputs[0])

    with network.get_submodule(path).register_forward_pre_hook(stop, prepend=True):
        try:
            network(x_NCHW)
        except _ReachedError as reached:
            return reached.args[0]
    raise ValueError(f"{path} was not called")


@torch.no_grad()
def find_cut(network: nn.Module, x_NCHW: Tensor) -> Cut:
    """The cut with the longest trunk that is frozen and, in the modes that its modules have now, deterministic.

    `x_NCHW` are two images or more, which the network runs on several times; parameters, buffers and generators are
    then as before. Raises `ArgumentError` with the reason where there is no such cut.
    """
    reason = "no layer before the first that trains can be run by itself"
    trained = [name for name, one in network.named_parameters(remove_duplicate=False) if one.requires_grad]
    try:
        with put_back([*network.buffers()]):
            for stages in _endings(network, x_NCHW):
                cut = Cut(stages)
                if not all(map(cut.keeps, trained)):
                    continue
                problem, shape = _problem(network, cut, x_NCHW)
                if not problem:
                    return replace(cut, shape=shape)
                reason = problem
    except Exception as error:  # whatever a user's own module raises
        reason = f"{type(error).__name__}: {first_line(error)}"
    raise ArgumentError("features", reason)


def _problem(network: nn.Module, cut: Cut, x_NCHW: Tensor) -> tuple[str, tuple[int, ...]]:
    """Why the trunk is not deterministic, or the network not trunk and head; the shape of an image's features."""
    before = [(name, module) for name, module in network.named_modules() if not cut.keeps(name)]
    for name, module in before:
        if type(module).__module__.partition(".")[0] not in KNOWN:
            return f"{name or 'the network'} is a class of your own, which may compute what it likes in each step", ()
    state = [(name, buffer, buffer.clone()) for name, buffer in network.named_buffers() if not cut.keeps(name)]
    generators = capture_generators()
    features = cut.features(network, x_NCHW)
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.shape[:1] != x_NCHW.shape[:1]:
        return f"what reaches {cut.path} is no tensor of numbers for each image", ()
    if not same_generators(generators, capture_generators()):
        return f"{_drawing(before)} draws random numbers in training", ()
    for name, buffer, old in state:
        if not torch.equal(buffer, old):
            return f"{name} changes in training", ()
    with in_evaluation_mode(network):
        evaluated = cut.features(network, x_NCHW)
        alone = cut.features(network, x_NCHW[1:])
    if not _alike(features, evaluated):
        return f"the layers before {cut.path} compute something else in training than in evaluation", ()
    if not _alike(features[1:], alone):
        return f"before {cut.path}, what an image gives depends on the others of its batch", ()
    with put_back([]):
        whole = network(x_NCHW)
    with put_back([]):
        parts = cut.head(network)(features.clone())
    if not _alike(whole, parts):
        return f"the network computes more than the layers from {cut.path} on", ()
    return "", tuple(features.shape[1:])


def _alike(one: Tensor, other: Tensor) -> bool:
    scale = float(one.abs().max()) if one.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=0, atol=ALIKE * scale)


def _drawing(modules: Iterable[tuple[str, nn.Module]]) -> str:
    """The first dropout or stochastic depth that is in training mode."""
    return next(
        (
            name
            for name, module in modules
            if module.training and any(word in type(module).__name__ for word in ("Drop", "Stochastic"))
        ),
        "a frozen layer",
    )


class _Call(NamedTuple):
    times: int
    output: Any
    version: int  # of the output's memory: what works in place on it later counts it up


def _endings(network: nn.Module, x_NCHW: Tensor) -> Iterator[tuple[Stage, ...]]:
    """The stages that end the network, after every place where it can be cut; the shortest first.

    A chain or a graph can be cut between its layers where one output is all that later ones read; any other module
    before a child whose output is the module's own, such as the classifier of a ResNet.
    """
    calls = _calls(network, x_NCHW)
    for stages in _tails(network, "", INPUT, calls):
        paths = [stage.path for stage in stages]
        outside = {source for stage in stages for source in stage.sources} - {*paths}
        if len(outside) == 1 and outside != {INPUT} and calls[paths[0]].times == 1:
            yield tuple(
                Stage(path, tuple(INPUT if source in outside else source for source in sources))
                for path, sources in stages
            )


def _calls(network: nn.Module, x_NCHW: Tensor) -> dict[str, _Call]:
    """What each module returned in one pass; one that took or gave anything but tensors counts twice."""
    calls = {name: _Call(0, None, 0) for name, _ in network.named_modules()}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            usual = isinstance(output, Tensor) and not options and all(isinstance(one, Tensor) for one in arguments)
            version = output._version if isinstance(output, Tensor) else 0
            calls[name] = _Call(calls[name].times + (1 if usual else 2), output, version)

        return hook

    hooks = [module.register_forward_hook(note(name), with_kwargs=True) for name, module in network.named_modules()]
    try:
        network(x_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _tails(network: nn.Module, path: str, source: str, calls: dict[str, _Call]) -> Iterator[list[Stage]]:
    stages = _stages(network.get_submodule(path), path, source)
    for place in reversed(range(len(stages))):
        stage, after = stages[place], stages[place + 1 :]
        if last := _last_called(network, stage.path, calls):
            for inner in _tails(network, last, f"what reaches {last}", calls):
                end = {stage.path: inner[-1].path}
                yield [*inner, *(Stage(one, tuple(end.get(read, read) for read in reads)) for one, reads in after)]
        yield stages[place:]


def _last_called(network: nn.Module, path: str, calls: dict[str, _Call]) -> str | None:
    """The module within that one, and as near to it as there is, that computes its output: once, from one tensor."""
    module, whole = network.get_submodule(path), calls[path]
    for name, _ in module.named_modules(prefix=path):
        one = calls[name]
        if name != path and one.times == whole.times == 1 and one.output is whole.output:
            return name if one.version == whole.version else None
    return None


def _stages(module: nn.Module, path: str, source: str) -> list[Stage]:
    """The layers of a chain or a graph, of nested chains too; any other module is one stage."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    if type(module).forward not in CHAINS or hooked:
        return [Stage(path, (source,))]
    stages: list[Stage] = []
    sources = sources_of_graph(module)
    ends, previous = {INPUT: source}, INPUT
    for name, child in module.named_children():
        reads = [ends[read] for read in (sources[name] if sources else (previous,))]
        own = f"{path}.{name}".removeprefix(".")
        inner = _stages(child, own, reads[0]) if len(reads) == 1 else [Stage(own, tuple(reads))]
        stages += inner
        ends[name] = inner[-1].path if inner else reads[0]
        previous = name
    return stages
