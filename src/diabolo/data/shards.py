"""The files of a packed data set: one shard of raw bytes for the images of each split, one for its labels, and an index.

    index.json             what the set is, the size and SHA-256 of each shard, the content hashes of the data it was made of
    train.u8               uint8 levels (N, C, H, W) in C order, without a header
    train.labels.i64       class numbers (N,), little-endian int64, where there are classes
    validation.*, test.*   likewise

The names are fixed and the index holds none, so that it can lead nowhere else. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from diabolo.config import read_json
from diabolo.data.placing import Check
from diabolo.data.spec import SPLITS, Values, content_hash
from diabolo.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INDEX = "index.json"
FORMAT, SCHEMA = "diabolo packed images", 1
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Shard:
    """One file: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """One split: the number of images, the least and the largest level, its shards."""

    images: int
    low: int
    high: int
    levels: Shard
    labels: Shard | None


@dataclass(frozen=True, kw_only=True)
class About:
    """What a set is, beside its shards. `hashes`: content hashes of the data that it was made of; `note`: how images were read,
    cropped, scaled and split."""

    name: str
    values: Values = "grey"
    binarize: bool = False
    hashes: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The index of a packed set, checked against the sizes of its shards."""

    about: About
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    parts: Mapping[str, Part]

    @property
    def hash(self) -> str:
        """What `Dataset.hash` is of the data that the set was made of."""
        return content_hash(self.about.hashes, self.about.values, (part.images for part in self.parts.values()))

    @property
    def images(self) -> int:
        """The number of images in all splits."""
        return sum(part.images for part in self.parts.values())

    @property
    def bytes(self) -> int:
        """The size of all shards."""
        return sum(shard.bytes for _, shard in self.shards())

    def shards(self) -> Iterator[tuple[str, Shard]]:
        """(name of the file, shard) of each."""
        for name, part in self.parts.items():
            yield levels_file(name), part.levels
            if part.labels:
                yield labels_file(name), part.labels

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            **asdict(self.about),
            "shape": list(self.shape),
            "channels": self.shape[0],
            "images": self.images,
            "classes": list(self.classes),
            "splits": {name: asdict(part) for name, part in self.parts.items()},
            "hash": self.hash,
        }


def levels_file(split: str) -> str:
    """The name of the shard with a split's images."""
    return f"{split}.u8"


def labels_file(split: str) -> str:
    """The name of the shard with a split's class numbers."""
    return f"{split}.labels.i64"


# ------------------------------------------------------------------------------------------------ reading
def is_packed(folder: Path) -> bool:
    """Whether a folder looks like a packed set, whole or not."""
    return (folder / INDEX).is_file() and any((folder / levels_file(name)).is_file() for name in SPLITS)


def read(folder: Path) -> Index:
    """The index of a packed set, its shards looked at by size only.

    Raises:
        DataError: if the folder is none, or a shard is missing, truncated or too long.
    """
    if not (folder / INDEX).is_file():
        what = f"{folder} is no packed data set" if folder.is_dir() else f"{folder} does not exist"
        raise DataError(what, f"It would hold an {INDEX}.", "Make one with: diabolo data pack SOURCE OUT")
    saved = read_json(folder / INDEX)
    if saved.get("format") == FORMAT and isinstance(saved.get("schema"), int) and saved["schema"] > SCHEMA:
        raise DataError(
            f"{folder / INDEX} is of schema {saved['schema']}, newer than this diabolo's", remedy="Update diabolo."
        )
    try:
        index = _parsed(saved)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{folder / INDEX} is no index of a packed data set", why, AGAIN) from error
    for name, shard in index.shards():
        _check_size(folder / name, shard)
    return index


#: What helps where a shard is not what it was.
AGAIN = "Pack the data again, or copy the folder again from where it was whole."


def _check_size(path: Path, shard: Shard) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != shard.bytes:
        seen = "is missing" if found is None else f"has {found:,} bytes"
        raise DataError(f"{path} {seen}", f"The index says {shard.bytes:,} bytes: it was truncated or replaced.", AGAIN)


def _parsed(saved: Mapping[str, Any]) -> Index:
    """An index from JSON.

    Raises:
        ValueError, TypeError, LookupError: for anything that `Index.to_dict` would not have written.
    """
    channels, height, width = saved["shape"]
    index = Index(
        about=About(**{name: saved[name] for name in About.__dataclass_fields__}),
        shape=(channels, height, width),
        classes=tuple(saved["classes"]),
        parts={name: _part(saved["splits"][name]) for name in SPLITS if name in saved["splits"]},
    )
    if not {"train", "test"} <= index.parts.keys():
        raise ValueError("a split is missing")
    about = index.about
    if not all(isinstance(word, str) for word in (about.name, about.note, about.warning, *index.classes)):
        raise TypeError("a word is no text")
    if about.values not in {"grey", "binary"} or not all(type(side) is int and side >= 1 for side in index.shape):
        raise ValueError("values or shape")
    for part in index.parts.values():
        _check_part(part, math.prod(index.shape), bool(index.classes))
    if json.loads(json.dumps(index.to_dict())) != saved:
        raise ValueError("its parts contradict one another")
    return index


def _part(saved: Mapping[str, Any]) -> Part:
    labels = saved["labels"]
    shards = {"levels": Shard(**saved["levels"]), "labels": None if labels is None else Shard(**labels)}
    return Part(**{**saved, **shards})


def _check_part(part: Part, size: int, labelled: bool) -> None:
    fits = part.levels.bytes == part.images * size and part.images >= 1 and 0 <= part.low <= part.high <= 255
    if not fits or labelled != (part.labels is not None) or (part.labels and part.labels.bytes != 8 * part.images):
        raise ValueError("the size of a split")


def verify(folder: Path, read_so_far: Callable[[int], None] = lambda count: None) -> list[Check]:
    """Read all shards of a packed set and compare their SHA-256 with the index; `read_so_far` is told of bytes as they are read.

    Raises:
        DataError: as `read`.
    """
    checks = []
    for name, shard in read(folder).shards():
        digest = hashlib.sha256()
        with (folder / name).open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                read_so_far(len(block))
        checks.append(Check(folder / name, shard.bytes, digest.hexdigest(), digest.hexdigest() == shard.sha256))
    return checks


# ------------------------------------------------------------------------------------------------ writing
def check_new(out: Path) -> None:
    """Refuse a place that is taken; asked before anything is read.

    Raises:
        UsageError: if `out` exists.
    """
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already", "A packed data set is never overwritten.", "Choose another OUT.")


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UsageError: if fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"{folder} has {free / 1e9:.2f} GB free, and packing needs up to {needed / 1e9:.2f} GB",
            remedy="Make room, choose an OUT on another disk, or take a smaller data.size or data.colour=grey.",
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name once the block has ended well; otherwise it is removed.

    What a killed process left there is cleared away first, so that packing starts anew.

    Raises:
        UsageError: if `out` exists, cannot be written (a full disk), or another process is packing it.
    """
    partial = out.with_name(f".{out.name}.packing")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            check_new(out)
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                yield partial
                check_new(out)  # it may have come into being meanwhile
                partial.replace(out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be written", str(error), "Make room, or choose another OUT.") from error


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold a lock beside `out`, whose file is removed at the end."""
    lock = FileLock(out.with_name(f".{out.name}.packing.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"another process is packing {out}", remedy="Wait for it, or choose another OUT.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # where open files cannot be removed, releasing removes it
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


class Writer:
    """Writes shards into a folder, images in any order of splits; `close` writes the index.

    Raises:
        ValueError: for images of another shape or type, or labels where there are no classes.
        OSError: where there is no room.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], classes: tuple[str, ...] = ()) -> None:
        self.folder, self.shape, self.classes = folder, shape, classes
        self._open: dict[str, _Stream] = {}
        self._ends: dict[str, tuple[int, int]] = {}
        self._files = ExitStack()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def add(self, split: str, levels: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> None:
        """Append images (B, C, H, W) uint8 and, where there are classes, their numbers (B,)."""
        if levels.dtype != np.uint8 or levels.shape[1:] != self.shape or split not in SPLITS:
            raise ValueError(f"{levels.dtype} {levels.shape} is refused for {split}: uint8 (B, {self.shape})")
        if (labels is not None) != bool(self.classes) or (labels is not None and len(labels) != len(levels)):
            raise ValueError("a class number for each image where there are classes, else none")
        if not len(levels):
            return
        self._stream(levels_file(split)).write(levels)
        if labels is not None:
            self._stream(labels_file(split)).write(np.asarray(labels, dtype="<i8"))
        low, high = self._ends.get(split, (255, 0))
        self._ends[split] = min(low, int(levels.min())), max(high, int(levels.max()))

    def digest(self, split: str) -> str:
        """The SHA-256 of the images of a split so far."""
        return self._stream(levels_file(split)).digest.hexdigest()

    def close(self, about: About) -> Index:
        """Flush all shards to the disk and write the index; without hashes in `about`, those of the shards are taken."""
        shards = {name: stream.finished() for name, stream in self._open.items()}
        size = math.prod(self.shape)
        parts = {
            split: Part(
                images=shards[levels_file(split)].bytes // size,
                low=self._ends[split][0],
                high=self._ends[split][1],
                levels=shards[levels_file(split)],
                labels=shards.get(labels_file(split)),
            )
            for split in SPLITS
            if split in self._ends
        }
        hashes = about.hashes or {name: shard.sha256 for name, shard in shards.items()}
        about = About(**{**asdict(about), "hashes": dict(hashes)})
        index = Index(about=about, shape=self.shape, classes=self.classes, parts=parts)
        with (self.folder / INDEX).open("w", encoding="utf-8") as file:
            file.write(json.dumps(index.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return index

    def _stream(self, name: str) -> _Stream:
        if name not in self._open:
            self._open[name] = _Stream(self._files.enter_context((self.folder / name).open("xb")))
        return self._open[name]


class _Stream:
    """A file that is written to once, with the SHA-256 of what went in."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, array: NDArray[Any]) -> None:
        content = np.ascontiguousarray(array).data.cast("B")
        self.file.write(content)
        self.digest.update(content)
        self.size += len(content)

    def finished(self) -> Shard:
        self.file.flush()
        os.fsync(self.file.fileno())
        return Shard(self.size, self.digest.hexdigest())
