"""Two processes that torchrun starts do what one does: in float64, to rounding. One process knows nothing of it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

import many
from diabolo import cli, distributed, launch, runs, training
from diabolo.data import Loader
from diabolo.distributed import Processes, join
from diabolo.errors import DiaboloError, UsageError
from diabolo.session import InterruptedRun
from known import tiny_images

pytest.importorskip("accelerate", reason="MANY PROCESSES ARE NOT TESTED: pip install 'diabolo[dist]'")

#: A start, or a training that has not stopped, takes no longer.
LIMIT = 300
TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same runs by this process, and the beginning of the one that two go on with."""
    folder = tmp_path_factory.mktemp("alone")
    for name, plan, bad in (("plain", many.PLAIN, None), ("drawn", many.DRAWN, 0)):
        with many.exactly(bad) as seen:
            training.train(many.config_of(plan), out=folder / name, data=many.data_of(plan), device="cpu")
        (folder / f"{name}.json").write_text(json.dumps(vars(seen)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What two processes leave, and what they said: one start, ended by SIGINT.

    Where pytest has several workers, the first one that asks starts them for all.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return started_together(tmp_path_factory.mktemp("together"))
    folder = tmp_path_factory.getbasetemp().parent / "together"
    with FileLock(f"{folder}.lock"):
        return folder if folder.is_dir() else started_together(folder)


def started_together(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    with many.exactly(), pytest.raises(InterruptedRun):
        training.train(
            many.config_of(many.PLAIN), out=folder / "resumed", data=many.data_of(many.PLAIN), device="cpu",
            progress=many.StopAt(many.ALONE),
        )  # fmt: skip
    with (folder / "said.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", many.__file__, folder],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=said, stderr=said,
        )  # fmt: skip
    try:
        _wait_for_steps(folder / "endless" / "metrics.jsonl", process)
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT)
    finally:
        if process.poll() is None:
            process.terminate()  # so that it ends those that it started, by force after 30 seconds
            process.wait()
    return folder


def _wait_for_steps(path: Path, process: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    while not path.exists() or not path.stat().st_size:
        said = path.parent.parent / "said.txt"
        assert process.poll() is None, said.read_text(encoding="utf-8")
        assert time.monotonic() - began < LIMIT, said.read_text(encoding="utf-8")
        time.sleep(0.05)


def seen_by(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_equal(run: Path, other: Path) -> None:
    """Each number of metrics.jsonl, and weights and optimiser in the norm of each tensor, to TOLERANCE."""
    mine, theirs = rows(run), rows(other)
    assert [list(row) for row in mine] == [list(row) for row in theirs]
    for a, b in zip(mine, theirs):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=TOLERANCE, abs=0)
    states = [runs.load_state(path)[0] for path in (run, other)]
    states = [{f"{g}.{n}": t for g, group in state.items() for n, t in group.items()} for state in states]
    found, expected = ({**s, **load_file(p / "weights.safetensors")} for s, p in zip(states, (run, other)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        apart = (found[name].double() - value.double()).norm().item()
        assert apart <= TOLERANCE * value.double().norm().item(), (name, apart)


# ------------------------------------------------------------------------------------------------ two are as one
@pytest.mark.parametrize("name", ["plain", "drawn"])
def test_two_processes_equal_one(name, alone, together):
    """Losses, weights, moments, average, running sigma, curve; with an empty share, clipping, and a step that all skip."""
    assert_equal(together / name, alone / name)
    assert (together / name / "config.json").read_bytes() == (alone / name / "config.json").read_bytes()
    skipped = runs.Run(together / name).status["skipped"]
    assert skipped == runs.Run(alone / name).status["skipped"] == (1 if name == "drawn" else 0)


@pytest.mark.parametrize("name", ["plain", "drawn"])
def test_every_example_is_taken_exactly_once(name, alone, together):
    one = json.loads((alone / f"{name}.json").read_text(encoding="utf-8"))
    first, second = (seen_by(together, rank)[name] for rank in (0, 1))
    assert [a + b for a, b in zip(first["shuffled"], second["shuffled"], strict=True)] == one["shuffled"]
    assert any(not a for a in first["shuffled"]) == (name == "plain"), "a share may be empty"
    curves = [sum(seen["ordered"], []) for seen in (first, second)]
    epochs, size = 2, len(many.data_of(many.PLAIN if name == "plain" else many.DRAWN).split("validation"))
    assert size % 2 == 1
    assert sorted(curves[0] + curves[1]) == sorted(epochs * list(range(size)))
    assert {row["examples"] for row in rows(together / name) if row["split"] == "validation"} == {size}


def test_a_run_goes_on_by_one_by_two_and_by_one(alone, together):
    """Stopped by a signal that only the process that does not write has met."""
    stopped = [seen_by(together, rank)["interrupted"] for rank in (0, 1)]
    assert stopped == [130, 130]
    run = together / "resumed"
    status = runs.Run(run).status
    assert (status["state"], status["exit_code"], status["step"]) == ("interrupted", 130, many.ALONE + many.TOGETHER)
    with many.exactly():
        training.resume(run, data=many.data_of(many.PLAIN), device="cpu")
    assert_equal(run, alone / "plain")


def test_the_time_of_one_is_the_time_of_all(together):
    status = runs.Run(together / "timed").status
    assert (status["state"], status["step"]) == ("stopped", 1)


def test_processes_that_differ_are_refused(together):
    for rank in (0, 1):
        assert "differ in configuration or data: 1 of 2" in seen_by(together, rank)["other"]


def test_statistics_are_means_weighted_by_examples(together):
    torch.manual_seed(0)
    x, first, second = torch.randn(5, 2, 2, 2), many.parts(), many.parts()
    a, b = many.statistics(first, x[:3]), many.statistics(second, x[3:])
    for rank in (0, 1):
        found = seen_by(together, rank)["statistics"]
        assert found.keys() == a.keys()
        for name in found:
            expected = [0.6 * p + 0.4 * q for p, q in zip(a[name], b[name])]
            assert found[name] == pytest.approx(expected, rel=1e-6), name
    whole = many.statistics(many.parts(), x)  # what only adds up is that of the whole batch; a variance is not
    assert found["0.running_mean"] == pytest.approx(whole["0.running_mean"], rel=1e-5)
    assert found["1.variance"] == pytest.approx(whole["1.variance"], rel=1e-5)
    assert found["0.running_var"] != pytest.approx(whole["0.running_var"], rel=1e-3)


def test_a_signal_saves_and_one_process_speaks(together):
    said = (together / "said.txt").read_text(encoding="utf-8")
    run = runs.Run(together / "endless")
    assert (run.status["state"], run.status["exit_code"]) == ("interrupted", 130)
    assert runs.load_state(run.path)[1]["step"] == run.status["step"] > 0
    assert said.count("error: interrupted") == said.count("loss: this objective") == 1, said
    assert "terminate called" not in said and "Warning" not in said, said
    assert (run.env["processes"], run.env["backend"]) == (2, "gloo")


# ------------------------------------------------------------------------------------------------ two in one process
class Met:
    """In place of accelerate, for two that are threads of one process: adds up what both give."""

    def __init__(self) -> None:
        self.both, self.given = threading.Barrier(2, timeout=60), dict[int, torch.Tensor]()

    def reduce(self, values: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        self.given[threading.get_ident()] = values
        self.both.wait()
        total = sum(self.given.values())
        self.both.wait()  # neither gives more before the other has seen this
        return total


def side_by_side(work: Callable[[distributed._Many], Any]) -> list[Any]:
    """What each of two processes finds."""
    met, pair = Met(), [object.__new__(distributed._Many) for _ in range(2)]
    for rank, process in enumerate(pair):
        process.rank, process.world, process.device, process.accelerator = rank, 2, torch.device("cpu"), met
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, pair))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_unequal_shares_have_the_gradient_and_the_means_of_the_whole_batch(count):
    """torch averages the gradients of the two; a share may be empty."""
    x = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    start = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)

    def terms(weight: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (x @ weight).square() + weight.sum(), "rate": x.sum(1)}

    def work(process: distributed._Many) -> tuple[torch.Tensor, dict[str, float], int]:
        share, weight = x[process.share(count)], start.clone().requires_grad_()
        loss, means, examples = process.reduced(terms(weight, process.fed(share, None)[0]), len(share))
        return torch.autograd.grad(loss, weight)[0], means, examples

    (a, *said), (b, *also) = side_by_side(work)
    weight = start.clone().requires_grad_()
    whole = {name: term.mean() for name, term in terms(weight, x).items()}
    torch.testing.assert_close((a + b) / 2, torch.autograd.grad(whole["loss"], weight)[0], rtol=1e-12, atol=1e-12)
    assert said == also == [pytest.approx({name: mean.item() for name, mean in whole.items()}, rel=1e-12), count]


def test_unequal_shares_have_the_statistics_of_both():
    x = torch.randn(5, 2, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    shares = [x[:2], x[2:]]

    def work(process: distributed._Many) -> dict[str, list[float]]:
        learned, share = many.parts().double(), shares[process.rank]
        many.statistics(learned, share)
        process.average_statistics(learned, len(share) / 5)
        return {name: value.flatten().tolist() for name, value in learned.state_dict().items()}

    first, second = side_by_side(work)
    assert first == second
    alone = [many.statistics(many.parts().double(), share) for share in shares]
    for name in first:
        means = [0.4 * a + 0.6 * b for a, b in zip(*(found[name] for found in alone))]
        assert first[name] == pytest.approx(means), name


def test_each_process_draws_noise_of_its_own(tmp_path, monkeypatch):
    """And the first one that of a process alone."""
    monkeypatch.setattr(distributed, "_accelerator", lambda *_: (None, None))
    words = []
    for rank in (0, 1):
        started(monkeypatch, rank)
        words.append(join("cpu").words)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert words[0] == join("cpu").words
    losses = []
    for rank in (0, 1):
        monkeypatch.setattr(Processes, "words", words[rank])
        config = many.config_of(many.DRAWN, "train.epochs=1")
        training.train(config, out=tmp_path / str(rank), data=tiny_images(20), device="cpu")
        losses.append(rows(tmp_path / str(rank))[0]["loss"])
    assert losses[0] != losses[1]


# ------------------------------------------------------------------------------------------------ one process
def test_one_process_needs_no_accelerate(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    run = training.train(many.config_of(many.PLAIN), out=tmp_path / "run", data=tiny_images(40), device="cpu")
    assert run.env["processes"] == 1 and "backend" not in run.env


def started(monkeypatch, rank: int = 0, world: int = 2, local: int | None = None) -> None:
    told = {
        "RANK": rank,
        "LOCAL_RANK": rank if local is None else local,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
    }
    for name, value in {**told, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


def test_a_compiled_step_is_refused(monkeypatch):
    """What torch.compile runs would go past what adds the gradients up."""
    processes, config = Processes(torch.device("cpu")), many.config_of(many.PLAIN, "train.compile=on")
    processes.world = 2
    with pytest.raises(UsageError, match="train.compile=on is for one process"):
        training._compiled(config, many.data_of(many.PLAIN), processes, math.inf)
    assert not training._compiled(many.config_of(many.PLAIN), many.data_of(many.PLAIN), processes, math.inf)


def test_without_accelerate_the_extra_is_named(monkeypatch):
    started(monkeypatch)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UsageError, match=r"2 processes were started.*\n.*\n.*pip install 'diabolo\[dist\]'"):
        join("cpu")


def test_a_lost_process_is_a_sentence_and_another_fault_is_itself():
    process = object.__new__(distributed._Many)
    lost = (
        "[pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:1. This is typical."
    )
    said = r"another process of this training is lost\n.*closed by peer \[::1\]:1\.\n"
    with pytest.raises(DiaboloError, match=said), process.together():
        raise RuntimeError(lost)
    with pytest.raises(RuntimeError, match="shapes"), process.together():
        raise RuntimeError("shapes cannot be multiplied")


@pytest.mark.parametrize("device", ["mps", "cuda:1", "ODD"])
def test_a_device_that_processes_cannot_share_is_refused(device, monkeypatch):
    started(monkeypatch)
    with pytest.raises(UsageError, match=f"--device {device} is refused with 2 processes"):
        join(device)


@pytest.mark.parametrize(
    "words", [("evaluate", "RUN"), ("reproduce", "mnist"), ("list",), ("train", "vae", "seed=0,1")]
)
def test_what_each_process_would_do_once_more_is_refused(words, monkeypatch, capsys):
    started(monkeypatch)
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    assert left.value.code == 2
    assert "2 processes" in capsys.readouterr().err


@pytest.mark.parametrize(("local", "heard"), [(1, False), (0, True)])
def test_the_first_process_of_each_machine_says_what_is_wrong(local, heard, monkeypatch, capsys):
    started(monkeypatch, rank=1, local=local)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit):
        cli.main(["train", "no-such-preset"])
    sys.stdout.close()  # what leads nowhere
    assert ("no-such-preset" in capsys.readouterr().err) == heard


@pytest.mark.parametrize("world", [1, 2])
def test_one_of_many_ends_without_the_interpreter_s_clean_up(world, monkeypatch):
    """In which gloo's threads now and then abort a process whose training is done."""
    started(monkeypatch, rank=0, world=world)
    script = (
        "import atexit; atexit.register(print, 'cleaned up'); from diabolo import launch; print('said'); launch.end(4)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (ended.returncode, ended.stdout.split("\n")) == (
        4,
        ["said", "cleaned up", ""] if world == 1 else ["said", ""],
    )


@pytest.mark.parametrize("world", [1, 2])
def test_the_command_ends_so_and_another_s_process_does_not(world, monkeypatch):
    started(monkeypatch, rank=0, world=world)
    for given, tokens, cleaned in (("['diabolo', 'train']", "", world == 1), ("['other']", "['train']", True)):
        script = (
            f"import atexit, sys; atexit.register(print, 'cleaned up'); sys.argv = {given}; from diabolo import cli; "
        )
        words = [sys.executable, "-c", f"{script}cli.main({tokens})"]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert (ended.returncode, "cleaned up" in ended.stdout) == (2, cleaned)
        assert "train needs a preset" in ended.stderr


def test_a_launcher_that_tells_too_little_leaves_a_process_alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launch.here() == launch.Launch()


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_cover_each_example_once_and_differ_by_one(world):
    ranks = [Processes(torch.device("cpu")) for _ in range(world)]
    for rank, process in enumerate(ranks):
        process.rank, process.world = rank, world
    for count in (0, 1, 5, 128, 129):
        parts = [list(range(count))[process.share(count)] for process in ranks]
        assert sum(parts, []) == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_drawn_pixels_do_not_depend_on_the_number_of_processes():
    loader = Loader(tiny_images(60, binarize=True), "train")
    whole = list(loader.shuffled(10, 0, 1))
    shares = [
        list(loader.shuffled(10, 0, 1, share=lambda n, k=k: slice(n * k // 3, n * (k + 1) // 3))) for k in range(3)
    ]
    for batch, *cut in zip(whole, *shares, strict=True):
        assert torch.equal(batch.x, torch.cat([part.x for part in cut]))
        assert torch.equal(batch.index, torch.cat([part.index for part in cut]))
