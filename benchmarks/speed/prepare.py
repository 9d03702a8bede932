"""What the rows share, made once before the first round: the images as arrays, the arithmetic of each job, a trained Model 1.

Leaves mnist.npz, cifar10.npz and, for log p(x), model1/ and log_p.npz in a folder; tells arithmetic and machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import diabolo
from benchmarks.scripts import article_cifar, article_mnist
from benchmarks.speed.emitting import emit, orders
from diabolo import data, evaluation
from diabolo.engine import environment
from diabolo.evaluation import Settings
from diabolo.seeds import fold

_BATCH = 128


def arrays(name: str, out: Path) -> None:
    """A data set's images as a script has them: uint8, channels last."""
    loaded = data.load(name, {"validation": 0, **({"binarize": False} if name == "mnist" else {})})
    train, test = (_channels_last(split.values) for split in (loaded.train, loaded.test))
    np.savez(out, train=train, test=test)


def _channels_last(values: Tensor) -> Any:
    return values.permute(0, 2, 3, 1).squeeze(-1).contiguous().numpy()


def training_flops(model: nn.Module, loss: Callable[..., Tensor], shape: tuple[int, ...]) -> float:
    """FLOP for an image: forward and backward, without the gradient that the first layer's input does not need."""
    x = torch.rand(_BATCH, *shape)
    with FlopCounterMode(display=False) as counted:
        decoded, mean, log_variance = model(x)
        loss(decoded, x, mean, log_variance).backward()
    return counted.get_total_flops() / _BATCH


def decoding_flops(decoder: nn.Module, latent: int) -> float:
    """FLOP for one draw of z."""
    with FlopCounterMode(display=False) as counted:
        decoder(torch.rand(_BATCH, latent))
    return counted.get_total_flops() / _BATCH


def arithmetic() -> dict[str, float]:
    sizes = {"model1": (400, 20), "model2": (200, 20), "model3": (400, 10)}
    found = {
        name: training_flops(article_mnist.VAE(784, *size), article_mnist.loss_function, (784,))
        for name, size in sizes.items()
    }
    found["cifar10"] = training_flops(article_cifar.ConvVAE(), article_cifar.loss_function, (3, 32, 32))
    found["draw"] = decoding_flops(article_mnist.VAE().decoder, 20)
    return found


def trained(folder: Path, overrides: list[str], images: int) -> None:
    """A Model 1 for the rows that estimate log p(x), and the test images that they estimate it of."""
    diabolo.train(
        "mnist-grey", overrides=[*overrides, "train.curve=none"], out=folder / "model1", device="cpu", progress=None
    )
    test = data.load("mnist", {"binarize": False, "validation": 0}).test
    chosen = evaluation.stratified(test.labels, len(test), images, fold(Settings().seed, "images"))
    np.savez(folder / "log_p.npz", images=test.values[chosen].flatten(1).numpy())


def main() -> None:
    given = orders()
    folder = Path(given["folder"])
    for name in given["data"]:
        arrays(name, folder / f"{name}.npz")
    if given["log_p"]:
        trained(folder, **given["log_p"])
    emit(arithmetic=arithmetic(), environment=environment(torch.device("cpu")))


if __name__ == "__main__":
    main()
