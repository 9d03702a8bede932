"""A range of one parameter -> the configurations of its points, each checked before anything starts. Imports no torch.

    objective.beta=log:0.01..10:7      seven values, each the same factor above the one before
    model.latent=lin:2..20:4           four values, evenly apart; those of a whole number are rounded
    objective.beta={0.1,0.3,1}         these values

An unquoted {...} is taken apart by some shells, into one override a value: a key that is given several times is such a list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diabolo.config import COMPONENTS, RunConfig, from_dict, parameter_of, read_json, resolve
from diabolo.errors import UsageError
from diabolo.listings import plain

#: At most so many points.
MOST = 100
EXAMPLES = "For example: objective.beta=log:0.01..10:7, model.latent=lin:2..20:4 or 'objective.beta={0.1,0.3,1}'"
_NUMBER = r"([+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)"
_FORM = re.compile(rf"(log|lin):{_NUMBER}\.\.{_NUMBER}:(\d+)", re.ASCII)
#: Significant digits of the values between the ends of a range.
_DIGITS = {"log": 4, "lin": 6}
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")


@dataclass(frozen=True)
class Point:
    """One value of the parameter: as it is written, and the configuration that has it."""

    label: str
    value: Any
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """A sweep: the preset's name, the parameter, its range as it was written, the other overrides, and the points in order."""

    preset: str
    parameter: str
    range: str
    overrides: tuple[str, ...]
    points: tuple[Point, ...]

    def folder(self, point: Point) -> str:
        """The name of a point's run directory: PARAMETER=VALUE."""
        return f"{self.parameter}={_UNSAFE.sub('_', point.label)}"

    def default_place(self) -> Path:
        """runs/sweep/PRESET-PARAMETER."""
        return Path("runs") / "sweep" / f"{self.preset}-{self.parameter}"


def plan(preset: str, overrides: Sequence[str]) -> Plan:
    """Read the one override that is a range.

    Arguments:
        preset: a preset's name, or the config.json of a run.

    Raises:
        UsageError: for no range or several, one that cannot be read, a value that its parameter refuses or that comes twice, a
            parameter whose values cannot stand in one table, or a model without a rate.
    """
    parameter, written, rest = _find(overrides)
    _check_parameter(parameter)
    base = _resolved(preset, rest)
    kind = parameter_of(base, parameter).type
    configs = [_resolved(preset, [*rest, f"{parameter}={text}"]) for text in _texts(parameter, written, kind)]
    points = tuple(_point(parameter, config) for config in configs)
    found = Plan(base.preset or "run", parameter, written, tuple(rest), points)
    _check_points(found)
    _check_rate(base)
    return found


def _resolved(preset: str, overrides: Sequence[str]) -> RunConfig:
    saved = preset.endswith(".json")
    return (from_dict(read_json(Path(preset)), overrides) if saved else resolve(preset, overrides)).config


# ------------------------------------------------------------------------------------------------ which override it is
def _find(overrides: Sequence[str]) -> tuple[str, str, list[str]]:
    """The parameter, its range as written, and the other overrides."""
    given: dict[str, list[str]] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        given.setdefault(key.strip(), []).append(value.strip())
    ranges = {}
    for key, values in given.items():
        if len(values) > 1 and any(map(_is_range, values)):
            raise UsageError(f"{key} is given {len(values)} times", "A range says all its values.", EXAMPLES)
        if len(values) > 1:
            ranges[key] = f"{{{','.join(values)}}}"
        elif _is_range(values[0]):
            ranges[key] = values[0]
    if len(ranges) != 1:
        found = f"there are {len(ranges)}: {', '.join(ranges)}" if ranges else "there is none"
        raise UsageError(f"a sweep takes exactly one range, and {found}", remedy=EXAMPLES)
    [(parameter, written)] = ranges.items()
    return parameter, written, [text for text in overrides if text.partition("=")[0].strip() != parameter]


def _is_range(value: str) -> bool:
    return value.startswith(("log:", "lin:", "{")) or value.endswith("}")


def _check_parameter(parameter: str) -> None:
    data = parameter == "data" or parameter.startswith("data.")
    if data or parameter in COMPONENTS or parameter.endswith(".name"):
        why = "on other data are" if data else "with other parts may be of another kind, and are"
        raise UsageError(
            f"{parameter} cannot be swept",
            f"Numbers of models {why} not set side by side in one curve.",
            "Train them one by one: diabolo train PRESET, then diabolo compare.",
        )


def _check_points(found: Plan) -> None:
    if len(found.points) < 2:
        raise UsageError(f"{found.parameter}={found.range} has one value", "A curve needs at least two.", EXAMPLES)
    folders = [found.folder(point).lower() for point in found.points]
    for point, folder in zip(found.points, folders):
        if folders.count(folder) > 1:
            raise UsageError(
                f"{found.parameter}={found.range} has the value {point.label} twice",
                "Each value makes one run in a folder of its own; those of a whole number are rounded.",
                "Take fewer points, or ends that are further apart.",
            )


def _check_rate(config: RunConfig) -> None:
    model = config.model
    if model.posterior.name == "dirac" or model.prior.name == "none":
        raise UsageError(
            "this model has no rate",
            "A rate is KL(q(z|x) || p(z)); a plain autoencoder has neither density.",
            "Sweep a VAE: diabolo sweep vae objective.beta=log:0.01..10:7",
        )


# ------------------------------------------------------------------------------------------------ its values
def _texts(parameter: str, written: str, kind: str) -> list[str]:
    """The values as overrides have them."""
    if written.startswith("{") and written.endswith("}"):
        items = [item.strip() for item in written[1:-1].split(",")]
        if not all(items):
            raise UsageError(f"{parameter}={written} has an empty value", remedy=EXAMPLES)
        return items
    form = _FORM.fullmatch(written)
    if not form:
        raise UsageError(
            f"{parameter}={written} is no range",
            "A range is log:FROM..TO:POINTS, lin:FROM..TO:POINTS or {VALUE,VALUE,...}.",
            EXAMPLES,
        )
    return _spaced(
        parameter, written, form[1], (float(form[2]), float(form[3])), int(form[4]), _rounding(kind, _DIGITS[form[1]])
    )


def _rounding(kind: str, digits: int) -> Callable[[float, bool], str]:
    """How a value is written: ends as they were given, others to some digits; whole numbers where the parameter is one."""
    options = kind.split(" | ")
    if "int" in options and "float" not in options:
        return lambda value, end: str(round(value))
    return lambda value, end: f"{value:.12g}" if end else f"{value:.{digits}g}"


def _spaced(
    parameter: str,
    written: str,
    spacing: str,
    ends: tuple[float, float],
    count: int,
    text: Callable[[float, bool], str],
) -> list[str]:
    first, last = ends
    if not 2 <= count <= MOST:
        raise UsageError(f"{parameter}={written} has {count} points", f"A range has from 2 to {MOST}.", EXAMPLES)
    if not (math.isfinite(first) and math.isfinite(last)):
        raise UsageError(f"{parameter}={written} is refused", "Its ends must be finite.", EXAMPLES)
    if spacing == "log" and not (first > 0 and last > 0):
        why = "The ends of a geometric range (log:) must be greater than 0."
        raise UsageError(f"{parameter}={written} is refused", why, "Take lin:, or a list {0,0.1,1}.")
    inner = range(1, count - 1)
    if spacing == "log":
        between = [first * (last / first) ** (i / (count - 1)) for i in inner]
    else:
        between = [first + (last - first) * i / (count - 1) for i in inner]
    return [text(first, True), *(text(value, False) for value in between), text(last, True)]


def _point(parameter: str, config: RunConfig) -> Point:
    """A point whose label is its value as it was understood: 1, 1.0 and 1e0 are one."""
    value: Any = config.to_dict()
    for word in parameter.split("."):
        value = value[word]
    return Point(f"{value:.12g}" if isinstance(value, float) else plain(value), value, config)
