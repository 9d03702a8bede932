"""The configuration of a prior that is fitted after training, resolved as that of a run is: defaults, then `key=value`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diabolo import registry
from diabolo.config import (
    PRESETS,
    Component,
    TrainConfig,
    check_bounds,
    convert,
    flatten,
    read_json,
    unknown_key,
    words,
)
from diabolo.errors import DataError, UsageError, did_you_mean
from diabolo.registry import Parameter

SCHEMA = 1
#: The key that says that a configuration is one of these.
MARK = "prior"
#: The name by which the model's own prior is asked for, so that no fitted one can have it.
OWN = "own"
#: What a prior without defaults of its own is trained with: codes need no validation split to be fitted to.
_DEFAULTS = {"train.keep": "last", "train.curve": "test"}
#: Of training, what decides nothing here: a prior says itself where it starts, and it is images that are mirrored, not codes.
_ABSENT = ("init", "flips")


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """How a prior is fitted to the codes of a trained model. `flips`: mirrored images are encoded, too. `train`: of one that is
    fitted by gradient."""

    prior: Component
    train: TrainConfig = TrainConfig()
    flips: bool = False
    seed: int = 0

    @property
    def closed(self) -> bool:
        """Whether it is fitted in closed form, without training."""
        return fitted_by(self.prior.name) == "closed form"

    def to_dict(self) -> dict[str, Any]:
        train = {key: value for key, value in self.train.to_dict().items() if key not in _ABSENT}
        return {
            "schema": SCHEMA,
            MARK: self.prior.to_dict(),
            "flips": self.flips,
            "seed": self.seed,
            **({} if self.closed else {"train": train}),
        }


def fitted_by(name: str) -> str:
    """How a prior is fitted: nothing, closed form, gradient; known without importing it."""
    return registry.fact("prior", name, "fitted_by", "nothing")


def prior_names() -> list[str]:
    """The priors that can be fitted."""
    return [name for name in registry.names("prior") if fitted_by(name) != "nothing"]


def resolve_prior(overrides: Sequence[str], preset: str = "") -> PriorConfig:
    """Read `prior=NAME` and `key=value` words over the defaults of presets/priors/NAME.toml.

    Between the two stands presets/priors/PRESET.toml, the prior that belongs to a preset of models: of `preset=PRESET`, or where
    no prior is named that of `preset`, the run's own, if it has one.

    Raises:
        UsageError: naming the key, what is accepted and the nearest accepted word.
    """
    given = {"prior.name" if key == "prior" else key: value for key, value in words(overrides).items()}
    given = {**_belonging(given.pop("preset", None), given.get("prior.name"), preset), **given}
    name = given.get("prior.name")
    if name is None:
        remedy = f"Add prior=NAME, one of: {', '.join(prior_names())}; or preset=NAME: {', '.join(preset_names())}."
        raise UsageError("no prior is named", "Fitting needs to know what to fit.", remedy)
    how = fitted_by(str(name))  # refuses an unknown one
    if how == "nothing":
        raise UsageError(f"prior={name} has nothing to fit", remedy=f"Take one of: {', '.join(prior_names())}.")
    return _read({**(_DEFAULTS if how == "gradient" else {}), **_preset(str(name)), **given})


def preset_names() -> list[str]:
    """The presets of models that a prior belongs to."""
    return sorted({path.stem for path in (PRESETS / "priors").glob("*.toml")} - set(registry.names("prior")))


def _belonging(asked: str | None, prior: str | None, preset: str) -> dict[str, Any]:
    """The values of the prior that belongs to the preset asked for, or to the run's where no prior is named."""
    if asked is None:
        return _preset(preset) if prior is None and preset in preset_names() else {}
    if prior is not None:
        raise UsageError(f"preset={asked} and prior={prior} both name a prior", remedy="Leave one of them out.")
    if asked not in preset_names():
        raise UsageError(f"no prior belongs to a preset {asked!r}", did_you_mean(asked, preset_names()))
    return _preset(asked)


def _preset(name: str) -> dict[str, Any]:
    path = PRESETS / "priors" / f"{name}.toml"
    return flatten(tomllib.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def prior_from_dict(saved: Mapping[str, Any]) -> PriorConfig:
    """Read a saved configuration.

    Raises:
        DataError: if it is none.
    """
    try:
        if int(saved["schema"]) > SCHEMA:
            raise DataError(f"configuration schema {saved['schema']} is newer than this ({SCHEMA})", "Update diabolo.")
        return _read(flatten({key: value for key, value in saved.items() if key != "schema"}))
    except (LookupError, TypeError, ValueError) as error:
        raise DataError("this is no configuration of a prior", str(error)) from error


def is_fit(path: Path) -> bool:
    """Whether a directory is that of a prior that is fitted, and no run."""
    return (path / "config.json").is_file() and isinstance(read_json(path / "config.json").get(MARK), dict)


def _read(given: Mapping[str, Any]) -> PriorConfig:
    name = str(given["prior.name"])
    settable, closed = registry.settable("prior", name), fitted_by(name) == "closed form"
    schema = {f"prior.{key}": parameter for key, parameter in settable.items()}
    schema |= {"flips": Parameter("flips", "bool", False), "seed": Parameter("seed", "int", 0)}
    trained = {} if closed else {f"train.{f.name}": f for f in fields(TrainConfig) if f.name not in _ABSENT}
    schema |= {key: Parameter(f.name, str(f.type), f.default) for key, f in trained.items()}
    for key in given:
        if closed and key.startswith("train."):
            raise UsageError(f"{key} means nothing here", f"A {name} prior is fitted in closed form, without training.")
        if key not in schema and key != "prior.name":
            raise unknown_key(key, [*schema, "prior.name"])
    values = {}
    for key, parameter in schema.items():
        if parameter.required and key not in given:
            raise UsageError(f"{key} is missing", f"It has no default ({parameter.type}).", f"Add {key}=VALUE.")
        values[key] = convert(given[key], parameter.type, key) if key in given else parameter.default
    check_bounds(values)
    return PriorConfig(
        prior=Component(name=name, params={key: values[f"prior.{key}"] for key in settable}),
        train=TrainConfig(**{f.name: values[key] for key, f in trained.items()}),
        flips=values["flips"],
        seed=values["seed"],
    )
