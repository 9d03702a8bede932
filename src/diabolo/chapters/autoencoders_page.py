"""The page of the chapter of autoencoders: figures and tables from what was measured, words from `autoencoders_notes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from diabolo import plots, tables
from diabolo.chapters import autoencoders_notes as notes
from diabolo.chapters import toy
from diabolo.chapters.autoencoders_measures import LAYERS, NOISES, Measured
from diabolo.denoising import AS_IT_IS
from diabolo.language import joined, say
from diabolo.plots import Curve
from diabolo.report import Facts, Panel, architecture, drawing, epoch_panels, facts_of, machines, write_template
from diabolo.runs import Run
from diabolo.tables import number, signed

#: Images of a row: clean, noisy, restored.
_SHOWN = 16


def write_page(
    out: Path, made: Mapping[str, Run], measured: Measured, stages: Mapping[str, float], lang: str = "en"
) -> Path:
    """Write the chapter's report: one self-contained HTML file.

    Raises:
        DataError: if a run has no evaluation.
        UsageError: if `out` cannot be written.
    """
    readings = {name: tables.read(run, name) for name, run in made.items()}
    first = readings["ae-20"]
    found = measured.numbers
    return write_template(
        "autoencoders.html.j2",
        out,
        lang,
        title=say("Autoencoders on MNIST: what a bottleneck keeps, and what it cannot do"),
        summary=notes.summary(found),
        reading=notes.reading(found),
        notes=notes.notes(found),
        references=notes.REFERENCES,
        facts=_Facts(first, found),
        bottleneck=_bottleneck(first, measured, readings),
        drawing=_drawn(measured),
        layers=_layers(measured),
        compression=_compression(measured),
        denoising=_denoising(measured),
        toy=_toy(measured),
        runs=list(readings.values()),
        config=tables.shared_and_differing([r.config for r in readings.values()]),
        machines=machines({}, first.env),
        env=tables.shared_and_differing([tables.versions(r) for r in readings.values()]),
        hashes=tables.hashes(list(readings.values())),
        clocks=[(r.name, tables.clock(r)) for r in readings.values()],
        stages=stages,
    )


class _Facts:
    """What the captions say: the likelihood is that of the runs, the rest differs from figure to figure."""

    def __init__(self, first: tables.Reading, found: Mapping[str, Any]) -> None:
        self.first, self.found = first, found

    def __call__(self, unit: str, n: str, split: str = "test", seed: str = "") -> Facts:
        return facts_of(self.first, unit=unit, n=n, split=split, seed=seed)


def _plus(entry: Mapping[str, Any], digits: int) -> str:
    return f"{number(entry['value'], digits)} \u00b1 {number(entry['se'], digits)}"


def _grid(title: str, images: Tensor, alt: str, columns: int = 8) -> Panel:
    return Panel(title, image=plots.image_grid(images.clamp(0, 1), columns), alt=alt)


def _key(names: Sequence[str], line: str | None = "solid") -> list[tuple[Markup, str]]:
    return [(Markup(plots.swatch(i, line=line)), name) for i, name in enumerate(names)]


# ------------------------------------------------------------------------------------------------ A1
def _bottleneck(first: tables.Reading, measured: Measured, readings: Mapping[str, tables.Reading]) -> dict[str, Any]:
    rows, pictures = measured.numbers["bottleneck"], measured.pictures
    curves = [
        Curve(series, [r["d"] for r in rows], [r[name]["value"] for r in rows], errors=[r[name]["se"] for r in rows])
        for series, name in enumerate(("ae", "pca"))
    ]
    codes, labels = measured.figures["codes"]
    label = say("Mean squared error against the number of code dimensions, autoencoder and PCA")
    scatter = say("The two-dimensional codes of the test images, coloured by class")
    trained = [r for name, r in readings.items() if name.startswith("ae-")]
    return {
        "architecture": architecture("architecture", first, pictures["real"].shape[1:]),
        "table": [
            (r["d"], _plus(r["ae"], 5), _plus(r["pca"], 5), _signed(r["difference"], 5), f"{r['ae']['n']:,}")
            for r in rows
        ],
        "curve": drawing("", "bottleneck", label, plots.lines(curves, say("code dimensions d"), say("MSE per pixel"))),
        "key": _key([say("autoencoder"), "PCA"]),
        "training": epoch_panels("training", trained),
        "training_key": _key([r.title for r in trained]),
        "grids": [
            _grid(say("Real"), pictures["real"], say("{n} real test images", n=32)),
            *[
                _grid(title, pictures[name], title)
                for d in (2, 20)
                for title, name in (
                    (say("Autoencoder, d = {d}", d=d), f"ae-{d}"),
                    (say("PCA, d = {d}", d=d), f"pca-{d}"),
                )
            ],
        ],
        "codes": drawing("", "codes", scatter, plots.code_scatter(codes, labels)),
        "classes": [(Markup(plots.swatch(i)), str(i)) for i in range(10)],
        "n": f"{rows[0]['ae']['n']:,}",
    }


def _signed(entry: Mapping[str, Any], digits: int) -> str:
    return f"{signed(entry['value'], digits)} \u00b1 {number(entry['se'], digits)}"


# ------------------------------------------------------------------------------------------------ not generative
_SOURCES = {
    "ae-standard": say("autoencoder, z ~ N(0, I)"),
    "ae-fitted": say("autoencoder, z ~ Gaussian fitted to its codes"),
    "vae-prior": say("VAE of the same size, z ~ p(z)"),
    "test images": say("real test images, for comparison"),
}


def _drawn(measured: Measured) -> dict[str, Any]:
    found = measured.numbers["drawing"]
    return {
        "grids": [
            _grid(title, measured.pictures[name], title)
            for name, title in _SOURCES.items()
            if name in measured.pictures
        ],
        "table": [(title, _plus(found["distance"][name], 4)) for name, title in _SOURCES.items()],
        "n": f"{found['distance']['ae-fitted']['n']:,}",
        "known": f"{found['known']:,}",
        "spread": notes.spread(found),
    }


# ------------------------------------------------------------------------------------------------ A2, A3
def _layers(measured: Measured) -> dict[str, Any]:
    found, pictures = measured.numbers["layers"], measured.pictures
    curves = [
        Curve(i, list(range(1, len(row["spectrum"]["mean"]) + 1)), row["spectrum"]["mean"])
        for i, row in enumerate(found.values())
    ]
    label = say("Singular values of the encoder's Jacobian, largest first, one line for each training")
    axes = say("singular value, largest first"), say("mean over images")
    strips = [(notes.NOISES[met], _strip(pictures, kind, notes.NOISES[met])) for met, (kind, _) in NOISES.items()]
    return {
        "spectrum": drawing("", "spectrum", label, plots.lines(curves, *axes, log_y=True, markers=False)),
        "key": _key([notes.LAYERS[title] for title in LAYERS]),
        "table": [
            (
                notes.LAYERS[title],
                number(row["spectrum"]["frobenius"], 3) + " \u00b1 " + number(row["spectrum"]["frobenius_se"], 3),
                number(row["robustness"]["spread"], 4) + " \u00b1 " + number(row["robustness"]["spread_se"], 4),
                _plus(row["probe"], 4),
            )
            for title, row in found.items()
        ],
        "probes": [(name, _plus(entry, 4), f"{entry['n']:,}") for name, entry in measured.numbers["probes"].items()],
        "n": str(next(iter(found.values()))["spectrum"]["n"]),
        "probe_n": f"{next(iter(found.values()))['probe']['n']:,}",
        "fitted_to": f"{next(iter(found.values()))['probe']['fitted_to']:,}",
        "level": f"{next(iter(found.values()))['robustness']['level']:g}",
        "filters": [_grid(title, pictures[f"filters-{name}"], title) for title, name in _layer_titles()],
        "strips": strips,
        "strip_rows": joined("{before}; {after}", [title for title, _ in _layer_titles()]),
        "met": [notes.NOISES[met] for met in NOISES],
        "matrix": _matrix(measured.numbers["matrix"]),
        "matrix_n": f"{next(iter(measured.numbers['matrix'].values()))[AS_IT_IS]['n']:,}",
    }


def _strip(pictures: Mapping[str, Tensor], kind: str, met: str) -> Panel:
    """Rows of the same images: clean, noisy, and restored by each layer."""
    names = ["clean", f"noisy-{kind}", *(f"restored-{kind}-{name}" for name in LAYERS.values())]
    rows = torch.cat([pictures[name][:_SHOWN] for name in names])
    return _grid("", rows, say("clean, noisy and restored test images: {noise}", noise=met), _SHOWN)


def _layer_titles() -> list[tuple[str, str]]:
    """The title and the run of each layer."""
    return [(notes.LAYERS[title], name) for title, name in LAYERS.items()]


def _matrix(found: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """A row a training, a column a noise: PSNR, and whether it is the best of its column."""
    methods = list(next(iter(found.values())))
    best = {met: max(cells, key=lambda name: cells[name]["psnr"]) for met, cells in found.items()}
    return [
        (notes.LAYERS[name], [(_decibel(cells[name]), best[met] == name) for met, cells in found.items()])
        for name in methods
    ]


def _decibel(cell: Mapping[str, Any]) -> str:
    if cell["psnr"] is None:
        return "\u221e"
    return f"{number(cell['psnr'])} \u00b1 {number(cell['psnr_se'])}"


# ------------------------------------------------------------------------------------------------ A5
def _denoising(measured: Measured) -> list[dict[str, Any]]:
    return [_denoised(kind, found) for kind, found in measured.numbers["denoising"].items()]


def _denoised(kind: str, found: Mapping[str, Any]) -> dict[str, Any]:
    levels, rows = found["levels"], found["rows"]
    curves = []
    for i, cells in enumerate(rows.values()):
        finite = [(level, cell) for level, cell in zip(levels, cells) if cell["psnr"] is not None]
        x, y = [level for level, _ in finite], [cell["psnr"] for _, cell in finite]
        curves.append(Curve(i, x, y, errors=[cell["psnr_se"] for _, cell in finite]))
    title = notes.KINDS[kind]
    label = say("PSNR against the noise level, {kind}", kind=title)
    better = {name: text["words"] for name, text in found["better_than_nothing"].items()}
    return {
        "kind": kind,
        "title": title,
        "figure": drawing("", f"denoising-{kind}", label, plots.lines(curves, say("noise level"), say("PSNR in dB"))),
        "key": _key([notes.METHODS[name] for name in rows]),
        "levels": [f"{level:g}" for level in levels],
        "rows": [
            (notes.METHODS[name], [_decibel(cell) for cell in cells], better.get(name, ""))
            for name, cells in rows.items()
        ],
        "tuned_on": found["tuned_on"],
        "n": f"{rows[AS_IT_IS][0]['n']:,}",
    }


# ------------------------------------------------------------------------------------------------ A4
def _compression(measured: Measured) -> dict[str, Any]:
    points = measured.numbers["compression"]
    lossy = [p for p in points if p["psnr"] is not None]
    methods = list(dict.fromkeys(p["method"] for p in lossy))
    curves = []
    for i, method in enumerate(methods):
        own = [p for p in lossy if p["method"] == method]
        curves.append(Curve(i, [p["bits_per_pixel"] for p in own], [p["psnr"] for p in own], dashed="PCA" in method))
    label = say("PSNR against bits per pixel, one line a method")
    figure = plots.lines(curves, say("bits per pixel, as written"), say("PSNR in dB"), log_x=True)
    return {
        "figure": drawing("", "compression", label, figure),
        "key": [
            (Markup(plots.swatch(i, line="dashed" if "PCA" in method else "solid")), method)
            for i, method in enumerate(methods)
        ],
        "rows": [
            (
                p["method"],
                p["setting"],
                number(p["bits_per_pixel"], 3),
                "" if p["ideal"] is None else number(p["ideal"], 3),
                say("lossless") if p["psnr"] is None else number(p["psnr"]),
                "" if p["ssim"] is None else number(p["ssim"], 3),
            )
            for p in points
        ],
        "n": f"{points[0]['n']:,}",
    }


# ------------------------------------------------------------------------------------------------ A6
def _toy(measured: Measured) -> dict[str, Any]:
    label = say("A spiral, and what four models make of the plane around it")
    figure = plots.planes(measured.figures["toy"])
    found = measured.numbers["toy"]
    n = f"{found['data']['n']:,}"
    return {
        "figure": drawing("", "toy", label, figure),
        "facts": _toy_facts(n),
        "rows": notes.toy_rows(found),
        "n": n,
    }


def _toy_facts(n: str) -> Facts:
    """These models have data and a likelihood of their own, the same for all: a Gaussian, which is a density."""
    config = next(iter(toy.configs().values()))
    likelihood = config.model.likelihood.name
    return Facts(config.data.name, "test", likelihood, True, say("units of the plane"), n, seed="0")
