"""Looking into a run with given examples: reconstruct, interpolate, traverse, score, embed; and what its state takes on disk.

Examples are a split of the run's own data, a NumPy file, an image or a folder of images, always in their order. Pictures show
decoder means.
"""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from diabolo import data as data_module
from diabolo import evaluation
from diabolo.data import Access, Dataset, Loader
from diabolo.data.images import SUFFIXES, Colour, read_folder, read_image, refusal
from diabolo.data.spec import DataSpec
from diabolo.data.tensor import examples_like
from diabolo.engine import own_randomness
from diabolo.errors import DataError, DiaboloError, UsageError
from diabolo.metrics import examples_at_a_time, float64, keyed_inference
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.grids import vectors
from diabolo.pictures import random_examples
from diabolo.plots import image_png
from diabolo.progress import Progress
from diabolo.runs import Run, sha256, spec_from_dict, states, write_bytes
from diabolo.seeds import fold
from diabolo.session import locked

SCORE_COLUMNS = ("index", "elbo", "distortion", "rate", "percentile")


# ------------------------------------------------------------------------------------------------ examples
@dataclass(frozen=True)
class Examples:
    """A split of `dataset` in its order; `source` says which, `note` how a file was read."""

    dataset: Dataset
    split: str
    source: str
    note: str = ""

    def loader(self, device: torch.device | str = "cpu") -> Loader:
        return Loader(self.dataset, self.split, device)


def examples(run: Run, path: Path | None, split: str, access: Access | None = None) -> Examples:
    """The examples of a .npy or .npz file, an image file, a folder of images, or, without any, of a split of the run's own data.

    Raises:
        DataError: if they cannot be had, or do not fit the run.
    """
    if path is None:
        dataset = data_module.load(run.config.data.name, run.config.data.params, access)
        run.check_data(dataset)
        dataset.split(split)
        return Examples(dataset, split, f"{split} split of {dataset.spec.name}")
    about = run.env["data"]
    spec, note = spec_from_dict(about["spec"]), ""
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        array, note = read_pictures(path, spec)
    else:
        array = read_array(path)
    try:
        dataset = examples_like(array, spec, binarize=bool(about["binarize"]))
    except UsageError as error:
        raise DataError(f"{path}: {error.what}", error.why, error.remedy) from error
    return Examples(dataset, "test", str(path), note or dataset.note)


def read_pictures(path: Path, spec: DataSpec) -> tuple[np.ndarray[Any, Any], str]:
    """The levels (N, C, H, W) of an image or of a folder of images, the middle squares in the run's size, and how they were read;
    a folder's in the byte order of their paths.

    Raises:
        DataError: if the run's data are no square images of grey levels, or the images cannot be read.
    """
    channels, height, width = spec.shape if len(spec.shape) == 3 else (0, 0, 0)
    if spec.values == "real" or channels not in (1, 3) or height != width:
        what = "real numbers" if spec.values == "real" else f"of shape {spec.shape}"
        why = "Images are read as squares of grey or RGB levels."
        raise DataError(f"{path} holds images, and the run's data are {what}", why, "Give them as a .npy file.")
    colour: Colour = "grey" if channels == 1 else "rgb"
    if path.is_dir():
        reading = read_folder(str(path), height, colour)
        if not reading.tolerable:
            raise refusal(reading)
        found, note = reading.pictures, reading.note()
    else:
        found = [read_image(path, height, colour)]
        note = "; ".join((
            f"read as {'grey' if channels == 1 else 'RGB'} levels k/255, the middle square scaled to {height}x{height}",
            *found[0].done,
        ))
    levels = np.stack([picture.levels for picture in found])
    return (levels[:, None] if channels == 1 else levels.transpose(0, 3, 1, 2)), note


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """The array of a .npy file, or of a .npz file that holds one (or one called `x`); never a pickle.

    Raises:
        DataError: if the file is missing, corrupt, of another kind, or holds objects.
    """
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".npy":
                return np.asarray(npy.read_array(file, allow_pickle=False))
            if path.suffix.lower() == ".npz":
                return _from_archive(path, file)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        why = "" if str(path) in str(error) else str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be read as a NumPy file", why, "Write one with numpy.save.") from error
    raise DataError(f"{path} is neither .npy nor .npz", remedy="Write one with numpy.save.")


def _from_archive(path: Path, file: IO[bytes]) -> np.ndarray[Any, Any]:
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        wanted = names[0] if len(names) == 1 else "x"
        if wanted not in names:
            raise DataError(
                f"{path} holds {len(names)} arrays, and none is called x", f"There are: {', '.join(names) or 'none'}."
            )
        with archive.open(f"{wanted}.npy") as member:
            return np.asarray(npy.read_array(member, allow_pickle=False))


# ------------------------------------------------------------------------------------------------ numbers
@dataclass(frozen=True)
class Scores:
    """One row an example, in order: nats per example; `percentile`: the share in % of the run's test examples whose ELBO is at
    most this one's."""

    elbo: Tensor
    distortion: Tensor
    rate: Tensor
    percentile: Tensor

    def rows(self) -> Iterator[tuple[int, float, float, float, float]]:
        columns = (self.elbo, self.distortion, self.rate, self.percentile)
        return ((i, *values) for i, values in enumerate(zip(*(column.tolist() for column in columns))))


@torch.no_grad()
def score(
    run: Run,
    given: Examples,
    *,
    samples: int = 10,
    access: Access | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """ELBO, distortion and rate of each example, with the draws of z that an evaluation gives the example of that index.

    Raises:
        DataError: if the model has no bound, or the run's test examples are needed for the percentile and cannot be had.
    """
    model, progress = run.model().to(device), progress or Progress()
    if not model.bounded:
        raise DataError(
            f"{run.path} cannot score examples: its model has no ELBO",
            "A plain autoencoder has no prior, and its posterior no density.",
            "Score with a variational one; errors at the code are in: diabolo evaluate RUN",
        )
    with own_randomness(torch.device(device)):
        elbo, rate = _elbo(model, given.loader(device), samples, progress, given.source)
        known = _evaluated(run, samples)
        if known is None:
            test = examples(run, None, "test", access)
            known = _elbo(model, test.loader(device), samples, progress, test.source)[0]
    return Scores(elbo, -elbo - rate, rate, percentiles(elbo, known))


def percentiles(values: Tensor, reference: Tensor) -> Tensor:
    """The share in % of `reference` (N,) that is at most each of `values` (n,)."""
    below = torch.searchsorted(reference.sort().values, values.contiguous(), right=True)
    return 100 * below.double() / reference.numel()


def _elbo(model: Autoencoder, loader: Loader, samples: int, progress: Progress, what: str) -> tuple[Tensor, Tensor]:
    progress.start(f"ELBO on {what}", len(loader))
    seed, elbo, rate = fold(0, "elbo"), [], []
    for batch in loader.ordered(examples_at_a_time(model, loader.values.shape[1], evaluation.BATCH)):
        inference = keyed_inference(model, batch.x, batch.index.tolist(), samples, seed)
        elbo.append(float64(inference.log_weight(batch.x)).mean(0))
        rate.append(float64(inference.latents[0].kl()).mean(0))
        progress.advance(len(batch.x))
    progress.finish()
    return torch.cat(elbo), torch.cat(rate)


def _evaluated(run: Run, samples: int) -> Tensor | None:
    """The test examples' ELBO, where the run's evaluation has just these numbers."""
    if not (run.path / "evaluation.json").is_file() or not (run.path / "per_image.safetensors").is_file():
        return None
    about = run.evaluation()["about"]
    wanted = {
        "split": "test",
        "seed": 0,
        "elbo_samples": samples,
        "weights_sha256": sha256(run.path / "weights.safetensors"),
        "source_hash": evaluation.evaluation_source_hash(),
    }
    return run.per_image().get("elbo") if all(about.get(key) == value for key, value in wanted.items()) else None


@torch.no_grad()
def embed(model: Autoencoder, loader: Loader) -> Tensor:
    """The posterior means (N, *event) of a loader's examples, in their order."""
    return torch.cat([model.encode(batch.x).mean.cpu() for batch in loader.ordered(evaluation.BATCH)])


def write_scores(path: Path, scores: Scores) -> None:
    """Write a CSV file with `SCORE_COLUMNS`."""
    rows = [(str(i), *(f"{value:.6f}" for value in values)) for i, *values in scores.rows()]
    write_bytes(path, _csv(SCORE_COLUMNS, rows))


def write_codes(path: Path, codes: Tensor) -> None:
    """Write codes (N, *event): .npz with `mean` and `index`, or .csv with the columns index, z0, z1, ..., those of a grid in the
    order channel, row, column."""
    if path.suffix.lower() == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, index=np.arange(codes.shape[0]), mean=codes.numpy())
        write_bytes(path, buffer.getvalue())
        return
    flat = vectors(codes)
    rows = [(str(i), *(f"{value:.9g}" for value in values)) for i, values in enumerate(flat.tolist())]
    write_bytes(path, _csv(("index", *(f"z{j}" for j in range(flat.shape[1]))), rows))


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode("utf-8")


# ------------------------------------------------------------------------------------------------ pictures
@torch.no_grad()
def reconstructions(model: Autoencoder, loader: Loader, *, n: int, seed: int) -> Tensor:
    """(2, n, C, H, W): n random examples, and their reconstructions at z = mu."""
    real = random_examples(loader, n, seed)
    return torch.stack([real, model.reconstruct(real).mean[0]])


@torch.no_grad()
def interpolations(model: Autoencoder, loader: Loader, *, steps: int, pairs: int, seed: int) -> Tensor:
    """(pairs, steps + 2, C, H, W): an example, decoder means on the straight line between two posterior means, the other."""
    if 2 * pairs > len(loader):
        raise UsageError(f"{pairs} pairs need {2 * pairs} examples, there are {len(loader)}")
    real = random_examples(loader, 2 * pairs, seed)
    mean = model.encode(real).mean
    share = torch.linspace(0, 1, steps).view(-1, *[1] * mean.ndim)  # (steps, 1, ...)
    z = (1 - share) * mean[::2] + share * mean[1::2]  # (steps, pairs, *latent)
    decoded = model.decode(z).mean.transpose(0, 1)
    return torch.cat([real[::2, None], decoded, real[1::2, None]], 1)


@torch.no_grad()
def traversals(
    model: Autoencoder, codes: Tensor, *, steps: int, span: float, rows: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    """(r, steps, C, H, W): decoder means as one latent dimension goes from -span to span prior standard deviations, the others at
    the prior's mean; without a prior that has them, mean and standard deviation are those of the codes. A row for each of the
    r = min(rows, d) dimensions of the largest Var_x(mu_j) over `codes` (N, *event), largest first; also the order of all d and
    their variances."""
    activity = vectors(codes).double().var(0)
    order = activity.argsort(descending=True, stable=True)
    try:
        prior = model.prior()
        mean, spread = (codes.mean(0), codes.std(0)) if prior is None else (prior.mean, prior.stddev)
    except NotImplementedError:  # torch's, of a distribution that has draws and no moments
        mean, spread = codes.mean(0), codes.std(0)
    shown = order[:rows]
    flat = mean.flatten().expand(len(shown), steps, -1).clone()  # (r, steps, d)
    moved = torch.linspace(-span, span, steps)
    for row, j in enumerate(shown.tolist()):
        flat[row, :, j] += moved * spread.flatten()[j]
    z = flat.flatten(0, 1).unflatten(1, codes.shape[1:])
    return model.decode(z[None]).mean[0].unflatten(0, (len(shown), steps)), order, activity[order]


def grid(rows: Tensor) -> bytes:
    """A PNG of images (rows, columns, C, H, W).

    Raises:
        UsageError: if the data are vectors rather than images.
    """
    if rows.ndim != 5:
        raise UsageError("this model's data are vectors, not images", "There is no picture of them.")
    return image_png(rows.flatten(0, 1), columns=rows.shape[1])


def in_lines(pairs: Tensor, columns: int) -> Tensor:
    """(2, n, ...) as lines of `columns`: reals, their reconstructions below, the next reals; white fills the last two."""
    missing = -pairs.shape[1] % columns
    filled = torch.cat([pairs, pairs.new_ones(2, missing, *pairs.shape[2:])], 1)
    lines: Tensor = filled.unflatten(1, (-1, columns)).transpose(0, 1)
    return lines.flatten(0, 1)


# ------------------------------------------------------------------------------------------------ disk
def spare_states(root: Path) -> list[tuple[Path, int]]:
    """(state folder, bytes) of each finished run below `root` whose weights are there: what only resuming would need."""
    found = [config.parent for config in sorted(root.rglob("config.json"))]
    return [(run / "state", _size(run)) for run in found if _spare(run)]


def remove_states(folders: Sequence[Path]) -> list[Path]:
    """Remove the steps in the state folders, and the folders once empty; a run that is being worked on is left alone."""
    removed = []
    for folder in folders:
        try:
            with locked(folder.parent):
                if not _spare(folder.parent):  # it was resumed in between
                    continue
                for state in states(folder.parent):
                    shutil.rmtree(state)
                if not any(folder.iterdir()):
                    folder.rmdir()
        except UsageError:
            continue
        except OSError as error:
            raise UsageError(f"{folder} cannot be removed", str(error)) from error
        removed.append(folder)
    return removed


def _spare(run: Path) -> bool:
    try:
        finished = Run(run).status.get("state") == "finished"
    except DiaboloError:
        return False
    folder = run / "state"
    return finished and (run / "weights.safetensors").is_file() and not folder.is_symlink() and bool(states(run))


def _size(run: Path) -> int:
    return sum(file.stat().st_size for state in states(run) for file in state.rglob("*") if file.is_file())
