"""Archives: only members of exact name are read, no path of an archive is ever used, and nothing is unpacked to disk.

A tarball is opened only if its own size and SHA-256 are the registered ones: pictures in it are decoded after that.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

from diabolo.data import records
from diabolo.data.catalogue import File, Form, Tarball
from diabolo.data.placing import Failed, Reader, place, whole

#: An archive that unpacks to more than this many times its registered size, and this many bytes, is given up.
_RATIO, _PADDING = 16, 1 << 20
#: What a member may hold beside the pixels: headers, or two bytes of text for each of 50,000 labels.
_BESIDE = 1 << 20


class Member(NamedTuple):
    """A regular file in an archive; its content must be read before the next one is asked for."""

    name: str
    stream: IO[bytes]
    size: int


def from_tarball(path: Path, tarball: Tarball, missing: list[File], folder: Path) -> None:
    """Read the wanted files from a tarball, or rebuild them from what it holds in their place.

    Raises:
        Failed: if the tarball is another one, or a wanted file is absent or not as registered.
    """
    with path.open("rb") as stream:  # one handle: what was checked is what is read
        size = os.fstat(stream.fileno()).st_size
        if size != tarball.size or hashlib.file_digest(stream, "sha256").hexdigest() != tarball.sha256:
            raise Failed(f"{path.name} is not the registered package (its SHA-256 differs)", again=True)
        _READERS[tarball.form](stream, tarball, missing, folder)


def unpacked_limit(size: int) -> int:
    """The bytes that an archive of a registered size may unpack to."""
    return _RATIO * size + _PADDING


def _files(stream: IO[bytes], tarball: Tarball, missing: list[File], folder: Path) -> None:
    stream.seek(0)
    with gzip.open(stream) as archive:
        wanted = {tarball.folder + file.name: file for file in missing}
        read_members(archive, wanted, folder, unpacked_limit(tarball.size))


def _batches(stream: IO[bytes], tarball: Tarball, missing: list[File], folder: Path) -> None:
    wanted = {tarball.folder + file.batch: file for file in missing}
    for member in _unzipped(stream, tarball, wanted):
        file = wanted[member.name]
        batch = whole(member.stream, records.largest_batch(file))
        place(io.BytesIO(records.from_batch(batch, file)), file, folder)


def _pictures(stream: IO[bytes], tarball: Tarball, missing: list[File], folder: Path) -> None:
    """The labels may come after the pictures: reading twice holds no more than one picture in memory."""
    wanted = {tarball.folder + picture.name: (picture, file) for file in missing if (picture := file.picture)}
    lists = {tarball.folder + picture.labels for picture, _ in wanted.values()}
    labels = {m.name: records.label_list(whole(m.stream, _BESIDE)) for m in _unzipped(stream, tarball, lists)}
    for member in _unzipped(stream, tarball, wanted):
        picture, file = wanted[member.name]
        part = labels[tarball.folder + picture.labels][picture.first : picture.first + file.shape[0]]
        place(io.BytesIO(records.from_picture(whole(member.stream, file.size + _BESIDE), part, file)), file, folder)


_READERS: dict[Form, Callable[[IO[bytes], Tarball, list[File], Path], None]] = {
    "files": _files,
    "batches": _batches,
    "pictures": _pictures,
}


def _unzipped(stream: IO[bytes], tarball: Tarball, wanted: Collection[str]) -> Iterator[Member]:
    stream.seek(0)
    with gzip.open(stream) as archive:
        yield from members(archive, wanted, unpacked_limit(tarball.size))


def read_members(archive: Reader, wanted: dict[str, File], folder: Path, limit: int, zipped: bool = False) -> None:
    """Read exactly the members `wanted` (by full name) of a tar stream into the cache.

    zipped: the members are the files' .gz, of any compression: their decoded content is what must be as registered.

    Raises:
        Failed: at the first member that is wanted but not as registered, or if one is absent at the end.
    """
    for member in members(archive, wanted, limit):
        file = wanted[member.name]
        if zipped:
            with gzip.open(member.stream) as content:
                place(content, file, folder)
        elif member.size != file.size:
            raise Failed(f"{member.name} has {member.size:,} bytes in the package instead of {file.size:,}")
        else:
            place(member.stream, file, folder)


def members(archive: Reader, wanted: Collection[str], limit: int) -> Iterator[Member]:
    """The members `wanted` (by full name, regular files only) of a tar stream, in its order, each once; the stream is
    left with the last of them, and as soon as it grows beyond `limit` bytes.

    Raises:
        Failed: if a member is no regular file, one is absent at the end, or the stream is unreadable or too long.
    """
    left = set(wanted)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Capped(archive, limit)), mode="r|") as tar:
            for member in tar:
                if member.name in left:
                    left.remove(member.name)
                    yield _opened(tar, member)
                if not left:
                    return
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a disk, not an archive
        raise Failed(f"the package is unreadable: {error}") from error
    raise Failed(f"the package does not hold {', '.join(sorted(left))}")


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Member:
    stream = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if stream is None:
        raise Failed(f"{member.name} is no regular file in the package")
    return Member(member.name, stream, member.size)


@dataclass
class _Capped:
    """A reader that refuses to deliver more than `left` bytes: what bounds a decompression bomb."""

    stream: Reader
    left: int

    def read(self, size: int, /) -> bytes:
        block = self.stream.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise EOFError("larger than expected")
        return block
