"""Runs -> one self-contained HTML file: no script, no external address, light and dark.

Numbers come from `tables`, words from a chapter's story. A run without its evaluation makes a report fail; it never
makes it shorter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from diabolo import language, packaged, plots, tables
from diabolo.language import joined, say
from diabolo.listings import kind_of_values
from diabolo.models.grids import size_of, told
from diabolo.recorded import known_again
from diabolo.runs import Run, write_bytes
from diabolo.tables import Reading

# ----------------------------------------------------------------------------------------------- what a report is given


@dataclass(frozen=True)
class Pictures:
    """Decoder means in [0, 1], each (n, C, H, W): test images, their reconstructions at z = mu, decodings of z ~ p(z), None
    for a model without a prior.

    `seed` is that of the generated z; it is printed in the caption.
    """

    real: Tensor
    reconstructed: Tensor
    generated: Tensor | None
    seed: int = 0


@dataclass(frozen=True)
class Entry:
    """One trained model of a chapter; `published` holds the article's values by metric, where it gives any."""

    title: str
    run: Run
    pictures: Pictures
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Convention:
    """Models that share one pixel convention and may stand in one table; changes are measured against the first."""

    key: str
    title: str
    entries: Sequence[Entry]
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Note:
    """One place where the article errs or is silent: what it says, what was measured here, and why."""

    number: int
    says: str
    measured: str
    why: str


@dataclass(frozen=True)
class Story:
    """The words of a chapter; every number in them was measured. `summary` holds a label, a number and a
    remark a line; `figures` maps a drawing to its number in the article."""

    title: str
    lead: str
    summary: Sequence[tuple[str, str, str]]
    reading: Sequence[str]
    figures: Mapping[str, str]
    equations: str
    notes: Sequence[Note]
    causes: Sequence[str]
    machine: Mapping[str, str]
    references: Sequence[str]


# ---------------------------------------------------------------------------------------------------------- the figures


@dataclass(frozen=True)
class Facts:
    """What every caption says: data, split, likelihood, unit, n and, where they matter, the seed and the epochs trained for."""

    data: str
    split: str
    likelihood: str
    normalised: bool
    unit: str
    n: str
    seed: str = ""
    epochs: str = ""


def facts_of(reading: Reading, **changed: str) -> Facts:
    """What a caption says of a run's figure; `changed` replaces split, unit, n or seed."""
    about = reading.about
    given = {"split": about["split"], "unit": reading.unit, "n": f"{about['n']:,}"} | changed
    data, likelihood, sigma = about["data"], about["likelihood"], about.get("sigma")
    if about["values"] != "real":
        values = tables.word(kind_of_values(about["values"], reading.env["data"]["spec"]["shape"]))
        data = say("{data}, {values} pixels", data=data, values=values)
    if sigma is not None:  # of a Gaussian with one standard deviation
        likelihood = say("{likelihood} with sigma = {sigma}", likelihood=likelihood, sigma=f"{sigma:.4g}")
    return Facts(data=data, likelihood=likelihood, normalised=reading.normalised, **given)


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure: an SVG element and what is said in it, or the address of an image; `alt` says what it shows."""

    title: str
    svg: Markup = Markup("")
    image: str = ""
    alt: str = ""
    fine: bool = False  # an image of many pixels, to be scaled smoothly
    said: Sequence[str] = ()


def drawing(title: str, key: str, label: str, figure: Any) -> Panel:
    """A figure as a panel: its key prefixes every id, its label is the text alternative."""
    return Panel(title, svg=Markup(plots.svg(figure, key, label)), alt=label, said=plots.sentences(figure))


def _drawn(panel: Panel, lang: str) -> Markup:
    return Markup(plots.retold(str(panel.svg), panel.alt, panel.said, lang))


def layers(config: Mapping[str, Any], shape: Sequence[int]) -> list[tuple[str, int]] | None:
    """The layer sizes of a network whose encoder and decoder are MLPs, or residual networks, for data of `shape`, data to data;
    None for any other network."""
    model = config["model"]
    between = {"mlp": _mlp_layers, "resnet": _resnet_layers}
    names = {model[part].get("name") for part in ("encoder", "decoder")}
    if len(names) > 1 or not names <= set(between):
        return None
    before, after = between[names.pop()](model["encoder"], model["decoder"], shape)
    latent, dimensions = (say("latent z"), size_of(model["latent"])), math.prod(shape)
    return [(say("data x"), dimensions), *before, latent, *after, (say("mean of p(x|z)"), dimensions)]


Sizes = list[tuple[str, int]]


def _mlp_layers(encoder: Mapping[str, Any], decoder: Mapping[str, Any], shape: Sequence[int]) -> tuple[Sizes, Sizes]:
    reads = say("encoder, {activation}", activation=encoder.get("activation", "relu"))
    writes = say("decoder, {activation}", activation=decoder.get("activation", "relu"))
    return [(reads, encoder["width"])] * encoder["depth"], [(writes, decoder["width"])] * decoder["depth"]


def _resnet_layers(encoder: Mapping[str, Any], decoder: Mapping[str, Any], shape: Sequence[int]) -> tuple[Sizes, Sizes]:
    def grids(part: Mapping[str, Any]) -> Sizes:
        sides = [[side // 2**level for side in shape[1:]] for level in range(1, len(part["widths"]) + 1)]
        return [
            (say("{width} channels, {sides}", width=width, sides=told(grid)), width * math.prod(grid))
            for width, grid in zip(part["widths"], sides)
        ]

    return grids(encoder), grids(decoder)[::-1]


def architecture(key: str, reading: Reading, shape: Sequence[int]) -> Panel | None:
    """The network drawn from its layer sizes, for data of `shape`; None where it is neither an MLP nor a residual network."""
    sizes = layers(reading.config, shape)
    if sizes is None:
        return None
    label = say("Layers of {title}: {sizes}", title=reading.title, sizes=", ".join(str(size) for _, size in sizes))
    return drawing(reading.title, key, label, plots.hourglass(sizes))


_QUANTITIES = (("loss", say("Total")), ("distortion", say("Reconstruction (distortion)")), ("rate", say("KL (rate)")))


def held_out(reading: Reading) -> bool:
    """Whether held-out examples were scored after each epoch."""
    return any(row["split"] in {"validation", "test"} for row in reading.metrics)


def epoch_panels(key: str, readings: Sequence[Reading]) -> list[Panel]:
    """A drawing of each logged quantity against the epoch, one series a run."""
    panels = []
    for quantity, title in _QUANTITIES:
        curves = [c for i, r in enumerate(readings) for c in plots.curves_of(r.metrics, quantity, i)]
        if curves:
            label = (
                say(
                    "{title} against the epoch, train solid and held-out dashed, {n} models",
                    title=title,
                    n=len(readings),
                )
                if any(map(held_out, readings))
                else say("{title} against the epoch, {n} models", title=title, n=len(readings))
            )
            panels.append(
                drawing(
                    title, f"{key}-{quantity}", label, plots.epoch_curves(curves, f"{quantity}, {readings[0].unit}")
                )
            )
    return panels


def curve_facts(reading: Reading) -> Facts:
    """Split and n as they stand in metrics.jsonl: what is drawn, not what was evaluated."""
    sizes = {
        row["split"]: row["examples"] for row in reading.metrics if row["split"] in ("train", "validation", "test")
    }
    lines = [say("{split} (solid)", split=s) if s == "train" else say("{split} (dashed)", split=s) for s in sizes]
    n = " + ".join(f"{n:,}" for n in sizes.values())
    return facts_of(reading, split=joined("{before}, {after}", lines), n=n, seed=str(reading.config.get("seed", "")))


def scatter_panel(key: str, reading: Reading) -> Panel:
    """Posterior means on their first two principal components, by class."""
    shares = reading.evaluation["pca"]["explained"]
    label = say("Posterior means of {title} on two principal components, coloured by class", title=reading.title)
    figure = plots.class_scatter(reading.per_image["mean"], reading.per_image.get("labels"), shares)
    return drawing(reading.title, key, label, figure)


def _bars(key: str, series: int, reading: Reading) -> Panel:
    metric = reading.evaluation["kl_per_dimension"]
    label = say("KL of each latent dimension of {title}, largest first", title=reading.title)
    return drawing(reading.title, key, label, plots.dimension_bars(metric["values"], f"KL, {metric['unit']}", series))


def grid_panels(key: str, reading: Reading) -> list[Panel]:
    """The rate of a grid of codes: of each channel at each position, of each channel, of each position; none for vectors."""
    whole, parts = reading.evaluation.get("kl_per_dimension"), reading.evaluation.get("kl_per_channel")
    if whole is None or parts is None:
        return []
    maps = np.reshape(whole["values"], whole["shape"])
    kept = np.argsort(-np.asarray(parts["values"]), kind="stable")[:_CHANNELS]
    y, title = f"KL, {parts['unit']}", reading.title
    drawn = (
        (
            say("Channels by position") if len(kept) == len(maps) else say("The {n} strongest channels", n=len(kept)),
            say("KL of {n} channels of {title} at each position of the grid", n=len(kept), title=title),
            plots.position_maps(maps[kept], [str(channel) for channel in kept], y),
        ),
        (
            say("Channels"),
            say("KL of each channel of {title}, largest first", title=title),
            plots.dimension_bars(parts["values"], y, x=say("channel, largest first")),
        ),
        (
            say("Positions"),
            say("KL of each position of the grid of {title}, summed over channels", title=title),
            plots.position_maps(np.asarray(parts["positions"])[None], [""], y),
        ),
    )
    return [drawing(name, f"{key}-{i}", label, figure) for i, (name, label, figure) in enumerate(drawn)]


def _k_curve(key: str, readings: Sequence[Reading]) -> Panel:
    curves = []
    for i, r in enumerate(readings):
        points = r.evaluation["log_p_curve"]["points"]
        columns = ([p[name] for p in points] for name in ("k", "value", "mc_se"))
        k, value, se = columns
        curves.append(plots.Curve(i, k, value, errors=se))
    unit = readings[0].evaluation["log_p_curve"]["unit"]
    label = say("Estimate of log p(x) against the number of importance samples")
    return drawing("", key, label, plots.sample_curves(curves, f"log p(x), {unit}"))


#: Channels of a grid that are drawn, at most: those of the largest rate.
_CHANNELS = 16
#: Images with larger sides than this are drawn in fewer columns, so that no pixel is lost on the page.
_SMALL_SIDE = 32


def _columns(pictures: Pictures) -> int:
    return 8 if pictures.real.shape[-1] <= _SMALL_SIDE else 4


def _that_fit(pictures: Pictures) -> Pictures:
    """The first eight rows: 64 small images, 32 large ones."""
    n, generated = 8 * _columns(pictures), pictures.generated
    return Pictures(
        real=pictures.real[:n],
        reconstructed=pictures.reconstructed[:n],
        generated=None if generated is None else generated[:n],
        seed=pictures.seed,
    )


def _grids(title: str, pictures: Pictures) -> list[Panel]:
    n, columns = len(pictures.real), _columns(pictures)

    def grid(heading: str, images: Tensor, alt: str) -> Panel:
        return Panel(heading, image=plots.image_grid(images, columns), alt=alt, fine=columns < 8)

    panels = [
        grid(say("Real"), pictures.real, say("{n} real test images", n=n)),
        grid(
            say("Reconstructed"),
            pictures.reconstructed,
            say("The same images, reconstructed by {title}", title=title),
        ),
    ]
    if pictures.generated is None:
        return panels
    alt = say("{n} images from {title}", n=len(pictures.generated), title=title)
    return [*panels, grid(say("Generated"), pictures.generated, alt)]


def _picture_facts(reading: Reading, pictures: Pictures) -> Facts:
    unit, n = say("pixel mean in [0, 1]"), say("{n} images", n=len(pictures.real))
    if pictures.generated is None:
        return facts_of(reading, unit=unit, n=n)
    both = say("{real} images + {generated} generated", real=len(pictures.real), generated=len(pictures.generated))
    return facts_of(reading, unit=unit, n=both, seed=say("{seed} (of z)", seed=pictures.seed))


def class_legend(reading: Reading, classes: Sequence[str]) -> list[tuple[Markup, str]]:
    """The swatch and the name of each class that the evaluated images have."""
    labels = reading.per_image.get("labels")
    if labels is None:
        return []
    found = sorted({int(label) for label in labels.tolist()})
    return [(Markup(plots.swatch(i)), classes[i] if i < len(classes) else str(i)) for i in found]


# ---------------------------------------------------------------------------------------------------------- the reports


def _environment(lang: str) -> Environment:
    """Templates in a language: what was said is translated where it is put on the page.

    `t("...")` in a template is a sentence of the page's own and may hold tags, `say("...")` is plain text.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=partial(language.shown, lang=lang),
    )
    environment.filters.update(number=tables.number, seconds=tables.seconds, drawn=partial(_drawn, lang=lang))
    environment.globals.update(t=partial(_markup, lang), say=say, lang=lang, tag=language.tag(lang))
    return environment


def _markup(lang: str, template: str, /, **values: object) -> Markup:
    shown = {name: language.shown(value, lang) for name, value in values.items()}
    return Markup(language.template_in(lang, template)).format(**shown)


def write_template(template: str, out: Path, lang: str, **values: Any) -> Path:
    """Fill in a template in a language and write the page.

    Raises:
        UsageError: if `out` cannot be written, or there is no such language.
    """
    page = _environment(lang).get_template(template).render(**values)
    write_bytes(out, page.encode("utf-8"))
    return out


def _convention_view(convention: Convention, figures: Mapping[str, str]) -> dict[str, Any]:
    """Everything the template draws of one convention; keys of drawings start with the convention's."""
    key, entries = convention.key, convention.entries
    readings = [tables.read(e.run, e.title, tables.REQUIRED) for e in entries]
    first = readings[0]
    curve_n = f"{first.evaluation['log_p_curve']['n']:,}"
    return {
        "key": key,
        "title": convention.title,
        "readings": readings,
        "losses": tables.loss_cards(readings),
        "normalised": all(r.normalised for r in readings),
        "models": [(Markup(plots.swatch(i, line="solid")), r.title) for i, r in enumerate(readings)],
        "curves": (epoch_panels(f"{key}-curves", readings), curve_facts(first)),
        "scatter": (
            [scatter_panel(f"{key}-pca-{i}", r) for i, r in enumerate(readings)],
            facts_of(first, unit=say("latent units")),
        ),
        "classes": class_legend(first, convention.classes),
        "bars": ([_bars(f"{key}-kl-{i}", i, r) for i, r in enumerate(readings)], facts_of(first)),
        "k_curve": (
            [_k_curve(f"{key}-k", readings)],
            facts_of(first, n=curve_n, unit=first.evaluation["log_p_curve"]["unit"]),
        ),
        "pictures": [
            (e.title, _grids(e.title, e.pictures), _picture_facts(r, e.pictures))
            for e, r in zip(entries, readings, strict=True)
        ],
        "probes": tables.probe_rows(readings),
        "columns": tables.COLUMNS,
        "units": {m: tables.word(first.evaluation["log_p" if m == "gap" else m]["unit"]) for m in tables.COLUMNS},
        "rows": [
            (r, [tables.cell(r, m, e.published) for m in tables.COLUMNS])
            for e, r in zip(entries, readings, strict=True)
        ],
        "changes": [
            (r, tables.changes(first, r, (entries[0].published, e.published)))
            for e, r in zip(entries[1:], readings[1:], strict=True)
        ],
        "published": any(e.published for e in entries),
        "estimates": tables.estimate_rows(readings),
        "k_table": tables.curve_rows(readings),
        "facts": facts_of(first),
    }


def machines(article: Mapping[str, str], env: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What, the article's machine, this one."""
    ours = {
        say("Processor"): str(env.get("processor") or env.get("platform", say("unknown"))),
        say("Cores"): say(
            "{cores} (threads used: {threads})", cores=env.get("cores", "?"), threads=env.get("threads", "?")
        ),
        say("Memory"): str(env.get("memory", say("not recorded"))),
        say("Device"): str(env.get("device", say("unknown"))),
        "PyTorch": str(env.get("torch", say("unknown"))),
        "Python": str(env.get("python", say("unknown"))),
    }
    return [(label, article.get(label, say("not stated")), text) for label, text in ours.items()]


def write_chapter_report(
    conventions: Sequence[Convention], story: Story, out: Path, stages: Mapping[str, float], lang: str = "en"
) -> Path:
    """Writes a chapter's report: figures, tables and notes of each pixel convention, never two of them in one table.

    `stages`: wall time of each stage of the chapter in seconds, in order. `lang`: the language of the page.

    Raises:
        DataError: if a run has no evaluation, or its evaluation lacks a metric of the tables.
        UsageError: if `out` cannot be written, or there is no such language.
    """
    views = [_convention_view(convention, story.figures) for convention in conventions]
    readings = [r for view in views for r in view["readings"]]
    networks = [
        architecture(f"architecture-{i}", r, e.pictures.real.shape[1:])
        for i, (r, e) in enumerate(zip(views[0]["readings"], conventions[0].entries, strict=True))
    ]
    first = readings[0]
    return write_template(
        "chapter.html.j2",
        out,
        lang,
        title=story.title,
        story=story,
        views=views,
        architecture=[panel for panel in networks if panel is not None],
        architecture_facts=facts_of(
            first,
            split=say("none (shapes only)"),
            unit=say("units per layer"),
            n=say("{n} models", n=len(networks)),
        ),
        runs=readings,
        config=tables.shared_and_differing([r.config for r in readings]),
        env=tables.shared_and_differing([tables.versions(r) for r in readings]),
        machines=machines(story.machine, first.env),
        hashes=tables.hashes(readings),
        clocks=[(r.name, tables.clock(r)) for r in readings],
        stages=stages,
    )


def write_run_report(
    run: Run,
    pictures: Pictures | None = None,
    out: Path | None = None,
    classes: Sequence[str] = (),
    lang: str = "en",
) -> Path:
    """Writes the report of one run, by default to `report.html` in its directory.

    Raises:
        DataError: if the run has no evaluation.
        UsageError: if `out` cannot be written, there is no such language, or the run is a pretrained model: what a report
            shows of each image does not come with the package.
    """
    packaged.refuse_change(run.path, "evaluate", "report")
    reading = tables.read(run)
    e, curves = reading.evaluation, epoch_panels("curves", [reading])
    grids = pictures is not None and pictures.real.ndim == 4 and pictures.real.shape[1] in (1, 3)
    network = None if pictures is None else architecture("architecture", reading, pictures.real.shape[1:])
    pictures = _that_fit(pictures) if grids and pictures is not None else pictures
    return write_template(
        "run.html.j2",
        out or run.path / "report.html",
        lang,
        title=reading.title,
        reading=reading,
        about=reading.about,
        how_far=known_again(reading.about.get("how_far") or ""),
        facts=facts_of(reading),
        losses=tables.loss_cards([reading]),
        metrics=tables.metric_rows(e),
        estimates=tables.estimate_rows([reading]) if "log_p" in e else [],
        architecture=network,
        architecture_facts=facts_of(
            reading, split=say("none (shapes only)"), unit=say("units per layer"), n=say("1 model")
        ),
        curves=curves,
        curve_facts=curve_facts(reading) if curves else None,  # none before the first epoch ends
        held_out=held_out(reading),
        scatter=scatter_panel("pca", reading) if "pca" in e and len(e["pca"]["explained"]) > 1 else None,
        scatter_facts=facts_of(reading, unit=say("latent units")),
        classes=class_legend(reading, classes),
        bars=_bars("kl", 0, reading) if "kl_per_dimension" in e else None,
        maps=grid_panels("maps", reading),
        latent_shape=told(reading.config["model"]["latent"]),
        k_curve=_k_curve("k", [reading]) if "log_p_curve" in e else None,
        k_facts=facts_of(reading, n=f"{e['log_p_curve']['n']:,}") if "log_p_curve" in e else None,
        pictures=_grids(reading.title, pictures) if grids and pictures is not None else [],
        picture_facts=_picture_facts(reading, pictures) if pictures is not None else None,
        config=tables.flatten(reading.config),
        env=tables.flatten(tables.versions(reading)),
        hashes=tables.hashes([reading])[0][1],
        clock_rows=tables.clock(reading),
    )
