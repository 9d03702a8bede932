"""Data drawn from a linear-Gaussian model: log p(x) is known exactly."""

from __future__ import annotations

import hashlib

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
