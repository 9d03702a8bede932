"""`train folder:PATH` without a preset: what is chosen, that the printed command is the run, and what a small folder is told."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diabolo import choices, cli, evaluation, report, runs
from diabolo.choices import Facts, choose
from diabolo.config import resolve
from diabolo.data import images

torch.set_num_threads(1)

#: Overrides that make a run of a second.
SMALL = ("train.epochs=1", "model.encoder.width=4", "model.decoder.width=4", "data.size=16")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def say(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli._run([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def quick(monkeypatch):
    """Evaluations with few draws."""
    few = partial(evaluation.Settings, k=5, curve_k=(1, 5), elbo_samples=2)
    monkeypatch.setattr(evaluation, "Settings", few)


def folder_of(path: Path, count: int, side: int = 20, channels: int = 3) -> Path:
    """Different images: noise around a level of its own."""
    generator = np.random.default_rng(0)
    path.mkdir(parents=True)
    for i in range(count):
        shape = (side, side, 3) if channels == 3 else (side, side)
        levels = generator.integers(0, 100, shape) + 150 * i // count
        Image.fromarray(levels.astype(np.uint8)).save(path / f"{i:03d}.png")
    return path


def command(err: str) -> list[str]:
    """The words of the command that was printed, without `diabolo`."""
    (line,) = [line for line in err.splitlines() if line.startswith("  diabolo train ")]
    return shlex.split(line)[1:]


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(path / "weights.safetensors") for path in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------ the choice
@pytest.mark.parametrize(
    ("facts", "latent", "width", "batch", "epochs"),
    [
        ((12, 32, 1), 32, 16, 16, 100),
        ((200, 64, 3), 64, 16, 16, 100),
        ((200, 256, 3), 128, 8, 16, 100),
        ((500, 64, 3), 64, 32, 32, 100),
        ((1_000, 64, 3), 64, 32, 32, 100),
        ((10_000, 64, 1), 64, 32, 32, 12),
        ((60_000, 32, 3), 32, 32, 32, 2),
        ((300_000, 64, 3), 64, 32, 32, 1),
        ((1_000, 128, 3), 128, 16, 32, 100),
        ((1_000, 512, 3), 128, 8, 32, 100),
        ((1_000, 8, 1), 16, 32, 32, 100),
    ],
)
def test_the_choice(facts, latent, width, batch, epochs):
    images, size, channels = facts
    chosen = choose(Facts(images=images, size=size, channels=channels))
    assert chosen == {
        "data.size": str(size),
        "model.latent": str(latent),
        "model.encoder.width": str(width),
        "model.decoder.width": str(width),
        "train.batch": str(batch),
        "train.epochs": str(epochs),
        "train.log_every": str(min(100, math.ceil(0.8 * images / batch))),
        "train.checkpoint_every": "250",
        "train.keep": "best",
    }


@pytest.mark.parametrize("count", [1_200, 3_000, 10_000, 30_000, 60_000])
def test_some_thousand_steps_are_taken_whatever_the_number_of_images(count):
    chosen = choose(Facts(images=count, size=64, channels=3))
    steps = int(chosen["train.epochs"]) * math.ceil(0.8 * count / int(chosen["train.batch"]))
    assert 2_000 <= steps <= 4_000


def test_the_overrides_are_accepted_by_the_preset():
    chosen = choose(Facts(images=200, size=64, channels=3))
    found = resolve(choices.PRESET, ["data=folder:x", *(f"{key}={value}" for key, value in chosen.items())]).config
    assert found.model.likelihood.name == "gaussian_optimal" and found.model.encoder.name == "conv"


# ------------------------------------------------------------------------------------------------ the command is the run
def test_the_printed_command_is_the_run_to_the_bit(say, quick, tmp_path, monkeypatch):
    reads: list[str] = []
    read = images.read_folder
    monkeypatch.setattr(images, "read_folder", lambda *words: (reads.append(words[0]), read(*words))[1])
    root = folder_of(tmp_path / "it's my :cat: \u732b $HOME", 30)
    code, out, err = say("train", f"folder:{root.name}", *SMALL, "model.latent=3", "--out", "one", "--device", "cpu")
    assert code == 0, err
    assert "chosen for 30 RGB images of 16x16" in err and Path("one/report.html").is_file() and "report: one" in out
    assert reads == [str(root)], "the folder is read once: to choose, to train, to evaluate and to report"
    words = command(err)
    assert words[1] == "conv-vae" and f"data=folder:{root}" in words and "train.batch=16" in words
    monkeypatch.chdir(root)  # the command may be given anywhere
    code, _, err = say(*words, "--out", tmp_path / "two", "--device", "cpu", "--no-evaluate")
    assert code == 0, err
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
    assert same_weights(one, two)
    assert runs.Run(one).env["data"] == runs.Run(two).env["data"]


def test_a_word_of_the_user_wins(say, tmp_path):
    root = folder_of(tmp_path / "images", 12)
    code, out, _ = say("config", f"folder:{root}", "model.latent=8", "train.batch=5", "--json")
    found = json.loads(out)
    assert code == 0 and (found["model"]["latent"], found["train"]["batch"], found["preset"]) == (8, 5, "conv-vae")
    assert (found["train"]["epochs"], found["data"]["size"]) == (100, 32), "what was not said is chosen"


def test_a_part_of_another_kind_gets_none_of_the_choice_for_the_old(say, tmp_path):
    root = folder_of(tmp_path / "images", 12)
    code, out, err = say("config", f"folder:{root}", "model.encoder=mlp", "model.decoder=layer", "--json")
    assert code == 0, err
    found = json.loads(out)["model"]
    assert found["encoder"] == {"name": "mlp", "width": 400, "depth": 2, "activation": "relu", "slope": 0.01}
    assert found["decoder"] == {"name": "layer", "activation": "sigmoid"}


def test_config_shows_the_choice_and_its_origins_without_torch(tmp_path):
    folder_of(tmp_path / "images", 12, channels=1)
    code = "import sys; from diabolo.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "config", "folder:images", "model.latent=8"],
        capture_output=True, text=True, encoding="utf-8", check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "12 grey images of 32x32" in done.stderr and "model.latent=8" in command(done.stderr)
    origins = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[1:]}
    assert (origins["data.size"], origins["train.epochs"], origins["model.latent"]) == ("chosen", "chosen", "override")
    assert origins["train.lr"] == "conv-vae" and origins["data.colour"] == "default"


def test_seeds_make_a_run_each_and_a_run_goes_on(say, tmp_path, monkeypatch):
    root = folder_of(tmp_path / "images", 12)
    words = ("train", f"folder:{root}", *SMALL, "--no-evaluate", "--device", "cpu")
    assert say(*words, "seed=0,1", "--out", "both")[0] == 0
    assert say(*words, "seed=1")[0] == 0
    assert same_weights(Path("both/seed-1"), Path("runs/conv-vae-1"))
    assert not same_weights(Path("both/seed-0"), Path("both/seed-1"))
    status = Path("both/seed-0/status.json")
    status.write_text(status.read_text(encoding="utf-8").replace("finished", "interrupted"), encoding="utf-8")
    code, _, err = say("train", "--resume", "both/seed-0", "--no-evaluate", "--device", "cpu")
    assert code == 0, err
    code, _, err = say("train", f"folder:{root}", "--resume", "both/seed-0")
    assert code == 2 and "as it is" in err


# ------------------------------------------------------------------------------------------------ few images
def test_a_small_folder_is_warned_of_memorising(say, quick, tmp_path):
    root = folder_of(tmp_path / "images", 12)
    logging.getLogger("diabolo").addHandler(handler := cli._Warnings(logging.WARNING))  # as main() does
    code, _, err = say("train", f"folder:{root}", *SMALL, "--out", "run", "--device", "cpu")
    logging.getLogger("diabolo").removeHandler(handler)
    assert code == 0, err
    splits = runs.Run("run").env["data"]["splits"]
    expected = f"12 images are few: the model will memorise the {splits['train']} it trains on"
    assert f"warning: {expected}" in err and "held-out loss" in err
    assert min(splits.values()) >= 2, "a standard error needs two"
    assert expected in Path("run/log.txt").read_text(encoding="utf-8")
    assert expected in runs.Run("run").env["data"]["warning"]
    assert expected in Path("run/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("count", "warned"), [(99, True), (100, False)])
def test_a_hundred_images_are_the_border(say, tmp_path, count, warned):
    root = folder_of(tmp_path / "images", count, side=8)
    assert say("train", f"folder:{root}", *SMALL, "--out", "run", "--device", "cpu", "--no-evaluate")[0] == 0
    assert ("memorise" in Path("run/log.txt").read_text(encoding="utf-8")) == warned


def test_a_folder_too_small_to_be_measured_is_trained_and_kept(say, tmp_path):
    root = folder_of(tmp_path / "images", 4)
    words = ("train", f"folder:{root}", *SMALL, "--out", "run", "--device", "cpu")
    code, out, err = say(*words)
    assert code == 0, err
    assert "not evaluated" in err and "no standard error" in err and "run: run" in out and "report" not in out
    assert runs.Run("run").status["state"] == "finished" and not Path("run/report.html").exists()
    (line,) = [line for line in err.splitlines() if "diabolo reconstruct" in line]  # a warning may stand there, too
    assert say(*shlex.split(line.partition("diabolo ")[2]))[0] == 0
    code, out, _ = say(*words[:-4], "--out", "again", "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["again"]["state"] == "finished"


# ------------------------------------------------------------------------------------------------ refusals
def test_what_cannot_serve_is_refused_and_nothing_is_made(say, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for i in range(5):
        (tmp_path / "broken" / f"{i}.png").write_bytes(b"no image")
    folder_of(tmp_path / "two", 2)
    before = sorted(tmp_path.rglob("*"))
    for name, said in (("none", "does not exist"), ("empty", "It is empty"), ("broken", "no JPEG"), ("two", "3 are")):
        code, out, err = say("train", f"folder:{name}")
        assert (code, out) == (3, ""), err
        assert said in err and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["folder:"], "Name the folder"),
        (["folder:images", "data=mnist"], "both name the data"),
        (["folder:images", "data.path=x"], "both name the data"),
        (["folder:images", "model.latnet=3"], 'Did you mean "model.latent"?'),
        (["folder:images", "seed=0,x"], "a whole number"),
        (["folder:images", "data.size=7"], "from 8 to 512"),
        (["folder:images", "train.epochs"], "no override"),
    ],
)
def test_a_wrong_word_is_refused_before_the_folder_is_read(say, words, said, monkeypatch):
    monkeypatch.setattr(images, "read_folder", lambda *words: pytest.fail("the folder was read"))
    code, out, err = say("train", *words)
    assert (code, out) == (2, "") and said in err, err


# ------------------------------------------------------------------------------------------------ the report
@pytest.mark.parametrize(("side", "columns", "shown"), [(32, 8, 64), (33, 4, 32), (64, 4, 32)])
def test_large_images_are_drawn_large(side, columns, shown):
    whole = torch.rand(70, 3, side, side)
    cut = report._that_fit(report.Pictures(real=whole, reconstructed=whole, generated=whole))
    panels = report._grids("x", cut)
    assert len(panels) == 3 and f"{shown} real" in panels[0].alt and f"{shown} images" in panels[2].alt
    for panel in panels:
        with Image.open(io.BytesIO(base64.b64decode(panel.image.partition(",")[2]))) as image:
            assert image.size == (columns * (side + 1) - 1, 8 * (side + 1) - 1)
        assert panel.fine == (side > 32)


def test_the_report_names_the_sigma_of_the_likelihood(say, quick, tmp_path):
    root = folder_of(tmp_path / "images", 30)
    assert say("train", f"folder:{root}", *SMALL, "--out", "run", "--device", "cpu")[0] == 0
    run = runs.Run("run")
    sigma = math.sqrt(load_file("run/weights.safetensors")["likelihood.variance"].item())
    assert run.evaluation()["about"]["sigma"] == sigma
    assert f"gaussian_optimal with sigma = {sigma:.4g}" in (page := Path("run/report.html").read_text(encoding="utf-8"))
    assert "data: folder, RGB pixels" in page and "30 images read as RGB levels" in page
