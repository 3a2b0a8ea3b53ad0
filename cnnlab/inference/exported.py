"""A run's network in files that other programs read, and how each is read back without cnnlab's own network.

What reads them takes uint8 images (N, C, H, W) of the network's size, and returns logits and probabilities, each (N, K)
float32. `safetensors` holds the weights alone.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cnnlab.data.normalization import normalized
from cnnlab.inference.predictor import Predictor
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import final_activation
from cnnlab.run.loaders import load_weights
from cnnlab.runtime.errors import ConfigError, first_line
from cnnlab.version import __version__

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILES = {
    "onnx": "model.onnx",
    "onnx_int8": "model-int8.onnx",
    "torch_export": "model.pt2",
    "safetensors": "model.safetensors",
}
INPUT, OUTPUTS = "images", ("logits", "probabilities")
OLDEST_OPSET = 18  # that torch.onnx translates to
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `export`
METADATA = "metadata.json"  # in a .pt2

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


class ExportedModel(nn.Module):
    """A network with its normalisation before it and the probabilities after it.

    Takes uint8 images (N, C, H, W) and returns logits and probabilities, each (N, K) float32. `activation` makes the
    latter of the former.
    """

    shift_C11: Tensor
    scale_C11: Tensor

    def __init__(
        self, network: nn.Module, activation: Callable[[Tensor], Tensor], shift_C11: Tensor, scale_C11: Tensor
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.activation = activation
        self.register_buffer("shift_C11", shift_C11)
        self.register_buffer("scale_C11", scale_C11)
        self.eval()

    @classmethod
    def of(cls, predictor: Predictor, output_NK: Tensor) -> "ExportedModel":
        """A run's network, its weights now contiguous. For a user's own loss `output_NK` decides the activation."""
        activation = final_activation(predictor.loss, output_NK)
        network = predictor.network.to(memory_format=torch.contiguous_format)
        return cls(network, activation, predictor.shift_C11, predictor.scale_C11)

    def with_network(self, network: nn.Module) -> "ExportedModel":
        """The same around another network."""
        return ExportedModel(network, self.activation, self.shift_C11, self.scale_C11)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits_NK = self.network(normalized(images.float(), self.shift_C11, self.scale_C11))
        return logits_NK, self.activation(logits_NK)


@dataclass(frozen=True)
class Exporter:
    """Writes a run's network in any of the formats; what they share is computed once."""

    run: SavedRun
    model: ExportedModel
    opset: int | None
    calibration_NCHW: Tensor | None  # that the ranges of int8 activations are measured on

    def write(self, name: str, path: Path) -> Forward:
        """Writes a file, and reads it back alone. Raises `ConfigError` for a network that the format cannot hold."""
        if name == "torch_export":
            write_torch_export(self.program, path, self.metadata)
            return read_torch_export(path)
        if name == "safetensors":
            write_safetensors(self.run, path, self.metadata)
            return read_safetensors(self.run, self.model, path)
        if name == "onnx_int8":
            assert self.calibration_NCHW is not None
            write_int8(self.onnx, path, self.calibration_NCHW)
        else:
            path.write_bytes(self.onnx.SerializeToString())
        return read_onnx(path)

    @cached_property
    def program(self) -> "ExportedProgram":
        return trace(self.model, self.run.plan.spec.input_shape)

    @cached_property
    def onnx(self) -> Any:
        return onnx_model(self.program, self.opset, self.metadata)

    @cached_property
    def metadata(self) -> dict[str, str]:
        return metadata(self.run)


def portable(predictor: Predictor) -> Predictor:
    """In float32 on the CPU, whatever the run was trained with: what the files compute."""
    predictor.execution = replace(predictor.execution, precision="fp32")
    return predictor.cpu()


def metadata(run: SavedRun) -> dict[str, str]:
    """What each file carries beside its numbers, by name; values that are no text are JSON."""
    measured, reader = run.normalization, run.plan.source.reader(run.plan.spec.input_shape)
    return {
        "cnnlab_version": __version__,
        "class_names": json.dumps(run.plan.spec.class_names, ensure_ascii=False),
        "input_shape": json.dumps([reader.channels, *reader.size]),
        "resize": reader.resize,
        "interpolation": reader.interpolation,
        "resize_size": json.dumps(reader.resize_size),
        "mean": json.dumps(measured.mean_C),  # of 0…255, by channel
        "sd": json.dumps(measured.sd_C),
        "step": str(run.checkpoint.step),
    }


def check_packages(formats: list[str]) -> None:
    """Raises `ConfigError` where a format needs a package that is not installed."""
    onnx = [name for name in formats if name.startswith("onnx")]
    if onnx and any(importlib.util.find_spec(package) is None for package in PACKAGES):
        raise ConfigError(f"export: {onnx[0]} needs {', '.join(PACKAGES)}: pip install 'cnnlab[export]'")


# torch.export


def trace(model: ExportedModel, shape: tuple[int, ...]) -> "ExportedProgram":
    """The model as a graph, for any number of images (C, H, W). Raises `ConfigError` that names the layer."""
    from torch.export import Dim, export

    images = torch.zeros((2, *shape), dtype=torch.uint8)  # torch takes 1 for a constant
    with _entered_layers(model.network) as entered, _quiet():
        try:
            return export(model, (images,), dynamic_shapes=({0: Dim("batch")},))
        except Exception as error:  # it raises nearly anything for what it cannot trace
            raise ConfigError(_untraced(error, entered)) from error


@contextlib.contextmanager
def _entered_layers(network: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """The layers that a forward pass is in at the moment, outermost first; of a failed one, where it failed."""
    entered: list[tuple[str, nn.Module]] = []
    hooks = []
    for name, module in network.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda one, _, name=name: entered.append((name, one))))
            hooks.append(module.register_forward_hook(lambda *_: entered.pop() and None))
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def _untraced(error: Exception, entered: list[tuple[str, nn.Module]]) -> str:
    from torch._subclasses.fake_tensor import DataDependentOutputException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    reason = first_line(error).rstrip(".")
    if isinstance(error, DataDependentOutputException | GuardOnDataDependentSymNode):
        reason = "its Python code depends on values of its input: expected tensor operations, such as torch.where"
    if not entered:
        return f"export: the network cannot be traced by torch.export: {reason}"
    name, module = entered[-1]
    return f"export: layer {name} ({type(module).__name__}) cannot be traced by torch.export: {reason}"


def write_torch_export(program: "ExportedProgram", path: Path, described: Mapping[str, str]) -> None:
    with _quiet():
        torch.export.save(program, path, extra_files={METADATA: json.dumps(described)})


def read_torch_export(path: Path) -> Forward:
    with _quiet():
        module = torch.export.load(path).module()
    return lambda images: module(images)


# ONNX


def onnx_model(program: "ExportedProgram", opset: int | None, described: Mapping[str, str]) -> Any:
    """An `onnx.ModelProto`. Raises `ConfigError` for an opset or an operation that torch.onnx does not translate."""
    with _quiet():
        try:
            translated: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=OUTPUTS,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ConfigError(f"export: torch.onnx cannot translate the network: {first_line(error)}") from error
    if opset is not None and translated.model.opset_imports[""] != opset:
        raise ConfigError(f"opset: torch.onnx does not translate this network to {opset}: expected null, its default")
    translated.model.metadata_props.update(described)
    return translated.model_proto


def check_opset(opset: int | None) -> None:
    """Raises `ConfigError` for what is no opset, or one that torch or onnx does not know."""
    from onnx.defs import onnx_opset_version

    if opset is not None and opset not in range(OLDEST_OPSET, onnx_opset_version() + 1):
        raise ConfigError(
            f"opset: expected null, the exporter's default, or a whole number from {OLDEST_OPSET} to "
            f"{onnx_opset_version()}, received {opset!r}"
        )


def write_int8(float_model: Any, path: Path, calibration_NCHW: Tensor) -> None:
    """Weights and activations of 8 bits, per channel, with their ranges measured on images (QDQ: ONNX Runtime's
    static quantisation, onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration_NCHW.split(32))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    last = [node.name for node in float_model.graph.node if OUTPUTS[1] in node.output]  # of 8 bits, p < 1/256 is 0
    with _quiet():
        quantize_static(
            float_model, path, Batches(), quant_format=QuantFormat.QDQ, per_channel=True, nodes_to_exclude=last
        )


def read_onnx(path: Path) -> Forward:
    """Raises `ConfigError` where this ONNX Runtime cannot read the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        raise ConfigError(
            f"export: onnxruntime {onnxruntime.__version__} cannot read the model: {first_line(error)}; an older opset "
            f"may help"
        ) from error

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, probabilities = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    return forward


# safetensors


def write_safetensors(run: SavedRun, path: Path, described: Mapping[str, str]) -> None:
    """The weights by their names in the run; those that go by two names are there twice."""
    weights = {name: tensor.cpu().contiguous().clone() for name, tensor in run.checkpoint.inference_weights.items()}
    safetensors.torch.save_file(weights, path, dict(described))


def read_safetensors(run: SavedRun, model: ExportedModel, path: Path) -> Forward:
    """The network of the run's config, built anew, with the file's weights."""
    with torch.random.fork_rng():
        network = run.plan.network.build()
    load_weights(network, safetensors.torch.load_file(path), path)
    return model.with_network(network)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters log, print and warn of their own inner workings: a failure is raised, and reported in a sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(before)
