"""Every bad input ends with status 2 and a message that names key and legal values, before anything is written."""

import io
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from commands import run
from image_folders import noise, png_header, write_folders
from PIL import Image

from cnnlab.cli import evaluate, train

REPOSITORY = Path(__file__).parents[1]


def bad(line: str, *fragments: str) -> Any:
    """A case: overrides apart by ` | `, and what the message says."""
    return pytest.param(line.split(" | "), fragments, id=line[:60])


def without_gpu(line: str, *fragments: str) -> Any:
    marks = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    return pytest.param(line.split(" | "), fragments, id=line[:60], marks=marks)


RESIDUAL = (
    "+model.blocks.res={type: residual, after: conv2, blocks: {c: {type: conv, out_channels: 4, kernel_size: 2}}}"
)
FAST = "experiment=debug/fast"  # where an input is accepted that should not be, it shall not take long

TRAINING = [
    # grammar
    bad("model.blocks.x={type: conv", "model.blocks.x"),
    bad("trainer.clip_norm=[1,2", "trainer.clip_norm"),
    bad("+model.blocks.1x=relu", "model.blocks.1x"),
    # options of groups
    bad(
        "data=mnsit",
        "data: ",
        "'mnsit'",
        "did you mean 'mnist'?",
        "digits, expanded_mnist, fashion_mnist, image_folder, kmnist",
    ),
    bad("optimizer=adm", "optimizer: ", "did you mean 'adam'?", "adam, adamw, sgd"),
    bad("loss=cross_entropyy", "loss: ", "did you mean 'cross_entropy'?", "bce, cross_entropy, focal, quadratic"),
    bad("model=cn", "model: ", "did you mean 'cnn'?", "lenet, linear, mlp"),
    bad("observers=loud", "observers: ", "'loud'", "default, quiet"),
    bad("experiment=debug/fastt", "did you mean 'debug/fast'?"),
    bad("model=null", "model: "),
    bad("trainer=null", "trainer: "),
    bad("optimizer=5", "optimizer: ", "5"),
    bad("published=3", "published: ", "figure, value and source", "3"),
    bad(
        "published={figure: accuracy/tset, value: 1, source: x}", "published.figure: ", "METRIC/test", "'accuracy/tset'"
    ),
    bad("published={figure: accuracy/test, value: high, source: x}", "published.value: ", "'high'"),
    bad("published={figure: accuracy/test}", "published.value: ", "published.source: "),
    bad(
        "trainer.watch_every=5 | trainer.execution.compile=step",
        "trainer.watch_every: ",
        "trainer.execution.compile=step",
        "compile=none",
    ),
    # keys
    bad("sede=3", "sede: ", "did you mean 'seed'?"),
    bad("+trainr.epochs=3", "trainr: ", "did you mean 'trainer'?"),
    bad("trainer.ephocs=3", "trainer.ephocs: ", "did you mean 'epochs'?", "max_steps"),
    bad("data.batchsize=3", "data.batchsize: ", "did you mean 'batch_size'?"),
    bad("~data.validation.count", "trainer.monitor: ", "accuracy/val needs a validation split"),
    bad("data.validation.cuont=3", "data.validation.cuont: ", "did you mean 'count'?", "count and from"),
    bad("model.blokcs.relu1=relu", "model.blokcs: ", "did you mean 'blocks'?"),
    bad("model.blocks.conv9.out_channels=3", "model.blocks.conv9: ", "did you mean 'conv3'?", "norm1"),
    bad("trainer.execution.precison=fp32", "trainer.execution.precison: ", "did you mean 'precision'?"),
    # components and their arguments
    bad("model.blocks.relu1=reluu", "model.blocks.relu1: ", "no block 'reluu'", "did you mean 'relu'?", "max_pool"),
    bad("model.blocks.relu1=5", "model.blocks.relu1: ", "expected a name or a mapping with a 'type'", "received 5"),
    bad("model.blocks.relu1={inplace: true}", "model.blocks.relu1: ", "with a 'type'", "'inplace': True"),
    bad("model.blocks.relu1=no_such_package.Block", "model.blocks.relu1: ", "cannot import 'no_such_package.Block'"),
    bad("model.blocks.relu1=os.system", "model.blocks.relu1: ", "os.system is no block", "Module"),
    bad("model.blocks.conv1.out_chanels=3", "model.blocks.conv1.out_chanels: ", "did you mean 'out_channels'?"),
    bad("model.blocks.conv1=conv", "model.blocks.conv1.out_channels: ", "model.blocks.conv1.kernel_size: "),
    bad("optimizer.momentun=0.9", "optimizer.momentun: ", "did you mean 'momentum'?", "nesterov"),
    bad("optimizer.params=3 | " + FAST, "params"),
    bad("optimizer.type=adm", "optimizer: ", "did you mean 'adam'?", "torch.optim.Name"),
    bad("optimizer.type=torch.nn.ReLU", "optimizer: ", "torch.nn.ReLU is no optimizer", "Optimizer"),
    bad(
        "optimizer={type: torch.optim.LBFGS, lr: 1}",
        "optimizer.type: ",
        "LBFGS evaluates the loss several times",
    ),
    bad(
        "~optimizer.momentum | ~optimizer.nesterov | ~optimizer.weight_decay | optimizer.type=torch.optim.LBFGS",
        "optimizer.type: ",
        "LBFGS evaluates the loss several times",
        "sgd, adam or adamw",
    ),
    bad(
        "schedule=constant | schedule.type=torch.optim.lr_scheduler.ReduceLROnPlateau",
        "schedule.type: ",
        "ReduceLROnPlateau waits for a metric",
        "cosine or step",
    ),
    bad("schedule.type=cosin", "schedule: ", "did you mean 'cosine'?"),
    bad("model.init=hee", "model.init: ", "did you mean 'he'?", "xavier"),
    bad("data.type=cifar", "data: ", "no data source 'cifar'", "digits"),
    bad("data.root=elsewhere", "data.root: ", "digits has no argument 'root'"),
    bad("+observers.extra=tensorbord", "observers.extra: ", "did you mean 'tensorboard'?", "console, json_lines"),
    bad("observers.console.intervall=3", "observers.console.intervall: ", "did you mean 'interval'?"),
    bad(f"+observers.extra=pathlib.Path | {FAST}", "observers.extra: ", "Path"),
    # augmentation
    bad("+data.augment.s=shfit", "data.augment.s: ", "no augmentation 'shfit'", "did you mean 'shift'?", "cutmix"),
    bad("+data.augment.s={type: shift, pixel: 2}", "data.augment.s.pixel: ", "did you mean 'pixels'?"),
    bad("+data.augment.s={type: shift, pixels: 8}", "data.augment.s.pixels: ", "fewer than the 8 pixels", "received 8"),
    bad("+data.augment.c={type: cutout, size: 9}", "data.augment.c.size: ", "a side of the image, 8", "received 9"),
    bad("+data.augment.c=cutout", "data.augment.c.size: ", "cutout needs it"),
    bad("+data.augment.f={type: horizontal_flip, p: 2}", "data.augment.f.p: ", "[0, 1]", "received 2"),
    bad("+data.augment.m={type: mixup, alpha: 0}", "data.augment.m.alpha: ", "> 0", "received 0"),
    bad("+data.augment.a={type: affine, scale: [2, 1]}", "data.augment.a.scale: ", "in this order", "[2, 1]"),
    bad("data.augment=shift", "data.augment: ", "expected a mapping", "'shift'"),
    bad("data.augment.flip=horizontal_flip", "data.augment.flip: ", "'+data.augment.flip=…' adds one"),
    # types
    bad("optimizer.lr=fast", "optimizer.lr: ", "expected a number", "received 'fast'"),
    bad("optimizer.lr=[0.1,0.2]", "optimizer.lr: ", "expected a number", "0.1, 0.2"),
    bad("optimizer.lr=null", "optimizer.lr: ", "expected a number", "received None"),
    bad("trainer.epochs=true", "trainer.epochs: ", "expected a whole number or null", "received True"),
    bad("trainer.epochs=2.5", "trainer.epochs: ", "expected a whole number or null", "received 2.5"),
    bad("data.batch_size=big", "data.batch_size: ", "expected a whole number", "received 'big'"),
    bad("data.validation=5", "data.validation: ", "expected a mapping", "received 5"),
    bad("model.blocks.conv1.bias=3", "model.blocks.conv1.bias: ", "expected true or false", "received 3"),
    bad("model.blocks.conv1.kernel_size=[3,3,3]", "model.blocks.conv1.kernel_size: ", "a list of 2", "[3, 3, 3]"),
    bad("model.blocks.dropout1.p=true", "model.blocks.dropout1.p: ", "expected a number", "received True"),
    bad("seed=abc", "seed: ", "expected a whole number ≥ 0", "'abc'"),
    bad("model.blocks=[relu]", "expected a mapping"),
    bad("run_dir=5", "run_dir: "),
    bad("trainer.execution=fp32", "trainer.execution: ", "fp32"),
    bad(f"trust=3 | {FAST}", "trust: "),
    # ranges
    bad("optimizer.lr=-1", "optimizer.lr: ", "expected a number ≥ 0", "received -1"),
    bad("optimizer.lr=nan", "optimizer.lr: ", "expected a finite number", "received nan"),
    bad(f"optimizer.momentum=2 | {FAST}", "optimizer.momentum: ", "2"),
    bad("optimizer=adam | optimizer.betas=[0.9,1.5]", "optimizer.betas[1]: ", "[0, 1)", "1.5"),
    bad("optimizer.momentum=0", "optimizer.nesterov: ", "expected momentum > 0"),
    bad(
        "+optimizer.groups={conv9*: {lr: 0.1}}",
        "optimizer.groups.conv9*: ",
        "no trained parameter's name",
        "conv1.weight",
    ),
    bad("model.blocks.dropout1.p=1.5", "model.blocks.dropout1.p: ", "expected a number in [0, 1)", "received 1.5"),
    bad("model.blocks.conv1.kernel_size=0", "model.blocks.conv1.kernel_size: ", "≥ 1", "received 0"),
    bad("model.blocks.conv1.padding=full", "model.blocks.conv1.padding: ", "same, valid", "'full'"),
    bad("data.batch_size=0", "data.batch_size: ", "expected a whole number ≥ 1", "received 0"),
    bad("data.batch_size=5000", "data.batch_size: ", "at most the 1257 training images", "received 5000"),
    bad("data.limit=2000", "data.limit: ", "at most 1257 (1437 training images − 180 for validation)", "2000"),
    bad("data.validation.count=1437", "data.validation.count: ", "fewer than the 1437", "received 1437"),
    bad("data.validation.from=start", "data.validation.from: ", "random, end", "'start'"),
    bad("data.validation.count=1.5", "data.validation.count: ", "a share of the images in (0, 1)", "received 1.5"),
    bad("data.sampling=balance", "data.sampling: ", "shuffle, balanced", "did you mean 'balanced'?"),
    bad("data.workers=-1", "data.workers: ", "expected auto or a whole number from 0 to", "received -1"),
    bad("data.workers=999", "data.workers: ", "the processor cores here", "received 999"),
    bad("data.workers=many", "data.workers: ", "expected auto or a whole number", "received 'many'"),
    bad("data.workers=1.5", "data.workers: ", "expected a whole number or a word", "received 1.5"),
    bad("data.workers=true", "data.workers: ", "received True"),
    bad("data.memory_share=0", "data.memory_share: ", "expected a number in (0, 1]", "received 0"),
    bad("data.memory_share=2", "data.memory_share: ", "expected a number in (0, 1]", "received 2"),
    bad("data.memory_share=nan", "data.memory_share: ", "expected a", "received nan"),
    bad("data.memory_share=half", "data.memory_share: ", "expected a number", "received 'half'"),
    bad("data.normalize=standardise", "data.normalize: ", "did you mean 'standardize'?", "unit, none"),
    bad(
        "data.batch_size=64 | trainer.accumulate=100",
        "trainer.accumulate: ",
        "at most data.batch_size=64",
        "received 100",
    ),
    bad("trainer.ema=1.0", "trainer.ema: ", "expected a number in [0, 1)", "received 1.0"),
    bad("trainer.clip_norm=0", "trainer.clip_norm: ", "expected a number > 0", "received 0"),
    bad("trainer.profile=maybe", "trainer.profile: ", "expected true or false", "'maybe'"),
    bad("trainer.epochs=0", "trainer.epochs: ", "≥ 1", "received 0"),
    bad("trainer.execution.precision=fp8", "trainer.execution.precision: ", "fp32, tf32, bf16, fp16, auto", "'fp8'"),
    bad("trainer.execution.layout=chanels_last", "trainer.execution.layout: ", "did you mean 'channels_last'?"),
    bad("trainer.execution.compile=maybe", "trainer.execution.compile: ", "none, network, step, auto", "'maybe'"),
    bad("trainer.execution.compile=off", "trainer.execution.compile: ", "none, network, step, auto", "'off'"),
    bad("trainer.execution.cuda_graph=maybe", "trainer.execution.cuda_graph: ", "true, false or auto", "'maybe'"),
    bad("trainer.execution.cuda_graph=1", "trainer.execution.cuda_graph: ", "true or false", "received 1"),
    without_gpu("trainer.execution.cuda_graph=true", "trainer.execution.cuda_graph: ", "cpu", "auto or false"),
    bad(
        "trainer.execution.cuda_graph=true | trainer.execution.compile=network",
        "trainer.execution.cuda_graph: ",
        "compile=network",
    ),
    bad(
        "trainer.execution.cuda_graph=true | optimizer.type=torch.optim.RMSprop | ~optimizer.nesterov",
        "trainer.execution.cuda_graph: ",
        "sgd, adam and adamw",
        "RMSprop",
    ),
    bad(
        "trainer.watch_every=5 | trainer.execution.cuda_graph=true",
        "trainer.watch_every: ",
        "trainer.execution.cuda_graph=true",
        "cuda_graph=false",
    ),
    bad("trainer.execution.trace=maybe", "trainer.execution.trace: ", "true, false or auto", "'maybe'"),
    bad("trainer.execution.trase=true", "trainer.execution.trase: ", "did you mean 'trace'?"),
    *(
        bad(f"trainer.execution.trace=true | trainer.execution.{other}", "trainer.execution.trace: ", "auto or false")
        for other in ("precision=fp16", "compile=step", "cuda_graph=true")
    ),
    without_gpu("trainer.execution.precision=tf32", "trainer.execution.precision: ", "Ampere", "cpu"),
    bad(
        "trainer.execution.compile=step | optimizer.type=torch.optim.RMSprop | ~optimizer.nesterov",
        "trainer.execution.compile: ",
        "sgd, adam and adamw alone",
        "torch.optim.RMSprop",
        "expected network or none",
    ),
    bad(
        "trainer.execution.compile=step | schedule={type: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1}",
        "trainer.execution.compile: ",
        "changes the momentum",
    ),
    bad("trainer.execution.compile=step | trainer.execution.precision=fp16", "trainer.execution.compile: ", "bf16"),
    bad("trainer.deterministic=maybe", "trainer.deterministic: ", "true, false or auto", "'maybe'"),
    bad("loss.label_smoothing=2", "loss.label_smoothing: ", "expected a number in [0, 1]", "received 2"),
    bad("schedule.pct_start=2", "schedule.pct_start: ", "[0, 1]", "received 2"),
    bad("seed=-1", "seed: ", "expected a whole number ≥ 0", "received -1"),
    # networks that exist, weights to begin with, frozen layers
    bad("model=resnet81", "model: ", "'resnet81'", "did you mean 'resnet18'?", "cnn, lenet", "torchvision's 80"),
    bad("model=resnet18 | model.blocks.network.name=resnet81", "model.blocks.network.name: ", "'resnet18'"),
    bad(
        "model=resnet18 | model.blocks.network.weights=IMAGENET1K_V3",
        "model.blocks.network.weights: ",
        "did you mean 'IMAGENET1K_V1'?",
        "DEFAULT",
    ),
    bad("model=resnet18 | model.blocks.network.weigths=DEFAULT", "network.weigths: ", "did you mean 'weights'?"),
    bad("model=alexnet", "model.blocks.network: ", "AlexNet does not fit its input 1×8×8", "too small"),
    bad(
        "+model.blocks.pad={type: zero_pad_shortcut, out_channels: 8, after: conv2}",
        "model.blocks.pad.out_channels: ",
        "at least the 32 channels",
    ),
    bad("model.init_from=nowhere", "model.init_from: ", "a run's directory or a .safetensors file", "nothing there"),
    bad("model.init_from=.", "model.init_from: ", "a folder without checkpoints"),
    bad(f"model.init_from={REPOSITORY}/README.md", "model.init_from: ", "README.md': another file"),
    bad("model.init_from=3", "model.init_from: ", "expected a path or a mapping with one, received 3"),
    bad("model.init_from={checkpoint: best}", "model.init_from.path: ", "it is missing"),
    bad("model.init_from.strict=false", "model.init_from.path: ", "it is missing"),
    bad("model.init_from=x | model.init_from.stritc=false", "model.init_from.stritc: ", "did you mean 'strict'?"),
    bad("model.init_from=x | model.init_from.sha256=abc", "model.init_from.sha256: ", "64 hexadecimal digits"),
    bad("model.init_from={path: x, map: {a: 3}}", "model.init_from.map: ", "names or null", "'a': 3"),
    bad("model.init_form=x", "model.init_form: ", "did you mean 'init_from'?", "freeze, blocks"),
    bad("model.freeze=[conv9]", "model.freeze: ", "'conv9' matches no parameter", "did you mean 'conv3'?", "norm1"),
    bad("model.freeze=['*']", "model.freeze: ", "matches every parameter: there is nothing to train"),
    bad("model.freeze=conv1", "model.freeze: ", "expected a list of name patterns", "received 'conv1'"),
    bad(
        "model.freeze=[conv1] | +optimizer.groups={conv1*: {lr: 0.1}}",
        "optimizer.groups.conv1*: ",
        "no trained parameter's name",
    ),
    # layers that do not fit
    bad("model=lenet", "model.blocks.conv2: ", "kernel 5×5", "20×4×4", "(4 + 0 − 5) / 1 + 1 < 1", "20×5×5"),
    bad("+model.blocks.p={type: max_pool, kernel_size: 8, after: pool2}", "model.blocks.p: ", "32×2×2", "32×8×8"),
    bad("model.blocks.flatten=null", "model.blocks.output: ", "64×2×2", "'flatten' (256 features)"),
    bad(
        "+model.blocks.c={type: conv, out_channels: 4, kernel_size: 3, after: flatten}",
        "model.blocks.c: ",
        "expected an image",
        "256 features",
        "before 'flatten'",
    ),
    bad(
        "model.blocks.conv2.in_channels=3", "model.blocks.conv2: ", "in_channels=3", "16 channels", "leave in_channels"
    ),
    bad("model.blocks.output.in_features=3", "model.blocks.output: ", "in_features=3", "256 features"),
    bad("model.blocks.output.out_features=7", "model.blocks.output: ", "output is 7", "10 classes", "classes}"),
    bad("model.blocks.output.out_features=clases", "model.blocks.output.out_features: ", "did you mean 'classes'?"),
    bad("model.blocks.conv1.groups=3", "model.blocks.conv1.groups: ", "16 cannot be divided into 3 groups"),
    bad("model=none", "model.blocks: ", "expected at least one block"),
    bad("~model.blocks.dropout", "model.blocks.dropout: there is no such key to remove"),
    bad("+model.blocks.n={type: batch_norm, after: conv7}", "model.blocks.n.after: ", "did you mean 'conv3'?", "conv1"),
    bad(RESIDUAL, "model.blocks.res: ", "32×4×4 to 4×3×3", "'projection'"),
    bad("+model.blocks.res={type: residual, after: conv2}", "model.blocks.res.blocks: ", "residual needs"),
    # what does not go together
    bad("+model.blocks.s=softmax", "loss: ", "cross_entropy takes logits", "'s' is softmax", "~model.blocks.s"),
    bad("experiment=perceptron | data.gate=nandd", "data.gate: ", "'0110'", "'nandd'", "did you mean 'nand'?"),
    bad("experiment=perceptron | loss=cross_entropy", "loss: ", "takes logits", "'answer' is two_classes"),
    bad(
        "model.blocks.conv1.init={type: given, weight: [[1, 2], [3, 4]]}",
        "model.blocks.conv1.init.weight: ",
        "shape [16, 1, 3, 3]",
        "[2, 2]",
    ),
    bad("data=shapes | data.thickness=[3,1]", "data.thickness[1]: ", "≥ 3", "received 1"),
    bad("loss=quadratic", "loss: ", "quadratic takes activations", "'output' is linear", "sigmoid or softmax"),
    bad("trainer.epochs=null", "trainer.epochs: ", "expected epochs, max_steps or max_time"),
    bad(
        "trainer.epochs=null | trainer.max_time=10",
        "schedule.total_steps: ",
        "one_cycle needs the run's length",
        "trainer.epochs, trainer.max_steps or schedule.total_steps",
    ),
    bad("trainer.monitor=accuracy/test", "trainer.monitor: ", "accuracy/val, loss/val", "'accuracy/test'"),
    bad("data.validation.count=0", "trainer.monitor: ", "needs a validation split", "data.validation.count=0"),
    bad("trainer.monitor=null | trainer.patience=3", "trainer.patience: ", "expected a monitor", "monitor=null"),
    bad("schedule.total_steps=0", "schedule.total_steps: ", "≥ 1", "received 0"),
    # losses
    bad("loss.weight=[1,2,3]", "loss.weight: ", "expected 10 numbers, one for each class of the data", "received 3"),
    bad("loss.weight=[1,1,1,1,1,1,1,1,1,-1]", "loss.weight[9]: ", "expected a number ≥ 0", "received -1"),
    bad("loss.weight=ballanced", "loss.weight: ", "expected balanced or a number for each class", "'ballanced'"),
    bad("loss.weight=3", "loss.weight: ", "expected a list (each item a number) or a word or null", "received 3"),
    bad("loss=focal | loss.gamma=-1", "loss.gamma: ", "expected a number ≥ 0", "received -1"),
    bad("loss=bce | loss.weight=balanced", "loss.weight: ", "bce has no argument 'weight'", "sum_classes"),
    bad("loss=bce | +model.blocks.s=sigmoid", "loss: ", "bce takes logits", "'s' is sigmoid"),
    # metrics
    bad("metrics.f1=f1_score", "metrics.f1: ", "'+metrics.f1=…' adds one"),
    bad("+metrics.f1=f1_scor", "metrics.f1: ", "no metric 'f1_scor'", "did you mean 'f1_score'?", "cohen_kappa"),
    bad("+metrics.f1={type: f1_score, averge: macro}", "metrics.f1.averge: ", "did you mean 'average'?", "top_k"),
    bad("+metrics.roc=roc", "metrics.roc: ", "gives a curve or a table", "such as f1_score"),
    bad("+metrics.step=f1_score", "metrics.step: ", "other than loss, accuracy, step", "received 'step'"),
    bad("metrics=f1_score", "metrics: ", "expected a mapping", "'f1_score'"),
    bad("trainer.monitor=f1/val", "trainer.monitor: ", "expected one of accuracy/val, loss/val or null", "'f1/val'"),
    bad("+metrics.f1=f1_score | trainer.monitor=f2/val", "trainer.monitor: ", "did you mean 'f1/val'?", "loss/val"),
    # places and devices
    bad("name=../evil", "name: ", "1 to 64 letters", "'../evil'"),
    bad("name=..", "name: ", "1 to 64 letters", "'..'"),
    without_gpu("device=cuda", "device: ", "no usable GPU", "device=cpu or device=auto"),
    bad("data=image_folder", "data.root: ", "the folder of your images, as in data.root=my_images"),
    bad("data=image_folder | data.root=nowhere", "data.root: ", "/nowhere does not exist"),
    bad("device=tpu", "device: ", "expected auto, cpu or cuda", "'tpu'"),
    bad("run_dir=.", "run_dir: ", "exists", "resume=."),
    bad("resume=nowhere", "resume: ", "config.yaml", "'nowhere'", "does not exist"),
]

SWEEPS = [
    bad("seed=range(3,3)", "seed: ", "expected at least one value", "received range(3,3)"),
    bad("seed=choice()", "seed=choice(): ", "empty choice is not legal"),
    bad("model=glob(z*)", "model: ", "expected at least one value", "received glob(z*)"),
    bad("seed=1,2,1", "seed: ", "expected each value once", "received 1,2,1", "1 comes twice"),
    bad("optimizer.lr=0.1,1e-1", "optimizer.lr: ", "received 0.1,1e-1", "1e-1 is 0.1 again"),
    bad("seed=1,2 | seed=3,4", "seed: ", "expected one axis", "received seed=1,2 and seed=3,4"),
    bad("optimizer.lr=0.1,0.2 | optimizer.lr=0.3", "optimizer.lr: ", "optimizer.lr=0.1,0.2 and optimizer.lr=0.3"),
    bad("optimizer.lr=interval(0.01,0.1)", "optimizer.lr: ", "0.01,0.1 or range(1,4)", "received interval(0.01,0.1)"),
    bad("seed=range(1,9,0)", "seed: ", "received range(1,9,0)", "must not be zero"),
    bad("seed=range(0,200) | data.split_seed=range(0,200)", "seed × data.split_seed: ", "10,000 jobs", "40,000"),
    bad("sede=1,2", "sede: ", "did you mean 'seed'?"),
    bad("trainer.ephocs=1,2", "trainer.ephocs: ", "did you mean 'epochs'?"),
    bad("optimizer.momentun=0.1,0.9", "optimizer.momentun: ", "did you mean 'momentum'?"),
    bad("model=cnn,mpl", "model: ", "there is no 'mpl'", "did you mean 'mlp'?"),
    bad("model=1,2", "model: ", "expected the name of a file", "received 1"),
    bad("optimizer.lr=-1,-2", "no job of the grid can run", "000 optimizer.lr=-1: optimizer.lr: expected a number ≥ 0"),
    bad("seed=1,2 | resume=runs/digits/some", "resume: ", "a grid starts new runs", "resume=RUN"),
    bad("seed=1,2 | run_dir=here", "run_dir: ", "the same for every job", "hydra.sweep.dir=PATH", "run_dir=here"),
    bad("seed=1,2 | hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs: ", "expected a whole number ≥ 1", "received 0"),
    bad("seed=1,2 | hydra.launcher.n_jobs=all", "hydra.launcher.n_jobs: ", "whole number", "received 'all'"),
    bad("seed=1,2 | hydra.launcher.jobs=2", "hydra.launcher.jobs: ", "did you mean 'n_jobs'?"),
    bad("seed=1,2 | hydra/launcher=joblip", "hydra/launcher: ", "there is no 'joblip'", "cnnlab_processes"),
]

EVALUATION = [
    bad("device=cpu", "run: ", "expected a run's directory", "received none"),
    bad("run=nowhere", "run: ", "config.yaml", "'nowhere'", "does not exist"),
    bad("run=nowhere | split=foo", "split: ", "train, val, test", "'foo'"),
    bad("run=nowhere | layers={a: 1}", "layers: expected a list, received {a: 1}"),
    bad("run=nowhere | layers=[conv1,[conv2]]", "layers: ", "a list of layers' names", "['conv1', ['conv2']]"),
    bad("run=nowhere | layers=null", "layers: ", "such as [conv1, conv2]", "received None"),
    bad("run=nowhere | layers=conv1 | index=first", "index: ", "a whole number ≥ 0", "received 'first'"),
    bad("run=nowhere | layers=conv1 | index=-1", "index: ", "a whole number ≥ 0", "received -1"),
    bad("run=nowhere | layers=conv1 | index=1.5", "index: ", "a whole number ≥ 0", "received 1.5"),
    bad("run=nowhere | index=3", "index: ", "layers=[…]", "received 3"),
    bad("run=nowhere | layers=conv1 | images=there", "layers: ", "without images", "received images=there"),
    bad("run=nowhere | tta=flipp", "tta: ", "none, flip, shift, flip_shift", "'flipp'", "did you mean 'flip'?"),
    bad("run=nowhere | topk=3", "topk: ", "did you mean 'top_k'?", "tta"),
    bad("run=nowhere | checkpiont=best", "checkpiont: ", "did you mean 'checkpoint'?", "split"),
]


@pytest.mark.parametrize(("overrides", "fragments"), TRAINING)
def test_training_refuses(in_tmp_path: Path, overrides: list[str], fragments: tuple[str, ...]) -> None:
    answer = run(train, *overrides)
    assert answer.code == 2, answer.err
    assert [fragment for fragment in fragments if fragment not in answer.err] == [], answer.err
    assert answer.err.startswith("error: ")
    assert not list(in_tmp_path.iterdir())


@pytest.mark.parametrize(("overrides", "fragments"), SWEEPS)
def test_a_grid_is_refused_as_a_whole(in_tmp_path: Path, overrides: list[str], fragments: tuple[str, ...]) -> None:
    answer = run(train, "-m", FAST, *overrides)
    assert answer.code == 2, answer.err
    assert [fragment for fragment in fragments if fragment not in answer.err] == [], answer.err
    assert answer.err.startswith("error: ")
    assert not list(in_tmp_path.iterdir())


@pytest.mark.parametrize(("overrides", "fragments"), EVALUATION)
def test_evaluation_refuses(in_tmp_path: Path, overrides: list[str], fragments: tuple[str, ...]) -> None:
    answer = run(evaluate, *overrides)
    assert answer.code == 2, answer.err
    assert [fragment for fragment in fragments if fragment not in answer.err] == [], answer.err
    assert answer.err.startswith("error: ")
    assert not list(in_tmp_path.iterdir())


def folders(root: Path) -> None:
    """What is right: two classes, images of 8×8, a test folder."""
    write_folders(root, {"train/cat": 8, "train/dog": 8, "test/cat": 2, "test/dog": 2})


def damaged(content: bytes, place: str = "train/cat/003.png") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        folders(root)
        (root / place).write_bytes(content)

    return make


def with_folders(sizes: Mapping[str, int]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        folders(root)
        write_folders(root, sizes)

    return make


def with_link(root: Path) -> None:
    folders(root)
    write_folders(root.parent / "secret", {"emu": 2})
    (root / "train" / "emu").symlink_to(root.parent / "secret" / "emu")


def jpeg(keep: float) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(32, 32)).save(buffer, "JPEG")
    return buffer.getvalue()[: int(len(buffer.getvalue()) * keep)]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'
OWN_IMAGES = {
    "a corrupt image": (damaged(jpeg(1)[:20] + b"x" * 200), [], ["1 of 16", "train/cat/003.png: "]),
    "a truncated jpeg": (damaged(jpeg(0.6)), [], ["train/cat/003.png: ", "cannot be decoded", "truncated"]),
    "an empty file": (damaged(b""), [], ["train/cat/003.png: the file is empty"]),
    "a damaged test image": (damaged(jpeg(0.6), "test/dog/001.png"), [], ["1 of 4", "test/dog/001.png: "]),
    "an svg named png": (damaged(SVG), [], ["train/cat/003.png: ", "no image of a kind that is read", "JPEG, PNG"]),
    "an image of 100 megapixels": (
        damaged(png_header(10_000, 10_000)),
        [],
        ["train/cat/003.png: ", "at most 64 megapixels", "10000×10000, 100.0 megapixels"],
    ),
    "an empty class folder": (with_folders({"train/emu": 0}), [], ["data.root: ", "train/emu has no image"]),
    "one class only": (lambda root: write_folders(root, {"train/cat": 4}), [], ["two or more", "found cat"]),
    "validation with other classes": (
        with_folders({"val/cat": 1, "val/dgo": 1}),
        [],
        ["data.root: ", "/val; it lacks dog and has beside them dgo"],
    ),
    "a link out of the folder": (with_link, [], ["data.root: ", "train/emu: the link leads out of "]),
    "a size of 0": (folders, ["data.size=0"], ["data.size: ", "≥ 1", "received 0"]),
    "a size of three": (folders, ["data.size=[8,8,8]"], ["data.size: ", "a list of 2", "[8, 8, 8]"]),
    "a size beyond all disks": (
        folders,
        [
            "model=none",
            "+model.blocks.pool=global_avg_pool",
            "+model.blocks.output={type: linear, out_features: classes}",
            "data.size=100000",
        ],
        ["CNNLAB_CACHE: the decoded images take 480 GB (480,000,004,096 bytes)", "a smaller data.size"],
    ),
    "two channels": (folders, ["data.channels=2"], ["data.channels: ", "expected one of 1, 3, received 2"]),
    "an unknown way to resize": (folders, ["data.resize=crob"], ["data.resize: ", "did you mean 'crop'?", "squash"]),
    "a share above 1": (folders, ["data.test_share=1.5"], ["data.test_share: ", "in [0, 1)", "received 1.5"]),
    "a validation share that leaves too little": (
        folders,
        ["data.validation.count=0.99"],
        ["data.validation.count: ", "fewer than the 16 training images", "received 0.99"],
    ),
    "measuring a test split that is not there": (
        lambda root: write_folders(root, {"cat": 8, "dog": 8}),
        ["data.test_share=0", "trainer.monitor_test=true"],
        ["trainer.monitor_test: ", "no test split"],
    ),
    "no validation for the monitor": (
        folders,
        ["data.validation.count=0"],
        ["trainer.monitor: ", "needs a validation split"],
    ),
}


@pytest.mark.parametrize("case", OWN_IMAGES)
def test_own_images_are_refused_and_nothing_is_left(
    in_tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    make, overrides, fragments = OWN_IMAGES[case]
    root = tmp_path_factory.mktemp("own") / "images"
    make(root)
    answer = run(train, "data=image_folder", f"data.root={root}", "data.size=8", "data.batch_size=4", FAST, *overrides)
    assert answer.code == 2, answer.err
    assert [fragment for fragment in fragments if fragment not in answer.err] == [], answer.err
    assert answer.err.startswith("error: ")
    assert not list(in_tmp_path.iterdir())


USER_YAML = [
    pytest.param("trainer: {epochz: 3}", ("trainer.epochz: ", "did you mean 'epochs'?"), id="misspelt key"),
    pytest.param("optimizer: {momentun: 0.3}", ("optimizer.momentun: ", "did you mean 'momentum'?"), id="argument"),
    pytest.param("trainr: {epochs: 3}", ("trainr: ", "did you mean 'trainer'?"), id="misspelt section"),
    pytest.param(
        "trainer:\n  epochs: 3\n  epochs: 4",
        ("mine.yaml", "line 4", "epochs"),
        id="duplicate key",
    ),
    pytest.param(
        "trainer:\n  epochs: [3\nname: x",
        ("mine.yaml", "line 4"),
        id="malformed",
    ),
    pytest.param(
        'trainer: {epochs: "${nosuch.key}"}',
        ("trainer.epochs", "nosuch.key"),
        id="interpolation",
    ),
]


@pytest.mark.parametrize(("text", "fragments"), USER_YAML)
def test_a_mistake_in_the_users_own_yaml_is_told(
    in_tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, text: str, fragments: tuple[str, ...]
) -> None:
    configs = tmp_path_factory.mktemp("configs")
    (configs / "experiment").mkdir()
    (configs / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    answer = run(train, f"--config-dir={configs}", "experiment=mine")
    assert answer.code == 2, answer.err
    assert [fragment for fragment in fragments if fragment not in answer.err] == [], answer.err
    assert answer.err.startswith("error: ")
    assert not list(in_tmp_path.iterdir())


def test_data_that_cannot_be_had_names_the_place_tried_and_leaves_nothing(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    answer = run(train, "data=mnist", f"data.root={in_tmp_path / 'images'}")
    assert answer.code == 2, answer.err
    assert f"data.root: MNIST was not found in {in_tmp_path / 'images' / 'MNIST' / 'raw'}" in answer.err
    assert "CNNLAB_DATA" in answer.err
    assert "Traceback" not in answer.err
    assert not list(in_tmp_path.iterdir())


def test_several_mistakes_come_in_one_message(in_tmp_path: Path) -> None:
    mistakes = ("optimizer.lr=-1", "model.blocks.dropout1.p=1.5", "loss.label_smoothing=2", "seed=-1", "device=tpu")
    answer = run(train, *mistakes)
    assert answer.err.startswith("error: 5 mistakes in the config:")
    for mistake in mistakes:
        assert f"\n  {mistake.split('=')[0]}: " in answer.err


@pytest.mark.parametrize("mistake", ["trainer.ema=1.0", "data.batch_size=0", "data.type=cifar", "data.normalize=x"])
def test_a_mistake_is_not_told_twice_by_its_consequences(in_tmp_path: Path, mistake: str) -> None:
    answer = run(train, mistake)
    assert "schedule" not in answer.err


def test_an_evaluation_offers_its_own_keys_only(in_tmp_path: Path) -> None:
    assert "optimizer" not in run(evaluate, "rum=x").err


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("train.py data=nope", 2, "error: data: there is no 'nope'"),
        ("train.py trainer.epoch=3", 2, "error: trainer.epoch: "),
        ("train.py trainer.epochs=[3", 2, "error: "),
        ("evaluate.py rum=x", 2, "error: rum: "),
        ("train.py --help", 0, "Groups and their choices:"),
        ("train.py --cfg job", 0, "trainer:"),
    ],
)
def test_what_hydra_can_answer_alone_is_answered_without_torch(
    tmp_path: Path, command: str, code: int, told: str
) -> None:
    script, *arguments = command.split(maxsplit=1)
    words = [sys.executable, "-X", "importtime", str(REPOSITORY / script), *" ".join(arguments).split()]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    imported = re.findall(r"^import time:.*\| +(\S+)$", answer.stderr, re.MULTILINE)
    assert answer.returncode == code
    assert "hydra" in imported
    assert not {"torch", "torchvision", "sklearn", "matplotlib", "tensorboard"} & set(imported)
    assert told in answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to begin others from."""
    path = tmp_path_factory.mktemp("source") / "run"
    assert run(train, FAST, f"run_dir={path}").code == 0
    return path


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        bad("model.init_from.checkpoint=5", "model.init_from.checkpoint: ", "one of the steps 3, 6", "received '5'"),
        bad("model=mlp", "model.init_from: ", "hidden1.weight is not there", "more. model.init_from.strict=false"),
        bad(f"model.init_from.sha256={'0' * 64}", "model.init_from.sha256: ", "model.safetensors has ", "expected 000"),
        bad(
            "model.init_from.map={ouput: null}", "model.init_from.map: ", "did you mean 'output'?", "there is "
        ),
        bad(
            "model.blocks.conv1.out_channels=4 | model.blocks.conv2.out_channels=4",
            "conv1.weight is [16, 1, 3, 3] there and [4, 1, 3, 3] here",
            "'model.init_from.map={conv1: null}'",
        ),
        bad("model=linear | model.init_from.strict=false | ~model.blocks.output | +model.blocks.out={type: linear, "
            "out_features: classes}", "model.init_from: nothing in ", "fits"),
    ],
)  # fmt: skip
def test_a_source_of_weights_that_does_not_fit_is_refused(
    in_tmp_path: Path, source: Path, overrides: list[str], fragments: tuple[str, ...]
) -> None:
    answer = run(train, f"model.init_from={source}", *overrides)
    assert answer.code == 2, answer.err
    assert [fragment for fragment in fragments if fragment not in answer.err] == [], answer.err
    assert answer.err.startswith("error: ")
    assert not list(in_tmp_path.iterdir())


def test_weights_that_cannot_be_downloaded_leave_no_run(
    in_tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    home = tmp_path_factory.mktemp("torch_home")
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    answer = run(train, "model=resnet18", "model.blocks.network.weights=DEFAULT")
    assert answer.code == 2, answer.err
    place = home / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    assert answer.err.startswith("error: model.blocks.network.weights: https://")
    assert f"no network>; expected a network, or the file at {place}" in answer.err
    assert not list(in_tmp_path.iterdir())


def test_weights_of_another_hash_leave_no_run(
    in_tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.mktemp("torch_home")
    monkeypatch.setenv("TORCH_HOME", str(home))
    place = home / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"something else")
    answer = run(train, "model=resnet18", "model.blocks.network.weights=DEFAULT")
    assert answer.code == 2, answer.err
    assert f"{place} is damaged or another file: its SHA-256 is" in answer.err
    assert "expected f37072fd" in answer.err
    assert not list(in_tmp_path.iterdir())
