"""Generated colour images against the model they are drawn from, and the permutation of pixel positions."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from diabolo.config import resolve
from diabolo.data import Access, Dataset, Loader, cifar, clouds, load
from diabolo.data.catalogue import COLLECTIONS
from diabolo.data.permuting import permute, positions
from diabolo.errors import UsageError
from diabolo.evaluation import SMOKE, evaluate
from diabolo.models.build import build_model
from diabolo.models.objectives import ELBO
from diabolo.training import train
from known import SIGMAS, model_config
from tiny_cifar import tiny

torch.set_num_threads(1)


def splits(dataset: Dataset):
    return (dataset.train, dataset.validation, dataset.test)


def eigenvalues(values: Tensor) -> Tensor:
    """Of the covariance of levels (N, ...), pixels in [0, 1], descending; as many as there are examples at most."""
    x = values.flatten(1).double() / 255
    x = x - x.mean(0)
    smaller = x @ x.T if x.shape[0] < x.shape[1] > 500 else x.T @ x
    return torch.linalg.eigvalsh(smaller / x.shape[0]).flip(0)


# ------------------------------------------------------------------------------------------------ the images
def test_the_images_are_pinned_and_new_for_each_seed_and_split():
    dataset = load("clouds", {"examples": 12, "size": 8})
    assert [tuple(split.values.shape) for split in splits(dataset)] == [(n, 3, 8, 8) for n in (12, 3, 3)]
    assert {split.values.dtype for split in splits(dataset)} == {torch.uint8}
    assert (dataset.spec.values, dataset.spec.examples, dataset.spec.dimensions) == ("grey", 12, 192)
    assert dataset.train.labels.tolist() == [0, 1, 2, 3] * 3
    assert dataset.hashes == {
        "train": "8c7674ccb7aae58dcdab9216da118f0eb4fa0af9b8f39fefc69c8f12c0f4409b",
        "validation": "e68c7ad6118f547362149d401e19d2a12b58216f8af28568a932e1f32b4ebc38",
        "test": "e484db0d18cb84ac250e1eabe6d86705d492013bfa8e42fdb22109183c72e810",
    }
    whole = torch.cat([split.values for split in splits(dataset)])
    assert whole.flatten(1).unique(dim=0).shape[0] == 18
    assert dataset.hash == load("clouds", {"examples": 12, "size": 8}).hash
    assert dataset.hash != load("clouds", {"examples": 12, "size": 8, "seed": 1}).hash


def test_more_examples_begin_with_the_fewer(monkeypatch):
    few = load("clouds", {"examples": 7, "size": 4}).train
    many = load("clouds", {"examples": 40, "size": 4}).train
    assert torch.equal(few.values, many.values[:7]) and torch.equal(few.labels, many.labels[:7])
    monkeypatch.setattr(clouds, "_CHUNK", 3)
    assert torch.equal(load("clouds", {"examples": 40, "size": 4}).train.values, many.values)


def test_every_coefficient_has_the_variance_that_is_written_down(monkeypatch):
    """Made faint, so that nothing is cut off, the cosine transform (scipy's) of the three colour contrasts has independent
    normal coefficients of variance 3 s_c (N sd)^2 P_ij / sum P, P = (1 + i^2 / r + j^2 r)^-alpha, plus 1 / (12 255^2) of
    rounding. 4 classes x 3 contrasts x 36 coefficients, each at 5 sigma of a mean of squares: failure probability below 1e-2
    with the skew of chi-square, and the seed is fixed."""
    sd, size, count = 0.03, 6, 2000
    monkeypatch.setattr(clouds, "_SD", sd)
    dataset = load("clouds", {"examples": 4 * count, "size": size})
    x = dataset.train.values.numpy() / 255
    contrasts = {(1, 1, 1): 0.9, (1, 0, -1): 0.08, (1, -2, 1): 0.02}
    assert sum(contrasts.values()) == pytest.approx(1)
    for number, (alpha, r) in enumerate([(1.8, 1), (1.4, 4), (1.4, 0.25), (1.0, 1)]):
        of_class = x[dataset.train.labels == number]
        i, j = np.mgrid[:size, :size]
        power = (1 + i**2 / r + j**2 * r) ** -alpha
        for weights, share in contrasts.items():
            unit = np.array(weights) / math.sqrt(sum(w * w for w in weights))
            field = np.einsum("c,ncij->nij", unit, of_class - of_class.mean(0))
            seen = np.square(dctn(field, axes=(1, 2), norm="ortho")).mean(0)
            known = 3 * share * (size * sd) ** 2 * power / power.sum() + 1 / (12 * 255**2)
            assert np.abs(seen / known - 1).max() < SIGMAS * math.sqrt(2 / count)


def test_the_covariance_is_about_that_of_cifar10():
    """CIFAR-10: total variance 190.4, 36 eigenvalues above 1/2, 22 above 1, the first 29 % of the whole."""
    power = eigenvalues(load("clouds", {"examples": 1000}).train.values)
    assert power.sum().item() == pytest.approx(190.4, rel=0.05)
    assert 30 <= (power > 0.5).sum() <= 42
    assert 17 <= (power > 1).sum() <= 25
    assert 0.2 < power[0] / power.sum() < 0.35


def test_classes_differ_in_direction_roughness_and_colour():
    dataset = load("clouds", {"examples": 800})
    x, labels = dataset.train.values.double(), dataset.train.labels
    across, along = x.diff(dim=2).square().mean((1, 2, 3)), x.diff(dim=3).square().mean((1, 2, 3))
    kinds = {name: labels == k for k, name in enumerate(dataset.spec.classes)}
    assert (across / along)[kinds["strata"]].min() > 1 > (across / along)[kinds["stems"]].max()
    assert across[kinds["sky"]].median() < 0.3 * across[kinds["dust"]].median()
    means = torch.stack([x[chosen].mean((0, 2, 3)) for chosen in kinds.values()])
    assert means.argmax(1).tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize("wrong", [{"examples": 0}, {"size": 1}])
def test_what_makes_no_images_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        load("clouds", wrong)


def test_a_run_on_them_is_trained_and_evaluated(tmp_path):
    small = ["data=clouds", "data.examples=60", "data.size=16", "train.epochs=1"]
    config = resolve("cifar10", [*small, "model.encoder.width=8", "model.decoder.width=8"]).config
    run = train(config, out=tmp_path / "run", device="cpu")
    assert evaluate(run, SMOKE, device="cpu")["elbo"]["n"] == 12
    again = replace(config, data=replace(config.data, params={**config.data.params, "permuted": True}))
    permuted = train(again, out=tmp_path / "permuted", device="cpu")
    assert permuted.env["data"]["hash"] != run.env["data"]["hash"]
    assert "pixel positions permuted" in permuted.env["data"]["note"]


# ------------------------------------------------------------------------------------------------ permuted positions
@pytest.fixture(scope="module")
def pair() -> tuple[Dataset, Dataset]:
    """The same images as they are and permuted."""
    params = {"examples": 300, "size": 12}
    return load("clouds", params), load("clouds", {**params, "permuted": True})


def test_positions_are_a_fixed_bijection():
    order = positions(32, 32)
    assert order.sort().values.tolist() == list(range(1024))
    assert hashlib.sha256(bytes(str(order.tolist()), "ascii")).hexdigest()[:16] == "10e9f8a4c4e48a32"
    assert positions(2, 8).tolist() != positions(4, 4).tolist()
    assert (order - torch.arange(1024)).abs().float().mean() > 300, "1024 / 3 for a uniform one"


def test_all_images_of_all_splits_and_channels_are_permuted_alike(pair):
    plain, permuted = pair
    order = positions(12, 12).tolist()
    for before, after in zip(splits(plain), splits(permuted)):
        a, b = before.values.flatten(2), after.values.flatten(2)
        for new, old in enumerate(order):
            assert torch.equal(b[:, :, new], a[:, :, old])
        assert torch.equal(before.labels, after.labels)
    assert permuted.spec == plain.spec
    assert permuted.hash != plain.hash
    assert permuted.note == plain.note + "; pixel positions permuted, in all images and channels alike (data.permuted)"


def test_the_covariance_keeps_its_eigenvalues_and_neighbours_are_strangers(pair):
    plain, permuted = (dataset.train.values for dataset in pair)
    torch.testing.assert_close(eigenvalues(permuted), eigenvalues(plain), rtol=1e-10, atol=1e-10)
    before, after = (x.double().diff(dim=3).square().mean().item() for x in (plain, permuted))
    apart = 2 * plain.double().var((2, 3)).mean().item()  # of two positions drawn at random from an image
    assert before < 0.5 * apart
    assert after == pytest.approx(apart, rel=0.2)


def mirrored(model: torch.nn.Module, order: Tensor) -> dict[str, Tensor]:
    """The weights of an MLP for permuted images: its first layer's columns and its last layer's rows permuted likewise."""
    where = torch.cat([order + channel * order.numel() for channel in range(3)])
    state = model.state_dict()
    first, last = "encoder.layers.0.weight", f"decoder.layers.{len(model.decoder.layers) - 1}."
    moved = {first: state[first][:, where], **{last + part: state[last + part][where] for part in ("weight", "bias")}}
    return {**state, **moved}


def test_a_dense_network_loses_nothing(pair):
    """Loss and gradients of an MLP on permuted images are those on the plain ones, at weights permuted likewise: training on
    either is the same walk."""
    plain, permuted = pair
    first, second = (build_model(model_config(3, width=7, depth=1), plain.spec).double().eval() for _ in range(2))
    order = positions(12, 12)
    second.load_state_dict(mirrored(first, order))
    terms = []
    for model, dataset in ((first, plain), (second, permuted)):
        torch.manual_seed(3)
        found = ELBO()(model, next(Loader(dataset, "test", dtype=torch.float64).ordered(20)).x)
        found["loss"].mean().backward()
        terms.append(found)
    for name, value in terms[0].items():
        torch.testing.assert_close(terms[1][name], value, rtol=1e-12, atol=1e-12)
    column = "encoder.layers.0.weight"
    where = torch.cat([order + channel * order.numel() for channel in range(3)])
    gradients = [dict(model.named_parameters())[column].grad for model in (first, second)]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0][:, where], rtol=1e-9, atol=1e-9)


def test_a_convolution_cannot_be_made_blind_to_it():
    """The same convolution gives other features, whatever their order: the sum of squares over positions differs."""
    x = load("clouds", {"examples": 4, "size": 8}).train.values
    moved = x.flatten(2)[:, :, positions(8, 8)].view_as(x)
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, 3, padding=1)
    sizes = [layer(images / 255).relu().square().sum((2, 3)) for images in (x, moved)]
    assert ((sizes[0] - sizes[1]).abs() > 0.01 * sizes[0]).any()


def test_cifar10_is_permuted_on_request(tmp_path, monkeypatch):
    collection, contents = tiny()
    named = replace(collection, name="cifar10")
    monkeypatch.setattr(cifar, "CIFAR10", named)
    monkeypatch.setitem(COLLECTIONS, "cifar10", named)
    (tmp_path / "cifar10").mkdir()
    for name, body in contents.items():
        (tmp_path / "cifar10" / name).write_bytes(body)
    access = Access(cache=tmp_path, offline=True)
    plain, permuted = (load("cifar10", {"validation": 5, "permuted": flag}, access) for flag in (False, True))
    known = permute(plain)
    assert permuted.hash == known.hash != plain.hash
    for a, b, c in zip(splits(plain), splits(permuted), splits(known)):
        assert torch.equal(b.values, c.values) and torch.equal(a.labels, b.labels)
        assert not torch.equal(a.values, b.values)
    assert permuted.hashes.items() > plain.hashes.items()
    assert load("cifar10", {"validation": 0, "permuted": True}, access).validation is None
