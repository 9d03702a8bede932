"""doctor RUN: six planted patients, each named by its measured value; healthy runs without a finding; what cannot be checked."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from diabolo import cli, register, registry, training
from diabolo.config import resolve
from diabolo.data import Dataset, Loader, from_tensor, load
from diabolo.diagnosis import diagnose
from diabolo.errors import DiaboloError
from diabolo.examination import Unreachable, constant_loss, mean_reach
from diabolo.findings import CHECKS, Finding
from diabolo.metrics import mean_terms
from diabolo.models.distributions import GreyBernoulli
from diabolo.models.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from diabolo.models.networks import MLP
from diabolo.models.objectives import ELBO
from diabolo.models.resnet import ResNet
from diabolo.runs import Run, write_json

torch.set_num_threads(1)

#: The digits, with pixels known to 0.1 so that little training is needed: 20 epochs of 26 steps.
SMALL = [
    "model.likelihood.scale=0.1",
    "model.latent=8",
    "model.encoder.width=64",
    "model.decoder.width=64",
    "train.keep=last",
    "train.epochs=20",
    "train.lr=0.002",
    "train.batch=50",
]


#: The scale is learned, so that what is known by heart is scored ever higher.
SCALED = ["model.likelihood.scale=none", "train.lr=0.003"]


#: linear-vae in a tenth of its steps, without an average that would lag behind.
LINEAR = ["train.batch=512", "train.ema=0", "train.epochs=40"]


@pytest.fixture(scope="module", autouse=True)
def components():
    """A user's own parts; they leave the catalogue with this file."""

    @register("likelihood", "any_bce")
    class AnyBCE(Likelihood):
        """Binary cross-entropy that refuses no value, as a user may write it."""

        family = "any_bce"
        normalised = False

        def forward(self, params: Tensor) -> Distribution:
            return Independent(GreyBernoulli(logits=params, validate_args=False), params.ndim - 2)

    @register("network", "asleep")
    class Asleep(MLP):
        """An MLP with `dead` units of its first layer so far below 0 that no x in [0, 1] wakes them."""

        def __init__(
            self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], width: int = 64, dead: int = 63
        ) -> None:
            super().__init__(in_shape, out_shape, width)
            with torch.no_grad():
                self.layers[0].bias[:dead] = -50

    @register("network", "drowsy")
    class Drowsy(ResNet):
        """An encoder that says nothing in the first channel of the code."""

        def forward(self, x: Tensor) -> Tensor:
            h = super().forward(x)  # the channels of means, then those of scales
            return torch.cat([part * (torch.arange(len(part[0])) > 0)[:, None, None] for part in h.chunk(2, 1)], 1)

    @register("dataset", "centred")
    def centred() -> Dataset:
        """The digits in [-1, 1]."""
        return from_tensor(load("digits").train.values.float() / 127.5 - 1, name="centred")

    yield
    for slot, name in (("likelihood", "any_bce"), ("network", "asleep"), ("network", "drowsy"), ("dataset", "centred")):
        del registry._CATALOGUE[slot][name]


def trained(path, *overrides, preset="vae", small=SMALL, data=None) -> Run:
    """A run; one that diverges is a run, too."""
    config = resolve(preset, [*small, *overrides]).config
    try:
        return training.train(config, out=path, data=data, device="cpu")
    except DiaboloError:
        return Run(path)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Run:
    return trained(tmp_path_factory.mktemp("healthy") / "run")


def found(run, **given) -> dict[str, Finding]:
    return {f.name: f for f in diagnose(run, **given).findings}


def number(text: str, pattern: str) -> float:
    match = re.search(pattern, text)
    assert match, f"{pattern} is not in: {text}"
    return float(match.group(1).replace(",", ""))


def overrides_of(remedy: str) -> list[str]:
    """The overrides of the command that a remedy names; they resolve."""
    words = remedy.partition("diabolo train ")[2].split()
    changes = [word for word in words[1:] if "=" in word]
    assert changes, remedy
    return changes


# ------------------------------------------------------------------------------------------------ the patients
def test_beta_100_is_a_posterior_collapse(tmp_path):
    patient = trained(tmp_path / "run", "objective.beta=100")
    name, finding = next(iter(found(patient).items()))
    assert list(found(patient)) == [name] == ["posterior collapse"]
    assert number(finding.measured, r"rate (\S+) nats/example") < 0.1
    assert "0 of 8 active units" in finding.measured and "effective beta 100" in finding.measured
    assert overrides_of(finding.remedy) == ["objective.beta=1"]


def test_a_learning_rate_of_1_diverges(tmp_path):
    patient = trained(tmp_path / "run", "train.lr=1")
    findings = found(patient)
    assert list(findings) == ["divergence", "skipped steps"]
    assert "not finite" in findings["divergence"].measured and "lr = 1" in findings["divergence"].measured
    skipped = patient.status["skipped"]
    assert skipped >= 10 and number(findings["skipped steps"].measured, r"^([\d,]+) of") == skipped
    assert overrides_of(findings["divergence"].remedy) == ["train.lr=0.001", "train.clip=100"]


def test_300_training_images_are_learned_by_heart(tmp_path):
    patient = trained(tmp_path / "run", "data.validation=1200", "train.curve=none", "train.epochs=200", *SCALED)
    findings = found(patient)
    assert list(findings) == ["overfitting"]
    measured = findings["overfitting"].measured
    gap, se = number(measured, r"gap (\S+) \+-"), number(measured, r"\+- (\S+)")
    assert gap > 5 * se > 0 and "trained on 300 examples" in findings["overfitting"].why
    dataset, objective = load("digits", {"validation": 1200}), ELBO()
    means = [
        mean_terms(patient.model(), objective, Loader(dataset, split).ordered(500), 1)["loss"]
        for split in ("validation", "train")
    ]
    assert abs(gap - (means[0] - means[1])) < 5 * se, "the gap of all examples, with other noise"
    assert "train.keep=best" in overrides_of(findings["overfitting"].remedy)


def test_dead_units_are_counted(tmp_path):
    patient = trained(tmp_path / "run", "model.encoder=asleep", "model.encoder.dead=63")
    findings = found(patient)
    assert "dead units" in findings
    assert findings.keys() <= {"dead units", "posterior collapse", "trained too short"}, (
        "one unit can hardly carry a code"
    )
    assert number(findings["dead units"].measured, r"^(\d+) of 64 units") >= 63
    assert "encoder.layers.1" in findings["dead units"].measured


def test_cross_entropy_on_data_in_minus_1_to_1(tmp_path):
    patient = trained(tmp_path / "run", "data=centred", "model.likelihood=any_bce", "train.epochs=5", small=SMALL[1:])
    findings = found(patient)
    assert list(findings) == ["data range"]
    measured = findings["data range"].measured
    values = load("digits").train.values
    share = 100 * (values.float() / 127.5 - 1 < -1 / 510).double().mean().item()
    assert "lie in [-1, 1]" in measured and "reaches [0, 1]" in measured
    assert abs(number(measured, r": (\S+)% of") - share) < 2, "of the training part of them"
    assert "x -> (x + 1) / 2" in findings["data range"].remedy
    assert overrides_of(findings["data range"].remedy) == ["model.likelihood=gaussian"]


def test_a_latent_of_64_is_far_too_large_for_three_axes(tmp_path):
    patient = trained(tmp_path / "run", "model.latent=64", "train.epochs=60", preset="linear-vae", small=LINEAR)
    findings = found(patient)
    assert list(findings) == ["latent size"]
    assert number(findings["latent size"].measured, r"^(\d+) of 64") == 3, "the data have three"
    assert overrides_of(findings["latent size"].remedy) == ["model.latent=8"]


#: A grid of three channels and 2 x 2 places.
GRID = ["model.likelihood.scale=0.1", "model.latent=(3,2,2)", "train.keep=last", "train.epochs=20", "train.batch=50"]
GRID += [f"model.{part}=resnet" for part in ("encoder", "decoder")]
GRID += [f"model.{part}.widths=(8,16)" for part in ("encoder", "decoder")]


def test_a_channel_that_is_asleep_is_named(tmp_path):
    patient = trained(tmp_path / "run", "model.encoder=drowsy", "model.encoder.widths=(8,16)", small=GRID)
    finding = found(patient)["idle channels"]
    assert finding.measured.startswith("1 of 3 channels are not active at any of 4 places")
    assert finding.measured.endswith(": 0")
    assert overrides_of(finding.remedy) == [f"objective.warmup_steps={patient.status['step'] // 3}"]
    awake = trained(tmp_path / "awake", small=GRID)
    sound = {s.name: s.measured for s in diagnose(awake).sound}
    assert sound["idle channels"].startswith("0 of 3 channels")
    warmed = trained(tmp_path / "warmed", "model.encoder=drowsy", "objective.warmup_steps=5", small=GRID)
    assert overrides_of(found(warmed)["idle channels"].remedy) == ["model.latent=2,2,2"]
    assert {u.name: u.why for u in diagnose(trained(tmp_path / "v")).unchecked}["idle channels"].endswith("a vector")


# ------------------------------------------------------------------------------------------------ healthy runs
def test_a_healthy_run_has_no_finding_and_every_check_is_accounted_for(healthy):
    diagnosis = diagnose(healthy)
    assert diagnosis.findings == ()
    assert [o.name for o in diagnosis.outcomes] == list(CHECKS)
    assert {u.name for u in diagnosis.unchecked} == {"importance sampling", "idle channels"}, "not evaluated; a vector"
    assert all(re.search(r"\d", s.measured) for s in diagnosis.sound)


@pytest.mark.parametrize(("preset", "quicker"), [("vae", []), ("linear-vae", LINEAR)])
def test_the_presets_without_a_download_are_healthy(preset, quicker, tmp_path):
    assert found(trained(tmp_path / "run", preset=preset, small=quicker)) == {}


def test_a_diagnosis_changes_nothing_and_repeats(healthy):
    before = {p: p.read_bytes() for p in healthy.path.rglob("*") if p.is_file()}
    state = torch.get_rng_state()
    assert diagnose(healthy) == diagnose(healthy)
    assert torch.equal(state, torch.get_rng_state())
    assert before == {p: p.read_bytes() for p in healthy.path.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------------------ what cannot be checked
@pytest.fixture
def copied(healthy, tmp_path) -> Run:
    return Run(shutil.copytree(healthy.path, tmp_path / "copied"))


def test_a_run_that_was_stopped_is_named_with_the_command_to_go_on(copied):
    write_json(copied.path / "status.json", {**copied.status, "state": "interrupted", "epoch": 5})
    finding = found(copied)["unfinished"]
    assert "epoch 5 of 20" in finding.measured
    assert finding.remedy.endswith(f"diabolo train --resume {copied.path}")


def test_without_data_what_needs_them_is_listed_with_the_reason(tmp_path):
    x = load("digits").train.values
    run = trained(tmp_path / "run", "data=tensor", "train.epochs=3", data=from_tensor(x))
    diagnosis = diagnose(run)
    reasons = {u.name: u.why for u in diagnosis.unchecked}
    assert {"divergence", "data range", "dead units", "overfitting", "posterior collapse"} <= reasons.keys()
    assert all("in memory" in reasons[name] for name in ("data range", "dead units", "overfitting"))
    given = diagnose(run, data=from_tensor(x))
    assert {"data range", "dead units", "skipped steps"} <= {o.name for o in given.sound}
    others = diagnose(run, data=from_tensor(x[:500]))
    assert "not those of" in {u.name: u.why for u in others.unchecked}["data range"]


def test_missing_weights_and_lines_are_reasons_and_no_crash(copied):
    (copied.path / "weights.safetensors").unlink()
    (copied.path / "metrics.jsonl").unlink()
    diagnosis = diagnose(copied)
    assert "does not exist" in {u.name: u.why for u in diagnosis.unchecked}["dead units"]
    assert len(diagnosis.outcomes) == len(CHECKS)


# ------------------------------------------------------------------------------------------------ the evidence
def test_the_best_constant_model_is_the_closed_form():
    """Bernoulli: the entropy of the pixels' means. Gaussian with a free scale: D/2 (1 + log 2 pi s^2)."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(200, 5, generator=generator) < torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])).float()
    p = x.double().mean(0)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum().item()
    assert abs(constant_loss(BernoulliLikelihood(), (5,), x) - entropy) < 1e-3
    y = 300 + 7 * torch.randn(500, 4, generator=generator)
    variance = (y.double() - y.double().mean(0)).square().mean().item()
    exact = 2 * (1 + math.log(2 * math.pi * variance))
    assert abs(constant_loss(GaussianLikelihood(), (4,), y) - exact) < 0.02


def test_a_loss_without_a_lower_bound_has_no_best_constant_model():
    likelihood = registry.build("likelihood", "any_bce")
    with pytest.raises(Unreachable, match="no lower bound"):
        constant_loss(likelihood, (3,), -torch.ones(20, 3))


def test_how_far_a_mean_reaches():
    assert mean_reach(BernoulliLikelihood(), (4,)) == (0, 1)
    assert mean_reach(GaussianLikelihood(), (4,)) == (-math.inf, math.inf)

    class Without(Likelihood):
        """A distribution without a mean."""

        def forward(self, params: Tensor) -> Distribution:
            return Distribution(params.shape[:2], params.shape[2:], validate_args=False)

    with pytest.raises(Unreachable, match="gives no mean"):
        mean_reach(Without(), (4,))


# ------------------------------------------------------------------------------------------------ the verb
def test_the_verb_prints_findings_first_and_leaves_with_0(tmp_path, capsys):
    patient = trained(tmp_path / "run", "objective.beta=100")
    assert cli._run(["doctor", str(patient.path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert re.match(
        rf"{re.escape(str(patient.path))}: 1 finding\n\nposterior collapse \(severe\)\n  measured  rate ", out
    )
    assert out.index("posterior collapse") < out.index("checked and sound") < out.index("not checked")
    assert cli._run(["doctor", str(patient.path), "--json", "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in said["findings"]] == ["posterior collapse"]
    assert sum(len(said[kind]) for kind in ("findings", "sound", "unchecked", "remarks")) == len(CHECKS)


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert cli._run(["doctor", str(tmp_path)]) == 3
    assert "is no run" in capsys.readouterr().err


def test_a_remedy_names_the_modules_that_its_command_needs(copied):
    write_json(copied.path / "status.json", {**copied.status, "state": "interrupted"})
    assert found(copied, imports=" --import mine")["unfinished"].remedy.endswith("--import mine")
