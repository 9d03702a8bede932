"""What `workers.run` does, in this process and on data that only it has; tests/test_workers.py has the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diabolo import runs
from diabolo.chapters import parts
from diabolo.config import RunConfig
from diabolo.data import Dataset
from diabolo.progress import Progress
from diabolo.workers import Job


def one_after_another(data_of: Callable[[RunConfig], Dataset]) -> Callable[..., list[runs.Run]]:
    """A stand-in for `workers.run` that takes the jobs in order, on the data that `data_of` gives for a configuration."""

    def run(jobs: Sequence[Job], *, device: str, progress: Progress, reused: list[str], **_: Any) -> list[runs.Run]:
        made = []
        for job in jobs:
            data = data_of(job.config)
            made.append(parts.trained(job.path, job.config, data, device, progress, reused))
            if job.settings is not None:
                parts.evaluated(made[-1], data, job.settings, device, progress, reused)
        return made

    return run
