"""A flow of affine couplings as prior: an invertible map from codes to N(0, I) whose determinant is known.

Shapes: codes are flattened to z (N, d); a class y (N,) or None goes with them. Every step maps z towards the noise and returns
log |det| of its Jacobian beside it, (N,); `inverse` maps back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from diabolo.models.distributions import float32, tempered
from diabolo.models.mixture import centred, cholesky, class_counts, covariance, float64, whitened
from diabolo.models.priors import Encode, Prior
from diabolo.registry import register

#: The least standard deviation that a normalisation divides by when it is initialised, as a share of the mean over the values.
LEAST = 1e-3
#: The bound of a coupling's log-scales.
MOST_LOG_SCALE = 2.0
#: The batch shape of p(z).
NO_BATCH = torch.Size()


# ------------------------------------------------------------------------------------------------ steps
class Whitening(nn.Module):
    """h = L^-1 (z - m), with m and L L^T the mean and covariance of the codes: not learned, but set by `initialise`."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("factor", torch.eye(d))
        self.mean: Tensor
        self.factor: Tensor

    def forward(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        log_det = -self.factor.diagonal().log().sum()
        return whitened(z, self.mean, self.factor), log_det.expand(z.shape[0])

    def inverse(self, h: Tensor, y: Tensor | None) -> Tensor:
        return self.mean + h @ self.factor.T

    def initialise(self, z: Tensor, y: Tensor | None) -> None:
        codes = float64(z)
        self.mean.copy_(codes.mean(0))
        self.factor.copy_(cholesky(covariance(centred(codes, None, 0))))


class ActNorm(nn.Module):
    """h = s_y (z - b_y): a scale and a shift of each value, of each class, that give zero mean and unit variance at first.

    Reference: Kingma & Dhariwal, Glow (2018), arXiv:1807.03039, section 3.1.
    """

    def __init__(self, d: int, classes: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(max(1, classes), d))
        self.log_scale = nn.Parameter(torch.zeros(max(1, classes), d))

    def forward(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._of(y)
        return (z - shift) * log_scale.exp(), log_scale.sum(1).expand(z.shape[0])

    def inverse(self, h: Tensor, y: Tensor | None) -> Tensor:
        shift, log_scale = self._of(y)
        return h * (-log_scale).exp() + shift

    def _of(self, y: Tensor | None) -> tuple[Tensor, Tensor]:
        return (self.shift, self.log_scale) if y is None else (self.shift[y], self.log_scale[y])

    def initialise(self, z: Tensor, y: Tensor | None) -> None:
        parts = [z] if y is None else [z[y == c] for c in range(self.shift.shape[0])]
        deviations = torch.stack([part.std(0, correction=0) for part in parts])
        self.shift.copy_(torch.stack([part.mean(0) for part in parts]))
        self.log_scale.copy_(-deviations.clamp(min=LEAST * deviations.mean()).log())


class Permutation(nn.Module):
    """A fixed random order of the values, so that what one coupling leaves as it is, another one changes; |det| = 1."""

    def __init__(self, d: int, seed: int) -> None:
        super().__init__()
        order = torch.randperm(d, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order)
        self.order: Tensor

    def forward(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        return z[:, self.order], z.new_zeros(z.shape[0])

    def inverse(self, h: Tensor, y: Tensor | None) -> Tensor:
        return h[:, self.order.argsort()]

    def initialise(self, z: Tensor, y: Tensor | None) -> None:
        """Nothing here depends on codes."""


class Coupling(nn.Module):
    r"""The first half of the values stays and decides, with the class, how the other is scaled and shifted.

    .. math:: h_a = z_a, \qquad h_b = z_b\, e^{s(z_a, y)} + t(z_a, y), \qquad \log|\det| = \sum_i s_i(z_a, y), \quad |s_i| < 2

    s and t are two hidden layers of `width` units, to the first of which the class adds a bias; s is bounded by 2 tanh. Both
    start at 0: an untrained coupling is the identity.

    Reference: Dinh et al., Density estimation using Real NVP (2017), arXiv:1605.08803.
    """

    def __init__(self, d: int, classes: int, width: int) -> None:
        super().__init__()
        self.kept = d // 2
        self.first = nn.Linear(self.kept, width)
        self.of_class = nn.Parameter(torch.zeros(max(1, classes), width)) if classes else None
        last = nn.Linear(width, 2 * (d - self.kept))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        a, b = z[:, : self.kept], z[:, self.kept :]
        log_scale, shift = self._map(a, y)
        return torch.cat([a, b * log_scale.exp() + shift], 1), log_scale.sum(1)

    def inverse(self, h: Tensor, y: Tensor | None) -> Tensor:
        a, b = h[:, : self.kept], h[:, self.kept :]
        log_scale, shift = self._map(a, y)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], 1)

    def _map(self, a: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        hidden = self.first(a)
        if self.of_class is not None:
            hidden = hidden + self.of_class[y]
        raw, shift = float32(self.rest(hidden)).chunk(2, 1)
        return MOST_LOG_SCALE * torch.tanh(raw / MOST_LOG_SCALE), shift

    def initialise(self, z: Tensor, y: Tensor | None) -> None:
        """It starts as the identity whatever the codes are."""


# ------------------------------------------------------------------------------------------------ the distribution
class Flow(nn.Module):
    """All steps one after the other: whitening, and `layers` times normalisation, permutation, coupling; 0 `classes` for none."""

    def __init__(self, d: int, classes: int, layers: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.steps = nn.ModuleList([Whitening(d)])
        for seed in range(layers):
            self.steps += [ActNorm(d, classes), Permutation(d, seed), Coupling(d, classes, width)]

    def forward(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """The noise (N, d) that z (N, d) comes from, and log |det d noise / d z|, (N,)."""
        log_det = z.new_zeros(z.shape[0])
        for step in self.steps:
            z, more = step(z, y)
            log_det = log_det + more
        return z, log_det

    def inverse(self, noise: Tensor, y: Tensor | None) -> Tensor:
        """The codes (N, d) that noise (N, d) becomes."""
        for step in reversed(self.steps):
            noise = step.inverse(noise, y)  # type: ignore[operator]  # a step of the list above
        return noise

    @torch.no_grad()
    def initialise(self, z: Tensor, y: Tensor | None) -> None:
        """Set each step from what the steps before it make of codes z (N, d)."""
        for step in self.steps:
            step.initialise(z, y)  # type: ignore[operator]
            z, _ = step(z, y)


class FlowDistribution(Distribution):
    r"""Codes f^-1(e, y) of noise e ~ N(0, t^2 I), t the temperature.

    .. math:: \log p(z | y) = \log N(f(z, y); 0, t^2 I) + \log\left|\det \frac{\partial f}{\partial z}\right|, \qquad
              \log p(z) = \log \sum_y p(y)\, p(z | y)

    nats. y: labels (*batch); without them p(z), where the flow knows classes: the exact mixture over them with `log_frequencies`
    (C,), for which z goes through the flow once for each class.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        flow: Flow,
        log_frequencies: Tensor,
        event_shape: torch.Size,
        batch_shape: torch.Size = NO_BATCH,
        labels: Tensor | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(batch_shape, event_shape, validate_args=False)
        self.flow, self.log_frequencies, self.labels, self.temperature = flow, log_frequencies, labels, temperature

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        labels = None if self.labels is None else self.labels.expand(batch_shape)
        return self._like(torch.Size(batch_shape), labels, self.temperature)

    def _like(self, batch_shape: torch.Size, labels: Tensor | None, temperature: float) -> FlowDistribution:
        return FlowDistribution(self.flow, self.log_frequencies, self.event_shape, batch_shape, labels, temperature)

    def tempered(self, temperature: float) -> FlowDistribution:
        """The same with noise that is `temperature` times as wide."""
        return self._like(self.batch_shape, self.labels, self.temperature * temperature)

    def log_prob(self, value: Tensor) -> Tensor:
        z = value.flatten(-len(self.event_shape))
        shape = torch.broadcast_shapes(z.shape[:-1], self.batch_shape)
        rows = z.expand(*shape, z.shape[-1]).reshape(-1, z.shape[-1])
        return self._of_rows(rows, shape).reshape(shape)

    def _of_rows(self, z: Tensor, shape: torch.Size) -> Tensor:
        if not self.flow.classes:
            return self._of_class(z, None)
        if self.labels is not None:
            return self._of_class(z, self.labels.expand(shape).reshape(-1))
        each = torch.arange(self.flow.classes, device=z.device)
        joint = torch.stack([self._of_class(z, y.expand(z.shape[0])) for y in each], 1)
        return torch.logsumexp(self.log_frequencies + joint, 1)

    def _of_class(self, z: Tensor, y: Tensor | None) -> Tensor:
        noise, log_det = self.flow(z, y)
        constant = z.shape[1] * math.log(math.sqrt(2 * math.pi) * self.temperature)
        density: Tensor = log_det - 0.5 * (noise / self.temperature).square().sum(1) - constant
        return density

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        like, d = self.log_frequencies, self.event_shape.numel()
        labels = self.labels
        if labels is None and self.flow.classes:
            labels = Categorical(logits=self.log_frequencies).sample(shape)
        noise = self.temperature * torch.randn(shape.numel(), d, dtype=like.dtype, device=like.device)
        z = self.flow.inverse(noise, None if labels is None else labels.expand(shape).reshape(-1))
        return z.reshape(*shape, *self.event_shape)


@tempered.register
def _(p: FlowDistribution, temperature: float) -> Distribution:
    return p.tempered(temperature)


# ------------------------------------------------------------------------------------------------ the prior
@register("prior", "coupling_flow")
class CouplingFlow(Prior):
    r"""An invertible network between codes and N(0, I) whose density is exact, for each class or for all codes.

    .. math:: \log p(z | y) = \log N(f(z, y); 0, I) + \log\left|\det \frac{\partial f}{\partial z}\right|, \qquad
              p(z) = \sum_y p(y)\, p(z | y)

    f whitens z by the mean and covariance of all codes, then `layers` times normalises each value (by class), permutes them, and
    scales and shifts one half by functions of the other half and of the class, two hidden layers of `width` units. `initialise`
    sets whitening and normalisations, so that training starts from a Gaussian of full covariance; the gradient does the rest.
    p(y) are the frequencies of the classes among the codes that it is initialised from; without `per_class`, or classes, there is
    one density. Before it is fitted it is N(0, I).

    Raises:
        ValueError: for less than one layer or unit, or for codes of one value, which cannot be coupled.
        UsageError: in `initialise`, for a class without codes.

    References: Dinh et al., Density estimation using Real NVP (2017), arXiv:1605.08803; Kingma & Dhariwal, Glow: generative flow
    with invertible 1x1 convolutions (2018), arXiv:1807.03039.
    """

    fitted_by = "gradient"

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        classes: int = 0,
        layers: int = 8,
        width: int = 256,
        per_class: bool = True,
    ) -> None:
        super().__init__()
        d = math.prod(latent_shape)
        if min(layers, width) < 1 or d < 2:
            raise ValueError(
                "layers and width must be at least 1, and a code must have at least two values to be coupled"
            )
        self.event_shape, self.classes = torch.Size(latent_shape), classes if per_class else 0
        self.flow = Flow(d, self.classes, layers, width)
        count = max(1, self.classes)
        self.register_buffer("frequencies", torch.full((count,), 1 / count))
        self.frequencies: Tensor

    def forward(self, y: Tensor | None = None, encode: Encode | None = None) -> Distribution:
        log_frequencies = self.frequencies.log().log_softmax(0)  # which rounding has left a little off 1
        if y is None or not self.classes:
            return FlowDistribution(self.flow, log_frequencies, self.event_shape)
        return FlowDistribution(self.flow, log_frequencies, self.event_shape, y.shape, y)

    @torch.no_grad()
    def initialise(self, z: Tensor, y: Tensor | None = None) -> None:
        if self.classes:
            counts = class_counts(y, self.classes)
            self.frequencies.copy_(counts / counts.sum())
        self.flow.initialise(z.flatten(1), y if self.classes else None)
