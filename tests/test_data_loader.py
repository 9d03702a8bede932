"""Batches: the order, the draws and their probabilities, and that nothing depends on what came before."""

from __future__ import annotations

import math

import pytest
import torch

from diabolo.data import Batch, Dataset, DataSpec, Loader, Split, load
from diabolo.data.levels import bernoulli, entropy_floor, uniform_levels


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def grey() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def binary() -> Dataset:
    return load("digits", {"binarize": True})


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index) for a, b in zip(left, right)
    )


# -- exact draws -------------------------------------------------------------------------------------------------------


def test_every_level_is_drawn_with_its_exact_probability():
    """Mean of 40,000 draws of each of 256 levels at 5 sigma: failure probability 256 x 5.7e-7 = 1.5e-4; fixed seed."""
    count = 40_000
    levels = torch.arange(256, dtype=torch.uint8).expand(count, 256).contiguous()
    drawn = bernoulli(levels, seed=11)
    assert drawn.dtype == torch.uint8 and drawn.unique().tolist() == [0, 1]
    p = torch.arange(256, dtype=torch.float64) / 255
    mean = drawn.double().mean(0)
    assert mean[0] == 0 and mean[255] == 1
    error = (mean - p).abs()[1:255] / (p * (1 - p) / count).sqrt()[1:255]
    assert error.max() < 5
    assert 0.8 < error.square().mean() < 1.25  # not too good either: 254 terms, 5 sigma is 0.44


def test_uniform_levels_are_uniform_on_0_to_254():
    """Counts of 255 values in 2.55 million at 5 sigma: failure probability 1.5e-4; the seed is fixed."""
    counts = uniform_levels(5, (10_000, 255)).flatten().bincount(minlength=256)
    assert counts[255] == 0
    assert (counts[:255] - 10_000).abs().max() < 5 * math.sqrt(10_000 * (1 - 1 / 255))


def test_uniform_levels_are_a_fixed_function_of_seed_and_size():
    assert uniform_levels(1, (3, 5)).flatten().tolist() == PINNED
    assert torch.equal(uniform_levels(7, (4, 9)).flatten(), uniform_levels(7, (36,)))
    assert not torch.equal(uniform_levels(7, (36,)), uniform_levels(8, (36,)))


PINNED = [223, 130, 98, 117, 123, 162, 182, 77, 47, 14, 190, 186, 3, 250, 68]


# -- the order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 128, 1300, 5000])
def test_an_epoch_has_every_example_once_and_keeps_the_short_last_batch(grey, size):
    loader = Loader(grey, "train")
    batches = list(loader.shuffled(size, seed=0, epoch=3))
    assert len(batches) == loader.batches(size) == math.ceil(1300 / size)
    assert torch.cat([batch.index for batch in batches]).sort().values.tolist() == list(range(1300))
    assert [len(batch.x) for batch in batches[:-1]] == [size] * (len(batches) - 1)


def test_the_order_is_a_function_of_seed_and_epoch_alone(grey, binary):
    def order(dataset: Dataset, seed: int, epoch: int, size: int = 100) -> list[int]:
        return torch.cat([b.index for b in Loader(dataset, "train").shuffled(size, seed, epoch)]).tolist()

    torch.manual_seed(1)
    reference = order(grey, 0, 1)
    torch.manual_seed(2)
    assert order(grey, 0, 1) == order(binary, 0, 1) == order(grey, 0, 1, size=37) == reference
    assert len({tuple(order(grey, seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_no_draw_touches_the_global_generator(binary):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    loader = Loader(binary, "train")
    next(loader.shuffled(10, 0, 0))
    next(loader.ordered(10))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("skip", [0, 1, 5, 12, 13, 20])
def test_skipping_gives_the_tail_of_the_full_epoch(grey, binary, skip):
    for dataset in (grey, binary):
        loader = Loader(dataset, "train")
        full = list(loader.shuffled(101, 9, 2))
        assert same(list(Loader(dataset, "train").shuffled(101, 9, 2, skip=skip)), full[skip:])


def test_half_of_the_images_are_mirrored_by_seed_epoch_and_batch_alone(grey, binary):
    """Of 1,300 images 650 are, within 5 sigma (90): failure probability 6e-7; the seed is fixed. Nothing else changes."""

    def epoch(dataset: Dataset, seed: int = 3, number: int = 2, **more: object) -> list[Batch]:
        return list(Loader(dataset, "train").shuffled(100, seed, number, flips=True, **more))

    for dataset in (grey, binary):
        plain, found = list(Loader(dataset, "train").shuffled(100, 3, 2)), epoch(dataset)
        turned = 0
        for before, after in zip(plain, found, strict=True):
            assert torch.equal(before.index, after.index) and torch.equal(before.y, after.y)
            same_ones, mirrored = ((x == after.x).flatten(1).all(1) for x in (before.x, before.x.flip(-1)))
            assert (same_ones | mirrored).all()
            turned += int((mirrored & ~same_ones).sum())
        assert abs(turned - 650) < 90
        assert same(epoch(dataset, skip=5), found[5:])
        half = [b.x for b in epoch(dataset, share=lambda count: slice(count // 2, count))]
        assert all(torch.equal(part, whole.x[len(whole.x) // 2 :]) for part, whole in zip(half, found, strict=True))
    assert not same(epoch(grey), epoch(grey, seed=4)) and not same(epoch(grey), epoch(grey, number=3))


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grey_levels_leave_as_k_over_255(grey, dtype):
    loader = Loader(grey, "validation", dtype=dtype)
    for batches in (loader.shuffled(64, 0, 0), loader.ordered(64)):
        for batch in batches:
            assert batch.x.dtype == dtype
            assert torch.equal(batch.x, grey.validation.values[batch.index].to(dtype) / 255)
            assert torch.equal(batch.y, grey.validation.labels[batch.index])


def test_real_values_leave_as_they_are_and_without_labels():
    dataset = load("linear_gaussian", {"examples": 40})
    batch = next(Loader(dataset, "train").ordered(40))
    assert torch.equal(batch.x, dataset.train.values) and batch.y is None
    assert Loader(dataset, "train").draw_hash is None


def test_each_epoch_and_seed_draws_anew(binary):
    def first(seed: int, epoch: int) -> torch.Tensor:
        batches = list(Loader(binary, "train").shuffled(1300, seed, epoch))
        return batches[0].x[batches[0].index.argsort()]

    draws = [first(0, 0), first(0, 1), first(1, 0)]
    grey = (binary.train.values > 0) & (binary.train.values < 255)
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert 0.1 < (draws[left] != draws[right])[grey].float().mean() < 0.6
        assert torch.equal(draws[left][~grey], draws[right][~grey])


def test_no_two_batches_share_their_noise():
    levels = torch.full((20, 1, 8, 8), 128, dtype=torch.uint8)
    split = Split("train", levels)
    dataset = Dataset(DataSpec(name="flat", shape=(1, 8, 8), values="binary"), split, split, binarize=True)
    epochs = [Loader(dataset, "train").shuffled(10, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(batch.x.flatten().tolist()) for batches in epochs for batch in batches}) == 8


# -- the fixed draw ----------------------------------------------------------------------------------------------------


def test_the_fixed_draw_depends_neither_on_batches_nor_on_use(binary):
    loader = Loader(binary, "test")
    whole = next(loader.ordered(297)).x
    list(loader.shuffled(10, 5, 5))
    for size in (1, 10, 296, 1000):
        assert torch.equal(torch.cat([batch.x for batch in loader.ordered(size)]), whole)
        assert torch.equal(torch.cat([batch.x for batch in Loader(binary, "test").ordered(size)]), whole)
    assert whole.unique().tolist() == [0.0, 1.0]


def test_the_fixed_draw_is_pinned_and_differs_between_splits(binary):
    expected = "0f673de8d078bd614a59db8d3e1bf57eb7f44ea3d6ec88a49b10989da925a795"
    assert Loader(binary, "test").draw_hash == expected
    assert Loader(load("digits", {"binarize": True, "validation": 0}), "test").draw_hash == expected
    assert len({Loader(binary, name).draw_hash for name in ("train", "validation", "test")}) == 3


def test_chosen_examples_come_in_the_order_asked_for_with_the_same_pixels(grey, binary):
    chosen = torch.tensor([250, 3, 3, 17])
    for dataset in (grey, binary):
        whole = next(Loader(dataset, "test").ordered(297))
        batches = list(Loader(dataset, "test").ordered(3, chosen))
        assert torch.cat([batch.index for batch in batches]).tolist() == chosen.tolist()
        assert torch.equal(torch.cat([batch.x for batch in batches]), whole.x[chosen])
        assert torch.equal(torch.cat([batch.y for batch in batches]), whole.y[chosen])


def test_a_split_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no validation split"):
        Loader(load("digits", {"validation": 0}), "validation")


# -- the entropy floor -------------------------------------------------------------------------------------------------


def test_the_entropy_floor_is_that_of_the_formula():
    levels = torch.tensor([[0, 255, 0], [1, 128, 254]], dtype=torch.uint8)

    def entropy(k: int) -> float:
        return -sum(p * math.log(p) for p in (k / 255, 1 - k / 255) if p > 0)

    floor = entropy_floor(levels)
    assert floor.dtype == torch.float64
    assert floor.tolist() == pytest.approx([0.0, entropy(1) + entropy(128) + entropy(254)], rel=1e-14)
    with pytest.raises(ValueError, match="uint8"):
        entropy_floor(levels / 255)


def test_the_entropy_floor_is_the_least_cross_entropy(grey):
    x = grey.test.values
    p = (x.double() / 255).clamp(1e-15, 1 - 1e-15)
    at_best = torch.nn.functional.binary_cross_entropy(p, x.double() / 255, reduction="none").flatten(1).sum(1)
    assert torch.allclose(entropy_floor(x), at_best, atol=1e-9)
    worse = torch.nn.functional.binary_cross_entropy(p * 0.9 + 0.05, x.double() / 255, reduction="none")
    assert (worse.flatten(1).sum(1) > entropy_floor(x)).all()
