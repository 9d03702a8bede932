r"""The .dia file: what a stream is of, the stream, and a checksum over both.

    offset  bytes  content (integers little-endian)
         0      8  magic, \x89 D I A \r \n \x1a \n: a transfer that changes line ends or the eighth bit breaks it
         8      2  version, 1
        10     16  SHA-256 of the weights, its first 16 bytes
        26     16  SHA-256 of the codec, its first 16 bytes
        42      1  bits a dimension; 0: steps of the posterior's standard deviation
        43      4  n, the number of examples
        47      1  r, the number of sides of an example
        48     4r  the sides, channels first
      48+4r     8  p, the length of the stream
      56+4r     p  the stream of the range coder
    56+4r+p     8  BLAKE2b of everything before it, to 8 bytes

A checksum tells damage, not intent: every size is compared with what is there before it is used.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass

from diabolo.coding.codec import DIGEST
from diabolo.errors import DataError

MAGIC = b"\x89DIA\r\n\x1a\n"
VERSION = 1
#: Values (pixels, or dimensions of codes) that one file may hold: what is decoded has to fit into memory.
MAX_VALUES = 1 << 30
MAX_BYTES = 1 << 30
_HEADER = struct.Struct(f"<8sH{DIGEST}s{DIGEST}sBIB")
_LENGTH = struct.Struct("<Q")
_CHECKSUM = 8
_MAX_SIDES = 8


@dataclass(frozen=True)
class Container:
    """A stream and what it is of. `weights` and `codec` are digests of 16 bytes, `bits` 0 for steps of the posterior's standard
    deviation, `shape` that of one example."""

    weights: bytes
    codec: bytes
    bits: int
    count: int
    shape: tuple[int, ...]
    stream: bytes

    def pack(self) -> bytes:
        """The file's content."""
        head = _HEADER.pack(MAGIC, VERSION, self.weights, self.codec, self.bits, self.count, len(self.shape))
        sides = struct.pack(f"<{len(self.shape)}I", *self.shape)
        content = head + sides + _LENGTH.pack(len(self.stream)) + self.stream
        return content + _checksum(content)


def unpack(content: bytes) -> Container:
    """Read a file's content.

    Raises:
        DataError: if it is no such file, of another version, cut off or damaged, or claims to hold too much.
    """
    if not content.startswith(MAGIC):
        raise DataError("it is no .dia file", "It does not begin as one.", "Write one with: diabolo compress")
    if (
        len(content) < _HEADER.size + _LENGTH.size + _CHECKSUM
        or _checksum(content[:-_CHECKSUM]) != content[-_CHECKSUM:]
    ):
        raise DataError("it is damaged", "Its checksum is not that of its content: it was cut off or changed.")
    _, version, weights, codec, bits, count, sides = _HEADER.unpack_from(content)
    if version != VERSION:
        raise DataError(f"it is of version {version}", f"This diabolo reads version {VERSION}.")
    shape, stream = _body(content[_HEADER.size : -_CHECKSUM], sides)
    check_size(count, math.prod(shape))
    return Container(weights, codec, bits, count, shape, stream)


def _body(content: bytes, sides: int) -> tuple[tuple[int, ...], bytes]:
    """The shape and the stream, from everything between header and checksum."""
    start = 4 * sides + _LENGTH.size
    if not 0 < sides <= _MAX_SIDES or len(content) < start:
        raise DataError("it is damaged", f"It says that an example has {sides} sides.")
    shape = struct.unpack_from(f"<{sides}I", content)
    if _LENGTH.unpack_from(content, 4 * sides)[0] != len(content) - start:
        raise DataError("it is damaged", "Its stream has another length than it says.")
    return shape, content[start:]


def check_size(count: int, values: int) -> None:
    """Refuse `count` examples of `values` values each before room is made for them.

    Raises:
        DataError: if they are too many.
    """
    if count * max(values, 1) > MAX_VALUES:
        raise DataError(
            f"{count:,} examples of {values:,} values are too many", f"A file holds {MAX_VALUES:,} at most."
        )


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM).digest()
