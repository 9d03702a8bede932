"""The tables of the sharp chapter as text: reconstructions beside closed forms, the ablation, the priors, the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diabolo import sampling_table
from diabolo.chapters.cifar10_table import line_name
from diabolo.chapters.sharp_numbers import BASE, base_of
from diabolo.chapters.sharp_words import NAMES, PRIORS, SETS
from diabolo.language import say
from diabolo.tables import Cell, number, signed

Found = Mapping[str, Any]

#: Column -> its head, the unit below it, and how many decimals are printed.
COLUMNS: dict[str, tuple[str, str, int]] = {
    "psnr": ("PSNR", say("dB, z = \u03bc"), 2),
    "ssim": ("SSIM", say("z = \u03bc"), 4),
    "mse_mean": ("MSE", say("z = \u03bc"), 5),
    "bits_per_dim": (say("Bits/dim"), say("as trained"), 4),
    "bits_per_dim_calibrated": (say("Bits/dim"), say("\u03c3 set on the training images"), 4),
    "kl": (say("Rate"), say("nats/image"), 1),
    "latents": (say("Latents"), say("numbers of the code"), 0),
    "directions": (say("Active directions"), say("of d"), 0),
    "parameters": (say("Parameters"), "", 0),
    "images": (say("Images seen"), say("in training"), 0),
    "seconds": (say("Wall time"), say("s, training"), 0),
}


@dataclass(frozen=True)
class Row:
    """A model in the table: its name, what is to be known of it, its cells (None: it has no such number)."""

    name: str
    title: str
    described: str
    bits: float
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class Group:
    """Models that may be ranked against one another: one likelihood family, one split."""

    family: str
    split: str
    n: str
    rows: Sequence[Row]


def groups(found: Found) -> list[Group]:
    """The runs and, beside the Gaussians, the lines in closed form, the fewest bits first, each family by itself."""
    runs = found["runs"]
    made = []
    for family, split in sorted({(row["family"], row["split"]) for row in runs.values()}):
        own = {name: row for name, row in runs.items() if (row["family"], row["split"]) == (family, split)}
        rows = [_row(name, row) for name, row in own.items()]
        if family == "gaussian" and split == "test":
            rows += [_line(row) for row in found["linear"]["dequantized"]]
        n = f"{next(iter(own.values()))['psnr']['n']:,}"
        made.append(Group(family, split, n, sorted(rows, key=lambda row: row.bits)))
    return made


def _row(name: str, row: Mapping[str, Any]) -> Row:
    described = row["likelihood"]
    if row["sigma"] is not None:
        described = say("\u03c3\u00b2 = {variance}; a bound", variance=f"{row['sigma'] ** 2:.4g}")
    cells = [_cell(name, metric, row) for metric in COLUMNS]
    return Row(name, NAMES[name], described, float(row["bits_per_dim"]["value"]), cells)


def _cell(name: str, metric: str, row: Mapping[str, Any]) -> Cell | None:
    """A metric with its standard error, or a plain count."""
    if metric in {"parameters", "images", "seconds"}:
        note = say("threads: {threads}", threads=row["threads"]) if metric == "seconds" else ""
        return Cell(name, metric, float(row[metric]), number(row[metric], 0), "", "", note)
    if metric == "latents":
        return Cell(name, metric, float(row["active_units"]["of"]), number(row["active_units"]["of"], 0), "", "")
    return _entry(name, metric, row[metric]) if metric in row else None


def _entry(name: str, metric: str, entry: Mapping[str, Any]) -> Cell:
    digits, se = COLUMNS[metric][2], entry.get("se")
    return Cell(
        run=name,
        metric=metric,
        value=float(entry["value"]),
        text=number(entry["value"], digits),
        se="" if se is None else f"\u00b1 {number(se, digits)}",
        n=f"{entry['n']:,}",
    )


def _line(row: Mapping[str, Any]) -> Row:
    """A model in closed form; its PSNR is that at z = mu, which shrinks as a VAE's does."""
    name = "line-full" if row["latent"] is None else f"line-{row['latent']}-{row['variance']:.4g}"
    known = {"psnr": (row["psnr"], None), "bits_per_dim": (row["bits_per_dim"], row["bits_se"])}
    known |= {"kl": (row["kl"], None), "latents": (row["latent"], None), "directions": (row["active"], None)}
    cells = [
        None
        if (value := known.get(metric, (None, None))[0]) is None
        else _entry(name, metric, {"value": value, "se": known[metric][1], "n": row["n"]})
        for metric in COLUMNS
    ]
    return Row(name, line_name(row), say("in closed form; exact"), float(row["bits_per_dim"]), cells)


# ------------------------------------------------------------------------------------------------ the ablation
def ablation(found: Found) -> list[Row]:
    """The short run and each change of it, with its change of PSNR on the same images; none without the short run."""
    runs = found["runs"]
    if BASE not in runs:
        return []
    rows = []
    for name in NAMES:
        if name in runs and name.startswith(BASE):
            row = _row(name, runs[name])
            rows.append(Row(name, row.title, _gain(found, name), row.bits, row.cells))
    return rows


def _gain(found: Found, name: str) -> str:
    if name not in found["gains"]:
        return say("what the others are measured against")
    gain = found["gains"][name]
    return say(
        "{change} \u00b1 {error} dB against: {name}; n = {n}",
        name=NAMES[base_of(name)],
        change=signed(gain["value"]),
        error=number(gain["se"]),
        n=f"{gain['n']:,}",
    )


# ------------------------------------------------------------------------------------------------ priors and samples
def priors(found: Found) -> list[tuple[str, list[str]]]:
    """The fitted priors: how many numbers they hold, their rate and its gain over N(0, I) in nats per image, seconds."""
    return [
        (
            PRIORS[name],
            [
                number(row["numbers"], 0),
                *(_nats(row.get(key)) for key in ("own_rate", "rate", "rate_given_class", "gain")),
                "\u2013" if row["seconds"] is None else number(row["seconds"], 0),
            ],
        )
        for name, row in found["priors"].items()
    ]


def _nats(entry: Mapping[str, Any] | None) -> str:
    return "\u2013" if entry is None else f"{number(entry['value'], 1)} \u00b1 {number(entry['se'], 1)}"


def samples(found: Found) -> list[tuple[str, str, list[str]]]:
    """The name of each set of images, how it is called, and its cells."""
    rows = found["samples"]["rows"]
    return [
        (row["set"], SETS[row["set"]], [text.replace("+-", "\u00b1") for text in sampling_table.cells(row)[1:]])
        for row in rows
    ]
