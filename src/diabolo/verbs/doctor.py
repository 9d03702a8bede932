"""The verb doctor: without a run it describes the environment, with one it says what is wrong with the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diabolo.config import preset_names
from diabolo.data.access import Access
from diabolo.options import DataOptions, Device, Imports, Json, existing_run, import_modules
from diabolo.verbs.shared import Answer

if TYPE_CHECKING:
    from diabolo.findings import Diagnosis

SomeRun = Annotated[Path | None, Parameter(help="A run to diagnose; left out, the environment is described.")]


def doctor(
    run: SomeRun = None,
    /,
    *,
    import_: Imports = (),
    device: Device = "auto",
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> Answer:
    """Diagnose a run, each finding with its measured value and a remedy; without one, describe this environment."""
    import_modules(import_)
    if run is None:
        return _environment(device, as_json)
    existing_run(run)
    from diabolo.diagnosis import diagnose
    from diabolo.runs import Run

    named = "".join(f" --import {module}" for module in import_)
    found = diagnose(Run(run), access=options.access(), device=device, imports=named)
    return Answer(data=found.to_dict()) if as_json else Answer(tuple(_told(found)))


def _environment(device: str, as_json: bool) -> Answer:
    """Versions, machine, device, cache: for a report of a fault."""
    from diabolo.engine import environment, pick_device

    found = {**environment(pick_device(device)), "cache": str(Access().cache), "presets": len(preset_names())}
    return Answer(data=found) if as_json else Answer(tuple(f"{key:14} {value}" for key, value in found.items()))


def _told(found: Diagnosis) -> Iterator[str]:
    count = len(found.findings)
    yield f"{found.run}: {count or 'no'} finding{'' if count == 1 else 's'}"
    if count > 1:
        yield "Look at the first one first: those below may follow from it."
    for f in found.findings:
        yield f"\n{f.name} ({f.severity})\n  measured  {f.measured}\n  why       {f.why}\n  remedy    {f.remedy}"
    yield from _listed("checked and sound", [(s.name, f"{s.measured}  ({s.limit})") for s in found.sound])
    yield from _listed("remarks", [(r.name, r.measured) for r in found.remarks])
    yield from _listed("not checked", [(u.name, u.why) for u in found.unchecked])


def _listed(heading: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    if rows:
        yield f"\n{heading}"
        yield from (f"  {name:19}  {text}" for name, text in rows)


VERBS = (doctor,)
