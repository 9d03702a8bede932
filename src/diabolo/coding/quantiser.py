"""Uniform scalar quantisers of codes: one grid of points a dimension, fixed on the codes of the training split.

N codes of d dimensions. Both grids stretch from the least to the greatest training code of a dimension, so that no training
code is clamped; a code outside is moved to the nearest end. Cutting the range at quantiles (0.01, 0.1 and 1 % at each end) was
tried on MNIST, for the codes of a VAE and of PCA: at every rate it gave a lower PSNR. The entropy coder makes the rare outer
cells cheap, and clamped tails cost more than the finer step gains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diabolo.coding.range_coder import Symbols

#: Points a dimension may have; a step that would need more is widened.
MAX_LEVELS = 4096
#: Bits a dimension may have.
BITS = range(1, 13)

Codes = NDArray[np.float64]


@dataclass(frozen=True)
class Quantiser:
    """Point k of dimension j lies at origin_j + k step_j, k = 0..levels_j - 1. All of shape (d,)."""

    origin: Codes
    step: Codes
    levels: Symbols

    def symbols(self, codes: Codes) -> Symbols:
        """The numbers (N, d) of the nearest points.

        Raises:
            ValueError: for a code that is NaN or infinite.
        """
        if not np.isfinite(codes).all():
            raise ValueError("a code that is not finite cannot be quantised")
        nearest = np.rint((codes - self.origin) / self.step)
        return np.clip(nearest, 0, self.levels - 1).astype(np.int64)

    def points(self, symbols: Symbols) -> Codes:
        """The points (N, d) of these numbers."""
        return self.origin + symbols * self.step


def by_bits(codes: Codes, bits: int) -> Quantiser:
    """2^bits cells of one width from min to max of the training codes (N, d), each stood for by its middle.

    A code is off by at most half a step, (max - min) / 2^(bits + 1). A dimension that is constant has one point.
    """
    low, high = codes.min(0), codes.max(0)
    step = (high - low) / 2**bits
    varies = step > 0
    levels = np.where(varies, 2**bits, 1)
    return Quantiser(low + step / 2, np.where(varies, step, 1.0), levels)


def by_deviation(codes: Codes, deviation: Codes, scale: float = 1.0) -> Quantiser:
    """Steps of `scale` times the posterior's standard deviation (d,), a point at the mean of the training codes (N, d).

    The decoder was trained on codes with noise of just this size, so that rounding tells it nothing new (the error of a
    rounding to a step s has the standard deviation s / sqrt(12)). A dimension without information, whose posterior is the
    prior whatever x is, has all its means within one step: one point, which costs nothing.
    """
    centre, step = codes.mean(0), scale * deviation
    step = np.maximum(step, np.ptp(codes, axis=0) / (MAX_LEVELS - 2))
    step = np.where(step > 0, step, 1.0)
    first, last = (np.rint((end - centre) / step) for end in (codes.min(0), codes.max(0)))
    return Quantiser(centre + first * step, step, (last - first + 1).astype(np.int64))
