"""The CIFAR-10 chapter from runs to report, on generated images in place of CIFAR-10; made again it is used as it is."""

from __future__ import annotations

import json
import re

import pytest
import torch

from diabolo.chapters import CHAPTERS
from diabolo.chapters.cifar10 import LOCALITY, PLANS, QUICK, RUNS, Plan, reproduce
from diabolo.config import resolve
from diabolo.data.spec import DataSpec
from diabolo.evaluation import Settings
from diabolo.models.build import build_model
from undrawn import undrawn

torch.set_num_threads(1)
DATA = ("data=clouds", "data.examples=80", "data.size=16")
NAMES = ("c4", "c4-optimal", "c1")


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """The chapter made, and made again: its folder, both results."""
    out = tmp_path_factory.mktemp("chapter")
    small = Settings(k=20, images=5, elbo_samples=2, curve_k=(), curve_images=0, probes=False)
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        patch.setitem(PLANS, "smoke", Plan(1, NAMES, small, ("train.smoke=true",)))
        first = reproduce(out, plan="smoke", device="cpu", data=DATA)
        again = reproduce(out, plan="smoke", device="cpu", data=DATA)
    return out, first, again


def test_it_trains_its_runs_and_reports_what_was_measured(chapter):
    out, first, _ = chapter
    assert sorted(run.name for run in first.runs) == sorted(NAMES)
    page = re.sub(r"<[^>]+>", " ", first.report.read_text(encoding="utf-8")).replace("\u2212", "-")
    for run in first.runs:
        found = run.evaluation()
        assert f"{found['bits_per_dim']['value']:.4f}" in page, run.name
        assert f"{found['psnr']['value']:.2f}" in page
    measures = json.loads((out / "measures.json").read_text(encoding="utf-8"))
    assert [claim["number"] for claim in measures["claims"]] == [1, 2, 3, 4]
    assert measures["claims"][3]["verdict"] == "not tested", "no permuted pixels, no verdict"
    assert len(measures["linear"]["eigenvalues"]) == 3 * 16 * 16


def test_what_is_finished_is_used_again(chapter):
    _, first, again = chapter
    assert not first.reused
    assert str(again.report) in again.reused
    for run in first.runs:
        assert str(run.path) in again.reused


@pytest.mark.parametrize(
    ("name", "parameters"), [("c1", 2_806_312), ("c2", 3_089_984), ("c3", 22_556_160), ("c4", 1_565_955)]
)
def test_the_networks_are_those_of_the_article(name, parameters):
    preset, changes = RUNS[name]
    spec = DataSpec(name="cifar10", shape=(3, 32, 32), values="grey")
    with torch.device("meta"):
        model = build_model(resolve(preset, changes.split()).config.model.to_dict(), spec)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_all_compared_runs_are_trained_alike():
    configs = [resolve(preset, changes.split()).config for preset, changes in {**RUNS, **LOCALITY}.values()]
    assert len({json.dumps(config.train.to_dict()) for config in configs}) == 1
    fixed = [config.model.likelihood for config in configs if config.model.likelihood.name == "gaussian"]
    assert all(likelihood.params["scale"] ** 2 == pytest.approx(0.5, abs=1e-15) for likelihood in fixed)
    assert {config.model.likelihood.params["mean"] for config in configs} == {"sigmoid"}


def test_plans_are_those_that_the_list_names():
    assert set(CHAPTERS["cifar10"].plans) == set(PLANS)
    assert PLANS["quick"].names == QUICK and PLANS["quick"].settings.k == 0 and PLANS["quick"].epochs == 2
    assert (PLANS["normal"].epochs, PLANS["full"].epochs) == (5, 50)
    assert set(PLANS["full"].names) == set(PLANS["locality"].names) == {*RUNS, *LOCALITY}
    assert PLANS["locality"].settings == PLANS["normal"].settings, "or finished runs could not be used again"
