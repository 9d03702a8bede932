"""The jobs and their rows: what is run, how much of it, what it is compared with and what was aimed at."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "scripts"

#: What the article reports of Model 1 and of its convolutional VAE: test BCE + KL and SSE + KL, nats/image.
MNIST_LOSS, CIFAR_LOSS = 104.675, 81.594
#: -log N(x; m, 1/2) = (x - m)^2 + log(pi)/2 for each of 3,072 values.
CIFAR_CONSTANT = 1536 * math.log(math.pi)
BF16 = ["train.precision=bf16"]


@dataclass(frozen=True)
class Sizes:
    """How much a job does. `mnist`, `cifar`: training images, None for all of them."""

    rounds: int = 3
    epochs: int = 3
    mnist: int | None = None
    cifar: int = 3200
    pool_epochs: int = 3
    script_epochs: int = 1
    log_p_images: int = 50
    k: int = 5000
    log_p_run: tuple[str, ...] = ()  # overrides of the training of the model that is measured
    most_epochs: int = 20
    repeats: int = 5
    product: int = 2048
    products: int = 20


REAL = Sizes()
#: Does everything work? Its numbers mean nothing.
QUICK = Sizes(
    rounds=1, epochs=2, mnist=1280, cifar=256, pool_epochs=1, log_p_images=4, k=200, most_epochs=2, repeats=2,
    log_p_run=("train.epochs=1", "train.smoke=true"), product=512, products=3,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One competitor in a job: the commands of its processes, one after another, from a seed and a fresh folder."""

    commands: Callable[[int, Path], list[list[str]]]
    kind: str  # epochs: median of the later ones; total: seconds for `units`; target: seconds up to it; wall: of a process
    ours: bool = False
    precision: str = "fp32"
    gflop: float | None = None  # arithmetic for the unit that its number is in
    units: float = 1
    target: float | None = None
    peer: bool = False  # needs pythae

    def facts(self) -> dict[str, Any]:
        """What bench.json keeps of it."""
        names = ("kind", "ours", "precision", "gflop", "units", "target")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Job:
    """A group of rows that do the same, in interleaved rounds. `letter`: its name in the plan of the benchmark."""

    letter: str
    unit: str
    rows: Mapping[str, Row]
    rounds: int | None = None  # of its own, where one takes long
    data: tuple[str, ...] = ()
    log_p: bool = False
    checks: tuple[dict[str, Any], ...] = ()
    targets: tuple[dict[str, Any], ...] = field(default=())


def _module(name: str, **orders: Any) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.speed.{name}", name, json.dumps(orders)]


def _script(name: str, data: Path, *options: Any) -> list[str]:
    return [sys.executable, str(SCRIPTS / f"article_{name}.py"), str(data), *map(str, options)]


def _some(images: int | None) -> tuple[Any, ...]:
    return () if images is None else ("--images", images)


def _at_least(bound: float, *rows: str) -> dict[str, Any]:
    return {"kind": "ratio", "rows": list(rows), "bound": bound}


def _share(bound: float, row: str) -> dict[str, Any]:
    return {"kind": "share", "rows": [row], "bound": bound}


# ------------------------------------------------------------------------------------------------ training
def model1(folder: Path, sizes: Sizes, flops: Mapping[str, float], workers: bool) -> Job:
    """(a) Model 1 on MNIST, batch 128, seconds an epoch."""
    data, count = folder / "mnist.npz", sizes.mnist
    gflop = flops["model1"] * (count or 60_000) / 1e9
    common = {"kind": "epochs", "gflop": gflop}

    def ours(overrides: list[str]) -> Callable[[int, Path], list[list[str]]]:
        orders = {"what": "train", "preset": "mnist-grey", "overrides": overrides, "epochs": sizes.epochs}
        return lambda seed, out: [
            _module("row_diabolo", **orders, path=str(data), images=count, seed=seed, out=str(out / "run"))
        ]

    def script(*options: Any) -> Callable[[int, Path], list[list[str]]]:
        some = ("--epochs", sizes.epochs, *options, *_some(count))
        return lambda seed, out: [_script("mnist", data, *some, "--seed", seed)]

    def module(name: str, **orders: Any) -> Callable[[int, Path], list[list[str]]]:
        shared = {**orders, "path": str(data), "images": count, "epochs": sizes.epochs}
        return lambda seed, out: [_module(name, **shared, seed=seed)]

    rows = {
        "diabolo": Row(ours([]), ours=True, **common),
        "diabolo-bf16": Row(ours(BF16), ours=True, precision="bf16", **common),
        "script": Row(script(), **common),
        "script-tensors": Row(script("--loader", "tensors"), **common),
        "eager": Row(module("row_eager", data="mnist"), **common),
        "pythae": Row(module("row_pythae", what="train"), peer=True, **common),
    }
    if workers:
        rows["script-workers"] = Row(script("--workers", 2), **common)
    targets = (
        _at_least(2.5, "script", "diabolo"),
        _at_least(3.3, "script", "diabolo-bf16"),
        _at_least(1.8, "pythae", "diabolo"),
        _at_least(2.3, "pythae", "diabolo-bf16"),
        _share(0.75, "diabolo"),
    )
    return Job("a", "s/epoch", rows, data=("mnist",), targets=targets)


def three_models(folder: Path, sizes: Sizes, flops: Mapping[str, float], workers: bool) -> Job:
    """(a) The article's three models: one process a core against the script's one after another, seconds for an epoch of all."""
    data = folder / "mnist.npz"
    gflop = sum(flops[name] for name in ("model1", "model2", "model3")) * 60_000 / 1e9
    quick = [] if sizes.mnist is None else ["train.smoke=true"]

    def ours(overrides: list[str]) -> Callable[[int, Path], list[list[str]]]:
        orders = {"what": "pool", "preset": "mnist-grey", "overrides": overrides, "epochs": sizes.pool_epochs}
        return lambda seed, out: [_module("row_diabolo", **orders, seed=seed, out=str(out))]

    def script(seed: int, out: Path) -> list[list[str]]:
        shared = ("--epochs", sizes.script_epochs, *_some(sizes.mnist), "--seed", seed)
        return [
            _script("mnist", data, *shared, "--hidden", h, "--latent", d) for h, d in ((400, 20), (200, 20), (400, 10))
        ]

    rows = {
        "diabolo": Row(ours(quick), "total", ours=True, units=sizes.pool_epochs, gflop=gflop),
        "script": Row(script, "total", units=sizes.script_epochs, gflop=gflop),
    }
    return Job("a", "s/epoch of all three", rows, data=("mnist",), targets=(_at_least(3, "script", "diabolo"),))


def convvae(folder: Path, sizes: Sizes, flops: Mapping[str, float], workers: bool) -> Job:
    """(b) The convolutional VAE on CIFAR-10, batch 128, seconds for so many images."""
    data, count = folder / "cifar10.npz", sizes.cifar
    common = {"kind": "epochs", "gflop": flops["cifar10"] * count / 1e9}

    def ours(overrides: list[str]) -> Callable[[int, Path], list[list[str]]]:
        orders = {"what": "train", "preset": "cifar10-conv", "overrides": overrides, "epochs": sizes.epochs}
        return lambda seed, out: [
            _module("row_diabolo", **orders, path=str(data), images=count, seed=seed, out=str(out / "run"))
        ]

    rows = {
        "diabolo": Row(ours([]), ours=True, **common),
        "diabolo-bf16": Row(ours(BF16), ours=True, precision="bf16", **common),
        "script": Row(
            lambda seed, out: [_script("cifar", data, "--epochs", sizes.epochs, *_some(count), "--seed", seed)],
            **common,
        ),
        "eager": Row(
            lambda seed, out: [
                _module("row_eager", data="cifar10", path=str(data), images=count, epochs=sizes.epochs, seed=seed)
            ],
            **common,
        ),
    }
    unit = f"s/{count:,} images"
    return Job("b", unit, rows, data=("cifar10",), targets=(_at_least(2, "script", "diabolo"),))


# ------------------------------------------------------------------------------------------------ log p
def log_p(folder: Path, sizes: Sizes, flops: Mapping[str, float], workers: bool) -> Job:
    """(c) log p(x) of a trained Model 1 at K draws, seconds an image."""
    run, data = str(folder / "model1"), str(folder / "log_p.npz")
    common = {"kind": "total", "units": sizes.log_p_images, "gflop": flops["draw"] * sizes.k / 1e9}

    def ours(se: float | None) -> Callable[[int, Path], list[list[str]]]:
        orders = {"what": "log_p", "run": run, "k": sizes.k, "images": sizes.log_p_images, "se": se}
        return lambda seed, out: [_module("row_diabolo", **orders)]

    def theirs(batch: int) -> Callable[[int, Path], list[list[str]]]:
        orders = {"what": "log_p", "run": run, "path": data, "k": sizes.k, "batch": batch}
        return lambda seed, out: [_module("row_pythae", **orders, seed=seed)]

    rows = {
        "diabolo": Row(ours(None), ours=True, **common),
        "diabolo-adaptive": Row(ours(0.05), ours=True, **{**common, "gflop": None}),
        "pythae": Row(theirs(100), peer=True, **common),
        "pythae-1000": Row(theirs(1000), peer=True, **common),
    }
    same = {"of": "mean", "within": 0.5, "what": "mean log p(x) of the same images, other draws"}
    checks = tuple({**same, "rows": pair} for pair in (["diabolo", "pythae"], ["diabolo", "diabolo-adaptive"]))
    targets = (_at_least(3, "pythae", "diabolo"), _at_least(10, "pythae", "diabolo-adaptive"), _share(0.75, "diabolo"))
    return Job("c", f"s/image at K = {sizes.k:,}", rows, log_p=True, checks=checks, targets=targets)


# ------------------------------------------------------------------------------------------------ time to a test loss
def _reaching(
    preset: str, data: Path, images: int | None, epochs: int | None, loss: float, constant: float, at_least: int
) -> Callable[[list[str]], Callable[[int, Path], list[list[str]]]]:
    """diabolo's rows: a preset with overrides; `epochs` at most, None for the preset's own number."""
    orders = {
        "what": "target", "preset": preset, "path": str(data), "images": images,
        "target": loss, "constant": constant, "at_least": at_least,
    }  # fmt: skip

    def with_overrides(overrides: list[str]) -> Callable[[int, Path], list[list[str]]]:
        every = overrides if epochs is None else [*overrides, f"train.epochs={epochs}"]
        return lambda seed, out: [_module("row_diabolo", **orders, overrides=every, seed=seed, out=str(out / "run"))]

    return with_overrides


def target_mnist(folder: Path, sizes: Sizes, flops: Mapping[str, float], workers: bool) -> Job:
    """(d) Training seconds until the test ELBO of Model 1's network is the article's; ten epochs at least, for the check."""
    data, most = folder / "mnist.npz", sizes.most_epochs
    at_least = min(10, most)
    ours = _reaching("mnist-grey", data, sizes.mnist, most, MNIST_LOSS, 0.0, at_least)
    fast = _reaching("mnist-speedrun", data, sizes.mnist, None, MNIST_LOSS, 0.0, 1)
    options = ("--epochs", most, "--target", MNIST_LOSS, "--at-least", at_least, *_some(sizes.mnist))
    common = {"kind": "target", "target": MNIST_LOSS}
    rows = {
        "diabolo": Row(ours([]), ours=True, **common),
        "diabolo-bf16": Row(ours(BF16), ours=True, precision="bf16", **common),
        "speedrun": Row(fast([]), ours=True, **common),
        "script": Row(lambda seed, out: [_script("mnist", data, *options, "--seed", seed)], **common),
    }
    within = {"of": "loss", "within": 0.7, "what": "-ELBO on the test images after 10 epochs"}
    checks = ({**within, "rows": ["diabolo", "script"]}, {**within, "rows": ["diabolo", "diabolo-bf16"]})
    targets = (_at_least(5, "script", "speedrun"),)
    return Job("d", "s to test ELBO >= -104.675", rows, data=("mnist",), checks=checks, targets=targets)


def target_cifar10(folder: Path, sizes: Sizes, flops: Mapping[str, float], workers: bool) -> Job:
    """(d) Training seconds until the test SSE + KL of the convolutional VAE is the article's."""
    data, count = folder / "cifar10.npz", None if sizes.mnist is None else sizes.cifar
    ours = _reaching("cifar10-conv", data, count, sizes.most_epochs, CIFAR_LOSS, CIFAR_CONSTANT, 1)
    options = ("--epochs", sizes.most_epochs, "--target", CIFAR_LOSS, *_some(count))
    common = {"kind": "target", "target": CIFAR_LOSS}
    rows = {
        "diabolo": Row(ours([]), ours=True, **common),
        "diabolo-bf16": Row(ours(BF16), ours=True, precision="bf16", **common),
        "script": Row(lambda seed, out: [_script("cifar", data, *options, "--seed", seed)], **common),
    }
    return Job("d", "s to test SSE + KL <= 81.594", rows, rounds=1, data=("cifar10",))


# ------------------------------------------------------------------------------------------------ start-up
def startup(folder: Path, sizes: Sizes, flops: Mapping[str, float], workers: bool) -> Job:
    """(e) Wall seconds of whole processes, files in the system's cache; an empty Python and `import torch` beside them."""

    def again(*arguments: str) -> Callable[[int, Path], list[list[str]]]:
        return lambda seed, out: [[sys.executable, *arguments]] * sizes.repeats

    def smoke(seed: int, out: Path) -> list[list[str]]:
        words = ["-m", "diabolo", "train", "mnist", "--smoke", "--yes", "--out"]
        return [[sys.executable, *words, str(out / f"run{i}")] for i in range(min(2, sizes.repeats))]

    rows = {
        "help": Row(again("-m", "diabolo", "--help"), "wall", ours=True),
        "smoke": Row(smoke, "wall", ours=True),
        "python": Row(again("-c", "pass"), "wall"),
        "torch": Row(again("-c", "import torch"), "wall"),
    }
    return Job("e", "s", rows, targets=({"kind": "seconds", "rows": ["help"], "bound": 0.3},))


#: Each job by its name in bench.json, in the order of running.
JOBS: dict[str, Callable[[Path, Sizes, Mapping[str, float], bool], Job]] = {
    "model1": model1,
    "three-models": three_models,
    "convvae": convvae,
    "log_p": log_p,
    "target-mnist": target_mnist,
    "target-cifar10": target_cifar10,
    "startup": startup,
}
LETTERS = {
    "a": ("model1", "three-models"),
    "b": ("convvae",),
    "c": ("log_p",),
    "d": ("target-mnist", "target-cifar10"),
    "e": ("startup",),
}
