r"""One run trained by many processes, or by one: what they share and what they add up.

    torchrun --nproc-per-node 2 -m diabolo train mnist

torchrun starts the processes, Hugging Face accelerate joins them and wraps the step for torch's DistributedDataParallel; what is
here cuts the batch and adds up. A batch of N examples is the one that a process alone would take; process r of W takes the
examples from N r // W to N (r + 1) // W of it, so that each is taken once. Gradient and means are those of the whole batch,

.. math:: \frac1N \sum_{i=1}^{N} \nabla l_i = \frac1W \sum_{r} \nabla \left[ \frac WN \sum_{i \in r} l_i \right]

for torch averages the gradients of the W processes. Only tensors travel; nothing is pickled. A process alone needs none of it:
its `Processes` share nothing, wait for nothing and never import accelerate.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diabolo import launch
from diabolo.engine import pick_device
from diabolo.errors import DiaboloError, UsageError
from diabolo.models.objectives import Terms

if TYPE_CHECKING:
    from diabolo.launch import Launch

logger = logging.getLogger("diabolo")

#: What the transports of torch say when the process at the other end is gone.
_PEER_GONE = ("gloo", "connection closed", "connection reset", "nccl")


class Processes:
    """A process alone. `words` go into the seed of a step's noise, so that no two processes draw the same."""

    rank, world = 0, 1
    words: tuple[int, ...] = ()

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def writes(self) -> bool:
        """Whether this process writes the run and speaks for all."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The positions of `count` examples that are this process's: the shares cover each once and differ by one at most."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def describe(self) -> dict[str, Any]:
        """What env.json keeps."""
        return {"processes": 1}

    def wrapped(self, step: nn.Module) -> nn.Module:
        """The step whose gradients are those of all processes."""
        return step

    def fed(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the step is run on: the share itself."""
        return x, y

    def reduced(self, terms: Terms, count: int) -> tuple[Tensor, dict[str, float], int]:
        """The loss to differentiate, the means of the terms over the whole batch and its number of examples.

        Arguments:
            terms: of this process's share of the batch, each (B,).
            count: how many examples the share has.
        """
        names = list(terms)
        loss = terms["loss"].mean()
        means = torch.stack([terms[name].detach().mean() for name in names]).tolist()
        return loss, dict(zip(names, means)), count

    def average_statistics(self, step: nn.Module, weight: float) -> None:
        """Make what was learned without a gradient the mean over the processes, this one's with `weight` (they add up to 1)."""

    def mean(self, sums: dict[str, float], count: int, expected: int) -> dict[str, float]:
        """Means of terms over the `expected` examples of a split, from the sums over the `count` of this process."""
        return {name: total / count for name, total in sums.items()}

    def agreed(self, stop_code: int, late: bool) -> tuple[int, bool]:
        """Whether to stop: the exit code of a signal that any process met, and whether the time of any is up."""
        return stop_code, late

    def same(self, what: str, text: str) -> None:
        """Refuse to go on where the processes differ in `what`."""

    def place(self, made: Callable[[], Path]) -> Path:
        """The run directory that the first process makes."""
        return made()

    def wait(self) -> None:
        """Wait until all are here."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turn the fault of a process that lost another into a sentence."""
        yield


def join(device: str) -> Processes:
    """Meet the processes that were started with this one, if any, and choose the device.

    Raises:
        UsageError: if a device or accelerate is not there.
    """
    here = launch.here()
    return Processes(pick_device(device)) if here.world == 1 else _Many(here, device)


def leave() -> None:
    """Close the connections: after it no run can be trained by these processes together."""
    if launch.here().world > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Many(Processes):
    """One of many processes, each with a device of its own."""

    def __init__(self, here: Launch, device: str) -> None:
        super().__init__(_own_device(here, device))
        self.rank, self.world = here.rank, here.world
        self.words = (here.rank,) if here.rank else ()
        self.backend = "nccl" if self.device.type == "cuda" else "gloo"
        with self.together():
            self.accelerator, self._broadcast = _accelerator(self.device, self.backend, here)

    def describe(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"processes": self.world, "backend": self.backend, "accelerate": version("accelerate")}

    def wrapped(self, step: nn.Module) -> nn.Module:
        prepared: nn.Module = self.accelerator.prepare_model(step)
        prepared.broadcast_buffers = False  # type: ignore[assignment]  # they are averaged, which leaves them equal
        return prepared

    def fed(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The share; a blank example, which counts nothing, where it is empty: each process takes part in each step."""
        if x.shape[0]:
            return x, y
        return x.new_zeros(1, *x.shape[1:]), None if y is None else y.new_zeros(1)

    def reduced(self, terms: Terms, count: int) -> tuple[Tensor, dict[str, float], int]:
        names = list(terms)
        sums = torch.stack([_counted(terms[name].detach().double().sum(), count) for name in names])
        *totals, examples = self._sum([*sums.tolist(), count])
        scale = self.world / examples if count else 0.0
        return terms["loss"].sum() * scale, {name: t / examples for name, t in zip(names, totals)}, int(examples)

    @torch.no_grad()
    def average_statistics(self, step: nn.Module, weight: float) -> None:
        learned = [b for part in step.modules() if callable(getattr(part, "after_step", None)) for b in part.buffers()]
        learned = [buffer for buffer in learned if buffer.is_floating_point()]
        if not learned:
            return
        flat = torch.cat([buffer.double().flatten() for buffer in learned])
        means = self._add(_counted(flat * weight, weight))
        for buffer, mean in zip(learned, means.split([buffer.numel() for buffer in learned])):
            buffer.copy_(mean.view_as(buffer))

    def mean(self, sums: dict[str, float], count: int, expected: int) -> dict[str, float]:
        *totals, examples = self._sum([*(value if count else 0.0 for value in sums.values()), count])
        if examples != expected:
            raise RuntimeError(f"{examples:.0f} examples were measured, and the split has {expected}")
        return {name: total / expected for name, total in zip(sums, totals)}

    def agreed(self, stop_code: int, late: bool) -> tuple[int, bool]:
        codes = [128 + number for number in (signal.SIGINT, signal.SIGTERM)]
        *met, lates = self._sum([*(float(stop_code == code) for code in codes), float(late)])
        return next((code for code, count in zip(codes, met) if count), 0), lates > 0

    def same(self, what: str, text: str) -> None:
        mine = torch.tensor([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1])
        first = self._broadcast(mine.to(self.device).clone()).cpu()
        (others,) = self._sum([float(not mine.equal(first))])
        if others:
            raise UsageError(
                f"the processes differ in {what}: {others:.0f} of {self.world} from the first one",
                "They train one run, so each must be started with the same words, on the same data, in a folder that all see.",
                "Start each machine's with the same command, and give them the same --data-dir.",
            )

    def place(self, made: Callable[[], Path]) -> Path:
        """What the first process made; the others are told its name."""
        name = os.fsencode(made()) if self.writes else b""
        with self.together():
            (size,) = self._broadcast(torch.tensor([len(name)], device=self.device)).tolist()
            told = torch.tensor(list(name) if self.writes else [0] * size, dtype=torch.uint8, device=self.device)
            return Path(os.fsdecode(bytes(self._broadcast(told).tolist())))

    def wait(self) -> None:
        self._sum([0.0])

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not any(word in str(error).lower() for word in _PEER_GONE):
                raise
            raise DiaboloError(
                "the connection to another process of this training is lost",
                str(error).strip().partition(". ")[0] + ".",
                "Its own message, if it left one, says why. Go on from the last state with: diabolo train --resume RUN",
            ) from error

    def _sum(self, values: Sequence[float]) -> list[float]:
        """Numbers added up over the processes."""
        found: list[float] = self._add(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()
        return found

    def _add(self, values: Tensor) -> Tensor:
        added: Tensor = self.accelerator.reduce(values, reduction="sum")
        return added


def _counted(values: Tensor, weight: float) -> Tensor:
    """Nothing at all where the weight is 0, whatever the blank example gave: 0 times infinity is no number."""
    return values if weight else torch.zeros_like(values)


def _own_device(here: Launch, device: str) -> torch.device:
    """The device of this process: with cuda the one with its number on this machine."""
    if device not in {"auto", "cpu", "cuda"}:
        raise UsageError(
            f"--device {device} is refused with {here.world} processes",
            "Each process has a device of its own: cuda, the one with its number on its machine; or cpu.",
            "Leave --device out, or take --device cpu.",
        )
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else pick_device(device).type
    if kind == "cpu":
        return torch.device("cpu")
    if here.local_world > torch.cuda.device_count():
        raise UsageError(
            f"{here.local_world} processes on this machine, and {torch.cuda.device_count()} CUDA devices",
            "Each process needs a device of its own.",
            f"Start with --nproc-per-node {torch.cuda.device_count()}, or take --device cpu.",
        )
    return torch.device("cuda", here.local_rank)


def _accelerator(device: torch.device, backend: str, here: Launch) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """An Accelerator that the processes have met in, and its broadcast.

    Raises:
        UsageError: if accelerate is not installed.
    """
    try:
        from accelerate import Accelerator, PartialState
        from accelerate.utils import InitProcessGroupKwargs, broadcast
    except ImportError as error:
        raise UsageError(
            f"{here.world} processes were started, and accelerate, which joins them, is not installed",
            str(error),
            "Install it with: pip install 'diabolo[dist]'; or leave torchrun out.",
        ) from error
    meeting = InitProcessGroupKwargs(backend=backend)
    found = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[meeting])
    PartialState().debug = False  # its checks would send pickled shapes
    if found.num_processes != here.world:
        raise RuntimeError(f"accelerate sees {found.num_processes} processes, and torchrun started {here.world}")
    return found, broadcast
