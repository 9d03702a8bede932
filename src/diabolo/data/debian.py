"""The packages of Debian and its relatives: fetched by the user's own apt without any privilege, and read without
installing anything.

A .deb is an `ar` archive; of its members only `data.tar.xz` is read, and of that only the wanted names.
"""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path
from typing import IO

from diabolo.data.archives import read_members, unpacked_limit
from diabolo.data.catalogue import Debian, File
from diabolo.data.fetching import run_client, scratch
from diabolo.data.placing import Failed

_BLOCK = 1 << 16
_MAGIC = b"!<arch>\n"
_HEADER = 60
#: A .deb has three members; more than this is none.
_MEMBERS = 16
#: What unpacking may ask for: xz -9 needs 65 MiB.
_XZ_MEMORY = 1 << 27


def from_apt(package: Debian, missing: list[File], folder: Path) -> None:
    """Let the user's own apt-get download a package (it is not installed), then read the files from it.

    Raises:
        Failed: if there is no apt-get, it fails or takes too long, or the package does not hold the registered files.
    """
    apt = shutil.which("apt-get")
    if apt is None:
        raise Failed("apt-get is not installed (it belongs to Debian, Ubuntu and their relatives)")
    with scratch(folder) as temporary:
        run_client(download_command(apt, package), temporary, r"E: (.*)", package.size)
        found = sorted(Path(temporary).glob(f"{package.name}_*.deb"))
        if not found:
            raise Failed(f"apt-get wrote no {package.name}_*.deb")
        from_deb(found[0], package, missing, folder)


def download_command(apt: str, package: Debian) -> list[str]:
    """The argument list that brings a package's .deb into the current folder."""
    return [apt, "-q", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", "download", package.name]


def from_deb(path: Path, package: Debian, missing: list[File], folder: Path) -> None:
    """Read the wanted files from a .deb; each is checked by the SHA-256 of its decoded content.

    Raises:
        Failed: if it is no readable .deb, or a wanted file is absent or not as registered.
    """
    with path.open("rb") as stream:
        unpacked = _Xz(stream, _seek_data(stream, path))
        wanted = {package.member(file): file for file in missing}
        read_members(unpacked, wanted, folder, unpacked_limit(package.size), zipped=True)


def _seek_data(stream: IO[bytes], path: Path) -> int:
    """Move to the content of data.tar.xz and return its size."""
    total = path.stat().st_size
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise Failed(f"{path.name} is no Debian package", again=True)
    for _ in range(_MEMBERS):
        header = stream.read(_HEADER)
        digits = header[48:58].strip()
        if len(header) < _HEADER or header[58:] != b"`\n" or not digits.isdigit():
            break
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(digits)
        if stream.tell() + size > total:
            break
        if name == "data.tar.xz":
            return size
        if name.startswith("data.tar"):
            raise Failed(
                f"{path.name} holds {name}, and only data.tar.xz can be read here; install the package instead"
            )
        stream.seek(size + size % 2, 1)
    raise Failed(f"{path.name} is truncated or no Debian package", again=True)


class _Xz:
    """Decoded bytes of at most `left` bytes of xz; asks for bounded memory and delivers no more than it is asked for."""

    def __init__(self, stream: IO[bytes], left: int) -> None:
        self.stream, self.left = stream, left
        self.decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def read(self, size: int, /) -> bytes:
        parts, wanted = [], size
        while wanted > 0 and not self.decoder.eof:
            block = self._some(wanted)
            wanted -= len(block)
            parts.append(block)
        return b"".join(parts)

    def _some(self, wanted: int) -> bytes:
        packed = b""
        if self.decoder.needs_input:
            packed = self.stream.read(min(_BLOCK, self.left))
            self.left -= len(packed)
            if not packed:
                raise EOFError("the compressed data end too early")
        try:
            return self.decoder.decompress(packed, wanted)
        except (lzma.LZMAError, MemoryError) as error:
            raise EOFError(f"no readable xz data: {error}") from error
