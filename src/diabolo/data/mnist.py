"""MNIST from its four IDX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diabolo.data import sources
from diabolo.data.access import Access
from diabolo.data.catalogue import MNIST, Collection, File
from diabolo.data.spec import Dataset, DataSpec, Split
from diabolo.errors import DataError, UsageError
from diabolo.registry import register


@register("dataset", "mnist")
def mnist(access: Access, binarize: bool = True, validation: int = 5000) -> Dataset:
    """MNIST: 70,000 handwritten digits, 28x28, 10 classes.

    Values are uint8 levels (N, 1, 28, 28), emitted as k/255 in [0, 1], or drawn as Bernoulli(k/255) with `binarize`.
    The last `validation` of the 60,000 training images form the validation split (0: there is none).
    Reference: LeCun, Bottou, Bengio and Haffner, 1998, https://doi.org/10.1109/5.726791.

    Raises:
        UsageError: for a validation split that leaves nothing to train on.
        DataError: if the files cannot be had.
    """
    return idx_dataset(MNIST, access, binarize, validation, tuple("0123456789"))


def idx_dataset(
    collection: Collection, access: Access, binarize: bool, validation: int, classes: tuple[str, ...]
) -> Dataset:
    """A data set of four IDX files: training images and labels, test images and labels."""
    count = collection.files[0].shape[0]
    if not 0 <= validation < count:
        raise UsageError(f"validation={validation}: between 0 and {count - 1} of the {count:,} training images")
    paths = sources.fetch(collection, access)
    images, labels, test_images, test_labels = (read_idx(path, file) for path, file in zip(paths, collection.files))
    cut = count - validation
    return Dataset(
        spec=DataSpec(
            name=collection.name,
            shape=(1, *collection.files[0].shape[1:]),
            values="binary" if binarize else "grey",
            classes=classes,
            examples=cut,
        ),
        train=Split("train", images[:cut].unsqueeze(1), labels[:cut].long()),
        validation=Split("validation", images[cut:].unsqueeze(1), labels[cut:].long()) if validation else None,
        test=Split("test", test_images.unsqueeze(1), test_labels.long()),
        binarize=binarize,
        hashes={file.name: file.sha256 for file in collection.files},
        note=LEVELS_BINARIZED if binarize else LEVELS_GREY,
    )


LEVELS_GREY = "grey levels k/255"
LEVELS_BINARIZED = "pixels drawn as Bernoulli(k/255) from levels k: anew each epoch for training, once for evaluation"


def read_idx(path: Path, file: File) -> Tensor:
    """Read an IDX file of unsigned bytes: uint8 of `file.shape`. Size and header are checked before any allocation.

    Raises:
        DataError: if size, magic number or dimensions are not the registered ones.
    """
    header = b"".join(n.to_bytes(4, "big") for n in (0x0800 + len(file.shape), *file.shape))
    with path.open("rb") as stream:
        size, start = path.stat().st_size, stream.read(len(header))
        if size != file.size or start != header:
            raise DataError(
                f"{path} is not the registered file",
                f"Bytes: {size:,} (registered {file.size:,}); header: {start.hex()} (registered {header.hex()}).",
            )
        return torch.from_numpy(np.fromfile(stream, dtype=np.uint8)).reshape(file.shape)
