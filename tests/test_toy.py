"""The spiral, distances to it, and what the four kinds of autoencoder make of it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from diabolo import plots, training
from diabolo.chapters import toy
from diabolo.data import load
from diabolo.data.synthetic import spiral_curve
from diabolo.errors import UsageError

torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------ the data
def test_the_curve_is_a_spiral_walked_evenly():
    curve = spiral_curve(1.5, 4001)
    assert torch.allclose(curve[0], torch.tensor([0.3, 0.0], dtype=torch.float64))
    assert torch.allclose(curve[-1], torch.tensor([-1.0, 0.0], dtype=torch.float64), atol=1e-9)
    steps = (curve[1:] - curve[:-1]).norm(dim=1)
    assert (steps.max() - steps.min()) / steps.mean() < 1e-3
    # the length of r = a + b t, phi = c t is the integral of sqrt(b^2 + c^2 r^2): Simpson's rule
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    speed = (0.7**2 + (2 * math.pi * 1.5 * (0.3 + 0.7 * t)) ** 2).sqrt()
    weights = torch.tensor([1.0, *[4.0, 2.0] * 999, 4.0, 1.0], dtype=torch.float64) / 6000
    assert steps.sum() == pytest.approx((weights * speed).sum().item(), rel=1e-5)
    angle = torch.atan2(curve[:, 1], curve[:, 0]) % (2 * math.pi)
    t = (curve.norm(dim=1) - 0.3) / 0.7
    apart = (angle - 3 * math.pi * t + math.pi) % (2 * math.pi) - math.pi
    assert apart.abs().max() < 1e-5, "r(t) and the angle belong to the same t"


def test_points_lie_around_the_curve_as_far_as_sigma_says():
    """Across a curve that is nearly straight at the scale of sigma, the distance is |N(0, sigma^2)|: mean sigma sqrt(2 / pi)."""
    dataset = load("spiral", {"sigma": 0.01, "examples": 4000})
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (4000, 800, 800)
    found = toy.distances(dataset.train.values, spiral_curve(1.0, 4000))
    assert abs(found.to_curve - 0.01 * math.sqrt(2 / math.pi)) < 5 * found.se + 1e-4
    exact = toy.distances(load("spiral", {"sigma": 0, "examples": 500}).train.values, spiral_curve(1.0, 4000))
    assert exact.to_curve < 1e-3 and exact.from_curve < 0.01


def test_splits_and_seeds_are_different_draws_and_repeat():
    one, other = load("spiral", {"examples": 50}), load("spiral", {"examples": 50, "seed": 1})
    assert one.hash == load("spiral", {"examples": 50}).hash != other.hash
    assert not torch.equal(one.train.values[:10], one.test.values[:10])


@pytest.mark.parametrize("wrong", [{"turns": 0}, {"turns": -1}, {"sigma": -0.1}, {"examples": 0}])
def test_no_spiral_is_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        load("spiral", wrong)


# ------------------------------------------------------------------------------------------------ measuring
def test_distances_of_known_points():
    curve = torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    found = toy.distances(torch.tensor([[0.0, 3.0], [1.0, -1.0]]), curve)
    assert found.to_curve == 2 and found.se == pytest.approx(1) and found.n == 2
    assert found.from_curve == pytest.approx((math.sqrt(2) + 1 + math.sqrt(10)) / 3)


# ------------------------------------------------------------------------------------------------ trained
@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All four kinds, as the chapter trains them."""
    folder, dataset = tmp_path_factory.mktemp("toy"), load("spiral", {})
    runs = {
        kind: training.train(config, out=folder / kind, data=dataset, device="cpu")
        for kind, config in toy.configs().items()
    }
    return toy.measure({kind: run.model() for kind, run in runs.items()}, dataset), dataset


def test_reconstructions_are_nearer_to_the_curve_than_the_noisy_points(trained):
    found, _ = trained
    assert found.data.to_curve == pytest.approx(0.05 * math.sqrt(2 / math.pi), rel=0.05)
    limits = {"AE": 0.3, "DAE": 0.7, "CAE": 0.85, "VAE": 0.6}
    for kind, limit in limits.items():
        assert found.reconstructed[kind].to_curve < limit * found.data.to_curve, kind
        assert found.reconstructed[kind].from_curve < 0.05, f"{kind} leaves part of the curve out"


def test_samples_of_the_vae_lie_on_the_curve_and_all_along_it(trained):
    found, _ = trained
    assert set(found.sampled) == {"VAE"}
    assert found.sampled["VAE"].to_curve < 0.7 * found.data.to_curve
    assert found.sampled["VAE"].from_curve < 0.05


def test_the_arrows_of_the_denoiser_point_to_the_curve(trained):
    found, _ = trained
    panel = next(p for p in found.panels if p.title == "DAE")
    start, end = (torch.from_numpy(a) for a in (panel.origins, panel.origins + panel.arrows))
    curve = spiral_curve()
    before, after = (torch.cdist(p.double(), curve).min(1).values for p in (start, end))
    near = (before > 0.1) & (before < 0.3)  # where noisy points were seen in training
    assert near.sum() > 20 and (after[near] < 0.5 * before[near]).double().mean() > 0.9


def test_the_figure_has_a_panel_of_each_kind_and_is_the_same_every_time(trained):
    found, dataset = trained
    drawn = [plots.svg(plots.planes(found.panels), "toy", "four kinds") for _ in range(2)]
    assert drawn[0] == drawn[1]
    for kind in toy.KINDS:
        assert f">{kind}<" in drawn[0]
    assert [p.line is not None for p in found.panels] == [True, False, False, False]
    assert [p.points is not None for p in found.panels] == [False, False, False, True]
    json.dumps(found.to_dict(), allow_nan=False)
