"""Distributions that torch lacks, and the operations that work on any of them by dispatch, as `kl_divergence` does.

Shapes: S samples, B batch, K samples of one example; an event is everything from the channel dimension on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal, constraints

#: Logits that `sum_softplus` reads at a time: 512 kB, which with one copy of them stays in a core's cache.
_SOFTPLUS_VALUES = 2**17
#: Factors, each from 1/2 to 1, that one logarithm serves: 2^-112 is above the smallest normal float32, 2^-126.
_SOFTPLUS_FACTORS = 112


class GreyBernoulli(Bernoulli):
    r"""Scores grey levels x in [0, 1] by the expected log-probability of their random binarisation.

    .. math:: E_{b \sim Bernoulli(x)} \log p(b) = x \log\lambda + (1 - x) \log(1 - \lambda)

    This is what is called binary cross-entropy. It is **no density of x**: it does not integrate to 1 over [0, 1], and even at
    lambda = x it costs the entropy of the pixel. Sampling gives {0, 1}.

    Reference: Loaiza-Ganem & Cunningham, The continuous Bernoulli (2019), arXiv:1907.06845.
    """

    support = constraints.unit_interval  # type: ignore[assignment]


class IndependentBernoulli(Independent):  # type: ignore[type-arg]  # generic in recent releases of torch only
    r"""Independent pixels, each a `Bernoulli` or a `GreyBernoulli`, scored together from their logits l.

    .. math:: \log p(x) = \sum_i x_i \log\lambda_i + (1 - x_i) \log(1 - \lambda_i)
              = \sum_i x_i l_i - \log(1 + e^{l_i}), \quad \lambda = \frac{1}{1 + e^{-l}}

    nats, right for grey x too; logits (S, B, *event), x (B, *event) -> (S, B). Where no gradient is asked for on a processor,
    x.l is a matrix product, so that x is never repeated S times, and the logarithms are taken of products.

    Raises:
        ValueError: for x outside the base's support, unless checks are off.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        base: Any = self.base_dist
        if base._validate_args:
            base._validate_sample(value)
        first = -self.reinterpreted_batch_ndims
        logits = base.logits.flatten(first)
        x = value.flatten(first).to(logits.dtype)
        if logits.device.type != "cpu" or (torch.is_grad_enabled() and (logits.requires_grad or x.requires_grad)):
            return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        with torch.autocast("cpu", enabled=False):  # which would multiply in half precision
            linear: Tensor = torch.einsum("...i,...i->...", logits, x)
        return linear - sum_softplus(logits)


def sum_softplus(logits: Tensor) -> Tensor:
    r"""sum_i log(1 + e^l_i) over the last dimension of logits (..., D) -> (...), for use without gradients.

    .. math:: \sum_i \max(l_i, 0) - \log \prod_i \frac{1}{1 + e^{-|l_i|}}

    A factor lies between 1/2 and 1, so a hundred of them are multiplied before one logarithm is taken. Rows are read in blocks
    that fit a core's cache. Error: a few units in the last place of the result.
    """
    rows = logits.flatten(0, -2) if logits.ndim > 1 else logits[None]
    parts = [_sum_softplus(block) for block in rows.split(max(1, _SOFTPLUS_VALUES // logits.shape[-1]))]
    return torch.cat(parts).reshape(logits.shape[:-1])


def _sum_softplus(rows: Tensor) -> Tensor:
    factors, most = rows.abs().sigmoid_(), _SOFTPLUS_FACTORS
    groups = rows.shape[-1] // most
    grouped, rest = factors[:, : groups * most].unflatten(-1, (groups, most)), factors[:, groups * most :]
    logarithms: Tensor = grouped.prod(-1).log_().sum(-1) + rest.prod(-1).log_()
    return rows.clamp(min=0).sum(-1) - logarithms


class ContinuousBernoulli(Distribution):
    r"""A density of grey levels x in [0, 1] with the exponent of cross-entropy and the constant that it needs.

    .. math:: p(x) = C \lambda^x (1 - \lambda)^{1 - x} = \frac{\eta}{e^\eta - 1} e^{\eta x}, \quad
              \eta = \log\tfrac{\lambda}{1 - \lambda}, \quad
              E[x] = \frac{1}{1 - e^{-\eta}} - \frac1\eta

    Its mean is not lambda. `logits`: eta, of the batch's shape. That of torch (2.13) rounds lambda to 1 in 32 bits, so that its
    density integrates to 0.94 at eta = 17 and to 0.08 at eta = 200, and its mean is off by 4e-4 next to lambda = 1/2; this one
    is computed from eta.

    Reference: Loaiza-Ganem & Cunningham, The continuous Bernoulli (2019), arXiv:1907.06845.
    """

    arg_constraints: dict[str, Any] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape)

    @property
    def mean(self) -> Tensor:
        return 0.5 + tilted_mean(self.logits)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        size = self.logits.abs().clamp(min=torch.finfo(u.dtype).eps)  # below it the density is flat to the last bit
        rising = (1 + torch.log1p((1 - u) * torch.expm1(-size)) / size).clamp(0, 1)
        return torch.where(self.logits < 0, 1 - rising, rising)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * (value - 0.5) - log_sinhc(self.logits)


class Dirac(Distribution):
    """A point mass at `value` (B, *event): the posterior of a plain autoencoder. Every draw is the value itself.

    It has no density, so there is no rate and no bound; asking for `log_prob` raises NotImplementedError with the remedy.
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}

    def __init__(self, value: Tensor) -> None:
        super().__init__(value.shape[:1], value.shape[1:], validate_args=False)
        self.value = value

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.value)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError("a dirac posterior has no density, so no rate and no bound: take a gaussian one")


def float32(t: Tensor) -> Tensor:
    """Return t in float32 at least: densities are never computed in half precision."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


#: log_sinhc(t) = sum_k c_k t^2k, k from 1, with c_k = B_2k / (2k (2k)!); what is left out is below 1e-16 at t = 1/2.
_SINHC = (1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600, -691 / 15692092416000)


def _series(square: Tensor, coefficients: Sequence[float]) -> Tensor:
    """sum_k c_k square^k, k from 0."""
    total = torch.zeros_like(square)
    for c in reversed(coefficients):
        total = total * square + c
    return total


def log_sinhc(t: Tensor) -> Tensor:
    """log(sinh(t / 2) / (t / 2)), the logarithm of the mean of exp(t u) over u from -1/2 to 1/2; 0 at t = 0. Value and gradient
    are accurate from t = 0 to any t that is finite."""
    small = t.abs() < 0.5
    square, size = torch.where(small, t, 0.0).square(), torch.where(small, 1.0, t.abs())
    far = size / 2 + torch.log(-torch.expm1(-size)) - torch.log(size)
    return torch.where(small, square * _series(square, _SINHC), far)


def tilted_mean(t: Tensor) -> Tensor:
    """coth(t / 2) / 2 - 1 / t, the derivative of `log_sinhc`: the mean of u from -1/2 to 1/2 with weight exp(t u)."""
    small = t.abs() < 0.5
    near, size = torch.where(small, t, 0.0), torch.where(small, 1.0, t.abs())
    decayed = torch.exp(-size)
    far = t.sign() * (0.5 + decayed / (1 - decayed) - 1 / size)
    return torch.where(small, near * _series(near.square(), [2 * k * c for k, c in enumerate(_SINHC, 1)]), far)


def diagonal_normal(loc: Tensor, scale: Tensor, event_dim: int) -> Distribution:
    """Normal(loc, scale^2) with independent coordinates, the last `event_dim` dimensions being one event."""
    return Independent(Normal(loc, scale), event_dim)


def temper(p: Distribution, temperature: float) -> Distribution:
    """Scale the spread of p by `temperature`; 1 leaves it as it is.

    Raises:
        NotImplementedError: if p has no notion of spread.
    """
    return p if temperature == 1 else tempered(p, temperature)


@singledispatch
def tempered(p: Distribution, temperature: float) -> Distribution:
    """The rule behind `temper`, by the family of p; a family that is defined elsewhere registers its own."""
    raise NotImplementedError(f"{type(p).__name__} has no temperature: sample it with temperature=1")


@tempered.register
def _(p: Normal, temperature: float) -> Distribution:
    return Normal(p.loc, p.scale * temperature)


@tempered.register(Independent)
def _(p: Any, temperature: float) -> Distribution:
    return Independent(temper(p.base_dist, temperature), p.reinterpreted_batch_ndims)


def guide(p: Distribution, guidance: float) -> Distribution:
    """Push the samples of p(z | y) away from those of p(z), by classifier-free guidance; 1 leaves it as it is.

    Raises:
        NotImplementedError: if p does not know how, as all but a flow-matching prior.
    """
    return p if guidance == 1 else _guide(p, guidance)


@singledispatch
def _guide(p: Distribution, guidance: float) -> Distribution:
    raise NotImplementedError(f"{type(p).__name__} has no guidance: sample it with guidance=1")


def detached(q: Distribution) -> Distribution:
    """Return q with constant parameters, so that a gradient reaches log q(z) through z alone (Roeder et al., 2017,
    arXiv:1703.09194)."""
    if isinstance(q, Independent):
        return Independent(detached(q.base_dist), q.reinterpreted_batch_ndims)
    return type(q)(**{name: getattr(q, name).detach() for name in q.arg_constraints})


@singledispatch
def keyed_sample(q: Distribution, samples: int, seeds: Sequence[int]) -> Tensor:
    """Draw (samples, B, *event) from q, the draw of example b being a function of q and seeds[b] alone.

    All `samples` draws of an example come from one call on a generator of its own, so that slices of them, in any grouping
    of examples into batches, are the same numbers.

    Raises:
        NotImplementedError: for a family without a rule here.
    """
    raise NotImplementedError(f"no keyed sampling for {type(q).__name__}")


@keyed_sample.register
def _(q: Normal, samples: int, seeds: Sequence[int]) -> Tensor:
    shape = (samples, *q.loc.shape[1:])
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=q.loc.dtype) for seed in seeds]
    return q.loc + q.scale * torch.stack(noise, 1).to(q.loc.device)


@keyed_sample.register
def _(q: Dirac, samples: int, seeds: Sequence[int]) -> Tensor:
    return q.rsample(torch.Size((samples,)))


@keyed_sample.register(Independent)
def _(q: Any, samples: int, seeds: Sequence[int]) -> Tensor:
    return keyed_sample(q.base_dist, samples, seeds)


@contextmanager
def unchecked() -> Iterator[None]:
    """Switch off the argument checks of torch.distributions, which cost time in a training step; evaluation keeps them."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
