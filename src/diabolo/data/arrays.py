"""Arrays of a NumPy archive (.npz) as files: the bytes behind a header that is compared, not interpreted; no pickle."""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from diabolo.data.catalogue import File
from diabolo.data.placing import Failed, Reader

#: Version 1.0 of the format, which NumPy writes for every plain array.
_MAGIC = b"\x93NUMPY\x01\x00"


@contextlib.contextmanager
def opened(path: Path, name: str, file: File) -> Iterator[Reader]:
    """The content of `file` from the array `name` of an archive, which must be unsigned bytes of the file's shape.

    Raises:
        Failed: if it is no archive, or holds no such array.
    """
    try:
        with zipfile.ZipFile(path) as archive, _member(archive, f"{name}.npy") as stream:
            _check(stream, name, file)
            yield _Chain(io.BytesIO(file.header), stream)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise Failed(f"unreadable: {error}", again=True) from error


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    try:
        return archive.open(name)
    except KeyError as error:
        raise Failed(f"holds no {name}") from error
    except (NotImplementedError, RuntimeError) as error:  # a compression of the future, a password
        raise Failed(f"unreadable: {error}") from error


def _check(stream: IO[bytes], name: str, file: File) -> None:
    expected = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {file.shape}, }}"
    start = stream.read(len(_MAGIC) + 2)
    header = stream.read(int.from_bytes(start[len(_MAGIC) :], "little"))  # 65,535 bytes at most
    if start[: len(_MAGIC)] != _MAGIC or header.decode("latin-1").strip() != expected:
        raise Failed(f"its array {name} is not of unsigned bytes and shape {file.shape}")


class _Chain:
    """Two readers, one after the other."""

    def __init__(self, first: Reader, second: Reader) -> None:
        self.first, self.second = first, second

    def read(self, size: int, /) -> bytes:
        return self.first.read(size) or self.second.read(size)
