"""Priors that were fitted to a run's codes afterwards, read: which there are, the model with one of them, its rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diabolo import packaged, runs
from diabolo.config import read_json
from diabolo.data import Dataset, Loader
from diabolo.errors import DataError, UsageError, did_you_mean
from diabolo.metrics import examples_at_a_time, float64, mean_and_se
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.build import build_prior
from diabolo.models.distributions import keyed_sample
from diabolo.models.priors import Prior
from diabolo.prior_config import OWN, preset_names, prior_from_dict
from diabolo.progress import Progress
from diabolo.seeds import fold, mix

#: What the name of a prior holds that gave way to a newer one: `flow_matching.old-1`.
ASIDE = ".old-"
#: How a fit ends that may be drawn from unasked.
ENDED = frozenset({"finished", "stopped"})

_TOGETHER = 500


def names(run: runs.Run) -> list[str]:
    """The fitted priors of a run that hold weights, the newest last; of a pretrained model in the order of its about.json."""
    if packaged.is_packaged(run.path):
        return list(packaged.about(run.path)["priors"])
    found = (run.path / "priors").glob("*/weights.safetensors")
    return [path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def state(run: runs.Run, name: str) -> str:
    """How the fit of a prior ended: finished, stopped, interrupted, ...; finished of the model's own."""
    return "finished" if name == OWN else str(read_json(run.path / "priors" / name / "status.json").get("state"))


def chosen(run: runs.Run, name: str | None) -> str:
    """The prior to draw from: the one asked for, else the one fitted last of those that came to their end, or to the end of their
    time, and were not moved aside, else the model's own.

    Raises:
        UsageError: if the run has no prior of this name.
    """
    known = names(run)
    if name is None:
        whole = [other for other in known if ASIDE not in other and state(run, other) in ENDED]
        return whole[-1] if whole else OWN
    if name not in {*known, OWN}:
        theirs = packaged.is_packaged(run.path)
        which = "" if run.config.preset in preset_names() else " prior=flow_matching"
        fit = f"Fit one with: diabolo fit-prior {run.path}{which}"
        remedy = packaged.copied(run.path, "fit-prior") if theirs else fit
        raise UsageError(f"{run.path} has no prior {name!r}", did_you_mean(name, [*known, OWN]), remedy)
    return name


def load_prior(path: Path) -> Prior:
    """The prior of a weights file, in evaluation mode.

    Raises:
        DataError: if the file is corrupt, or does not fit the prior that it describes.
    """
    tensors, about = runs.read_weights(path)
    try:
        config, spec = prior_from_dict(about["config"]), runs.spec_from_dict(about["spec"])
    except (LookupError, TypeError, ValueError, DataError) as error:
        raise DataError(f"{path} holds no prior that can be read", str(error)) from error
    channels, *positions = spec.shape
    with torch.random.fork_rng(devices=[]):
        prior = build_prior(config.prior.to_dict(), (channels // 2, *positions), spec)
    runs.check_form(path, prior.state_dict(), tensors)
    prior.load_state_dict(tensors)
    return prior.eval()


def model_of(run: runs.Run, name: str) -> Autoencoder:
    """The model of a run with a fitted prior in the place of its own (`own`).

    Raises:
        DataError: if the prior was fitted to the codes of other weights.
    """
    model = run.model()
    if name == OWN:
        return model
    path = run.path / "priors" / name
    if read_json(path / "env.json").get("run", {}).get("weights") != runs.sha256(run.path / "weights.safetensors"):
        raise DataError(
            f"{path} was fitted to the codes of other weights",
            "The run's weights have changed since.",
            f"Delete {path} and fit it again.",
        )
    model.prior = load_prior(path / "weights.safetensors")
    return model


def measured(run: runs.Run, name: str) -> bool:
    """Whether `measure` has come to its end with the weights that a prior has now."""
    path = run.path / "priors" / name
    there = (path / "evaluation.json").is_file() and (path / "weights.safetensors").is_file()
    return there and read_json(path / "evaluation.json")["about"].get("weights") == weights(run, name)


def weights(run: runs.Run, name: str) -> str:
    """The SHA-256 of the weights of a fitted prior."""
    return runs.sha256(run.path / "priors" / name / "weights.safetensors")


@torch.no_grad()
def measure(
    run: runs.Run, name: str, dataset: Dataset, device: torch.device | str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    r"""Measure a prior's rate on the test split, E_q[log q(z|x) - log p(z)], beside that of the model's own, and write
    priors/NAME/evaluation.json.

    Both at the same draw of z for each image, nats per example: `rate`, `own_rate`, and `gain`, their paired difference, which is
    what the bound on log p(x) gains; `rate_given_class` with p(z | y). A prior without a density has none, and q must have one.
    `about` says how the fit had ended, whether it or the run was of a few steps only (`smoke`), and the hash of the weights.
    """
    model, own, progress = model_of(run, name).to(device), run.model().to(device), progress or Progress()
    config = prior_from_dict(read_json(run.path / "priors" / name / "config.json"))
    about = {
        "prior": name,
        "state": state(run, name),
        "split": "test",
        "seed": 0,
        "unit": "nats/example",
        "density": model.prior.density,
        "smoke": run.config.train.smoke or config.train.smoke,
        "weights": weights(run, name),
    }
    rows: dict[str, Tensor] = {}
    if model.posterior.density and len(dataset.test) > 1:  # one example has no standard error
        progress.start("rate", len(dataset.test))
        rows = _rates(model, own, Loader(dataset, "test", torch.device(device)), progress)
        progress.finish()
    found = {"about": about} | {
        key: {"value": value, "se": se, "n": len(dataset.test)}
        for key, values in rows.items()
        for value, se in [mean_and_se(values)]
    }
    runs.write_json(run.path / "priors" / name / "evaluation.json", found)
    return found


def _rates(model: Autoencoder, own: Autoencoder, loader: Loader, progress: Progress) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for batch in loader.ordered(examples_at_a_time(model, loader.values.shape[1], _TOGETHER)):
        q = model.encode(batch.x)
        z = keyed_sample(q, 1, [mix(fold(0, "rate"), i) for i in batch.index.tolist()])[0]
        log_q = q.log_prob(z)
        scored = {"rate": model.prior(), "own_rate": own.prior()}
        if model.prior.density != "exact":
            del scored["rate"]
        elif batch.y is not None and getattr(model.prior, "classes", False):
            scored["rate_given_class"] = model.prior(batch.y)
        for key, p in scored.items():
            if p is not None:
                parts.setdefault(key, []).append(float64(log_q - p.log_prob(z)))
        progress.advance(len(batch.x))
    found = {key: torch.cat(values) for key, values in parts.items()}
    if {"rate", "own_rate"} <= found.keys():
        found["gain"] = found["own_rate"] - found["rate"]
    return found
