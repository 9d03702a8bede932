"""Configuration: a preset (TOML), then `key=value` overrides, resolved to one frozen, fully typed RunConfig.

A component's parameters are its constructor's parameters, checked by signature and annotation before any data is read and
without importing torch. The resolved configuration is saved whole with each run, so a default that changes later cannot
change what a run was.
"""

from __future__ import annotations

import ast
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from diabolo import registry
from diabolo.errors import DataError, UsageError, did_you_mean
from diabolo.registry import Parameter

SCHEMA = 1
PRESETS = Path(__file__).parent / "presets"

#: path of each component in a configuration -> the slot that names it
COMPONENTS = {
    "data": "dataset",
    "model.encoder": "network",
    "model.posterior": "posterior",
    "model.prior": "prior",
    "model.decoder": "network",
    "model.likelihood": "likelihood",
    "objective": "objective",
}


@dataclass(frozen=True, kw_only=True)
class Component:
    """A registered name and all parameters of its constructor that can be set."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.params}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The parts of a model; `latent` is the number of latent dimensions, or the shape (channels, height, width) of a grid."""

    latent: int | tuple[int, ...]
    encoder: Component
    posterior: Component
    prior: Component
    decoder: Component
    likelihood: Component

    def to_dict(self) -> dict[str, Any]:
        return {f.name: v.to_dict() if isinstance(v := getattr(self, f.name), Component) else v for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. `keep`: weights of the last step, or of the epoch with the lowest validation loss. `curve`: the
    split whose loss is drawn after each epoch; "test" is for display only and read by nothing. `smoke`: a few steps an epoch, to
    see that everything works; the numbers mean nothing.

    The learning rate rises from 0 to `lr` over the share `warmup` of all steps, then follows `schedule`: constant, or down to 0
    on a line or half a cosine. `init` says where the weights start. `precision` is that of the networks in training: bf16
    multiplies in bfloat16, with weights, densities and the optimiser in 32 bits; evaluation is always in 32. `compile`: auto
    compiles the step where the run's arithmetic repays the wait. `flips`: of each batch half of the images, drawn anew, are
    mirrored left to right.
    """

    epochs: int = 10
    batch: int = 128
    flips: bool = False
    lr: float = 0.001
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    init: Literal["torch", "he", "data"] = "torch"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["auto", "on", "off"] = "auto"
    clip: float | None = None
    ema: float = 0.0
    keep: Literal["best", "last"] = "best"
    curve: Literal["validation", "test", "none"] = "validation"
    log_every: int = 100
    checkpoint_every: int = 0
    smoke: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the numbers of a run."""

    data: Component
    model: ModelConfig
    objective: Component
    train: TrainConfig
    seed: int = 0
    preset: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "preset": self.preset,
            "seed": self.seed,
            "data": self.data.to_dict(),
            "model": self.model.to_dict(),
            "objective": self.objective.to_dict(),
            "train": self.train.to_dict(),
        }


@dataclass(frozen=True)
class Resolved:
    """A configuration and, for each dotted path, where its value came from: default, preset or override."""

    config: RunConfig
    origins: Mapping[str, str]


# ------------------------------------------------------------------------------------------------ presets
def preset_names() -> list[str]:
    """The names that `train` accepts: the presets of the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """The TOML of a preset, `about` included.

    Raises:
        UsageError: for an unknown name; where it is a data set's, with the command to use.
    """
    if name in preset_names():
        return tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    if name in registry.names("dataset"):
        raise UsageError(
            f"{name!r} is a data set, not a preset",
            "The word after `train` says how to train.",
            f"Train on it with: diabolo train vae data={name}",
        )
    raise UsageError(f"unknown preset {name!r}", did_you_mean(name, preset_names()), "See them with: diabolo list")


# ------------------------------------------------------------------------------------------------ resolving
def resolve(preset: str, overrides: Sequence[str] = ()) -> Resolved:
    """Resolve a preset and `dotted.key=value` overrides.

    Raises:
        UsageError: naming the dotted path, what is accepted and the nearest accepted word.
    """
    tree = read_preset(preset)
    tree.pop("about", None)
    return _override(flatten(tree), f"preset {preset}", overrides, preset)


def from_dict(saved: Mapping[str, Any], overrides: Sequence[str] = ()) -> Resolved:
    """Read a saved configuration (config.json), optionally with overrides.

    Raises:
        DataError: if it was written by a newer schema.
        UsageError: if it holds unknown keys or values.
    """
    tree = {key: value for key, value in saved.items() if key not in {"schema", "preset"}}
    if int(saved.get("schema", SCHEMA)) > SCHEMA:
        raise DataError(
            f"configuration schema {saved['schema']} is newer than this diabolo's ({SCHEMA})", remedy="Update diabolo."
        )
    return _override(flatten(tree), "saved", overrides, str(saved.get("preset", "")))


def _override(given: dict[str, Any], origin: str, overrides: Sequence[str], preset: str) -> Resolved:
    """Change `given` by overrides; a component that is replaced loses the parameters of the one before it."""
    origins = dict.fromkeys(given, origin)
    changes = dict(_split(part) for text in overrides for part in _spelled_out(text))  # the last word on a key counts
    for word in sorted(changes, key=lambda p: not _names_component(p)):  # a component's name before its parameters
        path, value = _path(word), changes[word]
        if path.endswith(".name") and given.get(path) != value:
            component = path.removesuffix("name")
            given = {key: v for key, v in given.items() if not key.startswith(component)}
        given[path] = _Text(value)
        origins[path] = "override"
    return _build(given, origins, preset)


def parameter_of(config: RunConfig, path: str) -> Parameter:
    """The parameter at a dotted path that a configuration with these components can set.

    Raises:
        UsageError: for an unknown path, with the nearest known one.
    """
    schema = _schema(flatten(config.to_dict()))
    if _path(path) not in schema:
        raise unknown_key(path, list(schema))
    return schema[_path(path)]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, refusing a file that is missing or is none.

    Raises:
        DataError: naming the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read", str(error)) from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is no JSON object")
    return found


class _Text(str):
    """A value from the command line, to be read by its parameter's type."""


def _names_component(path: str) -> bool:
    return path in COMPONENTS or path.endswith(".name")


def _path(path: str) -> str:
    return f"{path}.name" if path in COMPONENTS else path


def _spelled_out(text: str) -> Sequence[str]:
    """`data=folder:PATH` or `data=packed:PATH` as a data set and its path, absolute so that the run can go on from any folder."""
    word, _, value = text.partition("=")
    name, colon, path = value.strip().partition(":")
    if word.strip() not in {"data", "data.name"} or name not in {"folder", "packed"} or not colon:
        return (text,)
    return f"data={name}", f"data.path={Path(path).expanduser().absolute() if path else ''}"


def words(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as {key: text to be read by its parameter's type}; the last word on a key counts.

    Raises:
        UsageError: for a word that is none.
    """
    return {key: _Text(value) for key, value in map(_split, overrides)}


def _split(text: str) -> tuple[str, str]:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise UsageError(f"{text!r} is no override", "An override is written key=value, for example train.epochs=5.")
    return path.strip(), value.strip()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as {dotted path: value}; a component written as a word is its `.name`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[_path(prefix + key)] = value
    return flat


def _build(given: dict[str, Any], origins: dict[str, str], preset: str) -> Resolved:
    schema = _schema(given)
    for path in given:
        if path not in schema:
            raise unknown_key(path, list(schema))
    values = {}
    for path, parameter in schema.items():
        if path in given:
            values[path] = convert(given[path], parameter.type, path)
        elif parameter.required:
            raise UsageError(f"{path} is missing", f"It has no default ({parameter.type}).", f"Add {path}=VALUE.")
        else:
            values[path] = parameter.default
    check_bounds(values)
    resolved_origins = {path: origins.get(path, "default") for path in schema}
    return Resolved(_assemble(values, preset), MappingProxyType(resolved_origins))


def _schema(given: Mapping[str, Any]) -> dict[str, Parameter]:
    """Every path that a configuration with these component names can set."""
    paths: dict[str, Parameter] = {}
    for component, slot in COMPONENTS.items():
        if component == "model.encoder":
            paths["model.latent"] = Parameter("latent", "int | tuple[int, ...]", None, required=True)
        paths[f"{component}.name"] = Parameter("name", "str", None, required=True)
        name = given.get(f"{component}.name")
        if isinstance(name, str):
            try:
                settable = registry.settable(slot, name)
            except UsageError as error:
                raise UsageError(f"{component}: {error.what}", error.why, error.remedy) from error
            paths |= {f"{component}.{key}": parameter for key, parameter in settable.items()}
    for f in fields(TrainConfig):
        paths[f"train.{f.name}"] = Parameter(f.name, str(f.type), f.default)
    return paths | {"seed": Parameter("seed", "int", 0)}


def unknown_key(path: str, accepted: list[str]) -> UsageError:
    """The refusal of a key that a configuration does not have, with the nearest one that it has."""
    keys = [key.removesuffix(".name") for key in accepted]
    parent = path.rpartition(".")[0]
    near = [key for key in keys if parent and key.startswith(parent + ".")] or keys
    same_end = [key for key in keys if key.rpartition(".")[2] == path]
    guess = did_you_mean(same_end[0] if len(same_end) == 1 else path, keys).partition("? ")
    suggestion = f"{guess[0]}? " if guess[1] else ""
    return UsageError(f"unknown key {path!r}", f"{suggestion}Accepted here: {', '.join(near)}.")


def _assemble(values: Mapping[str, Any], preset: str) -> RunConfig:
    def component(path: str) -> Component:
        inside = {key.removeprefix(path + "."): v for key, v in values.items() if key.startswith(path + ".")}
        return Component(name=inside.pop("name"), params=inside)

    parts = {path.removeprefix("model."): component(path) for path in COMPONENTS if path.startswith("model.")}
    train = {f.name: values[f"train.{f.name}"] for f in fields(TrainConfig)}
    return RunConfig(
        data=component("data"),
        model=ModelConfig(latent=values["model.latent"], **parts),
        objective=component("objective"),
        train=TrainConfig(**train),
        seed=values["seed"],
        preset=preset,
    )


# ------------------------------------------------------------------------------------------------ values
def convert(value: Any, annotation: str, path: str) -> Any:
    """Read `value` as the annotated type: `int`, `float`, `bool`, `str`, `Literal[...]`, `tuple[int, ...]`, `T | None`.

    Text from the command line is parsed; values from TOML or JSON must have the type already (an int serves as a float).

    Raises:
        UsageError: naming the path, the value and what is accepted.
    """
    for option in annotation.split(" | "):
        found = _read(value, option)
        if found is not _REFUSED:
            return found
    raise UsageError(f"{path}={value} is refused", f"It must be {_describe(annotation)}.")


_REFUSED = object()


def _read(value: Any, option: str) -> Any:
    text = isinstance(value, _Text)
    if option == "None":
        return None if value is None or (text and value.lower() == "none") else _REFUSED
    if option.startswith("Literal["):
        choices = ast.literal_eval(option.removeprefix("Literal"))
        return str(value) if isinstance(value, str) and value in choices else _REFUSED
    if option.startswith("tuple["):
        items = value.strip("()[]").split(",") if text else value
        if not isinstance(items, (list, tuple)):
            return _REFUSED
        read = [
            _read(_Text(item.strip()) if text else item, "int") for item in items if not (text and not item.strip())
        ]
        return _REFUSED if _REFUSED in read else tuple(read)
    return _scalar(value, option, text)


def _scalar(value: Any, option: str, text: bool) -> Any:
    if option == "str":
        return str(value) if isinstance(value, str) else _REFUSED
    if option == "bool":
        if text:
            return {"true": True, "false": False}.get(value.lower(), _REFUSED)
        return value if isinstance(value, bool) else _REFUSED
    if isinstance(value, bool):
        return _REFUSED
    kind = {"int": int, "float": float}[option]
    if not (text or isinstance(value, int) or (isinstance(value, float) and kind is float)):
        return _REFUSED
    try:
        number = kind(value)
        return number if math.isfinite(number) else _REFUSED
    except (ValueError, OverflowError):
        return _REFUSED


def _describe(annotation: str) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word", "None": "none"}
    words |= {"tuple[int, ...]": "whole numbers with commas between"}

    def one(option: str) -> str:
        if option.startswith("Literal["):
            return "one of " + ", ".join(ast.literal_eval(option.removeprefix("Literal")))
        return words.get(option, option)

    return " or ".join(one(option) for option in annotation.split(" | "))


_AT_LEAST: dict[str, float] = {
    "model.latent": 1,
    "train.epochs": 1,
    "train.batch": 1,
    "train.log_every": 1,
    "train.checkpoint_every": 0,
    "train.ema": 0,
    "train.warmup": 0,
    "model.encoder.width": 1,
    "model.decoder.width": 1,
    "model.encoder.depth": 0,
    "model.decoder.depth": 0,
    "model.encoder.blocks": 0,
    "model.decoder.blocks": 0,
    "model.likelihood.components": 1,
    "objective.beta": 0,
    "objective.samples": 1,
    "objective.warmup_steps": 0,
    "objective.level": 0,
    "objective.contractive": 0,
    "objective.probes": 1,
    "data.validation": 0,
    "seed": 0,
    "prior.width": 1,
    "prior.depth": 1,
    "prior.heads": 1,
    "prior.patch": 1,
    "prior.steps": 1,
    "prior.layers": 1,
    "prior.components": 1,
    "data.examples": 1,
    "data.size": 0,
}
_POSITIVE = ("train.lr", "train.clip", "model.likelihood.scale", "data.sigma")


def check_bounds(values: Mapping[str, Any]) -> None:
    """Refuse numbers that are out of range.

    Raises:
        UsageError: naming the path and the limit.
    """
    for path, least in _AT_LEAST.items():
        given = values.get(path)
        if given is not None and min(given if isinstance(given, tuple) else (given,), default=least - 1) < least:
            shown = ",".join(map(str, given)) if isinstance(given, tuple) else given
            raise UsageError(
                f"{path}={shown} is refused", f"{'Each' if shown != given else 'It'} must be at least {least:g}."
            )
    latent = values.get("model.latent")
    if isinstance(latent, tuple) and len(latent) not in {1, 3}:
        raise UsageError(
            f"model.latent={','.join(map(str, latent))} is refused",
            "It is the number of latent dimensions, or the channels, height and width of a grid of them.",
            "For example model.latent=20 or model.latent=8,8,8.",
        )
    for path in _POSITIVE:
        if values.get(path) is not None and not values[path] > 0:
            raise UsageError(f"{path}={values[path]} is refused", "It must be greater than 0.")
    if not values.get("train.warmup", 0) < 1:
        raise UsageError(
            f"train.warmup={values['train.warmup']} is refused",
            "It is the share of all steps that the rate rises: below 1.",
        )
    if not values.get("train.ema", 0) < 1:
        raise UsageError(f"train.ema={values['train.ema']} is refused", "It must be below 1; 0 switches averaging off.")
