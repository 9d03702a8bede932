"""Whether a run's step is compiled: decided once, when the run starts, and kept in its env.json, so that a resumed run goes on
with the same bits.

torch.compile fuses what lies between the products of matrices. That saves a share of every step and costs a wait at the start
(results/speed/compile.json), so `auto` asks how much arithmetic the run has: a rule by the clock would give other bits on
another day.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import warnings
from typing import Any

import torch
from torch import nn

from diabolo.config import RunConfig
from diabolo.data import DataSpec
from diabolo.data.access import default_cache
from diabolo.errors import DiaboloError, UsageError
from diabolo.models.build import build_model
from diabolo.models.distributions import unchecked

#: Floating-point operations from which on a run repays the wait: three times what it takes at most (results/speed/compile.json),
#: a quarter of an hour of one core.
REPAYS = 6e13
#: A backward pass costs two forward passes.
_PASSES = 3
#: Floating-point operations a second that a run with a limit of time is taken to do.
_RATE = 1e11


def forward_operations(config: RunConfig, spec: DataSpec) -> float:
    """Floating-point operations of the model's pass over a batch, a product and a sum counted as two; NaN for a model that cannot
    be built, or not be run on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with torch.device("meta"), unchecked(), torch.no_grad(), counter:
            build_model(config.model.to_dict(), spec).eval()(torch.empty(1, *spec.shape))
    except (DiaboloError, NotImplementedError, RuntimeError, ValueError):
        return float("nan")
    return float(counter.get_total_flops() * _batch(config, spec))


def compiles(
    config: RunConfig, spec: DataSpec, steps: int, eager: bool, device: torch.device, seconds: float = math.inf
) -> bool:
    """Whether a run of `steps` steps, or of so many `seconds`, is compiled on `device`; `eager`: its objective differentiates
    inside, and cannot be.

    Raises:
        UsageError: for train.compile=on where nothing can be compiled.
    """
    policy = config.train.compile
    hindrance = "its objective differentiates inside the step" if eager else _no_compiler(device)
    _refuse_on(policy, hindrance)
    if policy != "auto" or hindrance:
        return policy == "on"
    if seconds * _RATE < REPAYS or _PASSES * _at_most(config, spec) * steps < REPAYS:
        return False  # without counting, which takes a second
    return _PASSES * forward_operations(config, spec) * steps >= REPAYS  # never of NaN


def repays(policy: str, operations: float, device: torch.device) -> bool:
    """Whether a step is compiled under a policy, in work of at least so many operations; `on` where nothing can be is refused."""
    hindrance = _no_compiler(device)
    _refuse_on(policy, hindrance)
    return policy == "on" or (policy == "auto" and not hindrance and operations >= REPAYS)


def _refuse_on(policy: str, hindrance: str) -> None:
    if policy == "on" and hindrance:
        raise UsageError(
            "train.compile=on is refused", f"{hindrance[0].upper()}{hindrance[1:]}.", "Take train.compile=auto."
        )


def _at_most(config: RunConfig, spec: DataSpec) -> float:
    """No fewer operations than a pass over a batch takes: a weight is used once for an example, or for each pixel of it."""
    with torch.device("meta"):
        model = build_model(config.model.to_dict(), spec)
    weights = sum(parameter.numel() for parameter in model.parameters())
    connected = all(isinstance(part, nn.Linear) or not part._parameters for part in model.modules())
    return 2.0 * weights * _batch(config, spec) * (1 if connected else spec.dimensions)


def _batch(config: RunConfig, spec: DataSpec) -> int:
    return min(config.train.batch, spec.examples or config.train.batch)


def _no_compiler(device: torch.device) -> str:
    """Why nothing can be compiled for `device`, or nothing."""
    if device.type == "mps":
        return "torch.compile is not ready for mps"
    names = (os.environ.get("CXX"), "cl") if sys.platform == "win32" else (os.environ.get("CXX"), "g++", "clang++")
    found = any(shutil.which(name) for name in names if name)
    return "" if found else "there is no C++ compiler on the path"


def compile_step(step: nn.Module) -> Any:
    """The step as it is compiled at its first batch: the same draws, and what was compiled is found again by a later process."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache() / "compiled"))
    # here, not in processes of its own: there are two kernels
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    with warnings.catch_warnings():  # of torch, about torch
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.compile(step, options={"fallback_random": True})
