"""The MNIST chapter: Models 1, 2 and 3 of the article, once on grey levels (its convention), once on binarized pixels.

Finished parts are used again, see `parts`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diabolo import data as data_module
from diabolo import evaluation, runs
from diabolo.chapters import mnist_story, parts
from diabolo.chapters.mnist_article import PUBLISHED
from diabolo.config import resolve
from diabolo.data import Access, Dataset
from diabolo.evaluation import Settings
from diabolo.language import say
from diabolo.pictures import pictures
from diabolo.progress import Progress
from diabolo.report import Convention, Entry, write_chapter_report
from diabolo.workers import Job
from diabolo.workers import run as run_jobs

#: Each model as what it changes of Model 1.
MODELS: dict[str, tuple[str, ...]] = {
    "Model 1": (),
    "Model 2": ("model.encoder.width=200", "model.decoder.width=200"),
    "Model 3": ("model.latent=10",),
}
CONVENTIONS = {
    "grey": ("mnist-grey", say("Grey levels: the article's convention")),
    "binarized": ("mnist", say("Binarized pixels: real likelihoods")),
}


@dataclass(frozen=True)
class Plan:
    """How much of the chapter is done: everything, everything with K = 5,000 on all images, or a smoke test of it."""

    overrides: tuple[str, ...] = ()
    settings: Settings = Settings()


PLANS = {
    "normal": Plan(),
    "full": Plan(settings=evaluation.FULL),
    "smoke": Plan(("train.epochs=1",), Settings(k=50, images=50, curve_k=(1, 10, 50), curve_images=20)),
}


def reproduce(
    out: Path = Path("runs/reproduce/mnist"),
    *,
    plan: str = "normal",
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    lang: str = "en",
) -> parts.Result:
    """Train and evaluate what is not there yet, one run on each core, then write the report in a language.

    Raises:
        DataError: if MNIST cannot be had.
        InterruptedRun: after SIGINT or SIGTERM; the same command goes on.
    """
    began, progress, chosen = time.monotonic(), progress or Progress(), PLANS[plan]
    reused: list[str] = []
    paths = {(key, model): out / f"{model.lower().replace(' ', '')}-{key}" for key in CONVENTIONS for model in MODELS}
    jobs = [
        Job(path, resolve(CONVENTIONS[key][0], (*MODELS[model], *chosen.overrides)).config, chosen.settings)
        for (key, model), path in paths.items()
    ]
    made = dict(zip(paths, run_jobs(jobs, access=access, device=device, progress=progress, reused=reused)))
    everything = list(made.values())
    report = out / "report.html"
    fingerprint = parts.fingerprint(everything, lang)
    if report.is_file() and parts.stamp(out) == fingerprint:
        reused.append(str(report))
        return parts.Result(report, everything, reused, time.monotonic() - began)
    _write_report(made, report, access, progress, lang)
    runs.write_json(out / "report.json", {"fingerprint": fingerprint})
    return parts.Result(report, everything, reused, time.monotonic() - began)


def _dataset(preset: str, access: Access | None) -> Dataset:
    config = resolve(preset).config
    return data_module.load(config.data.name, config.data.params, access)


# ------------------------------------------------------------------------------------------------ report
def _write_report(
    made: Mapping[tuple[str, str], runs.Run], report: Path, access: Access | None, progress: Progress, lang: str
) -> None:
    progress.say("drawing the figures and writing the report")
    began = time.monotonic()
    shown = [_convention(key, made, access) for key in CONVENTIONS]
    stages = parts.stages_of(list(made.values()))
    stages[say("pictures")] = time.monotonic() - began
    write_chapter_report(shown, mnist_story.story(shown), report, stages, lang)


def _convention(key: str, made: Mapping[tuple[str, str], runs.Run], access: Access | None) -> Convention:
    """The three models on one kind of pixels, with their pictures."""
    preset, title = CONVENTIONS[key]
    dataset = _dataset(preset, access)
    entries = [
        Entry(
            title=model,
            run=made[key, model],
            published=PUBLISHED[model] if key == "grey" else {},
            pictures=pictures(made[key, model].model(), dataset),
        )
        for model in MODELS
    ]
    return Convention(key=key, title=title, classes=dataset.spec.classes, entries=entries)
