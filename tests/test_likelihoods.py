"""Likelihoods against scipy, quadrature, sums over all levels and plain loops; in float64 where exactness is claimed.

Statistical checks are 5-sigma with fixed seeds: on fresh seeds each number checked would fail a correct program once in
1.7 million times.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Independent

from diabolo import card, registry
from diabolo.config import resolve
from diabolo.data import from_tensor
from diabolo.data.scan import scan
from diabolo.data.spec import DataSpec
from diabolo.errors import UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.examination import Examination, Unreachable, mean_reach
from diabolo.metrics import examples_at_a_time, importance_log_weights
from diabolo.models.build import build_model
from diabolo.models.discretized import (
    DiscretizedGaussian,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    LevelCategorical,
    levels,
    log_ndtr,
)
from diabolo.models.distributions import ContinuousBernoulli, log_sinhc, tilted_mean, unchecked
from diabolo.models.likelihoods import Likelihood, soft_floor
from diabolo.models.objectives import ELBO
from diabolo.training import train
from known import SIGMAS, model_config, tiny_images

torch.set_num_threads(1)
GRID = levels.points
SCIPY = {DiscretizedLogistic: stats.logistic, DiscretizedGaussian: stats.norm}
ROUNDED = pytest.mark.parametrize("kind", SCIPY, ids=lambda kind: kind.__name__)
TYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
LOCS = (-1.2, -0.3, 0.0, 0.123, 0.5, 1 - 1 / 510, 1.0, 2.2)
LOG_SCALES = (-20.0, -9.0, -7.0, -5.0, -3.0, -1.4, 0.0, 2.0, 3.0, 8.0, 12.0)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def head(name: str, **params: Any) -> Any:
    if name == "discretized_logistic_mixture":
        params = {"data_shape": (1, 4, 4), **params}
    return registry.build("likelihood", name, **params)


def within_sigmas(counts: Tensor, p: Tensor, n: int) -> None:
    """Binomial counts of n draws with probabilities p, those with too few expected to be normal merged into one."""
    rare = n * p < 25
    p, share = (torch.cat([t[~rare], t[rare].sum()[None]]) for t in (p, counts / n))
    assert ((share - p).abs() <= SIGMAS * (p * (1 - p) / n).sqrt() + 1e-9).all()


# ------------------------------------------------------------------------------------------------ rounded to levels
@TYPES
@ROUNDED
def test_the_256_levels_sum_to_one(kind, dtype, tolerance):
    """From scales of a millionth of a level to ten thousands of the range, from means outside to means inside."""
    for loc, log_scale in itertools.product(LOCS, LOG_SCALES):
        p = kind(torch.tensor(loc, dtype=dtype), torch.tensor(log_scale, dtype=dtype))
        total = p.log_prob(GRID.to(dtype)).double().exp().sum().item()
        assert total == pytest.approx(1, abs=tolerance), (loc, log_scale)


@ROUNDED
def test_probabilities_are_differences_of_scipys_distribution_functions(kind):
    """Each side of the mean from its own tail, so that nothing cancels; open ends at 0 and 255."""
    for loc, scale in itertools.product((-0.2, 0.3, 0.5, 0.9), (0.003, 0.02, 0.2, 1.5)):
        truth = SCIPY[kind](loc=loc, scale=scale)
        upper, lower = (GRID + 1 / 510).numpy(), (GRID - 1 / 510).numpy()
        upper[-1], lower[0] = np.inf, -np.inf
        known = np.where(loc > GRID, truth.cdf(upper) - truth.cdf(lower), truth.sf(lower) - truth.sf(upper))
        found = kind(double(loc), double(math.log(scale))).log_prob(GRID).exp()
        seen = known > 1e-290
        np.testing.assert_allclose(found.numpy()[seen], known[seen], rtol=1e-9)


def log_mass(kind: Any, loc: float, scale: float, k: int) -> float:
    """log P(k) far in the upper tail: the integral of the density relative to its value at the lower edge."""
    frozen = SCIPY[kind]()
    a, b = ((k + side - 255 * loc) / (255 * scale) for side in (-0.5, 0.5))
    relative = integrate.quad(lambda t: math.exp(frozen.logpdf(t) - frozen.logpdf(a)), a, b, epsrel=1e-12)[0]
    return float(frozen.logpdf(a)) + math.log(relative)


@ROUNDED
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 3e-5)])
def test_far_in_the_tail_values_and_gradients_stay_right(kind, dtype, tolerance):
    """Up to 500 scales from the mean, where p itself is 0 in any precision: values by quadrature, gradients by differences."""
    for scale, k in ((0.05, 200), (0.01, 150), (0.002, 254), (0.004, 1)):
        loc, log_scale = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (0.0, math.log(scale)))
        s = math.exp(log_scale.item())
        log_p = kind(loc, log_scale).log_prob(torch.tensor(k / 255, dtype=dtype))
        assert log_p.item() == pytest.approx(log_mass(kind, 0.0, s, k), rel=tolerance)
        found = torch.autograd.grad(log_p, (loc, log_scale))
        h = 1e-5
        by_loc = (log_mass(kind, h * s, s, k) - log_mass(kind, -h * s, s, k)) / (2 * h * s)
        by_scale = (log_mass(kind, 0.0, s * math.exp(h), k) - log_mass(kind, 0.0, s * math.exp(-h), k)) / (2 * h)
        for gradient, known in zip(found, (by_loc, by_scale)):
            assert gradient.item() == pytest.approx(known, rel=max(1e-5, 3 * tolerance))


@TYPES
@ROUNDED
def test_values_and_gradients_are_finite_at_every_limit(kind, dtype, tolerance):
    for loc, log_scale in itertools.product((-1e6, -30.0, *LOCS, 30.0, 1e6), (-15.0, *LOG_SCALES, 20.0)):
        parameters = [torch.full((256,), v, dtype=dtype, requires_grad=True) for v in (loc, log_scale)]
        log_p = kind(*parameters).log_prob(GRID.to(dtype))
        gradients = torch.autograd.grad(log_p.sum(), parameters)
        assert all(t.isfinite().all() for t in (log_p, *gradients)), (loc, log_scale)
        assert (log_p <= 0).all()


def test_the_logarithm_of_the_normal_distribution_function_and_its_gradient():
    """Against scipy: d log Phi / dt = exp(log phi - log Phi), also where float32 holds neither phi nor Phi."""
    t = double(-1e4, -300, -40, -5, -1.0000001, -1, -0.5, 0, 0.5, 3, 9)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        at = t.to(dtype).requires_grad_()
        value = log_ndtr(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        seen = at.detach().double().numpy()
        np.testing.assert_allclose(value.detach().numpy(), stats.norm.logcdf(seen), rtol=tolerance, atol=1e-18)
        slope = np.exp(stats.norm.logpdf(seen) - stats.norm.logcdf(seen))
        np.testing.assert_allclose(gradient.numpy(), slope, rtol=max(tolerance, 1e-8), atol=1e-18)


@ROUNDED
def test_gradients_of_rounded_variables_against_finite_differences(kind):
    """Middle, tails, open ends, and levels so narrow against the scale that the density stands for them."""
    x = (double(0, 1, 100, 128, 200, 254, 255) / 255).expand(4, 7)
    loc = (0.5 + 0.3 * torch.randn(4, 7, dtype=torch.float64)).requires_grad_()
    log_scale = double(-5, -3, -1, 14)[:, None].expand(4, 7).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: kind(a, b).log_prob(x), (loc, log_scale), eps=1e-6, atol=1e-5)


@ROUNDED
def test_the_mean_is_that_of_the_clamped_variable_and_nearly_that_of_the_levels(kind):
    for loc, log_scale in itertools.product(LOCS, (-9.0, -7.0, -5.54, -4.0, -2.0, 0.0, 3.0, 9.0, 14.0)):
        p, frozen = kind(double(loc), double(log_scale)), SCIPY[kind](loc=loc, scale=math.exp(log_scale))
        mean = p.mean.item()
        corners = [t for j in (-40, -9, -2, 0, 2, 9, 40) if 0 < (t := loc + j * math.exp(log_scale)) < 1]
        clamped = integrate.quad(frozen.sf, 0, 1, points=corners or None, limit=500)[0]  # E of a variable in [0, 1]
        assert mean == pytest.approx(clamped, abs=1e-7), (loc, log_scale)
        exact = (p.log_prob(GRID).exp() * GRID).sum().item()
        assert abs(mean - exact) < (1e-4 if log_scale > -5.55 else 1 / 510), (loc, log_scale)
        assert kind(torch.tensor(loc), torch.tensor(log_scale)).mean.item() == pytest.approx(clamped, abs=3e-5)


@ROUNDED
@pytest.mark.parametrize(("loc", "scale"), [(0.5, 0.1), (0.02, 0.01), (1.1, 0.3)])
def test_draws_of_rounded_variables_are_as_frequent_as_their_probabilities(kind, loc, scale):
    p, n = kind(torch.tensor(loc), torch.tensor(math.log(scale))), 100_000
    draws = p.sample((n,))
    assert levels.check(draws).all()
    within_sigmas(torch.bincount((255 * draws).round().long(), minlength=256), p.log_prob(GRID.float()).exp(), n)


# ------------------------------------------------------------------------------------------------ the mixture
def mixture(components: int, channels: int, positions: tuple[int, ...], seed: int = 0) -> DiscretizedLogisticMixture:
    """Arbitrary parameters, batch (2,)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(2, components, *shape, math.prod(positions), generator=generator, dtype=torch.float64)

    slopes = draw(channels * (channels - 1) // 2).tanh()
    return DiscretizedLogisticMixture(
        draw(), 0.5 + 0.4 * draw(channels), draw(channels) - 2, slopes, (channels, *positions)
    )


def logistic_cell(k: int, loc: float, scale: float) -> float:
    below = 0.0 if k == 0 else stats.logistic.cdf((k - 0.5) / 255, loc, scale)
    above = 1.0 if k == 255 else stats.logistic.cdf((k + 0.5) / 255, loc, scale)
    return float(above - below)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_mixture_is_its_plain_loop(channels):
    p = mixture(3, channels, (2, 2))
    weight, scale = p.logits.softmax(1), p.log_scale.exp()
    k = torch.randint(0, 256, (2, channels, 2, 2))
    k[0, 0, 0, 0], k[1, -1, 1, 1] = 0, 255
    known = [0.0, 0.0]
    for b, position in itertools.product(range(2), range(4)):
        pixel, total = k[b].flatten(1)[:, position].tolist(), 0.0
        for component in range(3):
            product, slopes = weight[b, component, position].item(), iter(p.slopes[b, component, :, position].tolist())
            for c in range(channels):
                loc = p.loc[b, component, c, position].item()
                loc += sum(next(slopes) * (pixel[j] / 255 - 0.5) for j in range(c))
                product *= logistic_cell(pixel[c], loc, scale[b, component, c, position].item())
            total += product
        known[b] += math.log(total)
    assert p.log_prob(k / 255).tolist() == pytest.approx(known, rel=1e-6)  # the loop's differences lose digits


@TYPES
def test_the_mixture_of_two_channels_sums_to_one_over_all_pairs(dtype, tolerance):
    p = mixture(3, 2, (1,))
    single = DiscretizedLogisticMixture(*(t.to(dtype) for t in (p.logits, p.loc, p.log_scale, p.slopes)), (2, 1))
    x = torch.cartesian_prod(GRID, GRID).to(dtype)[:, None, :, None]  # (65536, 1, 2, 1) against batch (2,)
    total = single.log_prob(x).double().exp().sum(0)
    torch.testing.assert_close(total, torch.ones(2).double(), rtol=0, atol=tolerance)


def test_the_mixture_of_three_channels_sums_to_one_by_the_chain_rule():
    """sum_x3 sum_x2 P(x1, x2, x3) = P(x1) of the mixture of the first channel, whose sum over x1 is 1: all 256^3 colours."""
    p = mixture(2, 3, (1,), seed=4)
    first = DiscretizedLogisticMixture(p.logits, p.loc[:, :, :1], p.log_scale[:, :, :1], p.slopes[:, :, :0], (1, 1))
    marginal = first.log_prob(GRID[:, None, None, None]).exp()  # (256, 2)
    torch.testing.assert_close(marginal.sum(0), torch.ones(2).double(), rtol=0, atol=1e-12)
    pairs = torch.cartesian_prod(GRID, GRID)
    for k in (0, 77, 255):
        x = torch.cat([torch.full((65536, 1), k / 255, dtype=torch.float64), pairs], 1)[:, None, :, None]
        torch.testing.assert_close(p.log_prob(x).exp().sum(0), marginal[k], rtol=1e-10, atol=1e-14)


def test_draws_of_the_mixture_are_as_frequent_as_their_probabilities():
    """Pairs of channels in 8 x 8 blocks of levels: the second follows the drawn first one. 60,000 draws."""
    p, n = mixture(3, 2, (1,), seed=1), 60_000
    x = torch.cartesian_prod(GRID, GRID)[:, None, :, None]
    table = p.log_prob(x).exp().view(8, 32, 8, 32, 2).sum((1, 3))  # (8, 8, 2)
    draws = p.sample((n,))
    assert draws.shape == (n, 2, 2, 1)
    block = ((255 * draws).round().long() // 32)[..., 0]
    for b in range(2):
        counts = torch.bincount(8 * block[:, b, 0] + block[:, b, 1], minlength=64)
        within_sigmas(counts, table[..., b].flatten(), n)


def test_the_mean_of_the_mixture():
    """Exact up to half a level for the first channel; for the others where nothing lies beyond the ends."""
    p, n = mixture(3, 3, (1,), seed=2), 40_000
    first = DiscretizedLogisticMixture(p.logits, p.loc[:, :, :1], p.log_scale[:, :, :1], p.slopes[:, :, :0], (1, 1))
    exact = (first.log_prob(GRID[:, None, None, None]).exp() * GRID[:, None]).sum(0)
    torch.testing.assert_close(p.mean[:, 0, 0], exact, rtol=0, atol=1 / 510)
    inside = DiscretizedLogisticMixture(p.logits, 0.5 + 0.1 * (p.loc - 0.5), p.log_scale - 3, p.slopes, (3, 1))
    draws = inside.sample((n,))
    error = draws.std(0) / math.sqrt(n)
    assert ((draws.mean(0) - inside.mean).abs() < SIGMAS * error + 1e-4).all()
    assert (inside.mean[:, 1] - inside.loc[:, :, 1].mean(1)).abs().max() > 0.001, "slopes and weights count"


def test_gradients_of_the_mixture_against_finite_differences():
    p = mixture(2, 3, (2,), seed=3)
    x = torch.randint(0, 256, (2, 3, 2)) / 255
    parts = [t.clone().requires_grad_() for t in (p.logits, p.loc, p.log_scale, p.slopes)]
    assert torch.autograd.gradcheck(lambda *t: DiscretizedLogisticMixture(*t, (3, 2)).log_prob(x), parts, atol=1e-6)


def test_the_parameters_of_the_mixture_s_head_are_where_its_docstring_says():
    likelihood = head("discretized_logistic_mixture", data_shape=(3, 1, 2), components=2).double()
    assert likelihood.channels(3) == 2 * (1 + 6 + 3) and likelihood.channels(1) == 2 * 3
    params = torch.randn(1, 1, 20, 1, 2, dtype=torch.float64)
    p = likelihood(params)
    of_each = params.view(2, 10, 2)
    torch.testing.assert_close(p.logits[0, 0], of_each[:, 0])
    centres = torch.tensor([-0.5, 0.5]).double()[:, None, None]
    torch.testing.assert_close(p.loc[0, 0], 0.5 + (of_each[:, 1:4] + centres) / 2)
    raw = of_each[:, 4:7] - math.log(4)
    torch.testing.assert_close(p.log_scale[0, 0], -7 + torch.log1p((raw + 7).exp()) - math.log(2))
    torch.testing.assert_close(p.slopes[0, 0], of_each[:, 7:].tanh())
    with pytest.raises(ValueError, match="components=0"):
        head("discretized_logistic_mixture", components=0)


def test_a_vector_is_a_row_of_pixels_with_one_channel():
    vector = head("discretized_logistic_mixture", data_shape=(5,), components=3).double()
    image = head("discretized_logistic_mixture", data_shape=(1, 1, 5), components=3).double()
    params = torch.randn(2, 4, vector.channels(5), dtype=torch.float64)
    x = torch.randint(0, 256, (4, 5)) / 255
    as_image = image(params.view(2, 4, 9, 1, 5))
    torch.testing.assert_close(vector(params).log_prob(x), as_image.log_prob(x.view(4, 1, 1, 5)))
    torch.testing.assert_close(vector(params).mean, as_image.mean[:, :, 0, 0])
    assert vector(params).sample((2,)).shape == (2, 2, 4, 5)


# ------------------------------------------------------------------------------------------------ free probabilities
def test_the_categorical_is_the_log_softmax_of_its_256_logits():
    likelihood = head("categorical")
    assert likelihood.channels(3) == 768
    params = torch.randn(2, 4, 768, 2, 1, dtype=torch.float64)
    k = torch.randint(0, 256, (4, 3, 2, 1))
    log_p = params.view(2, 4, 256, 3, 2, 1).log_softmax(2)
    known = sum(
        log_p[:, range(4), k[:, c, row, 0], c, row, 0] for c, row in itertools.product(range(3), range(2))
    )  # (S, B)
    p = likelihood(params)
    torch.testing.assert_close(p.log_prob(k / 255), known)
    mean = (log_p.exp() * GRID.view(256, 1, 1, 1)).sum(2)
    torch.testing.assert_close(p.mean, mean)


def test_the_categorical_sums_to_one_and_draws_as_it_says():
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        p = LevelCategorical(3 * torch.randn(256, dtype=dtype))
        probability = p.log_prob(GRID.to(dtype)).double().exp()
        assert probability.sum().item() == pytest.approx(1, abs=tolerance)
    draws = p.sample((50_000,))
    assert levels.check(draws).all()
    within_sigmas(torch.bincount((255 * draws).round().long(), minlength=256), probability, 50_000)


def test_any_levels_cost_8_bits_where_all_are_equally_likely():
    k = torch.randint(0, 256, (3, 1, 5, 5))
    found = -head("categorical")(torch.zeros(1, 3, 256, 5, 5)).log_prob(k / 255) / (25 * math.log(2))
    torch.testing.assert_close(found, torch.full((1, 3), 8.0), rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------------------ the continuous Bernoulli
LOGITS = (-200.0, -40.0, -17.0, -1.0, -0.500001, -0.499999, -0.004, -1e-8, 0.0, 1e-4, 0.0045, 0.3, 2.0, 16.0, 90.0)


def moments(eta: float) -> tuple[float, float]:
    """log of the integral of exp(eta (x - 1/2)) over [0, 1], and the mean of x, by quadrature."""
    shift, narrow = abs(eta) / 2, min(1.0, 40 / max(abs(eta), 1e-9))
    low, high = (0.0, narrow) if eta < 0 else (1 - narrow, 1.0)

    def weight(x: float) -> float:
        return math.exp(eta * (x - 0.5) - shift)

    mass = integrate.quad(weight, low, high, epsabs=0, epsrel=1e-13)[0]
    first = integrate.quad(lambda x: x * weight(x), low, high, epsabs=0, epsrel=1e-13)[0]
    return shift + math.log(mass), first / mass


@pytest.mark.parametrize("eta", LOGITS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_continuous_bernoulli_against_quadrature(eta, dtype, tolerance):
    """Constant, mean, and gradient x - E[x]; next to lambda = 1/2 and where lambda itself rounds to 0 or 1."""
    logits = torch.tensor(eta, dtype=dtype, requires_grad=True)
    constant, mean = moments(logits.item())
    p = ContinuousBernoulli(logits)
    assert p.mean.item() == pytest.approx(mean, abs=tolerance)
    assert log_sinhc(logits).item() == pytest.approx(constant, rel=tolerance, abs=tolerance)
    for x in (0.0, 0.3, 1.0):
        log_p = p.log_prob(torch.tensor(x, dtype=dtype))
        assert log_p.item() == pytest.approx(logits.item() * (x - 0.5) - constant, rel=tolerance, abs=30 * tolerance)
        (gradient,) = torch.autograd.grad(log_p, logits)
        assert gradient.item() == pytest.approx(x - mean, abs=tolerance)


def test_the_continuous_bernoulli_has_a_smooth_mean():
    t = double(*LOGITS).requires_grad_()
    assert torch.autograd.gradcheck(tilted_mean, (t,), eps=1e-7, atol=1e-6)
    assert torch.autograd.gradcheck(log_sinhc, (t,), eps=1e-7, atol=1e-6)
    torch.testing.assert_close(tilted_mean(-t), -tilted_mean(t))


@pytest.mark.parametrize("eta", [-300.0, -3.0, 0.0, 0.7, 12.0])
def test_draws_of_the_continuous_bernoulli_follow_its_distribution_function(eta):
    """Kolmogorov-Smirnov over 40,000 draws: a correct program fails below 1e-6."""
    p = ContinuousBernoulli(torch.full((40_000,), eta, dtype=torch.float64))
    draws = p.rsample().numpy()
    assert draws.min() >= 0 and draws.max() <= 1
    cdf = (lambda x: x) if eta == 0 else (lambda x: np.expm1(eta * x) / np.expm1(eta))
    assert stats.kstest(draws, cdf).pvalue > 1e-6
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.tensor(1.1).double())


# ------------------------------------------------------------------------------------------------ the other densities
def test_the_laplace_is_scipys():
    x, params = torch.rand(5, 4, dtype=torch.float64), torch.randn(1, 5, 4, dtype=torch.float64)
    fixed = head("laplace", scale=0.3).double()
    known = stats.laplace.logpdf(x, 0.5 + params[0], math.exp(fixed.log_scale.item())).sum(1)
    np.testing.assert_allclose(fixed(params).log_prob(x)[0].numpy(), known, rtol=1e-12)
    assert not list(fixed.parameters())
    squashed = head("laplace", scale=0.3, mean="sigmoid").double()
    torch.testing.assert_close(squashed(params).mean, torch.sigmoid(params))
    learned = head("laplace").double()
    with torch.no_grad():
        learned.log_scale.copy_((x - 0.5 - params).abs().mean().log())
    (gradient,) = torch.autograd.grad(learned(params).log_prob(x).sum(), learned.log_scale)
    assert gradient.item() == pytest.approx(0, abs=1e-10), "the best scale is the mean absolute error"
    with pytest.raises(ValueError, match="positive"):
        head("laplace", scale=0.0)
    with pytest.raises(ValueError, match="one of linear, sigmoid"):
        head("laplace", mean="cubic")


@pytest.mark.parametrize("mean", ["linear", "sigmoid"])
@pytest.mark.parametrize(("name", "given"), [("gaussian", {"scale": 0.3}), ("gaussian", {}), ("gaussian_optimal", {})])
def test_the_gaussian_with_one_scale_is_scipys(name, given, mean):
    x, params = torch.rand(5, 2, 3, dtype=torch.float64), 3 * torch.randn(1, 5, 2, 3, dtype=torch.float64)
    likelihood = head(name, mean=mean, **given).double()
    p, raw = likelihood(params), params[0].numpy()
    centre = raw if mean == "linear" else 1 / (1 + np.exp(-raw))
    assert likelihood.sigma == pytest.approx(given.get("scale", 1.0), rel=1e-7)
    known = stats.norm.logpdf(x.numpy(), centre, likelihood.sigma).sum((1, 2))
    np.testing.assert_allclose(p.log_prob(x).detach()[0].numpy(), known, rtol=1e-12)
    np.testing.assert_allclose(p.mean[0].numpy(), centre, rtol=1e-12)


@pytest.mark.parametrize("mean", ["linear", "sigmoid"])
def test_the_gaussian_of_each_value_is_scipys(mean):
    x, params = torch.rand(5, 2, 3, dtype=torch.float64), 3 * torch.randn(1, 5, 4, 3, dtype=torch.float64)
    p = head("gaussian_per_pixel", mean=mean, min_log_scale=-2.0)(params)
    raw = params[0, :, :2].numpy()
    centre = raw + 0.5 if mean == "linear" else 1 / (1 + np.exp(-raw))
    log_scale = np.logaddexp(params[0, :, 2:].numpy() - math.log(4), -2)  # least + softplus(s - least)
    known = stats.norm.logpdf(x.numpy(), centre, np.exp(log_scale)).sum((1, 2))
    np.testing.assert_allclose(p.log_prob(x)[0].numpy(), known, rtol=1e-12)
    np.testing.assert_allclose(p.mean[0].numpy(), centre, rtol=1e-12)


def test_the_soft_floor():
    raw = torch.tensor([-1e4, -6.0, 0.0, 50.0], dtype=torch.float64, requires_grad=True)
    found = soft_floor(raw, -6.0)
    known = torch.logaddexp(raw, torch.tensor(-6.0).double())
    torch.testing.assert_close(found, known, rtol=1e-8, atol=1e-8)
    assert (found >= -6).all()
    assert torch.autograd.grad(found.sum(), raw)[0].isfinite().all()


def test_a_value_that_never_varies_has_a_density_with_a_bound():
    """At the floor -6 the density is at most 1 / (sqrt(2 pi) e^-6) whatever the decoder asks for."""
    params = torch.stack([torch.zeros(9), torch.linspace(-1e5, 5, 9)])[None, None]
    log_p = head("gaussian_per_pixel")(params).log_prob(torch.full((1, 9), 0.5))
    assert log_p.item() / 9 < 6 - 0.5 * math.log(2 * math.pi)


# ------------------------------------------------------------------------------------------------ all of them
#: What each likelihood is: the family, whether -log p is a code length, what it scores.
DECLARED = {
    "bernoulli": ("bernoulli", True, ("binary",)),
    "bernoulli_relaxed": ("bernoulli_relaxed", False, ("grey", "binary")),
    "gaussian": ("gaussian", False, ("grey", "real")),
    "gaussian_optimal": ("gaussian", False, ("grey", "real")),
    "gaussian_per_pixel": ("gaussian", False, ("grey", "real")),
    "laplace": ("laplace", False, ("grey", "real")),
    "continuous_bernoulli": ("continuous_bernoulli", False, ("grey",)),
    "discretized_gaussian": ("levels", True, ("grey",)),
    "discretized_logistic": ("levels", True, ("grey",)),
    "discretized_logistic_mixture": ("levels", True, ("grey",)),
    "categorical": ("levels", True, ("grey",)),
}
NEW = list(DECLARED)[4:]
#: Every likelihood with each of its parameters that changes what the decoder gives.
VARIANTS = [
    *((name, {}) for name in DECLARED),
    ("discretized_gaussian", {"per_value": True}),
    ("discretized_logistic", {"per_value": True}),
    ("discretized_logistic_mixture", {"components": 1}),
    ("gaussian_per_pixel", {"mean": "sigmoid"}),
    ("laplace", {"mean": "sigmoid", "scale": 0.1}),
]
EVERY = pytest.mark.parametrize(("name", "params"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
SHAPES = pytest.mark.parametrize("shape", [(1, 3, 4), (3, 2, 2), (6,)], ids=str)


def made(name: str, params: dict[str, Any], shape: tuple[int, ...]) -> Any:
    kind = registry.get("likelihood", name)
    spec = DataSpec(name="d", shape=shape, values=kind.accepts[0], examples=100)
    return build_model({**model_config(3, width=8), "likelihood": {"name": name, **params}}, spec)


def values_for(name: str, shape: tuple[int, ...], count: int = 5) -> Tensor:
    k = torch.randint(0, 256, (count, *shape))
    return (k > 127).float() if name == "bernoulli" else k / 255


def test_what_each_likelihood_declares():
    kinds = {name: registry.get("likelihood", name) for name in registry.names("likelihood")}
    assert {name: (kind.family, kind.discrete, kind.accepts) for name, kind in kinds.items()} == DECLARED


@EVERY
@SHAPES
def test_every_likelihood_works_with_images_and_vectors(name, params, shape):
    model, x = made(name, params, shape), values_for(name, shape)
    p = model(x, samples=4).likelihood
    assert p.batch_shape == (4, 5) and p.event_shape == shape
    assert p.log_prob(x).shape == (4, 5) and p.log_prob(x).dtype == torch.float32
    assert p.mean.shape == p.sample().shape == (4, 5, *shape)
    assert p.sample((2,)).shape == (2, 4, 5, *shape)
    if model.likelihood.discrete:
        assert (p.log_prob(p.sample()) <= 0).all()


@EVERY
def test_gradients_of_every_likelihood_against_finite_differences(name, params):
    """Of log p by what the decoder gives and by the likelihood's own parameters, in float64."""
    shape = (2, 1, 2)
    likelihood = made(name, params, shape).likelihood.double()
    x = values_for(name, shape, 1).double()
    raw = torch.randn(1, 1, likelihood.channels(2), 1, 2, dtype=torch.float64).requires_grad_()
    names = [key for key, _ in likelihood.named_parameters()]
    own = [parameter.detach().clone().requires_grad_() for parameter in likelihood.parameters()]

    def log_p(raw: Tensor, *own: Tensor) -> Tensor:
        return torch.func.functional_call(likelihood, dict(zip(names, own)), (raw,)).log_prob(x)

    assert torch.autograd.gradcheck(log_p, (raw, *own), atol=1e-6)


@pytest.mark.parametrize("name", NEW)
def test_an_untrained_network_starts_in_the_middle_of_the_range_with_a_sensible_spread(name):
    """At a decoder's output of 0, mean 1/2 and a standard deviation from 0.2 to 0.36 (uniform: 0.29)."""
    likelihood = made(name, {}, (1, 3, 4)).likelihood
    p = likelihood(torch.zeros(1, 1, likelihood.channels(1), 3, 4))
    torch.testing.assert_close(p.mean, torch.full((1, 1, 1, 3, 4), 0.5), rtol=0, atol=1e-6)
    assert 0.2 < p.sample((2000,)).std().item() < 0.36
    if likelihood.discrete:
        k = torch.arange(256).repeat(3).view(64, 1, 3, 4)
        bits = -p.log_prob(k / 255).mean().item() / (12 * math.log(2))
        assert bits < 8.5, "hardly worse than a uniform code even for levels that are uniform"


@EVERY
def test_half_precision_is_never_used_for_a_density(name, params):
    model, x = made(name, params, (1, 3, 4)), values_for(name, (1, 3, 4))
    raw = torch.randn(1, 5, model.likelihood.channels(1), 3, 4)
    found = model.likelihood(raw.bfloat16()).log_prob(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.likelihood(raw.bfloat16().float()).log_prob(x))


# ------------------------------------------------------------------------------------------------ off the grid
EXACT = [name for name, (_, discrete, accepts) in DECLARED.items() if discrete and "grey" in accepts]


@pytest.mark.parametrize("name", EXACT)
def test_values_beside_the_grid_are_refused_outside_a_training_step(name):
    model = made(name, {}, (1, 3, 4))
    p, x = model(torch.rand(1, 1, 3, 4)).likelihood, values_for(name, (1, 3, 4), 1)
    assert p.support.is_discrete
    for wrong in (x + 0.3 / 255, x + 1, torch.full_like(x, math.nan)):
        with pytest.raises(ValueError, match="support"):
            p.log_prob(wrong)
    with unchecked():
        near = model(torch.rand(1, 1, 3, 4)).likelihood
        torch.testing.assert_close(near.log_prob(x), near.log_prob(x + 0.3 / 255), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", EXACT)
def test_data_beside_the_grid_are_refused_before_a_run_begins(name, tmp_path):
    data = from_tensor(torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    config = resolve("vae", [f"model.likelihood={name}", "train.epochs=1"]).config
    with pytest.raises(UsageError, match=r"beside the 8-bit grid(.|\n)*uint8(.|\n)*gaussian"):
        train(config, out=tmp_path / "run", data=data, device="cpu")
    assert not (tmp_path / "run").exists()
    for values in ("real", "binary"):
        with pytest.raises(UsageError, match="cannot score"):
            build_model(model_config(2, name), DataSpec(name="d", shape=(1, 4, 4), values=values))


# ------------------------------------------------------------------------------------------------ the loss card
def card_of(name: str, params: dict[str, Any], shape: tuple[int, ...] = (3, 4, 4)) -> card.Card:
    images = tiny_images(shape=shape)
    return card.measure(made(name, params, shape), ELBO(), images.spec, facts=scan(images))


@pytest.mark.parametrize(("name", "params"), [v for v in VARIANTS if v[0] in NEW], ids=str)
def test_the_loss_card_of_each_is_that_of_an_elbo(name, params):
    found = card_of(name, params)
    assert (found.kind, found.reasons, found.flags, found.beta) == ("elbo", (), (), 1.0)
    assert found.mass == pytest.approx(1, abs=2e-6)
    discrete, rows = DECLARED[name][1], dict(found.rows)
    assert ("exact, p(x|z) is a probability" in rows["Bits per dimension"]) == discrete
    assert any("dequantisation" in text for text in found.labels) == (not discrete)
    assert found.sigma2 is None
    assert "measured on an example of twice the size" in rows["Reduction and unit"]
    words = "over 256 levels from 0 to 1" if discrete else "integrates to 1"
    assert words in rows["Likelihood"]
    if name == "continuous_bernoulli":
        assert rows["Loss"].endswith("cross-entropies -x log l - (1 - x) log(1 - l) - log C(l)")
    if name == "gaussian_per_pixel":
        assert rows["sigma^2"] == "differs between values: it is the decoder's output"


def test_the_card_measures_channels_that_depend_on_one_another():
    """A mixture whose second channel is conditioned on itself instead of the first sums to something else, and is found out."""

    class Wrong(DiscretizedLogisticMixture):
        def _channel(self, c, before):
            return super()._channel(c, [1 - 2 * value for value in before])

        def log_prob(self, value):
            x = value.reshape(*value.shape[:-3], 1, *self.loc.shape[-2:])
            parts = [self._channel(c, [x[..., c, :]] * c).log_prob(x[..., c, :]) for c in range(self.loc.shape[-2])]
            return torch.logsumexp(torch.log_softmax(self.logits, -2) + sum(parts), -2).sum(-1)

    model = made("discretized_logistic_mixture", {}, (3, 4, 4))
    sound = model.likelihood.forward

    def forward(params: Tensor) -> Wrong:
        p = sound(params)
        return Wrong(p.logits, p.loc, p.log_scale, p.slopes, p.event_shape)

    model.likelihood.forward = forward
    found = card.measure(model, ELBO(), tiny_images(shape=(3, 4, 4)).spec)
    assert found.mass is not None and abs(found.mass - 1) > 0.01
    assert "says that it is normalised, but it is not" in found.flags[0]


def test_a_density_that_says_it_is_a_code_length_is_found_out():
    model = made("laplace", {}, (1, 4, 4))
    model.likelihood.discrete = True
    found = card.measure(model, ELBO(), tiny_images().spec)
    assert "says that it gives probabilities, but it is a density" in found.flags[0]


# ------------------------------------------------------------------------------------------------ what reads them
@EVERY
def test_how_far_each_mean_reaches(name, params):
    """Levels and means through a sigmoid stay in [0, 1] and reach both ends; linear means go anywhere."""
    likelihood = made(name, params, (1, 3, 4)).likelihood
    low, high = mean_reach(likelihood, (likelihood.channels(1), 3, 4))
    if params.get("mean") == "sigmoid" or "real" not in DECLARED[name][2]:
        assert (low, high) == pytest.approx((0, 1), abs=1.1e-3)
    else:
        assert (low, high) == (-math.inf, math.inf)


def test_a_pass_decodes_fewer_examples_where_each_needs_more_numbers():
    sizes = {name: examples_at_a_time(made(name, {}, (3, 2, 2)), 3, 500) for name in DECLARED}
    assert sizes == {
        **dict.fromkeys(DECLARED, 500),
        "gaussian_per_pixel": 250,
        "discretized_logistic_mixture": 30,
        "categorical": 1,
    }
    model = made("categorical", {}, (1, 3, 4)).double()
    x = values_for("categorical", (1, 3, 4), 3).double()
    whole = importance_log_weights(model, x, range(3), 7, 0, chunk_values=10**9)
    torch.testing.assert_close(
        importance_log_weights(model, x, range(3), 7, 0, chunk_values=1), whole, rtol=1e-12, atol=0
    )


SMALL = Settings(k=5, images=4, elbo_samples=2, curve_k=(1, 2), curve_images=4, probes=False)


@pytest.mark.parametrize("name", NEW)
def test_each_trains_on_colour_images_and_is_evaluated(name, tmp_path):
    """24 steps: no step is skipped, the loss falls by more than 2 nats, and the evaluation's numbers are finite."""
    dataset = tiny_images(60, (3, 4, 4))
    small = ["model.encoder.width=8", "model.decoder.width=8", "model.latent=2", "train.batch=12", "train.lr=0.02"]
    kept = ["train.keep=last", "train.curve=none", "train.epochs=8"]
    config = resolve("vae", [f"model.likelihood={name}", *small, *kept]).config
    run = train(config, out=tmp_path / "run", data=dataset, device="cpu")
    losses = [row["loss"] for row in run.metrics() if row["split"] == "train"]
    assert run.status["skipped"] == 0
    assert losses[-1] < losses[0] - 2
    found = evaluate(run, SMALL, data=dataset, device="cpu")
    assert math.isfinite(found["log_p"]["value"]) and found["about"]["family"] == DECLARED[name][0]
    patient = Examination(run, data=dataset)
    assert patient.range.outside == 0
    assert patient.held.loss.isfinite().all()
    if math.prod(patient.model.decoder.out_shape) > 4 * 48:
        with pytest.raises(Unreachable, match="too many to fit"):
            _ = patient.constant


def test_a_declared_kind_of_one_s_own_is_a_density_unless_it_says_otherwise():
    class Mine(Likelihood):
        """One of one's own."""

        family = "mine"

        def forward(self, params):
            return Independent(ContinuousBernoulli(params), params.ndim - 2)

    model = made("laplace", {}, (1, 4, 4))
    model.likelihood = Mine()
    images = replace(tiny_images().spec)
    assert Mine.discrete is False
    assert card.measure(model, ELBO(), images).flags == ()
