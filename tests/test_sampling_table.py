"""The table of samples: sets in closed form, rows, refusals, and the verb, with toy features of digits of 8x8."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import diabolo
from diabolo import cli, linear, registry, sampling, sampling_table
from diabolo.data import Access, from_tensor, load
from diabolo.errors import UsageError
from diabolo.features.base import Features, check_images
from diabolo.linear.sampling import draw_full_covariance
from diabolo.runs import Run
from diabolo.sampling_table import ImageSet

CPU = torch.device("cpu")


class Toy(Features):
    """Means over 2x2 pixels, and as a classifier the sign of one of them."""

    weights_hash = "0123456789abcdef" * 4
    dimensions = 16
    about = "Means over 2x2 pixels."
    classes = tuple(str(digit) for digit in range(10))

    def __call__(self, images):
        check_images(images, (1, 8, 8), "toy")
        return torch.nn.functional.avg_pool2d(images, 2).flatten(1)

    def logits(self, images):
        return self(images)[:, :10]


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(registry._CATALOGUE["features"], "toy", Toy)


@pytest.fixture(scope="module")
def digits():
    return load("digits", {"validation": 0}, Access())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    words = ["data=digits", "data.validation=0", "train.epochs=1", "train.keep=last", "model.latent=2"]
    widths = ["model.encoder.width=8", "model.decoder.width=8"]
    return diabolo.train(
        "vae", overrides=words + widths, out=tmp_path_factory.mktemp("runs") / "run", device="cpu"
    ).path


# ------------------------------------------------------------------------------------------------ closed forms
def test_a_draw_of_full_covariance_has_the_mean_and_covariance_of_the_examples():
    """Of 20,000 draws in 3 dimensions, each entry within 5 standard errors of its normal value: p < 1e-5 for all 9."""
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(7, 3, generator=generator, dtype=torch.float64)
        @ torch.tensor([[2.0, 1, 0], [0, 1, 0], [1, 0, 3]]).double()
    )
    drawn, n = draw_full_covariance(x, 20_000, 0), 20_000
    exact = torch.cov(x.T, correction=0)
    assert ((drawn.mean(0) - x.mean(0)).abs() < 5 * (exact.diagonal() / n).sqrt()).all()
    spread = ((exact.square() + torch.outer(exact.diagonal(), exact.diagonal())) / n).sqrt()
    assert ((torch.cov(drawn.T) - exact).abs() < 5 * spread).all()


def test_a_draw_of_each_class_is_one_of_its_own_examples_gaussian():
    x = torch.tensor([[0.0, 0], [0, 2], [10, 0], [10, 4]]).double()  # no variance along the first axis within a class
    drawn = linear.draw_per_class(x, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 1, 0]), 0)
    assert drawn[:, 0].tolist() == pytest.approx([10, 0, 10, 0], abs=1e-12)
    assert len(drawn[:, 1].unique()) == 4
    with pytest.raises(UsageError, match="class 2 has no examples"):
        linear.draw_per_class(x, torch.tensor([0, 0, 1, 1]), torch.tensor([2]), 0)


def test_samples_of_ppca_lie_in_its_axes_and_have_what_the_noise_leaves_of_their_variance():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 5, generator=generator, dtype=torch.float64) * torch.tensor([4.0, 3, 1, 1, 1]) + 7
    pca, n = linear.fit(x, 2), 20_000
    codes = pca.encode(linear.draw_ppca(pca, n, 0))
    noise = linear.fit(x, 5).variances[2:].mean()
    exact = pca.variances - noise
    assert (codes.var(0) / exact - 1).abs().max() < 5 * math.sqrt(2 / n)  # p < 1e-5
    assert linear.draw_ppca(pca, 9, 0).allclose(pca.decode(pca.encode(linear.draw_ppca(pca, 9, 0))))
    assert not linear.draw_ppca(pca, 9, 0).equal(linear.draw_ppca(pca, 9, 1))


def test_a_class_without_training_images_has_no_gaussian(digits):
    """As of a folder whose only image of a class lies outside the training split."""
    kept = digits.train.labels != 3
    train = replace(digits.train, values=digits.train.values[kept], labels=digits.train.labels[kept])
    found = sampling_table.gaussians(replace(digits, train=train), 90, 0)
    assert found.asked.bincount(minlength=10).tolist() == [10, 10, 10, 0, 10, 10, 10, 10, 10, 10]
    assert sampling_table.gaussians(digits, 90, 0).asked.equal(torch.arange(90) % 10)


def test_ppca_is_refused_where_its_covariance_needs_too_much_memory(digits, monkeypatch):
    assert linear.memory(1500, 64) == linear.memory(64, 64) == 8 * 5 * 64 * 64
    monkeypatch.setattr(linear, "LARGEST", 8 * 5 * 64 * 64)
    assert len(sampling_table.ppca(digits, 100, 0).levels) == 100
    monkeypatch.setattr(linear, "LARGEST", 8 * 5 * 64 * 64 - 1)
    with pytest.raises(UsageError, match="1,500 images of 64 values needs"):
        sampling_table.ppca(digits, 100, 0)


# ------------------------------------------------------------------------------------------------ levels
def test_levels_are_those_of_a_picture_file():
    assert sampling.to_levels(torch.tensor([-1.0, 0, 0.4999 / 255, 0.51 / 255, 1, 3])).tolist() == [
        0,
        0,
        0,
        1,
        255,
        255,
    ]


def test_samples_are_the_decoders_means_and_whole_batches_do_not_depend_on_n(run, monkeypatch):
    monkeypatch.setattr(sampling, "_BATCH", 4)
    few, more = (sampling.draw(Run(run), n, 3, prior="own", device=CPU) for n in (4, 10))
    assert more.shape == (10, 1, 8, 8)
    assert more.dtype == torch.uint8
    assert more[:4].equal(few)
    assert not sampling.draw(Run(run), 4, 4, prior="own", device=CPU).equal(few)
    state = torch.get_rng_state()
    sampling.draw(Run(run), 4, 3, prior="own", device=CPU)
    assert torch.get_rng_state().equal(state)


def test_reconstructions_are_at_the_mean_code(run, digits):
    from diabolo.data import Loader

    index = torch.tensor([5, 2])
    again = sampling.reconstruct(Run(run), Loader(digits, "test"), index, device=CPU)
    expected = Run(run).model().reconstruct(digits.test.values[index].float() / 255).mean[0].clamp(0, 1)
    assert (again.float() / 255 - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_a_prior_without_classes_refuses_them(run):
    for asked, why in (({"classes": torch.zeros(4)}, "knows no classes"), ({"guidance": 2.0}, "has no guidance")):
        with pytest.raises(UsageError, match=why):
            sampling.draw(Run(run), 4, 0, prior="own", device=CPU, **asked)


# ------------------------------------------------------------------------------------------------ rows
def table_of(digits, *sets, features=None):
    return sampling_table.measure(sets, digits, features or Toy(), "toy", device=CPU)


def entries(row):
    return {name for name, entry in row.items() if isinstance(entry, dict)}


def test_the_test_images_themselves_and_copies_of_training_images_have_their_known_rows(digits):
    index = sampling_table.chosen(200, len(digits.train), 0, "x")
    test = ImageSet("test", "floor", digits.test.values, digits.test.labels)
    copies = ImageSet("copies", "floor", digits.train.values[index].repeat(2, 1, 1, 1)[:297])
    found = table_of(digits, test, copies)
    same, copied = found["rows"]
    assert same["frechet"]["value"] == pytest.approx(0, abs=1e-9)
    assert same["precision"]["value"] == same["recall"]["value"] == same["coverage"]["value"] == 1
    assert same["memorised"]["value"] == pytest.approx(0.01, abs=0.004)
    for space in ("pixels", "features"):
        assert same["memorised"]["spaces"][space]["nearer_than_test"]["value"] == pytest.approx(0.5)
        assert copied["memorised"]["spaces"][space]["value"] == 1
    nearest = copied["memorised"]["nearest"]
    for i, j, mirrored in zip(*nearest.values(), strict=True):
        assert not mirrored and Toy()(copies.levels[i : i + 1] / 255).equal(Toy()(digits.train.values[j : j + 1] / 255))
    assert "class_accuracy" not in copied, "no class was asked for"
    logits = Toy().logits(digits.test.values / 255)
    assert same["class_accuracy"]["value"] == (logits.argmax(1) == digits.test.labels).double().mean().item()
    assert sum(copied["class_entropy"]["counts"]) == 297
    about = found["about"]
    assert about["n"] == 297 and about["reference"] == {"split": "test", "n": 297} and about["train"]["n"] == 1500
    assert about["features"]["weights_hash"] == Toy.weights_hash
    json.dumps(found, allow_nan=False)


def test_a_mirrored_copy_is_a_copy(digits):
    """A model that is trained on mirrored images, too, can give them back."""
    index = sampling_table.chosen(200, len(digits.train), 0, "x")
    copies = ImageSet("copies", "samples", digits.train.values[index].flip(-1))
    found = table_of(digits, copies)["rows"][0]["memorised"]
    assert found["value"] == found["spaces"]["pixels"]["value"] == found["spaces"]["features"]["value"] == 1
    assert found["space"] == "pixels" and any(found["nearest"]["mirrored"]), "some digit is not its own mirror image"
    for i, j, mirrored in zip(*found["nearest"].values(), strict=True):
        image = digits.train.values[j]
        assert (image.flip(-1) if mirrored else image).equal(copies.levels[i])


def test_distances_of_pixels_are_in_units_of_the_range(digits):
    apart = ImageSet("white", "samples", torch.full((100, 1, 8, 8), 255, dtype=torch.uint8))
    spaces = table_of(digits, apart)["rows"][0]["memorised"]["spaces"]
    assert 0 < spaces["pixels"]["threshold"] < 8, "8 is the distance of black and white"
    assert spaces["pixels"]["value"] == 0


def test_a_classifier_of_other_classes_is_not_asked(digits):
    class Other(Toy):
        classes = ("cat", "dog")

    rows = table_of(digits, sampling_table.floor(digits, 100, 0), features=Other())["rows"]
    assert not entries(rows[0]) & {"class_accuracy", "class_entropy"}


def test_sets_of_different_n_are_refused(digits):
    with pytest.raises(UsageError, match="sets of 100 and 120 images in one table are refused"):
        table_of(digits, sampling_table.floor(digits, 100, 0), sampling_table.floor(digits, 120, 0))


def test_n_is_the_same_for_all_rows_and_refused_where_it_cannot_be(digits):
    assert sampling_table.usual_n(digits) == 297
    assert sampling_table.usual_n(digits, 100) == 100
    for n in (99, 298):
        with pytest.raises(UsageError, match=f"n = {n} is refused"):
            sampling_table.usual_n(digits, n)
    few = replace(digits, test=replace(digits.test, values=digits.test.values[:50]))
    with pytest.raises(UsageError, match="too few"):
        sampling_table.usual_n(few)


def test_values_that_are_no_levels_are_refused():
    with pytest.raises(UsageError, match="images of levels k/255 are needed"):
        sampling.check_levels(from_tensor(torch.randn(40, 6)).spec)


# ------------------------------------------------------------------------------------------------ the verb
def say(*words):
    return cli._run([str(word) for word in words])


def test_the_verb_measures_a_run_and_prints_what_it_wrote(run, capsys):
    assert say("measure", run, "--features", "toy", "--n", 120, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    found = json.loads((run / "samples.json").read_text(encoding="utf-8"))
    names = [
        "training images",
        "reconstructions",
        "pPCA, q = 63",
        "a Gaussian for each class, pixels",
        "samples of run",
    ]
    assert [row["set"] for row in found["rows"]] == names
    for row in found["rows"]:
        assert row["n"] == 120
        assert row["set"] in printed
        assert f"{row['frechet']['value']:.2f} +- {row['frechet']['se']:.2f}" in printed
        assert f"{100 * row['coverage']['value']:.1f} +- {100 * row['coverage']['se']:.1f}" in printed
    assert ["class_accuracy" in row for row in found["rows"]] == [True, True, False, True, False]
    assert "Frechet distance, toy features" in printed
    assert "n = 120 rather than 10,000: not comparable" in printed
    assert "against the test split (n = 297)" in printed
    assert "classes seen in samples of run" in printed
    assert "samples: decoder means, z ~ p(z); prior: the model's own" in printed
    expected = sampling.draw(Run(run), 120, 0, prior="own", device=CPU)
    again = table_of(load("digits", {"validation": 0}, Access()), ImageSet("samples of run", "samples", expected))
    assert again["rows"][0] == found["rows"][-1]


def test_a_row_that_cannot_be_is_left_out_and_said(run, capsys, monkeypatch):
    monkeypatch.setattr(linear, "LARGEST", 1000)
    assert say("measure", run, "--features", "toy", "--n", 120, "--device", "cpu") == 0
    out, err = capsys.readouterr()
    assert "no row of pPCA: pPCA of 1,500 images of 64 values needs" in err and "pPCA" not in out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--features", "toi"), 2, 'Did you mean "toy"?'),
        (("--features", "toy", "--seed", -1), 2, "--seed -1 is refused"),
        (("--features", "toy", "--n", 99), 2, "n = 99 is refused"),
        ((), 2, "no features are chosen for images of shape (1, 8, 8)"),
    ],
)
def test_wrong_words_are_refused(run, words, code, text, capsys):
    assert say("measure", run, *words) == code
    assert text in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert say("measure", tmp_path, "--features", "toy") == 3
    assert "is no run" in capsys.readouterr().err
