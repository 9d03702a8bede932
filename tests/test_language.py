"""Reports in another language: the catalogue holds every sentence, English is what it was, nothing English is left over."""

from __future__ import annotations

import ast
import copy
import json
import re
import tomllib
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from html import unescape
from pathlib import Path, PurePosixPath
from string import Formatter
from types import SimpleNamespace

import pytest
from jinja2 import DictLoader, Environment, StrictUndefined, nodes

import diabolo
from diabolo import cli, language, plots, report, runs, tables, training
from diabolo.chapters import (
    autoencoders,
    autoencoders_measures,
    autoencoders_page,
    mnist_notes,
    mnist_story,
    parts,
    toy,
)
from diabolo.chapters.mnist import CONVENTIONS
from diabolo.data import load
from diabolo.errors import UsageError
from diabolo.evaluation import _how_far
from diabolo.language import joined, say, shown, translate
from diabolo.models.build import build_model
from diabolo.progress import Progress
from diabolo.recorded import known_again
from known import tiny_images
from test_report import HOSTILE, FakeRun, Page, make_conventions, make_fake_run, make_pictures

PACKAGE = Path(diabolo.__file__).parent
TEMPLATES = {
    path.name: path.read_text(encoding="utf-8") for path in (PACKAGE / "templates").iterdir() if path.suffix != ".png"
}
OTHERS = [lang for lang in language.languages() if lang != "en"]
every_language = pytest.mark.parametrize("lang", OTHERS)


# ------------------------------------------------------------------------------------------------ what can be said
def said_in_python(source: str) -> list[str]:
    """The templates of all calls of `say` and `joined`; one that is no literal could not be looked up by a test."""
    tree, found = ast.parse(source), []
    imported = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "diabolo.language"]
    names = {f"language.{name}" for name in ("say", "joined", "Said", "translate")}
    names |= {alias.name for node in imported for alias in node.names if f"language.{alias.name}" in names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            template = node.args[0] if node.args else None
            assert isinstance(template, ast.Constant) and isinstance(template.value, str), ast.unparse(node)
            found.append(template.value)
    return found


def said_in_a_template(source: str) -> list[str]:
    """The same for `t` and `say` in a template of a page."""
    found = []
    for call in Environment().parse(source).find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in {"t", "say"}:
            assert isinstance(call.args[0], nodes.Const), call
            found.append(call.args[0].value)
    return found


def all_said() -> set[str]:
    python = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.name != "language.py")
    pages = (source for name, source in TEMPLATES.items() if name.endswith(".j2"))
    return {text for source in python for text in said_in_python(source)} | {
        text for source in pages for text in said_in_a_template(source)
    }


def test_the_search_for_sentences_finds_them_and_refuses_what_it_cannot_read():
    known = "from diabolo.language import joined, say\n"
    assert said_in_python(known + "f(say('a {n}', n=1), joined('{before}-{after}', x))") == [
        "a {n}",
        "{before}-{after}",
    ]
    assert said_in_python(known + "say('a ' 'b')") == said_in_python("language.say('a b')") == ["a b"]
    assert said_in_python("say('news for the terminal')") == []
    for source in ("say(name)", "say(f'{name}')", "say('a' if b else 'c')", "say()"):
        with pytest.raises(AssertionError):
            said_in_python(known + source)
    assert said_in_a_template('{{ t("a") }}{% set x = {"k": t("b")} %}{{ f(say("c", n=1)) }}') == ["a", "b", "c"]
    with pytest.raises(AssertionError):
        said_in_a_template("{{ t(name) }}")
    assert len(all_said()) > 250


@every_language
def test_the_catalogue_holds_every_sentence_and_no_other(lang):
    assert all_said() ^ language.read_catalogue(lang)["texts"].keys() == set()


@every_language
def test_no_sentence_stands_in_two_files_of_a_language(lang):
    files = [tomllib.loads(path.read_text(encoding="utf-8")) for path in language.TRANSLATIONS.glob(f"{lang}.*")]
    assert len(files) > 1 and sum("tag" in file for file in files) == 1
    assert sum(len(file["texts"]) for file in files) == len(language.read_catalogue(lang)["texts"])


# ------------------------------------------------------------------------------------------------ the two sides agree
def placeholders(text: str) -> Counter[str]:
    fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(text) if name is not None]
    assert all(name.isidentifier() and not spec and not conversion for name, spec, conversion in fields), text
    return Counter(name for name, _, _ in fields)


#: What an engineer leaves as it is: names, symbols, units, and the words of the code.
LEFT = {
    *(
        "ELBO",
        "KL",
        "MSE",
        "PCA",
        "BCE",
        "MLE",
        "MLP",
        "VAE",
        "MNIST",
        "ReLU",
        "LeakyReLU",
        "Adam",
        "PyTorch",
        "Python",
    ),
    *("CPU", "NVIDIA", "Tesla", "SHA", "ICLR", "EMNLP", "arXiv", "Model", "diabolo", "nats", "log", "exp", "logvar"),
    *("test", "train", "tests", "test_mathematics", "py", "test_reparameterised_sd", "log_p"),
    *("CIFAR", "ConvVAE", "pPCA", "RGB", "FID", "RAE", "VDVAE", "ESS", "L_K", "GPU", "GitHub", "AttributeError"),
    *(
        "nn",
        "Module",
        "JPEG",
        "PNG",
        "PSNR",
        "SSIM",
        "SSE",
        "dB",
        "sigma",
        "sigmoid",
        "Baldi",
        "Hornik",
        "explain",
        "RUN",
        "full",
        "locality",
    ),
    *("test_family", "test_a_linear_autoencoder_reaches_the_subspace_of_pca"),
}
TAG = re.compile(r"</?[a-z]+>")
WORD = re.compile(r"[A-Za-z][A-Za-z_]+")
HAN = "\u4e00-\u9fff"


def words(text: str) -> set[str]:
    return set(WORD.findall(re.sub(r"&\w+;|\{\w+\}", " ", TAG.sub(" ", text))))


@every_language
def test_each_translation_has_the_placeholders_and_tags_of_its_sentence(lang):
    for english, text in language.read_catalogue(lang)["texts"].items():
        assert placeholders(english) == placeholders(text), english
        assert Counter(TAG.findall(english)) == Counter(TAG.findall(text)), english


def test_the_chinese_is_chinese():
    for english, text in language.read_catalogue("zh")["texts"].items():
        assert not words(text) - LEFT, (text, words(text) - LEFT)
        symbols_only = (
            not {w.lower() for w in words(english)} - {w.lower() for w in LEFT | {"at", "and", "in", "with"}}
            or text == "ELBO"
        )
        assert symbols_only or re.search(f"[{HAN}]", text), english
        assert not re.search(f"[{HAN}][,;:!?.]|[,;:!?][{HAN}]", text), f"half-width punctuation: {text}"
        assert not re.search(
            "[\uff0c\u3002\uff1b\uff1a\uff08\uff09\u3001] | [\uff0c\u3002\uff1b\uff1a\uff08\uff09\u3001]", text
        ), text


# ------------------------------------------------------------------------------------------------ how it is said
def test_a_sentence_is_its_english_text_and_can_be_said_again():
    inner = say("z sampled")
    sentence = say("ELBO {elbos}, gap {gaps} nats (models 1 / 2 / 3). {verdict}", elbos="1", gaps="2", verdict=inner)
    assert sentence == "ELBO 1, gap 2 nats (models 1 / 2 / 3). z sampled"
    assert translate(sentence.template, "en", **sentence.values) == shown(sentence, "en") == sentence
    assert (
        shown(str(sentence), "zh") == "ELBO 1\uff0c\u5dee\u8ddd 2 nats\uff08Model 1 / 2 / 3\uff09\u3002z \u62bd\u6837"
    )
    assert shown(joined("{before} and {after}", ["a", inner, "c"]), "zh") == "a \u548c z \u62bd\u6837 \u548c c"
    assert joined("{before} and {after}", ["a", "b", "c"]) == "a and b and c"
    for value in ("z sampled", 3, None, HOSTILE):
        assert shown(value, "zh") is value, "what nobody said is the same in every language"
    for again in (copy.deepcopy(sentence), sentence.filled(sentence.values)):
        assert again == sentence and shown(again, "zh") == shown(sentence, "zh")


def how_far(state: str, keep: str = "last", best_epoch: int = 0) -> str:
    """What an evaluation records of a run that is in a state other than finished."""
    trainer = SimpleNamespace(
        position=SimpleNamespace(step=71, best_epoch=best_epoch),
        config=SimpleNamespace(train=SimpleNamespace(keep=keep)),
    )
    status = {"state": state, "epoch": 3, "reason": "time: 1h2m", "weights": training.Trainer.kept(trainer)}
    return _how_far(SimpleNamespace(status=status))


@pytest.mark.parametrize(
    ("recorded", "numbers"),
    [
        (how_far("stopped"), ("1h2m", "3", "71")),
        (how_far("stopped", "best"), ("1h2m", "3", "71")),
        (how_far("stopped", "best", 2), ("1h2m", "3", "2")),
        *((how_far(state), ("3",)) for state in ("running", "interrupted", "diverged", "failed")),
        (runs.AT_THE_START, ()),
        (runs.AT_THE_END, ()),
    ],
)
def test_what_a_run_recorded_can_be_said_in_another_language(recorded, numbers):
    assert known_again(recorded) == recorded
    told = shown(known_again(recorded), "zh")
    assert WORD.findall(told) == [] and tuple(re.findall(r"\d\w*", told)) == numbers


def test_what_is_in_no_known_form_stays_as_it_was_recorded():
    for text in ("", HOSTILE, "stopped", "at the first step of two"):
        assert known_again(text) is text


def test_a_sentence_that_the_catalogue_lacks_is_an_error():
    with pytest.raises(LookupError, match="no such sentence"):
        translate("no such sentence", "zh")
    with pytest.raises(LookupError, match="no such sentence"):
        report._environment("zh").from_string("{{ t('no such sentence') }}").render()
    with pytest.raises(LookupError, match="no such sentence"):
        report._environment("zh").from_string("{{ text }}").render(text=say("no such sentence"))


def test_what_a_template_shows_is_translated_and_escaped():
    page = report._environment("zh").from_string(
        '{{ x }}|<i title="{{ x }}">|{{ t("Wall time of {name}", name=x) }}|{{ t("Wall time of {name}", name=y) }}|{{ y }}'
    )
    real = "\u771f\u5b9e"
    escaped = "&lt;script&gt;alert(1)&lt;/script&gt;"
    of_x, of_y = (f"{name} \u7684\u7528\u65f6" for name in (real, escaped))
    assert page.render(x=say("Real"), y=HOSTILE) == f'{real}|<i title="{real}">|{of_x}|{of_y}|{escaped}'


def test_a_drawing_is_retold_without_being_moved():
    figure = plots.dimension_bars([1.0, 2.0], "KL, nats/image")
    said, label = plots.sentences(figure), say("KL of each latent dimension of {title}, largest first", title="<a> & b")
    assert said == ["latent dimension, largest first"]
    english = plots.svg(figure, "k", label)
    assert plots.retold(english, label, said, "en") == english
    chinese = plots.retold(english, label, said, "zh")
    assert f">{shown(said[0], 'zh')}</text>" in chinese and f">{said[0]}</text>" not in chinese
    assert 'aria-label="&lt;a&gt; &amp; b ' in chinese and 'largest first"' not in chinese
    outline = re.compile(r'aria-label="[^"]*"|(?<=>)[^<>]*(?=</text>)')
    assert outline.sub("", chinese) == outline.sub("", english)


# ------------------------------------------------------------------------------------------------ English is what it was
def evaluation(elbo, kl, gap, mse_mean, mse_sample, floor, active):
    return {
        "about": {"normalised": floor is None, "entropy_floor": floor, "split": "test"},
        "elbo": {"value": elbo, "se": 0.3},
        "kl": {"value": kl, "se": 0.03},
        "distortion": {"value": -elbo - kl, "se": 0.31},
        "mse_mean": {"value": mse_mean},
        "mse_sample": {"value": mse_sample},
        "active_units": {"value": active},
        "log_p": {"value": elbo + gap, "se": 0.1, "gap": gap, "k": 1000, "n": 500},
        "log_p_curve": {"n": 40, "points": [{"k": k, "value": elbo + k**0.2} for k in (1, 10, 1000)]},
    }


def story_of(grey, binarized):
    networks = [{"width": width, "depth": 2} for width in (400, 200, 400)]
    configs = [
        {
            "model": {"latent": latent, "encoder": net, "decoder": net},
            "train": {"batch": 128, "lr": 0.001, "epochs": 10},
            "seed": 0,
        }
        for latent, net in zip((20, 20, 10), networks)
    ]
    return {
        "notes": [[n.number, n.says, n.measured, n.why] for n in mnist_notes.notes(grey, binarized, configs)],
        "causes": mnist_story.causes(grey),
        "reading": mnist_story.reading(grey, binarized),
        "summary": [list(line) for line in mnist_story.summary(grey, binarized)],
    }


BINARIZED = [evaluation(-102.5, 18.8, 4.63, 0.031, 0.0334, None, 11)] * 3
#: Evaluations that lead to every sentence: each condition of the notes is met in one and not in the other.
CASES = [
    (
        [
            evaluation(-104.4, 17.9, 4.02, 0.0137, 0.016, 45.53, 10),
            evaluation(-108.6, 17.6, 4.19, 0.0158, 0.0179, 45.53, 15),
            evaluation(-104.6, 18.1, 4.18, 0.0139, 0.016, 45.53, 10),
        ],
        BINARIZED,
    ),
    (
        [
            evaluation(-104.4, 1.0, 6.02, 0.0164, 0.026, None, 10),
            evaluation(-118.6, 17.6, 4.19, 0.0158, 0.0179, None, 15),
            evaluation(-114.6, 18.1, 4.18, 0.0139, 0.016, None, 20),
        ],
        BINARIZED,
    ),
]


def test_the_notes_in_english_are_as_they_were_before_they_could_be_translated():
    """mnist_words_en.json was written by the code that composed these sentences with f-strings."""
    written = json.loads((Path(__file__).parent / "mnist_words_en.json").read_text(encoding="utf-8"))
    assert [story_of(*case) for case in CASES] == written


def untranslated(source: str) -> str:
    """A template as if there were one language: its sentences stand in it, their values where the placeholders are."""

    def filled(text: str, given: str, inside: str) -> str:
        _, *pairs = re.split(r", (\w+)=", given)
        values = dict(zip(pairs[::2], pairs[1::2], strict=True))
        return re.sub(r"\{(\w+)\}", lambda m: inside % values[m[1]], text)

    source = re.sub(
        r"\{\{ t\(([\"'])((?:(?!\1).)*)\1((?:, \w+=.*?)?)\) \}\}", lambda m: filled(m[2], m[3], "{{ %s }}"), source
    )
    source = re.sub(
        r"\bsay\(([\"'])(.*?)\1((?:, \w+=[^()]*?)*)\)",
        lambda m: "(" + m[1] + filled(m[2], m[3], f"{m[1]} ~ (%s) ~ {m[1]}") + m[1] + ")",
        source,
    )
    source = re.sub(r"\bt\(([\"'])(.*?)\1\)", r"\1\2\1", source)
    source = source.replace("{{ panel | drawn }}", "{{ panel.svg }}")
    assert not re.search(r"\b(t|say)\(\s*[\"']", source)
    return source


def without_languages(lang: str) -> Environment:
    environment = Environment(
        loader=DictLoader({name: untranslated(source) for name, source in TEMPLATES.items()}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=tables.number, seconds=tables.seconds)
    environment.globals.update(lang="en", tag="en")
    return environment


@dataclass
class Drawn:
    """The reports of two chapters and of three runs, one without pictures, drawn once, to be written in any language."""

    folder: Path
    made: list[tuple[str, dict]]

    def written(self, name: str, lang: str) -> list[Path]:
        return [
            WRITE(template, self.folder / f"{name}-{i}.html", lang, **values)
            for i, (template, values) in enumerate(self.made)
        ]


WRITE = report.write_template


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("reports"), []
    conventions = make_conventions(folder, [*"012345678", HOSTILE])
    conventions[0] = report.Convention("grey", HOSTILE, conventions[0].entries, conventions[0].classes)
    conventions[1] = report.Convention("binarized", CONVENTIONS["binarized"][1], conventions[1].entries)
    run, short = make_fake_run(folder, "my run", normalised=False), make_short_run(folder)
    no_prior = make_pictures()
    no_prior = report.Pictures(no_prior.real, no_prior.reconstructed, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoencoders_measures, "SPECTRA", 4)
        measured = measured_of_autoencoders(folder)
        patch.setattr(report, "write_template", lambda template, out, lang, **values: made.append((template, values)))
        report.write_chapter_report(conventions, mnist_story.story(conventions), folder / "r.html", stages(), "zh")
        report.write_run_report(run, make_pictures(), classes=[HOSTILE])
        report.write_run_report(run, None)
        report.write_run_report(short, no_prior)
        patch.setattr(autoencoders_page, "write_template", report.write_template)
        autoencoders_page.write_page(folder / "a.html", *measured)
    return Drawn(folder, made)


def make_short_run(folder: Path) -> FakeRun:
    """A smoke run of an autoencoder that was stopped: it has codes, no bound, and a warning."""
    run = make_fake_run(folder, "run", normalised=False)
    found = {name: run.evaluation()[name] for name in ("about", "distortion", "mse_mean", "pca")}
    found["about"] |= {"bound": "none", "smoke": True, "how_far": how_far("stopped"), "sigma": 0.5}
    (run.path / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    env = run.env
    env["data"]["warning"] = WARNING
    (run.path / "env.json").write_text(json.dumps(env), encoding="utf-8")
    return run


#: Images of 8 x 8 pixels: as small as PCA with 32 dimensions lets them be.
SMALL = tiny_images(300, (1, 8, 8))
WARNING = "few images"


class ModelRun(FakeRun):
    """A run directory that has a model, with the weights it begins with."""

    def model(self):
        return build_model(self.config_dict["model"], SMALL.spec).eval().requires_grad_(False)


def measured_of_autoencoders(folder: Path) -> tuple:
    """What the page of the chapter is written from: its runs, untrained and on small images, all that is measured on them."""
    made, plane, progress = {}, load("spiral", {}), Progress()
    for name, config in autoencoders._configs(autoencoders.PLANS["smoke"]).items():
        made[name] = ModelRun(make_fake_run(folder, name, normalised=False, n=len(SMALL.test), subset=20).path)
        (folder / name / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    found = autoencoders_measures.measure(made, SMALL, test=60, train=180, progress=progress)
    toys = {
        kind: SimpleNamespace(model=partial(build_model, config.to_dict()["model"], plane.spec))
        for kind, config in toy.configs().items()
    }
    autoencoders_measures.add_toy(found, toys, plane, progress)
    return made, found, {**stages(), **found.seconds}


def stages() -> dict[str, float]:
    """Those of the real chapter, of one run."""
    run = SimpleNamespace(timing=list, evaluation=lambda: {"about": {"seconds": dict.fromkeys(STAGES, 1.5)}})
    return parts.stages_of([run])


STAGES = ("pass", "importance", "probes", "metrics")


@pytest.fixture(scope="module")
def english(drawn):
    return drawn.written("english", "en")


def test_an_english_report_has_the_bytes_of_one_whose_templates_know_no_other_language(drawn, english, monkeypatch):
    monkeypatch.setattr(report, "_environment", without_languages)
    for one, other in zip(english, drawn.written("plain", "en"), strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


# ------------------------------------------------------------------------------------------------ Chinese pages
#: What the runs of the tests are called and made of: names and values, the same in every language.
DATA = {
    *("mnist", "grey", "binarized", "model", "my", "run", "train", "bernoulli", "bernoulli_relaxed", "gaussian"),
    *("elbo", "loss", "distortion", "rate", "relu", "image", "images", "cpu", "GB", "min"),
    *("Intel", "Xeon", "Cascade", "Lake", "script", "alert"),
    *("AE", "DAE", "CAE", "spiral", "gaussian_optimal"),
}
#: The runs of the chapter of autoencoders; their names are not looked for word by word, since "plain" is one of them.
NAMES = re.compile(r"\b(?:ae|dae|vae|layer)-[a-z0-9-]+")
#: What a page shows as a run recorded it.
VERBATIM = re.compile(r'<(tbody|span) lang="en">.*?</\1>', re.DOTALL)


def english_words(text: str) -> set[str]:
    return set(WORD.findall(NAMES.sub(" ", text))) - LEFT - DATA


@pytest.fixture(scope="module")
def chinese(drawn):
    return [Page(path) for path in drawn.written("chinese", "zh")]


def test_a_chinese_page_says_so_and_is_utf_8(chinese):
    for page in chinese:
        assert page.all("html")[0].attributes["lang"] == "zh-Hans"
        assert page.all("meta")[0].attributes["charset"] == "utf-8"
        assert "Noto Sans CJK SC" in page.all("style")[0].text


def texts_of(page: Page) -> list[str]:
    """What a reader sees or hears, piece by piece, but code and the titles of cited papers."""
    source = VERBATIM.sub(" ", page.source)
    source = re.sub(r"<style>.*?</style>|<!--.*?-->|<code>.*?</code>|<math.*?</math>", " ", source, flags=re.S)
    source = re.sub(r"<li>[^<]*(?:arXiv:|doi:|jmlr\.org/|icml\.cc/)[^<]*</li>", "", source)
    heard = [e.attributes.get(name) or "" for e in page.elements for name in ("alt", "aria-label")]
    return [unescape(text).strip() for text in re.split(r"<[^>]*>", source) if text.strip()] + heard


def test_no_english_is_left_on_a_chinese_page(chinese):
    for page in chinese:
        for text in texts_of(page):
            assert not english_words(text), text


def test_english_stands_only_where_a_run_recorded_it_and_the_page_says_so(chinese):
    """The body of the loss card, and what is told of the data."""
    told = shown(say(" The sentences of the loss card were written in English when the run was trained."), "zh")
    for page in chinese[:-1]:
        found = [e for e in page.elements if e.attributes.get("lang") == "en"]
        assert {e.tag for e in found} <= {"tbody", "span"}
        cards = [e for e in found if "loss" in e.inside]
        assert (told in page.source) == bool(cards)
        assert {e.text for e in found if e not in cards} <= {WARNING, "as given"}
    assert not VERBATIM.search(chinese[-1].source)
    assert sum(told in page.source for page in chinese) == 4


def test_the_search_for_english_finds_a_heading_that_was_not_said(drawn, tmp_path):
    values = drawn.made[1][1] | {
        "title": "x",
        "config": {},
        "curve_facts": report.facts_of(drawn.made[1][1]["reading"], n="Forgotten words"),
    }
    page = Page(WRITE("run.html.j2", tmp_path / "r.html", "zh", **values))
    assert [text for text in texts_of(page) if english_words(text)] == ["n = Forgotten words"]


def test_no_heading_of_a_chinese_page_is_english(english, chinese):
    tags = ("h1", "h2", "h3", "h4", "caption", "th", "summary", "b")
    for path, page in zip(english, chinese, strict=True):
        before, after = ([e.text for e in translated(p).elements if e.tag in tags] for p in (Page(path), page))
        assert len(before) == len(after) > 30
        code = {word for e in page.all("code") for word in WORD.findall(e.text)}
        for one, other in zip(before, after):
            assert one != other or not english_words(one) - code - {"ELBOnats"}, one


def translated(page: Page) -> Page:
    """The page without what runs recorded."""
    return Page(SimpleNamespace(read_text=lambda encoding: VERBATIM.sub("", page.source)))


def test_numbers_and_names_are_the_same_in_both_languages(english, chinese):
    for path, page in zip(english, chinese, strict=True):
        before = Page(path)
        for tag in ("code", "math"):
            assert [e.text for e in before.all(tag)] == [e.text for e in page.all(tag)]
        for name in ("data-value", "data-metric", "data-run", "data-change", "id", "href", "class"):
            assert [e.attributes.get(name) for e in before.elements] == [e.attributes.get(name) for e in page.elements]
        values = [[e.text for e in p.all("span") if e.attributes.get("class") == "value"] for p in (before, page)]
        assert values[0] == values[1] and values[0]


def test_hostile_titles_and_classes_are_text_in_a_chinese_page(chinese):
    for page in chinese:
        assert HOSTILE not in page.source and not page.all("script")
    assert [e for e in chinese[0].all("h2") if HOSTILE in e.text] and [
        e for e in chinese[0].all("li") if HOSTILE in e.text
    ]


# ------------------------------------------------------------------------------------------------ the option
@pytest.mark.parametrize(
    "words", [("reproduce", "mnist"), ("train", "vae"), ("report", "a")], ids=["reproduce", "train", "report"]
)
def test_an_unknown_language_is_refused_before_anything_is_done(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli._run([*words, "--lang", "klingon"]) == 2
    error = capsys.readouterr().err
    assert "unknown language 'klingon'" in error and "en, zh" in error
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_language_is_a_usage_error_of_the_library():
    with pytest.raises(UsageError, match="Accepted: en, zh"):
        report._environment("de")
    with pytest.raises(UsageError, match="unknown language"):
        translate("Metrics", "../zh")


def test_a_run_is_trained_and_reported_in_chinese_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluate = cli._evaluate
    few = {"k": 2, "images": 4, "elbo_samples": 2, "curve_k": (), "curve_images": 0}
    monkeypatch.setattr(cli, "_evaluate", lambda run, given, *rest: evaluate(run, replace(given, **few), *rest))
    assert cli._run(["train", "vae", "train.epochs=1", "--device", "cpu", "--lang", "zh", "--out", "a"]) == 0
    page = tmp_path / "a" / "report.html"
    assert '<html lang="zh-Hans">' in page.read_text(encoding="utf-8")
    assert cli._run(["report", "a"]) == 0
    assert '<html lang="en">' in page.read_text(encoding="utf-8")
    assert cli._run(["report", "a", "--lang", "zh"]) == 0
    assert '<html lang="zh-Hans">' in page.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ the package
def test_every_file_of_the_package_that_is_no_code_is_installed():
    project = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["diabolo"]
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()]
    data = [name for name in files if not name.endswith((".py", ".pyc"))]
    assert "translations/zh.toml" in data
    # `match`, unlike fnmatch, takes * for no slash, as setuptools does
    assert not [name for name in data if not any(PurePosixPath(name).match(pattern) for pattern in patterns)]
