"""NumPy archives of other tools (Keras' mnist.npz): read without pickle, and only plain arrays of the right shape."""

from __future__ import annotations

import io
import time
import zipfile
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import fault_server as faults
from diabolo.data import Access, arrays, sources
from diabolo.data.catalogue import COLLECTIONS, Collection
from diabolo.data.placing import Failed
from diabolo.errors import DataError


def with_arrays() -> tuple[Collection, dict[str, np.ndarray], dict[str, bytes]]:
    collection, contents = faults.tiny()
    arrayed = ("x_train", "y_train", "x_test", "y_test")
    files = tuple(replace(file, array=f"mnist.npz/{name}") for file, name in zip(collection.files, arrayed))
    found = {
        name: np.frombuffer(contents[file.name][len(file.header) :], dtype=np.uint8).reshape(file.shape)
        for file, name in zip(files, arrayed)
    }
    return replace(collection, files=files), found, contents


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_numpy_archive_is_recognised(tmp_path, save):
    collection, found, contents = with_arrays()
    (tmp_path / "own").mkdir()
    save(tmp_path / "own" / "mnist.npz", **found)
    access = Access(cache=tmp_path / "cache", data_dir=tmp_path / "own", offline=True)
    assert [path.read_bytes() for path in sources.fetch(collection, access)] == list(contents.values())
    assert [file.array for file in COLLECTIONS["mnist"].files] == [file.array for file in collection.files]


def npz(found: np.ndarray, **more: object) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, x_train=found, **more)
    return stream.getvalue()


@cache
def hostile_archives() -> dict[str, bytes]:
    right = with_arrays()[1]["x_train"]
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        plain = io.BytesIO()
        np.save(plain, right)
        archive.writestr("x_train.npy", plain.getvalue() + bytes(10**7))
    return {
        "no zip": b"\x93NUMPY" + bytes(99),
        "empty": b"",
        "truncated": npz(right)[:-100],
        "garbled": npz(right)[:200] + bytes(60) + npz(right)[260:],
        "another array": npz(right).replace(b"x_train.npy", b"y_train.npy"),
        "pickled objects": npz(right.astype(object)),
        "64 bits": npz(right.astype(np.int64)),
        "Fortran order": npz(np.asfortranarray(right)),
        "another shape": npz(right.reshape(-1, 5)),
        "other content": npz(255 - right),
        "a bomb": bomb.getvalue(),
    }


#: Arrays whose header alone says that they are other ones.
OTHER_ARRAYS = {"pickled objects", "64 bits", "Fortran order", "another shape"}


@pytest.mark.parametrize("kind", hostile_archives())
def test_hostile_numpy_archives_are_refused_cheaply(tmp_path, kind):
    collection = with_arrays()[0]
    one = replace(collection, files=collection.files[:1])
    (tmp_path / "mnist.npz").write_bytes(hostile_archives()[kind])
    started = time.monotonic()
    reason = "is not of unsigned bytes" if kind in OTHER_ARRAYS else "mnist.npz: "
    with pytest.raises(DataError, match=reason):
        sources.fetch(one, Access(cache=tmp_path / "cache", data_dir=tmp_path, offline=True))
    assert time.monotonic() - started < 2
    assert list((tmp_path / "cache" / "tiny").iterdir()) == []


def test_an_archive_with_a_password_is_refused(tmp_path):
    body = bytearray(npz(with_arrays()[1]["x_train"]))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        body[body.index(signature) + flags] |= 1
    (tmp_path / "mnist.npz").write_bytes(bytes(body))
    with (
        pytest.raises(Failed, match="encrypted"),
        arrays.opened(tmp_path / "mnist.npz", "x_train", with_arrays()[0].files[0]),
    ):
        pytest.fail("opened")
