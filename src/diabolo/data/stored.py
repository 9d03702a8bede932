"""What data sets read from verified files have in common: how a file is read, and how splits are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diabolo.data.catalogue import Collection, File
from diabolo.data.spec import Dataset, DataSpec, Split
from diabolo.errors import DataError, UsageError

LEVELS_GREY = "grey levels k/255"
LEVELS_BINARIZED = "pixels drawn as Bernoulli(k/255) from levels k: anew each epoch for training, once for evaluation"
LEVELS_RGB = "levels k/255 of red, green and blue"


def read_levels(path: Path, file: File) -> Tensor:
    """Read a file of unsigned bytes: uint8 of `file.shape`. Size and header are checked before any allocation.

    Raises:
        DataError: if size, magic number or dimensions are not the registered ones.
    """
    header = file.header
    with path.open("rb") as stream:
        size, start = path.stat().st_size, stream.read(len(header))
        if size != file.size or start != header:
            raise DataError(
                f"{path} is not the registered file",
                f"Bytes: {size:,} (registered {file.size:,}); header: {start.hex()} (registered {header.hex()}).",
            )
        return torch.from_numpy(np.fromfile(stream, dtype=np.uint8)).reshape(file.shape)


def check_validation(validation: int, count: int) -> None:
    """Refuse a validation split that the training images cannot give; asked before anything is fetched.

    Raises:
        UsageError: unless 0 <= validation < count.
    """
    if not 0 <= validation < count:
        raise UsageError(f"validation={validation}: between 0 and {count - 1} of the {count:,} training images")


def cut(
    collection: Collection,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    validation: int,
    binarize: bool,
    note: str,
) -> Dataset:
    """A data set from uint8 levels (N, C, H, W) and labels (N,); its last `validation` training images validate."""
    (values, labels), number = train, len(train[0]) - validation
    return Dataset(
        spec=DataSpec(
            name=collection.name,
            shape=tuple(values.shape[1:]),
            values="binary" if binarize else "grey",
            classes=classes,
            examples=number,
        ),
        train=Split("train", values[:number], labels[:number].long()),
        validation=Split("validation", values[number:], labels[number:].long()) if validation else None,
        test=Split("test", test[0], test[1].long()),
        binarize=binarize,
        hashes={file.name: file.sha256 for file in collection.files},
        note=note,
    )
