"""Networks: tensor in, tensor out, channels in dimension 1. Each exposes `in_shape` and `out_shape` (without the batch)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from diabolo.registry import register


class Head(nn.Module):
    """Turns a network's output into a Distribution: a posterior or a likelihood.

    A head owns no projection: the network before it ends in `channels(c)` channels for a value of c channels, so that one
    head serves vectors (B, c) and grids (B, c, H, W). It computes in float32 at least.
    """

    factor = 1

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
