"""What `evaluate.py layers=[…]` draws, and what it refuses before the pass over the split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Answer, composed, ok, run
from fast_run import read_json, train_fast
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional

from cnnlab.cli import evaluate
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.data.digits import Digits
from cnnlab.data.shapes import Shapes
from cnnlab.data.source import Images
from cnnlab.inference.layer_figures import Drawing, Study, Wanted, check_layers
from cnnlab.inference.predictor import Predictor
from cnnlab.inference.saved_run import SavedRun
from cnnlab.runtime.errors import ConfigError

TEST = Digits().read("test")


def ask(path: Path, *overrides: str) -> Answer:
    return run(evaluate, f"run={path}", *overrides)


def studied(path: Path, image: int, *layers: str, images: Images = TEST) -> tuple[Predictor, dict[str, Drawing]]:
    """The network of a run and the drawings of its layers by their tags."""
    saved = SavedRun.open(path, "best", "cpu", Trust(), {})
    predictor = Predictor.of(saved)
    study = Study.of(saved, predictor, Wanted(layers, image), images, "test")
    return predictor, {drawing.tag: drawing for drawing in study.draw()}


def shown(drawing: Drawing) -> list[np.ndarray]:
    return [np.asarray(axis.images[0].get_array()) for axis in drawing.figure.axes if axis.images]


def captions(drawing: Drawing) -> list[str]:
    return [axis.get_title() for axis in drawing.figure.axes if axis.get_title()]


def normalized(predictor: Predictor, image: int) -> Tensor:
    return predictor.shift_C11 + TEST.x_NCHW[image : image + 1] * predictor.scale_C11


def test_each_layer_has_its_figures_in_the_folder_and_in_tensorboard(finished: Path) -> None:
    answer = ok(ask(finished, "layers=[conv1,relu1,output]", "index=3"))
    best = read_json(finished / "summary.json")["best"]["step"]
    layers = ("filters/conv1", "maps/conv1/test-3", "maximised/conv1", "maps/relu1/test-3", "maximised/relu1")
    tags = {"confusion/test", "maximised/output", *layers}
    expected = {f"{tag.replace('/', '-')}-step-{best:08d}.png" for tag in tags}
    assert {path.name for path in (finished / "figures").iterdir()} == expected
    assert all(f"figures/{name}" in answer.out for name in expected)
    for name in expected:
        with Image.open(finished / "figures" / name) as image:
            assert image.width > 500, name
    events = EventAccumulator(str(finished))
    events.Reload()
    assert set(events.Tags()["images"]) == tags
    assert [event.step for event in events.Images("maps/conv1/test-3")] == [best]
    assert "loss/train" in events.Tags()["scalars"]  # the curves of training are still there


def test_the_maps_are_those_of_the_image_by_hand(completed_run: Path) -> None:
    predictor, drawings = studied(completed_run, 5, "conv1")
    image_HW, *maps = shown(drawings["maps/conv1/test-5"])
    conv = predictor.network.get_submodule("conv1")
    by_hand_CHW = functional.conv2d(normalized(predictor, 5), conv.weight, padding="same")[0]
    np.testing.assert_array_equal(image_HW, TEST.x_NCHW[5, 0])
    np.testing.assert_allclose(np.stack(maps), by_hand_CHW, atol=1e-5)
    assert drawings["maps/conv1/test-5"].figure.get_suptitle().split("\n")[1].startswith("above each map: ")
    peak = by_hand_CHW[0].argmax().item()
    assert captions(drawings["maps/conv1/test-5"])[1].endswith(f"at {peak // 8}, {peak % 8}")
    filters = shown(drawings["filters/conv1"])
    np.testing.assert_array_equal(np.stack(filters), conv.weight.mean(1))


def test_a_maximising_image_is_captioned_with_its_activation_and_the_images(completed_run: Path) -> None:
    predictor, drawings = studied(completed_run, 5, "output")
    found_NCHW = torch.tensor(np.stack(shown(drawings["maximised/output"])))[:, None]
    reached_K, here_K = predictor(found_NCHW).diagonal(), predictor(TEST.x_NCHW[5:6])[0]
    assert (reached_K > here_K).all()
    values = zip(reached_K.tolist(), here_K.tolist(), strict=True)
    assert captions(drawings["maximised/output"]) == [f"{k}\n{a:.3g} ({b:.3g})" for k, (a, b) in enumerate(values)]


def test_the_networks_outputs_are_called_by_their_classes(in_tmp_path: Path) -> None:
    train_fast("run_dir=run", "data=shapes", "data.train_count=800", "data.test_count=80", "model=linear")
    images = Shapes(28, 800, 80, (1, 3), 0.1, 0).read("test")
    _, drawings = studied(in_tmp_path / "run", 0, "output", images=images)
    names = [caption.split("\n")[0] for caption in captions(drawings["maximised/output"])]
    assert names[:2] == ["vertical_edge", "horizontal_edge"]


def test_of_many_channels_64_are_drawn_as_the_title_notes(in_tmp_path: Path) -> None:
    train_fast("run_dir=run", "model=mlp", "model.blocks.hidden1.out_features=70")
    _, drawings = studied(in_tmp_path / "run", 0, "hidden1")
    assert len(shown(drawings["maximised/hidden1"])) == 64
    title = drawings["maximised/hidden1"].figure.get_suptitle()
    assert title.startswith("hidden1 (the first 64 of 70): ")
    assert "image 0 of the test split, labelled " in title


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        (("trainer.execution.precision=bf16", "trainer.execution.layout=contiguous"), ["pool1", "output"]),
        (("model=row_gru", "model.blocks.gru.hidden_size=6"), ["gru", "output"]),
        (("model=resnet_small", "trainer.ema=0.9"), ["block1", "block2.projection.conv"]),
    ],
)
def test_every_kind_of_run_can_be_looked_at(in_tmp_path: Path, overrides: tuple[str, ...], layers: list[str]) -> None:
    assert train_fast("run_dir=run", *overrides).code == 0
    ok(ask(in_tmp_path / "run", f"layers=[{','.join(layers)}]"))
    assert all(list(Path("run/figures").glob(f"maximised-{layer}-step-*")) for layer in layers)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layers=[conv1,con2]"], ["layers: expected some of conv1, ", "received 'con2'; did you mean 'conv2'?"]),
        (["layers=[5]"], ["layers: expected some of conv1, norm1, ", "dropout1, output, received '5'"]),
        (["layers=conv1", "index=180", "split=val"], ["index: ", "from 0 to 179, the images of the val split", "180"]),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(
    finished: Path, overrides: list[str], message: list[str]
) -> None:
    before = sorted(finished.rglob("*"))
    answer = ask(finished, *overrides)
    assert answer.err.startswith(f"error: {message[0]}")
    assert [fragment for fragment in message if fragment not in answer.err] == []
    assert sorted(finished.rglob("*")) == before


def test_a_layer_that_returns_neither_maps_nor_features_is_refused(in_tmp_path: Path) -> None:
    train_fast("run_dir=run", "model=row_gru")
    message = r"layers: gru\.layers\.0: expected a layer that returns maps .* received a tuple for \(1, 1, 8, 8\)"
    with pytest.raises(ConfigError, match=message):
        studied(in_tmp_path / "run", 0, "gru.layers.0")


def test_many_layers_are_not_all_listed() -> None:
    network = check_config(composed("model=resnet_small"), Trust()).network
    message = r"block3, … \(10 more in model\.txt\), received 'block1\.conv1'; did you mean 'block1\.blocks\.conv1'"
    with pytest.raises(ConfigError, match=message):
        check_layers(network.build(), [row.path for row in network.rows], Wanted(("block1.conv1",), 0))


@pytest.mark.slow
def test_layers_change_no_measurement_and_no_figure_of_another_layer(finished: Path) -> None:
    ask(finished, "split=train")
    (report,) = finished.glob("evaluation-*.json")
    measured = report.read_bytes()
    ask(finished, "split=train", "layers=relu1", "index=1256")  # without brackets; the last of 1,437 − 180
    assert report.read_bytes() == measured
    (figure,) = (finished / "figures").glob("maximised-*.png")
    drawn = figure.read_bytes()
    ask(finished, "split=train", "layers=[output,relu1]", "index=1256")
    assert figure.read_bytes() == drawn
