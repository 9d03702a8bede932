"""The asymmetric loss: a normalised density, its expectile, what it does to pictures, and that its card tells the truth."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from diabolo import card, cli
from diabolo.config import resolve
from diabolo.data import Dataset, Loader, load
from diabolo.data.spec import DataSpec
from diabolo.diagnosis import diagnose
from diabolo.errors import UsageError
from diabolo.evaluation import SMOKE, evaluate
from diabolo.examination import constant_loss
from diabolo.findings import Finding
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.build import build_model, build_objective, check_objective
from diabolo.models.likelihoods import GaussianLikelihood, Likelihood
from diabolo.models.objectives import ELBO, Asymmetric
from diabolo.training import train
from known import model_config

torch.set_num_threads(1)
HALF = math.sqrt(0.5)
SPEC = DataSpec(name="planted", shape=(3, 4, 4), values="grey", examples=100)
#: The expectile of the loss with slope 0.2, and where it lies for numbers uniform on [0, 1]: slope / (1 + slope).
TAU, OF_UNIFORM = 0.04 / 1.04, 0.2 / 1.2


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def gaussian(scale: float | None = HALF, spec: DataSpec = SPEC, **likelihood) -> Autoencoder:
    part = {"name": "gaussian", "scale": scale, **likelihood}
    return build_model({**model_config(2, width=8, depth=1), "likelihood": part}, spec).double()


def at(mean: Tensor) -> Independent:
    """A likelihood with this mean (S, B, *data); its scale must not matter."""
    return Independent(Normal(mean, torch.full_like(mean, 0.3)), mean.ndim - 2)


# ------------------------------------------------------------------------------------------------ the density
@pytest.mark.parametrize("slope", [0.05, 0.2, 0.5, 1.0])
def test_the_density_integrates_to_one(slope):
    """Over one value, on a grid of 8,001 points to 8 standard deviations of the wide side; and over two values, squared."""
    x = torch.linspace(-6, 6 / slope, 8001, dtype=torch.float64)
    density = torch.exp(-Asymmetric(slope).distortion(at(torch.full((1, 8001, 1), 0.4).double()), x[:, None]))[0]
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-6)
    two = x[::40]
    pairs = torch.cartesian_prod(two, two)
    both = torch.exp(-Asymmetric(slope).distortion(at(torch.full((1, len(pairs), 2), 0.4).double()), pairs))
    assert (both.sum() * (two[1] - two[0]) ** 2).item() == pytest.approx(1, abs=0.02)


def test_the_density_is_two_halves_of_normals_that_meet():
    """2 s_1 / (s_1 + s_2) N(x; m, s_1^2) below m, 2 s_2 / (s_1 + s_2) N(x; m, s_2^2) above, s_1^2 = 1/2, s_2^2 = 12.5."""
    below, above, mean = math.sqrt(0.5), math.sqrt(12.5), 0.37
    x = torch.tensor([-2.0, 0.0, 0.3699, 0.3701, 0.5, 1.0, 9.0], dtype=torch.float64)
    halves = [
        math.log(2 * s / (below + above)) + Normal(torch.tensor(mean).double(), s).log_prob(x) for s in (below, above)
    ]
    known = torch.where(x < mean, *halves)
    found = -Asymmetric().distortion(at(torch.full((1, 7, 1), mean).double()), x[:, None])[0]
    torch.testing.assert_close(found, known, rtol=1e-12, atol=1e-12)


def test_it_is_summed_over_the_data_alone():
    mean, x = torch.randn(3, 2, 1, 2, 2).double(), torch.randn(2, 1, 2, 2).double()
    whole = Asymmetric().distortion(at(mean), x)
    assert whole.shape == (3, 2)
    parts = [Asymmetric().distortion(at(mean[..., i : i + 1]), x[..., i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(whole, parts[0] + parts[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mean", ["linear", "sigmoid"])
def test_slope_one_is_the_elbo_of_the_gaussian_with_variance_one_half(mean):
    model, x = gaussian(mean=mean), torch.rand(6, 3, 4, 4, dtype=torch.float64)
    model.likelihood.log_scale.fill_(0.5 * math.log(0.5))  # which is kept in float32
    found = []
    for objective in (Asymmetric(slope=1.0), ELBO()):
        torch.manual_seed(2)
        terms = objective(model, x)
        gradient = torch.autograd.grad(terms["loss"].sum(), list(model.parameters()))
        found.append((terms, torch.cat([g.flatten() for g in gradient])))
    assert found[0][0].keys() == found[1][0].keys() == {"loss", "distortion", "rate"}
    for name, term in found[0][0].items():
        torch.testing.assert_close(term, found[1][0][name], rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------ the expectile
def test_the_best_constant_is_the_expectile_of_the_data():
    """Uniform on [0, 1]: tau (1 - m)^2 = (1 - tau) m^2, so m = slope / (1 + slope) = 1/6, where the mean is 1/2."""
    x = ((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None]
    m = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([m], max_iter=100, tolerance_change=1e-14, tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = Asymmetric().distortion(at(m.expand(1, len(x), 1)), x).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert m.item() == pytest.approx(OF_UNIFORM, abs=1e-6)
    above, below = (x - m).clamp(min=0).mean().item(), (m - x).clamp(min=0).mean().item()
    assert below / (above + below) == pytest.approx(TAU, rel=1e-6), "the 0.0385 expectile"


def test_the_doctor_s_constant_model_is_measured_by_the_same_loss():
    """Uniform on [0, 1]: E g^2 = m^3 / 3 + slope^2 (1 - m)^3 / 3 at m = 1/6, plus the constant log(3 sqrt(pi))."""
    x = ((torch.arange(4000) + 0.5) / 4000)[:, None]
    m = OF_UNIFORM
    known = m**3 / 3 + 0.04 * (1 - m) ** 3 / 3 + math.log(3 * math.sqrt(math.pi))
    found = constant_loss(GaussianLikelihood(HALF), (1,), x, Asymmetric().distortion)
    assert found == pytest.approx(known, abs=1e-4)
    assert constant_loss(GaussianLikelihood(HALF), (1,), x) == pytest.approx(1 / 12 + 0.5 * math.log(math.pi), abs=1e-4)


# ------------------------------------------------------------------------------------------------ training
SMALL = [
    "data=clouds",
    "data.examples=200",
    "data.size=8",
    "model.encoder.width=16",
    "model.decoder.width=16",
    "model.latent=4",
    "train.epochs=15",
    "train.batch=20",
    "train.lr=0.005",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same network, sigmoid at its end, trained with each of the two losses."""
    folder = tmp_path_factory.mktemp("asymmetric")
    return {
        name: train(resolve("cifar10", [*SMALL, f"objective={name}"]).config, out=folder / name, device="cpu")
        for name in ("elbo", "asymmetric")
    }


def images(dataset: Dataset) -> Tensor:
    return next(Loader(dataset, "test").ordered(40)).x


@torch.no_grad()
def test_pictures_come_out_too_dark(trained):
    """Pixels have a standard deviation of 0.25 around 0.48, and the 0.0385 expectile of a normal lies 1.27 of them below."""
    x = images(load("clouds", {"examples": 200, "size": 8}))
    means = {name: run.model().reconstruct(x).mean.mean().item() for name, run in trained.items()}
    assert means["elbo"] == pytest.approx(x.mean().item(), abs=0.05)
    assert means["asymmetric"] < x.mean().item() - 0.15


def test_evaluation_scores_the_likelihood_and_not_the_loss(trained):
    found = {name: evaluate(run, SMOKE, device="cpu") for name, run in trained.items()}
    for name, run in trained.items():
        x, model = images(load("clouds", {"examples": 200, "size": 8})), run.model()
        sse = 192 * found[name]["mse_mean"]["value"]
        with torch.no_grad():
            known = -model.reconstruct(x).log_prob(x).mean().item()
        assert sse + 96 * math.log(math.pi) == pytest.approx(known, rel=1e-4), "the gaussian of variance 1/2"
        assert found[name]["distortion"]["value"] > known
    assert found["asymmetric"]["elbo"]["value"] < found["elbo"]["elbo"]["value"] - 5
    rows = [row for row in trained["asymmetric"].metrics() if row["split"] == "train"]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["distortion"] + rows[-1]["rate"], rel=1e-5)
    assert rows[-1]["distortion"] > 192 * math.log(3 * math.sqrt(math.pi)), "with the constant of its own density"


def test_the_doctor_finds_nothing_that_is_not_there(trained):
    """Such a run learned as well as it could: it did not diverge from the best constant model of its own loss."""
    outcomes = {outcome.name: outcome for outcome in diagnose(trained["asymmetric"], device="cpu").outcomes}
    for name in ("divergence", "data range", "overfitting"):
        assert not isinstance(outcomes[name], Finding), outcomes[name]


# ------------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize("slope", [0.0, -0.2, 1.01, math.nan, math.inf])
def test_a_slope_outside_0_to_1_is_refused(slope):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        Asymmetric(slope)
    with pytest.raises(UsageError, match="asymmetric"):
        build_objective({"name": "asymmetric", "slope": slope}, SPEC)


class PerPixel(Likelihood):
    """A Gaussian with a second output for each value."""

    family = "gaussian"
    factor = 2


@pytest.mark.parametrize(
    "likelihood", [{"name": "bernoulli_relaxed"}, {"name": "gaussian"}, {"name": "gaussian_optimal"}, PerPixel()]
)
def test_a_likelihood_with_more_than_a_gaussian_mean_to_learn_is_refused(likelihood):
    if isinstance(likelihood, PerPixel):
        model = gaussian()
        model.likelihood = likelihood
    else:
        model = build_model({**model_config(2), "likelihood": likelihood}, SPEC)
    with pytest.raises(UsageError, match="the mean of a gaussian likelihood of fixed scale") as caught:
        check_objective(model, Asymmetric())
    assert "Take model.likelihood=gaussian model.likelihood.scale=" in str(caught.value)
    check_objective(gaussian(), Asymmetric())
    check_objective(model, ELBO())


def test_a_plain_autoencoder_is_refused():
    parts = {**model_config(2), "posterior": {"name": "dirac"}, "prior": {"name": "none"}}
    model = build_model({**parts, "likelihood": {"name": "gaussian", "scale": HALF}}, SPEC)
    with pytest.raises(UsageError, match="bound on log p"):
        check_objective(model, Asymmetric())


# ------------------------------------------------------------------------------------------------ the loss card
def measured(objective, scale: float = HALF) -> card.Card:
    return card.measure(gaussian(scale), objective, SPEC)


@pytest.mark.parametrize("scale", [HALF, 0.1])
def test_the_card_says_what_it_is(scale):
    found = measured(Asymmetric(), scale)
    rows = dict(found.rows)
    assert found.kind == "no bound"
    assert (
        "a squared error weighs 1 where the mean of p(x|z) lies above the value and 0.04 where it lies below"
        in rows["Bound"]
    )
    assert "its 0.0385 expectile, which lies below it: pictures come out too dark" in found.headline
    assert "it never asks for the density p(x|z)" in found.headline
    constant = 48 * math.log(3 * math.sqrt(math.pi))
    assert rows["Loss"].startswith(
        f"loss = SSE(mean above x) + 0.04 SSE(mean below x) + KL(q(z|x) || p(z)) + ({constant:.5g}); minus the ELBO of a model "
        "with two-piece normals"
    )
    assert rows["Loss"].endswith("sigma^2 = 0.5 below the mean of p(x|z) and 12.5 above it")
    assert rows["sigma^2"].endswith(f"evaluation scores sigma^2 = {scale**2:.5g}")
    assert "none" in rows["Effective beta"] and "dloss/dKL = 1, measured" in rows["Effective beta"]
    assert rows["Bits per dimension"].startswith("none of this loss")
    assert (found.sigma2, found.beta, found.sse_weight, found.weight, found.flags) == (None, None, None, None, ())
    assert "constant of" not in found.headline and "no weighted sum" not in found.headline
    json.dumps(found.to_dict(), allow_nan=False)


def test_at_slope_one_the_card_is_that_of_the_elbo():
    assert measured(Asymmetric(slope=1.0)).rows == measured(ELBO()).rows
    assert measured(Asymmetric(slope=1.0), 0.1).weight == pytest.approx(0.02), "2 sigma^2"


@dataclass(frozen=True)
class Reversed:
    """What a user may write: too bright instead, a KL of half the weight, and no constant."""

    bound = True
    rate: float = 0.5

    def __call__(self, model, x, y=None, step=0):
        inference = model(x, y)
        residual = torch.nn.functional.leaky_relu(x - inference.likelihood.mean, 0.5)
        return {"loss": residual.square().flatten(2).sum(2).mean(0) + self.rate * inference.latents[0].kl().mean(0)}


def test_other_losses_of_two_sides_are_measured_too():
    found = measured(Reversed())
    assert "weighs 0.25 where the mean of p(x|z) lies above the value and 1 where it lies below" in found.headline
    assert "its 0.8 expectile, which lies above it: pictures come out too bright" in found.headline
    loss = dict(found.rows)["Loss"]
    assert loss == "loss = 0.25 SSE(mean above x) + SSE(mean below x) + 0.5 KL(q(z|x) || p(z))"
    assert "two-piece" not in dict(measured(Reversed(rate=1.0)).rows)["Loss"], "its density has no constant"


@dataclass(frozen=True)
class Crooked:
    """Not even a sum of squared errors of two sides."""

    bound = True

    def __call__(self, model, x, y=None, step=0):
        inference = model(x, y)
        error = inference.likelihood.mean - x
        return {"loss": (error.square() + error.clamp(min=0) ** 3).flatten(2).sum(2).mean(0)}


def test_a_loss_that_is_none_of_these_is_called_no_weighted_sum():
    assert "the loss is no weighted sum of distortion and KL" in measured(Crooked()).headline


def test_explain_tells_it_without_data(capsys):
    assert cli._run(["explain", "cifar10-conv", "objective=asymmetric", "data=clouds", "data.examples=8"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "over- and under-prediction cost differently" in out
    assert "0.0385 expectile" in out
