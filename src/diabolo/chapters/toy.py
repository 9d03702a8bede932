"""The manifold hypothesis in the plane: what four kinds of autoencoder make of noisy points around a spiral.

The curve without noise is known, so that it can be measured how near a model's reconstructions and samples come to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diabolo.config import RunConfig, resolve
from diabolo.data import Dataset
from diabolo.data.synthetic import spiral_curve
from diabolo.models.autoencoder import Autoencoder
from diabolo.plots import Panel
from diabolo.seeds import fold

_COMMON = (
    "data=spiral",
    "model.likelihood=gaussian_optimal",
    "train.batch=256",
    "train.epochs=6",
    "train.lr=0.01",
    "train.ema=0.98",
    "train.keep=last",
    "train.curve=none",
)
#: Each kind as a preset and what is changed of it. The autoencoder and the VAE have one number as their code; the other two have
#: room for more than the plane, and only what they are trained for draws them to the curve.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "AE": ("ae", ("model.latent=1", "activation=tanh")),
    "DAE": ("dae", ("model.latent=16", "activation=relu", "objective.level=0.15")),
    "CAE": (
        "contractive",
        ("model.latent=2", "activation=relu", "objective.jacobian=hutchinson", "objective.contractive=10"),
    ),
    "VAE": ("vae", ("model.latent=1", "activation=relu", "objective.warmup_steps=200")),
}
#: How many test points are reconstructed and samples drawn to be measured, and how many of them a picture shows.
MEASURED, SHOWN = 2000, 400
_SIDE = 1.3


def configs() -> dict[str, RunConfig]:
    """The configuration of each kind: networks of two hidden layers of 64 units on the data set `spiral`."""
    return {kind: resolve(preset, _overrides(changes)).config for kind, (preset, changes) in KINDS.items()}


def _overrides(changes: tuple[str, ...]) -> list[str]:
    found = [f"model.{part}=mlp" for part in ("encoder", "decoder")]
    for change in ("width=64", "depth=2", *changes):
        parts = ("model.encoder.", "model.decoder.") if "." not in change.partition("=")[0] else ("",)
        found += [part + change for part in parts]
    return [*found, *_COMMON]


@dataclass(frozen=True)
class Distances:
    """How near n points come to the curve and the curve to them, in units of the plane: the mean distance of a point to the
    curve with its standard error, and the mean distance of the curve's points to the nearest of the n."""

    to_curve: float
    se: float
    from_curve: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Toy:
    """What the chapter shows: panels to draw, and distances of the data, the reconstructions and the samples by kind."""

    panels: tuple[Panel, ...]
    data: Distances
    reconstructed: Mapping[str, Distances]
    sampled: Mapping[str, Distances]

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.data.to_dict(),
            "reconstructed": {kind: found.to_dict() for kind, found in self.reconstructed.items()},
            "sampled": {kind: found.to_dict() for kind, found in self.sampled.items()},
        }


@torch.no_grad()
def measure(models: Mapping[str, Autoencoder], dataset: Dataset, *, turns: float = 1.0, seed: int = 0) -> Toy:
    """Measure trained models by kind on the test split of `spiral`, and collect what is drawn.

    Reconstructions are those of noisy points at the code's mean; samples are decoder means at z ~ p(z) of the models that have a
    prior. `turns` is the data set's.
    """
    x, curve = dataset.test.values[:MEASURED].float(), spiral_curve(turns)
    sampled = {kind: _samples(model, seed) for kind, model in models.items() if model.bounded}
    return Toy(
        panels=tuple(_panel(kind, model, x, curve, sampled.get(kind)) for kind, model in models.items()),
        data=distances(x, curve),
        reconstructed={kind: distances(model.reconstruct(x).mean[0], curve) for kind, model in models.items()},
        sampled={kind: distances(points, curve) for kind, points in sampled.items()},
    )


def distances(points: Tensor, curve: Tensor) -> Distances:
    """Distances between points (n, 2) and the curve, given as points (m, 2) so dense that their spacing does not matter."""
    apart = torch.cdist(points.double(), curve.double())
    nearest = apart.min(1).values
    n = nearest.numel()
    return Distances(nearest.mean().item(), nearest.std().item() / math.sqrt(n), apart.min(0).values.mean().item(), n)


def _samples(model: Autoencoder, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "toy"))
        return model.sample(MEASURED).mean[0]


# ------------------------------------------------------------------------------------------------ what is drawn
def _panel(kind: str, model: Autoencoder, x: Tensor, curve: Tensor, sampled: Tensor | None) -> Panel:
    """A VAE's samples; the line that a code of one number decodes to; else r(x) - x over the plane."""
    shown = Panel(kind, x[:SHOWN].numpy(), curve.numpy())
    if sampled is not None:
        return shown.with_points(sampled[:SHOWN].numpy())
    codes = model.encode(x).mean
    if codes.shape[1] == 1:
        return shown.with_line(_line(model, codes).numpy())
    grid = _grid(15)
    return shown.with_arrows(grid.numpy(), (model.reconstruct(grid).mean[0] - grid).numpy())


def _line(model: Autoencoder, codes: Tensor) -> Tensor:
    """What the codes from the least to the largest one of the data decode to, (500, 2)."""
    z = torch.linspace(codes.min().item(), codes.max().item(), 500)[:, None]
    return model.decode(z[None]).mean[0]


def _grid(count: int) -> Tensor:
    """count x count points of the square that the figure shows, (count^2, 2)."""
    ticks = torch.linspace(-_SIDE, _SIDE, count)
    return torch.cartesian_prod(ticks, ticks)
