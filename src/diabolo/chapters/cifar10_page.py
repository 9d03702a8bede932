"""The page of the CIFAR-10 chapter: figures and tables from what was measured; words from `cifar10_words`, `_claims`, `_notes`.

A figure whose run was not made is left out, and the page says so in its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from diabolo import linear, plots, plots_rd, tables
from diabolo.chapters import cifar10_notes as notes
from diabolo.chapters import cifar10_numbers as gathering
from diabolo.chapters import cifar10_table as table
from diabolo.chapters import cifar10_words as words
from diabolo.chapters.cifar10_article import CONTROL, FIGURES, FIXED, NAMES, VARIANCE
from diabolo.chapters.cifar10_claims import claims
from diabolo.images_metrics import psnr
from diabolo.language import joined, say
from diabolo.plots_rd import Contours, Mark
from diabolo.report import (
    Facts,
    Panel,
    Pictures,
    class_legend,
    curve_facts,
    drawing,
    epoch_panels,
    facts_of,
    machines,
    scatter_panel,
    write_template,
)
from diabolo.runs import Run
from diabolo.tables import Reading

#: Runs in the order of the story, but for the further seeds and the permuted pixels.
MAIN = tuple(name for name in NAMES if "seed" not in name and "permuted" not in name)
#: Runs whose generated images stand in a figure of their own.
_GRIDS = ("c1", "c2", "c3", "c4", "c2-optimal", "c4-optimal")
_LEVELS = 160


class Measured(Protocol):
    """What a chapter on colour images measured: plain numbers, and pictures by name. See `cifar10_measures.Measured` and
    `sharp_measures.Measured`."""

    @property
    def numbers(self) -> Mapping[str, Any]: ...

    @property
    def pictures(self) -> Mapping[str, Any]: ...


def write_page(
    out: Path, made: Mapping[str, Run], measured: Measured, stages: Mapping[str, float], lang: str = "en"
) -> Path:
    """Write the chapter's report: one self-contained HTML file.

    Raises:
        DataError: if a run has no evaluation, or one without the metrics of the table.
        UsageError: if `out` cannot be written, or there is no such language.
    """
    readings = _readings(made)
    page = _Page(readings, measured)
    return write_template("cifar10.html.j2", out, lang, **page.values(), **record(readings, stages))


def verdicts(made: Mapping[str, Run], measured: Measured) -> dict[str, Any]:
    """The claims with their verdicts and figures, and each run's active directions, as plain JSON.

    Raises:
        DataError: if a run has no evaluation, or one without the metrics of the table.
    """
    found = _Page(_readings(made), measured).found
    directions = {name: row["directions"]["value"] for name, row in found["runs"].items()}
    return {"claims": [asdict(claim) for claim in claims(found)], "directions": directions}


def _readings(made: Mapping[str, Run]) -> dict[str, Reading]:
    return {name: tables.read(made[name], NAMES[name], gathering.REQUIRED) for name in gathering.in_order([*made])}


def record(readings: Mapping[str, Reading], stages: Mapping[str, float]) -> dict[str, Any]:
    """What the last section of a chapter's page shows: configuration, versions, hashes and time of all runs."""
    everything = list(readings.values())
    return {
        "runs": everything,
        "config": tables.shared_and_differing([r.config for r in everything]),
        "machines": machines({}, everything[0].env),
        "env": tables.shared_and_differing([tables.versions(r) for r in everything]),
        "hashes": tables.hashes(everything),
        "clocks": [(r.name, tables.clock(r)) for r in everything],
        "stages": stages,
    }


class _Page:
    """What the template shows, drawn from one set of runs."""

    def __init__(self, readings: Mapping[str, Reading], measured: Measured) -> None:
        numbers = measured.numbers
        self.readings, self.pictures, self.linear = readings, measured.pictures, numbers["linear"]
        self.plan = str(numbers.get("plan", "normal"))
        self.found = gathering.gathered(readings, self.linear, self.pictures, numbers["epochs"])
        self.found["parameters"] = numbers.get("parameters", {})
        self.series = {name: i for i, name in enumerate(MAIN)}

    def values(self) -> dict[str, Any]:
        found = self.found
        return {
            "title": say("CIFAR-10: why it was blurred"),
            "summary": words.summary(found),
            "why": words.why(found),
            "claims": claims(found),
            "plan_told": words.plan_told(found, self.plan, [name for name in NAMES if name not in self.readings]),
            "reading": words.reading(found),
            "notes": notes.notes(found),
            "references": notes.REFERENCES,
            "others": words.OTHERS,
            "names": NAMES,
            "figures": FIGURES,
            "curves": {name: self._curves(name) for name in ("c1", "c4")},
            "scatter": self._scatter(),
            "grids": {name: self._grids(name) for name in _GRIDS},
            "described": {name: self._described(name) for name in self.readings},
            "fifth": self._fifth(),
            "strip": self._strip(),
            "spectrum": self._spectrum(),
            "plane": self._plane(),
            "groups": table.groups(found, {name: r.config for name, r in self.readings.items()}),
            "lines": {key: table.lines(self.linear[key]) for key in ("dequantized", "grid")},
            "line_n": f"{self.linear['grid'][0]['n']:,}" if self.linear["grid"] else "0",
            "distance": words.distance(found),
            "facts": self.facts(self.readings, say("nats/image"), self._n()),
        }

    # ------------------------------------------------------------------------------------------------ captions
    def facts(self, names: Sequence[str] | Mapping[str, Any], unit: str, n: str, seed: str = "") -> Facts:
        """What a caption says of a figure of these runs: all of their likelihoods, seeds and numbers of epochs."""
        return facts_of_all([self.readings[name] for name in names], unit, n, seed)

    def _n(self) -> str:
        return f"{next(iter(self.readings.values())).about['n']:,}"

    def _key(self, names: Sequence[str]) -> list[tuple[Markup, str]]:
        return [(Markup(plots.swatch(self.series[name])), NAMES[name]) for name in names]

    def _described(self, name: str) -> str:
        return table.described(self.found["runs"][name], self.readings[name].config)

    # ------------------------------------------------------------------------------------------------ the article's figures
    def _curves(self, name: str) -> tuple[list[Panel], Facts] | None:
        if name not in self.readings:
            return None
        reading = self.readings[name]
        facts = replace(curve_facts(reading), epochs=epochs_of([reading]))
        return epoch_panels(f"{name}-curves", [reading]), facts

    def _scatter(self) -> tuple[Panel, Facts, list[tuple[Markup, str]]] | None:
        reading = self.readings.get("c1")
        if reading is None or len(reading.evaluation.get("pca", {}).get("explained", ())) < 2:
            return None
        classes = reading.env["data"]["spec"].get("classes", ())
        facts = self.facts(["c1"], say("latent units"), self._n())
        return scatter_panel("c1-pca", reading), facts, class_legend(reading, classes)

    def _grids(self, name: str) -> tuple[list[Panel], Facts] | None:
        """Real images over generated ones; of C1 also with the noise that its likelihood stands for."""
        pictures = self.pictures.get(name)
        if name not in self.readings or not isinstance(pictures, Pictures) or pictures.generated is None:
            return None
        title = NAMES[name]
        panels = [
            image_panel(say("Real"), pictures.real, say("{n} real test images", n=len(pictures.real))),
            self._generated(name, say("Generated"), pictures.generated),
        ]
        if name == "c1":
            noisy = _with_noise(pictures.generated, pictures.seed)
            alt = say("The same images from {title}, with noise of variance 1/2", title=title)
            panels.append(image_panel(say("Generated, with its noise"), noisy, alt))
        return panels, self._picture_facts([name], len(pictures.real), len(pictures.generated), pictures.seed)

    def _generated(self, name: str, heading: str, images: Tensor) -> Panel:
        return image_panel(heading, images, say("{n} images from {title}", n=len(images), title=NAMES[name]))

    def _picture_facts(self, names: Sequence[str], real: int, generated: int, seed: int) -> Facts:
        n = say("{real} images + {generated} generated", real=real, generated=generated)
        return self.facts(names, say("pixel mean in [0, 1]"), n, say("{seed} (of z)", seed=seed))

    def _fifth(self) -> tuple[list[Panel], Facts, list[str]] | None:
        """Figure 5-6 in its readings; and the names of those that were not made."""
        names = [name for name in ("c5-leaky", "c5-leaky-optimal", CONTROL) if name in self.readings]
        shown = {name: self.pictures[name] for name in names if isinstance(self.pictures.get(name), Pictures)}
        panels = [
            self._generated(name, NAMES[name], p.generated) for name, p in shown.items() if p.generated is not None
        ]
        if not panels:
            return None
        first = next(iter(shown.values()))
        facts = self.facts(
            [*shown],
            say("pixel mean in [0, 1]"),
            say("{n} images each", n=len(first.real)),
            say("{seed} (of z)", seed=first.seed),
        )
        return panels, facts, [NAMES[n] for n in ("c5-leaky", "c5-leaky-optimal", CONTROL) if n not in shown]

    def _strip(self) -> tuple[list[Panel], Facts] | None:
        """The same test images through every model, the images themselves on top."""
        if "strip" not in self.pictures:
            return None
        originals, rebuilt = self.pictures["strip"]
        names = [name for name in gathering.in_order([*rebuilt]) if name in self.readings]
        rows = [strip_row(say("test images"), originals)]
        rows += [strip_row(NAMES[name], rebuilt[name]) for name in names]
        return rows, self.facts(names, say("pixel mean in [0, 1]"), say("{n} images", n=len(originals)))

    # ------------------------------------------------------------------------------------------------ the two drawings
    def _spectrum(self) -> tuple[Panel, Facts, list[tuple[Markup, str]]] | None:
        """The control has no sigma^2 that its loss could be said to have, and is not drawn."""
        runs = self.found["runs"]
        names = [name for name in MAIN if name in runs and name != CONTROL and runs[name]["sigma"] is not None]
        if not names:
            return None
        points = [
            Mark(NAMES[name], runs[name]["directions"]["value"], runs[name]["sigma"] ** 2, self.series[name])
            for name in names
        ]
        units = [
            Mark("", runs[name]["active_units"]["value"], runs[name]["sigma"] ** 2, self.series[name], small=True)
            for name in names
        ]
        fixed = [m for m in points if abs(m.y - VARIANCE) < 1e-3]
        others = [m for m in points if m not in fixed]
        article = [Mark("", 1, VARIANCE, small=True)] if fixed else []
        figure = plots_rd.spectrum(self.linear["eigenvalues"], [*article, *others], [*points, *units])
        label = say("Eigenvalues of the training covariance by rank, sigma squared as lines, each network as a point")
        panel = drawing("", "spectrum", label, figure)
        return panel, self.facts(names, say("variance/latent units"), self._n()), self._key(names)

    def _plane(self) -> tuple[list[Panel], Facts, list[tuple[Markup, str]]]:
        """The plane as a whole, and the corner where sigma^2 = 1/2 keeps the networks."""
        marks = {name: self._mark(name) for name in self.readings}
        ppca = [m for row in self.linear["grid"] if (m := line_mark(row, self.found["dimensions"])) is not None]
        rival = gathering.line(self.linear["grid"], gathering.RIVAL)
        reach = max([1.15 * m.x for m in marks.values()] + ([] if rival is None else [1.06 * rival["kl"]]))
        inside = [name for name in marks if name in (*FIXED, "c5-leaky", CONTROL)]
        corner = 1.4 * max([marks[name].x for name in inside], default=reach)
        apart = corner < 0.5 * reach  # then the whole plane leaves these names to the corner
        whole = [replace(m, name="") if apart and m.x < corner else m for m in [*marks.values(), *ppca]]
        size, curve = self.found["dimensions"], water_curve(self.linear["eigenvalues"])
        drawn = [("plane", say("All runs"), plots_rd.rate_plane(curve, whole, Contours(size), (0.0, reach)))]
        if apart:
            figure = plots_rd.rate_plane(curve, [*marks.values(), *ppca], Contours(size, 0.1), (0.0, corner))
            drawn.append(("corner", say("The corner of \u03c3\u00b2 = 1/2"), figure))
        label = say(
            "PSNR at drawn z against the rate, with lines of equal bits per dimension and the bound of a Gaussian"
        )
        panels = [drawing(title, key, label, figure) for key, title, figure in drawn]
        return panels, self.facts(self.readings, say("nats/image, PSNR in dB"), self._n()), self._key(self._main())

    def _main(self) -> list[str]:
        return [name for name in MAIN if name in self.readings]

    def _mark(self, name: str) -> Mark:
        row = self.found["runs"][name]
        base = next(main for main in sorted(MAIN, key=len, reverse=True) if name.startswith(main))
        return Mark(NAMES[name], row["kl"]["value"], row["psnr_drawn"], self.series[base])


# ------------------------------------------------------------------------------------------------ shared with other pages
def line_mark(row: Mapping[str, Any], size: int) -> Mark | None:
    """A pPCA of the table of lines, for images of `size` values, as a point of the plane of rate and distortion; None for what
    has no latents."""
    if row["kl"] is None or row["sse"] is None:
        return None
    name = f"pPCA {row['latent']}"
    if not row["fitted"]:
        name = say("{name}, \u03c3\u00b2 = {variance}", name=name, variance=table.variance_told(row["variance"]))
    return Mark(name, row["kl"], psnr(row["sse"] / size), small=True)


def water_curve(eigenvalues: Sequence[float]) -> tuple[list[float], list[float]]:
    """Rates and PSNRs of water-filling over all levels between the largest eigenvalue and far below the smallest noise."""
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    levels = torch.from_numpy(np.geomspace(1e-4 * values.max().item(), values.max().item(), _LEVELS))
    rate, sse = linear.water_filling(values, levels)
    return rate.tolist(), [psnr(error / len(values)) for error in sse.tolist()]


def facts_of_all(chosen: Sequence[Reading], unit: str, n: str, seed: str = "") -> Facts:
    """What a caption says of a figure of several runs: all of their likelihoods, seeds and numbers of epochs."""
    each = [facts_of(r, unit=unit, n=n) for r in chosen]
    seeds = joined("{before}, {after}", once([str(r.config.get("seed", "")) for r in chosen]))
    return replace(
        each[0],
        likelihood=each[0].likelihood if len(once([f.likelihood for f in each])) == 1 else _likelihoods(chosen),
        seed=seed or seeds,
        epochs=epochs_of(chosen),
    )


def epochs_of(chosen: Sequence[Reading]) -> str:
    """The numbers of epochs of runs, each once."""
    return joined("{before}, {after}", once([str(r.config["train"]["epochs"]) for r in chosen]))


def _likelihoods(chosen: Sequence[Reading]) -> str:
    """Each likelihood once, with the range of its sigma."""
    told: list[str] = []
    for name in once([r.about["likelihood"] for r in chosen]):
        sigmas = [
            r.about["sigma"] for r in chosen if r.about["likelihood"] == name and r.about.get("sigma") is not None
        ]
        ends = once([f"{sigma:.4g}" for sigma in (min(sigmas), max(sigmas))]) if sigmas else []
        if len(ends) == 2:
            told.append(say("{likelihood} with sigma from {low} to {high}", likelihood=name, low=ends[0], high=ends[1]))
        else:
            told.append(say("{likelihood} with sigma = {sigma}", likelihood=name, sigma=ends[0]) if ends else name)
    return joined("{before}; {after}", told)


def once(texts: Sequence[str]) -> list[str]:
    """Each text once, in order."""
    return list(dict.fromkeys(texts))


def image_panel(title: str, images: Tensor, alt: str, columns: int = 8) -> Panel:
    """Images as a grid with a title."""
    return Panel(title, image=plots.image_grid(images.clamp(0, 1), columns), alt=alt)


def strip_row(title: str, images: Tensor) -> Panel:
    """Images in one row."""
    return image_panel(title, images, say("{n} images: {title}", n=len(images), title=title), len(images))


def _with_noise(images: Tensor, seed: int) -> Tensor:
    """A draw from Normal(images, 1/2), cut to [0, 1]: what the article's likelihood says an image looks like."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator)
    return (images + math.sqrt(VARIANCE) * noise).clamp(0, 1)
