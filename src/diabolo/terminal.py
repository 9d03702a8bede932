"""Progress for people: a live bar where stderr is a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from diabolo.progress import QUIET_SECONDS, Progress


class _TimeLeft(TimeRemainingColumn):
    """The seconds that were told, else those that the pace so far gives."""

    def render(self, task: Task) -> Text:
        told = task.fields.get("left")
        return super().render(task) if told is None else Text(clock(told), style="progress.remaining")


def clock(seconds: float) -> str:
    """A length of time as a bar shows it: 0:03:12."""
    return str(timedelta(seconds=round(seconds)))


class TerminalProgress(Progress):
    """A context manager that draws one bar for the present stage and prints news above it."""

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _TimeLeft(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Bar(*columns, console=self.console, transient=True, refresh_per_second=4, disable=not self.live)
        self.task = self.bar.add_task("", visible=False, note="", left=None)
        self.stage, self.total, self.done, self.spoke = "", 0, 0, time.monotonic()
        self.left: float | None = None

    def __enter__(self) -> TerminalProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def start(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done, self.spoke, self.left = stage, total, 0, time.monotonic(), None
        self.bar.reset(self.task, description=stage, total=total, visible=True, note="", left=None)

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units
        if self.live:
            self.bar.update(self.task, advance=units, note=note)
        elif time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            left = "" if self.left is None else f"  about {clock(self.left)} left"
            self.console.print(f"{self.stage} {self.done:,}/{self.total:,} {note}{left}", markup=False)

    def remaining(self, seconds: float) -> None:
        self.left = seconds
        self.bar.update(self.task, left=seconds)

    def finish(self) -> None:
        self.bar.update(self.task, visible=False)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)
