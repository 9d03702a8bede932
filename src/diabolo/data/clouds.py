"""Colour images made in code: smooth random fields of four kinds. Nothing to download, and a covariance like photographs'."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diabolo.data.access import Access
from diabolo.data.permuting import permute
from diabolo.data.spec import Dataset, DataSpec, Split
from diabolo.data.stored import LEVELS_RGB
from diabolo.errors import UsageError
from diabolo.registry import register
from diabolo.seeds import fold

#: Standard deviation of a pixel before it is cut off at black and white: about that of photographs.
_SD = 0.255
#: Shares of the variance: brightness, red against blue, green against both; in CIFAR-10 they are 0.91, 0.07, 0.02.
_SHARES = (0.9, 0.08, 0.02)
#: The colours of these three, red, green and blue, each of length 1.
_COLOURS = ((1, 1, 1), (1, 0, -1), (-1, 2, -1))
_CHUNK = 1000


@dataclass(frozen=True)
class _Kind:
    """A class: how fast amplitude falls with frequency, how much finer the detail is across than along rows (1: alike), and
    the mean colour."""

    name: str
    falls: float
    along: float
    colour: tuple[float, float, float]


_KINDS = (
    _Kind("sky", 1.8, 1.0, (0.40, 0.49, 0.62)),
    _Kind("strata", 1.4, 4.0, (0.57, 0.46, 0.36)),
    _Kind("stems", 1.4, 0.25, (0.42, 0.52, 0.38)),
    _Kind("dust", 1.0, 1.0, (0.52, 0.46, 0.50)),
)


@register("dataset", "clouds")
def clouds(access: Access, examples: int = 2000, size: int = 32, seed: int = 0, permuted: bool = False) -> Dataset:
    r"""Clouds: smooth random colour images made in code, 4 classes that differ in direction, roughness and colour.

    .. math:: x = m_k + \sum_c \sqrt{s_c}\, u_c \otimes C^\top (a_k \odot e_c)\, C, \qquad
              a_k(i, j) \propto (1 + i^2 r_k^{-1} + j^2 r_k)^{-\alpha_k / 2}

    C is the orthonormal discrete cosine transform, e_c standard normal, and amplitude falls with frequency about as in
    photographs (alpha between 1 and 1.8). Three such fields, of brightness and two colour contrasts, are mixed into red,
    green and blue. Values are uint8 levels (N, 3, size, size), emitted as k/255 in [0, 1]: x times 255, rounded, cut off at 0
    and 255. `examples` images for training, a fifth as many for validation and for test; classes take turns.
    `permuted`: the pixel positions of all images are exchanged in the same way (see `permuting`).

    Noise comes from the raw stream of NumPy's Philox generator and everything before rounding is float64: another machine gives
    the same levels unless a value lies within about 1e-13 of the middle between two, which is not to be expected.
    Reference: Field, Relations between the statistics of natural images and the response properties of cortical cells (1987),
    https://doi.org/10.1364/JOSAA.4.002379.

    Raises:
        UsageError: for sizes that make no such images.
    """
    if examples < 1:
        raise UsageError(f"examples={examples}: at least 1")
    if size < 2:
        raise UsageError(f"size={size}: at least 2 pixels")
    counts = {"train": examples, "validation": -(-examples // 5), "test": -(-examples // 5)}
    made = {name: _split(name, count, size, fold(seed, "clouds", name)) for name, count in counts.items()}
    dataset = Dataset(
        spec=DataSpec(
            name="clouds",
            shape=(3, size, size),
            values="grey",
            classes=tuple(kind.name for kind in _KINDS),
            examples=examples,
        ),
        train=made["train"],
        validation=made["validation"],
        test=made["test"],
        hashes={name: hashlib.sha256(split.values.numpy().tobytes()).hexdigest() for name, split in made.items()},
        note=f"{LEVELS_RGB}; made in code",
    )
    return permute(dataset) if permuted else dataset


def _split(name: str, count: int, size: int, seed: int) -> Split:
    stream, parts, labels = np.random.Philox(key=seed), [], torch.arange(count) % len(_KINDS)
    cosines, amplitude = _cosines(size), torch.stack([_amplitude(kind, size) for kind in _KINDS])
    mean = torch.tensor([kind.colour for kind in _KINDS], dtype=torch.float64)[:, :, None, None]
    colours = torch.nn.functional.normalize(torch.tensor(_COLOURS, dtype=torch.float64), dim=1)
    mix = colours * (3 * torch.tensor(_SHARES, dtype=torch.float64)).sqrt()[:, None]  # rows: the three fields
    for part in labels.split(_CHUNK):
        fields = cosines.T @ (amplitude[part][:, None] * _normal(stream, (len(part), 3, size, size))) @ cosines
        x = mean[part] + torch.einsum("fc,nfij->ncij", mix, fields)
        parts.append((255 * x).round().clamp(0, 255).to(torch.uint8))
    return Split(name, torch.cat(parts), labels)


def _cosines(size: int) -> Tensor:
    """The orthonormal discrete cosine transform (DCT-II) as a matrix (size, size), a frequency a row."""
    at, frequency = torch.arange(size, dtype=torch.float64) + 0.5, torch.arange(size, dtype=torch.float64)
    rows = torch.cos(torch.pi * frequency[:, None] * at / size) * math.sqrt(2 / size)
    rows[0] *= math.sqrt(0.5)
    return rows


def _amplitude(kind: _Kind, size: int) -> Tensor:
    """Standard deviations (size, size) of the coefficients, so that those of the pixels are _SD on average."""
    squared = torch.arange(size, dtype=torch.float64).square()
    power = (1 + squared[:, None] / kind.along + squared * kind.along) ** -kind.falls
    return (power / power.sum()).sqrt() * (_SD * size)


def _normal(stream: np.random.Philox, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers by the inverse of their distribution function, float64."""
    words = np.asarray(stream.random_raw(math.prod(shape)), dtype=np.uint64) >> np.uint64(11)
    normal: Tensor = torch.special.ndtri((torch.from_numpy(words.astype(np.float64)) + 0.5) * 2.0**-53)
    return normal.reshape(shape)
