"""A small classifier of CIFAR-10, trained by this project: its last hidden layer as features, its softmax as a judge of classes.

The weights are a file of the package; `tools/train_classifier.py` is how they came about and trains them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from diabolo.data.cifar import CLASSES
from diabolo.errors import DataError
from diabolo.features.base import Features, check_images, read_weights
from diabolo.registry import register

WEIGHTS = Path(__file__).parent.parent / "weights" / "cifar10_classifier.safetensors"
#: Mean and standard deviation of red, green and blue over the 50,000 training images.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
STEM, WIDTHS = 24, (64, 128, 224)
#: Divides the logits, so that a maximum over positions does not begin with a softmax that is sure.
TEMPERATURE = 8.0
_TOGETHER = 250


class Convolution(nn.Module):
    """A convolution without bias, a maximum over 2x2 if `pool`, batch normalisation, SiLU: (B, c, H, W) -> (B, d, H', W')."""

    def __init__(self, c: int, d: int, size: int = 3, pool: bool = False) -> None:
        super().__init__()
        self.weights = nn.Conv2d(c, d, size, padding=(size - 1) // 2, bias=False)
        self.norm, self.pool = nn.BatchNorm2d(d), pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.weights(x)
        found: Tensor = functional.silu(self.norm(functional.max_pool2d(x, 2) if self.pool else x))
        return found


class Block(nn.Module):
    """Halve the image and widen it, then add what one more convolution finds: y = conv(x), y + conv'(y)."""

    def __init__(self, c: int, d: int) -> None:
        super().__init__()
        self.widen, self.refine = Convolution(c, d, pool=True), Convolution(d, d)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.widen(x)
        found: Tensor = y + self.refine(y)
        return found


class Classifier(nn.Module):
    """Images (B, 3, 32, 32) in [0, 1] -> logits (B, 10): a residual network of seven convolutions.

    A convolution over 2x2, three blocks that each halve the image, the maximum over the 3x3 places that are left, one linear map.
    Its shape follows the fast networks for CIFAR-10 of Jordan, 2024, https://arxiv.org/abs/2404.00498, which begin with a
    convolution over 2x2, pool before they normalise and end with a maximum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 2)
        self.blocks = nn.Sequential(*(Block(c, d) for c, d in zip((STEM, *WIDTHS), WIDTHS)))
        self.head = nn.Linear(WIDTHS[-1], len(CLASSES))

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer: (B, 224)."""
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
        found: Tensor = self.blocks(self.stem(x)).amax((2, 3))
        return found

    def logits(self, features: Tensor) -> Tensor:
        """log p(class | x) up to a constant, of features (B, 224): (B, 10)."""
        found: Tensor = self.head(features) / TEMPERATURE
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


@register("features", "cifar10_classifier")
class Cifar10Classifier(Features):
    """The last hidden layer, of 224 numbers, of a small classifier that this project trained on CIFAR-10's training images.

    `logits` and `classes` say what it takes an image for. Its weights are kept in half precision; it computes in float32.
    """

    weights_hash = "f606acc5c35780c3b43b4a448368656cdc7d2aa6e629ba49493f5804c1524013"
    weights_path = WEIGHTS
    dimensions = WIDTHS[-1]
    reads = "(N, 3, 32, 32) in [0, 1]"
    about = (
        "The last hidden layer of a small residual network that learned the ten classes of CIFAR-10 from its 50,000 labelled "
        "training images: it sees what tells those classes apart, and little else of an image."
    )
    classes = CLASSES

    def __init__(self) -> None:
        self._network = _network(self.weights_path, self.weights_hash)

    def __call__(self, images: Tensor) -> Tensor:
        """The last hidden layer of images (N, 3, 32, 32) in [0, 1]: (N, 224), float32.

        Raises:
            UsageError: for images of another shape, kind of number or range.
        """
        check_images(images, (3, 32, 32), "cifar10_classifier")
        return self._computed(self._network.features, images)

    def logits(self, images: Tensor) -> Tensor:
        """log p(class | x) up to a constant of images (N, 3, 32, 32) in [0, 1]: (N, 10), float32, in the order of `classes`.

        Raises:
            UsageError: for images of another shape, kind of number or range.
        """
        return self._computed(self._network.logits, self(images))

    def _computed(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function of rows, some at a time, in float32 also inside the caller's autocast (a GPU may multiply in TF32)."""
        self._network.to(x.device)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return torch.cat([function(part) for part in x.split(_TOGETHER)])


def _network(path: Path, sha256: str) -> Classifier:
    weights = {name: t.float() if t.is_floating_point() else t for name, t in read_weights(path, sha256).items()}
    with torch.device("meta"):  # no first weights are drawn, which the caller's random state would tell
        network = Classifier()
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise DataError(f"the weights {path} do not fit the network", str(error)) from error
    return network.eval().requires_grad_(False)
