"""Likelihoods: heads params (S, B, channels, ...) -> p(x | z). Each owns its pixel convention and says what its numbers are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from diabolo.models.distributions import GreyBernoulli, float32
from diabolo.models.networks import Head
from diabolo.registry import register


class Likelihood(Head):
    """p(x | z). `family`: numbers of different families are never ranked together. `normalised`: whether it sums or
    integrates to 1 over x; every label "unnormalised" is read from here. `accepts`: the kinds of data it scores."""

    family: str
    normalised = True
    accepts: tuple[str, ...] = ("grey", "binary", "real")

    def forward(self, params: Tensor) -> Distribution:
        """p(x | z) with batch shape (S, B)."""
        raise NotImplementedError


@register("likelihood", "bernoulli")
class BernoulliLikelihood(Likelihood):
    """Independent coin flips for pixels in {0, 1}: log p(x | z) = sum_i x_i log l_i + (1 - x_i) log(1 - l_i), nats per
    example, l = sigmoid(params). Raises ValueError (in evaluation) for any other value of x."""

    family = "bernoulli"
    accepts = ("binary",)

    def forward(self, params: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=float32(params)), params.ndim - 2)


@register("likelihood", "bernoulli_relaxed")
class RelaxedBernoulliLikelihood(Likelihood):
    """Binary cross-entropy on grey levels in [0, 1], the convention of many tutorials. Its exponential does not integrate to
    1 over grey images: the numbers are bounds for random binarisations of them, not likelihoods (see GreyBernoulli)."""

    family = "bernoulli_relaxed"
    normalised = False
    accepts = ("grey", "binary")

    def forward(self, params: Tensor) -> Distribution:
        return Independent(GreyBernoulli(logits=float32(params)), params.ndim - 2)


@register("likelihood", "gaussian")
class GaussianLikelihood(Likelihood):
    """Normal(mean, scale^2) with one standard deviation for all values; `scale=None` learns it by gradient.

    log p(x | z) = -SSE / (2 scale^2) - D/2 log(2 pi scale^2), constants kept, nats per example.
    """

    family = "gaussian"
    accepts = ("grey", "real")  # on {0, 1} a density has no upper bound: scale -> 0

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None and not scale > 0:
            raise ValueError(f"scale must be positive, not {scale}: it is a standard deviation")
        log_scale = torch.tensor(math.log(1.0 if scale is None else scale))
        self.log_scale: Tensor
        if scale is None:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, params: Tensor) -> Distribution:
        return Independent(Normal(float32(params), self.log_scale.exp()), params.ndim - 2)
