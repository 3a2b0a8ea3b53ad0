from typing import Any

import pytest
import torch

from cnnlab.data.placement import place
from cnnlab.data.settings import DataSettings
from cnnlab.data.source import DataSpec

SPEC = DataSpec((3, 10, 10), {"train": 1000, "test": 200}, ("cat", "dog"))  # 300 bytes an image


def placed(monkeypatch: pytest.MonkeyPatch, free: int, *, mapped: bool = False, **changes: Any) -> Any:
    monkeypatch.setattr("cnnlab.data.placement.free_memory", lambda device: free)
    settings: dict[str, Any] = {
        "batch_size": 8,
        "eval_batch_size": 8,
        "drop_last": True,
        "limit": None,
        "split_seed": 0,
    }
    settings |= {"validation": {"count": 100}, "normalize": "unit", **changes}
    return place(DataSettings(**settings), SPEC, torch.device("cpu"), mapped=mapped)


def test_all_splits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placed(monkeypatch, 10**6).needed == 1200 * 300
    assert placed(monkeypatch, 10**6, limit=50).needed == (50 + 100 + 200) * 300


@pytest.mark.parametrize(
    ("free", "fraction", "resident"),
    [(720_000, 0.5, True), (719_999, 0.5, False), (360_000, 1, True), (10**9, 1e-6, False)],
)
def test_images_are_resident_up_to_a_fraction_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int, fraction: float, resident: bool
) -> None:
    assert placed(monkeypatch, free, memory_fraction=fraction).resident is resident


@pytest.mark.parametrize(("threads", "workers"), [(1, 1), (3, 3), (16, 4)])
def test_workers_are_as_many_as_the_run_has_threads_up_to_four(
    monkeypatch: pytest.MonkeyPatch, threads: int, workers: int
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert placed(monkeypatch, 1).workers == workers


def test_the_line_shows_what_was_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placed(monkeypatch, 36_000_000).describe("memory") == "data: resident on cpu (360 kB, 1.0% of 36 MB free)"
    assert placed(monkeypatch, 36_000_000, memory_fraction=0.001, workers=1).describe("/cache") == (
        "data: streaming from /cache with 1 worker (360 kB, more than 0.001 of the 36 MB free on cpu)"
    )
    assert " with no worker (" in placed(monkeypatch, 1, workers=0).describe("/cache")


@pytest.fixture
def four_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("four_ranks")
def test_ranks_divide_the_memory_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placed(monkeypatch, 4 * 720_000).resident
    assert not placed(monkeypatch, 4 * 720_000 - 4).resident


@pytest.mark.usefixtures("four_ranks")
def test_ranks_of_a_machine_share_one_copy_of_a_mapped_file(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = placed(monkeypatch, 720_000, mapped=True)
    assert not shared.resident
    assert shared.workers == 0
    assert shared.describe("/cache") == (
        "data: one copy for the 4 ranks of this machine, from /cache (360 kB, 50.0% of 720 kB free)"
    )


@pytest.mark.usefixtures("four_ranks")
def test_a_mapped_file_that_is_larger_than_the_memory_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    streamed = placed(monkeypatch, 719_999, mapped=True)
    assert streamed.workers == 3
    assert streamed.describe("/cache").startswith("data: streaming from /cache with 3 workers (")
