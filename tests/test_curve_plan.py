"""How far log p(x) is followed against K by default: as ever for small images, and no longer than it takes for large ones."""

from __future__ import annotations

import pytest
import torch

from diabolo import evaluation
from diabolo.chapters import parts
from diabolo.config import resolve
from diabolo.errors import UsageError
from diabolo.evaluation import CURVE_K, CURVE_VALUES, Settings, curve_plan, evaluate
from diabolo.report import write_run_report
from diabolo.training import train
from known import tiny_images

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("dimensions", "largest", "images"),
    [
        (2, 5000, 100),
        (784, 5000, 100),
        (3 * 32 * 32, 5000, 26),
        (3 * 64 * 64, 1000, 32),
        (3 * 128 * 128, 100, 81),
        (3 * 256 * 256, 100, 20),
        (3 * 1024 * 1024, 1, 100),
        (10**9, 1, 2),
    ],
)
def test_the_default_curve_by_values_of_an_example(dimensions, largest, images):
    ks, count = curve_plan(Settings(), dimensions)
    assert (ks, count) == (tuple(k for k in CURVE_K if k <= largest), images)
    assert largest * count * dimensions <= CURVE_VALUES or (largest, count) == (1, 2)


def test_what_a_setting_says_is_done():
    assert curve_plan(Settings(curve_k=(1, 5000)), 10**6) == ((1, 5000), 100)
    assert curve_plan(Settings(curve_images=7), 3072) == (CURVE_K, 7)
    assert curve_plan(Settings(curve_images=0), 3072)[1] == 0
    assert curve_plan(Settings(curve_k=()), 784) == ((), 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    small = ["model.encoder.width=8", "model.decoder.width=8", "model.likelihood=bernoulli_relaxed", "train.epochs=1"]
    dataset = tiny_images(200)
    return train(resolve("vae", small).config, out=tmp_path_factory.mktemp("curve") / "run", data=dataset), dataset


def test_a_shortened_curve_is_said_to_be_one(run, monkeypatch):
    trained, dataset = run
    settings = Settings(k=5, elbo_samples=2, curve_images=30, probes=False)
    long = evaluate(trained, settings, data=dataset)
    assert long["about"]["curve"] == {"largest_k": 5000, "images": 30, "shortened": False}
    assert "shorter than usual" not in write_run_report(trained).read_text(encoding="utf-8")
    monkeypatch.setattr(evaluation, "CURVE_VALUES", 16 * 100 * 25)
    short = evaluate(trained, settings, data=dataset)
    assert short["about"]["curve"] == {"largest_k": 100, "images": 25, "shortened": True}
    assert [point["k"] for point in short["log_p_curve"]["points"]] == [1, 10, 100]
    assert short["log_p_curve"]["n"] == 25
    assert short["log_p"] == long["log_p"] and short["elbo"] == long["elbo"]
    page = write_run_report(trained).read_text(encoding="utf-8")
    assert "For large images the curve is shorter than usual: it ends at K = 100, on 25 images." in page
    assert "\u5230 K = 100 \u4e3a\u6b62" in write_run_report(trained, lang="zh").read_text(encoding="utf-8")
    assert parts._evaluation_stands(trained, dataset, settings)
    chosen = evaluate(
        trained, Settings(k=5, elbo_samples=2, curve_k=(1, 3), curve_images=30, probes=False), data=dataset
    )
    assert chosen["about"]["curve"] == {"largest_k": 3, "images": 30, "shortened": False}
    none = evaluate(trained, Settings(k=5, elbo_samples=2, curve_images=0, probes=False), data=dataset)
    assert none["about"]["curve"] is None and "log_p_curve" not in none


def test_a_k_below_one_is_still_refused(run):
    with pytest.raises(UsageError, match="curve_k"):
        evaluate(run[0], Settings(curve_k=(1, 0)), data=run[1])
