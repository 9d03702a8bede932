"""A folder of images as an array: which files are read, how pixels become levels, and what is said of the rest.

Nothing of a file is trusted: only JPEG, PNG and WebP are decoded, at most `MAX_PIXELS` of them, a link that leads out of
the folder is not followed, and a file that cannot be read is listed with its reason. Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from diabolo.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

Colour = Literal["auto", "grey", "rgb"]

#: What Pillow may decode; its other decoders are never asked.
FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"})
MAX_PIXELS = 89_478_485
MAX_BYTES = 1 << 28
#: More unreadable files than this fraction is an error.
TOLERATED = 0.01
_LARGE, _SMALL = 64, 32
#: The least and the largest side of the squares.
SIDES = (8, 512)
_LISTED = 10
#: Lossy WebP and JPEG tint a grey pixel by up to some levels.
_TINT = 8
_SPLIT_WORDS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)  # there may be a million
class Picture:
    """One image: path below the root, class name, levels (size, size) or (size, size, 3) uint8, SHA-256 of the file's bytes,
    and what was done to it."""

    path: str
    folder: str
    levels: NDArray[np.uint8]
    sha256: str
    done: tuple[str, ...] = ()


@dataclass
class Found:
    """What a walk found: candidates in byte order, files that are none (counted by reason), and the unreadable."""

    root: Path
    files: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """A folder that was read: images in byte order of their paths, all of `size` and `channels`."""

    found: Found
    pictures: list[Picture]
    size: int
    channels: int

    @property
    def candidates(self) -> int:
        """Files that should be images."""
        return len(self.pictures) + len(self.found.skipped)

    @property
    def tolerable(self) -> bool:
        """Whether at most 1 % of the files that should be images are unreadable."""
        return len(self.found.skipped) <= TOLERATED * self.candidates

    def to_dict(self) -> dict[str, Any]:
        """For JSON: counts, the skipped with their reasons, the ignored by reason, the classes."""
        return {
            "root": shown(self.found.root),
            "images": len(self.pictures),
            "size": self.size,
            "channels": self.channels,
            "classes": dict(sorted(Counter(class_names(self.pictures)).items())),
            "skipped": [{"path": name, "reason": reason} for name, reason in self.found.skipped],
            "ignored": dict(self.found.ignored),
            "tolerable": self.tolerable,
        }

    def note(self) -> str:
        """What was read, what was done to it and what was left out, in one line."""
        colour = "grey levels" if self.channels == 1 else "RGB levels"
        parts = [
            f"{_count(len(self.pictures), 'image')} read as {colour} k/255, the middle square scaled to {self.size}x{self.size}"
        ]
        done = Counter(word for picture in self.pictures for word in picture.done)
        parts += [f"{count:,} {word}" for word, count in sorted(done.items())]
        if self.found.skipped:
            shown = ", ".join(f"{name} ({reason})" for name, reason in self.found.skipped[:_LISTED])
            more = len(self.found.skipped) - _LISTED
            parts.append(f"{len(self.found.skipped):,} skipped: {shown}{f' and {more:,} more' if more > 0 else ''}")
        parts += [f"{count:,} ignored: {reason}" for reason, count in sorted(self.found.ignored.items())]
        return "; ".join(parts)


def read_folder(
    path: str, size: int = 0, colour: Colour = "auto", say: Callable[[str], None] = lambda text: None
) -> Reading:
    """Read all images below a folder.

    size: the side of the squares; 0 takes 64, or 32 where half of the images are smaller than 64. colour: "auto" takes grey
    if the channels of every pixel differ by at most 8 of 255.

    Raises:
        DataError: if there is no such folder, or no readable image in it.
    """
    found, size = opened(path, size, say)
    pictures = list(each(found, size, colour))
    settle(found, len(pictures), say)
    grey = colour == "grey" or (colour == "auto" and all(is_grey(picture.levels) for picture in pictures))
    return Reading(found, [_as(picture, grey) for picture in pictures], size, 1 if grey else 3)


def opened(path: str, size: int, say: Callable[[str], None]) -> tuple[Found, int]:
    """The files of a folder that should be images, and the side of their squares, chosen where `size` is 0.

    Raises:
        DataError: if there is no such folder.
    """
    found = walk(Path(path).expanduser())
    say(f"{found.root}: reading {_count(len(found.files), 'image')}")
    return found, size or _fitting(found.files)


def each(found: Found, size: int, colour: Colour) -> Iterator[Picture]:
    """The images of a walk one by one, each in the channels that it has; the unreadable go to `found.skipped`."""
    for file in found.files:
        try:
            yield _read(file, found.root, size, grey=colour == "grey")
        except _Unreadable as error:
            found.skipped.append((shown(file.relative_to(found.root)), str(error)))


def settle(found: Found, readable: int, say: Callable[[str], None]) -> None:
    """Say what was skipped of a folder, all of whose files have been read.

    Raises:
        DataError: if there was no readable image.
    """
    found.skipped.sort()
    for name, reason in found.skipped[:_LISTED]:
        say(f"skipped: {name}: {reason}")
    if not readable:
        raise DataError(f"{found.root} holds no readable image", _nothing(found), _ACCEPTED)


def read_checked(path: str, size: int, colour: Colour, say: Callable[[str], None]) -> Reading:
    """Read a folder that is to become a data set.

    Raises:
        UsageError: for an empty path or a size out of range.
        DataError: if there is no such folder, no readable image in it, or more than 1 % of its images cannot be read.
    """
    check_wanted(path, size)
    return tolerated(read_folder(path, size, colour, say))


def check_wanted(path: str, size: int) -> None:
    """Refuse an empty path or a size out of range, before anything is read.

    Raises:
        UsageError: saying which sizes there are.
    """
    if size != 0 and not SIDES[0] <= size <= SIDES[1]:
        raise UsageError(f"size={size}: from {SIDES[0]} to {SIDES[1]}, or 0 to have it chosen")
    if not path:
        raise UsageError("path is empty", remedy="Name the folder: data=folder:PATH")


def tolerated(reading: Reading) -> Reading:
    """The reading itself.

    Raises:
        DataError: if more than 1 % of its images cannot be read.
    """
    if not reading.tolerable:
        raise refusal(reading)
    return reading


def read_image(path: Path, size: int, colour: Colour) -> Picture:
    """Read one image, which lies anywhere, as a square of `size` in grey or RGB.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        picture = _read(path, path.parent, size, grey=colour == "grey")
    except _Unreadable as error:
        raise DataError(
            f"{path} cannot be read as an image", f"{error}.", "Accepted are JPEG, PNG and WebP."
        ) from error
    return _as(picture, colour == "grey")


_ACCEPTED = "Accepted are JPEG, PNG and WebP files (.jpg .jpeg .png .webp), in the folder or in folders below it."


def _nothing(found: Found) -> str:
    seen = [f"{count:,} {reason}" for reason, count in sorted(found.ignored.items())]
    seen += [f"{name}: {reason}" for name, reason in found.skipped[:_LISTED]]
    return f"Found: {'; '.join(seen)}." if seen else "It is empty."


def refusal(reading: Reading) -> DataError:
    """The error for a folder with too many unreadable files."""
    skipped, root = reading.found.skipped, reading.found.root
    lines = [f"  {name}: {reason}" for name, reason in skipped[:_LISTED]]
    lines += [f"  and {len(skipped) - _LISTED:,} more"] if len(skipped) > _LISTED else []
    share = 100 * len(skipped) / reading.candidates
    return DataError(
        f"{len(skipped):,} of {_count(reading.candidates, 'image')} in {root} cannot be read ({share:.1f} %)",
        "\n".join(("At most 1 % is skipped. They are:", *lines)),
        f"Repair them or move them away; list them all with: diabolo data check {root}",
    )


# -- which files -------------------------------------------------------------------------------------------------------


def walk(root: Path) -> Found:
    """All files below a folder that should be images, in the byte order of their paths.

    Folders that are links are not entered; a link to a file inside is read, one that leads out is refused.

    Raises:
        DataError: if there is no such folder, or it cannot be opened.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}", "A folder of images is wanted.", "Unpack an archive first; check the path.")
    found = Found(Path(os.path.realpath(root)))
    waiting = [found.root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                waiting += [path for entry in entries if (path := _take(entry, found)) is not None]
        except OSError as error:
            if folder == found.root:
                raise DataError(f"{root} cannot be opened", str(error.strerror)) from error
            found.skipped.append((shown(folder.relative_to(found.root)), f"cannot be opened: {error.strerror}"))
    found.files.sort(key=lambda path: os.fsencode(path.relative_to(found.root).as_posix()))
    return found


def _take(entry: os.DirEntry[str], found: Found) -> Path | None:
    """Put an entry where it belongs; a folder to enter is returned."""
    path = Path(entry.path)
    if entry.name.startswith(".") or entry.name == "__MACOSX":
        found.ignored["hidden"] += 1
    elif entry.is_symlink() and not _inside(path, found.root):
        if path.suffix.lower() in SUFFIXES or path.is_dir():
            reason = "a link out of the folder: refused" if path.exists() else "a broken link"
            found.skipped.append((shown(path.relative_to(found.root)), reason))
        else:
            found.ignored["no image by its name"] += 1
    elif entry.is_dir(follow_symlinks=False):
        return path
    elif entry.is_symlink() and path.is_dir():
        found.ignored["a link to a folder, which is read where it lies"] += 1
    elif path.suffix.lower() not in SUFFIXES:
        found.ignored["no image by its name"] += 1
    elif not entry.is_file():
        found.ignored["no regular file"] += 1
    else:
        found.files.append(path)
    return None


def _inside(path: Path, root: Path) -> bool:
    with suppress(OSError, RuntimeError):
        return path.resolve(strict=True).is_relative_to(root)
    return False


def shown(path: Path) -> str:
    """A path for people: composed characters, and a mark for bytes that are no UTF-8."""
    text = os.fsencode(path.as_posix()).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text)


def class_names(pictures: list[Picture]) -> list[str]:
    """The class of each image: the folder that holds it, relative to the root ("." for the root).

    A first level that consists of split words only (train, val, test) is no class: it is left out.
    """
    parts = [picture.folder.split("/") for picture in pictures]
    if all(part[0].lower() in _SPLIT_WORDS for part in parts):
        parts = [part[1:] or ["."] for part in parts]
    return ["/".join(part) for part in parts]


# -- one file ----------------------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    """Why a file is no image here."""


@contextmanager
def _content(path: Path) -> Iterator[BinaryIO]:
    """The content of a regular file; a pipe that took its place since it was listed does not block."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as stream:
            about = os.fstat(stream.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise _Unreadable("no regular file")
            if not 0 < about.st_size <= MAX_BYTES:
                raise _Unreadable("empty" if about.st_size == 0 else f"larger than {MAX_BYTES >> 20} MiB")
            yield stream
    except OSError as error:
        raise _Unreadable(error.strerror or str(error)) from error


@contextmanager
def _image(stream: BinaryIO) -> Iterator[Image]:
    """An image of an accepted format and size, its pixels not decoded yet.

    A decoder may fail in any way on a hostile file, and none of them may end the reading.
    """
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _Unreadable(_BOMB)
                yield image
        except _Unreadable:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise _Unreadable(_BOMB) from error
        except UnidentifiedImageError as error:
            raise _Unreadable("no JPEG, PNG or WebP") from error
        except Exception as error:
            raise _Unreadable(f"damaged: {str(error)[:80] or type(error).__name__}") from error


_BOMB = f"more than {MAX_PIXELS:,} pixels: refused"


def _fitting(files: list[Path]) -> int:
    """64, or 32 where half of the images have a side below 64."""
    sides = []
    for file in files:
        with suppress(_Unreadable), _content(file) as stream, _image(stream) as image:
            sides.append(min(image.size))
    return _SMALL if sides and sorted(sides)[len(sides) // 2] < _LARGE else _LARGE


def _read(path: Path, root: Path, size: int, grey: bool) -> Picture:
    with _content(path) as stream:
        content = stream.read(MAX_BYTES)
    with _image(io.BytesIO(content)) as image:
        if image.format == "PNG":
            image.verify()  # the checksums of all chunks: decoding passes over a flipped bit
    with _image(io.BytesIO(content)) as image:
        levels, done = _levels(image, size, grey)
    where = path.relative_to(root)
    return Picture(shown(where), shown(where.parent), levels, hashlib.sha256(content).hexdigest(), done)


def _levels(image: Image, size: int, grey: bool) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """uint8 (size, size) or (size, size, 3): the middle square of the upright image, and what was done to get it."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    done = ["of several pictures in one file: the first taken"] if getattr(image, "n_frames", 1) > 1 else []
    if image.format == "JPEG":
        image.draft(image.mode, (4 * size, 4 * size))  # decodes a large photograph at a half, a quarter or an eighth
    upright = _upright(image)
    done += ["turned upright (EXIF)"] if upright is not image else []
    plain, how = _plain(upright)
    if min(image.size) < size:
        done.append("enlarged")
    fitted = ImageOps.fit(plain.convert("L") if grey else plain, (size, size), Resampling.BICUBIC)
    return np.asarray(fitted, dtype=np.uint8), (*done, *how)


def _upright(image: Image) -> Image:
    """The image turned as its EXIF says; as it is where that says nothing, or nothing readable."""
    from PIL import ImageOps

    with suppress(Exception):  # broken EXIF of an image that is fine
        if image.getexif().get(_ORIENTATION, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def _plain(image: Image) -> tuple[Image, tuple[str, ...]]:
    """The image as L or RGB: 16 bits are scaled (not cut off, not wrapped), transparent pixels laid on white."""
    from PIL import Image as pillow

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        return pillow.fromarray(np.rint(values.clip(0, 65535) / 257).astype(np.uint8)), ("16 bits scaled to 8",)
    if "transparency" in image.info or image.mode in {"LA", "La", "PA", "RGBA", "RGBa"}:
        coloured = image.convert("RGBA")
        if coloured.getchannel("A").getextrema() == (255, 255):
            return coloured.convert("RGB"), ()
        white = pillow.new("RGBA", coloured.size, (255, 255, 255, 255))
        return pillow.alpha_composite(white, coloured).convert("RGB"), ("transparent pixels laid on white",)
    return image.convert("L" if image.mode in {"1", "L"} else "RGB"), ()


def is_grey(levels: NDArray[np.uint8]) -> bool:
    """Whether the channels of every pixel are the same, but for what lossy compression does to a grey image."""
    return levels.ndim == 2 or int(np.ptp(levels, axis=-1).max()) <= _TINT


def _as(picture: Picture, grey: bool) -> Picture:
    return replace(picture, levels=recoloured(picture.levels, grey))


def recoloured(levels: NDArray[np.uint8], grey: bool) -> NDArray[np.uint8]:
    """Levels (size, size) or (size, size, 3) with the channels of the data set: (size, size) if `grey`, else three."""
    from PIL import Image

    if grey:
        return levels if levels.ndim == 2 else np.asarray(Image.fromarray(levels).convert("L"))
    return levels if levels.ndim == 3 else levels[..., None].repeat(3, axis=-1)


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
