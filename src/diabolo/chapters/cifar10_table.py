"""Table C6 of the CIFAR-10 chapter, and its lines in closed form, as text: by likelihood family, ranked inside a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diabolo.chapters.cifar10_article import ARTICLE, CONTROL, NAMES, VARIANCE
from diabolo.language import joined, say
from diabolo.recorded import shown_k
from diabolo.tables import Cell, number

#: Column -> its head, the unit below it, and how many decimals are printed.
COLUMNS: dict[str, tuple[str, str, int]] = {
    "sse": ("SSE", say("per image, z drawn"), 2),
    "kl": ("KL", say("nats/image"), 2),
    "article": (say("\u2212(SSE + KL)"), say("what the article prints"), 2),
    "elbo": ("ELBO", say("with its constant, nats/image"), 2),
    "bits_per_dim": (say("Bits/dim"), say("as trained"), 4),
    "bits_per_dim_calibrated": (say("Bits/dim, calibrated"), say("\u03c3 set on the training images"), 4),
    "log_p": ("L_K", "", 2),
    "active_units": (say("Active units"), say("of d"), 0),
    "directions": (say("Active directions"), say("of d"), 0),
    "psnr": ("PSNR", say("dB, z = \u03bc"), 2),
    "ssim": ("SSIM", say("z = \u03bc"), 4),
}
#: The median effective sample size above which L_K may be called log p(x).
ENOUGH = 10
_NETWORKS = {"mlp": "MLP", "conv": "ConvVAE"}


@dataclass(frozen=True)
class Row:
    """A run in the table: its place in the group, its name, its network, its cells."""

    place: int
    name: str
    title: str
    described: str
    control: bool
    cells: Sequence[Cell | None]  # None: not measured


@dataclass(frozen=True)
class Group:
    """Runs that may be ranked against one another: one likelihood family, one order of the pixels."""

    family: str
    permuted: bool
    columns: Mapping[str, tuple[str, str, int]]
    rows: Sequence[Row]


def groups(found: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """The runs by family, the best after calibration first; those on permuted pixels apart."""
    runs = found["runs"]
    keys = sorted({_key(name, row) for name, row in runs.items()})
    made = []
    for permuted, family in keys:
        names = [name for name, row in runs.items() if _key(name, row) == (permuted, family)]
        names.sort(key=lambda name: float(runs[name]["bits_per_dim_calibrated"]["value"]))
        columns = {metric: head for metric, head in COLUMNS.items() if any(metric in runs[name] for name in names)}
        if "log_p" in columns:
            measured = next(runs[name]["log_p"] for name in names if "log_p" in runs[name])
            unit = say("K = {k}, n = {n}", k=shown_k(measured["k"]), n=f"{measured['n']:,}")
            columns["log_p"] = (COLUMNS["log_p"][0], unit, COLUMNS["log_p"][2])
        rows = [_row(place, name, runs[name], configs[name], columns) for place, name in enumerate(names, 1)]
        made.append(Group(family, permuted, columns, rows))
    return made


def _key(name: str, row: Mapping[str, Any]) -> tuple[bool, str]:
    return name.endswith("-permuted"), row["family"]


def _row(place: int, name: str, row: Mapping[str, Any], config: Mapping[str, Any], columns: Mapping[str, Any]) -> Row:
    cells = [_cell(name, metric, row) if metric in row else None for metric in columns]
    return Row(place, name, NAMES[name], described(row, config), name == CONTROL, cells)


def described(row: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """A network in a few words: its kind, its sizes, and the sigma^2 that it was trained with."""
    model = config["model"]
    encoder = model["encoder"]
    network = say(
        "{network}, width {width}, d = {d}",
        network=_NETWORKS.get(encoder["name"], encoder["name"]),
        width=f"{encoder.get('width', 0):,}",
        d=model["latent"],
    )
    if row["sigma"] is None:
        return network
    variance = f"{row['sigma'] ** 2:.4g}"
    sigma = (
        say("\u03c3\u00b2 optimal: {variance}", variance=variance)
        if "optimal" in row["likelihood"]
        else say("\u03c3\u00b2 fixed: {variance}", variance=variance)
    )
    return joined("{before}; {after}", [network, sigma])


def _cell(name: str, metric: str, row: Mapping[str, Any]) -> Cell:
    source, digits = row[metric], COLUMNS[metric][2]
    se = source.get("se")
    published = ARTICLE.get(name) if metric == "article" else None
    return Cell(
        run=name,
        metric=metric,
        value=float(source["value"]),
        text=number(source["value"], digits),
        se="" if se is None else f"\u00b1 {number(se, digits)}",
        n=f"{source['n']:,}",
        note=_note(metric, source),
        published="" if published is None else number(published, 4),
        difference=say("model not named, presumably this one") if published is not None and name == "c3" else "",
    )


def _note(metric: str, source: Mapping[str, Any]) -> str:
    if metric in {"active_units", "directions"}:
        return say("of {total}", total=source["of"])
    if metric != "log_p":
        return ""
    size = number(source["ess_median"], 1)
    if source["ess_median"] > ENOUGH:
        return say("log p(x); ESS {size}", size=size)
    return say("a bound; ESS {size}", size=size)


# ------------------------------------------------------------------------------------------------ the lines in closed form
_LINE_COLUMNS = {"rate": 1, "kl": 1, "psnr": 2, "psnr_projection": 2}


def lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str], float]]:
    """The name of each line, its cells, and its bits per dimension."""
    return [(line_name(row), _line_cells(row), float(row["bits_per_dim"])) for row in rows]


def line_name(row: Mapping[str, Any]) -> str:
    """How a line is called."""
    if row["latent"] is None:
        return say("full covariance")
    if row["fitted"]:
        return say("pPCA, q = {q}, optimal \u03c3", q=f"{row['latent']:,}")
    variance = variance_told(row["variance"])
    return say("pPCA, q = {q}, \u03c3\u00b2 = {variance}", q=f"{row['latent']:,}", variance=variance)


def variance_told(variance: float) -> str:
    """A given sigma^2, the article's as a fraction."""
    return "1/2" if variance == VARIANCE else f"{variance:g}"


def _line_cells(row: Mapping[str, Any]) -> list[str]:
    """sigma^2, -log p and bits/dim with their errors, rate and KL, PSNR at z = mu and projected, active latents,
    SSE + KL."""
    article = None if row["fitted"] else row["sse_and_kl"]
    return [
        "\u2013" if row["variance"] is None else f"{row['variance']:.4g}",
        f"{number(row['nll'])} \u00b1 {number(row['nll_se'])}",
        f"{number(row['bits_per_dim'], 4)} \u00b1 {number(row['bits_se'], 4)}",
        *(_or_dash(row[name], digits) for name, digits in _LINE_COLUMNS.items()),
        _or_dash(row["active"], 0),
        _or_dash(article, 2),
    ]


def _or_dash(value: float | None, digits: int) -> str:
    return "\u2013" if value is None else number(value, digits)
