"""The spectrum and the plane of rate and distortion draw the numbers they are given; lines of equal ELBO are what they say."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Annotation
from scipy.optimize import minimize_scalar

from diabolo import plots, plots_rd
from diabolo.plots_rd import Contours, Mark, iso_psnr

EIGENVALUES = [50 / rank**1.3 for rank in range(1, 301)]
RUNS = [
    Mark("one", 25.0, 17.0, 0),
    Mark("two", 26.0, 17.1, 1),
    Mark("three", 330.0, 21.0, 2),
    Mark("p", 200.0, 22.0, 0, True),
]
CURVE = ([10.0, 100.0, 200.0, 400.0], [15.0, 20.0, 22.5, 25.5])


def plane():
    return plots_rd.rate_plane(CURVE, RUNS, Contours(3072), (0.0, 400.0))


def spectrum():
    points = [Mark("one", 18, 0.5, 0), Mark("two", 0, 0.5, 1), Mark("three", 110, 0.012, 2)]
    return plots_rd.spectrum(EIGENVALUES, [Mark("", 1, 0.5, small=True), points[2]], points)


def points_of(figure):
    """(x, y) of everything drawn as one marker."""
    lines = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "None"]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


@pytest.mark.parametrize(("rate", "mse", "dimensions"), [(20.0, 0.02, 3072), (505.0, 0.0028, 3072), (3.0, 0.1, 48)])
def test_a_line_of_equal_bits_goes_through_the_best_sigma_s_elbo(rate, mse, dimensions):
    """-ELBO = R + D e / (2 s) + D/2 log(2 pi s) is minimised over s numerically; its bits put the point back on its line."""

    def negative_elbo(log_s):
        return rate + dimensions / 2 * (mse / math.exp(log_s) + math.log(2 * math.pi) + log_s)

    least = minimize_scalar(negative_elbo, bounds=(-20, 5), method="bounded", options={"xatol": 1e-10})
    assert math.exp(least.x) == pytest.approx(mse, rel=1e-5)
    bits = least.fun / (dimensions * math.log(2)) + 8
    assert iso_psnr(rate, bits, dimensions) == pytest.approx(-10 * math.log10(mse), abs=1e-6)


def test_a_bit_is_six_decibels_and_lines_are_straight():
    at_rates = [iso_psnr(rate, 7.0, 3072) for rate in (0.0, 100.0, 200.0)]
    assert at_rates[2] - at_rates[1] == pytest.approx(at_rates[1] - at_rates[0], rel=1e-12)
    assert iso_psnr(50.0, 6.0, 3072) - iso_psnr(50.0, 7.0, 3072) == pytest.approx(20 * math.log10(2), rel=1e-12)


def test_the_plane_draws_every_run_between_its_rates_where_it_is():
    figure = plane()
    assert points_of(figure) == [(m.x, m.y) for m in RUNS]
    left = plots_rd.rate_plane(CURVE, RUNS, Contours(3072, 0.1), (0.0, 120.0))
    assert points_of(left) == [(m.x, m.y) for m in RUNS if m.x <= 120]


def test_the_plane_s_lines_are_those_of_their_labels():
    axes = plane().axes[0]
    labels = {t.get_text(): t.xy for t in axes.texts if isinstance(t, Annotation)}
    levels = [text for text in labels if text.replace(".", "").isdigit()]
    assert len(levels) >= 3 and "bits/dim" in labels
    for text in levels:
        assert labels[text][0] == 400 and labels[text][1] == pytest.approx(iso_psnr(400, float(text), 3072))
    dotted = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    ends = {round(float(line.get_ydata()[1]), 6) for line in dotted}
    assert {round(labels[text][1], 6) for text in levels} <= ends


def test_the_spectrum_draws_eigenvalues_lines_and_points():
    axes = spectrum().axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    curve = max(axes.get_lines(), key=lambda line: len(line.get_xdata()))
    assert list(curve.get_xdata()) == list(range(1, 301)) and np.allclose(curve.get_ydata(), EIGENVALUES)
    flat = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert [float(line.get_ydata()[0]) for line in flat] == [0.5, 0.012]
    drawn = points_of(spectrum())
    assert drawn[0] == (18, 0.5) and drawn[2] == (110, 0.012)
    assert 0 < drawn[1][0] < 1, "no active unit stands left of one"
    low, high = axes.get_ylim()
    assert low < 0.012 and high > EIGENVALUES[0]


@pytest.mark.parametrize("make", [plane, spectrum])
def test_names_do_not_hide_one_another(make):
    figure = make()
    figure.draw_without_rendering()
    named = [t for t in figure.axes[0].texts if t.get_text() in {"one", "two", "three", "p"}]
    boxes = [t.get_window_extent() for t in named]
    assert len(boxes) == (4 if make is plane else 3)
    assert not [(i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes) if i < j and a.overlaps(b)]


@pytest.mark.parametrize("make", [plane, spectrum])
def test_drawings_are_clean_deterministic_and_follow_the_page_s_colour(make):
    first = plots.svg(make(), "key", "label")
    assert plots.svg(make(), "key", "label") == first
    root = ElementTree.fromstring(first)
    assert root.attrib["aria-label"] == "label" and "currentColor" in first and plots.INK not in first
    texts = [t.text for t in root.iter("text")]
    assert {"one", "two", "three"} <= set(texts)
    assert "#000000" not in first and "black" not in first, "what is black is not seen on a dark page"


def test_what_is_said_in_them_can_be_translated():
    assert {"rate: KL in nats per image", "PSNR in dB at drawn z", "bits/dim"} <= set(plots.sentences(plane()))
    assert {"rank of the eigenvalue; active directions, units"} <= set(plots.sentences(spectrum()))
