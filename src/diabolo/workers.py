"""Independent runs as single-threaded processes, one a core, under one display.

A job is trained and evaluated by `python -m diabolo.worker` (see `worker`), which is given the job as one line of JSON on
stdin and tells what it does in lines of JSON on stdout. stdin stays open for as long as the parent lives: one byte on it is the
number of the signal that the job is to stop by, and its end means that the parent is gone. Either way the job saves its state
after its step. Nothing is forked, and no signal is sent but to kill.

A job gives the same bits alone, one after another or beside others, since each has one thread and a process of its own.

What a process holds: torch and this package (230 MB), its own copy of the data set as it is kept in memory (MNIST 55 MB, CIFAR-10
184 MB: uint8), of its model the weights, gradients and two moments, and while it is evaluated the draws of 500 examples: at its
peak 1.1 to 1.3 GB in all, measured on these data. The parent holds a data set only while it looks which jobs are done; it fetches
what has to be fetched, so that no child asks or downloads.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diabolo import card, runs
from diabolo import data as data_module
from diabolo.chapters import parts
from diabolo.compiling import forward_operations
from diabolo.config import RunConfig
from diabolo.data import Access, Dataset, DataSpec
from diabolo.errors import DiaboloError, UsageError
from diabolo.evaluation import Settings, curve_plan
from diabolo.forecast import Display, Task, measuring_steps
from diabolo.progress import Progress
from diabolo.session import InterruptedRun, stopped_by_signals

logger = logging.getLogger("diabolo")

#: Exit codes of failed jobs, the most serious first: a fault of the program or a process that died, data, usage, a signal to one
#: job alone, a training that diverged.
SEVERITY = (1, 3, 2, 143, 130, 4)
#: So many last lines of what a process printed on stderr are kept.
_KEPT_LINES = 30
#: How long a wait for news may hold back a signal, seconds.
_LISTEN = 0.2
#: Every library that computes on several threads reads one of these.
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One run: its directory, its configuration and, where it is to be measured on its test split, how."""

    path: Path
    config: RunConfig
    settings: Settings | None = None


@dataclass(frozen=True)
class Failure:
    """What became of a job that failed: the error in three sentences, as `DiaboloError` has them, and its exit code."""

    path: Path
    what: str
    why: str
    remedy: str
    exit_code: int

    @property
    def error(self) -> tuple[str, str, str]:
        """Its three sentences."""
        return self.what, self.why, self.remedy


def _told(failures: Sequence[Failure]) -> str:
    """Each error once, with the jobs that met it and its other sentences indented below."""
    met: dict[tuple[str, str, str], list[str]] = {}
    for failure in failures:
        met.setdefault(failure.error, []).append(str(failure.path))
    lines = [(f"{', '.join(paths)}: {what}", why, remedy) for (what, why, remedy), paths in met.items()]
    return "\n".join("\n".join(part for part in parts if part).replace("\n", "\n  ") for parts in lines)


class FailedJobs(DiaboloError):
    """Some jobs failed; all others are finished (exit code: the most serious of theirs, by `SEVERITY`)."""

    def __init__(self, failures: Sequence[Failure], total: int) -> None:
        finished = total - len(failures)
        kept = f" {finished} are finished and will be used again." if finished else ""
        super().__init__(
            f"{len(failures)} of {total} runs failed",
            _told(failures),
            f"Once this is mended, the same command goes on.{kept}",
        )
        self.failures = tuple(failures)
        codes = [failure.exit_code for failure in failures]
        self.exit_code = next((code for code in SEVERITY if code in codes), 1)


class InterruptedJobs(InterruptedRun):
    """The jobs were asked to stop; each saved its state first (exit code 130 or 143)."""

    def __init__(self, run: Path, exit_code: int, failures: Sequence[Failure]) -> None:
        DiaboloError.__init__(
            self,
            "interrupted: everything up to the last step of each run is saved",
            _told(failures),
            "The same command goes on.",
        )
        self.run, self.exit_code = run, exit_code


def run(
    jobs: Sequence[Job],
    *,
    processes: int | None = None,
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    imports: Sequence[str] = (),
    reused: list[str] | None = None,
) -> list[runs.Run]:
    """Train and evaluate jobs, each in a process of one thread, and return their runs in order.

    Finished runs and standing evaluations are used again, interrupted runs gone on with, others moved aside.

    Arguments:
        jobs: runs that do not depend on one another.
        processes: how many at a time; one for each core that this process may use where it is left out, never more than jobs.
        access: how the data may be reached.
        device: auto, cpu, cuda, cuda:1, mps.
        imports: modules that register components of one's own, imported by each process.
        reused: is told what was used again.

    Raises:
        UsageError: for jobs whose data are only in memory, or that share a directory.
        DataError: if data cannot be had.
        FailedJobs: if jobs failed, once all others are finished.
        InterruptedJobs: after SIGINT or SIGTERM; the same call goes on.
    """
    _check(jobs, processes)
    access, progress, told = access or Access(), progress or Progress(), [] if reused is None else reused
    tasks = _unfinished(jobs, access, device, progress, told)
    if tasks:
        at_a_time = min(processes or cores(), len(tasks))
        orders = {i: _order(jobs[i], access, device, imports) for i in tasks}
        pool = _Pool(orders, Display(list(tasks.values()), at_a_time, progress), at_a_time)
        pool.run()
        progress.finish()
        told += [name for child in pool.ended for name in child.reused]
        failures = [_failure(jobs[i].path, pool.errors[i]) for i in tasks if i in pool.errors]
        if pool.stop_code:
            raise InterruptedJobs(jobs[next(iter(tasks))].path, pool.stop_code, failures)
        if failures:
            raise FailedJobs(failures, len(jobs))
    return [runs.Run(job.path) for job in jobs]


def _failure(path: Path, error: Mapping[str, Any]) -> Failure:
    return Failure(path, error["what"], error["why"], error["remedy"], error["exit_code"])


def cores() -> int:
    """How many cores this process may use."""
    counted = getattr(os, "process_cpu_count", None)
    if counted is not None:
        return counted() or 1
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def _check(jobs: Sequence[Job], processes: int | None) -> None:
    if processes is not None and processes < 1:
        raise UsageError(f"processes={processes} is refused", "It must be at least 1.")
    places = [os.path.normcase(job.path.absolute()) for job in jobs]
    for job, place in zip(jobs, places):
        if places.count(place) > 1:
            raise UsageError(f"two jobs share {job.path}", "Each run has a directory of its own.")
        if job.config.data.name == "tensor":
            raise UsageError(
                f"the data of {job.path} are in this process's memory only",
                "Another process cannot be given them.",
                "Train here with diabolo.train, or save them as images and take data=folder:PATH.",
            )


# ------------------------------------------------------------------------------------------------ what is to be done
def _unfinished(
    jobs: Sequence[Job], access: Access, device: str, progress: Progress, reused: list[str]
) -> dict[int, Task]:
    """What is left to do, by number; each data set is fetched where it is absent, and read once to see what is done already."""
    tasks: dict[int, Task] = {}
    differ = len({json.dumps(job.config.model.to_dict()) for job in jobs}) > 1
    names = [job.path.name for job in jobs]
    for numbers in _by_data(jobs):
        first = jobs[numbers[0]].config.data
        dataset = data_module.load(first.name, first.params, access)
        for i in numbers:
            job = jobs[i]
            if parts.stands(job.path, job.config, dataset, job.settings):
                finished = parts.trained(job.path, job.config, dataset, device, progress, reused)
                if job.settings:
                    parts.evaluated(finished, dataset, job.settings, device, progress, reused)
            else:
                name = job.path.name if names.count(job.path.name) == 1 else str(job.path)
                tasks[i] = _task(job, dataset, name, _cost(job.config, dataset.spec) if differ else 1.0)
    return dict(sorted(tasks.items()))


def _by_data(jobs: Sequence[Job]) -> Iterator[list[int]]:
    """The numbers of the jobs that share a data set."""
    found: dict[str, list[int]] = {}
    for i, job in enumerate(jobs):
        found.setdefault(json.dumps(job.config.data.to_dict()), []).append(i)
    yield from found.values()


def _cost(config: RunConfig, spec: DataSpec) -> float:
    """Multiplications of a training step, but for a factor; 1 for a model that cannot be built, or not be run on shapes alone."""
    operations = forward_operations(config, spec)
    return 1.0 if math.isnan(operations) else max(1.0, operations)


def _task(job: Job, dataset: Dataset, name: str, cost: float) -> Task:
    train, s = job.config.train, job.settings
    measuring = 0.0
    if s is not None:
        test = dataset.split(s.split)
        images = min(s.images or len(test), len(test))
        ks, curve_images = curve_plan(s, dataset.spec.dimensions)
        draws = s.k * images + max(ks, default=0) * min(curve_images, images)
        measuring = measuring_steps(s.elbo_samples, len(test), draws, train.batch)
    return Task(name, str(job.path), card.steps_of(job.config, dataset.spec), train.epochs, measuring, cost)


def _order(job: Job, access: Access, device: str, imports: Sequence[str]) -> bytes:
    """A job as the line of JSON that a child reads, in ASCII whatever its path holds."""
    reach = {"cache": str(access.cache), "data_dir": access.data_dir and str(access.data_dir), "source": access.source}
    order = {
        "path": str(job.path),
        "config": job.config.to_dict(),
        "settings": job.settings and asdict(job.settings),
        "access": {**reach, "offline": access.offline, "stall": access.stall},
        "device": device,
        "imports": list(imports),
    }
    return json.dumps(order).encode("ascii") + b"\n"


# ------------------------------------------------------------------------------------------------ processes
def _environment() -> dict[str, str]:
    heard = {
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "PYTHONUNBUFFERED": "1",
    }  # whatever it prints, before it dies
    return {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), **heard}


def _apart() -> dict[str, Any]:
    """Keeps what a terminal sends for Ctrl-C from the children: the parent asks them to stop."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"process_group": 0}


class _Child:
    """A process at work on a job; a thread of its own hands on what it tells, and None at its end."""

    def __init__(self, number: int, order: bytes, news: queue.SimpleQueue[tuple[int, Any]]) -> None:
        self.number, self.news, self.asked = number, news, False
        self.done = False
        self.failure: Mapping[str, Any] | None = None
        self.reused: list[str] = []
        self.said: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diabolo.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            **_apart(),
        )
        self.keeper = threading.Thread(target=self._keep, daemon=True)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.keeper.start()
        self.listener.start()
        self.tell(order)

    def tell(self, content: bytes) -> None:
        """Write to the child; one that has died is found out about by its end."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(content)
            self.process.stdin.flush()

    def stop(self, number: int) -> None:
        """Ask the child, once, to save its state and end as if it had met a signal."""
        if not self.asked:
            self.asked = True
            self.tell(bytes([number]))

    def _keep(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(self.process.stderr)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:  # half a line of a process that was killed
                self.said.append(line)
            else:
                self.news.put((self.number, message))
        self.process.wait()
        self.keeper.join(timeout=1)
        self.news.put((self.number, None))

    def close(self) -> None:
        """Let go of a child that has ended; one that has not is killed."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.listener.join(timeout=5)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with suppress(OSError):
                stream.close()

    def death(self) -> dict[str, Any]:
        """The error of a process that ended without telling one."""
        code = self.process.returncode
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        last = b"".join(self.said).decode("utf-8", "replace").strip()
        memory = code == -getattr(signal, "SIGKILL", 0)
        return _error(
            f"its process was {how}" if code < 0 else f"its process {how}",
            last or ("The system kills a process when memory is short." if memory else "It said nothing."),
            "Run fewer processes at a time." if memory else "",
        )


def _error(what: str, why: str = "", remedy: str = "") -> dict[str, Any]:
    """An error that a child could not tell itself."""
    return {"what": what, "why": why, "remedy": remedy, "exit_code": 1}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Pool:
    """Runs the orders in turn, so many at a time, and keeps what became of each."""

    def __init__(self, orders: Mapping[int, bytes], display: Display, processes: int) -> None:
        self.orders, self.display, self.processes = orders, display, processes
        self.places = {number: place for place, number in enumerate(orders)}
        self.waiting = deque(orders)
        self.running: dict[int, _Child] = {}
        self.ended: list[_Child] = []
        self.errors: dict[int, Mapping[str, Any]] = {}
        self.news: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.stop_code = 0

    def run(self) -> None:
        """Until every order is carried out or, once a signal came, every child has saved what it did and left."""
        try:
            with stopped_by_signals(self):
                while self.running or (self.waiting and not self.stop_code):
                    self._fill()
                    self._hear()
        finally:  # a second Ctrl-C: no child is left behind
            for child in self.running.values():
                child.close()

    def _fill(self) -> None:
        """Start what there is room for; once a signal came, ask all to stop instead."""
        if self.stop_code:
            for child in self.running.values():
                child.stop(self.stop_code - 128)
            return
        while self.waiting and len(self.running) < self.processes:
            number = self.waiting.popleft()
            try:
                self.running[number] = _Child(number, self.orders[number], self.news)
            except OSError as error:
                self._failed(number, _error("its process cannot be started", str(error)))
            else:
                self.display.begin(self.places[number])

    def _hear(self) -> None:
        with suppress(queue.Empty):
            number, message = self.news.get(timeout=_LISTEN)
            if message is None:
                self._end(self.running.pop(number))
            else:
                self._tell(self.running[number], message)

    def _tell(self, child: _Child, message: Mapping[str, Any]) -> None:
        place = self.places[child.number]
        for kind, what in message.items():
            if kind == "advance":
                self.display.advance(place, what)
            elif kind == "stage":
                self.display.stage(place, *what)
            elif kind == "say":
                self.display.say(place, what)
            elif kind == "warning":
                logger.warning("%s: %s", self.display.tasks[place].name, what)
            elif kind == "failed":
                child.failure = what
            elif kind == "done":
                child.done, child.reused = True, what

    def _end(self, child: _Child) -> None:
        child.close()
        self.ended.append(child)
        self.display.end(self.places[child.number])
        stopped = bool(self.stop_code) and child.failure is not None and child.failure["exit_code"] == self.stop_code
        if not child.done and not stopped:
            self._failed(child.number, child.failure or child.death())

    def _failed(self, number: int, error: Mapping[str, Any]) -> None:
        self.errors[number] = error
        self.display.say(self.places[number], f"failed: {error['what']}")
