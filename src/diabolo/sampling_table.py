"""Sets of images, each measured against the test images and the training images: one row a set, with what it is to be read by.

The rows that are no samples of a run: training images, which no model can pass but by copying; reconstructions, what the decoder
could do at best; two models in closed form. All have the same number of images, because most of the numbers depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diabolo import linear
from diabolo.data import Loader
from diabolo.data.spec import Dataset
from diabolo.errors import UsageError
from diabolo.features.base import Features
from diabolo.language import say
from diabolo.memorisation import QUANTILE, memorised, nearer_than_test, nearest
from diabolo.metrics import Entry
from diabolo.progress import Progress
from diabolo.runs import Run
from diabolo.sample_metrics import (
    K,
    Moments,
    Neighbourhoods,
    class_accuracy,
    class_entropy,
    frechet,
    kernel_distance,
    moments,
    neighbourhoods,
    precision_recall_density_coverage,
)
from diabolo.sampling import each_in_turn, reconstruct, to_levels
from diabolo.seeds import fold

#: Images a set has where nothing else is said, as in the literature; and the fewest that all numbers exist for.
USUAL, FEWEST = 10_000, 100
#: Latent dimensions of the closed-form model with latents.
LATENTS = 512
_TOGETHER = 500


@dataclass(frozen=True)
class ImageSet:
    """n images as levels (n, C, H, W) uint8 under a name; `asked` (n,): the class that each was drawn for, or its label."""

    name: str
    kind: str  # floor, reconstructions, closed form, samples
    levels: Tensor
    asked: Tensor | None = None


@dataclass(frozen=True)
class Space:
    """Where distances to training images are measured: `train`, these as vectors (N, d) and their mirror images as vectors
    (N, d), and each test image's distance to the nearest of both, (m,)."""

    name: str
    train: tuple[Tensor, Tensor]
    test: Tensor


@dataclass(frozen=True)
class Near:
    """Of each of n images its distance to the nearest training image, the index of that, and whether it is mirrored; all (n,)."""

    distances: Tensor
    indices: Tensor
    mirrored: Tensor


@dataclass(frozen=True)
class Reference:
    """The test images as every set is measured against them."""

    features: Tensor
    moments: Moments
    neighbourhoods: Neighbourhoods
    spaces: tuple[Space, ...]


# ------------------------------------------------------------------------------------------------ the sets to read by
def usual_n(dataset: Dataset, n: int | None = None) -> int:
    """How many images each set has: n, or 10,000, or as many as there are test images.

    Raises:
        UsageError: for fewer than 100, or more than there are of test or training images.
    """
    most = min(len(dataset.test), len(dataset.train))
    n = min(USUAL, most) if n is None else n
    if not FEWEST <= n <= most:
        why = f"{dataset.spec.name} has {len(dataset.train):,} training and {len(dataset.test):,} test images."
        raise UsageError(
            f"n = {n:,} is refused",
            f"{why} All rows have the same n, from {FEWEST} to {most:,}."
            if most >= FEWEST
            else f"{why} They are too few.",
            "The numbers depend on n, so that rows of another one could not be set beside these.",
        )
    return n


def chosen(n: int, total: int, seed: int, word: str) -> Tensor:
    """n of 0..total-1, drawn by the seed, in order; all where n = total."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(fold(seed, word)))[:n].sort().values


def floor(dataset: Dataset, n: int, seed: int) -> ImageSet:
    """n training images: the distances that remain between two sets of real images."""
    index = chosen(n, len(dataset.train), seed, "floor")
    labels = dataset.train.labels
    return ImageSet("training images", "floor", dataset.train.values[index], None if labels is None else labels[index])


def reconstructions(
    run: Run, dataset: Dataset, n: int, seed: int, *, device: torch.device, progress: Progress | None = None
) -> ImageSet:
    """n test images as a run reconstructs them at z = mu, with their labels: what its decoder could do at best."""
    index = chosen(n, len(dataset.test), seed, "reconstructions")
    levels = reconstruct(run, Loader(dataset, "test", device), index, device=device, progress=progress)
    labels = dataset.test.labels
    return ImageSet("reconstructions", "reconstructions", levels, None if labels is None else labels[index])


def ppca(dataset: Dataset, n: int, seed: int) -> ImageSet:
    """Samples of probabilistic PCA, fitted to the training images: 512 latents, or as many as it can have.

    Raises:
        UsageError: if its covariance needs too much memory.
    """
    x = dataset.train.values.flatten(1)
    if (needed := linear.memory(*x.shape)) > linear.LARGEST:
        raise UsageError(
            f"pPCA of {len(x):,} images of {x.shape[1]:,} values needs {needed / 1e9:.1f} GB of memory",
            f"At most {linear.LARGEST / 1e9:.1f} GB are used.",
        )
    q = min(LATENTS, min(x.shape) - 1)
    levels = to_levels(linear.draw_ppca(linear.fit(x, q), n, seed) / 255)
    return ImageSet(f"pPCA, q = {q}", "closed form", levels.unflatten(1, dataset.spec.shape))


def gaussians(dataset: Dataset, n: int, seed: int) -> ImageSet:
    """Samples of a full-covariance Gaussian for each class that has training images, as many of each as n allows."""
    x, labels = dataset.train.values.flatten(1), dataset.train.labels
    assert labels is not None
    there = labels.unique().long()
    asked = there[each_in_turn(n, len(there))]
    levels = to_levels(linear.draw_per_class(x, labels, asked, seed) / 255)
    return ImageSet("a Gaussian for each class, pixels", "closed form", levels.unflatten(1, dataset.spec.shape), asked)


# ------------------------------------------------------------------------------------------------ measuring
def measure(
    sets: Sequence[ImageSet],
    dataset: Dataset,
    features: Features,
    name: str,
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure sets against the test split in `features`, called `name`: {"about": ..., "rows": [...]}, ready for JSON.

    A row has set, kind and n, and an entry {value, se, n, unit} for each of frechet, kernel, precision, recall, density,
    coverage, class_accuracy (where classes were asked for and the features know them), class_entropy, and memorised; of this
    the `spaces` pixels and features stand in it, and its value is the larger of the two.

    Raises:
        UsageError: for sets of different numbers of images, or data other than images of levels.
    """
    counts = sorted({len(s.levels) for s in sets})
    if len(counts) != 1:
        raise UsageError(
            f"sets of {' and '.join(f'{n:,}' for n in counts)} images in one table are refused",
            "A Frechet distance, recall and coverage depend on n.",
            "Draw as many of each.",
        )
    progress, began = progress or Progress(), time.monotonic()
    judged = hasattr(features, "logits") and tuple(getattr(features, "classes", ())) == dataset.spec.classes
    meter = _Meter(features, judged, device, progress)
    reference = meter.reference(dataset)
    rows = [meter.row(s, reference) for s in sets]
    return {
        "about": {
            "data": dataset.spec.name,
            "data_hash": dataset.hash,
            "reference": {"split": "test", "n": len(dataset.test)},
            "train": {"split": "train", "n": len(dataset.train)},
            "features": {
                "name": name,
                "weights_hash": features.weights_hash,
                "dimensions": features.dimensions,
                "about": features.about,
            },
            "n": counts[0],
            "k": K,
            "quantile": QUANTILE,
            "mirrored": True,
            "levels": 256,
            "device": str(device),
            "seconds": {**meter.seconds, "all": round(time.monotonic() - began, 2)},
        },
        "rows": rows,
    }


class _Meter:
    """What a measurement needs at every step; `seconds` by step, all sets together."""

    def __init__(self, features: Features, judged: bool, device: torch.device, progress: Progress) -> None:
        self.features, self.judged, self.device, self.progress = features, judged, device, progress
        self.seconds: dict[str, float] = {}

    def reference(self, dataset: Dataset) -> Reference:
        test, train = dataset.test.values, dataset.train.values
        vectors, turned = self.vectors(test, "test images"), train.flip(-1)
        known = self.vectors(train, "training images"), self.vectors(turned, "mirrored training images")
        spaces = []
        for name, x, y in (("pixels", test, (train, turned)), ("features", vectors, known)):
            spaces.append(Space(name, y, self.near(x, y, f"test images, nearest in {name}").distances))
        return Reference(
            vectors,
            self.timed("frechet", moments, vectors),
            self.timed("neighbourhoods", neighbourhoods, vectors),
            tuple(spaces),
        )

    def row(self, s: ImageSet, reference: Reference) -> dict[str, Any]:
        x = self.vectors(s.levels, s.name)
        samples = self.timed("neighbourhoods", neighbourhoods, x)
        return {
            "set": s.name,
            "kind": s.kind,
            "n": len(x),
            "frechet": self.timed("frechet", frechet, x, reference.moments),
            "kernel": self.timed("kernel", kernel_distance, x, reference.features),
            **self.timed("neighbourhoods", precision_recall_density_coverage, samples, reference.neighbourhoods),
            **(self.classes(s) if self.judged else {}),
            "memorised": self.memorised(s, x, reference.spaces),
        }

    def classes(self, s: ImageSet) -> dict[str, Entry]:
        logits = self.in_batches(self.features.logits, s.levels, f"{s.name}, classes")  # type: ignore[attr-defined]
        asked = {} if s.asked is None else {"class_accuracy": class_accuracy(logits, s.asked.cpu().long())}
        return {**asked, "class_entropy": class_entropy(logits)}

    def memorised(self, s: ImageSet, x: Tensor, spaces: Sequence[Space]) -> Entry:
        found, near = {}, {}
        for space in spaces:
            points = s.levels if space.name == "pixels" else x
            near[space.name] = self.near(points, space.train, f"{s.name}, nearest in {space.name}")
            distances = near[space.name].distances
            entry = self.timed("memorised", memorised, distances, space.test)
            found[space.name] = {**entry, "nearer_than_test": nearer_than_test(distances, space.test)}
        larger = max(found, key=lambda space: found[space]["value"])
        order = near[larger].distances.argsort()[:8]
        nearest_ones = {
            "samples": order.tolist(),
            "training images": near[larger].indices[order].tolist(),
            "mirrored": near[larger].mirrored[order].tolist(),
        }
        kept = {key: found[larger][key] for key in ("value", "se", "n", "unit", "quantile")}
        return {**kept, "space": larger, "spaces": found, "nearest": nearest_ones}

    def near(self, x: Tensor, train: tuple[Tensor, Tensor], stage: str) -> Near:
        """The nearest of the training images and their mirror images; distances of levels in units of x = k/255."""
        self.progress.start(stage, len(train[0]) + len(train[1]))
        plain, turned = (self.timed(f"nearest, {x[0].numel()} values", nearest, x, y, 1, self.progress) for y in train)
        self.progress.finish()
        mirrored = (turned.distances < plain.distances)[:, 0]
        distances = torch.minimum(plain.distances, turned.distances)[:, 0] / (255 if x.dtype == torch.uint8 else 1)
        return Near(distances, torch.where(mirrored, turned.indices[:, 0], plain.indices[:, 0]), mirrored)

    def vectors(self, levels: Tensor, stage: str) -> Tensor:
        return self.in_batches(self.features, levels, stage).double()

    def in_batches(self, function: Any, levels: Tensor, stage: str) -> Tensor:
        """A map of images (n, C, H, W) in [0, 1] on levels, on the CPU."""
        began, found = time.monotonic(), []
        self.progress.start(f"features of {stage}", len(levels))
        for part in levels.split(_TOGETHER):
            found.append(function(part.to(self.device).float() / 255).cpu())
            self.progress.advance(len(part))
        self.progress.finish()
        self.add("features", began)
        return torch.cat(found)

    def timed(self, step: str, function: Any, *arguments: Any) -> Any:
        began = time.monotonic()
        result = function(*arguments)
        self.add(step, began)
        return result

    def add(self, step: str, began: float) -> None:
        self.seconds[step] = round(self.seconds.get(step, 0.0) + time.monotonic() - began, 2)


# ------------------------------------------------------------------------------------------------ as text
#: Columns, and the decimals that they are shown with; shares are shown in percent.
COLUMNS = ("frechet", "kernel", "precision", "recall", "density", "coverage", "class_accuracy", "memorised")
_PERCENT = ("precision", "recall", "coverage", "class_accuracy", "memorised")


def headings(about: Mapping[str, Any]) -> list[str]:
    """The names of the columns with their units; the distances are named after their features."""
    features = about["features"]["name"]
    return [
        say("images"),
        say("Frechet distance, {features} features", features=features),
        say("kernel distance"),
        say("precision, %"),
        say("recall, %"),
        say("density"),
        say("coverage, %"),
        say("asked class, %"),
        say("memorised, %"),
    ]


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text: value +- standard error; "-" where it was not measured."""
    return [row["set"], *(_cell(row.get(column), column) for column in COLUMNS)]


def _cell(entry: Entry | None, column: str) -> str:
    if entry is None:
        return "-"
    if column == "kernel":  # its scale is that of the features to the sixth power
        return f"{entry['value']:.3g} +- {entry['se']:.2g}"
    scale = 100 if column in _PERCENT else 1
    digits = 1 if column in _PERCENT else 2 if column == "frechet" else 3
    return f"{scale * entry['value']:.{digits}f} +- {scale * entry['se']:.{digits}f}"


def notes(table: Mapping[str, Any]) -> list[str]:
    """What the numbers are, a sentence each: reference, features, n and what follows from it, memorised, units."""
    about = table["about"]
    features, n = about["features"], about["n"]
    reference, train = about["reference"], about["train"]
    few = ""
    if n != USUAL:
        few = say(
            "n = {n} rather than {usual}: not comparable with tables of another n, above all the Frechet distance",
            n=f"{n:,}",
            usual=f"{USUAL:,}",
        )
    return [
        say(
            "data {data}: n = {n} images a row, against the {split} split (n = {m}); +- standard error",
            data=about["data"],
            n=f"{n:,}",
            split=reference["split"],
            m=f"{reference['n']:,}",
        ),
        *([few] if few else []),
        say(
            "features {name}, {d} dimensions, weights {hash}; no FID, which is defined in other features",
            name=features["name"],
            d=features["dimensions"],
            hash=features["weights_hash"][:12],
        ),
        say(
            "Frechet distance: squared features, bias of finite n included; kernel distance: squared MMD, unbiased; "
            "{k} neighbours",
            k=about["k"],
        ),
        say(
            "memorised: nearer to one of {n} training images, as it is or mirrored, than all but {percent} % of the test "
            "images are, in pixels or in features, the larger; about {percent} % if samples lie as test images do",
            n=f"{train['n']:,}",
            percent=f"{100 * about['quantile']:g}",
        ),
        say(
            "high precision with low recall: images crowded where these features are dense; reconstructions have their own "
            "originals in the reference; the asked class of images with labels is their label"
        ),
    ]
