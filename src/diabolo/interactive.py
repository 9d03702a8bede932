"""Progress for whoever sits before the library: one line that rewrites itself, in a notebook or at an interactive prompt.

A script gets nothing. IPython is never imported: a kernel that runs has put `get_ipython` among the builtins.
"""

from __future__ import annotations

import builtins
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO

from diabolo.progress import Progress

#: The line is written anew at most once in so many seconds.
REWRITE_SECONDS = 0.2
#: What a terminal's line is cut to, and padded to so that nothing of a longer one is left.
WIDTH = 79


class Line(Progress):
    """One line for all stages: `show` gets each new text of it."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show, self.shown = show, -REWRITE_SECONDS
        self.stage, self.total, self.done, self.note = "", 0, 0, ""

    def start(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done, self.note = stage, total, 0, ""

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + units, note
        if time.monotonic() - self.shown >= REWRITE_SECONDS:
            self.shown = time.monotonic()
            self.show(self.text())

    def finish(self) -> None:
        if self.stage:
            self.show(self.text())

    def text(self) -> str:
        """Stage, a bar of twenty signs, how many of how many, the note."""
        filled = 20 * min(self.done, self.total) // max(self.total, 1)
        return f"{self.stage} [{'#' * filled:20}] {self.done:,}/{self.total:,}  {self.note}".rstrip()


class TerminalLine:
    """Writes a line over the one before it with a carriage return."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.begun = stream, False

    def __call__(self, text: str) -> None:
        self.begun = True
        self.stream.write(f"\r{text[:WIDTH]:{WIDTH}}")
        self.stream.flush()

    def end(self) -> None:
        if self.begun:
            self.stream.write("\n")


class NotebookLine:
    """Shows a line as one output of the cell and updates that output."""

    def __init__(self, publisher: Any) -> None:
        self.publisher, self.name, self.again = publisher, uuid.uuid4().hex, False

    def __call__(self, text: str) -> None:
        place = {"display_id": self.name}
        self.publisher.publish({"text/plain": text}, transient=place, update=self.again)
        self.again = True

    def end(self) -> None: ...


def kernel_shell() -> Any:
    """The shell of the notebook kernel that this process is, else None."""
    get = getattr(builtins, "get_ipython", None)
    shell = get() if get else None
    return shell if getattr(shell, "kernel", None) is not None else None


def at_a_prompt() -> bool:
    """Does a person type into this interpreter, and see its stderr?"""
    return (hasattr(sys, "ps1") or bool(sys.flags.interactive)) and sys.stderr.isatty()


@contextmanager
def chosen(progress: Progress | Literal["auto"] | None) -> Iterator[Progress]:
    """The progress asked for; `auto` is one line where a person looks on, and nothing in a script."""
    show = _writer() if progress == "auto" else None
    if show is None:
        yield progress if isinstance(progress, Progress) else Progress()
        return
    line = Line(show)
    try:
        yield line
    finally:  # whatever ended the work, the line says how far it came
        line.finish()
        show.end()


def _writer() -> TerminalLine | NotebookLine | None:
    shell = kernel_shell()
    if shell is not None:
        return NotebookLine(shell.display_pub)
    return TerminalLine(sys.stderr) if at_a_prompt() else None
