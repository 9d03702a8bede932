"""Records of a label byte and the planes of a colour image, rebuilt from the other forms in which they are published.

What is rebuilt here has no say: it gets into the cache only if its SHA-256 is the registered one.
"""

from __future__ import annotations

import io
import itertools
import json
import pickletools
from collections.abc import Iterable
from typing import Any

from diabolo.data.catalogue import File
from diabolo.data.placing import Failed

#: A batch holds this much beside the pixels: labels and the names of 10,000 pictures are about 316,000 bytes.
_BESIDE = 1 << 20
#: Opcodes of a batch: about 30,000.
_OPCODES = 100_000
#: Opcodes of which Python's pickle makes a list of small numbers.
_LIST = {"EMPTY_LIST", "MARK", "BININT1", "APPENDS", "BINPUT", "LONG_BINPUT"}


def largest_batch(file: File) -> int:
    """The bytes beyond which a batch is not read."""
    return file.size + _BESIDE


def from_batch(content: bytes, file: File) -> bytes:
    """The records from a batch of Python's pickle (protocol 2, as Python 2 wrote it), which is not loaded: its opcodes are
    listed, which executes nothing, and the one string of the pixels' length and the list of labels are taken.

    Raises:
        Failed: for anything else than a batch.
    """
    count, width = file.shape[0], file.shape[1] - 1
    try:
        labels, strings = _scan(content, count * width)
    except (ValueError, OverflowError, MemoryError) as error:  # UnicodeError is a ValueError
        raise Failed(f"unreadable as a batch: {str(error)[:160]}") from error
    if len(strings) != 1 or len(labels) != count:
        raise Failed(f"no batch of {count:,} images")
    pixels = memoryview(strings[0])
    return b"".join(part for i in range(count) for part in (labels[i : i + 1], pixels[i * width : (i + 1) * width]))


def _scan(content: bytes, length: int) -> tuple[bytes, list[bytes]]:
    """The numbers of the lists that follow the word "labels", and all strings of `length` bytes."""
    labels, strings, inside = bytearray(), [], False
    value: Any
    for opcode, value, _ in itertools.islice(pickletools.genops(content), _OPCODES):
        inside = inside and opcode.name in _LIST
        if inside and opcode.name == "BININT1":
            labels.append(value)
        elif opcode.name == "BINSTRING" and len(value) == length:
            strings.append(value.encode("latin-1"))
        inside = inside or value == "labels"
    return bytes(labels), strings


def label_list(content: bytes) -> list[int]:
    """Labels from a JSON list of them.

    Raises:
        Failed: if it is no list of numbers from 0 to 255.
    """
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Failed(f"unreadable list of labels: {str(error)[:160]}") from error
    if not isinstance(found, list) or not all(type(label) is int and 0 <= label < 256 for label in found):
        raise Failed("the labels are no list of small numbers")
    return found


def from_picture(png: bytes, labels: Iterable[int], file: File) -> bytes:
    """The records from a PNG in RGB that holds an image a row, its pixels in order. Only for a PNG of known content.

    Raises:
        Failed: if it cannot be decoded, is of another size, or there are fewer labels than images.
    """
    import numpy as np

    count, width = file.shape[0], (file.shape[1] - 1) // 3
    levels = np.frombuffer(decode(png, (width, count)), dtype=np.uint8).reshape(count, width, 3)
    column = np.array(list(labels), dtype=np.uint8)
    if len(column) != count:
        raise Failed(f"{len(column):,} labels for {count:,} images")
    planes = levels.transpose(0, 2, 1).reshape(count, 3 * width)
    return np.concatenate([column[:, None], planes], axis=1).tobytes()


def decode(png: bytes, size: tuple[int, int]) -> bytes:
    """The pixels of a PNG in RGB of the given width and height; its header is read first.

    Raises:
        Failed: if it cannot be decoded or is of another size or kind.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            if (image.size, image.mode) != (size, "RGB"):
                raise Failed(f"a picture of {image.size} in {image.mode} instead of {size} in RGB")
            return image.tobytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Failed(f"unreadable as PNG: {str(error)[:160]}") from error
