"""Closed-form Gaussians: dense derivations, optima, the bound that they lie on, the noise of dequantization, and the verb.

Statistical checks are 5-sigma with fixed seeds: on fresh seeds each number checked would fail a correct program once in
1.7 million times.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from diabolo import cli, linear, training
from diabolo.code_length import bits
from diabolo.config import resolve
from diabolo.data import Access, from_tensor, load
from diabolo.data.levels import as_levels
from diabolo.data.spec import DataSpec
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.images_metrics import mean_squared_errors, psnr
from diabolo.linear import gaussians, pca, table
from diabolo.metrics import importance_log_weights
from diabolo.models.build import build_model
from known import SIGMAS, model_config, sigmas, tiny_vectors

torch.set_num_threads(1)
GRID, DEQUANTIZED = linear.GRID, linear.DEQUANTIZED


def cloud(count, dimensions, seed=0):
    """Correlated Gaussian vectors (N, D) float64 whose variances span three orders."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64))[0]
    scales = torch.logspace(0.5, -1, dimensions, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) * scales @ axes.T + 1


def smooth_images(count=500, shape=(1, 4, 4), seed=0):
    """Images of levels whose neighbours resemble each other; every pixel varies."""
    x = 100 + 25 * cloud(count, math.prod(shape), seed)
    return from_tensor(x.round().clamp(0, 255).to(torch.uint8).view(-1, *shape), name="smooth", validation=0)


def flat(split):
    return split.values.flatten(1).double()


@pytest.fixture(scope="module")
def smooth():
    return smooth_images()


@pytest.fixture(scope="module")
def lines(smooth):
    return linear.lines(smooth, latents=(1, 3, 8, 15), fixed=((3, 0.5), (12, 0.02), (12, 0.5)))


# ------------------------------------------------------------------------------------------------ the model, written out
class Dense:
    """Probabilistic PCA with its matrices written out, scored with D x D covariances and Bayes' rule for q x q ones."""

    def __init__(self, x, latent, noise=None):
        """Tipping and Bishop, section 3.2: W = U_q (L_q - sigma^2)^(1/2) from the covariance of x (N, D)."""
        self.mean = x.mean(0)
        covariance = (x - self.mean).T @ (x - self.mean) / len(x)
        values, axes = torch.linalg.eigh(covariance)
        self.noise = values[:-latent].mean() if noise is None else torch.tensor(noise, dtype=torch.float64)
        self.weight = axes[:, -latent:] * (values[-latent:] - self.noise).clamp(min=0).sqrt()
        self.eye = torch.eye(latent, dtype=torch.float64)

    def distribution(self):
        noise = self.noise * torch.eye(len(self.mean), dtype=torch.float64)
        return MultivariateNormal(self.mean, self.weight @ self.weight.T + noise)

    def posterior(self, x):
        precision = self.eye + self.weight.T @ self.weight / self.noise
        covariance = torch.linalg.inv(precision)
        at = (x - self.mean) @ self.weight / self.noise @ covariance
        return MultivariateNormal(at, covariance.expand(len(x), -1, -1))

    def kl(self, x):
        return kl_divergence(self.posterior(x), MultivariateNormal(torch.zeros(len(self.eye)).double(), self.eye))

    def at_mean(self, x):
        return self.mean + self.posterior(x).mean @ self.weight.T

    def sse(self, x):
        spread = (self.weight @ self.posterior(x).covariance_matrix @ self.weight.T).diagonal(dim1=1, dim2=2).sum(1)
        return (x - self.at_mean(x)).square().sum(1) + spread


#: 8 axes hold all of 9 examples: no noise is left to fit, which is refused (see below).
CASES = [(n, q, s) for n in (300, 9) for q in (1, 3, 8) for s in (None, 0.5, 0.02) if (n, q, s) != (9, 8, None)]


@pytest.mark.parametrize(("count", "latent", "noise"), CASES)
def test_likelihood_rate_and_error_are_those_of_the_dense_model(count, latent, noise):
    """With 9 examples of 12 values, too, where the training covariance has four axes without variance."""
    train, test = cloud(count, 12), cloud(50, 12, seed=1)
    test = (test - test.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(test.T))).T + 1  # off the axes
    dense, found = Dense(train, latent, noise), linear.spectrum(train, test)
    model = linear.probabilistic_pca(found.eigenvalues, latent, noise)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(model.nll(found.squares), -dense.distribution().log_prob(test), **close)
    torch.testing.assert_close(model.kl(found.squares), dense.kl(test), **close)
    torch.testing.assert_close(model.sse(found.squares), dense.sse(test), **close)
    torch.testing.assert_close(model.sse_mean(found.squares), (test - dense.at_mean(test)).square().sum(1), **close)
    assert model.noise == pytest.approx(dense.noise.item(), rel=1e-12)
    assert model.active == (dense.weight.norm(dim=0) > 1e-9).sum()


def test_the_full_covariance_is_the_dense_one_and_ppca_with_all_axes_but_one():
    train, test = cloud(300, 12), cloud(50, 12, seed=1)
    found, covariance = linear.spectrum(train, test), torch.cov(train.T, correction=0)
    model = linear.full_covariance(found.eigenvalues)
    truth = MultivariateNormal(train.mean(0), covariance).log_prob(test)
    torch.testing.assert_close(model.nll(found.squares), -truth, rtol=1e-10, atol=0)
    most = linear.probabilistic_pca(found.eigenvalues, 11)
    torch.testing.assert_close(most.nll(found.squares), model.nll(found.squares), rtol=1e-12, atol=0)
    assert most.active == 11 and model.noise == 0


def log_likelihood(x, mean, weight, log_noise):
    covariance = weight @ weight.T + log_noise.exp() * torch.eye(len(mean), dtype=torch.float64)
    return MultivariateNormal(mean, covariance).log_prob(x).mean()


@pytest.mark.parametrize("noise", [None, 0.3])
def test_it_is_the_best_of_all_linear_models(noise):
    """No step of any size in any direction tried makes the training data likelier, and the gradient is 0.

    The noise 0.3 exceeds some of the eigenvalues of the 6 axes: those directions must stay unused.
    """
    x = cloud(200, 8)
    dense = Dense(x, 6, noise)
    parameters = [p.clone().requires_grad_() for p in (dense.mean, dense.weight, dense.noise.log())]
    best = log_likelihood(x, *parameters)
    gradients = torch.autograd.grad(best, parameters if noise is None else parameters[:2])
    assert max(g.abs().max().item() for g in gradients) < 1e-10
    found = linear.spectrum(x, x)
    model = linear.probabilistic_pca(found.eigenvalues, 6, noise)
    assert model.nll(found.squares).mean().item() == pytest.approx(-best.item(), rel=1e-12)
    assert model.active == (6 if noise is None else int((found.eigenvalues > 0.3).sum())) and model.active > 2
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.03, 0.3):
        for _ in range(20):
            moved = [p + size * torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
            assert log_likelihood(x, *moved[:2], moved[2] if noise is None else parameters[2]) < best


def test_each_latent_makes_the_training_data_likelier():
    x = cloud(300, 12)
    found = linear.spectrum(x, x)
    free, given = (
        [linear.probabilistic_pca(found.eigenvalues, q, noise).nll(found.squares).mean() for q in range(1, 12)]
        for noise in (None, 0.5)
    )
    assert (torch.stack(free).diff() < 0).all()
    active = int((found.eigenvalues > 0.5).sum())
    assert 2 < active < 11 and (torch.stack(given[:active]).diff() < 0).all()
    assert len(set(map(float, given[active - 1 :]))) == 1, "sigma^2 = 1/2 uses so many, whatever q"


@pytest.mark.parametrize(("latent", "noise"), [(0, None), (12, None), (12, 0.5), (3, 0.0), (3, -1.0), (3, math.inf)])
def test_models_that_are_none_are_refused(latent, noise):
    with pytest.raises(UsageError, match="latents for 12|noise of variance"):
        linear.probabilistic_pca(linear.spectrum(cloud(40, 12), cloud(2, 12)).eigenvalues, latent, noise)


# ------------------------------------------------------------------------------------------------ the eigendecomposition
@pytest.mark.parametrize("count", [40, 7])
def test_levels_need_no_conversion_and_parts_no_special_size(count, monkeypatch):
    x = smooth_images(50).train.values[:count].flatten(1)
    whole, exact = linear.fit(x.double(), 5), torch.linalg.svdvals(x.double() - x.double().mean(0))
    monkeypatch.setattr(pca, "CHUNK", 3)
    monkeypatch.setattr(pca, "_ROWS", 5)
    found = linear.fit(x, 5)
    torch.testing.assert_close(found.mean, x.double().mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.variances, exact[:5].square() / count, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.components, whole.components, rtol=1e-8, atol=1e-8)


def test_energy_off_the_axes_of_few_examples_is_kept():
    train, test = cloud(6, 12), cloud(30, 12, seed=1)
    found = linear.spectrum(train, test)
    assert found.eigenvalues.shape == (12,) and gaussians.rank(found.eigenvalues) == 5
    torch.testing.assert_close(found.squares.sum(1), (test - train.mean(0)).square().sum(1))
    assert (found.squares >= 0).all()


# ------------------------------------------------------------------------------------------------ the table
def named(found, name):
    return next(line for line in found if line.name == name)


def numbers(line):
    return {key: value for key, value in line.to_dict().items() if isinstance(value, float)}


def test_the_lines_are_those_that_were_asked_for_in_order(lines):
    names = [
        "pPCA, q = 3, sigma^2 = 1/2",
        "pPCA, q = 12, sigma^2 = 0.02",
        "pPCA, q = 12, sigma^2 = 1/2",
        *(f"pPCA, q = {q}, ML sigma" for q in (1, 3, 8, 15)),
        "full covariance",
    ]
    assert [line.name for line in lines.grid] == names == [line.name for line in lines.dequantized]
    assert lines.left_out == [] and {line.n for line in lines.grid} == {lines.n} == {50} and lines.fitted_to == 450
    full = lines.grid[-1]
    assert full.latent is full.variance is full.rate is full.kl is full.sse is full.psnr is full.sse_and_kl is None
    json.dumps(lines.to_dict(), allow_nan=False)


def test_grid_lines_are_the_dense_model_at_k_over_255(smooth, lines):
    train, test = flat(smooth.train) / 255, flat(smooth.test) / 255
    for line in lines.grid[:-1]:
        dense = Dense(train, line.latent, None if line.fitted else line.variance)
        nll = -dense.distribution().log_prob(test)
        assert line.nll == pytest.approx(nll.mean().item(), rel=1e-9)
        assert line.nll_se == pytest.approx(nll.std().item() / math.sqrt(50), rel=1e-9)
        assert line.bits_per_dim == pytest.approx(nll.mean().item() / 16 / math.log(2) + 8, rel=1e-9)
        assert line.bits_se == pytest.approx(line.nll_se / 16 / math.log(2), rel=1e-9)
        assert line.kl == pytest.approx(dense.kl(test).mean().item(), rel=1e-9)
        assert line.rate == pytest.approx(dense.kl(train).mean().item(), rel=1e-9), "over the training images"
        assert line.sse == pytest.approx(dense.sse(test).mean().item(), rel=1e-9)
        assert line.psnr == pytest.approx(psnr(mean_squared_errors(dense.at_mean(test), test).mean().item()))
        axes = linear.fit(train, line.latent)
        error = mean_squared_errors(axes.decode(axes.encode(test)), test).mean().item()
        assert line.psnr_projection == pytest.approx(psnr(error)) and line.psnr < line.psnr_projection
    covariance = torch.cov(train.T, correction=0)
    assert torch.allclose(lines.eigenvalues, torch.linalg.eigvalsh(covariance).flip(0), rtol=1e-9)
    assert lines.above(0.02) == (lines.eigenvalues > 0.02).sum() > lines.above(0.5)
    assert sum(lines.shares(16)) == pytest.approx(1)
    assert lines.shares(2)[1] == pytest.approx((lines.eigenvalues[1] / covariance.trace()).item())


def test_the_article_s_scale_is_the_likelihood_without_its_constant(lines):
    """SSE + KL = NLL - D/2 log(2 pi sigma^2) at sigma^2 = 1/2, and for any sigma^2 the two parts of the ELBO of the exact
    posterior: SSE / (2 sigma^2) + D/2 log(2 pi sigma^2) + KL."""
    for line in (line for found in (lines.grid, lines.dequantized) for line in found[:-1]):
        constant = 8 * math.log(2 * math.pi * line.variance)
        assert line.nll == pytest.approx(line.sse / (2 * line.variance) + constant + line.kl, rel=1e-10)
        if line.variance == 0.5:
            assert line.sse_and_kl == pytest.approx(line.nll - 8 * math.log(math.pi), rel=1e-10)


def test_bits_per_dim_of_a_uniform_density_is_8():
    assert bits(0.0, 3072, density=True) == 8
    assert bits(3072 * math.log(256), 3072, density=True) == pytest.approx(16)
    assert bits(1836.82, 3072, density=True) == pytest.approx(8.8626, abs=5e-5)  # as published in tables of CIFAR-10


def test_permuted_pixels_change_nothing(smooth, lines):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    splits = {
        name: replace(split, values=split.values.flatten(1)[:, order].view_as(split.values))
        for name, split in (("train", smooth.train), ("test", smooth.test))
    }
    permuted = linear.lines(replace(smooth, **splits), (1, 3, 8, 15), ((3, 0.5), (12, 0.02), (12, 0.5)))
    assert not torch.equal(splits["train"].values, smooth.train.values)
    for one, other in zip([*lines.grid, *lines.dequantized], [*permuted.grid, *permuted.dequantized]):
        assert other.name == one.name
        assert numbers(other) == pytest.approx(numbers(one), rel=1e-9)


def test_colour_and_grey_values_are_the_same_numbers(lines):
    """D values are D values, whatever their shape; k/255 in 32 bits is the level k."""
    colour = linear.lines(smooth_images(shape=(4, 2, 2)), (1, 3, 8, 15), ((3, 0.5), (12, 0.02), (12, 0.5)))
    assert [line.to_dict() for line in colour.grid] == [line.to_dict() for line in lines.grid]
    data = smooth_images()
    grey = {name: replace(data.split(name), values=data.split(name).values.float() / 255) for name in ("train", "test")}
    assert linear.lines(replace(data, **grey), (3,), ()).grid[0] == named(lines.grid, "pPCA, q = 3, ML sigma")


@pytest.mark.parametrize(("values", "levels"), [([0.0, 1.0, 3 / 255], [0, 255, 3]), ([0.5], None), ([256 / 255], None)])
def test_levels_are_known_from_other_numbers(values, levels):
    found = as_levels(torch.tensor([values]))
    assert found is None if levels is None else found.tolist() == [levels] and found.dtype == torch.uint8
    assert as_levels(torch.tensor([[-1 / 255]])) is None and as_levels(torch.tensor([[math.nan]])) is None


# ------------------------------------------------------------------------------------------------ dequantization
def test_the_noise_of_dequantization_is_integrated_exactly():
    """Each test image's mean NLL, KL and SSE over u, against 4,000 draws of u through the dense model: 5 sigma for 36 means.

    The levels are few and near each other, so that the noise matters: without it the same checks fail by far.
    """
    generator = torch.Generator().manual_seed(0)
    levels = (2 + cloud(200, 6)).round().clamp(0, 12)
    train, test = levels[:188], levels[188:]
    seen = linear.spectrum(train, test).moved(DEQUANTIZED.scale, DEQUANTIZED.noise)
    model = linear.probabilistic_pca(seen.eigenvalues, 2)
    dense = Dense(train / 256, 2, None)
    # The fit of all noisy copies at once: the covariance of x = (k + u)/256, with the noise of u as one more variance.
    covariance = torch.cov(train.T, correction=0) / 256**2 + torch.eye(6, dtype=torch.float64) / (12 * 256**2)
    values, axes = torch.linalg.eigh(covariance)
    dense.mean, dense.noise = (train.mean(0) + 0.5) / 256, values[:4].mean()
    dense.weight = axes[:, 4:] * (values[4:] - dense.noise).sqrt()
    x = (test + torch.rand(4000, *test.shape, generator=generator, dtype=torch.float64)).flatten(0, 1) / 256
    exact = {"nll": model.nll, "kl": model.kl, "sse": model.sse}
    drawn = {"nll": lambda x: -dense.distribution().log_prob(x), "kl": dense.kl, "sse": dense.sse}
    without = linear.spectrum(train, test).moved(DEQUANTIZED.scale, 0.0).squares
    for name, measured in drawn.items():
        draws = measured(x).view(4000, 12)
        assert sigmas(draws, exact[name](seen.squares)) < SIGMAS
        assert sigmas(draws, exact[name](without)) > 4 * SIGMAS


def test_the_fit_to_dequantized_images_is_that_of_all_noisy_copies():
    """Mean and covariance of 3,000 noisy copies of the training images against their exact expectations: 5 sigma for 42 means."""
    generator = torch.Generator().manual_seed(0)
    levels = (2 + cloud(20, 6)).round().clamp(0, 12)
    x = (levels + torch.rand(3000, *levels.shape, generator=generator, dtype=torch.float64)) / 256
    expected = (255 * (levels / 255).mean(0) + 0.5) / 256
    assert sigmas(x.mean(1), expected) < SIGMAS
    centred = x - expected
    second = (centred.mT @ centred / 20).flatten(1)
    grid = torch.cov(levels.T / 255, correction=0)
    covariance = (255 / 256) ** 2 * grid + torch.eye(6, dtype=torch.float64) / (12 * 256**2)
    assert sigmas(second, covariance.flatten()) < SIGMAS
    moved = linear.spectrum(levels, levels).moved(DEQUANTIZED.scale, DEQUANTIZED.noise)
    torch.testing.assert_close(moved.eigenvalues, torch.linalg.eigvalsh(covariance).flip(0), rtol=1e-9, atol=0)


def test_psnr_of_dequantized_lines_is_of_the_images_themselves(smooth, lines):
    """Encode (k + 1/2)/256, decode the mean, go back to k/255."""
    train, test = flat(smooth.train), flat(smooth.test)
    line = named(lines.dequantized, "pPCA, q = 12, sigma^2 = 0.02")
    covariance = torch.cov(train.T, correction=0) / 256**2 + torch.eye(16, dtype=torch.float64) / (12 * 256**2)
    values, axes = torch.linalg.eigh(covariance)
    mean, shrink = (train.mean(0) + 0.5) / 256, (1 - 0.02 / values).clamp(min=0)
    shrink[:4] = 0
    x = (test + 0.5) / 256
    back = (((x - mean) @ axes * shrink @ axes.T + mean) * 256 - 0.5) / 255
    assert line.psnr == pytest.approx(psnr((back - test / 255).square().mean().item()), rel=1e-9)
    assert line.active == (values > 0.02).sum() < 12


def test_the_two_conventions_differ_by_little_where_the_noise_is_small(lines):
    for one, other in zip(lines.grid, lines.dequantized):
        assert 0 < abs(one.bits_per_dim - other.bits_per_dim) < 0.02
        assert one.psnr == pytest.approx(other.psnr, abs=0.05) and one.psnr_projection == other.psnr_projection


# ------------------------------------------------------------------------------------------------ the bound
def test_ppca_lies_on_the_water_filling_curve_of_its_own_covariance(smooth):
    """Over the training images rate and SSE are on the curve at s = sigma^2 if q allows, and above it if not."""
    own = linear.lines(replace(smooth, test=smooth.train), (), [(q, s) for s in (0.3, 0.02, 0.004) for q in (2, 15)])
    for line in own.grid[:-1]:
        rate, sse = (found.item() for found in linear.water_filling(own.eigenvalues, [line.variance]))
        assert line.kl == pytest.approx(line.rate, rel=1e-9)
        if line.latent >= own.above(line.variance):
            assert (line.rate, line.sse) == pytest.approx((rate, sse), rel=1e-9)
            assert line.active == own.above(line.variance)
        else:
            least = water_level(own.eigenvalues, line.rate)
            assert line.sse > 1.01 * linear.water_filling(own.eigenvalues, [least])[1].item()
    assert {line.active < line.latent for line in own.grid[:-1]} == {True, False}


def water_level(eigenvalues, rate):
    """The level of a rate, by bisection."""
    low, high = 1e-12, eigenvalues[0].item()
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if linear.water_filling(eigenvalues, [middle])[0].item() > rate else (low, middle)
    return low


def test_water_filling_beats_every_other_split_of_the_same_error():
    """Independent coordinates coded with errors d_i <= lambda_i cost 1/2 sum log(lambda_i / d_i); 60,000 splits are tried."""
    eigenvalues = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for level in (2.0, 0.6, 0.1):
        rate, sse = (found.item() for found in linear.water_filling(eigenvalues, [level]))
        shares = torch.rand(20_000, 3, generator=generator, dtype=torch.float64)
        errors = sse * shares / shares.sum(1, keepdim=True)
        rates = 0.5 * (eigenvalues / errors).log().sum(1)[(errors <= eigenvalues).all(1)]
        assert len(rates) > 100 and rate <= rates.min() < rate + 0.1
    assert linear.water_filling(eigenvalues, [1.0])[0].item() == pytest.approx(0.5 * math.log(4))
    assert [found.tolist() for found in linear.water_filling(eigenvalues, [5.0])] == [[0.0], [5.25]]


def test_the_slope_of_the_curve_is_that_of_the_water_level():
    """dR/dSSE = -1 / (2 s): what sigma^2 says an error costs."""
    eigenvalues, levels = (
        linear.spectrum(cloud(100, 12), cloud(2, 12)).eigenvalues,
        torch.logspace(-1.5, 0, 400).double(),
    )
    rate, sse = linear.water_filling(eigenvalues, levels)
    assert (rate.diff() < 0).all() and (sse.diff() > 0).all()
    slope = rate.diff() / sse.diff()
    assert torch.allclose(slope, -0.5 / (levels[1:] * levels[:-1]).sqrt(), rtol=1e-2)
    with pytest.raises(UsageError, match="water level"):
        linear.water_filling(eigenvalues, [0.1, 0.0])


# ------------------------------------------------------------------------------------------------ the linear VAE
def as_vae(x, latent):
    """A linear VAE in float64 with the weights of probabilistic PCA fitted to x (N, D), and the exact posterior."""
    axes, count = linear.fit(x, latent), x.shape[1]
    noise = axes.residual / (count - latent)
    weight = axes.components.T * (axes.variances - noise).sqrt()
    spread = noise / axes.variances
    towards = spread[:, None] * weight.T / noise
    model = build_model(model_config(latent, depth=0), DataSpec(name="known", shape=(count,), values="real")).double()
    encoder, decoder = model.encoder.layers[-1], model.decoder.layers[-1]
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([towards, torch.zeros_like(towards)]))
        encoder.bias.copy_(torch.cat([-towards @ axes.mean, spread.log()]))
        decoder.weight.copy_(weight)
        decoder.bias.copy_(axes.mean)
        model.likelihood.log_scale.fill_(0.5 * math.log(noise))
    return model.requires_grad_(False)


def test_a_linear_vae_with_these_weights_has_exactly_this_likelihood():
    """Its ELBO and importance weights, from the code that measures networks, have no spread at all."""
    train, test = cloud(200, 12), cloud(20, 12, seed=1)
    found = linear.spectrum(train, test)
    exact = -linear.probabilistic_pca(found.eigenvalues, 4).nll(found.squares)
    log_w = importance_log_weights(as_vae(train, 4), test, range(20), 50, seed=0)
    torch.testing.assert_close(log_w, exact.expand(50, 20), rtol=0, atol=1e-9)


def test_no_trained_linear_vae_is_better_than_ppca_on_what_it_was_trained_on(tmp_path):
    """The mean ELBO of an evaluation (5 Monte-Carlo errors below its estimate) against the largest mean log-likelihood there is;
    after training it is within 1 nat of it, so that a likelihood too low by more would be seen."""
    data = from_tensor(cloud(400, 12).float(), name="cloud", validation=0)
    words = [
        "model.latent=4",
        "data=tensor",
        "train.epochs=25",
        "train.batch=30",
        "train.lr=0.03",
        "train.curve=none",
        "train.ema=0.99",
        "train.keep=last",
    ]
    config = resolve("linear-vae", words).config
    run = training.train(config, out=tmp_path / "run", data=data, device="cpu")
    settings = Settings(split="train", k=10, images=10, curve_k=(1,), curve_images=2, probes=False)
    found = evaluate(run, settings, data=data, device="cpu")["elbo"]
    x = data.train.values
    spectrum = linear.spectrum(x, x)
    exact = -linear.probabilistic_pca(spectrum.eigenvalues, 4).nll(spectrum.squares).mean().item()
    assert exact - 1 < found["value"] and found["value"] - SIGMAS * found["mc_se"] < exact


# ------------------------------------------------------------------------------------------------ degenerate data
def test_constant_pixels_leave_no_density_on_the_grid_but_one_of_dequantized_images():
    data = smooth_images()
    for split in (data.train, data.test):
        split.values[:, :, 0, :2] = 7
    found = linear.lines(data, (3, 13, 14, 15, 16, 40), ((15, 0.5), (16, 0.5)))
    missing = {(line.convention, line.name): line.reason for line in found.left_out}
    for name in ("pPCA, q = 14, ML sigma", "pPCA, q = 15, ML sigma", "full covariance"):
        assert "14 of 16 directions" in missing["grid", name] and ("dequantized", name) not in missing
        assert math.isfinite(named(found.dequantized, name).nll)
    for name in ("pPCA, q = 16, ML sigma", "pPCA, q = 40, ML sigma", "pPCA, q = 16, sigma^2 = 1/2"):
        assert "16 values" in missing["grid", name] and "16 values" in missing["dequantized", name]
    assert len(missing) == 3 + 6
    assert named(found.grid, "pPCA, q = 13, ML sigma").variance > 0
    # All that varies is kept, but shrunk: the projection loses nothing, the mean at z = mu does.
    given = named(found.grid, "pPCA, q = 15, sigma^2 = 1/2")
    assert given.psnr_projection is None and 0 < given.psnr < 100
    with pytest.raises(DataError, match="14 of 16 directions") as caught:
        linear.full_covariance(found.eigenvalues)
    assert "fewer than 14 latents" in caught.value.remedy and "noise of dequantization" in caught.value.remedy


def test_fewer_images_than_pixels():
    data = smooth_images(20, (1, 6, 6))
    assert len(data.train) == 18
    found = linear.lines(data, (5, 16, 17, 30), ((30, 0.1),))
    assert {(line.convention, line.name) for line in found.left_out} == {
        ("grid", name) for name in ("pPCA, q = 17, ML sigma", "pPCA, q = 30, ML sigma", "full covariance")
    }
    train = flat(data.train) / 255
    dense = Dense(train, 5).distribution().log_prob(flat(data.test) / 255)
    assert named(found.grid, "pPCA, q = 5, ML sigma").nll == pytest.approx(-dense.mean().item(), rel=1e-9)
    last = named(found.dequantized, "full covariance")
    covariance = torch.cov(train.T, correction=0) * (255 / 256) ** 2 + torch.eye(36).double() / (12 * 256**2)
    quadratic = MultivariateNormal((255 * train.mean(0) + 0.5) / 256, covariance)
    middle = -quadratic.log_prob((flat(data.test) + 0.5) / 256).mean().item()
    spread = 0.5 * torch.linalg.inv(covariance).trace().item() / (12 * 256**2)
    assert last.nll == pytest.approx(middle + spread, rel=1e-7)


def test_other_data_are_refused_with_the_way_out():
    with pytest.raises(UsageError, match="binary here") as caught:
        linear.lines(load("digits", {"binarize": True}, Access()))
    assert "data.binarize=false" in caught.value.remedy
    with pytest.raises(UsageError, match="no levels k/255") as caught:
        linear.lines(tiny_vectors())
    assert "spectrum" in caught.value.remedy
    with pytest.raises(UsageError, match="no levels k/255"):
        linear.lines(from_tensor(torch.rand(30, 1, 4, 4), name="between"))
    data = smooth_images()
    one = replace(data, test=replace(data.test, values=data.test.values[:1]))
    with pytest.raises(DataError, match="one image"):
        linear.lines(one)


def test_what_would_not_fit_into_memory_is_refused_before_it_is_tried(monkeypatch):
    monkeypatch.setattr(table, "LARGEST", 10_000)
    with pytest.raises(UsageError, match="GB of memory") as caught:
        linear.lines(smooth_images())
    assert "data.size" in caught.value.remedy


# ------------------------------------------------------------------------------------------------ the verb
def say(*words):
    return cli._run([str(word) for word in words])


def test_the_verb_prints_both_tables(capsys):
    assert say("linear", "digits", "validation=0") == 0
    out = capsys.readouterr().out
    for text in (
        "data digits, grey values, D = 64: fitted to the train split (n = 1,500), scored on the test split (n = 297)",
        "a density at x = k/255; not ranked",
        "x = (k + u)/256, u uniform, exact mean over u: the convention that models are ranked in",
        "+- standard error over images",
        "left out: full covariance (grid): The training covariance has only 61 of 64 directions",
    ):
        assert text in out
    found = linear.lines(load("digits", {"validation": 0}, Access()), (20,), ((20, 0.5),))
    for line in (*found.grid, *found.dequantized):
        assert f"{line.nll:.2f} +- {line.nll_se:.2f}" in out
        assert f"{line.bits_per_dim:.4f} +- {line.bits_se:.4f}" in out
    assert "q = 64" not in out, "latents that nobody asked for are not left out aloud"


def test_the_verb_takes_latents_and_variances_and_prints_json(capsys):
    words = ("--latent", 2, "--latent", 5, "--variance", 0.1, "--variance", 0.02, "--json")
    assert say("linear", "digits", "data.validation=100", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fitted_to"] == {"split": "train", "n": 1400} and found["scored"]["unit"] == "nats/image"
    expected = linear.lines(
        load("digits", {"validation": 100}, Access()), (2, 5), ((2, 0.1), (2, 0.02), (5, 0.1), (5, 0.02))
    )
    assert found == json.loads(json.dumps(expected.to_dict()))
    assert "k/255" in found["grid"]["convention"] and "(k + u)/256" in found["dequantized"]["convention"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("digits", "--latent", 0), "--latent 0 is refused"),
        (("digits", "--latent", 5, "--latent", 64), "An image of digits has 64 values"),
        (("digits", "--variance", 0), "--variance 0 is refused"),
        (("digits", "--variance", "nan"), "--variance nan is refused"),
        (("digist",), 'Did you mean "digits"?'),
        (("digits", "validaton=0"), 'Did you mean "data.validation"?'),
        (("digits", "binarize=true"), "data.binarize=false"),
        (("spiral",), "no levels k/255"),
        ((), "requires an argument"),
    ],
)
def test_wrong_words_and_data_are_usage_errors(words, text, capsys):
    assert say("linear", *words) == 2
    assert text in capsys.readouterr().err


def test_wrong_words_cost_no_import_of_torch():
    words = [
        ["linear", "--help"],
        ["linear", "digits", "--latent", "0"],
        ["linear", "digist"],
        ["linear", "digits", "a=1"],
    ]
    code = f"import sys\nfrom diabolo import cli\nfor words in {words!r}: cli._run(words)\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_of_images_is_scored(tmp_path, capsys):
    from PIL import Image

    for i, image in enumerate(smooth_images(60, (1, 8, 8)).train.values):
        Image.fromarray(image[0].numpy()).resize((32, 32)).save(tmp_path / f"{i}.png")
    assert say("linear", f"folder:{tmp_path}", "size=16", "--latent", 4, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dimensions"] == 256 and [line["latent"] for line in found["grid"]["lines"]] == [4, 4]
    assert {line["name"] for line in found["left_out"]} == {"full covariance"}
