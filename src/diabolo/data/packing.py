"""`diabolo data pack`: images are decoded once, an image at a time, and written as shards that training maps into memory.

Of a folder, a split depends on all images and so does whether there is a colour: decoded images wait in one file until both
are known, and are then copied to their places. What is kept in memory for each image is its hashes and the name of its class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diabolo import data as data_module
from diabolo.data import folder as folders
from diabolo.data import images, shards
from diabolo.data.access import Access
from diabolo.data.images import Colour, Picture, Reading
from diabolo.data.shards import About, Index, Writer
from diabolo.data.spec import SPLITS
from diabolo.errors import UsageError
from diabolo.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from diabolo.data.spec import Dataset

_SPOOL = "decoded.part"
_ROWS = 1000
_NOTHING = np.empty(0, dtype=np.uint8)


def pack(name: str, params: Mapping[str, Any], out: Path, access: Access, progress: Progress) -> Index:
    """Write the data set `name` with its parameters, or an image folder, as a packed one at `out`, whole or not at all.

    The splits, their order, the levels and the content hashes are those that `data.load(name, params)` gives.

    Raises:
        UsageError: if `out` exists or cannot be written, the disk lacks the room, or the values are no uint8 images.
        DataError: if the data cannot be had, or as the data set says.
    """
    shards.check_new(out)
    if name == "folder":
        return pack_folder(params["path"], params["size"], params["colour"], out, access.say, progress)
    return pack_dataset(data_module.load(name, params, access), out, progress)


# ------------------------------------------------------------------------------------------------ a data set
def pack_dataset(dataset: Dataset, out: Path, progress: Progress) -> Index:
    """Write a data set that is there already; see `pack`."""
    splits = [split for split in (dataset.train, dataset.validation, dataset.test) if split is not None]
    if len(dataset.spec.shape) != 3 or any(str(split.values.dtype) != "torch.uint8" for split in splits):
        raise UsageError(
            f"{dataset.spec.name} cannot be packed",
            f"Shards hold images of uint8 levels; these are {splits[0].values.dtype} of shape {dataset.spec.shape}.",
        )
    channels, height, width = dataset.spec.shape
    about = About(
        name=dataset.spec.name,
        values=dataset.spec.values,
        binarize=dataset.binarize,
        hashes=dataset.hashes,
        note=dataset.note,
        warning=dataset.warning,
    )
    progress.start("packing", sum(map(len, splits)))
    with shards.new_folder(out) as place:
        shards.check_room(place, sum(split.values.numel() + 8 * len(split) for split in splits))
        with Writer(place, (channels, height, width), dataset.spec.classes) as writer:
            for split in splits:
                for at in range(0, len(split), _ROWS):
                    rows = slice(at, at + _ROWS)
                    labels = None if split.labels is None else split.labels[rows].numpy()
                    writer.add(split.name, split.values[rows].numpy(), labels)
                    progress.advance(len(split.values[rows]))
            index = writer.close(about)
    progress.finish()
    return index


# ------------------------------------------------------------------------------------------------ a folder
@dataclass
class _Decoded:
    """Images of a folder in one file, each in the channels that it has; `colour` says of each whether these are three."""

    path: Path
    size: int
    colour: bytearray

    def rows(self, grey: bool) -> Iterator[NDArray[np.uint8]]:
        """Each image in the channels of the data set, (size, size) or (size, size, 3)."""
        with self.path.open("rb") as file:
            for coloured in self.colour:
                shape = (self.size, self.size, 3) if coloured else (self.size, self.size)
                yield images.recoloured(np.fromfile(file, np.uint8, int(np.prod(shape))).reshape(shape), grey)


def pack_folder(
    path: str, size: int, colour: Colour, out: Path, say: Callable[[str], None], progress: Progress
) -> Index:
    """Decode and write a folder of images; see `pack`. The arguments are those of the data set `folder`."""
    images.check_wanted(path, size)
    found, size = images.opened(path, size, say)
    with shards.new_folder(out) as place:
        # Twice: decoded images wait in a file until the split is known.
        shards.check_room(place, len(found.files) * (2 * size**2 * (1 if colour == "grey" else 3) + 8))
        progress.start("decoding", len(found.files))
        decoded, reading = _decode(place / _SPOOL, found, size, colour, say, progress)
        index = _write(place, decoded, images.tolerated(reading), say, progress)
        decoded.path.unlink()
    progress.finish()
    return index


def _decode(
    path: Path, found: images.Found, size: int, colour: Colour, say: Callable[[str], None], progress: Progress
) -> tuple[_Decoded, Reading]:
    """All images in one file, and the reading that says what they are, without their levels."""
    decoded, pictures, grey = _Decoded(path, size, bytearray()), list[Picture](), colour != "rgb"
    with path.open("xb") as file:
        for picture in images.each(found, size, colour):
            file.write(picture.levels.tobytes())
            decoded.colour.append(picture.levels.ndim == 3)
            grey = grey and images.is_grey(picture.levels)
            pictures.append(replace(picture, path="", folder=sys.intern(picture.folder), levels=_NOTHING))
            progress.advance()
    images.settle(found, len(pictures), say)
    return decoded, Reading(found, pictures, size, 1 if grey else 3)


def _write(place: Path, decoded: _Decoded, reading: Reading, say: Callable[[str], None], progress: Progress) -> Index:
    """Split by content and copy each image to its place."""
    grey = reading.channels == 1
    progress.start("comparing", len(reading.pictures))
    looks = []
    for levels in decoded.rows(grey):
        looks.append(folders.look(levels))
        progress.advance()
    numbers, classes = folders.classes_of(reading.pictures)
    index = folders.split(reading, looks)
    say(note := folders.note_of(reading, classes, index, looks))
    places = np.empty(len(looks), dtype=np.uint8)
    for i, name in enumerate(SPLITS):
        places[index[name].numpy()] = i
    progress.start("packing", len(looks))
    with Writer(place, (reading.channels, decoded.size, decoded.size), classes) as writer:
        labels = None if numbers is None else numbers.numpy()
        for at, block in _blocks(decoded.rows(grey)):
            for i, name in enumerate(SPLITS):
                chosen = np.flatnonzero(places[at : at + len(block)] == i)
                writer.add(name, block[chosen], None if labels is None else labels[at + chosen])
            progress.advance(len(block))
        hashes = {name: writer.digest(name) for name in SPLITS}
        if numbers is not None:
            hashes |= {f"{name} labels": folders.label_hash(classes, numbers[index[name]]) for name in SPLITS}
        warning = folders.warning_of({name: len(chosen) for name, chosen in index.items()})
        return writer.close(About(name="folder", hashes=hashes, note=note, warning=warning))


def _blocks(rows: Iterator[NDArray[np.uint8]]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(position of the first, images (B, C, H, W)) from single images."""
    at, block = 0, list[Any]()
    for levels in rows:
        block.append(levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1))
        if len(block) == _ROWS:
            yield at, np.stack(block)
            at, block = at + len(block), []
    if block:
        yield at, np.stack(block)
