"""Tensors and plain records -> figures: inline SVG strings, or PNG data URIs for grids of images.

Every drawing is deterministic (same input, same bytes) and fit for one page beside others: ids are prefixed by the
figure's key, no namespace or metadata is left in, text stays text, and what is drawn in `INK` becomes the page's own
text colour.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patches import FancyBboxPatch, Polygon
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from diabolo.language import Said, say, shown

#: Stands for the page's text colour while matplotlib draws; replaced by `currentColor` in the SVG.
INK = "#010203"
#: Okabe and Ito's colours without black (unseen on a dark page) and yellow (on a light one), and four of the same kind.
PALETTE = ("#0072B2", "#D98A00", "#009E73", "#D55E00", "#CC79A7", "#56A5DC", "#8A63C9", "#8C8C8C", "#A89400", "#A4573B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "*", "h")

_PAGE_STYLE: dict[Any, Any] = {
    "font.size": 11.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
}


def colour(index: int) -> str:
    """The colour of series or class number `index`; ten differ, then they repeat."""
    return PALETTE[index % len(PALETTE)]


# ------------------------------------------------------------------------------------------------------------------ SVG


def svg(figure: Figure, key: str, label: str) -> str:
    """Turns a figure into an `<svg>` element that can stand in a page beside others.

    `key` prefixes every id and salts matplotlib's hashes; `label` is the text alternative.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            dpi=130,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(buffer.getvalue(), key, label)


def svg_file(figure: Figure, key: str) -> bytes:
    """The same figure as a file of its own, on white. `key` salts matplotlib's hashes."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", facecolor="white", dpi=130, metadata={"Date": None, "Creator": None})
    return buffer.getvalue().encode("utf-8")


def _inline(text: str, key: str, label: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.S)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", text, count=1)
    text = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(label)}"', 1).strip()


def _content(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _attribute(text: str) -> str:
    return _content(text).replace('"', "&quot;")


def sentences(figure: Figure) -> list[Said]:
    """What was said in a drawing: its axes' labels, the names in it; no number on an axis."""
    texts: list[Text] = figure.findobj(Text)
    return [said for said in (text.get_text() for text in texts) if isinstance(said, Said)]


def retold(drawing: str, label: str, said: Sequence[str], lang: str) -> str:
    """An `<svg>` element with its label and its sentences in another language.

    It was laid out in English, and its texts are anchored where they stand; the fonts are the reader's.
    """
    drawing = drawing.replace(f'aria-label="{_attribute(label)}"', f'aria-label="{_attribute(shown(label, lang))}"', 1)
    for text in said:
        drawing = drawing.replace(f">{_content(text)}</text>", f">{_content(shown(text, lang))}</text>")
    return drawing


def _axes(width: float, height: float, x: str, y: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_PAGE_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, color=INK, alpha=0.14, linewidth=0.6)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    return figure, axes


def swatch(index: int, line: str | None = None) -> str:
    """The marker of class or series `index` as a tiny SVG for a legend in HTML; `line` draws "solid" or "dashed"."""
    marker = MarkerStyle(MARKERS[index % len(MARKERS)])
    polygons = marker.get_path().transformed(marker.get_transform()).to_polygons()
    points = " ".join(f"{x:.2f},{-y:.2f}" for x, y in np.asarray(polygons[0]))
    stroke = f'<path d="M-1.6 0H1.6" stroke="{colour(index)}" stroke-width="0.28"/>' if line else ""
    if line == "dashed":
        stroke = stroke.replace("/>", ' stroke-dasharray="0.6 0.35"/>')
    box = "-1.6 -0.8 3.2 1.6" if line else "-0.8 -0.8 1.6 1.6"
    kind = "swatch line" if line else "swatch"
    return (
        f'<svg class="{kind}" viewBox="{box}" aria-hidden="true">'
        f'{stroke}<polygon points="{points}" fill="{colour(index)}"/></svg>'
    )


# ---------------------------------------------------------------------------------------------------------- the figures


def hourglass(layers: Sequence[tuple[str, int]]) -> Figure:
    """Draws a network as the diabolo it is, top to bottom; a bar grows with the square root of its layer's size."""
    widest = max(size for _, size in layers)
    halves = [max(0.06, math.sqrt(size / widest)) for _, size in layers]
    waist = min(range(len(layers)), key=lambda i: layers[i][1])
    with matplotlib.rc_context(_PAGE_STYLE):
        figure = Figure(figsize=(4.4, 0.52 * len(layers) + 0.2))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(-1.06, 2.75)
        axes.set_ylim(-len(layers) + 0.5, 0.5)
        for i in range(len(layers) - 1):
            _cone(axes, i, halves[i], halves[i + 1], colour(0 if i < waist else 2))
        for i, (name, size) in enumerate(layers):
            _bar(axes, i, halves[i], colour(1 if i == waist else 0 if i < waist else 2))
            axes.text(1.62, -i, f"{size:,}", ha="right", va="center", fontweight="bold")
            axes.text(1.72, -i, name, ha="left", va="center")
    return figure


def _bar(axes: Axes, row: int, half: float, shade: str) -> None:
    box = FancyBboxPatch(
        (-half, -row - 0.1), 2 * half, 0.2, boxstyle="round,pad=0,rounding_size=0.06", facecolor=shade, edgecolor="none"
    )
    axes.add_patch(box)


def _cone(axes: Axes, row: int, above: float, below: float, shade: str) -> None:
    corners = [(-above, -row - 0.1), (above, -row - 0.1), (below, -row - 0.9), (-below, -row - 0.9)]
    axes.add_patch(Polygon(corners, closed=True, facecolor=shade, alpha=0.18, edgecolor="none"))


@dataclass(frozen=True)
class Curve:
    """One line of a figure: `series` chooses colour and marker, `dashed` is held-out data; `errors` are one SE."""

    series: int
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    errors: Sequence[float] | None = None


def curves_of(rows: Sequence[Mapping[str, Any]], quantity: str, series: int = 0) -> list[Curve]:
    """The curves of a quantity in the rows of a metrics.jsonl: one a split, against the epoch; none where it is not logged."""
    curves = []
    for split in ("train", "validation", "test"):
        found = [row for row in rows if row["split"] == split and row.get(quantity) is not None]
        if found:
            x, y = [row["epoch"] for row in found], [row[quantity] for row in found]
            curves.append(Curve(series, x, y, dashed=split != "train"))
    return curves


def epoch_curves(curves: Sequence[Curve], y: str) -> Figure:
    """Draws a quantity (nats per example) against the epoch; solid is train, dashed held out. The legend is HTML."""
    figure, axes = _axes(4.3, 3.3, say("epoch"), y)
    for c in curves:
        few = len(c.x) <= 20  # more markers than that would hide which line is dashed
        axes.plot(
            c.x,
            c.y,
            color=colour(c.series),
            linestyle="--" if c.dashed else "-",
            linewidth=1.8,
            alpha=0.75 if c.dashed else 1,
            marker=MARKERS[c.series % len(MARKERS)] if few else None,
            markersize=3.5,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def sample_curves(curves: Sequence[Curve], y: str) -> Figure:
    """Draws the estimate of log p(x) against the number of importance samples K (logarithmic), with error bars."""
    figure, axes = _axes(6.4, 3.6, say("importance samples K"), y)
    axes.set_xscale("log")
    for c in curves:
        axes.errorbar(
            c.x,
            c.y,
            yerr=None if c.errors is None else list(c.errors),
            color=colour(c.series),
            linewidth=1.8,
            marker=MARKERS[c.series % len(MARKERS)],
            markersize=5,
            capsize=3,
        )
    ticks = sorted({float(k) for c in curves for k in c.x})
    axes.set_xticks(ticks, [f"{k:,.0f}" for k in ticks])
    axes.minorticks_off()
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    return figure


def lines(
    curves: Sequence[Curve], x: str, y: str, *, log_x: bool = False, log_y: bool = False, markers: bool = True
) -> Figure:
    """Draws curves on common axes; the legend is HTML. Dashed ones are those with `dashed`."""
    figure, axes = _axes(6.4, 3.8, x, y)
    for c in curves:
        axes.errorbar(
            c.x,
            c.y,
            yerr=None if c.errors is None else list(c.errors),
            color=colour(c.series),
            linestyle="--" if c.dashed else "-",
            linewidth=1.6,
            marker=MARKERS[c.series % len(MARKERS)] if markers else None,
            markersize=4.5,
            capsize=2,
        )
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    return figure


@dataclass(frozen=True)
class Mark:
    """A measured point of a plane: its name, its place, and one standard error in each direction."""

    name: str
    x: float
    y: float
    x_error: float
    y_error: float


def marks(points: Sequence[Mark], x: str, y: str) -> Figure:
    """Draws points with their names and error bars, joined in their order."""
    figure, axes = _axes(6.4, 4.2, x, y)
    axes.errorbar(
        [p.x for p in points],
        [p.y for p in points],
        xerr=[p.x_error for p in points],
        yerr=[p.y_error for p in points],
        color=colour(0),
        linewidth=1.4,
        marker=MARKERS[0],
        markersize=5,
        capsize=2,
    )
    beside = (7, -13) if _rises(points) else (7, 6)  # off the line
    for p in points:
        axes.annotate(p.name, (p.x, p.y), xytext=beside, textcoords="offset points", fontsize=10)
    axes.margins(0.08)
    return figure


def _rises(points: Sequence[Mark]) -> bool:
    x, y = (np.asarray([getattr(p, name) for p in points]) for name in ("x", "y"))
    return bool(((x - x.mean()) * (y - y.mean())).sum() > 0)


def projection(means: Tensor, components: int = 2) -> np.ndarray:
    """Projects means (N, d) on their first principal components: (N, components); the largest loading is positive."""
    x = means.detach().double().cpu().numpy()
    x = x - x.mean(axis=0)
    _, vectors = np.linalg.eigh(x.T @ x)
    axes = vectors[:, ::-1][:, :components]
    largest = np.abs(axes).argmax(axis=0)
    signs = np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    return np.asarray(x @ (axes * signs))


def class_scatter(means: Tensor, labels: Tensor | None, explained: Sequence[float]) -> Figure:
    """Draws posterior means (N, d) on two principal components, a colour and marker a class; the page has the legend.

    `explained`: share of the variance of the means along each component, printed on the axes.
    """
    names = [
        say("component {number} ({share} % of variance)", number=i + 1, share=f"{100 * share:.1f}")
        for i, share in enumerate(explained[:2])
    ]
    return _scatter(projection(means), labels, names[0], names[1])


def code_scatter(codes: Tensor, labels: Tensor | None) -> Figure:
    """Draws codes of two dimensions (N, 2) as they are, a colour and marker a class; the page has the legend."""
    return _scatter(codes.detach().double().cpu().numpy(), labels, "z1", "z2")


def _scatter(points: np.ndarray, labels: Tensor | None, x: str, y: str) -> Figure:
    groups = np.zeros(len(points), dtype=int) if labels is None else labels.cpu().numpy().astype(int)
    figure, axes = _axes(4.3, 4.0, x, y)
    # Ten slices, each with all classes: no class lies wholly on top of the others.
    for part in np.array_split(np.arange(len(points)), 10):
        for group in sorted(set(groups[part].tolist())):
            chosen = points[part][groups[part] == group]
            axes.scatter(
                chosen[:, 0],
                chosen[:, 1],
                s=5 if len(points) > 2000 else 16,
                color=colour(group),
                marker=MARKERS[group % len(MARKERS)],
                linewidths=0,
                alpha=0.65,
                rasterized=True,
            )
    return figure


#: More bars than these are drawn as one filled outline.
_BARS = 64


def dimension_bars(kl: Sequence[float], y: str, series: int = 0, x: str | None = None) -> Figure:
    """Draws KL(q(z_j | x) || p(z_j)) of each latent dimension (mean over examples), largest first; `y`: the unit, `x`: what
    stands in their place."""
    ordered = sorted(kl, reverse=True)
    figure, axes = _axes(4.3, 2.6, x or say("latent dimension, largest first"), y)
    if len(ordered) > _BARS:
        axes.stairs(ordered, np.arange(len(ordered) + 1) + 0.5, color=colour(series), fill=True)
    else:
        axes.bar(range(1, len(ordered) + 1), ordered, color=colour(series), width=0.72)
    axes.grid(False, axis="x")
    axes.set_xlim(0.3, len(ordered) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def position_maps(maps: np.ndarray, names: Sequence[str], unit: str, columns: int = 4) -> Figure:
    """Draws values at the positions of a grid (maps, rows, columns), a named square a map, in one scale of colours from 0."""
    columns = min(columns, len(maps))
    rows = math.ceil(len(maps) / columns)
    with matplotlib.rc_context(_PAGE_STYLE | {"axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(4.3, 0.7 + 3.2 * rows / columns), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, values, name in zip(grid.flat, maps, names):
            image = axes.imshow(
                values, vmin=0, vmax=max(float(maps.max()), 1e-12), cmap="viridis", interpolation="nearest"
            )
            axes.set(xticks=(), yticks=(), title=name)
            axes.title.set_fontsize(10)
        for axes in grid.flat[len(maps) :]:
            axes.set_axis_off()
        figure.colorbar(image, ax=grid, label=unit, shrink=0.9)
    return figure


@dataclass(frozen=True)
class Panel:
    """A picture of the plane: data (n, 2), the true curve (m, 2), and on top points, a line, or arrows (k, 2) from `origins`."""

    title: str
    data: np.ndarray
    curve: np.ndarray
    points: np.ndarray | None = None
    line: np.ndarray | None = None
    origins: np.ndarray | None = None
    arrows: np.ndarray | None = None

    def with_points(self, points: np.ndarray) -> Panel:
        return replace(self, points=points)

    def with_line(self, line: np.ndarray) -> Panel:
        return replace(self, line=line)

    def with_arrows(self, origins: np.ndarray, arrows: np.ndarray) -> Panel:
        return replace(self, origins=origins, arrows=arrows)


def planes(panels: Sequence[Panel], side: float = 1.3) -> Figure:
    """Draws panels of the square from -side to side, two a row: data grey, the true curve dashed, the model's in its colour."""
    rows = math.ceil(len(panels) / 2)
    with matplotlib.rc_context(_PAGE_STYLE):
        figure = Figure(figsize=(6.4, 3.3 * rows), layout="constrained")
        grid = figure.subplots(rows, 2, squeeze=False)
        for i, axes in enumerate(grid.flat):
            if i < len(panels):
                _plane(axes, panels[i], side, colour(i))
            else:
                axes.set_axis_off()
    return figure


def _plane(axes: Axes, panel: Panel, side: float, shade: str) -> None:
    axes.set_title(panel.title, fontsize=11)
    axes.set_aspect("equal")
    axes.set(xlim=(-side, side), ylim=(-side, side), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.scatter(panel.data[:, 0], panel.data[:, 1], s=6, color=colour(7), linewidths=0, alpha=0.5, rasterized=True)
    axes.plot(*panel.curve.T, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    if panel.points is not None:
        axes.scatter(panel.points[:, 0], panel.points[:, 1], s=7, color=shade, linewidths=0, alpha=0.8, rasterized=True)
    if panel.line is not None:
        axes.plot(*panel.line.T, color=shade, linewidth=2.2)
    if panel.origins is not None and panel.arrows is not None:
        axes.quiver(*panel.origins.T, *panel.arrows.T, color=shade, angles="xy", scale_units="xy", scale=1, width=0.006)


def image_png(images: Tensor, columns: int = 8, gap: int = 1) -> bytes:
    """Lays images (n, C, H, W) in [0, 1] out row by row, on a transparent ground, as a PNG.

    Raises:
        ValueError: if C is neither 1 nor 3, or there is no image.
    """
    n, channels, height, width = images.shape
    if channels not in (1, 3) or n == 0:
        raise ValueError(f"cannot draw {n} images of {channels} channels")
    rows = math.ceil(n / columns)
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1), dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width, :channels] = image
        canvas[top : top + height, left : left + width, channels] = 255
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def image_grid(images: Tensor, columns: int = 8, gap: int = 1) -> str:
    """The same as a data URI, for a page."""
    return "data:image/png;base64," + base64.b64encode(image_png(images, columns, gap)).decode("ascii")
