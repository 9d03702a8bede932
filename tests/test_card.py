"""The loss card against derivatives taken another way, and against planted losses whose truth is known. All in float64."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Laplace, Normal, kl_divergence

from diabolo import card, probing, runs
from diabolo.config import Component, resolve
from diabolo.data import from_tensor
from diabolo.data.scan import check, rescaled, scan
from diabolo.data.spec import DataSpec, Split
from diabolo.errors import DataError, UsageError
from diabolo.models.build import build_model
from diabolo.models.likelihoods import GaussianLikelihood, Likelihood
from diabolo.models.objectives import ELBO, IWAE, Reconstruction, log_mean_exp
from diabolo.report import write_run_report
from diabolo.training import train
from diabolo.verbs.explain import explain
from known import model_config, tiny_images, tiny_vectors

torch.set_num_threads(1)
SHAPE = (1, 4, 6)
D = 24


def spec(values: str = "grey", shape: tuple[int, ...] = SHAPE) -> DataSpec:
    return DataSpec(name="planted", shape=shape, values=values, examples=100)


def model(
    likelihood: str | dict[str, Any] = "gaussian", values: str = "grey", shape=SHAPE, latent: int = 3, **parts: Any
):
    part = {"name": likelihood} if isinstance(likelihood, str) else likelihood
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_model({**model_config(latent, width=8), "likelihood": part, **parts}, spec(values, shape))


def gaussian(scale: float):
    return model({"name": "gaussian", "scale": scale})


def of(built: Any, objective: Any, values: str = "grey", shape=SHAPE, **more: Any) -> card.Card:
    return card.measure(built, objective, spec(values, shape), **more)


def with_likelihood(likelihood: Likelihood):
    built = gaussian(0.5)
    built.likelihood = likelihood
    return built


PLAIN = {"posterior": {"name": "dirac"}, "prior": {"name": "none"}}


# ------------------------------------------------------------------------------------------------ planted parts
class Averaged(GaussianLikelihood):
    """log p as a mean over the values, which says that it is normalised."""

    def forward(self, params):
        return _Changed(super().forward(params), lambda log_p, size: log_p / size)


class Constantless(GaussianLikelihood):
    """A Gaussian without its constant."""

    def forward(self, params):
        constant = 0.5 * math.log(2 * math.pi) + self.log_scale
        return _Changed(super().forward(params), lambda log_p, size: log_p + size * constant)


class _Changed(Independent):
    def __init__(self, p, change):
        super().__init__(p.base_dist, p.reinterpreted_batch_ndims)
        self.change = change

    def log_prob(self, value):
        return self.change(super().log_prob(value), math.prod(self.event_shape))


class LaplaceLikelihood(Likelihood):
    """Absolute errors."""

    family = "laplace"

    def forward(self, params):
        return Independent(Laplace(params, torch.ones_like(params)), params.ndim - 2)


class TwoOutputs(Likelihood):
    """Mean and log-variance of each value from the decoder."""

    family = "gaussian"
    factor = 2

    def forward(self, params):
        mean, log_variance = params.chunk(2, 2)
        return Independent(Normal(mean, (0.5 * log_variance).exp()), params.ndim - 2)


@dataclass(frozen=True)
class Planted:
    """An objective made of a function of (distortion, rate, inference, x, model)."""

    f: Any
    samples: int = 1

    def __call__(self, model, x, y=None, step=0):
        inference = model(x, y, samples=self.samples)
        return {
            "loss": self.f(
                -inference.likelihood.log_prob(x).mean(0), inference.latents[0].kl().mean(0), inference, x, model
            )
        }


def sampled_rate(distortion, rate, inference, x, model):
    return distortion - inference.latents[0].log_ratio().mean(0)


def from_the_parts(distortion, rate, inference, x, model):
    return distortion + 2 * kl_divergence(model.encode(x), model.prior(None, model.encode))


def at_the_mean(distortion, rate, inference, x, model):
    q = model.encode(x)
    return -model.decode(q.mean[None]).log_prob(x)[0] + rate


# ------------------------------------------------------------------------------------------------ against autograd
CASES = [
    (ELBO(), 0, gaussian(0.3), "grey"),
    (ELBO(beta=4.0), 0, gaussian(2.0), "grey"),
    (ELBO(beta=0.25), 0, model("bernoulli", "binary"), "binary"),
    (Planted(lambda d, k, *_: d / D + 0.5 * k), 0, gaussian(0.3), "grey"),
    (
        Planted(lambda d, k, i, x, m: (i.likelihood.mean[0] - x).square().flatten(1).mean(1) + k),
        0,
        gaussian(0.7),
        "grey",
    ),
]


@pytest.mark.parametrize(("objective", "step", "built", "values"), CASES)
def test_weights_are_those_of_autograd_on_the_real_model(objective, step, built, values):
    """grad loss = a grad D + b grad K, solved for a and b over all parameters of a real network."""
    built = built.double()
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = x.round() if values == "binary" else x

    def gradient(term):
        torch.manual_seed(4)
        parameters = [*built.encoder.parameters(), *built.decoder.parameters()]
        found = torch.autograd.grad(term().mean(), parameters, allow_unused=True)
        return torch.cat([
            torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, parameters)
        ])

    total = gradient(lambda: objective(built, x, None, step)["loss"])
    d = gradient(lambda: -built(x).likelihood.log_prob(x).mean(0))
    k = gradient(lambda: built(x).latents[0].kl().mean(0))
    solved = torch.linalg.lstsq(torch.stack([d, k], 1), total[:, None])
    a, b = solved.solution.flatten().tolist()
    torch.testing.assert_close(a * d + b * k, total, rtol=1e-8, atol=1e-9)
    found = of(built, objective, values)
    assert found.weight == pytest.approx(a, rel=1e-7)
    assert found.beta == pytest.approx(b / a, rel=1e-7)


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 2.5])
def test_sigma_is_the_curvature_that_autograd_finds(scale):
    built = gaussian(scale).double()
    x = torch.rand(1, *SHAPE, dtype=torch.float64)
    p = built.decode(torch.zeros(1, 1, 3, dtype=torch.float64))
    hessian = torch.autograd.functional.hessian(lambda v: -p.log_prob(v.view(1, *SHAPE)).sum(), x.flatten())
    assert torch.allclose(hessian, torch.eye(D, dtype=torch.float64) / scale**2, rtol=1e-6)  # scale is kept in float32
    found = of(built, ELBO(beta=3.0))
    assert found.sigma2 == pytest.approx(1 / float(hessian[0, 0]), rel=1e-8)
    assert found.sse_weight == pytest.approx(2 * 3 * scale**2, rel=1e-6)


def test_the_equivalent_weight_is_that_of_the_plain_sum_of_squared_errors():
    """SSE + 2 sigma^2 beta K has the gradient of the loss, times 2 sigma^2."""
    built, objective = gaussian(0.4), ELBO(beta=1.7)
    weight = of(built, objective).sse_weight
    plain = Planted(lambda d, k, i, x, m: (i.likelihood.mean[0] - x).square().flatten(1).sum(1) + weight * k)
    assert of(built, plain).beta == pytest.approx(1.7, rel=1e-7)
    assert of(built, plain).weight == pytest.approx(2 * 0.4**2, rel=1e-6)


def test_a_running_sigma_is_the_one_in_use():
    built = model("gaussian_optimal")
    built.likelihood.variance.fill_(0.04)
    found = of(built.train(), ELBO())
    assert found.sigma2 == pytest.approx(0.04, rel=1e-6)
    assert found.kind == "elbo"
    assert "0.04 now, learned as a running mean" in dict(found.rows)["sigma^2"]
    assert built.likelihood._error is None, "measuring has taught it nothing"


# ------------------------------------------------------------------------------------------------ what is a bound
def test_an_elbo_is_one():
    found = of(gaussian(0.5), ELBO())
    assert (found.kind, found.reasons, found.flags) == ("elbo", (), ())
    assert (found.beta, found.weight, found.unit, found.dimensions) == (1.0, 1.0, "nats/image", D)
    assert found.mass == pytest.approx(1, abs=1e-9)
    assert "this objective is an ELBO (sigma^2 = 0.25, effective beta = 1, nats/image)" in found.headline


@pytest.mark.parametrize(
    ("objective", "kind", "words"),
    [
        (ELBO(beta=4.0), "loose bound", "below the ELBO by 3 KL"),
        (ELBO(beta=0.5), "no bound", "beta = 0.5"),
        (ELBO(beta=0.0), "no bound", "beta = 0"),
        (Planted(lambda d, k, *_: d + 0.5 * k), "no bound", "beta = 0.5"),
        (Planted(lambda d, k, *_: 0.5 * (d + k)), "elbo", "times 0.5"),
        (Planted(lambda d, k, *_: d / D + k), "loose bound", "beta = 24"),
        (Planted(lambda d, k, *_: d + k - 7), "no bound", "a constant of -7 nats"),
        (Planted(lambda d, k, *_: d + k.clamp(min=2)), "no bound", "no weighted sum"),
        (Planted(lambda d, k, *_: d.square() + k), "no bound", "no weighted sum"),
        (Planted(lambda d, k, *_: -d + k), "no bound", "the distortion weighs -1"),
        (Planted(at_the_mean), "no bound", "the mean of q(z|x) instead of a draw"),
        (Planted(sampled_rate), "elbo", "an ELBO"),
        (Planted(from_the_parts), "loose bound", "beta = 2"),
        (IWAE(samples=5), "importance-weighted bound", "5 draws"),
        (IWAE(samples=1), "elbo", "an ELBO"),
        (IWAE(samples=5, gradient="dreg"), "importance-weighted bound", "5 draws"),
        (Planted(lambda d, k, i, x, m: -i.log_weight(x).mean(0), samples=5), "elbo", "an ELBO"),
        (Planted(lambda d, k, i, x, m: log_mean_exp(-i.log_weight(x)), samples=5), "no bound", "neither by a mean nor"),
        (Planted(lambda d, k, i, x, m: (d + k) / 0), "not known", "not finite"),
    ],
)
def test_what_kind_of_loss_it_is(objective, kind, words):
    found = of(gaussian(0.5), objective)
    assert found.kind == kind
    assert words in found.headline


def test_a_loss_that_cannot_be_measured_is_called_so():
    def broken(*_):
        raise RuntimeError("no such term\nat all")

    found = of(gaussian(0.5), Planted(broken))
    assert found.kind == "not known"
    assert found.reasons == ("the objective cannot be measured (RuntimeError: no such term)",)
    assert (found.beta, found.weight) == (None, None)
    assert found.sigma2 == pytest.approx(0.25)


@pytest.mark.parametrize(("last", "steps", "warned"), [(0.75, 301, True), (3.0, 401, False)])
def test_a_warm_up_is_found_and_its_end(last, steps, warned):
    found = of(gaussian(0.5), ELBO(beta=1.0, warmup_steps=400), steps=steps)
    row = dict(found.rows)["Effective beta"]
    assert "warm-up: 0 at step 0, its final value from step 400" in row
    assert found.beta == 1
    assert any(f"beta = {last:g} at its last step" in text for text in found.flags) == warned
    assert "warm-up" not in dict(of(gaussian(0.5), ELBO()).rows)["Effective beta"]


def test_sums_over_a_batch_are_flagged():
    assert of(gaussian(0.5), Planted(lambda d, k, *_: (d + k).mean())).flags == ()
    assert "train.batch" in of(gaussian(0.5), Planted(lambda d, k, *_: (d + k).sum())).flags[0]


# ------------------------------------------------------------------------------------------------ the likelihood
def test_a_mean_over_the_values_makes_the_kl_weigh_more():
    found = of(with_likelihood(Averaged(0.5)), ELBO())
    assert found.beta == pytest.approx(D)
    assert found.sigma2 == pytest.approx(0.25, rel=1e-6)
    assert found.kind == "no bound"
    assert found.unit == "nats/value"
    assert "the KL weighs D = 24 times more than in the bound, effective beta = 24" in found.headline
    assert found.mass == pytest.approx(2 * math.sqrt(2 * math.pi * 0.25), rel=1e-6), "(integral of sqrt p)^2"
    assert "says that it is normalised, but it is not" in found.flags[0]


def test_a_constant_that_is_dropped_is_found_by_its_mass():
    found = of(with_likelihood(Constantless(0.5)), ELBO())
    assert found.mass == pytest.approx(2 * math.pi * 0.25, rel=1e-6)
    assert found.kind == "no bound"
    assert found.beta == 1
    assert "says that it is normalised, but it is not" in found.flags[0]
    assert "may grow without end" in of(with_likelihood(Constantless()), ELBO()).flags[1]


def test_the_relaxed_bernoulli_has_the_mass_that_is_known():
    """Integral of l^x (1 - l)^(1 - x) over [0, 1] is (2 l - 1) / logit(l); two values multiply."""
    built = model("bernoulli_relaxed")
    logits = probing.decoder_output(built.likelihood, (1, 1, 2)).flatten()
    known = torch.prod((2 * torch.sigmoid(logits) - 1) / logits)
    found = of(built, ELBO())
    assert found.mass == pytest.approx(float(known), rel=1e-5)
    assert (found.kind, found.sigma2, found.flags) == ("no bound", None, ())
    assert "binary cross-entropy on grey levels is unnormalised" in found.headline
    assert dict(found.rows)["Bits per dimension"] == "none: the likelihood is unnormalised"
    assert of(model("bernoulli_relaxed", "binary"), ELBO(), "binary").kind == "elbo", "on {0, 1} it is the Bernoulli"


def test_other_errors_have_no_sigma():
    laplace = of(with_likelihood(LaplaceLikelihood()), ELBO())
    assert (laplace.kind, laplace.sigma2) == ("elbo", None)
    assert laplace.mass == pytest.approx(1, abs=1e-3)
    built = gaussian(0.5)
    built.likelihood = TwoOutputs()
    varying = of(built, ELBO())
    assert (varying.kind, varying.sigma2) == ("elbo", None)
    assert "the decoder's output" in dict(varying.rows)["sigma^2"]


@pytest.mark.parametrize(("shape", "factor"), [((7,), 1), ((7,), 2), ((3, 2, 5), 1), ((3, 2, 5), 2)])
def test_the_reduction_is_measured_for_vectors_and_images(shape, factor):
    likelihood = GaussianLikelihood(0.5) if factor == 1 else TwoOutputs()
    x = torch.rand(1, *shape, dtype=torch.float64)
    assert probing.likelihood_facts(likelihood, x, False).share == 1
    assert probing.likelihood_facts(Averaged(0.5), x, False).share == pytest.approx(1 / math.prod(shape))


def test_bits_per_dimension_of_each_kind():
    binary = dict(of(model("bernoulli", "binary"), ELBO(), "binary").rows)["Bits per dimension"]
    assert binary == f"nats / (D ln 2) = nats x {1 / (D * math.log(2)):.4g}: exact, p(x|z) is a probability"
    assert "+ 8, for a density of data x = (k + u) / 256" in dict(of(gaussian(0.5), ELBO()).rows)["Bits per dimension"]
    real = of(model({"name": "gaussian", "scale": 1.0}, "real", (5,)), ELBO(), "real", (5,))
    assert "depends on the unit of the data" in dict(real.rows)["Bits per dimension"]
    assert real.unit == "nats/example"


# ------------------------------------------------------------------------------------------------ plain autoencoders
def test_a_plain_autoencoder_is_no_bound():
    found = of(model("gaussian", **PLAIN), Reconstruction())
    assert (found.kind, found.beta, found.sse_weight, found.weight) == ("no bound", None, None, 1.0)
    assert "a plain autoencoder has no prior p(z); q(z|x) is a point mass without a density" in found.headline
    assert dict(found.rows)["Loss"].startswith("loss = -log p(x|z); -log p(x|z) is a sum of squared errors")


@pytest.mark.parametrize(
    ("noise", "level", "changed"), [("gaussian", 0.3, 100), ("masking", 0.25, 25), ("salt_pepper", 0.25, 25)]
)
def test_a_denoising_criterion_is_seen_by_what_the_encoder_is_given(noise, level, changed):
    """Of 1,000,000 values 25 % are changed: 5 sigma of the share is 0.2 %."""
    shape = (1, 1000, 1000)
    objective = Reconstruction(noise=noise, level=level)
    x = torch.rand(1, *shape, dtype=torch.float64) * 0.98 + 0.01
    built = build_model({**model_config(1, width=1, depth=0), **PLAIN}, spec("grey", (1, 2, 2)))
    facts = probing.objective_facts(built, objective, x)
    assert 100 * facts.changed == pytest.approx(changed, abs=0.22 if changed < 100 else 0)
    if noise == "gaussian":
        assert facts.change == pytest.approx(level, rel=5 / math.sqrt(2e6))
    assert "a denoising criterion" in of(model("gaussian", **PLAIN), objective).headline
    assert "denoising" not in of(model("gaussian", **PLAIN), Reconstruction()).headline


@pytest.mark.parametrize("jacobian", ["closed", "hutchinson"])
@pytest.mark.parametrize("weight", [0.1, 3.0])
def test_the_contractive_weight_is_measured(jacobian, weight):
    built = model("gaussian", **PLAIN, encoder={"name": "layer"}, decoder={"name": "tied"})
    found = of(built, Reconstruction(contractive=weight, jacobian=jacobian))
    assert found.contraction == pytest.approx(weight, rel=1e-7)
    assert f"{weight:g} ||dz/dx||^2" in dict(found.rows)["Loss"]
    assert of(built, Reconstruction()).contraction == 0


# ------------------------------------------------------------------------------------------------ every part counts
BASE = (lambda: gaussian(0.5), ELBO(), "grey")
CHANGES = {
    "scale": (lambda: gaussian(0.6), ELBO(), "grey"),
    "beta": (lambda: gaussian(0.5), ELBO(beta=1.01), "grey"),
    "warm-up": (lambda: gaussian(0.5), ELBO(warmup_steps=10), "grey"),
    "reduction of the likelihood": (lambda: with_likelihood(Averaged(0.5)), ELBO(), "grey"),
    "reduction of the objective": (lambda: gaussian(0.5), Planted(lambda d, k, *_: d / D + k), "grey"),
    "constant": (lambda: with_likelihood(Constantless(0.5)), ELBO(), "grey"),
    "learned sigma": (lambda: model({"name": "gaussian"}), ELBO(), "grey"),
    "family": (lambda: with_likelihood(LaplaceLikelihood()), ELBO(), "grey"),
    "values": (lambda: gaussian(0.5), ELBO(), "real"),
    "posterior and prior": (lambda: model({"name": "gaussian", "scale": 0.5}, **PLAIN), Reconstruction(), "grey"),
    "draws": (lambda: gaussian(0.5), IWAE(samples=2), "grey"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changing_any_part_changes_the_card(name):
    built, objective, values = CHANGES[name]
    base = of(BASE[0](), BASE[1], BASE[2])
    assert of(built(), objective, values).rows != base.rows
    assert of(BASE[0](), BASE[1], BASE[2]) == base


def test_measuring_changes_neither_model_nor_objective_nor_random_numbers():
    built, critic = model("gaussian").train(), nn.Linear(2, 2)
    before = {name: t.clone() for name, t in built.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    of(built, Planted(lambda d, k, *_: d + k + 0 * critic(torch.rand(2)).sum()))
    assert torch.equal(torch.rand(3), expected)
    assert built.training
    assert all(torch.equal(before[name], t) for name, t in built.state_dict().items())
    assert {p.dtype for p in built.parameters()} == {torch.float32}


# ------------------------------------------------------------------------------------------------ the data
def test_a_scan_counts_what_is_there():
    x = np.array([[0, 0, 255, 51]] * 10, dtype=np.uint8)
    facts = scan(from_tensor(x))
    assert (facts.declared, facts.on_grid, facts.binary, facts.distinct) == ("grey", True, False, 3)
    assert (facts.low, facts.high, facts.zeros, facts.ones) == (0, 1, 0.5, 0.25)
    assert facts.mean == pytest.approx(0.3)
    assert facts.sd == pytest.approx(float(np.std([0, 0, 1, 0.2])))
    assert facts.examined == facts.total == 32, "eight of the ten examples are for training"


def test_a_scan_of_other_kinds():
    off = scan(from_tensor(np.random.default_rng(0).random((50, 30))))
    assert (off.declared, off.on_grid, off.binary) == ("grey", False, False)
    assert off.distinct == 1_001, "more than 1,000"
    real = scan(tiny_vectors())
    assert real.declared == "real"
    assert real.low < 0
    drawn = scan(tiny_images(binarize=True))
    assert (drawn.binary, drawn.drawn, drawn.low, drawn.high) == (True, True, 0, 1)
    assert drawn.ones == pytest.approx(drawn.mean)
    assert drawn.zeros == pytest.approx(1 - drawn.mean)
    whole = scan(from_tensor(np.array([[0.0, 1.0]] * 10)))
    assert (whole.declared, whole.binary) == ("binary", True)


def test_the_range_is_that_of_all_values_of_all_splits(monkeypatch):
    monkeypatch.setattr("diabolo.data.scan.FLOATS_EXAMINED", 32)
    dataset = tiny_vectors(200)
    dataset.test.values[3, 5] = 99.0
    facts = scan(dataset)
    assert facts.high == 99
    assert facts.examined <= 32 < facts.total
    assert f"{facts.examined} of {facts.total:,} training values" in facts.sentence()


def test_values_that_are_not_finite_are_refused():
    dataset = tiny_vectors()
    dataset.train.values[0, 0] = math.nan
    with pytest.raises(DataError, match="not finite"):
        scan(dataset)


def declared_as(values: str, x: torch.Tensor):
    given = from_tensor(x)
    return replace(given, spec=replace(given.spec, values=values))


@pytest.mark.parametrize(
    ("values", "x", "remedy"),
    [
        ("grey", torch.linspace(-1, 1, 40).view(10, 4), r"x -> \(x \+ 1\) / 2"),
        ("grey", torch.linspace(0, 4, 40).view(10, 4), "x -> x / 4"),
        ("binary", torch.linspace(0, 1, 40).view(10, 4), "x > 0.5"),
    ],
)
def test_values_that_are_not_what_they_are_said_to_be_are_refused(values, x, remedy):
    with pytest.raises(DataError, match=remedy):
        check(scan(declared_as(values, x)), "mine", "gaussian", ("grey", "binary", "real"))


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 4), (-2, 6), (2, 6)])
def test_the_formula_for_scaling_is_right(low, high):
    facts = scan(from_tensor(torch.linspace(low, high, 41).view(-1, 1).expand(41, 2).contiguous()))
    facts = replace(facts, low=float(low), high=float(high))
    _, _, formula = rescaled(facts).partition("-> ")
    numbers = [_arithmetic(formula, x) for x in (low, high)]
    assert numbers == [0, 1]


def _arithmetic(formula: str, x: float) -> float:
    """x, (x + a) or (x - a), over b."""
    shift, _, by = formula.rpartition(" / ")
    words = shift.strip("()").split()
    moved = x if len(words) == 1 else x + {"+": 1, "-": -1}[words[1]] * float(words[2])
    return moved / float(by)


def test_training_refuses_what_a_likelihood_cannot_score_with_the_remedy(tmp_path):
    data = from_tensor(torch.linspace(-1, 1, 400).view(50, 8))
    config = resolve("vae", ["model.likelihood=bernoulli_relaxed"]).config
    with pytest.raises(UsageError, match=r"cannot score real data(.|\n)*range \[-1, 1\](.|\n)*x -> \(x \+ 1\) / 2"):
        train(config, out=tmp_path / "run", data=data, device="cpu")
    binary = from_tensor(torch.randint(0, 2, (50, 8), generator=torch.Generator().manual_seed(0)))
    with pytest.raises(UsageError, match=r"cannot score binary data(.|\n)*no upper bound"):
        train(resolve("vae").config, out=tmp_path / "run", data=binary, device="cpu")
    assert not (tmp_path / "run").exists()


def labelled(x: Any, built: Any, values: str = "grey") -> str:
    facts = replace(scan(from_tensor(x)), declared=values)
    return "\n".join(of(built, ELBO(), facts=facts).labels)


def test_mismatches_of_data_and_likelihood_are_labelled():
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (50, 4, 6)).astype(np.uint8)
    ends = np.where(grey > 100, 255, 0).astype(np.uint8)
    assert "bits/dim needs dequantisation" in labelled(grey, gaussian(0.1))
    assert labelled(grey, model("bernoulli_relaxed")) == ""
    assert labelled(grey / 255 + 0.0005, gaussian(0.1), "real") == ""
    assert "only 0 and 1 occur; a density has no upper bound" in labelled(ends, gaussian(0.1))
    assert "only 0 and 1 occur: take" in labelled(ends, model("bernoulli_relaxed"))
    assert "only 2 occur" in labelled(np.where(grey > 100, 51, 204).astype(np.uint8), gaussian(0.1))
    assert "nothing to learn" in labelled(np.full((50, 4, 6), 7, dtype=np.uint8), gaussian(0.1))
    assert "above the variance of the values" in labelled(grey, gaussian(1.0))
    assert "above the variance" not in labelled(grey, gaussian(0.28))
    assert "above the variance" not in labelled(grey, model({"name": "gaussian"})), "it is learned"


# ------------------------------------------------------------------------------------------------ runs, reports, the verb
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = resolve("vae", ["train.epochs=2", "train.lr=0.05", "objective.beta=2", "train.keep=last"]).config
    config = replace(config, data=Component(name="tensor"))
    return train(config, out=tmp_path_factory.mktemp("card") / "run", data=tiny_images(), device="cpu")


def test_a_run_keeps_its_card_and_says_it_once(run):
    stored = run.loss_card()
    sigma2 = math.exp(2 * run.model().likelihood.log_scale.item())
    assert stored["when"] == runs.AT_THE_END
    assert stored["sigma2"] == pytest.approx(sigma2, rel=1e-6)
    assert abs(sigma2 - 1) > 0.01, "training has moved it"
    assert stored["beta"] == pytest.approx(2)
    assert stored["data"]["on_grid"] is True
    log = (run.path / "log.txt").read_text(encoding="utf-8")
    assert log.count("loss: this objective is a bound looser than the ELBO (sigma^2 = 1 now") == 1
    assert log.index("loss: ") < log.index("epoch 1/2")


def test_the_report_shows_the_card(run, tmp_path):
    from diabolo.evaluation import Settings, evaluate

    evaluate(
        run, Settings(k=10, images=4, elbo_samples=2, curve_k=(1, 2), curve_images=2), data=tiny_images(), device="cpu"
    )
    page = write_run_report(run, out=tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What the loss is" in page
    assert "below the ELBO by 1 KL" in page
    assert runs.AT_THE_END in page
    (run.path / "loss_card.json").rename(run.path / "kept.json")
    page = write_run_report(run, out=tmp_path / "report.html").read_text(encoding="utf-8")
    (run.path / "kept.json").rename(run.path / "loss_card.json")
    assert "not recorded when the run was made" in page


def test_a_card_that_is_none_is_refused(run, tmp_path):
    kept = (run.path / "loss_card.json").read_bytes()
    (run.path / "loss_card.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="diabolo explain"):
        run.loss_card()
    (run.path / "loss_card.json").write_bytes(kept)


def test_explain_a_run_measures_its_weights(run):
    found = explain(str(run.path), as_json=True).data
    assert found["sigma2"] == run.loss_card()["sigma2"]
    assert list(found["labels"]) == run.loss_card()["labels"]
    with pytest.raises(UsageError, match="cannot be changed"):
        explain(str(run.path), "objective.beta=1")
    changed = explain(str(run.path / "config.json"), "objective.beta=1", as_json=True).data
    assert changed["kind"] == "elbo"
    assert changed["dimensions"] is None, "its data were in memory"
    assert "D values" in dict(changed["rows"])["Reduction and unit"]


def test_explain_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DIABOLO_CACHE_DIR", str(tmp_path))
    found = explain("mnist-grey", "objective.beta=3", as_json=True).data
    assert found["dimensions"] == 784
    assert found["beta"] == pytest.approx(3)
    assert "not in the cache" in found["of"]
    assert list(tmp_path.iterdir()) == []
    assert explain("mnist", as_json=True).data["kind"] == "elbo"


def test_explain_refuses_before_it_measures():
    with pytest.raises(UsageError, match="cannot score grey data"):
        explain("vae", "model.likelihood=bernoulli")
    with pytest.raises(UsageError, match="bound"):
        explain("vae", "model.posterior=dirac", "model.prior=none")
    with pytest.raises(UsageError, match="unknown preset"):
        explain("no-such")


MINE = '''
import math
from torch.distributions import Independent, Normal
from diabolo import register
from diabolo.models.likelihoods import Likelihood

class Mean(Independent):
    def log_prob(self, value):
        return super().log_prob(value) / math.prod(self.event_shape)

@register("likelihood", "mean_gaussian")
class MeanGaussian(Likelihood):
    """A Gaussian, by mistake a mean over the values."""
    family = "gaussian"
    accepts = ("grey", "real")
    def forward(self, params):
        return Mean(Normal(params, params.new_full((), 0.5)), params.ndim - 2)
'''


def test_a_likelihood_of_ones_own_gets_a_truthful_card(tmp_path: Path):
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    command = ["explain", "vae", "model.likelihood=mean_gaussian", "--import", "mine"]
    done = subprocess.run(
        [sys.executable, "-m", "diabolo", *command, "--json"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["beta"] == pytest.approx(64)
    assert found["sigma2"] == pytest.approx(0.25)
    assert found["kind"] == "no bound"
    assert "but it is not" in found["flags"][0]


def test_splits_stay_as_they_were():
    """A scan looks at the tensors themselves; it must not write to them."""
    dataset = tiny_images()
    before = {name: dataset.split(name).values.clone() for name in ("train", "validation", "test")}
    scan(dataset)
    for name, values in before.items():
        found: Split = dataset.split(name)
        assert torch.equal(found.values, values)
