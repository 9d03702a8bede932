"""The MNIST chapter: Models 1, 2 and 3 of the article, once on grey levels (its convention), once on binarized pixels.

A finished run is used again if its resolved configuration, the data's hash and the hash of the source that decides its
numbers are the same; the same holds for its evaluation and for the report.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from diabolo import data as data_module
from diabolo import evaluation, runs, training
from diabolo.chapters import mnist_story
from diabolo.chapters.mnist_article import PUBLISHED
from diabolo.config import RunConfig, read_json, resolve
from diabolo.data import Access, Dataset
from diabolo.errors import DataError
from diabolo.evaluation import Settings
from diabolo.language import say
from diabolo.pictures import pictures
from diabolo.progress import Progress
from diabolo.report import Convention, Entry, write_chapter_report

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


@dataclass(frozen=True)
class Result:
    """The report's path, its table as rows of text, and what was done and what was used again."""

    report: Path
    runs: list[runs.Run]
    reused: list[str]
    seconds: float


def reproduce(
    out: Path = Path("runs/reproduce/mnist"),
    *,
    plan: str = "normal",
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    lang: str = "en",
) -> Result:
    """Train and evaluate what is not there yet, then write the report in a language.

    Raises:
        DataError: if MNIST cannot be had.
        InterruptedRun: after SIGINT or SIGTERM; the same command goes on.
    """
    began, progress, chosen = time.monotonic(), progress or Progress(), PLANS[plan]
    reused: list[str] = []
    conventions = []
    for key, (preset, title) in CONVENTIONS.items():
        loading = time.monotonic()
        dataset = _dataset(preset, access)
        progress.say(f"{title}: MNIST read and checked in {time.monotonic() - loading:.1f} s")
        entries = []
        for model, changes in MODELS.items():
            config = resolve(preset, (*changes, *chosen.overrides)).config
            path = out / f"{model.lower().replace(' ', '')}-{key}"
            run = _trained(path, config, dataset, device, progress, reused)
            _evaluated(run, dataset, chosen.settings, device, progress, reused)
            published = PUBLISHED[model] if key == "grey" else {}
            entries.append((model, run, published))
        conventions.append((key, title, dataset, entries))
    everything = [run for *_, entries in conventions for _, run, _ in entries]
    report = out / "report.html"
    fingerprint = _fingerprint(everything, lang)
    if report.is_file() and _stamp(out) == fingerprint:
        reused.append(str(report))
        return Result(report, everything, reused, time.monotonic() - began)
    _write_report(conventions, everything, report, progress, lang)
    runs.write_json(out / "report.json", {"fingerprint": fingerprint})
    return Result(report, everything, reused, time.monotonic() - began)


def _dataset(preset: str, access: Access | None) -> Dataset:
    config = resolve(preset).config
    return data_module.load(config.data.name, config.data.params, access)


# ------------------------------------------------------------------------------------------------ runs
def _trained(
    path: Path, config: RunConfig, dataset: Dataset, device: str, progress: Progress, reused: list[str]
) -> runs.Run:
    state = _state(path, config, dataset)
    if state == "finished":
        progress.say(f"{path}: trained already (same configuration, data and source), used again")
        reused.append(str(path))
        return runs.Run(path)
    progress.say(f"{path}: {'going on with' if state == 'resumable' else 'training'} {config.train.epochs} epochs")
    if state == "resumable":
        return training.resume(path, data=dataset, device=device, progress=progress)
    if state == "other":
        aside = _move_aside(path)
        progress.say(f"{path}: made by another configuration or source; moved to {aside}")
    return training.train(config, out=path, data=dataset, device=device, progress=progress)


def _state(path: Path, config: RunConfig, dataset: Dataset) -> str:
    """absent, finished, resumable, or other: made from something else, or unreadable."""
    if not path.exists():
        return "absent"
    try:
        run = runs.Run(path)
        same = (
            run.config_dict == json.loads(json.dumps(config.to_dict()))
            and run.data_hash == dataset.hash
            and run.env["source_hash"] == training.training_source_hash()
        )
        state = run.status["state"]
    except (DataError, LookupError):
        return "other"
    if not same:
        return "other"
    if state == "finished":
        return "finished" if (path / "weights.safetensors").is_file() else "other"
    return "resumable" if runs.states(path) else "other"


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return path.rename(aside)


def _evaluated(
    run: runs.Run, dataset: Dataset, settings: Settings, device: str, progress: Progress, reused: list[str]
) -> None:
    if _evaluation_stands(run, dataset, settings):
        reused.append(str(run.path / "evaluation.json"))
        return
    progress.say(f"{run.path}: evaluating on the test split")
    evaluation.evaluate(run, settings, data=dataset, device=device, progress=progress)


def _evaluation_stands(run: runs.Run, dataset: Dataset, settings: Settings) -> bool:
    try:
        about = run.evaluation()["about"]
        run.per_image()
    except DataError:
        return False
    expected = {
        **json.loads(json.dumps(asdict(settings))),
        "data_hash": dataset.hash,
        "weights_sha256": runs.sha256(run.path / "weights.safetensors"),
        "source_hash": evaluation.evaluation_source_hash(),
    }
    return all(about.get(key) == value for key, value in expected.items())


# ------------------------------------------------------------------------------------------------ report
def _write_report(
    conventions: Sequence[tuple[str, str, Dataset, list[tuple[str, runs.Run, dict[str, float]]]]],
    everything: list[runs.Run],
    report: Path,
    progress: Progress,
    lang: str,
) -> None:
    progress.say("drawing the figures and writing the report")
    began = time.monotonic()
    shown = [
        Convention(
            key=key,
            title=title,
            classes=dataset.spec.classes,
            entries=[
                Entry(title=model, run=run, published=published, pictures=pictures(run.model(), dataset))
                for model, run, published in entries
            ],
        )
        for key, title, dataset, entries in conventions
    ]
    stages = _stages(everything)
    stages[say("pictures")] = time.monotonic() - began
    write_chapter_report(shown, mnist_story.story(shown), report, stages, lang)


def _stages(everything: Sequence[runs.Run]) -> dict[str, float]:
    """Wall seconds of each stage, summed over the runs; what was used again counts with the time that it took then."""
    stages: dict[str, float] = {say("training"): 0.0, say("test curves"): 0.0}
    for run in everything:
        for row in run.timing():
            stages["training" if row["stage"] == "train" else "test curves"] += row["seconds"]
        for name, seconds in run.evaluation()["about"]["seconds"].items():
            label = {
                "pass": "ELBO",
                "importance": say("importance sampling"),
                "probes": say("encoding for probes"),
                "metrics": say("probes"),
            }[name]
            stages[label] = stages.get(label, 0.0) + seconds
    return stages


def _fingerprint(everything: Sequence[runs.Run], lang: str) -> str:
    """What decides the report: every evaluation and log, the source that draws it, and its language."""
    digest = hashlib.sha256(f"{runs.source_hash('.')} {lang}".encode())
    for run in everything:
        for name in ("config.json", "env.json", "metrics.jsonl", "evaluation.json", "per_image.safetensors"):
            digest.update(runs.sha256(run.path / name).encode())
    return digest.hexdigest()


def _stamp(out: Path) -> str:
    try:
        return str(read_json(out / "report.json").get("fingerprint"))
    except DataError:
        return ""
