"""What a diagnosis looks at: the evidence of one run, gathered once, when it is asked for. Nothing is written, nothing trained.

Up to `EXAMPLES` examples of a split pass through the trained model, with noise keyed by example. Losses are the objective's own,
in nats per example. Evidence that cannot be had raises `Unreachable` with the reason.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from diabolo import data as data_module
from diabolo import evaluation
from diabolo.data import Access, Dataset, Loader
from diabolo.engine import own_randomness
from diabolo.errors import DiaboloError
from diabolo.metrics import ACTIVE_VARIANCE, examples_at_a_time, float64, keyed_terms
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.build import build_model, build_objective
from diabolo.models.distributions import unchecked
from diabolo.models.grids import vectors
from diabolo.models.likelihoods import Likelihood
from diabolo.runs import Run, sha256
from diabolo.seeds import fold

#: Examples of a split that are looked at.
EXAMPLES = 1000
#: Values of x in a step of the constant model's fit: 2^20 floats, a few ms.
_FIT_VALUES = 2**20
#: Numbers for each value that can be fitted to them: of more, the fit would know the examples by heart.
_FIT_NUMBERS = 4
_FIT_STEPS = 300
#: How far parameters go when a likelihood is asked how far its mean does: at logits of +-1,000 it has arrived where it can.
_FAR = 1000.0


class Unreachable(Exception):
    """Evidence that cannot be had, and why."""


class NotFinite(Unreachable):
    """The model's own numbers are not finite."""


@dataclass(frozen=True)
class Layer:
    """One rectified layer: `dead` of its `units` are 0 on every example (a channel of a convolution: at every position)."""

    name: str
    units: int
    dead: int


@dataclass(frozen=True)
class Sample:
    """What the model makes of n examples of a split, float64 on the CPU: `loss` (n,), `rate` (n,) where the objective has
    one, posterior means `mean` (n, d), and its rectified layers."""

    split: str
    loss: Tensor
    rate: Tensor | None
    mean: Tensor
    layers: tuple[Layer, ...]
    per_dimension: Tensor | None = None  # (d,) the rate of each latent dimension, where the family factorises

    @property
    def n(self) -> int:
        return self.loss.numel()

    @property
    def varying(self) -> Tensor:
        """Of each latent dimension, whether its posterior mean varies by more than `ACTIVE_VARIANCE`, (d,)."""
        return self.mean.var(0) > ACTIVE_VARIANCE

    @property
    def active(self) -> int:
        """How many latent dimensions vary."""
        return int(self.varying.sum())

    @property
    def carrying(self) -> int:
        """Active dimensions that carry at least 5 % of what the strongest one does; all that are active where a rate has no
        parts."""
        if self.per_dimension is None:
            return self.active
        return min(self.active, int((self.per_dimension >= 0.05 * self.per_dimension.max()).sum()))

    def label(self) -> str:
        """How many examples of which split."""
        return f"{self.n:,} {self.split} examples"


@dataclass(frozen=True)
class Range:
    """The values of the training split, and how far the likelihood's mean goes; `outside`: the share of values beyond it."""

    low: float
    high: float
    reach: tuple[float, float]
    outside: float
    n: int


class Examination:
    """The evidence of a run. `data` are its examples where they were in memory; otherwise they are loaded by `access`."""

    def __init__(
        self,
        run: Run,
        *,
        data: Dataset | None = None,
        access: Access | None = None,
        device: torch.device | str = "cpu",
        imports: str = "",
    ) -> None:
        self.run, self.config, self.device, self.imports = run, run.config, torch.device(device), imports
        self._data, self._access = data, access

    # ---------------------------------------------------------------- what lies in the run
    @cached_property
    def status(self) -> dict[str, Any]:
        with _reaching():
            return self.run.status

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        with _reaching():
            return self.run.metrics()

    def epochs(self, *splits: str) -> list[dict[str, Any]]:
        """The last line of each epoch of the first of `splits` that was logged, where its loss is finite."""
        for split in splits:
            found = {row["epoch"]: row for row in self.rows if row["split"] == split and row.get("loss") is not None}
            if found:
                return list(found.values())
        return []

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """The run's evaluation, if it is of these weights."""
        with _reaching():
            found = self.run.evaluation()
        if found["about"].get("weights_sha256") != sha256(self.run.path / "weights.safetensors"):
            raise Unreachable(f"evaluation.json is of other weights; repeat it: diabolo evaluate {self.run.path}")
        return found

    @cached_property
    def model(self) -> Autoencoder:
        if self.status["state"] == "diverged":
            raise Unreachable("training diverged: the weights before that say nothing")
        with _reaching():
            return self.run.model().to(self.device).requires_grad_(False)

    # ---------------------------------------------------------------- what needs the data
    @cached_property
    def dataset(self) -> Dataset:
        with _reaching():
            loaded = self._data or data_module.load(self.config.data.name, self.config.data.params, self._access)
            self.run.check_data(loaded)
            return loaded

    @property
    def held_out(self) -> str:
        """The split that training did not see: validation where there is one, else test."""
        return "test" if self.dataset.validation is None else "validation"

    @cached_property
    def train(self) -> Sample:
        return self._sample(self.model, "train")

    @cached_property
    def held(self) -> Sample:
        return self._sample(self.model, self.held_out)

    @cached_property
    def start(self) -> Sample:
        """The training examples of `train` under the weights that training began with, which follow from the seed."""
        with own_randomness(self.device):
            torch.manual_seed(fold(self.config.seed, "init"))
            model = build_model(self.config.model.to_dict(), self.dataset.spec).to(self.device).eval()
        return self._sample(model, "train")

    @cached_property
    def constant(self) -> float:
        """The mean training loss of the best model that ignores x: the distortion at constant parameters, rate 0."""
        loader = Loader(self.dataset, "train", self.device)
        shape: tuple[int, ...] = self.model.decoder.out_shape  # type: ignore[assignment]
        size = self.dataset.spec.dimensions
        if math.prod(shape) > _FIT_NUMBERS * size:
            raise Unreachable(
                f"the best model that ignores x has {math.prod(shape) / size:.3g} numbers for each value, too many to fit to "
                f"{EXAMPLES:,} examples"
            )
        least = max(100, _FIT_VALUES // size)
        chosen = _chosen(len(loader), min(least, EXAMPLES))
        x = torch.cat([batch.x for batch in loader.ordered(evaluation.BATCH, chosen)])
        objective = build_objective(self.config.objective.to_dict(), self.dataset.spec)
        return constant_loss(self.model.likelihood, shape, x, getattr(objective, "distortion", _minus_log_p))

    @cached_property
    def range(self) -> Range:
        loader = Loader(self.dataset, "train", self.device)
        reach = low, high = mean_reach(self.model.likelihood, self.model.decoder.out_shape)  # type: ignore[arg-type]
        slack, least, most, outside, count = _slack(low, high), math.inf, -math.inf, 0, 0
        for batch in loader.ordered(evaluation.BATCH):
            least, most = min(least, batch.x.min().item()), max(most, batch.x.max().item())
            outside += int(((batch.x < low - slack) | (batch.x > high + slack)).sum())
            count += batch.x.numel()
        return Range(least, most, reach, outside / count, count)

    @torch.no_grad()
    def _sample(self, model: Autoencoder, split: str) -> Sample:
        loader, parts = Loader(self.dataset, split, self.device), []
        objective = build_objective(self.config.objective.to_dict(), self.dataset.spec)
        with unchecked(), watched(model) as layers, own_randomness(self.device):
            size = examples_at_a_time(model, loader.values.shape[1], evaluation.BATCH)
            for batch in loader.ordered(size, _chosen(len(loader), EXAMPLES)):
                terms = keyed_terms(model, objective, batch, fold(0, "doctor", "noise"))
                kept = {name: float64(terms[name]) for name in ("loss", "rate") if name in terms}
                q = model.encode(batch.x)
                parts.append(kept | {"mean": vectors(float64(q.mean))} | _parted(q, model.prior(None, model.encode)))
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if not all(t.isfinite().all() for t in whole.values()):
            raise NotFinite(f"the model gives values that are not finite on the {split} split")
        kl = whole.get("kl")
        per_dimension = None if kl is None else kl.mean(0)
        return Sample(split, whole["loss"], whole.get("rate"), whole["mean"], tuple(_layers(layers)), per_dimension)


@contextmanager
def _reaching() -> Iterator[None]:
    """What a user can be told becomes the reason why evidence is missing."""
    try:
        yield
    except DiaboloError as error:
        raise Unreachable(". ".join(part.rstrip(".") for part in (error.what, error.why) if part)) from error


def _chosen(total: int, count: int) -> Tensor:
    """At most `count` of `total` indices, always the same, in order."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(fold(0, "doctor", total)))
    return order[:count].sort().values


def _parted(q: Any, p: Any) -> dict[str, Tensor]:
    """KL(q || p) of each latent dimension, (B, d), where both are independent Gaussians."""
    normal = all(isinstance(d, Independent) and isinstance(d.base_dist, Normal) for d in (q, p))
    return {"kl": vectors(float64(kl_divergence(q.base_dist, p.base_dist)))} if normal else {}


# ------------------------------------------------------------------------------------------------ activations
@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While it is open, the largest output of each unit of each ReLU, by the module's name: (units,)."""
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            most = output.detach().transpose(0, 1).flatten(1).amax(1)  # (units,), over examples and positions
            largest[name] = most if name not in largest else torch.maximum(largest[name], most)

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if isinstance(m, nn.ReLU)]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()


def _layers(largest: dict[str, Tensor]) -> Iterator[Layer]:
    for name, most in largest.items():
        yield Layer(name, most.numel(), int((most <= 0).sum()))


# ------------------------------------------------------------------------------------------------ the likelihood alone
def _minus_log_p(p: Distribution, x: Tensor) -> Tensor:
    return -p.log_prob(x)


def constant_loss(
    likelihood: Likelihood, shape: tuple[int, ...], x: Tensor, distortion: Callable[..., Tensor] = _minus_log_p
) -> float:
    r"""The least mean loss on x (n, *data) of a model that ignores x, nats per example.

    .. math:: \min_\theta\ \frac1n \sum_i d(p_\theta, x_i), \qquad d(p, x) = -\log p(x)

    theta (`shape`) is what the decoder would give, for every x the same; parameters of the likelihood itself are fitted too.
    `distortion`: d, of an objective that has one of its own.

    Raises:
        Unreachable: if the loss has not settled after `_FIT_STEPS` steps, as where it has no lower bound.
    """
    head = copy.deepcopy(likelihood).requires_grad_(True).train()
    theta = _beginning(head, shape, x, distortion).requires_grad_()
    groups = [
        {"params": [theta], "lr": 0.1 * max(1.0, x.std().item())},
        {"params": list(head.parameters()), "lr": 0.05},
    ]
    optimiser = torch.optim.Adam([group for group in groups if group["params"]])
    losses: list[float] = []
    with unchecked(), torch.enable_grad():
        for _ in range(_FIT_STEPS):
            loss = distortion(head(theta.expand(1, x.shape[0], *shape)), x).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            learn = getattr(head, "after_step", None)
            if callable(learn):
                learn()
            losses.append(loss.item())
    before, late = losses[: -_FIT_STEPS // 5], losses[-_FIT_STEPS // 5]
    settled = min(before) <= losses[-1] or late - losses[-1] <= 0.05 * (losses[0] - losses[-1])
    if not (math.isfinite(losses[-1]) and settled):
        raise Unreachable(
            "the loss of the best constant model does not settle: it may have no lower bound on these data"
        )
    return min(losses)


@torch.no_grad()
def _beginning(head: Likelihood, shape: tuple[int, ...], x: Tensor, distortion: Callable[..., Tensor]) -> Tensor:
    """Parameters to start from: 0, or the mean of x where the head scores that better (it reads parameters as values then)."""
    zero, mean = torch.zeros(shape, device=x.device), x.mean(0)
    near = zero.clone()
    if shape[1:] == mean.shape[1:] and shape[0] >= mean.shape[0]:
        near[: mean.shape[0]] = mean
    with unchecked():
        losses = [distortion(head(start.expand(1, x.shape[0], *shape)), x).mean() for start in (zero, near)]
    return near if losses[1] < losses[0] else zero


def mean_reach(likelihood: Likelihood, shape: tuple[int, ...]) -> tuple[float, float]:
    """The least and the largest mean that the likelihood can give; infinite where it still moves at the far end.

    Raises:
        Unreachable: for a distribution without a mean.
    """
    ends = []
    try:
        with unchecked():
            towards = _upwards(likelihood, shape)
            for sign in (-1, 1):
                here, further = (likelihood(sign * far * towards).mean.detach() for far in (_FAR, 2 * _FAR))
                ends.append((here.flatten()[0].item(), further.flatten()[0].item()))
    except (NotImplementedError, AttributeError) as error:
        raise Unreachable(f"the likelihood gives no mean ({type(error).__name__})") from error
    (low, lower), (high, higher) = sorted(ends)
    return _settled(low, lower, -math.inf), _settled(high, higher, math.inf)


@torch.enable_grad()
def _upwards(likelihood: Likelihood, shape: tuple[int, ...]) -> Tensor:
    """The direction in which parameters (1, 1, *shape) raise the mean most, its largest entry 1; all 1 where it has no
    gradient. So a scale, which the mean does not depend on at first, stays as it is."""
    params = torch.zeros(1, 1, *shape, requires_grad=True)
    mean = likelihood(params).mean
    if not mean.requires_grad:
        return torch.ones_like(params)
    (gradient,) = torch.autograd.grad(mean.sum(), params)
    largest = gradient.abs().max()
    return gradient / largest if largest > 0 else torch.ones_like(params)


def _settled(here: float, further: float, otherwise: float) -> float:
    return here if math.isfinite(here) and abs(here - further) < 1e-3 else otherwise


def _slack(low: float, high: float) -> float:
    """Half a grey level of a bounded range: rounding is no fault."""
    return (high - low) / 510 if math.isfinite(high - low) else 1e-6
