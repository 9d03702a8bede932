"""What `diabolo data list|verify|export` show and do. `diabolo data get` is `sources.get`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diabolo import registry
from diabolo.data import sources
from diabolo.data.access import Access
from diabolo.data.catalogue import COLLECTIONS, Collection
from diabolo.data.placing import Check, sha256
from diabolo.data.spec import SPLITS
from diabolo.errors import UsageError

if TYPE_CHECKING:
    from diabolo.data.spec import Split


@dataclass(frozen=True)
class Row:
    """One line of `diabolo data list`: `bytes` on disk, `download` bytes to fetch, `cached` None where nothing is."""

    name: str
    what: str
    files: int
    bytes: int
    download: int
    cached: bool | None
    sources: tuple[str, ...]


def describe(access: Access) -> list[Row]:
    """All data sets, without reading or fetching any: `cached` looks at names and sizes, `verify` at the content."""
    names = {*COLLECTIONS, *registry.names("dataset")} - {"tensor"}  # which only Python can pass
    return [_row(name, access) for name in sorted(names)]


def _row(name: str, access: Access) -> Row:
    collection = COLLECTIONS.get(name)
    if collection is None:
        return Row(name, registry.summary("dataset", name), 0, 0, 0, None, ())
    cached = all(_size(access.cache / name / file.name) == file.size for file in collection.files)
    return Row(
        name, collection.what, len(collection.files), collection.size, collection.download, cached, collection.sources
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def verify(name: str, access: Access) -> list[Check]:
    """Check the cached files of a data set by size and SHA-256; nothing is fetched, nothing is changed.

    Raises:
        UsageError: for an unknown data set.
    """
    collection = sources.known(name)
    if collection is None:
        return []
    paths = [(access.cache / name / file.name, file) for file in collection.files]
    found = [(path, file, sha256(path) if path.is_file() else "") for path, file in paths]
    return [Check(path, max(_size(path), 0), digest, digest == file.sha256) for path, file, digest in found]


def export(name: str, folder: Path, access: Access, split: str | None = None) -> list[Path]:
    """Write a data set for other programs and return what was written: the decoded files of a downloadable set,
    `.npy` arrays (values, labels) of each split of any other.

    Raises:
        UsageError: for an unknown data set or split, a file that exists already, or a folder that cannot be written.
        DataError: if the data cannot be had.
    """
    collection = sources.known(name)
    if split is not None and split not in SPLITS:
        raise UsageError(f'unknown split "{split}"', f"Accepted: {', '.join(SPLITS)}.")
    writers = _arrays(name, access, split) if collection is None else _copies(collection, access, split)
    try:
        return _write(folder, writers)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error


def _write(folder: Path, writers: dict[str, Callable[[Path], object]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    taken = [name for name in writers if (folder / name).exists()]
    if taken:
        raise UsageError(f"{folder} already holds {', '.join(taken)}", remedy="Name another folder, or move them away.")
    for name, write in writers.items():
        write(folder / name)
    return [folder / name for name in writers]


def _copies(collection: Collection, access: Access, split: str | None) -> dict[str, Callable[[Path], object]]:
    if split == "validation":
        raise UsageError(f"{collection.name} has no files of a validation split", "It is cut from the training images.")
    paths = dict(zip(collection.files, sources.fetch(collection, access)))
    chosen = {file: path for file, path in paths.items() if split in (None, file.split)}
    return {file.name: _copier(path) for file, path in chosen.items()}


def _copier(source: Path) -> Callable[[Path], object]:
    return lambda target: shutil.copyfile(source, target)


def _arrays(name: str, access: Access, split: str | None) -> dict[str, Callable[[Path], object]]:
    from diabolo.data import load

    dataset = load(name, access=access)
    splits = [found for found in (dataset.train, dataset.validation, dataset.test) if found is not None]
    chosen = [found for found in splits if split in (None, found.name)]
    if not chosen:
        raise UsageError(f"{name} has no {split} split")
    return {file: write for found in chosen for file, write in _array_files(name, found).items()}


def _array_files(name: str, split: Split) -> dict[str, Callable[[Path], object]]:
    import numpy as np

    values, labels = split.values.numpy(), split.labels
    files: dict[str, Callable[[Path], object]] = {
        f"{name}-{split.name}-values.npy": lambda path: np.save(path, values, allow_pickle=False)
    }
    if labels is not None:
        files[f"{name}-{split.name}-labels.npy"] = lambda path: np.save(path, labels.numpy(), allow_pickle=False)
    return files
