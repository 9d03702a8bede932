"""The verb reproduce: a chapter, or all of them, from data to report."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diabolo import language, listings
from diabolo.chapters import CHAPTERS, Chapter
from diabolo.data.access import Access
from diabolo.errors import UsageError, did_you_mean
from diabolo.listings import megabytes
from diabolo.options import DataOptions, Device, Json, Lang, say
from diabolo.verbs import shared
from diabolo.verbs.shared import Answer

if TYPE_CHECKING:
    from diabolo.chapters.parts import Result

ALL = "all"
#: Plans whose runs are kept apart from those of a whole chapter.
APART = ("quick", "smoke")


def reproduce(
    chapter: Annotated[str | None, Parameter(help="A chapter, or all; left out, the chapters are listed.")] = None,
    /,
    *,
    full: Annotated[bool, Parameter(help="Everything, trained and measured for longer (much longer).")] = False,
    quick: Annotated[bool, Parameter(help="The main runs only, trained for less; not every chapter has it.")] = False,
    locality: Annotated[
        bool, Parameter(help="Of cifar10: also with permuted pixels and two more seeds: how much do neighbours matter?")
    ] = False,
    pretrained: Annotated[
        bool, Parameter(help="Of sharp: with the model of the package and its prior, which are not trained again.")
    ] = False,
    smoke: Annotated[bool, Parameter(help="One epoch and small K: does everything run? Numbers mean nothing.")] = False,
    out: Annotated[
        Path | None,
        Parameter(help="Where to; runs/reproduce/CHAPTER (with --smoke, --quick: runs/smoke, runs/quick)."),
    ] = None,
    device: Device = "auto",
    lang: Lang = "en",
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> Answer:
    """Run a chapter, or all, from data to report; finished parts are used again."""
    if chapter is None:
        return _listed(as_json)
    if chapter not in {*CHAPTERS, ALL}:
        raise UsageError(f"unknown chapter {chapter!r}", did_you_mean(chapter, sorted({*CHAPTERS, ALL})))
    plan = _plan(full=full, quick=quick, locality=locality, pretrained=pretrained, smoke=smoke)
    chosen = list(CHAPTERS.values()) if chapter == ALL else [CHAPTERS[chapter]]
    _refuse_missing(plan, chosen)
    language.check(lang)
    folder = out or Path("runs") / (plan if plan in APART else "reproduce")
    results = {
        about.name: _made(about, plan, out if out and chapter != ALL else folder / about.name, device, lang, options)
        for about in chosen
    }
    if as_json:
        found = {name: _as_json(result) for name, result in results.items()}
        return Answer(data=found if chapter == ALL else found[chapter])
    return Answer(tuple(part for result in results.values() for part in _told(result)))


def _plan(**asked: bool) -> str:
    named = [name for name, wanted in asked.items() if wanted]
    if len(named) > 1:
        raise UsageError(f"--{named[0]} and --{named[1]} exclude each other")
    return named[0] if named else "normal"


def _refuse_missing(plan: str, chosen: Sequence[Chapter]) -> None:
    without = [about.name for about in chosen if plan not in about.plans]
    if without:
        having = [name for name, about in CHAPTERS.items() if plan in about.plans]
        raise UsageError(
            f"there is no --{plan} for {' and '.join(without)}", remedy=f"These have: {', '.join(having)}."
        )


def _made(about: Chapter, plan: str, out: Path, device: str, lang: str, options: DataOptions) -> Result:
    cached = _is_cached(about.data, options.access())
    fetched = "nothing: the data are in the cache" if cached else megabytes(about.download)
    say(f"{about.name}: {about.title}")
    say(f"  downloads {fetched}; uses {megabytes(about.disk)} of disk for data and runs; writes to {out}")
    module = importlib.import_module(f"diabolo.chapters.{about.name}")
    with shared.progress() as progress:
        result: Result = module.reproduce(
            out, plan=plan, access=options.access(), device=device, progress=progress, lang=lang
        )
    if result.reused:
        say(f"used again (same configuration, data and source): {len(result.reused)} finished parts")
        say(f"  to redo one, delete its folder, for example {result.runs[0].path}; to redo all, delete {out}")
    say(f"{about.name}: done in {result.seconds:.1f} s: {result.report}")
    return result


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "report": str(result.report),
        "reused": result.reused,
        "seconds": result.seconds,
        "runs": {run.name: run.evaluation() for run in result.runs},
    }


def _told(result: Result) -> Sequence[Any]:
    found = listings.evaluation_tables([(run, run.evaluation()) for run in result.runs])
    tables = [part for row in found for part in (*row[:2], f"  {row[2]}\n")]
    return [*tables, f"report: {result.report}"]


def _is_cached(name: str, access: Access) -> bool:
    from diabolo.data import manage

    return any(row.name == name and row.cached for row in manage.describe(access))


def _listed(as_json: bool) -> Answer:
    if as_json:
        return Answer(data=[asdict(about) for about in CHAPTERS.values()])
    lines: list[str] = []
    for about in CHAPTERS.values():
        size = f"download {megabytes(about.download)}, disk {megabytes(about.disk)}"
        lines.append(f"{about.name:13} {about.title}")
        took = "not timed yet" if about.seconds is None else f"took {about.seconds / 60:.1f} min on {about.machine}"
        lines.append(f"{'':13} {size}, {took}")
    return Answer((*lines, "Run one with: diabolo reproduce NAME, or all with: diabolo reproduce all"))


VERBS = (reproduce,)
