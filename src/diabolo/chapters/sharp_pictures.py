"""The pictures of the sharp chapter as PNG files: reconstructions, samples, and both in one picture for a first page.

Words on them are English and few; a page says the rest in its own language.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diabolo import plots, runs

#: Rows of the strip and grids of samples: the name that measures have them under, and what is written beside them.
ROWS = (
    ("c1", "article: MLP"),
    ("c4", "article: ConvVAE"),
    ("c5-leaky", "article: LeakyReLU"),
    ("sharp", "here, z = mean"),
    ("sharp-60", "here, larger, longer"),
)
GRIDS = (
    ("c4", "article, z ~ N(0, I)"),
    ("own", "here, z ~ N(0, I)"),
    ("flow-class", "here, flow, by class"),
)
#: Pixels of the picture for one of an image; of a line of text; between two parts; beside a row of the strip.
_ZOOM, _LINE, _GAP, _MARGIN = 2, 22, 10, 168
#: Bytes that the picture of all may have, and how many columns its grids have, at most and at least.
LIMIT, _WIDEST, _NARROWEST = 400_000, 6, 2


class Shown(Protocol):
    """`pictures` as `sharp_measures.Measured` has them."""

    @property
    def pictures(self) -> Mapping[str, Any]: ...


def write_pictures(folder: Path, measured: Shown) -> list[Path]:
    """Write strip.png, samples.png and top.png, with as many images as keep the last below 400 kB.

    Raises:
        UsageError: if the folder cannot be written to.
    """
    for columns in range(_WIDEST, _NARROWEST - 1, -1):
        strip, grids = _strip(measured.pictures, 2 * columns), _grids(measured.pictures, columns)
        top = _png(_stacked([strip, grids]))
        if len(top) < LIMIT:
            break
    made = {"strip": _png(strip), "samples": _png(grids), "top": top}
    for name, content in made.items():
        runs.write_bytes(folder / f"{name}.png", content)
    return [folder / f"{name}.png" for name in made]


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return content.getvalue()


def _strip(pictures: Mapping[str, Any], columns: int) -> Image.Image:
    """The first of the test images, and what each model makes of them, one row each."""
    rows = [(pictures["real"], "test images")]
    rows += [(pictures["strip"][name], text) for name, text in ROWS if name in pictures["strip"]]
    parts = [_beside(_tiles(images[:columns], columns), text) for images, text in rows]
    return _stacked(parts, gap=_ZOOM)


def _grids(pictures: Mapping[str, Any], columns: int) -> Image.Image:
    """The grids in one row, each under its words, with the first columns of each."""
    shown = [(pictures["grids"][name], text) for name, text in GRIDS if name in pictures["grids"]]
    parts = [_under(_tiles(_first(images, columns), columns), text) for images, text in shown]
    width = sum(part.width for part in parts) + _GAP * (len(parts) - 1)
    sheet, left = _blank(width, max(part.height for part in parts)), 0
    for part in parts:
        sheet.paste(part, (left, 0))
        left += part.width + _GAP
    return sheet


def _first(images: Tensor, columns: int) -> Tensor:
    """The first columns of a grid of `_WIDEST`, whose rows are classes."""
    kept: Tensor = images.unflatten(0, (-1, _WIDEST))[:, :columns]
    return kept.flatten(0, 1)


def _tiles(images: Tensor, columns: int) -> Image.Image:
    """Images (n, C, H, W) in [0, 1] in rows, enlarged without smoothing, on white."""
    with Image.open(io.BytesIO(plots.image_png(images, columns))) as picture:
        drawn = picture.convert("RGBA")
    drawn = drawn.resize((_ZOOM * drawn.width, _ZOOM * drawn.height), Image.Resampling.NEAREST)
    sheet = _blank(*drawn.size)
    sheet.paste(drawn, mask=drawn.getchannel("A"))
    return sheet


def _beside(picture: Image.Image, text: str) -> Image.Image:
    sheet = _blank(_MARGIN + picture.width, picture.height)
    sheet.paste(picture, (_MARGIN, 0))
    ImageDraw.Draw(sheet).text((0, picture.height // 2), text, fill="black", font=_font(), anchor="lm")
    return sheet


def _under(picture: Image.Image, text: str) -> Image.Image:
    sheet = _blank(picture.width, _LINE + picture.height)
    sheet.paste(picture, (0, _LINE))
    ImageDraw.Draw(sheet).text((0, _LINE // 2), text, fill="black", font=_font(), anchor="lm")
    return sheet


def _stacked(parts: Sequence[Image.Image], gap: int = _GAP) -> Image.Image:
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    sheet, top = _blank(max(part.width for part in parts), height), 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + gap
    return sheet


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def _font() -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib, so that the same picture is drawn everywhere."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 15)
