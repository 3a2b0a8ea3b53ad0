"""What a process finds in its environment of the others that torchrun started."""

import pytest

from cnnlab.runtime.ranks import is_first, rank, world_size


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # set by other programs, too
    assert (rank(), world_size(), is_first()) == (0, 1, True)


def test_torchrun_numbers_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), world_size(), is_first()) == (2, 4, False)
