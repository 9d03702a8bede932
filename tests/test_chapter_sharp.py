"""The sharp chapter from runs to report on generated images, what is used again, and its page from made-up runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import sharp_made_up as made_up
from cifar10_made_up import SHAPE
from diabolo import fitted, packaged, registry
from diabolo.chapters import (
    CHAPTERS,
    cifar10,
    parts,
    sharp,
    sharp_claims,
    sharp_numbers,
    sharp_page,
    sharp_pictures,
    sharp_table,
    sharp_words,
)
from diabolo.chapters.sharp import ABLATION, ARTICLE, PLANS, PRIORS, Plan, reproduce
from diabolo.chapters.sharp_measures import Asked
from diabolo.chapters.sharp_words import NAMES
from diabolo.config import resolve
from diabolo.data import Access, load
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings
from diabolo.language import say
from diabolo.progress import Progress
from diabolo.report import write_template
from diabolo.runs import Run, sha256
from diabolo.tables import read
from one_process import one_after_another
from test_language import english_words, texts_of
from test_report import Page
from test_sampling_table import Toy
from undrawn import undrawn

torch.set_num_threads(1)
DATA = ("data=clouds", "data.examples=500", "data.size=8")
_SMALL = ("train.epochs=1", "train.smoke=true", "train.lr=0.0001", "model.latent=(2,2,2)")
_SMALL += tuple(f"model.{part}.widths=(4,4)" for part in ("encoder", "decoder"))
SMALL = Plan(
    main=_SMALL,
    short=_SMALL,
    ablation=("short", "short-fixed"),
    article=("c1",),
    theirs="smoke",
    priors={"flow_matching": ("train.epochs=1", "train.smoke=true", "prior.width=8", "prior.depth=1", "prior.steps=2")},
    asked=Asked(n=100, features="toy"),
    settings=Settings(k=0, elbo_samples=2, curve_k=(), curve_images=0, probes=False),
)


class Colours(Toy):
    """The toy features of red alone."""

    def __call__(self, images):
        return torch.nn.functional.avg_pool2d(images[:, :1], 2).flatten(1)


# ------------------------------------------------------------------------------------------------ from runs to report
def make(patch, out, lang="en", plan=SMALL):
    """The chapter in this process, on small images."""
    undrawn(patch)
    patch.setitem(registry._CATALOGUE["features"], "toy", Colours)
    patch.setattr(sharp.workers, "run", one_after_another(lambda config: load("clouds", config.data.params, Access())))
    patch.setitem(PLANS, "smoke", plan)
    return reproduce(out, plan="smoke", device="cpu", data=DATA, progress=Progress(), lang=lang)


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce") / "sharp"
    with pytest.MonkeyPatch.context() as patch:
        return out, make(patch, out)


def test_it_trains_fits_and_measures_and_says_so(chapter):
    out, first = chapter
    assert [run.name for run in first.runs] == ["sharp", "short", "short-fixed", "c1"] and not first.reused
    assert {path.name for path in (out / "sharp" / "priors").iterdir()} == set(PRIORS)
    measures = json.loads((out / "measures.json").read_text(encoding="utf-8"))
    rows = [row["set"] for row in measures["samples"]["rows"]]
    assert rows == ["floor", "reconstructions", "ppca", "gaussians", "c1", "own", "mixture", "flow", "flow-class"]
    assert {row["n"] for row in measures["samples"]["rows"]} == {100}
    page = re.sub(r"<[^>]+>", " ", first.report.read_text(encoding="utf-8")).replace("\u2212", "-")
    for run in first.runs:
        assert f"{run.evaluation()['psnr']['value']:.2f}" in page, run.name
    assert {path.name for path in (out / "pictures").iterdir()} == {"strip.png", "samples.png", "top.png"}


def test_what_is_finished_is_used_again_and_only_what_changed_is_measured(chapter, tmp_path, monkeypatch):
    """A prior that is fitted anew has new samples; all other rows stand, and so do all runs."""
    out = shutil.copytree(chapter[0], tmp_path / "sharp")
    again = make(monkeypatch, out)
    assert str(again.report) in again.reused and str(out / "sharp" / "priors" / "mixture") in again.reused
    measured = []
    whole = sharp.measure.__globals__["sampling_table"].measure
    monkeypatch.setattr(
        "diabolo.chapters.sharp_measures.sampling_table.measure",
        lambda sets, *rest, **more: measured.append([s.name for s in sets]) or whole(sets, *rest, **more),
    )
    monkeypatch.setitem(PRIORS, "mixture", ("prior=mixture", "prior.shrinkage=9", "prior.components=1"))
    before = json.loads((out / "samples.json").read_text(encoding="utf-8"))["rows"]
    make(monkeypatch, out)
    after = json.loads((out / "samples.json").read_text(encoding="utf-8"))["rows"]
    assert measured == [["mixture"]]
    assert [a == b for a, b in zip(before, after, strict=True)] == [row["set"] != "mixture" for row in after]
    assert (out / "sharp" / "priors" / "mixture.old-1").is_dir()


def test_the_article_s_models_are_taken_from_their_own_chapter_where_they_are_finished(chapter, tmp_path, monkeypatch):
    shutil.copytree(chapter[0] / "c1", tmp_path / "cifar10" / "c1")
    dataset = load("clouds", {"examples": 500, "size": 8}, Access())
    monkeypatch.setitem(PLANS, "smoke", SMALL)
    jobs = {job.path: job for job in sharp._jobs(tmp_path / "sharp", "smoke", DATA, dataset)}
    assert tmp_path / "sharp" / "c1" in jobs, "its evaluation is not the one that chapter asks for"
    theirs = cifar10.PLANS["smoke"]
    monkeypatch.setitem(cifar10.PLANS, "smoke", cifar10.Plan(1, theirs.names, SMALL.settings, theirs.overrides))
    jobs = {job.path: job for job in sharp._jobs(tmp_path / "sharp", "smoke", DATA, dataset)}
    assert tmp_path / "cifar10" / "c1" in jobs and tmp_path / "sharp" / "c1" not in jobs


def test_the_larger_network_is_called_what_its_preset_makes_it():
    config = resolve("cifar10-sharp-60").config
    assert config.objective.params["beta"] == 1 / 4 and config.train.flips
    assert "\u03b2 = 1/4, mirrored images" in NAMES["sharp-60"]


def test_the_run_of_an_hour_is_trained_by_the_full_plan_and_shown_by_others(chapter, tmp_path, monkeypatch):
    dataset, told, reused = load("clouds", {"examples": 500, "size": 8}, Access()), [], []
    progress = Progress()
    monkeypatch.setattr(progress, "say", told.append)

    def found(path, plan=SMALL):
        return sharp._long(path, [*DATA, *_SMALL], dataset, plan, "cpu", progress, reused)

    assert found(tmp_path / sharp.LONG) == {} and not told
    path = shutil.copytree(chapter[0] / "short", tmp_path / sharp.LONG)
    assert found(path) == {} and "left out" in told[-1], "it is a run of another preset"
    assert path.is_dir(), "it is not moved aside"
    monkeypatch.setattr(sharp, "_LONG_PRESET", sharp._PRESET)
    assert list(found(path)) == [sharp.LONG] and str(path) in reused
    new = found(tmp_path / "new", replace(SMALL, long=True))
    assert new[sharp.LONG].evaluation()["psnr"] == Run(path).evaluation()["psnr"], "the same run, trained again"


@pytest.fixture
def packed(chapter, tmp_path, monkeypatch):
    """The main run with its flow matching as a model of the package."""
    monkeypatch.setattr(packaged, "ROOT", tmp_path / "package")
    path = tmp_path / "package" / sharp._PRESET
    path.mkdir(parents=True)
    for name in ("config.json", "env.json", "status.json", "metrics.jsonl", "timing.jsonl", "loss_card.json"):
        shutil.copy(chapter[0] / "sharp" / name, path)
    shutil.copytree(chapter[0] / "sharp" / "priors" / "flow_matching", path / "priors" / "flow_matching")
    write_weights(chapter[0] / "sharp" / "weights.safetensors", path / "weights.safetensors")
    env = json.loads((path / "priors" / "flow_matching" / "env.json").read_text(encoding="utf-8"))
    env["run"]["weights"] = sha256(path / "weights.safetensors")
    (path / "priors" / "flow_matching" / "env.json").write_text(json.dumps(env), encoding="utf-8")
    files = {file.relative_to(path).as_posix(): {"sha256": sha256(file)} for file in path.rglob("*") if file.is_file()}
    about = {"files": files, "priors": {"flow_matching": {"seconds": 2484.2}}, "seconds": 549.1}
    machine = {"processor": "Some Processor", "cores": 2}
    (path / "about.json").write_text(json.dumps({**about, "machine": machine}), encoding="utf-8")
    return path


def write_weights(source, target):
    """In half precision, as the package stores them."""
    with safe_open(source, "pt") as file:
        about = json.loads(file.metadata()["diabolo"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
    save_file(tensors, target, {"diabolo": json.dumps({**about, "storage": "float16"})})


def test_the_plan_pretrained_takes_the_package_s_model_and_makes_the_rest(packed, tmp_path, monkeypatch):
    out, plan = tmp_path / "out", replace(SMALL, pretrained=True)
    found = make(monkeypatch, out, plan=plan)
    assert [run.name for run in found.runs] == ["pretrained", "short", "short-fixed", "c1"]
    assert (
        not (out / "sharp").exists() and (out / "pretrained" / "priors" / "mixture" / "weights.safetensors").is_file()
    )
    for name in ("weights.safetensors", "priors/flow_matching/weights.safetensors"):
        assert (out / "pretrained" / name).read_bytes() == (packed / name).read_bytes()
        assert str(out / "pretrained" / name) in found.reused
    text = re.sub(r"<[^>]+>", " ", found.report.read_text(encoding="utf-8"))
    assert "flow matching come with the package" in text and "Some Processor, 2 cores; 549 s and 2,484 s" in text
    stages = json.loads((out / "measures.json").read_text(encoding="utf-8"))["stages"]
    here = [row["seconds"] for run in found.runs[1:] for row in run.timing() if row["stage"] == "train"]
    assert stages["training"] == pytest.approx(sum(here), abs=1e-9), "the package's was trained elsewhere"
    assert stages["fitting the priors"] == 0, "the mixture is fitted in closed form"
    assert str(found.report) in make(monkeypatch, out, plan=plan).reused
    assert not (packed / "priors" / "mixture").exists(), "nothing is written into the package"


def test_a_changed_copy_of_the_package_s_model_is_moved_aside_and_other_configurations_refused(packed, tmp_path):
    dataset, told, config = load("clouds", {"examples": 500, "size": 8}, Access()), [], Run(packed).config
    progress = Progress()

    def copied(config=config, dataset=dataset):
        return parts.pretrained(tmp_path / "out", sharp._PACKED, config, dataset, progress, told)

    (copied().path / "weights.safetensors").write_bytes(b"other")
    assert copied().model() and (tmp_path / "out.old-1" / "weights.safetensors").read_bytes() == b"other"
    with pytest.raises(UsageError, match="another configuration"):
        copied(config=resolve(sharp._PRESET, [*DATA, *_SMALL, "train.batch=32"]).config)
    with pytest.raises(DataError):
        copied(dataset=load("clouds", {"examples": 400, "size": 8}, Access()))


def test_the_package_s_model_is_that_of_the_chapter():
    assert Run(sharp._PACKED).config == resolve(sharp._PRESET).config
    assert fitted.names(Run(sharp._PACKED)) == ["flow_matching"], "what remains is fitted in moments"


# ------------------------------------------------------------------------------------------------ what is run
def test_plans_are_those_that_the_list_names():
    assert set(CHAPTERS["sharp"].plans) == set(PLANS)
    assert {plan.theirs for plan in PLANS.values()} <= set(cifar10.PLANS)
    assert all(plan.theirs == name for name, plan in PLANS.items() if name in cifar10.PLANS)
    assert PLANS["normal"].asked.n is None, "10,000"
    assert PLANS["normal"].settings == PLANS["quick"].settings, "or finished runs could not be used again"


def test_each_run_of_the_ablation_changes_one_thing():
    base = resolve(sharp._PRESET, PLANS["normal"].short).config.to_dict()
    changed = {
        "short": set(),
        "short-fixed": {"likelihood"},
        "short-vector": {"latent"},
        "short-no-blocks": {"encoder", "decoder"},
        "short-no-shortcut": {"encoder", "decoder"},
    }
    for name, words in ABLATION.items():
        found = resolve(sharp._PRESET, [*words.split(), *PLANS["normal"].short]).config.to_dict()
        assert {key for key in found["model"] if found["model"][key] != base["model"][key]} == changed[name]
        assert {**found, "model": None} == {**base, "model": None}, "as many images seen, in the same way"
    assert set(changed) == set(ABLATION)
    assert resolve(sharp._PRESET, ABLATION["short-fixed"].split()).config.model.likelihood.params["scale"] ** 2 == (
        pytest.approx(0.5, abs=1e-15)
    )


# ------------------------------------------------------------------------------------------------ the page
STAGES = {say("training"): 1000.0, "ELBO": 20.0}
#: Names and symbols that are the same in Chinese, beyond those of the other pages.
WORDS = {"CIFAR", "ConvVAE", "pPCA", "FID", "cifar", "test", "resnet", "mlp", "conv", "classifier"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_up.make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def write(made, tmp_path_factory):
    """Pages of runs by name, drawn once and written in any language."""
    folder, drawn = tmp_path_factory.mktemp("pages"), {}

    def written(names=tuple(made_up.ALL), plan="normal", lang="en"):
        key = (plan, *names)
        if key not in drawn:
            with pytest.MonkeyPatch.context() as patch:
                undrawn(patch)
                patch.setattr(sharp_page, "write_template", lambda *_, **values: drawn.setdefault(key, values))
                runs = {name: made[name] for name in names}
                sharp_page.write_page(folder / "none", runs, made_up.make_measured(names, plan), STAGES)
        return Page(write_template("sharp.html.j2", folder / f"{lang}.html", lang, **drawn[key]))

    return written


def found_of(made, names=tuple(made_up.ALL), rows=None):
    readings = {name: read(made[name], name) for name in names}
    return sharp_numbers.gathered(readings, made_up.make_numbers(rows=rows))


def test_every_number_of_the_table_is_that_of_its_evaluation(write, made):
    seen = set()
    for cell in (e.attributes for e in write().all("td") if "data-run" in e.attributes):
        name, metric, value = cell["data-run"], cell["data-metric"], float(cell["data-value"])
        seen.add((name, metric))
        if name in made and metric in made[name].evaluation():
            assert value == pytest.approx(made[name].evaluation()[metric]["value"], rel=1e-12)
    assert {(name, metric) for name in made for metric in sharp_table.COLUMNS} <= seen
    assert ("line-full", "bits_per_dim") in seen and ("line-full", "kl") not in seen, "it has no latents"


def test_families_are_never_in_one_table_and_the_lines_are_among_gaussians(made):
    found = found_of(made)
    found["runs"]["c1"]["family"] = "logistic"
    gaussian, logistic = sharp_table.groups(found)
    assert [row.name for row in logistic.rows] == ["c1"]
    assert [row.bits for row in gaussian.rows] == sorted(row.bits for row in gaussian.rows)
    assert {"line-full", "sharp", "short"} <= {row.name for row in gaussian.rows}


def test_the_ablation_is_measured_on_the_same_images(made):
    rows = sharp_table.ablation(found_of(made))
    assert [row.name for row in rows] == list(ABLATION)
    described = {row.name: str(row.described) for row in rows}
    for name, base in (("short-vector", "short-no-shortcut"), ("short-no-blocks", "short")):
        a, b = (made[run].per_image()["mse_mean"].double().mean() for run in (base, name))
        assert f"{10 * torch.log10(a / b).item():+.2f}".replace("-", "\u2212") in described[name]
        assert NAMES[base] in described[name], "a vector can have no shortcut: that is not the change"
    assert sharp_table.ablation(found_of(made, ("sharp",))) == []


def test_the_distance_is_that_of_the_run_with_the_fewest_bits(made):
    found = found_of(made)
    least = min(row["bits_per_dim"]["value"] for row in found["runs"].values())
    lines = {row["latent"]: row["bits_per_dim"] for row in found["linear"]["dequantized"]}
    gap, worth = sharp_words.distance(found)
    for latents in (sharp_numbers.RIVAL, None):
        assert f"{least - lines[latents]:+.2f}".replace("-", "\u2212") in str(gap)
    assert f"{90 / (found['dimensions'] * math.log(2)):.3f}" in str(worth)
    found["linear"]["dequantized"], found["priors"]["mixture"] = [], {}
    assert sharp_words.distance(found) == []


def verdicts(found):
    return [claim.verdict for claim in sharp_claims.claims(found)]


def test_claims_are_decided_by_their_rules(made):
    found = found_of(made)
    assert verdicts(found)[0] == "not supported", "as many active directions, as these runs are made up"
    found["runs"]["short-fixed"]["directions"]["value"] = 9
    assert verdicts(found) == ["supported"] * 4
    assert verdicts(found_of(made, ("sharp",)))[:2] == ["not tested"] * 2
    found["gains"]["short-fixed"] = {"value": -0.1, "se": 0.05, "n": 80}
    found["gains"]["short-no-blocks"] = {"value": 0.3, "se": 0.01, "n": 80}
    found["runs"]["sharp"]["psnr"]["value"] = 30.4
    assert verdicts(found)[:3] == ["not supported"] * 3
    found["linear"] = {"dequantized": [], "grid": [], "eigenvalues": found["linear"]["eigenvalues"]}
    assert verdicts(found)[2] == "not tested"


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("flow-class", (21.0, 0.6, 0.7, 0.02)),  # not half of the mixture's distance
        ("flow-class", (15.0, 0.4, 0.7, 0.02)),  # coverage
        ("flow-class", (15.0, 0.6, 0.4, 0.02)),  # the class asked for
        ("flow-class", (15.0, 0.6, 0.7, 0.2)),  # copies
        ("own", (40.5, 0.05, None, 0.01)),  # no further from the images than the mixture, surely
    ],
)
def test_each_aim_of_the_samples_is_needed(made, name, row):
    found = found_of(made, ("sharp",), rows={**made_up.SAMPLES, name: row})
    assert verdicts(found)[3] == "not supported"


def test_samples_without_classes_are_not_judged(made):
    rows = {name: row for name, row in made_up.SAMPLES.items() if name != "flow-class"}
    assert verdicts(found_of(made, ("sharp",), rows=rows))[3] == "not tested"


def test_no_english_is_left_on_a_chinese_page(write):
    for plan in ("normal", "smoke", "quick", "pretrained"):
        page = write(plan=plan, lang="zh")
        run_names = re.compile(r"\b(?:short(?:-[a-z]+)*|sharp|c\d(?:-[a-z0-9]+)*)\b|class\d|f{12}")
        for text in texts_of(page):
            assert not english_words(run_names.sub(" ", text)) - WORDS, text


def test_a_smoke_run_says_that_its_numbers_mean_nothing(write):
    assert "mean nothing" in write(plan="smoke").source and "mean nothing" not in write().source
    assert "The ablation is left out" in write(("sharp", "c4"), "quick").source


def test_the_page_is_one_file_whose_references_resolve(write):
    page = write()
    ids = {e.attributes["id"] for e in page.elements if "id" in e.attributes}
    for e in page.elements:
        target = e.attributes.get("href") or e.attributes.get("src") or "#claims"
        assert target.startswith("data:") or target.removeprefix("#") in ids


# ------------------------------------------------------------------------------------------------ pictures
def test_the_pictures_fit_a_first_page(tmp_path, monkeypatch):
    """Where they would have too many bytes, there are fewer columns."""
    measured = made_up.make_measured()
    for key in ("strip", "grids"):
        measured.pictures[key] = {name: torch.zeros_like(x) for name, x in measured.pictures[key].items()}
    wide = drawn_in(tmp_path, measured)
    monkeypatch.setattr(sharp_pictures, "LIMIT", (tmp_path / "top.png").stat().st_size)
    narrow = drawn_in(tmp_path, measured)
    assert narrow[0] < wide[0] and narrow[1] == wide[1]
    assert (tmp_path / "top.png").stat().st_size < sharp_pictures.LIMIT


def drawn_in(folder, measured):
    """The size in pixels of the picture of all."""
    sharp_pictures.write_pictures(folder, measured)
    with Image.open(folder / "top.png") as top:
        return top.size


def test_a_row_of_a_grid_keeps_its_class_when_columns_are_left_out():
    rows = torch.arange(10.0).repeat_interleave(6)
    assert sharp_pictures._first(rows[:, None, None, None].expand(60, *SHAPE), 2)[:, 0, 0, 0].tolist() == [
        number for number in range(10) for _ in range(2)
    ]
    assert set(ARTICLE) <= set(cifar10.RUNS)
