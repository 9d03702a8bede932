"""The library's front door: the same work as the command line, on tensors and paths.

Where a person looks on, in a notebook or at a prompt, progress is one line. Ctrl-C ends a training with its state saved, and
the run is returned.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diabolo import durations, evaluation, interactive, packaged, runs, training
from diabolo.config import Component, RunConfig, resolve
from diabolo.data import Access, Dataset, from_tensor
from diabolo.models import build
from diabolo.models.autoencoder import Autoencoder
from diabolo.options import k_or_se
from diabolo.progress import Progress
from diabolo.results import Evaluation, Run
from diabolo.session import InterruptedRun

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Array = np.ndarray[Any, Any] | Tensor

logger = logging.getLogger("diabolo")


def train(
    preset: str | RunConfig,
    data: Array | Dataset | None = None,
    *,
    labels: Array | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    time: str | None = None,
    device: str = "auto",
    progress: Progress | Literal["auto"] | None = "auto",
) -> Run:
    """Train a preset on its own data set, or on yours, and return the run.

    Ctrl-C (interrupting the kernel) ends it after its step: the state is saved and the run returned, `run.status["state"]` is
    "interrupted". A second Ctrl-C raises KeyboardInterrupt at once. Go on with `diabolo.resume(run)`.

    Arguments:
        preset: a name from `diabolo.presets()`, or a RunConfig.
        data: examples first, NumPy or torch, uint8 or floating point; how its range was read is in
            `run.env["data"]["note"]`. Ten per cent each become the validation and the test split.
        labels: (N,) class numbers, used by probes and pictures only.
        overrides: like the command line's, `["model.latent=4", "train.epochs=5"]`.
        out: the run directory; runs/PRESET-N where it is left out.
        time: stop in good order after so much training, like "90s", "5m", "1h30m"; the state is then "stopped".
        progress: "auto" is one line in a notebook or at a prompt and nothing in a script; None is nothing.

    Raises:
        UsageError: for a configuration that does not fit the data.
        DataError: if the preset's data cannot be had.
        DivergedError: after ten non-finite steps in a row.
    """
    config = preset if isinstance(preset, RunConfig) else resolve(preset, overrides).config
    dataset = _dataset(data, labels)
    if dataset is not None:
        config = replace(config, data=Component(name="tensor"))
    place, limit = None if out is None else Path(out), _seconds(time)
    with interactive.chosen(progress) as shown:
        path = _interruptible(
            lambda: training.train(config, out=place, data=dataset, device=device, progress=shown, seconds=limit)
        )
    return _returned(path, dataset)


def resume(
    run: runs.Run | str | Path,
    data: Array | Dataset | None = None,
    *,
    labels: Array | None = None,
    time: str | None = None,
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | Literal["auto"] | None = "auto",
) -> Run:
    """Go on with a run that was interrupted or stopped, to the same bits as if it had not been, and return it.

    Arguments:
        run: a run or its directory.
        data, labels: the same arrays as in training; a run that `train` returned still has them.
        time, progress: as in `train`; the time is counted anew.

    Raises:
        DataError: if no state is whole, or the data are not those of the run.
        UsageError: if the run is finished, or another process works on it.
    """
    dataset, path, limit = _dataset_of(run, data, labels), _path(run), _seconds(time)
    with interactive.chosen(progress) as shown:
        path = _interruptible(
            lambda: training.resume(path, data=dataset, access=access, device=device, progress=shown, seconds=limit)
        )
    return _returned(path, dataset)


def evaluate(
    run: runs.Run | str | Path,
    data: Array | Dataset | None = None,
    *,
    labels: Array | None = None,
    k: int | None = None,
    se: float | None = None,
    images: int = 500,
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | Literal["auto"] | None = "auto",
) -> Evaluation:
    """Measure a run on its test split: {metric: {value, se, n, unit, split}}, nats per example.

    Arguments:
        run: a run or its directory.
        data, labels: the same arrays as in training, for a run that was trained on arrays; one that `train` returned still has
            them.
        k, images: draws of z (1,000) and number of images for log p(x) by importance sampling.
        se: instead of k, as many draws for each image as make its Monte-Carlo standard error `se` nats, from a proposal fitted to
            it (diabolo.adaptive, diabolo.proposals).
        progress: as in `train`.

    Raises:
        DataError: if the data are not those of the run.
        UsageError: for k and se together, or a value that cannot be honoured.
    """
    k_or_se(k, se)
    dataset = _dataset_of(run, data, labels)
    draws = evaluation.Settings.k if k is None else k
    settings = evaluation.Settings(k=draws, se=se, images=images)
    with interactive.chosen(progress) as shown:
        found = evaluation.evaluate(_path(run), settings, data=dataset, access=access, device=device, progress=shown)
    return Evaluation(found)


def load(path: str | Path) -> Autoencoder:
    """The trained model of a run directory, of a weights file or of the package, in evaluation mode on the CPU.

    Arguments:
        path: a path, or `pretrained:NAME` with a name that `diabolo list` shows.

    Raises:
        DataError: if there is none, or the file does not fit its own configuration.
        UsageError: if the package has no model of this name.
    """
    path = packaged.located(path)
    return runs.Run(path).model() if path.is_dir() else runs.load_weights(path)


def build_model(config: RunConfig, data: Dataset) -> Autoencoder:
    """An untrained model of a configuration, for data of this shape.

    Raises:
        UsageError: if the parts do not fit the data or one another.
    """
    return build.build_model(config.model.to_dict(), data.spec)


# ------------------------------------------------------------------------------------------------ shared
def _dataset(data: Array | Dataset | None, labels: Array | None) -> Dataset | None:
    return data if data is None or isinstance(data, Dataset) else from_tensor(data, labels)


def _dataset_of(run: runs.Run | str | Path, data: Array | Dataset | None, labels: Array | None) -> Dataset | None:
    """The data given, else those that the run still has."""
    return run.in_memory if data is None and isinstance(run, Run) else _dataset(data, labels)


def _path(run: runs.Run | str | Path) -> Path:
    return run.path if isinstance(run, runs.Run) else Path(run)


def _seconds(time: str | None) -> float:
    return math.inf if time is None else durations.seconds(time)


def _interruptible(work: Callable[[], runs.Run]) -> Path:
    """The run's directory, also after Ctrl-C; SIGTERM ends the program and is raised."""
    try:
        return work().path
    except InterruptedRun as stopped:
        if stopped.exit_code != 128 + signal.SIGINT:
            raise
        return stopped.run


def _returned(path: Path, dataset: Dataset | None) -> Run:
    """The run, with a word on how to go on where it was interrupted."""
    run = Run(path, dataset)
    if run.status["state"] == "interrupted":
        later = f"diabolo.resume({str(path)!r}{'' if dataset is None else ', data'})"
        logger.warning(
            "interrupted: everything up to step %d is saved; go on with diabolo.resume(run), later with %s",
            run.status["step"],
            later,
        )
    return run
