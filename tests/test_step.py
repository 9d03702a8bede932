"""One step: the schedule of its rate, its precision, its memory format, where weights start, what is compiled, the watchdog."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import diabolo
from diabolo import compiling, step, training, watchdog
from diabolo.config import TrainConfig, resolve
from diabolo.data.loader import Loader
from diabolo.data.tensor import from_tensor
from diabolo.engine import autocast, check_precision, seeded
from diabolo.errors import UsageError
from diabolo.models.build import build_model, build_objective
from diabolo.models.initialisation import LOG_VARIANCE, initialise
from diabolo.step import Descent, Step, learning_rate

torch.set_num_threads(1)
CPU = torch.device("cpu")
X = np.random.default_rng(0).integers(0, 256, size=(64, 1, 8, 8)).astype(np.uint8)
SMALL = ("model.latent=3", "train.batch=16", "train.epochs=3", "data.validation=0")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def descent(*overrides: str, dtype: torch.dtype = torch.float32, compiled: bool = False) -> tuple[Descent, Loader]:
    """The step of preset `vae` on small images, with batches of its data."""
    data = from_tensor(X, validation=0)
    config = resolve("vae", [*SMALL[:3], "model.likelihood=bernoulli_relaxed", *overrides]).config
    torch.manual_seed(0)
    model = build_model(config.model.to_dict(), data.spec)
    initialise(model, config.train.init, Loader(data, "train").mean)
    whole = Step(model.to(dtype), build_objective(config.objective.to_dict(), data.spec))
    return Descent(whole, config.train, CPU, compiled), Loader(data, "train", dtype=dtype)


# ------------------------------------------------------------------------------------------------ the rate
def rates(steps: int = 100, **train: object) -> list[float]:
    return [learning_rate(TrainConfig(lr=0.5, **train), n, steps) for n in range(steps)]


def test_a_constant_rate_is_the_rate_to_the_last_bit():
    assert rates() == [0.5] * 100


def test_the_rate_rises_on_a_line_to_its_value_and_falls_to_zero():
    linear, cosine = rates(schedule="linear", warmup=0.2), rates(schedule="cosine", warmup=0.2)
    assert linear[:20] == cosine[:20] == pytest.approx([0.5 * (n + 1) / 20 for n in range(20)])
    assert linear[20:] == pytest.approx([0.5 * (1 - n / 80) for n in range(80)])
    assert cosine[20:] == pytest.approx([0.25 * (1 + math.cos(math.pi * n / 80)) for n in range(80)])
    assert linear[-1] == pytest.approx(0.5 / 80), "the last step still moves"


def test_the_optimiser_takes_the_rate_of_the_step():
    down, loader = descent("train.lr=0.01")
    batch = next(loader.ordered(16))
    before = [p.detach().clone() for p in down.parameters]
    assert down.descend(down.terms(batch.x, None, 0, 0)["loss"].mean(), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, down.parameters)), "rate 0 moves nothing"
    assert down.descend(down.terms(batch.x, None, 1, 1)["loss"].mean(), 0.01)
    assert not all(torch.equal(a, b) for a, b in zip(before, down.parameters))


@pytest.mark.parametrize("value", ["1", "-0.1"])
def test_a_warmup_that_is_no_share_is_refused(value):
    with pytest.raises(UsageError, match="warmup"):
        resolve("vae", [f"train.warmup={value}"])


# ------------------------------------------------------------------------------------------------ randomness
def test_a_step_is_seeded_as_torch_seeds_everything():
    torch.manual_seed(7)
    expected = torch.randn(5)
    seeded(CPU, 7)
    assert torch.equal(torch.randn(5), expected)


def test_seeding_a_step_keeps_nothing_for_devices_that_are_not_there():
    waiting = len(torch.cuda._queued_calls)
    for n in range(3):
        seeded(CPU, n)
    assert len(torch.cuda._queued_calls) == waiting


# ------------------------------------------------------------------------------------------------ precision
def test_in_bf16_the_networks_multiply_in_bfloat16_and_everything_else_is_32_bits():
    down, loader = descent("train.precision=bf16")
    seen: list[torch.dtype] = []
    for layer in down.model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda *made: seen.append(made[2].dtype))
    terms = down.terms(next(loader.ordered(16)).x, None, 0, 0)
    assert set(seen) == {torch.bfloat16}
    assert {t.dtype for t in terms.values()} == {torch.float32}
    assert down.descend(terms["loss"].mean(), 1e-3)
    kept = [t for group in down.state().values() for t in group.values()]
    assert {t.dtype for t in kept} == {torch.float32}


def test_bf16_is_near_fp32_and_not_the_same():
    found = {}
    for precision in ("fp32", "bf16"):
        down, loader = descent(f"train.precision={precision}")
        found[precision] = down.terms(next(loader.ordered(48)).x, None, 0, 0)["loss"]
    assert not torch.equal(found["fp32"], found["bf16"])
    assert torch.allclose(found["fp32"], found["bf16"], rtol=0.02)


def test_the_precision_is_in_the_configuration_of_the_run_and_evaluation_is_in_32_bits():
    run = diabolo.train(
        "vae", X, overrides=[*SMALL[:3], "train.precision=bf16"], out="run", device="cpu", progress=None
    )
    assert json.loads((run.path / "config.json").read_text(encoding="utf-8"))["train"]["precision"] == "bf16"
    assert {p.dtype for p in run.model().state_dict().values()} == {torch.float32}


def test_a_device_that_cannot_cast_is_refused(monkeypatch):
    check_precision(CPU, "bf16")
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    check_precision(CPU, "fp32")
    with pytest.raises(UsageError, match="does not compute in bfloat16"):
        check_precision(CPU, "bf16")


def test_fp32_leaves_arithmetic_alone():
    with autocast(CPU, "fp32"):
        assert not torch.is_autocast_enabled("cpu")


# ------------------------------------------------------------------------------------------------ memory format
CONV = ("model.encoder=conv", "model.decoder=conv", "model.encoder.width=4", "model.decoder.width=4")


def test_images_go_through_convolutions_with_the_channels_of_a_pixel_together():
    down, loader = descent(*CONV)
    seen: list[bool] = []
    for layer in down.model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _, given, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    down.terms(next(loader.ordered(16)).x, None, 0, 0)
    assert seen and all(seen)


def test_the_memory_format_changes_no_number_beyond_rounding():
    """In 64 bits: the losses of the step as it is, and of the same modules with memory as torch lays it out."""
    found = []
    for plain in (False, True):
        down, loader = descent(*CONV, dtype=torch.float64)
        if plain:
            down.model.to(memory_format=torch.contiguous_format)
            down.images = False
        down.step.train()
        losses = []
        for n, batch in enumerate(islice(loader.shuffled(16, 0, 1), 4)):
            loss = down.terms(batch.x, None, n, n)["loss"].mean()
            losses.append(loss.item())
            assert down.descend(loss, 1e-2)
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_a_restored_step_of_convolutions_goes_on_with_the_same_bits():
    """The optimiser's moments lie in memory as their weights do: fused Adam reads both in the order of memory.

    Kernels of one channel have one order only, so there are two layers.
    """
    deep = (*CONV, "model.encoder.depth=2", "model.decoder.depth=2")
    down, loader = descent(*deep)
    down.step.train()
    batches = list(islice(loader.shuffled(16, 0, 1), 3))
    for n, batch in enumerate(batches[:2]):
        down.descend(down.terms(batch.x, None, n, n)["loss"].mean(), 1e-2)
    assert not all(t.is_contiguous() for t in down.state()["optimiser"].values())
    again, _ = descent(*deep)
    again.step.train()
    again.restore({name: {k: t.clone().contiguous() for k, t in group.items()} for name, group in down.state().items()})
    for one in (down, again):
        one.descend(one.terms(batches[2].x, None, 2, 2)["loss"].mean(), 1e-2)
    mine, other = down.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


# ------------------------------------------------------------------------------------------------ moments that are nothing
def test_moments_never_shrink_to_denormal_numbers_and_no_weight_knows_of_it(monkeypatch):
    """A pixel that is seen once: without looking through them, its moments get stuck at the smallest numbers there are."""
    ends = []
    for every in (step.EVERY, 10**9):
        monkeypatch.setattr(step, "EVERY", every)
        down, loader = descent("model.encoder.width=4", "model.decoder.width=4")
        x = next(loader.ordered(16)).x
        for n in range(1100):
            x[:, :, 0, 0] = 0.5 if n == 0 else 0.0
            assert down.descend(down.terms(x, None, n, n)["loss"].mean(), 1e-4)
        moments = torch.cat([entry["exp_avg"].flatten().abs() for entry in down.optimiser.state.values()])
        ends.append((moments[moments > 0].min().item(), [p.detach().clone() for p in down.parameters]))
    (smallest, weights), (stuck, other) = ends
    assert stuck < torch.finfo(torch.float32).tiny <= smallest
    assert all(torch.equal(a, b) for a, b in zip(weights, other))


# ------------------------------------------------------------------------------------------------ where weights start
def test_he_starts_weights_with_two_over_fan_in_and_biases_at_zero():
    """5 sigma: the variance of n normal numbers has a relative standard error of sqrt(2 / n)."""
    down, _ = descent("train.init=he", "model.encoder.width=200")
    first, _, second, *_, last = down.model.encoder.layers
    for layer in (first, second):
        n = layer.weight.numel()
        assert layer.weight.var().item() == pytest.approx(2 / layer.in_features, rel=5 * math.sqrt(2 / n))
        assert not layer.bias.any()
    assert last.weight.abs().max() <= 1 / math.sqrt(last.in_features), "no activation follows: as the layer brought it"


def test_data_starts_the_model_at_the_mean_of_the_training_split():
    down, loader = descent("train.init=data", dtype=torch.float64)
    model, mean = down.model, loader.mean()
    expected = loader.values.double().mean(0) / 255
    assert torch.allclose(mean, expected, atol=1e-12)
    centred = model.encoder.layers[0](mean.flatten())
    assert torch.allclose(centred, torch.zeros_like(centred), atol=1e-5)
    last = model.decoder.layers[-1]
    assert torch.allclose(torch.sigmoid(last.bias), expected.flatten(), atol=1e-6)
    log_variance = model.encoder.layers[-1].bias.chunk(2)[1]
    assert (log_variance == LOG_VARIANCE).all()


def test_torch_changes_no_weight():
    down, _ = descent()
    torch.manual_seed(0)
    config = resolve("vae", [*SMALL[:3], "model.likelihood=bernoulli_relaxed"]).config
    plain = build_model(config.model.to_dict(), from_tensor(X, validation=0).spec)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), down.parameters))


@pytest.mark.parametrize("changed", [CONV, ("model.likelihood=gaussian",)])
def test_data_refuses_a_model_that_it_does_not_know(changed):
    with pytest.raises(UsageError, match=r"train.init=data"):
        descent("train.init=data", *changed)
    with pytest.raises(UsageError, match=r"train.init=data"):
        diabolo.train("vae", X, overrides=["train.init=data", *changed], out="run", device="cpu", progress=None)
    assert not Path("run").exists(), "before a folder is made"
    descent("train.init=he", *changed)


# ------------------------------------------------------------------------------------------------ compiling
def policy(*overrides: str, steps: int = 10, eager: bool = False) -> bool:
    return compiling.compiles(resolve("mnist", overrides).config, MNIST, steps, eager, CPU)


MNIST = replace(from_tensor(np.zeros((20, 28, 28), np.uint8), binarize=True).spec, examples=60_000)


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/bin/{name}")


def test_the_arithmetic_of_a_pass_is_that_of_its_matrices():
    sizes = [784, 400, 400, 40], [20, 400, 400, 784]
    products = sum(a * b for layers in sizes for a, b in zip(layers, layers[1:]))
    assert compiling.forward_operations(resolve("mnist").config, MNIST) == 2 * products * 128


def test_a_run_is_compiled_where_its_arithmetic_repays_the_wait(compiler):
    per_step = 3 * compiling.forward_operations(resolve("mnist").config, MNIST)
    enough = math.ceil(compiling.REPAYS / per_step)
    assert policy(steps=enough) and not policy(steps=enough - 1)
    assert policy("train.compile=on", steps=1) and not policy("train.compile=off", steps=enough)


def test_a_run_of_little_time_or_few_images_is_not_compiled(compiler):
    config, enough = resolve("mnist").config, 10**9
    assert compiling.compiles(config, MNIST, enough, False, CPU, 3600.0)
    assert not compiling.compiles(config, MNIST, enough, False, CPU, 45.0)
    per_image = compiling.forward_operations(config, replace(MNIST, examples=1))
    assert compiling.forward_operations(config, MNIST) == 128 * per_image


@pytest.mark.parametrize("parts", [("mlp", "mlp"), ("conv", "conv")])
def test_the_quick_bound_is_never_below_the_count(parts):
    config = resolve("mnist", [f"model.encoder={parts[0]}", f"model.decoder={parts[1]}"]).config
    assert compiling._at_most(config, MNIST) >= compiling.forward_operations(config, MNIST)


def test_nothing_is_compiled_that_cannot_be(monkeypatch, compiler):
    assert not policy(steps=10**9, eager=True)
    with pytest.raises(UsageError, match="differentiates inside"):
        policy("train.compile=on", eager=True)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert not policy(steps=10**9)
    with pytest.raises(UsageError, match="no C"):
        policy("train.compile=on")


def test_the_decision_is_kept_and_a_resumed_run_goes_on_as_it_began(monkeypatch, compiler):
    made: list[nn.Module] = []
    monkeypatch.setattr(step, "compile_step", lambda whole: made.append(whole) or whole)
    config, data = (
        resolve("vae", [*SMALL[:3], "model.likelihood=bernoulli_relaxed", "train.compile=on"]).config,
        from_tensor(X),
    )
    run = training.train(config, out=Path("run"), data=data, device="cpu", seconds=0)
    assert run.env["compiled"] is True and len(made) == 1
    monkeypatch.setattr(training, "compiles", lambda *_: pytest.fail("decided again"))
    assert training.resume(run.path, data=data, device="cpu").status["state"] == "finished"
    assert len(made) == 2


def test_a_batch_of_another_size_is_not_compiled_anew(monkeypatch):
    sizes: list[int] = []
    monkeypatch.setattr(step, "compile_step", lambda whole: lambda x, y, n: sizes.append(len(x)) or whole(x, y, n))
    down, loader = descent(compiled=True)
    for batch in loader.ordered(16):
        down.terms(batch.x, None, 0, 0)
    assert len(loader) % 16 and set(sizes) == {16}


# ------------------------------------------------------------------------------------------------ the watchdog
class Pool:
    """A clock and a thread pool as a test wants them."""

    def __init__(self, monkeypatch, threads: int, times: float) -> None:
        self.now = 0.0
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(watchdog, "slowdown", lambda: times)


def test_a_collapsed_pool_is_told_of_once_with_what_to_do(monkeypatch):
    pool = Pool(monkeypatch, 2, 6.0)
    dog = watchdog.Watchdog(CPU)
    assert dog.look() is None, "not at once"
    pool.now = watchdog.EVERY
    said = dog.look()
    assert (
        said is not None and said.startswith("2 threads are 6.0 times as slow as one") and "OMP_NUM_THREADS=1" in said
    )
    pool.now *= 5
    assert dog.look() is None


@pytest.mark.parametrize(("threads", "times"), [(2, 0.6), (2, 1.1), (1, 9.0)])
def test_a_pool_that_helps_or_is_one_thread_is_not_spoken_of(monkeypatch, threads, times):
    pool = Pool(monkeypatch, threads, times)
    dog = watchdog.Watchdog(CPU)
    pool.now = 2 * watchdog.EVERY
    assert dog.look() is None


def test_the_look_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    assert watchdog.slowdown() > 0
    assert torch.get_num_threads() == before


def test_a_run_says_it_and_keeps_it_in_its_log(monkeypatch, capsys):
    monkeypatch.setattr(watchdog.Watchdog, "look", lambda self: "threads wait")
    run = diabolo.train("vae", X, overrides=[*SMALL[:3]], out="run", device="cpu", progress=None)
    assert "threads wait" in (run.path / "log.txt").read_text(encoding="utf-8")
