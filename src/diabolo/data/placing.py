"""The one door to the cache: content from anywhere gets its name there only once its SHA-256 is the registered one."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from diabolo.data.catalogue import File

_BLOCK = 1 << 20


class Reader(Protocol):
    """What content is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


class Failed(Exception):
    """A source did not deliver; `again` says that a second try may help."""

    def __init__(self, reason: str, again: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.again = reason, again


@dataclass(frozen=True)
class Check:
    """A file that was read whole: `sha256` is what was found ("" if there is no file), `ok` whether it is the expected one."""

    file: Path
    size: int
    sha256: str
    ok: bool


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def holds(path: Path, file: File) -> bool:
    """Whether `path` is a file with exactly the registered content."""
    return path.is_file() and path.stat().st_size == file.size and sha256(path) == file.sha256


def place(stream: Reader, file: File, folder: Path) -> None:
    """Copy a stream of decoded content into the cache: at most one byte more than registered is read, the SHA-256 is
    checked, and only then does the file get its name.

    Raises:
        Failed: if the content is unreadable, too long, too short or different.
    """
    partial = folder / f".{file.name}.part"
    try:
        with partial.open("wb") as out:
            _copy(stream, out, file)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(folder / file.name)
    finally:
        partial.unlink(missing_ok=True)


def _copy(stream: Reader, out: IO[bytes], file: File) -> None:
    digest, size = hashlib.sha256(), 0
    for block in _blocks(stream, file.size + 1):
        size += len(block)
        digest.update(block)
        out.write(block)
    if size != file.size:
        found = f"more than {file.size:,}" if size > file.size else f"{size:,} instead of {file.size:,}"
        raise Failed(f"{file.name}: {found} bytes", again=True)
    if digest.hexdigest() != file.sha256:
        raise Failed(f"{file.name}: wrong content, SHA-256 {digest.hexdigest()}", again=True)


def _blocks(stream: Reader, limit: int) -> Iterator[bytes]:
    """The content of a stream in blocks, at most `limit` bytes of it.

    Raises:
        Failed: if it is unreadable.
    """
    # An error of the reader is the source's fault; one of the writer (a full disk) is not, and passes by this `try`.
    try:
        while limit > 0 and (block := stream.read(min(_BLOCK, limit))):
            limit -= len(block)
            yield block
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise Failed(f"unreadable: {error}", again=True) from error


def whole(stream: Reader, limit: int) -> bytes:
    """All content of a stream.

    Raises:
        Failed: if it is unreadable, or longer than `limit` bytes.
    """
    content = b"".join(_blocks(stream, limit + 1))
    if len(content) > limit:
        raise Failed(f"more than {limit:,} bytes", again=True)
    return content
