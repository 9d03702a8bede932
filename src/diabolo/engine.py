"""Where computation happens: the device, its randomness and what the machine is."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diabolo.errors import UsageError


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; `auto` is cuda, else mps, else cpu.

    Raises:
        UsageError: if a device asked for by name is not there; there is no silent fallback.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, here in available.items() if here))
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if (
        not available.get(kind, False)
        or (index and (not index.isdecimal() or int(index) >= count))
        or name.endswith(":")
    ):
        here = ", ".join(kind for kind, yes in available.items() if yes)
        raise UsageError(
            f"device {name!r} is not available", f"Here there is: {here}.", "Leave --device out to choose one."
        )
    return torch.device(name)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave the caller's random state as it was, torch's and Python's: the first import of a library may draw, too."""
    devices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    before = random.getstate()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(before)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and machine, for env.json and `diabolo doctor`."""
    return {
        **{name: version(name) for name in ("diabolo", "numpy", "safetensors", "scikit-learn", "matplotlib")},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": memory(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def memory() -> str:
    """The machine's memory in GB, where the system tells it."""
    if not hasattr(os, "sysconf"):
        return "not known"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"


def processor() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
