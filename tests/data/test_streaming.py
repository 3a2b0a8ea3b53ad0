import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from cnnlab.data.augmentation import Augment, HorizontalFlip, Shift
from cnnlab.data.loader import ImageLoader
from cnnlab.data.mixing import MixUp
from cnnlab.data.normalization import Normalization
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Images
from cnnlab.data.streaming import StreamingLoader
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.errors import TrainingError

CPU = torch.device("cpu")
COUNT = 61
NORMALIZATION = Normalization((90.3, 110.7, 3.0), (4.1, 8.3, 77.7))


def images() -> Images:
    """61 of 3×9×7, selected out of 70."""
    x_NCHW = torch.randint(256, (70, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images.of(x_NCHW, torch.arange(70) % 3).select(torch.arange(70).flip(0)[:COUNT])


def made(workers: int | None, **changes: Any) -> ImageLoader:
    """Streaming with so many workers, or resident."""
    arguments: dict[str, Any] = {"batch_size": 8, "device": CPU, "shuffle": True, "seed": 7, **changes}
    if workers is None:
        return ResidentLoader(images(), NORMALIZATION, **arguments)
    return StreamingLoader(images(), NORMALIZATION, workers=workers, **arguments)


@pytest.fixture
def streaming() -> Iterator[Callable[..., ImageLoader]]:
    """Makes loaders whose workers end with the test."""
    loaders: list[ImageLoader] = []

    def make(workers: int | None, **changes: Any) -> ImageLoader:
        loaders.append(made(workers, **changes))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def epochs(loader: ImageLoader, count: int = 2) -> list[Batch]:
    batches = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        batches += list(loader)
    return batches


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a.x_NCHW, b.x_NCHW) and torch.equal(a.target, b.target) and torch.equal(a.index_N, b.index_N)
        for a, b in zip(ours, theirs, strict=True)
    )


STEPS = {"flip": HorizontalFlip(), "move": Shift(2)}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "in order": {"shuffle": False},
    "dropping the last": {"drop_last": True},
    "balanced": {"balanced": True, "augment": Augment(STEPS, 3, 7)},
    "augmented": {"augment": Augment(STEPS, 3, 7)},
    "mixed": {"augment": Augment({**STEPS, "mix": MixUp(1.0)}, 3, 7)},
    "second of three": {"rank": 1, "world_size": 3},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_batches_of_the_resident_loader_to_the_bit(
    streaming: Callable[..., ImageLoader], case: str, workers: int
) -> None:
    assert same(epochs(streaming(workers, **CASES[case])), epochs(made(None, **CASES[case])))


@pytest.mark.parametrize("block", [1, 1 << 18])
@pytest.mark.parametrize("workers", [None, 1])
def test_how_many_batches_are_made_at_once_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, streaming: Callable[..., ImageLoader], workers: int | None, block: int
) -> None:
    expected = epochs(made(None, **CASES["augmented"]))
    monkeypatch.setattr("cnnlab.data.loader.BLOCK", block)
    assert same(epochs(streaming(workers, **CASES["augmented"])), expected)


@pytest.mark.parametrize("workers", [None, 0, 2])
@pytest.mark.parametrize("taken", [1, 3, 8])
def test_an_epoch_resumed_in_the_middle_resumes_with_the_remaining_batches(
    monkeypatch: pytest.MonkeyPatch, streaming: Callable[..., ImageLoader], workers: int | None, taken: int
) -> None:
    monkeypatch.setattr("cnnlab.data.loader.BLOCK", 3 * 8 * 3 * 9 * 7)  # three batches at once
    whole = epochs(made(None), 1)
    broken = streaming(workers)
    walk = iter(broken)
    for _ in range(taken):
        next(walk)
    assert broken.position == taken
    resumed = streaming(workers)
    resumed.load_state_dict(broken.state_dict())
    assert same(list(resumed), whole[taken:])
    assert same(epochs(broken, 1), whole)  # with the workers that were busy with the rest


@pytest.mark.parametrize("workers", [None, 0])
def test_stored_features_are_served_as_they_are(workers: int | None) -> None:
    features = Images.of(torch.randn(COUNT, 7), torch.arange(COUNT) % 3).select(torch.arange(COUNT).flip(0)[:50])
    options: dict[str, Any] = {"device": CPU, "shuffle": True, "seed": 3}
    loader: ImageLoader = ResidentLoader(features, None, 8, **options)
    if workers is not None:
        loader = StreamingLoader(features, None, 8, workers=workers, **options)
    loader.load_state_dict({"epoch": 1, "position": 2})
    batches = list(loader)
    assert sum(map(len, batches)) == 50 - 2 * 8
    for batch in batches:
        assert torch.equal(batch.x_NCHW, features.stored_NCHW[batch.index_N])


def test_the_workers_live_from_epoch_to_epoch_end_with_close_and_start_again(
    streaming: Callable[..., ImageLoader],
) -> None:
    before, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
    generator = torch.get_rng_state()
    loader = streaming(2)
    first = epochs(loader, 1)
    workers = {process.pid for process in set(multiprocessing.active_children()) - before}
    epochs(loader, 3)
    assert {process.pid for process in set(multiprocessing.active_children()) - before} == workers
    assert len(workers) == 2
    assert torch.equal(torch.get_rng_state(), generator)
    assert signal.getsignal(signal.SIGCHLD) is handler
    loader.close()
    assert set(multiprocessing.active_children()) <= before
    assert same(epochs(loader, 1), first)


def killed_after_a_batch(loader: ImageLoader, number: signal.Signals) -> tuple[list[Batch], int]:
    """All batches of a loader whose worker gets a signal after the first, and the worker."""
    before = set(multiprocessing.active_children())
    walk = iter(loader)
    batches = [next(walk)]
    worker = min(process.pid or 0 for process in set(multiprocessing.active_children()) - before)
    os.kill(worker, number)
    time.sleep(0.2)
    try:
        batches += walk
    except TrainingError as error:
        raise TrainingError(f"{worker}: {error}") from error
    return batches, worker


def test_a_killed_worker_is_named(monkeypatch: pytest.MonkeyPatch, streaming: Callable[..., ImageLoader]) -> None:
    monkeypatch.setattr("cnnlab.data.loader.BLOCK", 1)
    loader = streaming(2, batch_size=2)
    began = time.monotonic()
    with pytest.raises(TrainingError) as caught:
        killed_after_a_batch(loader, signal.SIGKILL)
    worker = str(caught.value).split(":")[0]
    assert f"(process {worker}, by SIGKILL)" in str(caught.value)
    assert "data.workers=0" in str(caught.value)
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_where_the_workers_were_asked_to_end_the_run_gets_its_batches_all_the_same(
    monkeypatch: pytest.MonkeyPatch, streaming: Callable[..., ImageLoader]
) -> None:
    monkeypatch.setattr("cnnlab.data.loader.BLOCK", 1)
    batches, _ = killed_after_a_batch(streaming(1, batch_size=2), signal.SIGTERM)
    assert same(batches, epochs(made(None, batch_size=2), 1))


def test_ctrl_c_does_not_end_a_worker(monkeypatch: pytest.MonkeyPatch, streaming: Callable[..., ImageLoader]) -> None:
    monkeypatch.setattr("cnnlab.data.loader.BLOCK", 1)
    loader = streaming(1, batch_size=2)
    batches, worker = killed_after_a_batch(loader, signal.SIGINT)
    assert same(batches, epochs(made(None, batch_size=2), 1))
    assert worker in {process.pid for process in multiprocessing.active_children()}
