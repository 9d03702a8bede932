"""The library's front door: the same work as the command line, on tensors and paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diabolo import evaluation, runs, training
from diabolo.config import Component, RunConfig, resolve
from diabolo.data import Access, Dataset, from_tensor
from diabolo.models import build
from diabolo.models.autoencoder import Autoencoder
from diabolo.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Array = np.ndarray[Any, Any] | Tensor


def train(
    preset: str | RunConfig,
    data: Array | Dataset | None = None,
    *,
    labels: Array | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> runs.Run:
    """Train a preset on its own data set, or on yours, and return the run.

    Arguments:
        preset: a name from `diabolo.presets()`, or a RunConfig.
        data: examples first, NumPy or torch, uint8 or floating point; how its range was read is in
            `run.env["data"]["note"]`. Ten per cent each become the validation and the test split.
        labels: (N,) class numbers, used by probes and pictures only.
        overrides: like the command line's, `["model.latent=4", "train.epochs=5"]`.
        out: the run directory; runs/PRESET-N where it is left out.

    Raises:
        UsageError: for a configuration that does not fit the data.
        DataError: if the preset's data cannot be had.
        DivergedError: after ten non-finite steps in a row.
    """
    config = preset if isinstance(preset, RunConfig) else resolve(preset, overrides).config
    dataset = data if data is None or isinstance(data, Dataset) else from_tensor(data, labels)
    if dataset is not None:
        config = replace(config, data=Component(name="tensor"))
    return training.train(
        config, out=None if out is None else Path(out), data=dataset, device=device, progress=progress
    )


def evaluate(
    run: runs.Run | str | Path,
    data: Array | Dataset | None = None,
    *,
    labels: Array | None = None,
    k: int = 1000,
    images: int = 500,
    access: Access | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a run on its test split: {metric: {value, se, n, unit, split}}, nats per example.

    Arguments:
        run: a run or its directory.
        data, labels: the same arrays as in training, for a run that was trained on arrays.
        k, images: draws of z and number of images for log p(x) by importance sampling.

    Raises:
        DataError: if the data are not those of the run.
    """
    dataset = data if data is None or isinstance(data, Dataset) else from_tensor(data, labels)
    settings = evaluation.Settings(k=k, images=images)
    return evaluation.evaluate(run, settings, data=dataset, access=access, device=device)


def load(path: str | Path) -> Autoencoder:
    """The trained model of a run directory or of a weights file, in evaluation mode on the CPU.

    Raises:
        DataError: if there is none, or the file does not fit its own configuration.
    """
    path = Path(path)
    return runs.Run(path).model() if path.is_dir() else runs.load_weights(path)


def build_model(config: RunConfig, data: Dataset) -> Autoencoder:
    """An untrained model of a configuration, for data of this shape.

    Raises:
        UsageError: if the parts do not fit the data or one another.
    """
    return build.build_model(config.model.to_dict(), data.spec)
