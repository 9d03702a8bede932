"""The page of the CIFAR-10 chapter from made-up runs: what it shows, what it leaves out, and that its numbers are measured."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
import torch

from cifar10_made_up import QUICK, RUNS, make_measured, make_run
from diabolo.chapters import cifar10_numbers, cifar10_page, cifar10_table, cifar10_words
from diabolo.chapters.cifar10_article import NAMES, density_bits
from diabolo.errors import DataError
from diabolo.language import say
from diabolo.report import write_template
from diabolo.tables import number, read
from test_language import english_words, texts_of
from test_report import Page
from undrawn import undrawn

STAGES = {say("training"): 1000.0, "ELBO": 20.0}
#: Figures of a chapter that was made whole.
FIGURES = ("5-1", "5-2a", "5-2b", "5-3", "5-4a", "5-4b", "5-5", "5-6")
#: Names and symbols that are the same in Chinese, beyond those of the other pages.
WORDS = {
    *("CIFAR", "ConvVAE", "pPCA", "RGB", "FID", "RAE", "VDVAE", "ESS", "L_K", "GPU", "GitHub", "AttributeError"),
    *("nn", "Module", "cifar", "test", "mlp", "conv"),
}
RUN_NAME = re.compile(r"\bc\d(?:-[a-z0-9]+)*\b|class\d")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: make_run(folder, name, ess=25.0 if name == "c1" else 2.0) for name in RUNS}


@pytest.fixture(scope="module")
def write(made, tmp_path_factory):
    """Pages of runs by name, drawn once and written in any language."""
    folder, drawn = tmp_path_factory.mktemp("pages"), {}

    def written(names, plan="normal", lang="en", draws=True):
        key = (plan, draws, *names)
        if key not in drawn:
            with pytest.MonkeyPatch.context() as patch:
                if not draws:
                    undrawn(patch)
                patch.setattr(cifar10_page, "write_template", lambda *_, **values: drawn.setdefault(key, values))
                runs = {name: made[name] for name in names}
                cifar10_page.write_page(folder / "unwritten", runs, make_measured(names, plan), STAGES)
        return Page(write_template("cifar10.html.j2", folder / f"{lang}.html", lang, **drawn[key]))

    return written


@pytest.fixture(scope="module")
def full(write):
    return write([*RUNS], "full")


@pytest.fixture(scope="module")
def quick(write):
    return write(QUICK, "quick")


def test_every_figure_of_a_whole_chapter_is_shown(full):
    ids = {e.attributes.get("id") for e in full.all("figure")}
    expected = {f"figure-{number}" for number in FIGURES}
    expected |= {"strip", "figure-spectrum", "figure-plane", "figure-c2-optimal", "figure-c4-optimal"}
    assert ids == expected
    assert "left out" not in full.source


def test_a_figure_whose_run_is_missing_is_left_out_and_said_to_be(quick):
    ids = {e.attributes.get("id") for e in quick.all("figure")}
    assert {"figure-5-1", "figure-5-2a", "figure-5-2b", "figure-5-3", "figure-5-4b", "figure-5-5"} <= ids
    assert not ids & {"figure-5-4a", "figure-5-6", "figure-c2-optimal"}
    said = [e.text for e in quick.all("p") if e.attributes.get("class") == "left-out"]
    assert any(text.startswith("Figure 5-4a is left out: C3") for text in said)
    assert any(text.startswith("Figure 5-6 is left out: C5 LeakyReLU") for text in said)
    assert any("The grid of C2, optimal \u03c3 is left out" in text for text in said)
    plan = next(text for text in said if "quick plan" in text)
    assert all(NAMES[name] in plan for name in RUNS if name not in QUICK)


@pytest.mark.parametrize("names", [("c4-optimal",), ("c5-asymmetric", "c3")])
def test_any_runs_make_a_page(write, names):
    page = write(names, "smoke", draws=False)
    verdicts = [e.text for e in page.all("span") if e.attributes.get("class", "").startswith("verdict")]
    assert len(verdicts) == 4 and verdicts[2:] == ["not tested", "not tested"]


def test_no_run_without_its_metrics(tmp_path):
    run = make_run(tmp_path, "c1")
    evaluation = run.evaluation()
    del evaluation["bits_per_dim_calibrated"]
    (run.path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    with pytest.raises(DataError, match="bits_per_dim_calibrated"):
        cifar10_page.write_page(tmp_path / "p.html", {"c1": run}, make_measured(["c1"]), STAGES)
    assert not (tmp_path / "p.html").exists()


# ------------------------------------------------------------------------------------------------ captions
def test_every_caption_says_data_split_likelihood_unit_n_seed_and_epochs(full, quick):
    for page in (full, quick):
        captions = page.all("figcaption")
        assert len(captions) == len(page.all("figure"))
        for caption in captions:
            for words in ("data: cifar10", "split: ", "likelihood: gaussian", "unit: ", "n = ", "seed 0", "epochs: 5"):
                assert words in caption.text, caption.text


def test_a_caption_of_many_runs_says_the_range_of_their_sigmas(full):
    strip = next(e.text for e in full.all("figcaption") if "through every model" in e.text)
    assert "gaussian with sigma = 0.7071; gaussian_optimal with sigma from 0.084 to 0.12" in strip


def test_the_strip_has_a_row_for_the_images_and_one_for_each_model(full, quick):
    for page, names in ((full, RUNS), (quick, QUICK)):
        start = page.source.index('<div class="strip">')
        rows = re.findall(r"<span>([^<]*)</span><img", page.source[start : page.source.index("</div>", start)])
        assert rows == ["test images", *(str(NAMES[name]) for name in NAMES if name in names)]


# ------------------------------------------------------------------------------------------------ the table
def cells(page):
    return [e.attributes for e in page.all("td") if "data-run" in e.attributes]


def test_every_number_of_the_table_is_that_of_its_evaluation(full, made):
    seen = set()
    for cell in cells(full):
        name, metric, value = cell["data-run"], cell["data-metric"], float(cell["data-value"])
        e, per_image = made[name].evaluation(), made[name].per_image()
        sse = 3072 * per_image["mse_sample"].mean()
        spread = torch.linalg.svdvals(per_image["mean"].double() - per_image["mean"].double().mean(0)).square()
        directions = (spread / (len(per_image["mean"]) - 1) > 0.01).sum()
        derived = {"sse": sse, "article": -(sse + per_image["kl"].mean()), "directions": directions}
        expected = float(derived[metric]) if metric in derived else e[metric]["value"]
        assert value == pytest.approx(expected, rel=1e-9)
        seen.add((name, metric))
    assert seen == {(name, metric) for name in RUNS for metric in cifar10_table.COLUMNS}


def test_what_is_printed_is_the_value_with_its_standard_error(full):
    rows = [e for e in full.all("td") if "data-run" in e.attributes]
    for e in rows:
        digits = cifar10_table.COLUMNS[e.attributes["data-metric"]][2]
        assert e.text.startswith(number(float(e.attributes["data-value"]), digits))
        assert ("\u00b1" in e.text) == (e.attributes["data-metric"] not in {"active_units", "directions"})


def test_runs_are_ranked_by_calibrated_bits_inside_their_group_only(full):
    order = [c["data-run"] for c in cells(full) if c["data-metric"] == "bits_per_dim_calibrated"]
    value = {
        c["data-run"]: float(c["data-value"]) for c in cells(full) if c["data-metric"] == "bits_per_dim_calibrated"
    }
    plain, permuted = order[:-2], order[-2:]
    assert set(permuted) == {"c2-optimal-permuted", "c4-optimal-permuted"}, "other pixels are another group"
    for group in (plain, permuted):
        assert all(value[a] <= value[b] for a, b in pairwise(group))
    captions = [e.text for e in full.all("caption") if "Family gaussian" in e.text]
    assert len(captions) == 2 and "pixels permuted" in captions[1]


def test_families_are_never_ranked_together(made):
    readings = {name: read(made[name], name) for name in ("c1", "c2", "c4")}
    found = cifar10_numbers.gathered(readings, make_measured(["c1"]).numbers["linear"], {}, 5)
    found["runs"]["c2"]["family"] = "logistic"
    groups = cifar10_table.groups(found, {name: r.config for name, r in readings.items()})
    assert [(g.family, [row.name for row in g.rows]) for g in groups] == [
        ("gaussian", ["c4", "c1"]),
        ("logistic", ["c2"]),
    ]


def test_log_p_is_called_so_only_where_enough_draws_carry_it(full):
    texts = {e.attributes["data-run"]: e.text for e in full.all("td") if e.attributes.get("data-metric") == "log_p"}
    assert "log p(x)" in texts["c1"] and "a bound" not in texts["c1"]
    assert all("log p" not in text and "a bound" in text for name, text in texts.items() if name != "c1")


def test_what_was_not_measured_has_no_column_and_no_cell(made):
    """The quick plan takes no importance samples."""
    readings = {name: read(made[name], name) for name in ("c1", "c2")}
    found = cifar10_numbers.gathered(readings, make_measured(["c1"]).numbers["linear"], {}, 5)
    configs = {name: r.config for name, r in readings.items()}
    assert "log_p" in cifar10_table.groups(found, configs)[0].columns
    del found["runs"]["c1"]["log_p"]
    group = cifar10_table.groups(found, configs)[0]
    empty = {row.name: [cell is None for cell in row.cells].count(True) for row in group.rows}
    assert "log_p" in group.columns and empty == {"c1": 1, "c2": 0}
    del found["runs"]["c2"]["log_p"]
    assert "log_p" not in cifar10_table.groups(found, configs)[0].columns
    assert any("L_K" in line and "not measured" in line for line in cifar10_words.reading(found))


def test_the_article_stands_beside_its_two_networks_and_the_control_is_marked(full):
    beside = {
        e.attributes["data-run"]: e.text
        for e in full.all("td")
        if e.attributes.get("data-metric") == "article" and "article" in e.text
    }
    assert set(beside) == {"c3", "c4"}
    assert "\u221292.6265" in beside["c3"] and "model not named" in beside["c3"]
    assert "\u221281.5941" in beside["c4"] and "model not named" not in beside["c4"]
    control = [e for e in full.all("tr") if e.attributes.get("class") == "control"]
    assert len(control) == 1 and "negative control" in control[0].text


def test_both_tables_of_lines_stand_on_the_page(full):
    rows = [e for e in full.all("td") if "data-line" in e.attributes]
    linear = make_measured(["c1"]).numbers["linear"]
    assert [float(e.attributes["data-line"]) for e in rows] == [
        row["bits_per_dim"] for key in ("dequantized", "grid") for row in linear[key]
    ]
    assert "78.52" in full.source


# ------------------------------------------------------------------------------------------------ words
def test_the_distance_from_the_linear_model_is_a_difference_of_the_table_s_numbers(made):
    linear = make_measured(["c1"]).numbers["linear"]
    run = {"c4-optimal": read(made["c4-optimal"], "x")}
    found = cifar10_numbers.gathered(run, linear, {}, 5)
    away, line = found["distance"], cifar10_numbers.line(linear["dequantized"], 256)
    e = made["c4-optimal"].evaluation()
    assert away["bits_per_dim"]["value"] == pytest.approx(e["bits_per_dim"]["value"] - line["bits_per_dim"])
    assert away["psnr"]["value"] == pytest.approx(e["psnr"]["value"] - 25.82)
    on_grid = density_bits(-e["elbo"]["value"], 3072)
    assert away["grid"]["value"] == pytest.approx(on_grid - line["bits_per_dim"])
    ahead = "ahead" if away["bits_per_dim"]["value"] < 0 else "behind"
    assert ahead in cifar10_words.distance(found)
    found["distance"]["bits_per_dim"]["value"] *= -1
    assert {"ahead": "behind", "behind": "ahead"}[ahead] in cifar10_words.distance(found)
    assert cifar10_words.distance({**found, "distance": None}) is None


def test_the_notes_are_the_article_s_errors_of_this_chapter(full, quick):
    for page in (full, quick):
        rows = [e.attributes["id"] for e in page.all("tr") if e.attributes.get("id", "").startswith("note-")]
        assert rows == [f"note-{i}" for i in (10, 11, 13, 15, 16, 17, 20, 21)]
    note = next(e.text for e in full.all("tr") if e.attributes.get("id") == "note-15")
    assert re.search(r"Reconstructions of C5 asymmetric \(control\) are darker: mean pixel value \u22120\.1", note)
    note = next(e.text for e in quick.all("tr") if e.attributes.get("id") == "note-15")
    assert "Not measured: C5 LeakyReLU, C5 asymmetric (control) not trained here." in note


def test_a_difference_within_its_error_is_not_called_one(made):
    readings = {name: read(made[name], name) for name in ("c4", "c5-leaky")}
    found = cifar10_numbers.gathered(readings, make_measured(["c1"]).numbers["linear"], {}, 5)
    change = found["paired"]["activation"]["elbo"]
    for value, verdict in ((9.0, "better"), (-9.0, "worse"), (4.0, "no clear difference")):
        change |= {"value": value, "se": 1.0}
        note = next(n for n in cifar10_page.notes.notes(found) if n.number == 15)
        assert verdict in note.measured


def test_the_snow_is_the_samples_with_noise_of_variance_one_half():
    images = make_measured(["c1"], n=64).pictures["c1"].generated
    noisy = cifar10_page._with_noise(images, 0)
    assert noisy.shape == images.shape and noisy.min() == 0 and noisy.max() == 1
    middle = images.clone().fill_(0.5)
    inside = cifar10_page._with_noise(middle, 0)
    share = float(((inside > 0) & (inside < 1)).double().mean())
    assert share == pytest.approx(0.5205, abs=5 * 0.0012)  # P(|N(0, 1/2)| < 1/2) = erf(1/2); 5 sigma of 196,608 values


# ------------------------------------------------------------------------------------------------ the file
def test_one_file_without_external_address_whose_references_resolve(full):
    words = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=\s]+", "", full.source)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", words)
    assert not full.all("script") and not full.all("link")
    ids = [e.attributes["id"] for e in full.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    targets = {v[1:] for e in full.elements for k, v in e.attributes.items() if k == "href" and v.startswith("#")}
    assert targets | set(re.findall(r"url\(#([^)]+)\)", full.source)) <= set(ids)
    assert all(e.attributes.get("alt") for e in full.all("img"))


def test_same_runs_same_bytes(made, tmp_path):
    runs = {"c4-optimal": made["c4-optimal"]}
    pages = [
        cifar10_page.write_page(tmp_path / name, runs, make_measured([*runs]), STAGES).read_bytes() for name in "ab"
    ]
    assert pages[0] == pages[1]


# ------------------------------------------------------------------------------------------------ Chinese
@pytest.mark.parametrize(("names", "plan"), [([*RUNS], "full"), (QUICK, "quick"), (("c4-optimal",), "smoke")])
def test_no_english_is_left_on_a_chinese_page(write, names, plan):
    page = write(names, plan, "zh")
    for text in texts_of(page):
        assert not english_words(RUN_NAME.sub(" ", text)) - WORDS, text


def test_numbers_are_the_same_in_both_languages(write):
    english, chinese = (write([*RUNS], "full", lang) for lang in ("en", "zh"))
    for name in ("data-value", "data-metric", "data-run", "data-line", "id", "href", "class"):
        assert [e.attributes.get(name) for e in english.elements] == [e.attributes.get(name) for e in chinese.elements]
    values = [[e.text for e in page.all("td") if "data-run" in e.attributes] for page in (english, chinese)]
    assert [re.findall(r"[\d.,]+", a)[:2] for a in values[0]] == [re.findall(r"[\d.,]+", a)[:2] for a in values[1]]
