"""Bits per dimension: a uniform code costs eight, dequantization is the average over a cell, calibration is the best sigma."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diabolo import registry, training
from diabolo.code_length import DEQUANTIZED, EXACT, bits, code_length, dequantized, gaussian_nats
from diabolo.compare import compare
from diabolo.config import resolve
from diabolo.data import DataSpec, from_tensor
from diabolo.evaluation import Settings, evaluate
from diabolo.images_metrics import psnr, psnr_se, ssim
from diabolo.metrics import Evidence
from diabolo.models.build import build_model
from known import SIGMAS, model_config, sigmas, tiny_images

torch.set_num_threads(1)
D = 3 * 16 * 16
IMAGES = tiny_images(90, (3, 16, 16))
SETTINGS = Settings(k=0, elbo_samples=2, curve_k=(), probes=False)
SIZES = ("model.latent=3", "model.encoder.width=8", "model.decoder.width=8")
SMALL = (*SIZES, "train.epochs=1", "train.curve=none", "train.keep=last")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One network with sigma^2 = 1/2, with its optimum, and with exact probabilities: trained for an epoch and evaluated."""
    out, made = tmp_path_factory.mktemp("bits"), {}
    likelihoods = {
        "fixed": "gaussian model.likelihood.scale=0.7071067811865476 model.likelihood.mean=sigmoid",
        "optimal": "gaussian_optimal",
        "exact": "discretized_logistic",
    }
    for name, likelihood in likelihoods.items():
        config = resolve("vae", [*SMALL, *f"model.likelihood={likelihood}".split()]).config
        run = training.train(config, out=out / name, data=IMAGES, device="cpu")
        evaluate(run, SETTINGS, data=IMAGES, device="cpu")
        made[name] = run
    return made


def test_known_values_of_the_conversion():
    nats = torch.tensor([3072 * math.log(256), 7161.0, 0.0], dtype=torch.float64)
    assert bits(nats, 3072, density=False).tolist() == pytest.approx([8, 7161 / (3072 * math.log(2)), 0], abs=1e-12)
    assert round(bits(nats, 3072, density=False)[1].item(), 3) == 3.363
    assert bits(nats, 3072, density=True)[2].item() == 8  # the uniform density on the unit cube


@pytest.mark.parametrize(("variance", "constant"), [(0.5, 1758.3051), (1.0, 2822.9792)])
def test_the_constants_that_squared_errors_leave_out(variance, constant):
    assert gaussian_nats(torch.zeros((), dtype=torch.float64), variance, 3072).item() == pytest.approx(
        constant, abs=5e-5
    )


def test_the_articles_values_are_worse_than_a_uniform_code():
    """Its losses are squared error + KL: sigma^2 = 1/2 without the constant."""
    constant = gaussian_nats(torch.zeros((), dtype=torch.float64), 0.5, 3072)
    found = bits(constant + torch.tensor([92.6265, 81.5941], dtype=torch.float64), 3072, density=True)
    assert [round(value, 3) for value in found.tolist()] == [8.869, 8.864]


def test_the_gaussian_in_nats_is_that_of_torch():
    g = torch.Generator().manual_seed(0)
    x, mean = torch.rand(5, D, generator=g, dtype=torch.float64), torch.rand(5, D, generator=g, dtype=torch.float64)
    expected = -torch.distributions.Normal(mean, math.sqrt(0.03)).log_prob(x).sum(1)
    found = gaussian_nats((x - mean).square().mean(1), 0.03, D)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_dequantized_levels_stay_in_their_cell_and_fill_it():
    """Of 76,800 uniform draws the mean is within 5 standard errors of 1/2 with probability 1 - 6e-7, the variance likewise."""
    k = torch.randint(0, 256, (100, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    x = dequantized(k.double() / 255, range(100), seed=1)
    u = x * 256 - k
    assert ((u > -1e-9) & (u < 1 + 1e-9)).all()
    n = u.numel()
    assert abs(u.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(u.var().item() - 1 / 12) < 5 * math.sqrt((1 / 80 - 1 / 144) / n)
    assert abs(torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1]) < 5 / math.sqrt(n - 768)


def test_the_noise_of_an_image_depends_on_its_index_alone():
    x = torch.rand(6, 3, 4, 4)
    whole = dequantized(x, range(6), seed=3)
    parts = torch.cat([dequantized(x[:1], [0], seed=3), dequantized(x[1:], range(1, 6), seed=3)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, dequantized(x, range(6), seed=4))


@torch.no_grad()
def test_a_density_is_scored_at_levels_with_their_noise():
    """Networks that say of every image that it is level 100, in the middle of its cell with the deviation of u, and q = N(1, 1):
    E of the nats is D/2 (log(2 pi var) + 1) + 3/2. 5 sigma over 200 images; at k/255 or k/256 it is off by 50."""
    spec, deviation = DataSpec(name="known", shape=(1, 4, 4), values="grey", examples=100), 1 / 256 / math.sqrt(12)
    model = build_model(model_config(3, depth=0), spec).double()
    for parameter in model.parameters():
        parameter.zero_()
    model.encoder.layers[-1].bias[:3] = 1
    model.decoder.layers[-1].bias.fill_(100.5 / 256)
    model.likelihood.log_scale.fill_(math.log(deviation))
    found = code_length(model, torch.full((200, 1, 4, 4), 100 / 255).double(), range(200), samples=1, seed=0)
    nats = 8 * (math.log(2 * math.pi * deviation**2) + 1) + 1.5
    assert sigmas(found["bits"], nats / (16 * math.log(2)) + 8) < SIGMAS
    assert sigmas(found["dequantized_error"], deviation**2) < SIGMAS
    assert found["dequantized_kl"].tolist() == pytest.approx([1.5] * 200, rel=1e-12)


def test_bits_of_an_evaluation_are_those_of_its_columns(runs):
    """Written out from per-image numbers; a fixed sigma^2 of 1/2 costs more than eight, the calibrated one less."""
    fixed = runs["fixed"].evaluation()
    assert fixed["bits_per_dim"]["convention"] == DEQUANTIZED
    column = runs["fixed"].per_image()["bits_per_dim"]
    assert fixed["bits_per_dim"]["value"] == pytest.approx(column.mean().item(), rel=1e-12)
    assert fixed["bits_per_dim"]["value"] > 8.7
    # The same bound at the grid: 2/3 of a level's spread away, which sigma^2 = 1/2 hardly sees.
    grid = -fixed["elbo"]["value"] / (D * math.log(2)) + 8
    assert fixed["bits_per_dim"]["value"] == pytest.approx(grid, abs=0.01)
    calibrated = fixed["bits_per_dim_calibrated"]
    assert calibrated["value"] < 8 < fixed["bits_per_dim"]["value"]
    assert calibrated["sigma"] < 0.5
    assert calibrated["fitted_to"] == len(IMAGES.train)


def test_calibration_changes_little_where_sigma_was_learned(runs):
    """And on the split that sigma was set on, no other sigma is better."""
    found = runs["optimal"].evaluation()
    assert found["bits_per_dim_calibrated"]["value"] <= found["bits_per_dim"]["value"] + 0.05
    error = torch.tensor(found["bits_per_dim_calibrated"]["sigma"] ** 2, dtype=torch.float64)
    best = gaussian_nats(error, error.item(), D)
    assert all(best < gaussian_nats(error, error.item() * factor, D) for factor in (0.9, 1.1, 2.0))


def test_calibration_is_the_mean_error_over_the_training_split(runs):
    model, x = runs["fixed"].model(), IMAGES.train.values.float() / 255
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack([(model(x, samples=20).likelihood.mean - x).square().mean(0) for _ in range(5)])
    sigma = runs["fixed"].evaluation()["bits_per_dim_calibrated"]["sigma"]
    assert sigma**2 == pytest.approx(draws.mean().item(), rel=0.02)  # x at k/255 here, at (k + u)/256 there


def test_probabilities_need_no_dequantization(runs, evidence):
    exact = runs["exact"].evaluation()
    assert exact["bits_per_dim"]["convention"] == EXACT
    assert exact["bits_per_dim"]["value"] == pytest.approx(-exact["elbo"]["value"] / (D * math.log(2)), rel=1e-12)
    assert "bits_per_dim_calibrated" not in exact
    assert registry.get("metric", "bits_per_dim_calibrated")(evidence) is None


@pytest.fixture
def evidence() -> Evidence:
    half = torch.full((4,), 0.5, dtype=torch.float64)
    return Evidence(
        split="test", unit="nats/image", distortion=half, mse_mean=torch.tensor([0.01, 0.03], dtype=torch.float64),
        mean=half[:, None], samples=1, bits=torch.tensor([3.0, 5.0], dtype=torch.float64), pixels=True, dimensions=D,
    )  # fmt: skip


def test_calibrated_bits_are_those_of_error_and_rate(evidence):
    """sigma^2 = 0.015: D/2 (log(2 pi sigma^2) + error / sigma^2) + KL nats of each image."""
    error, kl = (torch.tensor(values, dtype=torch.float64) for values in ([0.01, 0.03], [5.0, 9.0]))
    known = replace(evidence, dequantized_error=error, dequantized_kl=kl, train_variance=0.015, train_examples=7)
    found = registry.get("metric", "bits_per_dim_calibrated")(known)
    nats = D / 2 * (math.log(2 * math.pi * 0.015) + 0.02 / 0.015) + 7
    assert found["value"] == pytest.approx(nats / (D * math.log(2)) + 8, rel=1e-12)
    assert (found["sigma"], found["fitted_to"]) == (math.sqrt(0.015), 7)


def test_psnr_is_that_of_the_mean_error_with_its_standard_error(evidence):
    found = registry.get("metric", "psnr")(evidence)
    assert found["value"] == pytest.approx(-10 * math.log10(0.02), rel=1e-12)  # not the mean of 20 and 15.2
    step = 1e-7
    slope = (psnr(0.02 + step) - psnr(0.02 - step)) / (2 * step)
    assert found["se"] == pytest.approx(abs(slope) * 0.01, rel=1e-5)
    assert psnr_se(0.02, 0.01) == found["se"]


def test_numbers_that_do_not_apply_are_absent(evidence):
    for changed in (replace(evidence, pixels=False), replace(evidence, mse_mean=torch.zeros(2, dtype=torch.float64))):
        assert registry.get("metric", "psnr")(changed) is None
    assert registry.get("metric", "ssim")(evidence) is None
    assert registry.get("metric", "bits_per_dim")(replace(evidence, bits=None)) is None


def test_ssim_of_an_evaluation_is_that_of_the_reconstructions(runs):
    model, x = runs["optimal"].model(), IMAGES.test.values.float() / 255
    with torch.no_grad():
        expected = ssim(x, model.reconstruct(x).mean[0]).mean().item()
    assert runs["optimal"].evaluation()["ssim"]["value"] == pytest.approx(expected, rel=1e-5)


def test_vectors_of_real_numbers_have_no_bits(tmp_path):
    data = from_tensor(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)))
    config = resolve("linear-vae", ["model.latent=2", "train.epochs=1"]).config
    run = training.train(config, out=tmp_path / "run", data=data, device="cpu")
    found = evaluate(run, SETTINGS, data=data, device="cpu")
    assert not {"bits_per_dim", "bits_per_dim_calibrated", "psnr", "ssim", "log_p"} & set(found)


def test_runs_are_compared_in_bits_image_by_image(runs):
    [found] = compare([runs["fixed"], runs["optimal"]]).differences.values()
    a, b = (runs[name].per_image()["bits_per_dim"] for name in ("fixed", "optimal"))
    assert found["bits_per_dim"].mean == pytest.approx((b - a).mean().item(), rel=1e-12)
    assert "log_p" not in found
