"""Fitting a prior to the codes of a trained model: the model is frozen, its codes are cached, the training loop does the rest.

    RUN/priors/NAME/     what `runs` describes, of a prior: config.json (a PriorConfig), env.json (with the hash of the run's
                         weights), status.json, metrics.jsonl, weights.safetensors, state/, evaluation.json

A code is z ~ q(z | x), drawn anew in each step from the cached parameters of q. A prior that is fitted in closed form sees one
draw for each image and has neither metrics.jsonl nor states.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from diabolo import data as data_module
from diabolo import fitted, packaged, runs
from diabolo.compiling import repays
from diabolo.config import read_json
from diabolo.data import Access, Dataset, Loader
from diabolo.data.scan import scan
from diabolo.data.spec import DataSpec, Split
from diabolo.distributed import Processes, join
from diabolo.engine import check_precision, own_randomness
from diabolo.errors import DataError, UsageError
from diabolo.metrics import examples_at_a_time
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.build import build_prior
from diabolo.models.distributions import Dirac, keyed_sample
from diabolo.models.grids import shape_of
from diabolo.models.objectives import Objective, Terms
from diabolo.models.priors import Prior
from diabolo.prior_config import OWN, PriorConfig, prior_from_dict
from diabolo.progress import Progress
from diabolo.seeds import fold, mix
from diabolo.session import locked, logged_to, status_kept
from diabolo.training import Trainer, Work, carried_out, check_flips, check_keep, describe, training_source_hash

logger = logging.getLogger("diabolo")

#: Images that are encoded at a time.
_TOGETHER = 500
#: Codes that a prior sees at most before its training starts.
_INITIAL = 50_000


# ------------------------------------------------------------------------------------------------ codes
@torch.no_grad()
def cached(
    model: Autoencoder, dataset: Dataset, split: str, device: torch.device, progress: Progress, *, flips: bool = False
) -> Split:
    """The parameters of q(z | x) of a split, (N, 2c, ...) mean before scale (0 for a point mass), and its classes; with `flips`
    those of the mirrored images follow."""
    loader, parts, classes = Loader(dataset, split, device), [], []
    size = examples_at_a_time(model, dataset.spec.shape[0], _TOGETHER)
    for flipped in (False, True)[: 2 if flips else 1]:
        for batch in loader.ordered(size):
            q = model.encode(batch.x.flip(-1) if flipped else batch.x)
            scale = torch.zeros_like(q.mean) if isinstance(q, Dirac) else q.stddev
            parts.append(torch.cat([q.mean, scale], 1).cpu())
            if batch.y is not None:
                classes.append(batch.y.cpu())
            progress.advance(len(batch.x))
    return Split(split, torch.cat(parts), torch.cat(classes) if classes else None)


@dataclass(frozen=True)
class Source:
    """The codes of a run before they are there: what they are like, and where they come from."""

    run: runs.Run
    dataset: Dataset
    flips: bool

    @property
    def spec(self) -> DataSpec:
        channels, *positions = shape_of(self.run.config.model.latent)
        return DataSpec(
            name=f"codes of {self.run.name}",
            shape=(2 * channels, *positions),
            values="real",
            classes=self.dataset.spec.classes,
            examples=len(self.dataset.train) * (2 if self.flips else 1),
        )

    @property
    def hashes(self) -> dict[str, str]:
        weights = runs.sha256(self.run.path / "weights.safetensors")
        return {"weights": weights, "data": self.dataset.hash, "flips": str(self.flips)}

    def encoded(self, device: torch.device, progress: Progress) -> Dataset:
        """The codes as a data set.

        Raises:
            DataError: if they are not finite.
        """
        model, spec, data = self.run.model().to(device), self.spec, self.dataset
        validated = data.validation is not None
        encode = partial(cached, model, data, device=device, progress=progress)
        progress.start("encoding", spec.examples + len(data.test) + (len(data.split("validation")) if validated else 0))
        codes = Dataset(
            spec=spec,
            train=encode("train", flips=self.flips),
            test=encode("test"),
            validation=encode("validation") if validated else None,
            hashes=self.hashes,
        )
        progress.finish()
        scan(codes)
        return codes


def _posterior(cache: Tensor) -> Distribution:
    loc, scale = cache.chunk(2, 1)
    return Independent(Normal(loc, scale, validate_args=False), loc.ndim - 1, validate_args=False)


class Fitting:
    """The objective of a prior: minimise `fit_loss`, in `unit`, at codes z ~ q(z | x). x (B, 2c, ...) are the cached parameters
    of q."""

    bound = False

    def __init__(self, unit: str) -> None:
        self.unit = unit

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | None = None, step: int = 0) -> Terms:
        assert isinstance(model, Prior)
        return {"loss": model.fit_loss(_posterior(x).rsample(), y)}

    def terms(self, inference: Any, x: Tensor, step: int = 0) -> Terms:
        """There are none of a record.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a prior is fitted to codes, not to records")

    def keyed(self, model: Prior, x: Tensor, seeds: Sequence[int], y: Tensor | None = None) -> Terms:
        """The loss with the noise of these examples: what else is drawn depends on the first of them."""
        z = keyed_sample(_posterior(x), 1, seeds)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seeds[0], 1))
            return {"loss": model.fit_loss(z, y)}


# ------------------------------------------------------------------------------------------------ the work
def source_hash() -> str:
    """SHA-256 of the source that decides what a fit gives."""
    return training_source_hash("fitting.py", "prior_config.py")


@dataclass(frozen=True, kw_only=True)
class _Fit(Work):
    """A fit in its directory below a run."""

    config: PriorConfig
    place_option = "--name"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "run": self.dataset.hashes, "source_hash": source_hash()}

    def begin(self, trainer: Trainer) -> None:
        self.say(trainer.model, trainer.progress)

    def say(self, prior: Prior, progress: Progress) -> None:
        """Say what is fitted to what."""
        count = sum(p.numel() for p in prior.parameters())
        parameters = "in closed form" if self.config.closed else f"{count:,} parameters"
        said = f"prior {self.config.prior.name}: {parameters}, {len(self.dataset.train):,} codes"
        logger.info(said)
        progress.say(said)


def fit_prior(
    run: runs.Run,
    config: PriorConfig,
    *,
    name: str = "",
    access: Access | None = None,
    data: Dataset | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    seconds: float = math.inf,
) -> Path:
    """Fit a prior to the codes of a run's training images and write it to RUN/priors/NAME.

    Arguments:
        name: the prior's own where it is left out. One that failed before it had weights is started again.
        data: the run's data, where they are in memory already.
        seconds: wall time from the first step on, after which the fit is stopped, to be resumed or not.

    Raises:
        UsageError: if there is one of this name already, the prior does not fit the codes, or the run is a pretrained model.
        DataError: if the data cannot be had, or are not those of the run.
        DivergedError: after ten non-finite steps in a row.
        InterruptedRun: after SIGINT or SIGTERM; the state is kept.
    """
    packaged.refuse_change(run.path, "fit-prior")
    name = name or config.prior.name
    if name == OWN:
        raise UsageError(f"a prior cannot be called {name}", "That is the name of the model's own.")
    path = run.path / "priors" / name
    if path.exists() and any(path.iterdir()) and not _failed(path):
        unfinished = runs.Run(path).status.get("state") != "finished" or not fitted.measured(run, name)
        remedy = f", or go on with: diabolo train --resume {path}" if unfinished else ", or delete the folder."
        raise UsageError(f"{path} exists already", "A prior is never overwritten.", f"Choose another --name{remedy}")
    return _carried_out(run, path, config, data, access, device, progress, seconds, resume=False)


def resume_fit(
    path: Path,
    *,
    access: Access | None = None,
    data: Dataset | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    seconds: float = math.inf,
) -> Path:
    """Go on with a fit from its newest whole state, to the same bits as if it had not been interrupted; of one that is finished
    measure the rate, if that was interrupted.

    Raises:
        UsageError: if there is nothing left to do.
        DataError: if the run's weights or data are not those that it began with.
    """
    run = runs.Run(path.parent.parent)
    if read_json(path / "status.json").get("state") == "finished":
        if fitted.measured(run, path.name):
            raise UsageError(f"{path} is finished", remedy=f"Draw from it: diabolo sample {run.path}")
        dataset = data if data is not None else _data_of(run, access)
        run.check_data(dataset)
        processes = join(device)
        _check_alone(processes)
        with locked(path):
            fitted.measure(run, path.name, dataset, processes.device, progress)
        return path
    config = prior_from_dict(read_json(path / "config.json"))
    return _carried_out(run, path, config, data, access, device, progress, seconds, resume=True)


def _failed(path: Path) -> bool:
    """Whether nothing came of a fit and nobody works on it."""
    status = path / "status.json"
    ended = status.is_file() and read_json(status).get("state") in {"failed", "diverged"}
    return ended and not runs.states(path) and not (path / "weights.safetensors").exists()


def _carried_out(
    run: runs.Run,
    path: Path,
    config: PriorConfig,
    data: Dataset | None,
    access: Access | None,
    device: str,
    progress: Progress | None,
    seconds: float,
    *,
    resume: bool,
) -> Path:
    processes, progress = join(device), progress or Progress()
    dataset = data if data is not None else _data_of(run, access)
    run.check_data(dataset)
    source = Source(run, dataset, config.flips)
    _check(config, source, processes)
    if resume and read_json(path / "env.json").get("run") != source.hashes:
        raise DataError(
            f"{path} began with other codes",
            "The run's weights or its data have changed since.",
            f"Delete {path} and fit it again.",
        )
    codes = source.encoded(processes.device, progress)
    if not resume and _failed(path):
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    work = _Fit(
        path=path,
        config=config,
        dataset=codes,
        processes=processes,
        compiled=_compiled(config, source.spec, processes.device, path if resume else None),
        seconds=seconds,
        parts=partial(_parts, config, codes),
    )
    if config.closed:
        _closed_form(work, progress, resume=resume)
    else:
        carried_out(work, progress, resume=resume)
    fitted.measure(run, path.name, dataset, processes.device, progress)
    return path


def _data_of(run: runs.Run, access: Access | None) -> Dataset:
    if run.config.data.name == "tensor":
        raise DataError(
            f"{run.path} was made with examples that were in memory",
            "Its configuration cannot bring them back.",
            "Pass them again from Python: diabolo.fitting.fit_prior(run, config, data=data).",
        )
    return data_module.load(run.config.data.name, run.config.data.params, access)


def _check(config: PriorConfig, source: Source, processes: Processes) -> None:
    """Refuse what does not fit, before anything is encoded."""
    _check_alone(processes)
    check_flips(config.flips, source.dataset)
    if not config.closed:
        check_precision(processes.device, config.train.precision)
        check_keep(config.train, source.dataset.validation is not None)
    _meta(config, source.spec)


def _check_alone(processes: Processes) -> None:
    if processes.world > 1:
        raise UsageError("a prior is fitted by one process", remedy="Leave torchrun out.")


def _prior(config: PriorConfig, spec: DataSpec) -> Prior:
    channels, *positions = spec.shape
    return build_prior(config.prior.to_dict(), (channels // 2, *positions), spec)


def _meta(config: PriorConfig, spec: DataSpec) -> Prior:
    """The prior's shapes alone."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return _prior(config, spec)


def _parts(config: PriorConfig, codes: Dataset, loader: Loader) -> tuple[Prior, Objective]:
    """The prior with what has a closed form, from one draw of a code for each image; before a training, of some of them."""
    built = _prior(config, codes.spec).to(loader.device)
    most = len(loader) if config.closed else _INITIAL
    order = torch.randperm(len(loader), generator=torch.Generator().manual_seed(fold(0, "initialise")))
    order = torch.cat([order[:most], _rare(loader.labels, order, most)])
    batch = next(iter(loader.ordered(len(order), order)))
    with torch.random.fork_rng(devices=[]):
        built.initialise(_posterior(batch.x).sample(), batch.y)
    return built, Fitting(built.loss_unit)


def _rare(labels: Tensor | None, order: Tensor, most: int) -> Tensor:
    """The first code in `order` of each class that has none among the first `most`."""
    if labels is None or most >= len(order):
        return order[:0]
    classes = labels.cpu()[order]
    absent = sorted(set(classes[most:].tolist()) - set(classes[:most].tolist()))
    return torch.stack([order[(classes == c).nonzero()[0, 0]] for c in absent]) if absent else order[:0]


def _closed_form(work: _Fit, progress: Progress, *, resume: bool) -> None:
    """Fit without a training, in the fit's directory: one that was interrupted begins again."""
    path, config = work.path, work.config
    with locked(path), logged_to(path / "log.txt"), own_randomness(work.processes.device):
        runs.sweep(path)
        if not resume:
            describe(work)
        with status_kept(path, lambda: {"step": 0, "epoch": 0, "skipped": 0}) as status:
            torch.manual_seed(fold(config.seed, "init"))
            prior, _ = work.parts(Loader(work.dataset, "train", work.processes.device))
            work.say(prior, progress)
            runs.save_weights(path / "weights.safetensors", prior.state_dict(), config, work.dataset.spec)
            status.update(state="finished", exit_code=0)


def _compiled(config: PriorConfig, spec: DataSpec, device: torch.device, begun: Path | None) -> bool:
    """Whether the step is compiled; a fit that goes on does as it did. A weight is used at least once for each code."""
    if config.closed:
        return False
    if begun is not None:
        return bool(read_json(begun / "env.json").get("compiled"))
    weights = sum(p.numel() for p in _meta(config, spec).parameters())
    return repays(config.train.compile, 6.0 * weights * spec.examples * config.train.epochs, device)
