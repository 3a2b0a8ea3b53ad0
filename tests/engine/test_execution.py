import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from cnnlab.engine.execution import Execution, allow_tf32, make_deterministic
from cnnlab.runtime.errors import ArgumentError

CPU = torch.device("cpu")


@pytest.fixture
def deterministic_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back, whatever the test leaves
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    algorithms, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(algorithms)
    torch.backends.cudnn.benchmark = benchmark
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.mark.parametrize(
    ("make", "argument", "message"),
    [
        (lambda: Execution("fp64"), "precision", "'fp64'"),
        (lambda: Execution(layout="channels_first"), "layout", "'channels_first'"),
        (lambda: Execution(compile="step"), "compile", "'step'"),
        (lambda: Execution(cuda_graph=1.5), "cuda_graph", "1.5"),
        (lambda: Execution("fp16", cuda_graph=True), "cuda_graph", "expected auto or false"),  # its loss is scaled
        (lambda: Execution(cuda_graph=True).check(CPU), "cuda_graph", "the device is cpu: expected auto or false"),
        (lambda: Execution("tf32").check(CPU), "precision", "expected fp32"),
        (lambda: Execution(layout="auto").resolve({"layout": "sideways"}), "layout", "'sideways'"),
    ],
)
def test_an_illegal_value_is_refused_by_its_name(make: Callable[[], Any], argument: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        make()
    assert caught.value.argument == argument


def test_a_cpu_takes_these() -> None:
    for execution in (*map(Execution, ("fp32", "bf16", "fp16")), Execution(cuda_graph="auto")):
        execution.check(CPU)


def test_auto_is_resolved_and_what_is_given_stays() -> None:
    wanted = Execution("auto", "contiguous", "auto")
    assert not wanted.resolved
    chosen = wanted.resolve({"precision": "bf16", "layout": "channels_last", "device": "cpu"})
    assert chosen == Execution("bf16", "contiguous", "auto")
    assert chosen.resolve({"compile": True}).resolved


def test_until_it_is_resolved_auto_is_the_default() -> None:
    wanted = Execution("auto", "auto", "auto")
    assert wanted.memory_format == torch.channels_last
    with wanted.autocast(CPU):
        assert nn.Linear(3, 2)(torch.ones(1, 3)).dtype == torch.float32
    assert not wanted.scaler(CPU).is_enabled()


def test_tf32_is_allowed_and_taken_back() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    allow_tf32(True)
    allowed = torch.backends.cuda.matmul.fp32_precision
    allow_tf32(False)
    assert (before, allowed, torch.backends.cuda.matmul.fp32_precision) == ("none", "tf32", "none")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrix_products_have_the_precision(precision: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2)
    with Execution(precision).autocast(CPU):
        assert layer(torch.ones(1, 3)).dtype == dtype
    assert layer(torch.ones(1, 3)).dtype == torch.float32
    assert Execution(precision).scaler(CPU).is_enabled() is (precision == "fp16")


@pytest.mark.parametrize(
    ("layout", "memory_format"), [("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)]
)
def test_weights_and_images_are_in_the_layout(layout: str, memory_format: torch.memory_format) -> None:
    execution = Execution(layout=layout)
    network = execution.place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)), CPU)
    assert network[0].weight.is_contiguous(memory_format=memory_format)
    x_NCHW = torch.rand(2, 3, 5, 5)
    for given in (x_NCHW, x_NCHW.contiguous(memory_format=torch.channels_last)):
        arranged = execution.arrange(given)
        assert arranged.is_contiguous(memory_format=memory_format)
        assert torch.equal(arranged, x_NCHW)
    x_NF = torch.rand(2, 3).t()
    assert execution.arrange(x_NF) is x_NF  # only images have a layout


@pytest.mark.usefixtures("deterministic_as_before")
@pytest.mark.parametrize("wanted", [True, False])
def test_determinism_is_asked_of_torch(wanted: bool) -> None:
    torch.use_deterministic_algorithms(not wanted)
    torch.backends.cudnn.benchmark = True
    make_deterministic(wanted)
    assert torch.are_deterministic_algorithms_enabled() is wanted
    assert torch.backends.cudnn.benchmark is False
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is wanted  # cuBLAS has no other switch
