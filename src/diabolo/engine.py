"""Where computation happens: the device, its randomness and what the machine is."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


def seeded(device: torch.device, seed: int) -> None:
    """Seed the generators that a step on `device` draws from: the CPU's, and the device's own.

    torch.manual_seed does that for every kind of device there could be, and notes each call for those that are not there yet.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[
            torch.cuda.current_device() if device.index is None else device.index
        ].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Multiply in the precision of a configuration: nothing changes for fp32, in bf16 the networks' products are bfloat16."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, torch.bfloat16)


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse a precision that a device does not compute in.

    Raises:
        UsageError: for bf16 where torch cannot cast on the device.
    """
    able = torch.amp.is_autocast_available(device.type) and (device.type != "cuda" or torch.cuda.is_bf16_supported())
    if precision == "bf16" and not able:
        raise UsageError(f"{device} does not compute in bfloat16", remedy="Take train.precision=fp32.")


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
