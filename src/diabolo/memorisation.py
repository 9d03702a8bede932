r"""Whether samples are copies: how near each is to the images that were trained on, against how near new images are.

A space is a way to make an image a vector: its pixels, or features of it. x (n, d) are samples, t (m, d) test images and
y (N, d) the training images in that space, as they are and mirrored, since models are trained on both; d(x) is the Euclidean
distance of x to the nearest of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diabolo.metrics import Entry
from diabolo.progress import Progress
from diabolo.sample_metrics import squared_distances
from diabolo.seeds import fold

#: A sample counts as memorised if it is nearer to a training image than all but this share of the test images are to theirs.
QUANTILE = 0.01
#: Redraws of both sets that the standard error of a memorised share is the spread of.
_REDRAWS = 200
#: Rows and columns of the matrix of distances that are in memory at a time.
_ROWS, _COLUMNS = 1000, 5000
#: A sum of so many products of levels less 128 is a whole number of at most 2^24, and so is every part of it: float32 holds them.
_EXACT = 1024


@dataclass(frozen=True)
class Nearest:
    """The k nearest training images of each of n points: distances (n, k), float64, the least first, and indices (n, k)."""

    distances: Tensor
    indices: Tensor


def nearest(x: Tensor, y: Tensor, k: int = 1, progress: Progress | None = None) -> Nearest:
    """The k vectors of y (N, d) that are nearest to each of x (n, d), by Euclidean distance; every pair is looked at.

    Both may be of any type, uint8 levels for instance, and have more than one dimension for a vector; only parts are float64
    at a time. Among equals the order is left open. `progress` is told the rows of y that are done.

    Raises:
        ValueError: unless 1 <= k <= N.
    """
    if not 1 <= k <= len(y):
        raise ValueError(f"among {len(y)} vectors there are no {k} nearest ones")
    progress = progress or Progress()
    squares = torch.full((len(x), 0), math.inf, dtype=torch.float64)
    indices = torch.zeros((len(x), 0), dtype=torch.long)
    for start in range(0, len(y), _COLUMNS):
        columns = y[start : start + _COLUMNS].flatten(1)
        near = [_least(rows.flatten(1), columns, k) for rows in x.split(_ROWS)]
        squares = torch.cat([squares, torch.cat([part[0] for part in near])], 1)
        indices = torch.cat([indices, start + torch.cat([part[1] for part in near])], 1)
        squares, order = squares.topk(min(k, squares.shape[1]), dim=1, largest=False)
        indices = indices.gather(1, order)
        progress.advance(len(columns))
    return Nearest(squares.sqrt(), indices)


def _least(rows: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    levels = rows.dtype == columns.dtype == torch.uint8
    squares = _between_levels(rows, columns) if levels else squared_distances(rows.double(), columns.double())
    found = squares.topk(min(k, len(columns)), dim=1, largest=False)
    return found.values, found.indices


def _between_levels(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (n, m) float64, of levels x (n, d) and y (m, d), exact: from products in float32, which take less time than
    those in float64."""
    a, b = x.float() - 128, y.float() - 128
    squares = a.double().square().sum(1)[:, None] + b.double().square().sum(1)
    for part, other in zip(a.split(_EXACT, 1), b.split(_EXACT, 1)):
        squares.sub_(part @ other.T, alpha=2)
    return squares


def memorised(samples: Tensor, test: Tensor, quantile: float = QUANTILE) -> Entry:
    r"""The share of samples that are nearer to a training image than all but 1 % of the test images are: 1 % if none is copied.

    .. math:: \tfrac1n \sum_i 1[d(x_i) \le q], \qquad q \text{ the 1st percentile of } d(t_1), \dots, d(t_m)

    samples (n,), test (m,): distances d. Test images were not trained on, so that their own distances say what is near by chance
    or by subject. A copy lies below all of them that are new; a quantile rather than their least distance, which one double among
    the test images would decide. Where more of them are doubles than the quantile has room for, q is a distance of doubles, and
    the share errs on the small side. Nothing is subtracted: the value of samples that are as new as the test images is
    `quantile`, and a model that draws training images alone has 1.

    The percentile is low because distances are also small where an image is blurred or plain. What is left of that makes the
    share too large; a copy that is shifted or recoloured, which may be far away in this space, makes it too small. `se`: the
    spread over 200 redraws with replacement of samples and test images.

    Raises:
        ValueError: for fewer than two samples or fewer than 1 / quantile test images: they have no such percentile.

    Reference: Meehan et al., A non-parametric test to detect data-copying in generative models (2020), arXiv:2004.05675, for the
    comparison with test images; Barz and Denzler, Do we train on test data? (2020), arXiv:1902.00423, for the doubles: 3.3 % of
    CIFAR-10's test images have one among its training images.
    """
    if len(samples) < 2 or len(test) * quantile < 1:
        raise ValueError(f"{len(test)} test images have no {100 * quantile:g} % quantile of their distances")
    generator = torch.Generator().manual_seed(fold(0, "memorised"))
    redrawn = _shares_below(_redraws(samples, generator), _redraws(test, generator), quantile)
    return {
        "value": _shares_below(samples[None], test[None], quantile).item(),
        "se": redrawn.std().item(),
        "n": len(samples),
        "unit": "share",
        "quantile": quantile,
        "threshold": test.quantile(quantile).item(),
    }


def _redraws(values: Tensor, generator: torch.Generator) -> Tensor:
    """(redraws, n)"""
    return values[torch.randint(len(values), (_REDRAWS, len(values)), generator=generator)]


def _shares_below(samples: Tensor, test: Tensor, quantile: float) -> Tensor:
    """(R,) of samples (R, n) and test (R, m)"""
    return (samples <= test.quantile(quantile, dim=1, keepdim=True)).double().mean(1)


def nearer_than_test(samples: Tensor, test: Tensor) -> Entry:
    r"""The probability that a sample is nearer to its nearest training image than a test image is to its own; 0.5: as near.

    .. math:: P = \tfrac{1}{nm} \sum_{i,j} \left(1[d(x_i) < d(t_j)] + \tfrac12 1[d(x_i) = d(t_j)]\right), \qquad
              se^2 = \frac{S^2(P_{i \cdot})}{n} + \frac{S^2(P_{\cdot j})}{m}

    samples (n,), test (m,): distances d. This is the statistic of Mann and Whitney over nm, with its standard error for two
    independent sets from the means over the one for each of the other. All of the distances count, so that it is above 0.5
    for blurred or plain images, too: it says where samples lie, and `memorised` whether they are copies.

    Reference: DeLong et al., Comparing the areas under two or more correlated receiver operating characteristic curves (1988),
    https://doi.org/10.2307/2531595
    """
    above, below = 1 - _placements(samples, test), _placements(test, samples)
    se = math.sqrt(above.var().item() / len(samples) + below.var().item() / len(test))
    return {"value": above.mean().item(), "se": se, "n": len(samples), "unit": "probability"}


def _placements(x: Tensor, among: Tensor) -> Tensor:
    """The share of `among` (m,) that is less than each of x (n,), equal ones counting half."""
    ordered = among.sort().values
    less, not_more = (torch.searchsorted(ordered, x.contiguous(), right=right) for right in (False, True))
    return (less + not_more).double() / (2 * len(among))
