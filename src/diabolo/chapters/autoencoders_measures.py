"""What the chapter of autoencoders measures on its runs: numbers for tables, images for pictures. Nothing here draws.

Every number stands in `measures.json`, with n and its standard error where it is a mean over images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diabolo import denoising, jacobians, linear, rate
from diabolo.chapters import toy
from diabolo.data import Dataset, Loader
from diabolo.data.spec import Split
from diabolo.inspection import embed
from diabolo.language import say
from diabolo.metrics import linear_predictions, mean_and_se, proportion
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.corruptions import Kind
from diabolo.pictures import filters, random_examples, shared_noise
from diabolo.progress import Progress
from diabolo.runs import Run
from diabolo.tables import paired

#: The runs of one sigmoid layer, by what they were trained with.
LAYERS = {
    "plain": "layer-plain",
    "denoising, Gaussian": "layer-gaussian",
    "denoising, masking": "layer-masking",
    "denoising, salt and pepper": "layer-salt-pepper",
    "contractive": "layer-contractive",
}
#: Noise that each denoising layer was trained on: the matrix of what was learned against what is met.
NOISES: dict[str, tuple[Kind, float]] = {
    "Gaussian, sd 0.3": ("gaussian", 0.3),
    "masking, 25 %": ("masking", 0.25),
    "salt and pepper, 20 %": ("salt_pepper", 0.2),
}
#: Noise levels that are measured: all for the noise that the deep denoising network was trained on.
LEVELS: dict[Kind, tuple[float, ...]] = {
    "gaussian": denoising.LEVELS,
    "masking": (0.0, 0.1, 0.2, 0.4, 0.6, 0.8),
    "salt_pepper": (0.0, 0.1, 0.2, 0.4, 0.6, 0.8),
}
BITS = (2, 4, 6, 8)
QUALITIES = (1, 5, 10, 25, 50, 75, 95)
#: Images whose Jacobians are taken: one of 500 x 784 takes some hundredths of a second.
SPECTRA = 40
#: Decoded codes whose nearest training image is looked for.
DRAWN = 500


@dataclass
class Measured:
    """`numbers` are plain JSON; `pictures` images (n, C, H, W) by name; `figures` what drawings need; `seconds` by stage."""

    numbers: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def measure(made: Mapping[str, Run], dataset: Dataset, *, test: int, train: int, progress: Progress) -> Measured:
    """All analyses, on the first `test` test images and the first `train` training images where not all are looked at."""
    models = {name: run.model() for name, run in made.items()}
    small = replace(dataset, train=_first(dataset.train, train), test=_first(dataset.test, test))
    found = Measured()
    steps: Sequence[tuple[str, Callable[[], None]]] = (
        ("PCA", lambda: _bottleneck(found, made, models, dataset)),
        (say("drawing codes"), lambda: _drawing(found, models, small)),
        (say("Jacobians and probes"), lambda: _codes(found, models, small)),
        (say("denoising"), lambda: _denoising(found, models, small)),
        (say("compression"), lambda: _compression(found, models, small)),
    )
    for name, step in steps:
        _timed(found, name, step, progress)
    return found


def add_toy(found: Measured, toys: Mapping[str, Run], plane: Dataset, progress: Progress) -> None:
    """A6: what each kind of autoencoder makes of a spiral in the plane."""

    def step() -> None:
        shown = toy.measure({kind: run.model() for kind, run in toys.items()}, plane)
        found.numbers["toy"], found.figures["toy"] = shown.to_dict(), shown.panels

    _timed(found, say("toy manifold"), step, progress)


def _timed(found: Measured, name: str, step: Callable[[], None], progress: Progress) -> None:
    progress.say(f"analysing: {name}")
    began = time.monotonic()
    step()
    found.seconds[say("analysis: {name}", name=name)] = round(time.monotonic() - began, 2)


def _first(split: Split, count: int) -> Split:
    labels = None if split.labels is None else split.labels[:count]
    return Split(split.name, split.values[:count], labels)


def _entry(values: Tensor, unit: str) -> dict[str, Any]:
    value, se = mean_and_se(values.double())
    return {"value": value, "se": se, "n": values.numel(), "unit": unit}


# ------------------------------------------------------------------------------------------------ A1: the bottleneck
def _bottleneck(found: Measured, made: Mapping[str, Run], models: Mapping[str, Autoencoder], dataset: Dataset) -> None:
    """MSE of each size on all test images against PCA with as many dimensions, fitted to all training images."""
    sizes = {int(name.removeprefix("ae-")): name for name in made if name.startswith("ae-")}
    pca, x = linear.fit(_flat(dataset, "train"), max(sizes)), _flat(dataset, "test")
    rows = []
    for d, name in sizes.items():
        reduced = pca.first(d)
        theirs = (reduced.decode(reduced.encode(x)) - x).square().mean(1)
        ours = made[name].per_image()["mse_mean"]
        mean, se, n = paired(theirs, ours)
        unit = "squared error/pixel"
        difference = {"value": mean, "se": se, "n": n, "unit": unit}
        rows.append({"d": d, "ae": _entry(ours, unit), "pca": _entry(theirs, unit), "difference": difference})
    found.numbers["bottleneck"] = rows
    real = random_examples(Loader(dataset, "test"), 32, 0)
    found.pictures["real"] = real
    for d, name in sizes.items():
        found.pictures[f"ae-{d}"] = models[name].reconstruct(real).mean[0]
        reduced = pca.first(d)
        found.pictures[f"pca-{d}"] = reduced.decode(reduced.encode(real.flatten(1))).float().view_as(real)
    codes = embed(models["ae-2"], Loader(dataset, "test"))
    found.figures["codes"] = (codes, dataset.test.labels)


def _flat(dataset: Dataset, split: str) -> Tensor:
    return torch.cat([batch.x.flatten(1) for batch in Loader(dataset, split).ordered(5000)])


# ------------------------------------------------------------------------------------------------ why it is not generative
def _drawing(found: Measured, models: Mapping[str, Autoencoder], small: Dataset) -> None:
    """Decode z ~ N(0, I) and z ~ N(mean, covariance of the codes) with the autoencoder, z ~ p(z) with the VAE."""
    ae, vae = models["ae-20"], models["vae-20"]
    codes = embed(ae, Loader(small, "train")).double()
    spread, known = codes.std(0), _flat(small, "train")
    noise = shared_noise(DRAWN, codes.shape[1], 0)
    fitted = codes.mean(0) + noise.double() @ torch.linalg.cholesky(codes.T.cov()).T
    decoded = {
        "ae-standard": ae.decode(noise[None]).mean[0],
        "ae-fitted": ae.decode(fitted.float()[None]).mean[0],
        "vae-prior": vae.decode(noise[None]).mean[0],
    }
    real = _images(small, DRAWN)
    distances = {name: _nearest(images, known) for name, images in {**decoded, "test images": real}.items()}
    found.pictures |= {name: images[:32] for name, images in decoded.items()}
    found.numbers["drawing"] = {
        "distance": {name: _entry(values, "squared error/pixel") for name, values in distances.items()},
        "known": len(known),
        "spread": {"least": spread.min().item(), "largest": spread.max().item(), "n": len(codes)},
        "norm": _entry(codes.norm(dim=1), "latent units"),
        "norm_standard": codes.shape[1] ** 0.5,
    }


def _images(dataset: Dataset, count: int) -> Tensor:
    return next(iter(Loader(dataset, "test").ordered(count))).x


def _nearest(images: Tensor, known: Tensor) -> Tensor:
    """Mean squared difference per pixel of each image to the nearest of `known` (N, D)."""
    flat = images.flatten(1)
    nearest = torch.cat([torch.cdist(part, known).min(1).values for part in flat.split(250)])
    return nearest.square() / flat.shape[1]


# ------------------------------------------------------------------------------------------------ A2, A3: what a code knows
def _codes(found: Measured, models: Mapping[str, Autoencoder], small: Dataset) -> None:
    """Jacobian spectra, robustness and linear probes of the layers; probes of the deep codes; filters."""
    x = _images(small, SPECTRA)
    rows = {}
    for title, name in LAYERS.items():
        spectrum = jacobians.spectrum(jacobians.singular_values(models[name], x))
        robust = jacobians.robustness(models[name], Loader(small, "test"), level=0.1)
        rows[title] = {
            "spectrum": spectrum.to_dict(),
            "robustness": robust.to_dict(),
            "probe": _probe(models[name], small),
        }
        found.pictures[f"filters-{name}"] = filters(models[name], 64)
    found.numbers["layers"] = rows
    found.numbers["probes"] = {name: _probe(models[name], small) for name in ("ae-20", "dae-20", "vae-20")}


def _probe(model: Autoencoder, small: Dataset) -> dict[str, Any]:
    train, test = (embed(model, Loader(small, split)).double() for split in ("train", "test"))
    known, labels = small.train.labels, small.test.labels
    if known is None or labels is None:
        raise ValueError("a probe needs classes")
    return {**proportion(linear_predictions(train, known, test) == labels), "fitted_to": len(train)}


# ------------------------------------------------------------------------------------------------ A5: denoising
def _denoising(found: Measured, models: Mapping[str, Autoencoder], small: Dataset) -> None:
    test, train = Loader(small, "test"), Loader(small, "train")
    deep = {"autoencoder": models["ae-20"], "denoising": models["dae-20"], "VAE": models["vae-20"]}
    count = len(small.test)
    found.numbers["denoising"] = {
        kind: denoising.measure(deep, test, train, kind, levels, images=count).to_dict()
        for kind, levels in LEVELS.items()
    }
    clean = _images(small, count)
    matrix: dict[str, Any] = {}
    for met, (kind, level) in NOISES.items():
        noisy = denoising.noised(clean, kind, level)
        found.pictures[f"noisy-{kind}"] = noisy[:16]
        matrix[met] = {denoising.AS_IT_IS: denoising.score(clean, noisy.clamp(0, 1)).to_dict()}
        for title, name in LAYERS.items():
            restored = denoising.restore(models[name], noisy)
            matrix[met][title] = denoising.score(clean, restored.clamp(0, 1)).to_dict()
            found.pictures[f"restored-{kind}-{name}"] = restored[:16]
    found.pictures["clean"] = clean[:16]
    found.numbers["matrix"] = matrix


# ------------------------------------------------------------------------------------------------ A4: compression
def _compression(found: Measured, models: Mapping[str, Autoencoder], small: Dataset) -> None:
    train, test = Loader(small, "train"), Loader(small, "test")
    points = [
        p
        for d in (10, 20, 32)
        for p in rate.of_model(models[f"ae-{d}"], train, test, BITS, say("autoencoder, d = {d}", d=d))
    ]
    points += rate.of_model(models["vae-20"], train, test, (0,), say("VAE, d = {d}", d=20))
    points += rate.of_pca(train, test, (10, 20, 32), BITS)
    for quality in QUALITIES:
        points += rate.of_jpeg(test, quality)
    points.append(rate.of_png(test))
    found.numbers["compression"] = [point.to_dict() for point in points]
