"""A packed data set: shards mapped into memory, of which only the pages that are touched are read."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diabolo.data import shards
from diabolo.data.access import Access
from diabolo.data.spec import Dataset, DataSpec, Split
from diabolo.errors import UsageError
from diabolo.registry import register


@register("dataset", "packed")
def packed(access: Access, path: str) -> Dataset:
    """Packed: images that `diabolo data pack` decoded once into files; they may be larger than memory.

    The data set is the one that was packed: the same name, levels (N, C, H, W), classes, splits, order, hashes and so the same
    batches, but rows are gathered from read-only files mapped into memory. At the start the index and the sizes of the shards
    are looked at; `diabolo data check PATH` reads all. A folder that was moved is found by --data-dir: itself, or under its name.

    Raises:
        UsageError: for an empty path.
        DataError: if there is no packed set, or a shard is missing or of another size.
    """
    if not path:
        raise UsageError("path is empty", remedy="Name the folder: data=packed:PATH")
    return opened(_found(Path(path).expanduser(), access))


def opened(folder: Path) -> Dataset:
    """The data set of a folder that holds a packed one.

    Raises:
        DataError: as `packed`.
    """
    index = shards.read(folder)
    splits = {name: _split(folder, name, index) for name in index.parts}
    return Dataset(
        spec=DataSpec(
            name=index.about.name,
            shape=index.shape,
            values=index.about.values,
            classes=index.classes,
            examples=len(splits["train"]),
        ),
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits["test"],
        binarize=index.about.binarize,
        hashes=dict(index.about.hashes),
        note=index.about.note,
        warning=index.about.warning,
    )


def _found(path: Path, access: Access) -> Path:
    """The folder, or where --data-dir says that it is now."""
    moved = () if access.data_dir is None else (access.data_dir, access.data_dir / path.name)
    return next((place for place in (path, *moved) if shards.is_packed(place)), path)


def _split(folder: Path, name: str, index: shards.Index) -> Split:
    part = index.parts[name]
    levels = _mapped(folder / shards.levels_file(name), "u1", (part.images, *index.shape))
    labels = _mapped(folder / shards.labels_file(name), "<i8", (part.images,)) if part.labels else None
    return Split(name, levels, labels, mapped=True, ends=(part.low, part.high))


def _mapped(path: Path, kind: str, shape: tuple[int, ...]) -> Tensor:
    """A file as a tensor. Read-only: a private writable mapping of more than the memory would be refused by the system."""
    array = np.memmap(path, dtype=np.dtype(kind), mode="r", shape=shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing may write to it; a loader only gathers
        return torch.from_numpy(array)
