"""What the program prints of small runs, as one JSON object of numbers: `tools/teeth.py` compares it with a planted bug's.

The arguments are the parts to run, all where there are none. A refusal is the word "refused". Prints the folder that the
package was imported from as `source`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import diabolo
from diabolo import adaptive, evaluation, linear, runs, tables, training
from diabolo.config import resolve
from diabolo.data import Access, Dataset, from_tensor, load, packing, sources
from diabolo.data.catalogue import Collection, File
from diabolo.data.stored import read_levels
from diabolo.errors import DiaboloError
from diabolo.images_metrics import psnr
from diabolo.progress import Progress

SETTINGS = evaluation.Settings(k=20, images=53, elbo_samples=4, curve_k=(1, 6, 20), curve_images=20)
Numbers = dict[str, Any]


class Kill(BaseException):
    """What no handler of the program knows."""


class KillAt(Progress):
    """Ends the process's work after a number of steps, as a crash would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, units: int = 1, note: str = "") -> None:
        self.left -= units
        if not self.left:
            raise Kill


def train(path: Path, *overrides: str, data: Dataset | None = None, progress: Progress | None = None) -> runs.Run:
    config = resolve("vae", ["model.encoder.width=64", "model.decoder.width=64", *overrides]).config
    return training.train(config, out=path, data=data, device="cpu", progress=progress)


def curves(run: runs.Run) -> Numbers:
    """Rows of metrics.jsonl, the last row of each split, and the mean loss of the epochs."""
    rows = run.metrics()
    last = {row["split"]: row for row in rows}
    found = {f"{split} {key}": row[key] for split, row in last.items() for key in ("loss", "distortion", "rate")}
    epochs = [row["loss"] for row in rows if row["split"] == "train"]
    return {"rows": len(rows), "first loss": rows[0]["loss"], "epochs' loss": sum(epochs) / len(epochs), **found}


def measured(run: runs.Run, data: Dataset | None = None, settings: evaluation.Settings = SETTINGS) -> Numbers:
    """Every number of an evaluation but its clock, and the first image's ELBO."""
    result = evaluation.evaluate(run, settings, data=data, device="cpu")
    about = result.pop("about")
    first = run.per_image()["elbo" if about["bound"] == "elbo" else "distortion"][0].item()
    found = {"normalised": int(about["normalised"]), "first image": first}
    for metric, entry in result.items():
        found |= {f"{metric} {key}": v for key, v in entry.items() if type(v) in (int, float)}
        found |= {f"{metric} K={p['k']} {key}": p[key] for p in entry.get("points", ()) for key in ("value", "mc_se")}
    return found


def grey(root: Path) -> Numbers:
    """The preset as it is shipped but for its length."""
    run = train(root / "grey", "train.epochs=6", "train.lr=0.01")
    torch.manual_seed(0)
    spread = run.model().sample(500, temperature=0.5).mean.std(1).mean().item()
    return {**curves(run), **measured(run), "spread at temperature 0.5": spread}


def relaxed(root: Path) -> Numbers:
    one = train(root / "relaxed", "train.epochs=2", "model.likelihood=bernoulli_relaxed")
    other = train(root / "other", "train.epochs=1", "model.likelihood=bernoulli_relaxed")
    found = measured(one) | {f"other {k}": v for k, v in measured(other).items()}
    return {**found, "paired se": tables.paired(one.per_image()["elbo"], other.per_image()["elbo"])[1]}


def everything(root: Path) -> Numbers:
    """Binarised pixels, warm-up, beta, average and best weights at once; then the same, crashed and resumed."""
    options = (
        "data.binarize=true", "model.likelihood=bernoulli", "objective.beta=2", "objective.warmup_steps=40",
        "train.ema=0.9", "train.keep=best", "train.curve=validation", "train.epochs=5", "train.batch=64", "train.lr=0.03",
        "train.checkpoint_every=7", "train.log_every=1",
    )  # fmt: skip
    run = train(root / "all", *options)
    with suppress(Kill):
        train(root / "crashed", *options, progress=KillAt(33))
    resumed = training.resume(root / "crashed", device="cpu")
    norm = {name: sum(t.norm().item() for t in r.model().parameters()) for name, r in (("a", run), ("b", resumed))}
    again = {f"resumed {k}": v for k, v in curves(resumed).items()}
    return {**curves(run), **measured(run), **again, "weights": norm["a"], "resumed weights": norm["b"]}


def iwae(root: Path) -> Numbers:
    options = ("train.epochs=1", "objective=iwae", "objective.samples=3")
    found = curves(train(root / "iwae", *options))
    return found | {
        f"dreg {k}": v for k, v in curves(train(root / "dreg", *options, "objective.gradient=dreg")).items()
    }


def family(root: Path) -> Numbers:
    """Denoising, contractive and convolutional models on the digits, and what chapters measure them against."""
    deep = ("objective=reconstruction", "model.posterior=dirac", "model.prior=none", "train.epochs=3")
    layer = ("model.encoder=layer", "model.decoder=tied", "model.latent=40", "objective.contractive=0.1")
    conv = [f"model.{part}" for part in ("encoder=conv", "decoder=conv", "likelihood=gaussian_optimal")]
    made = {
        "masking": (*deep, "objective.noise=masking"),
        "contractive": (*deep, *layer),
        "convolutional": (*conv, "train.epochs=3", "train.ema=0.5"),
    }
    found = Numbers()
    for name, overrides in made.items():
        run = training.train(resolve("vae", overrides).config, out=root / name, device="cpu")
        found |= {f"{name} {key}": value for key, value in measured(run).items()}
        found |= {f"{name} {row['split']} loss": row["loss"] for row in run.metrics()}
    x = load("digits", {}).test.values.flatten(1) / 255
    pca = linear.fit(x, 5)
    error = (pca.decode(pca.encode(x)) - x).square().mean().item()
    return {**found, "PCA error": error, "PCA PSNR": psnr(error)}


def vectors(seed: int, count: int = 300) -> Dataset:
    return from_tensor(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), name="vectors")


def own(root: Path) -> Numbers:
    """Data of the user's own, with more test examples than one batch of the evaluation holds."""
    data = vectors(0, 6000)
    run = train(root / "own", "train.epochs=1", "train.batch=256", data=data)
    found = {**curves(run), **measured(run, data)}
    other: Any = refusable(lambda: measured(run, vectors(1, 6000))["elbo value"])
    return {**found, "trained on": run.env["data"]["splits"]["train"], "on other data": other}


def best(root: Path) -> Numbers:
    """A training that is far too fast, so that the best weights are not the last."""
    run = train(root / "best", "train.epochs=12", "train.lr=0.05", "train.keep=best", data=vectors(0))
    return {"epoch": run.status["best_epoch"], **measured(run, vectors(0))}


def mismatch(root: Path) -> Numbers:
    """Grey levels under the likelihood of coin flips."""
    taken: Any = refusable(
        lambda: curves(
            train(
                root / "mismatch", "model.likelihood=bernoulli", "train.epochs=1", "train.curve=none", "train.keep=last"
            )
        )["train loss"]
    )
    return {"train loss": taken}


def tampered(root: Path) -> Numbers:
    """The mean level of a cached file of the right size whose content is not the registered one."""
    file = File("levels", "train", (2, 2, 2), hashlib.sha256(b"").hexdigest(), 1, "0" * 64)
    (root / "cache" / "tiny").mkdir(parents=True)
    header = b"".join(n.to_bytes(4, "big") for n in (0x0803, 2, 2, 2))
    (root / "cache" / "tiny" / "levels").write_bytes(header + bytes(range(8)))
    collection, access = Collection("tiny", "", (file,), ("https://localhost/",)), Access(root / "cache", offline=True)
    return {
        "mean level": refusable(lambda: read_levels(sources.fetch(collection, access)[0], file).double().mean().item())
    }


def pixels(root: Path) -> Numbers:
    """Colour images under a density, under exact probabilities, and with the asymmetric loss."""
    fixed = ("model.likelihood=gaussian", "model.likelihood.scale=0.7071067811865476", "model.likelihood.mean=sigmoid")
    made = {
        "density": fixed,
        "exact": ("model.likelihood=discretized_logistic",),
        "asymmetric": (*fixed, "objective=asymmetric"),
    }
    few, found = evaluation.Settings(k=5, elbo_samples=2, curve_k=(), probes=False), Numbers()
    for name, overrides in made.items():
        run = train(root / name, "data=clouds", "data.examples=100", "data.size=12", "train.epochs=2", *overrides)
        found |= {f"{name} {key}": value for key, value in (curves(run) | measured(run, settings=few)).items()}
    return found


def closed(root: Path) -> Numbers:
    """The closed-form lines of small colour images."""
    lines = linear.lines(load("clouds", {"examples": 300, "size": 8}), (3, 20), ((20, 0.5), (20, 0.02)))
    found = Numbers()
    for convention, part in (("grid", lines.grid), ("dequantized", lines.dequantized)):
        for line in part:
            rows = {f"{convention} {line.name} {key}": value for key, value in line.to_dict().items()}
            found |= {key: value for key, value in rows.items() if type(value) in (int, float)}
    return found


GREY = ("train.epochs=1", "model.likelihood=bernoulli_relaxed")


def steps(root: Path) -> Numbers:
    """What a step may be told: a schedule, a start, a precision."""
    made = {
        "warm-up": "train.warmup=0.3",
        "schedule": "train.schedule=cosine",
        "he": "train.init=he",
        "data": "train.init=data",
        "bf16": "train.precision=bf16",
    }
    trained = {name: train(root / name, *GREY, override) for name, override in made.items()}
    return {f"{name} {key}": value for name, run in trained.items() for key, value in curves(run).items()}


def convolutions(root: Path) -> Numbers:
    """Convolutions of colour images that crash and go on."""
    small = ("data=clouds", "data.examples=200", "data.size=8", "train.epochs=1", "train.batch=20")
    options = ("model.encoder=conv", "model.decoder=conv", "model.encoder.width=4", "model.decoder.width=4")
    with suppress(Kill):
        train(root / "conv", *small, *options, "train.checkpoint_every=3", progress=KillAt(8))
    return curves(training.resume(root / "conv", device="cpu"))


def draws(root: Path) -> Numbers:
    """log p(x) with K chosen image by image, up to the ceiling and up to a low one."""
    run, found = train(root / "draws", *GREY, "train.lr=0.01"), Numbers()
    settings = evaluation.Settings(images=20, elbo_samples=4, curve_k=(), probes=False, se=0.1)
    for ceiling in (adaptive.CEILING, 50):
        adaptive.CEILING = ceiling
        again = measured(run, settings=settings)
        found |= {f"up to {ceiling}: {key}": value for key, value in again.items()}
    return found


def places(data: Dataset) -> Numbers:
    """Labels and levels of the training split, each weighted by its place."""
    at, labels = torch.arange(1.0, len(data.train) + 1, dtype=torch.float64), data.train.labels
    assert labels is not None
    return {
        "labels": (at @ labels.double()).item(),
        "levels": (at @ data.train.values.double().flatten(1).mean(1)).item(),
    }


def packed(root: Path) -> Numbers:
    """A data set and a folder of images, packed a few images at a time; a training on what was packed."""
    quiet, packing._ROWS = Access(say=lambda text: None), 16
    generator, folder = np.random.default_rng(0), root / "folder"
    for i in range(60):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / f"{i}.png")
    packing.pack("digits", {}, root / "digits", quiet, Progress())
    packing.pack_folder(str(folder), 8, "auto", root / "images", quiet.say, Progress())
    found = {name: places(load("packed", {"path": str(root / name)})) for name in ("digits", "images")}
    run = train(root / "run", "train.epochs=1", "model.likelihood=bernoulli_relaxed", f"data=packed:{root / 'digits'}")
    found["run"] = curves(run) | measured(run)
    return {f"{name} {key}": value for name, numbers in found.items() for key, value in numbers.items()}


def processes(root: Path) -> Numbers:
    """A training by two processes, whose shares of a batch differ by one; nothing where what joins them is not installed."""
    if not find_spec("accelerate"):
        return {}
    options = ("model.likelihood=gaussian_optimal", "train.epochs=1", "train.batch=51", "train.log_every=1")
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "diabolo"),
            *("train", "vae", *options, "--device", "cpu", "--out", str(root / "two")),
        ],
        check=True,
        capture_output=True,
    )
    run = runs.Run(root / "two")
    rows = [row for row in run.metrics() if row["split"] == "batch"]
    return {
        **curves(run),
        "examples": sum(row["examples"] for row in rows),
        "sigma": run.model().likelihood.sigma,
        "weights": sum(t.norm().item() for t in run.model().parameters()),
    }


def refusable(work: Callable[[], float]) -> float | str:
    try:
        return work()
    except DiaboloError:
        return "refused"


def main() -> None:
    torch.set_num_threads(1)
    parts = (grey, relaxed, everything, iwae, family, own, best, mismatch, tampered)
    parts += (pixels, closed, steps, convolutions, draws, packed, processes)
    found = Numbers()
    with tempfile.TemporaryDirectory() as folder:
        for part in (part for part in parts if part.__name__ in sys.argv[1:] or not sys.argv[1:]):
            found |= {f"{part.__name__}: {key}": value for key, value in part(Path(folder)).items()}
    print(json.dumps({"source": str(Path(diabolo.__file__).parent), "numbers": found}))


if __name__ == "__main__":
    main()
