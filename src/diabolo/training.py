"""The flat loop. What it drives is a `Step` on its way down, see `step`.

A step's randomness comes from (seed, step), the order of examples from (seed, epoch), so a run can stop and go on anywhere
and gives the same bits (same machine, torch and number of threads).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from diabolo import card, packaged, runs
from diabolo import data as data_module
from diabolo.compiling import compiles
from diabolo.config import RunConfig, TrainConfig
from diabolo.data import Access, Dataset, Loader
from diabolo.data.permuting import POSITIONS
from diabolo.data.scan import Facts, check, scan
from diabolo.distributed import Processes, join
from diabolo.durations import written
from diabolo.engine import check_precision, environment, own_randomness
from diabolo.errors import DivergedError, UsageError
from diabolo.metrics import examples_at_a_time, summed_terms
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.build import build_model, build_objective, check_objective
from diabolo.models.initialisation import check_init, initialise
from diabolo.models.objectives import Objective
from diabolo.progress import Progress
from diabolo.seeds import fold
from diabolo.session import InterruptedRun, locked, logged_to, silent, status_kept, stopped_by_signals
from diabolo.step import Descent, Step, learning_rate
from diabolo.watchdog import Watchdog

logger = logging.getLogger("diabolo")

#: Examples that the curve is measured on at a time.
_CURVE_ROWS = 500

#: So many non-finite steps in a row end a run.
PATIENCE = 10

#: So many steps an epoch of a smoke run has at most: a gradient, a second moment, a last batch.
SMOKE_STEPS = 3


@dataclass
class Position:
    """How far a run is: what a state's manifest holds. `sums` are the epoch's sums of each term over `examples`."""

    epoch: int = 1
    batch: int = 0  # batches of this epoch already taken
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    examples: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_loss: float | None = None
    best_epoch: int = 0
    metrics_offset: int = 0

    def add(self, means: dict[str, float], examples: int) -> None:
        self.examples += examples
        for name, mean in means.items():
            self.sums[name] = self.sums.get(name, 0.0) + mean * examples

    def epoch_means(self) -> dict[str, float]:
        return {name: total / self.examples for name, total in self.sums.items()} if self.examples else {}


class Recipe(Protocol):
    """What the loop needs of a configuration: that of a run, or of a prior that is fitted afterwards."""

    @property
    def train(self) -> TrainConfig: ...
    @property
    def seed(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...


#: Builds what is trained, and the objective it is trained by, for the loader of the training split.
Parts = Callable[[Loader], tuple[Any, Objective]]


class Trainer:
    """One run in progress: everything the loop touches, built in the order that makes it reproducible."""

    def __init__(
        self,
        config: Recipe,
        dataset: Dataset,
        path: Path,
        device: torch.device,
        progress: Progress,
        compiled: bool = False,
        processes: Processes | None = None,
        *,
        parts: Parts,
    ) -> None:
        self.config, self.dataset, self.path, self.device, self.progress = config, dataset, path, device, progress
        self.processes = processes or Processes(device)
        self.loader = Loader(dataset, "train", device)
        torch.manual_seed(fold(config.seed, "init"))  # before the model is built
        self.model: Any
        self.model, self.objective = parts(self.loader)
        self.model.to(device)
        self.step = Step(self.model, self.objective)
        self.descent = Descent(self.step, config.train, device, compiled, self.processes)
        self.watchdog = Watchdog(device)
        self.position = Position()
        self.stop_code = 0
        self.journal: runs.Journal
        self.clock: runs.Journal

    @property
    def steps(self) -> int:
        """How many steps the whole run has."""
        return self.config.train.epochs * self.batches

    @property
    def batches(self) -> int:
        """How many steps an epoch has."""
        batches, train = self.loader.batches(self.config.train.batch), self.config.train
        return min(batches, SMOKE_STEPS) if train.smoke else batches

    @property
    def unit(self) -> str:
        """Of the loss; an objective that is none of nats says so."""
        return str(getattr(self.objective, "unit", "nats/example"))

    # ---------------------------------------------------------------- the loop
    def run(self, seconds: float = math.inf) -> None:
        """Go on to the last epoch. A signal, or the end of so many wall seconds, ends it after a step, its state saved."""
        train, deadline = self.config.train, time.monotonic() + seconds
        batches = self.batches
        self.progress.start("training", self.steps)
        self.progress.advance(self.position.step)
        while self.position.epoch <= train.epochs:
            began, skip = time.monotonic(), self.position.batch
            self.step.train()
            seed, share = self.config.seed, self.processes.share
            epoch = self.loader.shuffled(train.batch, seed, self.position.epoch, skip, share, train.flips)
            for batch in islice(epoch, batches - skip):
                self._take_step(batch.x, batch.y)
                self._watch()
                if train.checkpoint_every and self.position.step % train.checkpoint_every == 0:
                    self.save()
                code, late = self.processes.agreed(self.stop_code, time.monotonic() >= deadline)
                if code or late:
                    self._lap("train", began)
                    self.save()
                    if code:
                        self.stop_code = code
                        raise InterruptedRun(self.path, code)
                    return
            seconds, taken = self._lap("train", began), batches - skip
            self._end_epoch(seconds, seconds * batches / taken if taken else None)
        self.progress.finish()
        if self.config.train.keep == "best" and not self.position.best_epoch:
            raise DivergedError(
                f"no epoch of {self.path} had a finite validation loss",
                f"{self.position.skipped} of {self.position.step} steps were skipped, too.",
                "Scale the data to a small range (divide by their largest value), lower train.lr, or set train.clip=100.",
            )

    def _watch(self) -> None:
        warning = self.watchdog.look()
        if warning:
            logger.warning("%s", warning)

    def _take_step(self, x: Tensor, y: Tensor | None) -> None:
        here, train = self.position, self.config.train
        seed = fold(self.config.seed, "step", here.step, *self.processes.words)
        terms = self.descent.terms(*self.processes.fed(x, y), here.step, seed)
        loss, means, examples = self.processes.reduced(terms, x.shape[0])  # of the whole batch
        rate = learning_rate(train, here.step, self.steps)
        taken = all(map(math.isfinite, means.values())) and self.descent.descend(loss, rate, x.shape[0] / examples)
        here.step, here.batch = here.step + 1, here.batch + 1
        here.skipped_in_a_row = 0 if taken else here.skipped_in_a_row + 1
        if taken:
            here.add(means, examples)
        else:
            self._skipped(means)
        if taken and here.step % train.log_every == 0:
            self.journal.append({
                "step": here.step,
                "epoch": here.epoch,
                "split": "batch",
                "examples": examples,
                **means,
            })
        self.progress.advance(1, f"epoch {here.epoch}/{train.epochs}  loss {means['loss']:.2f}")

    def _skipped(self, means: dict[str, float]) -> None:
        here = self.position
        here.skipped += 1
        bad = ", ".join(name for name, value in means.items() if not math.isfinite(value)) or "gradient"
        level = logging.WARNING if here.skipped_in_a_row == 1 else logging.INFO
        logger.log(level, "step %d skipped: %s not finite (%d skipped so far)", here.step, bad, here.skipped)
        if here.skipped_in_a_row >= PATIENCE:
            self.save()
            raise DivergedError(
                f"{PATIENCE} steps in a row were not finite, the last at step {here.step} ({bad})",
                f"The state before them is kept in {self.path}.",
                "Lower train.lr, or set train.clip=100.",
            )

    def _end_epoch(self, seconds: float, whole: float | None) -> None:
        """Note and keep an epoch; `seconds` this process took for its part of it, `whole`: all of it so (None: it did none)."""
        here = self.position
        row = {
            "step": here.step,
            "epoch": here.epoch,
            "split": "train",
            "examples": here.examples,
            **here.epoch_means(),
        }
        self.journal.append({**row, "skipped": here.skipped})
        curve = self._curve()
        if curve:
            self.journal.append(curve)
        self._keep(curve)
        news = self._news(row, curve, seconds, whole)
        logger.info(news)
        self.progress.say(news)
        here.epoch, here.batch, here.examples, here.sums = here.epoch + 1, 0, 0, {}
        if not self.config.train.checkpoint_every or here.epoch > self.config.train.epochs:
            self.save()

    def _lap(self, stage: str, began: float) -> float:
        """Note the wall seconds of a stage of the epoch, or of the part of it that this process did."""
        here, seconds = self.position, time.monotonic() - began
        self.clock.append({"step": here.step, "epoch": here.epoch, "stage": stage, "seconds": round(seconds, 3)})
        return seconds

    def _news(self, row: dict[str, Any], curve: dict[str, Any] | None, seconds: float, whole: float | None) -> str:
        left = (self.config.train.epochs - row["epoch"]) * (whole or 0)
        loss = curve and ("not finite" if curve["loss"] is None else f"{curve['loss']:.2f}")
        shown = f"  {curve['split']} loss {loss}" if curve else ""
        return (
            f"epoch {row['epoch']}/{self.config.train.epochs}  train loss {row.get('loss', math.nan):.2f}{shown} "
            f"{self.unit}  {seconds:.1f} s" + (f"  about {left:.0f} s left" if left else "")
        )

    # ---------------------------------------------------------------- the curve and what is kept
    def _curve(self) -> dict[str, Any] | None:
        """The objective on the split that is drawn, each example with noise of its own; None where there is none."""
        name = self.config.train.curve
        if name == "none" or (name == "validation" and self.dataset.validation is None):
            return None
        began = time.monotonic()
        with self._deployed():
            size = _CURVE_ROWS
            if isinstance(self.model, Autoencoder):
                size = examples_at_a_time(self.model, self.dataset.spec.shape[0], size)
            means = self._means_of(name, size)
        self._lap("curve", began)
        here = self.position
        return {
            "step": here.step,
            "epoch": here.epoch,
            "split": name,
            "examples": len(self.dataset.split(name)),
            **{term: value if math.isfinite(value) else None for term, value in means.items()},
        }

    def _means_of(self, split: str, size: int) -> dict[str, float]:
        """Means of the terms over a split, each process measuring its share of it."""
        loader = Loader(self.dataset, split, self.device)
        share = torch.arange(len(loader))[self.processes.share(len(loader))]
        batches = loader.ordered(size, share if len(share) else torch.zeros(1, dtype=torch.long))  # the terms' names
        sums, _ = summed_terms(self.model, self.objective, batches, fold(self.config.seed, "curve"))
        return self.processes.mean(sums, len(share), len(loader))

    def _keep(self, curve: dict[str, Any] | None) -> None:
        here = self.position
        if self.config.train.keep == "best":
            if curve is None or curve["loss"] is None:
                return
            if here.best_loss is not None and curve["loss"] >= here.best_loss:
                return
            here.best_loss, here.best_epoch = curve["loss"], here.epoch
        self._write_weights()

    def _write_weights(self) -> None:
        if self.processes.writes:
            runs.save_weights(self.path / "weights.safetensors", self._weights(), self.config, self.dataset.spec)

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.descent.average.weights if self.descent.average else self.model.state_dict())

    @contextmanager
    def _deployed(self) -> Iterator[None]:
        """The model as it would be used: evaluation mode, averaged weights where there are any."""
        average = self.descent.average
        trained = {name: t.clone() for name, t in self.model.state_dict().items()} if average else None
        if average:
            self.model.load_state_dict(average.weights)
        self.step.eval()
        try:
            yield
        finally:
            if trained:
                self.model.load_state_dict(trained)

    # ---------------------------------------------------------------- state
    def save(self) -> None:
        """Write the state; the weights too where the last ones are kept, or there are no best ones yet."""
        here = self.position
        if not self.processes.writes:
            return
        here.metrics_offset = self.journal.offset
        runs.save_state(self.path, here.step, self.descent.state(), asdict(here))
        if self.config.train.keep == "last" or not here.best_epoch:
            self._write_weights()

    def kept(self) -> str:
        """Which weights weights.safetensors holds, in words."""
        here, best = self.position, self.config.train.keep == "best"
        if best and here.best_epoch:
            return f"of epoch {here.best_epoch}, the lowest validation loss so far"
        return f"of step {here.step}" + (", for no epoch has a validation loss yet" if best else "")

    def restore(self) -> None:
        """Put everything back as the newest whole state has it."""
        tensors, progress, passed_over = runs.load_state(self.path)
        for line in passed_over:
            logger.warning("state passed over: %s", line)
        self.position = Position(**progress)
        self.descent.restore(tensors)


def parts_of(config: RunConfig, dataset: Dataset) -> Parts:
    """What builds the model of a run at its start, and its objective."""

    def built(loader: Loader) -> tuple[Autoencoder, Objective]:
        model = build_model(config.model.to_dict(), dataset.spec)
        initialise(model, config.train.init, loader.mean)
        return model, build_objective(config.objective.to_dict(), dataset.spec)

    return built


# ------------------------------------------------------------------------------------------------ starting
def train(
    config: RunConfig,
    *,
    out: Path | None = None,
    data: Dataset | None = None,
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    seconds: float = math.inf,
) -> runs.Run:
    """Train a model and write its run directory.

    Arguments:
        config: the resolved configuration.
        out: the run directory; runs/PRESET-N where it is left out. Never overwritten.
        data: the data, where they are in memory already.
        device: auto, cpu, cuda, cuda:1, mps.
        seconds: wall time from the first step on, after which the run is stopped, to be resumed or not.

    Raises:
        UsageError: for a configuration that does not fit the data, or a place that cannot be written.
        DataError: if the data cannot be had.
        DivergedError: after ten non-finite steps in a row (the last good state is kept), or if no validation loss was finite.
        InterruptedRun: after SIGINT or SIGTERM; the state is kept.
    """
    processes, progress = join(device), progress or Progress()
    dataset = data if data is not None else data_module.load(config.data.name, config.data.params, access)
    facts, compiled = _check(config, dataset, processes.device), _compiled(config, dataset, processes, seconds)
    path = processes.place(lambda: runs.create(config, out))
    return _run(path, config, dataset, facts, processes, compiled, seconds, progress, resume=False)


def resume(
    path: Path,
    *,
    data: Dataset | None = None,
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    seconds: float = math.inf,
) -> runs.Run:
    """Go on with a run from its newest whole state, or from its start where it was stopped before the first one; the result
    has the same bits as an uninterrupted run. `seconds` as in `train`, counted anew.

    Raises:
        DataError: if no state is whole, or the data are not those of the run.
        UsageError: if the run is finished, a pretrained model, or another process works on it.
    """
    run = runs.Run(path)
    packaged.refuse_change(run.path)
    if run.status.get("state") == "finished":
        raise UsageError(f"{path} is finished", remedy=f"Evaluate it with: diabolo evaluate {path}")
    processes, progress = join(device), progress or Progress()
    dataset = data if data is not None else data_module.load(run.config.data.name, run.config.data.params, access)
    run.check_data(dataset)
    facts = _check(run.config, dataset, processes.device)
    compiled = bool(run.env.get("compiled")) and processes.world == 1
    return _run(run.path, run.config, dataset, facts, processes, compiled, seconds, progress, resume=True)


def training_source_hash(*more: str) -> str:
    """SHA-256 of the source that decides what training gives, and of `more` files."""
    return runs.source_hash(
        *more,
        *("models", "data", "training.py", "step.py", "compiling.py", "distributed.py", "engine.py"),
        *("config.py", "seeds.py", "metrics.py"),
    )


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be trained in a directory: all that was found out before anything is written, and what is written beside it."""

    path: Path
    config: Recipe
    dataset: Dataset
    processes: Processes
    compiled: bool
    seconds: float
    parts: Parts
    place_option = "--out"  # of the command line: where else it could be put

    def describe(self) -> dict[str, Any]:
        """What env.json says."""
        facts = {
            "compiled": self.compiled,
            "data": runs.describe_data(self.dataset),
            "source_hash": training_source_hash(),
        }
        return {**environment(self.processes.device), **self.processes.describe(), **facts}

    def begin(self, trainer: Trainer) -> None:
        """What is said before the first step of a process."""

    def end(self) -> None:
        """What is written after the last."""


@dataclass(frozen=True, kw_only=True)
class _Training(Work):
    """The work of a run, with its loss card."""

    config: RunConfig
    facts: Facts

    def begin(self, trainer: Trainer) -> None:
        if (self.path / "loss_card.json").exists():
            return  # it was said when the run began
        for line in self._record(trainer.model, runs.AT_THE_START).lines():
            logger.info(line)
            trainer.progress.say(line)

    def end(self) -> None:
        self._record(runs.load_weights(self.path / "weights.safetensors"), runs.AT_THE_END)

    def _record(self, model: Autoencoder, when: str) -> card.Card:
        return card.record(self.path, model, self.config, self.dataset.spec, self.facts, when)


def _run(
    path: Path,
    config: RunConfig,
    dataset: Dataset,
    facts: Facts,
    processes: Processes,
    compiled: bool,
    seconds: float,
    progress: Progress,
    *,
    resume: bool,
) -> runs.Run:
    work = _Training(
        path=path,
        config=config,
        dataset=dataset,
        facts=facts,
        processes=processes,
        compiled=compiled,
        seconds=seconds,
        parts=parts_of(config, dataset),
    )
    carried_out(work, progress, resume=resume)
    return runs.Run(path)


def carried_out(work: Work, progress: Progress, *, resume: bool) -> None:
    """Train in the run's directory, from its newest state where there is one, in this process or several."""
    processes = work.processes
    with processes.together():
        processes.same("configuration or data", f"{work.config.to_dict()} {work.dataset.hash}")
        try:
            if processes.writes:
                _write(work, progress, resume=resume)
            else:
                with silent(), own_randomness(processes.device):
                    _trained(_prepared(work, Progress()), work.seconds)
        except (InterruptedRun, DivergedError):  # met by all: torchrun ends the others as soon as one has left
            processes.wait()
            raise
        processes.wait()


def _trained(trainer: Trainer, seconds: float) -> None:
    many = trainer.processes.world > 1
    with trainer.processes.together(), stopped_by_signals(trainer, repeated=many):
        trainer.run(seconds)


def _write(work: Work, progress: Progress, *, resume: bool) -> None:
    """Train as the one process that writes the run and speaks of it."""
    path = work.path
    with locked(path), logged_to(path / "log.txt"), own_randomness(work.processes.device):
        runs.sweep(path)
        if not resume:
            describe(work)
            if work.dataset.warning:
                logger.warning("%s", work.dataset.warning)
        trainer = None
        with status_kept(path, lambda: _closed(trainer)) as status:
            trainer = _prepared(work, progress)
            work.begin(trainer)
            _trained(trainer, work.seconds)
            work.end()
            status.update(_ended(trainer, work.seconds))


def _prepared(work: Work, progress: Progress) -> Trainer:
    """A trainer at the run's newest state, or at its first step where none was written yet, with its journals open."""
    path, processes = work.path, work.processes
    trainer = Trainer(
        work.config, work.dataset, path, processes.device, progress, work.compiled, processes, parts=work.parts
    )
    if runs.states(path):
        trainer.restore()
        logger.info("resumed at step %d", trainer.position.step)
    if processes.world > 1:
        logger.info("trained by %d processes", processes.world)
    processes.same("the state that they go on from", str(trainer.position))
    journal = runs.Journal if processes.writes else runs.NoJournal
    trainer.journal = journal(path / "metrics.jsonl", keep=trainer.position.metrics_offset)
    trainer.clock = journal(path / "timing.jsonl")
    return trainer


def _ended(trainer: Trainer, seconds: float) -> dict[str, Any]:
    """The status of a run that came to its end, or to the end of its time."""
    here, train = trainer.position, trainer.config.train
    ended = {"exit_code": 0, "best_epoch": here.best_epoch or None}
    if here.epoch > train.epochs:
        return {"state": "finished", **ended}
    reason, kept = f"time: {written(seconds)}", trainer.kept()
    news = f"stopped ({reason}) at epoch {here.epoch}/{train.epochs}, step {here.step}; kept: the weights {kept}"
    logger.info(news)
    trainer.progress.say(f"{news}\ngo on with: diabolo train --resume {trainer.path}")
    return {"state": "stopped", "reason": reason, "weights": kept, **ended}


def _closed(trainer: Trainer | None) -> dict[str, int]:
    """Close the journals; how far the run came."""
    if trainer is None:
        return {"step": 0, "epoch": 0, "skipped": 0}
    with suppress(OSError):  # a full disk: what failed has said so
        trainer.journal.close()
        trainer.clock.close()
    here = trainer.position
    return {"step": here.step, "epoch": min(here.epoch, trainer.config.train.epochs), "skipped": here.skipped}


def describe(work: Work) -> None:
    """Say what the run is, once and first: whoever lost a race for the folder finds these files and leaves."""
    if (work.path / "config.json").exists():
        raise UsageError(
            f"{work.path} exists already", "A run is never overwritten.", f"Choose another {work.place_option}."
        )
    runs.write_json(work.path / "config.json", work.config.to_dict())
    runs.write_json(work.path / "env.json", work.describe())


def _compiled(config: RunConfig, dataset: Dataset, processes: Processes, seconds: float) -> bool:
    """Whether the step is compiled: decided here once, for a resumed run goes on as it began. Never by many processes, which
    share the step as it is."""
    if processes.world > 1:
        if config.train.compile == "on":
            raise UsageError(
                "train.compile=on is for one process", remedy="Take train.compile=auto, or leave torchrun out."
            )
        return False
    objective, epochs = build_objective(config.objective.to_dict(), dataset.spec), config.train.epochs
    steps = epochs * SMOKE_STEPS if config.train.smoke else card.steps_of(config, dataset.spec)
    eager = getattr(objective, "eager", False)
    return compiles(config, dataset.spec, steps, eager, processes.device, seconds)


def check_flips(flips: bool, dataset: Dataset) -> None:
    """Refuse to mirror what is no image.

    Raises:
        UsageError: for vectors, and for images whose pixels were permuted.
    """
    if flips and len(dataset.spec.shape) != 3:
        raise UsageError("flips=true is refused", f"{dataset.spec.name} holds vectors, which have no mirror image.")
    if flips and POSITIONS in dataset.hashes:
        raise UsageError(
            "flips=true is refused",
            "The pixels of these images were permuted: turned about, they are no mirror image.",
        )


def check_keep(train: TrainConfig, validated: bool) -> None:
    """Refuse to keep the best weights where nothing says which they are.

    Raises:
        UsageError: with what to take instead.
    """
    if train.keep == "best" and not (validated and train.curve == "validation"):
        raise UsageError(
            "train.keep=best has nothing to decide by",
            "The best weights are those with the lowest validation loss.",
            "Take train.keep=last, or data.validation above 0 and train.curve=validation.",
        )


def _check(config: RunConfig, dataset: Dataset, device: torch.device) -> Facts:
    """What the values are; refused, before a run directory is made, is what does not fit."""
    check_precision(device, config.train.precision)
    check_keep(config.train, dataset.validation is not None)
    check_flips(config.train.flips, dataset)
    facts, likelihood = scan(dataset), config.model.likelihood.name
    check(facts, dataset.spec.name, likelihood, card.accepted(likelihood), card.discrete(likelihood))
    with torch.device("meta"):  # shapes alone
        model = build_model(config.model.to_dict(), dataset.spec)
    check_objective(model, build_objective(config.objective.to_dict(), dataset.spec))
    check_init(model, config.train.init)
    return facts
