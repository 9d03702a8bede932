"""A folder that the user has: the files as they are, as .gz, or in the form in which another library keeps them."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from diabolo.data import arrays, records
from diabolo.data.archives import from_tarball
from diabolo.data.catalogue import Collection, File, Tarball
from diabolo.data.placing import Failed, Reader, holds, place, whole

#: How a path is opened so that the decoded content can be read.
Opener = Callable[[Path], AbstractContextManager[Reader]]


def from_folder(collection: Collection, missing: list[File], source: Path, folder: Path) -> None:
    """Take files from a folder in any known layout and form, then from the archives that lie there.

    Raises:
        Failed: naming each file that is not there or is not the right one.
    """
    problems = []
    for file in missing:
        try:
            _from_candidates(collection, file, source, folder)
        except Failed as failure:
            problems.append(failure.reason)
    for path, tarball in _tarballs(collection, source) if problems else ():
        left = [file for file in missing if not holds(folder / file.name, file)]
        try:
            with _permitted(path):
                return from_tarball(path, tarball, left, folder)
        except Failed as failure:
            problems.append(f"{path}: {failure.reason}")
    if problems:
        raise Failed("; ".join(problems))
    return None


def _tarballs(collection: Collection, source: Path) -> Iterator[tuple[Path, Tarball]]:
    for tarball in collection.tarballs:
        for name in (tarball.name, *tarball.also):
            if (source / name).is_file():
                yield source / name, tarball


def _from_candidates(collection: Collection, file: File, source: Path, folder: Path) -> None:
    reason = f"{file.name}: not there"
    for candidate, opener in _candidates(collection, file, source):
        if not candidate.is_file() or candidate == folder / file.name:
            continue
        try:
            return _from_path(candidate, opener, file, folder)
        except Failed as failure:
            reason = f"{candidate}: {failure.reason.removeprefix(f'{file.name}: ')}"
    raise Failed(reason)


def _candidates(collection: Collection, file: File, source: Path) -> Iterator[tuple[Path, Opener]]:
    archive, _, array = file.array.partition("/")
    for layout in collection.layouts:
        # "train-images.idx3-ubyte" is the name inside some zip files that circulate.
        for name in dict.fromkeys((file.name, file.name.replace("-idx", ".idx"))):
            yield source / layout / name, _plain
            yield source / layout / f"{name}.gz", gzip.open
        if file.batch:
            yield source / layout / file.batch, partial(_batch, file=file)
        if file.array:
            yield source / layout / archive, partial(arrays.opened, name=array, file=file)


def _plain(path: Path) -> AbstractContextManager[Reader]:
    return path.open("rb")


@contextlib.contextmanager
def _batch(path: Path, file: File) -> Iterator[Reader]:
    with path.open("rb") as stream:
        content = whole(stream, records.largest_batch(file))
    yield io.BytesIO(records.from_batch(content, file))


def _from_path(path: Path, opener: Opener, file: File, folder: Path) -> None:
    with _permitted(path), opener(path) as stream:
        place(stream, file, folder)


@contextlib.contextmanager
def _permitted(path: Path) -> Iterator[None]:
    """A file of the user's that may not be read is no fault of the cache."""
    try:
        yield
    except PermissionError as error:
        if error.filename != str(path):
            raise
        raise Failed("permission denied") from error
