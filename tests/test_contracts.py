"""What every part and every preset promises: gradients, shapes, keyed noise, resuming, refusing."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

import diabolo
from diabolo import registry, runs
from diabolo.config import RunConfig, preset_names, read_preset, resolve
from diabolo.data import Dataset, Loader
from diabolo.data.spec import DataSpec, Split
from diabolo.engine import own_randomness
from diabolo.errors import DataError, DivergedError, UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.metrics import importance_log_weights, keyed_inference, mean_terms
from diabolo.models.build import build_model, build_objective, check_objective
from diabolo.models.objectives import ELBO
from diabolo.probing import StandIn
from diabolo.progress import Progress
from diabolo.report import write_run_report
from diabolo.step import Average
from diabolo.training import InterruptedRun, Trainer, parts_of, resume, train
from known import model_config, tiny_images, tiny_vectors
from undrawn import undrawn

torch.set_num_threads(1)

#: The data that each likelihood is tried on.
DATA = {
    "bernoulli": lambda: tiny_images(binarize=True),
    "bernoulli_relaxed": tiny_images,
    "gaussian": tiny_vectors,
    "gaussian_optimal": tiny_vectors,
    "gaussian_per_pixel": tiny_vectors,
    "laplace": tiny_vectors,
    "continuous_bernoulli": tiny_images,
    "discretized_gaussian": tiny_images,
    "discretized_logistic": tiny_images,
    "discretized_logistic_mixture": lambda: tiny_images(shape=(3, 4, 4)),
    "categorical": tiny_images,
}
#: Those that ask several numbers of the decoder for each value, which a `tied` one does not have.
SEVERAL = {"gaussian_per_pixel", "discretized_logistic_mixture", "categorical"}
#: Encoder and decoder of each network; `layer` and `tied` map vectors of any kind, `conv` and `resnet` images alone.
NETWORKS: dict[str, tuple[str, str]] = {
    "mlp": ("mlp", "mlp"),
    "conv": ("conv", "conv"),
    "layer": ("layer", "mlp"),
    "tied": ("layer", "tied"),
    "resnet": ("resnet", "resnet"),
}
#: Parameters of networks whose defaults are for larger images, and the latent of one that makes grids.
PARAMETERS: dict[str, dict[str, Any]] = {"resnet": {"widths": (4,)}}
LATENT = {"resnet": (3, 2, 2)}
OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "elbo": [{"name": "elbo"}, {"name": "elbo", "beta": 4.0, "warmup_steps": 2}],
    "iwae": [{"name": "iwae", "samples": 3}, {"name": "iwae", "samples": 3, "gradient": "dreg"}],
    "reconstruction": [
        {"name": "reconstruction"},
        {"name": "reconstruction", "noise": "masking", "level": 0.2},
        {"name": "reconstruction", "contractive": 0.5, "jacobian": "hutchinson"},
    ],
    "asymmetric": [{"name": "asymmetric"}, {"name": "asymmetric", "slope": 1.0}],
}
#: What an objective needs of a likelihood beside its name.
NEEDED = {("asymmetric", "gaussian"): {"scale": 0.5}}
#: Priors that a model is trained with; those fitted to a finished model's codes have test_fitted_priors.
PRIORS = [name for name in registry.names("prior") if registry.get("prior", name).fitted_by == "nothing"]
COMBINATIONS = [
    (network, posterior, prior, likelihood, objective)
    for network, posterior, prior, likelihood, name in itertools.product(
        *(registry.names(slot) for slot in ("network", "posterior")),
        PRIORS,
        *(registry.names(slot) for slot in ("likelihood", "objective")),
    )
    for objective in OBJECTIVES[name]
]


def makes_sense(posterior: str, prior: str, likelihood: str, objective: str) -> bool:
    """A bound needs a density and a prior; an objective that ignores the prior must have none to ignore; one that reads only
    the likelihood's mean, a likelihood that has nothing else to learn."""
    if objective == "reconstruction":
        return prior == "none"
    if objective == "asymmetric" and (objective, likelihood) not in NEEDED:
        return False
    return (posterior, prior) == ("gaussian", "standard_normal")


def data_for(network: str, likelihood: str) -> Dataset:
    return tiny_images() if network in {"conv", "resnet"} and DATA[likelihood] is tiny_vectors else DATA[likelihood]()


SMALL = Settings(k=20, images=6, elbo_samples=3, curve_k=(1, 4), curve_images=4)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# ------------------------------------------------------------------------------------------------ every combination
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join([*c[:4], *map(str, c[4].values())]))
def test_every_parameter_gets_a_gradient_and_terms_have_their_shapes(combination):
    network, posterior, prior, likelihood, chosen = combination
    dataset = data_for(network, likelihood)
    encoder, decoder = NETWORKS[network]
    parts = {
        "latent": LATENT.get(network, 3),
        "encoder": {"name": encoder, **PARAMETERS.get(network, {})},
        "decoder": {"name": decoder, **PARAMETERS.get(network, {})},
        "posterior": {"name": posterior},
        "prior": {"name": prior},
        "likelihood": {"name": likelihood, **NEEDED.get((chosen["name"], likelihood), {})},
    }
    objective = build_objective(chosen, dataset.spec)
    if network == "tied" and (posterior != "dirac" or likelihood in SEVERAL):
        with pytest.raises(UsageError, match="one number each"):
            build_model(parts, dataset.spec)
        return
    model = build_model(parts, dataset.spec).eval()
    if not makes_sense(posterior, prior, likelihood, chosen["name"]):
        with pytest.raises(UsageError, match="Take "):
            check_objective(model, objective)
        return
    check_objective(model, objective)
    awaken(model)
    x = next(Loader(dataset, "train").shuffled(5, 0, 1)).x
    inference = model(x, samples=4)
    assert inference.likelihood.batch_shape == (4, 5)
    assert model.bounded == objective.bound
    for latent in inference.latents:
        assert latent.mean.shape == latent.sample.shape
        if model.bounded:
            assert latent.kl().shape == latent.log_ratio().shape == (4, 5)
    if model.bounded:
        assert inference.log_weight(x).shape == inference.log_weight(x, path_only=True).shape == (4, 5)
    terms = objective(model, x, None, 1)
    assert {"loss", "distortion", *(["rate"] if model.bounded else [])} <= terms.keys()
    assert {tuple(term.shape) for term in terms.values()} == {(5,)}
    terms["loss"].mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def awaken(model: torch.nn.Module) -> None:
    """Give a convolution that starts at 0, so that its block is the identity, weights: nothing before it learns yet."""
    for part in model.modules():
        if isinstance(part, torch.nn.Conv2d) and not part.weight.any():
            part.reset_parameters()


def test_every_registered_part_has_a_case_here():
    assert set(DATA) == set(registry.names("likelihood"))
    assert set(OBJECTIVES) == set(registry.names("objective"))
    assert set(NETWORKS) == set(registry.names("network"))


@pytest.mark.parametrize("likelihood", DATA)
def test_samples_and_reconstructions_are_of_the_data_s_shape(likelihood):
    dataset = DATA[likelihood]()
    model = build_model(model_config(3, likelihood, width=8), dataset.spec)
    x = next(Loader(dataset, "test").ordered(4)).x
    assert model.sample(6).mean.shape == (1, 6, *dataset.spec.shape)
    assert model.sample(6, temperature=0.5).sample().shape == (1, 6, *dataset.spec.shape)
    assert model.reconstruct(x).mean.shape == (1, 4, *dataset.spec.shape)
    assert torch.equal(model.reconstruct(x).mean, model.reconstruct(x).mean)
    cold = model.sample(5, temperature=1e-9).mean
    torch.testing.assert_close(cold, cold[:, :1].expand_as(cold), rtol=1e-5, atol=1e-5)


def test_sampling_is_decided_by_the_method_not_by_the_mode():
    model = build_model(model_config(3, "bernoulli_relaxed", width=8), tiny_images().spec).eval()
    x = torch.rand(2, 1, 4, 4)
    assert not torch.equal(model(x).latents[0].sample, model(x).latents[0].sample)


@pytest.mark.parametrize(
    ("values", "likelihood"),
    [("grey", "bernoulli"), ("real", "bernoulli"), ("real", "bernoulli_relaxed")],
)
def test_a_likelihood_that_cannot_score_the_data_is_refused_with_a_remedy(values, likelihood):
    with pytest.raises(UsageError, match="model.likelihood="):
        build_model(model_config(2, likelihood), DataSpec(name="d", shape=(3,), values=values))


# ------------------------------------------------------------------------------------------------ keyed noise
def double_model() -> tuple[torch.nn.Module, Dataset]:
    dataset = tiny_images(150)
    return build_model(model_config(3, "bernoulli_relaxed", width=16), dataset.spec).double(), dataset


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_evaluation_does_not_depend_on_the_batches_or_their_order(dtype, tolerance):
    model, dataset = double_model()
    model = model.to(dtype).requires_grad_(False)
    loader = Loader(dataset, "train", dtype=dtype)
    whole = None
    for size in (len(loader), 1, 7, 64):
        parts = [keyed_inference(model, b.x, b.index.tolist(), 4, 5).log_weight(b.x) for b in loader.ordered(size)]
        whole = torch.cat(parts, 1) if whole is None else whole
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=tolerance, atol=0)
        means = mean_terms(model, ELBO(), loader.ordered(size), seed=5)
        assert means == pytest.approx(mean_terms(model, ELBO(), loader.ordered(len(loader)), seed=5), rel=tolerance)
    order = torch.randperm(len(loader))
    batches = loader.ordered(7, indices=order)
    parts = [keyed_inference(model, b.x, b.index.tolist(), 4, 5).log_weight(b.x) for b in batches]
    torch.testing.assert_close(torch.cat(parts, 1), whole[:, order], rtol=tolerance, atol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_loaded_model_gives_the_same_numbers_in_any_batch(network, tmp_path):
    encoder, decoder = NETWORKS[network]
    tied = ("model.posterior=dirac", "model.prior=none", "objective=reconstruction")
    overrides = [f"model.encoder={encoder}", f"model.decoder={decoder}", "train.epochs=2", "train.batch=16"]
    if network == "resnet":
        overrides += ["model.latent=3,2,2", "model.encoder.widths=4", "model.decoder.widths=4"]
    dataset = tiny_images(80)
    config = resolve("vae", [*overrides, *(tied if network == "tied" else ())]).config
    run = train(config, out=tmp_path / "run", data=dataset, device="cpu")
    model, loader = run.model().double(), Loader(dataset, "test", dtype=torch.float64)
    with torch.no_grad():
        whole = torch.cat([model.encode(b.x).mean for b in loader.ordered(16)])
        single = torch.cat([model.encode(b.x).mean for b in loader.ordered(1)])
    torch.testing.assert_close(single, whole, rtol=1e-12, atol=1e-12)


def test_other_seeds_and_other_images_get_other_noise():
    model, dataset = double_model()
    x = next(Loader(dataset, "train", dtype=torch.float64).ordered(2)).x
    twice = x[:1].expand(2, *x.shape[1:])
    z = keyed_inference(model, twice, [0, 1], 4, 5).latents[0].sample
    assert not torch.equal(z[:, 0], z[:, 1])
    assert not torch.equal(z, keyed_inference(model, twice, [0, 1], 4, 6).latents[0].sample)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_importance_sampling_does_not_depend_on_its_chunks(dtype, tolerance):
    model, dataset = double_model()
    model = model.to(dtype).requires_grad_(False)
    batch = next(Loader(dataset, "train", dtype=dtype).ordered(3))
    whole = importance_log_weights(model, batch.x, batch.index.tolist(), 50, 0, chunk_values=10**9)
    for values in (1, 48, 49, 500, 2400):
        found = importance_log_weights(model, batch.x, batch.index.tolist(), 50, 0, chunk_values=values)
        torch.testing.assert_close(found, whole, rtol=tolerance, atol=0)


@pytest.mark.parametrize("k", [1, 7, 1000])
def test_k_is_honoured_exactly(k, monkeypatch):
    model, dataset = double_model()
    batch, decoded = next(Loader(dataset, "train", dtype=torch.float64).ordered(2)), []
    decode = type(model).decode
    monkeypatch.setattr(type(model), "decode", lambda self, z, y=None: decoded.append(z) or decode(self, z, y))
    log_w = importance_log_weights(model, batch.x, batch.index.tolist(), k, 0, chunk_values=5 * batch.x.numel())
    assert log_w.shape == (k, 2)
    assert log_w.dtype == torch.float64
    z = torch.cat(decoded)
    assert z.shape == (k, 2, 3)
    assert max(part.shape[0] for part in decoded) <= 5
    assert len(z.flatten(0, 1).unique(dim=0)) == 2 * k  # all different


# ------------------------------------------------------------------------------------------------ every preset
def stand_in(config: RunConfig) -> Dataset:
    """Data of the shape and values of a preset's own, 24 examples for training."""
    made = {
        "mnist": lambda p: tiny_images(40, (1, 28, 28), binarize=p["binarize"]),
        "fashion-mnist": lambda p: tiny_images(40, (1, 28, 28), binarize=p["binarize"]),
        "digits": lambda p: tiny_images(40, (1, 8, 8), binarize=p["binarize"]),
        "cifar10": lambda p: tiny_images(40, (3, 32, 32)),
        "linear_gaussian": lambda p: tiny_vectors(40, p["dimensions"]),
    }
    return made[config.data.name](config.data.params)


def strict(text: str) -> Any:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    return json.loads(text, parse_constant=refuse)


#: Registered parts that no preset can name, with the test here that uses them.
ELSEWHERE = {
    ("dataset", "tensor"): "test_examples_of_ones_own_from_python",
    ("dataset", "fashion-mnist"): "test_data_debian.test_fashion_mnist_is_fashion_mnist",
    ("dataset", "spiral"): "test_toy.test_points_lie_around_the_curve_as_far_as_sigma_says",
    ("dataset", "clouds"): "test_clouds.test_the_images_are_pinned_and_new_for_each_seed_and_split",
    ("dataset", "folder"): "test_data_folder.test_a_folder_is_trained_evaluated_and_reported",
    ("dataset", "packed"): "test_data_packed.test_losses_and_evaluation_are_those_from_memory",
    ("prior", "mixture"): "test_fitted_priors.test_expectation_maximisation_finds_a_known_mixture",
    ("prior", "coupling_flow"): "test_fitted_priors.test_a_few_steps_of_fitting_find_what_a_gaussian_misses",
    ("prior", "flow_matching"): "test_flow_matching.test_the_exact_velocity_carries_noise_to_the_gaussian",
}


@pytest.mark.parametrize(("kind", "values"), [("numpy uint8", "grey"), ("torch float", "grey"), ("numpy real", "real")])
def test_examples_of_ones_own_from_python(kind, values, tmp_path):
    generator = np.random.default_rng(0)
    x = {
        "numpy uint8": generator.integers(0, 256, (60, 5, 5), dtype=np.uint8),
        "torch float": torch.from_numpy(generator.random((60, 1, 5, 5), dtype=np.float32)),
        "numpy real": generator.normal(size=(60, 7)),
    }[kind]
    small = ["model.latent=2", "train.epochs=1", "model.encoder.width=8", "model.decoder.width=8"]
    run = diabolo.train("vae", x, overrides=small, out=tmp_path / "run", device="cpu")
    assert run.env["data"]["spec"]["values"] == values
    assert run.env["data"]["note"]
    found = diabolo.evaluate(run.path, x, k=5, images=4, device="cpu")
    assert found["elbo"]["n"] == 6
    model = diabolo.load(run.path)
    assert_same_bits(model.state_dict(), diabolo.load(run.path / "weights.safetensors").state_dict())
    with pytest.raises(DataError, match="in memory"):
        diabolo.evaluate(run.path, k=5, images=4, device="cpu")


#: Means over images; of a model without a bound, only those of the second set are there.
MEANS = {"elbo", "kl", "distortion", "mse_mean", "mse_sample", "log_p"}
WITHOUT_BOUND = {"distortion", "mse_mean"}


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_trains_two_steps_is_evaluated_and_reported(preset, monkeypatch, tmp_path):
    undrawn(monkeypatch)
    config = resolve(preset, ["train.epochs=1", "train.batch=12"]).config
    dataset = stand_in(config)
    run = train(config, out=tmp_path / "run", data=dataset, device="cpu")
    assert run.status == {
        "state": "finished",
        "exit_code": 0,
        "step": 2,
        "epoch": 1,
        "skipped": 0,
        "best_epoch": 1 if config.train.keep == "best" else None,
    }
    rows = run.metrics()
    assert [row["split"] for row in rows] == ["train", *{config.train.curve} - {"none"}]
    assert rows[0]["examples"] == 24
    returned = evaluate(run, SMALL, data=dataset, device="cpu")
    written = strict((run.path / "evaluation.json").read_text(encoding="utf-8"))
    assert written == strict(json.dumps(returned))
    unit = "nats/image" if len(dataset.spec.shape) == 3 else "nats/example"
    labelled = {"linear_probe", "nearest_neighbour"} if dataset.test.labels is not None else set()
    bounded = config.objective.name != "reconstruction"
    means, more = (MEANS, {"kl_per_dimension", "active_units", "log_p_curve"}) if bounded else (WITHOUT_BOUND, set())
    more = more | ({"kl_per_channel"} if bounded and isinstance(config.model.latent, tuple) else set())
    of_images = measured_of_images(config, dataset, bounded)
    assert set(written) == means | labelled | more | of_images | {"about", "pca"}
    for name in means | labelled | of_images | (more & {"active_units"}):
        assert {"value", "se", "n", "unit", "split"} <= written[name].keys(), name
        assert written[name]["split"] == "test"
    in_nats = {"elbo", "kl", "distortion", "log_p", "kl_per_dimension", "log_p_curve"} & set(written)
    assert {written[name]["unit"] for name in in_nats} == {unit}
    assert written["about"]["bound"] == ("elbo" if bounded else "none")
    report = write_run_report(run)
    shown = written["elbo" if bounded else "distortion"]["value"]
    assert f"{shown:.2f}" in report.read_text(encoding="utf-8").replace("\u2212", "-").replace(",", "")
    for path in run.path.glob("*.json*"):
        text = path.read_text(encoding="utf-8")
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            strict(part)
    if bounded:
        assert_bounds_agree(written, dataset)


def measured_of_images(config: RunConfig, dataset: Dataset, bounded: bool) -> set[str]:
    """PSNR of images of levels, SSIM where its window fits, bits/dim of what is normalised, calibrated where sigma is one."""
    if len(dataset.spec.shape) < 3:
        return set()
    kind = registry.get("likelihood", config.model.likelihood.name)
    found = {"psnr"} if dataset.spec.values == "grey" else set()
    found |= {"ssim"} if found and min(dataset.spec.shape[1:]) >= 11 else set()
    found |= {"bits_per_dim"} if bounded and kind.normalised else set()
    return found | ({"bits_per_dim_calibrated"} if bounded and kind.family == "gaussian" else set())


def assert_bounds_agree(written: Mapping[str, Any], dataset: Dataset) -> None:
    assert written["elbo"]["value"] == pytest.approx(-written["distortion"]["value"] - written["kl"]["value"])
    assert written["log_p"]["value"] == pytest.approx(written["elbo"]["value"] + written["log_p"]["gap"])
    assert sum(written["kl_per_dimension"]["values"]) == pytest.approx(written["kl"]["value"])
    assert [point["k"] for point in written["log_p_curve"]["points"]] == [1, 4]
    kind = registry.get("likelihood", written["about"]["likelihood"])
    if kind.discrete or not kind.normalised:  # a density has no such bound
        assert written["elbo"]["value"] < 0


def test_per_image_values_are_what_the_metrics_are_means_of(tmp_path):
    dataset = tiny_images(80)
    run = train(small_config(), out=tmp_path / "run", data=dataset, device="cpu")
    found = evaluate(run, SMALL, data=dataset, device="cpu")
    columns = run.per_image()
    for name in ("elbo", "kl", "distortion", "mse_mean", "mse_sample"):
        assert columns[name].shape == (16,)
        assert columns[name].mean().item() == pytest.approx(found[name]["value"], rel=1e-12)
        assert columns[name].std().item() / 4 == pytest.approx(found[name]["se"], rel=1e-12)
    index = columns["log_p_index"]
    assert index.shape == columns["log_p"].shape == (6,)
    gap = columns["log_p"] - columns["elbo"][index]
    assert gap.mean().item() == pytest.approx(found["log_p"]["gap"], rel=1e-12)
    assert torch.equal(columns["labels"], dataset.test.labels)
    again = evaluate(run, SMALL, data=dataset, device="cpu")
    again["about"].pop("seconds")
    found["about"].pop("seconds")
    assert again == found


def test_a_likelihood_s_normalisation_and_the_draw_stand_in_the_evaluation(tmp_path):
    about = {}
    for name, likelihood, binarize in (("grey", "bernoulli_relaxed", False), ("drawn", "bernoulli", True)):
        dataset = tiny_images(80, binarize=binarize)
        run = train(small_config(f"model.likelihood={likelihood}"), out=tmp_path / name, data=dataset, device="cpu")
        about[name] = evaluate(run, SMALL, data=dataset, device="cpu")["about"]
    assert (about["grey"]["normalised"], about["grey"]["values"], about["grey"]["draw_hash"]) == (False, "grey", None)
    assert about["grey"]["entropy_floor"] > 0
    assert (about["drawn"]["normalised"], about["drawn"]["values"]) == (True, "binary")
    assert about["drawn"]["draw_hash"] == Loader(dataset, "test").draw_hash
    assert about["drawn"]["entropy_floor"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": -1},
        {"images": -1},
        {"images": 1},
        {"elbo_samples": 1},
        {"curve_images": 1},
        {"curve_k": (1, 0)},
        {"calibration": -1},
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(wrong, tmp_path):
    dataset = tiny_images(80)
    run = train(small_config(), out=tmp_path / "run", data=dataset, device="cpu")
    with pytest.raises(UsageError):
        evaluate(run, replace(SMALL, **wrong), data=dataset, device="cpu")
    assert not (run.path / "evaluation.json").exists()


def test_other_data_are_refused(tmp_path):
    run = train(small_config(), out=tmp_path / "run", data=tiny_images(80), device="cpu")
    with pytest.raises(DataError, match="not those"):
        evaluate(run, SMALL, data=tiny_images(80, seed=1), device="cpu")


# ------------------------------------------------------------------------------------------------ a small run
def small_config(*overrides: str) -> RunConfig:
    small = [
        "model.encoder.width=8",
        "model.decoder.width=8",
        "model.latent=3",
        "model.likelihood=bernoulli_relaxed",
        "train.epochs=3",
        "train.batch=10",
        "train.log_every=2",
        "train.checkpoint_every=3",
    ]
    return resolve("vae", [*small, *overrides]).config


def small_data(**changes: Any) -> Dataset:
    """48 examples for training: 5 batches of 10, the last one short; 15 steps in 3 epochs."""
    return tiny_images(80, **changes)


class StopAt(Progress):
    """Sends the process a signal after a number of steps."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self.left, self.number = step, number

    def advance(self, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left == 0 and units:
            signal.raise_signal(self.number)


def interrupted(
    config: RunConfig,
    out: Path,
    step: int,
    dataset: Dataset,
    number: signal.Signals = signal.SIGINT,
) -> None:
    with pytest.raises(InterruptedRun) as caught:
        train(config, out=out, data=dataset, device="cpu", progress=StopAt(step, number))
    assert caught.value.exit_code == 128 + number
    status = runs.Run(out).status
    assert (status["state"], status["exit_code"], status["step"]) == ("interrupted", 128 + number, step)


def newest(path: Path) -> dict[str, dict[str, Tensor]]:
    return runs.load_state(path)[0]


def assert_same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, model, optimiser, average and position to the bit, metrics.jsonl to the byte."""
    assert_same_bits(load_file(found / "weights.safetensors"), load_file(expected / "weights.safetensors"))
    (a, at, _), (b, there, _) = runs.load_state(found), runs.load_state(expected)
    assert a.keys() == b.keys()
    assert at == there
    for group in a:
        assert_same_bits(a[group], b[group])
    assert (found / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()


VARIANTS = {
    "last": ("train.keep=last",),
    "best with average": ("train.keep=best", "train.ema=0.9"),
    "iwae, clipped": ("objective=iwae", "objective.gradient=dreg", "train.clip=0.5"),
    "states at epochs": ("train.checkpoint_every=0",),
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run of each variant, on binarised data so that the drawn pixels are resumed too."""
    root = tmp_path_factory.mktemp("straight")
    for name in VARIANTS:
        train(variant(name), out=root / name, data=small_data(binarize=True), device="cpu")
    return root


def variant(name: str) -> RunConfig:
    return small_config("model.likelihood=bernoulli", *VARIANTS[name])


@pytest.mark.parametrize("step", [1, 4, 5, 6, 12, 15])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(name, step, straight, tmp_path):
    """Steps 5 and 15 are the ends of epochs, 6 and 12 are steps at which a state is written anyway."""
    out, dataset = tmp_path / "run", small_data(binarize=True)
    interrupted(variant(name), out, step, dataset)
    run = resume(out, data=dataset, device="cpu")
    assert run.status["state"] == "finished"
    assert_same_run(out, straight / name)


def test_a_run_can_be_interrupted_after_every_step(straight, tmp_path):
    out, dataset = tmp_path / "run", small_data(binarize=True)
    interrupted(variant("best with average"), out, 2, dataset, signal.SIGTERM)
    for _ in range(12):
        with pytest.raises(InterruptedRun):
            resume(out, data=dataset, device="cpu", progress=StopAt(runs.Run(out).status["step"] + 1))
    resume(out, data=dataset, device="cpu")
    assert_same_run(out, straight / "best with average")


class Killed(BaseException):
    """Stands for the end of a process: nothing may be saved on the way out."""


class KillAt(StopAt):
    def advance(self, units: int = 1, note: str = "") -> None:
        self.left -= units
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(("best with average", step) for step in (4, 8, 10, 14)),
        *(("states at epochs", step) for step in (6, 10, 14)),
    ],
)
def test_a_killed_run_goes_on_from_its_last_state(name, step, straight, tmp_path):
    """Rows written after the state are cut off and written again: none is lost, doubled or out of order."""
    out, dataset = tmp_path / "run", small_data(binarize=True)
    with pytest.raises(Killed):
        train(variant(name), out=out, data=dataset, device="cpu", progress=KillAt(step))
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 99, "torn')
    resume(out, data=dataset, device="cpu")
    assert_same_run(out, straight / name)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


CORRUPTIONS = {
    "model flipped": lambda state: flip(state / "model.safetensors"),
    "optimiser flipped": lambda state: flip(state / "optimiser.safetensors"),
    "average truncated": lambda state: cut(state / "average.safetensors", -1),
    "model emptied": lambda state: (state / "model.safetensors").write_bytes(b""),
    "model gone": lambda state: (state / "model.safetensors").unlink(),
    "manifest gone": lambda state: (state / "manifest.json").unlink(),
    "manifest truncated": lambda state: cut(state / "manifest.json", 40),
    "manifest emptied": lambda state: (state / "manifest.json").write_text("{}", encoding="utf-8"),
    "manifest of another kind": lambda state: (state / "manifest.json").write_text('{"files": 3}', encoding="utf-8"),
    "manifest without model": lambda state: forget(state, "model.safetensors"),
}


def forget(state: Path, name: str) -> None:
    manifest = json.loads((state / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"][name]
    (state / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopped") / "run"
    interrupted(variant("best with average"), out, 8, small_data(binarize=True))
    return out


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupt_state_is_passed_over(corruption, stopped, straight, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    assert [path.name for path in runs.states(out)] == ["step-000006", "step-000008"]
    CORRUPTIONS[corruption](runs.states(out)[-1])
    resume(out, data=small_data(binarize=True), device="cpu")
    assert_same_run(out, straight / "best with average")
    assert "passed over: step-000008" in (out / "log.txt").read_text(encoding="utf-8")


def test_no_whole_state_is_a_data_error(stopped, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    for state in runs.states(out):
        flip(state / "model.safetensors")
    with pytest.raises(DataError, match="no state to resume from"):
        resume(out, data=small_data(binarize=True), device="cpu")


def test_a_run_stopped_before_its_first_state_begins_again_to_the_same_bits(stopped, straight, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    shutil.rmtree(out / "state")
    run = resume(out, data=small_data(binarize=True), device="cpu")
    assert (run.path / "metrics.jsonl").read_bytes() == (straight / "best with average" / "metrics.jsonl").read_bytes()
    assert (run.path / "weights.safetensors").read_bytes() == (
        straight / "best with average" / "weights.safetensors"
    ).read_bytes()


def test_resuming_is_refused_where_it_makes_no_sense(stopped, straight, tmp_path):
    with pytest.raises(UsageError, match="finished"):
        resume(straight / "last", data=small_data(binarize=True), device="cpu")
    with pytest.raises(DataError, match="not those"):
        resume(stopped, data=small_data(binarize=True, seed=3), device="cpu")
    with pytest.raises(DataError, match="no run"):
        resume(tmp_path, data=small_data(), device="cpu")


def test_two_states_are_kept(straight):
    assert [path.name for path in runs.states(straight / "last")] == ["step-000012", "step-000015"]
    leftovers = [path.name for path in (straight / "last").rglob("*") if path.name.endswith(".tmp")]
    assert leftovers == []


def test_another_process_on_the_same_run_is_refused(stopped, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    with FileLock(out / ".lock"), pytest.raises(UsageError, match="another process"):
        resume(out, data=small_data(binarize=True), device="cpu")
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    resume(out, data=small_data(binarize=True), device="cpu")


def test_the_loser_of_a_race_for_a_new_run_writes_nothing(monkeypatch, tmp_path):
    """Both processes found the folder empty; the other one holds the lock by now."""
    out = tmp_path / "run"
    out.mkdir()
    monkeypatch.setattr(runs, "create", lambda config, out: out)
    with FileLock(out / ".lock"), pytest.raises(UsageError, match="another process"):
        train(small_config(), out=out, data=small_data(), device="cpu")
    assert [path.name for path in out.iterdir() if path.name != ".lock"] == []


def test_a_run_whose_metrics_were_cut_is_refused_not_padded(stopped, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    cut(out / "metrics.jsonl", 10)
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        resume(out, data=small_data(binarize=True), device="cpu")


def test_a_run_is_never_overwritten(straight):
    with pytest.raises(UsageError, match="exists already"):
        train(small_config(), out=straight / "last", data=small_data(), device="cpu")


# ------------------------------------------------------------------------------------------------ what decides a run
def test_the_same_configuration_gives_the_same_bits_whatever_the_callers_random_state(straight, tmp_path):
    torch.manual_seed(12345)
    train(variant("last"), out=tmp_path / "run", data=small_data(binarize=True), device="cpu")
    assert_same_run(tmp_path / "run", straight / "last")
    train(replace(variant("last"), seed=1), out=tmp_path / "other", data=small_data(binarize=True), device="cpu")
    a, b = (load_file(path / "weights.safetensors") for path in (tmp_path / "other", straight / "last"))
    assert not any(torch.equal(a[name], b[name]) for name in a if name.endswith("weight"))


def callers_state() -> tuple[Any, ...]:
    """Random states of torch, NumPy and Python, torch's settings, and who listens to Ctrl-C."""
    kind, keys, *rest = np.random.get_state()
    drawn = torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()
    listening = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    return *drawn, torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), *listening


def test_the_callers_state_is_left_as_it_was(tmp_path):
    dataset = small_data()
    before = callers_state()
    run = train(small_config(), out=tmp_path / "run", data=dataset, device="cpu")
    evaluate(run, SMALL, data=dataset, device="cpu")
    interrupted(small_config(), tmp_path / "stopped", 4, dataset)
    resume(tmp_path / "stopped", data=dataset, device="cpu")
    with own_randomness(torch.device("cpu")):
        torch.manual_seed(1)
    assert callers_state() == before


def test_the_test_split_is_read_by_nothing_that_decides(straight, tmp_path):
    """With the curve drawn on the test split, zeroing that split leaves the weights as they are to the bit."""
    config, dataset = small_config("train.curve=test", "train.keep=last"), small_data()
    zeroed = replace(dataset, test=Split("test", torch.zeros_like(dataset.test.values), dataset.test.labels))
    for name, data in (("as it is", dataset), ("zeroed", zeroed)):
        train(config, out=tmp_path / name, data=data, device="cpu")
    assert_same_bits(*(load_file(tmp_path / name / "weights.safetensors") for name in ("as it is", "zeroed")))
    rows = [runs.Run(tmp_path / name).metrics() for name in ("as it is", "zeroed")]
    curves = [[row["loss"] for row in each if row["split"] == "test"] for each in rows]
    assert len(curves[0]) == 3
    assert all(a != b for a, b in zip(*curves))


def test_only_the_curve_of_the_test_split_changes_with_it(tmp_path):
    """As shipped, the best weights and every logged number are the same to the bit whatever the test images are."""
    dataset = small_data()
    inverted = replace(dataset, test=Split("test", 255 - dataset.test.values, dataset.test.labels))
    for name, data in (("as it is", dataset), ("inverted", inverted)):
        train(small_config("train.lr=0.05", "train.epochs=8"), out=tmp_path / name, data=data, device="cpu")
    assert_same_run(tmp_path / "inverted", tmp_path / "as it is")


def test_keeping_the_best_is_not_decided_by_the_test_split(tmp_path):
    with pytest.raises(UsageError, match="nothing to decide by"):
        train(small_config("train.curve=test"), out=tmp_path / "run", data=small_data(), device="cpu")
    assert not (tmp_path / "run").exists()


def test_best_weights_are_those_of_the_epoch_with_the_lowest_validation_loss(tmp_path):
    """The loss of a training that is far too fast rises at last: `last` holds the end, `best` the lowest point."""
    dataset = small_data()
    fast = ("train.lr=0.05", "train.epochs=30")
    best, last = (
        train(small_config(*fast, f"train.keep={keep}"), out=tmp_path / keep, data=dataset, device="cpu")
        for keep in ("best", "last")
    )
    losses = [row["loss"] for row in best.metrics() if row["split"] == "validation"]
    epoch = best.status["best_epoch"]
    assert losses[epoch - 1] == min(losses)
    assert epoch < 30
    assert best.metrics() == last.metrics()
    weights, end = (load_file(run.path / "weights.safetensors") for run in (best, last))
    assert not torch.equal(weights["encoder.layers.0.weight"], end["encoder.layers.0.weight"])
    assert_same_bits(end, newest(last.path)["model"])
    until_then = small_config("train.lr=0.05", f"train.epochs={epoch}", "train.keep=last")
    short = train(until_then, out=tmp_path / "short", data=dataset, device="cpu")
    assert_same_bits(weights, load_file(short.path / "weights.safetensors"))


def test_epoch_rows_are_means_over_the_examples_not_over_the_batches(tmp_path):
    """48 examples in batches of 10: the last batch, of 8, weighs less. The model hardly moves."""
    dataset = small_data()
    config = small_config("train.lr=1e-30", "train.log_every=1", "train.epochs=1")
    run = train(config, out=tmp_path / "run", data=dataset, device="cpu")
    batches = [row for row in run.metrics() if row["split"] == "batch"]
    (row,) = [row for row in run.metrics() if row["split"] == "train"]
    assert [b["examples"] for b in batches] == [10, 10, 10, 10, 8]
    for name in ("loss", "distortion", "rate"):
        assert row[name] == pytest.approx(sum(b[name] * b["examples"] for b in batches) / 48, rel=1e-12)
    assert "time" not in row and "seconds" not in row


def test_a_curve_is_the_whole_objective_in_every_epoch(tmp_path):
    """Epochs can be compared: the loss on a split has the full beta, also while the batches are still warming up."""
    config = small_config("objective.beta=3", "objective.warmup_steps=1000", "train.curve=validation")
    rows = train(config, out=tmp_path / "run", data=small_data(), device="cpu").metrics()
    beta = {split: [(r["loss"] - r["distortion"]) / r["rate"] for r in rows if r["split"] == split] for split in SPLITS}
    assert beta["validation"] == pytest.approx([3.0] * 3, rel=1e-4)
    assert beta["batch"] == pytest.approx([0.003 * step for step in range(1, 15, 2)], abs=1e-3)
    assert all(0 < b < 0.05 for b in beta["train"])


SPLITS = ("batch", "train", "validation")


def test_average_of_the_weights_is_its_closed_form():
    model = torch.nn.BatchNorm1d(2)
    average = Average(model, 0.3)  # which the share of the first steps, 1/10, 2/11, ..., reaches at the fourth
    path = [torch.tensor([1.0, 1.0])]
    for step in range(1, 6):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([1.0 * step, -2.0 * step]))
            model.running_mean.fill_(step)
        average.update(model, step)
        path.append(model.weight.detach().clone())
    decays = [1.0, 1 / 10, 2 / 11, 3 / 12, 0.3, 0.3]
    closed = sum((1 - decays[i] * (i > 0)) * math.prod(decays[i + 1 :]) * path[i] for i in range(6))
    torch.testing.assert_close(average.weights["weight"], closed, rtol=1e-6, atol=1e-6)
    assert average.weights["running_mean"].tolist() == [5.0, 5.0]  # buffers are copied
    assert average.weights["num_batches_tracked"].item() == 0


def test_the_average_is_what_is_kept(straight):
    state = newest(straight / "best with average")
    assert not torch.equal(state["average"]["encoder.layers.0.weight"], state["model"]["encoder.layers.0.weight"])
    run = runs.Run(straight / "best with average")
    if run.status["best_epoch"] == 3:
        assert_same_bits(load_file(run.path / "weights.safetensors"), state["average"])


# ------------------------------------------------------------------------------------------------ non-finite steps
def planted(monkeypatch: pytest.MonkeyPatch, steps: set[int], where: str) -> list[dict[str, Tensor]]:
    """Make the loss, or its gradient alone, non-finite at `steps`; record the weights before each step."""
    seen: list[dict[str, Tensor]] = []
    plain = ELBO.__call__

    def poisoned(self: ELBO, model: Any, x: Tensor, y: Tensor | None = None, step: int = 0) -> dict[str, Tensor]:
        if isinstance(model, StandIn):  # the loss card asks, too
            return plain(self, model, x, y, step)
        seen.append({name: t.clone() for name, t in model.state_dict().items()})
        terms = plain(self, model, x, y, step)
        if step in steps:
            bias = model.decoder.layers[-1].bias.sum()
            bad = {"nan": bias * math.nan, "inf": bias + math.inf, "gradient": torch.sqrt((bias - bias.detach()).abs())}
            terms = {**terms, "loss": terms["loss"] + bad[where]}
        return terms

    monkeypatch.setattr(ELBO, "__call__", poisoned)
    return seen


@pytest.mark.parametrize("where", ["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(where, monkeypatch, tmp_path):
    weights = planted(monkeypatch, {3, 7}, where)
    run = train(small_config("train.ema=0.5"), out=tmp_path / "run", data=small_data(), device="cpu")
    assert_same_bits(weights[3], weights[4])
    assert_same_bits(weights[7], weights[8])
    assert not torch.equal(weights[2]["encoder.layers.0.weight"], weights[3]["encoder.layers.0.weight"])
    assert run.status["skipped"] == 2
    epochs = [row for row in run.metrics() if row["split"] == "train"]
    assert [row["skipped"] for row in epochs] == [1, 2, 2]
    assert [row["examples"] for row in epochs] == [38, 38, 48]
    for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        strict(line)
    assert "step 4 skipped" in (run.path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("first", [0, 4])
def test_ten_steps_in_a_row_that_are_not_finite_end_the_run(first, monkeypatch, tmp_path):
    weights = planted(monkeypatch, set(range(first, 100)), "nan")
    with pytest.raises(DivergedError) as caught:
        train(small_config("train.epochs=10"), out=tmp_path / "run", data=small_data(), device="cpu")
    assert caught.value.exit_code == 4
    run = runs.Run(tmp_path / "run")
    assert (run.status["state"], run.status["exit_code"], run.status["skipped"]) == ("diverged", 4, 10)
    assert run.status["step"] == first + 10
    assert_same_bits(newest(run.path)["model"], weights[first])
    run.model()  # weights are there, and load
    for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        strict(line)


def test_nine_steps_in_a_row_do_not_end_a_run(monkeypatch, tmp_path):
    planted(monkeypatch, set(range(2, 11)), "nan")
    run = train(small_config(), out=tmp_path / "run", data=small_data(), device="cpu")
    assert (run.status["state"], run.status["skipped"]) == ("finished", 9)


def test_a_validation_loss_that_is_not_finite_is_no_crash(monkeypatch, tmp_path):
    """A curve may overflow while the steps are finite: the rows are strict JSON, and a run with nothing to keep has diverged."""
    plain = ELBO.terms

    def overflow(self: ELBO, inference: Any, x: Tensor, step: int = 0) -> dict[str, Tensor]:
        terms = plain(self, inference, x, step)
        return terms if step < 2**62 else {**terms, "loss": terms["loss"] * math.inf}

    monkeypatch.setattr(ELBO, "terms", overflow)
    with pytest.raises(DivergedError, match="no epoch .* had a finite validation loss"):
        train(small_config(), out=tmp_path / "run", data=small_data(), device="cpu")
    run = runs.Run(tmp_path / "run")
    assert run.status["state"] == "diverged" and run.status["exit_code"] == 4
    for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        strict(line)


def test_constant_images_give_no_nan(tmp_path):
    """Nothing varies: shares of variance and accuracies must be defined or absent, never NaN."""
    dataset = small_data(labels=False)
    names = ("train", "validation", "test")
    black = replace(dataset, **{name: Split(name, torch.zeros_like(dataset.split(name).values)) for name in names})
    run = train(small_config(), out=tmp_path / "run", data=black, device="cpu")
    evaluate(run, SMALL, data=black, device="cpu")
    strict((run.path / "evaluation.json").read_text(encoding="utf-8"))


def test_labels_of_one_class_give_no_probe_and_no_crash(tmp_path):
    dataset = small_data()
    same = {
        name: replace(dataset.split(name), labels=torch.zeros(len(dataset.split(name)), dtype=torch.long))
        for name in ("train", "validation", "test")
    }
    dataset = replace(dataset, **same)
    run = train(small_config(), out=tmp_path / "run", data=dataset, device="cpu")
    found = evaluate(run, SMALL, data=dataset, device="cpu")
    assert "linear_probe" not in found


def test_a_split_of_one_example_is_refused_because_it_has_no_standard_error(tmp_path):
    dataset = small_data()
    one = Split("test", dataset.test.values[:1], dataset.test.labels[:1])
    dataset = replace(dataset, test=one)
    run = train(small_config(), out=tmp_path / "run", data=dataset, device="cpu")
    with pytest.raises(UsageError, match="standard error"):
        evaluate(run, SMALL, data=dataset, device="cpu")


# ------------------------------------------------------------------------------------------------ files
def test_weights_load_alone_and_evaluate_identically(tmp_path):
    dataset = small_data()
    run = train(small_config(), out=tmp_path / "run", data=dataset, device="cpu")
    first = evaluate(run, SMALL, data=dataset, device="cpu")
    shutil.copy(run.path / "weights.safetensors", tmp_path / "alone.safetensors")
    model = runs.load_weights(tmp_path / "alone.safetensors")
    batch = next(Loader(dataset, "test").ordered(100))
    with torch.no_grad():
        alone = keyed_inference(model, batch.x, batch.index.tolist(), 3, 0).log_weight(batch.x)
        inside = keyed_inference(run.model(), batch.x, batch.index.tolist(), 3, 0).log_weight(batch.x)
    assert torch.equal(alone, inside)
    runs.save_weights(
        run.path / "weights.safetensors", model.state_dict(), run.config, runs.spec_from_dict(run.env["data"]["spec"])
    )
    second = evaluate(run, SMALL, data=dataset, device="cpu")
    for result in (first, second):
        result["about"].pop("seconds")
    assert first == second


def test_weights_that_do_not_fit_are_refused(tmp_path):
    run = train(small_config(), out=tmp_path / "run", data=small_data(), device="cpu")
    path, weights = run.path / "weights.safetensors", dict(run.model().state_dict())
    broken = {
        "missing": {k: v for k, v in weights.items() if k != "encoder.layers.0.bias"},
        "unexpected": {**weights, "extra": torch.zeros(1)},
        "misshapen": {**weights, "encoder.layers.0.bias": torch.zeros(3)},
    }
    for tensors in broken.values():
        runs.save_weights(path, tensors, run.config, runs.spec_from_dict(run.env["data"]["spec"]))
        with pytest.raises(DataError, match="does not fit"):
            run.model()
    runs.write_tensors(path, weights)
    with pytest.raises(DataError, match="does not say"):
        run.model()
    path.write_bytes(b"not a tensor")
    with pytest.raises(DataError, match="corrupt"):
        run.model()
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        run.model()


def test_weights_of_another_precision_are_refused(tmp_path):
    run = train(small_config(), out=tmp_path / "run", data=small_data(), device="cpu")
    wide = {name: t.double() for name, t in run.model().state_dict().items()}
    runs.save_weights(run.path / "weights.safetensors", wide, run.config, runs.spec_from_dict(run.env["data"]["spec"]))
    with pytest.raises(DataError, match="does not fit"):
        run.model()


def test_a_state_is_written_whole_or_not_at_all(monkeypatch, stopped, tmp_path):
    """Each write of a save fails in turn: the states that were there stay whole."""
    for failing in range(1, 5):
        out = tmp_path / f"run {failing}"
        shutil.copytree(stopped, out)
        calls = iter(range(1, 100))
        plain = runs.write_bytes

        def write(path: Path, content: bytes, calls=calls, failing=failing, plain=plain) -> None:
            if next(calls) == failing:
                raise UsageError("no space left")
            plain(path, content)

        with monkeypatch.context() as patched:
            patched.setattr(runs, "write_bytes", write)
            tensors, progress, _ = runs.load_state(out)
            with pytest.raises(UsageError):
                runs.save_state(out, 9, tensors, progress)
        assert [path.name for path in runs.states(out)] == ["step-000006", "step-000008"]
        assert runs.load_state(out)[2] == []


def test_preset_headers_are_complete():
    for name in preset_names():
        about = read_preset(name)["about"]
        assert {"summary", "reference", "expected"} <= about.keys(), name
        assert about["summary"] and re.search(r"\(\d{4}\), (arXiv:|doi:|[\w.]+/)\S+", about["reference"]), name


def test_trainer_steps_are_a_function_of_seed_and_step(tmp_path):
    """Two trainers at the same position take the same step, whatever was drawn in between."""
    dataset = small_data()
    with own_randomness(torch.device("cpu")):
        pair = [
            Trainer(
                small_config(),
                dataset,
                tmp_path,
                torch.device("cpu"),
                Progress(),
                parts=parts_of(small_config(), dataset),
            )
            for _ in range(2)
        ]
        x = next(Loader(dataset, "train").shuffled(10, 0, 1)).x
        for trainer in pair:
            trainer.journal = runs.Journal(tmp_path / "metrics.jsonl")
            torch.rand(7)
            trainer._take_step(x, None)
            trainer.journal.close()
    assert_same_bits(*(trainer.model.state_dict() for trainer in pair))
