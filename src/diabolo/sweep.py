"""A sweep: the points of a range, trained and evaluated as independent runs, and the rate-distortion curve that they draw.

DIR/PARAMETER=VALUE/       one run a point, see `runs`
DIR/sweep.json             what was measured of each point
DIR/rate_distortion.svg    the curve
DIR/report.html            the page: curve, table, configuration
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from diabolo import plots, runs, tables, workers
from diabolo.data import Access
from diabolo.errors import DataError
from diabolo.evaluation import Settings
from diabolo.images_metrics import psnr, psnr_se
from diabolo.language import say
from diabolo.listings import kind_of_values
from diabolo.plots import Mark
from diabolo.progress import Progress
from diabolo.ranges import Plan, Point
from diabolo.report import Facts, drawing, facts_of, write_template
from diabolo.tables import Reading, number
from diabolo.workers import FailedJobs, Failure, Job

#: Rates, distortions and errors are taken on the whole test split; log p(x) is none of a sweep's numbers.
SETTINGS = Settings(k=100, images=100, curve_k=(), curve_images=0, probes=False)
#: What is read of each point's evaluation: its name there -> its name here.
NUMBERS = {
    "kl": "rate",
    "distortion": "distortion",
    "elbo": "elbo",
    "mse_sample": "mse_sample",
    "active_units": "active_units",
}
#: The parts of an entry of evaluation.json that are kept.
_KEPT = ("value", "se", "n", "unit", "of", "samples", "z")


@dataclass(frozen=True)
class Swept:
    """What a sweep made: its files, its numbers as they stand in sweep.json, what was used again."""

    report: Path
    figure: Path
    numbers: Path
    found: Mapping[str, Any]
    reused: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A point that was trained and evaluated."""

    point: Point
    reading: Reading
    entries: Mapping[str, Mapping[str, Any]]


def sweep(
    plan: Plan,
    out: Path,
    *,
    processes: int | None = None,
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    imports: Sequence[str] = (),
    lang: str = "en",
) -> Swept:
    """Train and evaluate the points of a plan that are not there yet, then write the curve, its numbers and the page.

    Where points failed, the files are written of those that did not, and the error is raised then.

    Raises:
        DataError: if the data cannot be had.
        FailedJobs: if points failed, once all others are finished.
        InterruptedJobs: after SIGINT or SIGTERM; the same call goes on.
        UsageError: for a place that cannot be written, or a language that there is not.
    """
    progress, reused = progress or Progress(), list[str]()
    jobs = [Job(out / plan.folder(point), point.config, SETTINGS) for point in plan.points]
    failed: FailedJobs | None = None
    try:
        workers.run(
            jobs, processes=processes, access=access, device=device, progress=progress, imports=imports, reused=reused
        )
    except FailedJobs as error:
        failed = error
    failures = {failure.path: failure for failure in failed.failures} if failed else {}
    measured = [measure(runs.Run(j.path), p) for j, p in zip(jobs, plan.points) if j.path not in failures]
    if failed and not measured:
        raise failed
    lost = {point.label: failures[job.path] for job, point in zip(jobs, plan.points) if job.path in failures}
    swept = _written(plan, out, measured, lost, tuple(reused), lang)
    if failed:
        progress.say(f"{swept.report}: written of the {len(measured)} points that are finished")
        raise failed
    return swept


def measure(run: runs.Run, point: Point) -> Measured:
    """The numbers of a point, each {value, se, n, unit}: nats per example, and for images of levels the PSNR at drawn z in dB.

    Raises:
        DataError: if its evaluation lacks one of them.
    """
    reading = tables.read(run, point.label, tuple(NUMBERS))
    entries = {
        here: {key: reading.evaluation[there][key] for key in _KEPT if key in reading.evaluation[there]}
        for there, here in NUMBERS.items()
    }
    error = entries["mse_sample"]
    if "psnr" in reading.evaluation:  # of images, whose levels have a peak
        mse, se = error["value"], error["se"]
        entries["psnr"] = {"value": psnr(mse), "se": psnr_se(mse, se), "n": error["n"], "unit": "dB", "z": "drawn"}
    return Measured(point, reading, entries)


# ------------------------------------------------------------------------------------------------ what is written
def _written(
    plan: Plan,
    out: Path,
    measured: Sequence[Measured],
    lost: Mapping[str, Failure],
    reused: tuple[str, ...],
    lang: str,
) -> Swept:
    if len({m.reading.about["data_hash"] for m in measured}) > 1:
        raise DataError(f"the points of {out} were measured on different data", "Their numbers make no curve.")
    figure, names = curve(measured), ("report.html", "rate_distortion.svg", "sweep.json")
    report, drawn, numbers = (out / name for name in names)
    found = _numbers(plan, measured, lost)
    runs.write_json(numbers, found)
    runs.write_bytes(drawn, plots.svg_file(figure, "rate-distortion"))
    _write_page(report, plan, measured, figure, sorted(lost), lang)
    return Swept(report, drawn, numbers, found, reused)


def _numbers(plan: Plan, measured: Sequence[Measured], lost: Mapping[str, Failure]) -> dict[str, Any]:
    first = measured[0].reading
    about = ("data", "data_hash", "split", "likelihood", "normalised")
    return {
        "schema": runs.SCHEMA,
        "preset": plan.preset,
        "parameter": plan.parameter,
        "range": plan.range,
        "overrides": list(plan.overrides),
        "values": kind_of_values(first.about["values"], first.env["data"]["spec"]["shape"]),
        "unit": first.unit,
        **{key: first.about[key] for key in about},
        "points": [
            {
                "value": m.point.value,
                "label": m.point.label,
                "run": plan.folder(m.point),
                "seed": m.reading.config["seed"],
                "sigma": m.reading.about.get("sigma"),
                **m.entries,
            }
            for m in measured
        ],
        "failed": [{"label": label, "what": failure.what, "why": failure.why} for label, failure in lost.items()],
    }


def curve(measured: Sequence[Measured]) -> Figure:
    """The rate-distortion curve: to the right the rate in nats, upwards the PSNR of images at drawn z, else the distortion."""
    name, unit = _upward(measured), measured[0].reading.unit
    points = [
        Mark(m.point.label, *(m.entries[key][part] for part in ("value", "se") for key in ("rate", name)))
        for m in measured
    ]
    x = say("rate, KL(q(z|x) || p(z)), {unit}", unit=unit)
    y = say("PSNR at drawn z, dB") if name == "psnr" else say("distortion, -E[log p(x|z)], {unit}", unit=unit)
    return plots.marks(points, x, y)


def _upward(measured: Sequence[Measured]) -> str:
    return "psnr" if all("psnr" in m.entries for m in measured) else "distortion"


# ------------------------------------------------------------------------------------------------ the page
def _write_page(
    out: Path, plan: Plan, measured: Sequence[Measured], figure: Figure, lost: Sequence[str], lang: str
) -> Path:
    readings = [m.reading for m in measured]
    facts, upward = _facts(readings), _upward(measured)
    label = say("Rate and distortion for each value of {parameter}", parameter=plan.parameter)
    return write_template(
        "sweep.html.j2",
        out,
        lang,
        title=say("{preset}: rate and distortion by {parameter}", preset=plan.preset, parameter=plan.parameter),
        parameter=plan.parameter,
        range=plan.range,
        facts=facts,
        upward=upward,
        curve=drawing("", "rate-distortion", label, figure),
        curve_facts=replace(facts, unit=say("{nats} and dB", nats=facts.unit)) if upward == "psnr" else facts,
        summary=_summary(measured, upward),
        rows=[_row(m, upward) for m in measured],
        sigmas=any(r.about.get("sigma") is not None for r in readings),
        samples=measured[0].entries["elbo"]["samples"],
        error_unit=tables.word(measured[0].entries["mse_sample"]["unit"]),
        lost=", ".join(lost),
        runs=readings,
        config=tables.shared_and_differing([r.config for r in readings]),
        env=tables.shared_and_differing([tables.versions(r) for r in readings]),
        clocks=[(plan.folder(m.point), tables.clock(m.reading)) for m in measured],
        hashes=tables.hashes(readings),
    )


def _facts(readings: Sequence[Reading]) -> Facts:
    """What the captions say; a standard deviation of p(x|z) only where all points have the same."""
    first, seeds = readings[0], {str(r.config["seed"]) for r in readings}
    facts = facts_of(first, seed=", ".join(sorted(seeds)))
    same = len({r.about.get("sigma") for r in readings}) == 1
    return facts if same else replace(facts, likelihood=first.about["likelihood"])


def _row(m: Measured, upward: str) -> dict[str, Any]:
    """A row of the table: (name, value, text, standard error) of each number."""
    sigma, active = m.reading.about.get("sigma"), m.entries["active_units"]
    names = ("rate", "distortion", "elbo", "mse_sample", *(["psnr"] if upward == "psnr" else []))
    return {
        "label": m.point.label,
        "run": m.reading.name,
        "n": f"{m.entries['elbo']['n']:,}",
        "sigma": "" if sigma is None else f"{sigma:.4g}",
        "cells": [
            (name, entry["value"], number(entry["value"], digits(name)), number(entry["se"], digits(name)))
            for name, entry in ((name, m.entries[name]) for name in names)
        ],
        "active": (active["value"], say("of {total}", total=active["of"])),
    }


def digits(name: str) -> int:
    """Decimals of a number in the table."""
    return tables.digits_of(name)


def _summary(measured: Sequence[Measured], upward: str) -> list[tuple[str, str, str]]:
    """From the least to the largest value of three numbers: label, range, unit."""
    labels = {
        "rate": say("Rate"),
        "psnr": say("PSNR at drawn z"),
        "distortion": say("Distortion"),
        "active_units": say("Active latent dimensions"),
    }
    lines: list[tuple[str, str, str]] = []
    for name in ("rate", upward, "active_units"):
        entries = [m.entries[name] for m in measured]
        least, most = (pick(entry["value"] for entry in entries) for pick in (min, max))
        text = say("{least} to {most}", least=number(least, digits(name)), most=number(most, digits(name)))
        lines.append((labels[name], text, tables.word(entries[0]["unit"])))
    return lines
