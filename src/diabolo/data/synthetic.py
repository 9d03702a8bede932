"""Data made in code: from a linear-Gaussian model, where log p(x) is known exactly, and around a spiral, a known manifold."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from diabolo.data.access import Access
from diabolo.data.spec import Dataset, DataSpec, Split
from diabolo.errors import UsageError
from diabolo.registry import register
from diabolo.seeds import fold


@register("dataset", "linear_gaussian")
def linear_gaussian(
    access: Access, dimensions: int = 16, latent: int = 3, sigma: float = 0.5, examples: int = 5000, seed: int = 0
) -> Dataset:
    """Linear-Gaussian: x = W z + b + sigma e with z, e standard normal, so that log p(x) is known exactly.

        p(x) = N(x; b, W W' + sigma^2 I)

    `examples` vectors (N, dimensions) for training, a fifth as many for validation and for test; W, b and sigma are
    those of `linear_gaussian_parameters` with the same arguments.
    Reference: Tipping and Bishop, 1999, https://doi.org/10.1111/1467-9868.00196.

    Raises:
        UsageError: for sizes that make no such model.
    """
    if examples < 1:
        raise UsageError(f"examples={examples}: at least 1")
    weight, bias, sigma = linear_gaussian_parameters(dimensions, latent, sigma, seed)
    drawn = {
        name: _draw(weight, bias, sigma, count, fold(seed, "linear_gaussian", name))
        for name, count in (("train", examples), ("validation", -(-examples // 5)), ("test", -(-examples // 5)))
    }
    return Dataset(
        spec=DataSpec(name="linear_gaussian", shape=(dimensions,), values="real", examples=examples),
        train=Split("train", drawn["train"]),
        validation=Split("validation", drawn["validation"]),
        test=Split("test", drawn["test"]),
        hashes={name: hashlib.sha256(x.numpy().tobytes()).hexdigest() for name, x in drawn.items()},
        note=f"drawn with {latent} latent dimensions and sigma = {sigma:g}; log p(x) is known exactly",
    )


def linear_gaussian_parameters(
    dimensions: int = 16, latent: int = 3, sigma: float = 0.5, seed: int = 0
) -> tuple[Tensor, Tensor, float]:
    """W (D, d), b (D,) and sigma of the linear-Gaussian data set, float64.

    The columns of W are orthogonal, of norms 2, 1.5, 1, then 3/4 of the one before: they differ, so that the principal
    axes are identified. b is a standard normal draw.

    Raises:
        UsageError: unless 1 <= latent <= dimensions and sigma > 0.
    """
    if not 1 <= latent <= dimensions:
        raise UsageError(f"latent={latent}: between 1 and dimensions={dimensions}")
    if not sigma > 0:
        raise UsageError(f"sigma={sigma}: greater than 0")
    generator = torch.Generator().manual_seed(fold(seed, "linear_gaussian", "parameters"))
    axes = torch.linalg.qr(torch.randn(dimensions, latent, generator=generator, dtype=torch.float64)).Q
    norms = torch.tensor([2 - i / 2 if i < 3 else 0.75 ** (i - 2) for i in range(latent)], dtype=torch.float64)
    bias = torch.randn(dimensions, generator=generator, dtype=torch.float64)
    return axes * norms, bias, sigma


def _draw(weight: Tensor, bias: Tensor, sigma: float, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, weight.shape[1], generator=generator, dtype=torch.float64)
    noise = torch.randn(count, weight.shape[0], generator=generator, dtype=torch.float64)
    return (z @ weight.T + bias + sigma * noise).float()


# ------------------------------------------------------------------------------------------------ a spiral
@register("dataset", "spiral")
def spiral(access: Access, turns: float = 1.0, sigma: float = 0.05, examples: int = 20000, seed: int = 0) -> Dataset:
    """Spiral: points of the plane near a spiral from radius 0.3 to 1, evenly along it, with Gaussian noise of `sigma`.

        x = r(t) (cos 2 pi turns t, sin 2 pi turns t) + sigma e,  r(t) = 0.3 + 0.7 t

    `examples` vectors (N, 2) for training, a fifth as many for validation and for test. The curve without noise is the manifold
    that an autoencoder should find: `spiral_curve` with the same `turns`.

    Raises:
        UsageError: for sizes that make no such data.
    """
    if examples < 1:
        raise UsageError(f"examples={examples}: at least 1")
    if sigma < 0:
        raise UsageError(f"sigma={sigma}: at least 0")
    drawn = {
        name: _around(turns, sigma, count, fold(seed, "spiral", name))
        for name, count in (("train", examples), ("validation", -(-examples // 5)), ("test", -(-examples // 5)))
    }
    return Dataset(
        spec=DataSpec(name="spiral", shape=(2,), values="real", examples=examples),
        train=Split("train", drawn["train"]),
        validation=Split("validation", drawn["validation"]),
        test=Split("test", drawn["test"]),
        hashes={name: hashlib.sha256(x.numpy().tobytes()).hexdigest() for name, x in drawn.items()},
        note=f"drawn around a spiral of {turns:g} turns with noise of {sigma:g}",
    )


def spiral_curve(turns: float = 1.0, points: int = 2000) -> Tensor:
    """Points (n, 2) float64 of the spiral without noise, from the inner end to the outer one, evenly along it.

    Raises:
        UsageError: unless turns > 0.
    """
    return _at(turns, torch.linspace(0, 1, points, dtype=torch.float64))


def _at(turns: float, share: Tensor) -> Tensor:
    """The points (n, 2) at shares (n,) of the spiral's length, which is summed over short chords.

    Raises:
        UsageError: unless turns > 0.
    """
    if not 0 < turns < math.inf:
        raise UsageError(f"turns={turns}: greater than 0")
    t = torch.linspace(0, 1, 10001, dtype=torch.float64)
    radius, angle = 0.3 + 0.7 * t, 2 * math.pi * turns * t
    curve = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    length = torch.cat([torch.zeros(1, dtype=torch.float64), (curve[1:] - curve[:-1]).norm(dim=1).cumsum(0)])
    wanted = share * length[-1]
    after = torch.searchsorted(length, wanted).clamp(1, 10000)
    part = (wanted - length[after - 1]) / (length[after] - length[after - 1])
    return curve[after - 1].lerp(curve[after], part[:, None])


def _around(turns: float, sigma: float, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    return (_at(turns, share) + sigma * torch.randn(count, 2, generator=generator, dtype=torch.float64)).float()
