"""A run that is given a time, and a run that only shows whether everything works."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from diabolo import cli, compare, durations, evaluation, inspection, runs, training
from diabolo.chapters import parts
from diabolo.config import resolve
from diabolo.errors import UsageError
from diabolo.progress import Progress
from diabolo.report import write_run_report
from known import tiny_images
from test_contracts import SMALL, StopAt, assert_same_bits, assert_same_run, small_config, small_data, strict
from undrawn import undrawn

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------ lengths of time
@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("1h0m1s", 3601), ("2m05s", 125), ("100h", 360_000)],
)
def test_a_time_is_read(text, seconds):
    assert durations.seconds(text) == seconds
    assert durations.seconds(durations.written(seconds)) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "0s", "0h0m", "-1m", "1.5h", "5 m", "30m1h", "1h30", "5min", "5M", "m", "5m\n", "\u0665m"]
)
def test_what_is_no_time_is_refused_with_examples(text, capsys):
    with pytest.raises(UsageError, match="1h30m"):
        durations.seconds(text)
    assert cli._run(["train", "vae", f"--time={text}"]) == 2
    assert not Path("runs").exists()


# ------------------------------------------------------------------------------------------------ a run and its time
class Clock(Progress):
    """Ten seconds pass with each step."""

    now = 0.0

    def advance(self, units: int = 1, note: str = "") -> None:
        self.now += 10 if note else 0  # without a note it is told where a resumed run begins


def stopped(config, out, dataset, steps, stops=2):
    """A run that was stopped after so many steps, at the end of no time at all, which is one step; and after each of the steps
    before it for which `stops` has room."""
    alone, clock = max(1, steps - stops + 1), Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock.now))
        how = {"data": dataset, "device": "cpu", "progress": clock}
        run = training.train(config, out=out, seconds=10 * alone if alone < steps else 0, **how)
    for _ in range(steps - alone):
        run = training.resume(out, data=dataset, device="cpu", seconds=0)
    assert (run.status["state"], run.status["step"], run.status["exit_code"]) == ("stopped", steps, 0)
    return run


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_run_stopped_after_every_step_has_the_bits_of_an_uninterrupted_one(keep, tmp_path):
    config, dataset = small_config(f"train.keep={keep}", "train.ema=0.9"), small_data()
    training.train(config, out=tmp_path / "straight", data=dataset, device="cpu")
    run = stopped(config, tmp_path / "run", dataset, 15, stops=15)
    assert run.status["epoch"] == 3, "all steps are taken, the last epoch is not ended"
    run = training.resume(tmp_path / "run", data=dataset, device="cpu", seconds=0)
    assert run.status["state"] == "finished"
    assert_same_run(tmp_path / "run", tmp_path / "straight")
    assert (run.path / "config.json").read_bytes() == (tmp_path / "straight/config.json").read_bytes()


@pytest.mark.parametrize(("seconds", "step"), [(5, 1), (10, 1), (35, 4), (50, 5), (51, 6)])
def test_the_time_is_wall_time_from_the_first_step_of_the_process(seconds, step, tmp_path, monkeypatch):
    config, dataset, clock = small_config(), small_data(), Clock()
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock.now))
    how = {"data": dataset, "device": "cpu", "progress": clock, "seconds": seconds}
    run = training.train(config, out=tmp_path / "run", **how)
    assert run.status["step"] == step
    assert sum(row["seconds"] for row in run.timing() if row["stage"] == "train") == 10 * step
    assert training.resume(tmp_path / "run", **how).status["step"] == 2 * step, "the time counts anew"


def test_the_status_says_why_and_how_far_and_which_weights(tmp_path):
    dataset, kept = small_data(), {}
    for keep in ("last", "best"):
        run = stopped(small_config(f"train.keep={keep}"), tmp_path / keep, dataset, 7)
        assert (run.status["reason"], run.status["epoch"], run.status["skipped"]) == ("time: 0s", 2, 0)
        kept[keep] = load_file(run.path / "weights.safetensors")
    assert runs.Run(tmp_path / "last").status["weights"] == "of step 7"
    assert runs.Run(tmp_path / "best").status["weights"] == "of epoch 1, the lowest validation loss so far"
    assert_same_bits(kept["last"], runs.load_state(tmp_path / "last")[0]["model"])
    training.train(small_config("train.epochs=1"), out=tmp_path / "one", data=dataset, device="cpu")
    assert_same_bits(kept["best"], load_file(tmp_path / "one/weights.safetensors"))


def test_before_the_first_epoch_ends_the_weights_are_the_present_ones(tmp_path):
    """Those of an earlier stop would be older than the status says."""
    for steps in (1, 2, 4):
        run = stopped(small_config("train.checkpoint_every=1"), tmp_path / str(steps), small_data(), steps)
        assert run.status["weights"] == f"of step {steps}, for no epoch has a validation loss yet"
        assert_same_bits(load_file(run.path / "weights.safetensors"), runs.load_state(run.path)[0]["model"])


def test_a_signal_before_the_end_of_the_time_is_a_signal(tmp_path):
    with pytest.raises(training.InterruptedRun):
        training.train(
            small_config(), out=tmp_path / "run", data=small_data(), device="cpu", progress=StopAt(2), seconds=999
        )
    assert runs.Run(tmp_path / "run").status["state"] == "interrupted"


# ------------------------------------------------------------------------------------------------ what others make of it
def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("steps", [1, 7])
def test_a_stopped_run_is_evaluated_and_reported_without_alarm(steps, tmp_path, caplog, monkeypatch):
    undrawn(monkeypatch)
    dataset = small_data()
    run = stopped(small_config(), tmp_path / "run", dataset, steps)
    with caplog.at_level(logging.WARNING, "diabolo"):
        found = evaluation.evaluate(run, SMALL, data=dataset, device="cpu")
    assert not warnings(caplog)
    assert found["about"]["training"] == "stopped"
    assert found["about"]["how_far"] == strict((run.path / "evaluation.json").read_text("utf-8"))["about"]["how_far"]
    page = write_run_report(run).read_text(encoding="utf-8")
    assert f"stopped (time: 0s) at epoch {run.status['epoch']}: its weights {run.status['weights']}" in page
    assert 'id="training"' in page if steps == 7 else 'id="training"' not in page
    training.resume(run.path, data=dataset, device="cpu")
    assert "stopped" in write_run_report(run).read_text(encoding="utf-8"), "these are the numbers of then"
    evaluation.evaluate(run, SMALL, data=dataset, device="cpu")
    assert "stopped" not in write_run_report(run).read_text(encoding="utf-8")


def test_an_interrupted_run_is_evaluated_with_a_warning(tmp_path, caplog):
    dataset = small_data()
    with pytest.raises(training.InterruptedRun):
        training.train(small_config(), out=tmp_path / "run", data=dataset, device="cpu", progress=StopAt(7))
    evaluation.evaluate(tmp_path / "run", SMALL, data=dataset, device="cpu")
    [warning] = warnings(caplog)
    assert "interrupted at epoch 2" in warning


def test_a_chapter_goes_on_with_a_stopped_run_and_clean_leaves_its_state(tmp_path):
    config, dataset, reused = small_config(), small_data(), []
    run = stopped(config, tmp_path / "run", dataset, 7)
    assert parts._state(run.path, config, dataset) == "resumable"
    assert inspection.spare_states(tmp_path) == []
    run = parts.trained(run.path, config, dataset, "cpu", Progress(), reused)
    assert (run.status["state"], run.status["step"], reused) == ("finished", 15, [])
    assert [folder for folder, _ in inspection.spare_states(tmp_path)] == [run.path / "state"]


def test_a_chapter_measures_again_what_was_measured_before_the_end(tmp_path):
    """After the last step the weights are the final ones already, but the evaluation says "stopped"."""
    config, dataset, reused = small_config("train.keep=last"), small_data(), []
    run = stopped(config, tmp_path / "run", dataset, 15)
    for end in ("stopped", "finished"):
        if end == "finished":
            run = parts.trained(run.path, config, dataset, "cpu", Progress(), [])
        parts.evaluated(run, dataset, SMALL, "cpu", Progress(), reused)
        assert run.evaluation()["about"]["training"] == end
    assert reused == []
    parts.evaluated(run, dataset, SMALL, "cpu", Progress(), reused)
    assert len(reused) == 1


def test_the_command_line_stops_evaluates_and_goes_on(capsys):
    small = ["linear-vae", "data.examples=200", "train.epochs=100000"]
    assert cli._run(["train", *small, "--time", "1s", "--out", "run", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    first = runs.Run("run").status
    assert (first["state"], first["reason"]) == ("stopped", "time: 1s")
    assert "go on with: diabolo train --resume run" in err and "warning" not in err
    assert "report: run/report.html" in out.replace("\\", "/")
    assert cli._run(["train", "--resume", "run", "--time", "1s", "--no-evaluate"]) == 0
    assert runs.Run("run").status["step"] > first["step"]


# ------------------------------------------------------------------------------------------------ smoke
def test_a_smoke_run_says_what_it_is_everywhere(capsys):
    assert cli._run(["train", "vae", "--smoke", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    run = runs.Run("runs/smoke-vae-1")
    assert "smoke-vae-1" in out and "its numbers mean nothing" in err
    assert (run.status["state"], run.status["step"], run.status["epoch"]) == ("finished", training.SMOKE_STEPS, 1)
    assert run.config.train.smoke and run.config.train.epochs == 1
    about = run.evaluation()["about"]
    assert (about["smoke"], about["k"], about["images"]) == (True, evaluation.SMOKE.k, evaluation.SMOKE.images)
    assert "A smoke run" in (run.path / "report.html").read_text(encoding="utf-8")
    assert cli._run(["train", str(run.path / "config.json"), "--no-evaluate", "--device", "cpu"]) == 0
    again = runs.Run("runs/smoke-vae-2")
    assert_same_bits(load_file(run.path / "weights.safetensors"), load_file(again.path / "weights.safetensors"))


def test_no_other_run_is_called_a_smoke_run(tmp_path, monkeypatch):
    undrawn(monkeypatch)
    run = training.train(small_config(), out=tmp_path / "run", data=small_data(), device="cpu")
    found = evaluation.evaluate(run, SMALL, data=small_data(), device="cpu")
    assert found["about"]["smoke"] is False
    assert "smoke" not in write_run_report(run).read_text(encoding="utf-8").split('id="record"')[0]


def test_a_smoke_run_takes_no_more_steps_than_there_are_and_can_be_resumed(tmp_path):
    config = small_config("train.smoke=true", "train.epochs=2", "train.batch=30")
    assert training.train(config, out=tmp_path / "a", data=small_data(), device="cpu").status["step"] == 4
    config = small_config("train.smoke=true", "train.epochs=2")
    training.train(config, out=tmp_path / "b", data=small_data(), device="cpu")
    stopped(config, tmp_path / "c", small_data(), 5)
    training.resume(tmp_path / "c", data=small_data(), device="cpu")
    assert_same_run(tmp_path / "c", tmp_path / "b")
    assert runs.Run(tmp_path / "b").status["step"] == 2 * training.SMOKE_STEPS


@pytest.mark.parametrize(
    "words",
    ["vae --smoke --time 5m", "--resume runs/x --smoke", "vae --smoke train.epochs=2"],
)
def test_what_smoke_cannot_go_with_is_refused(words, capsys):
    assert cli._run(["train", *words.split()]) == 2
    assert "--smoke and" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_smoke_goes_with_seeds_and_a_place_of_its_own(capsys):
    assert cli._run(["train", "vae", "seed=0,1", "--smoke", "--out", "tried", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(path).as_posix() for path in found] == ["tried/seed-0", "tried/seed-1"]
    assert all(result["about"]["smoke"] for result in found.values())


def test_comparing_smoke_runs_warns(tmp_path, caplog):
    dataset = tiny_images(80)
    for seed in (0, 1):
        config = small_config("train.smoke=true", f"seed={seed}")
        training.train(config, out=tmp_path / str(seed), data=dataset, device="cpu")
        evaluation.evaluate(tmp_path / str(seed), SMALL, data=dataset, device="cpu")
    compare.compare([runs.Run(tmp_path / "0"), runs.Run(tmp_path / "1")])
    assert caplog.text.count("is a smoke run: its numbers mean nothing") == 2


def test_smoke_stands_in_the_resolved_configuration():
    assert resolve("vae", ["train.smoke=true"]).config.to_dict()["train"]["smoke"] is True
    assert resolve("vae").config.train.smoke is False
