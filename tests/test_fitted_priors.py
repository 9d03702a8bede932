"""Priors that are fitted to codes: the mixture by expectation maximisation, the coupling flow; densities against known answers.

Statistical checks are 5-sigma with fixed seeds: on fresh seeds each number checked would fail a correct program once in
1.7 million times.
"""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from diabolo import registry
from diabolo.data.spec import DataSpec
from diabolo.errors import DataError, UsageError
from diabolo.models.build import build_model, build_objective, check_objective
from diabolo.models.coupling import Coupling, CouplingFlow
from diabolo.models.distributions import temper
from diabolo.models.mixture import MOST_ROUNDS, MixturePrior, cholesky, expectation_maximisation
from diabolo.models.priors import Prior
from known import SIGMAS, model_config, sigmas

torch.set_num_threads(1)
FITTED = [name for name in registry.names("prior") if registry.get("prior", name).fitted_by != "nothing"]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def known_mixture() -> MixtureSameFamily:
    """Three components in two dimensions, more than 6 standard deviations apart."""
    means = torch.tensor([[-6.0, 0.0], [5.0, 5.0], [6.0, -5.0]], dtype=torch.float64)
    factors = torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[0.5, 0.0], [0.0, 1.5]], [[1.0, 0.0], [-0.5, 0.3]]]).double()
    return MixtureSameFamily(
        Categorical(torch.tensor([0.2, 0.5, 0.3]).double()), MultivariateNormal(means, scale_tril=factors)
    )


def classes_of_codes(count: int = 1200, shape: tuple[int, ...] = (2, 1, 2)) -> tuple[Tensor, Tensor]:
    """Codes of three classes of unequal size and other mean and covariance, with skew in all of them."""
    y = torch.arange(count) % 6 % 4 % 3  # 1/2, 1/3 and 1/6 of them
    z = draw(count, math.prod(shape))
    z = z @ draw(z.shape[1], z.shape[1]) + 0.3 * z.square() + y[:, None] * draw(z.shape[1])
    return z.unflatten(1, shape), y


def perturbed(prior: Prior, by: float = 0.3) -> Prior:
    """As if it were trained: no parameter is what it started as."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return prior


def flow(d: int = 2, classes: int = 0, by: float = 0.3) -> CouplingFlow:
    made = perturbed(CouplingFlow((d,), classes, layers=3, width=8).double(), by)
    assert isinstance(made, CouplingFlow)
    return made


# ------------------------------------------------------------------------------------------------ the mixture
def fitted_mixture(components: int = 2) -> tuple[MixturePrior, Tensor, Tensor]:
    z, y = classes_of_codes()
    prior = MixturePrior((2, 1, 2), classes=3, components=components).double()
    prior.initialise(z, y)
    return prior, z, y


def test_the_density_of_a_mixture_is_torch_s():
    prior, z, y = fitted_mixture()
    parts = MultivariateNormal(prior.means, scale_tril=prior.factors)
    whole = MixtureSameFamily(Categorical(prior.weights), parts)
    torch.testing.assert_close(prior().log_prob(z), whole.log_prob(z.flatten(1)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prior().mean.flatten(), whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prior().variance.flatten(), whole.variance, rtol=1e-12, atol=1e-12)
    samples = z[:10].expand(7, *z[:10].shape)
    assert prior(y[:10]).log_prob(samples).shape == (7, 10)
    for c in range(3):
        own = slice(2 * c, 2 * c + 2)
        one = MixtureSameFamily(
            Categorical(prior.weights[own]), MultivariateNormal(prior.means[own], scale_tril=prior.factors[own])
        )
        found = prior(torch.full((len(z),), c)).log_prob(z)
        torch.testing.assert_close(found, one.log_prob(z.flatten(1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strength", [0.0, 5.0])
def test_expectation_maximisation_never_decreases_what_it_maximises(strength):
    z = torch.cat([draw(300, 3), 2 * draw(200, 3) @ draw(3, 3) + 1])
    fit = expectation_maximisation(z, 4, torch.eye(3).double(), strength)
    assert 5 < len(fit.path) <= MOST_ROUNDS
    assert all(b >= a - 1e-12 for a, b in zip(fit.path, fit.path[1:]))
    parts = MultivariateNormal(fit.means, scale_tril=fit.factors)
    likelihood = MixtureSameFamily(Categorical(fit.weights), parts).log_prob(z).mean()
    penalty = sum(torch.logdet(c) + torch.linalg.inv(c).trace() for c in parts.covariance_matrix)
    assert fit.path[-1] == pytest.approx((likelihood - strength / 2 * penalty / len(z)).item(), rel=1e-12)
    again = expectation_maximisation(z, 4, torch.eye(3).double(), strength)
    assert torch.equal(again.means, fit.means)


def test_expectation_maximisation_finds_a_known_mixture():
    """Weights, means and covariances within 5 standard errors of 20,000 codes whose component could be seen from each code."""
    truth, n = known_mixture(), 20_000
    z = truth.sample((n,))
    prior = MixturePrior((2,), components=3, shrinkage=0.0).double()
    prior.initialise(z)
    order = [int((prior.means - mean).norm(dim=1).argmin()) for mean in truth.component_distribution.mean]
    assert sorted(order) == [0, 1, 2]
    weights, means = truth.mixture_distribution.probs, truth.component_distribution.mean
    covariances = truth.component_distribution.covariance_matrix
    found = prior.factors[order] @ prior.factors[order].mT
    variances = covariances.diagonal(dim1=1, dim2=2)
    assert ((prior.weights[order] - weights).abs() < SIGMAS * (weights * (1 - weights) / n).sqrt()).all()
    assert ((prior.means[order] - means).abs() < SIGMAS * (variances / (n * weights)[:, None]).sqrt()).all()
    spread = (covariances.square() + variances[:, :, None] * variances[:, None, :]) / (n * weights)[:, None, None]
    assert ((found - covariances).abs() < SIGMAS * spread.sqrt()).all()


def test_one_component_is_the_shrunk_covariance_in_closed_form():
    z, target = draw(30, 4) @ draw(4, 4), torch.eye(4).double()
    for strength in (0.0, 12.0):
        fit = expectation_maximisation(z, 1, target, strength)
        expected = (30 * z.T.cov(correction=0) + strength * target) / (30 + strength)
        torch.testing.assert_close(fit.factors[0] @ fit.factors[0].T, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(fit.means[0], z.mean(0), rtol=1e-12, atol=1e-12)


def test_a_class_is_fitted_to_its_own_codes_alone():
    prior, z, y = fitted_mixture(components=1)
    counts = torch.bincount(y)
    assert counts.tolist() == [600, 400, 200]
    torch.testing.assert_close(prior.weights, counts / 1200.0, rtol=1e-6, atol=0, check_dtype=False)
    for c in range(3):
        torch.testing.assert_close(prior.means[c], z[y == c].flatten(1).mean(0), rtol=1e-12, atol=1e-12)
    moved, before = z.clone(), prior.means[:2].clone()
    moved[y == 2] += 100
    prior.initialise(moved, y)
    torch.testing.assert_close(prior.means[:2], before)
    own, other = prior(torch.full((600,), 0)), prior(torch.full((600,), 1))
    assert own.log_prob(z[y == 0]).mean() > other.log_prob(z[y == 0]).mean()


def test_fewer_codes_than_dimensions_are_enough():
    """12 codes a class in 20 dimensions: what all classes share keeps each covariance positive definite."""
    z, y = draw(36, 20), torch.arange(36) % 3
    prior = MixturePrior((20,), classes=3, components=2).double()
    prior.initialise(z, y)
    assert prior(y).log_prob(z).isfinite().all()
    with pytest.raises(UsageError, match="singular"):
        MixturePrior((20,), classes=3, components=1, shrinkage=0.0).double().initialise(z, y)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_of_a_mixture_have_its_moments(temperature):
    prior, _, _ = fitted_mixture()
    for p, count in ((prior(), 20_000), (prior(torch.full((20_000,), 2)), None)):
        p = temper(p, temperature)
        draws = p.sample() if count is None else p.expand((count,)).sample()
        assert draws.shape == (20_000, 2, 1, 2)
        mean, variance = (moment if count else moment[0] for moment in (p.mean, p.variance))
        assert sigmas(draws, mean) < SIGMAS
        assert sigmas((draws - mean).square(), variance) < SIGMAS


# ------------------------------------------------------------------------------------------------ the coupling flow
@pytest.mark.parametrize(("d", "classes"), [(2, 0), (5, 3)])
def test_a_flow_is_inverted_and_its_determinant_is_the_jacobian_s(d, classes):
    prior = flow(d, classes)
    z = 3 * draw(12, d) @ draw(d, d) + 1
    y = torch.arange(12) % classes if classes else None
    prior.flow.initialise(z, y)
    perturbed(prior)
    noise, log_det = prior.flow(z, y)
    torch.testing.assert_close(prior.flow.inverse(noise, y), z, rtol=1e-10, atol=1e-10)
    for i in range(12):
        label = None if y is None else y[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, label=label: prior.flow(v[None], label)[0][0], z[i])
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-10, atol=1e-10)


def test_the_determinant_of_a_flow_is_not_of_half_precision_under_autocast():
    """Log-scales near 1 and -1, whose sum is far below the steps of bfloat16 at either of them."""
    coupling = Coupling(4, 0, 8)
    with torch.no_grad():
        coupling.rest[-1].bias.copy_(torch.tensor([1.01, -1, 0, 0]))
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    exact = coupling(z, None)[1]
    with torch.autocast("cpu", torch.bfloat16):
        h, log_det = coupling(z, None)
    assert h.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(log_det, exact, rtol=0, atol=2**-8)


@pytest.mark.parametrize("classes", [0, 2])
@torch.no_grad()
def test_the_density_of_a_flow_integrates_to_one_and_its_draws_follow_it(classes):
    """The share of 20,000 draws in each of 16 cells of the plane, within 5 standard errors of the density's sum over it."""
    prior = flow(2, classes, by=0.2)
    prior.frequencies.copy_(torch.tensor([0.7, 0.3]) if classes else torch.ones(1))
    step, axis = 0.1, torch.arange(-10, 10, 0.1, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    edges = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) - step / 2  # between two points of the grid
    for p in (prior(), prior(torch.zeros((), dtype=torch.long)), temper(prior(), 0.7)):
        density = p.log_prob(grid).exp() * step**2
        assert density.sum().item() == pytest.approx(1, abs=1e-4)  # the plane goes on
        cells, found = ((torch.bucketize(v, edges) * torch.tensor([4, 1])).sum(1) for v in (grid, p.sample((20_000,))))
        expected = torch.zeros(16, dtype=torch.float64).index_add(0, cells, density)
        shares = torch.bincount(found, minlength=16) / 20_000
        assert ((shares - expected).abs() < SIGMAS * (expected * (1 - expected) / 20_000).sqrt() + 1e-4).all()


@pytest.mark.parametrize("classes", [0, 3])
def test_a_flow_starts_by_whitening_the_codes(classes):
    z, y = classes_of_codes()
    prior = CouplingFlow((2, 1, 2), classes, layers=2, width=8).double()
    prior.initialise(z, y)
    with torch.no_grad():
        noise, _ = prior.flow(z.flatten(1), y if classes else None)
    parts = [noise[y == c] for c in range(3)] if classes else [noise]
    for part in parts:
        torch.testing.assert_close(part.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(part.var(0, correction=0), torch.ones(4).double(), rtol=1e-6, atol=0)
    if not classes:
        gaussian = MultivariateNormal(z.flatten(1).mean(0), z.flatten(1).T.cov(correction=0))
        torch.testing.assert_close(noise.T.cov(correction=0), torch.eye(4).double(), rtol=0, atol=1e-4)
        torch.testing.assert_close(prior().log_prob(z), gaussian.log_prob(z.flatten(1)), rtol=0, atol=1e-3)


def test_without_classes_a_flow_is_the_mixture_over_them():
    prior, z = flow(4, 3), draw(20, 4)
    prior.frequencies.copy_(torch.tensor([0.5, 0.3, 0.2]))
    each = torch.stack([prior(torch.full((20,), c)).log_prob(z) for c in range(3)])
    expected = (prior.frequencies.log()[:, None] + each).logsumexp(0)
    torch.testing.assert_close(prior().log_prob(z), expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(each[0], each[1])
    samples = z.expand(5, 20, 4)
    torch.testing.assert_close(prior(torch.arange(20) % 3).log_prob(samples)[4, ::3], each[0, ::3])


def test_a_few_steps_of_fitting_find_what_a_gaussian_misses():
    """Codes on a parabola, of which a Gaussian knows no more than the covariance; new codes are scored."""

    def codes(n: int) -> Tensor:
        z = torch.randn(n, 2)
        return torch.stack([z[:, 0], z[:, 0].square() + 0.3 * z[:, 1]], 1)

    prior, z = CouplingFlow((2,), layers=4, width=32), codes(500)
    prior.initialise(z)
    held_out = codes(2000)
    before = prior.fit_loss(held_out).mean()
    optimiser = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        prior.fit_loss(z).mean().backward()
        optimiser.step()
    assert prior.fit_loss(held_out).mean() < before - 0.5


# ------------------------------------------------------------------------------------------------ both
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("name", ["mixture", "coupling_flow"])
def test_a_prior_is_standard_normal_before_it_is_fitted_and_comes_back_from_its_state(name, classes, tmp_path):
    z, y = classes_of_codes()
    z = z.float()
    made = [registry.build("prior", name, latent_shape=(2, 1, 2), classes=classes) for _ in range(2)]
    standard = registry.build("prior", "standard_normal", latent_shape=(2, 1, 2))().log_prob(z)
    torch.testing.assert_close(made[0]().log_prob(z), standard, rtol=1e-5, atol=1e-4)
    made[0].initialise(z, y)
    perturbed(made[0])
    save_file(made[0].state_dict(), tmp_path / "prior.safetensors")
    made[1].load_state_dict(load_file(tmp_path / "prior.safetensors"))
    for given in (None, y):
        assert torch.equal(made[0](given).log_prob(z), made[1](given).log_prob(z))
        assert not torch.equal(made[0](given).log_prob(z), standard)


@pytest.mark.parametrize("name", ["mixture", "coupling_flow"])
def test_without_per_class_the_classes_are_ignored(name):
    z, y = classes_of_codes()
    prior = registry.build("prior", name, latent_shape=(2, 1, 2), classes=3, per_class=False).double()
    prior.initialise(z)
    assert torch.equal(prior(y).log_prob(z), prior().log_prob(z))
    assert prior(y).expand((5,)).sample().shape == (5, 2, 1, 2)


@pytest.mark.parametrize("name", ["mixture", "coupling_flow"])
def test_codes_that_nothing_can_be_fitted_to_are_refused(name):
    z, y = classes_of_codes()
    prior = registry.build("prior", name, latent_shape=(2, 1, 2), classes=3).double()
    for labels, message in ((None, "needs the classes"), (y.clamp(max=1), "no codes of class 2")):
        with pytest.raises(UsageError, match=message):
            prior.initialise(z, labels)
    with pytest.raises(DataError, match="all the same"):
        prior.initialise(torch.zeros_like(z), y)
    with pytest.raises(UsageError, match="singular"):
        cholesky(torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("mixture", {"components": 0}),
        ("mixture", {"shrinkage": -1.0}),
        ("mixture", {"shrinkage": math.nan}),
        ("coupling_flow", {"layers": 0}),
        ("coupling_flow", {"width": 0}),
        ("coupling_flow", {"latent_shape": (1,)}),
    ],
)
def test_parameters_that_mean_nothing_are_refused(name, params):
    with pytest.raises(ValueError, match="at least"):
        registry.build("prior", name, **{"latent_shape": (3,), **params})


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("objective", ["elbo", "iwae", "reconstruction"])
def test_no_objective_trains_a_model_against_a_prior_that_is_fitted_afterwards(name, objective):
    spec = DataSpec(name="d", shape=(4,), values="real")
    model = build_model({**model_config(2, width=4), "prior": {"name": name}}, spec)
    with pytest.raises(UsageError, match=r"Take model\.prior="):
        check_objective(model, build_objective({"name": objective}, spec))


def test_too_few_codes_for_the_components_are_refused():
    with pytest.raises(UsageError, match="5 components for 3 codes"):
        expectation_maximisation(draw(3, 2), 5, torch.eye(2).double(), 1.0)
