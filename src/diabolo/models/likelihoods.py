"""Likelihoods: heads params (S, B, channels, ...) -> p(x | z). Each owns its pixel convention and says what its numbers are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from diabolo.models.distributions import GreyBernoulli, float32
from diabolo.models.networks import Head
from diabolo.registry import register


class Likelihood(Head):
    """p(x | z). `family`: numbers of different families are never ranked together. `normalised`: whether it sums or
    integrates to 1 over x; every label "unnormalised" is read from here. `discrete`: whether it is a probability of the data
    rather than a density, so that -log p(x | z) is a code length as it stands. `accepts`: the kinds of data it scores."""

    family: str
    normalised = True
    discrete = False
    accepts: tuple[str, ...] = ("grey", "binary", "real")

    def forward(self, params: Tensor) -> Distribution:
        """p(x | z) with batch shape (S, B)."""
        raise NotImplementedError


def squashing(mean: str) -> Callable[[Tensor], Tensor]:
    """The map from a network's output to the mean: the identity, or the sigmoid for pixels in [0, 1].

    Raises:
        ValueError: for any other name.
    """
    found: dict[str, Callable[[Tensor], Tensor]] = {"linear": lambda params: params, "sigmoid": torch.sigmoid}
    if mean not in found:
        raise ValueError(f"mean={mean!r} is one of {', '.join(found)}")
    return found[mean]


@register("likelihood", "bernoulli")
class BernoulliLikelihood(Likelihood):
    """Independent coin flips for pixels in {0, 1}: log p(x | z) = sum_i x_i log l_i + (1 - x_i) log(1 - l_i), nats per
    example, l = sigmoid(params). Raises ValueError (in evaluation) for any other value of x."""

    family = "bernoulli"
    discrete = True
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
    mean = params, or with `mean="sigmoid"` sigmoid(params), which lies in (0, 1) as pixels do. The sum of squared errors that
    many scripts minimise is scale = sqrt(1/2) without its constant.
    """

    family = "gaussian"
    accepts = ("grey", "real")  # on {0, 1} a density has no upper bound: scale -> 0

    def __init__(self, scale: float | None = None, mean: Literal["linear", "sigmoid"] = "linear") -> None:
        super().__init__()
        self.squash = squashing(mean)
        if scale is not None and not scale > 0:
            raise ValueError(f"scale must be positive, not {scale}: it is a standard deviation")
        log_scale = torch.tensor(math.log(1.0 if scale is None else scale))
        self.log_scale: Tensor
        if scale is None:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def sigma(self) -> float:
        """The standard deviation in use."""
        return math.exp(self.log_scale.item())

    def forward(self, params: Tensor) -> Distribution:
        return Independent(Normal(self.squash(float32(params)), self.log_scale.exp()), params.ndim - 2)


@register("likelihood", "gaussian_optimal")
class OptimalGaussianLikelihood(Likelihood):
    r"""Normal(mean, sigma^2) with one sigma for all values, the one of maximum likelihood as a running mean over steps.

    .. math:: \sigma^2 \leftarrow \text{running mean of } \tfrac{1}{D} \| x - mean \|^2, \qquad
              \log p(x|z) = -\tfrac{SSE}{2\sigma^2} - \tfrac D2 \log 2\pi\sigma^2

    The sigma in use is a number that training and evaluation share, so this is one honest density, nats per example. By the
    envelope theorem its gradient is that of the likelihood at the optimal sigma. `log_prob` remembers the squared error in
    training mode, `after_step` learns from it: the first step sets sigma, later ones move it by 1 - `decay`. `mean` as in
    `gaussian`.

    Raises:
        ValueError: for a decay outside [0, 1).

    Reference: Rybkin et al., Simple and effective VAE training with calibrated decoders (2021), arXiv:2006.13202.
    """

    family = "gaussian"
    accepts = ("grey", "real")  # on {0, 1} a density has no upper bound: sigma -> 0

    def __init__(self, decay: float = 0.9, mean: Literal["linear", "sigmoid"] = "linear") -> None:
        super().__init__()
        self.squash = squashing(mean)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be at least 0 and below 1")
        self.decay = decay
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.variance: Tensor
        self.steps: Tensor
        self._error: Tensor | None = None

    @property
    def sigma(self) -> float:
        """The standard deviation in use."""
        return math.sqrt(self.variance.item())

    def forward(self, params: Tensor) -> Distribution:
        return _Watched(Normal(self.squash(float32(params)), self.variance.sqrt()), params.ndim - 2, self._watch)

    def _watch(self, mean: Tensor, x: Tensor) -> None:
        if self.training:
            self._error = (x - mean.detach()).square().mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move sigma^2 towards the mean squared error of the last batch that was scored in training mode."""
        error, self._error = self._error, None
        if error is None:
            return
        self.variance.lerp_(error.to(self.variance.dtype), max(1 - self.decay, 1 / (1 + int(self.steps))))
        self.steps += 1


class _Watched(Independent):  # type: ignore[type-arg]  # generic in recent releases of torch only
    """Shows its owner what it scores: how a head learns from x without being given x."""

    def __init__(self, base: Distribution, event_dim: int, watch: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__(base, event_dim)
        self.watch = watch

    def log_prob(self, value: Tensor) -> Tensor:
        self.watch(self.mean, value)
        scored: Tensor = super().log_prob(value)  # type: ignore[no-untyped-call]
        return scored
