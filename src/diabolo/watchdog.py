"""Notices a thread pool that has collapsed: several threads that are slower than one.

OpenMP's threads wait for one another at the end of every operation. Where another program keeps a core busy, one of them is
late each time, and all of them wait: steps can take ten times as long while the processor looks busy. A few products of
matrices, with all threads and with one, show it without a guess of how fast the machine should be.
"""

from __future__ import annotations

import time
from statistics import median

import torch

#: So many times as slow as one thread is a collapse; several threads that share a core or two fairly come to about 1.
COLLAPSED = 1.5
#: Seconds between two looks.
EVERY = 20.0
_SIDE, _ROUNDS = 512, 7


def slowdown() -> float:
    """The time of a matrix product with all threads over its time with one: about 1 / threads where all is well."""
    threads = torch.get_num_threads()
    a = torch.ones(_SIDE, _SIDE)
    try:
        together = _seconds(a)
        torch.set_num_threads(1)
        return together / _seconds(a)
    finally:
        torch.set_num_threads(threads)


def _seconds(a: torch.Tensor) -> float:
    found = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        a @ a
        found.append(time.perf_counter() - began)
    return median(found)


class Watchdog:
    """Looks at the thread pool now and then in a run on the CPU, and speaks once."""

    def __init__(self, device: torch.device) -> None:
        self.watching = device.type == "cpu" and torch.get_num_threads() > 1
        self.next = time.monotonic() + EVERY

    def look(self) -> str | None:
        """What to say, where the pool has collapsed since the last look; None else, and after it was said."""
        if not self.watching or time.monotonic() < self.next:
            return None
        self.next = time.monotonic() + EVERY
        times = slowdown()
        if times < COLLAPSED:
            return None
        self.watching = False
        return (
            f"{torch.get_num_threads()} threads are {times:.1f} times as slow as one: another program keeps a core busy, and "
            "they wait for one another. Stop it, or start this run with OMP_NUM_THREADS=1"
        )
