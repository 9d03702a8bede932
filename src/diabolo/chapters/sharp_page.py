"""The page of the sharp chapter: figures and tables from what was measured; words from `sharp_words` and `sharp_claims`.

A run that was not made has no row, and claims that need it say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from diabolo import plots, plots_rd, sampling_table, tables
from diabolo.chapters import sharp_numbers as gathering
from diabolo.chapters import sharp_table as table
from diabolo.chapters import sharp_words as words
from diabolo.chapters.cifar10_page import (
    Measured,
    facts_of_all,
    image_panel,
    line_mark,
    record,
    strip_row,
    water_curve,
)
from diabolo.chapters.sharp_claims import claims
from diabolo.chapters.sharp_words import NAMES, SETS
from diabolo.language import say
from diabolo.plots_rd import Contours, Mark
from diabolo.report import Facts, Panel, drawing, write_template
from diabolo.runs import Run
from diabolo.tables import Reading

#: Images in a row of a grid of samples.
_COLUMNS = 6
#: The widest rate that the plane shows, as a multiple of the main run's.
_REACH = 1.15


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
    return write_template("sharp.html.j2", out, lang, **page.values(), **record(readings, stages))


def verdicts(made: Mapping[str, Run], measured: Measured) -> dict[str, Any]:
    """What the page says of each run, and the claims with their verdicts and figures, as plain JSON.

    Raises:
        DataError: if a run has no evaluation, or one without the metrics of the table.
    """
    found = gathering.gathered(_readings(made), measured.numbers)
    return {"claims": [asdict(claim) for claim in claims(found)], "runs": found["runs"], "gains": found["gains"]}


def _readings(made: Mapping[str, Run]) -> dict[str, Reading]:
    return {name: tables.read(made[name], title, gathering.REQUIRED) for name, title in NAMES.items() if name in made}


class _Page:
    """What the template shows, drawn from one set of runs."""

    def __init__(self, readings: Mapping[str, Reading], measured: Measured) -> None:
        self.readings, self.pictures = readings, measured.pictures
        self.found = gathering.gathered(readings, measured.numbers)
        self.series = {name: i for i, name in enumerate(NAMES)}

    def values(self) -> dict[str, Any]:
        found, test = self.found, self.found["samples"]
        return {
            "title": say("CIFAR-10, sharp"),
            "warning": words.warning(found),
            "summary": words.summary(found),
            "why": words.why(found),
            "claims": claims(found),
            "reading": words.reading(found),
            "references": words.REFERENCES,
            "strip": self._strip(),
            "grids": self._grids(),
            "near": self._near(),
            "groups": table.groups(found),
            "ablation": table.ablation(found),
            "columns": table.COLUMNS,
            "distance": words.distance(found),
            "priors": table.priors(found),
            "rated": f"{next(iter(found['priors'].values()))['own_rate']['n']:,}",
            "guidance": f"{found['guidance']:g}",
            "plane": self._plane(),
            "headings": sampling_table.headings(test["about"])[1:],
            "samples": table.samples(found),
            "sample_notes": sampling_table.notes(test),
        }

    def _facts(self, names: Sequence[str], unit: str, n: str, seed: str = "") -> Facts:
        return facts_of_all([self.readings[name] for name in names], unit, n, seed)

    # ------------------------------------------------------------------------------------------------ pictures
    def _strip(self) -> tuple[list[Panel], Facts]:
        """The same test images through every model, the images themselves on top."""
        real, rebuilt = self.pictures["real"], self.pictures["strip"]
        names = [name for name in NAMES if name in rebuilt]
        rows = [strip_row(say("test images"), real)] + [strip_row(NAMES[name], rebuilt[name]) for name in names]
        return rows, self._facts(names, say("pixel mean in [0, 1]"), say("{n} images", n=len(real)))

    def _grids(self) -> tuple[list[Panel], Facts]:
        grids: Mapping[str, Tensor] = self.pictures["grids"]
        names = [name for name in SETS if name in grids]
        panels = [self._panel(SETS[name], grids[name]) for name in names]
        owners = list(dict.fromkeys(name if name in self.readings else "sharp" for name in names))
        n = say("{n} images each", n=len(next(iter(grids.values()))))
        seed = say("{seed} (of z)", seed=self.found["seed"])
        return panels, self._facts(owners, say("pixel mean in [0, 1]"), n, seed)

    def _panel(self, title: str, images: Tensor) -> Panel:
        return image_panel(title, images, say("{n} images: {title}", n=len(images), title=title), _COLUMNS)

    def _near(self) -> tuple[list[tuple[str, list[Panel]]], Facts]:
        """Of each set of samples of the main run, those nearest to training images, over these."""
        kept = self.pictures["nearest"]
        names = [name for name in SETS if name in kept and name in ("own", "mixture", "flow", "flow-class")]
        shown: list[tuple[str, list[Panel]]] = [
            (SETS[name], [strip_row(say("samples"), kept[name][0]), strip_row(say("training images"), kept[name][1])])
            for name in names
        ]
        n = say("the nearest of {n}", n=f"{self.found['samples']['about']['n']:,}")
        return shown, self._facts(["sharp"], say("pixel mean in [0, 1]"), n)

    # ------------------------------------------------------------------------------------------------ the plane
    def _plane(self) -> tuple[list[Panel], Facts, list[tuple[Markup, str]]]:
        found, size = self.found, self.found["dimensions"]
        marks = [
            Mark("", row["kl"]["value"], row["psnr_drawn"], self.series[name]) for name, row in found["runs"].items()
        ]
        marks += self._fitted(found["runs"]["sharp"]["psnr_drawn"])
        lines = [m for row in found["linear"]["grid"] if (m := line_mark(row, size)) is not None]
        reach = _REACH * max(mark.x for mark in marks)
        curve = water_curve(found["linear"]["eigenvalues"])
        figure = plots_rd.rate_plane(curve, [*marks, *lines], Contours(size), (0.0, reach))
        label = say(
            "PSNR at drawn z against the rate, with lines of equal bits per dimension and the bound of a Gaussian"
        )
        names = list(found["runs"])
        n = f"{found['runs'][names[0]]['psnr']['n']:,}"
        key: list[tuple[Markup, str]] = [(Markup(plots.swatch(self.series[name])), NAMES[name]) for name in names]
        facts = self._facts(names, say("nats/image, PSNR in dB"), n)
        return [drawing("", "plane", label, figure)], facts, key

    def _fitted(self, psnr: float) -> list[Mark]:
        """The main run with each prior that has a rate in the place of N(0, I): the same pictures for fewer nats."""
        return [
            Mark(SETS[name], row["rate"]["value"], psnr, self.series["sharp"], small=True)
            for name, row in self.found["priors"].items()
            if "rate" in row
        ]
