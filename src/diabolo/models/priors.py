"""Priors: (y, encode) -> p(z) or p(z | y). One that knows no classes ignores y; `encode` is lent for the call, never owned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from diabolo.models.distributions import diagonal_normal
from diabolo.registry import register

Encode = Callable[[Tensor], Distribution]


class Prior(nn.Module):
    """The distribution of codes before any x is seen. `density` says whether log_prob is exact, an estimate, or not there."""

    density: Literal["exact", "estimate", "none"] = "exact"

    def forward(self, y: Tensor | None = None, encode: Encode | None = None) -> Distribution | None:
        """p(z) with batch shape (), or p(z | y) with batch shape (B,); None where the model defines no p(z)."""
        raise NotImplementedError


@register("prior", "none")
class NoPrior(Prior):
    """No p(z): a plain autoencoder says nothing of which codes are likely, so nothing can be drawn from it."""

    density = "none"

    def forward(self, y: Tensor | None = None, encode: Encode | None = None) -> None:
        return None


@register("prior", "standard_normal")
class StandardNormal(Prior):
    """p(z) = N(0, I) over `latent_shape`."""

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(latent_shape), persistent=False)
        self.zero: Tensor

    def forward(self, y: Tensor | None = None, encode: Encode | None = None) -> Distribution:
        return diagonal_normal(self.zero, torch.ones_like(self.zero), self.zero.ndim)
