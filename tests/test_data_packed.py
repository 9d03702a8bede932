"""Packed data sets: what is packed is what was given, to the bit; what is broken is refused; what fails leaves nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diabolo import cli, runs
from diabolo.config import resolve
from diabolo.data import Access, Loader, Split, levels, load, loader, packing, shards
from diabolo.data.scan import scan
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.progress import Progress
from diabolo.seeds import fold
from diabolo.session import InterruptedRun
from diabolo.training import resume, train

posix = pytest.mark.skipif(sys.platform == "win32", reason="limits and signals of POSIX")
SPLITS = ("train", "validation", "test")
SMALL = ("model.latent=2", "train.epochs=2", "train.batch=8", "model.encoder.width=8", "model.decoder.width=8")
SETTINGS = Settings(k=5, images=4, elbo_samples=2, curve_images=0)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def pack(
    name: str, out: Path, access: Access | None = None, progress: Progress | None = None, **params: object
) -> shards.Index:
    wanted = resolve("vae", [f"data={name}", *(f"data.{key}={value}" for key, value in params.items())]).config.data
    return packing.pack(
        wanted.name, wanted.params, out, access or Access(say=lambda text: None), progress or Progress()
    )


def pictures(root: Path, count: int = 40, bad: int = 0) -> Path:
    """Different images in two folders, grey and coloured in turn, two that look the same, and files that are none."""
    generator = np.random.default_rng(0)
    for i in range(count):
        place = root / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        shape = (20, 20) if i % 3 else (20, 20, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{i:03d}.png")
    for i in range(bad):
        (root / f"bad-{i}.png").write_bytes(b"x")
    shutil.copy(root / "a" / "000.png", root / "b" / "again.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("folder") / "images")


@pytest.fixture(scope="module")
def packed(folder) -> Path:
    pack(f"folder:{folder}", folder.parent / "packed", size=16)
    return folder.parent / "packed"


@pytest.fixture
def copied(packed, tmp_path) -> Path:
    return shutil.copytree(packed, tmp_path / "copied")


def batches(dataset, split: str, epoch: int = 1):
    found = Loader(dataset, split)
    yield from found.shuffled(7, 3, epoch)
    yield from found.ordered(9)
    yield from found.ordered(4, indices=torch.tensor([1, 0, 1, 1]))


def assert_same_data(left, right) -> None:
    assert (left.spec, left.hashes, left.hash, left.note, left.warning) == (
        right.spec, right.hashes, right.hash, right.note, right.warning,
    )  # fmt: skip
    for split in SPLITS:
        assert Loader(left, split).draw_hash == Loader(right, split).draw_hash
        for a, b in zip(batches(left, split), batches(right, split), strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.index, b.index)
            assert (a.y is None and b.y is None) or torch.equal(a.y, b.y)


# ------------------------------------------------------------------------------------------------ the same data
@pytest.mark.parametrize("params", [{"size": 16}, {"size": 16, "colour": "grey"}, {"size": 8, "colour": "rgb"}, {}])
def test_a_packed_folder_is_the_folder_to_the_bit(folder, tmp_path, params):
    pack(f"folder:{folder}", tmp_path / "out", **params)
    found = load("packed", {"path": str(tmp_path / "out")})
    assert_same_data(found, load("folder", {"path": str(folder), **params}))
    assert found.train.mapped and scan(found) == scan(load("folder", {"path": str(folder), **params}))


def test_a_grey_folder_that_lossy_compression_tinted_becomes_grey(tmp_path):
    generator = np.random.default_rng(1)
    for i in range(8):
        noise = Image.fromarray(generator.integers(0, 256, (40, 40), dtype=np.uint8))
        (tmp_path / "images").mkdir(exist_ok=True)
        noise.convert("RGB" if i % 2 else "L").save(tmp_path / "images" / f"{i}.webp", quality=60)
    assert pack(f"folder:{tmp_path / 'images'}", tmp_path / "out").shape == (1, 32, 32)
    assert_same_data(
        load("packed", {"path": str(tmp_path / "out")}), load("folder", {"path": str(tmp_path / "images")})
    )


@pytest.mark.parametrize("binarize", [False, True])
def test_a_packed_data_set_is_the_data_set_to_the_bit(tmp_path, binarize):
    pack("digits", tmp_path / "out", binarize=str(binarize).lower())
    assert_same_data(load("packed", {"path": str(tmp_path / "out")}), load("digits", {"binarize": binarize}))


def test_packing_again_writes_the_same_bytes_and_a_packed_set_can_be_packed(packed, tmp_path):
    pack(f"packed:{packed}", tmp_path / "twice")
    names = sorted(path.name for path in packed.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "twice").iterdir()) and "index.json" in names
    assert all((packed / name).read_bytes() == (tmp_path / "twice" / name).read_bytes() for name in names)


def test_the_size_of_a_block_changes_nothing(folder, packed, tmp_path, monkeypatch):
    """Images are written so many at a time: here 7 of 41, and 7 of 1,797."""
    pack("digits", tmp_path / "digits")
    monkeypatch.setattr(packing, "_ROWS", 7)
    pack(f"folder:{folder}", tmp_path / "folder", size=16)
    pack("digits", tmp_path / "again")
    for one, other in ((packed, tmp_path / "folder"), (tmp_path / "digits", tmp_path / "again")):
        names = [path.name for path in one.iterdir()]
        assert "train.labels.i64" in names
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_losses_and_evaluation_are_those_from_memory(folder, packed, tmp_path):
    found = {}
    for word in (f"folder:{folder}", f"packed:{packed}"):
        config = resolve(
            "vae", [f"data={word}", *SMALL, *(["data.size=16"] if word.startswith("folder") else [])]
        ).config
        run = train(config, out=tmp_path / word.partition(":")[0], device="cpu")
        evaluation = evaluate(run, SETTINGS, device="cpu")
        about = evaluation["about"]
        for clock in ("seconds", "weights_sha256"):  # the weights' file holds the configuration
            about.pop(clock)
        found[word] = (run.path / "metrics.jsonl").read_bytes(), evaluation
    assert len(set(map(str, found.values()))) == 1


def test_the_note_says_how_images_were_treated_and_the_index_what_there_is(packed, folder):
    index = json.loads((packed / "index.json").read_text(encoding="utf-8"))
    assert "the middle square scaled to 16x16" in index["note"] and "1 look like another one" in index["note"]
    assert (index["shape"], index["channels"], index["images"], index["classes"]) == ([3, 16, 16], 3, 41, ["a", "b"])
    assert sum(part["images"] for part in index["splits"].values()) == 41
    assert index["hash"] == load("folder", {"path": str(folder), "size": 16}).hash


# ------------------------------------------------------------------------------------------------ without reading all
def test_a_start_reads_no_image_but_those_of_the_batch(packed, monkeypatch):
    """Neither hashing nor looking for the ends of the levels touches the whole."""
    monkeypatch.setattr(shards, "verify", None)
    monkeypatch.setattr(torch.Tensor, "aminmax", None)
    found = load("packed", {"path": str(packed)})
    facts = scan(found)
    assert (facts.low, facts.high) == (0.0, 1.0)


def mapped(split: Split) -> Split:
    return replace(split, mapped=True)


def test_the_fixed_draw_of_a_large_split_is_made_in_parts(monkeypatch):
    """Each has a seed of its own, the first that of a draw in memory; any order gives the same rows; the hash is of all."""
    monkeypatch.setattr(loader, "DRAWN_TOGETHER", 100)
    whole = load("digits", {"binarize": True})
    parts = Loader(replace(whole, test=mapped(whole.test)), "test")
    straight = torch.cat([batch.x for batch in parts.ordered(50)])
    assert torch.equal(straight[:100], levels.bernoulli(whole.test.values[:100], fold(0, "draw", "test")).float())
    order = torch.randperm(len(straight), generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([batch.x for batch in parts.ordered(64, indices=order)]), straight[order])
    assert parts.draw_hash == hashlib.sha256(straight.to(torch.uint8).numpy().tobytes()).hexdigest()
    assert not torch.equal(straight[:100], straight[100:200])


# ------------------------------------------------------------------------------------------------ broken shards
def test_a_truncated_longer_or_missing_shard_is_refused_at_the_start(copied):
    shard = copied / "validation.u8"
    whole = shard.read_bytes()
    for content, word in ((whole[:-1], "has"), (whole + b"x", "has"), (None, "is missing")):
        shard.unlink() if content is None else shard.write_bytes(content)
        with pytest.raises(DataError, match=f"validation.u8 {word}"):
            load("packed", {"path": str(copied)})


def test_a_changed_shard_is_found_by_data_check(copied, capsys):
    assert cli._run(["data", "check", str(copied)]) == 0
    assert capsys.readouterr().out.count("ok ") == 6
    with (copied / "train.u8").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 1]))
    load("packed", {"path": str(copied)})
    assert cli._run(["data", "check", str(copied)]) == 3
    assert "train.u8: not what was packed" in capsys.readouterr().err


def test_data_check_prints_json(packed, capsys):
    assert cli._run(["data", "check", str(packed), "--json"]) == 0
    assert all(row["ok"] for row in json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"format": "other"},
        {"classes": []},
        {"classes": [1, 2]},
        {"shape": [3, 16]},
        {"shape": [3.0, 16.0, 16.0]},
        {"shape": [12, 8, 8]},
        {"values": "real"},
        {"name": 3},
        {"hash": "0" * 64},
        {"hashes": {}},
        {"images": 7},
        {"splits": {}},
        {"splits": {"train": {"images": 1}, "test": None}},
        {"more": 1},
    ],
    ids=str,
)
def test_an_index_that_contradicts_itself_is_refused(copied, change):
    path = copied / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(DataError, match=r"index\.json"):
        load("packed", {"path": str(copied)})


def test_what_is_no_packed_set_is_refused(tmp_path, copied):
    with pytest.raises(DataError, match="does not exist"):
        load("packed", {"path": str(tmp_path / "none")})
    with pytest.raises(DataError, match="is no packed data set"):
        load("packed", {"path": str(tmp_path)})
    with pytest.raises(UsageError, match="path is empty"):
        load("packed", {"path": ""})
    (copied / "index.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"index\.json cannot be read"):
        load("packed", {"path": str(copied)})


# ------------------------------------------------------------------------------------------------ writing
class Stopping(Progress):
    """Ctrl-C at the n-th image of a stage."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage, self.at, self.now, self.done = stage, at, "", 0

    def start(self, stage: str, total: int) -> None:
        self.now, self.done = stage, 0

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units
        if self.now == self.stage and self.done >= self.at:
            raise KeyboardInterrupt


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["decoding", "comparing", "packing"])
def test_an_interrupted_pack_leaves_nothing_and_can_be_done_again(folder, packed, tmp_path, stage):
    with pytest.raises(KeyboardInterrupt):
        pack(f"folder:{folder}", tmp_path / "out", progress=Stopping(stage, 20), size=16)
    assert left(tmp_path) == []
    pack(f"folder:{folder}", tmp_path / "out", size=16)
    assert (tmp_path / "out" / "train.u8").read_bytes() == (packed / "train.u8").read_bytes()
    assert left(tmp_path) == ["out"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    (tmp_path / ".out.packing").mkdir()
    (tmp_path / ".out.packing" / "train.u8").write_bytes(b"half")
    (tmp_path / ".out.packing.lock").touch()
    pack("digits", tmp_path / "out")
    assert left(tmp_path) == ["out"]
    assert all(check.ok for check in shards.verify(tmp_path / "out"))


def test_two_processes_do_not_pack_the_same_place(tmp_path):
    with shards.new_folder(tmp_path / "out"):
        with pytest.raises(UsageError, match="another process is packing"):
            pack("digits", tmp_path / "out")
        assert (tmp_path / ".out.packing").is_dir()


def test_an_out_that_exists_is_refused_and_kept(tmp_path, packed):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out in (tmp_path, tmp_path / "file", packed):
        with pytest.raises(UsageError, match="exists already"):
            pack("digits", out)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    with pytest.raises(UsageError, match="exists already"), shards.new_folder(tmp_path / "late"):
        (tmp_path / "late").mkdir()
    assert left(tmp_path) == ["file", "late"]


def test_the_room_is_looked_at_first(folder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    for name in (f"folder:{folder}", "digits"):
        with pytest.raises(UsageError, match="GB free, and packing needs up to"):
            pack(name, tmp_path / "out")
    assert left(tmp_path) == []


@posix
@pytest.mark.parametrize("limit", [3000, 20_000])
def test_a_disk_that_fills_up_leaves_nothing(folder, tmp_path, limit):
    """A file may not grow beyond `limit`: neither the decoded images fit, or else not the largest shard."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UsageError, match="out cannot be written"):
            pack(f"folder:{folder}", tmp_path / "out", size=16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left(tmp_path) == []


def test_unreadable_images_are_reported_as_a_folder_reports_them(tmp_path):
    said: list[str] = []
    pictures(tmp_path / "images", 99, bad=1)
    pack(f"folder:{tmp_path / 'images'}", tmp_path / "out", Access(say=said.append))
    assert "skipped: bad-0.png: no JPEG, PNG or WebP" in said
    assert "1 skipped: bad-0.png" in load("packed", {"path": str(tmp_path / "out")}).note
    (tmp_path / "images" / "worse.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"2 of 102 images .* cannot be read"):
        pack(f"folder:{tmp_path / 'images'}", tmp_path / "more")
    assert left(tmp_path) == ["images", "out"]


def test_what_holds_no_uint8_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match="linear_gaussian cannot be packed"):
        pack("linear_gaussian", tmp_path / "out")
    with pytest.raises(ValueError, match="refused for train"):
        shards.Writer(tmp_path, (1, 2, 2)).add("train", np.zeros((3, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="class number"):
        shards.Writer(tmp_path, (1, 2, 2), ("a", "b")).add("train", np.zeros((3, 1, 2, 2), np.uint8))


# ------------------------------------------------------------------------------------------------ runs
@posix
def test_a_run_goes_on_with_data_that_were_moved(packed, tmp_path, monkeypatch):
    """To the same bits; a folder of other data under that name is refused."""

    class Interrupting(Progress):
        done = 0

        def advance(self, units: int = 1, note: str = "") -> None:
            self.done += units
            if self.done == 6:
                os.kill(os.getpid(), signal.SIGINT)

    here, there = shutil.copytree(packed, tmp_path / "here"), tmp_path / "there"
    config = resolve("vae", [f"data=packed:{here}", *SMALL]).config
    straight = train(config, out=tmp_path / "straight", device="cpu")
    with pytest.raises(InterruptedRun):
        train(config, out=tmp_path / "run", device="cpu", progress=Interrupting())
    there.mkdir()
    here.rename(there / "here")
    with pytest.raises(DataError, match="here does not exist"):
        resume(tmp_path / "run", device="cpu")
    other = tmp_path / "other" / "here"
    pack("digits", other)
    with pytest.raises(DataError, match="not those of"):
        resume(tmp_path / "run", access=Access(data_dir=other), device="cpu")
    run = resume(tmp_path / "run", access=Access(data_dir=there), device="cpu")
    assert (run.path / "metrics.jsonl").read_bytes() == (straight.path / "metrics.jsonl").read_bytes()
    state = runs.load_weights(run.path / "weights.safetensors").state_dict()
    assert all(torch.equal(value, state[key]) for key, value in straight.model().state_dict().items())


# ------------------------------------------------------------------------------------------------ command line
def test_the_words_of_the_command_line(folder, packed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert resolve("vae", ["data=packed:my set"]).config.data.to_dict() == {
        "name": "packed",
        "path": str(tmp_path / "my set"),
    }
    assert cli._run(["data", "pack", f"folder:{folder}", "my set", "size=16"]) == 0
    printed = capsys.readouterr()
    assert "41 images of 3 x 16 x 16" in printed.out and "'data=packed:my set'" in printed.out
    assert "reading 41 images" in printed.err
    assert (tmp_path / "my set" / "train.u8").read_bytes() == (packed / "train.u8").read_bytes()
    assert cli._run(["data", "pack", "digits", "json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1797
    assert cli._run(["data", "pack", "--help"]) == 0
    assert "data=packed:OUT" in capsys.readouterr().out
    for words, code in (
        (["digits", "json"], 2),
        (["digits", "x", "size=8"], 2),
        (["dgits", "x"], 2),
        ([f"folder:{tmp_path}/0", "x"], 3),
    ):
        assert cli._run(["data", "pack", *words]) == code, words
