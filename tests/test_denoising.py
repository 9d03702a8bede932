"""Denoising: noise of known strength, a denoiser of known error, filters, crossings, and the verb."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from diabolo import cli, denoising, training
from diabolo.config import resolve
from diabolo.data import Loader
from diabolo.data.spec import Dataset, DataSpec, Split
from diabolo.denoising import AS_IT_IS, Crossings, crossings, measure, noised, score
from diabolo.errors import DataError, UsageError
from diabolo.models.build import build_model
from diabolo.runs import Run
from known import SIGMAS, tiny_images

torch.set_num_threads(1)
SIDE = 12


def images(count: int, seed: int = 0, spread: float = 0.05) -> torch.Tensor:
    """x = 1/2 + spread A e, (count, 1, 12, 12): far from black and white, neighbours alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, SIDE * SIDE, generator=generator)
    return (0.5 + spread * noise @ root().float().T).view(count, 1, SIDE, SIDE)


def root() -> torch.Tensor:
    """A with A A' = C, C_ij = exp(-distance / 3), float64."""
    places = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    return torch.linalg.cholesky(torch.exp(-torch.cdist(places, places) / 3))


def dataset(train: torch.Tensor, test: torch.Tensor) -> Dataset:
    spec = DataSpec(name="known", shape=tuple(test.shape[1:]), values="grey", examples=len(train))
    return Dataset(spec=spec, train=Split("train", train), test=Split("test", test))


def linear(weight: torch.Tensor):
    """The model r(x) = 1/2 + W (x - 1/2), its code as wide as the image."""
    net = {"name": "mlp", "depth": 0}
    config = {
        "latent": SIDE * SIDE,
        "encoder": net,
        "posterior": {"name": "dirac"},
        "prior": {"name": "none"},
        "decoder": net,
        "likelihood": {"name": "gaussian", "scale": 1.0},
    }
    model = build_model(config, DataSpec(name="known", shape=(1, SIDE, SIDE), values="grey")).eval()
    encoder, decoder = model.encoder.layers[-1], model.decoder.layers[-1]
    with torch.no_grad():
        encoder.weight.copy_(weight)
        encoder.bias.copy_(-0.5 * weight.sum(1))
        decoder.weight.copy_(torch.eye(SIDE * SIDE))
        decoder.bias.fill_(0.5)
    return model


# ------------------------------------------------------------------------------------------------ known errors
@pytest.mark.parametrize("level", [0.05, 0.3])
def test_the_psnr_of_gaussian_noise_is_minus_20_log10_of_its_level(level):
    """5 sigma: a correct program fails once in 1.7 million seeds."""
    x = torch.rand(500, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    cell = score(x, noised(x, "gaussian", level))
    assert abs(cell.psnr + 20 * math.log10(level)) < SIGMAS * cell.psnr_se
    # the squared error of a pixel has variance 2 level^4
    assert cell.psnr_se == pytest.approx(10 / math.log(10) * math.sqrt(2 / (500 * SIDE * SIDE)), rel=0.2)


@pytest.mark.parametrize(
    ("kind", "mse"),
    [("masking", lambda x, share: share * x**2), ("salt_pepper", lambda x, share: share / 2 * (x**2 + (1 - x) ** 2))],
)
def test_the_error_of_masking_and_of_salt_and_pepper_is_the_expected_one(kind, mse):
    x = torch.full((500, 1, SIDE, SIDE), 0.7)
    cell = score(x, noised(x, kind, 0.3))
    assert abs(cell.psnr + 10 * math.log10(mse(0.7, 0.3))) < SIGMAS * cell.psnr_se


def test_clipping_takes_half_of_the_noise_from_black_and_white_pixels():
    x = torch.randint(0, 2, (400, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(2)).float()
    data = dataset(x, x)
    cell = measure({}, Loader(data, "test"), Loader(data, "train"), "gaussian", (0.2, 0.3)).rows[AS_IT_IS][0]
    assert abs(cell.psnr + 10 * math.log10(0.2**2 / 2)) < SIGMAS * cell.psnr_se


def test_the_optimal_linear_denoiser_reaches_its_closed_form_error():
    """W = C (C + s^2)^-1 leaves tr(s^2 C (C + s^2)^-1) / D; the clipping at 10 standard deviations never acts."""
    spread, level = 0.05, 0.05
    covariance = spread**2 * root() @ root().T
    optimal = covariance @ torch.linalg.inv(covariance + level**2 * torch.eye(SIDE * SIDE, dtype=torch.float64))
    expected = (level**2 * torch.trace(optimal) / SIDE**2).item()
    data = dataset(images(200), images(1000, seed=1))
    table = measure(
        {"optimal": linear(optimal), "nothing": linear(torch.eye(SIDE * SIDE))},
        Loader(data, "test"),
        Loader(data, "train"),
        "gaussian",
        (0.0, level),
        images=1000,
    )
    cell = table.rows["optimal"][1]
    assert cell.n == 1000 and abs(cell.psnr + 10 * math.log10(expected)) < SIGMAS * cell.psnr_se
    for method in (AS_IT_IS, "Gaussian filter", "median filter"):
        assert cell.psnr > table.rows[method][1].psnr + 0.1, f"no method beats the best one: {method}"
    assert table.rows["nothing"][1].psnr == pytest.approx(table.rows[AS_IT_IS][1].psnr, abs=1e-4)
    assert str(table.crossings("optimal")).endswith("on") and table.crossings("optimal").first is False


# ------------------------------------------------------------------------------------------------ noise and tuning
def test_the_noise_of_an_image_depends_on_its_place_alone_and_not_on_the_level():
    x = images(6)
    few, all_ = noised(x[:2], "gaussian", 0.1), noised(x, "gaussian", 0.1)
    assert torch.equal(few, all_[:2])
    assert torch.allclose((noised(x, "gaussian", 0.2) - x) / 2, all_ - x, atol=1e-6)
    for other in (noised(x, "gaussian", 0.1, seed=1), noised(x, "gaussian", 0.1, split="train")):
        assert (other - all_).abs().mean() > 0.05
    assert (all_[0] - x[0] - all_[1] + x[1]).abs().max() > 0.1, "two images have noise of their own"


def test_filters_are_tuned_on_the_other_split_and_never_on_the_test_images():
    flat = torch.full((50, 1, SIDE, SIDE), 0.5)
    rough = torch.rand(50, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    for train, test, wide in ((flat, rough, True), (rough, flat, False)):
        data = dataset(train, test)
        table = measure({}, Loader(data, "test"), Loader(data, "train"), "gaussian", (0.1,))
        assert table.rows["Gaussian filter"][0].setting == ("sigma = 3" if wide else "sigma = 0.3")
        assert table.rows["median filter"][0].setting == ("side = 7" if wide else "side = 1")
        assert table.tuned_on == "50 images of the train split"
    with pytest.raises(UsageError, match="would know the answers"):
        measure({}, Loader(data, "test"), Loader(data, "test"), "gaussian", (0.1,))


def test_filters_work_within_an_image():
    x = torch.zeros(2, 2, 9, 9)
    x[0, 0] = 1
    for method in (denoising.gaussian_filter(2.0), denoising.median_filter(3)):
        assert torch.equal(method(x), x), "nothing leaks to another channel or image"
    spot = torch.zeros(1, 1, 9, 9)
    spot[0, 0, 4, 4] = 1
    assert denoising.median_filter(3)(spot).sum() == 0
    assert denoising.gaussian_filter(1.0)(spot).sum() == pytest.approx(1, abs=1e-5)


def test_vectors_are_refused():
    data = Dataset(
        DataSpec(name="v", shape=(4,), values="real"), Split("train", torch.rand(9, 4)), Split("test", torch.rand(9, 4))
    )
    with pytest.raises(UsageError, match="images"):
        measure({}, Loader(data, "test"), Loader(data, "train"), "gaussian")


# ------------------------------------------------------------------------------------------------ crossings
@pytest.mark.parametrize(
    ("error", "against", "at", "first", "words"),
    [
        ([2, 2, 2], [0, 1, 3], (0.15,), False, "from 0.15 on"),
        ([2, 2, 2], [0, 1, 2], (), False, "never within 0 to 0.2"),
        ([1, 1, 1], [2, 2, 3], (), True, "always within 0 to 0.2"),
        ([0, 1, 3], [2, 2, 2], (0.15,), True, "from 0.00 to 0.15"),
        ([2, 0, 2], [1, 1, 1], (0.05, 0.15), False, "from 0.05 to 0.15"),
        ([0, 2, 0], [1, 1, 1], (0.05, 0.15), True, "from 0.00 to 0.05, from 0.15 on"),
        ([0, 0.5, 1], [0, 1, 2], (0.0,), False, "from 0.00 on"),
    ],
)
def test_crossings_are_where_straight_lines_meet(error, against, at, first, words):
    found = crossings((0.0, 0.1, 0.2), error, against)
    assert found.at == pytest.approx(at) and found.first is first and str(found) == words
    assert found.to_dict()["words"] == words


@pytest.mark.parametrize("levels", [(0.1,), (0.2, 0.1), (0.1, 0.1)])
def test_crossings_need_increasing_levels(levels):
    with pytest.raises(ValueError, match="increasing"):
        crossings(levels, [1.0] * len(levels), [2.0] * len(levels))


def test_the_crossing_of_a_constant_error_with_gaussian_noise_is_that_error():
    """Where nothing is clipped, the root mean squared error of the noise is its level: interpolation is exact."""
    x = torch.full((300, 1, SIDE, SIDE), 0.5)
    levels = (0.0, 0.02, 0.04, 0.06)
    untouched = [score(x, noised(x, "gaussian", level)) for level in levels]
    constant = [score(x, x + 0.03) for _ in levels]
    table = denoising.Table("gaussian", levels, {AS_IT_IS: untouched, "m": constant}, "", "test")
    assert table.crossings("m").at == pytest.approx((0.03,), rel=0.01)
    assert untouched[0].psnr == math.inf and table.to_dict()["rows"][AS_IT_IS][0]["psnr"] is None
    json.dumps(table.to_dict(), allow_nan=False)
    assert Crossings(False, (), 0, 1).to_dict()["words"] == "never within 0 to 1"


# ------------------------------------------------------------------------------------------------ the verb
SMALL = ["model.latent=12", "model.encoder.width=32", "model.decoder.width=32", "train.curve=none", "data=tensor"]


@pytest.fixture(scope="module")
def dae(tmp_path_factory):
    data = tiny_images(200, (1, 12, 12))
    config = resolve("dae", [*SMALL, "train.epochs=3", "train.batch=16"]).config
    return training.train(config, out=tmp_path_factory.mktemp("dae") / "run", data=data, device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    config = resolve("ae", [*SMALL, "train.epochs=1"]).config
    data = tiny_images(40, (1, 12, 12))
    return training.train(config, out=tmp_path_factory.mktemp("ae") / "run", data=data, device="cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def levels():
    return tiny_images(200, (1, 12, 12)).test.values.numpy()


def say(*words):
    return cli._run([*(str(word) for word in words)])


def test_denoise_writes_the_reconstruction_at_the_mean(dae, levels, capsys):
    np.save("in.npy", levels)
    assert say("denoise", dae.path, "in.npy", "out.npy", "--device", "cpu") == 0
    x = torch.from_numpy(levels).float() / 255
    with torch.no_grad():
        expected = (dae.model().reconstruct(x).mean[0] * 255).round().byte().numpy()
    assert np.array_equal(np.load("out.npy"), expected)
    assert "trained on gaussian noise of 0.3" in capsys.readouterr().out


def test_images_and_folders_come_back_as_png(dae, levels):
    Image.fromarray(levels[0, 0]).save("one.png")
    assert say("denoise", dae.path, "one.png", "out.png", "--device", "cpu") == 0
    np.save("in.npy", levels[:1])
    say("denoise", dae.path, "in.npy", "out.npy", "--device", "cpu")
    with Image.open("out.png") as image:
        assert image.mode == "L" and np.array_equal(np.asarray(image), np.load("out.npy")[0, 0])
    np.save("three.npy", levels[:3])
    assert say("denoise", dae.path, "three.npy", "folder", "--device", "cpu") == 0
    with Image.open("folder/000000.png") as image:
        assert np.array_equal(np.asarray(image), np.load("out.npy")[0, 0])
    assert say("denoise", dae.path, "folder", "again", "--device", "cpu") == 0


def test_a_demonstration_measures_before_and_after(dae, levels, capsys):
    np.save("in.npy", levels)
    words = ("--noise", "gaussian", "--level", "0.2", "--device", "cpu", "--json")
    assert say("denoise", dae.path, "in.npy", "out.npy", *words) == 0
    found = json.loads(capsys.readouterr().out)
    x = torch.from_numpy(levels).float() / 255
    noisy = noised(x, "gaussian", 0.2)
    with torch.no_grad():
        after = dae.model().reconstruct(noisy).mean[0]
    for when, shown in (("before", noisy.clamp(0, 1)), ("after", after)):
        assert found[when]["mse"] == pytest.approx((shown - x).double().square().mean().item(), rel=1e-5)
        assert found[when]["psnr"] == pytest.approx(-10 * math.log10(found[when]["mse"]))
    assert found["trained_on"] == ["gaussian", 0.3] and found["n"] == len(levels)
    assert say("denoise", dae.path, "in.npy", "out.npy", *words) == 2, "nothing is overwritten unasked"
    capsys.readouterr()
    assert say("denoise", dae.path, "in.npy", "out.npy", *words[:-1], "--overwrite") == 0
    assert "PSNR" in capsys.readouterr().out


def test_a_run_without_noise_says_so(plain, levels, capsys):
    np.save("in.npy", levels)
    assert say("denoise", plain.path, "in.npy", "out.npy", "--device", "cpu") == 0
    assert "this run was not trained on noise" in capsys.readouterr().out


def test_noise_beyond_black_and_white_is_taken_as_given(dae, levels, capsys):
    noisy = noised(torch.from_numpy(levels).float() / 255, "gaussian", 0.5)
    np.save("noisy.npy", noisy.numpy())
    assert say("denoise", dae.path, "noisy.npy", "out.npy", "--device", "cpu") == 0
    assert "taken as given" in capsys.readouterr().out
    with torch.no_grad():
        expected = (dae.model().reconstruct(noisy).mean[0] * 255).round().byte().numpy()
    assert np.array_equal(np.load("out.npy"), expected)
    np.save("far.npy", 255 * noisy.numpy())
    assert say("denoise", dae.path, "far.npy", "other.npy", "--device", "cpu") == 3
    assert "black is 0 and white is 1" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("in.npy", "out.npy", "--level", "0.2"), 2, "Add --noise gaussian"),
        (("in.npy", "out.npy", "--noise", "masking", "--level", "1.5"), 2, "from 0 to 1"),
        (("in.npy", "out.npy", "--noise", "gaussian", "--level", "-1"), 2, "at least 0"),
        (("in.npy", "out.npy", "--noise", "gaussian", "--level", "nan"), 2, "refused"),
        (("in.npy", "out.jpg"), 2, "must end in"),
        (("in.npy", "out.png"), 2, "would hold 40 images"),
        (("small.npy", "out.npy"), 3, "have shape (1, 4, 4)"),
        (("nothing.npy", "out.npy"), 3, "does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(dae, levels, words, code, message, capsys):
    np.save("in.npy", levels)
    np.save("small.npy", levels[:, :, :4, :4])
    assert say("denoise", dae.path, *words, "--device", "cpu") == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_real_numbers_have_no_black_to_mask(tmp_path):
    from known import tiny_vectors

    config = resolve(
        "ae", ["data=tensor", "model.likelihood=gaussian", "model.latent=2", "train.epochs=1", "train.curve=none"]
    )
    run = training.train(config.config, out=tmp_path / "run", data=tiny_vectors(), device="cpu")
    given = denoising.noisy_examples(run, saved(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(5, 16))))
    with pytest.raises(DataError, match="real numbers"):
        denoising.denoise(run, given, "masking", 0.2)
    found = denoising.denoise(run, given, "gaussian", 0.5)
    assert abs(found.before.mse - 0.25) < 0.15 and found.before.ssim is None
    assert say("denoise", run.path, tmp_path / "x.npy", "folder", "--device", "cpu") == 2, "they are no pictures"
    assert say("denoise", Run(run.path).path, tmp_path / "x.npy", "y.npy", "--device", "cpu") == 0
    assert np.load("y.npy").dtype == np.float32


def saved(path, array):
    np.save(path, array)
    return path
