"""The CIFAR-10 chapter: why the article's pictures were blurred, put to the test with honest likelihoods.

Runs are trained side by side, each on one core. Finished parts are used again, see `parts`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diabolo import data as data_module
from diabolo import runs, workers
from diabolo.chapters import parts
from diabolo.chapters.cifar10_measures import measure
from diabolo.chapters.cifar10_page import verdicts, write_page
from diabolo.config import RunConfig, resolve
from diabolo.data import Access
from diabolo.evaluation import Settings
from diabolo.progress import Progress
from diabolo.workers import Job

_BOTH = "model.encoder.{0}={1} model.decoder.{0}={1}".format
_WIDE = _BOTH("width", 2048)
_LEAKY = f"{_BOTH('activation', 'leaky_relu')} {_BOTH('slope', 0.2)}"
_OPTIMAL = "model.likelihood=gaussian_optimal model.likelihood.mean=sigmoid"
_MLP_OPTIMAL = f"model.latent=256 {_OPTIMAL}"

#: Name of each run -> preset and what it changes, those that take longest first.
RUNS: dict[str, tuple[str, str]] = {
    "c3": ("cifar10", f"model.latent=256 {_WIDE}"),
    "c4": ("cifar10-conv", ""),
    "c4-optimal": ("sigma-vae", ""),
    "c5-leaky": ("cifar10-conv", _LEAKY),
    "c5-leaky-optimal": ("sigma-vae", _LEAKY),
    "c5-asymmetric": ("cifar10-conv", f"{_LEAKY} objective=asymmetric"),
    "c2": ("cifar10", "model.latent=256"),
    "c2-optimal": ("cifar10", _MLP_OPTIMAL),
    "c1": ("cifar10", ""),
}
#: What it takes to see whether locality is what a dense layer lacks: permuted pixels, and the spread between seeds.
LOCALITY: dict[str, tuple[str, str]] = {
    "c4-optimal-permuted": ("sigma-vae", "data.permuted=true"),
    "c2-optimal-permuted": ("cifar10", f"{_MLP_OPTIMAL} data.permuted=true"),
    "c2-optimal-seed1": ("cifar10", f"{_MLP_OPTIMAL} seed=1"),
    "c2-optimal-seed2": ("cifar10", f"{_MLP_OPTIMAL} seed=2"),
}
QUICK = ("c4", "c4-optimal", "c2", "c1")

_SETTINGS = Settings(k=1000, images=100, elbo_samples=4, curve_k=(), curve_images=0, probes=False)
_SMOKE = Settings(k=10, images=10, elbo_samples=2, curve_k=(), curve_images=0, probes=False)


@dataclass(frozen=True)
class Plan:
    """How much of the chapter is done. All runs have the same number of epochs."""

    epochs: int = 5
    names: tuple[str, ...] = tuple(RUNS)
    settings: Settings = _SETTINGS
    overrides: tuple[str, ...] = ()


PLANS = {
    "normal": Plan(),
    "locality": Plan(names=(*RUNS, *LOCALITY)),
    "full": Plan(epochs=50, names=(*RUNS, *LOCALITY)),
    "quick": Plan(epochs=2, names=QUICK, settings=Settings(k=0, elbo_samples=2, curve_k=(), probes=False)),
    "smoke": Plan(epochs=1, names=(*RUNS, *LOCALITY), settings=_SMOKE, overrides=("train.smoke=true",)),
}


def reproduce(
    out: Path = Path("runs/reproduce/cifar10"),
    *,
    plan: str = "normal",
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    lang: str = "en",
    data: Sequence[str] = (),
) -> parts.Result:
    """Train, evaluate and compare what is not there yet, then write the report. `data`: overrides that put other images in
    the place of CIFAR-10.

    Raises:
        DataError: if CIFAR-10 cannot be had.
        InterruptedRun: after SIGINT or SIGTERM; the same command goes on.
    """
    began, progress, chosen = time.monotonic(), progress or Progress(), PLANS[plan]
    configs = {name: config_of(name, chosen, data) for name in chosen.names}
    jobs, reused = [Job(out / name, config, chosen.settings) for name, config in configs.items()], list[str]()
    finished = workers.run(jobs, access=access, device=device, progress=progress, reused=reused)
    made = {run.name: run for run in finished}
    everything, report = list(made.values()), out / "report.html"
    fingerprint = parts.fingerprint(everything, lang)
    if report.is_file() and parts.stamp(out) == fingerprint:
        reused.append(str(report))
        return parts.Result(report, everything, reused, time.monotonic() - began)
    plain = configs["c1"].data  # read here, not before: the runs' processes hold a copy each
    found = measure(made, data_module.load(plain.name, plain.params, access), progress)
    found.numbers |= {"plan": plan, "epochs": chosen.epochs}
    found.numbers |= verdicts(made, found)
    runs.write_json(out / "measures.json", found.numbers)
    write_page(report, made, found, {**parts.stages_of(everything), **found.seconds}, lang)
    runs.write_json(out / "report.json", {"fingerprint": fingerprint})
    return parts.Result(report, everything, reused, time.monotonic() - began)


def config_of(name: str, plan: Plan, data: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run in a plan."""
    preset, changes = {**RUNS, **LOCALITY}[name]
    return resolve(preset, [*data, *changes.split(), f"train.epochs={plan.epochs}", *plan.overrides]).config
