"""Fitting a prior to the codes of a trained model: the model is frozen, its codes are cached, the training loop does the rest.

    RUN/priors/NAME/     what `runs` describes, of a prior: config.json (a PriorConfig), env.json (with the hash of the run's
                         weights), status.json, metrics.jsonl, weights.safetensors, state/, evaluation.json

A code is z ~ q(z | x), drawn anew in each step from the cached parameters of q.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
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
from diabolo.distributed import join
from diabolo.errors import DataError, UsageError
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.build import build_prior
from diabolo.models.distributions import Dirac, keyed_sample
from diabolo.models.objectives import Objective, Terms
from diabolo.models.priors import Prior
from diabolo.prior_config import PriorConfig, prior_from_dict
from diabolo.progress import Progress
from diabolo.seeds import fold, mix
from diabolo.training import Trainer, Work, carried_out

logger = logging.getLogger("diabolo")

#: Images that are encoded at a time.
_TOGETHER = 500
#: Codes that `initialise` sees at most.
_INITIAL = 50_000


# ------------------------------------------------------------------------------------------------ codes
@torch.no_grad()
def cached(model: Autoencoder, dataset: Dataset, split: str, flips: bool, progress: Progress) -> Split:
    """The parameters of q(z | x) of a split, (N, 2c, ...) mean before scale (0 for a point mass), and its classes; with `flips`
    those of the mirrored images follow."""
    loader, parts, classes = Loader(dataset, split), [], []
    for flipped in (False, True)[: 2 if flips else 1]:
        for batch in loader.ordered(_TOGETHER):
            q = model.encode(batch.x.flip(-1) if flipped else batch.x)
            scale = torch.zeros_like(q.mean) if isinstance(q, Dirac) else q.stddev
            parts.append(torch.cat([q.mean, scale], 1))
            if batch.y is not None:
                classes.append(batch.y)
            progress.advance(len(batch.x))
    return Split(split, torch.cat(parts), torch.cat(classes) if classes else None)


def codes_of(run: runs.Run, dataset: Dataset, flips: bool, progress: Progress) -> Dataset:
    """The codes of a run's training and test split as a data set."""
    model = run.model()
    total = len(dataset.train) * (2 if flips else 1) + len(dataset.test)
    progress.start("encoding", total)
    train = cached(model, dataset, "train", flips, progress)
    test = cached(model, dataset, "test", False, progress)
    progress.finish()
    spec = DataSpec(
        name=f"codes of {run.name}",
        shape=tuple(train.values.shape[1:]),
        values="real",
        classes=dataset.spec.classes,
        examples=len(train),
    )
    hashes = {"weights": runs.sha256(run.path / "weights.safetensors"), "data": dataset.hash, "flips": str(flips)}
    return Dataset(spec=spec, train=train, test=test, hashes=hashes)


def _posterior(cache: Tensor) -> Distribution:
    loc, scale = cache.chunk(2, 1)
    return Independent(Normal(loc, scale, validate_args=False), loc.ndim - 1, validate_args=False)


class Fitting:
    """The objective of a prior: minimise `fit_loss` at codes z ~ q(z | x). x (B, 2c, ...) are the cached parameters of q."""

    bound = False

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
@dataclass(frozen=True, kw_only=True)
class _Fit(Work):
    """A fit in its directory below a run."""

    config: PriorConfig

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "run": self.dataset.hashes}

    def begin(self, trainer: Trainer) -> None:
        count = sum(p.numel() for p in trainer.model.parameters())
        said = f"prior {self.config.prior.name}: {count:,} parameters, {len(self.dataset.train):,} codes"
        logger.info(said)
        trainer.progress.say(said)


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

    Raises:
        UsageError: if there is one of this name already, the prior does not fit the codes, or the run is a pretrained model.
        DataError: if the data cannot be had.
    """
    packaged.refuse_change(run.path, "fit-prior")
    path = run.path / "priors" / (name or config.prior.name)
    if path.exists() and any(path.iterdir()):
        raise UsageError(
            f"{path} exists already", "A prior is never overwritten.", "Choose another --name, or delete the folder."
        )
    path.mkdir(parents=True, exist_ok=True)
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
    """Go on with a fit from its newest whole state, to the same bits as if it had not been interrupted.

    Raises:
        UsageError: if it is finished.
        DataError: if the run's weights are not those that it began with.
    """
    if read_json(path / "status.json").get("state") == "finished":
        raise UsageError(f"{path} is finished", remedy=f"Draw from it: diabolo sample {path.parent.parent}")
    run = runs.Run(path.parent.parent)
    return _carried_out(
        run,
        path,
        prior_from_dict(read_json(path / "config.json")),
        data,
        access,
        device,
        progress,
        seconds,
        resume=True,
    )


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
    if processes.world > 1:
        raise UsageError("a prior is fitted by one process", remedy="Leave torchrun out.")
    dataset = data if data is not None else data_module.load(run.config.data.name, run.config.data.params, access)
    run.check_data(dataset)
    codes = codes_of(run, dataset, config.flips, progress)
    if resume and read_json(path / "env.json").get("run") != codes.hashes:
        raise DataError(f"{path} began with other codes", "The run's weights or its data have changed since.")
    scan(codes)  # refuses what is not finite
    prior = partial(_prior, config, codes)
    work = _Fit(
        path=path,
        config=config,
        dataset=codes,
        processes=processes,
        compiled=_compiled(config, codes, prior, processes.device, path if resume else None),
        seconds=seconds,
        parts=partial(_parts, prior, codes),
    )
    carried_out(work, progress, resume=resume)
    fitted.measure(run, path.name, dataset)
    return path


def _prior(config: PriorConfig, codes: Dataset) -> Prior:
    channels, *positions = codes.spec.shape
    return build_prior(config.prior.to_dict(), (channels // 2, *positions), codes.spec)


def _parts(prior: Callable[[], Prior], codes: Dataset, loader: Loader) -> tuple[Prior, Objective]:
    """The prior with what has a closed form, from one draw of a code for each of some images."""
    built = prior()
    order = torch.randperm(len(loader), generator=torch.Generator().manual_seed(fold(0, "initialise")))[:_INITIAL]
    batch = next(iter(loader.ordered(len(order), order)))
    with torch.random.fork_rng(devices=[]):
        built.initialise(_posterior(batch.x).sample(), batch.y)
    return built, Fitting()


def _compiled(
    config: PriorConfig, codes: Dataset, prior: Callable[[], Prior], device: torch.device, begun: Path | None
) -> bool:
    """Whether the step is compiled; a fit that goes on does as it did. A weight is used at least once for each code."""
    if begun is not None:
        return bool(read_json(begun / "env.json").get("compiled"))
    with torch.device("meta"):
        weights = sum(p.numel() for p in prior().parameters())
    return repays(config.train.compile, 6.0 * weights * len(codes.train) * config.train.epochs, device)
