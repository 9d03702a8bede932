"""Batches from a data set in memory, or mapped into it: one uint8 tensor, no worker processes.

The order of an epoch is a function of (seed, epoch) alone, a batch's drawn pixels of (seed, epoch, batch): training can
be resumed at any step. What is drawn for evaluation is drawn once, from a seed of its own, for every run the same.

Of a split that is mapped from files, a batch's rows are gathered in the order in which they lie there, and nothing else is read;
the fixed draw is made a part at a time, and is that of a split in memory only where there is one part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diabolo.data.levels import bernoulli
from diabolo.data.spec import Batch, Dataset
from diabolo.seeds import fold

#: The seed of the fixed draw, whatever the seed of a run.
EVALUATION_SEED = 0
#: So many examples of a mapped split are drawn together for evaluation.
DRAWN_TOGETHER = 10_000
#: Examples that a sum over a split takes at a time.
_CHUNK = 1000


class Loader:
    """Batches of one split on a device: x (B, *shape) of `dtype`, y (B,) or None, index (B,) on the CPU.

    uint8 levels k leave as k/255; floating-point values as they are. Values are gathered and scaled a batch at a time.

    Raises:
        ValueError: if the data set has no such split.
    """

    def __init__(
        self, dataset: Dataset, split: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        found = dataset.split(split)
        self.name, self.binarize, self.dtype = split, dataset.binarize, dtype
        self.device, self.mapped = torch.device(device), found.mapped
        self.values, self.labels = found.values, found.labels
        if not found.mapped:
            self.values = found.values.to(self.device)
            self.labels = None if found.labels is None else found.labels.to(self.device)
        self._fixed: Tensor | None = None
        self._part = -1

    def __len__(self) -> int:
        """N, the number of examples."""
        return len(self.values)

    def batches(self, batch_size: int) -> int:
        """How many batches an epoch has; the last one may be short."""
        return -(-len(self) // batch_size)

    def shuffled(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        skip: int = 0,
        share: Callable[[int], slice] = lambda count: slice(count),
        flips: bool = False,
    ) -> Iterator[Batch]:
        """The batches of a training epoch, without the first `skip`, for which no work is done; of each the part `share` of its
        number of examples, which may be none.

        With binarised data every batch is drawn anew as Bernoulli(k/255), as a whole, so that its parts fit together. With
        `flips` each image is mirrored left to right with probability 1/2, by (seed, epoch, batch) as well.
        """
        generator = torch.Generator().manual_seed(fold(seed, "order", epoch))
        order = torch.randperm(len(self), generator=generator)
        for number in range(skip, self.batches(batch_size)):
            whole = order[number * batch_size : (number + 1) * batch_size]
            part = share(len(whole))
            index = whole[part]
            if self.binarize:
                drawn = bernoulli(self._gather(self.values, whole).cpu(), fold(seed, "binarize", epoch, number))[part]
                x = drawn.to(self.device).to(self.dtype)
            else:
                x = self._scaled(self._gather(self.values, index))
            yield self._batch(_mirrored(x, len(whole), part, fold(seed, "flips", epoch, number)) if flips else x, index)

    def ordered(self, batch_size: int, indices: Tensor | None = None) -> Iterator[Batch]:
        """The split, or the examples `indices` (n,) of it, in the order given.

        With binarised data these are always the pixels of one fixed draw of the whole split.
        """
        order = torch.arange(len(self)) if indices is None else indices.cpu()
        for index in torch.split(order, batch_size):
            if self.binarize:
                yield self._batch(self._drawn(index).to(self.dtype), index)
            else:
                yield self._batch(self._scaled(self._gather(self.values, index)), index)

    def mean(self) -> Tensor:
        """The mean of the split's examples (*shape) on the CPU; of binarised data the expected one."""
        total = torch.zeros(self.values.shape[1:], dtype=torch.float64)
        for part in self.values.split(_CHUNK):
            total += part.cpu().double().sum(0)
        scale = 255 if self.values.dtype == torch.uint8 else 1
        return (total / (scale * len(self))).to(self.dtype)

    @property
    def draw_hash(self) -> str | None:
        """The SHA-256 of the fixed draw (one byte a pixel, 0 or 1); None where nothing is drawn."""
        if not self.binarize:
            return None
        digest = hashlib.sha256()
        for part in range(self._parts):
            digest.update(self._draw(part).cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def _parts(self) -> int:
        return -(-len(self) // DRAWN_TOGETHER) if self.mapped else 1

    def _draw(self, part: int) -> Tensor:
        """A part of the fixed draw; of a split in memory there is one, the whole. The last one asked for is kept."""
        if self._fixed is None or self._part != part:
            levels = self.values[part * DRAWN_TOGETHER : (part + 1) * DRAWN_TOGETHER] if self.mapped else self.values
            seed = fold(EVALUATION_SEED, "draw", self.name, *((part,) if part else ()))
            self._fixed, self._part = bernoulli(levels.cpu(), seed).to(self.device), part
        return self._fixed

    def _drawn(self, index: Tensor) -> Tensor:
        """The rows `index` (n,) of the fixed draw."""
        if not self.mapped:
            return self._gather(self._draw(0), index)
        rows = torch.empty((len(index), *self.values.shape[1:]), dtype=torch.uint8, device=self.device)
        parts = index // DRAWN_TOGETHER
        for part in parts.unique().tolist():
            inside = parts == part
            rows[inside.to(self.device)] = self._draw(part)[(index[inside] - part * DRAWN_TOGETHER).to(self.device)]
        return rows

    def _gather(self, source: Tensor, index: Tensor) -> Tensor:
        if not self.mapped:
            return source.index_select(0, index.to(self.device))
        order = index.argsort()
        found = source.index_select(0, index[order])
        return torch.empty_like(found).index_copy_(0, order, found).to(self.device)

    def _scaled(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).div_(255) if values.dtype == torch.uint8 else values.to(self.dtype)

    def _batch(self, x: Tensor, index: Tensor) -> Batch:
        return Batch(x, None if self.labels is None else self._gather(self.labels, index), index)


def _mirrored(x: Tensor, count: int, part: slice, seed: int) -> Tensor:
    """x (B, C, H, W), which is a part of `count` images, each mirrored left to right with probability 1/2."""
    coins = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(coins[part].to(x.device)[:, None, None, None], x.flip(-1), x)
