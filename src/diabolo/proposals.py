r"""Proposals fitted to each image's posterior, from which importance sampling needs far fewer draws than from q(z | x).

.. math:: \log p(x) = \log E_r\left[ \frac{p(x | z) p(z)}{r(z)} \right], \quad r = t_\nu(\mu, 1.05^2\, S S^T)

for any r that covers the posterior. q of a variational autoencoder has independent coordinates, the posterior has not: where q is
too narrow the weights' tail is heavy. Here r has a full covariance, fitted to the gradient of log p(x, z) in z, of which one
evaluation says d numbers where a weight says one; the draws of the fit are thrown away, so that the estimate of p(x) stays
unbiased. Being a Student t, r has heavier tails than a posterior under a Gaussian prior and a bounded likelihood, so that the
weights are bounded.

A fit finds the mode that q is at. The mass of another one is missed unless draws reach it: the estimate is then low, as it is
a lower bound in expectation with any r, and no standard error shows it. With q at the same K it is missed too. On Model 1 two
or three of 300 images differ between fits by more than their errors.

n images, B of them in a batch, K draws of one, d latent dimensions, an event of z flattened to d.

References: Cappe et al., Population Monte Carlo (2004), https://doi.org/10.1198/106186004X12803, and Cornuet et al., Adaptive
multiple importance sampling (2012), arXiv:0907.1254, fit to weighted draws; the gradients come from Salimans & Knowles,
Fixed-form variational posterior approximation through stochastic linear regression (2013), arXiv:1206.6679. Tails: Owen & Zhou,
Safe and effective importance sampling (2000), https://doi.org/10.1080/01621459.2000.10473909.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from diabolo.data import Loader
from diabolo.data.spec import Batch
from diabolo.metrics import decoded_rows, float64, importance_log_weights
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.distributions import keyed_sample, unchecked
from diabolo.models.grids import vectors
from diabolo.seeds import fold, mix

#: What evaluation.json calls the two proposals.
FITTED, POSTERIOR = "fitted Student t", "posterior"
#: Latent dimensions up to which a full covariance is fitted: it costs 8 d gradients an image, and 8 d^2 bytes are kept for it. At
#: 128 that is 1,024 gradients and 131 kB. Beyond it q stays the proposal.
LARGEST_LATENT = 128
#: How far each round goes towards what it measured: the first two all the way, the others average over their own noise.
STEPS = (1.0, 1.0, 0.7, 0.5)
#: A round changes a variance by this factor at most, and the mean by so many standard deviations.
MOST_CHANGE, FARTHEST = 10.0, 5.0
#: Draws among which a second fit looks for its start.
STARTS = 256
#: Degrees of freedom and inflation of the standard deviation: a Gaussian's weights have the longer tail, 10 degrees cost draws.
DEGREES, INFLATION = 30, 1.05


class MultivariateT(Distribution):
    r"""Student's t with `DEGREES` degrees of freedom, loc (B, *event) and scale (B, d, d), any square root of its scale matrix.

    .. math:: \log r(z) = c - \log|\det S| - \tfrac{\nu + d}{2} \log(1 + |S^{-1} (z - \mu)|^2 / \nu), \quad
              c = \log\Gamma(\tfrac{\nu + d}{2}) - \log\Gamma(\tfrac\nu2) - \tfrac d2 \log(\nu\pi)

    Reference: Kotz & Nadarajah, Multivariate t-distributions and their applications (2004).
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(loc.shape[:1], loc.shape[1:], validate_args=False)
        self.loc, self.scale, exact = loc, scale, float64(scale)  # some accelerators lack the determinant
        inverse, log_det = torch.linalg.inv(exact), torch.linalg.slogdet(exact).logabsdet
        self.inverse, self.log_det = inverse.to(scale.dtype).to(loc.device), log_det.to(scale.dtype).to(loc.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """(K, B) nats of value (K, B, *event)."""
        d = self.scale.shape[-1]
        square = torch.einsum("bij,kbj->kbi", self.inverse, (value - self.loc).flatten(2)).square().sum(-1)
        constant = math.lgamma((DEGREES + d) / 2) - math.lgamma(DEGREES / 2) - d / 2 * math.log(DEGREES * math.pi)
        log_r: Tensor = constant - self.log_det - (DEGREES + d) / 2 * torch.log1p(square / DEGREES)
        return log_r


@keyed_sample.register
def _(r: MultivariateT, samples: int, seeds: Sequence[int]) -> Tensor:
    d = r.scale.shape[-1]
    shape = (samples, d + DEGREES)  # the latter for the chi-squared variable
    normal = [torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=r.loc.dtype) for seed in seeds]
    noise = torch.stack(normal, 1).to(r.loc.device)
    u = noise[..., :d] / noise[..., d:].square().mean(-1, keepdim=True).sqrt()
    moved: Tensor = torch.einsum("bij,kbj->kbi", r.scale, u).unflatten(-1, r.loc.shape[1:])
    return r.loc + moved


@dataclass
class Fitted:
    """The proposals of n images, whose numbers within their split are `index`, ascending: loc (n, d), scale (n, d, d) before
    inflation, both float64, and q's event and precision. `draws`: gradients that the fit took, of all images; one costs about
    two draws that are only scored, and two of these count as one."""

    index: Tensor
    like: Tensor  # (0, *event)
    loc: Tensor
    scale: Tensor
    draws: int = 0

    def of(self, index: Tensor) -> MultivariateT:
        """The proposals of the images `index` (B,), which must be among those that were fitted."""
        rows = self._rows(index)
        loc, scale = self.loc[rows].unflatten(1, self.like.shape[1:]), INFLATION * self.scale[rows]
        return MultivariateT(*(t.to(self.like.dtype).to(self.like.device) for t in (loc, scale)))

    def improve(self, model: Autoencoder, loader: Loader, index: Tensor, seed: int) -> None:
        """Fit the images `index` again, from the heaviest of `STARTS` draws of their proposals: where these saw a mode that they
        do not cover, it is there."""
        for batch in loader.ordered(_together(model, loader, STARTS), indices=index):
            r, images, own = self.of(batch.index), batch.index.tolist(), fold(seed, "start")
            log_w = importance_log_weights(model, batch.x, images, STARTS, own, proposal=r)
            z = keyed_sample(r, STARTS, [mix(own, i) for i in images])  # the same draws
            start = z[log_w.argmax(0), torch.arange(len(images))]
            self.draws += STARTS // 2 * len(images)
            self.set(model, batch, vectors(float64(start)), self.scale[self._rows(batch.index)], seed)

    def set(self, model: Autoencoder, batch: Batch, loc: Tensor, scale: Tensor, seed: int) -> None:
        """Fit a batch of images, beginning at loc (B, d) and scale (B, d, d)."""
        rows, images = self._rows(batch.index), batch.index.tolist()
        self.loc[rows], self.scale[rows] = fit(model, batch.x, self.like, loc, scale, images, seed)
        self.draws += draws_of_fit(loc.shape[1]) * len(images)

    def _rows(self, index: Tensor) -> Tensor:
        return torch.searchsorted(self.index, index.to(self.index))


def draws_of_fit(d: int) -> int:
    """Gradients that the fit of one image takes."""
    return 2 * d * len(STEPS)


def fit_all(
    model: Autoencoder, loader: Loader, index: Tensor, seed: int, advance: Callable[[int], object]
) -> Fitted | None:
    """Fit the images index (n,), ascending, of a loader, the noise keyed by image; None where q itself is to be the proposal:
    where it is no Gaussian with independent coordinates, or has more than `LARGEST_LATENT` of them."""
    q = model.encode(next(iter(loader.ordered(1))).x)
    gaussian, d = isinstance(q, Independent) and isinstance(q.base_dist, Normal), q.event_shape.numel()
    if not gaussian or d > LARGEST_LATENT:
        return None
    like, size = q.mean[:0], (len(index), d, d)
    fitted = Fitted(index, like, torch.empty(size[:2], dtype=torch.float64), torch.empty(size, dtype=torch.float64))
    for batch in loader.ordered(_together(model, loader, 2 * d), indices=index):
        q = model.encode(batch.x)
        fitted.set(model, batch, vectors(float64(q.mean)), torch.diag_embed(vectors(float64(q.stddev))), seed)
        advance(len(batch.x))
    return fitted


def _together(model: Autoencoder, loader: Loader, draws: int) -> int:
    """Images of which so many draws fill a chunk."""
    return max(1, decoded_rows(model, loader.values) // draws)


def fit(
    model: Autoencoder, x: Tensor, like: Tensor, loc: Tensor, scale: Tensor, index: Sequence[int], seed: int
) -> tuple[Tensor, Tensor]:
    r"""Fit loc (B, d) and scale (B, d, d), float64, to the posteriors of x (B, *data), by regression on gradients; `like`
    (0, *event) is what z is like.

    .. math:: g(u) = S^T \nabla_z \log p(x, \mu + S u) \approx \bar g - H u, \quad
              H \leftarrow (1 - \rho) I + \rho H, \quad \mu \leftarrow \mu + \rho S H^{-1} \bar g, \quad
              S \leftarrow S H^{-1/2}

    in rounds with the steps rho of `STEPS`, from 2 d points u a round: both ends of d orthogonal directions at random, of
    length sqrt(d), by which the regression is a mean. For a Gaussian posterior it is exact after one round. What
    is not finite changes nothing.
    """
    for number, step in enumerate(STEPS):
        u = _points([mix(fold(seed, "proposal", number), i) for i in index], loc.shape[1])  # (2 d, B, d)
        z = loc + torch.einsum("bij,kbj->kbi", scale, u)
        score = _score(model, x, z.unflatten(-1, like.shape[1:]).to(like.dtype).to(like.device)).flatten(2)
        loc, scale = _moved(loc, scale, u, torch.einsum("bij,kbi->kbj", scale, score), step)
    return loc, scale


def _points(seeds: Sequence[int], d: int) -> Tensor:
    normal = [torch.randn(d, d, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    half = math.sqrt(d) * torch.linalg.qr(torch.stack(normal)).Q.transpose(0, 1)  # (d, B, d), rows orthogonal
    return torch.cat([half, -half])


def _score(model: Autoencoder, x: Tensor, z: Tensor) -> Tensor:
    """The gradient of log p(x, z) in z, like z (M, B, *event), in float64, decoded in chunks."""
    prior = model.prior(None, model.encode)
    assert prior is not None  # a bound was asked for
    parts = []
    with unchecked(), torch.enable_grad():
        for part in z.split(max(1, decoded_rows(model, x) // len(x))):
            part = part.detach().requires_grad_()
            joint = model.decode(part).log_prob(x) + prior.log_prob(part)
            parts.append(float64(torch.autograd.grad(joint.sum(), part)[0]))
    return torch.cat(parts)


def _moved(loc: Tensor, scale: Tensor, u: Tensor, g: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """One round: loc (B, d) and scale (B, d, d) from the gradients g at points u, both (2 d, B, d), in the coordinates of u."""
    slope, mean = torch.einsum("kbi,kbj->bij", g, u) / len(u), g.mean(0)
    known = (slope.isfinite().all(-1).all(-1) & mean.isfinite().all(-1))[:, None]
    identity = torch.eye(u.shape[-1], dtype=u.dtype)
    curvature = (1 - step) * identity - step * torch.where(known[..., None], (slope + slope.mT) / 2, -identity)
    eigenvalues, vectors = torch.linalg.eigh(curvature)
    eigenvalues, axes = eigenvalues.clamp(1 / MOST_CHANGE, MOST_CHANGE), scale @ vectors
    way = torch.einsum("bij,bi->bj", vectors, torch.where(known, step * mean, 0.0)) / eigenvalues
    way = way * (FARTHEST / way.norm(dim=1, keepdim=True)).clamp(max=1)
    return loc + torch.einsum("bij,bj->bi", axes, way), axes * eigenvalues.rsqrt()[:, None]
