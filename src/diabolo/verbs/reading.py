"""Verbs that read runs: compare, reconstruct, interpolate, traverse, score, embed, clean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from diabolo.errors import DataError, UsageError
from diabolo.listings import megabytes, plain, table
from diabolo.options import DataOptions, Device, Imports, Json, RunPath, existing_run, import_modules
from diabolo.recorded import shown_k
from diabolo.verbs.shared import (
    Answer,
    Overwrite,
    Source,
    SplitName,
    at_least,
    given,
    how_read,
    label_of,
    picture,
    progress,
    ready,
)

if TYPE_CHECKING:
    from diabolo.compare import Comparison, Difference, Summary

#: Digits after the point, by metric; 2 for what is in nats.
_DIGITS = {"mse_mean": 4, "mse_sample": 4}


# ------------------------------------------------------------------------------------------------ comparing
def compare(*runs: RunPath, import_: Imports = (), as_json: Json = False) -> Answer:
    """Compare evaluated runs: seeds of a configuration together, and each run with the first, image by image."""
    import_modules(import_)
    if len(runs) < 2:
        raise UsageError("compare needs at least two runs", remedy="For example: diabolo compare runs/a runs/b")
    for path in runs:
        existing_run(path)
    from diabolo import compare as comparing
    from diabolo.runs import Run

    found = comparing.compare([Run(path) for path in runs])
    return Answer(data=found.to_dict()) if as_json else Answer(_compared(found))


def _compared(found: Comparison) -> tuple[str | Table, ...]:
    c, names = found.conditions, list(found.groups[0].metrics)
    shown = _short_names([run for group in found.groups for run in group.runs])
    heading = f"data {c['data']}, {c['split']} split, n = {c['n']:,}, likelihood family {c['likelihood family']}"
    sampled = f"log p(x): K = {shown_k(c['K'])}; " if "log_p" in names else ""
    numbers = f"{c['unit']}; {sampled}{c['bound or estimate']}; data hash {c['data hash'][:12]}"
    groups = table("configuration", "runs", "seeds", *names)
    for group in found.groups:
        told = " ".join(f"{path}={plain(value)}" for path, value in group.differs.items())
        n = str(next(iter(group.metrics.values())).n)
        cells = [_summary_cell(name, summary) for name, summary in group.metrics.items()]
        groups.add_row(f"{group.label} {told}".strip(), ", ".join(shown[run] for run in group.runs), n, *cells)
    pairs = table("run", "metric", "difference", "95 % interval", "verdict", "images", "unit")
    for run, metrics in found.differences.items():
        for name, d in metrics.items():
            here = shown[run] if name == names[0] else ""
            pairs.add_row(here, name, *_difference_cells(name, d), d.verdict, f"{d.n:,}", d.unit)
    return (
        heading,
        groups,
        f"  {numbers}; mean over seeds +- standard deviation between seeds",
        f"\ndifferences to {shown[found.first]}, paired by image",
        pairs,
        "  over the images of these trained runs; how much another seed would change is the spread above",
    )


def _summary_cell(name: str, s: Summary) -> str:
    digits = _DIGITS.get(name, 2)
    return f"{s.mean:.{digits}f}" + ("" if s.spread is None else f" +- {s.spread:.{digits}f}")


def _difference_cells(name: str, d: Difference) -> tuple[str, str]:
    digits = _DIGITS.get(name, 2)
    if 0 < d.high - d.low < 10**-digits:  # never an interval that is rounded to one number
        digits = min(9, 1 - math.floor(math.log10(d.high - d.low)))
    return f"{d.mean:+.{digits}f}", f"{d.low:+.{digits}f} to {d.high:+.{digits}f}"


def _short_names(runs: Sequence[str]) -> dict[str, str]:
    """The last part of each path, or the whole paths where two share it."""
    names = {run: Path(run).name for run in runs}
    return names if len(set(names.values())) == len(names) else {run: run for run in runs}


# ------------------------------------------------------------------------------------------------ numbers
def score(
    run: RunPath,
    path: Source = None,
    /,
    *,
    out: Annotated[Path, Parameter(help="The CSV file to write.")],
    split: SplitName = None,
    elbo_samples: Annotated[int, Parameter(help="Draws of z for each example.")] = 10,
    overwrite: Overwrite = False,
    import_: Imports = (),
    device: Device = "auto",
    options: DataOptions = DataOptions(),
) -> Answer:
    """Write ELBO, distortion, rate and percentile of the test set of each example, in order, as CSV."""
    ready(run, path, split, out, overwrite, import_, (".csv",))
    at_least("--elbo-samples", elbo_samples, 1)
    from diabolo import inspection
    from diabolo.engine import pick_device

    opened, chosen = given(run, path, split, options)
    with progress() as shown:
        scores = inspection.score(
            opened,
            chosen,
            samples=elbo_samples,
            access=options.access(),
            device=pick_device(device),
            progress=shown,
        )
    inspection.write_scores(out, scores)
    mean = f"mean ELBO {scores.elbo.mean():.2f} nats per example, n = {len(scores.elbo):,}"
    return Answer((*how_read(chosen), f"scores: {out}  ({mean}, {label_of(opened)}; {elbo_samples} draws of z)"))


def embed(
    run: RunPath,
    path: Source = None,
    /,
    *,
    out: Annotated[Path, Parameter(help="The .npz or .csv file to write.")],
    split: SplitName = None,
    overwrite: Overwrite = False,
    import_: Imports = (),
    device: Device = "auto",
    options: DataOptions = DataOptions(),
) -> Answer:
    """Write the posterior mean of each example, in order."""
    ready(run, path, split, out, overwrite, import_, (".npz", ".csv"))
    from diabolo import inspection
    from diabolo.engine import pick_device

    opened, chosen = given(run, path, split, options)
    where = pick_device(device)
    codes = inspection.embed(opened.model().to(where), chosen.loader(where))
    inspection.write_codes(out, codes)
    return Answer((
        *how_read(chosen),
        f"codes: {out}  ({codes.shape[0]:,} posterior means of {_dimensions(codes.shape[1:])})",
    ))


# ------------------------------------------------------------------------------------------------ pictures
def reconstruct(
    run: RunPath,
    path: Source = None,
    /,
    *,
    n: Annotated[int, Parameter(help="How many examples.")] = 16,
    seed: int = 0,
    split: SplitName = None,
    out: Annotated[Path | None, Parameter(help="The PNG file; reconstructions.png in the run directory.")] = None,
    overwrite: Overwrite = False,
    import_: Imports = (),
    options: DataOptions = DataOptions(),
) -> Answer:
    """Write a PNG of random examples, each over its reconstruction at z = mu."""
    ready(run, path, split, out, overwrite, import_, (".png",))
    at_least("--n", n, 1)
    from diabolo import inspection

    opened, chosen = given(run, path, split, options)
    pairs = inspection.reconstructions(opened.model(), chosen.loader(), n=n, seed=seed)
    shown, target = pairs.shape[1], out or opened.place("reconstructions.png")
    picture(target, inspection.in_lines(pairs, min(shown, 16)))
    return Answer((*how_read(chosen), f"reconstructions: {target}  (n = {shown}, {chosen.source}, real over z = mu)"))


def interpolate(
    run: RunPath,
    path: Source = None,
    /,
    *,
    n: Annotated[int, Parameter(help="Steps from one to the other, ends included.")] = 10,
    pairs: Annotated[int, Parameter(help="How many pairs, one a row.")] = 8,
    seed: int = 0,
    split: SplitName = None,
    out: Annotated[Path | None, Parameter(help="The PNG file; interpolations.png in the run directory.")] = None,
    overwrite: Overwrite = False,
    import_: Imports = (),
    options: DataOptions = DataOptions(),
) -> Answer:
    """Write a PNG with a row for each pair of examples: the one, the straight line between their codes, the other."""
    ready(run, path, split, out, overwrite, import_, (".png",))
    at_least("--n", n, 2)
    at_least("--pairs", pairs, 1)
    from diabolo import inspection

    opened, chosen = given(run, path, split, options)
    target = out or opened.place("interpolations.png")
    picture(target, inspection.interpolations(opened.model(), chosen.loader(), steps=n, pairs=pairs, seed=seed))
    return Answer((*how_read(chosen), f"interpolations: {target}  ({pairs} pairs, {n} steps, {chosen.source})"))


def traverse(
    run: RunPath,
    path: Source = None,
    /,
    *,
    n: Annotated[int, Parameter(help="Steps along a dimension.")] = 11,
    span: Annotated[float, Parameter(help="How far, in standard deviations of the prior, or of the codes.")] = 3.0,
    rows: Annotated[int, Parameter(help="At most so many latent dimensions, the most active.")] = 32,
    split: SplitName = None,
    out: Annotated[Path | None, Parameter(help="The PNG file; traversals.png in the run directory.")] = None,
    overwrite: Overwrite = False,
    import_: Imports = (),
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> Answer:
    """Write a PNG with a row for each of the most active latent dimensions, the others at the prior's (or the codes') mean."""
    ready(run, path, split, out, overwrite, import_, (".png",))
    at_least("--n", n, 2)
    at_least("--rows", rows, 1)
    if not 0 < span < float("inf"):
        raise UsageError(f"--span {span} is refused", "It must be greater than 0.")
    from diabolo import inspection

    opened, chosen = given(run, path, split, options)
    model, target = opened.model(), out or opened.place("traversals.png")
    codes = inspection.embed(model, chosen.loader())
    if len(codes) < 2:
        raise DataError(f"{chosen.source} has one example", "How active a dimension is needs at least two.")
    pictures, order, activity = inspection.traversals(model, codes, steps=n, span=span, rows=rows)
    picture(target, pictures)
    if as_json:
        return Answer(
            data={
                "out": str(target),
                "rows": len(pictures),
                "shape": list(codes.shape[1:]),
                "order": order.tolist(),
                "activity": activity.tolist(),
            }
        )
    listed = _most_active(order[: len(pictures)].tolist(), activity.tolist(), tuple(codes.shape[1:]))
    d = len(order)
    told = () if len(pictures) == d else (f"  the {len(pictures)} most active of {d} latent dimensions",)
    of = "prior standard deviations" if model.bounded else "standard deviations of the codes: there is no prior"
    return Answer((*how_read(chosen), listed, *told, f"traversals: {target}  (-{span:g} to {span:g} {of})"))


def _most_active(order: Sequence[int], activity: Sequence[float], shape: tuple[int, ...]) -> Table:
    from diabolo.models.grids import place

    names = "latent dimension (channel, row, column)" if len(shape) == 3 else "latent dimension"
    rows = table("row", names, "variance of the posterior mean")
    for row, (j, variance) in enumerate(zip(order, activity), 1):
        rows.add_row(str(row), place(j, shape), f"{variance:.4f}")
    return rows


def _dimensions(shape: Sequence[int]) -> str:
    """A number of dimensions, with the grid that they form."""
    from diabolo.models.grids import size_of, told

    return f"{size_of(shape)} dimensions" + (f", {told(shape)}" if len(shape) > 1 else "")


# ------------------------------------------------------------------------------------------------ disk
def clean(
    folder: Annotated[Path, Parameter(help="Where the runs are.")] = Path("runs"),
    /,
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], help="Remove them; without it they are listed.")] = False,
    as_json: Json = False,
) -> Answer:
    """List, and with --yes remove, what finished runs keep only for resuming: their state/ folders, never weights."""
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist", remedy="Name the folder of the runs: diabolo clean FOLDER")
    from diabolo import inspection

    found = dict(inspection.spare_states(folder))
    removed = inspection.remove_states(list(found)) if yes else []
    if as_json:
        sizes = {str(path): size for path, size in found.items()}
        return Answer(data={"found": sizes, "removed": [str(path) for path in removed]})
    lines = [
        f"{'removed' if path in removed else 'found'} {megabytes(size):>12}  {path}" for path, size in found.items()
    ]
    return Answer((*lines, _cleaned(found, yes)))


def _cleaned(found: Mapping[Path, int], yes: bool) -> str:
    total = f"{len(found)} state folders of finished runs, {megabytes(sum(found.values()))}"
    return total if yes or not found else f"{total}; remove them with --yes"


VERBS = (compare, score, embed, reconstruct, interpolate, traverse, clean)
