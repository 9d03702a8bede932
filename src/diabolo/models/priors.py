"""Priors: (y, encode) -> p(z) or p(z | y). One that knows no classes ignores y; `encode` is lent for the call, never owned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from diabolo.errors import DataError
from diabolo.models.distributions import diagonal_normal
from diabolo.registry import register

Encode = Callable[[Tensor], Distribution]


class Prior(nn.Module):
    """The distribution of codes before any x is seen. `density` says whether log_prob is exact, an estimate, or not there.

    A prior is learned jointly with the model, or fitted afterwards to codes z ~ q(z | x) of the training images: `initialise`
    does what has a closed form, and where `fitted_by` is "gradient", `fit_loss` is then minimised, in `loss_unit`.
    """

    density: Literal["exact", "estimate", "none"] = "exact"
    fitted_by: Literal["nothing", "closed form", "gradient"] = "nothing"
    loss_unit = "nats/example"

    def forward(self, y: Tensor | None = None, encode: Encode | None = None) -> Distribution | None:
        """p(z) with batch shape (), or p(z | y) with batch shape (B,) for classes y (B,); None where there is no p(z)."""
        raise NotImplementedError

    def initialise(self, z: Tensor, y: Tensor | None = None) -> None:
        """Set from codes z (N, *event), and their classes y (N,) where there are any, what has a closed form."""

    def fit_loss(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """What fitting minimises, (B,) for codes z (B, *event): -log p(z | y) in nats, where there is a density."""
        p = self(y)
        loss: Tensor = -p.log_prob(z)
        return loss


def refuse_constant(spread: Tensor) -> None:
    """Refuse codes whose spread, 0 or more, is 0: their density would be infinite.

    Raises:
        DataError: which says so.
    """
    if not spread > 0:
        raise DataError(
            "the codes are all the same", "No prior can be fitted to them.", "Find out with: diabolo doctor RUN"
        )


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
