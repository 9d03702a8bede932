"""One step of training: what is differentiated, in which precision, and how the parameters go down.

`Step` is model and objective as one module, one thing to compile, cast and wrap. `Descent` takes it down: forward in the
precision of the configuration, backward, clip, Adam, then what is learned without a gradient, then the average.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diabolo.compiling import compile_step
from diabolo.config import TrainConfig
from diabolo.distributed import Processes
from diabolo.engine import autocast, seeded
from diabolo.models.distributions import unchecked
from diabolo.models.objectives import Objective, Terms


class Step(nn.Module):
    """Model and objective as one module: (x, y, step) -> named terms, each (B,), nats per example."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, y: Tensor | None = None, step: int = 0) -> Terms:
        return self.objective(self.model, x, y, step)


def after_step(module: nn.Module) -> None:
    """Let every part learn what is learned without a gradient, after a step that was taken."""
    for part in module.modules():
        learn = getattr(part, "after_step", None)
        if callable(learn):
            learn()


def learning_rate(train: TrainConfig, step: int, steps: int) -> float:
    r"""The learning rate of step number `step` of `steps`, from 0 on.

    .. math:: lr \cdot \min(1, \tfrac{step + 1}{w}) \cdot f(u), \quad w = warmup \cdot steps, \quad
              u = \max(0, \tfrac{step - w}{steps - w})

    f(u) = 1 where `schedule` is constant, 1 - u where it is linear, (1 + cos(pi u)) / 2 where it is cosine.
    """
    rise = train.warmup * steps
    done = max(0.0, (step - rise) / (steps - rise))
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[train.schedule]
    return train.lr * (min(1.0, (step + 1) / rise) if rise else 1.0) * fall


#: Adam's moments below this are 0. They are far too small to move a weight (eps is 1e-8), but where a gradient stays 0, as that
#: of a pixel that is black in most images, they would shrink to denormal numbers, which a processor handles a hundred times more
#: slowly. They are looked through every so many steps, in which they cannot shrink that far.
NOTHING, EVERY = 1e-30, 100


class Average:
    r"""Exponential moving average of the weights: parameters are averaged, buffers copied.

    .. math:: a_n = d_n a_{n-1} + (1 - d_n) w_n, \quad d_n = \min(decay, \tfrac{n}{n + 9}), \quad n = 1, 2, \ldots

    The weights after n steps: where training is short, the average forgets where it began all the same.

    Reference: Polyak & Juditsky, Acceleration of stochastic approximation by averaging (1992).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: t.detach().clone() for name, t in model.state_dict().items()}
        self.parameters = {name for name, _ in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the weights after so many steps."""
        decay = min(self.decay, steps / (steps + 9))
        for name, now in model.state_dict().items():
            if name in self.parameters:
                self.weights[name].lerp_(now, 1 - decay)
            else:
                self.weights[name].copy_(now)


class Descent:
    """The way down of a Step by Adam, and the state that it keeps."""

    def __init__(
        self,
        step: Step,
        train: TrainConfig,
        device: torch.device,
        compiled: bool,
        processes: Processes | None = None,
    ) -> None:
        self.step, self.train, self.device = step, train, device
        self.processes = processes or Processes(device)
        self.model = step.model
        self.parameters = list(self.model.parameters())
        self.taken = 0  # steps that Adam has taken
        self.optimiser = torch.optim.Adam(self.parameters, lr=train.lr, fused=True)
        self.average = Average(self.model, train.ema) if train.ema else None
        self.images = any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in self.model.modules())
        if self.images:  # convolutions read the channels of a pixel together
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._shared = self.processes.wrapped(step)
        self._compiled = compile_step(step) if compiled else None

    def terms(self, x: Tensor, y: Tensor | None, number: int, seed: int) -> Terms:
        """The objective's terms of x (B, *data) at step `number`, each (B,), with noise from `seed`."""
        if self.images and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        # a compiled step is one of full batches: another size would be compiled anew, for one batch an epoch
        forward = self._compiled if self._compiled is not None and len(x) == self.train.batch else self._shared
        seeded(self.device, seed)
        with unchecked(), autocast(self.device, self.train.precision):
            found: Terms = forward(x, y, number)
        return found

    def descend(self, loss: Tensor, rate: float, weight: float = 1.0) -> bool:
        """Take the step at a learning rate, unless the gradient is not finite: then nothing changes.

        `weight`: the part of the batch that this process has seen.
        """
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        norm = _norm([p.grad for p in self.parameters if p.grad is not None])
        if not math.isfinite(norm.item()):
            return False
        if self.train.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.train.clip, norm)
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.step()
        self.taken += 1
        if self.taken % EVERY == 0:
            self._forget_nothings()
        after_step(self.step)
        self.processes.average_statistics(self.step, weight)
        if self.average:
            self.average.update(self.model, self.taken)
        return True

    def _forget_nothings(self) -> None:
        for entry in self.optimiser.state.values():
            for moment in (entry["exp_avg"], entry["exp_avg_sq"]):
                moment.copy_(F.hardshrink(moment, NOTHING))

    # ---------------------------------------------------------------- state
    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a later process needs to go on: model, optimiser and, where there is one, the average."""
        optimiser = {
            f"{index}.{key}": value
            for index, entry in self.optimiser.state_dict()["state"].items()
            for key, value in entry.items()
        }
        groups = {"model": self.model.state_dict(), "optimiser": optimiser}
        return groups | ({"average": self.average.weights} if self.average else {})

    def restore(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Put back what `state` gave."""
        self.model.load_state_dict(tensors["model"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors["optimiser"].items():
            index, key = name.split(".", 1)
            moment = value if value.ndim == 0 else torch.empty_like(self.parameters[int(index)]).copy_(value)
            state.setdefault(int(index), {})[key] = moment  # in the parameter's memory format, as fused Adam needs it
        self.taken = int(max((entry["step"].item() for entry in state.values()), default=0))
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        if self.average:
            self.average.weights = {name: t.to(self.device) for name, t in tensors["average"].items()}


def _norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together."""
    return nn.utils.get_total_norm(gradients, foreach=True)
