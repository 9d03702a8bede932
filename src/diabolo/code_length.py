r"""Code lengths: bits per dimension of pixels with 256 levels, comparable whatever was modelled, a probability or a density.

A likelihood that is a probability of the data is a code length as it stands. A density p of numbers is one of levels k through
dequantization: x = (k + u) / 256 with u uniform on [0, 1), a bijection of the unit cells, so that by Jensen's inequality

.. math:: -\log P(k) \le -E_u \log p\bigl((k + u) / 256\bigr) + D \log 256

N examples of D values, B of a batch, S draws of z.

Reference: Theis et al., A note on the evaluation of generative models (2016), arXiv:1511.01844, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from diabolo.metrics import Entry, Evidence, float64, keyed_inference, mean_squared_error
from diabolo.models.autoencoder import Autoencoder
from diabolo.registry import register
from diabolo.seeds import fold, mix

LEVELS = 256
EXACT = "exact probability"
DEQUANTIZED = "x = (k + u)/256"


def dequantized(x: Tensor, index: Sequence[int], seed: int) -> Tensor:
    """(k + u) / 256 of levels x = k / 255 (B, *data), u uniform on [0, 1), a function of (seed, index) alone."""
    shape = x.shape[1:]
    drawn = [torch.rand(shape, generator=torch.Generator().manual_seed(mix(seed, i)), dtype=x.dtype) for i in index]
    return (x * (LEVELS - 1) + torch.stack(drawn).to(x.device)) / LEVELS


_Number = TypeVar("_Number", float, Tensor)


def bits(nats: _Number, dimensions: int, density: bool) -> _Number:
    """Bits per dimension of a negative log-probability, or of a negative log-density of dequantized levels, nats per example.

    D log 2 nats are one bit a dimension; a density of x = (k + u) / 256 needs log2(256) = 8 more.
    """
    return nats / (dimensions * math.log(2)) + (math.log2(LEVELS) if density else 0)


def gaussian_nats(error: Tensor, variance: float, dimensions: int) -> Tensor:
    """-E log N(x; mean, variance I) in nats, for a mean squared error per value: D/2 (log(2 pi variance) + error / variance)."""
    return dimensions / 2 * (math.log(2 * math.pi * variance) + error / variance)


def code_length(model: Autoencoder, x: Tensor, index: Sequence[int], samples: int, seed: int) -> dict[str, Tensor]:
    """Of a density with a bound, at dequantized x (B, *data), z drawn `samples` times: bits/dim, mean squared error per value and
    rate in nats per example, each (B,) float64. The noise depends on (seed, index) alone."""
    noisy = dequantized(x, index, fold(seed, "dequantize"))
    inference = keyed_inference(model, noisy, index, samples, seed)
    nats = -float64(inference.log_weight(noisy)).mean(0)
    return {
        "bits": bits(nats, x[0].numel(), density=True),
        "dequantized_error": float64(mean_squared_error(inference.likelihood, noisy)).mean(0),
        "dequantized_kl": float64(inference.latents[0].kl()).mean(0),
    }


@register("metric", "bits_per_dim")
def bits_per_dim(e: Evidence) -> Entry | None:
    """-ELBO as a code length, bits per dimension: of a probability as it is, of a density at x = (k + u)/256, plus 8.

    Eight is what a code spends that knows nothing of pixels with 256 levels. Absent where there is no bound, where the
    likelihood is not normalised, and for data that have no levels.
    """
    if e.bits is None:
        return None
    return e.entry(e.bits, "bits/dim", convention=DEQUANTIZED if e.density else EXACT, samples=e.samples)


@register("metric", "bits_per_dim_calibrated")
def bits_per_dim_calibrated(e: Evidence) -> Entry | None:
    r"""bits_per_dim after sigma of a Gaussian has been set on the training split, nothing else changed.

    .. math:: \sigma^2 = \frac1{ND} \sum_{train} E_q \| x - mean(z) \|^2, \quad x = (k + u) / 256

    It tells a badly chosen sigma from a bad model. Absent for other likelihoods.
    """
    if e.dequantized_error is None or e.dequantized_kl is None or e.train_variance is None:
        return None
    nats = gaussian_nats(e.dequantized_error, e.train_variance, e.dimensions) + e.dequantized_kl
    sigma = math.sqrt(e.train_variance)
    found = bits(nats, e.dimensions, density=True)
    return e.entry(
        found, "bits/dim", convention=DEQUANTIZED, samples=e.samples, sigma=sigma, fitted_to=e.train_examples
    )
