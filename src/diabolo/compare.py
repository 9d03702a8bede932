"""Runs side by side: seeds of one configuration together, and paired differences image by image. Unlike is refused with unlike.

A difference is taken on the same images with both models' own draws of z, so the spread between images, which is far larger
than the differences between models, cancels.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from diabolo.config import flatten
from diabolo.errors import DataError, UsageError
from diabolo.runs import Run, sha256

logger = logging.getLogger("diabolo")

#: Metrics that are means over images, and the name of their column in per_image.safetensors.
METRICS = ("elbo", "log_p", "kl", "distortion", "mse_mean", "mse_sample", "bits_per_dim", "ssim")
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """`mean` over n images of (run - first run), the interval that holds it at `LEVEL`, and what that says."""

    mean: float
    low: float
    high: float
    n: int
    unit: str
    verdict: str  # tie, higher or lower


@dataclass(frozen=True)
class Summary:
    """The mean over n seeds and their standard deviation (ddof 1; None where n = 1)."""

    mean: float
    spread: float | None
    n: int
    unit: str


@dataclass(frozen=True)
class Group:
    """Runs of one configuration but for the seed; `differs` holds what tells it from the other groups."""

    label: str
    differs: dict[str, Any]
    runs: list[str]
    seeds: list[int]
    metrics: dict[str, Summary]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `conditions` are what all runs share."""

    conditions: dict[str, Any]
    first: str
    groups: list[Group]
    differences: dict[str, dict[str, Difference]]  # run -> metric -> run - first

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "level": LEVEL}


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare evaluated runs with the first of them.

    Raises:
        UsageError: for fewer than two runs.
        DataError: if a run is not evaluated, its evaluation is not of its weights, or two runs are not alike in data hash,
            split, likelihood family, binarisation, K, unit, and bound or estimate.
    """
    if len(runs) < 2:
        raise UsageError("compare needs at least two runs", remedy="For example: diabolo compare runs/a runs/b")
    evaluations = [_evaluation(run) for run in runs]
    conditions = [_conditions(run, evaluation) for run, evaluation in zip(runs, evaluations)]
    for run, other in zip(runs[1:], conditions[1:]):
        _refuse_unlike(runs[0], conditions[0], run, other)
    _warn(runs, evaluations)
    shared = [name for name in METRICS if all(name in evaluation for evaluation in evaluations)]
    images = [_per_image(run, evaluation) for run, evaluation in zip(runs, evaluations)]
    units = {name: str(evaluations[0][name]["unit"]) for name in shared}
    return Comparison(
        conditions=conditions[0] | {"n": evaluations[0]["about"]["n"], "data": evaluations[0]["about"]["data"]},
        first=str(runs[0].path),
        groups=_groups(runs, evaluations, units),
        differences={
            str(run.path): {name: _paired(name, images[0], other, unit) for name, unit in units.items()}
            for run, other in zip(runs[1:], images[1:])
        },
    )


# ------------------------------------------------------------------------------------------------ like with like
def _evaluation(run: Run) -> dict[str, Any]:
    evaluation = run.evaluation()
    weights = run.path / "weights.safetensors"
    if weights.is_file() and sha256(weights) != evaluation["about"].get("weights_sha256"):
        raise DataError(
            f"the evaluation of {run.path} is not of its weights",
            "They were trained on or replaced after it.",
            f"Repeat it: diabolo evaluate {run.path}",
        )
    return evaluation


def _conditions(run: Run, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share for their numbers to measure the same thing."""
    about = evaluation["about"]
    try:
        log_p = evaluation.get("log_p", {})
        kind = log_p.get("bound", "no bound" if about["bound"] == "none" else "lower bound")
        return {
            "data hash": about["data_hash"],
            "split": about["split"],
            "likelihood family": about["family"],
            "binarisation": "none" if about["draw_hash"] is None else f"drawn, hash {about['draw_hash']}",
            "K": log_p.get("k", about["k"]),
            "unit": next(str(evaluation[name]["unit"]) for name in METRICS if name in evaluation),
            "bound or estimate": f"{kind}, {'normalised' if about['normalised'] else 'unnormalised'}",
        }
    except (LookupError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(
            f"{run.path / 'evaluation.json'} is no whole evaluation",
            f"It lacks or garbles {error}.",
            f"Repeat it: diabolo evaluate {run.path}",
        ) from error


def _refuse_unlike(first: Run, theirs: Mapping[str, Any], run: Run, ours: Mapping[str, Any]) -> None:
    unlike = [f"{key}: {theirs[key]} against {ours[key]}" for key in theirs if theirs[key] != ours[key]]
    if unlike:
        raise DataError(
            f"{first.path} and {run.path} are unlike and not compared",
            f"They differ in {'; '.join(unlike)}.",
            "Evaluate both in the same way, or compare runs of the same data and likelihood.",
        )


def _warn(runs: Sequence[Run], evaluations: Sequence[Mapping[str, Any]]) -> None:
    for run, evaluation in zip(runs, evaluations):
        if evaluation["about"].get("training") != "finished":
            logger.warning("%s was evaluated before it was finished", run.path)
        if evaluation["about"].get("smoke"):
            logger.warning("%s is a smoke run: its numbers mean nothing", run.path)
    if len({evaluation["about"].get("source_hash") for evaluation in evaluations}) > 1:
        logger.warning("these runs were evaluated by different versions of diabolo's source")


# ------------------------------------------------------------------------------------------------ image by image
def _per_image(run: Run, evaluation: Mapping[str, Any]) -> dict[str, Tensor]:
    found = run.per_image()
    for name in METRICS:
        if name not in evaluation:
            continue
        value = evaluation[name].get("plain_mean", evaluation[name]["value"])
        column = found.get(name)
        if column is None or not math.isclose(column.double().mean().item(), value, rel_tol=1e-6, abs_tol=1e-9):
            raise DataError(
                f"{run.path / 'per_image.safetensors'} is not what evaluation.json is the mean of",
                f"They disagree in {name}.",
                f"Repeat the evaluation: diabolo evaluate {run.path}",
            )
    return found


def _paired(name: str, first: Mapping[str, Tensor], other: Mapping[str, Tensor], unit: str) -> Difference:
    theirs, ours = first[name].double(), other[name].double()
    if name == "log_p":
        both = torch.isin(first["log_p_index"], other["log_p_index"])
        theirs = theirs[both]
        ours = ours[torch.isin(other["log_p_index"], first["log_p_index"])]  # both indices are in ascending order
    if theirs.shape != ours.shape or theirs.numel() < 2:
        raise DataError(f"the runs share {min(theirs.numel(), ours.numel())} images with {name}: two are needed")
    if name == "log_p" and "elbo" in first and "elbo" in other:
        bound = other["elbo"].double() - first["elbo"].double()
        return subset_difference(ours - theirs, bound, first["log_p_index"][both], unit)
    return difference(ours - theirs, unit)


def difference(values: Tensor, unit: str) -> Difference:
    r"""The mean of paired differences (n,) with its 95 % confidence interval by Student's t; a tie where it holds 0.

    .. math:: \bar d \pm t_{0.975, n-1}\, s_d / \sqrt n
    """
    n = values.numel()
    return _interval(values.mean().item(), values.std().item() / math.sqrt(n), n, unit)


def subset_difference(log_p: Tensor, bound: Tensor, index: Tensor, unit: str) -> Difference:
    r"""The mean difference in log p(x), known on n of N images, helped by the difference in ELBO on all: as log p(x) itself.

    .. math:: \bar d = \bar b + \overline{(l - b)}_n, \quad
              se^2 = S^2(l) / N + (1/n - 1/N)\, S^2(l - b)

    log_p l: (n,), bound b: (N,), index: (n,) the images of log_p.
    """
    n, total = log_p.numel(), bound.numel()
    gap = log_p - bound[index]
    variance = log_p.var().item() / total + (1 / n - 1 / total) * gap.var().item()
    return _interval(bound.mean().item() + gap.mean().item(), math.sqrt(variance), n, unit)


def _interval(mean: float, se: float, n: int, unit: str) -> Difference:
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * se
    low, high = mean - half, mean + half
    verdict = "tie" if low <= 0 <= high else "higher" if low > 0 else "lower"
    return Difference(mean, low, high, n, unit, verdict)


# ------------------------------------------------------------------------------------------------ seeds together
def _groups(runs: Sequence[Run], evaluations: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> list[Group]:
    members: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        members.setdefault(_without_seed(run), []).append(number)
    flat = {key: flatten(json.loads(key)) for key in members}
    paths = dict.fromkeys(path for values in flat.values() for path in values)
    told = [path for path in paths if len({json.dumps(values.get(path)) for values in flat.values()}) > 1]
    return [
        Group(
            label=runs[numbers[0]].config.preset or runs[numbers[0]].name,
            differs={path.removesuffix(".name"): flat[key][path] for path in told if path in flat[key]},
            runs=[str(runs[i].path) for i in numbers],
            seeds=[runs[i].config.seed for i in numbers],
            metrics={
                name: _summary([(runs[i].config.seed, float(evaluations[i][name]["value"])) for i in numbers], unit)
                for name, unit in units.items()
            },
        )
        for key, numbers in members.items()
    ]


def _without_seed(run: Run) -> str:
    saved = run.config.to_dict()
    return json.dumps({key: value for key, value in saved.items() if key not in {"schema", "preset", "seed"}})


def _summary(values: Sequence[tuple[int, float]], unit: str) -> Summary:
    """Mean and spread over seeds; a seed that was run twice counts once, with its mean."""
    by_seed: dict[int, list[float]] = {}
    for seed, value in values:
        by_seed.setdefault(seed, []).append(value)
    means = torch.tensor([sum(found) / len(found) for found in by_seed.values()], dtype=torch.float64)
    n = means.numel()
    return Summary(means.mean().item(), means.std().item() if n > 1 else None, n, unit)
