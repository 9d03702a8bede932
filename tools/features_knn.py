"""Say how well nearest neighbours in EfficientNet-Lite0's features name the classes of CIFAR-10, and what an image costs.

    python tools/features_knn.py [SIZES ...]

The first 1,000 test images are the neighbours, the next 1,000 are named by the majority of their 5 nearest: by distance, and
by the angle between the features. Seconds are processor time with one thread.
"""

from __future__ import annotations

import sys
import time

import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from diabolo import data
from diabolo.features.efficientnet import EfficientNetLite0

N = 1000


def named(x: Tensor, y: Tensor) -> float:
    """The share of x (2 N, d) after the first N whose class is that of the majority of its 5 nearest among the first N."""
    return float(KNeighborsClassifier(5).fit(x[:N], y[:N]).score(x[N:], y[N:]))


def main(sizes: list[int]) -> None:
    """Print a row for the pixels and one for each size."""
    torch.set_num_threads(1)
    test = data.load("cifar10").test
    assert test.labels is not None
    images, y = test.values[: 2 * N].float() / 255, test.labels[: 2 * N]
    pixels = images.flatten(1)
    print("pixels a side | 5-NN by distance | by angle | seconds for 1,000 images")
    print(f"(none: values) | {named(pixels, y):.3f} | {named(F.normalize(pixels), y):.3f} | 0")
    for size in sizes:
        features = EfficientNetLite0(size)
        features(images[:50])
        start = time.process_time()
        x = features(images)
        seconds = (time.process_time() - start) / (2 * N) * 1000
        print(f"{size} | {named(x, y):.3f} | {named(F.normalize(x), y):.3f} | {seconds:.1f}", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [64, 96, 128, 160])
