"""The parts that a chapter is made of: a trained run, its evaluation, its report, each used again while nothing has changed.

A finished run is used again if its resolved configuration, the data's hash and the hash of the source that decides its
numbers are the same; the same holds for its evaluation and for the report.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from diabolo import evaluation, fitted, fitting, packaged, runs, training
from diabolo.config import RunConfig, read_json
from diabolo.data import Dataset
from diabolo.engine import pick_device
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings
from diabolo.language import say
from diabolo.prior_config import PriorConfig
from diabolo.progress import Progress


@dataclass(frozen=True)
class Result:
    """The report's path, its table as rows of text, and what was done and what was used again."""

    report: Path
    runs: list[runs.Run]
    reused: list[str]
    seconds: float


def trained(
    path: Path, config: RunConfig, dataset: Dataset, device: str, progress: Progress, reused: list[str]
) -> runs.Run:
    """The run at `path`: used again, gone on with, or trained; one made from something else is moved aside."""
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


def pretrained(
    path: Path, name: str, config: RunConfig, dataset: Dataset, progress: Progress, reused: list[str]
) -> runs.Run:
    """The package's model `name`, copied to `path` with its priors, where it can be worked on; something else is moved aside.

    Raises:
        UsageError: if it is of another configuration.
        DataError: if it was trained on other data, or is not what its about.json says.
    """
    packed = runs.Run(name)
    if packed.config != config:
        raise UsageError(
            f"{name} has another configuration than this chapter's", remedy="Train it: leave --pretrained out."
        )
    packed.check_data(dataset)
    pinned = packaged.about(packed.path)["files"]
    weights = [file for file in pinned if file.endswith("weights.safetensors")]
    if path.exists() and not all(_is_file(path / file, pinned[file]["sha256"]) for file in weights):
        progress.say(f"{path}: not the model of the package; moved to {_move_aside(path)}")
    if not path.exists():
        progress.say(f"{path}: a copy of {name}")
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(packed.path, partial)
        partial.rename(path)
    reused += [str(path / file) for file in weights]
    return runs.Run(path)


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and runs.sha256(path) == sha256


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
    while (aside := path.with_name(f"{path.name}{fitted.ASIDE}{number}")).exists():
        number += 1
    return path.rename(aside)


def fitted_prior(
    run: runs.Run, name: str, config: PriorConfig, dataset: Dataset, device: str, progress: Progress, reused: list[str]
) -> Path:
    """The directory RUN/priors/NAME: used again, gone on with, or fitted; one made from something else is moved aside."""
    path = run.path / "priors" / name
    state = _prior_state(path, run, config, dataset)
    if state == "finished":
        progress.say(f"{path}: fitted already (same configuration, codes and source), used again")
        if fitted.measured(run, name):
            reused.append(str(path))
        else:
            fitted.measure(run, name, dataset, pick_device(device), progress)
        return path
    progress.say(f"{path}: {'going on with its fit' if state == 'resumable' else 'fitting'}")
    if state == "resumable":
        return fitting.resume_fit(path, data=dataset, device=device, progress=progress)
    if state == "other":
        progress.say(f"{path}: made by another configuration, other codes or source; moved to {_move_aside(path)}")
    return fitting.fit_prior(run, config, name=name, data=dataset, device=device, progress=progress)


def _prior_state(path: Path, run: runs.Run, config: PriorConfig, dataset: Dataset) -> str:
    """As `_state`, of a prior that is fitted to the codes of a run."""
    if not path.exists():
        return "absent"
    try:
        env, state = read_json(path / "env.json"), read_json(path / "status.json")["state"]
        same = (
            read_json(path / "config.json") == json.loads(json.dumps(config.to_dict()))
            and env["run"] == fitting.Source(run, dataset, config.flips).hashes
            and env["source_hash"] == fitting.source_hash()
        )
    except (DataError, LookupError):
        return "other"
    if same and state == "finished" and (path / "weights.safetensors").is_file():
        return "finished"
    return "resumable" if same and state != "finished" and (config.closed or runs.states(path)) else "other"


def evaluated(
    run: runs.Run, dataset: Dataset, settings: Settings, device: str, progress: Progress, reused: list[str]
) -> None:
    """Evaluate a run, unless its evaluation stands."""
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
        "training": run.status["state"],
        "weights_sha256": runs.sha256(run.path / "weights.safetensors"),
        "source_hash": evaluation.evaluation_source_hash(),
    }
    return all(about.get(key) == value for key, value in expected.items())


def stands(path: Path, config: RunConfig, dataset: Dataset, settings: Settings | None) -> bool:
    """Whether nothing is left to do for a run: it is finished, and its evaluation stands where one is wanted."""
    if _state(path, config, dataset) != "finished":
        return False
    return settings is None or _evaluation_stands(runs.Run(path), dataset, settings)


def stages_of(everything: Sequence[runs.Run], elsewhere: Sequence[runs.Run] = ()) -> dict[str, float]:
    """Wall seconds of each stage, summed over the runs; what was used again counts with the time that it took then, but not the
    training of runs that came from `elsewhere`."""
    stages: dict[str, float] = {say("training"): 0.0, say("test curves"): 0.0}
    for run in everything:
        for row in run.timing() if run not in elsewhere else ():
            stages["training" if row["stage"] == "train" else "test curves"] += row["seconds"]
        for name, seconds in run.evaluation()["about"]["seconds"].items():
            label = {
                "pass": "ELBO",
                "importance": say("importance sampling"),
                "calibration": say("sigma on the training split"),
                "probes": say("encoding for probes"),
                "metrics": say("probes"),
            }[name]
            stages[label] = stages.get(label, 0.0) + seconds
    return stages


def fingerprint(everything: Sequence[runs.Run], lang: str) -> str:
    """What decides the report: every evaluation and log, the source that draws it, and its language."""
    digest = hashlib.sha256(f"{runs.source_hash('.')} {lang}".encode())
    for run in everything:
        for name in ("config.json", "env.json", "metrics.jsonl", "evaluation.json", "per_image.safetensors"):
            digest.update(runs.sha256(run.path / name).encode())
        digest.update(json.dumps(run.loss_card()).encode())
    return digest.hexdigest()


def stamp(out: Path) -> str:
    """The fingerprint of the report that is there."""
    try:
        return str(read_json(out / "report.json").get("fingerprint"))
    except DataError:
        return ""
