"""Models and data whose answers are known, shared by the tests."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diabolo.data import Dataset, from_tensor
from diabolo.data.spec import DataSpec
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.build import build_model

#: 5 standard errors: a correct program fails such a check once in 1.7 million fresh seeds (two-sided 5.7e-7).
SIGMAS = 5.0
NORMS = (2.0, 1.5, 1.0)
SIGMA = 0.5


def model_config(latent: int = 3, likelihood: str = "gaussian", **network: Any) -> dict[str, Any]:
    """The `model` section of a configuration; `network` are the parameters of both networks."""
    net = {"name": "mlp", **network}
    return {
        "latent": latent,
        "encoder": net,
        "posterior": {"name": "gaussian"},
        "prior": {"name": "standard_normal"},
        "decoder": net,
        "likelihood": {"name": likelihood},
    }


def loading_matrix(dimensions: int) -> tuple[Tensor, Tensor]:
    """W (D, 3) with orthogonal columns of norms 2, 1.5, 1, and b (D,), float64."""
    generator = torch.Generator().manual_seed(dimensions)
    axes = torch.linalg.qr(torch.randn(dimensions, 3, generator=generator, dtype=torch.float64))[0]
    bias = torch.randn(dimensions, generator=generator, dtype=torch.float64)
    return axes * torch.tensor(NORMS, dtype=torch.float64), bias


def draw_x(dimensions: int, count: int, seed: int = 0) -> Tensor:
    """x = W z + b + sigma e, (count, D) float64."""
    weight, bias = loading_matrix(dimensions)
    generator = torch.Generator().manual_seed(1000 + seed)
    z = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return z @ weight.T + bias + SIGMA * torch.randn(count, dimensions, generator=generator, dtype=torch.float64)


def posterior_variance() -> Tensor:
    """Variances (3,) of the exact posterior, which is diagonal because the columns of W are orthogonal."""
    return 1 / (1 + torch.tensor(NORMS, dtype=torch.float64).square() / SIGMA**2)


def linear_model(dimensions: int, shift: float = 0.0, spread: float = 1.0) -> Autoencoder:
    """The linear-Gaussian model in float64 with q = exact posterior, its mean moved by `shift` standard deviations and its
    standard deviation multiplied by `spread`."""
    spec = DataSpec(name="known", shape=(dimensions,), values="real")
    model = build_model(model_config(depth=0), spec).double()
    weight, bias = loading_matrix(dimensions)
    variance = posterior_variance()
    towards = variance[:, None] * weight.T / SIGMA**2  # mu = towards (x - b)
    encoder, decoder = model.encoder.layers[-1], model.decoder.layers[-1]
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([towards, torch.zeros_like(towards)]))
        log_variance = variance.log() + 2 * math.log(spread)
        encoder.bias.copy_(torch.cat([-towards @ bias + shift * variance.sqrt(), log_variance]))
        decoder.weight.copy_(weight)
        decoder.bias.copy_(bias)
        model.likelihood.log_scale.fill_(math.log(SIGMA))
    return model.requires_grad_(False)


def log_p_woodbury(x: Tensor) -> Tensor:
    """log N(x; b, W W' + sigma^2 I) by the Woodbury and determinant identities: only 3 x 3 systems."""
    dimensions = x.shape[1]
    weight, bias = loading_matrix(dimensions)
    r = x - bias
    m = SIGMA**2 * torch.eye(3, dtype=torch.float64) + weight.T @ weight
    projected = r @ weight
    quadratic = (r.square().sum(1) - (projected @ torch.linalg.inv(m) * projected).sum(1)) / SIGMA**2
    log_det = (dimensions - 3) * math.log(SIGMA**2) + torch.linalg.slogdet(m).logabsdet
    return -0.5 * (quadratic + log_det + dimensions * math.log(2 * math.pi))


def log_p_dense(x: Tensor) -> Tensor:
    """The same from the D x D covariance, by torch's Cholesky factor."""
    weight, bias = loading_matrix(x.shape[1])
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)


def sigmas(draws: Tensor, truth: float | Tensor = 0.0) -> float:
    """The largest distance of a mean over dimension 0 from the truth, in standard errors."""
    error = draws.std(0) / math.sqrt(draws.shape[0])
    return ((draws.mean(0) - truth).abs() / error).max().item()


def tiny_images(
    count: int = 40,
    shape: tuple[int, ...] = (1, 4, 4),
    *,
    binarize: bool = False,
    labels: bool = True,
    seed: int = 0,
) -> Dataset:
    """A data set of uint8 images, four classes that differ in brightness; a fifth for validation, a fifth for test."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    noise = torch.randint(0, 100, (count, *shape), generator=generator)
    x = (noise + 40 * y.view(-1, *[1] * len(shape))).to(torch.uint8)
    return from_tensor(x, y if labels else None, name="tiny", validation=0.2, test=0.2, binarize=binarize)


def tiny_vectors(count: int = 40, dimensions: int = 16, seed: int = 0) -> Dataset:
    """A data set of real vectors without labels."""
    generator = torch.Generator().manual_seed(seed)
    return from_tensor(torch.randn(count, dimensions, generator=generator), name="tiny", validation=0.2, test=0.2)
