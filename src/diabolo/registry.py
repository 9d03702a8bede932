"""Named constructors by slot. The constructor's signature is the schema: no parallel configuration class.

A component is one decorated class or function::

    @register("likelihood", "bernoulli")
    class Bernoulli(Likelihood): ...

Signatures are needed before anything heavy is imported: `diabolo --help`, a listing and a usage error must not load torch.
So `signature` reads a built-in component's parameters from the package's source, without executing it, and those of
a component that is already imported (a user's own) by `inspect`. A test holds the two against each other.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from diabolo.errors import UsageError, did_you_mean

SLOTS = ("dataset", "network", "posterior", "prior", "likelihood", "objective", "metric", "features")

#: Parameters that `models/build.py` and `data/` fill in: shapes, the encoder whose weights a decoder shares, the number of
#: training examples, how to reach the data.
INJECTED = {
    "dataset": {"access"},
    "network": {"in_shape", "out_shape", "encoder"},
    "prior": {"latent_shape", "data_shape", "classes"},
    "likelihood": {"data_shape"},
    "objective": {"examples"},
}

_CATALOGUE: dict[str, dict[str, Callable[..., Any]]] = {slot: {} for slot in SLOTS}
_C = TypeVar("_C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Parameter:
    """One settable parameter: its annotation as text, its default (or `required`)."""

    name: str
    type: str
    default: Any
    required: bool = False


@dataclass(frozen=True)
class _Source:
    """Where a built-in component is defined: found by reading, not by importing."""

    module: str
    definition: ast.ClassDef | ast.FunctionDef

    @property
    def summary(self) -> str:
        return (ast.get_docstring(self.definition) or "").split("\n\n")[0].replace("\n", " ")


def register(slot: str, name: str) -> Callable[[_C], _C]:
    """Put a constructor into the catalogue under `name`.

    Raises:
        ValueError: for an unknown slot, or a name that is taken by another constructor.
    """
    if slot not in _CATALOGUE:
        raise ValueError(f"unknown slot {slot!r}; one of {', '.join(SLOTS)}")

    def add(constructor: _C) -> _C:
        taken = _CATALOGUE[slot].get(name)
        if taken is not None and taken.__qualname__ != constructor.__qualname__:
            raise ValueError(f"{slot} {name!r} is already registered by {taken.__module__}")
        _CATALOGUE[slot][name] = constructor
        return constructor

    return add


def names(slot: str) -> list[str]:
    """All names of a slot, built-in and registered by imported modules."""
    return sorted({*_sources().get(slot, {}), *_CATALOGUE[slot]})


def get(slot: str, name: str) -> Callable[..., Any]:
    """The constructor called `name`; imports the built-in module that defines it.

    Raises:
        UsageError: for an unknown name, with the accepted ones and a suggestion.
    """
    if name not in _CATALOGUE[slot]:
        _known(slot, name)
        importlib.import_module(_sources()[slot][name].module)
    return _CATALOGUE[slot][name]


def build(slot: str, name: str, /, **params: Any) -> Any:
    """Call the constructor `name` of `slot`; it receives only parameters that its signature names."""
    return get(slot, name)(**params)


def summary(slot: str, name: str) -> str:
    """The first paragraph of a component's docstring."""
    _known(slot, name)
    if name in _CATALOGUE[slot]:
        return (inspect.getdoc(_CATALOGUE[slot][name]) or "").split("\n\n")[0].replace("\n", " ")
    return _sources()[slot][name].summary


def signature(slot: str, name: str) -> dict[str, Parameter]:
    """All parameters of a component's constructor in order, injected ones included.

    Raises:
        UsageError: for an unknown name.
    """
    _known(slot, name)
    if name in _CATALOGUE[slot]:
        return _inspected(_CATALOGUE[slot][name])
    return read_signature(_sources()[slot][name].definition)


def settable(slot: str, name: str) -> dict[str, Parameter]:
    """The parameters that a configuration may set."""
    injected = INJECTED.get(slot, set())
    return {key: parameter for key, parameter in signature(slot, name).items() if key not in injected}


def fact(slot: str, name: str, attribute: str, default: str) -> str:
    """A word that a component's class declares of itself, such as `fitted_by`; of a built-in one without importing it."""
    _known(slot, name)
    if name in _CATALOGUE[slot]:
        return str(getattr(_CATALOGUE[slot][name], attribute, default))
    for item in _sources()[slot][name].definition.body:
        if isinstance(item, ast.Assign) and [ast.unparse(target) for target in item.targets] == [attribute]:
            return str(ast.literal_eval(item.value))
    return default


def _known(slot: str, name: str) -> None:
    if name not in names(slot):
        hint = "If it is one of your own, name its module with --import."
        raise UsageError(f"unknown {slot} {name!r}", did_you_mean(name, names(slot)), hint)


def _inspected(constructor: Callable[..., Any]) -> dict[str, Parameter]:
    found = {}
    for name, p in inspect.signature(constructor).parameters.items():
        if p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD}:  # nn.Module's own, of a class without a constructor
            continue
        required = p.default is inspect.Parameter.empty
        annotation = (
            p.annotation if isinstance(p.annotation, str) else getattr(p.annotation, "__name__", str(p.annotation))
        )
        found[name] = Parameter(name, annotation, None if required else p.default, required)
    return found


def read_signature(definition: ast.ClassDef | ast.FunctionDef) -> dict[str, Parameter]:
    """The parameters of a function, of a class's `__init__`, or the fields of a dataclass, from the syntax tree."""
    if isinstance(definition, ast.FunctionDef):
        return _arguments(definition)
    for item in definition.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return {name: p for name, p in _arguments(item).items() if name != "self"}
    fields = [item for item in definition.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list)
    return {p.name: p for p in (_parameter(f.target.id, f.annotation, f.value) for f in fields)} if is_dataclass else {}  # type: ignore[union-attr]


def _arguments(function: ast.FunctionDef) -> dict[str, Parameter]:
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + list(a.defaults)
    pairs = [*zip(positional, defaults), *zip(a.kwonlyargs, a.kw_defaults)]
    return {arg.arg: _parameter(arg.arg, arg.annotation, default) for arg, default in pairs}


def _parameter(name: str, annotation: ast.expr | None, default: ast.expr | None) -> Parameter:
    text = ast.unparse(annotation) if annotation else "Any"
    return Parameter(name, text, None if default is None else ast.literal_eval(default), default is None)


@cache
def _sources() -> dict[str, dict[str, _Source]]:
    found: dict[str, dict[str, _Source]] = {}
    for module, definition in _definitions():
        for decorator in definition.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "register":
                slot, name = (ast.literal_eval(argument) for argument in decorator.args)
                found.setdefault(slot, {})[name] = _Source(module, definition)
    return found


def _definitions() -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "@register(" not in text or path == Path(__file__):
            continue
        module = ".".join(("diabolo", *path.relative_to(package).with_suffix("").parts))
        for node in ast.parse(text).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                yield module, node
