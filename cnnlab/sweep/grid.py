"""A grid that is run: its jobs in their order, and what became of each, in `jobs.json`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cnnlab.run.files import RunDirectory
from cnnlab.runtime.errors import ConfigError
from cnnlab.sweep.axes import Grid, Job
from cnnlab.sweep.launcher import status_of
from cnnlab.sweep.results import Result, read_result

JOBS = "jobs.json"
ENDED = ("completed", "failed", "pruned")


class GridRun:
    """Only one process at a time works in it. Raises `ConfigError` where another does."""

    def __init__(self, grid: Grid, folder: Path) -> None:
        self.grid = grid
        self.directory = RunDirectory(folder)
        self.directory.lock()
        self.count = len(grid.jobs)
        self._results: dict[int, Result] = {}
        for number, outcome in self.directory.read_json(JOBS).items():
            self._restore(int(number), outcome)

    def _restore(self, number: int, outcome: Any) -> None:
        if number >= self.count or outcome.get("status") not in ENDED:
            raise ConfigError(f"resume: {self.directory.path / JOBS} is not of this grid: job {number} is {outcome}")
        job = self.grid.jobs[number]
        place = self.directory.path / job.name
        self._results[number] = read_result(job, outcome["status"], place, outcome["seconds"], outcome["error"])

    @property
    def done(self) -> int:
        return sum(result.status in ENDED for result in self._results.values())

    def jobs(self) -> Iterator[Job | None]:
        """Those that have not ended, in their order; one whose process outlived ours is waited for."""
        left = [job for job in self.grid.jobs if job.number not in self._results]
        while left:
            job = next((job for job in left if not RunDirectory(self.directory.path / job.name).is_locked()), None)
            if job is not None:
                left.remove(job)
            yield job

    def record(self, result: Result) -> None:
        """Keeps a result; one that was interrupted runs again when the grid is resumed."""
        self._results[result.job.number] = result
        self.directory.write_json(
            JOBS,
            {
                str(number): {"status": result.status, "seconds": result.seconds, "error": result.error}
                for number, result in sorted(self._results.items())
                if result.status in ENDED
            },
        )

    def results(self) -> list[Result]:
        return [self._results.get(job.number) or self._open(job) for job in self.grid.jobs]

    def _open(self, job: Job) -> Result:
        """A job that has no result: it may have begun."""
        place = self.directory.path / job.name
        return read_result(job, status_of(place) if place.is_dir() else "not started", place)

    def close(self) -> None:
        self.directory.release()
