"""Images drawn from Gaussians in closed form: what samples of a network have to beat. N images of D values; float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diabolo.errors import UsageError
from diabolo.linear.pca import CHUNK, PCA
from diabolo.seeds import fold


def draw_ppca(pca: PCA, n: int, seed: int) -> Tensor:
    r"""n decoder means (n, D) of probabilistic PCA of maximum likelihood, at z ~ N(0, I) with as many latents q as `pca` has.

    .. math:: x = m + \sum_{i \le q} \sqrt{\lambda_i - \sigma^2}\, z_i\, u_i, \qquad
              \sigma^2 = \tfrac{1}{D - q} \sum_{i > q} \lambda_i

    The noise e of the model x = m + W z + e is left out, as it is from the samples of a network.

    Reference: Tipping and Bishop, Probabilistic principal component analysis (1999), https://doi.org/10.1111/1467-9868.00196
    """
    q, dimensions = pca.components.shape
    noise = pca.residual / max(1, dimensions - q)
    z = torch.randn(n, q, generator=_generator(seed, "ppca"), dtype=torch.float64)
    return pca.decode(z * (pca.variances - noise).clamp(min=0).sqrt())


def draw_full_covariance(x: Tensor, n: int, seed: int) -> Tensor:
    r"""n draws (n, D) from the Gaussian with mean m and covariance S of x (N, D), the one of maximum likelihood.

    .. math:: m + \tfrac{1}{\sqrt N} \sum_{i=1}^N g_i\, (x_i - m), \qquad g_i \sim N(0, 1)

    Sums of the centred examples with normal weights have exactly the covariance S: neither S nor its root is ever made, and S
    may be singular. x may be of any type; only parts of it are float64 at a time.
    """
    mean = torch.stack([part.double().sum(0) for part in x.split(CHUNK)]).sum(0) / len(x)
    weights = torch.randn(n, len(x), generator=_generator(seed, "full"), dtype=torch.float64) / math.sqrt(len(x))
    drawn = mean.expand(n, -1).clone()
    for part, g in zip(x.split(CHUNK), weights.split(CHUNK, dim=1)):
        drawn += g @ (part.double() - mean)
    return drawn


def draw_per_class(x: Tensor, labels: Tensor, asked: Tensor, seed: int) -> Tensor:
    """A draw (n, D) for each class of asked (n,), from the full-covariance Gaussian of the examples x (N, D) labelled so (N,).

    With as many of each class it is the mixture of Gaussians whose components are the classes.

    Raises:
        UsageError: if a class that is asked for has no examples.
    """
    drawn = torch.empty(len(asked), x.shape[1], dtype=torch.float64)
    for c in asked.unique().tolist():
        members, wanted = x[labels == c], asked == c
        if not len(members):
            raise UsageError(f"class {c} has no examples", "No Gaussian can be fitted to it.")
        drawn[wanted] = draw_full_covariance(members, int(wanted.sum()), fold(seed, "class", c))
    return drawn


def _generator(seed: int, word: str) -> torch.Generator:
    return torch.Generator().manual_seed(fold(seed, "draw", word))
