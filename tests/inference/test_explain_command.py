"""`evaluate.py explain=true`: its figures, what it leaves untouched, what it refuses."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch
from commands import Answer, ok, run
from fast_run import train_fast
from few import explain_few
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cnnlab.cli import evaluate, train
from cnnlab.visualization.embedding import neighbours, principal_components

pytest.importorskip("captum")


def ask(path: Path, *overrides: str) -> Answer:
    return run(evaluate, f"run={path}", "explain=true", *overrides)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    explain_few(monkeypatch)


@pytest.mark.usefixtures("little")
def test_every_part_has_its_figures_and_the_run_is_as_before(finished: Path) -> None:
    before = digests(finished)
    answer = ok(ask(finished))
    parts = ("worst-mistakes", "why-mistakes", "why-correct", "ablation-relu1", "exciting-relu1", "embedding-pca")
    parts += ("embedding-tsne", "reliability", "made-for-relu1")
    drawn = {path.name.split("-test-")[0] for path in (finished / "figures/explain").iterdir()}
    assert drawn == set(parts)
    assert "decision boundary:     not drawn: the data have 64 dimensions, not two" in answer.out
    after = digests(finished)
    changed = [name for name in before if after[name] != before[name]]
    assert changed == ["report.html"]
    events = EventAccumulator(str(finished))
    events.Reload()
    assert {f"explain/{name}/test" for name in parts} <= set(events.Tags()["images"])
    assert "Images that excite the channels of relu1 most" in (finished / "report.html").read_text(encoding="utf-8")
    points = (finished / "projector-tensors.tsv").read_text(encoding="utf-8").splitlines()
    names = (finished / "projector-metadata.tsv").read_text(encoding="utf-8").splitlines()
    assert (len(points), names[0].split("\t"), len(names)) == (40, ["label", "prediction", "image"], 41)
    with Image.open(finished / "projector-sprite.png") as sprite:
        assert sprite.size == (7 * 8, 7 * 8)


def test_an_embedding_is_the_same_each_time() -> None:
    feature_NF = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    place_NR, fractions = principal_components(feature_NF)
    first, second = (neighbours(place_NR) for _ in range(2))
    assert (first == second).all()
    centred_NF = feature_NF.double() - feature_NF.double().mean(0)
    _, singular_R, direction_RF = torch.linalg.svd(centred_NF, full_matrices=False)
    variance_R = singular_R**2 / (singular_R**2).sum()
    assert fractions == pytest.approx(variance_R[:2].tolist())
    assert abs(place_NR) == pytest.approx(abs((centred_NF @ direction_RF.T).numpy()))


@pytest.mark.slow
@pytest.mark.usefixtures("little")
def test_a_network_without_convolutions_has_no_grad_cam_and_all_else(in_tmp_path: Path) -> None:
    ok(train_fast("run_dir=run", "model=mlp"))
    answer = ok(ask(Path("run")))
    assert "no Grad-CAM: the network has no convolution" in answer.out
    assert len(list(Path("run/figures/explain").iterdir())) == 9


@pytest.mark.slow
@pytest.mark.usefixtures("little")
def test_two_pixels_have_a_boundary(in_tmp_path: Path) -> None:
    ok(run(train, "experiment=xor_of_nands", "run_dir=run", "trainer.max_steps=4"))
    answer = ok(ask(Path("run")))
    assert "decision boundary:     the predicted class for each pair of pixels" in answer.out
    assert "embedding:" in answer.out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("explain=yes_please", "explain: expected true or false, received 'yes_please'"),
        ("tta=flip", "explain: expected it without tta, received tta=flip beside it"),
        ("export=[onnx]", "explain: expected it without export"),
        ("images=folder", "explain: expected it without images"),
    ],
)
def test_what_cannot_be_explained_is_refused(completed_run: Path, override: str, message: str) -> None:
    answer = ask(completed_run, override)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


def test_without_captum_the_command_that_installs_it_is_named(
    completed_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "captum" else found(name, *a))
    answer = ask(completed_run)
    assert (answer.code, answer.out) == (2, "")
    assert "explain: it needs Captum: pip install 'cnnlab[explain]'" in answer.err
