"""The record that every model returns, and the model with one latent: encoder o posterior, prior, decoder o likelihood.

Shapes: S samples, B batch; an event of z is `latent_shape`, of x the data's shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from diabolo.errors import UsageError
from diabolo.models.distributions import detached, guide, temper
from diabolo.models.likelihoods import Likelihood
from diabolo.models.networks import Head
from diabolo.models.priors import Prior

_NO_PRIOR = "this model has no prior, so no rate and no bound: take model.prior=standard_normal"


@dataclass(frozen=True)
class Latent:
    """One stochastic layer: z ~ q(z | .) and its prior p(z | .)."""

    sample: Tensor  # (S, B, *event): what the decoder reads
    posterior: Distribution  # q(z | .), batch (B,)
    prior: Distribution | None  # p(z | .), batch () or (B,); None for a plain autoencoder, which defines no p(z)

    @property
    def code(self) -> Tensor:
        """What the prior scores, (S, B, *event)."""
        return self.sample

    @property
    def mean(self) -> Tensor:
        """The representation E_q[z], (S, B, *event)."""
        return self.posterior.mean.expand_as(self.sample)

    def kl(self) -> Tensor:
        """KL(q || p) >= 0, (S, B) nats: analytic where torch knows the pair, else log q - log p at the sample.

        Raises:
            NotImplementedError: where there is no prior, or q has no density.
        """
        if self.prior is None:
            raise NotImplementedError(_NO_PRIOR)
        try:
            return kl_divergence(self.posterior, self.prior).expand(self.sample.shape[:2])
        except NotImplementedError:
            return -self.log_ratio()

    def log_ratio(self, path_only: bool = False) -> Tensor:
        """log p(z) - log q(z | x) at the sample, (S, B) nats; `path_only`: q's parameters are held constant.

        Raises:
            NotImplementedError: where there is no prior, or q has no density.
        """
        if self.prior is None:
            raise NotImplementedError(_NO_PRIOR)
        q = detached(self.posterior) if path_only else self.posterior
        return self.prior.log_prob(self.code) - q.log_prob(self.code)


@dataclass(frozen=True)
class Inference:
    """What one pass of any model yields: p(x | z) and the latents it went through, top first."""

    likelihood: Distribution  # batch (S, B)
    latents: list[Latent]

    def log_weight(self, x: Tensor, path_only: bool = False) -> Tensor:
        """log w = log p(x, z) - log q(z | x), (S, B) nats: E_q[w] = p(x)."""
        ratios = [latent.log_ratio(path_only) for latent in self.latents]
        return torch.stack([self.likelihood.log_prob(x), *ratios]).sum(0)


class Autoencoder(nn.Module):
    r"""Three conditional distributions run one after the other: q(z | x), p(z), p(x | z).

    .. math:: \log p(x) \ge E_{q(z|x)}[\log p(x|z)] - KL(q(z|x) \| p(z))

    Whether z is drawn or the mean is taken is decided by the method called, never by train or eval mode.

    Reference: Kingma & Welling, Auto-encoding variational Bayes (2014), arXiv:1312.6114.
    """

    def __init__(
        self,
        encoder: nn.Module,
        posterior: Head,
        prior: Prior,
        decoder: nn.Module,
        likelihood: Likelihood,
    ) -> None:
        super().__init__()
        self.encoder, self.posterior, self.prior = encoder, posterior, prior
        self.decoder, self.likelihood = decoder, likelihood

    @property
    def bounded(self) -> bool:
        """Whether the model has an ELBO: q has a density and there is a prior."""
        return bool(self.posterior.density) and self.prior.density != "none"

    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(z | x), batch (B,), of x (B, *data)."""
        q: Distribution = self.posterior(self.encoder(x))
        return q

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z), batch (S, B), of latents z (S, B, *event)."""
        p: Distribution = self.likelihood(self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2]))
        return p

    def forward(self, x: Tensor, y: Tensor | None = None, samples: int = 1) -> Inference:
        """Encode, draw z `samples` times, decode."""
        q = self.encode(x, y)
        z = q.rsample((samples,))  # (S, B, *event)
        return Inference(self.decode(z, y), [Latent(z, q, self.prior(y, self.encode))])

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, temperature: float = 1.0, guidance: float = 1.0) -> Distribution:
        """p(x | z) at n draws z ~ p(z), or z ~ p(z | y) for classes y (n,), batch (1, n); its mean is what pictures show.

        guidance: how far samples of a class are pushed away from those of all; 1 is p(z | y) itself. temperature: of the
        spread of z.

        Raises:
            UsageError: if the model has no prior.
            NotImplementedError: if the prior knows no guidance, or none without a class, or no temperature.
        """
        p = self.prior(y, self.encode)
        if p is None:
            raise UsageError(
                "nothing can be drawn from this model: it has no prior",
                "A plain autoencoder does not say which codes are likely.",
                "Fit one to its codes: diabolo fit-prior RUN prior=mixture",
            )
        drawn = temper(guide(p, guidance), temperature).expand(torch.Size((n,)))
        return self.decode(drawn.sample()[None], y)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x | z) at the posterior's mean, batch (1, B)."""
        return self.decode(self.encode(x, y).mean[None], y)
