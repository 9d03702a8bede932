"""MNIST from its four IDX files."""

from __future__ import annotations

from diabolo.data import sources
from diabolo.data.access import Access
from diabolo.data.catalogue import MNIST, Collection
from diabolo.data.spec import Dataset
from diabolo.data.stored import LEVELS_BINARIZED, LEVELS_GREY, check_validation, cut, read_levels
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
    check_validation(validation, collection.files[0].shape[0])
    paths = sources.fetch(collection, access)
    images, labels, test_images, test_labels = (read_levels(path, file) for path, file in zip(paths, collection.files))
    train, test = (images.unsqueeze(1), labels), (test_images.unsqueeze(1), test_labels)
    return cut(collection, train, test, classes, validation, binarize, LEVELS_BINARIZED if binarize else LEVELS_GREY)
