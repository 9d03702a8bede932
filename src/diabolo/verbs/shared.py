"""What the verbs share: what they return, their options, and what is refused before torch is imported."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from diabolo.errors import UsageError
from diabolo.options import DataOptions, existing_run, import_modules

if TYPE_CHECKING:
    from diabolo.inspection import Examples
    from diabolo.runs import Run
    from diabolo.terminal import TerminalProgress

Source = Annotated[
    Path | None,
    Parameter(help="Examples: a .npy or .npz file, an image or a folder of images; left out, the run's own data."),
]
SplitName = Annotated[
    Literal["test", "validation", "train"] | None,
    Parameter(name="--split", help="A split of the run's own data (test)."),
]
Overwrite = Annotated[bool, Parameter(help="Replace a file that is there already.")]


@dataclass(frozen=True)
class Answer:
    """What a verb found: lines and tables for people, or `data` to be printed as JSON instead."""

    parts: tuple[str | Table, ...] = ()
    data: Any = None


def ready(
    run: Path,
    path: Path | None,
    split: str | None,
    out: Path | None,
    overwrite: bool,
    modules: tuple[str, ...],
    suffixes: tuple[str, ...],
) -> None:
    """Refuse what is wrong before torch is imported."""
    if path is not None and split is not None:
        raise UsageError(f"{path} and --split {split} exclude each other", remedy="Name one of them.")
    if out is not None:
        if out.suffix.lower() not in suffixes:
            raise UsageError(f"--out {out} is refused", f"Its name must end in {' or '.join(suffixes)}.")
        if out.exists() and not overwrite:
            raise UsageError(f"{out} exists already", remedy="Choose another --out, or add --overwrite.")
    import_modules(modules)
    existing_run(run)


def check_file(path: Path, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Refuse a name that no file should be written to."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path} is refused", f"The name of OUT must end in {' or '.join(suffixes)}.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already", remedy="Choose another name, or add --overwrite.")


def check_target(out: Path, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Refuse an OUT that is a file of another kind, or a folder (a name without a suffix) that holds something."""
    if out.suffix:
        check_file(out, suffixes, overwrite)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already", "A folder of images is never mixed with another.", "Choose another.")


def at_least(name: str, value: int, least: int) -> None:
    """Refuse an option below its least value."""
    if value < least:
        raise UsageError(f"{name} {value} is refused", f"It must be at least {least}.")


def given(run: Path, path: Path | None, split: str | None, options: DataOptions) -> tuple[Run, Examples]:
    """The run and the examples to look at."""
    from diabolo import inspection
    from diabolo.runs import Run

    opened = Run(run)
    return opened, inspection.examples(opened, path, split or "test", options.access())


def picture(target: Path, rows: Any) -> None:
    """Write rows of images as a PNG."""
    from diabolo import inspection
    from diabolo.runs import write_bytes

    write_bytes(target, inspection.grid(rows))


def how_read(given: Examples) -> tuple[str, ...]:
    """How a file was read, as lines to print."""
    return (f"{given.source}: {given.note}",) if given.note else ()


def label_of(run: Run) -> str:
    """The likelihood's name and whether it is normalised."""
    from diabolo import registry

    kind: Any = registry.get("likelihood", run.config.model.likelihood.name)
    return f"likelihood {run.config.model.likelihood.name}{'' if kind.normalised else ', unnormalised'}"


def progress() -> AbstractContextManager[TerminalProgress]:
    """A bar on stderr."""
    from diabolo.terminal import TerminalProgress

    return TerminalProgress(sys.stderr)
