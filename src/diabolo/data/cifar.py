"""CIFAR-10 from its six files of records."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diabolo.data import sources
from diabolo.data.access import Access
from diabolo.data.catalogue import CIFAR10, Collection, File
from diabolo.data.permuting import permute
from diabolo.data.spec import Dataset
from diabolo.data.stored import LEVELS_RGB, check_validation, cut, read_levels
from diabolo.registry import register

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@register("dataset", "cifar10")
def cifar10(access: Access, validation: int = 5000, permuted: bool = False) -> Dataset:
    """CIFAR-10: 60,000 photographs, 32x32 in colour, 10 classes.

    Values are uint8 levels (N, 3, 32, 32) of red, green and blue, emitted as k/255 in [0, 1].
    The last `validation` of the 50,000 training images form the validation split (0: there is none).
    `permuted`: the pixel positions of all images are exchanged in the same way (see `permuting`).
    Reference: Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf.

    Raises:
        UsageError: for a validation split that leaves nothing to train on.
        DataError: if the files cannot be had.
    """
    dataset = record_dataset(CIFAR10, access, validation, CLASSES)
    return permute(dataset) if permuted else dataset


def record_dataset(collection: Collection, access: Access, validation: int, classes: tuple[str, ...]) -> Dataset:
    """A data set of files of records: each a label byte, then the planes of a square image in red, green and blue."""
    counts = [file.shape[0] for file in collection.files if file.split == "train"]
    check_validation(validation, sum(counts))
    stored = list(zip(sources.fetch(collection, access), collection.files))
    train, test = ([item for item in stored if item[1].split == split] for split in ("train", "test"))
    return cut(collection, _read(train), _read(test), classes, validation, False, LEVELS_RGB)


def _read(stored: list[tuple[Path, File]]) -> tuple[Tensor, Tensor]:
    """Levels (N, 3, H, H) and labels (N,) of several files, in their order; one file at a time is held twice."""
    counts, width = [file.shape[0] for _, file in stored], stored[0][1].shape[1] - 1
    values, labels = torch.empty(sum(counts), width, dtype=torch.uint8), torch.empty(sum(counts), dtype=torch.uint8)
    parts = zip(values.split(counts), labels.split(counts), stored)
    for levels, numbers, (path, file) in parts:
        content = read_levels(path, file)
        numbers.copy_(content[:, 0])
        levels.copy_(content[:, 1:])
    side = round((width / 3) ** 0.5)
    return values.view(-1, 3, side, side), labels
