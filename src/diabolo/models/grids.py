"""Codes that are vectors or grids: the one place where an event of z becomes a vector, and where a dimension is told as a place.

An event of z is everything from dimension 1 on: (d,) of a vector, (C, H, W) of a grid with C channels, H rows, W columns. Its d
values are numbered from 0 in the order channel, row, column, the column being the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

Shape = tuple[int, ...]


def shape_of(latent: int | Sequence[int]) -> Shape:
    """The event of a configuration's `model.latent`: (d,) of a number, the shape itself of a grid."""
    return (latent,) if isinstance(latent, int) else tuple(latent)


def size_of(latent: int | Sequence[int]) -> int:
    """The number d of latent dimensions of a configuration's `model.latent`."""
    return math.prod(shape_of(latent))


def vectors(z: Tensor) -> Tensor:
    """Codes (B, *event) as vectors (B, d)."""
    return z.flatten(1)


def told(latent: int | Sequence[int]) -> str:
    """A number of dimensions, or a grid's shape: 20, 8x8x8."""
    return "x".join(map(str, shape_of(latent)))


def place(j: int, shape: Shape) -> str:
    """What dimension j of an event is called: its number, and in a grid (channel, row, column) behind it."""
    if not shape[1:]:
        return str(j)
    channel, rest = divmod(j, shape[1] * shape[2])
    row, column = divmod(rest, shape[2])
    return f"{j} ({channel}, {row}, {column})"


def per_channel(values: Tensor, shape: Shape) -> Tensor:
    """The sums (C,) over the positions of a grid of what is known of each dimension, values (d,)."""
    sums: Tensor = values.unflatten(0, shape).flatten(1).sum(1)
    return sums


def per_position(values: Tensor, shape: Shape) -> Tensor:
    """The sums (H, W) over the channels of a grid of what is known of each dimension, values (d,)."""
    sums: Tensor = values.unflatten(0, shape).sum(0)
    return sums
