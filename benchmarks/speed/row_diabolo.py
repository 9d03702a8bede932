"""diabolo itself, through what it offers to everybody: `diabolo.train`, `evaluation.evaluate`, `workers.run`.

The seconds of training are those that a run keeps of each epoch (timing.jsonl, stage "train"): start-up and test curves are
outside, as they are for the scripts.
"""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

import diabolo
from benchmarks.speed.emitting import emit, orders, skip
from diabolo import config, data, evaluation, workers
from diabolo.chapters.mnist import MODELS
from diabolo.config import resolve
from diabolo.data import Dataset
from diabolo.evaluation import Settings
from diabolo.progress import Progress
from diabolo.workers import Job

#: Examples that an array keeps for a test split, when a row trains on a part of the images.
_TEST = 100


def part(path: str, count: int | None) -> Dataset | None:
    """The first `count` training images as a data set; None for the preset's own."""
    if count is None:
        return None
    images = np.load(path)["train"][: count + _TEST]
    channels_first = images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None]
    return data.from_tensor(np.ascontiguousarray(channels_first), validation=0, test=_TEST / len(images))


def check(given: dict[str, Any]) -> None:
    """Leave where this version has no such preset or precision."""
    if given["preset"] not in diabolo.presets():
        skip(f"this version has no preset {given['preset']}")
    precise = any(override.startswith("train.precision") for override in given["overrides"])
    if precise and "precision" not in {field.name for field in fields(config.TrainConfig)}:
        skip("this version has no train.precision")


def train(given: dict[str, Any]) -> None:
    check(given)
    overrides = [*given["overrides"], f"train.epochs={given['epochs']}", "train.curve=none", "train.keep=last"]
    run = diabolo.train(
        given["preset"],
        part(given["path"], given["images"]),
        overrides=[*overrides, f"seed={given['seed']}"],
        out=given["out"],
        device="cpu",
        progress=None,
    )
    for row in run.timing():
        if row["stage"] == "train":
            emit(epoch=row["epoch"], seconds=row["seconds"])


class Reached(Progress):
    """Stops a training, as Ctrl-C would, after the epoch at which the test loss has reached its target."""

    def __init__(self, out: Path, target: float, at_least: int) -> None:
        self.journal, self.target, self.at_least = out / "metrics.jsonl", target, at_least

    def say(self, text: str) -> None:
        found = curve(self.journal) if self.journal.is_file() else {}
        if found and max(found) >= self.at_least and found[max(found)] <= self.target:
            signal.raise_signal(signal.SIGINT)


def curve(journal: Path) -> dict[int, float]:
    """The test loss after each epoch, nats/image."""
    rows = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
    return {row["epoch"]: math.inf if row["loss"] is None else row["loss"] for row in rows if row["split"] == "test"}


def target(given: dict[str, Any]) -> None:
    """Train until the test loss is no more than the target, given without the likelihood's constant as the scripts have it."""
    check(given)
    out, constant = Path(given["out"]), given["constant"]
    overrides = [*given["overrides"], "train.curve=test", "train.keep=last", f"seed={given['seed']}"]
    run = diabolo.train(
        given["preset"],
        part(given["path"], given["images"]),
        overrides=overrides,
        out=out,
        device="cpu",
        progress=Reached(out, given["target"] + constant, given["at_least"]),
    )
    losses = curve(out / "metrics.jsonl")
    for row in run.timing():
        if row["stage"] == "train" and row["epoch"] in losses:
            emit(epoch=row["epoch"], seconds=row["seconds"], loss=losses[row["epoch"]] - constant)


def log_p(given: dict[str, Any]) -> None:
    if given["se"] is not None and "se" not in {field.name for field in fields(Settings)}:
        skip("this version has no adaptive log p(x)")
    draws = {"k": given["k"]} if given["se"] is None else {"se": given["se"]}
    settings = Settings(**draws, images=given["images"], elbo_samples=2, curve_images=0, probes=False, calibration=2)
    found = evaluation.evaluate(given["run"], settings, device="cpu")
    emit(
        images=found["log_p"]["n"],
        seconds=found["about"]["seconds"]["importance"],
        mean=found["log_p"]["plain_mean"],
    )


class Stopwatch(Progress):
    """When the first and the last step of several runs were told."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.ended = 0.0

    def advance(self, units: int = 1, note: str = "") -> None:
        if units:
            self.ended = time.perf_counter()
            self.began = self.began or self.ended


def pool(given: dict[str, Any]) -> None:
    """The article's three models, each in a process of one thread, as many at a time as there are cores."""
    check(given)
    out, watch = Path(given["out"]), Stopwatch()
    overrides = [*given["overrides"], f"train.epochs={given['epochs']}", "train.curve=none", f"seed={given['seed']}"]
    jobs = [
        Job(out / name.replace(" ", ""), resolve(given["preset"], (*changes, *overrides)).config)
        for name, changes in MODELS.items()
    ]
    finished = workers.run(jobs, device="cpu", progress=watch)
    alone = [row["seconds"] for run in finished for row in run.timing() if row["stage"] == "train"]
    emit(
        epochs=given["epochs"],
        seconds=watch.ended - (watch.began or watch.ended),
        processes=workers.cores(),
        alone=sum(alone),
    )


if __name__ == "__main__":
    {"train": train, "target": target, "log_p": log_p, "pool": pool}[orders()["what"]](orders())
