"""The report is read back: captions, every number of table 4-1, no external address, hostile names, no evaluation."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diabolo import report, tables
from diabolo.chapters import mnist_notes, mnist_story
from diabolo.chapters.mnist_article import PUBLISHED
from diabolo.errors import DataError
from undrawn import undrawn

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "br", "img", "link", "hr", "input"}


@dataclass
class FakeRun:
    """What the report uses of a run directory."""

    path: Path

    def _json(self, name):
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def _lines(self, name):
        return [json.loads(line) for line in (self.path / name).read_text(encoding="utf-8").splitlines()]

    config_dict = property(lambda self: self._json("config.json"))
    env = property(lambda self: self._json("env.json"))
    status = property(lambda self: self._json("status.json"))

    def metrics(self):
        return self._lines("metrics.jsonl")

    def timing(self):
        return self._lines("timing.jsonl")

    def evaluation(self):
        return self._json("evaluation.json")

    def loss_card(self):
        return self._json("loss_card.json") if (self.path / "loss_card.json").exists() else None

    def per_image(self):
        return load_file(self.path / "per_image.safetensors")


def _moments(x):
    return float(x.mean()), float(x.std()) / math.sqrt(len(x))


def make_fake_run(folder, name, *, normalised, width=400, latent=20, seed=0, n=200, subset=50, elbo=-104.0):
    """Writes a run directory in the shape of the contract, with an evaluation that agrees with its per-image values."""
    path = folder / name
    path.mkdir(parents=True)
    # One set of images for all runs (their difficulty is shared), one set of deviations a run.
    images = torch.randn(n, generator=torch.Generator().manual_seed(99)) * 25
    g = torch.Generator().manual_seed(seed)
    kl = 20 + torch.randn(n, generator=g) * 3
    distortion = -elbo - 20 + images.abs() + torch.randn(n, generator=g)
    gap = 4.5 + torch.randn(subset, generator=g) * 1.5
    index = torch.arange(0, n, n // subset)
    per_image = {
        "elbo": -(kl + distortion),
        "kl": kl,
        "distortion": distortion,
        "mse_mean": 0.012 + 0.002 * torch.rand(n, generator=g),
        "mse_sample": 0.014 + 0.002 * torch.rand(n, generator=g),
        "mean": torch.randn(n, latent, generator=g),
        "labels": torch.arange(n) % 10,
        "log_p": -(kl + distortion)[index] + gap,
        "log_p_index": index,
    }
    save_file(per_image, path / "per_image.safetensors")
    split = {"n": n, "split": "test"}
    scalar = {}
    for metric in ("elbo", "kl", "distortion", "mse_mean", "mse_sample"):
        value, se = _moments(per_image[metric])
        unit = "squared error/pixel" if metric.startswith("mse") else "nats/image"
        scalar[metric] = {"value": value, "se": se, "mc_se": se / 30, "unit": unit, **split}
    scalar["elbo"]["samples"] = 10
    plain, plain_se = _moments(per_image["log_p"])
    gap_mean, gap_se = _moments(gap)
    evaluation = {
        "about": {
            "schema": 1,
            "split": "test",
            "n": n,
            "data": "mnist",
            "data_hash": "d" * 64,
            "draw_hash": "e" * 64 if normalised else None,
            "values": "binary" if normalised else "grey",
            "likelihood": "bernoulli" if normalised else "bernoulli_relaxed",
            "normalised": normalised,
            "bound": "elbo",
            "k": 1000,
            "images": subset,
            "elbo_samples": 10,
            "seed": 0,
            "entropy_floor": None if normalised else 45.53,
            "seconds": {"pass": 2.0, "importance": 7.5, "probes": 3.25},
            "weights_sha256": "f" * 64,
        },
        **scalar,
        "log_p": {
            "value": scalar["elbo"]["value"] + gap_mean,
            "se": gap_se,
            "se_sampling": 0.27,
            "mc_se": 0.011,
            "n": subset,
            "k": 1000,
            "unit": "nats/image",
            "gap": gap_mean,
            "plain_mean": plain,
            "plain_se": plain_se,
            "gap_se": gap_se,
            "ess_median": 61.2,
            "ess_min": 2.1,
            "bound": "lower bound in expectation",
            "split": "test",
        },
        "log_p_curve": {
            "points": [
                {"k": k, "value": elbo + 5 * (1 - k**-0.4), "se": 2.6, "mc_se": 0.3 / math.sqrt(k)}
                for k in (1, 10, 100, 1000, 5000)
            ],
            "n": 40,
            "unit": "nats/image",
            "split": "test",
        },
        "active_units": {"value": 12, "se": None, "unit": "latent dimensions", "of": latent, **split},
        "kl_per_dimension": {"values": [3.0 / (j + 1) for j in range(latent)], "unit": "nats/image", **split},
        "linear_probe": {"value": 0.9312, "se": 0.0025, "unit": "accuracy", **split},
        "nearest_neighbour": {"value": 0.9655, "se": 0.0018, "unit": "accuracy", **split},
        "pca": {"explained": [0.113, 0.097, 0.08], "n": n},
    }
    network = {"name": "mlp", "width": width, "depth": 2, "activation": "relu"}
    config = {
        "schema": 1,
        "data": {"name": "mnist", "binarize": normalised, "validation": 0},
        "model": {
            "latent": latent,
            "encoder": network,
            "posterior": {"name": "gaussian"},
            "decoder": network,
            "prior": {"name": "standard_normal"},
            "likelihood": {"name": evaluation["about"]["likelihood"]},
        },
        "objective": {"name": "elbo", "beta": 1.0},
        "train": {"epochs": 10, "batch": 128, "lr": 0.001},
        "seed": 0,
        "preset": "mnist" if normalised else "mnist-grey",
    }
    env = {
        "diabolo": "0.1.0",
        "python": "3.12.4",
        "torch": "2.13.0",
        "platform": "Linux",
        "processor": "a CPU",
        "data": {
            "spec": {"shape": [1, 28, 28]},
            "hashes": {"train-images": "a" * 64, "test-images": "b" * 64},
            "note": "as given",
        },
        "cores": 2,
        "threads": 2,
        "device": "cpu",
    }
    rows = []
    for epoch in range(1, 11):
        rows.append({"step": 469 * epoch - 69, "epoch": epoch, "split": "batch", "examples": 128, "loss": 1e6})
        for part, examples in (("train", 60000), ("test", 10000)):
            rate, distortion_now = 25 - 20 / epoch, 78 + 90 / epoch + (2 if part == "test" else 0)
            rows.append({
                "step": 469 * epoch,
                "epoch": epoch,
                "split": part,
                "examples": examples,
                "loss": rate + distortion_now,
                "distortion": distortion_now,
                "rate": rate,
                "auxiliary": 0.0,
            })
    timing = [{"step": 469 * e, "epoch": e, "seconds": 2.4, "stage": "train"} for e in range(1, 11)]
    written = {"config": config, "env": env, "status": {"state": "finished"}, "evaluation": evaluation}
    if not normalised:  # the others are of a time before there were cards
        rows_of_card = [["Loss", f"loss = {HOSTILE}"], ["sigma^2", f"{latent} squared"]]
        written["loss_card"] = {"when": "at the first step", "headline": f"a bound, {latent}", "rows": rows_of_card}
    for file, content in written.items():
        (path / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
    for file, lines in (("metrics", rows), ("timing", timing)):
        (path / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return FakeRun(path)


def make_pictures(seed=0, n=64):
    g = torch.Generator().manual_seed(seed)
    ink = [(torch.rand(n, 1, 28, 28, generator=g) > 0.8).float() * 0.9 for _ in range(3)]
    return report.Pictures(*ink, seed=seed)


MODELS = ((400, 20, -104.0), (200, 20, -108.5), (400, 10, -105.0))


def make_conventions(folder, classes=(), n=200):
    conventions = []
    for key, normalised in (("grey", False), ("binarized", True)):
        entries = []
        for i, (width, latent, elbo) in enumerate(MODELS):
            sizes = {"width": width, "latent": latent, "elbo": elbo, "n": n}
            run = make_fake_run(folder, f"model{i + 1}-{key}", normalised=normalised, seed=i + 7 * normalised, **sizes)
            title = f"Model {i + 1}"
            published = {} if normalised else PUBLISHED[title]
            entries.append(report.Entry(title, run, make_pictures(i, 16), published))
        title = "Binarised images" if normalised else "Grey levels, as in the article"
        conventions.append(report.Convention(key, title, entries, classes))
    return conventions


STAGES = {"data": 1.5, "training": 144.0, "evaluation": 52.0, "report": 9.0}


def write(folder, conventions):
    story = mnist_story.story(conventions)
    return report.write_chapter_report(conventions, story, folder / "out" / "report.html", STAGES)


@dataclass
class Element:
    tag: str
    attributes: dict
    text: str = ""
    inside: list = field(default_factory=list)


class Page(HTMLParser):
    """Every element with its attributes, ancestors and text; checks that tags nest."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open, self._open[-1].tag

    def handle_starttag(self, tag, attributes):
        element = Element(tag, dict(attributes), inside=[e.attributes.get("id") for e in self._open])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append(Element(tag, dict(attributes), inside=[e.attributes.get("id") for e in self._open]))

    def handle_endtag(self, tag):
        assert self._open and self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element.text += data

    def all(self, tag):
        return [e for e in self.elements if e.tag == tag]


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chapter")
    conventions = make_conventions(folder, classes=[*"012345678", HOSTILE])
    return conventions, Page(write(folder, conventions))


def test_what_the_loss_is_stands_once_for_the_models_that_share_it(chapter):
    _, page = chapter
    inside = [e for e in page.elements if "loss" in e.inside]
    captions = [e.text for e in inside if e.tag == "caption"]
    assert captions == ["Model 1, Model 2: a bound, 20", "Model 3: a bound, 10"]
    assert [e.text for e in inside if e.tag == "td"] == [
        f"loss = {HOSTILE}",
        "20 squared",
        f"loss = {HOSTILE}",
        "10 squared",
    ]
    told = [e.text for e in inside if e.tag == "p"]
    assert "at the first step" in told[0]
    assert [text.startswith("Model 1, Model 2, Model 3: not recorded") for text in told] == [False, True]


def test_every_caption_says_data_split_likelihood_unit_and_n(chapter):
    _, page = chapter
    captions, figures = page.all("figcaption"), page.all("figure")
    assert len(captions) == len(figures) == 1 + 2 * 7
    for caption in captions:
        for words in ("data: mnist", "split: ", "likelihood: bernoulli", "unit: ", "n = "):
            assert words in caption.text, caption.text
    assert any("split: train (solid), test (dashed)" in c.text and "n = 60,000 + 10,000" in c.text for c in captions)
    for number in ("Figure 2-1", "Figure 4-1", "Figure 4-2", "Figure 4-3", "Figure 4-4"):
        assert any(number in c.text for c in captions), number


def test_every_number_of_table_4_1_equals_the_evaluation(chapter):
    conventions, page = chapter
    runs = {e.run.path.name: e.run.evaluation() for c in conventions for e in c.entries}
    cells = [e for e in page.all("td") if "data-run" in e.attributes]
    seen = set()
    for cell in cells:
        name, metric = cell.attributes["data-run"], cell.attributes["data-metric"]
        source = runs[name]["log_p" if metric == "gap" else metric]
        expected = source["gap" if metric == "gap" else "value"]
        assert float(cell.attributes["data-value"]) == expected
        shown = float(re.match(r"[\u2212\d.,]+", cell.text.strip()).group().replace("\u2212", "-").replace(",", ""))
        assert shown == pytest.approx(expected, abs=0.005 if abs(expected) >= 1 else 0.00006)
        seen.add((name, metric))
    columns = ("elbo", "log_p", "gap", "mse_mean", "mse_sample", "active_units", "linear_probe", "nearest_neighbour")
    assert seen == {(name, metric) for name in runs for metric in columns}


def test_the_article_stands_beside_grey_only(chapter):
    conventions, page = chapter
    grey = [e for e in page.all("small") if e.attributes.get("class") == "article" and "grey-table" in e.inside]
    other = [e for e in page.all("small") if e.attributes.get("class") == "article" and "binarized-table" in e.inside]
    assert not other
    text = " ".join(e.text for e in grey)
    for value in ("104.675", "118.023", "113.538", "98.331", "106.975", "104.684", "0.0163", "0.0224", "0.0207"):
        assert value in text
    elbo = conventions[0].entries[1].run.evaluation()["elbo"]["value"]
    assert tables.signed(elbo + 118.023) in text


def test_conventions_never_share_a_table(chapter):
    _, page = chapter
    position = {"grey": set(), "binarized": set()}
    for cell in page.all("td"):
        if "data-run" in cell.attributes:
            key = cell.attributes["data-run"].split("-")[1]
            position[key].update(i for i in cell.inside if i)
    assert position["grey"] & position["binarized"] == set()


def test_unnormalised_is_read_from_the_evaluation(chapter):
    _, page = chapter
    labels = [e for e in page.all("span") if e.attributes.get("class") == "unnormalised"]
    assert any("grey" in e.inside for e in labels) and any("grey-table" in e.inside for e in labels)
    assert not any("binarized" in e.inside or "binarized-table" in e.inside for e in labels)


def test_unnormalised_does_not_follow_names(tmp_path, monkeypatch):
    undrawn(monkeypatch)
    conventions = make_conventions(tmp_path)
    for entry in conventions[1].entries:
        file = entry.run.path / "evaluation.json"
        evaluation = json.loads(file.read_text(encoding="utf-8"))
        evaluation["about"]["normalised"] = False
        file.write_text(json.dumps(evaluation), encoding="utf-8")
    labels = [e for e in Page(write(tmp_path, conventions)).all("span") if e.attributes.get("class") == "unnormalised"]
    assert any("binarized-table" in e.inside for e in labels)


def test_one_file_without_external_address_or_script(chapter):
    _, page = chapter
    assert len(page.source.encode("utf-8")) < 5_000_000
    words = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=\s]+", "", page.source)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", words)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for element in page.elements:
        for name, value in element.attributes.items():
            if name in ("src", "href"):
                assert value.startswith(("#", "data:image/png;base64,")), value
            assert not name.startswith("on")
    policy = next(e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_a_class_name_is_text_and_adds_no_element(chapter):
    _, page = chapter
    assert HOSTILE not in page.source
    assert [e for e in page.all("li") if e.text.strip() == HOSTILE]


def test_ids_are_unique_and_every_reference_resolves(chapter):
    _, page = chapter
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    targets = {v[1:] for e in page.elements for k, v in e.attributes.items() if k == "href" and v.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", page.source))
    assert targets <= set(ids)


def test_it_can_be_read_without_seeing(chapter):
    _, page = chapter
    assert page.all("html")[0].attributes["lang"] == "en"
    assert all(e.attributes.get("alt") for e in page.all("img"))
    drawings = [e for e in page.all("svg") if e.attributes.get("class", "").split()[:1] != ["swatch"]]
    assert all(e.attributes.get("role") == "img" and e.attributes.get("aria-label") for e in drawings)
    assert len(page.all("math")) == 8


def test_equations_name_tests_and_notes_are_complete(chapter):
    _, page = chapter
    for name in ("test_bayes_identity", "test_elbo_sign_and_bound", "test_reparameterised_sd", "test_leaky_relu"):
        assert f"tests/test_mathematics.py::{name}" in [e.text for e in page.all("code")]
    rows = [e.attributes["id"] for e in page.all("tr") if e.attributes.get("id", "").startswith("note-")]
    assert rows == [f"note-{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14, 16, 18, 19)]


def test_same_inputs_same_bytes(chapter):
    conventions, _ = chapter
    folder = conventions[0].entries[0].run.path.parent
    first = (folder / "out" / "report.html").read_bytes()
    assert write(folder, conventions).read_bytes() == first
    assert not list((folder / "out").glob(".*"))


@pytest.mark.parametrize("file", ["evaluation.json", "per_image.safetensors"])
def test_a_missing_evaluation_fails_and_names_the_command(tmp_path, file):
    conventions = make_conventions(tmp_path, n=100)
    run = conventions[1].entries[2].run
    story = mnist_story.story(conventions)
    (run.path / file).unlink()
    with pytest.raises(DataError, match=f"diabolo evaluate .*{run.path.name}"):
        report.write_chapter_report(conventions, story, tmp_path / "report.html", STAGES)
    with pytest.raises(DataError, match="diabolo evaluate"):
        report.write_run_report(run)
    assert not list(tmp_path.glob("**/*.html"))


@pytest.mark.parametrize("metric", tables.REQUIRED)
def test_a_missing_metric_fails(tmp_path, metric):
    run = make_fake_run(tmp_path, "run", normalised=True, n=100)
    evaluation = run.evaluation()
    del evaluation[metric]
    (run.path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    with pytest.raises(DataError, match=metric):
        tables.read(run, required=tables.REQUIRED)


def test_run_report(tmp_path):
    run = make_fake_run(tmp_path, "my run", normalised=False)
    out = report.write_run_report(run, make_pictures(), classes=[*"012345678", HOSTILE])
    assert out == run.path / "report.html"
    page, evaluation = Page(out), run.evaluation()
    numbers = [e.attributes for e in page.all("td") if "data-metric" in e.attributes]
    cells = {a["data-metric"]: float(a["data-value"]) for a in numbers}
    assert cells == {name: m["value"] for name, m in evaluation.items() if name != "about" and "value" in m}
    assert len(page.all("figcaption")) == 6
    assert any("dashed: held-out examples" in caption.text for caption in page.all("figcaption"))
    for caption in page.all("figcaption"):
        assert all(words in caption.text for words in ("data: ", "split: ", "likelihood: ", "unit: ", "n = "))
    assert not page.all("script")
    assert [e for e in page.all("span") if e.attributes.get("class") == "unnormalised"]
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))


def test_run_report_of_vectors_without_labels_or_pictures(tmp_path):
    run = make_fake_run(tmp_path, "vectors", normalised=True)
    per_image = run.per_image()
    del per_image["labels"]
    save_file(per_image, run.path / "per_image.safetensors")
    evaluation = {k: v for k, v in run.evaluation().items() if k in ("about", "elbo", "kl", "distortion", "pca")}
    (run.path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    page = Page(report.write_run_report(run))
    assert "unnormalised" not in "".join(e.text for e in page.all("main"))
    assert len(page.all("figure")) == 2


def test_paired_change_matches_a_direct_computation():
    g = torch.Generator().manual_seed(3)
    a, b = torch.randn(500, generator=g), torch.randn(500, generator=g)
    mean, se, n = tables.paired(a, b)
    direct = (b - a).double()
    assert (mean, n) == (pytest.approx(float(direct.mean())), 500)
    assert se == pytest.approx(float(torch.sqrt(((direct - direct.mean()) ** 2).sum() / 499 / 500)))


def test_changes_cancel_what_images_share_and_use_every_image(tmp_path):
    a = tables.read(make_fake_run(tmp_path, "a", normalised=True, seed=1, elbo=-104.0))
    b = tables.read(make_fake_run(tmp_path, "b", normalised=True, seed=2, elbo=-108.0))
    found = {c.metric: c for c in tables.changes(a, b, ({"elbo": -1.0}, {"elbo": -3.5}))}
    for metric in ("elbo", "log_p"):
        expected = b.evaluation[metric]["value"] - a.evaluation[metric]["value"]
        assert found[metric].value == pytest.approx(expected, abs=1e-4)
    assert found["elbo"].se < a.evaluation["elbo"]["se"] / 2
    assert found["elbo"].published == -2.5 and found["log_p"].published is None
    assert found["elbo"].verdict == "worse" and found["active_units"].verdict == found["gap"].verdict == ""
    assert tables.Change("mse_mean", -0.01, 0.001, 9).verdict == "better"
    assert tables.Change("elbo", 1.9, 1.0, 9).verdict == "unclear"
    assert found["elbo"].n == 200 and found["gap"].n == 50


def test_a_change_of_log_p_over_all_images_is_the_plain_paired_one():
    g = torch.Generator().manual_seed(5)
    n = 300
    index = torch.arange(n)
    one, two = (
        {"elbo": torch.randn(n, generator=g), "log_p": torch.randn(n, generator=g), "log_p_index": index} for _ in "ab"
    )
    elbo = tables.paired(one["elbo"], two["elbo"])[0]
    _, change = tables.log_p_changes(one, two, elbo)
    assert change == pytest.approx(tables.paired(one["log_p"], two["log_p"]), rel=1e-5)


def test_changes_refuse_different_images(tmp_path):
    a = tables.read(make_fake_run(tmp_path, "a", normalised=True))
    b = tables.read(make_fake_run(tmp_path, "b", normalised=True, subset=40))
    with pytest.raises(DataError, match="different images"):
        tables.changes(a, b, ({}, {}))


def test_notes_say_the_opposite_where_the_numbers_do(tmp_path):
    run = make_fake_run(tmp_path, "a", normalised=False)
    wide, narrow = run.evaluation(), run.evaluation()
    wide["elbo"]["value"], wide["log_p"]["gap"] = -100.0, 6.0
    narrow["elbo"]["value"], narrow["log_p"]["gap"] = -105.0, 4.0
    assert "wider gap than model 2" in mnist_notes._tighter([wide, narrow]).measured
    wide["log_p"]["gap"] = 3.0
    assert "smallest gap" in mnist_notes._tighter([wide, narrow]).measured
    wide["kl"]["value"] = 25.0
    assert "bounds nothing" in mnist_notes._wrong_sign(wide).measured


def test_parameter_counts_of_the_article():
    def config(h, d):
        network = {"name": "mlp", "width": h, "depth": 2}
        return {"model": {"latent": d, "encoder": network, "decoder": network}}

    for (h, d), count in {(400, 20): 973_624, (200, 20): 407_224, (400, 10): 961_604}.items():
        assert mnist_notes.parameters(config(h, d)) == count
    assert report.layers(config(400, 20), (1, 28, 28)) == [
        ("data x", 784),
        ("encoder, relu", 400),
        ("encoder, relu", 400),
        ("latent z", 20),
        ("decoder, relu", 400),
        ("decoder, relu", 400),
        ("mean of p(x|z)", 784),
    ]
    convolutional = {"latent": 2, "encoder": {"name": "conv"}, "decoder": {"name": "conv"}}
    assert report.layers({"model": convolutional}, (1, 28, 28)) is None


def test_numbers_as_text():
    assert tables.number(-1234.5) == "\u22121,234.50"
    assert tables.signed(1.3) == "+1.30" and tables.signed(-0.5, 1) == "\u22120.5"
    assert tables.number(-0.001) == "0.00" and tables.signed(-0.001) == "+0.00"
    assert tables.seconds(12.34) == "12.3 s" and tables.seconds(144) == "2 min 24 s"
    assert tables.flatten({"a": {"b": 1}, "c": None}) == {"a.b": "1", "c": "none"}
    assert tables.shared_and_differing([{"a": 1, "b": 2}, {"a": 1, "b": 3}]) == ({"a": "1"}, {"b": ["2", "3"]})
