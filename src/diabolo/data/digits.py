"""scikit-learn's digits: real data that are there without any download."""

from __future__ import annotations

import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diabolo.data.access import Access
from diabolo.data.spec import Dataset, DataSpec, Split
from diabolo.data.stored import LEVELS_BINARIZED, LEVELS_GREY
from diabolo.errors import UsageError
from diabolo.registry import register

_TEST = 297


def _table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The levels (1797, 64) and the classes (1797,), from scikit-learn's file where it lies as ever: importing the library takes
    longer than training on the digits does."""
    found = find_spec("sklearn")
    for place in (found and found.submodule_search_locations) or ():
        file = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                table = np.loadtxt(lines, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    raw = load_digits()
    return raw.data, raw.target


@register("dataset", "digits")
def digits(access: Access, binarize: bool = False, validation: int = 200) -> Dataset:
    """Digits: 1,797 handwritten digits, 8x8, 10 classes; part of scikit-learn, nothing to download.

    The 17 levels 0..16 become uint8 by round(k 255 / 16), (N, 1, 8, 8). The last 297 images are the test split,
    the last `validation` of the others the validation split (0: there is none).
    Reference: Alpaydin and Kaynak, 1998, https://doi.org/10.24432/C50P49.

    Raises:
        UsageError: for a validation split that leaves nothing to train on.
    """
    levels, classes = _table()
    values = torch.from_numpy(np.rint(levels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8))
    labels = torch.from_numpy(classes.astype(np.int64))
    rest = len(values) - _TEST
    if not 0 <= validation < rest:
        raise UsageError(f"validation={validation}: at least 0 and less than {rest:,}, what the test split leaves")
    cut = rest - validation
    return Dataset(
        spec=DataSpec(
            name="digits",
            shape=(1, 8, 8),
            values="binary" if binarize else "grey",
            classes=tuple("0123456789"),
            examples=cut,
        ),
        train=Split("train", values[:cut], labels[:cut]),
        validation=Split("validation", values[cut:rest], labels[cut:rest]) if validation else None,
        test=Split("test", values[rest:], labels[rest:]),
        binarize=binarize,
        hashes={
            "images": hashlib.sha256(values.numpy().tobytes()).hexdigest(),
            "labels": hashlib.sha256(labels.to(torch.uint8).numpy().tobytes()).hexdigest(),
        },
        note=LEVELS_BINARIZED if binarize else LEVELS_GREY,
    )
