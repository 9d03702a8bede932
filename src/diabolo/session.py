"""What surrounds a run while a process works on it: the lock, the log, the signals that stop it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from filelock import FileLock, Timeout

from diabolo import runs
from diabolo.errors import DiaboloError, DivergedError, UsageError

logger = logging.getLogger("diabolo")


class InterruptedRun(DiaboloError):
    """The run was asked to stop; it saved its state first (exit code 130 or 143)."""

    def __init__(self, run: Path, exit_code: int) -> None:
        super().__init__(
            f"interrupted: everything up to the last step is saved in {run}",
            remedy=f"Go on with: diabolo train --resume {run}",
        )
        self.run, self.exit_code = run, exit_code


class Stoppable(Protocol):
    """Something that looks at `stop_code` between steps; 0 means go on."""

    stop_code: int


@contextmanager
def locked(path: Path, wait: float = 0) -> Iterator[None]:
    """Hold the run's lock, which the system drops with the process; `wait`: so many seconds for another to let it go.

    Raises:
        UsageError: if another process holds it.
    """
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise UsageError(
            f"another process is working on {path}", remedy="Wait for it, or choose another --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


class _RunLog(logging.FileHandler):
    """A log that cannot grow is silent: a full disk is reported by what needs the room."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Keep a copy of what is said, tracebacks included, in `path`."""
    handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


@contextmanager
def status_kept(path: Path, far: Callable[[], Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Say in status.json that the work runs, and in the end how it ended: as the body puts into the status that it is given, or
    by what it raised. `far` says how far it came, and is asked once."""
    status: dict[str, Any] = {"state": "running", "exit_code": None}
    runs.write_json(path / "status.json", status)
    try:
        yield status
    except DiaboloError as error:
        state = {DivergedError: "diverged", InterruptedRun: "interrupted"}.get(type(error), "failed")
        status.update(state=state, exit_code=error.exit_code, reason=str(error))
        logger.info("%s", error)
        raise
    except KeyboardInterrupt:
        status.update(state="interrupted", exit_code=130, reason="stopped at once")
        raise
    except BaseException as error:
        status.update(state="failed", exit_code=1, reason=repr(error))
        logger.info("the run failed", exc_info=True)
        raise
    finally:
        runs.write_json(path / "status.json", {**status, **far()})


@contextmanager
def silent() -> Iterator[None]:
    """Say nothing: another process says it."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def stopped_by_signals(work: Stoppable, repeated: bool = False) -> Iterator[None]:
    """SIGINT and SIGTERM ask `work` to stop after its step; a second SIGINT stops at once. Only the main thread may listen.

    `repeated`: a launcher may pass on what a terminal sends too, and ends all processes once one has left, so another signal says
    nothing new: it is ignored to the end of a process that was asked to stop. The launcher itself ends those that take too long.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def listen(number: int, frame: FrameType | None) -> None:
        if work.stop_code and number == signal.SIGINT and not repeated:
            raise KeyboardInterrupt
        work.stop_code = 128 + number

    before = {number: signal.signal(number, listen) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if repeated and work.stop_code else handler)
