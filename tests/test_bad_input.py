"""Every bad input ends with status 2 and a message that names key and legal values, before anything is written."""

import copy
import io
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from commands import Answer, run
from hydra.core.override_parser.overrides_parser import OverridesParser
from image_folders import noise, png_header, write_folders
from omegaconf import DictConfig
from PIL import Image

import cnnlab
from cnnlab.cli import evaluate, train
from cnnlab.components import Trust
from cnnlab.config.check import check_config
from cnnlab.config.compose import CONFIGS, allow_constructor_arguments, apply_overrides
from cnnlab.config.saved_config import resolved
from cnnlab.runtime.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]
FAST = "experiment=debug/fast"  # where an input is accepted that should not be, it must not take long


def rows(text: str) -> list[Any]:
    """Cases, one a line: `override | override → fragment of the message | fragment`."""
    pairs = [line.split(" → ") for line in text.strip().splitlines()]
    return [pytest.param(given.split(" | "), expected.split(" | "), id=given[:60]) for given, expected in pairs]


def assert_refused(answer: Answer, fragments: list[str], place: Path) -> None:
    assert answer.code == 2, answer.err
    assert [fragment for fragment in fragments if fragment not in answer.err] == [], answer.err
    assert answer.err.startswith("error: ")
    assert not list(place.iterdir())


TRAINING = rows("""
trainer.clip_norm=[1,2 → trainer.clip_norm
+model.blocks.1x=relu → model.blocks.1x
data=mnsit → data: | 'mnsit' | did you mean 'mnist'? | digits, expanded_mnist, fashion_mnist, image_folder, kmnist
model=resnet81 → model: | 'resnet81' | did you mean 'resnet18'? | cnn, lenet | torchvision's 80
sede=3 → sede: | did you mean 'seed'?
model.blocks.conv9.out_channels=3 → model.blocks.conv9: | did you mean 'conv3'? | norm1
model.blocks.relu1=reluu → model.blocks.relu1: | no block 'reluu' | did you mean 'relu'? | max_pool
data=image_folder | data.root=nowhere → data.root: | /nowhere does not exist
run_dir=. → run_dir: | exists | resume=.
trust=3 → trust:
resume=nowhere → resume: | config.yaml | 'nowhere' | does not exist
""")

SWEEPS = rows("""
seed=choice() → seed=choice(): | empty choice is not legal
seed=range(0,200) | data.split_seed=range(0,200) → seed × data.split_seed: | 10,000 jobs | 40,000
optimizer.lr=-1,-2 → no job of the grid can run | 000 optimizer.lr=-1: optimizer.lr: expected a number ≥ 0
seed=1,2 | resume=runs/digits/some → resume: | a sweep starts new runs | resume=RUN
seed=1,2 | run_dir=here → run_dir: | the same for every job | hydra.sweep.dir=PATH | run_dir=here
seed=1,2 | hydra.launcher.n_jobs=0 → hydra.launcher.n_jobs: | expected a whole number ≥ 1 | received 0
seed=1,2 | hydra/launcher=joblip → hydra/launcher: | there is no 'joblip' | cnnlab_processes
""")

EVALUATION = rows("""
device=cpu → run: | expected a run's directory | received none
run=nowhere → run: | config.yaml | 'nowhere' | does not exist
run=nowhere | split=foo → split: | train, val, test | 'foo'
run=nowhere | layers=[conv1,[conv2]] → layers: | a list of layers' names | ['conv1', ['conv2']]
run=nowhere | layers=conv1 | index=-1 → index: | a whole number ≥ 0 | received -1
run=nowhere | layers=conv1 | images=there → layers: | without images | received images=there
run=nowhere | tta=flipp → tta: | none, flip, shift, flip_shift, flip_diagonal | 'flipp' | did you mean 'flip'?
run=nowhere | topk=3 → topk: | did you mean 'top_k'? | tta
""")

# what check_config refuses; the mirrored tests show what a class or function refuses by itself
CHECKED = rows("""
published={figure: accuracy/test} → published.value: | published.source:
~data.validation.count → trainer.monitor: | accuracy/val needs a validation split
data.validation.cuont=3 → data.validation.cuont: | did you mean 'count'? | count and from
model.blocks.relu1=5 → model.blocks.relu1: | expected a name or a mapping with a 'type' | received 5
model.blocks.relu1=os.system → model.blocks.relu1: | os.system is no block | Module
model.blocks.conv1.out_chanels=3 → model.blocks.conv1.out_chanels: | did you mean 'out_channels'?
optimizer.params=3 → params
schedule={type: torch.optim.lr_scheduler.ReduceLROnPlateau} → schedule.type: | waits for a metric | cosine or step
model.init=hee → model.init: | did you mean 'he'? | xavier
data.type=cifar → data: | no data source 'cifar' | digits
data.root=elsewhere → data.root: | digits has no argument 'root'
+data.augment.s=shfit → data.augment.s: | no augmentation 'shfit' | did you mean 'shift'? | cutmix
+data.augment.s={type: shift, pixels: 8} → data.augment.s.pixels: | fewer than the 8 pixels | received 8
+data.augment.c={type: cutout, size: 9} → data.augment.c.size: | a side of the image, 8 | received 9
data.augment.r={type: rand_augment, magnitude: 31} → data.augment.r.magnitude: | from 0 to 30, received 31
data.augment.r={type: rand_augment, num_op: 2} → data.augment.r.num_op: | did you mean 'num_ops'?
data.augment.j=color_jitter → data.augment.j.brightness: | contrast, saturation and hue; received none
data.augment.e={type: random_erasing, p: -1} → data.augment.e.p: | in [0, 1] | received -1
data.augment.e={type: random_erasing, ratio: [3.3, 0.3]} → data.augment.e.ratio: | in this order | received [3.3, 0.3]
data.augment.e={type: random_erasing, value: [1, 2, 3]} → data.augment.e.value: | channels (1), received 3
data.augment.e={type: random_erasing, scale: [0.1, 0.2, 0.3]} → data.augment.e.scale: | a list of 2
data.augment.flip=horizontal_flp → data.augment.flip: | did you mean 'horizontal_flip'?
model.blocks.dorpout1=null → model.blocks.dorpout1: | did you mean 'dropout1'?
model.blocks.conv9.out_channels=3 → model.blocks.conv9: | did you mean 'conv3'?
optimizer.lr=null → optimizer.lr: | expected a number | received None
optimizer.momentum=0 → optimizer.nesterov: | expected momentum > 0
+optimizer.groups={conv9*: {lr: 0.1}} → optimizer.groups.conv9*: | no trained parameter's name | conv1.weight
optimizer=muon | ~optimizer.rest → optimizer.rest: | muon updates the weights of hidden layers alone | adamw
+optimizer.rest=adamw → optimizer.rest: | sgd updates every parameter | '~optimizer.rest' | optimizer.groups
optimizer=muon | model=linear → optimizer.type: | muon updates the weights between | none of these trains | adamw
optimizer.groups={norm1.*: {type: muon}} → optimizer.groups.norm1.*: | norm1.weight has 1 | conv*.weight
optimizer=muon | trainer.execution.cuda_graph=true → trainer.execution.cuda_graph: | not that of muon
optimizer=muon | schedule={type: torch.optim.lr_scheduler.OneCycleLR, max_lr: 1} → schedule.cycle_momentum: | muon
optimizer.layer_decay=0 → optimizer.layer_decay: | expected a number in (0, 1] | received 0
optimizer.layer_decay=0.5 | schedule={type: torch.optim.lr_scheduler.OneCycleLR, max_lr: 1} → optimizer.layer_decay:
trainer.lookahead=5 → trainer.lookahead: | expected a mapping | received 5
trainer.lookahead={every: 5} | trainer.ema=0.9 → trainer.lookahead: | received trainer.ema=0.9 beside it
trainer.lookahead={power: 3} | trainer.epochs=null | trainer.max_time=9 → trainer.lookahead.power: | the run's length
trainer.epochs=many → trainer.epochs: | expected a number or null | received 'many'
data.validation=5 → data.validation: | expected a mapping | received 5
run_dir=5 → run_dir:
trainer.execution=fp32 → trainer.execution: | fp32
data.batch_size=5000 → data.batch_size: | at most the 1257 training images | received 5000
data.validation.count=1437 → data.validation.count: | fewer than the 1437 | received 1437
data.batch_size=64 | trainer.accumulate=100 → trainer.accumulate: | at most data.batch_size=64 | received 100
trainer.ema=1.0 → trainer.ema: | expected a number in [0, 1) | received 1.0
trainer.execution.precision=fp8 → trainer.execution.precision: | fp32, tf32, bf16, fp16, auto | 'fp8'
trainer.deterministic=maybe → trainer.deterministic: | true, false or auto | 'maybe'
name=../evil → name: | 1 to 64 letters | '../evil'
model=resnet18 | model.blocks.network.weights=IMAGENET1K_V3 → network.weights: | did you mean 'IMAGENET1K_V1'? | DEFAULT
model=alexnet → model.blocks.network: | AlexNet does not fit its input 1×8×8 | too small
model.init_from.strict=false → model.init_from.path: | it is missing
model.init_from=x | model.init_from.sha256=abc → model.init_from.sha256: | 64 hexadecimal digits
model.init_from={path: x, map: {a: 3}} → model.init_from.map: | names or null | 'a': 3
model.freeze=[conv1] | +optimizer.groups={conv1*: {lr: 0.1}} → optimizer.groups.conv1*: | no trained parameter's name
+model.blocks.p={type: max_pool, kernel_size: 8, after: pool2} → model.blocks.p: | 32×2×2 | 32×8×8
model.blocks.flatten=null → model.blocks.output: | 64×2×2 | 'flatten' (256 features)
+model.blocks.c={type: conv, out_channels: 4, kernel_size: 3, after: flatten} → model.blocks.c: | before 'flatten'
model.blocks.conv2.in_channels=3 → model.blocks.conv2: | in_channels=3 | 16 channels | leave in_channels
model.blocks.output.out_features=7 → model.blocks.output: | output is 7 | 10 classes | classes}
model.blocks.output.out_features=clases → model.blocks.output.out_features: | did you mean 'classes'?
model.blocks.conv1.groups=3 → model.blocks.conv1.groups: | 16 cannot be divided into 3 groups
model=none → model.blocks: | expected at least one block
+model.blocks.n={type: batch_norm, after: conv7} → model.blocks.n.after: | did you mean 'conv3'? | conv1
model.blocks.conv2.from=rleu1 → model.blocks.conv2.from: | no layer 'rleu1' | did you mean 'relu1'?
model.blocks.conv2.from=conv3 → model.blocks.conv2.from: | 'conv2' reads 'conv3', which comes after it
model.blocks.pool1=null | model.blocks.conv2.from=pool1 → model.blocks.conv2.from: | 'pool1' is removed (null)
+model.blocks.j={type: add, from: [conv1, pool1], after: pool1} → model.blocks.j: | 16×8×8 and 16×4×4: heights 8 and 4
+model.blocks.b={type: branches, branches: {}, after: conv1} → model.blocks.b.branches: | at least one branch
model.blocks.conv2.out_channels=2*in_chanels → model.blocks.conv2.out_channels: | did you mean 'in_channels'?
model.blocks.conv2.out_channels=in_channels-16 → model.blocks.conv2.out_channels: | received 0 from in_channels-16
model.blocks.conv2.out_channels=in_channels/3 → model.blocks.conv2.out_channels: | 5.33333 for in_channels = 16
+model.blocks.r={type: residual, after: conv2} → model.blocks.r.blocks: | residual needs
+model.blocks.s=softmax → loss: | cross_entropy takes logits | 's' is softmax | ~model.blocks.s
loss=quadratic → loss: | quadratic takes activations | 'output' is linear | sigmoid or softmax
trainer.epochs=null → trainer.epochs: | expected epochs, max_steps or max_time
trainer.epochs=null | trainer.max_time=10 → schedule.total_steps: | one_cycle needs the run's length | trainer.max_steps
trainer.monitor=accuracy/test → trainer.monitor: | accuracy/val, loss/val | 'accuracy/test'
trainer.monitor=null | trainer.patience=3 → trainer.patience: | expected a monitor | monitor=null
schedule.total_steps=0 → schedule.total_steps: | ≥ 1 | received 0
loss.weight=[1,2,3] → loss.weight: | expected 10 numbers, one for each class of the data | received 3
loss.weight=[1,1,1,1,1,1,1,1,1,-1] → loss.weight[9]: | expected a number ≥ 0 | received -1
loss={type: bce, weight: balanced} → loss.weight: | bce has no argument 'weight' | sum_classes
+metrics.f1=f1_score | trainer.monitor=f2/val → trainer.monitor: | did you mean 'f1/val'? | loss/val
trainer.watch_every=5 | trainer.execution.compile=true → trainer.watch_every: | execution.compile=true | compile=false
trainer.watch_every=5 | trainer.execution.cuda_graph=true → trainer.watch_every: | cuda_graph=true | cuda_graph=false
trainer.execution.compile=step → trainer.execution.compile: | true, false or auto | 'step'
trainer.execution.cuda_graph=1 → trainer.execution.cuda_graph: | true or false | received 1
model=row_lstm | trainer.execution.precision=fp16 | device=cpu → trainer.execution.precision: | layers.0 | bf16
data=image_folder → data.root: | the folder of your images, as in data.root=my_images
""")

WITHOUT_GPU = rows("""
device=cuda → device: | needs a usable GPU | device=cpu or device=auto
trainer.execution.precision=tf32 → trainer.execution.precision: | Ampere | cpu
trainer.execution.cuda_graph=true → trainer.execution.cuda_graph: | cpu | auto or false
""")


@pytest.mark.parametrize(("overrides", "fragments"), TRAINING)
def test_training_refuses(in_tmp_path: Path, overrides: list[str], fragments: list[str]) -> None:
    assert_refused(run(train, *overrides), fragments, in_tmp_path)


@pytest.mark.parametrize(("overrides", "fragments"), SWEEPS)
def test_a_grid_is_refused_as_a_whole(in_tmp_path: Path, overrides: list[str], fragments: list[str]) -> None:
    assert_refused(run(train, "-m", FAST, *overrides), fragments, in_tmp_path)


@pytest.mark.parametrize(("overrides", "fragments"), EVALUATION)
def test_evaluation_refuses(in_tmp_path: Path, overrides: list[str], fragments: list[str]) -> None:
    assert_refused(run(evaluate, *overrides), fragments, in_tmp_path)


@cache
def composed(*choices: str) -> DictConfig:
    return cnnlab.compose(*choices)


def refusal(*overrides: str) -> str:
    """What `check_config` raises for overrides, which are applied as a job's are."""
    choices = [one for one in overrides if (CONFIGS / one.split("=")[0]).is_dir() and "{" not in one]
    values = allow_constructor_arguments([one for one in overrides if one not in choices])
    config = copy.deepcopy(composed(*choices))
    try:
        apply_overrides(config, OverridesParser.create().parse_overrides(values))
        check_config(resolved(config), Trust())
    except ConfigError as error:
        return str(error)
    pytest.fail("the config was accepted")


@pytest.mark.parametrize(("overrides", "fragments"), CHECKED)
def test_a_config_is_refused(in_tmp_path: Path, overrides: list[str], fragments: list[str]) -> None:
    message = refusal(*overrides)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("overrides", "fragments"), WITHOUT_GPU)
def test_what_needs_a_gpu_is_refused_without(in_tmp_path: Path, overrides: list[str], fragments: list[str]) -> None:
    assert_refused(run(train, *overrides), fragments, in_tmp_path)


def folders(root: Path) -> None:
    """What is right: two classes, images of 8×8, a test folder."""
    write_folders(root, {"train/cat": 8, "train/dog": 8, "test/cat": 2, "test/dog": 2})


def damaged(content: bytes, place: str = "train/cat/003.png") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        folders(root)
        (root / place).write_bytes(content)

    return make


def with_link(root: Path) -> None:
    folders(root)
    write_folders(root.parent / "secret", {"emu": 2})
    (root / "train" / "emu").symlink_to(root.parent / "secret" / "emu")


def truncated_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(32, 32)).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) * 6 // 10]


POOLED = ["model=none", "+model.blocks.p=global_avg_pool", "+model.blocks.o={type: linear, out_features: classes}"]
OWN_IMAGES = {
    "a truncated jpeg": (damaged(truncated_jpeg()), [], ["1 of 16", "train/cat/003.png: ", "truncated"]),
    "a damaged test image": (damaged(b"", "test/dog/001.png"), [], ["1 of 4", "test/dog/001.png: the file is empty"]),
    "an image of 100 megapixels": (damaged(png_header(10_000, 10_000)), [], ["cat/003.png: ", "at most 64 megapixels"]),
    "a link out of the folder": (with_link, [], ["data.root: ", "train/emu: the link leads out of "]),
    "a size beyond all bounds": (
        folders,
        [*POOLED, "data.size=100000"],
        ["data.size: expected a whole number from 1 to"],
    ),
    "no test split to monitor": (
        lambda root: write_folders(root, {"cat": 8, "dog": 8}),
        ["data.test_fraction=0", "trainer.monitor_test=true"],
        ["trainer.monitor_test: ", "no test split"],
    ),
}


@pytest.mark.parametrize("case", OWN_IMAGES)
def test_own_images_are_refused_and_nothing_is_left(
    in_tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    make, overrides, fragments = OWN_IMAGES[case]
    root = tmp_path_factory.mktemp("own") / "images"
    make(root)
    own = ("data=image_folder", f"data.root={root}", "data.size=8", "data.batch_size=4", FAST)
    assert_refused(run(train, *own, *overrides), fragments, in_tmp_path)


USER_YAML = {
    "trainer: {epochz: 3}": ["trainer.epochz: ", "did you mean 'epochs'?"],
    "trainr: {epochs: 3}": ["trainr: ", "did you mean 'trainer'?"],
    "trainer:\n  epochs: 3\n  epochs: 4": ["mine.yaml", "line 4", "epochs"],
    "trainer:\n  epochs: [3\nname: x": ["mine.yaml", "line 4"],
    'trainer: {epochs: "${nosuch.key}"}': ["trainer.epochs", "nosuch.key"],
}


@pytest.mark.parametrize("text", USER_YAML)
def test_a_mistake_in_the_users_own_yaml_is_reported(
    in_tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    configs = tmp_path_factory.mktemp("configs")
    (configs / "experiment").mkdir()
    (configs / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    assert_refused(run(train, f"--config-dir={configs}", "experiment=mine"), USER_YAML[text], in_tmp_path)


def test_data_that_cannot_be_had_names_the_place_tried_and_leaves_nothing(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_network(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", without_network)
    answer = run(train, "data=mnist", f"data.root={in_tmp_path / 'images'}")
    assert answer.code == 2, answer.err
    assert f"error: data.root: MNIST was not found in {in_tmp_path / 'images' / 'MNIST' / 'raw'}" in answer.err
    assert "CNNLAB_DATA" in answer.err
    assert not list(in_tmp_path.iterdir())


def test_several_mistakes_come_in_one_message(in_tmp_path: Path) -> None:
    mistakes = ("optimizer.lr=-1", "model.blocks.dropout1.p=1.5", "loss.label_smoothing=2", "seed=-1", "device=tpu")
    answer = run(train, *mistakes)
    assert answer.err.startswith("error: 5 mistakes in the config:")
    for mistake in mistakes:
        assert f"\n  {mistake.split('=')[0]}: " in answer.err


@pytest.mark.parametrize("mistake", ["trainer.ema=1.0", "data.batch_size=0", "data.type=cifar", "data.normalize=x"])
def test_a_mistake_is_not_reported_again_by_its_consequences(mistake: str) -> None:
    assert "schedule" not in refusal(mistake)


@pytest.mark.parametrize(
    ("command", "code", "expected"),
    [
        ("train.py data=nope", 2, "error: data: there is no 'nope'"),
        ("evaluate.py rum=x", 2, "error: rum: "),
        ("train.py --help", 0, "Groups and their choices:"),
    ],
)
def test_hydras_own_answers_come_without_slow_imports(tmp_path: Path, command: str, code: int, expected: str) -> None:
    script, *arguments = command.split()
    words = [sys.executable, "-X", "importtime", str(REPOSITORY / script), *arguments]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    imported = re.findall(r"^import time:.*\| +(\S+)$", answer.stderr, re.MULTILINE)
    assert answer.returncode == code
    assert "hydra" in imported
    assert not {"torch", "numpy", "PIL", "sklearn", "matplotlib", "tensorboard", "rich"} & set(imported)
    assert expected in answer.stdout + answer.stderr


SOURCES = rows("""
model.init_from.checkpoint=5 → model.init_from.checkpoint: | one of the steps 3, 6 | received '5'
model=mlp → model.init_from: | hidden1.weight is not there | more. model.init_from.strict=false
model.blocks.conv1.out_channels=4 → conv1.weight is [16, 1, 3, 3] there and [4, 1, 3, 3] here | map={conv1: null}'
""")


@pytest.mark.parametrize(("overrides", "fragments"), SOURCES)
def test_starting_weights_that_do_not_fit_are_refused(
    in_tmp_path: Path, completed_run: Path, overrides: list[str], fragments: list[str]
) -> None:
    assert_refused(run(train, f"model.init_from={completed_run}", *overrides), fragments, in_tmp_path)
