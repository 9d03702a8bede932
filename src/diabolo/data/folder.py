"""The user's own images: a folder as a data set, split by content."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from diabolo.data.access import Access
from diabolo.data.images import SIDES, Picture, Reading, class_names, read_checked
from diabolo.data.spec import Dataset, DataSpec, Split
from diabolo.errors import DataError, UsageError
from diabolo.registry import register

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Cuts of the unit interval: 80 % train, 10 % validation, 10 % test.
_CUTS = (0.8, 0.9)
_LARGEST = 4 << 30
#: Below so many images a model is warned of.
FEW = 100


@register("dataset", "folder")
def folder(access: Access, path: str, size: int = 0, colour: Literal["auto", "grey", "rgb"] = "auto") -> Dataset:
    """Folder: the JPEG, PNG and WebP images below a folder of your own, in squares; subfolders name the classes.

    Values are uint8 levels (N, 1, size, size) or (N, 3, size, size), emitted as k/255. `size` 0 takes 64, or 32 where half of
    the images are smaller than 64; `colour` auto takes grey if no pixel has a colour. The middle square is kept.
    An image's split is a function of its content, the SHA-256 of its file: 80 % train, 10 % validation, 10 % test;
    images that look the same go to one split. `Dataset.note` says what was read and what was skipped.

    Raises:
        UsageError: for a size out of range, or one that needs too much memory.
        DataError: if there is no such folder, more than 1 % of its images cannot be read, or fewer than 3 differ.
    """
    return dataset(read_checked(path, size, colour, access.say), access.say)


def dataset(reading: Reading, say: Callable[[str], None]) -> Dataset:
    """The data set of a folder that was read; `say` is told what the note says.

    Raises:
        UsageError: if it needs too much memory.
        DataError: if fewer than 3 of its images differ.
    """
    values = _values(reading)
    numbers, classes = classes_of(reading.pictures)
    looks = [look(picture.levels) for picture in reading.pictures]
    index = split(reading, looks)
    parts = {name: _part(name, values, numbers, chosen) for name, chosen in index.items()}
    say(note := note_of(reading, classes, index, looks))
    return Dataset(
        spec=DataSpec(
            name="folder",
            shape=tuple(values.shape[1:]),
            values="grey",
            classes=classes,
            examples=len(parts["train"]),
        ),
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        hashes=_hashes(parts, classes),
        note=note,
        warning=warning_of({name: len(part) for name, part in parts.items()}),
    )


def _values(reading: Reading) -> Tensor:
    needed = len(reading.pictures) * reading.channels * reading.size**2
    if needed > _LARGEST:
        raise UsageError(
            f"{len(reading.pictures):,} images of {reading.size}x{reading.size} need {needed / 1e9:.1f} GB of memory",
            f"At most {_LARGEST / 1e9:.1f} GB are used.",
            f"Take a smaller data.size, for example data.size={max(SIDES[0], reading.size // 2)}, or map them into memory from "
            f"files: diabolo data pack {shlex.quote(f'folder:{reading.found.root}')} OUT",
        )
    levels = np.stack([picture.levels for picture in reading.pictures])
    stacked = torch.from_numpy(levels)
    return (stacked.unsqueeze(1) if stacked.ndim == 3 else stacked.movedim(3, 1)).contiguous()


def classes_of(pictures: list[Picture]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Class numbers (N,) and names in byte order; none where all images lie in one folder."""
    names = class_names(pictures)
    classes = sorted(set(names), key=str.encode)
    if len(classes) < 2:
        return None, ()
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[name] for name in names]), tuple(classes)


def look(levels: NDArray[np.uint8]) -> bytes:
    """What two images share that look the same: the SHA-256 of their levels."""
    return hashlib.sha256(levels.tobytes()).digest()


def split(reading: Reading, looks: Sequence[bytes]) -> dict[str, Tensor]:
    """Positions of each split, in order, from the `look` of each picture. Those that look the same share the key of the one with
    the least SHA-256 of its file.

    No split is empty, and from 6 different images on none has fewer than 2, the least that has a standard error: where chance
    leaves it so, the nearest images in the order of the keys are moved into it.

    Raises:
        DataError: if fewer than 3 of the images differ.
    """
    keys: dict[bytes, str] = {}
    for seen, picture in zip(looks, reading.pictures):
        keys[seen] = min(keys.get(seen, picture.sha256), picture.sha256)
    order = sorted(keys, key=lambda seen: keys[seen])
    if len(order) < 3:
        raise DataError(
            f"{reading.found.root} holds {len(order)} different image{'' if len(order) == 1 else 's'}",
            "At least 3 are needed: one each to train on, to validate and to test.",
        )
    first, second = (sum(_unit(key) < cut for key in keys.values()) for cut in _CUTS)
    least = 2 if len(order) >= 6 else 1
    second = min(max(second, 2 * least), len(order) - least)
    first = min(max(first, least), second - least)
    place = {seen: int(rank >= first) + int(rank >= second) for rank, seen in enumerate(order)}
    chosen = torch.tensor([place[seen] for seen in looks])
    return {name: (chosen == i).nonzero().flatten() for i, name in enumerate(("train", "validation", "test"))}


def _unit(key: str) -> float:
    """A SHA-256 in hexadecimal as a number in [0, 1)."""
    return int(key[:12], 16) / 16**12


def _part(name: str, values: Tensor, numbers: Tensor | None, index: Tensor) -> Split:
    return Split(name, values[index], None if numbers is None else numbers[index])


def _hashes(parts: dict[str, Split], classes: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of the levels and of the class names, image by image, of each split: independent of where the folder lies."""
    found = {}
    for name, part in parts.items():
        found[name] = hashlib.sha256(part.values.numpy().tobytes()).hexdigest()
        if part.labels is not None:
            found[f"{name} labels"] = label_hash(classes, part.labels)
    return found


def label_hash(classes: Sequence[str], labels: Tensor) -> str:
    """SHA-256 of the class names, image by image, from class numbers (N,)."""
    return hashlib.sha256("\n".join(classes[i] for i in labels.tolist()).encode()).hexdigest()


def warning_of(sizes: Mapping[str, int]) -> str:
    """What a folder of few images leads to, and where it shows; "" for one that is large enough."""
    count = sum(sizes.values())
    if count >= FEW:
        return ""
    return (
        f"{count} images are few: the model will memorise the {sizes['train']} it trains on, that is, draw them well "
        "and others badly. It shows where the held-out loss parts from the train loss and rises, and in the "
        "reconstructions of test images: look at these two. "
        f"{FEW} images are the least, some thousands are better."
    )


def note_of(reading: Reading, classes: tuple[str, ...], index: dict[str, Tensor], looks: Sequence[bytes]) -> str:
    """What was read, how it was treated and how it was split, in one line."""
    sizes = ", ".join(f"{len(chosen):,} {name}" for name, chosen in index.items())
    same = len(looks) - len(set(looks))
    return "; ".join((
        reading.note(),
        f"{len(classes)} classes from the names of folders" if classes else "no classes: all in one folder",
        f"split by content: {sizes}{f'; {same:,} look like another one and share its split' if same else ''}",
    ))
