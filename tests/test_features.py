"""Features: what each registered one promises, and that the classifier of the package is the one that was measured."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from diabolo import features, registry
from diabolo.data import Access, from_tensor, load, sources
from diabolo.errors import DataError, UsageError
from diabolo.features.base import Features, read_weights
from diabolo.features.cifar10_classifier import WEIGHTS, Cifar10Classifier, Classifier
from diabolo.runs import sha256, write_tensors

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tools")]

import train_classifier  # noqa: E402

torch.set_num_threads(1)

RESULT = ROOT / "results" / "sharp" / "classifier.json"
every = pytest.mark.parametrize("name", registry.names("features"))


def images(n: int = 7) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def loaded(name: str) -> Features:
    """Features, or a skip where the package that brings their weights is not installed; the classifier's come with this one."""
    try:
        return features.load(name)
    except UsageError as error:
        if name == "cifar10_classifier":
            raise
        pytest.skip(f"{name.upper()} CANNOT BE HAD, NOT TESTED:\n{error}")


@pytest.fixture(scope="module")
def classifier() -> Cifar10Classifier:
    return features.load("cifar10_classifier")


# -- what each one promises ---------------------------------------------------------------------------------------------


@every
def test_features_say_what_they_are(name):
    found = loaded(name)
    assert isinstance(found, Features)
    assert len(found.weights_hash) == 64 and set(found.weights_hash) <= set("0123456789abcdef")
    assert found.dimensions > 0 and len(found.about) > 40 and found.about.endswith(".")


@every
def test_features_are_rows_of_float32_that_know_nothing_of_each_other(name):
    found, x = loaded(name), images()
    rows = found(x)
    assert rows.shape == (7, found.dimensions) and rows.dtype == torch.float32 and rows.isfinite().all()
    assert rows.std(0).min() >= 0 and rows.std() > 0
    assert torch.equal(found(x), rows) and torch.equal(loaded(name)(x), rows)
    alone = torch.cat([found(part) for part in x.split(1)])
    torch.testing.assert_close(alone, rows, rtol=1e-5, atol=1e-5)
    turned = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    torch.testing.assert_close(found(x[turned]), rows[turned], rtol=1e-5, atol=1e-5)


@every
def test_features_pass_no_gradient_and_heed_no_precision_around_them(name):
    found, x = loaded(name), images(2)
    rows = found(x)
    assert not found(x.clone().requires_grad_()).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found(x), rows)


@every
def test_features_leave_the_images_and_the_random_state_alone(name):
    x, state = images(2), torch.get_rng_state()
    loaded(name)(x)
    assert torch.equal(x, images(2)) and torch.equal(torch.get_rng_state(), state)


@every
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (images(2)[:, :2], "read images"),
        (images(2)[0], "read images"),
        (images(2).double(), "float64"),
        ((images(2) * 255).to(torch.uint8), "uint8"),
        (images(2) * 255, "between"),
        (images(2) - 0.5, "between"),
        (images(2) / 0, "between"),
        (images(2) * math.nan, "nan"),
    ],
)
def test_features_refuse_what_are_no_images(name, wrong, why):
    found = loaded(name)
    with pytest.raises(UsageError, match=why):
        found(wrong)


def test_unknown_features_are_refused():
    with pytest.raises(UsageError, match='Did you mean "cifar10_classifier"'):
        features.load("cifar10_clasifier")


# -- weights ------------------------------------------------------------------------------------------------------------


def test_the_weights_are_the_file_of_the_package_and_small():
    assert sha256(WEIGHTS) == Cifar10Classifier.weights_hash
    assert WEIGHTS.stat().st_size <= 2.5e6


@pytest.mark.parametrize("what", ["changed", "missing", "cut", "of another network"])
def test_weights_that_are_not_the_ones_named_are_refused(what, tmp_path):
    path = tmp_path / "weights.safetensors"
    content = WEIGHTS.read_bytes()
    if what == "of another network":
        write_tensors(path, {"weight": torch.zeros(2)})
    elif what != "missing":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if what == "changed" else content[:1000])
    named = sha256(path) if what in {"cut", "of another network"} else Cifar10Classifier.weights_hash

    class Other(Cifar10Classifier):
        """Reads another file."""

        weights_path, weights_hash = path, named

    expected = {
        "changed": "not the ones",
        "missing": "cannot be read",
        "cut": "corrupt",
        "of another network": "do not fit",
    }
    with pytest.raises(DataError, match=expected[what]):
        Other()


def test_weights_are_kept_in_half_precision():
    kinds = {t.dtype for t in read_weights(WEIGHTS, sha256(WEIGHTS)).values()}
    assert kinds == {torch.float16, torch.int64}


# -- the classifier -----------------------------------------------------------------------------------------------------


def test_logits_are_the_last_layer_of_the_features(classifier):
    x = images(4)
    weights = read_weights(WEIGHTS, classifier.weights_hash)
    by_hand = classifier(x).double() @ weights["head.weight"].double().T + weights["head.bias"].double()
    torch.testing.assert_close(classifier.logits(x).double(), by_hand / 8, rtol=1e-5, atol=1e-5)
    assert classifier.logits(x).shape == (4, len(classifier.classes))
    with pytest.raises(UsageError, match="read images"):
        classifier.logits(x[:, :, :16])


def test_no_images_have_no_features(classifier):
    assert classifier(images(0)).shape == (0, 224) and classifier.logits(images(0)).shape == (0, 10)


def test_the_network_is_small_and_every_weight_learns():
    network = Classifier()
    assert sum(p.numel() for p in network.parameters()) <= 1.2e6
    network(images(8)).logsumexp(1).sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_what_is_said_of_the_classifier_is_what_was_measured():
    kept = json.loads(RESULT.read_text(encoding="utf-8"))
    with safe_open(WEIGHTS, "pt") as file:
        about = json.loads(file.metadata()["diabolo"])
    assert kept["weights_sha256"] == Cifar10Classifier.weights_hash
    assert {key: kept[key] for key in about} == about
    test = kept["test"]
    assert test["n"] == 10_000 and test["accuracy"] >= 0.88
    assert sum(test["classes"].values()) / 10 == pytest.approx(test["accuracy"], abs=1e-12)  # 1,000 images a class
    assert test["se"] == pytest.approx(math.sqrt(test["accuracy"] * (1 - test["accuracy"]) / 10_000), rel=1e-12)


def test_the_classifier_knows_the_first_thousand_test_images(classifier):
    """Their accuracy is 5 binomial standard errors below the stated one with probability below 1e-6 where nothing is wrong."""
    access = Access(offline=True)
    try:
        sources.get("cifar10", access)
    except DataError:
        pytest.skip("CIFAR-10 IS NOT IN THE CACHE, NOT TESTED. Get it with: diabolo data get cifar10")
    test = load("cifar10", access=access).test
    x, y = test.values[:1000].float() / 255, test.labels[:1000]
    stated = json.loads(RESULT.read_text(encoding="utf-8"))["test"]["accuracy"]
    right = (classifier.logits(x).argmax(1) == y).float().mean().item()
    assert right >= stated - 5 * math.sqrt(stated * (1 - stated) / 1000)


# -- how it was trained --------------------------------------------------------------------------------------------------


def test_images_are_moved_by_whole_pixels_and_flipped():
    """Each is one of the 5 x 5 windows of the mirrored image, or its flip; 400 draws miss one of the 50 with probability 0.02,
    and the seed is fixed."""
    x = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    wide = np.pad(x[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    windows = [wide[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    expected = {part.tobytes() for window in windows for part in (window, window[:, :, ::-1])}
    moved = train_classifier.moved(x.expand(400, -1, -1, -1), 2, torch.Generator().manual_seed(2))
    assert {part.tobytes() for part in (moved * 255).round().byte().numpy()} == expected


def test_the_rate_is_one_cycle():
    share = [train_classifier.share(done / 10, 0.2) for done in range(11)]
    assert share == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0], abs=1e-12)


def test_the_classifier_is_trained_beside_that_of_the_package(tmp_path, monkeypatch, capsys):
    """Fewer images than a batch has: no step is taken, and everything is written."""
    images = torch.randint(256, (200, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    dataset = from_tensor(images, labels=torch.arange(200) % 10, test=0.5)
    monkeypatch.setattr(train_classifier.data, "load", lambda *_: dataset)
    monkeypatch.setattr(sys, "argv", ["train_classifier.py", "--epochs", "1", "--out", str(tmp_path / "a" / "b")])
    before = sha256(train_classifier.WEIGHTS), train_classifier.RESULT.read_bytes()
    assert train_classifier.main() == 0
    assert before == (sha256(train_classifier.WEIGHTS), train_classifier.RESULT.read_bytes())
    weights, result = tmp_path / "a" / "b" / train_classifier.WEIGHTS.name, tmp_path / "a" / "b" / "classifier.json"
    kept = json.loads(result.read_text(encoding="utf-8"))
    assert kept["weights_sha256"] == sha256(weights) and str(weights) in capsys.readouterr().out


def test_training_repeats_itself_and_learns():
    """Two classes that differ in brightness; the same seed gives the same weights to the bit."""
    labels = torch.arange(32) % 2
    images = (labels * 128).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    recipe = train_classifier.Recipe(epochs=6, rate=0.1, batch=16)
    first, second = (train_classifier.train(images, labels, recipe) for _ in range(2))
    assert first[1] == second[1] == 6 * 32
    weights = second[0].state_dict()
    assert all(torch.equal(t, weights[name]) for name, t in first[0].state_dict().items())
    found = first[0].train()(images[:2].float() / 255).argmax(1)  # too few steps for running statistics
    assert found.tolist() == [0, 1]
