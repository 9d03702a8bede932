"""The built-in data sets: known content, splits, and what is said of them."""

from __future__ import annotations

import math

import pytest
import torch

import fault_server as faults
from diabolo import registry
from diabolo.data import Access, Dataset, Loader, catalogue, load
from diabolo.data import digits as digits_module
from diabolo.data.levels import entropy_floor
from diabolo.data.mnist import idx_dataset
from diabolo.data.stored import read_levels
from diabolo.data.synthetic import linear_gaussian_parameters
from diabolo.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# -- digits ------------------------------------------------------------------------------------------------------------


def test_digits_are_the_known_ones():
    digits = load("digits")
    assert (digits.spec.shape, digits.spec.values, digits.spec.dimensions) == ((1, 8, 8), "grey", 64)
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1300, 200, 297)
    assert digits.spec.examples == 1300 and digits.spec.classes == tuple("0123456789")
    assert digits.train.values.dtype == torch.uint8
    assert digits.hashes == {
        "images": "b41ca9fd335466eee997366c2e6f6bbe0a1b4582afe091fc4eba35f4a254182f",
        "labels": "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
    }


def test_digits_are_those_that_the_library_gives(monkeypatch):
    expected = load("digits").hashes
    monkeypatch.setattr(digits_module, "find_spec", lambda name: None)
    assert load("digits").hashes == expected


def test_digits_levels_are_the_seventeen_scaled_exactly():
    values = torch.cat([split.values for split in splits(load("digits"))])
    assert values.unique().tolist() == [round(k * 255 / 16) for k in range(17)]


def test_digits_splits_are_disjoint_and_complete():
    from sklearn.datasets import load_digits

    whole = load("digits", {"validation": 0})
    assert whole.validation is None and len(whole.train) == 1500
    for dataset in (whole, load("digits", {"validation": 77})):
        labels = torch.cat([split.labels for split in splits(dataset)])
        assert labels.tolist() == load_digits().target.tolist()
    assert torch.equal(whole.test.values, load("digits").test.values)


def splits(dataset: Dataset):
    return [split for split in (dataset.train, dataset.validation, dataset.test) if split is not None]


@pytest.mark.parametrize(("name", "validation"), [("digits", -1), ("digits", 1500)])
def test_a_validation_split_that_leaves_nothing_is_refused(name, validation):
    with pytest.raises(UsageError, match="validation="):
        load(name, {"validation": validation})


def test_what_a_data_set_s_hash_depends_on():
    hashes = [
        load("digits", params).hash for params in ({}, {"binarize": True}, {"validation": 100}, {"validation": 200})
    ]
    assert hashes[0] == hashes[3] and len(set(hashes)) == 3


# -- load --------------------------------------------------------------------------------------------------------------


def test_load_suggests_names_of_sets_and_parameters():
    with pytest.raises(UsageError, match='Did you mean "digits"'):
        load("digit")
    with pytest.raises(UsageError, match='Did you mean "binarize"'):
        load("digits", {"binarise": True})
    with pytest.raises(UsageError, match='no parameter "access"'):
        load("digits", {"access": None})


def test_parameters_read_from_source_are_those_of_the_constructors():
    for name in ("mnist", "cifar10", "digits", "linear_gaussian"):
        read = registry.read_signature(registry._sources()["dataset"][name].definition)
        registry.get("dataset", name)
        assert {k: p.default for k, p in read.items()} == {
            k: p.default for k, p in registry.signature("dataset", name).items()
        }
        assert next(iter(read)) == "access"


def test_a_set_of_one_s_own_needs_no_access(monkeypatch):
    monkeypatch.setitem(registry._CATALOGUE, "dataset", dict(registry._CATALOGUE["dataset"]))

    @registry.register("dataset", "ours")
    def ours(validation: int = 3) -> Dataset:
        return load("digits", {"validation": validation})

    assert len(load("ours").validation) == 3


# -- the linear-Gaussian set -------------------------------------------------------------------------------------------


def test_linear_gaussian_parameters_have_orthogonal_columns_of_the_stated_norms():
    weight, bias, sigma = linear_gaussian_parameters(16, 5, 0.25, seed=3)
    expected = torch.tensor([2, 1.5, 1, 0.75, 0.5625], dtype=torch.float64)
    assert torch.allclose(weight.T @ weight, torch.diag(expected**2), atol=1e-12)
    assert (bias.shape, sigma) == ((16,), 0.25)


def test_linear_gaussian_data_have_the_mean_and_covariance_of_the_model():
    """Mahalanobis terms of x under N(b, W W' + s^2 I) are chi-square with D degrees of freedom: their mean is D with
    standard error sqrt(2 D / N). Each coordinate's mean and each entry of the whitened covariance at 5 sigma:
    1 + 8 + 36 checks, failure probability below 3e-5, and the seed is fixed."""
    count, dimensions = 20_000, 8
    params = {"dimensions": dimensions, "latent": 2, "examples": count, "seed": 1}
    x = load("linear_gaussian", params).train.values.double()
    weight, bias, sigma = linear_gaussian_parameters(dimensions, 2, seed=1)
    covariance = weight @ weight.T + sigma**2 * torch.eye(dimensions, dtype=torch.float64)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (x - bias).T, upper=False).T
    assert abs(white.square().sum(1).mean() - dimensions) < 5 * math.sqrt(2 * dimensions / count)
    assert white.mean(0).abs().max() < 5 / math.sqrt(count)
    error = (white.T @ white / count - torch.eye(dimensions, dtype=torch.float64)).abs()
    assert error.max() < 5 * math.sqrt(2 / count)


def test_linear_gaussian_splits_are_independent_draws():
    dataset = load("linear_gaussian", {"examples": 50})
    assert [len(split) for split in splits(dataset)] == [50, 10, 10]
    assert dataset.spec.values == "real" and dataset.spec.shape == (16,) and dataset.train.labels is None
    rows = torch.cat([split.values for split in splits(dataset)])
    assert rows.unique(dim=0).shape[0] == 70
    assert dataset.hash == load("linear_gaussian", {"examples": 50}).hash
    assert dataset.hash != load("linear_gaussian", {"examples": 50, "seed": 1}).hash


@pytest.mark.parametrize("wrong", [{"latent": 0}, {"latent": 17}, {"sigma": 0.0}, {"sigma": math.nan}, {"examples": 0}])
def test_linear_gaussian_refuses_what_is_no_model(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        load("linear_gaussian", wrong)


# -- IDX files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    collection, contents = faults.tiny()
    (tmp_path / "tiny").mkdir()
    for name, body in contents.items():
        (tmp_path / "tiny" / name).write_bytes(body)
    return collection, contents, Access(cache=tmp_path, offline=True)


def test_idx_files_become_splits(tiny):
    collection, contents, access = tiny
    dataset = idx_dataset(collection, access, False, 7, ())
    assert [tuple(split.values.shape) for split in splits(dataset)] == [(33, 1, 5, 5), (7, 1, 5, 5), (10, 1, 5, 5)]
    body = contents["train-images-idx3-ubyte"]
    assert dataset.validation.values[0].flatten().tolist() == list(body[16 + 33 * 25 : 16 + 34 * 25])
    assert dataset.test.labels.tolist() == list(contents["t10k-labels-idx1-ubyte"][8:])
    assert dataset.hashes == {file.name: file.sha256 for file in collection.files}
    for wrong in (-1, 40):
        with pytest.raises(UsageError, match=f"validation={wrong}"):
            idx_dataset(collection, access, False, wrong, ())


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body[:-1],
        lambda body: body + b"\x00",
        lambda body: b"\x00\x00\x08\x01" + body[4:],
        lambda body: body[:4] + b"\x7f\xff\xff\xff" + body[8:],
        lambda body: body[:8] + body[8:16][::-1] + body[16:],
        lambda body: b"",
        lambda body: body[:3],
    ],
)
def test_an_idx_header_that_lies_is_refused_before_anything_is_read(tiny, tmp_path, damage):
    collection, contents, _ = tiny
    file = collection.files[0]
    path = tmp_path / "damaged"
    path.write_bytes(damage(contents[file.name]))
    with pytest.raises(DataError, match="not the registered file"):
        read_levels(path, file)


# -- the real MNIST ----------------------------------------------------------------------------------------------------


@pytest.mark.mnist
def test_mnist_is_mnist(mnist_cache):
    dataset = load("mnist", access=mnist_cache)
    assert [tuple(s.values.shape) for s in splits(dataset)] == [(n, 1, 28, 28) for n in (55000, 5000, 10000)]
    assert (dataset.spec.values, dataset.binarize, dataset.spec.examples) == ("binary", True, 55000)
    assert dataset.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert dataset.hashes == {file.name: file.sha256 for file in catalogue.MNIST.files}


@pytest.mark.mnist
def test_mnist_s_mean_level_and_entropy_floor_are_the_known_ones(mnist_cache):
    dataset = load("mnist", {"binarize": False, "validation": 0}, mnist_cache)
    assert dataset.validation is None and dataset.spec.values == "grey"
    total = sum(int(part.long().sum()) for part in dataset.train.values.split(10_000))
    assert total / dataset.train.values.numel() / 255 == pytest.approx(0.1306604, abs=1e-6)
    assert float(entropy_floor(dataset.test.values).mean()) == pytest.approx(45.53, abs=0.005)


@pytest.mark.mnist
def test_the_fixed_draw_of_mnist_s_test_images_is_pinned(mnist_cache):
    expected = "82606a51cc5c4971847c472049b6ab2fcc7524f671762c5ecc73b0d5b41266ee"
    for validation in (0, 5000):
        found = Loader(load("mnist", {"validation": validation}, mnist_cache), "test").draw_hash
        assert found == expected
