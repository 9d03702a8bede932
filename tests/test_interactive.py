"""The library before a person: one line of progress, Ctrl-C that returns the run, results that show themselves."""

from __future__ import annotations

import builtins
import html
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import diabolo
from diabolo import cli, interactive, results, runs
from diabolo.errors import DataError, UsageError
from diabolo.progress import Progress
from diabolo.session import InterruptedRun
from test_contracts import StopAt, assert_same_run

torch.set_num_threads(1)

TINY = ("model.encoder.width=8", "model.decoder.width=8", "model.latent=2", "train.epochs=3", "train.batch=20")
X = np.random.default_rng(0).uniform(size=(60, 6, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(out: str = "run", progress: Progress | None = None, *overrides: str) -> diabolo.Run:
    how = {"overrides": [*TINY, *overrides], "out": out, "device": "cpu", "progress": progress}
    return diabolo.train("vae", X, labels=np.arange(60) % 3, **how)


# ------------------------------------------------------------------------------------------------ one line
class Kernel:
    """A notebook's shell as the library meets it; keeps what is published."""

    def __init__(self) -> None:
        self.kernel, self.display_pub, self.published = object(), self, []

    def publish(self, data: dict, *, transient: dict, update: bool) -> None:
        self.published.append((data["text/plain"], transient["display_id"], update))


@pytest.fixture
def kernel(monkeypatch) -> Kernel:
    shell = Kernel()
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)
    return shell


@pytest.fixture
def prompt(monkeypatch) -> Callable[[], io.StringIO]:
    """From the call on this process is at a prompt, and its stderr is what the call returns."""

    def begin() -> io.StringIO:
        stream = io.StringIO()
        stream.isatty = lambda: True
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return begin


def test_a_notebook_gets_one_output_that_is_updated(kernel, capsys):
    run = trained(progress="auto")
    lines, names, updates = zip(*kernel.published)
    assert len(set(names)) == 1 and updates == (False, *[True] * (len(updates) - 1))
    assert lines[-1].startswith("training [####################] 9/9  epoch 3/3  loss ")
    diabolo.evaluate(run, k=3, images=4)
    assert len({name for _, name, _ in kernel.published}) == 2, "an output a call"
    assert kernel.published[-1][0].endswith("4/4")
    assert capsys.readouterr() == ("", "")


def test_a_prompt_gets_one_line_that_rewrites_itself(prompt, capsys):
    stream = prompt()
    trained(progress="auto")
    text = stream.getvalue()
    assert text.startswith("\rtraining [") and text.endswith("\n") and text.count("\n") == 1
    lines = text.rstrip("\n").split("\r")[1:]
    assert {len(line) for line in lines} == {interactive.WIDTH}
    assert "9/9" in lines[-1]
    assert capsys.readouterr().out == ""


def test_a_script_is_told_nothing(capsys, monkeypatch):
    trained(progress="auto")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)  # a prompt whose stderr goes into a file
    trained("other", progress="auto")
    assert capsys.readouterr() == ("", "")


def test_in_ipython_without_a_notebook_a_terminal_is_a_terminal(prompt, monkeypatch):
    monkeypatch.setattr(builtins, "get_ipython", lambda: SimpleNamespace(), raising=False)
    stream = prompt()
    trained(progress="auto")
    assert stream.getvalue().startswith("\r")


def test_progress_of_ones_own_and_none_at_all(kernel):
    seen = []

    class Mine(Progress):
        def start(self, stage: str, total: int) -> None:
            seen.append((stage, total))

    trained(progress=Mine())
    trained("other", progress=None)
    assert seen == [("training", 9)]
    assert kernel.published == []


def test_the_line_is_written_at_most_five_times_a_second_and_at_the_end(monkeypatch):
    clock, shown = SimpleNamespace(now=100.0), []
    monkeypatch.setattr(interactive, "time", SimpleNamespace(monotonic=lambda: clock.now))
    line = interactive.Line(shown.append)
    line.start("counting", 1000)
    for _ in range(1000):
        clock.now += 0.01
        line.advance(1, "busy")
    assert 45 <= len(shown) <= 51
    line.finish()
    assert shown[-1] == "counting [####################] 1,000/1,000  busy"
    assert shown[0].isascii() and "[      " in shown[0]


def test_an_error_ends_the_line(prompt):
    stream = prompt()
    with pytest.raises(UsageError), interactive.chosen("auto") as line:
        line.start("training", 10)
        line.advance()
        raise UsageError("no")
    assert stream.getvalue().endswith("\n") and "1/10" in stream.getvalue()


# ------------------------------------------------------------------------------------------------ Ctrl-C
def notes(caplog) -> list[str]:
    """What the library says aloud; without a handler, as in a notebook, logging writes it to stderr."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_ctrl_c_saves_and_returns_the_run_which_goes_on_to_the_same_bits(caplog):
    trained("straight")
    run = trained("run", StopAt(4))
    assert isinstance(run, diabolo.Run)
    assert (run.status["state"], run.status["exit_code"], run.status["step"]) == ("interrupted", 130, 4)
    assert notes(caplog) == [
        "interrupted: everything up to step 4 is saved; go on with diabolo.resume(run), later with "
        "diabolo.resume('run', data)"
    ]
    again = diabolo.resume(run, device="cpu", progress=StopAt(6))
    assert (again.status["state"], again.status["step"]) == ("interrupted", 6)
    done = diabolo.resume("run", X, labels=np.arange(60) % 3, device="cpu")
    assert done.status["state"] == "finished"
    assert_same_run(Path("run"), Path("straight"))
    with pytest.raises(UsageError, match="finished"):
        diabolo.resume(done)


def test_the_note_names_the_path_alone_where_the_data_are_known(caplog):
    run = diabolo.train("vae", overrides=TINY, out="run", device="cpu", progress=StopAt(2))
    assert notes(caplog)[-1].endswith("later with diabolo.resume('run')")
    assert diabolo.resume(run.path, device="cpu").status["state"] == "finished"


def test_a_handler_of_the_caller_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    trained("run", StopAt(4))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once():
    class Twice(StopAt):
        def advance(self, units: int = 1, note: str = "") -> None:
            super().advance(units, note)
            if self.left == 0 and units:
                signal.raise_signal(self.number)

    with pytest.raises(KeyboardInterrupt):
        trained("run", Twice(4))
    assert runs.Run("run").status["reason"] == "stopped at once"


def test_sigterm_ends_the_program():
    with pytest.raises(InterruptedRun):
        trained("run", StopAt(4, signal.SIGTERM))
    assert runs.Run("run").status["exit_code"] == 143


def test_the_command_line_still_leaves_with_130(monkeypatch):
    class Shown(StopAt):
        def __enter__(self) -> Shown:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(cli, "_progress", lambda: Shown(4))
    assert cli._run(["train", "vae", *TINY, "--out", "run", "--device", "cpu"]) == 130


def test_another_thread_trains_without_touching_signals():
    found, before = [], signal.getsignal(signal.SIGINT)
    worker = threading.Thread(target=lambda: found.append((trained(), signal.getsignal(signal.SIGINT))))
    worker.start()
    worker.join(60)
    [(run, during)] = found
    assert run.status["state"] == "finished"
    assert during is before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_real_prompt(tmp_path):
    """An interpreter on a terminal, a signal from outside: the line, the note, and the run in hand."""
    import pty

    above, below = pty.openpty()
    code = "import diabolo; run = diabolo.train('vae', overrides=['train.epochs=100000'], out='run', device='cpu')\n"
    child = subprocess.Popen(
        [sys.executable, "-i", "-q", "-c", code],
        stdin=below,
        stdout=below,
        stderr=below,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )
    os.close(below)
    said: list[bytes] = []
    reader = threading.Thread(target=_read, args=(above, said), daemon=True)
    reader.start()
    try:
        # The line is shown five times a second: which epochs it catches depends on the machine, so none is waited for by number.
        _wait(lambda: b"".join(said).count(b"epoch ") > 1)
        child.send_signal(signal.SIGINT)
        _wait(lambda: b"go on with" in b"".join(said))
        os.write(above, b"print('state', run.status['state']); exit()\n")
        assert child.wait(60) == 0
        _wait(lambda: b"state interrupted" in b"".join(said))
    finally:
        child.kill()
        child.wait()
        os.close(above)
    text = b"".join(said).decode()
    assert text.count("\rtraining [") > 1
    assert "Traceback" not in text


def _read(descriptor: int, said: list[bytes]) -> None:
    try:
        while chunk := os.read(descriptor, 4096):
            said.append(chunk)
    except OSError:
        return


def _wait(done) -> None:
    until = time.monotonic() + 90
    while not done():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------ numbers
@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on arrays and its evaluation."""
    run = trained(str(tmp_path_factory.mktemp("made") / "a & <b>"))
    return run, diabolo.evaluate(run, k=7, images=6, device="cpu")


def test_an_evaluation_is_the_mapping_of_evaluation_json(made):
    run, found = made
    written = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(dict(found))) == written and found == dict(found)
    assert list(found) == list(written) and len(found) == len(written) and "elbo" in found
    assert found["elbo"]["value"] == found.elbo.value


def test_numbers_are_attributes_with_all_that_they_are(made):
    _, found = made
    for name in ("elbo", "log_p", "kl", "distortion", "mse_mean", "linear_probe", "active_units"):
        number = getattr(found, name)
        assert (number.value, number.n, number.unit) == tuple(found[name][key] for key in ("value", "n", "unit"))
        assert number.split == "test" and name in dir(found)
    assert str(found.elbo).endswith("nats/image, test split, n = 6") and " +- " in str(found.elbo)
    with pytest.raises(AttributeError, match="elbo, "):
        found.elob  # noqa: B018
    with pytest.raises(AttributeError):
        found.about  # noqa: B018


def test_an_evaluation_prints_as_a_table(made):
    _, found = made
    heading, columns, *rows = repr(found).splitlines()
    assert heading == "Evaluation: data tensor, test split, likelihood gaussian"
    assert columns.split() == ["metric", "value", "+-", "se", "unit", "n"]
    named = {row.split()[0]: row for row in rows}
    assert f"{found.elbo.value:.2f}" in named["elbo"] and f"{found.elbo.se:.2f}" in named["elbo"]
    assert named["log_p"].startswith("log_p (K = 7)") and named["elbo"].endswith(" 6")
    assert len({len(row) for row in (columns, *rows)}) == 1 and repr(found).isascii()


def test_an_evaluation_shows_itself_as_html(made):
    page = made[1]._repr_html_()
    root = ElementTree.fromstring(page.replace("&plusmn;", "+-"))
    assert root.findtext("caption") == "data tensor, test split, likelihood gaussian"
    cells = {row[0].text: [cell.text for cell in row] for row in root.find("tbody")}
    assert cells["kl"] == ["kl", f"{made[1].kl.value:.2f}", f"{made[1].kl.se:.2f}", "nats/image", "6"]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"normalised": False}, "unnormalised"), ({"smoke": True}, "mean nothing"), ({"likelihood": "<b>"}, "&lt;b&gt;")],
)
def test_what_qualifies_the_numbers_is_said(change, said, made):
    changed = results.Evaluation({**made[1], "about": {**made[1]["about"], **change}})
    assert said in changed._repr_html_()
    assert html.unescape(said) in repr(changed)


# ------------------------------------------------------------------------------------------------ figures
def test_a_run_draws_its_curves(made, tmp_path):
    run, _ = made
    for quantity in ("loss", "distortion", "rate"):
        drawing = run.curves(quantity)
        saved = drawing.save(tmp_path / f"{quantity}.svg")
        assert saved.read_text(encoding="utf-8") == drawing._repr_svg_()
        root = ElementTree.parse(saved).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("width").endswith("pt")
        assert quantity in drawing.about and "nats/image" in drawing.about and drawing.about in repr(drawing)
    assert run.curves().svg == run.curves().svg, "the same bytes"
    with pytest.raises(UsageError, match="loss"):
        run.curves("elbo")
    with pytest.raises(UsageError, match=r"\.svg"):
        run.curves().save(tmp_path / "curves.png")


def test_a_run_shows_samples_and_reconstructions(made, tmp_path):
    run, _ = made
    for picture, rows in ((run.samples(9), 3), (run.reconstructions(5), 2)):
        png, shown = picture._repr_png_()
        assert png == picture.save(tmp_path / "x.png").read_bytes()
        width, height = Image.open(io.BytesIO(png)).size
        assert height > rows * 6 and shown["width"] % width == 0 and shown["width"] * height == shown["height"] * width
        assert results.SHOWN_PIXELS / 2 < max(shown.values()) <= results.SHOWN_PIXELS
        assert len(repr(picture)) < 200
    for wrong in (run.samples, run.reconstructions):
        with pytest.raises(UsageError, match="at least 1"):
            wrong(0)
    with pytest.raises(UsageError, match=r"\.png"):
        run.samples(4).save(tmp_path / "x.jpg")


def test_figures_are_those_of_the_command_line(tmp_path):
    diabolo.train("vae", overrides=["train.epochs=1"], out="run", device="cpu", progress=None)
    run = diabolo.Run("run")
    assert cli._run(["sample", "run", "--n", "9", "--seed", "2", "--out", "s.png"]) == 0
    assert cli._run(["reconstruct", "run", "--n", "20", "--out", "r.png"]) == 0
    assert run.samples(9, seed=2).png == Path("s.png").read_bytes()
    assert run.reconstructions(20).png == Path("r.png").read_bytes()


def test_a_run_shows_itself(made):
    run, _ = made
    page = run._repr_html_()
    root = ElementTree.fromstring(page)
    assert root.find("p/b").text == "a & <b>"
    assert "finished, preset vae, epoch 3 of 3" in page and "{http://www.w3.org/2000/svg}svg" in str([
        element.tag for element in root.iter()
    ])
    assert "no report yet" in page
    assert cli._run(["report", str(run.path)]) == 0
    links = [element.get("href") for element in ElementTree.fromstring(run._repr_html_()).iter("a")]
    assert [Path(link) for link in links] == [run.path / "report.html"]
    (run.path / "report.html").unlink()
    assert repr(run) == f"Run({str(run.path)!r}): finished, preset vae, epoch 3 of 3"


def test_before_an_epoch_has_ended_there_is_no_curve():
    run = trained("run", StopAt(1))
    with pytest.raises(DataError, match="No epoch"):
        run.curves()
    assert "No epoch has ended yet" in run._repr_html_() and "interrupted" in repr(run)


def test_arrays_are_known_to_the_run_that_train_returned_and_checked():
    run = trained()
    again = diabolo.evaluate("run", X, labels=np.arange(60) % 3, k=3, images=4)
    assert diabolo.evaluate(run, k=3, images=4)["elbo"] == again["elbo"]
    for call in (diabolo.Run("run").reconstructions, lambda: diabolo.evaluate("run")):
        with pytest.raises(DataError, match="memory"):
            call()
    with pytest.raises(DataError, match="not those of"):
        diabolo.Run("run", diabolo.data.from_tensor(X / 2))


def test_vectors_have_numbers_and_curves_but_no_pictures():
    run = diabolo.train("vae", X.reshape(60, 30), overrides=TINY, out="run", device="cpu")
    assert "nats/example" in run.curves().about
    for picture in (run.samples, run.reconstructions):
        with pytest.raises(UsageError, match="vectors"):
            picture(4)


def test_a_time_from_python():
    run = diabolo.train("vae", overrides=["train.epochs=100000"], out="run", time="1s", device="cpu")
    assert (run.status["state"], run.status["reason"]) == ("stopped", "time: 1s")
    before = run.status["step"]
    assert diabolo.resume(run, time="1s", device="cpu").status["step"] > before
    with pytest.raises(UsageError, match="1h30m"):
        diabolo.train("vae", time="1 hour")
