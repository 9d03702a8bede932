"""The loss card: what a loss is, measured from its parts (`probing`), concluded (`card_findings`), and said (`card_rows`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from diabolo import card_rows, registry, runs
from diabolo.card_findings import Declared, Findings, Kind
from diabolo.config import RunConfig
from diabolo.data.scan import Facts
from diabolo.data.spec import DataSpec, Values
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.build import build_model, build_objective, check_objective, learned
from diabolo.models.objectives import Objective
from diabolo.probing import LATE, LikelihoodFacts, first_line, likelihood_facts, objective_facts

SCHEMA = 1
#: Stands for the shape of data that are not at hand.
_STAND_IN_SHAPE = (1, 4, 4)


@dataclass(frozen=True)
class Card:
    """What a loss is: `kind` and the `reasons` why it is no ELBO, its numbers, and all of it as `rows` of label and text.

    `sigma2`: the variance of squared errors, None for any other loss. `beta`: the effective one when every warm-up is over,
    None without a rate. `sse_weight`: 2 sigma^2 beta. `weight`: dloss / d(-log p(x|z)), None (as `beta`) where squared errors of
    the two signs weigh differently. `contraction`: that of the squared
    Jacobian. `mass`: what p(x|z) sums or integrates to over two values, None where it could not be measured. `flags`:
    contradictions between what a part says and what was measured. `labels`: what data and likelihood do not share.
    """

    kind: Kind
    headline: str
    reasons: tuple[str, ...]
    flags: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    sigma2: float | None
    beta: float | None
    sse_weight: float | None
    weight: float | None
    contraction: float | None
    mass: float | None
    dimensions: int | None
    unit: str

    def lines(self) -> list[str]:
        """What is printed when training starts: the headline, and what must not be overlooked."""
        warnings = [f"warning: {text}" for text in self.flags]
        return [f"loss: {self.headline}", *warnings, *(f"data: {text}" for text in self.labels)]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def of_config(config: RunConfig, spec: DataSpec | None, facts: Facts | None = None) -> Card:
    """The card of a configuration for data of `spec`; without one D is not known, and nothing is said that needs it.

    Raises:
        UsageError: if the parts do not fit the data or one another.
    """
    shaped = spec or _unknown(config)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config.model.to_dict(), shaped)
    objective = build_objective(config.objective.to_dict(), shaped)
    check_objective(model, objective)
    steps = LATE if spec is None else steps_of(config, spec)
    return measure(model, objective, shaped, steps=steps, facts=facts, sized=spec is not None)


def record(run: Path, model: Autoencoder, config: RunConfig, spec: DataSpec, facts: Facts, when: str) -> Card:
    """Measure the loss of a run with the weights that `model` has, and write it to the run's loss_card.json."""
    objective = build_objective(config.objective.to_dict(), spec)
    found = measure(model, objective, spec, steps=steps_of(config, spec), facts=facts)
    runs.write_json(run / "loss_card.json", {"when": when, **found.to_dict(), "data": asdict(facts)})
    return found


def steps_of(config: RunConfig, spec: DataSpec) -> int:
    """The steps of a run on data of `spec`; LATE where it does not say how many examples there are."""
    return config.train.epochs * math.ceil(spec.examples / config.train.batch) if spec.examples else LATE


def accepted(likelihood: str) -> tuple[Values, ...]:
    """The kinds of values that a likelihood scores."""
    kind: Any = registry.get("likelihood", likelihood)
    return tuple(kind.accepts)


def discrete(likelihood: str) -> bool:
    """Whether a likelihood gives probabilities, so that -log p(x|z) is a code length."""
    return bool(getattr(registry.get("likelihood", likelihood), "discrete", False))


def _unknown(config: RunConfig) -> DataSpec:
    """Stands for data that are not at hand, with values of a kind that the likelihood scores."""
    accepts = accepted(config.model.likelihood.name)
    binary = "binary" in accepts and bool(config.data.params.get("binarize"))
    return DataSpec(name=config.data.name, shape=_STAND_IN_SHAPE, values="binary" if binary else accepts[0])


def measure(
    model: Autoencoder,
    objective: Objective,
    spec: DataSpec,
    *,
    steps: int = LATE,
    facts: Facts | None = None,
    sized: bool = True,
) -> Card:
    """Measure a loss; neither the model nor the objective nor any random state changes.

    Arguments:
        steps: of the run, to say whether a warm-up ends in it.
        facts: of the data, where they were looked at.
        sized: whether `spec.shape` is the data's, or stands for one that is not known.
    """
    x, weighed, obstacle = _example(spec), None, ""
    try:
        scored = likelihood_facts(model.likelihood, x, spec.values == "binary")
    except Exception as error:  # whatever a likelihood of the user's own raises
        scored = LikelihoodFacts("other", None, None, None, obstacle=first_line(error))
    try:
        weighed = objective_facts(model, objective, x, steps)
    except Exception as error:  # whatever an objective of the user's own raises
        obstacle = first_line(error)
    return _card(Findings(_declared(model), scored, weighed, spec, steps, facts, sized, obstacle))


def _card(f: Findings) -> Card:
    return Card(
        kind=f.kind,
        headline=f.headline(),
        reasons=tuple(f.reasons),
        flags=tuple(f.flags),
        labels=tuple(card_rows.labels(f)),
        rows=tuple(card_rows.rows(f)),
        sigma2=_rounded(f.sigma2),
        beta=_rounded(f.final_beta),
        sse_weight=_rounded(f.sse_weight),
        weight=_rounded(f.weight),
        contraction=_rounded(f.weighed.final.contraction if f.weighed else None),
        mass=_rounded(f.scored.mass),
        dimensions=f.spec.dimensions if f.sized else None,
        unit=f.unit,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.9g}")


def _example(spec: DataSpec) -> torch.Tensor:
    """Values of the kind that the likelihood scores, (1, *shape) float64, the same each time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((1, *spec.shape), generator=generator, dtype=torch.float64)
    kinds: dict[str, Callable[[], torch.Tensor]] = {
        "binary": x.round,
        "grey": lambda: (255 * x).round() / 255,
        "real": lambda: 3 * x - 1,
    }
    return kinds[spec.values]()


def _declared(model: Autoencoder) -> Declared:
    likelihood = model.likelihood
    return Declared(
        family=str(likelihood.family),
        normalised=bool(likelihood.normalised),
        discrete=bool(getattr(likelihood, "discrete", False)),
        prior=str(model.prior.density),
        density=bool(getattr(model.posterior, "density", True)),
        learns_scale=learned(likelihood),
    )
