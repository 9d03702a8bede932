"""compare: like with like only, ties, planted shifts, seeds together. Runs are small; differences are planted in their files."""

from __future__ import annotations

import itertools
import json
import math
import shutil

import pytest
import torch
from scipy import stats

from diabolo import cli, training
from diabolo.compare import compare, difference, subset_difference
from diabolo.config import resolve
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.runs import Run, write_json, write_tensors
from known import tiny_images

torch.set_num_threads(1)
DATA = tiny_images(120)
SMALL = ["model.latent=2", "model.encoder.width=8", "model.decoder.width=8", "train.epochs=1", "train.curve=none"]
SETTINGS = Settings(k=5, images=12, elbo_samples=3, curve_images=0, probes=False)


def made(path, *overrides, data=DATA, settings=SETTINGS):
    config = resolve("vae", [*SMALL, "train.keep=last", "data=tensor", *overrides]).config
    run = training.train(config, out=path, data=data, device="cpu")
    evaluate(run, settings, data=data, device="cpu")
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of one configuration and one seed of another."""
    folder = tmp_path_factory.mktemp("runs")
    seeds = [made(folder / f"seed-{seed}", f"seed={seed}") for seed in range(3)]
    return [*seeds, made(folder / "wide", "model.encoder.width=16")]


@pytest.fixture
def copy(runs, tmp_path):
    """Copies of the first run, each to be changed."""
    numbers = itertools.count()
    return lambda: Run(shutil.copytree(runs[0].path, tmp_path / f"copy-{next(numbers)}"))


def plant(run, change):
    found = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    change(found)
    write_json(run.path / "evaluation.json", found)


def shift(run, amount):
    """Add `amount` (N,) to every image's ELBO, and follow in the files."""
    columns = dict(run.per_image())
    columns["elbo"] = columns["elbo"] + amount
    write_tensors(run.path / "per_image.safetensors", columns)
    plant(run, lambda e: e["elbo"].update(value=columns["elbo"].mean().item()))


def refused(words):
    """What the command line says when it refuses."""
    return cli._run(["compare", *map(str, words)])


PLAIN = ("objective=reconstruction", "model.posterior=dirac", "model.prior=none")


def test_plain_autoencoders_are_compared_with_one_another_and_refused_beside_a_variational_one(runs, tmp_path, capsys):
    one, other = (made(tmp_path / f"plain-{seed}", *PLAIN, f"seed={seed}") for seed in range(2))
    found = compare([one, other])
    assert set(found.groups[0].metrics) == {"distortion", "mse_mean"}
    assert found.conditions["bound or estimate"] == "no bound, normalised"
    assert refused([one.path, runs[0].path]) == 3
    message = capsys.readouterr().err
    assert "They differ in bound or estimate: no bound, normalised against lower bound in expectation" in message


# ------------------------------------------------------------------------------------------------ unlike with unlike
def unit(found):
    for name in ("elbo", "log_p", "kl", "distortion"):
        found[name]["unit"] = "nats/example"


UNLIKE = {
    "data hash": (lambda e: e["about"].update(data_hash="f" * 64), "f" * 64),
    "split": (lambda e: e["about"].update(split="validation"), "validation"),
    "likelihood family": (lambda e: e["about"].update(family="laplace"), "laplace"),
    "binarisation": (lambda e: e["about"].update(draw_hash="e" * 64), "drawn, hash " + "e" * 64),
    "K": (lambda e: e["log_p"].update(k=6), "6"),
    "unit": (unit, "nats/example"),
    "bound or estimate": (lambda e: e["log_p"].update(bound="estimate"), "estimate, normalised"),
    "bound or estimate, by normalisation": (
        lambda e: e["about"].update(normalised=False),
        "lower bound in expectation, unnormalised",
    ),
}
THEIRS = {
    "data hash": DATA.hash,
    "split": "test",
    "likelihood family": "gaussian",
    "binarisation": "none",
    "K": "5",
    "unit": "nats/image",
    "bound or estimate": "lower bound in expectation, normalised",
}


@pytest.mark.parametrize("word", UNLIKE)
@pytest.mark.parametrize("swapped", [False, True])
def test_runs_that_differ_in_one_thing_are_refused_with_that_word_and_both_values(word, swapped, copy, capsys):
    change, value = UNLIKE[word]
    pair = [copy(), copy()]
    plant(pair[1], change)
    pair = pair[::-1] if swapped else pair
    assert refused([run.path for run in pair]) == 3
    message = capsys.readouterr().err
    word = word.partition(",")[0]
    both = [THEIRS[word], value]
    assert f"They differ in {word}: {' against '.join(both[::-1] if swapped else both)}." in message
    assert not [other for other in THEIRS if f"; {other}: " in message], "only what differs is named"


def test_every_pair_of_unlike_things_is_refused_with_both_words(copy, capsys):
    for one, two in itertools.combinations(list(UNLIKE)[:-1], 2):
        pair = [copy(), copy()]
        plant(pair[0], UNLIKE[one][0])
        plant(pair[1], UNLIKE[two][0])
        assert refused([run.path for run in pair]) == 3
        message = capsys.readouterr().err
        assert f"{one}: " in message and f"{two}: " in message


def test_the_third_run_is_held_against_the_first(runs, copy):
    odd = copy()
    plant(odd, UNLIKE["split"][0])
    with pytest.raises(DataError, match=r"split: test against validation"):
        compare([runs[0], runs[1], odd])


def test_real_runs_of_other_data_likelihood_and_draws_are_refused(runs, tmp_path):
    others = {
        "data hash": made(tmp_path / "data", data=tiny_images(120, seed=1)),
        "likelihood family": made(tmp_path / "likelihood", "model.likelihood=bernoulli_relaxed"),
        "binarisation": made(tmp_path / "draw", "model.likelihood=bernoulli", data=tiny_images(120, binarize=True)),
    }
    for word, run in others.items():
        with pytest.raises(DataError, match=f"{word}: .* against "):
            compare([runs[0], run])
    evaluate(others["data hash"], Settings(k=6, images=12, curve_images=0), data=tiny_images(120, seed=1))
    with pytest.raises(DataError, match="K: 5 against 6"):
        compare([runs[0], others["data hash"]])


# ------------------------------------------------------------------------------------------------ differences
def test_identical_runs_tie_with_difference_zero(copy):
    found = compare([copy(), copy()])
    [metrics] = found.differences.values()
    assert {"elbo", "log_p", "kl", "distortion", "mse_mean", "mse_sample", "bits_per_dim"} == set(metrics)
    for d in metrics.values():
        assert (d.mean, d.low, d.high, d.verdict) == (0, 0, 0, "tie")


@pytest.mark.parametrize(("amount", "verdict"), [(0.3, "higher"), (-0.3, "lower"), (0.0, "tie")])
def test_a_planted_shift_is_found_with_its_interval(amount, verdict, copy):
    first, second = copy(), copy()
    n = len(DATA.test)
    noise = torch.linspace(-0.5, 0.5, n, dtype=torch.float64)  # mean 0 exactly, but for rounding
    shift(second, amount + noise)
    d = compare([first, second]).differences[str(second.path)]["elbo"]
    half = stats.t.ppf(0.975, n - 1) * noise.std().item() / math.sqrt(n)
    assert (d.mean, d.low, d.high) == pytest.approx((amount, amount - half, amount + half), abs=1e-9)
    assert (d.verdict, d.n) == (verdict, n)


def test_the_difference_is_paired(copy):
    """Images differ by nats; a constant shift of 0.001 is found all the same."""
    first, second = copy(), copy()
    shift(second, torch.full((len(DATA.test),), 0.001, dtype=torch.float64))
    d = compare([first, second]).differences[str(second.path)]["elbo"]
    assert first.per_image()["elbo"].std() > 0.1
    assert d.verdict == "higher" and d.high - d.low < 1e-9


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """95 % of 2,000 intervals of n = 8: within 5 standard errors (0.5 % each); a normal quantile would give 91 %."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 8, generator=generator, dtype=torch.float64)
    ties = sum(difference(row, "nats").verdict == "tie" for row in draws)
    assert abs(ties / 2000 - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 2000)


def test_log_p_is_paired_on_the_images_that_both_have(runs, tmp_path):
    other = Run(shutil.copytree(runs[1].path, tmp_path / "other"))
    evaluate(other, Settings(k=5, images=0, elbo_samples=3, curve_images=0, probes=False), data=DATA, device="cpu")
    d = compare([runs[0], other]).differences[str(other.path)]["log_p"]
    first, second = runs[0].per_image(), other.per_image()
    chosen = first["log_p_index"]
    gap = (second["log_p"][chosen] - second["elbo"][chosen]) - (first["log_p"] - first["elbo"][chosen])
    assert d.n == len(chosen) == 12 < len(DATA.test)
    assert d.mean == pytest.approx((second["elbo"] - first["elbo"]).mean().item() + gap.mean().item(), abs=1e-12)


def test_the_difference_in_log_p_is_that_of_the_table_and_its_interval_keeps_its_promise():
    """2,000 draws of N = 60 images, n = 12 of them known: 95 % hold the truth within 5 standard errors (0.5 % each) and the
    2 % that Student's t with 11 degrees of freedom may be on the safe side."""
    generator = torch.Generator().manual_seed(0)
    held, half = 0, 0.0
    for _ in range(2000):
        bound = torch.randn(60, generator=generator, dtype=torch.float64) + 0.5
        log_p = bound + 0.2 * torch.randn(60, generator=generator, dtype=torch.float64) + 0.5
        index = torch.randperm(60, generator=generator)[:12]
        d = subset_difference(log_p[index], bound, index, "nats")
        assert d.mean == pytest.approx((bound.mean() + (log_p - bound)[index].mean()).item())
        held += d.low <= 1 <= d.high
        half += (d.high - d.low) / 4000
    assert 0.95 - 5 * 0.005 < held / 2000 < 0.97 + 5 * 0.005
    assert half < 0.5 * stats.t.ppf(0.975, 11) / math.sqrt(12), "it gains from the images without log p"


# ------------------------------------------------------------------------------------------------ seeds
def test_seeds_of_a_configuration_are_one_group(runs):
    groups = compare(runs).groups
    assert [group.seeds for group in groups] == [[0, 1, 2], [0]]
    assert [group.differs for group in groups] == [{"model.encoder.width": 8}, {"model.encoder.width": 16}]
    values = torch.tensor([run.evaluation()["elbo"]["value"] for run in runs[:3]], dtype=torch.float64)
    elbo = groups[0].metrics["elbo"]
    assert (elbo.mean, elbo.spread, elbo.n) == pytest.approx((values.mean().item(), values.std().item(), 3))
    assert groups[1].metrics["elbo"].spread is None


def test_a_seed_that_is_given_twice_counts_once(runs, copy):
    [group] = compare([runs[0], runs[1], copy()]).groups
    [plain] = compare(runs[:2]).groups
    assert group.metrics == plain.metrics and group.metrics["elbo"].n == 2


# ------------------------------------------------------------------------------------------------ the command, stale files
def test_the_command_prints_a_table_and_strict_json(runs, capsys):
    paths = [str(run.path) for run in runs]
    assert cli._run(["compare", *paths]) == 0
    out = capsys.readouterr().out
    assert "model.encoder.width=16" in out and "seed-0, seed-1, seed-2" in out and "K = 5" in out
    assert cli._run(["compare", *paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert list(found["differences"]) == paths[1:] and found["groups"][0]["metrics"]["elbo"]["n"] == 3


def test_one_run_is_a_usage_error_and_no_run_a_data_error(runs, tmp_path, capsys):
    assert cli._run(["compare", str(runs[0].path)]) == 2
    assert cli._run(["compare", str(runs[0].path), str(tmp_path)]) == 3
    with pytest.raises(UsageError):
        compare(runs[:1])
    assert "at least two" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["evaluation.json", "per_image.safetensors"])
def test_a_run_that_is_not_evaluated_is_refused(name, runs, copy):
    run = copy()
    (run.path / name).unlink()
    with pytest.raises(DataError):
        compare([runs[0], run])


def test_an_evaluation_of_other_weights_is_refused(runs, copy):
    run = copy()
    shutil.copy(runs[1].path / "weights.safetensors", run.path)
    with pytest.raises(DataError, match="not of its weights"):
        compare([runs[0], run])


def test_per_image_values_of_another_evaluation_are_refused(runs, copy):
    run = copy()
    shutil.copy(runs[1].path / "per_image.safetensors", run.path)
    with pytest.raises(DataError, match="disagree in elbo"):
        compare([runs[0], run])


def test_an_evaluation_that_lacks_a_condition_is_refused(runs, copy):
    run = copy()
    plant(run, lambda e: e["about"].pop("family"))
    with pytest.raises(DataError, match="no whole evaluation"):
        compare([runs[0], run])
