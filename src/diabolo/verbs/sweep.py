"""The verb sweep: one parameter over a range, and the rate-distortion curve that its points draw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from diabolo import choices, language, ranges
from diabolo.errors import UsageError
from diabolo.listings import table
from diabolo.options import DataOptions, Device, Imports, Json, Lang, import_modules
from diabolo.verbs.shared import Answer, at_least, progress

if TYPE_CHECKING:
    from diabolo.sweep import Swept


def sweep(
    preset: Annotated[str, Parameter(help="A preset (see `diabolo list`), or a run's config.json.")],
    /,
    *overrides: Annotated[
        str,
        Parameter(
            help="key=value, one of them with a range: log:0.01..10:7 (geometric), lin:2..20:4 or '{0.1,0.3,1}' as its value."
        ),
    ],
    out: Annotated[
        Path | None, Parameter(help="Where to; runs/sweep/PRESET-KEY where left out. Finished points are used again.")
    ] = None,
    processes: Annotated[
        int | None, Parameter(help="Runs at a time, each a process of one thread; one a core where left out.")
    ] = None,
    import_: Imports = (),
    device: Device = "auto",
    lang: Lang = "en",
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> Answer:
    """Train and evaluate a preset at each value of a range, several at a time, and draw the rate-distortion curve."""
    import_modules(import_)
    language.check(lang)
    if processes is not None:
        at_least("--processes", processes, 1)
    if choices.is_folder(preset):
        remedy = f"Sweep a preset on it: diabolo sweep vae data={preset} {' '.join(overrides)}"
        raise UsageError(f"{preset} is no preset", "What is chosen for a folder is chosen anew for each run.", remedy)
    plan = ranges.plan(preset, overrides)
    place = out or plan.default_place()
    _check_place(place)
    from diabolo import sweep as sweeping

    with progress() as shown:
        swept = sweeping.sweep(
            plan,
            place,
            processes=processes,
            access=options.access(),
            device=device,
            progress=shown,
            imports=import_,
            lang=lang,
        )
    return Answer(data=_numbers(swept)) if as_json else Answer((*_told(swept), *_places(swept)))


def _check_place(place: Path) -> None:
    if place.exists() and not place.is_dir():
        raise UsageError(f"--out {place} is a file", "A sweep is a folder of runs.", "Choose another --out.")
    if (place / "config.json").exists():
        raise UsageError(
            f"{place} is a run already", "A sweep needs a folder to put its runs into.", "Choose another --out."
        )


def _told(swept: Swept) -> tuple[Any, ...]:
    found, points = swept.found, swept.found["points"]
    label = "" if found["normalised"] else ", unnormalised"
    data = f"data {found['data']}, {found['split']} split, {found['values']} values"
    heading = f"{data}, likelihood {found['likelihood']}{label}"
    image = all("psnr" in point for point in points)
    rows = table(
        found["parameter"], "rate", "distortion", "ELBO", "MSE, z drawn", *(["PSNR"] if image else []), "active"
    )
    for point in points:
        active = point["active_units"]
        numbers = [
            _cell(point, "rate"),
            _cell(point, "distortion"),
            _cell(point, "elbo"),
            _cell(point, "mse_sample", 5),
        ]
        rows.add_row(
            point["label"], *numbers, *([_cell(point, "psnr")] if image else []), f"{active['value']}/{active['of']}"
        )
    decibels = "; PSNR in dB at drawn z" if image else ""
    foot = f"  {found['unit']}, value +- standard error over examples{decibels}"
    return f"{heading}, n = {points[0]['elbo']['n']:,}", rows, foot


def _cell(point: Mapping[str, Any], name: str, digits: int = 2) -> str:
    return f"{point[name]['value']:.{digits}f} +- {point[name]['se']:.{digits}f}"


def _places(swept: Swept) -> tuple[str, ...]:
    again = (f"used again (same configuration, data and source): {len(swept.reused)} finished parts",)
    return (
        "",
        *(again if swept.reused else ()),
        f"numbers: {swept.numbers}",
        f"curve: {swept.figure}",
        f"report: {swept.report}",
    )


def _numbers(swept: Swept) -> dict[str, Any]:
    places = {"report": str(swept.report), "curve": str(swept.figure), "numbers": str(swept.numbers)}
    return {**swept.found, **places, "reused": list(swept.reused)}


VERBS = (sweep,)
