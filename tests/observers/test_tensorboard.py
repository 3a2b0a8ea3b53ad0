import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import graph_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from cnnlab.engine.records import (
    Contribution,
    Descent,
    Examined,
    Finished,
    LayerNode,
    Metrics,
    Mistake,
    Snapshot,
    Started,
)
from cnnlab.observers.tensorboard import TensorBoard

HYPERPARAMETERS = {"optimizer.lr": 0.05, "model.blocks.relu1": "relu", "data.drop_last": True, "trainer.ema": None}


def log(directory: Path, start: int, end: int, *, finish: bool = False) -> None:
    """One start at step `start`, with a training and a validation record for each step up to `end`."""
    observer = TensorBoard()
    observer.log(Started(directory, start, 10, None, HYPERPARAMETERS, "conv1  1×8×8"))
    for step in range(start + 1, end + 1):
        values = {"loss": 1 / step, "accuracy": step / 16, "lr": 0.5, "seconds": 9.0}
        observer.log(Metrics(step, 1, "train", values))
        observer.log(Metrics(step, 1, "val", {"loss": 2 / step, "accuracy": 0.25}))
    if finish:
        observer.log(Finished({"accuracy/test": 0.875, "loss/test": 0.125}))
    observer.close()


def read(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def watch(directory: Path) -> EventAccumulator:
    """One watched update of a network with a ReLU and a sigmoid, at step 20."""
    observer = TensorBoard()
    observer.log(Started(directory, 0, 40, None, {}, "", watched=True))
    contributions = [Contribution("conv1.weight[0, 0, 1, 2]", 0.5, -0.25)]
    by_layer = ({"conv1": 2.0}, {"conv1": 0.125}, {"relu1": 0.5}, {"relu1": 0.25}, {"sigmoid1": 0.75})
    observer.log(Descent(20, 1, 8, 0.5, -0.25, -0.375, 6, 1, *by_layer, contributions))
    observer.close()
    return read(directory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    log(directory, 0, 10, finish=True)
    return directory


def test_values_stand_at_their_steps_by_split(whole: Path) -> None:
    events = read(whole)
    points = [(point.step, point.value) for point in events.Scalars("accuracy/train")]
    assert points == [(step, step / 16) for step in range(1, 11)]
    tags = set(events.Tags()["scalars"])
    assert {"loss/train", "accuracy/train", "lr"} <= tags
    assert not [tag for tag in tags if "seconds" in tag]


def test_validation_is_a_run_of_its_own_which_gets_another_colour(whole: Path) -> None:
    points = [(point.step, point.value) for point in read(whole / "val").Scalars("loss/val")]
    assert points == [(step, pytest.approx(2 / step)) for step in range(1, 11)]
    assert "loss/val" not in read(whole).Tags()["scalars"]


def test_texts_hold_command_layers_config_and_what_each_tag_means(tmp_path: Path) -> None:
    observer = TensorBoard()
    observer.log(Started(tmp_path, 0, 10, None, {}, "conv1  1×8×8", command="python train.py", config="seed: 0"))
    observer.log(Metrics(1, 1, "train", {"loss": 0.5, "accuracy": 0.5, "lr": 0.1, "gradient_norm": 1.0}))
    observer.close()
    events = read(tmp_path)

    def text(tag: str) -> str:
        return str(events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode())

    assert "python train.py" in text("1_command")
    assert "conv1  1×8×8" in text("3_layers")
    assert "seed: 0" in text("4_config")
    for tag in events.Tags()["scalars"]:
        assert re.search(rf"`[^`]*{tag}[^`]*`", text("2_what_the_tags_mean")), tag


def test_the_graph_has_the_layers_with_their_inputs_and_shapes(tmp_path: Path) -> None:
    layers = (
        LayerNode("input", "", (), (1, 8, 8), 0),
        LayerNode("block1/conv1", "conv 3×3", ("input",), (4, 8, 8), 40),
        LayerNode("block1/(add)", "residual", ("block1/conv1", "input"), (4, 8, 8), 0),
    )
    observer = TensorBoard()
    observer.log(Started(tmp_path, 0, 10, None, {}, "", layers=layers))
    observer.close()
    graph = graph_pb2.GraphDef.FromString(read(tmp_path).Graph().SerializeToString())
    found = {node.name: (node.op, list(node.input)) for node in graph.node}
    assert found == {
        "input": ("images", []),
        "block1/conv1": ("conv 3×3", ["input"]),
        "block1/_add_": ("residual", ["block1/conv1", "input"]),
    }
    shape = graph.node[1].attr["_output_shapes"].list.shape[0]
    assert [one.size for one in shape.dim] == [-1, 4, 8, 8]


@pytest.mark.parametrize(("reached", "step"), [(5, 5), (8, 5), (3, 0)])
def test_a_resumed_run_has_no_doubled_points(tmp_path: Path, reached: int, step: int) -> None:
    log(tmp_path, 0, reached)
    log(tmp_path, step, 10)
    assert [point.step for point in read(tmp_path).Scalars("loss/train")] == list(range(1, 11))
    assert [point.step for point in read(tmp_path / "val").Scalars("loss/val")] == list(range(1, 11))


def test_points_are_out_of_the_process_before_the_run_ends(tmp_path: Path) -> None:
    TensorBoard().close()  # closing what never started is no error
    observer = TensorBoard()
    observer.log(Started(tmp_path, 0, 10, None, {}, ""))
    observer.log(Metrics(1, 1, "train", {"loss": 0.5}))
    assert [point.value for point in read(tmp_path).Scalars("loss/train")] == [0.5]
    observer.close()


def layout(events: EventAccumulator) -> Any:
    parsed = layout_pb2.Layout()
    parsed.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    return parsed


def test_train_and_validation_are_overlaid(whole: Path) -> None:
    charts = {chart.title: list(chart.multiline.tag) for chart in layout(read(whole)).category[0].chart}
    assert charts == {"loss": ["loss/train", "loss/val"], "accuracy": ["accuracy/train", "accuracy/val"]}


def plugin_data(directory: Path, tag: str) -> Any:
    data = plugin_data_pb2.HParamsPluginData()
    data.ParseFromString(read(directory).SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)
    return data


def test_hyperparameters_and_outcomes_stand_in_the_same_file(whole: Path) -> None:
    events = read(whole)
    start = plugin_data(whole, "session_start_info").session_start_info
    found = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}
    texts = {"model.blocks.relu1": "relu", "data.drop_last": "True", "trainer.ema": "None"}
    assert found == {"optimizer.lr": 0.05, **texts}
    best = {tag: events.Scalars(tag)[0].value for tag in ("best/accuracy/test", "best/loss/test")}
    assert best == {"best/accuracy/test": 0.875, "best/loss/test": 0.125}
    assert plugin_data(whole, "session_end_info").session_end_info.status == 1  # STATUS_SUCCESS


def test_each_start_makes_one_file_and_their_names_are_in_the_order_of_their_writing(tmp_path: Path) -> None:
    log(tmp_path, 0, 5)
    log(tmp_path, 5, 10, finish=True)
    first, second = sorted(tmp_path.glob("events*"))
    assert first.name.startswith("events.out.tfevents.")
    assert int(first.name.split(".")[3]) < int(second.name.split(".")[3])  # seconds


def test_a_watched_update_is_grouped_by_quantity(tmp_path: Path) -> None:
    events = watch(tmp_path)
    points = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    values = {"loss": 0.5, "loss_change": -0.25, "predicted_change": -0.375, "correct": 6.0, "correct_change": 1.0}
    expected = {f"descent/{name}": value for name, value in values.items()}
    expected |= {"gradients/conv1": 2.0, "updates/conv1": 0.125}
    expected |= {"activations/relu1/zero": 0.5, "activations/relu1/dead": 0.25, "activations/sigmoid1/saturated": 0.75}
    assert points == {tag: [(20, value)] for tag, value in expected.items()}
    text = events.Tensors("contributions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[-1] == "| conv1.weight[0, 0, 1, 2] | 0.5 | -0.25 | -0.125 |"


def test_every_chart_of_watched_updates_finds_its_curves(tmp_path: Path) -> None:
    events = watch(tmp_path)
    curves, descent = layout(events).category
    assert (curves.title, descent.title) == ("curves", "gradient descent")
    tags = events.Tags()["scalars"]
    for pattern in (pattern for chart in descent.chart for pattern in chart.multiline.tag):
        assert any(re.fullmatch(pattern, tag) for tag in tags), pattern


def test_a_snapshot_is_drawn_as_filters_maps_and_histograms(tmp_path: Path) -> None:
    weight = torch.linspace(-1, 1, 2 * 3 * 5 * 5).view(2, 3, 5, 5)
    observer = TensorBoard()
    observer.log(Started(tmp_path, 0, 40, None, {}, ""))
    gradients = {"conv1.weight": torch.full((2, 3, 5, 5), torch.inf)}  # as at the end of a run that diverges
    activations = {"conv1": torch.zeros(4, 2, 3, 3), "output": torch.zeros(4, 10)}
    observer.log(Snapshot(20, 1, {"conv1.weight": weight}, gradients, activations, torch.zeros(4, 3, 8, 8)))
    observer.close()
    events = read(tmp_path)
    assert set(events.Tags()["histograms"]) == {"weights/conv1.weight", "activations/conv1", "activations/output"}
    (drawn,) = events.Histograms("weights/conv1.weight")
    assert (drawn.step, drawn.histogram_value.num) == (20, 150)
    assert set(events.Tags()["images"]) == {"filters/conv1.weight", "maps/conv1"}
    assert all(events.Images(tag)[0].width == 344 for tag in events.Tags()["images"])  # as wide as TensorBoard's cards


def examined() -> Examined:
    mistake = Mistake(7, torch.zeros(1, 8, 8), 0, 1, 0.75, 1.4)
    positives, negatives = torch.zeros(2, 127, dtype=torch.long), torch.zeros(2, 127, dtype=torch.long)
    positives[0, [0, 63, 126]] = torch.tensor([1, 1, 2])
    negatives[0, [0, 63]] = torch.tensor([3, 1])
    return Examined(40, 2, "val", 8, [mistake], positives, negatives)


def test_precision_and_recall_at_each_threshold_follow_from_the_counts(tmp_path: Path) -> None:
    observer = TensorBoard()
    observer.log(Started(tmp_path, 0, 40, None, {}, "", class_names=("cat", "dog")))
    observer.log(examined())
    observer.close()
    events = read(tmp_path)
    (curve,) = events.Tensors("precision_recall_val/cat")
    rows = tensor_util.make_ndarray(curve.tensor_proto)  # TP, FP, TN, FN, precision, recall by threshold
    assert rows[:, 0].tolist() == [4, 4, 0, 0, 0.5, 1]
    assert rows[:, 1].tolist() == [3, 1, 3, 1, 0.75, 0.75]
    assert rows[:, 126].tolist() == [2, 0, 4, 2, 1, 0.5]
    assert "precision_recall_val/dog" not in events.Tags()["tensors"]  # none of the images is one
    assert "images/mistakes_val" in events.Tags()["images"]


def test_images_end_where_a_run_has_filled_its_space_but_for_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnlab.observers.tensorboard.SPACE", 1)
    observer = TensorBoard()
    observer.log(Started(tmp_path, 0, 40, None, {}, ""))
    for step in (20, 40):
        observer.log(Snapshot(step, 1, {"conv1.weight": torch.ones(2, 3, 5, 5)}, {}, {}))
    observer.close()
    assert [image.step for image in read(tmp_path).Images("filters/conv1.weight")] == [40]
