"""Find where the tensors of a weight file lie, without executing anything of it.

    python tools/storages_table.py > src/diabolo/features/lite0_table.json

The file is one that `torch.save` wrote before PyTorch 1.6: five pickles (a magic number, the version, the machine's sizes,
the state dictionary, the keys of the storages in their order), then the storages: 8 bytes that count the elements, and
the elements. A pickle is a program for a stack machine. `pickletools.genops` lists its instructions and executes none;
the few that write a state dictionary are followed here on a stack of plain values, on which a call is a tuple
`("call", name, arguments)` that nobody makes. An instruction of any other kind ends the tool.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import sys
from collections.abc import Iterator
from typing import Any

from diabolo.features.base import pinned_bytes
from diabolo.features.efficientnet import PACKAGE, REMEDY, SHA256, WEIGHTS
from diabolo.features.storages import COUNT_BYTES, DTYPES, Place, installed_file, write_table

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"torch FloatStorage": "float32", "torch LongStorage": "int64"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_LIST": list}
_MARK = object()

#: The names of the file's layers, and those of `diabolo.features.efficientnet.Lite0`.
NAMES = {
    r"^_conv_stem\.": "stem.0.",
    r"^_bn0\.": "stem.1.",
    r"^_conv_head\.": "head.0.",
    r"^_bn1\.": "head.1.",
    r"^_fc\.": "classifier.",
    r"^_blocks\.(\d+)\._expand_conv\.": r"blocks.\1.expand.0.",
    r"^_blocks\.(\d+)\._bn0\.": r"blocks.\1.expand.1.",
    r"^_blocks\.(\d+)\._depthwise_conv\.": r"blocks.\1.depthwise.0.",
    r"^_blocks\.(\d+)\._bn1\.": r"blocks.\1.depthwise.1.",
    r"^_blocks\.(\d+)\._project_conv\.": r"blocks.\1.project.0.",
    r"^_blocks\.(\d+)\._bn2\.": r"blocks.\1.project.1.",
}


class Symbolic:
    """The stack and the memory of one pickle, on which calls and persistent objects stay names."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """What the pickle at the stream's position would build."""
        for opcode, argument, _ in pickletools.genops(stream):
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """Follow one instruction.

        Raises:
            ValueError: for one that a state dictionary does not need.
        """
        if name in {"PROTO", "STOP"}:
            return
        if name in LITERALS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in {"BINPUT", "LONG_BINPUT"}:
            self.memory[argument] = self.stack[-1]
        elif name in {"BINGET", "LONG_BINGET"}:
            self.stack.append(self.memory[argument])
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name == "GLOBAL":
            self.stack.append(("global", argument))
        else:
            self.gather(name)

    def gather(self, name: str) -> None:
        """Follow an instruction that takes values from the stack."""
        match name:
            case "TUPLE":
                self.stack.append(tuple(self.marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.popped(int(name[-1]))))
            case "BINPERSID":
                self.stack.append(("storage", *self.stack.pop()))
            case "REDUCE":
                called, arguments = self.popped(2)
                empty = called == ("global", "collections OrderedDict") and arguments == ()
                self.stack.append({} if empty else ("call", called[1], arguments))
            case "APPEND":
                item = self.stack.pop()
                self.stack[-1].append(item)
            case "APPENDS":
                items = self.marked()
                self.stack[-1].extend(items)
            case "SETITEMS":
                items = self.marked()
                self.stack[-1].update(zip(items[::2], items[1::2]))
            case "SETITEM":
                key, value = self.popped(2)
                self.stack[-1][key] = value
            case "BUILD":  # the version numbers of the modules, which the dictionary carries as an attribute
                self.stack.pop()
            case _:
                raise ValueError(f"the instruction {name} has no place in a state dictionary")

    def popped(self, count: int) -> list[Any]:
        """The last values of the stack, in their order."""
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def marked(self) -> list[Any]:
        """The values above the last mark."""
        start = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        values = self.popped(len(self.stack) - start)
        return values[1:]


def table(content: bytes) -> dict[str, Place]:
    """The places of all tensors of a weight file, by the file's own names, in its order.

    Raises:
        ValueError: if it is no such file, was written on a big-endian machine, or shares storages between tensors.
    """
    stream = io.BytesIO(content)
    magic, protocol, sizes, state, keys = (Symbolic().run(stream) for _ in range(5))
    if (magic, protocol, sizes["little_endian"]) != (MAGIC, PROTOCOL, True):
        raise ValueError("not a weight file of the old format, or a big-endian one")
    tensors = {name: _tensor(name, value) for name, value in state.items()}
    if sorted(key for _, key, *_ in tensors.values()) != sorted(keys):
        raise ValueError("tensors share a storage, or leave one out")
    counts = {key: (dtype, math.prod(shape)) for dtype, key, shape, _ in tensors.values()}
    offsets = dict(_offsets(keys, counts, stream.tell()))
    if len(content) != max(offset + _bytes(*counts[key]) for key, offset in offsets.items()):
        raise ValueError("the storages do not end where the file ends")
    return {name: Place(dtype, offsets[key], shape, stride) for name, (dtype, key, shape, stride) in tensors.items()}


def _tensor(name: str, value: Any) -> tuple[str, str, tuple[int, ...], tuple[int, ...]]:
    """(dtype, key of the storage, shape, stride) of a call that would rebuild a tensor."""
    match value:
        case ("call", "torch._utils _rebuild_tensor_v2", (storage, 0, shape, stride, _, _)):
            pass
        case _:
            raise ValueError(f"{name} is no tensor that begins its storage")
    match storage:
        case ("storage", "storage", ("global", kind), key, _, count, None) if count == math.prod(shape):
            return STORAGES[kind], key, shape, stride
    raise ValueError(f"{name} is not the whole of a storage")


def _offsets(keys: list[str], counts: dict[str, tuple[str, int]], position: int) -> Iterator[tuple[str, int]]:
    for key in keys:
        yield key, position + COUNT_BYTES
        position += COUNT_BYTES + _bytes(*counts[key])


def _bytes(dtype: str, count: int) -> int:
    return int(DTYPES[dtype].itemsize) * count


def renamed(name: str) -> str:
    """The name that our own module gives a tensor.

    Raises:
        ValueError: for a name that it does not have.
    """
    for pattern, replacement in NAMES.items():
        new, found = re.subn(pattern, replacement, name)
        if found:
            return new
    raise ValueError(f"{name} has no place in the network")


def main() -> None:
    """Write the table of EfficientNet-Lite0."""
    content = pinned_bytes(installed_file(PACKAGE, WEIGHTS, REMEDY), SHA256, REMEDY)
    sys.stdout.write(write_table({renamed(name): place for name, place in table(content).items()}))


if __name__ == "__main__":
    main()
