"""What `evaluate.py export=[…]` writes for other programs, and what it refuses."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from commands import Answer, ok, run
from fast_run import train_fast
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import cnnlab
from cnnlab.cli import evaluate, train
from cnnlab.components import Trust
from cnnlab.data.digits import Digits
from cnnlab.data.image_files import ImageReader
from cnnlab.data.source import Images
from cnnlab.inference import export_command
from cnnlab.inference.export_command import accuracy, largest_difference, spread
from cnnlab.inference.exported import ExportedModel, trace
from cnnlab.inference.model_card import _snippet
from cnnlab.inference.predictor import Predictor
from cnnlab.inference.saved_run import SavedRun
from cnnlab.runtime.errors import ConfigError
from cnnlab.version import __version__

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "export.md"
DIGITS = [str(digit) for digit in range(10)]
TEST_NCHW = Digits().read("test").x_NCHW


def ask(path: Path, *overrides: str) -> Answer:
    return run(evaluate, f"run={path}", *overrides)


@pytest.fixture(scope="module")
def exported(completed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The folder of an evaluated run's exported files, and what the command printed."""
    pytest.importorskip("onnxscript")
    path = Path(shutil.copytree(completed_run, tmp_path_factory.mktemp("exported") / "run"))
    ok(ask(path))
    answer = ok(ask(path, "export=[onnx,torch_export,safetensors]"))
    (folder,) = (path / "exports").iterdir()
    return folder, answer


def expected_of(folder: Path) -> tuple[Predictor, Tensor]:
    predictor = cnnlab.load(folder.parents[1])
    return predictor, predictor(TEST_NCHW[:7])


def test_the_files_have_the_step_of_the_checkpoint_and_are_listed(exported: tuple[Path, Answer]) -> None:
    folder, answer = exported
    assert folder.name == SavedRun.open(folder.parents[1], "best", "cpu", Trust(), {}).checkpoint.folder.name
    names = {"model.onnx", "model.pt2", "model.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    assert all(str(folder / name) in answer.out for name in names)
    assert "compared with the run on 256 images of the test split" in answer.out


@pytest.mark.parametrize("count", [1, 7])
def test_onnxruntime_computes_what_the_run_does(exported: tuple[Path, Answer], count: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, _ = exported
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["batch", 1, 8, 8])
    assert [(one.name, one.shape) for one in session.get_outputs()] == [
        ("logits", ["batch", 10]),
        ("probabilities", ["batch", 10]),
    ]
    logits_NK, probability_NK = session.run(None, {"images": TEST_NCHW[:count].numpy()})
    _, expected_NK = expected_of(folder)
    np.testing.assert_allclose(logits_NK, expected_NK[:count], atol=1e-5)
    np.testing.assert_allclose(probability_NK, expected_NK[:count].softmax(1), atol=1e-5)


def test_torch_alone_computes_what_the_run_does(exported: tuple[Path, Answer]) -> None:
    folder, _ = exported
    described = {"metadata.json": ""}
    network = torch.export.load(folder / "model.pt2", extra_files=described).module()
    _, expected_NK = expected_of(folder)
    for count in (1, 7):
        logits_NK, probability_NK = network(TEST_NCHW[:count])
        torch.testing.assert_close(logits_NK, expected_NK[:count])
        torch.testing.assert_close(probability_NK, expected_NK[:count].softmax(1))
    assert json.loads(json.loads(described["metadata.json"])["class_names"]) == DIGITS


def test_safetensors_has_the_weights_by_the_names_of_the_run(exported: tuple[Path, Answer]) -> None:
    folder, _ = exported
    predictor, _ = expected_of(folder)
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == predictor.network.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in predictor.network.state_dict().items())


def test_every_format_carries_the_classes_and_the_version(exported: tuple[Path, Answer]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, _ = exported
    onnx = onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta().custom_metadata_map
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == onnx
    assert json.loads(onnx["class_names"]) == DIGITS
    assert onnx["cnnlab_version"] == __version__
    measured = SavedRun.open(folder.parents[1], "best", "cpu", Trust(), {}).normalization
    assert tuple(json.loads(onnx["mean"])) == pytest.approx(measured.mean_C)


def test_the_model_card_has_the_metrics_of_each_class(exported: tuple[Path, Answer]) -> None:
    folder, _ = exported
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "## Metrics on the test split" in card
    assert len(re.findall(r"^\| \d \| \d+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$", card, re.MULTILINE)) == 10
    assert "Classes, in the order of the outputs: 0, 1, 2" in card
    assert "It has not been evaluated" not in card


def programs(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["card", "guide"])
def test_the_shown_program_predicts_what_the_run_does(
    exported: tuple[Path, Answer], page: str, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = exported
    text = (folder / "README.md" if page == "card" else GUIDE).read_text(encoding="utf-8")
    for name in ("model.onnx", "model.pt2"):
        shutil.copy(folder / name, in_tmp_path)
    image_HW = np.random.default_rng(0).integers(0, 256, (12, 20), np.uint8)
    Image.fromarray(image_HW).save("image.png")
    for program in programs(text):
        exec(program, {})
    (expected,) = expected_of(folder)[0].predict("image.png")
    label, probability = capsys.readouterr().out.split()
    assert (label, float(probability)) == (expected.label, pytest.approx(expected.probability, abs=1e-5))


@pytest.mark.parametrize(
    "options",
    [("crop",), ("squash",), ("pad", "bicubic"), ("crop", "bicubic", 12), ("squash", "bilinear", 12)],
    ids=str,
)
@pytest.mark.parametrize("size", [(8, 8), (9, 20), (31, 10)])
def test_the_card_resizes_as_the_run_does(options: tuple[Any, ...], size: tuple[int, int], in_tmp_path: Path) -> None:
    reader = ImageReader((8, 10), 3, *options)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save("image.png")
    program = _snippet(["onnx"], reader)
    lines = [
        line for line in program.splitlines() if not re.match(r"session|class_names|logits|print|import onnx", line)
    ]
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    assert np.array_equal(scope["images"][0], reader.read(Path("image.png")).numpy())


def test_a_folder_that_exists_is_refused(exported: tuple[Path, Answer]) -> None:
    folder, _ = exported
    answer = ask(folder.parents[1], "export=safetensors")
    assert answer.code == 2
    assert f"{folder} exists: expected a new folder; remove it" in answer.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["export=[onx]"], "received 'onx'; did you mean 'onnx'?"),
        (["export=5"], "export: expected a list of onnx, onnx_int8, torch_export, safetensors, received 5"),
        (["export=onnx", "opset=7"], "opset: expected null, the exporter's default, or a whole number from 18 to "),
        (["opset=18"], "opset: it is that of ONNX files: expected export=[onnx] beside it, received 18"),
        (["export=onnx", "layers=[conv1]"], "export: expected it without layers, received layers=['conv1']"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(
    overrides: list[str], message: str, completed_run: Path
) -> None:
    pytest.importorskip("onnx")
    answer = ask(completed_run, *overrides)
    assert (answer.code, message in answer.err) == (2, True), answer.err
    assert not (completed_run / "exports").exists()


def test_without_the_packages_the_command_to_install_them_is_printed(
    completed_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    answer = ask(completed_run, "export=[safetensors,onnx]")
    assert answer.code == 2
    assert "export: onnx needs onnx, onnxscript, onnxruntime: pip install 'cnnlab[export]'" in answer.err


def test_a_file_that_differs_is_refused_and_nothing_is_left(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_command, "MOST_DIFFERENCE", -1.0)
    answer = ask(finished, "export=safetensors")
    assert answer.code == 1
    assert "error: export: safetensors differs from the run by " in answer.err
    assert "Traceback" not in answer.err
    assert not (finished / "exports").exists()


def test_without_the_data_random_images_are_compared(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Digits) -> None:
        raise ConfigError("data: they are elsewhere")

    monkeypatch.setattr(Digits, "check", missing)
    answer = ask(finished, "export=onnx_int8")
    assert answer.code == 2
    assert "onnx_int8 is calibrated on the run's images, which are not here: data: they are elsewhere" in answer.err
    ok(ask(finished, "export=safetensors"))
    card = next(finished.glob("exports/*/README.md")).read_text(encoding="utf-8")
    assert "compared with the run on 256 random images, for want of data: data: they are elsewhere" in card
    assert "It has not been evaluated" in card


class DependsOnValues(nn.Module):
    def forward(self, x_NF: Tensor) -> Tensor:
        return x_NF if x_NF.sum() > 0 else -x_NF


def test_a_layer_that_depends_on_values_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    network.add_module("block1", nn.Sequential(nn.Linear(4, 2), DependsOnValues()))
    model = ExportedModel(network, torch.sigmoid, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    with pytest.raises(
        ConfigError, match=r"^export: layer block1\.1 \(DependsOnValues\) cannot be .* such as torch\.where$"
    ):
        trace(model, (1, 2, 2))
    assert capfd.readouterr() == ("", "")


def test_the_largest_difference_is_relative_to_large_logits() -> None:
    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([[3.0, -8.0]]), torch.tensor([[0.9, 0.1]])

    expected = torch.tensor([[3.0, -10.0]]), torch.tensor([[0.85, 0.15]])
    assert largest_difference(forward, torch.zeros(1, 1, 2, 2), expected) == pytest.approx(0.2)
    closer = torch.tensor([[3.0, -8.0]]), torch.tensor([[0.85, 0.15]])
    assert largest_difference(forward, torch.zeros(1, 1, 2, 2), closer) == pytest.approx(0.05)


def test_images_are_taken_from_the_first_to_the_last() -> None:
    images = Images.of(torch.arange(9, dtype=torch.uint8).reshape(9, 1, 1, 1), torch.zeros(9))
    assert spread(images, 3).flatten().tolist() == [0, 4, 8]
    assert len(spread(images, 100)) == 9


def test_accuracy_is_the_fraction_of_correct_images() -> None:
    images = Images.of(torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1), torch.arange(40) % 2)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        logits_NK = torch.stack([images.flatten() < 10, images.flatten() >= 10], 1).float()
        return logits_NK, logits_NK

    assert accuracy(forward, images) == (5 + 15) / 40


@pytest.mark.slow
def test_int8_is_nearly_as_accurate(in_tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    ok(run(train, "run_dir=run", "trainer.epochs=5", "observers=quiet"))
    answer = ok(ask(Path("run"), "export=onnx_int8"))
    found = re.search(
        r"onnx_int8: accuracy [\d.]+ on the test split, [\d.]+ in float32 \(([+-][\d.]+) points\)", answer.out
    )
    assert found
    assert float(found[1]) >= -2
    (path,) = Path("run").glob("exports/*/model-int8.onnx")
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == DIGITS
    assert session.get_inputs()[0].type == "tensor(uint8)"
    _, probability_NK = session.run(None, {"images": TEST_NCHW.numpy()})
    np.testing.assert_allclose(probability_NK.sum(1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mobilenet_v3_small", "row_lstm"])
def test_other_networks_are_exported(model: str, in_tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    ok(train_fast("run_dir=run", f"model={model}"))
    answer = ok(ask(Path("run"), "export=[onnx,torch_export]", "opset=18"))
    assert os.listdir("run/exports")
    assert "model.onnx" in answer.out
