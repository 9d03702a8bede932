"""Numerical derivatives of a loss and of a density, in float64: what a part does, whatever it says of itself.

An objective is asked for the loss of a stand-in model whose distortion D = -log p(x|z), rate K = KL(q || p) and squared
Jacobian J are set by hand and moved one at a time:

    loss = a D + b K + c J + rest,   a = dloss / dD,  b = dloss / dK,  c = dloss / dJ

by central differences. Where the loss is no such sum, it is asked whether it is one of squared errors of the mean that weigh
differently above and below the values. A likelihood is asked for its curvature in x (1 / sigma^2 where it is a squared error),
for its mass over the values it scores (1 if it is normalised), and for what happens to it when an example is twice as large.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from diabolo.models.autoencoder import Inference, Latent
from diabolo.models.distributions import diagonal_normal, unchecked
from diabolo.models.likelihoods import Likelihood
from diabolo.models.objectives import Objective
from diabolo.models.priors import StandardNormal

#: Derivatives at different points that differ by no more than this share are one number.
TOLERANCE = 1e-4
#: A mass within this of 1 is 1.
MASS_TOLERANCE = 1e-3
#: Pairs of values that are scored at a time.
_MASS_BATCH = 4096
#: A step by which every warm-up is over.
LATE = 10**9


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The caller's random numbers stay as they are; densities may be asked beside their support."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), unchecked():
        torch.default_generator.manual_seed(0)
        yield


# ------------------------------------------------------------------------------------------------ the stand-in
class _Slope(nn.Module):
    """An encoder of one code whose Jacobian is known: dz/dx has the squared norm slope^2."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.at, self.slope = x.flatten(1)[:1, :1], 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * (x.flatten(1)[:, :1] - self.at)

    def squared_jacobian(self, x: Tensor) -> Tensor:
        return torch.full_like(x.flatten(1)[:, 0], self.slope**2)


class StandIn(nn.Module):
    """A model of one code with q(z|x) = N(m, 1), p(z) = N(0, 1) and z = m: there log q - log p = m^2 / 2 = KL exactly, so an
    objective finds the same rate however it looks for it. `params` (S, 1, channels, ...) are the decoder's output for any z.

    A plain autoencoder's (`like.prior` gives None) has its own posterior and prior instead. What the objective asked for is
    remembered: `samples`, the input it encoded, whether it decoded q's mean by itself.
    """

    def __init__(self, like: Any, likelihood: Likelihood, params: Tensor, x: Tensor) -> None:
        super().__init__()
        self.likelihood, self.params, self.encoder = likelihood, params, _Slope(x)
        self.posterior, self.rated = like.posterior, has_rate(like)
        self.prior = StandardNormal((1,)).double() if self.rated else like.prior
        self.m, self.samples, self.decoded_mean = 1.0, 0, False
        self.input: Tensor = x

    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        self.input = x
        m = self.m + self.encoder(x)
        q: Distribution = diagonal_normal(m, torch.ones_like(m), 1) if self.rated else self.posterior(m)
        return q

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        self.decoded_mean |= self.rated and bool((z.detach() == self.m).all())
        return self._likelihood(z.shape[0], z.shape[1])

    def forward(self, x: Tensor, y: Tensor | None = None, samples: int = 1) -> Inference:
        self.samples = samples
        q = self.encode(x)
        z = q.mean.expand(samples, *q.mean.shape)
        return Inference(self._likelihood(samples, x.shape[0]), [Latent(z, q, self.prior(y, self.encode))])

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        return self.decode(self.encode(x).mean[None])

    def _likelihood(self, samples: int, batch: int) -> Distribution:
        p: Distribution = self.likelihood(self.params.expand(samples, batch, *self.params.shape[2:]))
        return p


def has_rate(model: Any) -> bool:
    """Whether a model has a KL: q has a density and there is a prior."""
    return bool(getattr(model.posterior, "density", True)) and getattr(model.prior, "density", "exact") != "none"


# ------------------------------------------------------------------------------------------------ the objective
@dataclass(frozen=True)
class Weights:
    """loss = distortion D + rate K + contraction J + rest at one step; `rate` None for a model without. `bends`: the largest
    share by which a derivative differs between points (0: the loss is this sum)."""

    distortion: float
    rate: float | None
    contraction: float
    rest: float
    bends: float

    @property
    def linear(self) -> bool:
        return self.bends <= TOLERANCE


@dataclass(frozen=True)
class Sides:
    """loss = over SSE_over + under SSE_under + rest: squared errors of values that the mean exceeds, and of the others; `rest`
    is what is left without the rate's share."""

    over: float
    under: float
    rest: float

    @property
    def expectile(self) -> float:
        """Of x given z, the one at which the loss is least: tau E (x - m)^+ = (1 - tau) E (m - x)^+."""
        return self.under / (self.over + self.under)

    def mass(self, dimensions: int) -> float:
        """What exp(-loss) without the rate integrates to, for each of the values."""
        widths = 1 / math.sqrt(self.over) + 1 / math.sqrt(self.under)
        return math.sqrt(math.pi) / 2 * widths * math.exp(-self.rest / dimensions)


@dataclass(frozen=True)
class ObjectiveFacts:
    """What an objective does with a record: its weights at the first step, at the last one of a run, and when every warm-up is
    over (from step `warm`), how it joins several draws of z and several examples, and what it does before and beside. `sides`
    where squared errors of the two signs weigh differently."""

    first: Weights
    last: Weights
    final: Weights
    warm: int
    samples: int
    draws: Literal["one", "mean", "log-mean-exp", "other"]
    examples: Literal["mean", "sum", "other"]
    changed: float
    change: float
    decodes_mean: bool
    sides: Sides | None = None


def objective_facts(model: Any, objective: Objective, x: Tensor, steps: int = LATE) -> ObjectiveFacts:
    """Measure an objective on x (1, *data) float64 in a run of `steps`. `model` lends its likelihood, posterior and prior;
    nothing of it changes.

    Raises:
        ValueError: for a loss that is not finite.
        Exception: whatever an objective raises that cannot work with the stand-in.
    """
    with _undisturbed():
        likelihood = doubled(model.likelihood)
        probe = _Probe(model, doubled(objective), likelihood, x)
        first, final, change = probe.weights(0), probe.weights(LATE), probe.stand_in.input.detach() - x
        return ObjectiveFacts(
            first=first,
            last=probe.weights(steps - 1),
            final=final,
            warm=probe.warm(),
            samples=probe.stand_in.samples or 1,
            draws=probe.draws(),
            examples=probe.examples(),
            changed=float((change != 0).double().mean()),
            change=float(change.square().mean().sqrt()),
            decodes_mean=probe.stand_in.decoded_mean,
            sides=None if final.linear else probe.sides(final.rate or 0.0),
        )


def doubled(part: Any) -> Any:
    """A copy in float64 on the CPU, in evaluation mode; what is no module is copied as it is."""
    copied = copy.deepcopy(part)
    return copied.to("cpu").double().eval() if isinstance(copied, nn.Module) else copied


def decoder_output(likelihood: Likelihood, shape: tuple[int, ...], points: int = 1, seed: int = 0) -> Tensor:
    """What a decoder could give for data of `shape`: (points, 1, channels, ...) standard normal numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    size = (points, 1, likelihood.channels(shape[0]), *shape[1:])
    return torch.randn(size, generator=generator, dtype=torch.float64)


class _Probe:
    """One objective, one example, and a stand-in whose terms are moved."""

    def __init__(self, model: Any, objective: Objective, likelihood: Likelihood, x: Tensor) -> None:
        self.objective, self.x = objective, x
        self.points = decoder_output(likelihood, tuple(x.shape[1:]), points=4)
        self.stand_in = StandIn(model, likelihood, self.points[:1], x)

    def loss(self, step: int, copies: int = 1, x: Tensor | None = None) -> Tensor:
        torch.default_generator.manual_seed(0)
        x = self.x if x is None else x
        found = self.objective(self.stand_in, x.expand(copies, *x.shape[1:]), None, step)
        loss: Tensor = found["loss"].detach().double()
        if not loss.isfinite().all():
            raise ValueError("the loss of plain numbers is not finite")
        return loss

    def distortions(self) -> Tensor:
        found: Tensor = -self.stand_in.likelihood(self.stand_in.params).log_prob(self.x).detach()
        return found  # (S, 1)

    def weights(self, step: int) -> Weights:
        a, rates, b = self._distortion(step), [], [0.0]
        if self.stand_in.rated:
            rates = b = [self._rate(step, m) for m in (0.3, 1.0, 3.0, 8.0)]
        c = [self._contraction(step, slope) for slope in (0.5, 1.0)]
        value, terms = float(self.loss(step).mean()), (float(self.distortions().mean()), 0.5 if rates else 0.0)
        rest = value - a[0] * terms[0] - b[0] * terms[1]
        return Weights(
            a[0], b[0] if rates else None, _round(c[0]), _round(rest, abs(value) + 1), max(map(_spread, (a, b, c)))
        )

    def _distortion(self, step: int) -> list[float]:
        """dloss / dD between points of the decoder's output, along three directions."""
        base, found = self.points[:1], []
        for towards in self.points[1:]:
            ends = []
            for sign in (1, -1):
                self.stand_in.params = base + sign * 0.05 * (towards - base)
                ends.append((float(self.loss(step).mean()), float(self.distortions().mean())))
            found.append((ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1]))
        self.stand_in.params = base
        return found

    def _rate(self, step: int, m: float) -> float:
        """dloss / dK at K = m^2 / 2."""
        ends = []
        for end in (1.1 * m, 0.9 * m):
            self.stand_in.m = end
            ends.append(float(self.loss(step).mean()))
        self.stand_in.m = 1.0
        return (ends[0] - ends[1]) / ((1.1 * m) ** 2 / 2 - (0.9 * m) ** 2 / 2)

    def _contraction(self, step: int, slope: float) -> float:
        """dloss / dJ at J = slope^2."""
        ends = []
        for end in (1.1 * slope, 0.9 * slope):
            self.stand_in.encoder.slope = end
            ends.append(float(self.loss(step).mean()))
        self.stand_in.encoder.slope = 0.0
        return (ends[0] - ends[1]) / ((1.1 * slope) ** 2 - (0.9 * slope) ** 2)

    def sides(self, rate: float) -> Sides | None:
        """The weights of squared errors of the two signs, from values all below the mean and all above; None where they do not
        give the loss of values on both sides, or are the same. `rate`: the weight of the KL, which is 1/2 here."""
        try:
            mean = self.stand_in.likelihood(self.stand_in.params).mean.detach()[0]  # (1, *data)
        except (NotImplementedError, AttributeError):
            return None
        exact = float(self.loss(LATE, x=mean).mean())
        over, under = (float(self.loss(LATE, x=mean + h).mean() - exact) / mean.numel() / h**2 for h in (-0.3, 0.3))
        if min(over, under) <= 0 or math.isclose(over, under, rel_tol=TOLERANCE):
            return None
        error = mean - self.x
        told = exact + float(error.square().where(error > 0, error.square() * under / over).sum()) * over
        if not math.isclose(told, float(self.loss(LATE).mean()), rel_tol=TOLERANCE):
            return None
        return Sides(over, under, _round(exact - rate * 0.5, abs(exact) + 1))

    def warm(self) -> int:
        """The first step from which the loss no longer depends on the step, by bisection: a warm-up goes one way."""
        self.stand_in.encoder.slope = 0.5  # so that each term counts
        final = float(self.loss(LATE).mean())
        low, high = -1, LATE
        while high - low > 1:
            middle = (low + high) // 2
            over = math.isclose(float(self.loss(middle).mean()), final, rel_tol=1e-9)
            low, high = (low, middle) if over else (middle, high)
        self.stand_in.encoder.slope = 0.0
        return high

    def draws(self) -> Literal["one", "mean", "log-mean-exp", "other"]:
        """How draws of z with different distortions are joined."""
        samples = self.stand_in.samples or 1
        if samples == 1:
            return "one"
        shift = torch.linspace(0, 1, samples, dtype=torch.float64).view(-1, *[1] * (self.points.ndim - 1))
        loss = []
        for size in (0.0, 0.5):
            self.stand_in.params = self.points[:1] + size * shift * (self.points[1:2] - self.points[:1])
            loss.append((float(self.loss(LATE).mean()), self.distortions().mean(1).expand(samples)))
        self.stand_in.params = self.points[:1]
        (before, same), (after, varied) = loss
        joined = {"mean": varied.mean(), "log-mean-exp": math.log(samples) - torch.logsumexp(-varied, 0)}
        for name, value in joined.items():
            if math.isclose(after - before, float(value - same[0]), rel_tol=TOLERANCE):
                return name  # type: ignore[return-value]
        return "other"

    def examples(self) -> Literal["mean", "sum", "other"]:
        """How the examples of a batch are joined, once the loop has taken the mean of what it is given."""
        one, two = float(self.loss(LATE).mean()), float(self.loss(LATE, copies=2).mean())
        if math.isclose(one, two, rel_tol=TOLERANCE):
            return "mean"
        return "sum" if math.isclose(2 * one, two, rel_tol=TOLERANCE) else "other"


def _round(value: float, scale: float = 1.0) -> float:
    """0 where a difference of numbers of this size is rounding."""
    return 0.0 if abs(value) < 1e-7 * scale else value


def _spread(values: list[float]) -> float:
    size = max(map(abs, values))
    return 0.0 if size < 1e-7 else (max(values) - min(values)) / size


# ------------------------------------------------------------------------------------------------ the likelihood
@dataclass(frozen=True)
class LikelihoodFacts:
    """-log p(x|z) as a function of x and of its size. `shape`: a squared error with one `sigma2`, one whose sigma^2 differs
    between values, a cross-entropy (affine in x), or something else. `share`: 1 where it is a sum over the D values, 1 / D
    where it is a mean, None where it is neither. `mass` of two values over all that they can be (`domain`, `discrete` or
    not), None where it could not be measured, for the reason in `obstacle`."""

    shape: Literal["squared", "squared, varying", "affine", "other"]
    sigma2: float | None
    share: float | None
    mass: float | None
    domain: str = ""
    discrete: bool = False
    obstacle: str = ""


def likelihood_facts(likelihood: Likelihood, x: Tensor, binary: bool) -> LikelihoodFacts:
    """Measure a likelihood at x (1, *data) float64; `binary`: the values it scores are 0 and 1."""
    with _undisturbed():
        copied = doubled(likelihood)
        share = _share(copied, x)
        shape, curvature = _curvature(copied, tuple(x.shape[1:]))
        sigma2 = share / curvature if share is not None and curvature else None
        try:
            mass, domain, discrete = _mass(copied, x.ndim - 1, x.shape[1], binary)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
            return LikelihoodFacts(shape, sigma2, share, None, obstacle=first_line(error))
    return LikelihoodFacts(shape, sigma2, share, mass, domain, discrete)


def first_line(error: Exception) -> str:
    """What kind of error, and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _curvature(likelihood: Likelihood, shape: tuple[int, ...]) -> tuple[Any, float]:
    """d^2(-log p) / dx_i^2 by second central differences at three distances from the mean, for several i and outputs."""
    found = []
    for seed in range(3):
        p = likelihood(decoder_output(likelihood, shape, seed=seed))
        mean = p.mean.detach()
        for i in {0, mean.numel() // 2, mean.numel() - 1}:
            found += [_second(p, mean, i, at) for at in (0.0, 0.3, -0.7)]
    if max(map(abs, found)) < 1e-6:
        return "affine", 0.0
    if _spread(found) <= TOLERANCE and found[0] > 0:
        return "squared", found[0]
    straight = all(_spread(found[k : k + 3]) <= TOLERANCE for k in range(0, len(found), 3))
    return ("squared, varying" if straight else "other"), 0.0


def _second(p: Distribution, mean: Tensor, i: int, at: float, h: float = 0.25) -> float:
    def minus_log_p(offset: float) -> float:
        x = mean.flatten().clone()
        x[i] += offset
        return -float(p.log_prob(x.view_as(mean)).detach().sum())

    return (minus_log_p(at + h) - 2 * minus_log_p(at) + minus_log_p(at - h)) / h**2


def _share(likelihood: Likelihood, x: Tensor) -> float | None:
    """1 or 1 / D, from what a change of the decoder's output costs in an example and in that example twice side by side."""
    shape = tuple(x.shape[1:])
    outputs = [decoder_output(likelihood, shape, seed=seed) for seed in (0, 1)]
    once = [float(-likelihood(h).log_prob(x).detach().sum()) for h in outputs]
    if len(shape) > 1:
        wide = [torch.cat([h, h], -1) for h in outputs]
        x = torch.cat([x, x], -1)
    else:  # a vector's values are its channels: each group of them twice
        wide = [h.unflatten(2, (-1, shape[0])).repeat_interleave(2, 3).flatten(2, 3) for h in outputs]
        x = x.repeat_interleave(2, 1)
    twice = [float(-likelihood(h).log_prob(x).detach().sum()) for h in wide]
    ratio = (twice[1] - twice[0]) / (once[1] - once[0])
    if math.isclose(ratio, 2, rel_tol=TOLERANCE):
        return 1.0
    return 1 / math.prod(shape) if math.isclose(ratio, 1, rel_tol=TOLERANCE) else None


def _mass(likelihood: Likelihood, dimensions: int, channels: int, binary: bool) -> tuple[float, str, bool]:
    """The sum or integral of p(x|z) over both values of an example of two (two channels of one pixel where there are several,
    which may depend on one another), over what, and whether it is a sum."""
    shape = (2,) if dimensions == 1 else (2, *[1] * (dimensions - 1)) if channels > 1 else (*[1] * (dimensions - 1), 2)
    params = decoder_output(likelihood, shape)
    p = likelihood(params)
    values, weight, domain, discrete = _grid(p, binary)
    x = torch.cartesian_prod(values[0], values[1]).view(-1, *shape)  # (N, *shape)
    log_weight = torch.cartesian_prod(weight[0], weight[1]).log().sum(1)
    scored = [
        likelihood(params.expand(1, part.shape[0], *params.shape[2:])).log_prob(part[None]).detach()[0]
        for part in x.split(_MASS_BATCH)
    ]
    return float((torch.cat(scored) + log_weight).exp().sum()), domain, discrete


def _grid(p: Distribution, binary: bool) -> tuple[list[Tensor], list[Tensor], str, bool]:
    """For each of two values: points (n,) and their weights (n,), what they cover, and whether that is discrete."""
    support: Any = p.support
    support = getattr(support, "base_constraint", support)
    if binary or support.is_discrete:
        points = torch.tensor([0.0, 1.0]) if binary else _values(p, support)
        return [points.double()] * 2, [torch.ones_like(points).double()] * 2, _listed(points), True
    if hasattr(support, "lower_bound"):
        low, high = float(support.lower_bound), float(support.upper_bound)
        points = torch.linspace(low, high, 801, dtype=torch.float64)[1::2]  # midpoints
        return [points] * 2, [torch.full_like(points, (high - low) / 400)] * 2, f"[{low:g}, {high:g}]", False
    # x = mean + sd sinh(t): fine near the mean, hundreds of standard deviations far; each side by itself, as some have a corner
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(150))
    t, step = torch.cat([3.5 * (nodes - 1), 3.5 * (nodes + 1)]), 3.5 * weights.repeat(2)
    means, sds = p.mean.detach().flatten(), p.stddev.detach().flatten()
    points_of = [m + s * t.sinh() for m, s in zip(means, sds)]
    return points_of, [s * t.cosh() * step for s in sds], "all real numbers", False


def _values(p: Distribution, support: Any) -> Tensor:
    """All that one value can be, (n,): as its support says, or as its distribution does."""
    if hasattr(support, "points"):
        return torch.as_tensor(support.points)
    base: Any = getattr(p, "base_dist", p)
    listed: Tensor = base.enumerate_support(expand=False).flatten()
    return listed


def _listed(points: Tensor) -> str:
    first, last = float(points[0]), float(points[-1])
    return "{0, 1}" if points.tolist() == [0, 1] else f"{points.numel()} levels from {first:g} to {last:g}"
