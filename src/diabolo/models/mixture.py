"""A mixture of Gaussians with full covariances as prior: its density, and what fits it, expectation maximisation.

Shapes: N codes of d values, K components, C classes; L is the lower-triangular Cholesky factor of a covariance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from diabolo.errors import UsageError
from diabolo.models.distributions import tempered
from diabolo.models.priors import Encode, Prior, refuse_constant
from diabolo.registry import register

#: What is added to the variance of each direction, as a share of their mean: a constant one would have an infinite density.
RIDGE = 1e-6
#: EM ends when the penalised log-likelihood rises by less than this, nats per code, or after so many rounds.
TOLERANCE, MOST_ROUNDS = 1e-3, 200
#: Rounds of k-means with which EM starts.
LLOYD_ROUNDS = 10
#: A responsibility below it changes no sum in float64; without such codes a component's covariance costs a fraction.
_NOTHING = 1e-16


# ------------------------------------------------------------------------------------------------ the distribution
class GaussianMixture(Distribution):
    r"""sum_k w_k N(m_k, L_k L_k^T): the components are shared by the whole batch, each of which has its own weights.

    log_weights (*batch, K), -inf for a component that has no part; means (K, d); factors L (K, d, d); an event has the d values
    in any `event_shape`.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, log_weights: Tensor, means: Tensor, factors: Tensor, event_shape: torch.Size) -> None:
        super().__init__(log_weights.shape[:-1], event_shape, validate_args=False)
        self.log_weights, self.means, self.factors = log_weights, means, factors

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianMixture:
        log_weights = self.log_weights.expand(*batch_shape, self.log_weights.shape[-1])
        return GaussianMixture(log_weights, self.means, self.factors, self.event_shape)

    @property
    def mean(self) -> Tensor:
        found: Tensor = (self.log_weights.exp() @ self.means).unflatten(-1, self.event_shape)
        return found

    @property
    def variance(self) -> Tensor:
        """Of each value by itself, (*batch, *event)."""
        weights = self.log_weights.exp()
        second = weights @ (self.factors.square().sum(2) + self.means.square())
        found: Tensor = (second - (weights @ self.means).square()).unflatten(-1, self.event_shape)
        return found

    def log_prob(self, value: Tensor) -> Tensor:
        z = value.flatten(-len(self.event_shape))
        found: Tensor = torch.logsumexp(self.log_weights + log_normal(z, self.means, self.factors), -1)
        return found

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        component = Categorical(logits=self.log_weights).sample(sample_shape)  # (*sample, *batch)
        noise = torch.randn(*component.shape, self.means.shape[1], dtype=self.means.dtype, device=self.means.device)
        z = torch.empty_like(noise)
        for k, (mean, factor) in enumerate(zip(self.means, self.factors)):
            z[component == k] = mean + noise[component == k] @ factor.T
        found: Tensor = z.unflatten(-1, self.event_shape)
        return found


@tempered.register
def _(p: GaussianMixture, temperature: float) -> Distribution:
    return GaussianMixture(p.log_weights, p.means, p.factors * temperature, p.event_shape)


def log_normal(z: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    r"""log N(z; m_k, L_k L_k^T) of z (..., d) under each of means (K, d), factors (K, d, d), (..., K) nats.

    .. math:: -\tfrac12 |L_k^{-1}(z - m_k)|^2 - \log\det L_k - \tfrac d2 \log 2\pi
    """
    rows = z.flatten(0, -2) if z.ndim > 1 else z[None]
    squares = torch.stack([whitened(rows, m, factor).square().sum(1) for m, factor in zip(means, factors)], 1)
    log_det = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    found = -0.5 * squares - log_det - 0.5 * z.shape[-1] * math.log(2 * math.pi)
    log_density: Tensor = found.reshape(*z.shape[:-1], means.shape[0])
    return log_density


def whitened(z: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """L^-1 (z - m) of z (N, d)."""
    found: Tensor = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False).T
    return found


# ------------------------------------------------------------------------------------------------ covariances
def float64(z: Tensor) -> Tensor:
    """z in float64 without a gradient, on the processor if its device has no such numbers."""
    return z.detach().to("cpu" if z.device.type == "mps" else z.device, torch.float64)


def covariance(z: Tensor) -> Tensor:
    """The covariance (d, d) of codes z (N, d) about 0, and a millionth of the mean variance in every direction.

    Raises:
        DataError: if the codes are all the same.
    """
    found = z.T @ z / z.shape[0]
    mean_variance = found.diagonal().mean()
    refuse_constant(mean_variance)
    return found + RIDGE * mean_variance * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)


def centred(z: Tensor, y: Tensor | None, classes: int) -> Tensor:
    """Codes z (N, d) less the mean of their class, or of all where y is None."""
    if y is None:
        return z - z.mean(0)
    means = torch.stack([z[y == c].mean(0) for c in range(classes)])
    return z - means[y]


def class_counts(y: Tensor | None, classes: int) -> Tensor:
    """How many codes each class has, (C,).

    Raises:
        UsageError: without classes y (N,), or if one of the classes has no codes.
    """
    if y is None:
        raise UsageError(
            "a prior for each class needs the classes of the codes", "These have none.", "Take prior.per_class=false."
        )
    counts = torch.bincount(y, minlength=classes)
    if not counts.all():
        raise UsageError(
            f"there are no codes of class {int((counts == 0).nonzero()[0])}",
            "Nothing can be fitted for it.",
            "Take prior.per_class=false.",
        )
    return counts


# ------------------------------------------------------------------------------------------------ expectation maximisation
@dataclass(frozen=True)
class Fit:
    """A mixture and how it was found. `path`: the penalised log-likelihood, nats per code, of the mixture before each round."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, d)
    factors: Tensor  # (K, d, d)
    path: list[float]


@torch.no_grad()
def expectation_maximisation(z: Tensor, components: int, target: Tensor, strength: float, seed: int = 0) -> Fit:
    r"""Fit a mixture to codes z (N, d) float64, each covariance drawn towards `target` (d, d) as if by `strength` codes.

    .. math:: \Sigma_k = \frac{\sum_n r_{nk} (z_n - m_k)(z_n - m_k)^\top + s T}{\sum_n r_{nk} + s}, \qquad
              r_{nk} = \frac{w_k N(z_n; m_k, \Sigma_k)}{\sum_j w_j N(z_n; m_j, \Sigma_j)}

    Each round raises log p(z) - s/2 sum_k [log det Sigma_k + tr(Sigma_k^-1 T)], summed over the codes: maximum a posteriori under
    inverse Wishart priors. It starts from k-means++ in the coordinates where T is the identity; a function of z and `seed` alone.

    Raises:
        UsageError: for fewer codes than components, or a covariance that is singular because nothing regularises it.

    References: Dempster, Laird & Rubin, Maximum likelihood from incomplete data via the EM algorithm (1977),
    https://doi.org/10.1111/j.2517-6161.1977.tb01600.x; Fraley & Raftery, Bayesian regularization for normal mixture estimation
    (2007), https://doi.org/10.1007/s00357-007-0004-5.
    """
    if z.shape[0] < components:
        raise UsageError(f"{components} components for {z.shape[0]} codes", "Each needs at least one.")
    root = cholesky(target)
    nearest = k_means(whitened(z, z.mean(0), root), components, seed)
    responsibilities = torch.nn.functional.one_hot(nearest, components).to(z.dtype)
    path: list[float] = []
    while True:
        weights, means, factors = _maximise(z, responsibilities, target, strength)
        if components == 1:  # in closed form
            return Fit(weights, means, factors, path)
        joint = weights.log() + log_normal(z, means, factors)  # (N, K)
        total = joint.logsumexp(1, keepdim=True)
        penalty = strength / 2 * sum(_distance(root, factor) for factor in factors) / z.shape[0]
        path.append((total.mean() - penalty).item())
        if len(path) > 1 and (path[-1] - path[-2] < TOLERANCE or len(path) > MOST_ROUNDS):
            return Fit(weights, means, factors, path)
        responsibilities = (joint - total).exp()


def _maximise(z: Tensor, responsibilities: Tensor, target: Tensor, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    counts = responsibilities.sum(0)
    means = (responsibilities.T @ z) / counts.clamp(min=torch.finfo(z.dtype).tiny)[:, None]
    factors = []
    for r, mean, count in zip(responsibilities.T, means, counts):
        some = r > _NOTHING
        weighted = (z[some] - mean) * r[some, None].sqrt()
        factors.append(cholesky((weighted.T @ weighted + strength * target) / (count + strength)))
    return counts / z.shape[0], means, torch.stack(factors)


def _distance(root: Tensor, factor: Tensor) -> Tensor:
    """log det Sigma + tr(Sigma^-1 T), of the factors of T and Sigma."""
    trace = torch.linalg.solve_triangular(factor, root, upper=False).square().sum()
    distance: Tensor = 2 * factor.diagonal().log().sum() + trace
    return distance


def cholesky(matrix: Tensor) -> Tensor:
    """The lower-triangular factor of a covariance (d, d).

    Raises:
        UsageError: if it is singular.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise UsageError(
            "the covariance of a component is singular",
            "It has fewer codes than dimensions, and no density is finite.",
            "Take a larger prior.shrinkage, or fewer components.",
        )
    return factor


def k_means(z: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster (N,) of each of z (N, d) after a start in which each centre is drawn in proportion to the squared distance from
    those before it.

    Reference: Arthur & Vassilvitskii, k-means++: the advantages of careful seeding (2007),
    https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf.
    """
    generator = torch.Generator().manual_seed(seed)
    distances = torch.ones_like(z[:, 0])
    centres = z[:0]
    for k in range(clusters):
        drawn = torch.multinomial(distances.cpu(), 1, generator=generator).to(z.device)
        centres = torch.cat([centres, z[drawn]])
        new = (z - z[drawn]).square().sum(1)
        distances = (new if k == 0 else distances.minimum(new)).clamp(min=torch.finfo(z.dtype).tiny)
    for _ in range(LLOYD_ROUNDS):
        nearest = torch.cdist(z, centres).argmin(1)
        centres = torch.stack([
            z[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(clusters)
        ])
    return torch.cdist(z, centres).argmin(1)


# ------------------------------------------------------------------------------------------------ the prior
@register("prior", "mixture")
class MixturePrior(Prior):
    r"""Gaussians with full covariances, so many for each class, fitted to codes by expectation maximisation.

    .. math:: p(z | y) = \sum_k w_{k|y} N(z; m_{yk}, \Sigma_{yk}), \qquad p(z) = \sum_y p(y)\, p(z | y)

    p(y) are the frequencies of the classes among the codes that it was fitted to. Without classes, or with `per_class` off, there
    is one mixture of `components` for all. Each covariance is drawn towards the covariance within the classes, which all codes
    determine together, as if by `shrinkage` x d more codes: a class of 5,000 codes does not determine the 131,000 numbers
    of a covariance in 512 dimensions. More components want more codes, or more shrinkage. Before it is fitted it is N(0, I).

    Raises:
        ValueError: for less than one component, or a negative shrinkage.
        UsageError: in `initialise`, for a class without codes, or too few codes.

    Reference: Friedman, Regularized discriminant analysis (1989), https://doi.org/10.1080/01621459.1989.10478752.
    """

    fitted_by = "closed form"

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        classes: int = 0,
        components: int = 2,
        per_class: bool = True,
        shrinkage: float = 1.0,
    ) -> None:
        super().__init__()
        if components < 1 or not 0 <= shrinkage < math.inf:
            raise ValueError("components must be at least 1, shrinkage at least 0")
        self.event_shape, self.components, self.shrinkage = torch.Size(latent_shape), components, shrinkage
        self.classes = classes if per_class else 0
        d, count = math.prod(latent_shape), max(1, self.classes) * components
        self.register_buffer("weights", torch.full((count,), 1 / count))  # p(y) w_k|y, those of a class in a row
        self.register_buffer("means", torch.zeros(count, d))
        self.register_buffer("factors", torch.eye(d).repeat(count, 1, 1))
        self.weights: Tensor
        self.means: Tensor
        self.factors: Tensor

    def forward(self, y: Tensor | None = None, encode: Encode | None = None) -> Distribution:
        weights = self.weights
        if y is not None and self.classes:
            own = torch.arange(self.classes, device=y.device).repeat_interleave(self.components) == y[:, None]
            weights = weights * own  # (B, C K)
        log_weights = (weights / weights.sum(-1, keepdim=True)).log()
        return GaussianMixture(log_weights, self.means, self.factors, self.event_shape)

    def initialise(self, z: Tensor, y: Tensor | None = None) -> None:
        codes = float64(z.flatten(1))
        counts = class_counts(y, self.classes) if self.classes else None
        y = None if counts is None or y is None else y.to(codes.device)
        target = covariance(centred(codes, y, self.classes)) * self.components ** (-2 / codes.shape[1])
        strength = self.shrinkage * codes.shape[1]
        parts = [codes] if y is None else [codes[y == c] for c in range(self.classes)]
        fits = [expectation_maximisation(part, self.components, target, strength) for part in parts]
        shares = torch.ones(1) if counts is None else counts.to(codes.device) / counts.sum().item()
        self.weights.copy_(torch.cat([share * fit.weights for share, fit in zip(shares, fits)]))
        self.means.copy_(torch.cat([fit.means for fit in fits]))
        self.factors.copy_(torch.cat([fit.factors for fit in fits]))
