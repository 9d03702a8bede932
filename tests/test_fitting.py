"""Fitting a prior to a run's codes: the codes, the same bits after an interruption, refusals, and the verbs from end to end."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import test_sampling_table
from diabolo import cli, fitted, fitting, inspection, registry, runs, sampling
from diabolo.chapters import parts
from diabolo.config import PRESETS
from diabolo.data import Loader
from diabolo.engine import pick_device
from diabolo.errors import DataError, UsageError
from diabolo.pictures import pictures
from diabolo.prior_config import fitted_by, preset_names, prior_from_dict, prior_names, resolve_prior
from diabolo.progress import Progress
from diabolo.session import InterruptedRun
from diabolo.training import train
from known import tiny_images
from test_contracts import StopAt, assert_same_run, small_config

torch.set_num_threads(1)
DATA = tiny_images(80)  # 48 for training
SMALL = {
    "mixture": ("prior=mixture", "prior.components=1"),
    "coupling_flow": ("prior=coupling_flow", "prior.layers=2", "prior.width=4", "train.epochs=2", "train.batch=16"),
    "flow_matching": (
        *("prior=flow_matching", "prior.width=8", "prior.depth=1", "prior.heads=2", "prior.steps=2"),
        *("train.epochs=2", "train.batch=16", "train.ema=0.9", "train.log_every=1"),
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four classes with two latent values."""
    words = ("train.epochs=1", "train.keep=last", "model.latent=2")
    return train(small_config(*words), out=tmp_path_factory.mktemp("trained") / "run", data=DATA, device="cpu")


@pytest.fixture
def run(trained, tmp_path):
    return runs.Run(shutil.copytree(trained.path, tmp_path / "run"))


def fit(run: runs.Run, *words: str, **how: object) -> Path:
    return fitting.fit_prior(run, resolve_prior(words), **{"data": DATA, "device": "cpu", **how})


# ------------------------------------------------------------------------------------------------ codes and what is measured
def test_codes_are_the_posterior_of_every_image_and_of_its_mirror_image(run):
    source = fitting.Source(run, DATA, flips=True)
    codes, model = source.encoded(pick_device("cpu"), Progress()), run.model()
    x, y = (torch.cat(parts) for parts in zip(*((b.x, b.y) for b in Loader(DATA, "train").ordered(500))))
    q, mirrored = model.encode(x), model.encode(x.flip(-1))
    expected = torch.cat([torch.cat([p.mean, p.stddev], 1) for p in (q, mirrored)])
    torch.testing.assert_close(codes.train.values, expected)
    assert torch.equal(codes.train.labels, torch.cat([y, y]))
    assert (len(codes.test), len(codes.validation), source.spec.examples) == (16, 16, 96)
    assert codes.spec == source.spec and codes.spec.shape == (4,)


def test_the_rate_is_that_of_the_same_codes_under_either_prior(run):
    """E_q[log q - log p] at one draw an image, against the analytic KL of the model's own prior: within 5 standard errors."""
    found = json.loads((fit(run, *SMALL["mixture"]) / "evaluation.json").read_text(encoding="utf-8"))
    batch = next(iter(Loader(DATA, "test").ordered(500)))
    kl = run.model()(batch.x).latents[0].kl().mean().item()
    assert abs(found["own_rate"]["value"] - kl) < 5 * found["own_rate"]["se"]
    assert found["gain"]["value"] == pytest.approx(found["own_rate"]["value"] - found["rate"]["value"], abs=1e-6)
    assert found["rate_given_class"]["n"] == 16
    assert found["about"]["state"] == "finished" and not found["about"]["smoke"]


def test_a_closed_form_needs_no_training(run):
    path = fit(run, *SMALL["mixture"])
    assert run.path / "priors" / "mixture" == path
    assert {p.name for p in path.iterdir()} - {".lock"} == {
        *("config.json", "env.json", "status.json", "log.txt", "weights.safetensors", "evaluation.json")
    }
    assert runs.Run(path).status["state"] == "finished"
    assert "train" not in json.loads((path / "config.json").read_text(encoding="utf-8"))
    prior = fitted.load_prior(path / "weights.safetensors")
    torch.testing.assert_close(prior.weights.sum(), torch.tensor(1.0))
    # interrupted before it had weights: it begins again, to the same bytes
    before = (path / "weights.safetensors").read_bytes()
    (path / "weights.safetensors").unlink()
    runs.write_json(path / "status.json", {"state": "interrupted"})
    with pytest.raises(UsageError, match="go on with: diabolo train --resume"):
        fit(run, *SMALL["mixture"])
    fitting.resume_fit(path, data=DATA, device="cpu")
    assert (path / "weights.safetensors").read_bytes() == before
    with pytest.raises(UsageError, match="is finished"):
        fitting.resume_fit(path, data=DATA, device="cpu")


def test_a_rate_that_was_interrupted_is_measured_without_another_fit(run, monkeypatch):
    """Of a whole fit, and of one whose measure is of earlier weights; a chapter does the same."""
    measure = fitted.measure

    def interrupted(*_: object) -> None:
        raise InterruptedRun("interrupted", 130)

    monkeypatch.setattr(fitted, "measure", interrupted)
    with pytest.raises(InterruptedRun):
        fit(run, *SMALL["mixture"])
    monkeypatch.setattr(fitted, "measure", measure)
    path = run.path / "priors" / "mixture"
    weights, kept = (path / "weights.safetensors").read_bytes(), path / "evaluation.json"
    assert runs.Run(path).status["state"] == "finished" and not kept.exists()
    with pytest.raises(UsageError, match="go on with: diabolo train --resume"):
        fit(run, *SMALL["mixture"])
    fitting.resume_fit(path, data=DATA, device="cpu")
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert found["about"]["weights"] == runs.sha256(path / "weights.safetensors")
    for broken in (None, found | {"about": found["about"] | {"weights": "0" * 64}}):
        kept.unlink() if broken is None else runs.write_json(kept, broken)
        reused: list[str] = []
        parts.fitted_prior(run, "mixture", resolve_prior(SMALL["mixture"]), DATA, "cpu", Progress(), reused)
        assert json.loads(kept.read_text(encoding="utf-8")) == found and not reused
    assert (path / "weights.safetensors").read_bytes() == weights
    with pytest.raises(UsageError, match="is finished"):
        fitting.resume_fit(path, data=DATA, device="cpu")
    with pytest.raises(UsageError, match="or delete the folder"):
        fit(run, *SMALL["mixture"])


def test_a_prior_that_was_moved_aside_is_drawn_from_only_if_it_is_asked_for(run):
    aside = f"mixture{fitted.ASIDE}1"
    fit(run, *SMALL["mixture"], name=aside)
    assert fitted.chosen(run, None) == "own" and fitted.chosen(run, aside) == aside
    fit(run, *SMALL["mixture"])
    assert fitted.chosen(run, None) == "mixture"


def test_a_start_from_some_of_the_codes_has_one_of_each_class(run, monkeypatch):
    monkeypatch.setattr(fitting, "_INITIAL", 3)
    order, labels = torch.tensor([4, 0, 2, 1, 3, 5]), torch.tensor([7, 8, 7, 9, 7, 9])
    assert fitting._rare(labels, order, 2).tolist() == [1, 3], "the first of the classes 8 and 9 in this order"
    assert fitting._rare(labels, order, 5).tolist() == fitting._rare(None, order, 2).tolist() == []
    assert (fit(run, *SMALL["coupling_flow"]) / "weights.safetensors").is_file(), "three codes of four classes"


# ------------------------------------------------------------------------------------------------ going on
@pytest.mark.parametrize("name", ["coupling_flow", "flow_matching"])
def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(name, run):
    """Six steps: a signal at the second, the end of its time one step later, then to the end."""
    straight = fit(run, *SMALL[name], name="straight")

    class Signal(StopAt):
        """Once training has begun: encoding advances, too."""

        def start(self, stage: str, total: int) -> None:
            self.training = stage == "training"

        def advance(self, units: int = 1, note: str = "") -> None:
            if self.training and note:
                super().advance(units, note)

    with pytest.raises(InterruptedRun):
        fit(run, *SMALL[name], name="again", progress=Signal(2))
    path = run.path / "priors" / "again"
    assert (runs.Run(path).status["state"], runs.Run(path).status["step"]) == ("interrupted", 2)
    assert fitted.names(run)[-1] == "again" and fitted.chosen(run, None) == "straight"
    fitting.resume_fit(path, data=DATA, device="cpu", seconds=0.0)
    assert (runs.Run(path).status["state"], runs.Run(path).status["step"]) == ("stopped", 3)
    assert fitted.chosen(run, None) == "again"
    found = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    assert found["about"]["state"] == "stopped" and ("rate" in found) == (name == "coupling_flow")
    fitting.resume_fit(path, data=DATA, device="cpu")
    assert_same_run(path, straight)
    averaged = name == "flow_matching"
    state = runs.load_state(path)[0]
    assert ("average" in state) == averaged
    if averaged:
        kept = load_file(path / "weights.safetensors")
        assert all(torch.equal(kept[key], value) for key, value in state["average"].items())


def test_a_fit_that_failed_is_started_again_under_its_name(run):
    labels = DATA.train.labels.clamp(max=2)
    poor = dataclasses.replace(DATA, train=dataclasses.replace(DATA.train, labels=labels))
    with pytest.raises(UsageError, match="no codes of class 3"):
        fit(run, *SMALL["mixture"], data=poor)
    assert runs.Run(run.path / "priors" / "mixture").status["state"] == "failed"
    assert fitted.chosen(run, None) == "own"
    assert fit(run, *SMALL["mixture"], "prior.per_class=false", data=poor).name == "mixture"
    assert fitted.chosen(run, None) == "mixture"


def test_a_point_mass_and_data_without_classes_can_be_fitted_to(tmp_path):
    data = tiny_images(80, labels=False)
    words = ("model.posterior=dirac", "model.prior=none", "objective=reconstruction", "model.likelihood=gaussian")
    run = train(small_config(*words, "train.epochs=1", "train.keep=last"), out=tmp_path / "ae", data=data, device="cpu")
    with pytest.raises(UsageError, match="Fit one to its codes"):
        run.model().sample(2)
    for name, fitted_words in SMALL.items():
        found = json.loads((fit(run, *fitted_words, data=data) / "evaluation.json").read_text(encoding="utf-8"))
        assert set(found) == {"about"}
        model = fitted.model_of(run, name)
        assert sampling.means(model, 5, 0).shape == (5, 1, 4, 4)
        with pytest.raises(UsageError, match="It knows no classes"):
            sampling.means(model, 2, 0, torch.zeros(2, dtype=torch.long))


def test_validation_codes_decide_where_they_are_asked_to(run):
    path = fit(run, *SMALL["coupling_flow"], "train.keep=best", "train.curve=validation")
    assert runs.Run(path).status["best_epoch"] in {1, 2}
    assert [row["examples"] for row in runs.Run(path).metrics() if row["split"] == "validation"] == [16, 16]


def test_the_curve_of_a_density_does_not_depend_on_the_batches(run):
    path = fit(run, *SMALL["coupling_flow"])
    prior, objective = fitted.load_prior(path / "weights.safetensors"), fitting.Fitting("nats/example")
    cache = fitting.Source(run, DATA, False).encoded(pick_device("cpu"), Progress()).train
    whole = objective.keyed(prior, cache.values[:10], list(range(10)), cache.labels[:10])["loss"]
    parts = [
        objective.keyed(prior, cache.values[i : i + 5], list(range(i, i + 5)), cache.labels[i : i + 5]) for i in (0, 5)
    ]
    torch.testing.assert_close(whole, torch.cat([part["loss"] for part in parts]))


# ------------------------------------------------------------------------------------------------ what is drawn from it
@pytest.mark.parametrize("name", SMALL)
def test_pictures_and_traversals_take_any_prior(name, run):
    fit(run, *SMALL[name])
    model = fitted.model_of(run, name)
    first, again = (pictures(model, DATA, n=9).generated for _ in range(2))
    assert first.shape == (9, 1, 4, 4) and torch.equal(first, again)
    codes = torch.randn(20, 2)
    rows, _, _ = inspection.traversals(model, codes, steps=3, span=2.0)
    assert rows.shape == (2, 3, 1, 4, 4) and rows.isfinite().all()
    assert not torch.equal(first, pictures(run.model(), DATA, n=9).generated)


def test_a_prior_of_other_weights_is_refused(run):
    path = fit(run, *SMALL["coupling_flow"], seconds=0.0)
    weights = load_file(run.path / "weights.safetensors")
    runs.save_weights(run.path / "weights.safetensors", {k: v + 1 for k, v in weights.items()}, run.config, DATA.spec)
    with pytest.raises(DataError, match="codes of other weights"):
        fitted.model_of(run, "coupling_flow")
    with pytest.raises(DataError, match="began with other codes"):
        fitting.resume_fit(path, data=DATA, device="cpu")
    with pytest.raises(DataError, match="are not those of"):
        fit(run, *SMALL["mixture"], data=tiny_images(80, seed=1))
    with pytest.raises(DataError, match="holds no prior that can be read"):
        fitted.load_prior(run.path / "weights.safetensors")


# ------------------------------------------------------------------------------------------------ configurations
def test_each_prior_has_defaults_that_resolve_and_come_back():
    assert prior_names() == ["coupling_flow", "flow_matching", "mixture"]
    assert {path.stem for path in (PRESETS / "priors").glob("*.toml")} <= {*prior_names(), *preset_names()}
    for name in registry.names("prior"):
        assert fitted_by(name) == registry.get("prior", name).fitted_by
    for name in prior_names():
        config = resolve_prior([f"prior={name}"])
        assert prior_from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.closed or config.train.keep == "last"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no prior is named"),
        (("prior=none",), "has nothing to fit"),
        (("prior=mixtur",), 'Did you mean "mixture"'),
        (("prior=mixture", "train.lr=1"), "fitted in closed form"),
        (("prior=mixture", "prior.width=3"), "unknown key 'prior.width'"),
        (("prior=flow_matching", "train.init=he"), "unknown key 'train.init'"),
        (("prior=flow_matching", "flips=2"), "true or false"),
        (("prior=flow_matching", "train.ema=1"), "below 1"),
        (("prior=coupling_flow", "train.lr=0"), "greater than 0"),
        *(((f"prior={name}", f"prior.{key}=0"), "at least 1") for name, keys in {
            "mixture": ("components",), "coupling_flow": ("layers", "width"),
            "flow_matching": ("width", "depth", "heads", "patch", "steps"),
        }.items() for key in keys),
    ],
)  # fmt: skip
def test_words_that_mean_nothing_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        resolve_prior(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prior=mixture", "prior.shrinkage=-1"), "shrinkage at least 0"),
        (("prior=flow_matching", "prior.label_drop=1.5"), "no share of the examples"),
        (("prior=flow_matching", "prior.patch=3"), "patch=3 does not divide 2"),
        (("prior=flow_matching", "train.keep=best"), "train.keep=best has nothing"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(words, message, run):
    with pytest.raises(UsageError, match=message):
        fit(run, *words)
    with pytest.raises(UsageError, match="cannot be called own"):
        fit(run, *SMALL["mixture"], name="own")
    assert not (run.path / "priors").exists()


def test_examples_that_were_in_memory_are_asked_for(run):
    runs.write_json(run.path / "config.json", {**run.config.to_dict(), "data": {"name": "tensor"}})
    with pytest.raises(DataError, match="in memory"):
        fit(runs.Run(run.path), *SMALL["mixture"], data=None)


# ------------------------------------------------------------------------------------------------ from end to end
@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def say(*words: object, code: int = 0) -> str:
        capsys.readouterr()
        assert cli._run([str(word) for word in words]) == code, capsys.readouterr().err
        out, err = capsys.readouterr()
        return out + err

    return say


def test_digits_from_training_to_the_measure_of_samples(said, monkeypatch):
    monkeypatch.setitem(registry._CATALOGUE["features"], "toy", test_sampling_table.Toy)
    small = ("model.latent=2,2,2", "model.encoder.width=8", "model.decoder.width=8", "train.epochs=1")
    said("train", "vae", "data=digits", *small, "--no-evaluate", "--device", "cpu", "--out", "run")
    assert "the model's own" in said("sample", "run", "--n", 4)
    for name, words in SMALL.items():
        found = said("fit-prior", "run", *words, "--device", "cpu")
        assert f"prior: {Path('run') / 'priors' / name}" in found and "the model's own" in found
        assert ("no bound on log p(x)" in found) == (name == "flow_matching")
    assert "class 3, guidance 2; prior: flow_matching" in said("sample", "run", "class=3", "guidance=2", "--n", 4)
    assert "n = 20, decoder means, z ~ p(z | y), class each" in said("sample", "run", "class=each", "--n", 2)
    assert "prior: mixture" in said("sample", "run", "prior=mixture", "class=3", "--n", 4, "--temperature", 0.5)
    words = ("class=each", "guidance=2", "--features", "toy", "--n", 120, "--device", "cpu")
    printed = said("measure", "run", *words)
    assert (
        "samples of run" in printed and "class each, guidance 2; prior: flow_matching, fitted to the codes" in printed
    )
    status = Path("run/priors/flow_matching/status.json")
    whole = status.read_bytes()
    runs.write_json(status, {"state": "interrupted"})
    assert "passed over: the prior flow_matching, whose fit is interrupted" in said(
        "measure", "run", "class=each", *words[2:]
    )
    status.write_bytes(whole)
    said("measure", "run", *words)
    table = json.loads(Path("run/samples.json").read_text(encoding="utf-8"))
    assert table["about"]["drawn"].endswith("class each, guidance 2; prior: flow_matching, fitted to the codes")
    assert table["about"]["prior_weights_sha256"] == runs.sha256(status.with_name("weights.safetensors"))
    for words, code, message in (
        (("sample", "run", "class=10"), 2, "knows no class '10'"),
        (("sample", "run", "guidance=2"), 2, "without a class"),
        (("sample", "run", "guidance=-1", "class=1"), 2, "guidance=-1 is refused"),
        (("sample", "run", "clas=3"), 2, 'Did you mean "class"'),
        (("sample", "run", "prior=mixtur"), 2, 'Did you mean "mixture"'),
        (("sample", "run", "prior=own", "class=3"), 2, "It knows no classes"),
        (("sample", "run", "prior=mixture", "class=3", "guidance=2"), 2, "has no guidance"),
        (
            ("sample", "run", "prior=mixture", "class=3", "guidance=2"),
            2,
            "name another prior of the run with prior=NAME",
        ),
        (("sample", "run", "--temperature", "inf"), 2, "--temperature inf"),
        (("fit-prior", "run", "prior=mixture"), 2, "exists already"),
        (("fit-prior", "run", "prior=mixture", "--name", "own"), 2, "--name own is refused"),
        (("fit-prior", "run", "prior=mixture", "--name", "a/b"), 2, "--name a/b is refused"),
        (("fit-prior", "run", "prior=mixture", "--time", "1s"), 2, "closed form"),
        (("fit-prior", "run/priors/mixture", "prior=mixture"), 3, "Name its run: run"),
        (("evaluate", "run/priors/mixture"), 3, "Name its run: run"),
        (("train", "--resume", "run/priors/mixture"), 2, "is finished"),
    ):
        assert message in said(*words, code=code), words


def test_the_help_and_the_refusals_of_a_fit_import_no_torch(tmp_path):
    code = "import sys; from diabolo import cli\ntry: cli.main({})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    for words in (["fit-prior", "--help"], ["fit-prior", "x", "prior=mixture", "train.lr=1"], ["fit-prior", "x"]):
        done = subprocess.run([sys.executable, "-c", code.format(words)], capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
