"""A tiny CIFAR-10 in every form in which the real one is kept: records, PNGs, pickles of Python 2, and their tarballs."""

from __future__ import annotations

import gzip
import io
import json
import struct
from dataclasses import replace

import numpy as np
from PIL import Image

import fault_server as faults
from diabolo.data.catalogue import CIFAR10, Collection, File, Package, Picture, Tarball

SIDE = 4
PIXELS = SIDE * SIDE


def tiny() -> tuple[Collection, dict[str, bytes]]:
    """Two files of six training images and one of four test images, 4x4, and their content."""
    contents, files = {}, []
    for name, count, labels, first in (
        ("data_batch_1", 6, "train_lables.json", 0),
        ("data_batch_2", 6, "train_lables.json", 6),
        ("test_batch", 4, "test_lables.json", 0),
    ):
        body = np.random.default_rng(len(files)).integers(0, 256, (count, 1 + 3 * PIXELS), dtype=np.uint8)
        body[:, 0] %= 10
        contents[f"{name}.bin"] = body.tobytes()
        split = "test" if name.startswith("test") else "train"
        sha256, picture = faults.digest(body.tobytes()), Picture(f"{name}.png", labels, first)
        files.append(File(f"{name}.bin", split, body.shape, sha256, idx=False, picture=picture, batch=name))
    bare = Collection("tiny", "a test", tuple(files), (), None, CIFAR10.layouts)
    return with_tarballs(bare, contents), contents


def with_tarballs(collection: Collection, contents: dict[str, bytes]) -> Collection:
    binary, python, packed = (packer(contents) for packer in (binary_tarball, python_tarball, npm_tarball))
    package = Package("tiny-pictures", "1.0.0", len(packed), faults.digest(packed), "package/", "pictures")
    return replace(
        collection,
        archive=registered(CIFAR10.archive, binary),
        left_behind=(registered(CIFAR10.left_behind[0], python),),
        package=package,
    )


def registered(tarball: Tarball, body: bytes) -> Tarball:
    return replace(tarball, size=len(body), sha256=faults.digest(body))


def array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + 3 * PIXELS)


def tarball(members: dict[str, bytes]) -> bytes:
    return gzip.compress(faults.tar([faults.member(name, body) for name, body in members.items()]), mtime=0)


def binary_tarball(contents: dict[str, bytes]) -> bytes:
    extra = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
    return tarball(extra | {f"cifar-10-batches-bin/{name}": body for name, body in contents.items()})


def python_tarball(contents: dict[str, bytes]) -> bytes:
    extra = {"cifar-10-batches-py/batches.meta": b"\x80\x02}."}
    return tarball(extra | {f"cifar-10-batches-py/{name}": body for name, body in batches(contents).items()})


def npm_tarball(contents: dict[str, bytes]) -> bytes:
    return tarball({f"package/{name}": body for name, body in pictures(contents).items()})


def pictures(contents: dict[str, bytes]) -> dict[str, bytes]:
    """PNGs first, labels last, as in the real package."""
    pngs = {name.replace(".bin", ".png"): png(array(body)) for name, body in contents.items()}
    column = {name: array(body)[:, 0].tolist() for name, body in contents.items()}
    train = column["data_batch_1.bin"] + column["data_batch_2.bin"]
    lists = {"test_lables.json": column["test_batch.bin"], "train_lables.json": train}
    return pngs | {name: json.dumps(labels).encode() for name, labels in lists.items()}


def png(rows: np.ndarray) -> bytes:
    """One image a row, the three planes woven into pixels."""
    return encoded(Image.fromarray(rows[:, 1:].reshape(len(rows), 3, PIXELS).transpose(0, 2, 1).copy()))


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


# -- the pickles that Python 2 wrote -----------------------------------------------------------------------------------


def batches(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removesuffix(".bin"): python2(array(body)) for name, body in contents.items()}


def python2(rows: np.ndarray, after: bytes = b"") -> bytes:
    """A batch as cPickle of Python 2 writes it with protocol 2: strings as bytes, lists in runs of 1,000, every string and
    container remembered. `after`: opcodes that push one more thing, which is dropped again."""
    memo = Memo()
    labels = runs([b"K" + bytes([label]) for label in rows[:, 0].tolist()])
    items = [
        short("batch_label"),
        memo(),
        short("training batch 1 of 5"),
        memo(),
        short("labels"),
        memo(),
        b"]",
        memo(),
    ]
    items += [labels, short("data"), memo(), *ndarray(rows[:, 1:], memo), short("filenames"), memo(), b"]", memo()]
    items += [runs([short(f"picture_{i}.png") + memo() for i in range(len(rows))])]
    return b"\x80\x02}" + Memo(0)() + b"(" + b"".join(items) + b"u" + after + b"."


def short(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def runs(pushed: list[bytes]) -> bytes:
    return b"".join(b"(" + b"".join(pushed[i : i + 1000]) + b"e" for i in range(0, len(pushed), 1000))


def ndarray(pixels: np.ndarray, memo: Memo) -> list[bytes]:
    start = b"cnumpy.core.multiarray\n_reconstruct\n" + memo() + b"cnumpy\nndarray\n" + memo() + b"K\x00\x85" + memo()
    kind = b"cnumpy\ndtype\n" + memo() + b"U\x02u1K\x00K\x01\x87" + memo() + b"R" + memo()
    kind += b"(K\x03U\x01|" + memo() + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"M" + struct.pack("<H", pixels.shape[0]) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86" + memo()
    body = pixels.tobytes()
    content = b"T" + struct.pack("<i", len(body)) + body + memo()
    return [start, b"U\x01b", memo(), b"\x87", memo(), b"R", memo(), b"(K\x01", shape, kind, b"\x89", content, b"tb"]


class Memo:
    """The opcode that remembers the top of the stack under the next number."""

    def __init__(self, start: int = 1) -> None:
        self.next = start

    def __call__(self) -> bytes:
        self.next += 1
        number = self.next - 1
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)
