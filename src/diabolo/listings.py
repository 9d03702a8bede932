"""What the command line lists, as tables: presets, values with their origins, data sets, evaluations. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from diabolo import packaged
from diabolo.recorded import shown_k

if TYPE_CHECKING:
    from diabolo.config import Resolved
    from diabolo.data.manage import Row
    from diabolo.runs import Run

IMPORTANCE_COLUMNS = ("log p(x), IS", "gap")
BOUND_COLUMNS = ("KL", "MSE, z = mu", "MSE, z drawn", "active")
CODE_COLUMNS = ("run", "distortion", "MSE, z = code")


def table(*columns: str) -> Table:
    """An unruled table with bold headings."""
    return Table(*columns, box=None, header_style="bold", padding=(0, 1))


def preset_table(presets: Mapping[str, Mapping[str, Any]]) -> Table:
    """Name, parts, reference and expected number of each preset."""
    rows = table("preset", "what", "data", "parts", "reference", "expected")
    for name, preset in presets.items():
        model, about = preset["model"], preset["about"]
        parts = [model[part]["name"] for part in ("encoder", "posterior", "prior", "likelihood")] + [
            preset["objective"]["name"]
        ]
        rows.add_row(
            name, about["summary"], preset["data"]["name"], " | ".join(parts), about["reference"], about["expected"]
        )
    return rows


def pretrained_table() -> Table:
    """Name, summary and measured result of each model that comes with the package."""
    rows = table("pretrained", "what", "measured with the weights that come along")
    for name in packaged.names():
        found = packaged.about(packaged.ROOT / name)
        rows.add_row(f"{packaged.PREFIX}{name}", found["summary"], packaged.told(found))
    return rows


def config_table(resolved: Resolved, values: Mapping[str, Any]) -> Table:
    """Each resolved value with where it came from."""
    rows = table("key", "value", "from")
    for path, origin in resolved.origins.items():
        rows.add_row(path.removesuffix(".name"), plain(values[path]), origin)
    return rows


def data_table(sets: Sequence[Row]) -> Table:
    """Each data set with its size, whether it is cached, and its sources."""
    rows = table("data set", "what", "download", "on disk", "cached", "sources")
    for row in sets:
        here = "-" if row.cached is None else "yes" if row.cached else "no"
        sizes = [megabytes(row.download) if row.download else "none", megabytes(row.bytes) if row.bytes else "-"]
        rows.add_row(row.name, row.what, *sizes, here, ", ".join(row.sources) or "built in")
    return rows


def evaluation_tables(finished: Sequence[tuple[Run, dict[str, Any]]]) -> Iterator[tuple[str, Table, str]]:
    """(heading, table, what its numbers are) of runs with their evaluations, for each likelihood and kind of model: families,
    and models with and without a bound, are never set side by side."""
    groups: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run, result in finished:
        about = result["about"]
        label = "" if about["normalised"] else ", unnormalised"
        kind = "" if about["bound"] == "elbo" else ", no bound: a plain autoencoder"
        values = kind_of_values(about["values"], run.env["data"]["spec"]["shape"])
        data = f"data {about['data']}, {about['split']} split, {values} values"
        estimated = "" if kind or "log_p" in result else ", log p(x) not estimated"
        heading = f"{data}, likelihood {about['likelihood']}{label}{kind}{estimated}, n = {about['n']:,}"
        groups.setdefault(heading, []).append((run, result))
    for heading, members in groups.items():
        first = members[0][1]
        bound = first["about"]["bound"] == "elbo"
        rows = table(*(_bound_columns(first) if bound else CODE_COLUMNS))
        for run, result in members:
            rows.add_row(run.name, *(_cells(result) if bound else _code_cells(result)))
        yield heading, rows, _numbers(first) if bound else _unbounded_numbers(first)


def _unbounded_numbers(result: Mapping[str, Any]) -> str:
    unit = result["distortion"]["unit"]
    return f"{unit}, value +- standard error over images; no log p(x); MSE per {_value(unit)}"


def _value(unit: str) -> str:
    return "pixel" if unit == "nats/image" else "value"


def _bound_columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    return ("run", "ELBO", *(IMPORTANCE_COLUMNS if "log_p" in result else ()), *BOUND_COLUMNS)


def _numbers(result: Mapping[str, Any]) -> str:
    unit, log_p = result["elbo"]["unit"], result.get("log_p")
    if log_p is None:
        return f"{unit}, value +- standard error over images; MSE per {_value(unit)}"
    of = "images" if log_p["se"] == log_p["plain_se"] else "the mean gap"
    few = "" if log_p["ess_p10"] >= 10 else " (a few draws carry some images: their log p(x) is low)"
    return (
        f"{unit}, value +- standard error over images; log p(x): K = {_draws(log_p)} on n = {log_p['n']:,}, +- that of {of}, "
        f"effective sample size: median {log_p['ess_median']:.1f}, tenth percentile {log_p['ess_p10']:.1f}{few}; "
        f"MSE per {_value(unit)}"
    )


def _draws(log_p: Mapping[str, Any]) -> str:
    """K, and where each image has its own what it came to and how many images it was not enough for."""
    if log_p.get("mode") != "adaptive":
        return shown_k(log_p["k"])
    return (
        f"{shown_k(log_p['k'])}, median {log_p['k_median']:,}, proposal {log_p.get('proposal', 'posterior')}, "
        f"{log_p['at_ceiling']:,} at the ceiling of "
        f"{log_p['ceiling']:,}, {log_p['within']:,} within SE and bias,"
    )


def _shown(result: Mapping[str, Any], name: str, digits: int) -> str:
    return f"{result[name]['value']:.{digits}f} +- {result[name]['se']:.{digits}f}"


def _cells(result: Mapping[str, Any]) -> list[str]:
    gap, active = result.get("log_p"), result["active_units"]
    estimated = [] if gap is None else [_shown(result, "log_p", 2), f"{gap['gap']:.2f} +- {gap['gap_se']:.2f}"]
    return [
        _shown(result, "elbo", 2),
        *estimated,
        _shown(result, "kl", 2),
        _shown(result, "mse_mean", 4),
        _shown(result, "mse_sample", 4),
        f"{active['value']}/{active['of']}",
    ]


def _code_cells(result: Mapping[str, Any]) -> list[str]:
    return [_shown(result, "distortion", 2), _shown(result, "mse_mean", 4)]


def kind_of_values(values: str, shape: Sequence[int]) -> str:
    """How people call an example's values: levels k/255 in three channels are RGB."""
    return "RGB" if values == "grey" and len(shape) == 3 and shape[0] == 3 else values


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / 1e6:,.1f} MB"


def plain(value: Any) -> str:
    """A value as it would be written on the command line."""
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ",".join(map(plain, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
