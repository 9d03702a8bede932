"""How a code answers to its input: exact Jacobians of the code's mean, their singular values, and what small noise does to it.

B images, D values of an image, d of a code. The model must be in evaluation mode, as `Run.model()` gives it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diabolo.data import Loader
from diabolo.evaluation import BATCH
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.corruptions import corrupt
from diabolo.models.distributions import unchecked
from diabolo.models.grids import vectors
from diabolo.seeds import fold, mix

#: So many numbers of a Jacobian are held at a time.
_HELD = 20_000_000


@dataclass(frozen=True)
class Spectrum:
    """Singular values of the Jacobian, largest first: means over n images and their standard errors, (min(d, D),).

    `frobenius`: the mean over images of ||J||_F = sqrt(sum of their squares). All in units of code per unit of input.
    """

    mean: list[float]
    se: list[float]
    frobenius: float
    frobenius_se: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Robustness:
    """How far Gaussian noise of `level` moves a code: the mean over n images of ||f(x + e) - f(x)|| / ||f(x)||, and its SE.

    A large constant part of a code makes this small. `spread` is the same distance in units of the root of the codes' total
    variance over the images, which a shift of the codes does not change.
    """

    value: float
    se: float
    spread: float
    spread_se: float
    level: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def jacobians(model: Autoencoder, x: Tensor) -> Tensor:
    """df/dx at each image of x (B, *data), f the mean of the code: (B, d, D), by reverse differentiation of each of the d values.

    Raises:
        ValueError: in training mode, where the images of a batch may depend on one another.
    """
    if model.training:
        raise ValueError("a Jacobian of one image needs a model in evaluation mode: call model.eval()")

    def code(one: Tensor) -> Tensor:
        return vectors(model.encode(one[None]).mean)[0]

    with unchecked():  # torch.func cannot look at values, which the checks of a distribution do
        found: Tensor = torch.func.vmap(torch.func.jacrev(code))(x)
    return found.flatten(2).detach()


def singular_values(model: Autoencoder, x: Tensor) -> Tensor:
    """The singular values of the Jacobian at each image of x (B, *data), largest first: (B, min(d, D)) float64."""
    with torch.no_grad():
        size = model.encode(x[:1]).mean.numel() * x[0].numel()
    parts = x.split(max(1, _HELD // size))
    return torch.cat([torch.linalg.svdvals(jacobians(model, part)).double().cpu() for part in parts])


def spectrum(values: Tensor) -> Spectrum:
    """What is said of singular values (B, k) of B >= 2 images."""
    n = values.shape[0]
    norms = values.square().sum(1).sqrt()
    return Spectrum(
        mean=values.mean(0).tolist(),
        se=(values.std(0) / math.sqrt(n)).tolist(),
        frobenius=norms.mean().item(),
        frobenius_se=norms.std().item() / math.sqrt(n),
        n=n,
    )


@torch.no_grad()
def robustness(model: Autoencoder, loader: Loader, *, level: float = 0.1, seed: int = 0) -> Robustness:
    """Measure how far noise moves the codes of a split; the noise of an image depends on (seed, its index) alone."""
    clean, noisy, keyed = [], [], fold(seed, "robustness")
    for batch in loader.ordered(BATCH):
        seeds = [mix(keyed, index) for index in batch.index.tolist()]
        clean.append(vectors(model.encode(batch.x).mean).cpu().double())
        noisy.append(vectors(model.encode(corrupt(batch.x, "gaussian", level, seeds)).mean).cpu().double())
    before, moved = torch.cat(clean), (torch.cat(noisy) - torch.cat(clean)).norm(dim=1)
    share, spread = moved / before.norm(dim=1), moved / before.var(0).sum().sqrt()
    root = math.sqrt(len(moved))
    return Robustness(
        value=share.mean().item(),
        se=share.std().item() / root,
        spread=spread.mean().item(),
        spread_se=spread.std().item() / root,
        level=level,
        n=len(moved),
    )
