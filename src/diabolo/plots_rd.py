"""Drawings of what a latent code costs and buys: the spectrum against sigma^2, and the plane of rate and distortion.

D values in an example, R the rate in nats per example, PSNR in dB. Deterministic and fit for a page as all of `plots`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter

from diabolo.language import say
from diabolo.plots import INK, MARKERS, _axes, colour

#: Bits that a density on [0, 1] lacks of the code length of 8-bit values.
BITS = 8
#: Where on the axis of active units a model stands that has none: a logarithm has no zero.
_NONE = 0.8


@dataclass(frozen=True)
class Mark:
    """A point and its name, "" for none; `series` chooses colour and marker, a `small` one is drawn in the text's colour."""

    name: str
    x: float
    y: float
    series: int = 0
    small: bool = False


@dataclass(frozen=True)
class Contours:
    """Lines of equal bits per dimension, of examples with so many dimensions, each `step` bits."""

    dimensions: int
    step: float = 0.5


# ------------------------------------------------------------------------------------------------ the spectrum
def spectrum(eigenvalues: Sequence[float], lines: Sequence[Mark], points: Sequence[Mark]) -> Figure:
    """Draws the covariance's eigenvalues against their rank, a horizontal line at each sigma^2 (y of `lines`), and each model
    as a point (active directions or units, sigma^2); both axes are logarithmic.

    A linear model uses a latent dimension only for a direction whose variance exceeds sigma^2, so at the optimum its point
    lies on the curve, or on the left of it where it has fewer dimensions.
    """
    figure, axes = _axes(
        4.6, 4.0, say("rank of the eigenvalue; active directions, units"), say("eigenvalue; \u03c3\u00b2")
    )
    positive = [value for value in eigenvalues if value > 0]
    axes.loglog(range(1, len(positive) + 1), positive, color=INK, linewidth=1.8)
    for line in lines:
        axes.axhline(line.y, color=INK if line.small else colour(line.series), linewidth=1.0, linestyle=(0, (4, 3)))
    placed = [Mark(p.name, max(p.x, _NONE), p.y, p.series, p.small) for p in points]
    _points(axes, placed)
    lowest = min([*(p.y for p in points), *(line.y for line in lines), positive[0]])
    axes.set_xlim(_NONE * 0.85, 1.25 * len(positive))
    axes.set_ylim(min(lowest / 3, max(positive[-1], lowest / 30)), 1.8 * max(positive[0], *(line.y for line in lines)))
    _plain(axes)
    curve = [(float(rank), value) for rank, value in enumerate(positive, 1)]
    _label(figure, axes, placed, _thinned(curve, 80), [line.y for line in lines])
    return figure


def _plain(axes: Axes) -> None:
    """Numbers on logarithmic axes as they are said."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.minorticks_off()


def _thinned(points: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """So many of the points, evenly in the logarithm of their place."""
    last = len(points) - 1
    chosen = sorted({round(math.exp(math.log(last + 1) * i / (count - 1))) - 1 for i in range(count)})
    return [points[i] for i in chosen]


# ------------------------------------------------------------------------------------------------ the plane
def rate_plane(
    curve: tuple[Sequence[float], Sequence[float]],
    runs: Sequence[Mark],
    contours: Contours,
    rates: tuple[float, float],
) -> Figure:
    r"""Draws models as points (rate in nats per example, PSNR in dB at drawn z) between two rates, and lines of equal ELBO.

    `curve`: rates and PSNRs of reverse water-filling, the least rate of a Gaussian with the data's covariance at an error; a
    pPCA with as many latents as its sigma^2 can use lies on it.

    A Gaussian likelihood with one sigma has, with e the mean squared error per value at drawn z,

    .. math:: -ELBO = R + \frac{D e}{2 \sigma^2} + \frac D2 \log 2 \pi \sigma^2
              \;\ge\; R + \frac D2 \log (2 \pi \mathrm{e}\, e), \quad \text{equal at } \sigma^2 = e

    Since PSNR = -10 log10(e) is affine in log e, all points of equal ELBO at their best sigma lie on the straight line

    .. math:: PSNR = \frac{20}{D \ln 10} \left( R + \frac D2 \log 2 \pi \mathrm{e} - (b - 8) D \ln 2 \right)

    with b = -ELBO / (D ln 2) + 8 bits per dimension. A model whose sigma is not its best is worse than the line it lies on.
    """
    figure, axes = _axes(4.6, 4.0, say("rate: KL in nats per image"), say("PSNR in dB at drawn z"))
    low, high = rates
    shown = [m for m in runs if low <= m.x <= high]
    within = [(r, p) for r, p in zip(*curve) if low <= r <= high]
    heights = [m.y for m in shown] + [p for _, p in within]
    margin = 0.08 * (max(heights) - min(heights) + 1)
    axes.set_xlim(low - 0.02 * (high - low), high)
    axes.set_ylim(min(heights) - margin, max(heights) + margin)
    _iso_lines(axes, contours, rates)
    axes.plot([r for r, _ in within], [p for _, p in within], color=INK, linewidth=1.8)
    _points(axes, shown)
    _label(figure, axes, shown, within)
    return figure


def iso_psnr(rate: float, bits: float, dimensions: int) -> float:
    """The PSNR at which a rate in nats gives so many bits per dimension at the best sigma; see `rate_plane`."""
    nats = rate + dimensions / 2 * math.log(2 * math.pi * math.e) - (bits - BITS) * dimensions * math.log(2)
    return 20 / (dimensions * math.log(10)) * nats


def _iso_lines(axes: Axes, contours: Contours, rates: tuple[float, float]) -> None:
    """Every level that crosses the axes, named at its right end, outside."""
    (low, high), (bottom, top) = rates, axes.get_ylim()
    per_bit = iso_psnr(0, BITS - 1, contours.dimensions) - iso_psnr(0, BITS, contours.dimensions)
    highest = BITS + (iso_psnr(high, BITS, contours.dimensions) - bottom) / per_bit
    level = contours.step * math.floor(highest / contours.step)
    while (at_right := iso_psnr(high, level, contours.dimensions)) < top + per_bit:
        ends = [iso_psnr(rate, level, contours.dimensions) for rate in (low, high)]
        axes.plot([low, high], ends, color=INK, linewidth=0.8, alpha=0.45, linestyle=(0, (1, 2)))
        if at_right < top:
            _beside(axes, f"{level:g}", (high, at_right), (4, 0), "center")
        level -= contours.step
    _beside(axes, say("bits/dim"), (high, top), (-8, 6), "bottom")


def _beside(
    axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], up: Literal["center", "bottom"]
) -> None:
    axes.annotate(text, at, offset, textcoords="offset points", va=up, color=INK, fontsize=9, annotation_clip=False)


# ------------------------------------------------------------------------------------------------ points and their names
def _points(axes: Axes, marks: Sequence[Mark]) -> None:
    for m in marks:
        shade, marker = (INK, "o") if m.small else (colour(m.series), MARKERS[m.series % len(MARKERS)])
        axes.plot([m.x], [m.y], marker=marker, color=shade, markersize=3 if m.small else 8, linestyle="none", zorder=4)


#: Across and up from a mark in points, and the side at which a name begins.
Place = tuple[float, float, Literal["left", "center", "right"]]
#: Where a name may stand, in points from its mark: the nearest place that is free is taken.
_PLACES: list[Place] = [
    (distance * x, distance * y, "left" if x > 0 else "right" if x < 0 else "center")
    for distance in (8, 14, 22, 32, 44, 58)
    for x, y in ((1, 0), (0.7, 0.8), (0.7, -0.8), (-1, 0), (-0.7, 0.8), (-0.7, -0.8), (0, 1.1), (0, -1.1))
]
#: A name further away than these is joined to its mark by a line.
_NEAR = 16


def _label(
    figure: Figure,
    axes: Axes,
    marks: Sequence[Mark],
    avoided: Sequence[tuple[float, float]],
    heights: Sequence[float] = (),
) -> None:
    """Put each mark's name at the nearest place where it hides neither a mark, nor a name, nor one of the `avoided` points, nor
    the horizontal lines at these heights."""
    figure.draw_without_rendering()  # settles the layout
    inside = np.asarray(axes.get_window_extent().extents)
    taken = [_around(axes, m.x, m.y, 3 if m.small else 6) for m in marks]
    taken += [_around(axes, x, y, 1) for x, y in avoided]
    taken += [_across(axes, inside, y) for y in heights]
    for m in sorted(marks, key=lambda m: m.small):
        if m.name:
            taken.append(_named(axes, m, inside, np.stack(taken)))


def _around(axes: Axes, x: float, y: float, points: float) -> np.ndarray:
    """The box (left, bottom, right, top), in pixels of the figure, of so many points around a place."""
    at = axes.transData.transform((x, y))
    half = points * axes.figure.dpi / 72
    return np.concatenate([at - half, at + half])


def _across(axes: Axes, inside: np.ndarray, y: float) -> np.ndarray:
    up = float(axes.transData.transform((1.0, y))[1])
    return np.array([inside[0], up - 1, inside[2], up + 1])


def _named(axes: Axes, mark: Mark, inside: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Write the name at the first place that is free, or else where it hides least; the box that it fills."""
    size = 9 if mark.small else 10
    text = axes.annotate(
        mark.name, (mark.x, mark.y), (0, 0), textcoords="offset points", va="center", color=INK, fontsize=size
    )
    costs = []
    for place in _PLACES:
        box = _moved(text, place)
        costs.append(_common(box, taken).sum() + 9 * (_common(box, box) - _common(box, inside)))
        if costs[-1] == 0:
            break
    best = min(range(len(costs)), key=costs.__getitem__)
    if best >= _NEAR:
        axes.annotate(
            "",
            (mark.x, mark.y),
            _PLACES[best][:2],
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
        )
    return _moved(text, _PLACES[best])


def _moved(text: Annotation, place: Place) -> np.ndarray:
    """Write the name at a place; the box that it fills there, with a little air around it."""
    x, y, side = place
    text.set_position((x, y))
    text.set_horizontalalignment(side)
    return np.asarray(text.get_window_extent().padded(3).extents)


def _common(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that a box (4,) shares with others (..., 4)."""
    sides = np.minimum(box[2:], others[..., 2:]) - np.maximum(box[:2], others[..., :2])
    return np.asarray(np.prod(sides.clip(min=0), axis=-1))
