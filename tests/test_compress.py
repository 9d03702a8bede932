"""compress and decompress: what comes back is what was encoded, by any process, and only with the weights that made it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from diabolo import cli, compression, data, inspection, training
from diabolo.coding import codec as codecs
from diabolo.coding.container import unpack
from diabolo.config import resolve
from diabolo.data import Loader
from diabolo.errors import DataError, UsageError
from diabolo.runs import Run, sha256
from known import tiny_images, tiny_vectors

torch.set_num_threads(1)
SMALL = ["model.latent=3", "model.encoder.width=8", "model.decoder.width=8", "train.curve=none", "train.keep=last"]
POINT = ["model.posterior=dirac", "model.prior=none", "objective=reconstruction"]


def made(path, *overrides, data=None):
    given = ["data=tensor"] if data is not None else []
    config = resolve("vae", [*SMALL, *given, *overrides]).config
    return training.train(config, out=path, data=data, device="cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return made(tmp_path_factory.mktemp("digits") / "run", "train.epochs=20")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An autoencoder without a spread on the same data."""
    return made(tmp_path_factory.mktemp("plain") / "run", "train.epochs=3", *POINT)


@pytest.fixture
def copied(digits, tmp_path):
    return Run(shutil.copytree(digits.path, tmp_path / "copied"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stored(digits):
    """The test split as it is stored, (N, 1, 8, 8) uint8."""
    return data.load("digits", digits.config.data.params).test.values.numpy()


def say(*words):
    return cli._run([str(word) for word in words])


def symbols_of(run, path):
    """What a file holds, and what the run's codec makes of the test split."""
    container = unpack(path.read_bytes())
    codec = codecs.from_json(compression.codec_path(run, container.bits).read_bytes(), "codec")
    means = compression.codes(run.model(), inspection.examples(run, None, "test").loader())[0]
    return codec.decode(container.stream, container.count), codec.quantiser.symbols(means)


# ------------------------------------------------------------------------------------------------ there and back
@pytest.mark.parametrize("words", [(), ("--bits", "1"), ("--bits", "6"), ("--bits", "12")])
def test_what_comes_back_is_the_quantised_code(words, copied, tmp_path):
    assert say("compress", copied.path, "t.dia", "--split", "test", "--device", "cpu", *words) == 0
    found, wanted = symbols_of(copied, tmp_path / "t.dia")
    assert np.array_equal(found, wanted) and len(np.unique(found)) > 1
    assert say("decompress", copied.path, "t.dia", "t.npy", "--device", "cpu") == 0
    codec = codecs.from_json(next(copied.path.glob("codec-*.json")).read_bytes(), "codec")
    z = torch.from_numpy(codec.quantiser.points(found)).float()
    mean = copied.model().decode(z[None]).mean[0].detach()
    assert np.abs(np.load("t.npy") - 255 * mean.clamp(0, 1).numpy()).max() < 0.501


def test_what_is_said_is_what_is_there(copied, stored, tmp_path, capsys):
    assert say("compress", copied.path, "t.dia", "--bits", "4", "--json", "--device", "cpu") == 0
    said = json.loads(capsys.readouterr().out)
    content = (tmp_path / "t.dia").read_bytes()
    assert said["n"] == len(stored) and said["bytes"] == len(content)
    assert said["rate"] == pytest.approx(8 * len(content) / stored.size, rel=1e-12)
    assert said["stream_bytes"] == len(unpack(content).stream)
    assert -8 < said["stream_bytes"] - said["ideal_bytes"] < 1.01
    assert say("decompress", copied.path, "t.dia", "t.npy", "--device", "cpu") == 0
    error = np.mean(((np.load("t.npy").astype(float) - stored) / 255) ** 2)
    assert said["mse"] == pytest.approx(error, rel=1e-5)
    assert said["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-4)
    assert said["not_counted"]["codec_bytes"] == (copied.path / "codec-b4.json").stat().st_size
    assert say("compress", copied.path, "t.dia", "--overwrite", "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert (
        "not counted, and needed to decode: the weights" in out and "bits/pixel" in out and "ideal code length" in out
    )


def test_two_runs_of_the_verb_give_the_same_bytes(digits, tmp_path):
    """Codec included, which is fitted twice here."""
    for name in ("a", "b"):
        shutil.copytree(digits.path, tmp_path / name)
        for bits in ((), ("--bits", "5")):
            assert say("compress", tmp_path / name, f"{name}{len(bits)}.dia", "--device", "cpu", *bits) == 0
    for name in ("codec-sd.json", "codec-b5.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a0.dia").read_bytes() == (tmp_path / "b0.dia").read_bytes()
    assert (tmp_path / "a2.dia").read_bytes() == (tmp_path / "b2.dia").read_bytes()


def test_a_fresh_process_decodes_the_same(copied, tmp_path):
    assert say("compress", copied.path, "t.dia", "--device", "cpu") == 0
    assert say("decompress", copied.path, "t.dia", "here.npy", "--device", "cpu") == 0
    words = ["decompress", str(copied.path), "t.dia", "there.npy", "--device", "cpu"]
    subprocess.run([sys.executable, "-m", "diabolo", *words], check=True, cwd=tmp_path, timeout=120)
    assert (tmp_path / "here.npy").read_bytes() == (tmp_path / "there.npy").read_bytes()


def test_the_codec_is_fitted_once_and_to_the_training_split(copied, stored):
    np.save("one.npy", stored[:1])
    assert say("compress", copied.path, "one.npy", "one.dia", "--bits", "4", "--device", "cpu") == 0
    path = copied.path / "codec-b4.json"
    before, when = path.read_bytes(), path.stat().st_mtime_ns
    assert say("compress", copied.path, "t.dia", "--bits", "4", "--device", "cpu") == 0
    assert path.read_bytes() == before and path.stat().st_mtime_ns == when
    codec = codecs.from_json(before, "codec")
    train = data.load("digits", copied.config.data.params).train
    assert {table.total for table in codec.tables} == {len(train) + 16}


def test_the_steps_of_a_vae_are_its_deviations(copied):
    assert say("compress", copied.path, "t.dia", "--device", "cpu") == 0
    codec = codecs.from_json((copied.path / "codec-sd.json").read_bytes(), "codec")
    dataset = data.load("digits", copied.config.data.params)
    q = copied.model().encode(next(iter(Loader(dataset, "train").ordered(10_000))).x)
    assert codec.quantiser.step == pytest.approx(q.stddev.double().mean(0).detach().numpy(), rel=1e-5)


def test_a_posterior_without_a_spread_takes_six_bits(plain, tmp_path):
    assert say("compress", plain.path, "t.dia", "--device", "cpu") == 0
    assert unpack((tmp_path / "t.dia").read_bytes()).bits == 6
    found, wanted = symbols_of(plain, tmp_path / "t.dia")
    assert np.array_equal(found, wanted) and found.max() > 40
    train = Loader(data.load("digits", plain.config.data.params), "train")
    with pytest.raises(UsageError, match="no standard deviation"):
        compression.fitted(train, plain.model(), 0)


# ------------------------------------------------------------------------------------------------ what goes in and out
def test_files_images_and_folders_give_the_same_stream(copied, stored, tmp_path):
    np.save("x.npy", stored[:12])
    folder = tmp_path / "\u56fe\u7247 a"
    folder.mkdir()
    for i, image in enumerate(stored[:12, 0]):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    Image.fromarray(stored[0, 0]).save("one.png")
    np.save("one.npy", stored[:1])
    for name, source in {"f": folder, "n": "x.npy", "i": "one.png", "o": "one.npy"}.items():
        assert say("compress", copied.path, source, f"{name}.dia", "--device", "cpu") == 0
    assert (tmp_path / "f.dia").read_bytes() == (tmp_path / "n.dia").read_bytes()
    assert (tmp_path / "i.dia").read_bytes() == (tmp_path / "o.dia").read_bytes()


def test_images_come_back_as_png_files_too(copied, stored, tmp_path):
    np.save("x.npy", stored[:12])
    assert say("compress", copied.path, "x.npy", "x.dia", "--device", "cpu") == 0
    assert say("decompress", copied.path, "x.dia", "back.npy", "--device", "cpu") == 0
    assert say("decompress", copied.path, "x.dia", "back", "--device", "cpu") == 0
    files = sorted((tmp_path / "back").iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(12)]
    levels = np.stack([np.asarray(Image.open(file)) for file in files])
    assert np.array_equal(levels[:, None], np.load("back.npy")) and levels.std() > 10
    assert say("decompress", copied.path, "x.dia", "back", "--device", "cpu") == 2, "it is not empty"
    assert not list(tmp_path.glob(".*"))


def test_a_large_photograph_is_scaled_and_that_is_said(copied, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save("photo.jpg")
    assert say("compress", copied.path, "photo.jpg", "p.dia", "--device", "cpu") == 0
    assert "scaled to 8x8" in capsys.readouterr().out


def test_colour_images_come_back_in_colour(tmp_path):
    run = made(tmp_path / "run", "train.epochs=1", data=tiny_images(60, (3, 8, 8)))
    train, test = (Loader(tiny_images(60, (3, 8, 8)), split) for split in ("train", "test"))
    codec = compression.fitted(train, run.model(), 4)
    (run.path / "codec-b4.json").write_bytes(codecs.fit(codec.quantiser, *_codes(run, train)).to_json())
    Image.fromarray(test.values[0].numpy().transpose(1, 2, 0)).save("c.png")
    assert say("compress", run.path, "c.png", "c.dia", "--bits", "4", "--device", "cpu") == 0
    assert say("decompress", run.path, "c.dia", "c", "--device", "cpu") == 0
    with Image.open("c/000000.png") as image:
        assert image.mode == "RGB" and np.asarray(image).shape == (8, 8, 3)


def _codes(run, loader):
    return compression.codes(run.model(), loader)[0], _weights(run)


def _weights(run):
    return sha256(run.path / "weights.safetensors")


def test_vectors_come_back_as_real_numbers(tmp_path, capsys):
    vectors = tiny_vectors(60)
    run = made(tmp_path / "run", "train.epochs=1", "model.likelihood=gaussian", data=vectors)
    np.save("x.npy", vectors.test.values.numpy())
    assert say("compress", run.path, "x.npy", "x.dia", "--device", "cpu") == 3, "the training split was in memory"
    train = Loader(vectors, "train")
    (run.path / "codec-b5.json").write_bytes(compression.fitted(train, run.model(), 5, _weights(run)).to_json())
    assert say("compress", run.path, "x.npy", "x.dia", "--bits", "5", "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert "bits/value" in out and "PSNR" not in out
    assert say("decompress", run.path, "x.dia", "back.npy", "--device", "cpu") == 0
    back = np.load("back.npy")
    assert back.dtype == np.float32 and back.shape == (12, 16)
    assert say("decompress", run.path, "x.dia", "folder", "--device", "cpu") == 2
    Image.new("L", (4, 4)).save("i.png")
    assert say("compress", run.path, "i.png", "i.dia", "--bits", "5") == 3
    assert not (tmp_path / "folder").exists() and not (tmp_path / "i.dia").exists()


# ------------------------------------------------------------------------------------------------ refused
@pytest.fixture
def compressed(copied, tmp_path):
    assert say("compress", copied.path, "t.dia", "--bits", "3", "--device", "cpu") == 0
    return tmp_path / "t.dia"


def refused(run, capsys, *words):
    capsys.readouterr()
    assert say("decompress", run.path, "t.dia", "t.npy", "--device", "cpu") == 3
    err = capsys.readouterr().err
    assert all(word in err for word in words) and "Traceback" not in err and "internal" not in err, err


def test_damaged_files_are_refused(copied, compressed, tmp_path, capsys):
    content = compressed.read_bytes()
    for at in (*range(0, 80, 5), len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[at] ^= 4
        compressed.write_bytes(flipped)
        refused(copied, capsys, "t.dia")
    for wrong in (b"", content[:-1], content[: len(content) // 2], content + b"\0", content[9:]):
        compressed.write_bytes(wrong)
        refused(copied, capsys, "t.dia")
    compressed.unlink()
    refused(copied, capsys, "t.dia")
    assert not (tmp_path / "t.npy").exists()


def test_other_weights_are_refused(copied, compressed, plain, capsys):
    refused(plain, capsys, "not made with the weights")
    weights = copied.path / "weights.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-3] ^= 1
    weights.write_bytes(changed)
    refused(copied, capsys, "not made with the weights")
    assert say("compress", copied.path, "u.dia", "--bits", "3", "--device", "cpu") == 3
    assert "fitted to other weights" in capsys.readouterr().err


def test_another_codec_is_refused(copied, compressed, capsys):
    path = copied.path / "codec-b3.json"
    sound = json.loads(path.read_bytes())
    sound["frequencies"][0][0] += 1
    path.write_text(json.dumps(sound), encoding="utf-8")
    refused(copied, capsys, "another codec")
    path.write_text("{", encoding="utf-8")
    refused(copied, capsys, "codec-b3.json is no codec")
    path.unlink()
    refused(copied, capsys, "codec-b3.json does not exist")


def test_a_stream_of_too_few_symbols_is_refused_although_signed(copied, compressed, capsys):
    container = unpack(compressed.read_bytes())
    for change in ({"count": 1_000_000}, {"stream": container.stream[:40]}, {"shape": (1, 4, 16)}):
        compressed.write_bytes(replace(container, **change).pack())
        refused(copied, capsys, "t.dia")


@pytest.mark.parametrize(
    "words",
    [
        ("compress", "{}"),
        ("compress", "{}", "t.txt"),
        ("compress", "{}", "x.npy", "t.dia", "--split", "test"),
        ("compress", "{}", "t.dia", "--bits", "0"),
        ("compress", "{}", "t.dia", "--bits", "13"),
        ("compress", "{}", "there.dia"),
        ("decompress", "{}", "there.dia"),
        ("decompress", "{}", "there.dia", "t.png"),
        ("decompress", "{}", "there.dia", "there.npy"),
    ],
)
def test_wrong_words_are_refused_before_torch_is_asked(words, digits, tmp_path, capsys):
    for name in ("there.dia", "there.npy"):
        (tmp_path / name).write_text("precious", encoding="utf-8")
    assert say(*(word.format(digits.path) for word in words)) == 2
    assert (tmp_path / "there.dia").read_text(encoding="utf-8") == "precious"
    assert (tmp_path / "there.npy").read_text(encoding="utf-8") == "precious"


def test_no_run_and_no_file(digits, capsys):
    assert say("compress", "nowhere", "x.npy", "t.dia") == 3
    assert say("compress", digits.path, "x.npy", "t.dia") == 3
    assert say("decompress", digits.path, "t.dia", "t.npy") == 3


def test_a_file_of_no_examples_gives_none(copied, compressed, tmp_path):
    empty = replace(unpack(compressed.read_bytes()), count=0, stream=b"")
    compressed.write_bytes(empty.pack())
    assert say("decompress", copied.path, "t.dia", "t.npy", "--device", "cpu") == 0
    assert np.load("t.npy").shape == (0, 1, 8, 8)


def test_pictures_cannot_be_made_of_what_is_none(tmp_path):
    for wrong in (np.zeros((2, 16), np.uint8), np.zeros((2, 2, 4, 4), np.uint8), np.zeros((2, 1, 4, 4), np.float32)):
        with pytest.raises(UsageError, match="no pictures"):
            compression.write_images(tmp_path / "out", wrong)


def test_too_many_examples_are_refused(digits, monkeypatch, tmp_path):
    monkeypatch.setattr("diabolo.coding.container.MAX_VALUES", 1000)
    with pytest.raises(DataError, match="too many"):
        compression.compress(digits, inspection.examples(digits, None, "test"), tmp_path / "t.dia")
