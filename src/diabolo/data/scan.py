"""What the values of a data set are, found by looking: binary, levels of 8 bits, range, shares at the ends.

A data set declares the kind of its values (`DataSpec.values`); this says whether the values agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diabolo.data.spec import Dataset, Values
from diabolo.errors import DataError, UsageError

#: At most so many values are looked at one by one: uint8 levels are counted, floating point is sorted, which takes longer.
#: The smallest and the largest value are always those of all values of all splits.
LEVELS_EXAMINED = 64_000_000
FLOATS_EXAMINED = 500_000
#: Examples whose levels are counted at a time.
_CHUNK = 1000
#: Distinct values are counted up to here.
DISTINCT = 1_000
#: How far k/255 in 32-bit floating point may be from a level, in levels.
_TOLERANCE = 0.0255


@dataclass(frozen=True)
class Facts:
    """The values that a loader emits. `low`, `high`: of all splits; the rest of `examined` of the `total` training values,
    whole examples at equal distances. `distinct` stops at DISTINCT + 1. `zeros`, `ones`: shares of exact 0 and 1.
    `drawn`: pixels are drawn as Bernoulli(k/255), so that mean and shares are expectations."""

    declared: Values
    low: float
    high: float
    distinct: int
    on_grid: bool
    binary: bool
    mean: float
    sd: float
    zeros: float
    ones: float
    examined: int
    total: int
    drawn: bool = False

    def sentence(self) -> str:
        """The facts in one line."""
        drawn = "drawn as Bernoulli(k/255), " if self.drawn else ""
        kind = "binary {0, 1}" if self.binary else "on the 8-bit grid k/255" if self.on_grid else "off the 8-bit grid"
        seen = "all" if self.examined == self.total else f"{self.examined:,} of {self.total:,}"
        return (
            f"declared {self.declared}; {drawn}{kind}, range [{self.low:g}, {self.high:g}], "
            f"{_count(self.distinct)} distinct values, "
            f"mean {self.mean:.4g}, standard deviation {self.sd:.4g}, {100 * self.zeros:.1f} % exactly 0, "
            f"{100 * self.ones:.1f} % exactly 1 ({seen} training values examined)"
        )


def scan(dataset: Dataset) -> Facts:
    """Look at the values of a data set as its loader emits them.

    Raises:
        DataError: if a value is NaN or infinite.
    """
    values = dataset.train.values
    low, high = _range(dataset)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            f"the data {dataset.spec.name} hold values that are not finite",
            "No loss of them is a number.",
            "Remove or replace the NaN and infinite values.",
        )
    levels = values.dtype == torch.uint8
    examined = _sample(values, LEVELS_EXAMINED if levels else FLOATS_EXAMINED)
    value, share = _shares(examined)
    if dataset.binarize:
        ones = float((value * share).sum())
        value, share = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([1 - ones, ones])
    return _facts(dataset, (low, high), value, share.double(), (examined.numel(), values.numel()))


def _range(dataset: Dataset) -> tuple[float, float]:
    ends: list[Tensor] = []
    for split in (dataset.train, dataset.validation, dataset.test):
        if split is not None and split.values.numel():
            ends += map(torch.tensor, split.ends) if split.ends else split.values.aminmax()
    scale = 255 if dataset.train.values.dtype == torch.uint8 else 1
    found = [float(end) / scale for end in ends]
    if any(math.isnan(end) for end in found):
        return math.nan, math.nan
    return (0.0, 1.0) if dataset.binarize else (min(found), max(found))


def _sample(values: Tensor, most: int) -> Tensor:
    """Whole examples (n, *shape) at equal distances, at most `most` values (one example at least)."""
    size = max(1, values[0].numel())
    step = -(-values.shape[0] // max(1, most // size))
    return values[::step]


def _shares(examined: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values in ascending order and their shares, float64."""
    if examined.dtype == torch.uint8:
        counts = torch.zeros(256, dtype=torch.int64)
        for part in examined.split(_CHUNK):
            counts += torch.bincount(part.flatten(), minlength=256)
        present = counts.nonzero().flatten()
        return present.double() / 255, counts[present].double() / examined.numel()
    value, counts = torch.unique(examined.flatten(), return_counts=True)
    return value.double(), counts.double() / examined.numel()


def _facts(dataset: Dataset, ends: tuple[float, float], value: Tensor, share: Tensor, seen: tuple[int, int]) -> Facts:
    mean = float((value * share).sum())
    scaled = value * 255
    inside = ends[0] >= 0 and ends[1] <= 1
    return Facts(
        declared=dataset.spec.values,
        low=ends[0],
        high=ends[1],
        distinct=min(value.numel(), DISTINCT + 1),
        on_grid=inside and float((scaled - scaled.round()).abs().max()) <= _TOLERANCE,
        binary=inside and set(value.tolist()) <= {0.0, 1.0},
        mean=mean,
        sd=math.sqrt(max(0.0, float(((value - mean).square() * share).sum()))),
        zeros=float(share[value == 0].sum()),
        ones=float(share[value == 1].sum()),
        examined=seen[0],
        total=seen[1],
        drawn=dataset.binarize,
    )


def check(facts: Facts, name: str, likelihood: str, accepts: tuple[Values, ...], discrete: bool = False) -> None:
    """Refuse data whose values are not of the kind that they are declared to be, or that a likelihood cannot score; `discrete`:
    it gives probabilities, of grey data those of the levels k/255.

    Raises:
        DataError: for values that are not what they are said to be, with what was found and what to do.
        UsageError: for a likelihood that scores other values, with what to change.
    """
    found = f"Found: range [{facts.low:g}, {facts.high:g}], {_count(facts.distinct)} distinct values."
    if facts.declared == "binary" and not facts.binary:
        raise DataError(
            f"the data {name} are declared binary, and are not",
            found,
            "Declare them grey or real, or make them 0 and 1 (for example x > 0.5).",
        )
    if facts.declared == "grey" and not (facts.low >= 0 and facts.high <= 1):
        raise DataError(
            f"the data {name} are declared grey, and leave [0, 1]",
            found,
            f"Scale them to [0, 1] ({rescaled(facts)}), or declare them real.",
        )

    if facts.declared not in accepts:
        raise UsageError(
            f"likelihood {likelihood!r} cannot score {facts.declared} data ({name})",
            f"It scores {' or '.join(accepts)} values. {found}",
            _REMEDIES[facts.declared].format(scaled=rescaled(facts)),
        )
    if discrete and facts.declared == "grey" and not facts.on_grid:
        raise UsageError(
            f"likelihood {likelihood!r} cannot score values beside the 8-bit grid k/255 ({name})",
            f"It gives probabilities of the 256 levels. {found}",
            "Pass the values as uint8 levels, or take a density: model.likelihood=gaussian.",
        )


#: What to do about values of a kind that a likelihood does not score.
_REMEDIES = {
    "grey": "Take model.likelihood=discretized_logistic (exact), bernoulli_relaxed (unnormalised) or gaussian, or "
    "data.binarize=true.",
    "real": "Take model.likelihood=gaussian, or scale the values to [0, 1] ({scaled}) for a likelihood of grey levels.",
    "binary": "Take model.likelihood=bernoulli: a density has no upper bound on such values. Or data.binarize=false where the "
    "data are grey.",
}


def _count(distinct: int) -> str:
    return f"{distinct:,}" if distinct <= DISTINCT else f"more than {DISTINCT:,}"


def rescaled(facts: Facts) -> str:
    """The formula that takes the values to [0, 1]."""
    if facts.low == -1 and facts.high == 1:
        return "x -> (x + 1) / 2"
    if facts.low == 0 or facts.low == facts.high:
        return f"x -> x / {facts.high:g}"
    return f"x -> (x - {facts.low:g}) / {facts.high - facts.low:g}".replace("- -", "+ ")
