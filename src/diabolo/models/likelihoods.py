"""Likelihoods: heads params (S, B, channels, ...) -> p(x | z). Each owns its pixel convention and says what its numbers are.

Here are those of binary pixels and the densities; the exact probabilities of grey levels stand in discretized.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Laplace, Normal

from diabolo.models.distributions import ContinuousBernoulli, GreyBernoulli, float32
from diabolo.models.networks import Head
from diabolo.registry import register


class Likelihood(Head):
    """p(x | z). `family`: numbers of different families are never ranked together. `normalised`: whether it sums or
    integrates to 1 over x; every label "unnormalised" is read from here. `accepts`: the kinds of data it scores. `discrete`:
    whether -log p(x | z) is already the code length of x, the logarithm of a probability of what it scores; False for a
    density, whose bits/dim need dequantised data and their unit, and for what is not normalised."""

    family: str
    normalised = True
    discrete = False
    accepts: tuple[str, ...] = ("grey", "binary", "real")

    def forward(self, params: Tensor) -> Distribution:
        """p(x | z) with batch shape (S, B)."""
        raise NotImplementedError

    def start_at(self, mean: Tensor) -> Tensor | None:
        """The params (D,) at which E[x | z] is about `mean` (D,); None where there are none to start from."""
        return None


#: A probability that a bias starts from is at least so far from 0 and from 1: pixels that are always black have a logit, too.
LEAST_PROBABILITY = 1e-3

#: Where a mean starts, and a standard deviation or scale: a network gives numbers near 0 at first, and pixels lie in [0, 1].
CENTRE, SPREAD = 0.5, 0.25


def squashing(mean: str, centre: float = 0.0) -> Callable[[Tensor], Tensor]:
    """The map from a network's output to the mean: output + `centre`, or the sigmoid for pixels in [0, 1].

    Raises:
        ValueError: for any other name.
    """
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "linear": lambda params: params + centre if centre else params,
        "sigmoid": torch.sigmoid,
    }
    if mean not in found:
        raise ValueError(f"mean={mean!r} is one of {', '.join(found)}")
    return found[mean]


def hold_log_scale(head: nn.Module, scale: float | None, start: float = 1.0) -> None:
    """Give a head its `log_scale`: a buffer where `scale` fixes it, else a parameter that begins at log `start`.

    Raises:
        ValueError: for a scale that is not positive.
    """
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be positive, not {scale}")
    log_scale = torch.tensor(math.log(start if scale is None else scale))
    if scale is None:
        head.register_parameter("log_scale", nn.Parameter(log_scale))
    else:
        head.register_buffer("log_scale", log_scale)


def soft_floor(raw: Tensor, least: float) -> Tensor:
    """least + log(1 + exp(raw - least)): raw far above `least`, never below it, with a gradient everywhere."""
    return least + F.softplus(raw - least)


@register("likelihood", "bernoulli")
class BernoulliLikelihood(Likelihood):
    """Independent coin flips for pixels in {0, 1}: log p(x | z) = sum_i x_i log l_i + (1 - x_i) log(1 - l_i), nats per
    example, l = sigmoid(params). Raises ValueError (in evaluation) for any other value of x."""

    family = "bernoulli"
    discrete = True
    accepts = ("binary",)

    def forward(self, params: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=float32(params)), params.ndim - 2)

    def start_at(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, LEAST_PROBABILITY)


@register("likelihood", "bernoulli_relaxed")
class RelaxedBernoulliLikelihood(Likelihood):
    """Binary cross-entropy on grey levels in [0, 1], the convention of many tutorials. Its exponential does not integrate to
    1 over grey images: the numbers are bounds for random binarisations of them, not likelihoods (see GreyBernoulli)."""

    family = "bernoulli_relaxed"
    normalised = False
    accepts = ("grey", "binary")

    def forward(self, params: Tensor) -> Distribution:
        return Independent(GreyBernoulli(logits=float32(params)), params.ndim - 2)

    def start_at(self, mean: Tensor) -> Tensor:
        return torch.logit(mean, LEAST_PROBABILITY)


@register("likelihood", "gaussian")
class GaussianLikelihood(Likelihood):
    """Normal(mean, scale^2) with one standard deviation for all values; `scale=None` learns it by gradient.

    log p(x | z) = -SSE / (2 scale^2) - D/2 log(2 pi scale^2), constants kept, nats per example.
    mean = params, or with `mean="sigmoid"` sigmoid(params), which lies in (0, 1) as pixels do. The sum of squared errors that
    many scripts minimise is scale = sqrt(1/2) without its constant.
    """

    family = "gaussian"
    accepts = ("grey", "real")  # on {0, 1} a density has no upper bound: scale -> 0
    log_scale: Tensor

    def __init__(self, scale: float | None = None, mean: Literal["linear", "sigmoid"] = "linear") -> None:
        super().__init__()
        self.squash = squashing(mean)
        hold_log_scale(self, scale)

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


@register("likelihood", "gaussian_per_pixel")
class PerPixelGaussianLikelihood(Likelihood):
    r"""Normal(mean, scale^2) with a mean and a scale of its own for each value, both from the decoder.

    .. math:: \log p(x|z) = -\sum_i \left[ \tfrac{(x_i - \mu_i)^2}{2 \sigma_i^2} + \log\sigma_i \right]
              - \tfrac D2 \log 2\pi, \qquad \log\sigma = l + \log(1 + e^{s - l})

    nats per example; params (S, B, 2c, ...): mean, then s - log(1/4). l = `min_log_scale` is the soft floor without which the
    density of a value that never varies has no upper bound. mean = params + 1/2, or with `mean="sigmoid"` sigmoid(params): an
    untrained network's output near 0 is a mean near 1/2 and a scale near 1/4.

    Reference: Rybkin et al., Simple and effective VAE training with calibrated decoders (2021), arXiv:2006.13202.
    """

    family = "gaussian"
    accepts = ("grey", "real")  # on {0, 1} the floor alone would decide
    factor = 2

    def __init__(self, min_log_scale: float = -6.0, mean: Literal["linear", "sigmoid"] = "linear") -> None:
        super().__init__()
        self.squash, self.min_log_scale = squashing(mean, CENTRE), min_log_scale

    def forward(self, params: Tensor) -> Distribution:
        mean, raw = float32(params).chunk(2, 2)
        log_scale = soft_floor(raw + math.log(SPREAD), self.min_log_scale)
        return Independent(Normal(self.squash(mean), log_scale.exp()), params.ndim - 2)


@register("likelihood", "laplace")
class LaplaceLikelihood(Likelihood):
    """Laplace(mean, scale) with one scale for all values, the mean absolute error; `scale=None` learns it from 1/4.

    log p(x | z) = -sum_i |x_i - mean_i| / scale - D log(2 scale), nats per example: absolute errors instead of squared ones.
    mean = params + 1/2, or with `mean="sigmoid"` sigmoid(params): an untrained network's output near 0 is a mean near 1/2.

    Raises:
        ValueError: for a scale that is not positive.

    Reference: Kotz et al., The Laplace distribution and generalizations (2001), https://doi.org/10.1007/978-1-4612-0173-1.
    """

    family = "laplace"
    accepts = ("grey", "real")  # on {0, 1} a density has no upper bound: scale -> 0
    log_scale: Tensor

    def __init__(self, scale: float | None = None, mean: Literal["linear", "sigmoid"] = "linear") -> None:
        super().__init__()
        self.squash = squashing(mean, CENTRE)
        hold_log_scale(self, scale, SPREAD)

    def forward(self, params: Tensor) -> Distribution:
        return Independent(Laplace(self.squash(float32(params)), self.log_scale.exp()), params.ndim - 2)


@register("likelihood", "continuous_bernoulli")
class ContinuousBernoulliLikelihood(Likelihood):
    r"""Cross-entropy on grey levels with the constant that makes it a density on [0, 1].

    .. math:: \log p(x|z) = \sum_i x_i \log l_i + (1 - x_i) \log(1 - l_i) + \log C(l_i), \quad
              C(l) = \frac{2 \operatorname{artanh}(1 - 2l)}{1 - 2l}

    nats per example, l = sigmoid(params), C(1/2) = 2. Its mean is not l; pictures show the mean. At x = 0 and x = 1 the density
    has no upper bound.

    Reference: Loaiza-Ganem & Cunningham, The continuous Bernoulli: fixing a pervasive error in variational autoencoders (2019),
    arXiv:1907.06845.
    """

    family = "continuous_bernoulli"
    accepts = ("grey",)

    def forward(self, params: Tensor) -> Distribution:
        return Independent(ContinuousBernoulli(float32(params)), params.ndim - 2)


class _Watched(Independent):  # type: ignore[type-arg]  # generic in recent releases of torch only
    """Shows its owner what it scores: how a head learns from x without being given x."""

    def __init__(self, base: Distribution, event_dim: int, watch: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__(base, event_dim)
        self.watch = watch

    def log_prob(self, value: Tensor) -> Tensor:
        self.watch(self.mean, value)
        scored: Tensor = super().log_prob(value)  # type: ignore[no-untyped-call]
        return scored
