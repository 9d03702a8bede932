"""Measures of samples against closed forms, numbers worked out by hand, and sums written as loops; everything float64."""

from __future__ import annotations

import math

import pytest
import torch

from diabolo import memorisation, sample_metrics
from diabolo.memorisation import memorised, nearer_than_test, nearest
from diabolo.sample_metrics import (
    Moments,
    class_accuracy,
    class_entropy,
    frechet,
    frechet_distance,
    kernel_distance,
    moments,
    neighbourhoods,
    precision_recall_density_coverage,
    squared_mmd,
)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: list[float], covariance: list[list[float]], n: int = 1000) -> Moments:
    return Moments(torch.tensor(mean).double(), torch.tensor(covariance).double() * (n - 1), n)


def prdc(x: torch.Tensor, y: torch.Tensor, k: int) -> dict[str, float]:
    found = precision_recall_density_coverage(neighbourhoods(x, k), neighbourhoods(y, k))
    return {name: entry["value"] for name, entry in found.items()}


# ------------------------------------------------------------------------------------------------ Frechet
def test_the_frechet_distance_of_commuting_gaussians_is_that_of_their_means_and_deviations():
    a = gaussian([0, 0, 1], [[4, 0, 0], [0, 9, 0], [0, 0, 1]])
    b = gaussian([3, 0, 1], [[1, 0, 0], [0, 4, 0], [0, 0, 0]])  # one direction without variance
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 1 + 1, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(12, rel=1e-12)


def test_the_frechet_distance_of_gaussians_with_other_axes_has_the_trace_of_a_root_of_two_by_two():
    """tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)) for M = C1 C2 of two rows."""
    first, second = [[2.0, 1.2], [1.2, 1.0]], [[1.0, -0.7], [-0.7, 3.0]]
    product = torch.tensor(first).double() @ torch.tensor(second).double()
    trace = math.sqrt(product.trace().item() + 2 * math.sqrt(torch.linalg.det(product).item()))
    found = frechet_distance(gaussian([0, 1], first), gaussian([0, 3], second))
    assert found == pytest.approx(4 + 3 + 4 - 2 * trace, rel=1e-6)  # the lists pass through float32


def test_moments_are_those_of_the_set_and_of_what_is_left_without_a_part():
    x = normal(50, 4, seed=0) + 3
    whole, left = moments(x), moments(x).without(moments(x[:20]))
    assert whole.covariance.allclose(torch.cov(x.T), rtol=1e-12)
    assert left.n == 30
    assert left.mean.allclose(x[20:].mean(0), rtol=1e-12)
    assert left.covariance.allclose(torch.cov(x[20:].T), rtol=1e-10)
    with pytest.raises(ValueError, match="at least two"):
        moments(x[:1])


def test_a_set_has_no_distance_from_itself_and_the_order_of_samples_does_not_matter():
    x = normal(40, 3, seed=1)
    y = normal(30, 3, seed=2) * 2
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-12)
    shuffled = x[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    assert frechet(shuffled, moments(y))["value"] == pytest.approx(frechet(x, moments(y))["value"], rel=1e-10)


def test_the_jackknife_finds_the_bias_and_the_spread_of_a_frechet_distance():
    """From N(0, I) in 3 dimensions a set of n has E D = (d + d(d + 1)/4) / n to first order. 60 sets: each check is one of
    5 standard errors, p < 1e-6; 12 % is allowed for higher orders and for the jackknife's own bias."""
    exact, n, d, sets = gaussian([0, 0, 0], torch.eye(3).tolist()), 300, 3, 60
    found = [frechet(normal(n, d, seed=s), exact) for s in range(sets)]
    value, bias, se = (torch.tensor([f[key] for f in found], dtype=torch.float64) for key in ("value", "bias", "se"))
    expected = (d + d * (d + 1) / 4) / n
    for numbers in (value, bias):
        assert abs(numbers.mean() - expected) < 5 * numbers.std() / math.sqrt(sets) + 0.12 * expected
    assert 0.6 < (se.square().mean() / value.var()).item() < 2.2  # near zero distance the jackknife is conservative


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least 20 examples, and these are 19"):
        frechet(normal(19, 2, seed=0), moments(normal(30, 2, seed=1)))
    with pytest.raises(ValueError, match="at least 20 examples, and these are 19"):
        kernel_distance(normal(30, 2, seed=0), normal(19, 2, seed=1))
    with pytest.raises(ValueError, match="no 5 nearest"):
        neighbourhoods(normal(5, 2, seed=0), 5)


# ------------------------------------------------------------------------------------------------ kernel
def test_the_squared_mmd_is_the_three_sums():
    x, y = normal(5, 3, seed=0), normal(4, 3, seed=1)

    def mean(a: torch.Tensor, b: torch.Tensor, other: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (other and i == j)]
        return sum(((a[i] @ b[j]).item() / 3 + 1) ** 3 for i, j in pairs) / len(pairs)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert squared_mmd(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_squared_mmd_is_unbiased(shift):
    """Of N(0, 1) and N(a, 1): the kernel sees three moments, so that it is m3^2 + 3 (m2 - 1)^2 + 3 a^2 with m2 = a^2 + 1 and
    m3 = a^3 + 3a. 400 pairs of sets of 20; 5 standard errors, p < 1e-6."""
    found = torch.tensor([
        squared_mmd(normal(20, 1, seed=2 * s), normal(20, 1, seed=2 * s + 1) + shift) for s in range(400)
    ])
    exact = (shift**3 + 3 * shift) ** 2 + 3 * shift**4 + 3 * shift**2
    assert abs(found.mean().item() - exact) < 5 * found.std().item() / 20


def test_a_kernel_distance_is_the_mean_over_disjoint_blocks(monkeypatch):
    x, y = normal(60, 2, seed=0), normal(50, 2, seed=1)
    monkeypatch.setattr(sample_metrics, "KERNEL_BLOCK", 4)
    found = kernel_distance(x, y)
    assert found["blocks"] == 12
    assert sorted(torch.cat(sample_metrics.parts(50, 12, ["a"])).tolist()) == list(range(50))
    blocks = zip(sample_metrics.parts(60, 12, ["kernel", "x"]), sample_metrics.parts(50, 12, ["kernel", "y"]))
    values = torch.tensor([squared_mmd(x[i], y[j]) for i, j in blocks], dtype=torch.float64)
    assert found["value"] == pytest.approx(values.mean().item(), rel=1e-12)
    assert found["se"] == pytest.approx(values.std().item() / math.sqrt(12), rel=1e-12)


# ------------------------------------------------------------------------------------------------ neighbourhoods
def test_precision_recall_density_and_coverage_of_points_on_a_line():
    """Balls around 0, 1, 3: [-1, 1], [0, 2], [1, 5]; around -0.5, 4, 10, 40: [-5, 4], [-0.5, 8.5], [4, 16], [10, 70].

    -0.5 lies in the first ball, 4 in the third, 10 and 40 in none; all of 0, 1, 3 lie in the samples' first ball.
    """
    y, x = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[-0.5], [4.0], [10.0], [40.0]])
    assert neighbourhoods(y, 1).squared_radii.tolist() == [1, 1, 4]
    assert prdc(x, y, 1) == {"precision": 0.5, "recall": 1.0, "density": 0.5, "coverage": pytest.approx(2 / 3)}
    # the other way round: each lies in the balls of -0.5 and 4, or of -0.5 alone; those of 10 and 40 are empty
    assert prdc(y, x, 1) == {"precision": 1.0, "recall": 0.5, "density": 2.0, "coverage": 0.5}


def test_a_point_on_the_edge_of_a_ball_lies_in_it():
    y, x = torch.tensor([[0.0], [2.0]]), torch.tensor([[-2.0], [7.0]])
    assert prdc(x, y, 1) == {"precision": 0.5, "recall": 1.0, "density": 0.5, "coverage": 0.5}


def test_equal_sets_are_covered_whole_and_every_ball_holds_its_point_and_k_others():
    x = normal(60, 3, seed=0)
    assert prdc(x, x.clone(), 5) == {"precision": 1, "recall": 1, "density": pytest.approx(6 / 5), "coverage": 1}


def test_neighbourhoods_depend_neither_on_order_nor_on_what_is_in_memory_at_a_time(monkeypatch):
    x, y = normal(50, 3, seed=0), normal(40, 3, seed=1) + 0.5
    whole = prdc(x, y, 3)
    shuffled = [t[torch.randperm(len(t), generator=torch.Generator().manual_seed(5))] for t in (x, y)]
    monkeypatch.setattr(sample_metrics, "_ROWS", 7)
    assert prdc(x, y, 3) == whole
    assert prdc(*shuffled, 3) == pytest.approx(whole)


def test_standard_errors_of_shares_are_binomial_and_of_density_those_of_a_mean():
    x, y = normal(50, 2, seed=0), normal(40, 2, seed=1) + 1
    found = precision_recall_density_coverage(neighbourhoods(x), neighbourhoods(y))
    for name, n in (("precision", 50), ("recall", 40), ("coverage", 40)):
        p = found[name]["value"]
        assert (found[name]["n"], found[name]["unit"]) == (n, "share")
        assert found[name]["se"] == pytest.approx(math.sqrt(p * (1 - p) / n))
    radii = torch.cdist(y, y).sort().values[:, 5]
    counts = (torch.cdist(x, y) <= radii).sum(1).double() / 5
    assert found["density"]["se"] == pytest.approx(counts.std().item() / math.sqrt(50))


# ------------------------------------------------------------------------------------------------ classes
def test_classes_recognised_and_their_entropy():
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    found = class_accuracy(logits, torch.tensor([0, 1, 1, 2]))
    assert (found["value"], found["n"]) == (0.75, 4)
    assert found["se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    entropy = class_entropy(logits)
    assert entropy["counts"] == [2, 1, 1]
    assert entropy["value"] == pytest.approx(1.5 * math.log(2))
    assert entropy["of"] == pytest.approx(math.log(3))
    assert entropy["se"] == pytest.approx(math.log(2) * math.sqrt((0.5 + 0.5 * 4 - 1.5**2) / 4))
    alone = class_entropy(torch.eye(3)[torch.tensor([1, 1])])
    assert (alone["value"], alone["se"]) == (0, 0)


# ------------------------------------------------------------------------------------------------ memorisation
def test_the_nearest_training_images_are_those_of_all_pairs_whatever_is_in_memory_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(256, (n, 3, 4, 4), generator=generator, dtype=torch.uint8) for n in (9, 23))
    y[17] = x[4]
    exact = torch.cdist(x.flatten(1).double(), y.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist")
    for rows, columns in ((1000, 5000), (4, 5), (2, 1)):
        monkeypatch.setattr(memorisation, "_ROWS", rows)
        monkeypatch.setattr(memorisation, "_COLUMNS", columns)
        found = nearest(x, y, 3)
        assert found.distances.allclose(exact.sort(1).values[:, :3], rtol=1e-12)
        assert found.distances.allclose(exact.gather(1, found.indices), rtol=1e-12)
        assert (found.distances[4, 0], found.indices[4, 0]) == (0, 17)  # levels are whole: a copy is at 0 exactly
    with pytest.raises(ValueError, match="no 24 nearest"):
        nearest(x, y, 24)


def test_distances_of_levels_are_whole_numbers_to_the_last_bit():
    """Those as far from 128 as can be, in as many dimensions as a colour image has: the sums in float32 are at their limit."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randint(256, (n, 3072), generator=generator, dtype=torch.uint8) for n in (5, 7))
    x[0], y[0], y[1] = 0, 255, 0
    exact = (x.long()[:, None] - y.long()).square().sum(-1)
    assert memorisation._between_levels(x, y).equal(exact.double())
    assert exact.max() == 3072 * 255**2


def test_the_memorised_share_of_new_images_is_the_quantile_and_of_copies_1():
    test = normal(1000, seed=0).exp()
    assert memorised(test, test)["value"] == 0.01
    assert memorised(torch.zeros(10).double(), test)["value"] == 1
    half = torch.cat([torch.zeros(500).double(), test[500:]])
    found = memorised(half, test)
    assert found["value"] == pytest.approx(0.5, abs=0.011)
    assert found["se"] == pytest.approx(
        math.sqrt(0.25 / 1000), rel=0.2
    )  # copies dominate it; 200 redraws know it to 5 %
    assert found["threshold"] == pytest.approx(test.quantile(0.01).item())
    doubles = torch.cat([torch.zeros(20).double(), test[20:]])
    assert memorised(torch.zeros(10).double(), doubles)["value"] == 1, "2 % of the test images are copies themselves"
    assert memorised(test + 1, doubles)["value"] == 0
    with pytest.raises(ValueError, match="99 test images have no 1 % quantile"):
        memorised(test, test[:99])


def test_the_standard_error_of_a_memorised_share_is_its_spread_over_sets():
    """The quantile moves with the test images: about twice the binomial variance for equal sets. 100 pairs of 400."""
    found = [memorised(normal(400, seed=2 * s), normal(400, seed=2 * s + 1)) for s in range(100)]
    values = torch.tensor([f["value"] for f in found])
    stated = torch.tensor([f["se"] for f in found]).square().mean().sqrt()
    assert 0.7 < (stated / values.std()).item() < 1.5


def test_the_probability_of_being_nearer_counts_pairs_and_ties_by_half():
    found = nearer_than_test(torch.tensor([1.0, 2.0, 5.0]).double(), torch.tensor([2.0, 3.0]).double())
    assert found["value"] == pytest.approx((2 + 1.5 + 0) / 6)
    rows, columns = torch.tensor([1, 0.75, 0]).double(), torch.tensor([0.5, 2 / 3]).double()
    assert found["se"] == pytest.approx(math.sqrt(rows.var() / 3 + columns.var() / 2))
    same = nearer_than_test(normal(500, seed=0), normal(400, seed=1))
    exact = math.sqrt(901 / (12 * 500 * 400))  # of Mann and Whitney's statistic between equal distributions
    assert same["se"] == pytest.approx(exact, rel=0.1)
    assert abs(same["value"] - 0.5) < 5 * exact  # p < 1e-6
