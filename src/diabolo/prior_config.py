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
from diabolo.errors import UsageError, did_you_mean
from diabolo.registry import Parameter

SCHEMA = 1
#: The key that says that a configuration is one of these.
MARK = "prior"
#: Priors that nothing is fitted of.
_UNFITTED = ("none", "standard_normal")


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """How a prior is fitted to the codes of a trained model. `flips`: mirrored images are encoded, too."""

    prior: Component
    train: TrainConfig
    flips: bool = False
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            MARK: self.prior.to_dict(),
            "flips": self.flips,
            "seed": self.seed,
            "train": self.train.to_dict(),
        }


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
        raise UsageError("no prior is named", "Fitting needs to know what to fit.", f"Add prior=NAME: {_names()}.")
    if name in _UNFITTED:
        raise UsageError(f"prior={name} has nothing to fit", remedy=f"Take one of {_names()}.")
    registry.signature("prior", str(name))  # refuses an unknown one
    return _read({**_preset(str(name)), **given})


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
    """Read a saved configuration."""
    return _read(flatten({key: value for key, value in saved.items() if key != "schema"}))


def is_fit(path: Path) -> bool:
    """Whether a directory is that of a prior that is fitted, and no run."""
    return (path / "config.json").is_file() and isinstance(read_json(path / "config.json").get(MARK), dict)


def _names() -> str:
    return ", ".join(name for name in registry.names("prior") if name not in _UNFITTED)


def _read(given: Mapping[str, Any]) -> PriorConfig:
    name = str(given["prior.name"])
    settable = registry.settable("prior", name)
    schema = {f"prior.{key}": parameter for key, parameter in settable.items()}
    schema |= {f"train.{f.name}": Parameter(f.name, str(f.type), f.default) for f in fields(TrainConfig)}
    schema |= {"flips": Parameter("flips", "bool", False), "seed": Parameter("seed", "int", 0)}
    for key in given:
        if key not in schema and key != "prior.name":
            raise unknown_key(key, [*schema, "prior.name"])
    values = {
        key: convert(given[key], parameter.type, key) if key in given else parameter.default
        for key, parameter in schema.items()
    }
    check_bounds(values)
    train = {f.name: values[f"train.{f.name}"] for f in fields(TrainConfig)}
    return PriorConfig(
        prior=Component(name=name, params={key: values[f"prior.{key}"] for key in settable}),
        train=TrainConfig(**train),
        flips=values["flips"],
        seed=values["seed"],
    )
