"""Crash, interruption, a full disk, two processes: whatever happens to a run, it goes on to the same bits or says why not.

Every process here is a real one. What is compared is compared to a run that nothing happened to.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diabolo import cli, runs

pytestmark = pytest.mark.reliability
torch.set_num_threads(1)

#: How often the run is killed; `make soak` asks for more.
KILLS = int(os.environ.get("DIABOLO_KILLS", "6"))
#: 21 steps an epoch, each of them logged, a state every 5: 252 steps for six kills, and half as many where nothing is killed
#: twice.
EPOCH, STEPS, FEWER = 21, 42 * KILLS, 126
#: Images that are made in code: a process that reads digits imports scikit-learn, which takes as long as torch.
CLOUDS = ("data=clouds", "data.size=8", "data.examples=1300")


def training(steps: int) -> tuple[str, ...]:
    """A run of so many steps as the command line is told of it."""
    return (
        "train", "vae", *CLOUDS, f"train.epochs={steps // EPOCH}", "train.batch=64", "train.checkpoint_every=5",
        "train.log_every=1",
        "train.ema=0.9", "model.encoder.width=64", "model.decoder.width=64", "model.latent=4", "--no-evaluate", "--device", "cpu",
    )  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from diabolo.cli import main
main(sys.argv[2:])
"""


def start(*words: object, code: str = "") -> subprocess.Popen[str]:
    """A process of its own, in a group of its own; stderr and stdout are read at its end."""
    head = ["-c", code] if code else ["-m", "diabolo"]
    return subprocess.Popen(
        [sys.executable, *head, *map(str, words)], env=ENVIRONMENT, text=True, encoding="utf-8", stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def resume(run: Path, *words: object) -> tuple[object, ...]:
    return ("train", "--resume", run, "--no-evaluate", "--device", "cpu", *words)


def logged(run: Path) -> int:
    """The last step in metrics.jsonl that is whole; 0 where there is none."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def saved(run: Path) -> int:
    """The step of the newest state that a process finished writing; 0 where there is none."""
    steps = [int(path.parent.name.removeprefix("step-")) for path in (run / "state").glob("step-*/manifest.json")]
    return max(steps, default=0)


def until(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until `step` is logged; fails if the process ends first."""
    deadline = time.monotonic() + 60
    while (now := logged(run)) < step:
        assert process.poll() is None, f"ended before step {step}: {process.communicate()}"
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.0005 if now > step - 10 else 0.01)  # seldom while it starts, closely where it is awaited


def same_run(run: Path, straight: Path) -> None:
    """Weights, optimiser, average, position and metrics are those of the uninterrupted run, to the bit."""
    status, expected = runs.Run(run).status, runs.Run(straight).status
    assert status == expected
    assert (run / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert (run / "config.json").read_bytes() == (straight / "config.json").read_bytes()
    states, wanted = runs.states(run), runs.states(straight)
    assert states[-1].name == wanted[-1].name == f"step-{expected['step']:06d}"
    for folder, other in ((states[-1], wanted[-1]), (run, straight)):
        files = sorted(path.name for path in other.glob("*.safetensors"))
        assert sorted(path.name for path in folder.glob("*.safetensors")) == files != []
        for name in files:
            a, b = load_file(folder / name), load_file(other / name)
            assert a.keys() == b.keys()
            assert all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a), name
    progress, theirs = (json.loads((s / "manifest.json").read_text(encoding="utf-8")) for s in (states[-1], wanted[-1]))
    assert progress["progress"] == theirs["progress"]


def whole(run: Path) -> int:
    """The newest state can be read, nothing was passed over; returns its step."""
    _, progress, passed_over = runs.load_state(run)
    assert passed_over == []
    return progress["step"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The run that nothing happened to."""
    return undisturbed(tmp_path_factory.mktemp("straight") / "run", FEWER)


def undisturbed(out: Path, steps: int) -> Path:
    code, _, err = finish(start(*training(steps), "--out", out))
    assert code == 0, err
    assert logged(out) == runs.Run(out).status["step"] == steps
    return out


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """A run that SIGINT stopped; what was printed is beside it."""
    return stopped(tmp_path_factory.mktemp("interrupted") / "run", signal.SIGINT)


def stopped(out: Path, number: signal.Signals) -> Path:
    process = start(*training(FEWER), "--out", out)
    until(out, 40, process)
    process.send_signal(number)
    code, printed, err = finish(process)
    out.with_suffix(".json").write_text(json.dumps([code, printed, err]), encoding="utf-8")
    return out


@pytest.fixture
def mine(interrupted, tmp_path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


# ------------------------------------------------------------------------------------------------ SIGKILL
def kill_steps() -> Iterator[int]:
    """Steps of the run: half of them anywhere, the others where a state is being written."""
    generator = random.Random(2)
    anywhere = [generator.randrange(10, STEPS - 12) for _ in range(KILLS - KILLS // 2)]
    writing = [5 * generator.randrange(2, STEPS // 5 - 2) for _ in range(KILLS // 2)]
    yield from sorted(anywhere + writing)


def test_a_run_killed_again_and_again_is_the_uninterrupted_one(tmp_path, record_property):
    """A kill counts only if a step was logged since the last resume and the run had not ended."""
    run, counted, words = tmp_path / "run", [], (*training(STEPS), "--out", tmp_path / "run")
    for step in kill_steps():
        before = saved(run)
        process = start(*words)
        if before:
            wait_for_resume(run, before, process)
        until(run, max(step, before + 6), process)
        os.killpg(process.pid, signal.SIGKILL)
        code, _, _ = finish(process)
        assert code == -signal.SIGKILL
        assert runs.Run(run).status["state"] == "running"
        assert before < logged(run) < STEPS
        counted.append(logged(run))
        words = resume(run)
    assert len(counted) == KILLS
    code, _, err = finish(start(*words))
    assert code == 0, err
    same_run(run, undisturbed(tmp_path / "straight", STEPS))
    assert [path.name for path in (run / "state").iterdir() if path.name.endswith(".tmp")] == [], (
        "what was left half is swept"
    )
    assert len(runs.states(run)) == runs.STATES_KEPT
    record_property("killed_at_steps", counted)


def wait_for_resume(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the log is cut back to the state: what stands in it from then on is of this process."""
    deadline = time.monotonic() + 60
    while "resumed at step" not in tail(run) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    while logged(run) > step + 5 and time.monotonic() < deadline:
        time.sleep(0.0005)


def tail(run: Path) -> str:
    """The last line of the log."""
    return (run / "log.txt").read_text(encoding="utf-8").rstrip("\n").rpartition("\n")[2]


def test_a_run_killed_before_its_first_state_begins_again(tmp_path):
    """Nothing was kept yet, so resuming is starting: the folder does not stay unusable."""
    run = tmp_path / "run"
    process = start(*training(FEWER), "train.checkpoint_every=0", "--out", run)
    until(run, 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    assert runs.states(run) == []
    code, _, err = finish(start(*resume(run)))
    assert code == 0, err
    assert runs.Run(run).status["state"] == "finished"


# ------------------------------------------------------------------------------------------------ SIGINT, SIGTERM
def test_sigint_saves_prints_how_to_go_on_and_leaves_with_130(interrupted):
    code, printed, err = json.loads(interrupted.with_suffix(".json").read_text(encoding="utf-8"))
    assert code == 130
    assert f"diabolo train --resume {interrupted}" in err and "Traceback" not in err
    assert printed == ""
    status = runs.Run(interrupted).status
    assert (status["state"], status["exit_code"]) == ("interrupted", 130)
    assert status["step"] == whole(interrupted) >= logged(interrupted) >= 40


def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(mine, straight, capsys):
    assert cli._run([str(word) for word in resume(mine)]) == 0, capsys.readouterr().err
    same_run(mine, straight)


def test_sigterm_saves_and_leaves_with_143(tmp_path, straight, capsys):
    run = stopped(tmp_path / "run", signal.SIGTERM)
    code, _, err = json.loads(run.with_suffix(".json").read_text(encoding="utf-8"))
    assert code == 143
    assert f"diabolo train --resume {run}" in err
    status = runs.Run(run).status
    assert (status["state"], status["exit_code"], status["step"]) == ("interrupted", 143, whole(run))
    assert cli._run([str(word) for word in resume(run)]) == 0, capsys.readouterr().err
    same_run(run, straight)


# ------------------------------------------------------------------------------------------------ no room
@pytest.mark.parametrize("limit", [500, 4_000, 12_000])
def test_a_full_place_is_a_clean_error_and_the_last_state_stays_whole(limit, mine, straight, capsys):
    """No file may grow beyond the limit, the way a full disk or a quota refuses it: log, metrics, state."""
    before = whole(mine)
    sizes = {name: (mine / name).stat().st_size for name in ("metrics.jsonl", "weights.safetensors")}
    code, _, err = finish(start(limit, *resume(mine), code=_LIMITED))
    assert code == 2, err
    assert "Traceback" not in err and "internal error" not in err and "Logging error" not in err
    assert len([line for line in err[err.index("error: ") :].splitlines() if line]) <= 3
    assert whole(mine) >= before
    assert (mine / "weights.safetensors").stat().st_size == sizes["weights.safetensors"]
    load_file(mine / "weights.safetensors")
    assert cli._run([str(word) for word in resume(mine)]) == 0, capsys.readouterr().err
    same_run(mine, straight)


def test_a_new_run_in_a_full_place_is_a_clean_error(tmp_path):
    code, _, err = finish(start(600, *training(FEWER), "--out", tmp_path / "run", code=_LIMITED))
    assert code == 2
    assert str(tmp_path / "run") in err and "Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_results_that_cannot_be_printed_are_no_success(straight):
    """stdout on a full device: an exit code that says so, and no traceback."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "diabolo", "list"],
            env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_fault(straight):
    """`diabolo list | head -1`: no traceback, no internal error."""
    process = start("list", "--json")
    process.stdout.close()
    process.stdout = None
    _, _, err = finish(process)
    assert "Traceback" not in err and "internal error" not in err and "BrokenPipe" not in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_run_is_a_clean_error(mine):
    for path in (mine, mine / "state"):
        path.chmod(0o500)
    code, _, err = finish(start(*resume(mine)))
    for path in (mine, mine / "state"):
        path.chmod(0o700)
    assert code == 2
    assert "Traceback" not in err and "internal error" not in err


# ------------------------------------------------------------------------------------------------ what others leave
def test_what_others_leave_in_the_state_folder_is_ignored(mine, straight, capsys):
    """A half-written state of a dead process, a copy that the user made, a file of the file manager."""
    newest = runs.states(mine)[-1]
    shutil.copytree(newest, mine / "state" / ".step-000999.4242.tmp")
    (mine / "state" / ".step-000999.4242.tmp" / "manifest.json").unlink()
    shutil.copytree(newest, mine / "state" / f"{newest.name}.bak")
    (mine / "state" / "step-000400").write_text("a file, not a folder", encoding="utf-8")
    (mine / "state" / ".DS_Store").write_bytes(b"\0")
    (mine / ".weights.safetensors.4242.tmp").write_bytes(b"half")
    code = cli._run([str(word) for word in resume(mine)])
    assert code == 0, capsys.readouterr().err
    (mine / "state" / "step-000400").unlink(missing_ok=True)
    shutil.rmtree(mine / "state" / f"{newest.name}.bak", ignore_errors=True)
    same_run(mine, straight)


def test_the_newest_state_is_passed_over_where_it_is_not_whole(mine, straight, capsys):
    """One bit turned in the optimiser: the state before it is taken, which is said, and the bits come out the same."""
    newest = runs.states(mine)[-1]
    content = bytearray((newest / "optimiser.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "optimiser.safetensors").write_bytes(content)
    assert cli._run([str(word) for word in resume(mine)]) == 0, capsys.readouterr().err
    assert newest.name in (mine / "log.txt").read_text(encoding="utf-8")
    same_run(mine, straight)


def test_two_processes_on_one_run_have_one_winner(mine, straight):
    """Three start together: one trains, two leave with 2 and name the run; the run is as if there had been one."""
    racing = [start(*resume(mine)) for _ in range(3)]
    results = [finish(process) for process in racing]
    winners = [code for code, _, _ in results if code == 0]
    for code, _, err in results:
        assert code in {0, 2}, err
        assert code == 0 or (str(mine) in err and ("another process" in err or "is finished" in err)), err
    assert len(winners) == 1
    same_run(mine, straight)


def test_the_lock_falls_with_its_holder(mine, straight, capsys):
    process = start(*resume(mine))
    until(mine, logged(mine) + 3, process)
    os.killpg(process.pid, signal.SIGSTOP)  # it does not end while it is asked for
    assert cli._run([str(word) for word in resume(mine)]) == 2
    assert str(mine) in capsys.readouterr().err
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    assert (mine / ".lock").exists()
    assert cli._run([str(word) for word in resume(mine)]) == 0
    same_run(mine, straight)


def test_evaluating_leaves_the_old_numbers_whole_where_it_is_killed(straight, tmp_path):
    """An evaluation is there as a whole or not at all."""
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    small = ("--k", 5, "--images", 10, "--elbo-samples", 2, "--device", "cpu")
    code, _, err = finish(start("evaluate", run, *small))
    assert code == 0, err
    before = [(run / name).read_bytes() for name in ("evaluation.json", "per_image.safetensors")]
    process = start("evaluate", run, "--k", 5000, "--images", 0, "--device", "cpu")
    assert process.stderr is not None
    assert "evaluating" in process.stderr.readline()
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    code, _, _ = finish(process)
    assert code == -signal.SIGKILL
    assert [(run / name).read_bytes() for name in ("evaluation.json", "per_image.safetensors")] == before
