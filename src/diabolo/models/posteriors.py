"""Posteriors: heads h -> q(z | x), h (B, channels) or (B, channels, *positions)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from diabolo.models.distributions import diagonal_normal, float32
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
