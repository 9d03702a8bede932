"""Rate and distortion of codes on test images: a model's, those of PCA with the same quantiser and coder, and JPEG and PNG.

Every point is measured on what comes back: streams are written and decoded, and what is decoded is clamped to [0, 1] and rounded
to 256 levels, for all methods alike. A pixel is a place of the image, whatever its channels. Not counted, for a model and for
PCA: the decoder's weights and the codec's tables.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diabolo import compression, linear
from diabolo.coding import codec as codecs
from diabolo.coding import quantiser
from diabolo.coding.container import unpack
from diabolo.coding.quantiser import Codes, Quantiser
from diabolo.data import Loader
from diabolo.errors import UsageError
from diabolo.evaluation import BATCH
from diabolo.images_metrics import WINDOW, mean_squared_errors, psnr, ssim
from diabolo.language import say
from diabolo.models.autoencoder import Autoencoder

#: JPEG's markers: start and end of the image, and of the data that are entropy-coded.
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA


@dataclass(frozen=True)
class Point:
    """A method with its setting on n images. `bits_per_pixel`: of what is written, `ideal`: of the code length that the tables
    allow at best, where there are any. `psnr` in dB over all pixels of all images, None where nothing is lost; `ssim`: mean
    over images, None where they are smaller than its window."""

    method: str
    setting: str
    bits_per_pixel: float
    ideal: float | None
    psnr: float | None
    ssim: float | None
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def originals(loader: Loader) -> Tensor:
    """The images (N, C, H, W) of a split, values in [0, 1], on the CPU.

    Raises:
        UsageError: if they are none.
    """
    x = torch.cat([batch.x.cpu() for batch in loader.ordered(BATCH)])
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.min() < 0 or x.max() > 1:
        raise UsageError("rates are measured on images with values in [0, 1]", f"Here the shape is {tuple(x.shape)}.")
    return x


# ------------------------------------------------------------------------------------------------ codes
def of_model(
    model: Autoencoder, train: Loader, test: Loader, bits: Iterable[int], method: str = "model"
) -> list[Point]:
    """A model's points for each number of bits a dimension; 0: steps of the posterior's standard deviation.

    Raises:
        UsageError: for 0 bits with a posterior that has none, or data that are no images.
    """
    known, deviation = compression.codes(model, train)
    codes, x = compression.codes(model, test)[0], originals(test)

    def decode(points: Codes) -> NDArray[np.uint8]:
        return compression.decoded(model, points, tuple(x.shape[1:]), "grey")

    return [_coded(method, b, compression.grid(known, deviation, b), known, codes, decode, x) for b in bits]


def of_pca(train: Loader, test: Loader, dimensions: Sequence[int], bits: Sequence[int]) -> list[Point]:
    """The points of PCA with each number of dimensions and of bits, with the same quantiser and coder, fitted to `train`."""
    fitted_to, x = originals(train).flatten(1), originals(test)
    largest = linear.fit(fitted_to, max(dimensions))
    known, codes = (largest.encode(data).numpy() for data in (fitted_to, x.flatten(1)))
    points = []
    for d in dimensions:
        pca = largest.first(d)

        def decode(z: Codes, pca: linear.PCA = pca) -> NDArray[np.uint8]:
            return compression.as_stored(pca.decode(torch.from_numpy(z)).view_as(x), "grey")

        for b in bits:
            grid = quantiser.by_bits(known[:, :d], b)
            points.append(_coded(say("PCA, d = {d}", d=d), b, grid, known[:, :d], codes[:, :d], decode, x))
    return points


def _coded(
    method: str,
    bits: int,
    grid: Quantiser,
    known: Codes,
    codes: Codes,
    decode: Callable[[Codes], NDArray[np.uint8]],
    x: Tensor,
) -> Point:
    """Write the codes (N, d), decode what was written, and measure."""
    codec = codecs.fit(grid, known)
    symbols = grid.symbols(codes)
    content = compression.packed(codec, symbols, bits, tuple(x.shape[1:]))
    back = codec.decode(unpack(content).stream, len(x))
    if not np.array_equal(back, symbols):
        raise RuntimeError("the stream does not decode to the codes that were encoded")
    setting = say("{bits} bits", bits=bits) if bits else say("steps of sd")
    return _point(
        method, setting, 8 * len(content), codec.ideal_bits(symbols), compression.as_read(decode(grid.points(back))), x
    )


def _point(method: str, setting: str, bits: float, ideal: float | None, y: Tensor, x: Tensor) -> Point:
    places = len(x) * compression.pixels(tuple(x.shape[1:]))
    mse = mean_squared_errors(x, y).mean().item()
    return Point(
        method=method,
        setting=setting,
        bits_per_pixel=bits / places,
        ideal=None if ideal is None else ideal / places,
        psnr=psnr(mse) if mse else None,
        ssim=ssim(x, y).mean().item() if min(x.shape[2:]) >= WINDOW else None,
        n=len(x),
    )


# ------------------------------------------------------------------------------------------------ JPEG and PNG
def of_jpeg(test: Loader, quality: int) -> tuple[Point, Point]:
    """Each image as a JPEG file of its own: the whole files, and only what is entropy-coded in them.

    The second leaves out headers and tables, which are the same in every file of a set and could be sent once.
    """
    x = originals(test)
    files = [_file(image, "JPEG", quality=quality) for image in _levels(x)]
    y = _read(files)
    sizes = sum(map(len, files)), sum(map(entropy_coded, files))
    whole, bare = (8 * size for size in sizes)
    setting = say("quality {quality}", quality=quality)
    first = _point("JPEG", setting, whole, None, y, x)
    return first, _rated(say("JPEG without headers"), first, bare / whole)


def _rated(method: str, point: Point, share: float) -> Point:
    return Point(**{**point.to_dict(), "method": method, "bits_per_pixel": share * point.bits_per_pixel})


def of_png(test: Loader) -> Point:
    """Each image as a PNG file of its own, which loses nothing."""
    x = originals(test)
    files = [_file(image, "PNG", optimize=True) for image in _levels(x)]
    y = _read(files)
    return _point("PNG", say("lossless"), 8 * sum(map(len, files)), None, y, (x * 255).round() / 255)


def entropy_coded(file: bytes) -> int:
    """The bytes of a JPEG file that are entropy-coded: all but the markers and their segments.

    Raises:
        ValueError: if it is no JPEG file of one scan.
    """
    if file[:2] != bytes((0xFF, _START)) or file[-2:] != bytes((0xFF, _END)):
        raise ValueError("this is no JPEG file")
    at = 2
    while True:
        mark, kind = file[at], file[at + 1]
        length = int.from_bytes(file[at + 2 : at + 4], "big")
        if mark != 0xFF:
            raise ValueError(f"no marker at byte {at}")
        at += 2 + length
        if kind == _SCAN:
            return len(file) - 2 - at


def _levels(x: Tensor) -> NDArray[np.uint8]:
    """(N, H, W) or (N, H, W, 3)."""
    levels = compression.as_stored(x, "grey")
    return levels[:, 0] if levels.shape[1] == 1 else np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def _file(levels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, kind, **options)
    return buffer.getvalue()


def _read(files: Sequence[bytes]) -> Tensor:
    """(N, C, H, W), values in [0, 1]."""
    pictures = []
    for file in files:
        with Image.open(io.BytesIO(file), formats=("JPEG", "PNG")) as image:
            pictures.append(np.asarray(image))
    levels = np.stack(pictures)
    return compression.as_read(levels[:, None] if levels.ndim == 3 else levels.transpose(0, 3, 1, 2).copy())
