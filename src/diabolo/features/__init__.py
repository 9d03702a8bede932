"""Networks that were trained beforehand and turn images into vectors, in which samples are measured; used in no loss.

A component of the slot `features` is one class in a file of its own that says which weights it has, by their hash, and what its
numbers are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diabolo import registry

if TYPE_CHECKING:
    from diabolo.features.base import Features

__all__ = ["load"]


def load(name: str) -> Features:
    """Build the features called `name` with their weights.

    Raises:
        UsageError: for an unknown name, or features of a package that is not installed.
        DataError: if the weights are missing, or are not the ones that the source names.
    """
    features: Features = registry.build("features", name)
    return features
