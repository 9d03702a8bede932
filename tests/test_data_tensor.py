"""A user's own array: how shape, range and labels are read, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diabolo.data import Loader, from_tensor
from diabolo.errors import UsageError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (30, 6, 7), dtype=np.uint8)
UNIT = RNG.random((30, 9))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def emitted(dataset) -> torch.Tensor:
    """Everything a loader emits, in a fixed order of the splits."""
    names = [name for name in ("train", "validation", "test") if name != "validation" or dataset.validation]
    return torch.cat([next(Loader(dataset, name, dtype=torch.float64).ordered(1000)).x for name in names])


def rows(x: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in x.flatten(1).tolist())


READINGS = {
    "uint8": (BYTES, "grey", BYTES / 255, "from 0 to 255 read as grey levels k/255"),
    "int64": (BYTES.astype(np.int64), "grey", BYTES / 255, "int64 values from 0 to 255, all whole, read as grey"),
    "int32 big-endian": (BYTES.astype(">i4"), "grey", BYTES / 255, "all whole, read as grey levels"),
    "uint16": (BYTES.astype(np.uint16), "grey", BYTES / 255, "all whole, read as grey levels"),
    "whole float": (BYTES.astype(np.float32), "grey", BYTES / 255, "float32 values from 0 to 255, all whole,"),
    "float in [0, 1]": (UNIT, "grey", UNIT, "read as grey values, as given"),
    "float32 in [0, 1]": (UNIT.astype(np.float32), "grey", UNIT.astype(np.float32), "float32 values from"),
    "bool": (UNIT > 0.5, "binary", UNIT > 0.5, "only 0 and 1, read as binary"),
    "float 0 and 1": ((UNIT > 0.5).astype(float), "binary", UNIT > 0.5, "only 0 and 1, read as binary"),
    "uint8 0 and 1": ((UNIT > 0.5).astype(np.uint8), "binary", UNIT > 0.5, "only 0 and 1, read as binary"),
    "negative": (UNIT - 0.5, "real", UNIT - 0.5, "read as real numbers, as given"),
    "large": (UNIT * 300, "real", UNIT * 300, "read as real numbers, as given"),
    "whole beyond 255": (BYTES.astype(np.float64) * 2, "real", BYTES * 2.0, "read as real numbers, as given"),
    "negative whole": (BYTES.astype(np.int16) - 9, "real", BYTES - 9.0, "read as real numbers, as given"),
}


@pytest.mark.parametrize("torched", [False, True])
@pytest.mark.parametrize("kind", READINGS)
def test_the_range_is_read_and_said(kind, torched):
    array, values, expected, note = READINGS[kind]
    if torched and array.dtype.byteorder == ">":
        pytest.skip("torch has no byte orders")
    dataset = from_tensor(torch.from_numpy(array.copy()) if torched else array)
    assert dataset.spec.values == values
    assert note in dataset.note
    assert rows(emitted(dataset)) == rows(torch.from_numpy(np.asarray(expected, dtype=np.float64)))


@pytest.mark.parametrize(
    ("shape", "read", "note"),
    [
        ((20, 5), (5,), ""),
        ((20, 6, 7), (1, 6, 7), "one channel"),
        ((20, 3, 6, 7), (3, 6, 7), ""),
        ((20, 6, 7, 3), (3, 6, 7), "channels last"),
        ((20, 6, 7, 1), (1, 6, 7), "channels last"),
        ((20, 1, 1, 1), (1, 1, 1), ""),
        ((20, 3, 8, 3), (3, 8, 3), ""),
        ((20, 16, 8, 8), (16, 8, 8), ""),
    ],
)
def test_the_shape_is_read_and_said(shape, read, note):
    array = RNG.random(shape)
    dataset = from_tensor(array)
    assert dataset.spec.shape == read and tuple(dataset.train.values.shape[1:]) == read
    assert note in dataset.note and ("shape" in dataset.note) == bool(note)
    channels_last = "last" in note
    expected = np.moveaxis(array, 3, 1) if channels_last else array
    assert rows(emitted(dataset)) == rows(torch.from_numpy(np.ascontiguousarray(expected)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.array([[1.0, np.nan]] * 9), "9 of 18 values are NaN"),
        (torch.tensor([[1.0, float("inf")]] * 9), "infinite"),
        (np.zeros((0, 4)), "empty"),
        (torch.zeros(9, 0), "empty"),
        (np.array([[object()]] * 9), "object"),
        (np.array([["a"]] * 9), "no real numbers"),
        (np.zeros((9, 2), dtype=complex), "complex128"),
        (torch.zeros(9, 2, dtype=torch.complex64), "complex64"),
        ([[0.5]] * 9, "a list"),
        (np.zeros(9), r"shape \(9,\)"),
        (np.zeros((9, 1, 2, 2, 2)), "shape"),
        (np.zeros((1, 4)), "1 example cannot be split"),
        (np.zeros((2, 4)), "2 examples cannot be split"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        from_tensor(wrong)


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (0.1, 0.0), (1.0, 0.1), (float("nan"), 0.1)])
def test_fractions_that_leave_a_split_empty_are_refused(validation, test):
    with pytest.raises(UsageError, match="validation"):
        from_tensor(UNIT, validation=validation, test=test)


def test_the_splits_are_a_fixed_partition():
    x = torch.arange(50, dtype=torch.float64).reshape(50, 1) - 10.5
    dataset = from_tensor(x, validation=0.2, test=0.1)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [35, 10, 5]
    assert rows(emitted(dataset)) == rows(x)
    again = from_tensor(x.numpy(), validation=0.2, test=0.1)
    assert torch.equal(again.test.values, dataset.test.values) and again.hash == dataset.hash
    assert not torch.equal(dataset.test.values, x[:5]) and not torch.equal(dataset.test.values, x[-5:])
    assert from_tensor(x, validation=0, test=0.1).validation is None
    assert dataset.spec.examples == 35 and dataset.spec.name == "tensor"


def test_the_hash_follows_content_and_labels():
    labels = np.arange(30) % 3
    base = from_tensor(UNIT, labels)
    assert base.hash == from_tensor(UNIT, labels).hash
    assert base.hash != from_tensor(UNIT).hash
    assert base.hash != from_tensor(UNIT, (labels + 1) % 3).hash
    assert base.hash != from_tensor(UNIT * 0.999, labels).hash


def test_the_user_s_array_is_neither_changed_nor_shared():
    array = UNIT.copy()
    dataset = from_tensor(array)
    array[:] = 0
    assert float(dataset.train.values.min()) > 0
    x = torch.rand(20, 3, requires_grad=True)
    assert not from_tensor(x).train.values.requires_grad


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.arange(30) % 3, ("0", "1", "2")),
        (np.arange(30) % 3 * 10 - 10, ("-10", "0", "10")),
        ((np.arange(30) % 3).astype(float), ("0", "1", "2")),
        (torch.arange(30) % 3, ("0", "1", "2")),
        (np.array(["cat", "dog", "emu"] * 10), ("cat", "dog", "emu")),
    ],
)
def test_labels_become_classes_and_stay_with_their_examples(labels, classes):
    x = np.repeat(np.arange(30) % 3, 4).reshape(30, 4) / 2 - 7
    dataset = from_tensor(x, labels)
    assert dataset.spec.classes == classes
    for split in (dataset.train, dataset.validation, dataset.test):
        assert torch.equal(split.labels, ((split.values[:, 0] + 7) * 2).long())


@pytest.mark.parametrize(
    "labels", [np.arange(29), np.zeros((30, 1)), np.full(30, 0.5), np.full(30, np.nan), np.full(30, None)]
)
def test_labels_that_are_no_classes_are_refused(labels):
    with pytest.raises(UsageError, match="labels"):
        from_tensor(UNIT, labels)


@pytest.mark.parametrize(
    "form", [lambda b: b, lambda b: b / 255, lambda b: (b / 255).astype(np.float32), lambda b: b.astype(float)]
)
def test_binarize_draws_from_the_levels_however_they_are_written(form):
    dataset = from_tensor(form(BYTES), binarize=True)
    reference = from_tensor(BYTES, binarize=True)
    assert dataset.binarize and dataset.spec.values == "binary" and "Bernoulli(k/255)" in dataset.note
    assert torch.equal(dataset.train.values, reference.train.values)
    assert set(emitted(dataset).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("x", [UNIT, UNIT - 0.5])
def test_binarize_without_levels_is_refused(x):
    with pytest.raises(UsageError, match="binarize"):
        from_tensor(x, binarize=True)
