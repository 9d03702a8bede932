"""Principal components: the best linear autoencoder. N examples of D values, d latent dimensions; everything is float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Examples that are float64 at a time, and rows of the covariance that are summed at a time.
CHUNK, _ROWS = 2000, 512
#: Bytes of memory that closed forms of images may take.
LARGEST = 4 << 30


@dataclass(frozen=True)
class PCA:
    r"""Principal component analysis: the linear autoencoder of d dimensions with the least squared error on its data.

    .. math:: z = V (x - m), \qquad \hat x = m + V^\top z, \qquad V V^\top = I

    The rows of V are the eigenvectors of the data's covariance with the d largest eigenvalues. No map to d dimensions and affine
    map back has a smaller mean squared error (Eckart & Young, 1936): it is the sum of the eigenvalues left out.

    Reference: Pearson, On lines and planes of closest fit (1901), https://doi.org/10.1080/14786440109462720
    """

    mean: Tensor  # (D,)
    components: Tensor  # (d, D), orthonormal rows, the largest variance first
    variances: Tensor  # (d,): of the codes, divided by N
    residual: float  # the variance left out: the mean over the data of |x - decode(encode(x))|^2

    def first(self, d: int) -> PCA:
        """The PCA with the first d of these dimensions."""
        left_out = self.residual + self.variances[d:].sum().item()
        return PCA(self.mean, self.components[:d], self.variances[:d], left_out)

    def encode(self, x: Tensor) -> Tensor:
        """The codes (N, d) of x (N, D)."""
        return torch.cat([(part.double() - self.mean) @ self.components.T for part in x.split(CHUNK)])

    def decode(self, z: Tensor) -> Tensor:
        """The points (N, D) of codes z (N, d)."""
        return self.mean + z.double() @ self.components


def fit(x: Tensor, d: int) -> PCA:
    """The PCA with d dimensions of x (N, D): by the covariance's eigenvectors, or where N < D by the data's singular vectors.

    x may be of any type, uint8 levels for instance; only parts of it are ever float64. The sign of a component is free; the
    entry of largest size is made positive.

    Raises:
        ValueError: if d is less than 1 or more than N or D.
    """
    count, dimensions = x.shape
    if not 1 <= d <= min(count, dimensions):
        raise ValueError(f"{count} examples of {dimensions} values have no {d} principal components")
    mean = _sum(x) / count
    if count < dimensions:
        _, values, rows = torch.linalg.svd(x.double() - mean, full_matrices=False)
        power = values.square() / count
    else:
        power, columns = torch.linalg.eigh(_covariance(x, mean))
        power, rows = power.flip(0).clamp(min=0), columns.T.flip(0)
    top = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    return PCA(mean, (rows * top)[:d].contiguous(), power[:d], power[d:].sum().item())


def memory(count: int, dimensions: int) -> int:
    """Bytes that `fit` needs for so many examples: the covariance or the data, its eigenvectors twice with the workspace."""
    return 8 * 5 * min(count, dimensions) * dimensions


def _sum(x: Tensor) -> Tensor:
    """(D,): over the examples; `x.sum(0, dtype=torch.float64)` would make all of x float64 at once."""
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in x.split(CHUNK):
        total += part.sum(0, dtype=torch.float64)
    return total


def _covariance(x: Tensor, mean: Tensor) -> Tensor:
    """(D, D), divided by N. It is symmetric: blocks of rows are summed from the diagonal on, which is half of the work."""
    total = mean.new_zeros(mean.numel(), mean.numel())
    for part in x.split(CHUNK):
        centred = part.double() - mean
        for start in range(0, mean.numel(), _ROWS):
            block = slice(start, start + _ROWS)
            total[block, start:] += centred[:, block].T @ centred[:, start:]
    return (total.triu() + total.triu(1).T) / x.shape[0]
