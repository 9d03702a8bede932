"""Data compression with a run: examples -> codes -> quantised -> a .dia file, and back to what the decoder makes of them.

What a stream costs is its file. The decoder's weights and the codec, which whoever decodes must have, are not counted in it:
they are paid once, however many examples there are, and every answer says how big they are.
"""

from __future__ import annotations

import io
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diabolo import data as data_module
from diabolo.coding import codec as codecs
from diabolo.coding import quantiser
from diabolo.coding.codec import Codec
from diabolo.coding.container import MAX_BYTES, Container, check_size, unpack
from diabolo.coding.quantiser import Codes, Quantiser
from diabolo.coding.range_coder import Symbols
from diabolo.data import Access, Loader
from diabolo.data.spec import DataSpec, Values
from diabolo.engine import own_randomness
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import BATCH
from diabolo.images_metrics import mean_squared_errors, psnr
from diabolo.inspection import Examples
from diabolo.metrics import examples_at_a_time
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.grids import vectors
from diabolo.runs import Run, sha256, spec_from_dict, write_bytes

#: Bits a dimension of a posterior without a spread, where none are asked for.
DEFAULT_BITS = 6


# ------------------------------------------------------------------------------------------------ codes
@torch.no_grad()
def codes(model: Autoencoder, loader: Loader) -> tuple[Codes, Codes | None]:
    """The posterior means (N, d) of a loader's examples, in their order, and the mean over them of the posterior's standard
    deviation (d,), where it has one. Both float64."""
    means, deviations = [], []
    for batch in loader.ordered(BATCH):
        q = model.encode(batch.x)
        means.append(vectors(q.mean).cpu().double())
        if model.posterior.density:
            deviations.append(vectors(q.stddev).cpu().double().sum(0))
    found = torch.cat(means).numpy()
    return found, torch.stack(deviations).sum(0).numpy() / len(found) if deviations else None


@torch.no_grad()
def decoded(model: Autoencoder, points: Codes, shape: tuple[int, ...], values: Values) -> NDArray[Any]:
    """What is written of the decoder's means E[x | z] at points (N, d): (N, *shape), `shape` being that of an example."""
    parameter = next(model.parameters())
    event = model.encode(parameter.new_zeros(1, *shape)).mean.shape[1:]
    z = torch.from_numpy(points).to(parameter).unflatten(1, event)
    parts = z.split(examples_at_a_time(model, shape[0], BATCH))
    return np.concatenate([as_stored(model.decode(part[None]).mean[0].cpu(), values) for part in parts])


def as_stored(mean: torch.Tensor, values: Values) -> NDArray[Any]:
    """What is written of decoder means: levels 0..255 as uint8, or real numbers as float32."""
    return mean.float().numpy() if values == "real" else (mean.clamp(0, 1) * 255).round().byte().numpy()


def as_read(stored: NDArray[Any]) -> torch.Tensor:
    """The values that `as_stored` wrote: levels as k / 255."""
    tensor = torch.from_numpy(stored)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor


# ------------------------------------------------------------------------------------------------ the codec of a run
def codec_path(run: Run, bits: int) -> Path:
    """Where the codec is kept: `bits` a dimension, 0 for steps of the posterior's standard deviation."""
    return run.place(f"codec-{f'b{bits}' if bits else 'sd'}.json")


def fitted(loader: Loader, model: Autoencoder, bits: int, weights: str = "") -> Codec:
    """The codec for a model's codes, fitted to a loader's examples (the training split).

    Raises:
        UsageError: for steps of a standard deviation that the posterior does not have.
        DataError: for codes that are not finite.
    """
    means, deviation = codes(model, loader)
    if not np.isfinite(means).all():
        raise DataError("a code of the training split is not finite", "The run diverged, or its weights are damaged.")
    return codecs.fit(grid(means, deviation, bits), means, weights)


def grid(means: Codes, deviation: Codes | None, bits: int) -> Quantiser:
    """The quantiser for codes like these of the training split (N, d): `bits` a dimension, or 0 for steps of `deviation` (d,).

    Raises:
        UsageError: for 0 bits without a deviation.
    """
    if bits:
        return quantiser.by_bits(means, bits)
    if deviation is None:
        raise UsageError("this posterior has no standard deviation to take steps of", remedy="Say how many bits.")
    return quantiser.by_deviation(means, deviation)


def codec_of(run: Run, model: Autoencoder, bits: int, access: Access | None, device: torch.device | str) -> Codec:
    """The run's codec, from its file or fitted to the training split and written there, once and for all streams.

    Raises:
        DataError: if the file is damaged or belongs to other weights, or the training split cannot be had.
    """
    path, weights = codec_path(run, bits), sha256(run.path / "weights.safetensors")
    if not path.exists():
        dataset = data_module.load(run.config.data.name, run.config.data.params, access)
        run.check_data(dataset)
        write_bytes(path, fitted(Loader(dataset, "train", device), model, bits, weights).to_json())
    return _read_codec(path, weights)


def _read_codec(path: Path, weights: str) -> Codec:
    found = codecs.from_json(_content(path), str(path))
    if found.weights != weights:
        why = "The run was trained on since: streams that were made with it cannot be decoded with the weights of now."
        raise DataError(f"{path} was fitted to other weights", why, "Move it away; compress fits a new one.")
    return found


def _content(path: Path) -> bytes:
    """A file's bytes, of at most `MAX_BYTES`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read", str(error.strerror)) from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{path} is too large", f"At most {MAX_BYTES >> 20} MiB are read.")
    return content


def _digest(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal)[: codecs.DIGEST]


# ------------------------------------------------------------------------------------------------ there and back
@dataclass(frozen=True)
class Compressed:
    """What a file costs and what it gives: `size` of the file in bytes, `stream` of the stream in it, `ideal_bits` its ideal code
    length, `mse` of what is decoded; sizes of what is not counted; `pixels` an example has (values, where it is a vector)."""

    count: int
    pixels: int
    image: bool
    real: bool
    size: int
    stream: int
    ideal_bits: float
    mse: float
    codec: Path
    codec_size: int
    weights_size: int

    @property
    def bits_per_pixel(self) -> float:
        return 8 * self.size / (self.count * self.pixels)

    @property
    def ideal_bits_per_pixel(self) -> float:
        return self.ideal_bits / (self.count * self.pixels)

    @property
    def psnr(self) -> float | None:
        """In dB; None for real numbers, which have no peak, and where nothing is lost."""
        return None if self.real or self.mse == 0 else psnr(self.mse)


def pixels(shape: tuple[int, ...]) -> int:
    """Places of an image, whatever its channels; values of a vector."""
    return math.prod(shape[1:]) if len(shape) == 3 else math.prod(shape)


def compress(
    run: Run,
    given: Examples,
    out: Path,
    *,
    bits: int | None = None,
    access: Access | None = None,
    device: torch.device | str = "cpu",
) -> Compressed:
    """Write examples as a .dia file, decode it again, and say what it costs and gives.

    bits: 1 to 12 a code dimension, on a grid over the range of the training codes; without, steps of the posterior's standard
    deviation, or `DEFAULT_BITS` where it has none.

    Raises:
        DataError: if the data cannot be had, are too many, or the run's codec does not belong to its weights.
        UsageError: if the file or the codec cannot be written.
    """
    spec, loader = given.dataset.spec, given.loader(device)
    check_size(len(loader), spec.dimensions)
    model = run.model().to(device)
    bits = (0 if model.posterior.density else DEFAULT_BITS) if bits is None else bits
    with own_randomness(torch.device(device)):
        codec = codec_of(run, model, bits, access, device)
        symbols = _symbols(codec, model, loader, given.source)
        content = packed(codec, symbols, bits, spec.shape)
        mse = _error(model, codec, content, loader, spec)
    write_bytes(out, content)
    path = codec_path(run, bits)
    return Compressed(
        count=len(symbols),
        pixels=pixels(spec.shape),
        image=len(spec.shape) == 3,
        real=spec.values == "real",
        size=len(content),
        stream=len(unpack(content).stream),
        ideal_bits=codec.ideal_bits(symbols),
        mse=mse,
        codec=path,
        codec_size=path.stat().st_size,
        weights_size=(run.path / "weights.safetensors").stat().st_size,
    )


def packed(codec: Codec, symbols: Symbols, bits: int, shape: tuple[int, ...]) -> bytes:
    """The content of a .dia file with symbols (N, d) of examples of `shape`.

    Raises:
        DataError: if they are too many.
    """
    check_size(*symbols.shape)
    return Container(
        weights=_digest(codec.weights),
        codec=codec.digest,
        bits=bits,
        count=len(symbols),
        shape=shape,
        stream=codec.encode(symbols),
    ).pack()


def _symbols(codec: Codec, model: Autoencoder, loader: Loader, source: str) -> Symbols:
    found = codes(model, loader)[0]
    if not np.isfinite(found).all():
        raise DataError("a code is not finite", f"The encoder cannot read {source}.")
    return codec.quantiser.symbols(found)


def _error(model: Autoencoder, codec: Codec, content: bytes, loader: Loader, spec: DataSpec) -> float:
    """The mean squared error of what a file gives when it is decoded."""
    container = unpack(content)
    points = codec.quantiser.points(codec.decode(container.stream, container.count))
    read = as_read(decoded(model, points, spec.shape, spec.values))
    parts = [mean_squared_errors(read[batch.index], batch.x.cpu()) for batch in loader.ordered(BATCH)]
    return torch.cat(parts).mean().item()


def decompress(run: Run, path: Path, *, device: torch.device | str = "cpu") -> NDArray[Any]:
    """What the decoder makes of a .dia file: levels (N, *shape) uint8, or real numbers float32.

    Raises:
        DataError: if the file is damaged, or was not made with this run as it is.
    """
    model = run.model().to(device)
    spec = spec_from_dict(run.env["data"]["spec"])
    points = _points(run, path, spec)
    with own_randomness(torch.device(device)):
        return decoded(model, points, spec.shape, spec.values)


def _points(run: Run, path: Path, spec: DataSpec) -> Codes:
    """The quantised codes (N, d) that a file holds."""
    try:
        container = unpack(_content(path))
    except DataError as error:
        raise DataError(f"{path}: {error.what}", error.why, error.remedy) from error
    weights = sha256(run.path / "weights.safetensors")
    if container.weights != _digest(weights) or container.shape != spec.shape:
        theirs = f"Its weights begin with {container.weights.hex()[:12]}, the run's with {weights[:12]}."
        raise DataError(f"{path} was not made with the weights of {run.path}", theirs, "Name the run that made it.")
    codec = _codec_for(run, container, path, weights)
    check_size(container.count, len(codec.tables))
    try:
        return codec.quantiser.points(codec.decode(container.stream, container.count))
    except ValueError as error:
        raise DataError(f"{path}: it is damaged", str(error)) from error


def _codec_for(run: Run, container: Container, path: Path, weights: str) -> Codec:
    where = codec_path(run, container.bits)
    if not where.exists():
        why = f"{path} was made with it, and nothing can be decoded without."
        raise DataError(f"{where} does not exist", why, "Copy it here, from where the file was made.")
    codec = _read_codec(where, weights)
    if codec.digest != container.codec:
        raise DataError(
            f"{path} was made with another codec than {where}", remedy="Copy it from where the file was made."
        )
    return codec


# ------------------------------------------------------------------------------------------------ writing
def write_array(path: Path, stored: NDArray[Any]) -> None:
    """Write a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, stored, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def write_image(path: Path, levels: NDArray[np.uint8]) -> None:
    """Write one image (C, H, W), C = 1 or 3, as a PNG file."""
    buffer = io.BytesIO()
    _image(levels).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _image(levels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))


def write_images(folder: Path, levels: NDArray[np.uint8]) -> None:
    """Write images (N, C, H, W) as 000000.png, 000001.png, ... into a new folder, which appears when all are written.

    Raises:
        UsageError: if they are no images of one or three channels, or the folder cannot be made.
    """
    if levels.dtype != np.uint8 or levels.ndim != 4 or levels.shape[1] not in (1, 3):
        raise UsageError("these are no pictures", f"Their shape is {levels.shape[1:]}.", "Choose a .npy file instead.")
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for i, image in enumerate(levels):
            _image(image).save(temporary / f"{i:06d}.png")
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UsageError(f"{folder} cannot be written", str(error), "Choose another place.") from error
