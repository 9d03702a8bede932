"""Wires shapes: the only place that knows all slots. Refuses what does not fit, before any training, with the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from diabolo.errors import UsageError
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.grids import shape_of
from diabolo.models.likelihoods import Likelihood
from diabolo.models.objectives import Objective
from diabolo.models.priors import Prior
from diabolo.registry import build, signature

if TYPE_CHECKING:
    from diabolo.data.spec import DataSpec

Part = Mapping[str, Any]  # {"name": ..., and the constructor's parameters}


def build_model(model: Mapping[str, Any], spec: DataSpec) -> Autoencoder:
    """Build the model that a configuration's `model` section describes, for data of `spec`.

    The latent has shape (latent,), or that of a grid (channels, height, width); the encoder ends in the posterior's channels,
    the decoder in the likelihood's.

    Raises:
        UsageError: if a part does not fit the data or another part.
    """
    latent_shape = shape_of(model["latent"])
    posterior = _component("posterior", model["posterior"], {})
    likelihood = _component("likelihood", model["likelihood"], {"data_shape": spec.shape})
    _check_values(model["likelihood"]["name"], likelihood, spec)
    encoder_shapes = {"in_shape": spec.shape, "out_shape": (posterior.channels(latent_shape[0]), *latent_shape[1:])}
    decoder_shapes = {"in_shape": latent_shape, "out_shape": (likelihood.channels(spec.shape[0]), *spec.shape[1:])}
    remedies = {part: _grids_that_fit(model[part], spec.shape, latent_shape) for part in ("encoder", "decoder")}
    encoder = _component("network", model["encoder"], encoder_shapes, remedies["encoder"])
    return Autoencoder(
        encoder=encoder,
        posterior=posterior,
        prior=build_prior(model["prior"], latent_shape, spec),
        decoder=_component("network", model["decoder"], {**decoder_shapes, "encoder": encoder}, remedies["decoder"]),
        likelihood=likelihood,
    )


def build_prior(prior: Part, latent_shape: tuple[int, ...], spec: DataSpec) -> Prior:
    """Build a prior over codes of `latent_shape`, for data of `spec`, whose number of classes it receives."""
    injected = {"latent_shape": latent_shape, "data_shape": spec.shape, "classes": len(spec.classes)}
    built: Prior = _component("prior", prior, injected)
    return built


def build_objective(objective: Part, spec: DataSpec) -> Objective:
    """Build the objective; one that needs the number of training examples receives it."""
    built: Objective = _component("objective", objective, {"examples": spec.examples})
    return built


def check_objective(model: Autoencoder, objective: Objective) -> None:
    """Refuse an objective that means nothing for this model.

    Raises:
        UsageError: naming what is missing and what to take instead.
    """
    if objective.bound and not model.bounded:
        raise UsageError(
            "this objective is a bound on log p(x), and this model has none",
            "A bound needs a prior p(z) and a posterior q(z | x) with a density; a plain autoencoder has neither.",
            "Take objective=reconstruction, or model.posterior=gaussian model.prior=standard_normal.",
        )
    if objective.bound and model.prior.fitted_by != "nothing":
        raise UsageError(
            "this prior is fitted after training, to the codes of a model that is finished",
            "An objective that is a bound would train the model against the prior as it begins.",
            "Take model.prior=standard_normal, train, and then fit it: diabolo fit-prior RUN prior=NAME.",
        )
    if not objective.bound and model.prior.density != "none":
        raise UsageError(
            "this objective never looks at the prior",
            "The codes would not follow it, and samples drawn from it would mean nothing.",
            "Take model.prior=none, or objective=elbo with model.posterior=gaussian.",
        )
    family = getattr(objective, "reads_mean_of", None)
    if family and not (model.likelihood.family == family and _only_mean(model.likelihood)):
        raise UsageError(
            f"this objective reads the mean of a {family} likelihood of fixed scale and nothing else of it",
            "The mean of another family is none of squared errors, and a scale that is learned would learn nothing.",
            "Take model.likelihood=gaussian model.likelihood.scale=0.7071067811865476 (its square is 1/2), or objective=elbo.",
        )
    closed = getattr(objective, "contractive", 0) and getattr(objective, "jacobian", "") == "closed"
    if closed and not (hasattr(model.encoder, "squared_jacobian") and not model.posterior.density):
        raise UsageError(
            "this encoder's Jacobian has no closed form here",
            "It is known for model.encoder=layer with model.posterior=dirac.",
            "Take objective.jacobian=hutchinson.",
        )


def learned(likelihood: Likelihood) -> Literal["fixed", "by gradient", "as a running mean"]:
    """How a likelihood's own parameters, such as a scale, are learned."""
    if any(parameter.requires_grad for parameter in likelihood.parameters()):
        return "by gradient"
    return "as a running mean" if callable(getattr(likelihood, "after_step", None)) else "fixed"


def _only_mean(likelihood: Likelihood) -> bool:
    """Whether the mean is all that training can move."""
    return learned(likelihood) == "fixed" and likelihood.channels(1) == 1


def _grids_that_fit(part: Part, image: tuple[int, ...], latent: tuple[int, ...]) -> str:
    """What to write where a network of `widths`, each of which halves the sides, does not meet a grid of codes: the grid that
    these widths make, the number of widths that makes this grid, the size of images that both fit."""
    widths, (_, *grid), (_, *sides) = part.get("widths"), latent, image
    if not widths or not grid or not sides:
        return ""
    factor, ways = 2 ** len(widths), []
    if all(side % factor == 0 for side in sides):
        ways.append(f"model.latent={','.join(map(str, (latent[0], *(side // factor for side in sides))))}")
    levels = [n for n in range(1, 12) if all(2**n * code == side for code, side in zip(grid, sides))]
    for n in levels:
        fitting = ",".join(map(str, [*widths, *[widths[-1]] * n][:n]))
        ways.append(f"model.encoder.widths={fitting} model.decoder.widths={fitting}")
    size = factor * grid[0]
    if grid[0] == grid[1]:
        ways.append(f"images of {size}x{size}, of a folder data.size={size}")
    return f"What fits: {'; or '.join(ways)}." if ways else ""


def _component(slot: str, part: Part, injected: Mapping[str, Any], remedy: str = "") -> Any:
    accepted = signature(slot, part["name"])
    given = {key: value for key, value in part.items() if key != "name"}
    try:
        return build(slot, part["name"], **given, **{key: value for key, value in injected.items() if key in accepted})
    except ValueError as error:
        raise UsageError(f"{slot} {part['name']!r} refuses its parameters", str(error), remedy) from error


def _check_values(name: str, likelihood: Likelihood, spec: DataSpec) -> None:
    if spec.values in likelihood.accepts:
        return
    remedies = {
        "grey": "Take model.likelihood=discretized_logistic (exact), bernoulli_relaxed (unnormalised) or gaussian, or "
        "data.binarize=true.",
        "real": "Take model.likelihood=gaussian.",
        "binary": "Take model.likelihood=bernoulli, or data.binarize=false where the data are grey.",
    }
    raise UsageError(
        f"likelihood {name!r} cannot score {spec.values} data ({spec.name})",
        f"It scores {' or '.join(likelihood.accepts)} values.",
        remedies[spec.values],
    )
