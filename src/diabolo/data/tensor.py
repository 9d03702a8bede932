"""A data set from the user's own array, and how its numbers are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diabolo.data.levels import as_levels
from diabolo.data.spec import Dataset, DataSpec, Split, Values
from diabolo.errors import DataError, UsageError
from diabolo.registry import register
from diabolo.seeds import fold

if TYPE_CHECKING:
    from numpy.typing import NDArray


@register("dataset", "tensor")
def tensor() -> Dataset:
    """Your own examples, passed to `diabolo.train` from Python.

    Raises:
        DataError: always: a configuration names such data, but cannot bring them back.
    """
    raise DataError(
        "this run was made with examples that were in memory",
        "A configuration cannot bring them back.",
        "Pass them again from Python: diabolo.evaluate(run, x).",
    )


@dataclass(frozen=True)
class _Reading:
    """Values as they are stored, what a loader will emit, and the sentence that says so."""

    values: Tensor
    kind: Values
    note: str


def from_tensor(
    x: Tensor | NDArray[Any],
    labels: Tensor | NDArray[Any] | None = None,
    *,
    name: str = "tensor",
    validation: float = 0.1,
    test: float = 0.1,
    binarize: bool = False,
) -> Dataset:
    """A data set from examples in memory; `Dataset.note` says how shape and range were read.

    x: (N, D) vectors, (N, H, W) or (N, C, H, W) images, or (N, H, W, C) with at most 4 channels. Range:
    only 0 and 1 (any type) -> binary; uint8 -> grey levels k/255; whole numbers in 0..255 -> the same; floating point
    in [0, 1] -> grey, as given; anything else -> real numbers. labels: (N,) whole numbers or strings.
    validation, test: fractions that a seeded permutation, always the same for N, sets apart (validation may be 0).
    binarize: draw pixels as Bernoulli(k/255) from grey levels.

    Raises:
        UsageError: for an empty array, NaN or infinite values, a type that holds no numbers, a shape that is neither
            vectors nor images, labels of another length, fractions that leave a split empty, or `binarize` without
            levels.
    """
    array, shape_note = _shaped(_as_tensor(x))
    reading = _read(array)
    if binarize:
        reading = _binarized(reading)
    classes, numbers = _classes(labels, len(array))
    parts = _split(len(array), validation, test)
    splits = {key: _part(key, reading.values, numbers, index) for key, index in parts.items()}
    return Dataset(
        spec=DataSpec(
            name=name,
            shape=tuple(array.shape[1:]),
            values="binary" if binarize else reading.kind,
            classes=classes,
            examples=len(parts["train"]),
        ),
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        binarize=binarize,
        hashes=_hashes(reading.values, numbers),
        note="; ".join(part for part in (shape_note, reading.note) if part),
    )


def examples_like(x: Tensor | NDArray[Any], spec: DataSpec, *, binarize: bool = False) -> Dataset:
    """Examples in memory for a model of known data: all of them, in their order, are the split `test`.

    Shape and range are read as in `from_tensor`, except that a model of real numbers gets values as they are. With
    `binarize` grey levels are drawn as Bernoulli(k/255). `Dataset.note` says how they were read.

    Raises:
        UsageError: for what `from_tensor` refuses, or examples of another shape or kind than `spec` says.
    """
    array, shape_note = _shaped(_as_tensor(x))
    if tuple(array.shape[1:]) != spec.shape:
        raise UsageError(
            f"the examples have shape {tuple(array.shape[1:])}, the run's have {spec.shape}",
            f"The array of shape {tuple(x.shape)} was read as examples first.",
        )
    reading = _read(array)
    if spec.values == "real":
        stored = array if array.dtype in (torch.float32, torch.float64) else array.to(torch.float32)
        reading = _Reading(stored.contiguous(), "real", f"{reading.note.partition(' read as ')[0]} taken as given")
    elif binarize:
        reading = _binarized(reading)
    fitting = {"real": {"real"}, "grey": {"grey", "binary"}, "binary": {"binary"}}[spec.values]
    if reading.kind not in fitting:
        raise UsageError(f"the values are {reading.kind}, the run's are {spec.values}", f"Here: {reading.note}.")
    split = Split("test", reading.values)
    note = "; ".join(part for part in (shape_note, reading.note) if part)
    return Dataset(spec=spec, train=split, test=split, binarize=binarize, note=note)


def _as_tensor(x: Tensor | NDArray[Any]) -> Tensor:
    """A tensor of the CPU: uint8, int64 or floating point."""
    if isinstance(x, np.ndarray):
        return torch.from_numpy(_plain(x))
    if not isinstance(x, Tensor) or x.is_complex() or x.is_quantized:
        raise UsageError(f"{_described(x)} is neither a NumPy array nor a torch tensor of real numbers")
    x = x.detach().cpu()
    if x.dtype == torch.bool:
        return x.to(torch.uint8)
    return x if x.is_floating_point() or x.dtype == torch.uint8 else x.to(torch.int64)


def _plain(x: NDArray[Any]) -> NDArray[Any]:
    if x.dtype.kind not in "biuf":
        raise UsageError(f"an array of {x.dtype} holds no real numbers", remedy="Convert it to uint8 or float32.")
    if x.dtype in (np.uint8, np.float16, np.float32, np.float64):
        wanted = x.dtype.newbyteorder("=")
    else:
        wanted = np.dtype({"b": np.uint8, "f": np.float64}.get(x.dtype.kind, np.int64))
    return np.array(x, dtype=wanted, order="C")


def _described(x: object) -> str:
    return f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def _shaped(x: Tensor) -> tuple[Tensor, str]:
    if x.numel() == 0:
        raise UsageError(f"the array of shape {tuple(x.shape)} is empty")
    if x.ndim == 2:
        return x, ""
    if x.ndim == 3:
        return x.unsqueeze(1), "shape (N, H, W) read as one channel"
    if x.ndim == 4 and x.shape[3] <= 4 < x.shape[1]:
        return x.movedim(3, 1), "shape (N, H, W, C) read as channels last"
    if x.ndim == 4:
        return x, ""
    raise UsageError(
        f"the array has shape {tuple(x.shape)}", "Accepted: (N, D), (N, H, W), (N, C, H, W), (N, H, W, C) with C <= 4."
    )


def _read(x: Tensor) -> _Reading:
    if x.is_floating_point() and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise UsageError(f"{bad:,} of {x.numel():,} values are NaN or infinite", remedy="Remove or replace them first.")
    low, high = float(x.min()), float(x.max())
    found = f"{str(x.dtype).removeprefix('torch.')} values from {low:g} to {high:g}"
    if bool(((x == 0) | (x == 1)).all()):
        return _Reading(_levels(x * 255), "binary", f"{found}, only 0 and 1, read as binary")
    if x.dtype == torch.uint8:
        return _Reading(x.contiguous(), "grey", f"{found} read as grey levels k/255")
    whole = not x.is_floating_point() or bool((x == x.round()).all())
    if whole and low >= 0 and 1 < high <= 255:
        return _Reading(_levels(x), "grey", f"{found}, all whole, read as grey levels k/255")
    stored = x.contiguous() if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
    if low >= 0 and high <= 1:
        return _Reading(stored, "grey", f"{found} read as grey values, as given")
    return _Reading(stored, "real", f"{found} read as real numbers, as given")


def _levels(x: Tensor) -> Tensor:
    return x.to(torch.uint8).contiguous()


def _binarized(reading: _Reading) -> _Reading:
    """Levels to draw from: those that were read, or those that floating-point values k/255 stand for."""
    values = reading.values
    if reading.kind == "real":
        raise UsageError("binarize needs values in [0, 1] or levels 0..255", f"Here: {reading.note}.")
    if values.dtype != torch.uint8:
        levels = as_levels(values)
        if levels is None:
            raise UsageError(
                "binarize draws pixels from 256 grey levels, and these values are not multiples of 1/255",
                f"Here: {reading.note}.",
                "Pass uint8 levels, (255 * x).round() for instance.",
            )
        values = levels
    return _Reading(values, "binary", f"{reading.note}; drawn as Bernoulli(k/255)")


def _classes(labels: Tensor | NDArray[Any] | None, count: int) -> tuple[tuple[str, ...], Tensor | None]:
    if labels is None:
        return (), None
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != (count,):
        raise UsageError(f"labels have shape {array.shape}, and there are {count} examples")
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "biuU":
        raise UsageError(f"labels of {array.dtype} are no classes", remedy="Pass whole numbers or strings.")
    names, numbers = np.unique(array, return_inverse=True)
    return tuple(str(name) for name in names), torch.from_numpy(numbers.reshape(-1).astype(np.int64))


def _split(count: int, validation: float, test: float) -> dict[str, Tensor]:
    if not (0 <= validation < 1 and 0 < test < 1 and validation + test < 1):
        raise UsageError(
            f"validation={validation}, test={test}: fractions of the examples",
            "validation at least 0, test greater than 0, their sum less than 1.",
        )
    tested = max(1, round(count * test))
    validated = max(1, round(count * validation)) if validation else 0
    if tested + validated >= count:
        raise UsageError(f"{count} example{'' if count == 1 else 's'} cannot be split three ways")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(fold(0, "split", count)))
    rest = order[tested:]
    parts = {"test": order[:tested], "validation": rest[:validated], "train": rest[validated:]}
    return {key: index for key, index in parts.items() if len(index)}


def _part(name: str, values: Tensor, labels: Tensor | None, index: Tensor) -> Split:
    return Split(name, values[index], None if labels is None else labels[index])


def _hashes(values: Tensor, labels: Tensor | None) -> dict[str, str]:
    arrays = {"values": values.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    return {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()}
