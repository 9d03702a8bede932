"""The chapter of plain, denoising and contractive autoencoders, beside PCA and beside the VAE of the same size, on MNIST.

Finished parts are used again, see `parts`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from diabolo import data as data_module
from diabolo import runs
from diabolo.chapters import parts, toy
from diabolo.chapters.autoencoders_measures import add_toy, measure
from diabolo.chapters.autoencoders_page import write_page
from diabolo.config import RunConfig, resolve
from diabolo.data import Access
from diabolo.evaluation import Settings
from diabolo.progress import Progress
from diabolo.workers import Job
from diabolo.workers import run as run_jobs

#: The bottleneck autoencoder of each size: the trunk of the article's Model 1.
SIZES = (2, 10, 20, 32)
_NOISE = "objective.contractive=0 objective.noise={} objective.level={}".format
#: Name of each run -> preset and what it changes. Those called `layer-` share one form: a sigmoid layer with tied weights.
RUNS: dict[str, tuple[str, str]] = {
    **{f"ae-{d}": ("ae", f"model.latent={d}") for d in SIZES},
    "dae-20": ("dae", ""),
    "vae-20": ("mnist-grey", ""),
    "layer-plain": ("contractive", "objective.contractive=0"),
    "layer-gaussian": ("contractive", _NOISE("gaussian", 0.3)),
    "layer-masking": ("contractive", _NOISE("masking", 0.25)),
    "layer-salt-pepper": ("contractive", _NOISE("salt_pepper", 0.2)),
    "layer-contractive": ("contractive", ""),
}


@dataclass(frozen=True)
class Plan:
    """How much of the chapter is done. `test` and `train`: how many images the analyses look at."""

    epochs: int = 5
    test: int = 2000
    train: int = 10_000
    settings: Settings = Settings(k=100, images=100, curve_k=(), curve_images=0, probes=False)


PLANS = {
    "normal": Plan(),
    "full": Plan(epochs=10, test=10_000, train=60_000),
    "smoke": Plan(1, 200, 500, Settings(k=10, images=20, elbo_samples=2, curve_k=(), curve_images=0, probes=False)),
}


def reproduce(
    out: Path = Path("runs/reproduce/autoencoders"),
    *,
    plan: str = "normal",
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    lang: str = "en",
) -> parts.Result:
    """Train, evaluate and analyse what is not there yet, one run on each core, then write the report.

    Raises:
        DataError: if MNIST cannot be had.
        InterruptedRun: after SIGINT or SIGTERM; the same command goes on.
    """
    began, progress, chosen = time.monotonic(), progress or Progress(), PLANS[plan]
    reused: list[str] = []
    configs, kinds = _configs(chosen), toy.configs()
    jobs = [Job(out / name, config, chosen.settings) for name, config in configs.items()]
    jobs += [Job(out / f"toy-{kind.lower()}", config, chosen.settings) for kind, config in kinds.items()]
    everything = run_jobs(jobs, access=access, device=device, progress=progress, reused=reused)
    made, toys = dict(zip(configs, everything)), dict(zip(kinds, everything[len(configs) :]))
    report = out / "report.html"
    fingerprint = parts.fingerprint(everything, lang)
    if report.is_file() and parts.stamp(out) == fingerprint:
        reused.append(str(report))
        return parts.Result(report, everything, reused, time.monotonic() - began)
    dataset = data_module.load("mnist", {"binarize": False, "validation": 0}, access)
    plane = data_module.load("spiral", {}, access)
    found = measure(made, dataset, test=chosen.test, train=chosen.train, progress=progress)
    add_toy(found, toys, plane, progress)
    runs.write_json(out / "measures.json", found.numbers)
    write_page(report, made, found, {**parts.stages_of(everything), **found.seconds}, lang)
    runs.write_json(out / "report.json", {"fingerprint": fingerprint})
    return parts.Result(report, list(made.values()), reused, time.monotonic() - began)


def _configs(plan: Plan) -> dict[str, RunConfig]:
    """Only the curves of the bottleneck's sizes are drawn."""
    return {
        name: resolve(
            preset,
            [
                *changes.split(),
                f"train.epochs={plan.epochs}",
                *([] if name.startswith("ae-") else ["train.curve=none"]),
            ],
        ).config
        for name, (preset, changes) in RUNS.items()
    }
