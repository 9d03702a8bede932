"""The chapter of autoencoders from runs to report, on small images in place of MNIST; made again it is used as it is."""

from __future__ import annotations

import json
import re

import pytest
import torch

from diabolo.chapters import autoencoders, autoencoders_measures
from diabolo.chapters.autoencoders import RUNS, Plan, reproduce
from diabolo.evaluation import Settings
from diabolo.progress import Progress
from known import tiny_images
from one_process import one_after_another
from undrawn import undrawn

torch.set_num_threads(1)


class Told(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    """The chapter made once: its folder, its result, and what was said."""
    out, told = tmp_path_factory.mktemp("chapter"), Told()
    images = tiny_images(150, (1, 28, 28))
    plane = autoencoders.data_module.load("spiral", {"examples": 500})
    small = Settings(k=5, images=6, elbo_samples=2, curve_k=(), curve_images=0, probes=False)
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        patch.setattr(autoencoders.data_module, "load", lambda name, *_: images if name == "mnist" else plane)
        here = one_after_another(lambda config: autoencoders.data_module.load(config.data.name, config.data.params))
        patch.setattr(autoencoders, "run_jobs", here)
        patch.setitem(autoencoders.PLANS, "smoke", Plan(1, 20, 60, small))
        patch.setattr(autoencoders_measures, "SPECTRA", 2)
        patch.setattr(autoencoders_measures, "DRAWN", 40)
        patch.setattr(autoencoders_measures, "QUALITIES", (5, 50))
        result = reproduce(out, plan="smoke", device="cpu", progress=told)
        again = reproduce(out, plan="smoke", device="cpu", progress=told)
    return out, result, again, told.lines


def test_it_trains_every_run_and_reports_what_was_measured(chapter):
    out, result, _, _ = chapter
    assert sorted(run.name for run in result.runs) == sorted(RUNS)
    assert not result.reused
    measures = json.loads((out / "measures.json").read_text(encoding="utf-8"))
    assert set(measures) == {"bottleneck", "drawing", "layers", "probes", "denoising", "matrix", "compression", "toy"}
    page = re.sub(r"<[^>]+>", " ", result.report.read_text(encoding="utf-8")).replace("\u2212", "-")
    for row in measures["bottleneck"]:
        assert f"{row['ae']['value']:.5f} \u00b1 {row['ae']['se']:.5f}" in page
        assert f"{row['pca']['value']:.5f}" in page
    noisy = measures["denoising"]["gaussian"]["rows"]["denoising"][3]
    assert f"{noisy['psnr']:.2f} \u00b1 {noisy['psnr_se']:.2f}" in page
    point = measures["compression"][0]
    assert f"{point['bits_per_pixel']:.3f}" in page


def test_a_run_s_error_in_the_table_is_that_of_its_evaluation(chapter):
    out, result, _, _ = chapter
    measures = json.loads((out / "measures.json").read_text(encoding="utf-8"))
    evaluated = {run.name: run.evaluation() for run in result.runs}
    for row in measures["bottleneck"]:
        assert row["ae"]["value"] == pytest.approx(evaluated[f"ae-{row['d']}"]["mse_mean"]["value"], rel=1e-12)
        difference = row["ae"]["value"] - row["pca"]["value"]
        assert row["difference"]["value"] == pytest.approx(difference, rel=1e-9)


def test_it_is_used_again_as_a_whole(chapter):
    out, result, again, told = chapter
    assert again.report == result.report
    assert str(result.report) in again.reused
    assert sum("analysing" in line for line in told) == 6  # once, not twice


def test_every_number_of_the_measures_is_finite(chapter):
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    json.loads((chapter[0] / "measures.json").read_text(encoding="utf-8"), parse_constant=refuse)
