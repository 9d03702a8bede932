"""From what the rows told to what the tables say: pure functions of a job's record, no clock and no process.

A job's record is what bench.json keeps of it: `rows` (what each is: its precision, how its lines become a number), `rounds` (each
with its two peaks and, for each row, lines, wall seconds, peak memory and the GEMM peak around it), `checks` and `targets`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

#: A round is dropped if its two peaks differ by more than this part of the larger: the machine was not the same throughout.
TOLERANCE = 0.05
#: After so many epochs the article's number was taken, and the script's ELBO is compared with ours.
EPOCHS = 10

Record = Mapping[str, Any]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, least and largest of the values, and how many there are; None where there are none."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def differ(peaks: Sequence[float]) -> bool:
    """Whether the peaks before and after a round differ by more than the tolerance."""
    return max(peaks) - min(peaks) > TOLERANCE * max(peaks)


# ------------------------------------------------------------------------------------------------ one row of one round
def value(row: Record, lines: Sequence[Record], wall: float) -> float | None:
    """The number of a row in one round, seconds for the job's unit; None if it gave none."""
    kind = row["kind"]
    if kind == "epochs":  # the first one, which may compile or fill caches, stands apart
        seconds = [line["seconds"] for line in lines if "epoch" in line]
        return statistics.median(seconds[1:] or seconds) if seconds else None
    if kind == "target":
        return _until(lines, row["target"])
    if kind == "wall":
        return statistics.median([line["wall"] for line in lines]) if lines else wall
    return sum(line["seconds"] for line in lines) / row["units"] if lines else None


def first(row: Record, lines: Sequence[Record]) -> float | None:
    """Seconds of the first epoch, where there are several."""
    return lines[0]["seconds"] if row["kind"] == "epochs" and lines else None


def _until(lines: Sequence[Record], target: float) -> float | None:
    """Seconds of training up to the epoch after which the test loss was no more than the target; None if it never was."""
    total = 0.0
    for line in lines:
        total += line["seconds"]
        if line["loss"] <= target:
            return total
    return None


# ------------------------------------------------------------------------------------------------ a job
def kept(record: Record) -> list[Record]:
    """The rounds that count."""
    return [one for one in record["rounds"] if not differ(one["peaks"])]


def _values(record: Record, name: str) -> dict[int, float]:
    """A row's number in each round that counts; a round in which it gave none is absent."""
    row, found = record["rows"][name], {}
    for one in kept(record):
        told = one["rows"].get(name)
        number = None if told is None else value(row, told["lines"], told["wall"])
        if number is not None:
            found[one["round"]] = number
    return found


def summary(record: Record) -> dict[str, Any]:
    """All that the tables show of a job."""
    counted = kept(record)
    return {
        "rounds": {"kept": len(counted), "dropped": len(record["rounds"]) - len(counted)},
        "peak": {
            precision: spread([p[precision] for one in counted for p in one["floors"]])
            for precision in ("fp32", "bf16")
        },
        "floor": {precision: spread(_floors(record, precision)) for precision in ("fp32", "bf16")},
        "rows": {name: _row(record, name) for name in record["rows"]},
        "ratios": _ratios(record),
        "checks": _checks(record),
        "targets": _targets(record),
    }


def _row(record: Record, name: str) -> dict[str, Any]:
    row = record["rows"][name]
    told = [one["rows"][name] for one in kept(record) if name in one["rows"]]
    firsts = [found for one in told if (found := first(row, one["lines"])) is not None]
    memory = [one["max_rss"] for one in told if one["max_rss"]]
    return {
        "seconds": spread(list(_values(record, name).values())),
        "first": spread(firsts),
        "share": spread(_shares(record, name)),
        "memory": max(memory, default=None),
        "missing": record["missing"].get(name),
    }


def _floors(record: Record, precision: str) -> list[float]:
    """Seconds of the job's arithmetic at the highest peak of each round; none unless a row of this precision has a number."""
    alike = [name for name, row in record["rows"].items() if row["precision"] == precision and row["gflop"] is not None]
    if not any(_values(record, name) for name in alike):
        return []
    gflop = record["rows"][alike[0]]["gflop"]
    return [gflop / max(floor[precision] for floor in one["floors"]) for one in kept(record)]


def _shares(record: Record, name: str) -> list[float]:
    """What part of the GEMM peak around a row its arithmetic reached, round by round."""
    row, seconds = record["rows"][name], _values(record, name)
    if row["gflop"] is None:
        return []
    peaks = {one["round"]: one["rows"][name]["peak"][row["precision"]] for one in kept(record) if name in one["rows"]}
    return [row["gflop"] / took / peaks[number] for number, took in seconds.items()]


def ratio(record: Record, slow: str, fast: str) -> dict[str, Any] | None:
    """How many times as long one row took as another: of the medians, and in each round; None where one of them is missing."""
    numerator, denominator = _values(record, slow), _values(record, fast)
    both = sorted(numerator.keys() & denominator.keys())
    if not both:
        return None
    return {
        "slow": slow,
        "fast": fast,
        "of_medians": statistics.median(numerator.values()) / statistics.median(denominator.values()),
        "in_round": spread([numerator[i] / denominator[i] for i in both]),
    }


def _ratios(record: Record) -> list[dict[str, Any]]:
    """Every other row against each of ours; a bare start of Python does nothing that could be compared."""
    ours = [name for name, row in record["rows"].items() if row["ours"] and row["kind"] != "wall"]
    pairs = [(slow, fast) for fast in ours for slow in record["rows"] if slow not in ours]
    return [found for slow, fast in pairs if (found := ratio(record, slow, fast)) is not None]


# ------------------------------------------------------------------------------------------------ checks and targets
def _checks(record: Record) -> list[dict[str, Any]]:
    """That two rows computed the same thing: the loss after ten epochs, the mean of log p(x), over all rounds."""
    found = []
    for check in record["checks"]:
        means = [_mean_of(record, name, check["of"]) for name in check["rows"]]
        if None not in means:
            apart = abs(means[0] - means[1])
            found.append({**check, "means": means, "apart": apart, "passed": apart <= check["within"]})
    return found


def _mean_of(record: Record, name: str, what: str) -> float | None:
    lines = [line for one in record["rounds"] if name in one["rows"] for line in one["rows"][name]["lines"]]
    if what == "loss":
        lines = [line for line in lines if line["epoch"] == EPOCHS]
    return statistics.fmean(line[what] for line in lines) if lines else None


def _targets(record: Record) -> list[dict[str, Any]]:
    found = []
    for target in record["targets"]:
        reached, sign = _reached(record, target), -1 if target["kind"] == "seconds" else 1
        met = None if reached is None else sign * reached >= sign * target["bound"]
        found.append({**target, "found": reached, "met": met})
    return found


def _reached(record: Record, target: Record) -> float | None:
    """What a target was held against: the median in-round ratio, share of the peak, or seconds."""
    if target["kind"] == "ratio":
        compared = ratio(record, *target["rows"])
        return compared and compared["in_round"]["median"]
    [name] = target["rows"]
    values = _shares(record, name) if target["kind"] == "share" else list(_values(record, name).values())
    return statistics.median(values) if values else None
