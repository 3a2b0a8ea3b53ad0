"""What `cnnlab.load` returns: a network with its preprocessing."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from fast_run import read_json
from image_folders import noise, write_image
from PIL import Image

import cnnlab
from cnnlab.cli import evaluate
from cnnlab.components import Trust
from cnnlab.data.digits import Digits
from cnnlab.inference.predict_command import predict_images
from cnnlab.inference.predictor import Prediction, Predictor
from cnnlab.inference.saved_run import SavedRun
from cnnlab.losses import BCE
from cnnlab.run.files import RunDirectory
from cnnlab.runtime.errors import ConfigError


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_it_predicts_what_evaluate_predicts(finished: Path) -> None:
    assert run(evaluate, f"run={finished}").code == 0
    expected = rows(next(finished.glob("predictions-test-*.csv")))
    predictor = cnnlab.load(finished)
    found = predictor.predict(Digits().read("test").x_NCHW)
    assert [one.label for one in found] == [row["prediction"] for row in expected]
    for one, row in zip(found, expected, strict=True):
        assert one.probability == pytest.approx(float(row["probability"]), rel=1e-5)
        assert one.probabilities["3"] == pytest.approx(float(row["p(3)"]), rel=1e-5)


def test_it_is_a_module_in_eval_mode_whose_weights_stay(completed_run: Path) -> None:
    predictor = cnnlab.load(completed_run)
    assert not any(module.training for module in predictor.modules())
    assert not any(parameter.requires_grad for parameter in predictor.parameters())
    x_NCHW = Digits().read("test").x_NCHW[:4]
    assert torch.equal(predictor(x_NCHW), predictor(x_NCHW.float()))
    assert predictor(x_NCHW).shape == (4, 10)


def test_the_images_are_normalised_as_in_training(completed_run: Path) -> None:
    predictor = cnnlab.load(completed_run, checkpoint="last")
    manifest = read_json(next(completed_run.glob("checkpoints/step-00000006/manifest.json")))["manifest"]
    measured = manifest["meta"]["normalization"]
    x_NCHW = Digits().read("test").x_NCHW[:4]
    by_hand = (x_NCHW.double() - measured["mean_C"][0]) / measured["sd_C"][0]
    torch.testing.assert_close(predictor(x_NCHW), predictor.network(by_hand.float()), rtol=1e-4, atol=1e-5)


def test_files_images_arrays_and_tensors_are_the_same_image(completed_run: Path, tmp_path: Path) -> None:
    x_CHW = Digits().read("test").x_NCHW[7]
    array_HW = x_CHW[0].numpy()
    image = Image.fromarray(array_HW)
    image.save(tmp_path / "digit.png")
    predictor = cnnlab.load(completed_run)
    forms = [x_CHW, array_HW, image, tmp_path / "digit.png", str(tmp_path / "digit.png")]
    alone = [predictor.predict(form) for form in forms]
    assert all(len(found) == 1 for found in alone)
    assert {found[0].label for found in alone} == {predictor.predict(forms)[0].label}
    np.testing.assert_allclose([found[0].probability for found in alone], alone[0][0].probability, rtol=1e-5)


@pytest.fixture
def saturated(completed_run: Path) -> SavedRun:
    """A run whose outputs are 20, 21, …, 29 for any image: their sigmoids are all 1 in float32."""
    run = SavedRun.open(completed_run, "best", "cpu", Trust(), {})
    weights = dict(run.checkpoint.weights)
    weights |= {"output.weight": torch.zeros_like(weights["output.weight"]), "output.bias": torch.arange(20.0, 30.0)}
    return replace(run, checkpoint=replace(run.checkpoint, weights=weights), plan=replace(run.plan, loss=BCE()))


def test_the_largest_output_is_predicted_where_probabilities_saturate(saturated: SavedRun) -> None:
    (found,) = Predictor.of(saturated).predict(np.zeros((8, 8), np.uint8))
    assert (found.label, found.probability) == ("9", 1.0)


def test_a_folder_of_images_is_predicted_by_outputs_too(
    saturated: SavedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png", noise(8, 8, 1))
    written: dict[str, str] = {}
    monkeypatch.setattr(RunDirectory, "write_text", lambda self, name, text: written.setdefault("text", text))
    predict_images(saturated, tmp_path, "none")
    assert written["text"].splitlines()[1].startswith("a.png,9,1,")
    assert "predicted: 9 1\n" in capsys.readouterr().out


def probabilities(found: list[Prediction]) -> list[float]:
    return [value for one in found for value in one.probabilities.values()]


def test_the_orientation_of_an_opened_photograph_is_applied(completed_run: Path, tmp_path: Path) -> None:
    image = Image.fromarray(noise(8, 8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° (EXIF 2.3, "Orientation")
    image.save(tmp_path / "turned.png", exif=exif)
    predictor = cnnlab.load(completed_run)
    turned = predictor.predict(Image.open(tmp_path / "turned.png"))
    assert probabilities(turned) == probabilities(predictor.predict(tmp_path / "turned.png"))
    assert probabilities(turned) != probabilities(predictor.predict(image))


@pytest.mark.parametrize("images", [5, [None], b"a.png"])
def test_what_is_no_image_is_refused(completed_run: Path, images: Any) -> None:
    with pytest.raises(TypeError, match=r"expected paths, PIL images, uint8 arrays or tensors, received [iNb]"):
        cnnlab.load(completed_run).predict(images)


def test_a_batch_of_another_shape_is_refused(completed_run: Path) -> None:
    with pytest.raises(ValueError, match=r"\(N, 1, 8, 8\) of 0…255, received \(1, 3, 9, 9\)"):
        cnnlab.load(completed_run)(torch.zeros(1, 3, 9, 9))


def test_a_class_of_a_strangers_run_is_imported_only_where_it_is_repeated(finished: Path) -> None:
    config = finished / "config.yaml"
    config.write_text(config.read_text().replace("relu1: relu", "relu1: torch.nn.modules.activation.ReLU"))
    with pytest.raises(ConfigError, match=r"cnnlab\.load\(.*, trust=\['torch\.nn\.modules\.activation\.ReLU'\]\)"):
        cnnlab.load(finished)
    cnnlab.load(finished, trust=["torch.nn.modules.activation.ReLU"])
