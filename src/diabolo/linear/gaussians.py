"""Gaussians in closed form: probabilistic PCA with any noise, the full covariance, and the bound that they reach.

D values an example, M examples, q latent dimensions, lambda_i the eigenvalues of a covariance. All numbers are nats per example.
A Gaussian whose axes are those of the data's covariance needs only the squares of the data's coordinates along them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diabolo.errors import DataError, UsageError
from diabolo.linear.pca import CHUNK, PCA, fit


@dataclass(frozen=True)
class Spectrum:
    r"""What Gaussian models know of data: variances on the axes of the training covariance, and where other examples lie there.

    .. math:: S = \tfrac1N \sum_n (x_n - m)(x_n - m)^\top = U \,\mathrm{diag}(\lambda)\, U^\top, \qquad c(x) = U^\top (x - m)
    """

    eigenvalues: Tensor  # (D,) lambda, the largest first
    squares: Tensor  # (M, D): c_i(x)^2 of the examples that are scored, or its expectation

    def moved(self, scale: float, noise: float) -> Spectrum:
        """That of scale x + e in expectation over e: independent of x, uncorrelated, with mean 0 and variance `noise` a value."""
        return Spectrum(self.eigenvalues * scale**2 + noise, self.squares * scale**2 + noise)


def spectrum(train: Tensor, test: Tensor) -> Spectrum:
    """The spectrum of train (N, D), with test (M, D) in it; of any type, both in the same unit.

    With N < D the covariance has no more than N axes. All others have the eigenvalue 0, so that only the sum of their squares
    matters to a model; it is spread evenly over them.
    """
    pca, dimensions = fit(train, min(train.shape)), train.shape[1]
    squares = torch.empty(len(test), dimensions, dtype=torch.float64)
    for part, out in zip(test.split(CHUNK), squares.split(CHUNK)):
        out.copy_(_squares(pca, part))
    eigenvalues = squares.new_zeros(dimensions)
    eigenvalues[: pca.variances.numel()] = pca.variances
    return Spectrum(eigenvalues, squares)


def _squares(pca: PCA, x: Tensor) -> Tensor:
    inside, others = pca.encode(x).square(), pca.mean.numel() - len(pca.components)
    if not others:
        return inside
    outside = ((x.double() - pca.mean).square().sum(1) - inside.sum(1)).clamp(min=0)
    return torch.cat([inside, (outside / others)[:, None].expand(-1, others)], 1)


# ------------------------------------------------------------------------------------------------ models
@dataclass(frozen=True)
class Gaussian:
    r"""N(m, U diag(v) U^T) as a model with latents: z ~ N(0, I), x = m + W z + e, e ~ N(0, sigma^2 I), in closed form.

    .. math:: W = U (\mathrm{diag}(v) - \sigma^2 I)^{1/2}, \qquad
              p(z_i | x) = N(\sqrt{v_i - \sigma^2}\, c_i / v_i,\; \sigma^2 / v_i)

    An axis with v_i = sigma^2 has no latent: its posterior is the prior. Without noise (sigma^2 = 0) the code is x itself.
    All methods take squares c^2 (..., D) and return (...); all are linear in them, so that a mean over examples may be given.
    """

    variances: Tensor  # (D,) v
    noise: float  # sigma^2

    @property
    def active(self) -> int:
        """How many latents carry anything: the axes with v_i > sigma^2."""
        return int((self.variances > self.noise).sum())

    def nll(self, squares: Tensor) -> Tensor:
        """-log p(x) = 1/2 sum_i [log(2 pi v_i) + c_i^2 / v_i], nats per example, of a density."""
        return 0.5 * (torch.log(2 * math.pi * self.variances).sum() + squares @ self.variances.reciprocal())

    def kl(self, squares: Tensor) -> Tensor:
        """KL(p(z | x) || N(0, I)), nats per example; over data of covariance U diag(v) U^T its mean is 1/2 sum log(v/sigma^2)."""
        share = self.noise / self.variances
        at_mean = squares @ ((1 - share) / self.variances)
        return 0.5 * (at_mean + (share - 1 - share.log()).sum())

    def sse(self, squares: Tensor) -> Tensor:
        """E |x - m - W z|^2 with z drawn from p(z | x), per example: what is left at the mean, and the posterior's spread."""
        return self.sse_mean(squares) + (self.noise * (1 - self.noise / self.variances)).sum()

    def sse_mean(self, squares: Tensor) -> Tensor:
        """|x - m - W E[z | x]|^2 per example: along each axis x shrinks towards m by the factor 1 - sigma^2 / v_i."""
        return squares @ (self.noise / self.variances).square()


def probabilistic_pca(eigenvalues: Tensor, latent: int, noise: float | None = None) -> Gaussian:
    r"""The best of all models x = W z + b + sigma e with z in R^q for data with these eigenvalues (D,), by maximum likelihood.

    .. math:: v_i = \max(\lambda_i, \sigma^2) \; (i \le q), \qquad v_i = \sigma^2 \; (i > q), \qquad
              \hat\sigma^2 = \tfrac{1}{D - q} \sum_{i > q} \lambda_i

    The second is the maximum-likelihood noise, taken where `noise` (a variance, > 0) is not given. With a given noise a direction
    is used only if its eigenvalue exceeds it: at most so many of the q latents are active, whatever q.

    Raises:
        UsageError: unless 1 <= latent < D and noise > 0.
        DataError: if without the first q axes nothing is left of which noise could be fitted.

    Reference: Tipping and Bishop, Probabilistic principal component analysis (1999), https://doi.org/10.1111/1467-9868.00196;
    the given noise: Lucas et al., Don't blame the ELBO! (2019), arXiv:1911.02469.
    """
    dimensions = eigenvalues.numel()
    if not 1 <= latent < dimensions:
        raise UsageError(f"{latent} latents for {dimensions} values", "At least 1, and fewer than there are values.")
    if noise is not None and not 0 < noise < math.inf:
        raise UsageError(f"noise of variance {noise:g} is refused", "It must be greater than 0.")
    if noise is None:
        _check_rank(eigenvalues, latent + 1)
        noise = eigenvalues[latent:].mean().item()
    variances = torch.full_like(eigenvalues, noise)
    variances[:latent] = eigenvalues[:latent].clamp(min=noise)
    return Gaussian(variances, noise)


def full_covariance(eigenvalues: Tensor) -> Gaussian:
    """The Gaussian of maximum likelihood, without latents: v = lambda; what probabilistic PCA is at q = D - 1.

    Raises:
        DataError: if the covariance is singular: the density is then infinite on the data and 0 elsewhere.
    """
    _check_rank(eigenvalues, eigenvalues.numel())
    return Gaussian(eigenvalues, 0.0)


def rank(eigenvalues: Tensor) -> int:
    """How many eigenvalues (D,) are more than rounding errors of the largest."""
    return int((eigenvalues > eigenvalues[0] * eigenvalues.numel() * torch.finfo(eigenvalues.dtype).eps).sum())


def _check_rank(eigenvalues: Tensor, needed: int) -> None:
    found = rank(eigenvalues)
    if found < needed:
        raise DataError(
            f"The training covariance has only {found:,} of {eigenvalues.numel():,} directions with any variance, and this "
            f"model needs {needed:,}.",
            "Pixels that are the same in all images, or fewer images than pixels, leave it singular: no density is finite.",
            f"Take probabilistic PCA with fewer than {found:,} latents or with a given noise, more images, or values with the "
            "noise of dequantization, x = (k + u)/256.",
        )


# ------------------------------------------------------------------------------------------------ the bound
def water_filling(eigenvalues: Tensor, variances: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
    r"""The rate-distortion curve of a Gaussian with these eigenvalues (D,), at the water levels s (K,): rate and SSE, each (K,).

    .. math:: R(s) = \tfrac12 \sum_i \log^+ (\lambda_i / s), \qquad \mathrm{SSE}(s) = \sum_i \min(\lambda_i, s)

    Nats per example, and the expected sum of squared errors. No code of Gaussian data has a smaller error at this rate; real data
    of the same covariance may be coded better. Probabilistic PCA with the noise s and enough latents lies on the curve.

    Raises:
        UsageError: unless all levels are greater than 0.

    Reference: Cover and Thomas, Elements of information theory (2006), theorem 10.3.3, https://doi.org/10.1002/047174882X
    """
    levels = torch.as_tensor(variances, dtype=torch.float64)[:, None]
    if not (levels > 0).all():
        raise UsageError("a water level of 0 or less is refused", "The rate would be infinite.")
    found = eigenvalues.double()
    return 0.5 * (found / levels).clamp(min=1).log().sum(1), found.minimum(levels).sum(1)
