"""What a data set is, once it can be drawn from: in memory, or mapped into it from files. Imports no torch.

N examples of a split, B of a batch; an example has `spec.shape`, channels first: (1, 28, 28), or (D,) for vectors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from diabolo.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

#: The splits in their order; validation may be missing.
SPLITS = ("train", "validation", "test")

#: What a loader emits: grey levels k/255 in [0, 1], {0, 1}, or real numbers.
Values = Literal["grey", "binary", "real"]


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model and a report must know of a data set without holding it."""

    name: str
    shape: tuple[int, ...]
    values: Values
    classes: tuple[str, ...] = ()
    examples: int = 0  # of the training split

    @property
    def dimensions(self) -> int:
        """D, the number of values in one example."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Split:
    """One split: `values` (N, *shape), uint8 levels or floating point, and class numbers (N,) where there are any.

    mapped: values and labels are read-only files mapped into memory, which may be larger than it: rows are gathered, the whole
    is never copied. ends: the least and the largest level, where they are known without looking.
    """

    name: str
    values: Tensor
    labels: Tensor | None = None
    mapped: bool = False
    ends: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.values.shape[0]


@dataclass(frozen=True)
class Batch:
    """x (B, *shape) floating point, y (B,) class numbers or None, index (B,) positions within the split."""

    x: Tensor
    y: Tensor | None
    index: Tensor


@dataclass(frozen=True)
class Dataset:
    """A data set by splits. `binarize`: pixels are drawn as Bernoulli(k/255), anew each epoch for training, once and for all for
    evaluation. `hashes`: SHA-256 of the decoded content by file or split; `note` says how values were read, `warning`
    what to know before training on them."""

    spec: DataSpec
    train: Split
    test: Split
    validation: Split | None = None
    binarize: bool = False
    hashes: dict[str, str] = field(default_factory=dict)
    note: str = ""
    warning: str = ""

    @property
    def hash(self) -> str:
        """One SHA-256 over all content hashes, the values' kind and the size of the splits: what two runs must share."""
        splits = (self.train, self.validation, self.test)
        return content_hash(self.hashes, self.spec.values, (len(split) for split in splits if split is not None))

    def split(self, name: str) -> Split:
        """The split called train, validation or test.

        Raises:
            UsageError: if the data set has no such split.
        """
        found = {"train": self.train, "validation": self.validation, "test": self.test}.get(name)
        if found is None:
            raise UsageError(f"{self.spec.name} has no {name} split here", remedy="See data.validation.")
        return found


def content_hash(hashes: Mapping[str, str], values: Values, sizes: Iterable[int]) -> str:
    """The SHA-256 that stands for a data set: over its content hashes, the values' kind and the size of each split."""
    parts = [*(f"{name}={digest}" for name, digest in sorted(hashes.items())), values, *map(str, sizes)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
