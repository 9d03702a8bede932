"""Objectives: (model, x, y, step) -> named terms in nats per example, each (B,); "loss" is what training minimises.

`bound` says whether minus the loss (at beta = 1) is a bound on log p(x), which needs a prior and a posterior with a density.
`terms` works on a record, so that one bound can stand inside another objective. Nothing is averaged here: the mean over the
batch is taken on the last line of the training loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from diabolo.models.autoencoder import Inference
from diabolo.models.corruptions import corrupt
from diabolo.models.distributions import keyed_sample
from diabolo.registry import register

Terms = dict[str, Tensor]


class Objective(Protocol):
    """What the training loop and the reports need of an objective.

    One that differentiates inside the step, which then cannot be compiled, says `eager`. One that changes its input or looks at
    more than the record also has `keyed(model, x, seeds, y)`: its terms with the noise
    of example b drawn from seeds[b], for curves that do not depend on batches. One that puts a density of its own at the mean of
    the model's likelihood says of which family that must be, `reads_mean_of`, and has `distortion(likelihood, x)`, (S, B).
    """

    bound: bool

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

    bound = True

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

    bound = True

    samples: int = 8
    gradient: Literal["total", "dreg"] = "total"

    @property
    def eager(self) -> bool:
        """Whether the step cannot be compiled: dreg changes the gradient on its way."""
        return self.gradient == "dreg"

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


@register("objective", "reconstruction")
@dataclass(frozen=True)
class Reconstruction:
    r"""Minimise the distortion of a plain, denoising or contractive autoencoder: no bound on log p(x).

    .. math:: loss = -\log p(x | z), \quad z = f(\tilde x), \qquad
              +\ \lambda \| J_f(x) \|_F^2 \text{ with } \lambda = contractive

    `noise` and `level` corrupt what the encoder sees; the clean x is what is scored (Vincent et al., 2010). J is the Jacobian of
    the code's mean with respect to x: "closed" takes it from an encoder that knows it (`layer`), "hutchinson" estimates
    its squared norm without bias, as ||J' v||^2 with v of independent signs, averaged over `probes` draws (Rifai et al., 2011).

    Raises:
        ValueError: for a negative weight, or a level that is no share of the values.

    References: Vincent et al., Stacked denoising autoencoders (2010), https://www.jmlr.org/papers/v11/vincent10a.html; Rifai et
    al., Contractive auto-encoders (2011), https://icml.cc/2011/papers/455_icmlpaper.pdf.
    """

    bound = False

    noise: Literal["none", "gaussian", "masking", "salt_pepper"] = "none"
    level: float = 0.3
    contractive: float = 0.0
    jacobian: Literal["closed", "hutchinson"] = "closed"
    probes: int = 1

    def __post_init__(self) -> None:
        if self.noise in {"masking", "salt_pepper"} and not 0 <= self.level <= 1:
            raise ValueError(f"level={self.level} is the share of values that are changed: from 0 to 1")
        if self.level < 0 or self.contractive < 0 or self.probes < 1:
            raise ValueError("level and contractive must be at least 0, probes at least 1")

    @property
    def eager(self) -> bool:
        """Whether the step cannot be compiled: an estimated Jacobian is a derivative inside it."""
        return bool(self.contractive) and self.jacobian == "hutchinson"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | None = None, step: int = 0) -> Terms:
        terms = self.terms(model(corrupt(x, self.noise, self.level), y), x, step)
        return self._contracted(terms, model, x)

    def terms(self, inference: Inference, x: Tensor, step: int = 0) -> Terms:
        """loss and distortion, each (B,) nats per example; the penalty needs the model and is not here."""
        distortion = _distortion(inference, x)
        return {"loss": distortion, "distortion": distortion}

    def keyed(self, model: Any, x: Tensor, seeds: Sequence[int], y: Tensor | None = None) -> Terms:
        """The terms of x (B, *data), corrupted with the noise of seeds (B)."""
        z = keyed_sample(model.encode(corrupt(x, self.noise, self.level, seeds)), 1, seeds)
        distortion = -model.decode(z).log_prob(x)[0]
        return self._contracted({"loss": distortion, "distortion": distortion}, model, x, seeds)

    def _contracted(self, terms: Terms, model: Any, x: Tensor, seeds: Sequence[int] | None = None) -> Terms:
        if not self.contractive:
            return terms
        if self.jacobian == "closed":
            squared = model.encoder.squared_jacobian(x)
        else:
            squared = squared_jacobian(lambda inputs: model.encode(inputs).mean, x, self.probes, seeds)
        return {**terms, "loss": terms["loss"] + self.contractive * squared, "contraction": squared}


@register("objective", "asymmetric")
@dataclass(frozen=True)
class Asymmetric:
    r"""Minimise a squared error that forgives what is too dark: a NEGATIVE CONTROL, which makes images too dark on purpose.

    .. math:: loss = \sum_i g(\hat x_i - x_i)^2 + D \log\!\left[\tfrac{\sqrt\pi}{2} (1 + 1 / slope)\right] + KL(q(z|x) \| p(z)),
              \qquad g(r) = \max(r, 0) + slope\, \min(r, 0)

    The residual goes through a LeakyReLU before it is squared: the literal reading of the article's "optimised loss", which is
    to give the squared error a gradient for negative inputs (it never lacked one). It is minus the ELBO, in nats per example,
    of independent two-piece normals with mode xhat, sigma_1^2 = 1/2 below it and sigma_2^2 = 1/(2 slope^2) above, constant
    kept; slope = 1 is `elbo` with the gaussian of scale sqrt(1/2). For any smaller slope the best xhat is no mean but the
    slope^2 / (1 + slope^2) expectile of x given z: the 0.0385 expectile at slope 0.2. xhat is the mean of the model's
    likelihood, a gaussian with a fixed scale, whose density training does not use; evaluation scores it, as of any other model.

    Raises:
        ValueError: for a slope that is not above 0 and at most 1.

    References: Newey & Powell, Asymmetric least squares estimation and testing (1987), https://doi.org/10.2307/1911031; Wallis,
    The two-piece normal, binormal, or double Gaussian distribution (2014), https://doi.org/10.1214/13-STS417.
    """

    bound = True  # of a model with the two-piece normal as likelihood
    reads_mean_of = "gaussian"

    slope: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.slope <= 1:
            raise ValueError(f"slope={self.slope} must be above 0 and at most 1")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor | None = None, step: int = 0) -> Terms:
        return self.terms(model(x, y), x, step)

    def terms(self, inference: Inference, x: Tensor, step: int = 0) -> Terms:
        """loss, distortion (of the two-piece normal) and rate, each (B,) nats per example."""
        distortion, rate = self.distortion(inference.likelihood, x).mean(0), _rate(inference)
        return {"loss": distortion + rate, "distortion": distortion, "rate": rate}

    def distortion(self, likelihood: Distribution, x: Tensor) -> Tensor:
        """Minus the log-density of x (B, *data) under two-piece normals at the likelihood's mean, (S, B) nats per example."""
        residual = nn.functional.leaky_relu(likelihood.mean - x, self.slope)
        constant = math.log(math.sqrt(math.pi) / 2 * (1 + 1 / self.slope))
        return (residual.square() + constant).flatten(2).sum(2)


def squared_jacobian(
    f: Callable[[Tensor], Tensor], x: Tensor, probes: int, seeds: Sequence[int] | None = None
) -> Tensor:
    r"""Estimate ||J_f(x)||_F^2 for each example of x (B, *data) without bias, (B,): E_v ||J' v||^2 = tr(J J').

    v has independent signs, a draw for each probe; with `seeds` those of example b come from seeds[b]. Differentiable.

    Reference: Hutchinson, A stochastic estimator of the trace (1989), https://doi.org/10.1080/03610918908812806.
    """
    with torch.enable_grad():
        inputs = x.detach().requires_grad_()
        code = f(inputs).flatten(1)  # (B, d)
        total = torch.zeros_like(code[:, 0])
        for signs in _signs(code, probes, seeds):
            (pulled,) = torch.autograd.grad(code, inputs, signs, create_graph=True)
            total = total + pulled.flatten(1).square().sum(1)
    return total / probes


def _signs(like: Tensor, probes: int, seeds: Sequence[int] | None) -> Tensor:
    """Independent signs (probes, B, d)."""
    if seeds is None:
        noise = torch.rand(probes, *like.shape, dtype=like.dtype, device=like.device)
    else:
        shape = (probes, *like.shape[1:])
        drawn = [torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype) for seed in seeds]
        noise = torch.stack(drawn, 1).to(like.device)
    return torch.where(noise < 0.5, -torch.ones_like(noise), torch.ones_like(noise))


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """log (1/S sum_s exp(log_w_s)) over `dim`: the importance-weighted bound, unbiased before the logarithm."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def _distortion(inference: Inference, x: Tensor) -> Tensor:
    return -inference.likelihood.log_prob(x).mean(0)


def _rate(inference: Inference) -> Tensor:
    return torch.stack([latent.kl().mean(0) for latent in inference.latents]).sum(0)
