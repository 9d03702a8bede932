"""Runs as processes: the same bits whatever their number, failures that take nothing down, signals and kills that lose nothing.

Every process here is a real one, on data made in code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diabolo import forecast, runs, training, workers
from diabolo.chapters import parts
from diabolo.config import resolve
from diabolo.data import Access, load
from diabolo.errors import UsageError
from diabolo.evaluation import Settings
from diabolo.forecast import Display, Task, makespan
from diabolo.progress import Progress
from diabolo.session import locked
from diabolo.workers import FailedJobs, Failure, InterruptedJobs, Job

pytestmark = pytest.mark.reliability
torch.set_num_threads(1)

MEASURED = Settings(k=5, images=10, elbo_samples=2, curve_k=None, curve_images=0, probes=False)
#: A module of a user's own: it registers a likelihood, speaks where it should not, and leaves its process's number.
OWN = """
import os, sys
from pathlib import Path
from diabolo.models.likelihoods import GaussianLikelihood
from diabolo.registry import register

@register("likelihood", "own")
class Own(GaussianLikelihood):
    '''A Gaussian by another name, which a child knows only if it was given this module.'''

print("printed to stdout")
print("printed to stderr", file=sys.stderr)
Path("pids", str(os.getpid())).touch()
"""


def small(*overrides, epochs=2):
    """A linear VAE on 160 points of the plane: 5 steps an epoch."""
    data = ("data.examples=160", "data.dimensions=4", "train.batch=32", "train.log_every=1")
    return resolve("linear-vae", [*data, f"train.epochs={epochs}", *overrides]).config


def files(run):
    return {name: (Path(run) / name).read_bytes() for name in ("weights.safetensors", "metrics.jsonl", "config.json")}


def straight(path, config):
    """The same run, trained in this process."""
    return training.train(config, out=path, device="cpu").path


class Heard(Progress):
    """Keeps all that is told, and acts on it."""

    def __init__(self, act=lambda heard: None):
        self.total, self.done, self.notes, self.news, self.left, self.act = 0, 0, [], [], [], act

    def start(self, stage, total):
        self.total = total

    def advance(self, units=1, note=""):
        self.done += units
        self.notes.append(note)
        self.act(self)

    def remaining(self, seconds):
        self.left.append(seconds)

    def say(self, text):
        self.news.append(text)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module of a user's own, in the working directory; the folder of the processes that imported it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_parts.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "pids").mkdir()
    return tmp_path / "pids"


# ------------------------------------------------------------------------------------------------ what a pool gives
@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Three jobs, two at a time, of which one cannot be trained: its directory, the error, what was heard."""
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "own_parts.py").write_text(OWN, encoding="utf-8")
        (folder / "pids").mkdir()
        jobs = [
            Job(folder / "a", small(), MEASURED),
            Job(folder / "b", small("model.likelihood=bernoulli")),
            Job(folder / "c", small("objective.beta=2", epochs=3), MEASURED),
        ]
        heard, reused = Heard(), []
        with pytest.raises(FailedJobs) as error:
            workers.run(jobs, processes=2, device="cpu", progress=heard, imports=("own_parts",), reused=reused)
    assert reused == []
    return folder, error.value, heard, jobs


def test_a_job_that_fails_takes_no_other_down(pool):
    folder, error, heard, _ = pool
    assert error.exit_code == 2
    assert str(error).splitlines()[0] == "1 of 3 runs failed"
    assert f"{folder / 'b'}: likelihood 'bernoulli' cannot score real data" in str(error)
    assert "for a likelihood of grey levels" in str(error) and "2 are finished and will be used again" in str(error)
    for name in "ac":
        run = runs.Run(folder / name)
        assert run.status["state"] == "finished" and run.evaluation()["about"]["k"] == 5
        assert run.env["threads"] == 1
        assert "epoch 2/" in (run.path / "log.txt").read_text(encoding="utf-8")
    assert not (folder / "b").exists()
    assert [news for news in heard.news if news.startswith("b: failed: likelihood 'bernoulli'")]


def test_all_is_shown_as_one(pool):
    _, _, heard, _ = pool
    assert heard.total == heard.done == 10 + 10 + 15, "those of a job that failed are not left over"
    epochs = [news for news in heard.news if ": epoch " in news]
    assert sorted(news.split("  ")[0] for news in epochs) == [
        f"{n}: epoch {i}/{m}" for n, m in (("a", 2), ("c", 3)) for i in range(1, m + 1)
    ]
    assert any("a starting" in note and "b starting" in note for note in heard.notes)
    assert any("c epoch" in note or "c log p" in note or "c ELBO" in note for note in heard.notes)
    assert heard.left and all(0 <= left < 1000 for left in heard.left) and heard.left[-1] == 0


def test_every_process_imports_what_the_user_named_and_is_its_own(pool):
    folder, *_ = pool
    pids = {int(path.name) for path in (folder / "pids").iterdir()}
    assert len(pids) == 3 and os.getpid() not in pids
    assert not any(alive(pid) for pid in pids), "no process and no zombie is left"


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_bits_do_not_depend_on_the_number_of_processes(pool, tmp_path):
    """In a pool of two, alone in one process after another, and in this process with one thread."""
    folder, _, _, jobs = pool
    alone = Job(tmp_path / "a", jobs[0].config, MEASURED)
    [made] = workers.run([alone], processes=1, device="cpu")
    assert made.path == alone.path
    assert files(folder / "a") == files(alone.path) == files(straight(tmp_path / "here", jobs[0].config))
    kept = "about", "elbo", "kl"
    assert [made.evaluation()[key] for key in kept[1:]] == [
        runs.Run(folder / "a").evaluation()[key] for key in kept[1:]
    ]


def test_what_is_finished_is_used_again_without_a_process(pool, tmp_path, monkeypatch):
    folder, _, _, jobs = pool
    monkeypatch.setattr(workers, "_Pool", None)
    reused = []
    found = workers.run([jobs[2], jobs[0]], device="cpu", reused=reused)
    assert [run.path for run in found] == [folder / "c", folder / "a"]
    assert reused == [str(folder / name) for name in ("c", "c/evaluation.json", "a", "a/evaluation.json")]
    dataset = load("linear_gaussian", dict(jobs[0].config.data.params))
    stands = [
        parts.stands(folder / "a", jobs[0].config, dataset, settings) for settings in (None, MEASURED, Settings())
    ]
    assert stands == [True, True, False]
    assert not parts.stands(folder / "a", small(epochs=3), dataset, None)


def test_no_job_is_nothing_to_do():
    assert workers.run([]) == []


# ------------------------------------------------------------------------------------------------ what is refused
def test_data_that_are_only_in_memory_are_refused(tmp_path):
    with pytest.raises(UsageError, match="in this process's memory only") as error:
        workers.run([Job(tmp_path / "a", resolve("vae", ["data=tensor"]).config)])
    assert "folder:PATH" in error.value.remedy


def test_jobs_that_share_a_directory_and_no_process_at_all_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="two jobs share"):
        workers.run([Job(Path("a"), small()), Job(tmp_path / "a", small("seed=1"))])
    with pytest.raises(UsageError, match="processes=0"):
        workers.run([Job(Path("a"), small())], processes=0)


def test_the_most_serious_exit_code_is_that_of_all():
    def code(*codes):
        return FailedJobs([Failure(Path("a"), "what", "why", "", c) for c in codes], 9).exit_code

    assert (code(4, 2), code(4, 3, 2), code(4, 3, 1, 2), code(4), code(4, 143)) == (2, 3, 1, 4, 143)
    assert code(77) == 1


def test_an_error_that_several_jobs_met_is_told_once():
    failures = [Failure(Path(name), what, "why\nand how", "remedy", 2) for name, what in zip("abc", "xyx")]
    told = str(FailedJobs(failures, 4)).splitlines()
    assert told == [
        *("3 of 4 runs failed", "a, c: x", "  why", "  and how", "  remedy", "b: y", "  why", "  and how", "  remedy"),
        "Once this is mended, the same command goes on. 1 are finished and will be used again.",
    ]


def test_as_many_processes_as_this_one_may_use(monkeypatch):
    monkeypatch.setattr(os, "process_cpu_count", lambda: 7, raising=False)
    assert workers.cores() == 7
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert workers.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.cores() == 1


# ------------------------------------------------------------------------------------------------ processes that die
def test_a_process_that_is_killed_is_an_error_that_shows_what_it_printed(own, tmp_path):
    killed = []

    def kill(heard):
        if heard.done >= 5 and not killed:
            killed.extend(int(path.name) for path in own.iterdir())
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(FailedJobs) as error:
        workers.run(
            [Job(tmp_path / "a", small(epochs=9000))], device="cpu", progress=Heard(kill), imports=("own_parts",)
        )
    assert error.value.exit_code == 1
    [failure] = error.value.failures
    assert failure.what == "its process was killed by SIGKILL" and "fewer processes" in failure.remedy
    assert failure.why == "printed to stdout\nprinted to stderr"


def test_an_import_that_fails_is_told(own, tmp_path):
    (tmp_path / "broken_parts.py").write_text("import os\nos._exit(7)", encoding="utf-8")
    with pytest.raises(FailedJobs, match="its process ended with exit code 7\n  It said nothing"):
        workers.run([Job(tmp_path / "a", small())], device="cpu", imports=("broken_parts",))


# ------------------------------------------------------------------------------------------------ signals and kills
#: Two of 200 steps in 2 epochs, and a short one.
LONG = {
    **{name: small("data.examples=3200", f"seed={seed}") for seed, name in enumerate("ab")},
    "c": small("seed=2"),
}
#: A module that makes a training of so few steps last some seconds, in the processes that import it.
SLOW = """
import time
from diabolo.training import Trainer

take_step = Trainer._take_step

def slowly(trainer, x, y):
    time.sleep(0.05)
    take_step(trainer, x, y)

Trainer._take_step = slowly
"""


def jobs_in(folder):
    return [Job(folder / name, config) for name, config in LONG.items()]


def logged(run):
    return len((run / "metrics.jsonl").read_bytes().splitlines()) if (run / "metrics.jsonl").exists() else 0


def raise_once(number, when):
    """Sends this process a signal once two runs have begun to log."""
    sent = []

    def act(heard):
        if not sent and when(heard):
            sent.append(number)
            signal.raise_signal(number)

    return act


_POOL = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_workers
from diabolo import workers
workers.run(test_workers.jobs_in(Path(sys.argv[2])), processes=2, device="cpu", imports=("slow_steps",))
"""


def test_signals_and_a_kill_of_the_parent_lose_nothing(tmp_path, monkeypatch):
    """SIGINT, then kill -9 of the parent, then to the end: the runs are those that nothing happened to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow_steps.py").write_text(SLOW, encoding="utf-8")
    begun = [tmp_path / name for name in "ab"]
    act = raise_once(signal.SIGINT, lambda heard: all(logged(run) > 8 for run in begun))
    with pytest.raises(InterruptedJobs, match="The same command goes on") as error:
        workers.run(jobs_in(tmp_path), processes=2, device="cpu", progress=Heard(act), imports=("slow_steps",))
    assert error.value.exit_code == 130
    for run in begun:
        status = runs.Run(run).status
        assert (status["state"], status["exit_code"]) == ("interrupted", 130) and 8 < status["step"] < 200
        with locked(run):
            assert runs.states(run), "its process has left, its state is saved"
    assert not (tmp_path / "c").exists(), "nothing is begun once a signal came"

    before = [logged(run) for run in begun]
    parent = subprocess.Popen([sys.executable, "-c", _POOL, str(Path(__file__).parent), str(tmp_path)])
    wait(lambda: all(logged(run) > count + 8 for run, count in zip(begun, before)), parent)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    wait(lambda: all(runs.Run(run).status["exit_code"] == 143 for run in begun))
    assert all(runs.Run(run).status["state"] == "interrupted" for run in begun), "they saved their states and ended"
    assert not (tmp_path / "c").exists()

    heard = Heard()
    workers.run(jobs_in(tmp_path)[:2], processes=2, device="cpu", progress=heard)
    assert heard.done == heard.total == 200 + 200
    assert sum("going on with 2 epochs" in news for news in heard.news) == 2
    for name in "ab":
        assert files(tmp_path / name) == files(straight(tmp_path / "straight" / name, LONG[name])), name


def wait(until, process=None, seconds=500):
    deadline = time.monotonic() + seconds
    while not until():
        assert process is None or process.poll() is None, "the process ended"
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def test_a_signal_during_an_evaluation_ends_it_at_once(pool, tmp_path):
    folder, _, _, jobs = pool
    long = Settings(k=2_000_000, images=0, elbo_samples=2, curve_k=(), curve_images=0, probes=False)
    before = (folder / "a" / "evaluation.json").read_bytes()
    act = raise_once(signal.SIGTERM, lambda heard: any("a log p(x)" in note for note in heard.notes))
    with pytest.raises(InterruptedJobs) as error:
        workers.run([Job(folder / "a", jobs[0].config, long)], device="cpu", progress=Heard(act))
    assert error.value.exit_code == 143
    assert (folder / "a" / "evaluation.json").read_bytes() == before
    assert runs.Run(folder / "a").status["state"] == "finished"


def test_a_second_ctrl_c_ends_all_at_once(own, tmp_path):
    """The first is not met by a child that is stopped; the second kills it. The run goes on from where it was saved."""

    def twice(heard):
        if heard.done >= 5:
            [child] = [int(path.name) for path in own.iterdir()]
            os.kill(child, signal.SIGSTOP)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        workers.run(
            [Job(tmp_path / "a", small(epochs=9000))], device="cpu", progress=Heard(twice), imports=("own_parts",)
        )
    assert runs.Run(tmp_path / "a").status["state"] == "running"
    assert not any(alive(int(path.name)) for path in own.iterdir()), "no process and no zombie is left"


def test_a_process_that_nobody_reads_saves_and_ends(tmp_path):
    order = workers._order(Job(tmp_path / "a", small(epochs=9000)), Access(), "cpu", ())
    child = subprocess.Popen(
        [sys.executable, "-m", "diabolo.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=workers._environment(),
    )
    child.stdin.write(order)
    child.stdin.flush()
    while b"epoch 1" not in child.stdout.readline():
        assert child.poll() is None
    child.stdout.close()
    assert child.wait(500) == 143
    child.stdin.close()
    status = runs.Run(tmp_path / "a").status
    assert (status["state"], status["exit_code"]) == ("interrupted", 143) and runs.states(tmp_path / "a")


# ------------------------------------------------------------------------------------------------ how long it will take
def test_a_makespan_is_that_of_jobs_in_order_on_the_process_that_is_free_first():
    assert makespan([], [], 2) == 0
    assert makespan([5], [], 2) == 5
    assert makespan([], [3, 3, 3], 2) == 6
    assert makespan([4, 1], [2, 2], 2) == 5, "at 1 the third begins, at 3 the fourth"
    assert makespan([1, 1], [10, 1, 1], 2) == 11
    assert makespan([7], [1, 1, 1], 3) == 7


class Watch:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_the_time_that_is_left_is_that_of_the_schedule():
    """Four jobs of 100 steps of 1 s, evaluated in 20 s, two at a time, 3 s until the first step."""
    watch, heard = Watch(), Heard()
    display = Display([Task(n, n, 100, 2, measuring=10) for n in "abcd"], 2, heard, watch)
    display.begin(0)
    display.begin(1)
    assert display.left() is None and heard.left == []
    watch.now = 3.0
    for i in (0, 1):
        display.stage(i, forecast.TRAINING, 100)
        display.advance(i, 0)
    for now in (13.0, 23.0):
        watch.now = now
        for i in (0, 1):
            display.advance(i, 10)
    assert display.left() == pytest.approx(80 + 10 + 3 + 100 + 10), "an evaluation is first taken for 10 steps"
    assert "a epoch 1/2, b epoch 1/2" in heard.notes
    watch.now = 103.0
    for i in (0, 1):
        display.advance(i, 80)
        display.stage(i, "ELBO on test", 50)
    watch.now = 123.0
    display.end(0)
    assert display.left() == pytest.approx(3 + 100 + 20), "b is about to end; c and d will go side by side"
    display.end(1)
    display.begin(2)
    display.begin(3)
    assert display.left() == pytest.approx(123)
    watch.now = 126.0
    for i in (2, 3):
        display.stage(i, forecast.TRAINING, 100)
        display.advance(i, 60)  # they go on with runs that were interrupted
    assert display.left() == pytest.approx(40 + 20)
    watch.now = 136.0
    display.advance(2, 10)
    assert display.left() == pytest.approx(50), "ten of d's steps are due since it spoke"
    assert heard.done == 100 + 100 + 60 + 60 + 10 and heard.total == 400


def test_jobs_of_another_cost_are_taken_in_proportion_until_one_like_them_was_measured():
    watch = Watch()
    costs = {"a": 1, "b": 4, "c": 4}
    display = Display([Task(n, n, 100, 1, cost=cost) for n, cost in costs.items()], 1, Progress(), watch)
    for i in (0, 1):
        display.begin(i)
        display.stage(i, forecast.TRAINING, 100)
        display.advance(i, 0)
        watch.now += 50
        display.advance(i, 50)
        assert display.left() == pytest.approx((50 + 2 * 400) if i == 0 else (50 + 100))
        watch.now += 50
        display.advance(i, 50)
        display.end(i)


def test_a_model_costs_what_its_layers_multiply():
    """A linear VAE of 4 dimensions with 3 latent ones multiplies 4 (3 + 3) + 3 x 4 numbers; with each goes an addition."""
    dataset = load("linear_gaussian", {"dimensions": 4, "examples": 160})
    assert workers._cost(small(), dataset.spec) == 2 * (4 * 6 + 3 * 4) * 32
    assert workers._cost(small("model.likelihood=bernoulli"), dataset.spec) == 1, (
        "one that cannot be built says so itself"
    )


def test_what_is_ahead_of_an_evaluation_is_what_its_stage_needs_at_its_pace():
    watch = Watch()
    display = Display([Task("a", "a", 10, 1, measuring=1)], 1, Progress(), watch)
    display.begin(0)
    display.stage(0, "log p(x)", 100)
    for _ in range(3):
        watch.now += 10
        display.advance(0, 20)
    assert display.left() == pytest.approx(20)


def test_a_display_of_many_names_some(tmp_path):
    heard = Heard()
    display = Display([Task(str(i), str(i), 1, 1) for i in range(7)], 7, heard, Watch())
    for i in range(7):
        display.begin(i)
    assert heard.notes[-1] == "0 starting, 1 starting, 2 starting, 3 starting and 3 more"


def test_an_order_is_a_line_of_ascii(tmp_path):
    access = Access(cache=tmp_path, offline=True, stall=3.0)
    order = workers._order(Job(tmp_path / "run \u00df \U0001fa80", small(), MEASURED), access, "cpu", ("m",))
    order.decode("ascii")
    assert order.count(b"\n") == 1 and order.endswith(b"\n")
    found = json.loads(order)
    assert Path(found["path"]).name == "run \u00df \U0001fa80" and found["imports"] == ["m"]
    assert found["access"] == {
        "cache": str(tmp_path),
        "data_dir": None,
        "source": "auto",
        "offline": True,
        "stall": 3.0,
    }
