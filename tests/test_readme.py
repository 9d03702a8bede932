"""The documentation is held to the code: commands run, examples run verbatim, tables equal what they were made from."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from diabolo import cli, config, errors
from diabolo.chapters.mnist_article import PUBLISHED
from diabolo.data.catalogue import COLLECTIONS

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/data.md",
    "docs/features.md",
    "docs/decisions.md",
)
LIBRARY = re.compile(r"diabolo\.train\(")
COMPONENT = re.compile(r"@register\(")


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text, language=""):
    """The fenced code blocks, in order; of one language, or all with their language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [code for kind, code in found if kind == language] if language else found


def the_block(language, pattern):
    [found] = [code for code in blocks(text_of("README.md"), language) if re.search(pattern, code)]
    return found


def section(text, title):
    """What stands under a heading of the second level."""
    return re.split(r"^## ", text.split(f"\n## {title}\n", 1)[1], flags=re.MULTILINE)[0]


def commands(text):
    """Every line of a shell block that calls diabolo, as its arguments."""
    lines = [line for code in blocks(text, "sh") for line in code.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [w[1:] for w in words if w and Path(w[0]).name == "diabolo"]


def run(arguments, folder):
    """One command in a process of its own, as a user runs it."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{arguments} left with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tool():
    """tools/readme_results.py as a module."""
    spec = importlib.util.spec_from_file_location("readme_results", ROOT / "tools" / "readme_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------ commands and examples
def test_the_first_steps_run(tmp_path):
    steps = commands(section(text_of("README.md"), "First steps"))
    printed = {" ".join(step): run(["-m", "diabolo", *step], tmp_path) for step in steps}
    assert "run: runs/first" in printed["train vae --out runs/first"].replace("\\", "/")
    assert "K = 100" in printed["evaluate runs/first --k 100"]
    assert (tmp_path / "runs/first/samples.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (tmp_path / "runs/first/report.html").read_text(encoding="utf-8")
    assert re.search(r"objective\.beta +4\.0 +override", printed["config vae objective.beta=4"])
    swept = [path.name for path in (tmp_path / "runs").iterdir() if path.name != "first"]
    assert sorted(swept) == ["short", "smoke-vae-1", "vae-1", "vae-2"]
    assert "no bound" not in printed["explain vae objective.beta=4"] and "4" in printed["explain vae objective.beta=4"]
    assert "sound" in printed["doctor runs/first"]
    assert all(name in printed["list"] for name in config.preset_names())
    assert all(name in printed["data list"] for name in COLLECTIONS)
    assert "mnist" in printed["reproduce"]
    assert "torch" in printed["doctor"]


def test_the_library_example_runs_verbatim(tmp_path):
    code = the_block("python", LIBRARY)
    assert len(code.splitlines()) <= 15
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    note, elbo = run(["-W", "error", "example.py"], tmp_path).splitlines()
    assert "read as one channel" in note and "read as grey" in note
    assert re.fullmatch(r"ELBO -?\d+\.\d\d \+- \d+\.\d\d nats/image, n = 60", elbo)


def test_a_component_of_ones_own_runs_verbatim(tmp_path):
    (tmp_path / "student.py").write_text(the_block("python", COMPONENT), encoding="utf-8")
    train, sample = (c for c in commands(text_of("README.md")) if "--import" in c)
    out = run(["-m", "diabolo", *train], tmp_path)
    assert "likelihood student_t" in out and "run: " in out
    assert "samples: " in run(["-m", "diabolo", *sample], tmp_path)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_in_the_documents_is_accepted(name):
    for command in commands(text_of(name)):
        cli.app.parse_args(command, exit_on_error=False, print_error=False)


def test_a_command_that_is_wrong_would_be_found():
    with pytest.raises(cli.CycloptsError):
        cli.app.parse_args(["train", "vae", "--no-such-flag"], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_presets_and_overrides_in_the_documents_resolve(name):
    own = {"model.likelihood=student_t", "model.likelihood.scale=0.2"}  # of the example, which is run
    for verb, *rest in commands(text_of(name)):
        words = [word for word in rest if word not in own]
        if verb in {"train", "config"} and words and words[0] in config.preset_names():
            config.resolve(words[0], [w for w in words[1:] if "=" in w and not w.startswith(("-", "seed="))])


def test_make_targets_and_their_commands_are_those_of_the_makefile():
    makefile = text_of("Makefile")
    rows = re.findall(r"^\| `make ([\w-]+)` \| `(.+)` \|$", section(text_of("README.md"), "Installation"), re.MULTILINE)
    assert len(rows) == 14
    for target, command in rows:
        recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE).group(1)
        for part in command.split("` and `"):
            assert f"$(BIN)/{part}\n" in recipe, (target, part)


# ------------------------------------------------------------------------------------------------ the two languages
def test_both_languages_have_the_same_code_blocks():
    english = blocks(text_of("README.md"))
    assert len(english) > 6
    assert blocks(text_of("README.zh-CN.md")) == english


def test_both_languages_have_the_same_outline():
    outlines = [
        [
            (len(re.findall(r"^[-\d]", part, re.MULTILINE)), part.count("\n|"))
            for part in re.split(r"^## ", re.sub(r"```.*?```", "", text_of(name), flags=re.DOTALL), flags=re.MULTILINE)
        ]
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert outlines[0] == outlines[1]


def test_both_languages_show_the_same_results():
    numbers = [
        re.findall(r"\d+\.\d+", text_of(name).split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0])
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert numbers[0] == numbers[1]


# ------------------------------------------------------------------------------------------------ tables
@pytest.mark.parametrize(("name", "language"), [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_the_preset_table_is_that_of_the_presets(tool, name, language):
    shown = text_of(name).split("<!-- presets:begin -->\n")[1].split("\n<!-- presets:end -->")[0]
    assert shown == tool.preset_table(language)
    assert shown.count("\n") == 1 + len(config.preset_names())


@pytest.mark.parametrize(("name", "language"), [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_the_tables_of_the_autoencoders_are_those_of_the_measures_that_are_kept(tool, name, language):
    shown = text_of(name).split("<!-- autoencoders:begin -->\n")[1].split("\n<!-- autoencoders:end -->")[0]
    measures = json.loads(tool.MEASURES.read_text(encoding="utf-8"))
    assert shown == tool.autoencoders(measures, language)
    first = measures["bottleneck"][0]
    assert f"{first['ae']['value']:.4f}" in shown and f"{first['pca']['value']:.4f}" in shown


@pytest.mark.parametrize(("name", "language"), [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_the_tables_of_cifar10_are_those_that_are_kept(tool, name, language):
    shown = text_of(name).split("<!-- cifar10:begin -->\n")[1].split("\n<!-- cifar10:end -->")[0]
    assert shown == tool.cifar10(tool.CIFAR10, language)
    evaluations = json.loads((tool.CIFAR10 / "evaluations-locality.json").read_text(encoding="utf-8"))
    assert f"{evaluations['c4-optimal']['psnr']['value']:.2f}" in shown


@pytest.mark.parametrize(("name", "language"), [("README.md", "en"), ("README.zh-CN.md", "zh")])
def test_the_tables_of_the_sharp_chapter_are_those_that_are_kept(tool, name, language):
    shown = text_of(name).split("<!-- sharp:begin -->\n")[1].split("\n<!-- sharp:end -->")[0]
    assert shown == tool.sharp(tool.SHARP, language)
    measures = json.loads((tool.SHARP / "measures.json").read_text(encoding="utf-8"))
    for run in ("sharp", "sharp-60", "short-vector", "c4"):
        assert f"{measures['runs'][run]['psnr']['value']:.2f}" in shown, run
    rows = len(measures["runs"]) + 1 + 2 + len(measures["samples"]["rows"]) + 3 + 5
    assert shown.count("\n| ") == 3 + rows, (
        "heads, runs, one more, two closed forms, sets of images, three and five more"
    )


@pytest.mark.parametrize(
    ("name", "spoil", "why"),
    [
        ("sharp-60-flow", lambda found: found["about"].update(n=5_000), "is no row of this table: n"),
        ("sharp-60-flow-class", lambda found: found["about"]["features"].update(name="other"), "table: features"),
        ("sharp-60-flow", lambda found: found["rows"][0]["frechet"].update(value=2.7), "table: training images"),
        ("sharp-efficientnet", lambda found: found["about"].update(n=5_000), "table: n"),
        ("sharp-efficientnet", lambda found: found["about"].update(drawn="decoder means, z ~ p(z)"), "table: drawn"),
        ("guidance-60", lambda found: found["rows"][-1]["frechet"].update(value=1.0), "guidance 3 is not the best"),
        ("guidance", lambda found: found["rows"].pop(0), "the other with .*1, 1.5"),
        ("guidance", lambda found: found["about"].update(n=500), "tried with .*500"),
    ],
)
def test_samples_that_were_measured_otherwise_are_not_set_beside_these(name, spoil, why, tool, tmp_path):
    kept = shutil.copytree(tool.SHARP, tmp_path / "sharp")
    found = json.loads((kept / f"{name}.json").read_text(encoding="utf-8"))
    spoil(found)
    (kept / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ValueError, match=why):
        tool.sharp(kept, "en")


@pytest.mark.parametrize("name", ["verification", "verification-locality", "verification-quick"])
def test_the_kept_verifications_of_cifar10_failed_nothing_but_what_is_said(tool, name):
    kept = json.loads((tool.CIFAR10 / f"{name}.json").read_text(encoding="utf-8"))
    missed = {check["check"] for check in kept["checks"] if not check["passed"]}
    assert kept["checks"] and missed <= {"bytes of memory at most"}
    assert re.fullmatch(r"[0-9a-f]{7,}", kept["commit"]), "a result names the commit that made it"


def test_every_verb_is_named():
    text = text_of("README.md")
    verbs = [name for name in cli.app if not name.startswith("-")]
    assert len(verbs) == 24
    assert [
        verb for verb in verbs if not re.search(rf"`(diabolo )?{verb}\b|^diabolo {verb}\b", text, re.MULTILINE)
    ] == []


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_exit_codes_are_those_of_the_errors(name):
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text_of(name), re.MULTILINE)}
    raised = {
        kind.exit_code for kind in (errors.DiaboloError, errors.UsageError, errors.DataError, errors.DivergedError)
    }
    signals = {128 + 2, 128 + 15}
    assert codes == {0} | raised | signals


def test_the_data_table_is_the_catalogue():
    rows = set(re.findall(r"^\| `([\w.-]+)` \| ([\d,]+) \| `(\w{64})` \|$", text_of("docs/data.md"), re.MULTILINE))
    assert rows == {(f.name, f"{f.size:,}", f.sha256) for c in COLLECTIONS.values() for f in c.files}
    packed = set(re.findall(r"^\| `([\w.-]+)` \| ([\d,]+) \| (\w{64}) \|$", text_of("docs/data.md"), re.MULTILINE))
    assert packed == {(t.name, f"{t.size:,}", t.sha256) for c in COLLECTIONS.values() for t in c.tarballs}
    mnist = COLLECTIONS["mnist"]
    assert f"| {mnist.download / 1e6:.1f} MB | {mnist.size / 1e6:.1f} MB |" in text_of("docs/data.md")
    assert f"{mnist.download / 1e6:.1f} MB" in text_of("README.md")


def test_the_version_and_licence_are_the_packages():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert f"\nversion: {project['version']}\n" in text_of("CITATION.cff")
    assert f"\n## [{project['version']}] - " in text_of("CHANGELOG.md")
    assert f"\nlicense: {project['license']}\n" in text_of("CITATION.cff")
    assert text_of("LICENSE").startswith("MIT License\n")


# ------------------------------------------------------------------------------------------------ links
@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_to_files_exist(name):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text_of(name), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name} links to {target}"
        headings = re.findall(r"^## (.+)$", file.read_text(encoding="utf-8") if heading else "", re.MULTILINE)
        assert not heading or heading in [found.lower().replace(" ", "-") for found in headings], target


# ------------------------------------------------------------------------------------------------ the results tool
def evaluation(seed, normalised):
    """What the tool reads of an evaluation.json, with numbers that occur nowhere else."""

    def entry(value, **more):
        return {"value": value, "se": 0.25, "n": 9_876, "unit": "nats/image", "split": "test", **more}

    return {
        "about": {
            "data": "mnist", "split": "test", "n": 9_876, "values": "binary" if normalised else "grey", "elbo_samples": 7,
            "likelihood": "bernoulli" if normalised else "bernoulli_relaxed", "normalised": normalised, "seed": 3,
            "entropy_floor": 45.53,
        },
        "elbo": entry(-100.0 - seed), "kl": entry(20.0 + seed),
        "log_p": entry(-90.0 - seed, k=321, gap=10.5, gap_se=0.125) | {"n": 432},
        "mse_mean": entry(0.0123) | {"se": 0.0001}, "mse_sample": entry(0.0145) | {"se": 0.0001},
        "active_units": {"value": 12, "of": 20, "se": None},
    }  # fmt: skip


@pytest.fixture
def evaluations(tool):
    return {(m, c): evaluation(i, c == "binarized") for i, m in enumerate(tool.MODELS) for c in ("grey", "binarized")}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_results_say_what_their_numbers_are(tool, evaluations, language):
    grey, binarized = tool.results(evaluations, PUBLISHED, language).split(tool.WORDS[language]["binarized"])
    for part, likelihood in ((grey, "`bernoulli_relaxed`"), (binarized, "`bernoulli`")):
        for word in ("MNIST", "test", "9,876", "nats/image", "K = 321", "432", "7", likelihood):
            assert word in part
        assert part.count("\N{PLUS-MINUS SIGN} 0.25 |") == 9  # three models, with the bound, log p(x) and the rate
    unnormalised = tool.WORDS[language]["unnormalised"]
    assert unnormalised in grey and unnormalised not in binarized
    assert "45.53" in grey and "45.53" not in binarized
    minus = "\N{MINUS SIGN}"
    assert f"| {minus}102.00 \N{PLUS-MINUS SIGN} 0.25 | {minus}92.00 \N{PLUS-MINUS SIGN} 0.25 |" in grey
    article = f"| {minus}{-PUBLISHED['Model 3']['elbo']:.3f} |"
    assert article in grey and article not in binarized


def test_the_results_are_written_between_the_markers_only(tool, evaluations, tmp_path, monkeypatch):
    before = text_of("README.md")
    assert tool.rewritten(before, "en", tmp_path / "nothing") == before
    monkeypatch.setattr(tool, "read_evaluations", lambda chapter: evaluations)
    after = tool.rewritten(before, "en", tmp_path)
    begin, end = "<!-- results:begin -->", "<!-- results:end -->"
    assert after.split(begin)[0] == before.split(begin)[0]
    assert after.split(end)[1] == before.split(end)[1]
    assert "9,876" in after and tool.rewritten(after, "en", tmp_path) == after


def test_missing_markers_are_an_error(tool):
    with pytest.raises(ValueError, match="missing"):
        tool.replace_block("no markers", "results", "")
