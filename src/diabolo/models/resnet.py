"""Residual networks between an image and a grid of codes: where detail stands in the image, its code stands in the grid."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from diabolo.models.networks import activation_module
from diabolo.registry import register


class Residual(nn.Module):
    """h + f(h), f two 3x3 convolutions with an activation before each; h (B, C, H, W).

    The second convolution's weights start at 0: an untrained block adds a constant to each channel. There is no normalisation,
    which on a processor would take as long as the convolutions, and whose noise a decoder that is to be exact can do without.

    References: He et al., Identity mappings in deep residual networks (2016), arXiv:1603.05027; Zhang et al., Fixup
    initialization (2019), arXiv:1901.09321.
    """

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            activation_module(activation),
            nn.Conv2d(channels, channels, 3, padding=1),
            activation_module(activation),
            last,
        )

    def forward(self, h: Tensor) -> Tensor:
        found: Tensor = h + self.layers(h)
        return found


@register("network", "resnet")
class ResNet(nn.Module):
    """Residual blocks between an image and a smaller grid, or a vector, in the direction that the shapes say.

    Image (C, H, W) -> grid: for each of `widths` 2x2 pixels are folded into channels, mapped to so many by a 1x1 convolution,
    and go through `blocks` residual blocks; a last convolution makes the grid's channels. Nothing wide is computed at the image's
    own size. Grid -> image is the mirror image, channels unfolded into pixels. A grid of `widths` (48, 96) has a quarter of
    the image's sides. `shortcut` adds one linear map between each patch of pixels and its place of the grid, so that the blocks
    learn what a patch-wise principal component analysis misses. A vector is mapped to or from the smallest grid by an affine map,
    without the shortcut. Arguments: x (B, *in_shape) -> (B, *out_shape).

    Raises:
        ValueError: if neither shape is an image, or the sides do not fit the number of widths.

    References: Shi et al., Real-time single image and video super-resolution (2016), arXiv:1609.05158; Chen et al., Deep
    compression autoencoder (2025), arXiv:2410.10733.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        widths: tuple[int, ...] = (48, 96),
        blocks: int = 1,
        activation: Literal["relu", "leaky_relu", "tanh", "sigmoid", "silu"] = "relu",
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        down = math.prod(in_shape[1:]) > math.prod(out_shape[1:])
        image, code = (self.in_shape, self.out_shape) if down else (self.out_shape, self.in_shape)
        self.factor = 2 ** len(widths)
        grid = _grid(image, code, widths)
        build = _down if down else _up
        channels = code[0] if len(code) == 3 else widths[-1]  # of the smallest grid, where code and image meet
        self.layers = build(image[0], channels, list(widths), blocks, activation)
        self.vector = None if len(code) == 3 else _affine(code[0], (channels, *grid), down)
        self.linear = None
        if shortcut and self.vector is None:
            patch = image[0] * self.factor**2
            self.linear = nn.Conv2d(patch, code[0], 1) if down else nn.Conv2d(code[0], patch, 1)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        if self.vector is not None and not self.down:
            x = self.vector(x)
        h: Tensor = self.layers(x)
        if self.linear is not None:
            h = h + self._straight(x)
        return self.vector(h) if self.vector is not None and self.down else h  # (B, *out_shape)

    def _straight(self, x: Tensor) -> Tensor:
        assert self.linear is not None
        if self.down:
            found: Tensor = self.linear(F.pixel_unshuffle(x, self.factor))
            return found
        return F.pixel_shuffle(self.linear(x), self.factor)


def _grid(image: tuple[int, ...], code: tuple[int, ...], widths: tuple[int, ...]) -> tuple[int, int]:
    """The sides of the smallest grid."""
    factor = 2 ** len(widths)
    if len(image) != 3 or len(code) not in {1, 3}:
        raise ValueError("it maps an image (C, H, W) to a grid or a vector or back; take mlp for vectors")
    if not widths or min(widths) < 1:
        raise ValueError(f"widths={widths} must hold at least one number, each at least 1")
    grid = (image[1] // factor, image[2] // factor)
    if image[1] % factor or image[2] % factor or (len(code) == 3 and code[1:] != grid):
        wanted = "" if len(code) == 1 else f" and the code's are {code[1]}x{code[2]}"
        raise ValueError(
            f"{len(widths)} widths divide the sides by {factor}; the image's are {image[1]}x{image[2]}{wanted}"
        )
    return grid


def _affine(values: int, grid: tuple[int, int, int], down: bool) -> nn.Module:
    if down:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(grid), values))
    return nn.Sequential(nn.Linear(values, math.prod(grid)), nn.Unflatten(1, grid))


def _down(channels: int, code: int, widths: list[int], blocks: int, activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip([channels, *widths], widths):
        layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * a, b, 1)]
        layers += [Residual(b, activation) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], code, 1))


def _up(channels: int, code: int, widths: list[int], blocks: int, activation: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(code, widths[-1], 1)]
    for level in reversed(range(len(widths))):
        layers += [Residual(widths[level], activation) for _ in range(blocks)]
        out = widths[level - 1] if level else channels
        layers += [nn.Conv2d(widths[level], 4 * out, 1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers)
