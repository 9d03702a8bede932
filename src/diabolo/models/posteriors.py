"""Posteriors: heads h -> q(z | x), h (B, channels) or (B, channels, *positions)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from diabolo.models.distributions import Dirac, diagonal_normal, float32
from diabolo.models.networks import Head
from diabolo.registry import register


@register("posterior", "gaussian")
class GaussianPosterior(Head):
    r"""Read mean and log-variance: a Gaussian with independent coordinates.

    .. math:: q(z | x) = N(\mu, diag(\sigma^2)), \quad \sigma = \exp(\tfrac12 \log\sigma^2), \quad z = \mu + \sigma\epsilon

    sigma is the standard deviation: half the log-variance is exponentiated, not the log-variance.
    h (B, 2c, *positions) -> batch (B,), event (c, *positions).

    Reference: Kingma & Welling, Auto-encoding variational Bayes (2014), arXiv:1312.6114.
    """

    factor = 2

    def forward(self, h: Tensor) -> Distribution:
        loc, log_variance = float32(h).chunk(2, 1)
        return diagonal_normal(loc, torch.exp(0.5 * log_variance), loc.ndim - 1)


@register("posterior", "dirac")
class DiracPosterior(Head):
    """The network's output is the code itself: z = f(x), as in a plain autoencoder.

    h (B, c, *positions) -> batch (B,), event (c, *positions). A point mass has no density: a model with it has a distortion,
    but no rate and no bound on log p(x).

    Reference: Hinton & Salakhutdinov, Reducing the dimensionality of data with neural networks (2006),
    https://doi.org/10.1126/science.1127647.
    """

    density = False

    def forward(self, h: Tensor) -> Distribution:
        return Dirac(float32(h))
