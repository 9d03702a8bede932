"""The mathematics against known answers, in float64 where exactness is claimed.

Statistical checks are 5-sigma with fixed seeds: on fresh seeds each number checked would fail a correct program once in
1.7 million times.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence

from diabolo import registry, runs
from diabolo.config import resolve
from diabolo.data import Access, Dataset, load
from diabolo.data.spec import DataSpec
from diabolo.errors import UsageError
from diabolo.evaluation import Settings, evaluate, stratified
from diabolo.metrics import (
    blocked_log_mean_exp,
    effective_sample_size,
    importance_log_weights,
    keyed_inference,
    log_p_variance,
    mean_and_se,
)
from diabolo.models.autoencoder import Autoencoder, Latent
from diabolo.models.build import build_model
from diabolo.models.distributions import diagonal_normal, unchecked
from diabolo.models.likelihoods import Likelihood
from diabolo.models.networks import MLP
from diabolo.models.objectives import ELBO, IWAE, Asymmetric, Reconstruction, log_mean_exp
from diabolo.training import train
from known import (
    NORMS,
    SIGMA,
    SIGMAS,
    draw_x,
    linear_model,
    log_p_dense,
    log_p_woodbury,
    model_config,
    posterior_variance,
    sigmas,
)

torch.set_num_threads(1)
ON_KNOWN_MODEL = pytest.mark.parametrize("dimensions", [4, 16, 784])


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# ------------------------------------------------------------------------------------------------ the exact posterior
@ON_KNOWN_MODEL
def test_two_closed_forms_of_log_p_agree(dimensions):
    x = draw_x(dimensions, 20)
    torch.testing.assert_close(log_p_woodbury(x), log_p_dense(x), rtol=0, atol=1e-10)


@ON_KNOWN_MODEL
def test_bayes_identity(dimensions):
    """Article, equation (1): log p(x | z) + log p(z) - log p(z | x) = log p(x) for every z, not only probable ones."""
    model, x = linear_model(dimensions), draw_x(dimensions, 8)
    q = model.encode(x)
    z = 2 * torch.randn(5, 8, 3, dtype=torch.float64)
    found = model.decode(z).log_prob(x) + model.prior().log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(found, log_p_dense(x).expand(5, 8), rtol=0, atol=1e-10)


@ON_KNOWN_MODEL
def test_elbo_and_importance_sampling_are_log_p_when_the_posterior_is_exact(dimensions):
    model, x = linear_model(dimensions), draw_x(dimensions, 8)
    truth = log_p_woodbury(x)
    log_w = importance_log_weights(model, x, range(8), 100, seed=3)
    torch.testing.assert_close(log_w, truth.expand(100, 8), rtol=0, atol=1e-10)
    torch.testing.assert_close(log_w.mean(0), truth, rtol=0, atol=1e-10)  # ELBO
    torch.testing.assert_close(log_mean_exp(log_w), truth, rtol=0, atol=1e-10)  # importance sampling
    torch.testing.assert_close(-IWAE(samples=5)(model, x)["loss"], truth, rtol=0, atol=1e-10)
    torch.testing.assert_close(effective_sample_size(log_w), torch.full((8,), 100.0).double(), rtol=1e-9, atol=0)


def exact_elbo(model: Autoencoder, x: Tensor) -> Tensor:
    """E_q log p(x | z) - KL(q || p) with the expectation of the quadratic form in closed form."""
    q = model.encode(x)
    at_mean = model.decode(q.mean[None]).log_prob(x)[0]
    spread = (torch.tensor(NORMS).double().square() * q.variance).sum(1) / (2 * SIGMA**2)
    kl = -0.5 * (1 + q.variance.log() - q.mean.square() - q.variance).sum(1)
    return at_mean - spread - kl


@pytest.mark.parametrize(("shift", "spread"), [(0.3, 1.3), (1.0, 1.0), (-0.5, 0.6)])
def test_elbo_sign_and_bound(shift, spread):
    """ELBO + KL(q || posterior) = log p(x). With the KL added instead of subtracted, the "bound" is above log p(x)."""
    model, x = linear_model(16, shift, spread), draw_x(16, 12)
    truth, q = log_p_dense(x), model.encode(x)
    exact = linear_model(16).encode(x)
    gap = kl_divergence(q, exact)
    torch.testing.assert_close(exact_elbo(model, x) + gap, truth, rtol=0, atol=1e-10)
    assert (gap > 0.05).all()
    terms = ELBO()(model, x.repeat(4000, 1))
    elbo = -terms["loss"].view(4000, 12)
    assert sigmas(elbo, exact_elbo(model, x)) < SIGMAS
    wrong_sign = (terms["rate"] - terms["distortion"]).view(4000, 12).mean(0)
    assert (wrong_sign > truth).all()


def test_elbo_terms_are_distortion_plus_beta_rate():
    model, x = linear_model(4, 0.3, 1.3), draw_x(4, 6)
    q = model.encode(x)
    inference = model(x, samples=7)
    terms = ELBO(beta=4.0).terms(inference, x)
    torch.testing.assert_close(terms["distortion"], -model.decode(inference.latents[0].sample).log_prob(x).mean(0))
    torch.testing.assert_close(terms["rate"], kl_divergence(q, model.prior()))
    torch.testing.assert_close(terms["loss"], terms["distortion"] + 4 * terms["rate"], rtol=1e-14, atol=0)
    warm = ELBO(beta=2.0, warmup_steps=10)
    for step, beta in ((0, 0.0), (5, 1.0), (10, 2.0), (1000, 2.0)):
        found = warm.terms(inference, x, step)
        torch.testing.assert_close(found["loss"], terms["distortion"] + beta * terms["rate"], rtol=1e-14, atol=0)


# ------------------------------------------------------------------------------------------------ posterior, networks
def test_reparameterised_sd():
    """sd(z) = exp(logvar / 2), and not exp(logvar). 40,000 draws tell a relative error of 2 % at 5 sigma."""
    log_variance = torch.tensor([-2.0, 0.7, 1.5], dtype=torch.float64)
    mean = torch.tensor([1.0, -3.0, 0.0], dtype=torch.float64)
    q = registry.build("posterior", "gaussian")(torch.cat([mean, log_variance])[None])
    draws = q.rsample((40_000,))[:, 0]
    assert sigmas(draws, mean) < SIGMAS
    sd, error = draws.std(0), torch.exp(0.5 * log_variance) / math.sqrt(2 * 40_000)
    assert ((sd - torch.exp(0.5 * log_variance)).abs() < SIGMAS * error).all()
    assert ((sd - torch.exp(log_variance)).abs() > 20 * error).all()
    torch.testing.assert_close(q.stddev[0], torch.exp(0.5 * log_variance), rtol=1e-14, atol=0)


def test_reparameterised_gradients():
    """E z = mu and E z^2 = mu^2 + exp(logvar): their gradients through rsample have the means of the closed forms."""
    h = torch.tensor([0.8, -1.0], dtype=torch.float64).expand(20_000, 2).clone().requires_grad_()
    z = registry.build("posterior", "gaussian")(h).rsample()[:, 0]
    (gradient,) = torch.autograd.grad(z.square().sum(), h)
    assert sigmas(gradient, torch.tensor([2 * 0.8, math.exp(-1.0)], dtype=torch.float64)) < SIGMAS


@pytest.mark.parametrize("slope", [0.01, 0.2])
def test_leaky_relu(slope):
    """f(a) = max(a, 0) + slope min(a, 0), gradient `slope` below 0."""
    net = MLP((1,), (1,), width=1, depth=1, activation="leaky_relu", slope=slope).double()
    with torch.no_grad():
        for layer in (net.layers[0], net.layers[-1]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    a = torch.tensor([[-2.0], [-0.5], [3.0]], dtype=torch.float64, requires_grad=True)
    found = net(a)
    torch.testing.assert_close(found, a.clamp(min=0) + slope * a.clamp(max=0), rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(found.sum(), a)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([slope, slope, 1.0]).double(), rtol=1e-7, atol=0)


ACTIVATIONS = {
    "relu": lambda a: max(a, 0.0),
    "leaky_relu": lambda a: max(a, 0.0) + 0.01 * min(a, 0.0),
    "tanh": math.tanh,
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "silu": lambda a: a / (1 + math.exp(-a)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_is_what_its_equation_says(name):
    net = MLP((1, 2, 2), (3,), width=5, depth=2, activation=name).double()
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    h, linear = x.flatten(1), [layer for layer in net.layers if isinstance(layer, torch.nn.Linear)]
    for layer in linear[:-1]:
        h = (h @ layer.weight.T + layer.bias).detach().apply_(ACTIVATIONS[name])
    torch.testing.assert_close(net(x), h @ linear[-1].weight.T + linear[-1].bias, rtol=1e-12, atol=1e-12)
    assert net.sizes == [4, 5, 5, 3]


@pytest.mark.parametrize(
    ("width", "latent", "parameters"),
    [(400, 20, 973_624), (200, 20, 407_224), (400, 10, 961_604)],
)
def test_parameter_counts_of_the_articles_models(width, latent, parameters):
    spec = DataSpec(name="mnist", shape=(1, 28, 28), values="grey")
    model = build_model(model_config(latent, "bernoulli_relaxed", width=width, depth=2), spec)
    assert sum(p.numel() for p in model.parameters()) == parameters


# ------------------------------------------------------------------------------------------------ importance sampling
SHIFT, SPREAD = 0.3, 1.3


def relative_weight_variance(shift: float, spread: float, dimensions: int = 3) -> float:
    """Var_q(w / p(x)), where w / p(x) = posterior(z) / q(z), both normal: with q off by m and wider by t,
    (t^2 / sqrt(2 t^2 - 1) exp(m^2 / (2 t^2 - 1)))^d - 1."""
    left = 2 * spread**2 - 1
    return (spread**2 / math.sqrt(left) * math.exp(shift**2 / left)) ** dimensions - 1


def relative_weights(count: int, k: int, seed: int = 0, shift: float = SHIFT, spread: float = SPREAD) -> Tensor:
    """log (w / p(x)), (K, B), for a posterior that is off by `shift` and too wide by `spread`."""
    x = draw_x(4, count)
    return importance_log_weights(linear_model(4, shift, spread), x, range(count), k, seed) - log_p_dense(x)


def test_the_bound_rises_with_k_towards_log_p():
    """L_1 < L_10 < L_100 < log p(x), each step by more than 5 sigma of its paired difference."""
    log_w = relative_weights(400, 4000, shift=0.5, spread=1.5)
    bounds = [blocked_log_mean_exp(log_w, k) for k in (1, 10, 100)] + [torch.zeros(400, dtype=torch.float64)]
    for lower, higher in itertools.pairwise(bounds):
        mean, se = mean_and_se(higher - lower)
        assert mean > SIGMAS * se
    gap = kl_divergence(linear_model(4, 0.5, 1.5).encode(draw_x(4, 1)), linear_model(4).encode(draw_x(4, 1))).item()
    assert sigmas(-bounds[0], gap) < SIGMAS


def test_importance_weights_are_unbiased():
    """E_q w = p(x). 2 million draws: the standard error is below 5e-4, so a bias of 0.25 % would be caught."""
    w = relative_weights(64, 32_000).exp().flatten()
    assert w.std().item() / math.sqrt(w.numel()) < 5e-4
    assert sigmas(w, 1.0) < SIGMAS
    assert w.var().item() == pytest.approx(relative_weight_variance(SHIFT, SPREAD), rel=0.03)


def test_bias_of_the_bound_is_half_the_variance_over_k():
    """K (log p - L_K) -> Var(w) / 2. The mean of w, known to be 1, serves as control variate."""
    k, log_w = 100, relative_weights(8, 60_000, seed=1)
    bound = log_mean_exp(log_w.unflatten(0, (-1, k)), 1).flatten()
    centred = k * (torch.expm1(bound) - bound)
    mean, se = mean_and_se(centred)
    law = relative_weight_variance(SHIFT, SPREAD) / 2
    assert se < 0.03 * law
    assert mean == pytest.approx(law, rel=0.15)


def test_log_p_as_evaluated_meets_the_truth():
    """As shipped, K = 5,000 with a posterior that is off: mean error below 0.005 nats, worst image below 0.05."""
    error = log_mean_exp(relative_weights(64, 5000))
    assert abs(error.mean().item()) < 0.005
    assert error.abs().max().item() < 0.05


# ------------------------------------------------------------------------------------------------ likelihoods
def all_binary(pixels: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels)), dtype=torch.float64)


def check_bernoulli() -> None:
    x = all_binary(4).view(16, 1, 2, 2)
    params = torch.randn(3, 1, 1, 2, 2, dtype=torch.float64).expand(3, 16, 1, 2, 2)
    likelihood = registry.build("likelihood", "bernoulli")
    total = likelihood(params).log_prob(x).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert likelihood.normalised


def check_gaussian() -> None:
    check_density(registry.build("likelihood", "gaussian", scale=0.7).double())


def check_gaussian_optimal() -> None:
    likelihood = registry.build("likelihood", "gaussian_optimal").double()
    likelihood.variance.fill_(0.49)
    check_density(likelihood)


def check_gaussian_per_pixel() -> None:
    axis = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    params = torch.tensor([0.4, -1.1], dtype=torch.float64).expand(1, len(axis), 2)
    likelihood = registry.build("likelihood", "gaussian_per_pixel")
    total = likelihood(params).log_prob(axis[:, None]).exp().sum() * (axis[1] - axis[0])
    assert total.item() == pytest.approx(1, abs=1e-10)
    assert likelihood.normalised


def check_laplace() -> None:
    """Each side of the mean from its corner outwards, by Simpson's rule."""
    likelihood = registry.build("likelihood", "laplace").double()
    params, total = torch.tensor([[[0.2]]], dtype=torch.float64), 0.0
    for side in (-1, 1):
        x = likelihood(params).mean.item() + side * torch.linspace(0, 12, 4001, dtype=torch.float64)
        total += simpson(likelihood(params).log_prob(x[:, None, None]).exp()[:, 0].detach(), 12 / 4000)
    assert total == pytest.approx(1, abs=1e-9)
    assert likelihood.normalised


def check_continuous_bernoulli() -> None:
    likelihood = registry.build("likelihood", "continuous_bernoulli")
    x = torch.linspace(0, 1, 4001, dtype=torch.float64)
    for eta in (-30.0, -0.5, 0.0, 1e-3, 2.0, 90.0):
        p = likelihood(torch.tensor([[[eta]]], dtype=torch.float64))
        assert simpson(p.log_prob(x[:, None, None]).exp()[:, 0], 1 / 4000) == pytest.approx(1, abs=1e-6)
    assert likelihood.normalised


def simpson(y: Tensor, step: float) -> float:
    """The integral of values y (2 m + 1,) at equal distances."""
    return (step / 3 * (y[0] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum() + y[-1])).item()


def check_levels(name: str, **params: Any) -> None:
    """Over all pairs of levels of two channels of a pixel, which the mixture conditions on one another."""
    likelihood = registry.build("likelihood", name, **params).double()
    raw = torch.randn(1, 1, likelihood.channels(2), 1, 1, dtype=torch.float64)
    levels = torch.arange(256, dtype=torch.float64) / 255
    total, p = 0.0, likelihood(raw)
    for x in torch.cartesian_prod(levels, levels).view(-1, 1, 2, 1, 1).split(4096):
        total += p.log_prob(x).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-10)
    assert likelihood.normalised and likelihood.discrete


def check_density(likelihood: Likelihood) -> None:
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    params = torch.tensor([0.4, -1.1], dtype=torch.float64).expand(1, len(x), 2)
    total = likelihood(params).log_prob(x).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-10)
    assert likelihood.normalised


def check_bernoulli_relaxed() -> None:
    """It integrates to (2 l - 1) / (2 artanh(2 l - 1)) < 1 over [0, 1], and says that it is not normalised."""
    likelihood = registry.build("likelihood", "bernoulli_relaxed")
    x = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    for level in (0.1, 0.5 + 1e-3, 0.93):
        params = torch.tensor(level, dtype=torch.float64).logit().expand(1, len(x), 1)
        density = likelihood(params).log_prob(x).exp()[0]
        total = torch.trapezoid(density, x[:, 0]).item()
        known = (2 * level - 1) / (2 * math.atanh(2 * level - 1))
        assert total == pytest.approx(known, abs=1e-7)
        assert total < 0.51
    assert likelihood.normalised is False


NORMALISATION = {
    "bernoulli": check_bernoulli,
    "bernoulli_relaxed": check_bernoulli_relaxed,
    "gaussian": check_gaussian,
    "gaussian_optimal": check_gaussian_optimal,
    "gaussian_per_pixel": check_gaussian_per_pixel,
    "laplace": check_laplace,
    "continuous_bernoulli": check_continuous_bernoulli,
    "discretized_gaussian": partial(check_levels, "discretized_gaussian", per_value=True),
    "discretized_logistic": partial(check_levels, "discretized_logistic"),
    "discretized_logistic_mixture": partial(check_levels, "discretized_logistic_mixture", data_shape=(2, 1, 1)),
    "categorical": partial(check_levels, "categorical"),
}


@pytest.mark.parametrize("name", registry.names("likelihood"))
def test_every_likelihood_is_normalised_or_says_it_is_not(name):
    NORMALISATION[name]()


def test_bernoulli_known_answers():
    params = torch.tensor([[[0.8, 0.25, 0.5]]], dtype=torch.float64).logit()
    p = registry.build("likelihood", "bernoulli")(params)
    for x, product in (((1, 1, 1), 0.8 * 0.25 * 0.5), ((0, 1, 0), 0.2 * 0.25 * 0.5), ((1, 0, 1), 0.8 * 0.75 * 0.5)):
        found = p.log_prob(torch.tensor([x], dtype=torch.float64)).item()
        assert found == pytest.approx(math.log(product), abs=1e-14)


def test_bernoulli_is_finite_for_extreme_parameters():
    p = registry.build("likelihood", "bernoulli")(torch.tensor([1e4, -1e4]).view(1, 1, 2))
    assert p.log_prob(torch.tensor([[1.0, 0.0]])).item() == 0
    assert p.log_prob(torch.tensor([[0.0, 0.0]])).item() == -1e4


def test_grey_cross_entropy_is_the_expected_log_probability_of_random_binarisations():
    x = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)
    params = torch.randn(1, 1, 4, dtype=torch.float64)
    binary = all_binary(4)
    probability = torch.where(binary == 1, x, 1 - x).prod(1)
    scores = registry.build("likelihood", "bernoulli")(params.expand(1, 16, 4)).log_prob(binary)[0]
    found = registry.build("likelihood", "bernoulli_relaxed")(params).log_prob(x[None]).item()
    assert found == pytest.approx((probability * scores).sum().item(), abs=1e-12)


def test_bernoulli_refuses_grey_levels_outside_a_training_step():
    p = registry.build("likelihood", "bernoulli")
    grey, params = torch.tensor([[0.0, 0.5]]), torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match="support"):
        p(params).log_prob(grey)
    with pytest.raises(RuntimeError, match="inside"), unchecked():
        p(params).log_prob(grey)
        raise RuntimeError("inside")
    with pytest.raises(ValueError, match="support"):  # the checks are back, whatever happened inside
        p(params).log_prob(grey)


def test_relaxed_bernoulli_refuses_values_outside_the_unit_interval():
    with pytest.raises(ValueError, match="support"):
        registry.build("likelihood", "bernoulli_relaxed")(torch.zeros(1, 1, 1)).log_prob(torch.tensor([[1.5]]))


def test_gaussian_keeps_its_constants_and_learns_its_scale():
    """log p = -SSE / (2 s^2) - D/2 log(2 pi s^2); the best scale of a residual is its root mean square."""
    x, mean = torch.randn(5, 4, dtype=torch.float64), torch.randn(1, 5, 4, dtype=torch.float64)
    for scale, precision in ((1.0, 1e-12), (0.25, 1e-7)):  # log 1 is exact in the float32 that holds it
        fixed = registry.build("likelihood", "gaussian", scale=scale).double()
        known = -(x - mean).square().sum(2) / (2 * scale**2) - 2 * math.log(2 * math.pi * scale**2)
        torch.testing.assert_close(fixed(mean).log_prob(x), known, rtol=precision, atol=0)
        assert not list(fixed.parameters())
    learned = registry.build("likelihood", "gaussian").double()
    with torch.no_grad():
        learned.log_scale.fill_(0.5 * (x - mean).square().mean().log())
    (gradient,) = torch.autograd.grad(learned(mean).log_prob(x).sum(), learned.log_scale)
    assert gradient.item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_gaussian_refuses_a_scale_that_is_none(scale):
    with pytest.raises(ValueError, match="positive"):
        registry.build("likelihood", "gaussian", scale=scale)


# ------------------------------------------------------------------------------------------------ divergences
def gaussian_pair() -> tuple[Independent, Independent]:
    torch.manual_seed(5)
    q = registry.build("posterior", "gaussian")(torch.randn(6, 8, dtype=torch.float64))
    return q, registry.build("prior", "standard_normal", latent_shape=(4,)).double()()


def check_gaussian_standard_normal() -> None:
    q, p = gaussian_pair()
    draws = q.sample((200_000,))
    found = Latent(draws[:1], q, p).kl()[0]
    mu, log_variance = q.mean, q.variance.log()
    closed = -0.5 * (1 + log_variance - mu.square() - log_variance.exp()).sum(1)
    torch.testing.assert_close(found, closed, rtol=1e-12, atol=1e-14)
    standard = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    dense = kl_divergence(MultivariateNormal(mu, torch.diag_embed(q.variance)), standard)
    torch.testing.assert_close(found, dense, rtol=1e-12, atol=1e-12)
    assert sigmas(q.log_prob(draws) - p.log_prob(draws), found) < SIGMAS
    grid = mu[..., None] + q.stddev[..., None] * torch.linspace(-12, 12, 4001, dtype=torch.float64)
    one = Normal(mu[..., None], q.stddev[..., None])
    integrand = one.log_prob(grid).exp() * (one.log_prob(grid) - Normal(0.0, 1.0).log_prob(grid))
    torch.testing.assert_close(found, torch.trapezoid(integrand, grid).sum(1), rtol=0, atol=1e-8)


def check_there_is_none(posterior: str, prior: str) -> None:
    """A point has no density and a plain autoencoder no prior: asking is an error, never a number."""
    head = registry.build("posterior", posterior)
    q = head(torch.randn(3, head.channels(4), dtype=torch.float64))
    made = registry.build("prior", prior, **({} if prior == "none" else {"latent_shape": (4,)})).double()
    with pytest.raises(NotImplementedError, match=r"no prior|no density"):
        Latent(q.rsample((2,)), q, made()).kl()


def check_by_draws(prior: str) -> None:
    """No closed form: log q - log p at the draws, whose mean for a prior that is still N(0, I) is the known KL; the gradient
    reaches q."""
    q, standard = gaussian_pair()
    p = registry.build("prior", prior, latent_shape=(4,)).double()()
    draws = q.sample((4_000,))
    latent = Latent(draws, q, p)
    torch.testing.assert_close(latent.kl(), q.log_prob(draws) - p.log_prob(draws), rtol=1e-12, atol=1e-12)
    assert sigmas(latent.kl(), kl_divergence(q, standard)) < SIGMAS
    mean = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    moved = diagonal_normal(mean, q.stddev, 1)
    z = moved.rsample((1,))
    (gradient,) = torch.autograd.grad(Latent(z, moved, p).kl().sum(), mean)
    torch.testing.assert_close(gradient, z[0], rtol=1e-9, atol=1e-9)  # of |z|^2 / 2


KL = {
    ("gaussian", "standard_normal"): check_gaussian_standard_normal,
    ("gaussian", "mixture"): partial(check_by_draws, "mixture"),
    ("gaussian", "coupling_flow"): partial(check_by_draws, "coupling_flow"),
    ("gaussian", "flow_matching"): partial(check_there_is_none, "gaussian", "flow_matching"),
    ("dirac", "flow_matching"): partial(check_there_is_none, "dirac", "flow_matching"),
    ("dirac", "mixture"): partial(check_there_is_none, "dirac", "mixture"),
    ("dirac", "coupling_flow"): partial(check_there_is_none, "dirac", "coupling_flow"),
    ("gaussian", "none"): partial(check_there_is_none, "gaussian", "none"),
    ("dirac", "none"): partial(check_there_is_none, "dirac", "none"),
    ("dirac", "standard_normal"): partial(check_there_is_none, "dirac", "standard_normal"),
}


PAIRS = list(itertools.product(registry.names("posterior"), registry.names("prior")))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_kl_against_torch_monte_carlo_and_quadrature(pair):
    KL[pair]()


def test_kl_of_a_distribution_with_itself_is_zero_and_of_others_is_not_negative():
    q, p = gaussian_pair()
    assert (kl_divergence(q, q) == 0).all()
    standard = registry.build("posterior", "gaussian")(torch.zeros(1, 8, dtype=torch.float64))
    assert Latent(torch.zeros(2, 1, 4).double(), standard, p).kl().tolist() == [[0.0], [0.0]]
    many = registry.build("posterior", "gaussian")(3 * torch.randn(10_000, 8, dtype=torch.float64))
    assert (Latent(torch.zeros(1, 10_000, 4).double(), many, p).kl() >= 0).all()


def test_kl_falls_back_to_the_sampled_log_ratio_where_torch_knows_no_pair():
    q = diagonal_normal(torch.zeros(3, 2).double(), torch.ones(3, 2).double(), 1)
    p = Independent(torch.distributions.StudentT(torch.full((2,), 5.0).double()), 1)
    z = q.sample((4,))
    torch.testing.assert_close(Latent(z, q, p).kl(), q.log_prob(z) - p.log_prob(z))


# ------------------------------------------------------------------------------------------------ gradients
def smooth_model(seed: int = 0, dimensions: int = 3) -> Autoencoder:
    torch.manual_seed(seed)
    spec = DataSpec(name="smooth", shape=(dimensions,), values="real")
    return build_model(model_config(2, depth=1, width=3, activation="tanh"), spec).double()


GRADIENTS = {
    "elbo": [ELBO(), ELBO(beta=4.0), ELBO(beta=0.5, warmup_steps=4)],
    "iwae": [IWAE(samples=1), IWAE(samples=4, gradient="total")],
    "reconstruction": [
        Reconstruction(),
        Reconstruction(noise="gaussian", level=0.4),
        Reconstruction(contractive=0.3, jacobian="hutchinson", probes=2),
    ],
    "asymmetric": [Asymmetric(), Asymmetric(slope=1.0)],
}


@pytest.mark.parametrize("name", registry.names("objective"))
def test_gradcheck_of_every_objective(name):
    """Derivatives of every term against finite differences, the noise frozen by its seed."""
    for objective in GRADIENTS[name]:
        model = smooth_model()
        names, values = zip(*model.named_parameters())
        x = torch.randn(2, 3, dtype=torch.float64)

        def terms(*parameters: Tensor, model=model, names=names, x=x, objective=objective) -> tuple[Tensor, ...]:
            torch.manual_seed(9)
            state = {f"model.{name}": parameter for name, parameter in zip(names, parameters)}
            return tuple(torch.func.functional_call(Call(model, objective), state, (x,)).values())

        assert torch.autograd.gradcheck(terms, values, atol=1e-6, rtol=1e-6)


class Call(torch.nn.Module):
    def __init__(self, model: Autoencoder, objective: ELBO | IWAE) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.objective(self.model, x, None, 2)


def gradients(model: Autoencoder, objective: ELBO | IWAE, x: Tensor, seed: int, part: str) -> Tensor:
    torch.manual_seed(seed)
    loss = objective(model, x)["loss"].mean()
    parameters = [p for name, p in model.named_parameters() if name.startswith(part)]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def test_dreg_is_its_formula():
    """Encoder gradient: -sum_s wn_s^2 (d log w_s / d z_s) (d z_s / d phi), wn the normalised weights, without q's score."""
    model, x, samples = smooth_model(), torch.randn(5, 3, dtype=torch.float64), 6
    found = gradients(model, IWAE(samples, "dreg"), x, 11, "encoder")
    torch.manual_seed(11)
    q = model.encode(x)
    z = q.rsample((samples,))
    free = z.detach().requires_grad_()
    constant = diagonal_normal(q.mean.detach(), q.stddev.detach(), 1)
    log_w = model.decode(free).log_prob(x) + model.prior().log_prob(free) - constant.log_prob(free)
    (towards_z,) = torch.autograd.grad(log_w.sum(), free)
    surrogate = -(log_w.softmax(0).square()[..., None] * towards_z).detach() * z / len(x)
    known = torch.autograd.grad(surrogate.sum(), list(model.encoder.parameters()))
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in known]), rtol=1e-10, atol=1e-14)


def test_dreg_and_total_gradients_agree_in_the_mean_and_dreg_varies_less():
    model, x = smooth_model(), torch.randn(1, 3, dtype=torch.float64).expand(64, 3)
    total, dreg = (
        torch.stack([gradients(model, IWAE(8, kind), x, seed, "encoder") for seed in seeds])
        for kind, seeds in (("total", range(400)), ("dreg", range(400, 800)))
    )
    se = torch.sqrt(total.var(0) / 400 + dreg.var(0) / 400)
    assert ((total.mean(0) - dreg.mean(0)).abs() < SIGMAS * se).all()
    assert (total.mean(0).abs() > SIGMAS * se).any()  # there is a gradient to agree on
    assert dreg.var(0).sum() < 0.8 * total.var(0).sum()
    same = [gradients(model, IWAE(8, kind), x, 5, "decoder") for kind in ("total", "dreg")]
    torch.testing.assert_close(*same, rtol=1e-12, atol=1e-15)


def test_dreg_encoder_gradient_vanishes_at_the_exact_posterior():
    model, x = linear_model(16).requires_grad_(True), draw_x(16, 6)
    assert gradients(model, IWAE(5, "dreg"), x, 0, "encoder").abs().max() < 1e-10
    assert gradients(model, IWAE(5, "total"), x, 0, "encoder").abs().max() > 1e-3


def test_dreg_refuses_more_than_one_latent():
    inference = smooth_model()(torch.zeros(2, 3).double(), samples=2)
    twice = type(inference)(inference.likelihood, inference.latents * 2)
    with pytest.raises(ValueError, match="one latent"):
        IWAE(2, "dreg").terms(twice, torch.zeros(2, 3).double())


def test_iwae_with_one_sample_is_the_elbo_in_the_mean():
    model, x = smooth_model(), torch.randn(1, 3, dtype=torch.float64).expand(20_000, 3)
    with torch.no_grad():
        one, elbo = IWAE(samples=1)(model, x)["loss"], ELBO()(model, x)["loss"]
    difference, se = (one.mean() - elbo.mean()).item(), math.sqrt((one.var() + elbo.var()).item() / 20_000)
    assert abs(difference) < SIGMAS * se < 0.1
    small = x[:64]
    first, second = (
        torch.stack([gradients(model, objective, small, seed + offset, "encoder") for seed in range(300)])
        for objective, offset in ((IWAE(samples=1), 0), (ELBO(), 1000))
    )
    assert ((first.mean(0) - second.mean(0)).abs() < SIGMAS * torch.sqrt((first.var(0) + second.var(0)) / 300)).all()


def test_log_weight_of_one_sample_serves_iwae_and_importance_sampling_alike():
    model, x = smooth_model(), torch.randn(4, 3, dtype=torch.float64)
    log_w = importance_log_weights(model, x, range(4), 6, seed=2)
    inference = keyed_inference(model, x, range(4), 6, seed=2)
    torch.testing.assert_close(inference.log_weight(x).detach(), log_w, rtol=1e-13, atol=1e-13)
    bound = -IWAE(6).terms(inference, x)["loss"].detach()
    torch.testing.assert_close(bound, log_mean_exp(log_w), rtol=1e-13, atol=1e-13)


# ------------------------------------------------------------------------------------------------ statistics
def test_log_mean_exp_known_answers_and_no_overflow():
    log_w = torch.tensor([[math.log(1.0), 1e4], [math.log(3.0), 1e4]], dtype=torch.float64)
    torch.testing.assert_close(log_mean_exp(log_w), torch.tensor([math.log(2.0), 1e4], dtype=torch.float64))
    assert log_mean_exp(torch.tensor([-1e4, -1e4])).item() == -1e4


def test_blocked_log_mean_exp():
    w = torch.tensor([1.0, 3.0, 2.0, 8.0, 999.0], dtype=torch.float64)[:, None]
    two_blocks = (math.log(2) + math.log(5)) / 2  # the rest is left out
    assert blocked_log_mean_exp(w.log(), 2).item() == pytest.approx(two_blocks)
    assert blocked_log_mean_exp(w.log(), 1).item() == pytest.approx(w.log().mean().item())
    torch.testing.assert_close(blocked_log_mean_exp(w.log(), 5), log_mean_exp(w.log()))


def test_effective_sample_size():
    w = torch.tensor([[1.0, 1.0, 5.0], [2.0, 1.0, 0.0], [3.0, 1.0, 0.0]], dtype=torch.float64)
    known = torch.tensor([36 / 14, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(effective_sample_size(w.log()), known)
    torch.testing.assert_close(effective_sample_size(w.log() - 2000), known)


def test_log_p_variance_against_simulation():
    """The delta method's variance of log mean w, K = 200 log-normal weights: within 10 % of 4,000 repetitions."""
    log_w = 0.5 * torch.randn(200, 4000, dtype=torch.float64)
    claimed, seen = log_p_variance(log_w).mean().item(), log_mean_exp(log_w).var().item()
    assert claimed == pytest.approx(seen, rel=0.1)
    assert claimed == pytest.approx(math.expm1(0.25) / 200, rel=0.1)
    assert log_p_variance(log_w[:1]).tolist() == [0.0] * 4000
    torch.testing.assert_close(log_p_variance(log_w - 5000), log_p_variance(log_w), rtol=1e-9, atol=0)


def test_mean_and_se():
    assert mean_and_se(torch.tensor([1.0, 2.0, 3.0, 4.0]).double()) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))
    for few in ([], [1.0]):
        with pytest.raises(ValueError, match="two"):
            mean_and_se(torch.tensor(few))


def test_stratified_takes_equal_numbers_of_each_class():
    labels = torch.arange(1000) % 10
    index = stratified(labels, 1000, 500, seed=0)
    assert torch.bincount(labels[index]).tolist() == [50] * 10
    assert torch.bincount(labels[stratified(labels, 1000, 503, seed=0)]).max() == 51
    assert not torch.equal(index, stratified(labels, 1000, 500, seed=1))
    rare = torch.tensor([0] * 95 + [1] * 5)
    assert torch.bincount(rare[stratified(rare, 100, 50, seed=0)]).tolist() == [45, 5]
    with pytest.raises(UsageError, match="there are 10"):
        stratified(None, 10, 11, seed=0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_stratified_properties(data):
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=40)))
    total = len(labels)
    count = data.draw(st.integers(1, total))
    given_labels = data.draw(st.sampled_from([labels, None]))
    index = stratified(given_labels, total, count, seed=data.draw(st.integers(0, 5)))
    assert len(index) == count == len(index.unique())
    assert torch.equal(index, index.sort().values)
    assert 0 <= index.min() <= index.max() < total
    if given_labels is not None:
        there, taken = torch.bincount(labels, minlength=4), torch.bincount(labels[index], minlength=4)
        assert (taken <= there).all()
        unfinished = taken < there  # only a class that is used up falls short of others
        assert not unfinished.any() or taken.max() - taken[unfinished].min() <= 1


def test_stratified_draws_are_uniform_within_a_class():
    """Each of 20 images of a class is among 5 taken with probability 1/4: 2,000 seeds, 5 sigma."""
    labels = torch.arange(40) % 2
    counts = sum(torch.bincount(stratified(labels, 40, 10, seed), minlength=40) for seed in range(2000))
    assert ((counts / 2000 - 0.25).abs() < SIGMAS * math.sqrt(0.25 * 0.75 / 2000)).all()


def test_keyed_draws_are_the_posteriors():
    """Draws keyed by image have q's mean and standard deviation, and different images' draws are uncorrelated."""
    model, x = linear_model(4, SHIFT, SPREAD), draw_x(4, 2)
    z = keyed_inference(model, x, [0, 1], 40_000, seed=4).latents[0].sample
    standardised = (z - model.encode(x).mean) / (SPREAD * posterior_variance().sqrt())
    assert sigmas(standardised) < SIGMAS
    assert sigmas(standardised.square(), 1.0) < SIGMAS
    assert sigmas(standardised[:, 0] * standardised[:, 1]) < SIGMAS


def test_unchecked_leaves_numbers_alone():
    p, x = Bernoulli(logits=torch.randn(5)), torch.ones(5)
    with unchecked():
        inside = p.log_prob(x)
    assert torch.equal(inside, p.log_prob(x))


# ------------------------------------------------------------------------------------------------ the shipped trainer
def train_linear_vae(out: Path) -> tuple[runs.Run, Dataset]:
    config = resolve("linear-vae").config
    dataset = load(config.data.name, config.data.params, Access(offline=True))
    return train(config, out=out, data=dataset, device="cpu"), dataset


def probabilistic_pca(x: Tensor, latent: int) -> tuple[float, Tensor, float]:
    """Tipping & Bishop's maximum: mean log-likelihood of the data x, principal axes (D, d), sigma."""
    count, dimensions = x.shape
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / count)
    values, vectors = values.flip(0), vectors.flip(1)
    noise = values[latent:].mean()
    log_det = values[:latent].log().sum() + (dimensions - latent) * noise.log()
    best = -0.5 * (dimensions * math.log(2 * math.pi) + log_det + dimensions)
    return best.item(), vectors[:, :latent], noise.sqrt().item()


def linear_elbo(model: Autoencoder, x: Tensor) -> Tensor:
    """The exact ELBO (N,) of any linear model: the spread of z costs tr(W S W') / (2 sigma^2)."""
    q, weight = model.encode(x), model.decoder.layers[-1].weight
    sigma2 = model.likelihood.log_scale.exp() ** 2
    spread = (q.variance * weight.square().sum(0)).sum(1) / (2 * sigma2)
    return model.decode(q.mean[None]).log_prob(x)[0] - spread - kl_divergence(q, model.prior())


def test_linear_vae_trained_by_the_shipped_trainer_reaches_probabilistic_pca(tmp_path):
    """Within 0.01 nats a dimension of the optimum on its training data, axes within 1 degree, sigma within 2 %.

    Reference: Lucas et al., Don't blame the ELBO! (2019), arXiv:1911.02469.
    """
    run, dataset = train_linear_vae(tmp_path / "run")
    x = dataset.train.values.double()
    best, axes, sigma = probabilistic_pca(x, 3)
    model = run.model().double()
    with torch.no_grad():
        elbo = linear_elbo(model, x).mean().item()
        weight = model.decoder.layers[-1].weight
    assert elbo <= best + 1e-9  # no linear model is better than the maximum
    assert (best - elbo) / 16 < 0.01
    cosines = torch.linalg.svdvals(torch.linalg.qr(weight)[0].T @ axes)
    assert math.degrees(math.acos(min(1.0, cosines.min().item()))) < 1
    assert model.likelihood.log_scale.exp().item() == pytest.approx(sigma, rel=0.02)
    measured = evaluate(run, Settings(k=500, images=50, curve_images=0, probes=False), data=dataset, device="cpu")
    assert measured["active_units"]["value"] == 3
    assert measured["elbo"]["unit"] == "nats/example"
