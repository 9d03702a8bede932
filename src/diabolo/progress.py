"""How long work tells how far it is: an interface that the library calls and the command line fills."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("diabolo")

#: On a log rather than a terminal: at most one line in so many seconds within an epoch or a stage.
QUIET_SECONDS = 60.0


class Progress:
    """Says nothing. `start` names a stage and its number of units, `advance` counts them, `remaining` tells the seconds that are
    left where they are known better than from the pace of the units, `say` is one line of news."""

    def start(self, stage: str, total: int) -> None: ...

    def advance(self, units: int = 1, note: str = "") -> None: ...

    def remaining(self, seconds: float) -> None: ...

    def finish(self) -> None: ...

    def say(self, text: str) -> None: ...


class LogProgress(Progress):
    """Plain lines through `logging`: each piece of news, and one line a minute within a long stage."""

    def __init__(self) -> None:
        self.stage, self.total, self.done, self.spoke = "", 0, 0, time.monotonic()

    def start(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done, self.spoke = stage, total, 0, time.monotonic()

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units
        if time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            logger.info("%s %d/%d %s", self.stage, self.done, self.total, note)

    def say(self, text: str) -> None:
        logger.info("%s", text)
