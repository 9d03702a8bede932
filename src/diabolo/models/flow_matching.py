"""A flow-matching prior: a network that carries noise to codes, with classes and guidance. It samples; it has no density."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from diabolo.models.distributions import float32, guided, tempered
from diabolo.models.priors import Encode, Prior, refuse_constant
from diabolo.registry import register

#: Frequencies of the sines that stand for a time in [0, 1].
_FREQUENCIES = 64
#: The least standard deviation that a channel is divided by, as a share of the mean over the channels.
_LEAST_SCALE = 1e-3
#: A vector is cut into pieces of at most so many numbers where `patch` is left out.
_PIECE = 16


@register("prior", "flow_matching")
class FlowMatching(Prior):
    r"""Learn the velocity that carries N(0, I) to the codes on straight lines, for each class and for all together.

    .. math:: z_t = (1 - t) z + t \epsilon, \quad loss = \tfrac1d \| v(z_t, t, y) - (\epsilon - z) \|^2, \quad
              \operatorname{logit} t \sim N(0, 1), \ \epsilon \sim N(0, I)

    on codes that are normalised per channel (`initialise`). v is a transformer over patches of `patch` x `patch` places, its
    layers modulated by time and class; a vector is cut into pieces of `patch` numbers. Where `patch` is left out, it is 2 on
    grids of even sides, 1 on others, and the largest divisor up to 16 of a vector's length. In training a share `label_drop` of
    the classes is replaced by "any", so that one network knows p(z | y) and p(z). A sample takes `steps` Euler steps from t = 1
    to 0; with guidance w their velocity is v(any) + w (v(y) - v(any)). The loss is per dimension of normalised codes, no
    nats: the model gives samples and no density, so no bound on log p(x) can be had of it.

    Raises:
        ValueError: if `patch` does not divide the code's sides, `heads` not the width, or a number is out of its range.

    References: Lipman et al., Flow matching for generative modeling (2023), arXiv:2210.02747; Esser et al., Scaling rectified
    flow transformers (2024), arXiv:2403.03206; Peebles & Xie, Scalable diffusion models with transformers (2023),
    arXiv:2212.09748; Ho & Salimans, Classifier-free diffusion guidance (2022), arXiv:2207.12598.
    """

    density = "estimate"
    fitted_by = "gradient"
    loss_unit = "per normalised dimension"

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        classes: int = 0,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        patch: int | None = None,
        label_drop: float = 0.1,
        steps: int = 40,
    ) -> None:
        super().__init__()
        if not 0 <= label_drop <= 1:
            raise ValueError(f"label_drop={label_drop} is no share of the examples: it must be from 0 to 1")
        if min(width, depth, heads, steps) < 1:
            raise ValueError("width, depth, heads and steps must be at least 1")
        self.classes, self.label_drop, self.steps = classes, label_drop, steps
        self.latent_shape = tuple(latent_shape)
        self.velocity = Velocity(self.latent_shape, classes, width, depth, heads, patch or _patch(self.latent_shape))
        channels = (latent_shape[0], *[1] * (len(latent_shape) - 1))
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.centre: Tensor
        self.spread: Tensor

    def forward(self, y: Tensor | None = None, encode: Encode | None = None) -> Distribution:
        return Transported(self, y if self.classes else None)

    @torch.no_grad()
    def initialise(self, z: Tensor, y: Tensor | None = None) -> None:
        over = [d for d in range(z.ndim) if d != 1]
        deviations = z.std(over, correction=0)
        refuse_constant(deviations.mean())
        self.centre.copy_(z.mean(over).view_as(self.centre))
        self.spread.copy_(deviations.clamp(min=_LEAST_SCALE * deviations.mean()).view_as(self.spread))

    def fit_loss(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The squared error of the velocity, per dimension, (B,); no nats. In training mode some classes are dropped."""
        z = (z - self.centre) / self.spread
        noise, t = torch.randn_like(z), torch.randn(z.shape[0], dtype=z.dtype, device=z.device).sigmoid()
        at = t.view(-1, *[1] * (z.ndim - 1))
        labels = self.labels(y, z.shape[0])
        if self.training:
            labels = torch.where(torch.rand(z.shape[0], device=z.device) < self.label_drop, self.classes, labels)
        error = float32(self.velocity((1 - at) * z + at * noise, t, labels)) - (noise - z)
        return error.square().flatten(1).mean(1)

    def labels(self, y: Tensor | None, n: int) -> Tensor:
        """Classes (n,) as the network reads them; `classes` itself, one more than the last, stands for any."""
        if y is None or not self.classes:
            return torch.full((n,), self.classes, device=self.centre.device)
        return y.expand(n)

    @torch.no_grad()
    def transport(self, noise: Tensor, y: Tensor | None, guidance: float) -> Tensor:
        """Carry noise (n, *latent_shape) to codes in `steps` Euler steps."""
        z, labels, whole = noise, self.labels(y, noise.shape[0]), self.labels(None, noise.shape[0])
        times = torch.linspace(1, 0, self.steps + 1, dtype=z.dtype, device=z.device)
        for now, then in zip(times, times[1:]):
            t = now.expand(z.shape[0])
            v = self.velocity(z, t, labels)
            if guidance != 1 and y is not None:
                free = self.velocity(z, t, whole)
                v = free + guidance * (v - free)
            z = z + (then - now) * v
        return z * self.spread + self.centre


def _patch(latent_shape: tuple[int, ...]) -> int:
    """What divides the sides of codes of this shape."""
    if len(latent_shape) > 1:
        return 1 if any(side % 2 for side in latent_shape[1:]) else 2
    return max(k for k in range(1, _PIECE + 1) if latent_shape[0] % k == 0)


class Transported(Distribution):
    """Codes that a flow-matching prior carries from noise: batch shape () or (B,), event `latent_shape`; samples only."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real

    def __init__(
        self,
        prior: FlowMatching,
        y: Tensor | None,
        guidance: float = 1.0,
        temperature: float = 1.0,
        batch: torch.Size | None = None,
    ) -> None:
        self.prior, self.y, self.guidance, self.temperature = prior, y, guidance, temperature
        shape = torch.Size() if y is None else y.shape
        super().__init__(batch if batch is not None else shape, torch.Size(prior.latent_shape), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Transported:
        batch = torch.Size(batch_shape)
        y = None if self.y is None else self.y.expand(batch)
        return Transported(self.prior, y, self.guidance, self.temperature, batch)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Codes (*sample_shape, *batch, *latent_shape)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        like = self.prior.centre
        noise = torch.randn(batch.numel(), *self.event_shape, device=like.device, dtype=like.dtype)
        y = None if self.y is None else self.y.expand(batch).reshape(-1)
        return self.prior.transport(noise * self.temperature, y, self.guidance).view(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """There is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a flow-matching prior gives samples, no density: take prior=coupling_flow for a rate"
        )


@guided.register
def _(p: Transported, guidance: float) -> Transported:
    if p.y is None:
        raise NotImplementedError("guidance pushes towards a class, and none is given: sample it with guidance=1")
    return Transported(p.prior, p.y, guidance, p.temperature, p.batch_shape)


@tempered.register
def _(p: Transported, temperature: float) -> Transported:
    return Transported(p.prior, p.y, p.guidance, p.temperature * temperature, p.batch_shape)


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """An affine map that gives 0 until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Velocity(nn.Module):
    """The transformer v(z, t, y): codes z (B, *latent_shape), times t (B,), classes y (B,) -> (B, *latent_shape)."""

    def __init__(
        self, latent_shape: tuple[int, ...], classes: int, width: int, depth: int, heads: int, patch: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        sides = latent_shape[1:] or latent_shape
        if patch < 1 or any(side % patch for side in sides):
            raise ValueError(f"patch={patch} does not divide {' and '.join(map(str, sides))}, the sides of a code")
        self.latent_shape, self.patch = latent_shape, patch
        values = patch if len(latent_shape) == 1 else latent_shape[0] * patch**2
        tokens = math.prod(latent_shape) // values
        self.enter = nn.Linear(values, width)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.kind = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.kind.weight, std=0.02)
        self.modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.leave = zero_linear(width, values)
        self.last = nn.LayerNorm(width, elementwise_affine=False)
        octaves = torch.exp(torch.linspace(0, math.log(1000), _FREQUENCIES))
        self.register_buffer("octaves", octaves, persistent=False)
        self.octaves: Tensor

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        angles = t[:, None] * self.octaves
        c = self.time(torch.cat([angles.cos(), angles.sin()], 1)) + self.kind(y)
        shared = self.modulation(c).unflatten(1, (6, -1))  # one map for all blocks, each adds its own offset
        h = self.enter(self._cut(z)) + self.place
        for block in self.blocks:
            h = block(h, shared)
        return self._joined(self.leave(self.last(h)))

    def _cut(self, z: Tensor) -> Tensor:
        """Tokens (B, T, values) of codes."""
        tokens: Tensor
        if len(self.latent_shape) == 1:
            tokens = z.unflatten(1, (-1, self.patch))
        else:
            tokens = F.pixel_unshuffle(z, self.patch).flatten(2).mT
        return tokens

    def _joined(self, h: Tensor) -> Tensor:
        if len(self.latent_shape) == 1:
            return h.flatten(1)
        rows, columns = (side // self.patch for side in self.latent_shape[1:])
        grid: Tensor = F.pixel_shuffle(h.mT.unflatten(2, (rows, columns)), self.patch)
        return grid


class Block(nn.Module):
    """Attention between tokens, then two layers on each; both are modulated, and at first the block is the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.offset = nn.Parameter(torch.zeros(6, width))

    def forward(self, h: Tensor, shared: Tensor) -> Tensor:
        modulated = (shared + self.offset)[:, :, None]  # (B, 6, 1, width)
        shift, scale, gate, shift_2, scale_2, gate_2 = modulated.unbind(1)
        h = h + gate * self._attended(self.norm(h) * (1 + scale) + shift)
        found: Tensor = h + gate_2 * self.layers(self.norm(h) * (1 + scale_2) + shift_2)
        return found

    def _attended(self, h: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, T, width / heads)
        # spelled out: for a few tokens the backward pass of torch's fused attention takes longer on a processor than all else
        attention = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        mixed: Tensor = self.mix((attention @ v).transpose(1, 2).flatten(2))
        return mixed
