"""The closed-form models of an image data set as a table: exact likelihoods on its test images, in two conventions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from diabolo.code_length import bits
from diabolo.data.levels import as_levels
from diabolo.data.spec import Dataset
from diabolo.errors import DataError, DiaboloError, UsageError
from diabolo.images_metrics import psnr
from diabolo.language import say
from diabolo.linear.gaussians import Gaussian, Spectrum, full_covariance, probabilistic_pca, spectrum
from diabolo.linear.pca import LARGEST, memory
from diabolo.metrics import mean_and_se

#: Latents of the lines with the noise of maximum likelihood, and (latents, sigma^2) of those with a given one: that of a loss
#: of summed squared errors is 1/2.
LATENTS = (20, 64, 128, 256, 512, 1024)
FIXED = ((20, 0.5), (256, 0.5))
#: Squared error below which nothing but rounding is left.
_ROUNDING = 1e-20


@dataclass(frozen=True)
class Convention:
    """What number x a level k is when it is scored: scale * k + a constant, plus independent noise of this variance."""

    name: str
    told: str
    scale: float
    noise: float


#: The density at the points that images are stored at.
GRID = Convention("grid", "a density at x = k/255", 1 / 255, 0.0)
#: The density of a continuous x, which bounds the probability of the levels: the convention that models are ranked in.
DEQUANTIZED = Convention("dequantized", "x = (k + u)/256, u uniform, exact mean over u", 1 / 256, 1 / 12 / 256**2)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A model in closed form, scored on n test images in one convention.

    nll: -log p(x) of a density, nats per image, exact, with its standard error over images; in bits per dimension 8 are added.
    kl: KL(p(z | x) || N(0, I)) of the exact posterior, nats, mean over the test images, as that of a network is measured; rate:
    its mean over the **training** images, which is 1/2 sum log(lambda / sigma^2) over the active axes. sse: the summed squared
    error at z drawn from the posterior, in expectation, so that nll = sse / (2 sigma^2) + D/2 log(2 pi sigma^2) + kl.
    psnr, dB: of the decoder's mean at z = mu, for the images k/255 themselves (u = 1/2); psnr_projection: of the orthogonal
    projection on the first q axes, active or not, which does not shrink.
    The full covariance has no latents, and so neither rate nor error. A PSNR is None where nothing is lost.
    """

    latent: int | None
    variance: float | None  # sigma^2, in units of x
    fitted: bool  # whether sigma^2 is that of maximum likelihood
    nll: float
    nll_se: float
    bits_per_dim: float
    bits_se: float
    rate: float | None
    kl: float | None
    sse: float | None
    psnr: float | None
    psnr_projection: float | None
    active: int | None
    n: int

    @property
    def name(self) -> str:
        """How tables call it."""
        return _name(self.latent, None if self.fitted else self.variance)

    @property
    def sse_and_kl(self) -> float | None:
        """SSE + KL: at sigma^2 = 1/2 what scripts minimise that drop the Gaussian's constant, nll - D/2 log(2 pi sigma^2)."""
        return None if self.sse is None or self.kl is None else self.sse + self.kl

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self), "sse_and_kl": self.sse_and_kl}


@dataclass(frozen=True)
class LeftOut:
    """A line that these data do not allow, and why."""

    convention: str
    name: str
    reason: str


@dataclass(frozen=True)
class Lines:
    """The closed-form lines of a data set. `eigenvalues` (D,) are those of the covariance of its training images, in units of
    x = k/255, the largest first; their sum is the total variance."""

    data: str
    fitted_to: int  # training images
    n: int  # test images
    eigenvalues: Tensor
    grid: list[Line]
    dequantized: list[Line]
    left_out: list[LeftOut]

    def above(self, variance: float) -> int:
        """How many eigenvalues exceed a variance: the most latents that a linear model of this sigma^2 can use."""
        return int((self.eigenvalues > variance).sum())

    def shares(self, count: int) -> list[float]:
        """What the first axes have of the total variance."""
        return (self.eigenvalues[:count] / self.eigenvalues.sum()).tolist()

    def to_dict(self) -> dict[str, Any]:
        """All but the eigenvalues themselves, of which there are thousands."""
        return {
            "data": self.data,
            "fitted_to": {"split": "train", "n": self.fitted_to},
            "scored": {"split": "test", "n": self.n, "unit": "nats/image"},
            "dimensions": self.eigenvalues.numel(),
            "total_variance": self.eigenvalues.sum().item(),
            "eigenvalues_above": {str(level): self.above(level) for level in (0.5, 1.0)},
            "shares": self.shares(6),
            "grid": {"convention": GRID.told, "lines": [line.to_dict() for line in self.grid]},
            "dequantized": {"convention": DEQUANTIZED.told, "lines": [line.to_dict() for line in self.dequantized]},
            "left_out": [asdict(line) for line in self.left_out],
        }


def lines(dataset: Dataset, latents: Sequence[int] = LATENTS, fixed: Sequence[tuple[int, float]] = FIXED) -> Lines:
    """Fit Gaussians to the training images, and score the test images exactly: one eigendecomposition serves all lines.

    The lines, in this order: probabilistic PCA with each (latents, sigma^2) of `fixed`, then with the sigma^2 of maximum
    likelihood for each of `latents`, then the full covariance. Lines that the data do not allow are left out, with the reason.

    Raises:
        UsageError: if the values are no grey or colour levels, or so many that the work would not fit into memory.
        DataError: if there is only one test image.

    Reference: Tipping and Bishop, Probabilistic principal component analysis (1999), https://doi.org/10.1111/1467-9868.00196
    """
    train, test = (_levels(dataset, split) for split in ("train", "test"))
    _check_sizes(train, test)
    found, left_out = spectrum(train, test), list[LeftOut]()
    plans = [*fixed, *((q, None) for q in latents), (None, None)]
    grid, dequantized = (list(_scored(found, convention, plans, left_out)) for convention in (GRID, DEQUANTIZED))
    eigenvalues = found.eigenvalues * GRID.scale**2
    return Lines(dataset.spec.name, len(train), len(test), eigenvalues, grid, dequantized, left_out)


def _levels(dataset: Dataset, split: str) -> Tensor:
    """Levels (N, D) uint8 of a split."""
    name, values = dataset.spec.name, dataset.spec.values
    if values == "binary":
        raise UsageError(
            f"the values of {name} are binary here",
            "A density on two points has no upper bound: its sigma goes to 0.",
            "Take grey levels where the data have them: data.binarize=false",
        )
    found = as_levels(dataset.split(split).values) if values == "grey" else None
    if found is None:
        raise UsageError(
            f"the values of {name} are no levels k/255",
            "Bits per dimension and PSNR are of images with 256 levels.",
            "For other numbers there are diabolo.linear.spectrum and probabilistic_pca, from Python.",
        )
    return found.flatten(1)


def _check_sizes(train: Tensor, test: Tensor) -> None:
    if len(test) < 2:
        raise DataError("the test split has one image", "One image has no standard error.", "Take a larger test split.")
    needed = memory(*train.shape) + 2 * 8 * test.numel()  # the squares of the test images twice
    if needed > LARGEST:
        raise UsageError(
            f"{len(train):,} and {len(test):,} images of {train.shape[1]:,} values need {needed / 1e9:.1f} GB of memory",
            f"At most {LARGEST / 1e9:.1f} GB are used.",
            "Take smaller images; for a folder, a smaller data.size.",
        )


def _scored(
    found: Spectrum, convention: Convention, plans: Sequence[tuple[int | None, float | None]], left_out: list[LeftOut]
) -> Iterator[Line]:
    """The lines of one convention from the spectrum of levels; what cannot be is added to `left_out`."""
    seen, clean = found.moved(convention.scale, convention.noise), found.squares.mean(0) * GRID.scale**2
    for latent, variance in plans:
        try:
            if latent is None:
                model = full_covariance(seen.eigenvalues)
            else:
                model = probabilistic_pca(seen.eigenvalues, latent, variance)
        except DiaboloError as error:
            left_out.append(LeftOut(convention.name, _name(latent, variance), error.what))
        else:
            yield _line(model, latent, variance is None, seen, clean)


def _line(model: Gaussian, latent: int | None, fitted: bool, seen: Spectrum, clean: Tensor) -> Line:
    """`seen` in units of x; `clean` (D,): the mean squares of the test images themselves, in units of k/255."""
    dimensions, mean, coded = clean.numel(), seen.squares.mean(0), latent is not None
    nll, se = mean_and_se(model.nll(seen.squares))
    return Line(
        latent=latent,
        variance=model.noise if coded else None,
        fitted=fitted,
        nll=nll,
        nll_se=se,
        bits_per_dim=bits(nll, dimensions, density=True),
        bits_se=bits(se, dimensions, density=False),
        rate=model.kl(seen.eigenvalues).item() if coded else None,
        kl=model.kl(mean).item() if coded else None,
        sse=model.sse(mean).item() if coded else None,
        psnr=_psnr(model.sse_mean(clean) / dimensions) if coded else None,
        psnr_projection=_psnr(clean[latent:].sum() / dimensions) if coded else None,
        active=model.active if coded else None,
        n=len(seen.squares),
    )


def _psnr(mse: Tensor) -> float | None:
    return psnr(mse.item()) if mse > _ROUNDING else None


def _name(latent: int | None, variance: float | None) -> str:
    if latent is None:
        return say("full covariance")
    if variance is None:
        return say("pPCA, q = {q}, ML sigma", q=latent)
    return say("pPCA, q = {q}, sigma^2 = {variance}", q=latent, variance="1/2" if variance == 0.5 else f"{variance:g}")
