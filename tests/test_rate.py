"""PSNR, SSIM, PCA and points of rate and distortion: known answers, slow direct computations, curves that never bend back."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diabolo import compression, data, linear, rate, training
from diabolo.coding import codec as codecs
from diabolo.coding import quantiser
from diabolo.config import resolve
from diabolo.data import Loader
from diabolo.errors import UsageError
from diabolo.images_metrics import mean_squared_errors, psnr, ssim
from known import tiny_images, tiny_vectors

torch.set_num_threads(1)


def images(count=4, shape=(1, 16, 14), seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ PSNR
def test_psnr_is_ten_decibels_a_factor_of_ten():
    assert psnr(1.0) == 0 and psnr(0.01) == pytest.approx(20) and psnr(0.0) == math.inf


def test_the_error_is_over_all_pixels_of_all_images():
    x, y = torch.zeros(2, 1, 12, 12), torch.zeros(2, 1, 12, 12)
    y[0], y[1, 0, 0, 0] = 0.1, 1
    found = mean_squared_errors(x, y)
    assert found.tolist() == pytest.approx([0.01, 1 / 144]) and found.dtype == torch.float64
    many = images(1100)
    assert torch.allclose(mean_squared_errors(many, 0 * many), many.square().flatten(1).mean(1), rtol=1e-12)


# ------------------------------------------------------------------------------------------------ SSIM
def slow_ssim(x, y):
    """One image (C, H, W) from the definition: every window weighed by the two-dimensional Gaussian, moments about its means."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2, found = 0.01**2, 0.03**2, []
    for a, b in zip(x, y):
        for i in range(a.shape[0] - 10):
            for j in range(a.shape[1] - 10):
                p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                found.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return np.mean(found)


@pytest.mark.parametrize("shape", [(1, 16, 14), (3, 11, 20), (1, 11, 11)])
def test_ssim_is_what_its_definition_gives(shape):
    x = images(4, shape)
    y = (x + 0.2 * (images(4, shape, seed=1) - 0.5)).clamp(0, 1)
    slow = [slow_ssim(a, b) for a, b in zip(x.numpy(), y.numpy())]
    assert np.abs(ssim(x, y).numpy() - slow).max() < 1e-12
    assert 0.1 < min(slow) < max(slow) < 0.99


def test_ssim_of_an_image_with_itself_is_one():
    x = images(600)
    assert (ssim(x, x) - 1).abs().max() < 1e-12
    assert (ssim(x, x.flip(0)) < 0.9).all() and ssim(x, x.flip(0)).shape == (600,)


def test_ssim_of_constant_images_compares_their_means():
    a, b = torch.full((1, 1, 12, 12), 0.2), torch.full((1, 1, 12, 12), 0.7)
    wanted = (2 * 0.2 * 0.7 + 1e-4) / (0.2**2 + 0.7**2 + 1e-4)
    assert ssim(a, b).item() == pytest.approx(wanted, rel=1e-6)
    assert ssim(a, b).item() == ssim(b, a).item()


def test_ssim_of_the_negative_is_negative():
    x = images()
    assert (ssim(x, 1 - x) < -0.5).all()


@pytest.mark.parametrize(("x", "y"), [((1, 1, 10, 20), (1, 1, 10, 20)), ((1, 1, 12, 12), (1, 3, 12, 12)), ((9,), (9,))])
def test_ssim_refuses_what_has_none(x, y):
    with pytest.raises(ValueError, match="images of"):
        ssim(torch.zeros(x), torch.zeros(y))


# ------------------------------------------------------------------------------------------------ PCA
def cloud(count, dimensions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mixing + 3


@pytest.mark.parametrize(("count", "dimensions"), [(200, 12), (8, 30), (12, 12)])
@pytest.mark.parametrize("d", [1, 3, 8])
def test_pca_reaches_the_optimum_of_all_linear_maps(count, dimensions, d):
    """The squared error of the best approximation of rank d is the sum of the squared singular values left out."""
    x = cloud(count, dimensions)
    pca = linear.fit(x, d)
    values = torch.linalg.svdvals(x - x.mean(0))
    error = (pca.decode(pca.encode(x)) - x).square().sum(1).mean().item()
    assert error == pytest.approx((values[d:].square().sum() / count).item(), rel=1e-9, abs=1e-12)
    assert pca.residual == pytest.approx(error, rel=1e-9, abs=1e-9)
    assert torch.allclose(pca.components @ pca.components.T, torch.eye(d, dtype=torch.float64), atol=1e-10)
    z = pca.encode(x)
    assert torch.allclose(z.T @ z / count, torch.diag(pca.variances), atol=1e-8 * values[0].square() / count)
    assert (pca.variances.diff() <= 1e-12).all()


def test_pca_is_that_of_scikit_learn_and_in_parts_the_same():
    from sklearn.decomposition import PCA

    x = cloud(12_000, 6)
    pca, other = linear.fit(x, 4), PCA(4, svd_solver="full").fit(x.numpy())
    assert np.abs(np.abs(pca.components.numpy()) - np.abs(other.components_)).max() < 1e-9
    assert (pca.components.gather(1, pca.components.abs().argmax(1, keepdim=True)) > 0).all()
    assert np.allclose(pca.variances, other.explained_variance_ * 11_999 / 12_000, rtol=1e-9)
    assert torch.allclose(pca.encode(x), (x - x.mean(0)) @ pca.components.T, atol=1e-9)
    small, direct = pca.first(2), linear.fit(x, 2)
    assert torch.equal(small.components, direct.components)
    assert small.residual == pytest.approx(direct.residual, rel=1e-12)


@pytest.mark.parametrize("d", [0, 7, 13])
def test_more_components_than_there_are_are_refused(d):
    with pytest.raises(ValueError, match="principal components"):
        linear.fit(cloud(6, 12), d)


# ------------------------------------------------------------------------------------------------ points
@pytest.fixture(scope="module")
def digits():
    dataset = data.load("digits", resolve("vae").config.data.params)
    return Loader(dataset, "train"), Loader(dataset, "test")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    words = ["model.latent=6", "model.encoder.width=32", "model.decoder.width=32", "train.keep=last"]
    path = tmp_path_factory.mktemp("run") / "run"
    return training.train(resolve("vae", [*words, "train.epochs=30"]).config, out=path, device="cpu").model()


def rises(points):
    rates, qualities = [p.bits_per_pixel for p in points], [p.psnr for p in points]
    return all(a < b for a, b in zip(rates, rates[1:])) and all(a < b for a, b in zip(qualities, qualities[1:]))


def test_more_bits_cost_more_and_give_more(digits, model):
    assert rises(rate.of_model(model, *digits, [1, 2, 4, 6]))
    assert rises(rate.of_pca(*digits, [6], [1, 2, 4, 6]))
    assert rises([rate.of_pca(*digits, [d], [8])[0] for d in (2, 4, 8, 16, 32)])
    assert rises([rate.of_jpeg(digits[1], q)[0] for q in (5, 50, 90)])


def test_a_point_is_what_its_stream_costs_and_gives(digits, model):
    train, test = digits
    point = rate.of_model(model, train, test, [3], "VAE")[0]
    known, codes = (compression.codes(model, loader)[0] for loader in digits)
    codec = codecs.fit(quantiser.by_bits(known, 3), known)
    symbols = codec.quantiser.symbols(codes)
    size = 8 * (len(codec.encode(symbols)) + 76)
    x = next(iter(test.ordered(10_000))).x
    z = torch.from_numpy(codec.quantiser.points(symbols)).float()
    error = (model.decode(z[None]).mean[0].clamp(0, 1) - x).square().mean().item()
    assert (point.method, point.setting, point.n) == ("VAE", "3 bits", len(test))
    assert point.bits_per_pixel == pytest.approx(size / x.numel(), rel=1e-12)
    assert point.ideal == pytest.approx(codec.ideal_bits(symbols) / x.numel(), rel=1e-12)
    assert point.psnr == pytest.approx(-10 * math.log10(error), abs=0.01)
    assert point.ssim is None, "8x8 is smaller than the window"


def test_steps_of_the_deviation_cost_less_than_bits_of_the_same_quality(digits, model):
    fine, steps = rate.of_model(model, *digits, [8, 0])
    assert steps.setting == "steps of sd" and steps.bits_per_pixel < 0.6 * fine.bits_per_pixel
    assert steps.psnr > fine.psnr - 0.5


def test_all_components_and_many_bits_lose_nothing_within_the_range_of_the_training_codes(digits):
    train, _ = digits
    assert rate.of_pca(train, train, [64], [12])[0].psnr is None


def test_larger_images_have_an_ssim():
    dataset = tiny_images(60, (1, 16, 16))
    train, test = Loader(dataset, "train"), Loader(dataset, "test")
    low, high = rate.of_pca(train, train, [30], [2, 8])
    assert low.ssim < high.ssim - 0.03 < 0.95
    assert rate.of_png(test).ssim == pytest.approx(1, abs=1e-9)


# ------------------------------------------------------------------------------------------------ JPEG and PNG
def jpeg(levels, quality):
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3)])
def test_headers_of_a_set_are_the_same_and_the_rest_is_data(shape):
    rng = np.random.default_rng(0)
    files = [jpeg(rng.integers(0, 256, shape, dtype=np.uint8), 60) for _ in range(5)]
    heads = {file[: len(file) - 2 - rate.entropy_coded(file)] for file in files}
    assert len(heads) == 1 and len({len(file) for file in files}) > 1
    head = heads.pop()
    scan = head.rindex(b"\xff\xda")
    assert len(head) == scan + 2 + int.from_bytes(head[scan + 2 : scan + 4], "big")
    for wrong in (b"", b"\x89PNG", files[0][:-1], files[0][:2] + b"ab" + files[0][4:]):
        with pytest.raises(ValueError):
            rate.entropy_coded(wrong)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 16)])
def test_jpeg_and_png_are_files_of_their_own(shape):
    test = Loader(tiny_images(60, shape), "test")
    whole, bare = rate.of_jpeg(test, 70)
    levels = [image[0] if shape[0] == 1 else image.transpose(1, 2, 0) for image in test.values.numpy()]
    files = [jpeg(np.ascontiguousarray(image), 70) for image in levels]
    assert whole.bits_per_pixel == pytest.approx(8 * sum(map(len, files)) / (len(test) * 256), rel=1e-12)
    data_only = 8 * sum(map(rate.entropy_coded, files)) / (len(test) * 256)
    assert bare.bits_per_pixel == pytest.approx(data_only, rel=1e-12)
    assert (bare.psnr, bare.ssim) == (whole.psnr, whole.ssim)
    back = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]).astype(float)
    error = np.mean((back - np.stack(levels)) ** 2) / 255**2
    assert whole.psnr == pytest.approx(-10 * math.log10(error), abs=1e-4)
    png = rate.of_png(test)
    assert png.psnr is None and png.ideal is None and png.bits_per_pixel > 8 * shape[0] * 0.5


def test_vectors_have_no_rate():
    loader = Loader(tiny_vectors(60), "test")
    for measure in (rate.of_png, lambda test: rate.of_jpeg(test, 50), lambda test: rate.of_pca(test, test, [2], [2])):
        with pytest.raises(UsageError, match="images"):
            measure(loader)
