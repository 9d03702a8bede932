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
    """The distribution of codes before any x is seen. `density` says whether log_prob is exact or an estimate."""

    density: Literal["exact", "estimate"] = "exact"

    def forward(self, y: Tensor | None = None, encode: Encode | None = None) -> Distribution:
        """p(z) with batch shape (), or p(z | y) with batch shape (B,)."""
        raise NotImplementedError


@register("prior", "standard_normal")
class StandardNormal(Prior):
    """p(z) = N(0, I) over `latent_shape`."""

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(latent_shape), persistent=False)
        self.zero: Tensor

    def forward(self, y: Tensor | None = None, encode: Encode | None = None) -> Distribution:
        return diagonal_normal(self.zero, torch.ones_like(self.zero), self.zero.ndim)
