"""The flow-matching prior against closed forms: what it transports, what its loss is, what guidance and dropped labels do.

Statistical checks are 5-sigma with fixed seeds: on fresh seeds each number checked would fail a correct program once in
1.7 million times.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diabolo.errors import DataError
from diabolo.models.distributions import guide, temper
from diabolo.models.flow_matching import FlowMatching, Velocity
from known import SIGMAS, sigmas

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def flow(shape: tuple[int, ...] = (3,), classes: int = 0, **given: int) -> FlowMatching:
    return FlowMatching(shape, classes, **{"width": 8, "depth": 1, "heads": 2, "steps": 4, **given}).double()


class Exact(nn.Module):
    """E[e - z | z_t] for codes z ~ N(m, S) and noise e ~ N(0, I), z_t = (1 - t) z + t e."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        self.mean, self.covariance = mean, covariance

    def gain(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Cov(e - z, z_t) and Cov(z_t), both (N, d, d), at times t (N,)."""
        t, eye = t[:, None, None], torch.eye(len(self.mean)).double()
        return t * eye - (1 - t) * self.covariance, (1 - t).square() * self.covariance + t.square() * eye

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        cross, spread = self.gain(t)
        apart = z - (1 - t[:, None]) * self.mean
        return (cross @ torch.linalg.solve(spread, apart[:, :, None]))[:, :, 0] - self.mean

    def least_loss(self) -> float:
        """tr Cov(e - z | z_t) / d in the mean over logit-normal t, by the trapezoidal rule, which is exact to 1e-10 here."""
        u = torch.linspace(-12, 12, 4001, dtype=torch.float64)
        cross, spread = self.gain(u.sigmoid())
        total = torch.eye(len(self.mean)).double() + self.covariance
        left = total - cross @ torch.linalg.solve(spread, cross)
        density = torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi)
        return torch.trapezoid(left.diagonal(dim1=1, dim2=2).mean(1) * density, u).item()


def gaussian() -> Exact:
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.5, 0.3, 1.5]], dtype=torch.float64)
    return Exact(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), root @ root.T)


class Constant(nn.Module):
    """A velocity that depends on the class alone: each class, and any."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = torch.tensor(values, dtype=torch.float64)
        self.seen: list[Tensor] = []

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.seen.append(y)
        return self.values[y].view(-1, *[1] * (z.ndim - 1)).expand_as(z)


# ------------------------------------------------------------------------------------------------ transport and loss
def test_the_exact_velocity_carries_noise_to_the_gaussian():
    """The map is affine, so that noise at 0 and at the unit vectors tells all of it; its error falls as 1 / steps."""
    prior, exact, errors = flow(), gaussian(), []
    prior.velocity = exact
    prior.centre.fill_(3.0)
    prior.spread.fill_(2.0)
    for steps in (100, 200):
        prior.steps = steps
        carried = prior.transport(torch.cat([torch.zeros(1, 3), torch.eye(3)]).double(), None, 1.0)
        shift, root = carried[0], (carried[1:] - carried[0]).T
        torch.testing.assert_close(shift, 3 + 2 * exact.mean, rtol=0, atol=8 / steps)
        errors.append((root @ root.T - 4 * exact.covariance).abs().max().item())
    assert errors[1] < 0.2 and errors[1] == pytest.approx(errors[0] / 2, rel=0.1)


def test_draws_have_the_mean_and_the_covariance_of_the_codes():
    prior, exact = flow(steps=300), gaussian()
    prior.velocity = exact
    z = prior().expand(torch.Size((3000,))).sample()
    assert z.shape == (3000, 3)
    assert sigmas(z, exact.mean) < SIGMAS
    apart = z - exact.mean
    assert sigmas(apart[:, :, None] * apart[:, None], exact.covariance) < SIGMAS


def test_the_loss_at_the_optimum_is_the_conditional_variance():
    prior, exact = flow(), gaussian()
    prior.velocity = exact
    z = torch.distributions.MultivariateNormal(exact.mean, exact.covariance).sample((20_000,))
    assert sigmas(prior.fit_loss(z), exact.least_loss()) < SIGMAS
    prior.velocity = Exact(exact.mean + 1, exact.covariance)
    assert prior.fit_loss(z).mean() > exact.least_loss() + 0.02


# ------------------------------------------------------------------------------------------------ classes and guidance
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_labels_is_dropped_in_training_and_none_else(share):
    prior, n = flow(classes=2, label_drop=share), 10_000
    prior.velocity = Constant(1.0, 2.0, 3.0)
    y, z = torch.arange(n) % 2, torch.zeros(n, 3).double()
    prior.fit_loss(z, y)
    prior.eval().fit_loss(z, y)
    prior.fit_loss(z)
    trained, evaluated, unknown = prior.velocity.seen
    dropped = trained == 2
    assert abs(dropped.sum().item() - share * n) <= SIGMAS * math.sqrt(n * share * (1 - share))
    assert torch.equal(trained[~dropped], y[~dropped]) and torch.equal(evaluated, y) and (unknown == 2).all()


def test_guidance_moves_along_the_difference_between_a_class_and_any():
    """Steps of a constant velocity v from t = 1 to 0 add up to -v."""
    prior, y = flow(classes=2), torch.tensor([0, 1, 1])
    prior.velocity = Constant(1.0, -2.0, 0.5)
    for guidance in (0.0, 1.0, 2.5):
        torch.manual_seed(3)
        noise = torch.randn(3, 3, dtype=torch.float64)
        torch.manual_seed(3)
        found = guide(prior(y), guidance).sample()
        velocity = 0.5 + guidance * (prior.velocity.values[y] - 0.5)
        torch.testing.assert_close(found, noise - velocity[:, None], rtol=1e-12, atol=1e-12)
    assert {len(seen) for seen in prior.velocity.seen} == {3}


def test_without_a_class_it_draws_from_any_and_knows_no_guidance():
    prior = flow(classes=2)
    prior.velocity = Constant(1.0, -2.0, 0.5)
    prior().expand(torch.Size((5,))).sample()
    assert all((seen == 2).all() for seen in prior.velocity.seen)
    for p in (prior(), flow()(torch.zeros(4, dtype=torch.long))):
        with pytest.raises(NotImplementedError, match="none is given"):
            guide(p, 2.0)
        assert guide(p, 1.0) is p


def test_temperature_scales_the_noise():
    prior = flow(classes=2)
    prior.velocity = Constant(1.0, -2.0, 0.5)
    cold = temper(prior(torch.ones(50, dtype=torch.long)), 1e-4).sample()
    torch.testing.assert_close(cold, torch.full((50, 3), 2.0).double(), rtol=0, atol=1e-3)
    twice = temper(temper(guide(prior(torch.zeros(2000, dtype=torch.long)), 3.0), 0.5), 0.5)
    assert (twice.temperature, twice.guidance) == (0.25, 3.0)
    assert sigmas((twice.sample() + 2).square(), torch.full((3,), 0.25**2).double()) < SIGMAS


def test_shapes_of_draws():
    prior, y = flow((2, 2, 2), classes=3), torch.arange(6) % 3
    assert prior().sample().shape == (2, 2, 2)
    assert prior().expand(torch.Size((6,))).sample((4,)).shape == (4, 6, 2, 2, 2)
    assert prior(y).sample((4,)).shape == (4, 6, 2, 2, 2)
    assert prior(y[:1]).expand(torch.Size((6,))).sample().shape == (6, 2, 2, 2)
    assert flow((2, 2, 2))(y).batch_shape == ()  # it knows no classes
    assert prior().event_shape == (2, 2, 2)


# ------------------------------------------------------------------------------------------------ the network
@pytest.mark.parametrize(
    ("shape", "patch"),
    [((20,), 10), ((7,), 7), ((17,), 1), ((64,), 16), ((8, 8, 8), 2), ((4, 3, 3), 1), ((4, 2, 3), 1), ((4, 2, 6), 2)],
)
def test_codes_are_cut_into_tokens_and_joined_again(shape, patch):
    network, z = flow(shape).velocity, torch.randn(2, *shape).double()
    assert isinstance(network, Velocity) and network.patch == patch
    tokens = network._cut(z)
    assert tokens.shape == (2, *network.place.shape[:1], z[0].numel() // network.place.shape[0])
    assert torch.equal(network._joined(tokens), z)


def test_an_untrained_velocity_is_0_and_its_draws_are_noise_of_the_codes_scale():
    prior = flow((2, 2, 2), classes=3)
    z = 3 * torch.randn(500, 2, 2, 2).double() + torch.tensor([5.0, -5.0]).double()[:, None, None]
    prior.initialise(z)
    assert not prior.velocity(z, torch.rand(500).double(), torch.arange(500) % 4).any()
    normalised = ((z - prior.centre) / prior.spread).transpose(0, 1).flatten(1)
    torch.testing.assert_close(normalised.mean(1), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(normalised.var(1, correction=0), torch.ones(2).double(), rtol=1e-12, atol=0)
    drawn = prior().expand(torch.Size((4000,))).sample()
    assert sigmas(drawn, prior.centre.expand(2, 2, 2)) < SIGMAS
    assert prior.fit_loss(z).shape == (500,)


def test_a_channel_that_hardly_varies_is_not_blown_up_and_equal_codes_are_refused():
    prior, z = flow(), torch.randn(100, 3).double()
    z[:, 1] = 4.0
    prior.initialise(z)
    deviations = z.std(0, correction=0)
    assert prior.spread[1].item() == pytest.approx(1e-3 * deviations.mean().item())
    with pytest.raises(DataError, match="all the same"):
        prior.initialise(torch.ones(10, 3).double())


def test_a_few_steps_of_fitting_find_the_classes():
    """Two classes with their means 6 deviations apart: draws of each lie where its codes do, those of any at both."""
    prior, y = FlowMatching((2,), 2, width=32, depth=1, heads=2, steps=10), torch.arange(256) % 2
    means = torch.tensor([[-3.0, 1.0], [3.0, -1.0]])
    optimiser, losses = torch.optim.Adam(prior.parameters(), 5e-3), []
    for step in range(100):
        z = means[y] + torch.randn(256, 2)
        if step == 0:
            prior.initialise(z)
        optimiser.zero_grad()
        loss = prior.fit_loss(z, y).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.75 * sum(losses[:5]) * 4
    for c in (0, 1):
        drawn = prior(torch.full((200,), c)).sample()
        assert (drawn.mean(0) - means[c]).abs().max() < 0.8
        further = guide(prior(torch.full((200,), c)), 3.0).sample()
        assert (further.mean(0) * means[c].sign()).sum() > (drawn.mean(0) * means[c].sign()).sum()
    share = (prior().expand(torch.Size((400,))).sample()[:, 0] > 0).float().mean()
    assert 0.3 < share < 0.7


def test_it_has_no_density():
    with pytest.raises(NotImplementedError, match="take prior=coupling_flow"):
        flow()().log_prob(torch.zeros(3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_drop": 1.1}, "label_drop=1.1"),
        ({"label_drop": math.nan}, "label_drop=nan"),
        ({"steps": 0}, "at least 1"),
        ({"depth": 0}, "at least 1"),
        ({"width": 0}, "at least 1"),
        ({"heads": 0}, "at least 1"),
        ({"heads": 3}, "heads=3 does not divide width=8"),
        ({"patch": 2}, "patch=2 does not divide 3"),
        ({"patch": -1}, "patch=-1"),
        ({"shape": (2, 3, 4), "patch": 2}, "patch=2 does not divide 3 and 4"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        flow(given.pop("shape", (3,)), **given)
