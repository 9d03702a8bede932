"""Grey levels 0..255 as probabilities: exact Bernoulli(k/255) draws, and the entropy that no model can undercut.

The draws come from the raw stream of NumPy's Philox generator, which is fixed across versions, platforms and devices.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: How far k/255 in 32-bit floating point may be from a level.
TOLERANCE = 1e-4
_CHUNK = 1000


def as_levels(values: Tensor) -> Tensor | None:
    """The uint8 levels k of values (N, *shape): levels already, or floating point k/255; None if they are not."""
    if values.dtype == torch.uint8:
        return values
    found = torch.empty(values.shape, dtype=torch.uint8)
    for part, out in zip(values.split(_CHUNK), found.split(_CHUNK)):
        scaled = part.double() * 255
        rounded = scaled.round().clamp(0, 255)
        if not ((scaled - rounded).abs() <= TOLERANCE * 255).all():
            return None
        out.copy_(rounded)
    return found


def uniform_levels(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Draw integers that are exactly uniform on 0..254, as uint8 of `shape`.

    Bytes of the stream are uniform on 0..255; those equal to 255 are replaced by later bytes until none is left.
    """
    stream = np.random.Philox(key=seed)
    values = _bytes(stream, int(np.prod(shape)))
    rejected = np.flatnonzero(values == 255)
    while rejected.size:
        values[rejected] = _bytes(stream, rejected.size)
        rejected = rejected[values[rejected] == 255]
    return torch.from_numpy(values).reshape(shape)


def _bytes(stream: np.random.Philox, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    words = np.asarray(stream.random_raw(-(-count // 8)), dtype="<u8")
    return words.view(np.uint8)[:count]


def bernoulli(levels: Tensor, seed: int) -> Tensor:
    """Draw each pixel as Bernoulli(k / 255) from its uint8 level k: 1 if u < k, u uniform on 0..254. uint8 0 or 1."""
    return (uniform_levels(seed, tuple(levels.shape)) < levels).to(torch.uint8)


def entropy_floor(levels: Tensor) -> Tensor:
    """The entropy of each example as independent Bernoulli(k / 255) pixels, in nats per example.

        H(x) = - sum_i [ p_i log p_i + (1 - p_i) log(1 - p_i) ],  p_i = k_i / 255

    It is the least summed binary cross-entropy that any decoder can reach on grey levels: 45.53 on average over the
    test images of MNIST. levels: (N, *shape) uint8. Returns (N,) float64.

    Raises:
        ValueError: for values that are not uint8 levels.
    """
    if levels.dtype != torch.uint8:
        raise ValueError(f"the entropy floor is a property of uint8 levels, not of {levels.dtype}")
    p = torch.arange(256, dtype=torch.float64) / 255
    table = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).to(levels.device)
    return torch.cat([table[part.flatten(1).long()].sum(1) for part in torch.split(levels, _CHUNK)])
