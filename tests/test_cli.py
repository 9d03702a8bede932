"""The command line, the chapter and the library's front door: exit codes, what is printed where, what is used again."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

import diabolo
from diabolo import cli, registry, runs, training
from diabolo.chapters import mnist as chapter
from diabolo.config import COMPONENTS, RunConfig, resolve
from diabolo.data import Dataset, from_tensor
from diabolo.data.catalogue import COLLECTIONS
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings
from diabolo.models.autoencoder import Autoencoder
from diabolo.progress import Progress
from one_process import one_after_another
from undrawn import undrawn

torch.set_num_threads(1)

#: A training of seconds, and an evaluation of less.
QUICK = ("train", "vae", "train.epochs=2", "--device", "cpu")
SMALL = ("--k", "7", "--images", "20", "--elbo-samples", "2", "--device", "cpu")
#: A training and an evaluation of less still, where nothing depends on either.
SMOKE = ("train", "vae", "--smoke", "--device", "cpu")
#: A learning rate whose first step makes every later loss infinite.
EXPLODING = ("train", "vae", "train.lr=1e30", "--device", "cpu", "--no-evaluate")
VERBS = ("reproduce", "train", "evaluate", "sample", "report", "list", "config", "doctor", "data")


@dataclasses.dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as strict JSON: one value, no NaN, nothing else."""
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.fixture
def say(capsys) -> Callable[..., Result]:
    """Run a command in this process."""

    def run(*words: object) -> Result:
        capsys.readouterr()
        code = cli._run([str(word) for word in words])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands write below the working directory: give each test its own, and no fault of the user's environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIABOLO_DEBUG", raising=False)


def process(*words: object, cwd: Path, code: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`python -m diabolo` (or `python -c code`) in a process of its own; bytes, as they leave it."""
    start = ["-c", code] if code else ["-m", "diabolo"]
    return subprocess.run(
        [sys.executable, *start, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
    """A run with a name that is neither ASCII nor one word, made by a process whose output is ASCII."""
    folder = tmp_path_factory.mktemp("trained")
    name = "vae \u00fcber \u8fd0\u884c"
    done = process(*QUICK, "--out", name, cwd=folder, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr.decode()
    return folder / name, done


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """The trained run, to be spoilt."""
    return Path(shutil.copytree(trained[0], tmp_path / "copied"))


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file's bytes and time of change."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def short(err: str) -> None:
    """An error is what, why, remedy after whatever progress was told: three lines, no traceback."""
    told, sign, message = err.partition("error: ")
    assert sign and (not told or told.endswith("\n")), err
    assert len([line for line in message.splitlines() if line]) <= 3, err
    assert "Traceback" not in err


# ------------------------------------------------------------------------------------------------ torch stays out
WITHOUT_TORCH: list[tuple[int, list[str]]] = [
    *((0, [verb, "--help"]) for verb in VERBS),
    *((0, ["data", verb, "--help"]) for verb in ("get", "list", "verify", "export", "check", "pack")),
    *(
        (0, words)
        for words in (
            ["--help"],
            ["--version"],
            ["list"],
            ["list", "--json"],
            ["data", "list"],
            ["data", "list", "--json"],
            ["reproduce"],
            ["reproduce", "--json"],
            ["config", "vae"],
            ["config", "vae", "seed=3", "--json"],
            ["data", "verify", "digits"],
        )
    ),
    *(
        (2, words)
        for words in (
            ["trian"],
            ["train", "--oot", "x"],
            ["train"],
            ["train", "veo"],
            ["train", "digits"],
            ["train", "vae", "modle.latent=2"],
            ["train", "vae", "train.epochs=half"],
            ["train", "vae", "train.epochs=0"],
            ["train", "vae", "model.prior=nonsense"],
            ["train", "vae", "seed=0,x"],
            ["train", "vae", "epochs"],
            ["train", "vae", "--data-dir", "nowhere"],
            ["train", "vae", "--import", "no_such_module"],
            ["train", "vae", "--source", "ftp"],
            ["config", "veo"],
            ["train", "vae", "--resume", "x"],
            ["reproduce", "mnits"],
            ["reproduce", "mnist", "--full", "--smoke"],
            ["evaluate"],
            ["evaluate", "x", "--split", "tset"],
            ["evaluate", "x", "--k", "many"],
            ["sample", "x", "--n", "0"],
            ["sample", "x", "--temperature", "nan"],
            ["data", "get", "mnits"],
            ["data", "verify", "mnits"],
            ["data", "pack", "mnits", "x"],
            ["data", "pack", "digits", "."],
        )
    ),
    *(
        (3, words)
        for words in (
            ["evaluate", "missing"],
            ["report", "missing"],
            ["sample", "missing"],
            ["train", "--resume", "missing"],
            ["train", "missing/config.json"],
            ["data", "get", "mnist", "--offline"],
            ["data", "verify", "mnist"],
        )
    ),
]
_WATCH = """
import contextlib, io, json, sys
from diabolo import cli
for expected, words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli._run(words)
    heavy = sorted({"torch", "sklearn", "matplotlib", "jinja2"} & set(sys.modules))
    if heavy or code != expected:
        sys.exit(f"{words}: exit {code}, not {expected}; imported {heavy}; {err.getvalue()}")
"""


def test_help_listings_and_refusals_import_nothing_heavy(tmp_path):
    done = process(
        json.dumps(WITHOUT_TORCH),
        cwd=tmp_path,
        code=_WATCH,
        DIABOLO_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr.decode()


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train vea", 'Did you mean "vae"?'),
        ("train digits", "diabolo train vae data=digits"),
        ("train linear_gaussian", "diabolo train vae data=linear_gaussian"),
        ("train vae model.latnet=3", 'Did you mean "model.latent"?'),
        ("train vae objective=elob", 'Did you mean "elbo"?'),
        ("train vae data=mnits", 'Did you mean "mnist"?'),
        ("train vae train.epochs=few", "a whole number"),
        ("train vae train.keep=bets", "best, last"),
        ("train", "diabolo train vae"),
        ("reproduce mnits", 'Did you mean "mnist"?'),
        ("data get mnits", 'Did you mean "mnist"?'),
        ("evaluate missing", "diabolo train vae"),
        ("evaluat missing", "evaluate"),
        ("train vae --ofline", "--offline"),
    ],
)
def test_a_refusal_says_what_to_do(words, said, say):
    result = say(*words.split())
    assert result.code in {2, 3}
    assert result.out == ""
    assert said in result.err
    assert list(Path.cwd().iterdir()) == []
    short(result.err)


def test_what_the_data_s_name_is_answered_with_runs(say, tmp_path):
    answer = say("train", "digits").err
    command = re.search(r"diabolo (train \S+ data=digits)", answer)
    assert command
    result = say(*command[1].split(), "train.epochs=1", "--no-evaluate", "--device", "cpu", "--out", tmp_path / "run")
    assert result.code == 0, result.err


def test_an_existing_run_is_never_overwritten(trained, say):
    before = contents(trained[0])
    result = say(*QUICK, "--out", trained[0])
    assert result.code == 2
    assert f"--resume {trained[0]}" in result.err.replace("'", "")
    short(result.err)
    assert contents(trained[0]) == before


def test_a_place_that_cannot_be_written_is_a_usage_error(say, trained, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for words in (
        (*QUICK, "--out", "file"),
        (*QUICK, "--out", "file/run"),
        ("sample", trained[0], "--out", "file/samples.png"),
        ("data", "export", "digits", "file"),
    ):
        result = say(*words)
        assert result.code == 2, (words, result)
        assert "file" in result.err
        short(result.err)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "tpu", "gpu", "cpu:99"])
def test_a_device_asked_for_by_name_is_never_replaced(device, say, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    result = say("train", "vae", "train.epochs=1", "--device", device, "--out", "run", "--no-evaluate")
    assert result.code == 2, result.err
    assert device in result.err
    short(result.err)
    assert not Path("run").exists()


def test_a_model_that_cannot_score_the_data_is_refused_before_a_run_is_made(say):
    result = say("train", "vae", "model.likelihood=bernoulli", "--out", "run", "--device", "cpu")
    assert result.code == 2
    assert "data.binarize=true" in result.err
    assert not Path("run").exists()


def test_an_internal_error_is_1_and_debug_shows_where(say, monkeypatch):
    def planted() -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(cli.configuration, "preset_names", planted)
    result = say("list")
    assert result.code == 1
    assert "planted" in result.err and "--debug" in result.err and "Traceback" not in result.err
    for tokens in (("list", "--debug"), ("--debug", "list")):
        debugged = say(*tokens)
        assert debugged.code == 1
        assert "Traceback" in debugged.err and "def planted" not in debugged.err and "in planted" in debugged.err
    monkeypatch.setenv("DIABOLO_DEBUG", "1")
    assert "Traceback" in say("list").err


def test_debug_shows_where_a_user_s_error_arose(say):
    assert "Traceback" in say("train", "veo", "--debug").err
    assert "Traceback" not in say("train", "veo").err


# ------------------------------------------------------------------------------------------------ data and runs that are wrong
@pytest.mark.parametrize(
    "words",
    [
        ("train", "mnist", "--offline"),
        ("train", "mnist-grey", "--offline"),
        ("data", "get", "mnist", "--offline"),
        ("reproduce", "mnist", "--offline", "--yes"),
        ("data", "export", "mnist", "out", "--offline"),
    ],
)
def test_missing_data_name_files_sizes_hashes_folder_and_what_works_now(words, say, monkeypatch, tmp_path):
    monkeypatch.setenv("DIABOLO_CACHE_DIR", str(tmp_path / "empty"))
    result = say(*words)
    assert result.code == 3
    assert result.out == ""
    for file in COLLECTIONS["mnist"].files:
        assert file.name in result.err
        assert str(file.gz_size) in result.err.replace(",", "") or str(file.size) in result.err.replace(",", "")
        assert file.sha256[:12] in result.err or file.gz_sha256[:12] in result.err
    assert str(tmp_path / "empty") in result.err
    assert "diabolo train vae data=digits" in result.err
    assert not list(tmp_path.rglob("config.json"))


def spoilt(content: bytes) -> dict[str, bytes]:
    """Ways in which a file goes bad."""
    return {
        "empty": b"",
        "cut": content[:-10],
        "zeros": bytes(len(content)),
        "no JSON": b"\xff\xfe not JSON\n",
        "a list": b"[1, 2]\n",
        "another object": b'{"a": {"b": 1}}\n',
        "a number": b"3\n",
    }


READERS = {
    "config.json": ("evaluate", "report", "resume"),
    "env.json": ("evaluate", "report", "resume"),
    "metrics.jsonl": ("report",),
    "timing.jsonl": ("report",),
    "evaluation.json": ("report",),
    "per_image.safetensors": ("report",),
    "weights.safetensors": ("evaluate", "report", "sample"),
}


def commands(run: Path) -> dict[str, tuple[object, ...]]:
    return {
        "evaluate": ("evaluate", run, *SMALL),
        "report": ("report", run),
        "sample": ("sample", run),
        "resume": ("train", "--resume", run, "--device", "cpu", "--no-evaluate"),
    }


@pytest.mark.parametrize(("file", "verb"), [(file, verb) for file, verbs in READERS.items() for verb in verbs])
def test_a_spoilt_file_of_a_run_is_a_data_error_with_its_name(file, verb, copied, say):
    """Never an internal error, and never a result made of what is left."""
    content = (copied / file).read_bytes()
    wrong = []
    if verb == "resume":
        (copied / "status.json").write_text('{"state": "interrupted"}', encoding="utf-8")
    for kind, bad in {**spoilt(content), "missing": None}.items():
        if bad is None:
            (copied / file).unlink()
        else:
            (copied / file).write_bytes(bad)
        result = say(*commands(copied)[verb])
        if result.code != 3 or file not in result.err and not (file == "config.json" and bad is None):
            wrong.append(f"{kind}: exit {result.code}: {result.err}")
    assert not wrong, "\n".join(wrong)


def test_data_that_are_not_those_of_the_run_are_refused(copied, say):
    env = json.loads((copied / "env.json").read_text(encoding="utf-8"))
    env["data"]["hash"] = "0" * 64
    (copied / "env.json").write_text(json.dumps(env), encoding="utf-8")
    (copied / "status.json").write_text('{"state": "interrupted"}', encoding="utf-8")
    for verb in ("evaluate", "resume"):
        result = say(*commands(copied)[verb])
        assert result.code == 3, verb
        assert "000000000000" in result.err
        short(result.err)


def test_one_changed_weight_name_is_refused(copied, say):
    path = copied / "weights.safetensors"
    path.write_bytes(path.read_bytes().replace(b"encoder.layers", b"encoder.mayers"))
    result = say("evaluate", copied, *SMALL)
    assert result.code == 3
    assert "weights.safetensors" in result.err and "encoder.layers.0" in result.err


def test_divergence_is_4_and_stands_in_the_status(say, tmp_path):
    result = say(*EXPLODING, "--out", "run")
    assert result.code == 4
    assert "train.lr" in result.err
    short(result.err)
    status = runs.Run("run").status
    assert (status["state"], status["exit_code"], status["skipped"]) == ("diverged", 4, training.PATIENCE)
    weights = diabolo.load("run").state_dict()
    assert all(torch.isfinite(t).all() for t in weights.values()), "the kept state is the last good one"


class SignalAt(Progress):
    """Sends this process signals after so many steps."""

    def __init__(self, step: int, *numbers: signal.Signals) -> None:
        self.left, self.numbers = step, numbers

    def __enter__(self) -> SignalAt:
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left == 0 and units:
            for number in self.numbers:
                signal.raise_signal(number)


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((signal.SIGINT,), 130),
        ((signal.SIGTERM,), 143),
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGINT), 130),
    ],
)
def test_signals_stop_with_their_exit_code_which_stands_in_the_status(signals, code, say, monkeypatch):
    monkeypatch.setattr(cli, "_progress", lambda: SignalAt(9, *signals))
    handlers = [signal.getsignal(number) for number in signals]
    result = say(*QUICK, "train.checkpoint_every=4", "--out", "run")
    assert result.code == code
    status = runs.Run("run").status
    assert (status["state"], status["exit_code"]) == ("interrupted", code)
    assert [signal.getsignal(number) for number in signals] == handlers
    if len(signals) == 1:
        assert "diabolo train --resume run" in result.err
    monkeypatch.undo()


# ------------------------------------------------------------------------------------------------ train, evaluate, sample, report
class Cells(HTMLParser):
    """The numbers of a report by (run, metric), and every address that it names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.values: dict[tuple[str, str], float] = {}
        self.addresses: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "data-run" in given:
            self.values[given["data-run"], given["data-metric"]] = float(given["data-value"])
        self.addresses += [
            value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data"}
        ]


def test_train_prints_results_on_stdout_and_progress_on_stderr(trained):
    run, done = trained
    out, err = done.stdout.decode("ascii"), done.stderr.decode("ascii")
    name = run.name.encode("ascii", "backslashreplace").decode()
    assert f"run: {name}\n" in out
    assert f"report: {name}/report.html" in out
    assert "likelihood gaussian, n = 297" in out
    assert "epoch" not in out
    assert [line[:9] for line in err.splitlines()] == ["loss: thi", "data: val", "epoch 1/2", "epoch 2/2", "evaluatin"]
    assert "\x1b" not in out + err and "\r" not in out + err


def test_a_finished_run_holds_all_its_files_and_no_other(trained):
    names = {path.name for path in trained[0].iterdir()}
    assert names == {
        ".lock",
        "config.json",
        "env.json",
        "status.json",
        "log.txt",
        "loss_card.json",
        "metrics.jsonl",
        "timing.jsonl",
        "weights.safetensors",
        "state",
        "evaluation.json",
        "per_image.safetensors",
        "report.html",
    }
    assert runs.Run(trained[0]).status["state"] == "finished"
    assert runs.Run(trained[0]).status["exit_code"] == 0
    assert "epoch 2/2" in (trained[0] / "log.txt").read_text(encoding="utf-8"), "log.txt is what was said"


def test_the_report_is_self_contained_and_shows_what_was_evaluated(trained):
    path = trained[0] / "report.html"
    page, evaluation = Cells(path), runs.Run(trained[0]).evaluation()
    assert path.stat().st_size < 5_000_000
    assert [a for a in page.addresses if not a.startswith(("#", "data:"))] == []
    assert not re.search(r"url\((?![\"']?(#|data:))|@import|<script", path.read_text(encoding="utf-8"))
    for metric in ("elbo", "log_p", "kl", "mse_mean", "mse_sample"):
        assert page.values[trained[0].name, metric] == evaluation[metric]["value"]


def test_evaluate_honours_k_and_images_and_prints_strict_json(copied, say):
    result = say("evaluate", copied, *SMALL, "--json")
    assert result.code == 0
    found = result.json
    assert found == runs.Run(copied).evaluation()
    assert (found["log_p"]["k"], found["log_p"]["n"], found["elbo"]["samples"]) == (7, 20, 2)
    assert (found["about"]["k"], found["about"]["images"], found["about"]["elbo_samples"]) == (7, 20, 2)
    assert found["elbo"]["value"] < 0 and found["elbo"]["unit"] == "nats/image"
    again = say("evaluate", copied, *SMALL, "--json").json
    assert {k: v for k, v in again.items() if k != "about"} == {k: v for k, v in found.items() if k != "about"}
    plain = say("evaluate", copied, *SMALL)
    assert f"{found['elbo']['value']:.2f}" in plain.out and "K = 7 on n = 20" in plain.out


def test_another_split_is_measured_when_asked_for(copied, say):
    found = say("evaluate", copied, *SMALL, "--split", "validation", "--json").json
    assert (found["elbo"]["split"], found["elbo"]["n"], found["about"]["split"]) == ("validation", 200, "validation")


def test_a_split_that_is_not_there_is_refused(say):
    """Without a validation split there is nothing to measure: a mistake of usage, not a fault of diabolo."""
    words = ("data.validation=0", "train.keep=last", "train.curve=none", "--no-evaluate", "--out", "run")
    assert say(*QUICK, *words).code == 0
    result = say("evaluate", "run", *SMALL, "--split", "validation")
    assert result.code == 2, result.err
    short(result.err)


@pytest.mark.parametrize("words", [("--k", "-1"), ("--images", "1"), ("--images", "-3"), ("--elbo-samples", "1")])
def test_settings_that_cannot_be_honoured_are_refused(words, copied, say):
    before = contents(copied)
    result = say("evaluate", copied, *words, "--device", "cpu")
    assert result.code == 2
    short(result.err)
    assert contents(copied) == before


@pytest.mark.parametrize("images", [0, 100_000])
def test_no_number_of_images_and_more_than_there_are_mean_all(images, copied, say):
    words = ("--k", 2, "--images", images, "--elbo-samples", 2, "--device", "cpu", "--json")
    assert say("evaluate", copied, *words).json["log_p"]["n"] == 297


def test_report_is_written_again_the_same(copied, say):
    before = (copied / "report.html").read_bytes()
    (copied / "report.html").unlink()
    result = say("report", copied)
    assert (result.code, result.out.strip()) == (0, f"report: {copied / 'report.html'}")
    again = (copied / "report.html").read_bytes()
    assert again == before.replace(trained_name().encode(), copied.name.encode())


def trained_name() -> str:
    return "vae \u00fcber \u8fd0\u884c"


def test_a_deleted_evaluation_makes_the_report_fail_and_name_the_command(copied, say):
    for file in ("evaluation.json", "per_image.safetensors"):
        kept = (copied / file).read_bytes()
        (copied / file).unlink()
        result = say("report", copied)
        assert result.code == 3
        assert f"diabolo evaluate {copied}" in result.err
        (copied / file).write_bytes(kept)


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 1, 1), (5, 3, 2), (64, 8, 8)])
def test_sample_writes_a_grid_of_the_right_size(n, columns, rows, trained, say, tmp_path):
    result = say("sample", trained[0], "--n", n, "--out", "a.png")
    assert result.code == 0
    assert "a.png" in result.out
    with Image.open("a.png") as image:
        assert image.format == "PNG"
        width, height = image.size
    margin = width - 8 * columns
    assert 0 <= margin <= 4 * (columns + 1) and 0 <= height - 8 * rows <= 4 * (rows + 1)


def test_sample_is_decided_by_seed_and_temperature(trained, say):
    def drawn(*words: object) -> bytes:
        assert say("sample", trained[0], "--n", 9, "--out", "x.png", *words).code == 0
        return Path("x.png").read_bytes()

    first = drawn()
    torch.rand(3)  # the caller's random state must not matter
    assert drawn() == first
    assert drawn("--seed", 1) != first
    assert drawn("--temperature", 3) != first


def test_sample_goes_into_the_run_by_default(copied, say):
    assert say("sample", copied).code == 0
    assert (copied / "samples.png").is_file()


def test_vectors_have_no_picture_but_everything_else(say, tmp_path):
    words = ("train", "linear-vae", "--smoke", "data.examples=400", "--device", "cpu", "--out", "run")
    result = say(*words)
    assert result.code == 0, result.err
    assert "nats/example" in result.out
    assert Path("run/report.html").is_file()
    result = say("sample", "run")
    assert result.code == 2
    short(result.err)


def test_several_seeds_make_several_runs(say):
    result = say(*QUICK, "seed=0,1", "--no-evaluate", "--out", "pair", "--json")
    assert result.code == 0, result.err
    assert sorted(result.json) == ["pair/seed-0", "pair/seed-1"]
    configs = [runs.Run(path).config for path in sorted(result.json)]
    assert [config.seed for config in configs] == [0, 1]
    a, b = (diabolo.load(path).state_dict() for path in sorted(result.json))
    assert not torch.equal(a["encoder.layers.0.weight"], b["encoder.layers.0.weight"])


def test_without_out_runs_are_numbered(say):
    for number in (1, 2):
        result = say(*QUICK, "train.epochs=1", "--no-evaluate")
        assert result.out.strip() == f"run: runs/vae-{number}"


def test_a_saved_configuration_repeats_the_run_bit_for_bit(trained, say):
    result = say("train", trained[0] / "config.json", "--device", "cpu", "--no-evaluate", "--out", "again")
    assert result.code == 0, result.err
    for name in ("config.json", "metrics.jsonl"):
        assert Path("again", name).read_bytes() == (trained[0] / name).read_bytes(), name
    same_tensors(diabolo.load(trained[0]), diabolo.load("again"))


def same_tensors(a: Autoencoder, b: Autoencoder) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_json_of_training_is_the_evaluation(say):
    result = say(*SMOKE, "--out", "run", "--json")
    assert result.json == {"run": runs.Run("run").evaluation()}


def test_nothing_is_left_to_resume_of_a_finished_run(trained, say):
    result = say("train", "--resume", trained[0])
    assert result.code == 2
    assert f"diabolo evaluate {trained[0]}" in result.err.replace("'", "")


def test_a_run_that_another_process_works_on_is_refused(copied, say):
    (copied / "status.json").write_text('{"state": "interrupted"}', encoding="utf-8")
    with FileLock(copied / ".lock"):
        result = say("train", "--resume", copied, "--device", "cpu")
    assert result.code == 2
    assert str(copied) in result.err and "another process" in result.err
    short(result.err)


# ------------------------------------------------------------------------------------------------ listings
def test_every_value_of_a_configuration_has_its_origin(say):
    result = say("config", "vae", "model.latent=3")
    assert result.code == 0
    rows = {line.split()[0]: line.split(None, 2)[1:] for line in result.out.splitlines()[1:]}
    assert [part.strip() for part in rows["model.latent"]] == ["3", "override"]
    assert [part.strip() for part in rows["train.epochs"]] == [str(resolve("vae").config.train.epochs), "preset vae"]
    assert [part.strip() for part in rows["train.ema"]] == ["0.0", "default"]
    assert rows.keys() >= {*COMPONENTS, "seed", "train.keep", "data.binarize"}
    expected = resolve("vae", ["model.latent=3"]).config.to_dict()
    assert say("config", "vae", "model.latent=3", "--json").json == json.loads(json.dumps(expected))


def test_a_saved_configuration_can_be_shown(trained, say):
    result = say("config", trained[0] / "config.json", "seed=5")
    assert result.code == 0
    assert re.search(r"train\.epochs +2 +saved", result.out)
    assert re.search(r"seed +5 +override", result.out)


def test_listings_name_everything(say):
    result = say("list")
    for name in diabolo.presets():
        assert re.search(rf"^ ?{re.escape(name)} ", result.out, re.MULTILINE), name
    listed = say("list", "--json").json
    assert sorted(listed["presets"]) == diabolo.presets()
    assert listed["components"] == {slot: registry.names(slot) for slot in registry.SLOTS}
    assert all(preset["about"]["reference"] for preset in listed["presets"].values())
    sets = say("data", "list", "--json").json
    assert {row["name"] for row in sets} == set(registry.names("dataset")) - {"tensor"}, (
        "what is in memory is nowhere to be got"
    )
    chapters = say("reproduce", "--json").json
    assert [c["name"] for c in chapters] == ["mnist", "autoencoders", "cifar10", "sharp"]
    assert chapters[0]["download"] >= COLLECTIONS["mnist"].download
    timed = [c["seconds"] for c in chapters if c["seconds"] is not None]
    assert len(timed) >= 3 and min(timed) > 60, "the measured time is shown before anything starts"


def test_doctor_describes_the_environment(say):
    found = say("doctor", "--json").json
    assert found["torch"] == torch.__version__
    assert found.keys() >= {
        "diabolo",
        "python",
        "numpy",
        "platform",
        "processor",
        "cores",
        "threads",
        "device",
        "cache",
    }
    plain = say("doctor").out
    assert all(re.search(rf"^{key} +\S", plain, re.MULTILINE) for key in found)


def test_digits_are_exported_for_other_programs(say):
    result = say("data", "export", "digits", "out", "--split", "test")
    assert result.code == 0
    assert [Path(line).name for line in result.out.split()] == ["digits-test-values.npy", "digits-test-labels.npy"]
    assert np.load("out/digits-test-values.npy").shape == (297, 1, 8, 8)
    assert say("data", "export", "digits", "out", "--split", "test").code == 2


_IN_TURN = """
import json, sys
from diabolo import cli
for expected, words in json.loads(sys.argv[1]):
    try:
        cli.main(words)
    except SystemExit as left:
        assert left.code == expected, (words, left.code)
"""


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "latin-1"])
def test_output_survives_every_encoding(encoding, trained, tmp_path):
    """A terminal of another language, a pipe, a log: what cannot be written is escaped, never a crash."""
    run = trained[0]
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    commands = [
        *((0, words) for words in (["--help"], ["train", "--help"], ["list"], ["data", "list"])),
        (3, ["evaluate", str(run / "\u03b2")]),
        (0, ["sample", str(run), "--n", "4", "--out", "\u03b2\u00e9.png"]),
    ]
    done = process(json.dumps(commands), cwd=tmp_path, code=_IN_TURN, **environment)
    done.stdout.decode(encoding)
    assert done.returncode == 0, done.stderr.decode(encoding)
    assert (tmp_path / "\u03b2\u00e9.png").is_file()


# ------------------------------------------------------------------------------------------------ a module of the user's own
LAPLACE = '''
"""A likelihood of one's own."""
from __future__ import annotations

import torch
from torch.distributions import Distribution, Independent, Laplace

from diabolo.models.likelihoods import Likelihood
from diabolo.registry import register


@register("likelihood", "my_laplace")
class MyLaplace(Likelihood):
    """Laplace(params, width)."""

    family = "laplace"

    def __init__(self, width: float = 0.25) -> None:
        super().__init__()
        self.width = width

    def forward(self, params: torch.Tensor) -> Distribution:
        return Independent(Laplace(params, self.width), params.ndim - 2)
'''


@pytest.fixture
def my_parts(tmp_path, monkeypatch):
    """A module in the working directory; what it registers is forgotten afterwards."""
    Path("my_parts.py").write_text(LAPLACE, encoding="utf-8")
    monkeypatch.setitem(registry._CATALOGUE, "likelihood", dict(registry._CATALOGUE["likelihood"]))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    path = list(sys.path)
    yield "my_parts"
    assert sys.path == path, "importing a module changed the search path for good"
    sys.modules.pop("my_parts", None)


def test_a_likelihood_of_one_s_own_is_used(my_parts, say):
    words = (*SMOKE, "model.likelihood=my_laplace", "--import", my_parts)
    result = say(*words, "model.likelihood.width=0.5", "--out", "run")
    assert result.code == 0, result.err
    assert "likelihood my_laplace" in result.out
    assert runs.Run("run").config_dict["model"]["likelihood"] == {"name": "my_laplace", "width": 0.5}
    assert runs.Run("run").evaluation()["about"]["family"] == "laplace"
    assert diabolo.load("run").likelihood.width == 0.5
    assert 'Did you mean "model.likelihood.width"' in say(*words, "model.likelihood.widht=1", "--out", "no").err
    assert "a number" in say(*words, "model.likelihood.width=wide", "--out", "no").err
    assert not Path("no").exists()


def test_a_run_with_a_part_of_one_s_own_can_be_read_again(my_parts, say, tmp_path):
    """In a new process the part is unknown: named, and --import brings it back for every verb that reads the run."""
    words = (*SMOKE, "model.likelihood=my_laplace", "--import", my_parts, "--no-evaluate", "--out", "run")
    assert say(*words).code == 0
    without = process("evaluate", "run", *SMALL, cwd=tmp_path)
    assert without.returncode in {2, 3}
    assert b"my_laplace" in without.stderr and b"--import" in without.stderr
    for verb in (("evaluate", "run", *SMALL), ("report", "run"), ("sample", "run")):
        result = say(*verb, "--import", my_parts)
        assert result.code == 0, result.err


@pytest.mark.parametrize("source", ["import no_such_thing", "raise RuntimeError('mine')", "1 +"])
def test_a_module_that_fails_is_the_user_s(source, say):
    Path("broken_parts.py").write_text(source, encoding="utf-8")
    result = say(*QUICK, "--import", "broken_parts", "--out", "run")
    sys.modules.pop("broken_parts", None)
    assert result.code == 2, result.err
    assert "broken_parts" in result.err
    assert not Path("run").exists()


# ------------------------------------------------------------------------------------------------ the chapter
STAND_IN = chapter.Plan(
    ("train.epochs=2", "train.batch=32", "model.encoder.width=8", "model.decoder.width=8", "model.latent=3"),
    Settings(k=8, images=20, elbo_samples=2, curve_k=(1, 4), curve_images=10),
)


def stand_in(preset: str, access: object) -> Dataset:
    """120 pictures of 28x28: ten classes, each a bright row of its own in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 10
    images = torch.randint(0, 60, (120, 28, 28), generator=generator).to(torch.uint8)
    images[torch.arange(120), 2 * labels + 4] += 180
    return from_tensor(images, labels, name="mnist", validation=0, test=0.4, binarize=preset == "mnist")


class Heard(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.units: dict[str, int] = {}

    def start(self, stage: str, total: int) -> None:
        self.stage = stage

    def advance(self, units: int = 1, note: str = "") -> None:
        self.units[self.stage] = self.units.get(self.stage, 0) + units

    def say(self, text: str) -> None:
        self.lines.append(text)


def reproduce(out: Path, progress: Progress | None = None) -> chapter.Result:
    return chapter.reproduce(out, plan="smoke", device="cpu", progress=progress)


WRITE_REPORT = chapter._write_report


@pytest.fixture
def small_chapter(monkeypatch):
    """The chapter on the stand-in without its page: what is used again is not decided by what stands there."""
    shrink(monkeypatch)
    monkeypatch.setattr(
        chapter, "_write_report", lambda made, report, *_: report.write_text("a page", encoding="utf-8")
    )


def shrink(patch: pytest.MonkeyPatch) -> None:
    """The chapter on the stand-in."""
    patch.setattr(chapter, "run_jobs", one_after_another(lambda config: stand_in(config.preset, None)))
    patch.setattr(chapter, "_dataset", stand_in)
    patch.setitem(chapter.PLANS, "smoke", STAND_IN)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The chapter on the stand-in, made once."""
    out = tmp_path_factory.mktemp("chapter") / "mnist"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        result = reproduce(out)
    assert result.reused == []
    assert result.report == out / "report.html"
    return out


@pytest.fixture
def mine(made, small_chapter, tmp_path) -> Path:
    """A copy of the chapter, times of change included."""
    return Path(shutil.copytree(made, tmp_path / "mnist"))


NAMES = [f"model{m}-{convention}" for convention in ("grey", "binarized") for m in (1, 2, 3)]


def test_the_chapter_makes_six_runs_and_a_report_of_their_numbers(made):
    assert sorted(p.name for p in made.iterdir() if p.is_dir()) == sorted(NAMES)
    page = Cells(made / "report.html")
    for name in NAMES:
        evaluation = runs.Run(made / name).evaluation()
        assert evaluation["about"]["values"] == ("grey" if name.endswith("grey") else "binary")
        assert evaluation["about"]["normalised"] is name.endswith("binarized")
        for metric in ("elbo", "log_p", "mse_mean", "mse_sample", "active_units"):
            assert page.values[name, metric] == evaluation[metric]["value"], (name, metric)
        assert page.values[name, "gap"] == evaluation["log_p"]["gap"]
    assert [a for a in page.addresses if not a.startswith(("#", "data:"))] == []


def test_a_second_call_uses_everything_again_and_changes_no_file(mine):
    before, heard = contents(mine), Heard()
    result = reproduce(mine, heard)
    assert sorted(result.reused) == sorted([
        *(str(mine / name) for name in NAMES),
        *(str(mine / name / "evaluation.json") for name in NAMES),
        str(mine / "report.html"),
    ])
    assert [run.path for run in result.runs] == [mine / name for name in NAMES]
    assert heard.units == {}, "nothing was trained or evaluated"
    assert contents(mine) == before


def test_the_command_line_says_what_it_used_again_and_how_to_redo_it(mine, say):
    result = say("reproduce", "mnist", "--smoke", "--out", mine, "--device", "cpu")
    assert result.code == 0
    assert "13 finished parts" in result.err
    assert "delete" in result.err and str(mine / NAMES[0]) in result.err
    assert result.out.rstrip().endswith(f"report: {mine / 'report.html'}")
    assert (
        result.out.count("likelihood bernoulli_relaxed, unnormalised") == 1
        and result.out.count("likelihood bernoulli,") == 1
    )
    found = say("reproduce", "mnist", "--smoke", "--out", mine, "--device", "cpu", "--json").json
    assert len(found["reused"]) == 13
    assert found["runs"][NAMES[0]] == runs.Run(mine / NAMES[0]).evaluation()


def test_another_language_writes_the_report_anew_and_nothing_else(mine, monkeypatch):
    monkeypatch.setattr(chapter, "_write_report", WRITE_REPORT)
    undrawn(monkeypatch)
    heard = Heard()
    result = chapter.reproduce(mine, plan="smoke", device="cpu", progress=heard, lang="zh")
    assert len(result.reused) == 12 and str(mine / "report.html") not in result.reused
    assert heard.units == {}, "nothing was trained or evaluated"
    assert '<html lang="zh-Hans">' in (mine / "report.html").read_text(encoding="utf-8")
    again = chapter.reproduce(mine, plan="smoke", device="cpu", lang="zh")
    assert str(mine / "report.html") in again.reused


def test_another_evaluation_setting_evaluates_again_and_trains_nothing(mine, monkeypatch):
    changed = dataclasses.replace(STAND_IN, settings=dataclasses.replace(STAND_IN.settings, k=9))
    monkeypatch.setitem(chapter.PLANS, "smoke", changed)
    weights = {name: (mine / name / "weights.safetensors").stat().st_mtime_ns for name in NAMES}
    heard = Heard()
    result = reproduce(mine, heard)
    assert sorted(result.reused) == sorted(str(mine / name) for name in NAMES)
    assert "training" not in heard.units
    assert {runs.Run(mine / name).evaluation()["log_p"]["k"] for name in NAMES} == {9}
    assert weights == {name: (mine / name / "weights.safetensors").stat().st_mtime_ns for name in NAMES}


def test_a_deleted_evaluation_is_made_again_to_the_same_numbers(mine):
    target = mine / NAMES[1]
    before = runs.Run(target).evaluation()
    (target / "evaluation.json").unlink()
    result = reproduce(mine)
    assert str(target) in result.reused
    others = {str(mine / name) for name in NAMES} | {str(mine / name / "evaluation.json") for name in NAMES}
    assert others - set(result.reused) == {str(target / "evaluation.json")}
    after = runs.Run(target).evaluation()
    assert {k: v for k, v in after.items() if k != "about"} == {k: v for k, v in before.items() if k != "about"}


@pytest.mark.parametrize("file", ["evaluation.json", "per_image.safetensors"])
def test_a_corrupt_evaluation_is_made_again(file, mine):
    (mine / NAMES[0] / file).write_bytes(b"{")
    result = reproduce(mine)
    assert str(mine / NAMES[0]) in result.reused
    assert str(mine / NAMES[0] / "evaluation.json") not in result.reused
    assert runs.Run(mine / NAMES[0]).evaluation()["log_p"]["k"] == STAND_IN.settings.k
    assert "elbo" in runs.Run(mine / NAMES[0]).per_image()


def test_another_source_moves_the_old_run_aside_and_trains_anew(mine, monkeypatch):
    env = json.loads((mine / NAMES[0] / "env.json").read_text(encoding="utf-8"))
    old = (mine / NAMES[0] / "weights.safetensors").read_bytes()
    (mine / NAMES[0] / "env.json").write_text(
        json.dumps({**env, "source_hash": "of another version"}), encoding="utf-8"
    )
    heard = Heard()
    result = reproduce(mine, heard)
    assert (mine / f"{NAMES[0]}.old-1" / "weights.safetensors").read_bytes() == old
    assert any(str(mine / f"{NAMES[0]}.old-1") in line for line in heard.lines)
    assert str(mine / NAMES[0]) not in result.reused
    assert {str(mine / name) for name in NAMES[1:]} <= set(result.reused)
    assert runs.Run(mine / NAMES[0]).env["source_hash"] == training.training_source_hash()
    same_tensors(diabolo.load(mine / NAMES[0]), diabolo.load(mine / f"{NAMES[0]}.old-1"))


def test_every_run_is_made_anew_when_the_source_changes(mine, monkeypatch):
    monkeypatch.setattr(training, "training_source_hash", lambda: "changed")
    result = reproduce(mine)
    assert result.reused == []
    assert sorted(p.name for p in mine.iterdir() if p.is_dir()) == sorted([
        *NAMES,
        *(f"{name}.old-1" for name in NAMES),
    ])


@pytest.mark.parametrize("change", ["data", "configuration", "no status", "no weights", "another shape of env"])
def test_what_does_not_match_is_never_used_again(change, mine):
    run = mine / NAMES[2]
    env = json.loads((run / "env.json").read_text(encoding="utf-8"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    if change == "data":
        (run / "env.json").write_text(json.dumps({**env, "data": {**env["data"], "hash": "0"}}), encoding="utf-8")
    elif change == "configuration":
        (run / "config.json").write_text(json.dumps({**config, "seed": 1}), encoding="utf-8")
    elif change == "no status":
        (run / "status.json").unlink()
    elif change == "no weights":
        (run / "weights.safetensors").unlink()
    else:
        (run / "env.json").write_text('{"data": 3}', encoding="utf-8")
    result = reproduce(mine)
    assert str(run) not in result.reused
    assert len([p for p in result.reused if p in {str(mine / name) for name in NAMES}]) == 5
    assert runs.Run(run).status["state"] == "finished"


def test_an_interrupted_chapter_goes_on_where_it_was(made, small_chapter, tmp_path):
    """Stopped in the second epoch of the second run: the same command goes on and gives the same bits."""
    out = tmp_path / "mnist"
    steps = 2 * -(-72 // 32)
    with pytest.raises(training.InterruptedRun) as caught:
        reproduce(out, SignalAtTraining(steps + steps - 2, signal.SIGINT))
    assert caught.value.exit_code == 130
    assert runs.Run(out / NAMES[1]).status["state"] == "interrupted"
    heard = Heard()
    result = reproduce(out, heard)
    assert any("going on" in line and NAMES[1] in line for line in heard.lines)
    assert result.reused == [str(out / NAMES[0]), str(out / NAMES[0] / "evaluation.json")]
    for name in NAMES:
        same_tensors(diabolo.load(out / name), diabolo.load(made / name))
        for file in ("metrics.jsonl", "per_image.safetensors"):
            assert (out / name / file).read_bytes() == (made / name / file).read_bytes(), (name, file)


class SignalAtTraining(SignalAt):
    """Counts the steps of training alone."""

    stage = ""

    def start(self, stage: str, total: int) -> None:
        self.stage = stage

    def advance(self, units: int = 1, note: str = "") -> None:
        if self.stage == "training":
            super().advance(units, note)


def test_runs_that_diverged_are_not_used(mine):
    """The status decides, not the files."""
    status = runs.Run(mine / NAMES[0]).status
    runs.write_json(mine / NAMES[0] / "status.json", {**status, "state": "diverged", "exit_code": 4})
    assert str(mine / NAMES[0]) not in reproduce(mine).reused


# ------------------------------------------------------------------------------------------------ the library
def quick(data: Any, out: Path, *overrides: str, **more: Any) -> runs.Run:
    words = ["train.epochs=1", "model.encoder.width=8", "model.decoder.width=8", "model.latent=2", *overrides]
    return diabolo.train("vae", data, overrides=words, out=out, device="cpu", **more)


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("data", "note", "unit", "shape"),
    [
        (noise(60, 6, 5), "read as grey values, as given", "nats/image", [1, 6, 5]),
        ((255 * noise(60, 6, 5)).to(torch.uint8), "read as grey levels k/255", "nats/image", [1, 6, 5]),
        (noise(60, 7), "read as grey values, as given", "nats/example", [7]),
        (9 * noise(60, 7) - 4, "read as real numbers, as given", "nats/example", [7]),
        ((255 * noise(60, 7)).round(), "all whole, read as grey levels k/255", "nats/example", [7]),
        (noise(60, 6, 5, 3), "channels last", "nats/image", [3, 6, 5]),
    ],
)
def test_training_on_one_s_own_tensor_says_how_it_was_read(data, note, unit, shape, library, tmp_path):
    given = data.numpy() if library == "numpy" else data
    run = quick(given, tmp_path / "run")
    assert note in run.env["data"]["note"]
    assert run.env["data"]["spec"]["shape"] == shape
    result = diabolo.evaluate(run, given, k=3, images=4)
    assert result["elbo"]["unit"] == unit
    assert result["elbo"]["n"] == run.env["data"]["splits"]["test"] == 6
    assert result["about"]["data_hash"] == run.env["data"]["hash"]


def test_arrays_of_both_libraries_give_the_same_run(tmp_path):
    data = noise(60, 6, 5)
    runs_ = [quick(data.numpy(), tmp_path / "a"), quick(data, tmp_path / "b")]
    assert runs_[0].env["data"]["hash"] == runs_[1].env["data"]["hash"]
    same_tensors(*(run.model() for run in runs_))


def test_the_data_are_not_changed_by_training(tmp_path):
    data = noise(60, 6, 5).numpy()
    before = data.copy()
    quick(data, tmp_path / "run")
    assert np.array_equal(data, before)


def test_evaluating_on_other_data_is_refused(tmp_path):
    run = quick(noise(60, 6, 5), tmp_path / "run")
    with pytest.raises(DataError, match="not those of"):
        diabolo.evaluate(run, noise(60, 6, 5) / 2)
    with pytest.raises((DataError, UsageError), match=r"tensor|memory|array"):
        diabolo.evaluate(run.path)


@pytest.mark.parametrize("verb", ["evaluate", "report", "resume"])
def test_a_run_on_one_s_own_tensor_is_refused_by_the_command_line_with_the_way_out(verb, tmp_path, say):
    """Its data are in no file: say so, and name the library's call."""
    quick(noise(60, 6, 5), tmp_path / "run", "train.epochs=2")
    diabolo.evaluate(tmp_path / "run", noise(60, 6, 5), k=3, images=4)
    (tmp_path / "run/status.json").write_text('{"state": "interrupted"}', encoding="utf-8")
    result = say(*commands(tmp_path / "run")[verb])
    if verb == "report":
        assert result.code in {0, 2, 3}, result.err
    else:
        assert result.code in {2, 3}, result.err
        assert "diabolo." in result.err or "Python" in result.err
        short(result.err)


def test_labels_are_probed(tmp_path):
    labels = np.arange(60) % 3
    run = quick(noise(60, 6, 5), tmp_path / "run", labels=labels)
    result = diabolo.evaluate(run, noise(60, 6, 5), labels=labels, k=3, images=6)
    assert 0 <= result["linear_probe"]["value"] <= 1
    assert "linear_probe" not in diabolo.evaluate(
        quick(noise(60, 6, 5), tmp_path / "b"), noise(60, 6, 5), k=3, images=6
    )


def test_a_model_is_loaded_from_a_run_or_from_the_weights_alone(tmp_path):
    data = noise(60, 6, 5)
    run = quick(data, tmp_path / "run")
    alone = Path(shutil.copy(tmp_path / "run/weights.safetensors", tmp_path / "alone.safetensors"))
    models = [diabolo.load(path) for path in (tmp_path / "run", str(tmp_path / "run"), alone)]
    x = data[:4].unsqueeze(1)
    outputs = [model.reconstruct(x).mean for model in models]
    assert outputs[0].shape == (1, 4, 1, 6, 5)
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert not models[0].training
    same_tensors(models[0], run.model())
    for missing in (tmp_path / "nothing", tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(DataError):
            diabolo.load(missing)


def test_a_run_can_be_evaluated_by_its_path(tmp_path):
    data = noise(60, 6, 5)
    quick(data, tmp_path / "run")
    first = diabolo.evaluate(str(tmp_path / "run"), data, k=3, images=4)
    second = diabolo.evaluate(runs.Run(tmp_path / "run"), data, k=3, images=4)
    assert first["log_p"] == second["log_p"]


def test_a_configuration_of_one_s_own_builds_a_model_of_the_data_s_shape():
    config: RunConfig = resolve("vae", ["model.latent=3"]).config
    model = diabolo.build_model(config, from_tensor(noise(20, 6, 5)))
    assert model.decode(torch.zeros(2, 4, 3)).mean.shape == (2, 4, 1, 6, 5)
    with pytest.raises(UsageError, match="bernoulli"):
        diabolo.build_model(resolve("vae", ["model.likelihood=bernoulli"]).config, from_tensor(noise(20, 6, 5)))


def test_public_names_are_what_the_package_says():
    for name in diabolo.__all__:
        assert inspect.getdoc(getattr(diabolo, name)), name
    with pytest.raises(AttributeError):
        diabolo.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("message", "code", "told"),
    [
        ("Expected parameter scale (Tensor of shape (20, 8)) of distribution Normal", 3, "diabolo doctor RUN"),
        ("something else", 1, "This is a fault of diabolo"),
    ],
)
def test_numbers_that_are_not_finite_are_the_run_s_fault_and_not_the_program_s(
    message, code, told, monkeypatch, capsys
):
    def fails(*rest, **how):
        raise ValueError(message)

    monkeypatch.setattr(cli, "app", fails)
    assert cli._run(["denoise"]) == code
    err = capsys.readouterr().err
    assert told in err and "Tensor" not in err.replace("something else", "")
