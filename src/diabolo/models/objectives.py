"""Objectives: (model, x, y, step) -> named terms in nats per example, each (B,); "loss" is what training minimises.

`terms` works on a record, so that one bound can stand inside another objective. Nothing is averaged here: the mean over the
batch is taken on the last line of the training loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from diabolo.models.autoencoder import Inference
from diabolo.registry import register

Terms = dict[str, Tensor]


class Objective(Protocol):
    """What the training loop and the reports need of an objective."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | None = None, step: int = 0) -> Terms:
        """Named terms of x (B, *data), each (B,), nats per example; contains "loss"."""
        ...

    def terms(self, inference: Inference, x: Tensor, step: int = 0) -> Terms:
        """The same terms of a record that was made elsewhere."""
        ...


@register("objective", "elbo")
@dataclass(frozen=True)
class ELBO:
    r"""Minimise the negative evidence lower bound, z always drawn from q.

    .. math:: loss = -E_q[\log p(x|z)] + \beta\, KL(q(z|x) \| p(z)) = distortion + \beta\, rate

    beta = 1 is the bound itself: log p(x) >= -loss. `warmup_steps` raises beta linearly from 0 over the first steps.

    References: Kingma & Welling (2014), arXiv:1312.6114; Higgins et al., beta-VAE (2017).
    """

    beta: float = 1.0
    warmup_steps: int = 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | None = None, step: int = 0) -> Terms:
        return self.terms(model(x, y), x, step)

    def terms(self, inference: Inference, x: Tensor, step: int = 0) -> Terms:
        """loss, distortion (-E_q log p(x|z)) and rate (KL summed over the latents), each (B,) nats per example."""
        beta = self.beta * min(1.0, step / self.warmup_steps) if self.warmup_steps else self.beta
        distortion, rate = _distortion(inference, x), _rate(inference)
        return {"loss": distortion + beta * rate, "distortion": distortion, "rate": rate}


@register("objective", "iwae")
@dataclass(frozen=True)
class IWAE:
    r"""Minimise the negative importance-weighted bound.

    .. math:: loss = -\log \frac1S \sum_s w_s, \quad w_s = p(x, z_s) / q(z_s | x), \quad z_s \sim q(z|x)

    S = 1 is the ELBO with a sampled KL. `gradient`: "total" differentiates the bound as it stands; "dreg" is the doubly
    reparameterised estimator of the encoder's gradient, the same in expectation with less noise.
    Besides the loss it reports distortion and rate of its samples, as the ELBO does.

    References: Burda et al., Importance weighted autoencoders (2016), arXiv:1509.00519; Tucker et al., Doubly
    reparameterized gradient estimators (2019), arXiv:1810.04152.
    """

    samples: int = 8
    gradient: Literal["total", "dreg"] = "total"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | None = None, step: int = 0) -> Terms:
        return self.terms(model(x, y, samples=self.samples), x, step)

    def terms(self, inference: Inference, x: Tensor, step: int = 0) -> Terms:
        """loss, distortion and rate, each (B,) nats per example.

        Raises:
            ValueError: for gradient="dreg" with more than one latent, where q's score cannot be dropped layer by layer.
        """
        if self.gradient == "dreg" and len(inference.latents) > 1:
            raise ValueError("gradient='dreg' serves models with one latent: take gradient='total'")
        log_w = inference.log_weight(x, path_only=self.gradient == "dreg")  # (S, B)
        z = inference.latents[0].sample
        if self.gradient == "dreg" and z.requires_grad:
            weight = log_w.softmax(0).detach()
            z.register_hook(lambda g: g * weight.view(*weight.shape, *[1] * (g.ndim - 2)))
        return {"loss": -log_mean_exp(log_w), "distortion": _distortion(inference, x), "rate": _rate(inference)}


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """log (1/S sum_s exp(log_w_s)) over `dim`: the importance-weighted bound, unbiased before the logarithm."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def _distortion(inference: Inference, x: Tensor) -> Tensor:
    return -inference.likelihood.log_prob(x).mean(0)


def _rate(inference: Inference) -> Tensor:
    return torch.stack([latent.kl().mean(0) for latent in inference.latents]).sum(0)
