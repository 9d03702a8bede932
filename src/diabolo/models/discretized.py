r"""Exact probabilities of the 256 grey levels x = k/255: distributions, and the likelihoods that are made of them.

A variable y with the distribution function F is rounded to the nearest level; what lies beyond a level at the end counts to it:

    P(k) = F((k + 1/2)/255) - F((k - 1/2)/255),   P(0) = F(1/510),   P(255) = 1 - F(1 - 1/510)

-log P is the code length of the data: nats / (D log 2) are bits/dim as they stand. Differences of F are taken in logarithms, so
that there is no least probability: far in the tails values and gradients stay finite and right.

Shapes: S samples, B batch, C channels, P positions of an image, K mixture components.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, constraints

from diabolo.models.distributions import float32, log_sinhc
from diabolo.models.likelihoods import CENTRE, SPREAD, Likelihood, hold_log_scale, soft_floor
from diabolo.registry import register

LEVELS = 256
#: The number of the largest level, at x = 1.
TOP = LEVELS - 1
#: How far k/255 in 32-bit floating point may be from a level, in levels.
GRID_TOLERANCE = 0.0255


def nearest(x: Tensor) -> Tensor:
    """The number k of the level that is nearest to x, 0 <= k <= 255, in x's type."""
    return (TOP * x).round().clamp(0, TOP)


class _Levels(constraints.Constraint):
    """Values k/255, k = 0, ..., 255, up to the rounding of 32 bits."""

    is_discrete = True
    event_dim = 0

    @property
    def points(self) -> Tensor:
        """All levels in ascending order, (256,) float64."""
        return torch.arange(LEVELS, dtype=torch.float64) / TOP

    def check(self, value: Tensor) -> Tensor:
        return (TOP * value - nearest(value)).abs() <= GRID_TOLERANCE


levels = _Levels()


# ------------------------------------------------------------------------------------------------ distributions
class Discretized(Distribution, ABC):
    r"""A symmetric variable y = loc + scale noise, rounded to the nearest level. loc and log_scale broadcast to the batch.

    `mean` is that of y with what lies beyond 0 and 1 moved there,

    .. math:: E[\min(\max(y, 0), 1)] = G(loc) - G(loc - 1), \qquad G(t) = \int_{-\infty}^t F_0(u) du

    with F_0 the distribution function of y - loc. It stands for the mean of the levels, which differs from it by less than half
    a level (1/510), and by less than 1e-4 where scale is a level (1/255) or more.
    """

    arg_constraints: dict[str, Any] = {"loc": constraints.real, "log_scale": constraints.real}
    support: Any = levels

    def __init__(self, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.log_scale = loc, log_scale
        super().__init__(torch.broadcast_shapes(loc.shape, log_scale.shape), validate_args=validate_args)

    @abstractmethod
    def _log_cdf(self, t: Tensor) -> Tensor:
        """log F_0 at scale 1."""

    @abstractmethod
    def _cdf_integral(self, t: Tensor) -> Tensor:
        """G at scale 1."""

    @abstractmethod
    def _noise(self, shape: torch.Size) -> Tensor:
        """Draws at scale 1."""

    @abstractmethod
    def _log_between(self, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, width: Tensor) -> Tensor:
        """log (F_0(upper) - F_0(lower)), given below = log F_0(upper), above = log (1 - F_0(lower)), width = upper - lower."""

    def log_prob(self, value: Tensor) -> Tensor:
        """log P of the level nearest to each value, (*batch)."""
        if self._validate_args:
            self._validate_sample(value)
        k, centre, width = nearest(value), TOP * self.loc, torch.exp(-self.log_scale) / TOP  # of a level, at scale 1
        upper, lower = (k + 0.5 - centre) * width, (k - 0.5 - centre) * width
        below, above = self._log_cdf(upper), self._log_cdf(-lower)
        inside = self._log_between(lower, upper, below, above, width)
        return torch.where(k == 0, below, torch.where(k == TOP, above, inside))

    @property
    def mean(self) -> Tensor:
        width = torch.exp(-self.log_scale)  # of the whole range, at scale 1
        wide = width < torch.finfo(width.dtype).eps ** (
            1 / 3
        )  # there the difference is rounding, and F_0 nearly straight
        step = torch.where(wide, 1.0, width)
        between = (self._cdf_integral(self.loc * step) - self._cdf_integral((self.loc - 1) * step)) / step
        return torch.where(wide, self._log_cdf((self.loc - 0.5) * width).exp(), between)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        y = self.loc + self.log_scale.exp() * self._noise(self._extended_shape(sample_shape))
        return nearest(y) / TOP


class DiscretizedLogistic(Discretized):
    r"""F_0(t) = 1 / (1 + exp(-t / scale)), standard deviation 1.81 scale.

    .. math:: \log(F_0(a) - F_0(b)) = \log s(a) + \log s(-b) + \log(1 - e^{-(a - b)}), \quad s(t) = 1 / (1 + e^{-t})

    Reference: Kingma et al., Improving variational inference with inverse autoregressive flow (2016), arXiv:1606.04934.
    """

    def _log_cdf(self, t: Tensor) -> Tensor:
        return F.logsigmoid(t)

    def _cdf_integral(self, t: Tensor) -> Tensor:
        return -F.logsigmoid(-t)

    def _noise(self, shape: torch.Size) -> Tensor:
        return torch.logit(torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device))

    def _log_between(self, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, width: Tensor) -> Tensor:
        return below + above + torch.log(-torch.expm1(-width))


def log_ndtr(t: Tensor) -> Tensor:
    """log Phi(t), whose gradient is right in the tails: that of torch (2.13) is 6 times too large at t = -10,000 in 32 bits."""
    far = t < -1
    x = torch.where(far, -t, 1.0) / math.sqrt(2)
    near = torch.log1p(-torch.erfc(torch.where(far, 0.0, t) / math.sqrt(2)) / 2)
    tail: Tensor = torch.special.erfcx(x)  # exp(x^2) times what is sought
    return torch.where(far, torch.log(tail / 2) - x.square(), near)


class DiscretizedGaussian(Discretized):
    r"""F_0(t) = Phi(t / scale), the normal distribution function.

    .. math:: \log(\Phi(a) - \Phi(b)) = \log\Phi(a) + \log(1 - e^{\log\Phi(b) - \log\Phi(a)})

    with (a, b) replaced by (-b, -a) where a + b > 0, so that both are small. A level whose width w is below the square root
    of the precision has the density at its middle c and its slope instead: phi(c) w sinh(cw/2) / (cw/2).
    """

    def _log_cdf(self, t: Tensor) -> Tensor:
        return log_ndtr(t)

    def _cdf_integral(self, t: Tensor) -> Tensor:
        below: Tensor = torch.special.ndtr(t)
        return t * below + torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)

    def _noise(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def _log_between(self, lower: Tensor, upper: Tensor, below: Tensor, above: Tensor, width: Tensor) -> Tensor:
        flipped, middle = lower + upper > 0, (lower + upper) / 2
        larger = torch.where(flipped, above, below)
        smaller = self._log_cdf(torch.where(flipped, -upper, lower))
        thin = (width < torch.finfo(width.dtype).eps ** 0.5) | (larger <= smaller)
        gap = torch.where(thin, 1.0, larger - smaller)
        density = -middle.square() / 2 - math.log(2 * math.pi) / 2
        narrow = density + torch.log(width) + log_sinhc(middle * width)
        return torch.where(thin, narrow, larger + torch.log(-torch.expm1(-gap)))


class LevelCategorical(Distribution):
    """A free probability for each of the 256 levels. logits (*batch, 256), of levels 0, 1/255, ..., 1; mean = sum_k p_k k/255."""

    arg_constraints: dict[str, Any] = {"logits": constraints.real_vector}
    support: Any = levels

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """log P of the level nearest to each value, (*batch)."""
        if self._validate_args:
            self._validate_sample(value)
        k = nearest(value).long()
        shape = torch.broadcast_shapes(k.shape, self.batch_shape)
        chosen = self.logits.expand(*shape, LEVELS).gather(-1, k.expand(shape)[..., None])[..., 0]
        return chosen - torch.logsumexp(self.logits, -1)

    @property
    def mean(self) -> Tensor:
        mean: Tensor = self.logits.softmax(-1) @ levels.points.to(self.logits)
        return mean

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        drawn: Tensor = Categorical(logits=self.logits, validate_args=False).sample(torch.Size(sample_shape))
        return drawn.to(self.logits.dtype) / TOP


class DiscretizedLogisticMixture(Distribution):
    r"""A mixture over whole pixels of discretized logistics, the channels of a pixel in order, each given those before it.

    .. math:: P(x) = \prod_p \sum_k \pi_{kp} \prod_c P(x_{cp} | m_{kcp}, s_{kcp}), \qquad
              m_{kcp} = loc_{kcp} + \sum_{j < c} a_{kcjp} (x_{jp} - \tfrac12)

    logits (*batch, K, P), loc and log_scale (*batch, K, C, P), slopes (*batch, K, C(C-1)/2, P): a_10, a_20, a_21, a_30, ...
    An event has `event_shape`, C P values with channels first; x are its true values, not those of a component.

    `mean` is the sum over components of pi_k times the component's mean, which is that of `Discretized` for each channel, with
    the channels before it at their means. That is exact for the first channel, and for the others as far as nothing lies beyond
    0 and 1: there the mean of what was moved to the ends depends on how the earlier channels vary, which is left out.

    Reference: Salimans et al., PixelCNN++ (2017), arXiv:1701.05517.
    """

    arg_constraints: dict[str, Any] = {
        "logits": constraints.real,
        "loc": constraints.real,
        "log_scale": constraints.real,
        "slopes": constraints.real,
    }

    def __init__(
        self, logits: Tensor, loc: Tensor, log_scale: Tensor, slopes: Tensor, event_shape: Sequence[int]
    ) -> None:
        self.logits, self.loc, self.log_scale, self.slopes = logits, loc, log_scale, slopes
        super().__init__(loc.shape[:-3], torch.Size(event_shape))

    @property
    def support(self) -> Any:
        return constraints.independent(levels, sum(1 for _ in self.event_shape))

    def _channel(self, c: int, before: Sequence[Tensor]) -> DiscretizedLogistic:
        """Channel c of every component, (*batch, K, P), given the c channels before it."""
        loc, first = self.loc[..., c, :], c * (c - 1) // 2
        for j, value in enumerate(before):
            loc = loc + self.slopes[..., first + j, :] * (value - 0.5)
        return DiscretizedLogistic(loc, self.log_scale[..., c, :], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P of an event, (*batch) nats."""
        if self._validate_args:
            self._validate_sample(value)
        x = value.reshape(*value.shape[: value.ndim - sum(1 for _ in self.event_shape)], 1, *self.loc.shape[-2:])
        channels = x.unbind(-2)  # each (..., 1, P)
        log_p = torch.log_softmax(self.logits, -2)
        for c, channel in enumerate(channels):
            log_p = log_p + self._channel(c, channels[:c]).log_prob(channel)
        return torch.logsumexp(log_p, -2).sum(-1)

    @property
    def mean(self) -> Tensor:
        means: list[Tensor] = []
        for c in range(self.loc.shape[-2]):
            means.append(self._channel(c, means).mean)
        mixed = (torch.stack(means, -2) * self.logits.softmax(-2).unsqueeze(-2)).sum(-3)  # (*batch, C, P)
        return mixed.reshape(*self.batch_shape, *self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        logits = self.logits.movedim(-2, -1)
        chosen = Categorical(logits=logits, validate_args=False).sample(
            torch.Size(sample_shape)
        )  # (*sample, *batch, P)
        index = chosen[..., None, None, :]

        def pick(t: Tensor) -> Tensor:  # (*batch, K, n, P) -> (*sample, *batch, 1, n, P)
            shape = (*chosen.shape[:-1], *t.shape[-3:])
            return t.expand(shape).gather(-3, index.expand(*shape[:-3], 1, *shape[-2:]))

        single = DiscretizedLogisticMixture(
            pick(self.logits.unsqueeze(-2))[..., 0, :], pick(self.loc), pick(self.log_scale), pick(self.slopes), ()
        )
        values: list[Tensor] = []
        for c in range(self.loc.shape[-2]):
            values.append(single._channel(c, values).sample())
        return torch.cat(values, -2).reshape(self._extended_shape(sample_shape))


# ------------------------------------------------------------------------------------------------ likelihoods
class _OfLevels(Likelihood):
    """What the exact ones share. Their numbers may be ranked together: all are probabilities of the same levels."""

    family = "levels"
    discrete = True
    accepts = ("grey",)


class _LocationScale(_OfLevels):
    """A location from the decoder, params + 1/2, and a scale: one for all values, or from the decoder too."""

    def __init__(self, per_value: bool, start: float) -> None:
        super().__init__()
        self.per_value, self.start, self.factor = per_value, math.log(start), 2 if per_value else 1
        if not per_value:
            hold_log_scale(self, None, start)

    def location_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log-scale of each value."""
        if not self.per_value:
            log_scale: Tensor = self.log_scale  # type: ignore[assignment]
            return float32(params) + CENTRE, log_scale
        loc, raw = float32(params).chunk(2, 2)
        return loc + CENTRE, raw + self.start


@register("likelihood", "discretized_gaussian")
class DiscretizedGaussianLikelihood(_LocationScale):
    r"""The exact probability of 8-bit levels under a Gaussian that is rounded to them, its scale learned.

    .. math:: \log P(x|z) = \sum_i \log\left[ \Phi\left(\tfrac{x_i + 1/510 - m_i}{s}\right)
              - \Phi\left(\tfrac{x_i - 1/510 - m_i}{s}\right) \right]

    nats per example, open-ended at 0 and 1. m = params + 1/2; s is one number, learned by gradient, or with `per_value` the
    decoder's: params (S, B, 2c, ...) hold m - 1/2, then log s - log(1/4). An untrained network's output near 0 is a mean near 1/2
    with a standard deviation near 1/4. Raises ValueError (in evaluation) for x beside the grid k/255.

    Reference: Ho et al., Denoising diffusion probabilistic models (2020), arXiv:2006.11239, section 3.3.
    """

    def __init__(self, per_value: bool = False) -> None:
        super().__init__(per_value, SPREAD)

    def forward(self, params: Tensor) -> Distribution:
        return Independent(DiscretizedGaussian(*self.location_scale(params)), params.ndim - 2)


@register("likelihood", "discretized_logistic")
class DiscretizedLogisticLikelihood(_LocationScale):
    r"""The exact probability of 8-bit levels under a logistic that is rounded to them, its scale learned.

    .. math:: \log P(x|z) = \sum_i \log\left[ \sigma\left(\tfrac{x_i + 1/510 - m_i}{s}\right)
              - \sigma\left(\tfrac{x_i - 1/510 - m_i}{s}\right) \right], \quad \sigma(t) = 1 / (1 + e^{-t})

    nats per example, open-ended at 0 and 1. m = params + 1/2; s is one number, learned by gradient, or with `per_value` the
    decoder's: params (S, B, 2c, ...) hold m - 1/2, then log s - log(1/8). An untrained network's output near 0 is a mean near 1/2
    with a standard deviation near 1/4. Raises ValueError (in evaluation) for x beside the grid k/255.

    Reference: Kingma et al., Improving variational inference with inverse autoregressive flow (2016), arXiv:1606.04934.
    """

    def __init__(self, per_value: bool = False) -> None:
        super().__init__(per_value, SPREAD / 2)

    def forward(self, params: Tensor) -> Distribution:
        return Independent(DiscretizedLogistic(*self.location_scale(params)), params.ndim - 2)


@register("likelihood", "discretized_logistic_mixture")
class DiscretizedLogisticMixtureLikelihood(_OfLevels):
    """The exact probability of 8-bit levels under a mixture of rounded logistics, one choice of component for a whole pixel.

    The channels of a pixel follow one another: the mean of each moves with the true values of those before it, by coefficients
    tanh(params). `components` K; params (S, B, K (1 + 2c + c(c-1)/2), ...) hold for each component a logit, then c means, c
    log-scales, c(c-1)/2 coefficients, in units in which levels go from -1 to 1 as in the paper. Log-scales have the soft floor
    -7 there. Of vectors (D,), each value is a pixel of one channel.

    With a network's output near 0 the components have equal weight, means spread evenly over the range, and a standard deviation
    near 1/4 of it. nats per example. Raises ValueError (in evaluation) for x beside the grid k/255.

    Reference: Salimans et al., PixelCNN++ (2017), arXiv:1701.05517.
    """

    MIN_LOG_SCALE = -7.0

    def __init__(self, data_shape: tuple[int, ...], components: int = 5) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components={components} must be at least 1")
        self.vector, self.components = data_shape[1:] == (), components
        spread = (2 * torch.arange(components) + 1 - components) / components
        self.register_buffer("spread", spread.view(-1, 1, 1), persistent=False)
        self.spread: Tensor

    def channels(self, c: int) -> int:
        """K (1 + 2c + c(c-1)/2) for c channels; 3K for each value of a vector."""
        return self.components * (3 * c if self.vector else (c + 1) * (c + 2) // 2)

    def forward(self, params: Tensor) -> Distribution:
        flat = float32(params).unflatten(2, (3 * self.components, -1)) if self.vector else float32(params).flatten(3)
        grouped = flat.unflatten(2, (self.components, -1))  # (S, B, K, (c+1)(c+2)/2, P)
        c = math.isqrt(2 * grouped.shape[3]) - 1
        logits, means, raw, slopes = grouped.split((1, c, c, c * (c - 1) // 2), 3)
        log_scale = soft_floor(raw + math.log(SPREAD), self.MIN_LOG_SCALE) - math.log(2)
        event = params.shape[3:] if not self.vector else flat.shape[3:]
        return DiscretizedLogisticMixture(
            logits.squeeze(3),
            (1 + means + self.spread) / 2,
            log_scale,
            slopes.tanh(),
            event if self.vector else (c, *event),
        )


@register("likelihood", "categorical")
class CategoricalLikelihood(_OfLevels):
    """A free probability for each of the 256 levels of each value: log P(x | z) = sum_i log softmax(params_i)_k, x_i = k/255.

    params (S, B, 256 c, ...): the logits of level 0 of all channels first. nats per example; the mean is sum_k p_k k/255. It
    knows nothing of the order of the levels and needs 256 numbers for each value: with `mlp` the last layer is large. An
    untrained network's output near 0 is 8 bits/dim. Raises ValueError (in evaluation) for x beside the grid k/255.

    Reference: van den Oord et al., Pixel recurrent neural networks (2016), arXiv:1601.06759.
    """

    factor = LEVELS

    def forward(self, params: Tensor) -> Distribution:
        logits = float32(params).unflatten(2, (LEVELS, -1)).movedim(2, -1)
        return Independent(LevelCategorical(logits), params.ndim - 2)
