"""Data sets: where they come from, how a byte is trusted, and how batches are drawn.

Names are loaded on first use, so that the catalogue and the sources can be asked without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from diabolo import registry
from diabolo.data.access import Access
from diabolo.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from diabolo.data.loader import Loader
    from diabolo.data.spec import Batch, Dataset, DataSpec, Split
    from diabolo.data.tensor import from_tensor

__all__ = ["Access", "Batch", "DataSpec", "Dataset", "Loader", "Split", "from_tensor", "load"]

_HOMES = {"Loader": "loader", "from_tensor": "tensor"}
_HOMES |= dict.fromkeys(("Batch", "Dataset", "DataSpec", "Split"), "spec")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def load(name: str, params: Mapping[str, Any] | None = None, access: Access | None = None) -> Dataset:
    """Build the data set called `name` with its parameters, fetching its files if they are not in the cache.

    Raises:
        UsageError: for an unknown data set or parameter.
        DataError: if its files cannot be had.
    """
    signature = registry.signature("dataset", name)
    accepted = [key for key in signature if key != "access"]
    for key in params or {}:
        if key not in accepted:
            raise UsageError(f'data set {name} has no parameter "{key}"', did_you_mean(key, accepted))
    for key, parameter in signature.items():
        if parameter.required and key != "access" and key not in (params or {}):
            raise UsageError(f"data set {name} needs its {key}", remedy=f"For example: data={name} data.{key}=VALUE")
    injected = {"access": access or Access()} if "access" in signature else {}
    dataset: Dataset = registry.build("dataset", name, **injected, **dict(params or {}))
    return dataset
