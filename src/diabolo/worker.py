"""One job in a process of its own: `python -m diabolo.worker`, started by `workers`, whose docstring says how they talk.

Whatever is printed here or in a module of the user's own goes to stderr; what is told goes where stdout went.
"""

from __future__ import annotations

import _thread
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diabolo.errors import DiaboloError, not_finite
from diabolo.progress import Progress

#: Progress is told at most once in so many seconds.
_TELL_SECONDS = 0.3
#: So long another process may take to let go of the run: one whose parent was killed saves its state first.
_LOCK_SECONDS = 60.0


class _Stop:
    """What the parent asks for on stdin: a byte, the number of a signal; its end, that the parent is gone."""

    def __init__(self) -> None:
        self.code = 0

    def listen(self) -> None:
        """Wait for it, in a thread of its own, and let the main thread meet the signal."""
        asked = os.read(0, 1)
        self.ask(asked[0] if asked else signal.SIGTERM)

    def ask(self, number: int) -> None:
        """The signal, once; a training stops after its step, anything else at once."""
        if not self.code:
            self.code = 128 + number
            _thread.interrupt_main(signal.Signals(number))

    def check(self) -> None:
        """A signal that came while a training was ending was met there and led to nothing."""
        if self.code:
            raise KeyboardInterrupt


class _Channel:
    """Lines of JSON to the parent, where stdout went; a parent that cannot be written to is gone."""

    def __init__(self, stop: _Stop) -> None:
        self.stop, self.broken = stop, False
        self.file = os.dup(1)
        os.dup2(2, 1)

    def tell(self, kind: str, what: Any) -> None:
        """Write one line."""
        line = json.dumps({kind: what}).encode("ascii") + b"\n"
        try:
            while line and not self.broken:
                line = line[os.write(self.file, line) :]
        except OSError:
            self.broken = True
            self.stop.ask(signal.SIGTERM)


class _Told(Progress):
    """Progress that the parent shows; the first units of a stage, and the last before anything else, are told at once."""

    def __init__(self, channel: _Channel) -> None:
        self.channel, self.units, self.spoke, self.first = channel, 0, 0.0, False

    def start(self, stage: str, total: int) -> None:
        self._flush()
        self.channel.tell("stage", [stage, total])
        self.first = True

    def advance(self, units: int = 1, note: str = "") -> None:
        self.units += units
        if self.first or time.monotonic() - self.spoke >= _TELL_SECONDS:
            self._flush()

    def finish(self) -> None:
        self._flush()

    def say(self, text: str) -> None:
        self._flush()
        self.channel.tell("say", text)

    def _flush(self) -> None:
        if self.units or self.first:
            self.channel.tell("advance", self.units)
        self.units, self.spoke, self.first = 0, time.monotonic(), False


class _Warnings(logging.Handler):
    def __init__(self, channel: _Channel) -> None:
        super().__init__(logging.WARNING)
        self.channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self.channel.tell("warning", record.getMessage())


def main() -> int:
    """Read a job, carry it out, and leave with the exit code that the command line would leave with."""
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever started the parent may have had them ignored
        signal.signal(number, signal.default_int_handler)
    stop = _Stop()
    channel = _Channel(stop)
    order = json.loads(_line())
    threading.Thread(target=stop.listen, daemon=True).start()
    logging.getLogger("diabolo").addHandler(_Warnings(channel))
    try:
        reused = _carry_out(order, stop, _Told(channel))
    except DiaboloError as error:
        return _failed(channel, error, error.exit_code)
    except KeyboardInterrupt:
        return _failed(channel, DiaboloError("it was stopped"), stop.code or 128 + signal.SIGINT)
    except ValueError as error:
        known = not_finite(error)
        if known is None:
            raise
        return _failed(channel, known, known.exit_code)
    channel.tell("done", reused)
    return 0


def _failed(channel: _Channel, error: DiaboloError, code: int) -> int:
    channel.tell("failed", {"what": error.what, "why": error.why, "remedy": error.remedy, "exit_code": code})
    return code


def _line() -> bytes:
    """The first line of stdin, and no byte behind it."""
    found = bytearray()
    while not found.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        found += byte
    return bytes(found)


def _carry_out(order: Mapping[str, Any], stop: _Stop, progress: Progress) -> list[str]:
    """Train and evaluate what is not done yet; what was used again."""
    import torch

    from diabolo import data as data_module
    from diabolo.chapters import parts
    from diabolo.config import from_dict
    from diabolo.evaluation import Settings
    from diabolo.options import import_modules
    from diabolo.session import locked

    torch.set_num_threads(1)
    import_modules(order["imports"])
    path, given = Path(order["path"]), order["settings"]
    config = from_dict(order["config"]).config
    curve = given and given["curve_k"]  # JSON has no tuples
    settings = given and Settings(**{**given, "curve_k": curve and tuple(curve)})
    dataset = data_module.load(config.data.name, config.data.params, _access(order["access"]))
    reused: list[str] = []
    if path.is_dir():
        with locked(path, _LOCK_SECONDS):
            stop.check()
    run = parts.trained(path, config, dataset, order["device"], progress, reused)
    stop.check()
    if settings:
        parts.evaluated(run, dataset, settings, order["device"], progress, reused)
    return reused


def _access(given: Mapping[str, Any]) -> Any:
    from diabolo.data import Access

    folders = {name: given[name] and Path(given[name]) for name in ("cache", "data_dir")}
    return Access(**{**given, **folders})


if __name__ == "__main__":
    sys.exit(main())
