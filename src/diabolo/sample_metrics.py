r"""How near a set of images is to a reference set, in the features of a network: pure functions of vectors, in float64.

x (n, d) are the features of n samples, y (m, d) those of m images of the reference. Every number is one entry {value, se, n,
unit}; its standard error `se` is over the samples unless its function says more. The features are part of a number's meaning:
numbers in different features, of another reference or of another n are not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diabolo.metrics import Entry, mean_and_se, proportion
from diabolo.seeds import fold

#: Parts that a standard error between parts rests on, and the size of those in which a kernel distance is averaged.
BLOCKS, KERNEL_BLOCK = 10, 1000
#: Nearest neighbours that make a neighbourhood.
K = 5
#: Rows of a matrix of distances that are in memory at a time.
_ROWS = 1000


def parts(n: int, count: int, words: Sequence[str]) -> tuple[Tensor, ...]:
    """`count` disjoint sets of indices in 0..n-1, of equal size as far as n allows, in an order that `words` decide.

    The order is drawn because samples may be sorted, by their classes for instance.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(fold(0, "parts", *words)))
    return order.tensor_split(count)


# ------------------------------------------------------------------------------------------------ two moments
@dataclass(frozen=True)
class Moments:
    """Mean m (d,) of n vectors and the sum of (x - m)(x - m)^T over them, (d, d)."""

    mean: Tensor
    scatter: Tensor
    n: int

    @property
    def covariance(self) -> Tensor:
        """C (d, d), divided by n - 1."""
        return self.scatter / (self.n - 1)

    @cached_property
    def root(self) -> Tensor:
        """C^(1/2), the symmetric root; eigenvalues that rounding made negative are 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root

    def without(self, part: Moments) -> Moments:
        """The moments of what is left when the vectors of `part` are taken away."""
        n = self.n - part.n
        mean = (self.n * self.mean - part.n * part.mean) / n
        between = mean - part.mean
        scatter = self.scatter - part.scatter - (n * part.n / self.n) * torch.outer(between, between)
        return Moments(mean, scatter, n)


def moments(x: Tensor) -> Moments:
    """The moments of x (n, d).

    Raises:
        ValueError: for fewer than two vectors, which have no covariance.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"a covariance needs at least two vectors, and these are {tuple(x.shape)}")
    x = x.double()
    mean = x.mean(0)
    centred = x - mean
    return Moments(mean, centred.T @ centred, len(x))


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""The squared Frechet distance (2-Wasserstein) of two Gaussians with these moments, in squared units of the features.

    .. math:: |m_1 - m_2|^2 + \mathrm{tr}(C_1 + C_2) - 2\, \mathrm{tr}\,(C_2^{1/2} C_1 C_2^{1/2})^{1/2}

    The last trace is that of (C_1 C_2)^(1/2), written with a symmetric matrix so that its eigenvalues are real and not below 0:
    no root of a matrix that is not symmetric is taken, and no small number is added to a diagonal. What rounding puts below 0
    is 0.

    Reference: Dowson and Landau, The Frechet distance between multivariate normal distributions (1982),
    https://doi.org/10.1016/0047-259X(82)90077-X; of features: Heusel et al., GANs trained by a two time-scale update rule
    converge to a local Nash equilibrium (2017), arXiv:1706.08500. It is called FID only in the features of one Inception network.
    """
    inner = torch.linalg.eigvalsh(b.root @ a.covariance @ b.root).clamp(min=0).sqrt().sum()
    traces = a.covariance.diagonal().sum() + b.covariance.diagonal().sum()
    return max(0.0, float((a.mean - b.mean).square().sum() + traces - 2 * inner))


def frechet(x: Tensor, reference: Moments) -> Entry:
    r"""The Frechet distance of samples x (n, d) from a reference, its standard error and the part of it that n alone explains.

    The distance of finite sets is too large on average, by c/n to first order, even between sets of the same distribution.
    The jackknife over 10 blocks of the samples gives, from the distances D_(b) without block b,

    .. math:: se^2 = \tfrac{9}{10} \sum_b (D_{(b)} - \bar D)^2, \qquad bias = 9\, (\bar D - D)

    value: D itself, which contains the bias, as in the literature; `bias` stands beside it and is never subtracted. The
    reference is held constant: `se` is the spread over sets of samples, and the reference's own share of the bias is not in
    `bias`.

    Raises:
        ValueError: for fewer than 20 samples.

    Reference: Chong and Forsyth, Effectively unbiased FID and Inception Score and where to find them (2020), arXiv:1911.07023;
    Efron, The jackknife, the bootstrap and other resampling plans (1982), https://doi.org/10.1137/1.9781611970319
    """
    _check(len(x), "a Frechet distance")
    x = x.double()
    whole = moments(x)
    value = frechet_distance(whole, reference)
    left = [frechet_distance(whole.without(moments(x[part])), reference) for part in parts(len(x), BLOCKS, ["frechet"])]
    spread = torch.tensor(left, dtype=torch.float64)
    se = math.sqrt((BLOCKS - 1) * spread.var(correction=0).item())
    bias = (BLOCKS - 1) * (spread.mean().item() - value)
    return {"value": value, "se": se, "bias": bias, "n": len(x), "unit": "squared features"}


def _check(n: int, what: str) -> None:
    if n < 2 * BLOCKS:
        raise ValueError(f"{what} with its standard error needs at least {2 * BLOCKS} examples, and these are {n}")


# ------------------------------------------------------------------------------------------------ all moments up to the third
def squared_mmd(x: Tensor, y: Tensor) -> float:
    r"""The unbiased estimate of the squared maximum mean discrepancy of x (n, d) and y (m, d); it may be below 0.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
              - \frac{2}{nm} \sum_{i,j} k(x_i, y_j), \qquad k(x, y) = (x^\top y / d + 1)^3

    Its mean is 0 where both sets are drawn from one distribution, whatever n and m.

    Reference: Gretton et al., A kernel two-sample test (2012), https://jmlr.org/papers/v13/gretton12a.html
    """
    x, y = x.double(), y.double()
    return _within(x) + _within(y) - 2 * _kernel(x, y).mean().item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> float:
    k = _kernel(x, x)
    return ((k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))).item()


def kernel_distance(x: Tensor, y: Tensor) -> Entry:
    """The mean of `squared_mmd` over disjoint blocks of 1,000 of samples and as many of the reference, without a unit.

    At least 10 blocks are made, smaller ones of smaller sets. Blocks are independent, so that the standard deviation between
    them over the root of their number is the standard error, over samples and reference. Unbiased: it does not depend on n.

    Raises:
        ValueError: for fewer than 20 samples or images of the reference.

    Reference: Binkowski et al., Demystifying MMD GANs (2018), arXiv:1801.01401, who average over drawn sets of 1,000.
    """
    n = min(len(x), len(y))
    _check(n, "a kernel distance")
    count = max(BLOCKS, n // KERNEL_BLOCK)
    pairs = zip(parts(len(x), count, ["kernel", "x"]), parts(len(y), count, ["kernel", "y"]))
    value, se = mean_and_se(torch.tensor([squared_mmd(x[i], y[j]) for i, j in pairs], dtype=torch.float64))
    return {"value": value, "se": se, "n": len(x), "unit": "kernel", "blocks": count}


# ------------------------------------------------------------------------------------------------ neighbourhoods
@dataclass(frozen=True)
class Neighbourhoods:
    """A ball around each of the points (n, d) whose squared radius (n,) reaches its k-th nearest neighbour among the others."""

    points: Tensor
    squared_radii: Tensor
    k: int


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (n, m) float64, of x (n, d) and y (m, d) in float64; what rounding puts below 0 is 0."""
    squares = x.square().sum(1)[:, None] + y.square().sum(
        1
    )  # first, so that both directions of a pair are rounded alike
    return squares.addmm_(x, y.T, alpha=-2).clamp_(min=0)


def neighbourhoods(x: Tensor, k: int = K) -> Neighbourhoods:
    """The neighbourhoods of x (n, d), which estimate where its distribution has any mass.

    Raises:
        ValueError: unless 1 <= k < n.
    """
    if not 1 <= k < len(x):
        raise ValueError(f"{len(x)} points have no {k} nearest neighbours")
    x = x.double()
    radii = []
    for start, rows in _chunks(x):
        distances = squared_distances(rows, x)
        distances[torch.arange(len(rows)), start + torch.arange(len(rows))] = math.inf  # no neighbour of itself
        radii.append(distances.topk(k, dim=1, largest=False).values[:, -1])
    return Neighbourhoods(x, torch.cat(radii), k)


def precision_recall_density_coverage(samples: Neighbourhoods, reference: Neighbourhoods) -> dict[str, Entry]:
    r"""Four numbers of whether samples lie among the reference (precision, density) and reach all of it (recall, coverage).

    With B(y_j) the ball around y_j that reaches its k-th nearest neighbour among the reference, and B(x_i) among the samples,

    .. math:: precision = \tfrac1n \sum_i 1[x_i \in \cup_j B(y_j)], \qquad recall = \tfrac1m \sum_j 1[y_j \in \cup_i B(x_i)]

    .. math:: density = \tfrac{1}{kn} \sum_{i,j} 1[x_i \in B(y_j)], \qquad
              coverage = \tfrac1m \sum_j 1[\exists i: x_i \in B(y_j)]

    Density is about 1, and may be above, where both have one distribution; the others are shares. Recall and coverage fall
    with fewer samples. Standard errors are binomial (of density: that of a mean over samples) and hold the balls constant.

    Reference: Kynkaanniemi et al., Improved precision and recall metric for assessing generative models (2019),
    arXiv:1904.06991; Naeem et al., Reliable fidelity and diversity metrics for generative models (2020), arXiv:2002.09797.
    """
    m = len(reference.points)
    inside = torch.zeros(len(samples.points), dtype=torch.float64)
    reached, covered = torch.zeros(m, dtype=torch.bool), torch.zeros(m, dtype=torch.bool)
    for start, rows in _chunks(samples.points):
        here = slice(start, start + len(rows))
        distances = squared_distances(rows, reference.points)
        in_reference = distances <= reference.squared_radii
        inside[here] = in_reference.sum(1, dtype=torch.float64)
        covered |= in_reference.any(0)
        reached |= (distances <= samples.squared_radii[here, None]).any(0)
    density, density_se = mean_and_se(inside / reference.k)
    return {
        "precision": share(inside > 0),
        "recall": share(reached),
        "density": {"value": density, "se": density_se, "n": inside.numel(), "unit": "ratio"},
        "coverage": share(covered),
    }


def share(hits: Tensor) -> Entry:
    """The share of true values of hits (n,), with its binomial standard error."""
    return {**proportion(hits), "unit": "share"}


def _chunks(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(x), _ROWS):
        yield start, x[start : start + _ROWS]


# ------------------------------------------------------------------------------------------------ classes
def class_accuracy(logits: Tensor, asked: Tensor) -> Entry:
    """The share of samples in which a classifier, logits (n, K), recognises the class that was asked for, asked (n,).

    It says nothing of diversity: one good image a class, drawn again and again, has 1. Coverage stands beside it.
    """
    return share(logits.argmax(1) == asked)


def class_entropy(logits: Tensor) -> Entry:
    r"""The entropy of the classes that a classifier, logits (n, K), sees in the samples, with their counts: nats, at most log K.

    .. math:: H = - \sum_c p_c \log p_c, \qquad se^2 = \tfrac1n \left(\sum_c p_c \log^2 p_c - H^2\right)

    p_c is the share of samples recognised as c. The plug-in estimate is too small by about (K - 1) / (2n). The standard error
    is that of the delta method, which is 0 for equal shares.

    Reference: Basharin, On a statistical estimate for the entropy (1959), https://doi.org/10.1137/1104033
    """
    n, classes = logits.shape
    counts = torch.bincount(logits.argmax(1), minlength=classes)
    p = counts.double() / n
    surprise = -torch.where(p > 0, p, 1).log()
    entropy = (p * surprise).sum().item()
    variance = max(0.0, (p * surprise.square()).sum().item() - entropy**2)
    return {
        "value": entropy,
        "se": math.sqrt(variance / n),
        "n": n,
        "unit": "nats",
        "of": math.log(classes),
        "counts": counts.tolist(),
    }
