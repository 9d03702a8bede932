"""Ranges and what is refused of them; a sweep's numbers against the images that they are means of; its page and its curve."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diabolo import cli, plots, ranges, runs, sweep, workers
from diabolo.chapters import parts
from diabolo.config import parameter_of, resolve
from diabolo.data import Access, load
from diabolo.errors import UsageError
from diabolo.plots import Mark
from diabolo.progress import Progress
from diabolo.workers import FailedJobs, Failure
from test_language import english_words, texts_of
from test_report import Page

torch.set_num_threads(1)

#: Overrides that make a run of a second: 5 steps on vectors, 21 on images.
VECTORS = ("data.examples=160", "data.dimensions=4", "train.batch=32", "train.epochs=1")
IMAGES = ("train.epochs=1", "model.encoder.width=16", "model.decoder.width=16")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def values(preset, *overrides):
    return [point.value for point in ranges.plan(preset, overrides).points]


# ------------------------------------------------------------------------------------------------ ranges
def test_a_geometric_range_has_equal_factors_and_its_ends():
    found = values("vae", "objective.beta=log:0.01..10:7")
    assert found == [0.01, 0.03162, 0.1, 0.3162, 1.0, 3.162, 10.0]
    assert values("vae", "objective.beta=log:8..2:3") == [8.0, 4.0, 2.0], "downwards too"
    assert values("vae", "train.lr=log:1.23456789e-5..1:2") == [1.23456789e-5, 1.0], "ends as they were given"


def test_a_linear_range_has_equal_differences_and_its_ends():
    assert values("vae", "objective.beta=lin:0..1:5") == [0, 0.25, 0.5, 0.75, 1]
    assert values("vae", "objective.beta=lin:0..1:4") == [0, 0.333333, 0.666667, 1]
    assert values("vae", "model.likelihood.scale=log:.05..5:3") == [0.05, 0.5, 5.0]


def test_whole_numbers_are_rounded():
    assert values("vae", "model.latent=log:2..32:5") == [2, 4, 8, 16, 32]
    assert values("vae", "model.latent=log:3..50:4") == [3, 8, 20, 50], "3, 7.66, 19.57, 50"
    assert all(type(value) is int for value in values("vae", "model.encoder.width=lin:10..25:4"))


@pytest.mark.parametrize(
    "written", [("objective.beta={0.1, 1,4}",), ("objective.beta=0.1", "objective.beta=1", "objective.beta=4")]
)
def test_a_list_has_its_values_quoted_or_taken_apart_by_the_shell(written):
    plan = ranges.plan("vae", ["train.epochs=1", *written])
    assert [point.value for point in plan.points] == [0.1, 1.0, 4.0]
    assert plan.overrides == ("train.epochs=1",) and plan.parameter == "objective.beta"
    assert [plan.folder(point) for point in plan.points] == [f"objective.beta={text}" for text in ("0.1", "1", "4")]


def test_words_and_none_may_be_listed():
    plan = ranges.plan("vae", ["model.encoder.activation={relu,tanh}"])
    assert [plan.folder(point) for point in plan.points] == [
        f"model.encoder.activation={word}" for word in ("relu", "tanh")
    ]
    assert values("vae", "model.likelihood.scale={0.5,none}") == [0.5, None]


def test_a_point_is_the_preset_with_its_value_alone_changed():
    for point in ranges.plan("vae", ["train.epochs=3", "objective.beta=log:0.1..10:3"]).points:
        assert point.config == resolve("vae", ["train.epochs=3", f"objective.beta={point.value}"]).config


def test_a_saved_configuration_can_be_swept(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(resolve("vae", ["model.latent=3"]).config.to_dict()), encoding="utf-8"
    )
    plan = ranges.plan("config.json", ["objective.beta={1,2}"])
    assert [point.config.model.latent for point in plan.points] == [3, 3] and plan.preset == "vae"
    assert plan.default_place() == Path("runs/sweep/vae-objective.beta")


def test_a_folder_is_a_file_name_everywhere():
    config = resolve("vae").config
    made = ranges.Plan("vae", "a.b", "", (), ())
    for label in ('a/b\\c:d*?"<>|', "\u00e9", "..", "-1e-05"):
        assert re.fullmatch(r"a\.b=[A-Za-z0-9._+-]+", made.folder(ranges.Point(label, label, config)))


#: What is refused, and a part of what is said.
WRONG = [
    ((), "exactly one range, and there is none"),
    (("objective.beta=1",), "there is none"),
    (("objective.beta=log:1..2:3", "train.lr=lin:1..2:3"), "there are 2: objective.beta, train.lr"),
    (("objective.beta=log:1..2:3", "objective.beta=4"), "is given 2 times"),
    (("objective.beta=log:0..1:3",), "must be greater than 0"),
    (("objective.beta=log:1..-1:3",), "must be greater than 0"),
    (("objective.beta=lin:0..1",), "log:FROM..TO:POINTS"),
    (("objective.beta=lin:0...1:3:4",), "is no range"),
    (("objective.beta=lin:0..inf:3",), "is no range"),
    (("objective.beta=lin:0..1e999:3",), "must be finite"),
    (("objective.beta=log:a..b:3",), "is no range"),
    (("objective.beta=lin:0..1:1",), "has 1 points"),
    (("objective.beta=lin:0..1:101",), "has 101 points"),
    (("objective.beta=lin:0..1:2.5",), "is no range"),
    (("objective.beta={1",), "is no range"),
    (("objective.beta={}",), "empty value"),
    (("objective.beta={1,,2}",), "empty value"),
    (("objective.beta={1}",), "has one value"),
    (("objective.beta={1,1.0}",), "has the value 1 twice"),
    (("objective.beta=lin:1..1:2",), "twice"),
    (("model.latent=lin:2..3:4",), "has the value 2 twice"),
    (("model.latent={2,2.5}",), "model.latent=2.5 is refused"),
    (("objective.beta=lin:-1..1:3",), "objective.beta=-1.0 is refused"),
    (("model.encoder.activation=lin:0..1:2",), "It must be one of relu"),
    (("objective.bta=log:1..2:3",), 'Did you mean "objective.beta"'),
    (("data={digits,mnist}",), "data cannot be swept"),
    (("data.validation=lin:0..8:3",), "data.validation cannot be swept"),
    (("model.likelihood={gaussian,bernoulli}",), "model.likelihood cannot be swept"),
    (("model.encoder.name={mlp,conv}",), "model.encoder.name cannot be swept"),
    (("model.latent={2,3}", "model.prior=none"), "this model has no rate"),
]


@pytest.mark.parametrize(
    ("overrides", "told"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_wrong_range_is_a_usage_error(overrides, told):
    with pytest.raises(UsageError) as error:
        ranges.plan("vae", overrides)
    assert told in str(error.value)


def test_what_is_wrong_is_said_without_torch(tmp_path):
    """Help and every refusal of the command line, in one process of its own."""
    commands = [
        (0, ["sweep", "--help"]),
        *((2, ["sweep", "vae", *overrides]) for overrides, _ in WRONG[:4]),
        (2, ["sweep", "vae", "objective.beta={1,2}", "--processes", "0"]),
        (2, ["sweep", "vae", "objective.beta={1,2}", "--lang", "klingon"]),
        (2, ["sweep", "folder:pictures", "objective.beta={1,2}"]),
        (2, ["sweep", "none-such", "objective.beta={1,2}"]),
        (2, ["sweep", "vae", "objective.beta={1,2}", "--out", "file"]),
        (2, ["sweep", "vae", "objective.beta={1,2}", "--out", "run"]),
    ]
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    code = (
        "import json, sys\nfrom diabolo import cli\nfor code, words in json.loads(sys.argv[1]):\n"
        "    assert cli._run(words) == code, words\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "log:0.01..10:7" in done.stdout
    assert "diabolo sweep vae data=folder:pictures" in done.stderr


def test_a_parameter_is_found_by_its_path():
    config = resolve("vae").config
    assert parameter_of(config, "model.likelihood.scale").type == "float | None"
    assert parameter_of(config, "model.likelihood").type == "str"
    with pytest.raises(UsageError, match="unknown key 'model.likelihood.scael'"):
        parameter_of(config, "model.likelihood.scael")


# ------------------------------------------------------------------------------------------------ a sweep on the command line
def test_a_sweep_makes_its_runs_numbers_curve_and_page_and_uses_them_again(tmp_path, capsys, monkeypatch):
    """Real processes, on vectors, which have no PSNR."""
    words = ["sweep", "linear-vae", "objective.beta=log:0.5..2:2", *VECTORS, "--processes", "2", "--device", "cpu"]
    assert cli._run(words) == 0
    printed, told = capsys.readouterr()
    place = tmp_path / "runs" / "sweep" / "linear-vae-objective.beta"
    names = ["objective.beta=0.5", "objective.beta=2"]
    assert sorted(path.name for path in place.iterdir()) == [*names, "rate_distortion.svg", "report.html", "sweep.json"]
    assert "data linear_gaussian, test split, real values, likelihood gaussian, n = 32" in printed
    assert "nats/example, value +- standard error over examples" in printed and "PSNR" not in printed
    assert f"report: {Path('runs/sweep/linear-vae-objective.beta/report.html')}" in printed
    assert "objective.beta=0.5: epoch 1/1  train loss" in told and "used again" not in printed

    monkeypatch.setattr(workers, "_Pool", None)  # no process is started
    assert cli._run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["reused"]) == 4
    saved = json.loads((place / "sweep.json").read_text(encoding="utf-8"))
    assert {key: found[key] for key in saved} == saved
    assert (saved["range"], saved["unit"], saved["failed"]) == ("log:0.5..2:2", "nats/example", [])
    for point, name in zip(saved["points"], names):
        assert point["run"] == name and "psnr" not in point
        check_numbers(place / name, point, psnr=False)
    page = Page(place / "report.html")
    assert not [e for e in page.all("th") if "PSNR" in e.text]
    assert "Upwards: the distortion" in page.source


def check_numbers(run, point, psnr=True):
    """A point's numbers are those of the examples that its evaluation kept."""
    per_image = load_file(run / "per_image.safetensors")
    names = {"rate": "kl", "distortion": "distortion", "elbo": "elbo", "mse_sample": "mse_sample"}
    for name, column in names.items():
        x, entry = per_image[column], point[name]
        assert entry["n"] == len(x)
        assert entry["value"] == pytest.approx(x.mean().item(), rel=1e-9)
        assert entry["se"] == pytest.approx(x.std().item() / math.sqrt(len(x)), rel=1e-9)
    assert point["elbo"]["value"] == pytest.approx(-point["distortion"]["value"] - point["rate"]["value"])
    active = sum((column.var() > 0.01).item() for column in per_image["mean"].T)
    assert (point["active_units"]["value"], point["active_units"]["of"]) == (active, per_image["mean"].shape[1])
    if psnr:
        error, se = point["mse_sample"]["value"], point["mse_sample"]["se"]
        assert point["psnr"]["value"] == pytest.approx(20 * math.log10(1 / math.sqrt(error)))
        slope = (math.log10(error * 1.0001) - math.log10(error * 0.9999)) / (0.0002 * error)
        assert point["psnr"]["se"] == pytest.approx(10 * slope * se, rel=1e-6)
        assert (point["psnr"]["unit"], point["psnr"]["z"]) == ("dB", "drawn")


# ------------------------------------------------------------------------------------------------ its page
def here(jobs, **how):
    """What `workers.run` does, in this process."""
    dataset = load(jobs[0].config.data.name, jobs[0].config.data.params)
    made = [parts.trained(job.path, job.config, dataset, "cpu", Progress(), []) for job in jobs]
    for run, job in zip(made, jobs):
        parts.evaluated(run, dataset, job.settings, "cpu", Progress(), [])
    return made


@pytest.fixture(scope="module")
def scales(tmp_path_factory):
    """A sweep of a Gaussian's standard deviation on small images, in English and in Chinese."""
    out = tmp_path_factory.mktemp("scales")
    plan = ranges.plan("vae", ["model.likelihood.scale=log:0.05..1:3", *IMAGES])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "run", here)
        chinese = Page(sweep.sweep(plan, out, lang="zh").report)
        return sweep.sweep(plan, out), chinese


def test_the_scale_of_a_likelihood_can_be_swept(scales):
    swept, _ = scales
    points = swept.found["points"]
    assert [point["value"] for point in points] == [0.05, 0.2236, 1.0]
    assert [point["sigma"] for point in points] == pytest.approx([0.05, 0.2236, 1.0])
    for point in points:
        check_numbers(swept.report.parent / point["run"], point)
    rates = [point["rate"]["value"] for point in points]
    assert rates[0] > rates[1] > rates[2], "the narrower p(x|z), the more a pixel is worth"


def test_every_number_of_the_page_is_one_that_was_measured(scales):
    swept, _ = scales
    page = Page(swept.report)
    cells = [e for e in page.all("td") if "data-metric" in e.attributes]
    assert len(cells) == 3 * 6
    measured = {point["run"]: point for point in swept.found["points"]}
    for e in cells:
        entry = measured[e.attributes["data-run"]][e.attributes["data-metric"]]
        assert float(e.attributes["data-value"]) == entry["value"]
        text = e.text.replace("\u2212", "-").replace(",", "")
        digits = {"mse_sample": 5, "active_units": 0}.get(e.attributes["data-metric"], 2)
        assert text.startswith(f"{entry['value']:.{digits}f}")
        assert entry["se"] is None or text.endswith(f"\u00b1 {entry['se']:.{digits}f}")


def test_captions_say_what_was_measured_and_rank_nothing(scales):
    swept, _ = scales
    page = Page(swept.report)
    [facts] = [e for e in page.all("span") if e.attributes.get("class") == "facts"]
    for word in (
        "digits, grey pixels",
        "split: test",
        "likelihood: gaussian",
        "nats/image and dB",
        "n = 297",
        "seed 0",
    ):
        assert word in facts.text
    assert "sigma =" not in facts.text, "it differs from point to point, and stands in the table"
    text = re.sub(r"<style>.*?</style>|<code>.*?</code>|<[^>]*>", " ", page.source, flags=re.S).lower()
    assert not re.search(r"\b(best|better|worst|worse|optimal|winner|beats|improve\w*|trade-off)\b", text)


def test_the_page_needs_nothing_but_itself(scales):
    for page in (Page(scales[0].report), scales[1]):
        assert not page.all("script") and not page.all("link")
        assert all(e.attributes["href"].startswith("#") for e in page.elements if "href" in e.attributes)
        assert "://" not in page.source


def test_the_page_can_be_chinese(scales):
    english, page = Page(scales[0].report), scales[1]
    assert page.all("html")[0].attributes["lang"] == "zh-Hans"
    left = {word for text in texts_of(page) for word in english_words(text)}
    assert left <= {"vae", "model", "likelihood", "scale", "digits", "gaussian", "labels"}, left
    for key in ("data-value", "data-metric", "id", "class"):
        assert [e.attributes.get(key) for e in english.elements] == [e.attributes.get(key) for e in page.elements]


def test_one_labelled_point_a_value_lies_where_it_was_measured(scales):
    swept, _ = scales
    drawn = swept.figure.read_text(encoding="utf-8")
    assert drawn.startswith("<?xml") and 'xmlns="http://www.w3.org/2000/svg"' in drawn
    for text in ("0.05", "0.2236", "PSNR at drawn z, dB", "rate, KL(q(z|x) || p(z)), nats/image"):
        assert f">{text}</text>" in drawn, text
    labels = [e.text for e in Page(swept.report).all("text")]
    assert {"0.05", "0.2236"} <= set(labels)


def test_marks_are_drawn_at_their_places_with_their_names_and_errors():
    points = [Mark("a", 1.0, 5.0, 0.1, 0.2), Mark("b", 3.0, 4.0, 0.3, 0.4)]
    [axes] = plots.marks(points, "rate", "distortion").axes
    line = axes.containers[0].lines[0]
    assert line.get_xydata().tolist() == [[1.0, 5.0], [3.0, 4.0]]
    assert [(t.get_text(), t.xy) for t in axes.texts] == [("a", (1.0, 5.0)), ("b", (3.0, 4.0))]
    across, up = axes.containers[0].lines[2]
    assert across.get_segments()[1].tolist() == [[2.7, 4.0], [3.3, 4.0]]
    assert up.get_segments()[0].tolist() == [[1.0, 4.8], [1.0, 5.2]]


# ------------------------------------------------------------------------------------------------ what fails
def test_the_points_that_did_not_fail_are_written_before_the_error(tmp_path, monkeypatch):
    plan = ranges.plan("linear-vae", ["objective.beta={0.5,1,2}", *VECTORS])

    def one_fails(jobs, **how):
        here([jobs[0], jobs[2]])
        raise FailedJobs([Failure(jobs[1].path, "it diverged", "why", "", 4)], 3)

    monkeypatch.setattr(workers, "run", one_fails)
    with pytest.raises(FailedJobs, match="it diverged"):
        sweep.sweep(plan, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "sweep.json").read_text(encoding="utf-8"))
    assert [point["label"] for point in found["points"]] == ["0.5", "2"]
    assert found["failed"] == [{"label": "1", "what": "it diverged", "why": "why"}]
    assert "since their runs failed: 1." in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_nothing_is_written_where_all_fail(tmp_path, monkeypatch):
    plan = ranges.plan("linear-vae", ["objective.beta={0.5,1}", *VECTORS])

    def all_fail(jobs, **how):
        raise FailedJobs([Failure(job.path, "what", "", "", 3) for job in jobs], 2)

    monkeypatch.setattr(workers, "run", all_fail)
    with pytest.raises(FailedJobs, match="2 of 2 runs failed"):
        sweep.sweep(plan, tmp_path / "out", access=Access(offline=True))
    assert not (tmp_path / "out").exists()


def test_a_plan_says_what_each_run_is(tmp_path, monkeypatch):
    seen = {}

    def look(jobs, **how):
        seen.update(how, jobs=jobs)
        return here(jobs)

    monkeypatch.setattr(workers, "run", look)
    plan = ranges.plan("linear-vae", ["model.latent={1,2}", *VECTORS])
    sweep.sweep(plan, tmp_path, processes=3, device="cpu", imports=("m",))
    assert (seen["processes"], seen["device"], seen["imports"]) == (3, "cpu", ("m",))
    assert [runs.Run(job.path).config.model.latent for job in seen["jobs"]] == [1, 2]
