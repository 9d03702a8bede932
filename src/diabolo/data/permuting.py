"""Images whose pixels have changed places, all in the same way: nothing is lost but locality."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diabolo.data.spec import Dataset, Split
from diabolo.seeds import fold

#: Under which name a data set holds the hash of its permutation.
POSITIONS = "pixel positions"
#: There is one permutation for each height and width, whatever the seed of a run.
_SEED = 0


def positions(height: int, width: int) -> Tensor:
    """The fixed permutation (height * width,): pixel i of a permuted image is pixel positions[i] of the original one.

    It is the order of words from the raw stream of NumPy's Philox generator, the same on every machine.
    """
    words = np.random.Philox(key=fold(_SEED, "pixel positions", height, width)).random_raw(height * width)
    return torch.from_numpy(np.argsort(np.asarray(words, dtype=np.uint64), kind="stable"))


def permute(dataset: Dataset) -> Dataset:
    """The same data with the pixel positions of all images, of every split and channel, exchanged by `positions`.

    What a dense layer can learn of x is unchanged, for its weights can be permuted likewise; what a convolution knows
    beforehand, that neighbours belong together, is no longer true. The hash and the note of the data say so.
    """
    _, height, width = dataset.spec.shape
    order = positions(height, width)
    digest = hashlib.sha256(order.numpy().astype("<i8").tobytes()).hexdigest()
    return replace(
        dataset,
        train=_moved(dataset.train, order),
        validation=None if dataset.validation is None else _moved(dataset.validation, order),
        test=_moved(dataset.test, order),
        hashes={**dataset.hashes, POSITIONS: digest},
        note=f"{dataset.note}; pixel positions permuted, in all images and channels alike (data.permuted)",
    )


def _moved(split: Split, order: Tensor) -> Split:
    return replace(split, values=split.values.flatten(2)[:, :, order].view_as(split.values))
