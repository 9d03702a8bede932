"""A careful script: the data in memory as one float tensor, the loss on logits, fused Adam, nothing else."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.scripts import article_cifar, article_mnist
from benchmarks.speed.emitting import emit, orders


def mnist(path: str, count: int | None) -> tuple[nn.Module, Tensor, Any]:
    model = article_mnist.VAE()
    model.decoder = model.decoder[:-1]  # logits: without the sigmoid
    x = torch.from_numpy(np.load(path)["train"][:count]).flatten(1).float() / 255
    return model, x, F.binary_cross_entropy_with_logits


def cifar10(path: str, count: int | None) -> tuple[nn.Module, Tensor, Any]:
    x = torch.from_numpy(np.load(path)["train"][:count]).permute(0, 3, 1, 2).float() / 255
    return article_cifar.ConvVAE(), x, F.mse_loss


def main() -> None:
    given = orders()
    torch.manual_seed(given["seed"])
    model, images, error = {"mnist": mnist, "cifar10": cifar10}[given["data"]](given["path"], given["images"])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    for epoch in range(1, given["epochs"] + 1):
        began = time.perf_counter()
        for rows in torch.randperm(len(images)).split(128):
            x = images[rows]
            decoded, mean, log_variance = model(x)
            kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
            optimiser.zero_grad()
            ((error(decoded, x, reduction="sum") + kl) / len(x)).backward()
            optimiser.step()
        emit(epoch=epoch, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
