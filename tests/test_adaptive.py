"""Adaptive importance sampling: on a linear-Gaussian model whose log p(x) is known, and as an evaluation."""

from __future__ import annotations

import math
import shutil
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli

import diabolo
from diabolo import adaptive, cli, runs
from diabolo.compare import compare
from diabolo.config import resolve
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.listings import evaluation_tables
from diabolo.metrics import importance_log_weights
from diabolo.models.distributions import GreyBernoulli, IndependentBernoulli, sum_softplus
from diabolo.training import train
from known import SIGMAS, draw_x, linear_model, log_p_dense, sigmas, tiny_images

torch.set_num_threads(1)
SHIFT, SPREAD, SE = 0.5, 1.4, 0.15


def weights_of(x: Tensor, batch: int, spread: float = SPREAD, shift: float = SHIFT) -> adaptive.Weights:
    """Weights of the linear-Gaussian model with a posterior that is off, `batch` images at a time."""
    model = linear_model(4, shift, spread)

    def weights(index: Tensor, k: int, seed: int):
        for part in index.split(batch):
            yield importance_log_weights(model, x[part], part.tolist(), k, seed)

    return weights


# ------------------------------------------------------------------------------------------------ the choice of K
def test_p_of_x_stays_unbiased_and_the_error_is_what_was_asked_for():
    """E[estimate of p(x)] = p(x) though K is chosen from draws, by 5 sigma over 2,000 images (fails once in 1.7 million fresh
    seeds); the errors' root mean square is SE at most, and 85 % of the images meet it by their own measure."""
    x = draw_x(4, 2000)
    weights, index = weights_of(x, 500), torch.arange(2000)
    chosen = adaptive.plan(weights, index, SE, seed=3)
    found = adaptive.estimates(weights, index, chosen.k, 3, lambda done: None)
    error = found.log_p - log_p_dense(x)
    assert sigmas(error.exp(), 1.0) < SIGMAS
    assert 0.5 * SE < error.square().mean().sqrt().item() < SE
    assert not chosen.at_ceiling.any() and chosen.pilot_draws >= adaptive.PILOT * 2000
    assert adaptive.summary(chosen, found, SE)["within"] > 0.85 * 2000
    assert (found.bias.abs() < 0.4 * SE).double().mean() > 0.99


def test_neither_k_nor_the_estimate_depends_on_the_batches_or_the_images_around():
    x, index = draw_x(4, 12), torch.arange(12)
    whole = adaptive.plan(weights_of(x, 12), index, SE, seed=1)
    found = adaptive.estimates(weights_of(x, 12), index, whole.k, 1, lambda done: None)
    assert len(whole.k.unique()) > 1
    single = adaptive.plan(weights_of(x, 1), index[3:8], SE, seed=1)
    alone = adaptive.estimates(weights_of(x, 2), index[3:8], single.k, 1, lambda done: None)
    assert torch.equal(single.k, whole.k[3:8])
    torch.testing.assert_close(alone.log_p, found.log_p[3:8], rtol=1e-12, atol=0)


def test_the_pilots_draws_are_not_the_estimates():
    seeds = []

    def weights(index: Tensor, k: int, seed: int):
        seeds.append(seed)
        yield from weights_of(draw_x(4, 3), 3)(index, k, seed)

    chosen = adaptive.plan(weights, torch.arange(3), SE, seed=5)
    pilots = set(seeds)
    seeds.clear()
    adaptive.estimates(weights, torch.arange(3), chosen.k, 5, lambda done: None)
    assert not pilots & set(seeds)


def test_an_exact_posterior_needs_the_least_number_of_draws():
    chosen = adaptive.plan(weights_of(draw_x(4, 5), 5, spread=1.0, shift=0.0), torch.arange(5), 0.05, seed=0)
    assert chosen.k.tolist() == [adaptive.LEAST_ESS + 3] * 5  # 2^(18/4) = 22.6, rounded up


def test_images_beyond_the_ceiling_get_the_ceiling_and_are_counted(monkeypatch):
    monkeypatch.setattr(adaptive, "CEILING", 100)
    x, index = draw_x(4, 6), torch.arange(6)
    chosen = adaptive.plan(weights_of(x, 6), index, 0.01, seed=0)
    assert chosen.k.tolist() == [100] * 6 and chosen.at_ceiling.all()
    found = adaptive.estimates(weights_of(x, 6), index, chosen.k, 0, lambda done: None)
    said = adaptive.summary(chosen, found, 0.01)
    assert (said["at_ceiling"], said["at_ceiling_share"], said["within"]) == (6, 1.0, 0)


def test_the_jackknife_sees_the_bias_of_the_logarithm():
    """Against leaving out one draw after the other, and minus infinity where one draw is all there is."""
    log_w = torch.randn(9, 2, dtype=torch.float64)
    left = [torch.logsumexp(torch.cat([log_w[:i], log_w[i + 1 :]]), 0) - math.log(8) for i in range(9)]
    bias = 8 * (torch.stack(left).mean(0) - (torch.logsumexp(log_w, 0) - math.log(9)))
    torch.testing.assert_close(adaptive.jackknife_bias(log_w), bias, rtol=1e-12, atol=1e-14)
    alone = torch.tensor([[0.0], [-math.inf]], dtype=torch.float64)
    assert adaptive.jackknife_bias(alone).item() == -math.inf
    assert adaptive.draws_needed(alone, 0.05).item() == math.inf


# ------------------------------------------------------------------------------------------------ as an evaluation
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    small = ["model.encoder.width=8", "model.decoder.width=8", "train.epochs=1", "train.curve=none", "train.keep=last"]
    config = resolve("vae", ["model.likelihood=bernoulli_relaxed", *small]).config
    return train(config, out=tmp_path_factory.mktemp("adaptive") / "run", data=tiny_images(80), device="cpu")


measured = partial(Settings, images=8, elbo_samples=2, curve_k=(), curve_images=0, probes=False)


def test_an_evaluation_says_that_k_is_adaptive_and_what_it_came_to(run, monkeypatch):
    found = evaluate(run, measured(se=0.1), data=tiny_images(80), device="cpu")
    log_p, k = found["log_p"], run.per_image()["log_p_k"]
    assert (log_p["mode"], log_p["k"], log_p["se_asked"]) == ("adaptive", "adaptive (SE <= 0.1)", 0.1)
    assert found["about"]["k"] == "adaptive (SE <= 0.1)" and found["about"]["se"] == 0.1
    assert (log_p["k_min"], log_p["k_max"], log_p["draws"]) == (k.min().item(), k.max().item(), k.sum().item())
    assert log_p["mc_se"] < 0.1 and log_p["at_ceiling"] == 0
    assert f"K = adaptive (SE <= 0.1), median {log_p['k_median']:,}" in listed(run)
    monkeypatch.setattr(adaptive, "CEILING", 30)
    at_most = evaluate(run, measured(se=1e-4), data=tiny_images(80), device="cpu")["log_p"]
    assert (at_most["at_ceiling"], at_most["k_max"]) == (8, 30)
    assert "8 at the ceiling of 30, 0 within SE and bias" in listed(run)


def listed(run: runs.Run) -> str:
    return " ".join(line for _, _, line in evaluation_tables([(run, run.evaluation())]))


def test_two_evaluations_of_different_se_or_mode_are_not_compared(run, tmp_path):
    other = runs.Run(shutil.copytree(run.path, tmp_path / "other"))
    evaluate(run, measured(se=0.2), data=tiny_images(80), device="cpu")
    for settings in (measured(se=0.3), measured(k=5)):
        evaluate(other, settings, data=tiny_images(80), device="cpu")
        with pytest.raises(DataError, match=r"K: adaptive \(SE <= 0.2\) against"):
            compare([run, other])
    evaluate(other, measured(se=0.2), data=tiny_images(80), device="cpu")
    assert compare([run, other]).differences[str(other.path)]["log_p"].verdict == "tie"


@pytest.mark.parametrize("wrong", [{"se": 0.0}, {"se": -1.0}, {"se": math.nan}, {"se": math.inf}, {"se": 0.1, "k": 5}])
def test_what_cannot_be_honoured_is_refused(run, wrong):
    with pytest.raises(UsageError, match="se="):
        evaluate(run, measured(**wrong), data=tiny_images(80), device="cpu")
    with pytest.raises(UsageError, match="se="):
        diabolo.evaluate(run, tiny_images(80), **wrong)


@pytest.mark.parametrize("wrong", [("--se", "0"), ("--se", "0.1", "--k", "9"), ("--se", "0.1", "--full")])
def test_the_command_line_refuses_it_too(run, wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", str(run.path), *wrong])
    assert stopped.value.code == 2
    assert "refused" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the cheap Bernoulli term
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("pixels", [1, 111, 112, 300])
def test_softplus_is_summed_to_rounding(dtype, tolerance, pixels):
    logits = (8 * torch.randn(7, 3, pixels, generator=torch.Generator().manual_seed(pixels)).double()).to(dtype)
    truth = F.softplus(logits.double(), threshold=40).sum(-1)
    torch.testing.assert_close(
        sum_softplus(logits).double(), truth, rtol=0, atol=tolerance * (1 + truth.max().item() / 20)
    )
    extreme = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
    assert sum_softplus(extreme).item() == pytest.approx(1e4 + math.log(2), rel=1e-7)


@pytest.mark.parametrize("grey", [False, True])
def test_the_bernoulli_term_is_the_same_with_and_without_gradient_and_torchs(grey):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 2, 5, 5, generator=generator, dtype=torch.float64)
    x = x if grey else x.round()
    logits = 6 * torch.randn(6, 4, 2, 5, 5, generator=generator, dtype=torch.float64)
    base = GreyBernoulli if grey else Bernoulli
    torchs = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").flatten(2).sum(2)
    wanted = logits.clone().requires_grad_()
    slow = IndependentBernoulli(base(logits=wanted), 3).log_prob(x)
    torch.testing.assert_close(IndependentBernoulli(base(logits=logits), 3).log_prob(x), torchs, rtol=0, atol=1e-12)
    torch.testing.assert_close(slow.detach(), torchs, rtol=0, atol=1e-12)
    gradient = torch.autograd.grad(slow.sum(), wanted)[0]
    torch.testing.assert_close(gradient, x - torch.sigmoid(logits), rtol=0, atol=1e-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = IndependentBernoulli(base(logits=logits.float()), 3).log_prob(x.float())
    torch.testing.assert_close(kept.double(), torchs, rtol=1e-5, atol=0)
