"""Networks: tensor in, tensor out, channels in dimension 1. Each exposes `in_shape` and `out_shape` (without the batch)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diabolo.registry import register


class Head(nn.Module):
    """Turns a network's output into a Distribution: a posterior or a likelihood.

    A head owns no projection: the network before it ends in `channels(c)` channels for a value of c channels, so that one
    head serves vectors (B, c) and grids (B, c, H, W). It computes in float32 at least.
    """

    factor = 1
    density = True  # of a posterior: False where q(z | x) is a point mass

    def channels(self, c: int) -> int:
        """The number of channels that the network must end in, for a value of c channels."""
        return self.factor * c


def activation_module(name: str, slope: float = 0.01) -> nn.Module:
    """The activation function called `name`; `slope` is LeakyReLU's for negative inputs, f(a) = max(a, 0) + slope min(a, 0).

    Raises:
        ValueError: for an unknown name.
    """
    found: dict[str, nn.Module] = {
        "relu": nn.ReLU(),
        "leaky_relu": nn.LeakyReLU(slope),
        "tanh": nn.Tanh(),
        "sigmoid": nn.Sigmoid(),
        "silu": nn.SiLU(),
    }
    if name not in found:
        raise ValueError(f"unknown activation {name!r}; one of {', '.join(found)}")
    return found[name]


@register("network", "mlp")
class MLP(nn.Module):
    """Fully connected layers between any two shapes.

    h_0 = flatten(x); h_l = f(W_l h_{l-1} + b_l) for `depth` hidden layers of `width` units; output = W h_depth + b.
    `depth=0` is one affine map. Arguments: x (B, *in_shape) -> (B, *out_shape).
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        width: int = 400,
        depth: int = 2,
        activation: Literal["relu", "leaky_relu", "tanh", "sigmoid", "silu"] = "relu",
        slope: float = 0.01,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        sizes = [math.prod(in_shape), *[width] * depth]
        hidden = [
            layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), activation_module(activation, slope))
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], math.prod(out_shape)))

    @property
    def sizes(self) -> list[int]:
        """Units of each layer, the input's and the output's included: what the architecture figure draws."""
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        return [linear[0].in_features, *(layer.out_features for layer in linear)]

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x.flatten(1)).unflatten(1, self.out_shape)
        return h  # (B, *out_shape)


@register("network", "layer")
class Layer(nn.Module):
    r"""One affine map and an activation: h = f(W x + b), the encoder of the classical autoencoders.

    Arguments: x (B, *in_shape) -> (B, *out_shape). `weight` is W, (units, values), which a `tied` decoder shares.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        activation: Literal["linear", "sigmoid", "tanh"] = "sigmoid",
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.activation = tuple(in_shape), tuple(out_shape), activation
        self.affine = nn.Linear(math.prod(in_shape), math.prod(out_shape))

    @property
    def weight(self) -> Tensor:
        """W, (units, values)."""
        return self.affine.weight

    def forward(self, x: Tensor) -> Tensor:
        a = self.affine(x.flatten(1))
        h: Tensor = a if self.activation == "linear" else getattr(torch, self.activation)(a)
        shaped: Tensor = h.unflatten(1, self.out_shape)
        return shaped  # (B, *out_shape)

    def squared_jacobian(self, x: Tensor) -> Tensor:
        r"""||dh/dx||_F^2 of each example of x (B, *in_shape) in closed form, (B,).

        .. math:: \sum_j f'(a_j)^2 \sum_i W_{ji}^2

        with f' = h (1 - h) for the sigmoid, 1 - h^2 for tanh, 1 for a linear layer.
        """
        h = self(x).flatten(1)
        slope = {"linear": torch.ones_like(h), "sigmoid": h * (1 - h), "tanh": 1 - h.square()}[self.activation]
        squared: Tensor = slope.square() @ self.weight.square().sum(1)
        return squared


@register("network", "tied")
class Tied(nn.Module):
    """The decoder of a `layer` encoder with its transposed weights: output = W' h + b. It owns b alone.

    Tied weights keep the contractive penalty honest: without them the encoder could shrink and the decoder grow.
    Arguments: z (B, *in_shape) -> (B, *out_shape).

    Raises:
        ValueError: if the encoder is no `layer`, or the two do not face the same shapes.
    """

    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], encoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, Layer):
            raise ValueError("its weights are those of the encoder, which must be one layer: take model.encoder=layer")
        if tuple(encoder.out_shape) != tuple(in_shape) or math.prod(encoder.in_shape) != math.prod(out_shape):
            raise ValueError("the encoder's layer must map the data's values to the code's, one number each")
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.bias = nn.Parameter(torch.zeros(math.prod(out_shape)))
        self._encoder = (encoder,)  # in a tuple: its weights are not registered, saved or trained twice

    def forward(self, z: Tensor) -> Tensor:
        h: Tensor = F.linear(z.flatten(1), self._encoder[0].weight.mT, self.bias).unflatten(1, self.out_shape)
        return h  # (B, *out_shape)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose running statistics are remembered in `forward` and learned in `after_step`.

    So a step that is not taken (a batch with NaN) leaves them as they are. In training mode the batch's own statistics
    normalise, in evaluation mode the running ones. x (B, C, H, W).

    Reference: Ioffe & Szegedy, Batch normalization (2015), arXiv:1502.03167.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.running_mean: Tensor
        self.running_var: Tensor
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        y = F.batch_norm(x, mean, variance, self.weight, self.bias, True, self.momentum or 0.1, self.eps)
        self._seen = mean, variance
        return y

    @torch.no_grad()
    def after_step(self) -> None:
        """Take over the statistics of the last batch that was seen in training mode."""
        if self._seen is None:
            return
        self.running_mean.copy_(self._seen[0])
        self.running_var.copy_(self._seen[1])
        self._seen = None


def halvings(height: int, width: int) -> int:
    """How often both sides can be halved before the smaller is 4 or less: 3 for 28x28 and 32x32, 4 for 64x64, at least 1."""
    count, side = 0, min(height, width)
    while side > 4:
        count, side = count + 1, (side + 1) // 2
    return max(1, count)


@register("network", "conv")
class Conv(nn.Module):
    """Convolutions between an image and a vector, in the direction that the shapes say.

    Image (C, H, W) -> vector: `depth` times (3x3 convolution of stride 2, batch normalisation, activation) with width,
    2 width, 4 width, ... channels, then one affine map. Vector -> image: an affine map, then the mirror image in
    transposed convolutions, the last one bare. `depth=0` fits the strides to the size: the smaller side ends at 4 or less.
    Sides need not be powers of two: a stride takes n to (n + 1) // 2, and the decoder back to n.
    Arguments: x (B, *in_shape) -> (B, *out_shape).

    Raises:
        ValueError: if neither or both shapes are images.

    Reference: Radford et al., Unsupervised representation learning with deep convolutional GANs (2016), arXiv:1511.06434.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        width: int = 32,
        depth: int = 0,
        activation: Literal["relu", "leaky_relu", "tanh", "sigmoid", "silu"] = "relu",
        slope: float = 0.01,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        if sorted((bool(in_shape[1:]), bool(out_shape[1:]))) != [False, True]:
            raise ValueError("it maps an image (C, H, W) to a vector or a vector to an image; take mlp for vectors")
        channels, height, breadth = self.in_shape if in_shape[1:] else self.out_shape
        steps = depth or halvings(height, breadth)
        sides = [(height, breadth)]
        for _ in range(steps):
            sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
        planes = [channels, *(width * 2**level for level in range(steps))]
        self.layers = (_down if in_shape[1:] else _up)(
            planes, sides, (self.in_shape, self.out_shape), activation, slope
        )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x)
        return h  # (B, *out_shape)


_Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def _down(
    planes: list[int], sides: list[tuple[int, int]], shapes: _Shapes, activation: str, slope: float
) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for a, b in zip(planes, planes[1:]):
        blocks += [nn.Conv2d(a, b, 3, 2, 1), BatchNorm(b), activation_module(activation, slope)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(planes[-1] * math.prod(sides[-1]), shapes[1][0]))


def _up(
    planes: list[int], sides: list[tuple[int, int]], shapes: _Shapes, activation: str, slope: float
) -> nn.Sequential:
    first = (planes[-1], *sides[-1])
    blocks: list[nn.Module] = [nn.Linear(shapes[0][0], math.prod(first)), nn.Unflatten(1, first)]
    for level, (out, into) in reversed(list(enumerate(zip(planes, planes[1:])))):
        height, breadth = sides[level]
        more = (1 - height % 2, 1 - breadth % 2)  # an even side was halved exactly: one row more on the way back
        blocks.append(nn.ConvTranspose2d(into, out, 3, 2, 1, more))
        if level:
            blocks += [BatchNorm(out), activation_module(activation, slope)]
    return nn.Sequential(*blocks)
