"""What a denoising autoencoder does to its input, and what a denoised image is measured with.

Each corruption is a function of x and of noise of its own: standard normal or uniform, drawn from the global generator in
training, from a generator for each example in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["none", "gaussian", "masking", "salt_pepper"]


def _gaussian(x: Tensor, level: float, noise: Tensor) -> Tensor:
    return x + level * noise


def _masking(x: Tensor, level: float, noise: Tensor) -> Tensor:
    return torch.where(noise < level, torch.zeros_like(x), x)


def _salt_pepper(x: Tensor, level: float, noise: Tensor) -> Tensor:
    salted = torch.where(noise > 1 - level / 2, torch.ones_like(x), x)
    return torch.where(noise < level / 2, torch.zeros_like(x), salted)


_HOW: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, float, Tensor], Tensor]]] = {
    "gaussian": (torch.randn, _gaussian),
    "masking": (torch.rand, _masking),
    "salt_pepper": (torch.rand, _salt_pepper),
}


def corrupt(x: Tensor, kind: Kind, level: float, seeds: Sequence[int] | None = None) -> Tensor:
    r"""Corrupt x (B, *data), values in [0, 1]; the result is not clipped.

    .. math:: gaussian: x + level\, \epsilon; \quad masking: x_i \to 0; \quad salt\_pepper: x_i \to 0 \text{ or } 1

    masking and salt_pepper change each value with probability `level`, independently; gaussian adds a standard deviation of
    `level`. With `seeds` the noise of example b depends on seeds[b] alone; else the global generator draws.

    Reference: Vincent et al., Stacked denoising autoencoders (2010), https://www.jmlr.org/papers/v11/vincent10a.html.
    """
    if kind == "none":
        return x
    draw, apply = _HOW[kind]
    if seeds is None:
        return apply(x, level, draw(x.shape, dtype=x.dtype, device=x.device))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([draw(x.shape[1:], generator=generator, dtype=x.dtype) for generator in generators])
    return apply(x, level, noise.to(x.device))
