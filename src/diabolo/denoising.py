r"""How well noise is taken away: PSNR and SSIM against the noise level, of models, of two filters, and of doing nothing.

What is scored is what one would look at: every result is clipped to [0, 1] first, the noisy image ("as it is") too, which takes
part of the noise away where pixels are black or white. Models and filters are given the noisy values unclipped, as a denoising
autoencoder sees them in training. A model restores by its reconstruction at the code's mean.

The noise of image i depends on (seed, kind, i) alone: methods and levels share it, so their differences are sharper than the
standard errors say. A filter's parameter is the one with the least error on images to tune on, for each level anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from diabolo.data import Loader
from diabolo.data.tensor import examples_like
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import BATCH
from diabolo.images_metrics import WINDOW, mean_squared_errors, psnr, ssim
from diabolo.inspection import Examples, examples, read_array
from diabolo.language import joined, say
from diabolo.metrics import examples_at_a_time
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.corruptions import Kind, corrupt
from diabolo.runs import Run, spec_from_dict
from diabolo.seeds import fold, mix

Method = Callable[[Tensor], Tensor]

#: What nothing was done to; what the crossing points are measured against.
AS_IT_IS = "as it is"
LEVELS = tuple(round(0.1 * k, 1) for k in range(9))
#: Standard deviations of the Gaussian filter and sides of the median filter that are tried, in pixels; the first does nothing.
SIGMAS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
SIDES = (1, 3, 5, 7)
#: How far noise may reach beyond [0, 1] in a file of one's own: Gaussian noise of 0.8 does so once in 3.5 million values.
_REACH = 4.0
#: What a reading says of pixels that it draws.
_DRAWN = "; drawn as Bernoulli(k/255)"
_DECIBEL = 10 / math.log(10)


@dataclass(frozen=True)
class Cell:
    """A method at a noise level on n images: the mean squared error over all their pixels; the PSNR that belongs to it in dB
    (infinite for no error) with its standard error by the delta method; mean SSIM, None where images are smaller than its window.
    `setting`: a filter's parameter. A standard error is None for one image, and for a PSNR that is infinite."""

    mse: float
    psnr: float
    psnr_se: float | None
    ssim: float | None
    ssim_se: float | None
    n: int
    setting: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: the PSNR of no error is None."""
        return {**asdict(self), "psnr": self.psnr if math.isfinite(self.psnr) else None}


@dataclass(frozen=True)
class Crossings:
    """Where a method is better than another within the measured levels, `low` to `high`: whether it is at the first one, and the
    levels `at` which that changes, by interpolation. Its text: "never within 0 to 0.8", "from 0.23 on", "from 0.10 to 0.55"."""

    first: bool
    at: tuple[float, ...]
    low: float
    high: float

    def __str__(self) -> str:
        if not self.at:
            low, high = f"{self.low:g}", f"{self.high:g}"
            if self.first:
                return say("always within {low} to {high}", low=low, high=high)
            return say("never within {low} to {high}", low=low, high=high)
        ends = [self.low, *self.at] if self.first else [*self.at]
        told = [f"{end:.2f}" for end in ends]
        pieces = [say("from {a} to {b}", a=a, b=b) for a, b in zip(told[::2], told[1::2])]
        if len(told) % 2:
            pieces.append(say("from {a} on", a=told[-1]))
        return joined("{before}, {after}", pieces)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "words": str(self)}


@dataclass(frozen=True)
class Table:
    """Rows are methods, columns noise levels of one kind; `tuned_on` says on which images the filters were tuned."""

    kind: Kind
    levels: tuple[float, ...]
    rows: Mapping[str, tuple[Cell, ...]]
    tuned_on: str
    split: str

    def crossings(self, method: str, against: str = AS_IT_IS) -> Crossings:
        """The noise levels where a method begins, or ceases, to be better than another one.

        The root mean squared errors are joined by straight lines: they are finite where a PSNR is not, and the one of Gaussian
        noise that is left as it is grows in proportion to its level (up to the clipping).
        """
        return crossings(self.levels, *(_roots(self.rows[name]) for name in (method, against)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "levels": list(self.levels),
            "split": self.split,
            "tuned_on": self.tuned_on,
            "rows": {name: [cell.to_dict() for cell in cells] for name, cells in self.rows.items()},
            "better_than_nothing": {name: self.crossings(name).to_dict() for name in self.rows if name != AS_IT_IS},
        }


def _roots(cells: Sequence[Cell]) -> list[float]:
    return [math.sqrt(cell.mse) for cell in cells]


def crossings(levels: Sequence[float], error: Sequence[float], against: Sequence[float]) -> Crossings:
    """Where `error` passes below or above `against` on straight lines between increasing levels; equal is not better.

    Raises:
        ValueError: for fewer than two levels, levels that do not increase, or other numbers of errors.
    """
    if not len(levels) == len(error) == len(against) >= 2 or any(b <= a for a, b in zip(levels, levels[1:])):
        raise ValueError("at least two increasing levels are needed, and an error of both for each")
    gains = [b - a for a, b in zip(error, against)]
    at = [
        a + (b - a) * here / (here - there)
        for a, b, here, there in zip(levels, levels[1:], gains, gains[1:])
        if (here > 0) != (there > 0)
    ]
    return Crossings(gains[0] > 0, tuple(at), levels[0], levels[-1])


# ------------------------------------------------------------------------------------------------ methods
def restore(model: Autoencoder, x: Tensor) -> Tensor:
    """The model's reconstruction at the code's mean of noisy images x (N, *data), (N, *data) on the CPU."""
    device = next(model.parameters()).device
    parts = x.split(examples_at_a_time(model, x.shape[1], BATCH))
    return torch.cat([model.reconstruct(part.to(device)).mean[0].cpu() for part in parts])


def gaussian_filter(sigma: float) -> Method:
    """Convolve each channel of (N, C, H, W) with a Gaussian of `sigma` pixels, edges reflected; 0 does nothing."""
    return lambda x: _filtered(ndimage.gaussian_filter, x, (0, 0, sigma, sigma)) if sigma else x


def median_filter(side: int) -> Method:
    """Take the median over side x side pixels of each channel of (N, C, H, W), edges reflected; 1 does nothing."""
    return lambda x: _filtered(ndimage.median_filter, x, (1, 1, side, side)) if side > 1 else x


def _filtered(apply: Callable[..., Any], x: Tensor, size: tuple[float, ...]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(apply(x.numpy(), size)))


#: The filters: their parameter's name, what makes one, and what is tried.
FILTERS: dict[str, tuple[str, Callable[[Any], Method], Sequence[float]]] = {
    "Gaussian filter": ("sigma", gaussian_filter, SIGMAS),
    "median filter": ("side", median_filter, SIDES),
}


def tune(make: Callable[[Any], Method], tried: Sequence[float], clean: Tensor, noisy: Tensor) -> float:
    """The parameter whose method brings noisy images nearest to the clean ones; the first of equals."""
    errors = [mean_squared_errors(clean, make(value)(noisy).clamp(0, 1)).mean().item() for value in tried]
    return tried[errors.index(min(errors))]


# ------------------------------------------------------------------------------------------------ measuring
@torch.no_grad()
def measure(
    models: Mapping[str, Autoencoder],
    test: Loader,
    tuning: Loader,
    kind: Kind,
    levels: Sequence[float] = LEVELS,
    *,
    images: int = 2000,
    tuned_on: int = 200,
    seed: int = 0,
) -> Table:
    """Measure models, filters and doing nothing on the first `images` of `test`, at each level of one kind of noise.

    tuning: the validation or the training split, whose first `tuned_on` images choose the filters' parameters.

    Raises:
        UsageError: for data that are no images in [0, 1], or a tuning split that is the test split.
    """
    if tuning.name == test.name:
        raise UsageError(f"filters tuned on the {test.name} split would know the answers", remedy="Name another split.")
    clean, known = _images(test, images), _images(tuning, tuned_on)
    rows: dict[str, list[Cell]] = {name: [] for name in (AS_IT_IS, *FILTERS, *models)}
    for level in levels:
        noisy, like = (noised(x, kind, level, seed, split) for x, split in ((clean, test.name), (known, tuning.name)))
        for name, method, setting in _methods(models, known, like):
            rows[name].append(score(clean, method(noisy).clamp(0, 1), setting))
    told = say("{n} images of the {split} split", n=f"{len(known):,}", split=tuning.name)
    return Table(kind, tuple(levels), {name: tuple(cells) for name, cells in rows.items()}, told, test.name)


def noised(x: Tensor, kind: Kind, level: float, seed: int = 0, split: str = "test") -> Tensor:
    """The first images x (N, *data) of a split with noise, unclipped: that of image i is a function of (seed, kind, split, i)."""
    keyed = fold(seed, "noise", kind, split)
    return corrupt(x, kind, level, [mix(keyed, index) for index in range(len(x))])


def score(clean: Tensor, restored: Tensor, setting: str = "") -> Cell:
    """Compare restored examples (N, *data) with the clean ones, as they are: nothing is clipped here."""
    errors = mean_squared_errors(clean, restored)
    mse, mse_se = _mean(errors)
    likeness = _mean(ssim(clean, restored)) if clean.ndim == 4 and min(clean.shape[2:]) >= WINDOW else (None, None)
    return Cell(
        mse=mse,
        psnr=psnr(mse),
        psnr_se=_DECIBEL * mse_se / mse if mse and mse_se is not None else None,
        ssim=likeness[0],
        ssim_se=likeness[1],
        n=len(clean),
        setting=setting,
    )


def _mean(values: Tensor) -> tuple[float, float | None]:
    """The mean of (N,) and its standard error."""
    n = values.numel()
    return values.mean().item(), values.std().item() / math.sqrt(n) if n > 1 else None


def _methods(models: Mapping[str, Autoencoder], known: Tensor, like: Tensor) -> Iterator[tuple[str, Method, str]]:
    """Name, method and setting of everything that is compared, the filters tuned on `known` and its noisy form `like`."""
    yield AS_IT_IS, lambda x: x, ""
    for name, (parameter, make, tried) in FILTERS.items():
        value = tune(make, tried, known, like)
        yield name, make(value), f"{parameter} = {value:g}"
    for name, model in models.items():
        yield name, lambda x, model=model: restore(model, x), ""  # type: ignore[misc]


def _images(loader: Loader, count: int) -> Tensor:
    """The first images of a split (n, C, H, W) on the CPU."""
    first = torch.arange(min(count, len(loader)))
    x = torch.cat([batch.x.cpu() for batch in loader.ordered(BATCH, first)])
    if x.ndim != 4 or x.min() < 0 or x.max() > 1 or len(x) < 2:
        what = f"Here there are {len(x)} of shape {tuple(x.shape[1:])}."
        raise UsageError("denoising is measured on at least two images with values in [0, 1]", what)
    return x


# ------------------------------------------------------------------------------------------------ a user's own images
@dataclass(frozen=True)
class Denoised:
    """Restored examples (N, *data), the decoder's means; and, where noise was put on clean ones, how near the noisy and the
    restored ones are to them."""

    values: Tensor
    before: Cell | None = None
    after: Cell | None = None


@torch.no_grad()
def denoise(
    run: Run,
    given: Examples,
    noise: Kind = "none",
    level: float = 0.0,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Denoised:
    """Restore given examples with a run; `noise` is put on them first, and the examples as given count as the clean ones.

    Raises:
        DataError: for masking or salt-and-pepper noise on real numbers, which have no black and no white.
    """
    real = spec_from_dict(run.env["data"]["spec"]).values == "real"
    if real and noise in {"masking", "salt_pepper"}:
        raise DataError(f"{noise} noise sets values to black or white, and the run's data are real numbers")
    clean = torch.cat([batch.x for batch in given.loader().ordered(BATCH)])
    noisy = noised(clean, noise, level, seed, given.split)
    found = restore(run.model().to(device), noisy)
    if noise == "none":
        return Denoised(found)
    shown = noisy if real else noisy.clamp(0, 1)
    return Denoised(found, score(clean, shown), score(clean, found if real else found.clamp(0, 1)))


def trained_noise(run: Run) -> tuple[str, float] | None:
    """The kind and level of the noise that a run was trained on; None for one that saw clean examples."""
    objective = run.config.objective.params
    kind = str(objective.get("noise", "none"))
    return None if kind == "none" else (kind, float(objective["level"]))


def noisy_examples(run: Run, path: Path, clean: bool = False) -> Examples:
    """The examples of a file or folder, read as the run's data were, but for two things.

    Floating-point numbers of a NumPy file may reach beyond [0, 1], as images with Gaussian noise do, and are then taken as given.
    For a run of binarized pixels only `clean` grey levels are drawn as black or white; noisy ones are taken as they are.

    Raises:
        DataError: if they cannot be read, do not fit the run, or reach too far to be images in [0, 1] with noise.
    """
    spec = spec_from_dict(run.env["data"]["spec"])
    if spec.values == "real" or not (array := _floats(path)).size or not _beyond(array):
        return _as_trained(run, examples(run, path, "test"), clean)
    low, high = float(array.min()), float(array.max())
    if low < -_REACH or high > 1 + _REACH:
        why = f"Values from {low:g} to {high:g} are no images in [0, 1] with noise."
        raise DataError(f"{path} does not fit the run", why, "Scale it so that black is 0 and white is 1.")
    try:
        dataset = examples_like(array, replace(spec, values="real"))
    except UsageError as error:
        raise DataError(f"{path}: {error.what}", error.why, error.remedy) from error
    return Examples(
        dataset, "test", str(path), f"{dataset.note}: values from {low:.2f} to {high:.2f}, black 0, white 1"
    )


def _as_trained(run: Run, found: Examples, clean: bool) -> Examples:
    """Say what becomes of grey levels where a run knows black and white only."""
    if not found.dataset.binarize:
        return found
    how = f"the run's pixels are black or white: these are {'drawn so, by their levels' if clean else 'taken as grey'}"
    note = f"{found.note.removesuffix(_DRAWN)}; {how}"
    return replace(found, dataset=replace(found.dataset, binarize=clean), note=note)


def _floats(path: Path) -> NDArray[Any]:
    """The array of a NumPy file of finite floating-point numbers; an empty one for any other file."""
    array = read_array(path) if path.suffix.lower() in {".npy", ".npz"} else np.empty(0)
    return array if array.dtype.kind == "f" and np.isfinite(array).all() else np.empty(0)


def _beyond(array: NDArray[Any]) -> bool:
    """Whether values lie outside [0, 1] and are not the levels 0 to 255."""
    levels = array.min() >= 0 and array.max() <= 255 and bool((array == np.rint(array)).all())
    return bool(array.min() < 0 or array.max() > 1) and not levels
