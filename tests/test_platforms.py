"""What other systems need: output in any encoding, no module of one system at import, spawned processes, quick starts."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import diabolo
from diabolo.runs import Run
from test_architecture import FILES, module_of

#: A run's name with a letter that ASCII lacks, one that GBK lacks, and a space.
NAME = "run \u00df \U0001fa80"
SMALL = ("--k", "5", "--images", "10", "--device", "cpu")

#: Every verb, with the exit code that it must leave with; RUN and ODD stand for the run and for a word that GBK lacks.
COMMANDS: list[tuple[int, tuple[str, ...]]] = [
    (0, ("--help",)),
    (0, ("train", "vae", "--smoke", "--device", "cpu", "--out", "RUN")),
    (0, ("train", "vae", "train.epochs=9999", "--time", "1s", "--device", "cpu", "--out", "ODD", "--no-evaluate")),
    (0, ("evaluate", "RUN", *SMALL)),
    (0, ("evaluate", "ODD", *SMALL, "--json")),
    (0, ("report", "RUN")),
    (0, ("sample", "RUN", "--n", "4")),
    (0, ("fit-prior", "RUN", "prior=mixture", "--name", "ODD")),
    (0, ("sample", "RUN", "class=3", "--n", "4")),
    (2, ("fit-prior", "RUN", "prior=ODD")),
    (0, ("reconstruct", "RUN", "--n", "4")),
    (0, ("interpolate", "RUN", "--n", "4", "--pairs", "2")),
    (0, ("traverse", "RUN")),
    (0, ("score", "RUN", "--out", "ODD.csv")),
    (0, ("embed", "RUN", "--out", "ODD.npz")),
    (0, ("compress", "RUN", "ODD.dia", "--split", "test")),
    (0, ("decompress", "RUN", "ODD.dia", "ODD.npy")),
    (0, ("denoise", "RUN", "ODD.npy", "ODD-clean.npy", "--noise", "gaussian", "--level", "0.1")),
    (0, ("sweep", "linear-vae", "objective.beta={1,2}", "train.epochs=1", "data.examples=99", "--out", "ODD-sweep")),
    (0, ("explain", "vae", "objective.beta=4")),
    (0, ("doctor", "RUN")),
    (0, ("linear", "digits")),
    (2, ("linear", "digits", "ODD=1")),
    (2, ("measure", "RUN", "--features", "ODD")),
    (0, ("list",)),
    (0, ("config", "vae", "objective.beta=4")),
    (0, ("data", "list")),
    (0, ("data", "verify", "digits")),
    (0, ("data", "export", "digits", "ODD-files", "--split", "test")),
    (0, ("data", "pack", "digits", "ODD-packed")),
    (0, ("data", "check", "ODD-packed")),
    (0, ("doctor",)),
    (0, ("reproduce",)),
    (0, ("clean", ".")),
    (0, ("compare", "RUN", "ODD")),
    (3, ("compare", "RUN", "ODD-none")),
    (2, ("train", "ODD")),
    (2, ("train", "vae", "model.ODD=1")),
    (2, ("ODD",)),
    (2, ("reproduce", "ODD")),
    (2, ("sweep", "vae", "objective.beta=ODD")),
    (2, ("train", "vae", "--time", "ODD")),
    (3, ("evaluate", "ODD.csv")),
    (3, ("data", "check", "ODD-none")),
]
_EVERY_COMMAND = """
import json, sys
from diabolo import cli
for expected, words in json.loads(sys.argv[1]):
    try:
        cli.main(words)
    except SystemExit as left:
        if left.code != expected:
            sys.stderr.flush()
            raise AssertionError(f"{ascii(words)} left with {left.code}, not {expected}")
"""


def python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_every_verb_survives_the_encoding_of_another_terminal(tmp_path, monkeypatch):
    """The runs of the second encoding's sweep are those of the first: its processes are told nothing of a terminal."""
    for encoding in ("ascii", "gbk"):
        here = tmp_path / encoding
        here.mkdir()
        monkeypatch.chdir(here)
        if encoding == "gbk":
            shutil.copytree(tmp_path / "ascii" / "\u00e9\U0001fa80-sweep", here / "\u00e9\U0001fa80-sweep")
        survives(encoding)


def survives(encoding):
    """Every verb, in a process whose streams have an encoding; it writes below the working directory."""
    commands = json.dumps([
        (code, [word.replace("RUN", NAME).replace("ODD", "\u00e9\U0001fa80") for word in words])
        for code, words in COMMANDS
    ])
    done = python(_EVERY_COMMAND, commands, PYTHONIOENCODING=encoding, PYTHONUTF8="0", DIABOLO_DEBUG="")
    err = done.stderr.decode(encoding)  # strictly: a byte of another encoding fails here
    assert done.returncode == 0, err
    out = done.stdout.decode(encoding)
    assert "internal error" not in err and "Traceback" not in err
    assert "\\U0001fa80" in out and "\\U0001fa80" in err, "what cannot be written is escaped, not dropped"
    assert (Path(NAME) / "report.html").is_file()


def test_every_verb_is_among_them():
    """A verb that is added is added above."""
    from diabolo import cli

    tried = {words[:2] if words[0] == "data" else words[:1] for _, words in COMMANDS}
    verbs = {(name,) for name in cli.app if not name.startswith("-")} - {("data",)}
    inside = {("data", name) for name in cli.data_app if not name.startswith("-")}
    assert (verbs | inside) - tried == {("data", "get")}, "get fetches"


# ------------------------------------------------------------------------------------------------ other systems
MODULES = [module_of(path) for path in FILES if path.name != "__main__.py"]
#: Modules of the standard library that Windows lacks.
POSIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog")
_WITHOUT = """
import importlib, json, sys, threading
absent, modules = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(absent))  # None: importing it raises
for module in modules:
    importlib.import_module(module)
import runpy
runpy.run_module("diabolo.__main__", run_name="__mp_main__")  # what a spawned child imports runs nothing
assert threading.active_count() == 1, "importing starts no thread"
"""


def test_no_module_needs_what_windows_lacks():
    done = python(_WITHOUT, json.dumps([POSIX_ONLY, MODULES]))
    assert done.returncode == 0, done.stderr.decode()


def test_a_module_that_needed_it_would_be_found():
    done = python(_WITHOUT, json.dumps([["fcntl"], ["fcntl"]]))
    assert b"import of fcntl halted" in done.stderr


def test_a_run_can_be_made_in_a_spawned_process(tmp_path):
    out = tmp_path / "run"
    small = {"overrides": ["train.epochs=1", "train.smoke=true"], "out": out, "device": "cpu"}
    child = multiprocessing.get_context("spawn").Process(target=diabolo.train, args=("vae",), kwargs=small)
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert Run(out).status["state"] == "finished"


# ------------------------------------------------------------------------------------------------ quick starts
@pytest.mark.parametrize(
    "code",
    [
        "import diabolo; diabolo.presets(); diabolo.register",
        "import runpy; sys.argv = ['diabolo', '--help']; runpy.run_module('diabolo', run_name='__main__')",
        "import runpy; sys.argv = ['diabolo', 'train', '--help']; runpy.run_module('diabolo', run_name='__main__')",
    ],
)
def test_starting_imports_no_torch(code):
    done = python(f"import atexit, os, sys\natexit.register(lambda: 'torch' in sys.modules and os._exit(9))\n{code}")
    assert done.returncode == 0, done.stderr.decode() or "torch was imported"


def test_a_start_that_imports_torch_would_be_found():
    code = "import diabolo; diabolo.train"
    done = python(f"import atexit, os, sys\natexit.register(lambda: 'torch' in sys.modules and os._exit(9))\n{code}")
    assert done.returncode == 9
