"""Tensors from the raw bytes of a weight file whose content is pinned. A committed table says where each one lies.

A weight file of PyTorch is a pickle, a small program, with the numbers beside it. Nothing of the program is executed here:
only the numbers are read, at the places that `tools/storages_table.py` found once by reading the program as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from diabolo.errors import DataError, UsageError

DTYPES = {"float32": torch.float32, "int64": torch.int64}

#: In front of each storage stands the number of its elements, a little-endian integer of so many bytes.
COUNT_BYTES = 8


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: the byte at which its storage begins, and how its elements are laid out in it."""

    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_table(text: str) -> dict[str, Place]:
    """The places of a table in JSON: `{name: [dtype, offset, shape, stride]}`."""
    return {name: Place(d, o, tuple(shape), tuple(stride)) for name, (d, o, shape, stride) in json.loads(text).items()}


def write_table(places: Mapping[str, Place]) -> str:
    """The table in JSON, a tensor a line."""
    lines = (
        f"  {json.dumps(name)}: {json.dumps([p.dtype, p.offset, p.shape, p.stride])}" for name, p in places.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def installed_file(package: str, name: str, remedy: str) -> Path:
    """The path of a file of an installed package; no code of the package is imported.

    Raises:
        UsageError: if the package is not installed, or has no such file; `remedy` says how to get it.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise UsageError(f"the package {package} is not installed", "It holds the weights.", remedy) from None
    paths = [Path(str(file.locate())) for file in files if file.name == name]
    if not paths or not paths[0].is_file():
        raise UsageError(f"the package {package} has no file {name}", "It holds the weights.", remedy)
    return paths[0]


def read_tensors(content: bytes, places: Mapping[str, Place]) -> dict[str, Tensor]:
    """The tensors that a table names, copied out of the content of the file.

    Raises:
        DataError: if a place lies outside the content, or its storage holds another number of elements.
    """
    return {name: _read(content, name, place) for name, place in places.items()}


def _read(content: bytes, name: str, place: Place) -> Tensor:
    dtype, count = DTYPES[place.dtype], math.prod(place.shape)
    end = place.offset + count * dtype.itemsize
    if place.offset < COUNT_BYTES or end > len(content):
        raise DataError(
            f"{name} does not lie in the file",
            f"It would take the bytes {place.offset:,} to {end:,} of {len(content):,}.",
        )
    held = int.from_bytes(content[place.offset - COUNT_BYTES : place.offset], "little")
    if held != count:
        raise DataError(f"{name} has another size", f"The file holds {held:,} elements of it, the table {count:,}.")
    storage = torch.frombuffer(bytearray(content[place.offset : end]), dtype=dtype)
    return storage.as_strided(place.shape, place.stride)
