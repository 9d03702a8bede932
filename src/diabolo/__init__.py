"""diabolo: the workbench for autoencoders and variational autoencoders.

Public names: `train`, `resume`, `evaluate`, `load`, `Run`, `build_model`, `presets`, `register`. Importing the package imports no
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diabolo.config import preset_names as presets
from diabolo.registry import register

if TYPE_CHECKING:
    from diabolo.api import build_model, evaluate, load, resume, train
    from diabolo.results import Run

__all__ = ["Run", "build_model", "evaluate", "load", "presets", "register", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name in {"build_model", "evaluate", "load", "resume", "train"}:
        return getattr(import_module("diabolo.api"), name)
    if name == "Run":
        return import_module("diabolo.results").Run
    raise AttributeError(f"module 'diabolo' has no attribute {name!r}")
