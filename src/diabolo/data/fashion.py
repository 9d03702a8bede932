"""Fashion-MNIST from its four IDX files."""

from __future__ import annotations

from diabolo.data.access import Access
from diabolo.data.catalogue import FASHION_MNIST
from diabolo.data.mnist import idx_dataset
from diabolo.data.spec import Dataset
from diabolo.registry import register

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@register("dataset", "fashion-mnist")
def fashion_mnist(access: Access, binarize: bool = False, validation: int = 5000) -> Dataset:
    """Fashion-MNIST: 70,000 articles of clothing, 28x28, 10 classes.

    Values are uint8 levels (N, 1, 28, 28), emitted as k/255 in [0, 1], or drawn as Bernoulli(k/255) with `binarize`.
    The last `validation` of the 60,000 training images form the validation split (0: there is none).
    Reference: Xiao, Rasul and Vollgraf, 2017, https://arxiv.org/abs/1708.07747.

    Raises:
        UsageError: for a validation split that leaves nothing to train on.
        DataError: if the files cannot be had.
    """
    return idx_dataset(FASHION_MNIST, access, binarize, validation, CLASSES)
