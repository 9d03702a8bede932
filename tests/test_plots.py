"""Figures are deterministic, can stand beside each other in one page, and draw the numbers they are given."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from diabolo import plots

LAYERS = [("data", 784), ("encoder", 400), ("latent z", 20), ("decoder", 400), ("mean", 784)]
CURVES = [plots.Curve(0, [1, 2, 3], [9.0, 5.0, 4.0]), plots.Curve(0, [1, 2, 3], [8.0, 6.0, 5.0], dashed=True)]


def means(n=400, d=5):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g), torch.arange(n) % 10


def drawings():
    x, y = means()
    points = [plots.Curve(0, [1, 10, 5000], [-9.0, -7.0, -6.5], errors=[0.5, 0.2, 0.1])]
    return {
        "hourglass": plots.hourglass(LAYERS),
        "epochs": plots.epoch_curves(CURVES, "loss, nats/image"),
        "samples": plots.sample_curves(points, "log p(x), nats/image"),
        "scatter": plots.class_scatter(x, y, [0.31, 0.22]),
        "bars": plots.dimension_bars([0.5, 2.0, 0.0], "KL, nats/image"),
    }


def text_of(svg):
    return [t.text for t in ElementTree.fromstring(svg).iter("text")]


@pytest.mark.parametrize("name", list(drawings()))
def test_svg_is_clean_and_deterministic(name):
    svg = plots.svg(drawings()[name], "first", 'a "label" <b>')
    assert plots.svg(drawings()[name], "first", 'a "label" <b>') == svg
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg" and root.attrib["role"] == "img" and root.attrib["aria-label"] == 'a "label" <b>'
    for forbidden in ("http", "xmlns", "<metadata", "<!DOCTYPE", "<style", "DejaVu", plots.INK, "xlink"):
        assert forbidden not in svg
    assert "currentColor" in svg
    assert "width" not in root.attrib and "viewBox" in root.attrib


def test_ids_of_two_keys_never_meet():
    found = []
    for key in ("one", "two"):
        for name, figure in drawings().items():
            svg = plots.svg(figure, f"{key}-{name}", "label")
            ids = re.findall(r'\bid="([^"]+)"', svg)
            assert set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg)) <= set(ids)
            found += ids
    assert len(found) == len(set(found))


def test_hourglass_names_every_layer():
    texts = text_of(plots.svg(plots.hourglass(LAYERS), "k", "label"))
    assert texts == [word for name, size in LAYERS for word in (f"{size:,}", name)]


def test_axes_say_quantity_unit_and_variance():
    shown = {name: text_of(plots.svg(figure, name, "label")) for name, figure in drawings().items()}
    assert "epoch" in shown["epochs"] and "loss, nats/image" in shown["epochs"]
    assert {"1", "10", "5,000", "importance samples K"} <= set(shown["samples"])
    assert {"component 1 (31.0 % of variance)", "component 2 (22.0 % of variance)"} <= set(shown["scatter"])
    assert "KL, nats/image" in shown["bars"]


def test_train_is_solid_and_held_out_dashed():
    lines = plots.epoch_curves(CURVES, "loss").axes[0].get_lines()
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert [list(line.get_ydata()) for line in lines] == [[9.0, 5.0, 4.0], [8.0, 6.0, 5.0]]
    assert lines[0].get_color() == lines[1].get_color()


def test_bars_are_ordered():
    heights = [bar.get_height() for bar in plots.dimension_bars([0.5, 2.0, 0.0], "KL").axes[0].patches]
    assert heights == [2.0, 0.5, 0.0]


def test_projection_is_pca():
    x, _ = means()
    x = x * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1])
    centred = (x - x.mean(0)).double().numpy()
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    points = plots.projection(x)
    for i in range(2):
        expected = centred @ axes[i]
        assert np.allclose(points[:, i], expected) or np.allclose(points[:, i], -expected)
    flipped = plots.projection(-x)
    assert np.allclose(flipped, -points)


def test_every_point_is_drawn_once_in_its_class_colour():
    x, y = means(n=37)
    drawn = plots.class_scatter(x, y, [0.3, 0.2]).axes[0].collections
    assert sum(len(c.get_offsets()) for c in drawn) == 37
    assert all(c.get_rasterized() for c in drawn)
    assert len({tuple(c.get_facecolor()[0]) for c in drawn}) == 10


def test_ten_classes_have_ten_colours_and_markers():
    assert len(set(plots.PALETTE)) == len(set(plots.MARKERS)) == 10
    swatches = [plots.swatch(i) for i in range(10)]
    assert len(set(swatches)) == 10
    for swatch in (*swatches, plots.swatch(1, line="dashed")):
        ElementTree.fromstring(swatch)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_holds_the_pixels(channels):
    images = torch.randint(0, 256, (5, channels, 4, 6), generator=torch.Generator().manual_seed(0)).float() / 255
    address = plots.image_grid(images, columns=3)
    head, _, body = address.partition(",")
    assert head == "data:image/png;base64"
    grid = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
    assert grid.shape == (2 * 5 - 1, 3 * 7 - 1, channels + 1)
    fifth = grid[5:9, 7:13]
    assert (fifth[..., :channels] == (images[4] * 255).round().byte().permute(1, 2, 0).numpy()).all()
    assert (fifth[..., -1] == 255).all() and (grid[:, 6, -1] == 0).all() and (grid[5:, 14:, -1] == 0).all()


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (3, 2, 4, 4)])
def test_image_grid_refuses_what_it_cannot_draw(shape):
    with pytest.raises(ValueError, match="cannot draw"):
        plots.image_grid(torch.zeros(shape))


def test_no_global_state_is_left():
    import matplotlib

    before = dict(matplotlib.rcParams)
    for name, figure in drawings().items():
        plots.svg(figure, name, "label")
    assert dict(matplotlib.rcParams) == before
