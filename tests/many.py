"""What test_processes.py has done by one process and by two: small trainings in float64, whose noise is that of the whole batch.

Run by torchrun it does all of them and leaves, for each rank, what was seen; at last it trains until it is interrupted.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diabolo import cli, distributed, runs, training
from diabolo.config import RunConfig, resolve
from diabolo.data import Dataset, Loader
from diabolo.errors import UsageError
from diabolo.models.likelihoods import OptimalGaussianLikelihood
from diabolo.models.networks import BatchNorm
from diabolo.progress import Progress
from diabolo.session import InterruptedRun
from diabolo.step import after_step
from known import tiny_images

#: Of the run that is resumed: one process takes steps 1 and 2, two take 3 to 5, one takes the rest.
ALONE, TOGETHER = 2, 3
#: The step of the run "drawn" whose loss is not finite for one of the processes.
BAD_STEP = 4
SMALL = ["model.encoder.width=8", "model.decoder.width=8", "model.latent=3", "train.batch=10", "train.log_every=1"]
#: Nothing is drawn. 61 examples: the last batch has one, which leaves the first of two processes nothing.
PLAIN = ("ae", 103, ("train.curve=validation", "train.epochs=2"))
#: Noise, a running sigma, an average of weights, a clipped gradient; the last of 53 examples are 3.
DRAWN = (
    "vae",
    87,
    (
        *(
            "model.likelihood=gaussian_optimal",
            "train.curve=validation",
            "train.epochs=2",
            "train.ema=0.9",
            "train.clip=50",
        ),
        "train.compile=off",  # whose policy draws once to count operations
    ),
)


def config_of(plan: tuple[str, int, tuple[str, ...]], *more: str) -> RunConfig:
    return resolve(plan[0], [*SMALL, *plan[2], *more]).config


def data_of(plan: tuple[str, int, tuple[str, ...]]) -> Dataset:
    return tiny_images(plan[1])


class Seen:
    """Which examples were taken for training and for the curve, batch by batch, by this process."""

    def __init__(self) -> None:
        self.shuffled: list[list[int]] = []
        self.ordered: list[list[int]] = []

    def loader(self, *args: Any) -> Loader:
        loader = Loader(*args, dtype=torch.float64)
        for name in ("shuffled", "ordered"):
            setattr(loader, name, partial(self._noted, getattr(loader, name), getattr(self, name)))
        return loader

    @staticmethod
    def _noted(batches: Any, seen: list[list[int]], *args: Any, **more: Any) -> Iterator[Any]:
        for batch in batches(*args, **more):
            seen.append(batch.index.tolist())
            yield batch


def whole_noise() -> Any:
    """Draws of z (S, B, d) cut from that of the whole batch; the n-th call draws the same whatever the number of processes."""
    calls = 0

    def draw(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        nonlocal calls
        calls += 1
        sizes = torch.zeros(int(os.environ.get("WORLD_SIZE", "1")), dtype=torch.long)
        rank = int(os.environ.get("RANK", "0"))
        sizes[rank] = shape[1]
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sizes)
        noise = torch.randn(
            (shape[0], int(sizes.sum()), *shape[2:]), generator=torch.Generator().manual_seed(calls), dtype=dtype
        )
        return noise[:, sizes[:rank].sum() : sizes[: rank + 1].sum()]

    return draw


@contextmanager
def exactly(bad_rank: int | None = None) -> Iterator[Seen]:
    """float64 and the noise of the whole batch; the loss of process `bad_rank` is infinite at BAD_STEP."""
    seen, normal = Seen(), torch.distributions.normal
    forward, drawn, loader = training.Step.forward, normal._standard_normal, training.Loader

    def broken(self: training.Step, x: torch.Tensor, y: torch.Tensor | None = None, step: int = 0) -> Any:
        terms = forward(self, x, y, step)
        bad = step == BAD_STEP and int(os.environ.get("RANK", "0")) == bad_rank
        return {**terms, "loss": terms["loss"] + math.inf} if bad else terms

    torch.set_default_dtype(torch.float64)
    training.Step.forward, normal._standard_normal, training.Loader = broken, whole_noise(), seen.loader
    try:
        yield seen
    finally:
        torch.set_default_dtype(torch.float32)
        training.Step.forward, normal._standard_normal, training.Loader = forward, drawn, loader


class StopAt(Progress):
    """Sends the process SIGINT after so many steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, units: int = 1, note: str = "") -> None:
        if units == 1:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)


def statistics(parts: torch.nn.Module, x: torch.Tensor) -> dict[str, list[float]]:
    """What a normalisation and a running sigma learn from x (B, 2, 1, 1)."""
    norm, likelihood = parts.train()
    norm(x)
    likelihood(torch.zeros(1, *x.shape)).log_prob(x)
    after_step(parts)
    return {name: value.flatten().tolist() for name, value in parts.state_dict().items()}


def parts() -> torch.nn.Sequential:
    return torch.nn.Sequential(BatchNorm(2), OptimalGaussianLikelihood())


# ------------------------------------------------------------------------------------------------ as one of two
def main(folder: Path) -> None:
    """All that is compared, then a training that goes on for ever."""
    rank, found = int(os.environ["RANK"]), {}

    def refuse(*args: Any, **more: Any) -> None:
        raise AssertionError("this process pickles, or writes a file that another one writes")

    torch.distributed.distributed_c10d._object_to_tensor = pickle.dumps = pickle.dump = refuse
    if rank:
        runs.write_bytes = runs.Journal.__init__ = runs.create = refuse
    with exactly() as seen:
        training.train(config_of(PLAIN), out=folder / "plain", data=data_of(PLAIN), device="cpu")
    found["plain"] = vars(seen)
    with exactly(bad_rank=1) as seen:
        training.train(config_of(DRAWN), out=folder / "drawn", data=data_of(DRAWN), device="cpu")
    found["drawn"] = vars(seen)
    found["interrupted"] = interrupted_together(folder / "resumed", rank)
    limit = 0.0 if rank else 1e6  # the clock of one process is enough
    training.train(config_of(PLAIN), out=folder / "timed", data=data_of(PLAIN), device="cpu", seconds=limit)
    try:
        training.train(config_of(PLAIN, f"seed={rank}"), out=folder / "other", data=data_of(PLAIN), device="cpu")
    except UsageError as error:
        found["other"] = str(error)
    found["statistics"] = averaged(rank)
    (folder / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    cli.main([
        *("train", "linear-vae", "data.examples=60", "train.epochs=99999", "--device", "cpu"),
        *("--out", str(folder / "endless")),
    ])


def interrupted_together(run: Path, rank: int) -> int:
    """Go on with a run until one process, the one that does not write, meets a signal; the exit code."""
    take = training.Trainer._take_step
    left = StopAt(TOGETHER)

    def counted(self: training.Trainer, *args: Any) -> None:
        take(self, *args)
        if rank:
            left.advance()

    training.Trainer._take_step = counted
    try:
        with exactly():
            training.resume(run, data=data_of(PLAIN), device="cpu")
    except InterruptedRun as stopped:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # they are ignored to the end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return stopped.exit_code
    finally:
        training.Trainer._take_step = take
    return 0


def averaged(rank: int) -> dict[str, list[float]]:
    """Three of four examples are those of the first process."""
    torch.manual_seed(0)
    x = torch.randn(5, 2, 2, 2)
    both, mine = parts(), x[3:] if rank else x[:3]
    statistics(both, mine)
    distributed.join("cpu").average_statistics(both, len(mine) / len(x))
    return {name: value.flatten().tolist() for name, value in both.state_dict().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
