"""What a report reads from a run, and its tables: numbers as text, cells a machine can read back, paired changes.

Numbers come from `evaluation.json` and are never computed again, but for the paired changes, which need every image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diabolo import config
from diabolo.errors import DataError
from diabolo.language import say
from diabolo.listings import plain
from diabolo.models.grids import told
from diabolo.recorded import known_again, shown_k

if TYPE_CHECKING:
    from diabolo.runs import Run

#: What a chapter's tables need of every run's evaluation.
REQUIRED = (
    "elbo",
    "log_p",
    "distortion",
    "kl",
    "mse_mean",
    "mse_sample",
    "log_p_curve",
    "active_units",
    "kl_per_dimension",
    "pca",
    "linear_probe",
    "nearest_neighbour",
)


@dataclass(frozen=True)
class Reading:
    """Everything a report reads from one run."""

    name: str
    title: str
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    status: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    timing: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    per_image: Mapping[str, Tensor]
    loss_card: Mapping[str, Any] | None = None

    @property
    def about(self) -> Mapping[str, Any]:
        return dict(self.evaluation["about"])

    @property
    def k_shown(self) -> str:
        """How many draws log p(x) rests on; for runs that have it."""
        return shown_k(self.evaluation["log_p"]["k"])

    @property
    def normalised(self) -> bool:
        return bool(self.about["normalised"])

    @property
    def described(self) -> str:
        """The network in a few words, where it is an MLP."""
        model = self.config["model"]
        width = model["encoder"].get("width")
        if width is None:
            return say("latent {latent}", latent=told(model["latent"]))
        return say("width {width}, latent {latent}", width=width, latent=told(model["latent"]))

    @property
    def unit(self) -> str:
        return str(self.evaluation["distortion"]["unit"])


def read(run: Run, title: str = "", required: Sequence[str] = ()) -> Reading:
    """Reads one run.

    Raises:
        DataError: if its evaluation, or one of the `required` metrics, is missing.
    """
    for file in ("evaluation.json", "per_image.safetensors"):
        if not (run.path / file).is_file():
            raise DataError(
                f"{run.path} has no {file}: it was trained but not evaluated.",
                "A report shows evaluated numbers only and is not made without them.",
                f"Run: diabolo evaluate {run.path}",
            )
    evaluation = run.evaluation()
    absent = [name for name in required if name not in evaluation]
    if absent:
        raise DataError(
            f"The evaluation of {run.path} has no {', '.join(absent)}.",
            "The tables of this report need every one of them.",
            f"Run: diabolo evaluate {run.path}",
        )
    return Reading(
        name=run.path.name,
        title=title or run.path.name,
        config=run.config_dict,
        env=run.env,
        status=run.status,
        metrics=run.metrics(),
        timing=run.timing(),
        evaluation=evaluation,
        per_image=run.per_image(),
        loss_card=run.loss_card(),
    )


# ------------------------------------------------------------------------------------------------------ numbers as text


def number(value: float, digits: int = 2) -> str:
    """A number as a reader expects it: thousands separated, a true minus sign."""
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\u2212")


def signed(value: float, digits: int = 2) -> str:
    """A difference, with its sign."""
    return f"{round(value, digits) + 0.0:+,.{digits}f}".replace("-", "\u2212")


def seconds(value: float) -> str:
    """A wall time: seconds below two minutes, then minutes and seconds."""
    return f"{value:,.1f} s" if value < 120 else f"{int(value) // 60} min {int(value) % 60} s"


def digits_of(metric: str) -> int:
    """How many decimals a metric is printed with."""
    if metric.startswith("mse"):
        return 5
    return 0 if metric == "active_units" else 4 if metric in (*SHARES, *INDICES) else 2


SHARES = ("linear_probe", "nearest_neighbour")
INDICES = ("ssim", "bits_per_dim", "bits_per_dim_calibrated")

#: Units, stages and values that runs and evaluations name; one that a component of your own names is shown as it is.
_WORDS: dict[str, str] = {
    name: name
    for name in (
        say("grey"),
        say("binary"),
        say("squared error/pixel"),
        say("squared error/value"),
        say("latent dimensions"),
        say("accuracy"),
        say("train"),
        say("curve"),
        say("pass"),
        say("calibration"),
        say("importance"),
        say("probes"),
        say("metrics"),
    )
}


def word(text: str) -> str:
    """A unit, a stage or a kind of values as a page says it."""
    return _WORDS.get(text, text)


def flatten(tree: Mapping[str, Any]) -> dict[str, str]:
    """A nested configuration as {dotted path: text}."""
    return {path: plain(value) for path, value in config.flatten(tree).items()}


def shared_and_differing(trees: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Splits configurations into what all share and what differs, one value a run ("" where a run has none)."""
    flats = [flatten(tree) for tree in trees]
    keys = sorted({key for flat in flats for key in flat})
    rows = {key: [flat.get(key, "") for flat in flats] for key in keys}
    shared = {key: values[0] for key, values in rows.items() if len(set(values)) == 1}
    return shared, {key: values for key, values in rows.items() if key not in shared}


# ----------------------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Cell:
    """One number of table 4-1: what is printed and what a machine reads back."""

    run: str
    metric: str
    value: float
    text: str
    se: str
    n: str
    note: str = ""
    published: str = ""
    difference: str = ""


COLUMNS = ("elbo", "log_p", "gap", "mse_mean", "mse_sample", "active_units")


def cell(reading: Reading, metric: str, published: Mapping[str, float]) -> Cell:
    """A measured value of table 4-1 in the metric's own unit, the article's beside it where it gives one."""
    source = reading.evaluation["log_p" if metric == "gap" else metric]
    value = float(source["gap" if metric == "gap" else "value"])
    digits, se = digits_of(metric), source.get("se")
    known = published.get(metric)
    return Cell(
        run=reading.name,
        metric=metric,
        value=value,
        text=number(value, digits),
        se="" if se is None else f"\u00b1 {number(float(se), digits)}",
        n=f"{source['n']:,}",
        note=say("of {total}", total=source["of"]) if "of" in source else "",
        published="" if known is None else number(known, 4 if metric.startswith("mse") else 3),
        difference="" if known is None else signed(value - known, 4 if metric.startswith("mse") else digits),
    )


@dataclass(frozen=True)
class Change:
    """A change against the first model and its paired standard error over images (None where it has none)."""

    metric: str
    value: float
    se: float | None
    n: int
    published: float | None = None

    @property
    def verdict(self) -> str:
        """Better, worse, unclear (below two standard errors), or nothing where neither direction is a merit."""
        if self.se is None or self.metric == "gap":
            return ""
        if abs(self.value) < 2 * self.se:
            return "unclear"
        return "better" if (self.value < 0) == self.metric.startswith("mse") else "worse"

    @property
    def text(self) -> str:
        return signed(self.value, digits_of(self.metric))

    @property
    def published_text(self) -> str:
        return "" if self.published is None else signed(self.published, 4 if self.metric.startswith("mse") else 2)


def paired(first: Tensor, second: Tensor) -> tuple[float, float, int]:
    """Mean of second - first over images (N,), its standard error, and N: what both models share cancels."""
    difference = second.double() - first.double()
    n = difference.numel()
    return float(difference.mean()), float(difference.std(unbiased=True)) / math.sqrt(n) if n > 1 else math.inf, n


def changes(first: Reading, other: Reading, published: tuple[Mapping[str, float], Mapping[str, float]]) -> list[Change]:
    """Changes of `other` against `first` in every column of table 4-1, paired image by image.

    log p(x) = ELBO (N images) + mean gap (n images) is a two-phase estimate. The variance of its change is
    S^2(log p) / N + (1/n - 1/N) S^2(gap), with S^2 over the paired differences of the n images.
    """
    a, b = first.per_image, other.per_image
    found = {metric: paired(a[metric], b[metric]) for metric in ("elbo", "mse_mean", "mse_sample")}
    found["gap"], found["log_p"] = log_p_changes(a, b, found["elbo"][0])
    out = []
    for metric in COLUMNS:
        old, new = (p.get(metric) for p in published)
        known = None if old is None or new is None else new - old
        if metric == "active_units":
            value = float(other.evaluation[metric]["value"]) - float(first.evaluation[metric]["value"])
            out.append(Change(metric, value, None, int(other.evaluation[metric]["n"]), known))
        else:
            out.append(Change(metric, *found[metric], known))
    return out


def log_p_changes(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], elbo: float
) -> tuple[tuple[float, float, int], tuple[float, float, int]]:
    """(mean, SE, n) of the paired change of the gap and of log p(x), nats per example; `elbo` is that of the bound.

    Raises:
        DataError: if the two were estimated on different images.
    """
    index = a["log_p_index"]
    if not index.equal(b["log_p_index"]):
        raise DataError(
            "The models' log p(x) were estimated on different images.",
            "Their change cannot be paired image by image.",
            "Evaluate both runs again with the same settings: diabolo evaluate RUN",
        )
    gap = paired(a["log_p"].double() - a["elbo"].double()[index], b["log_p"].double() - b["elbo"].double()[index])
    plain = paired(a["log_p"], b["log_p"])
    n, total = gap[2], a["elbo"].numel()
    variance = (plain[1] ** 2 * n) / total + (1 / n - 1 / total) * gap[1] ** 2 * n
    return gap, (elbo + gap[0], math.sqrt(variance), n)


def estimate_rows(readings: Sequence[Reading]) -> list[tuple[str, list[str], str]]:
    """What stands behind the estimates: label, one text a model, and the metric's name."""

    def row(label: str, text: Callable[[Mapping[str, Any]], str]) -> tuple[str, list[str], str]:
        return label, [text(r.evaluation) for r in readings], ""

    def with_se(metric: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda e: f"{number(e[metric]['value'])} \u00b1 {number(e[metric]['se'])}"

    rows = [
        row(say("Distortion, \u2212E[log p(x|z)]"), with_se("distortion")),
        row(say("Rate, KL(q(z|x) || p(z))"), with_se("kl")),
    ]
    if all(r.about.get("entropy_floor") is not None for r in readings):
        rows += [
            row(say("Entropy floor of the data"), lambda e: number(e["about"]["entropy_floor"])),
            row(
                say("Distortion, excess over floor"),
                lambda e: number(e["distortion"]["value"] - e["about"]["entropy_floor"]),
            ),
            row(
                say("\u2212ELBO, excess over floor"),
                lambda e: number(-e["elbo"]["value"] - e["about"]["entropy_floor"]),
            ),
        ]
    return [
        *rows,
        row(say("ELBO: sampling SE (images)"), lambda e: number(e["elbo"]["se"], 3)),
        row(say("ELBO: Monte-Carlo SE (z)"), lambda e: number(e["elbo"]["mc_se"], 4)),
        row(say("log p(x): SE of the mean gap"), lambda e: number(e["log_p"]["gap_se"], 3)),
        row(say("log p(x): sampling SE (images)"), lambda e: number(e["log_p"]["se_sampling"], 3)),
        row(say("log p(x): Monte-Carlo SE (z)"), lambda e: number(e["log_p"]["mc_se"], 4)),
        row(
            say("log p(x): plain mean of the subset"),
            lambda e: f"{number(e['log_p']['plain_mean'])} \u00b1 {number(e['log_p']['plain_se'])}",
        ),
        row(say("log p(x): K, images"), lambda e: f"{shown_k(e['log_p']['k'])}, {e['log_p']['n']:,}"),
        row(say("Effective sample size, median"), lambda e: number(e["log_p"]["ess_median"], 1)),
        row(say("Effective sample size, smallest"), lambda e: number(e["log_p"]["ess_min"], 1)),
    ]


def probe_rows(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """What the latent code holds, a row a model: probe accuracies, active units, share of variance, rate in nats per example."""
    rows = []
    for r in readings:
        e = r.evaluation
        rows.append({
            "title": r.title,
            "run": r.name,
            "cells": [(m, e[m]["value"], number(e[m]["value"], 4), f"\u00b1 {number(e[m]['se'], 4)}") for m in SHARES]
            + [
                (
                    "active_units",
                    e["active_units"]["value"],
                    number(e["active_units"]["value"], 0),
                    say("of {total}", total=e["active_units"]["of"]),
                )
            ],
            "explained": number(100 * sum(e["pca"]["explained"][:2]), 1),
            "kl": number(e["kl"]["value"]),
        })
    return rows


def curve_rows(readings: Sequence[Reading]) -> dict[str, Any]:
    """log p(x) for each K, a row a model, with its errors over images and over draws, nats per example."""
    points = [r.evaluation["log_p_curve"]["points"] for r in readings]
    return {
        "ks": [f"{p['k']:,}" for p in points[0]],
        "rows": [
            (r.title, [(number(p["value"]), number(p["se"]), number(p["mc_se"], 3)) for p in own])
            for r, own in zip(readings, points, strict=True)
        ],
    }


def metric_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every metric with a value, the usual ones first, as rows of text."""
    rows = []
    for name in sorted(evaluation, key=lambda n: (REQUIRED.index(n) if n in REQUIRED else len(REQUIRED), n)):
        metric = evaluation[name]
        if name != "about" and isinstance(metric, Mapping) and "value" in metric:
            digits = digits_of(name)
            se = metric.get("se")
            rows.append({
                "name": name,
                "value": float(metric["value"]),
                "text": number(metric["value"], digits),
                "se": "" if se is None else number(se, digits),
                "n": f"{metric['n']:,}",
                "unit": word(metric["unit"]),
                "split": metric.get("split", evaluation["about"]["split"]),
            })
    return rows


# ----------------------------------------------------------------------------------------------------------- the record


def clock(reading: Reading) -> dict[str, float]:
    """Seconds by stage: training stages from timing.jsonl, evaluation stages from evaluation.json."""
    spent: dict[str, float] = {}
    for row in reading.timing:
        spent[row["stage"]] = spent.get(row["stage"], 0.0) + float(row["seconds"])
    measured = reading.about.get("seconds", {}).items()
    return {word(stage): s for stage, s in spent.items()} | {
        say("evaluation: {stage}", stage=word(stage)): float(s) for stage, s in measured
    }


def hashes(readings: Sequence[Reading]) -> list[tuple[str, list[tuple[str, str]]]]:
    """SHA-256 by run: the data's files (as trained on), the evaluated data, the fixed binarised draw, the weights."""
    names = (
        (say("data as evaluated"), "data_hash"),
        (say("fixed binarised draw"), "draw_hash"),
        (say("weights"), "weights_sha256"),
    )
    out = []
    for r in readings:
        files = list(r.env.get("data", {}).get("hashes", {}).items())
        out.append((r.name, files + [(label, r.about[key]) for label, key in names if r.about.get(key)]))
    return out


def loss_cards(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """What the loss is, each card once: the titles of its runs, its headline, when it was measured, and its rows."""
    found: list[dict[str, Any]] = []
    for r in readings:
        card = dict(r.loss_card or {"headline": "", "when": "", "rows": []})
        card["when"] = known_again(card["when"])
        same = next((seen for seen in found if seen["card"] == card), None)
        if same is None:
            found.append({"card": card, "titles": [r.title]})
        else:
            same["titles"].append(r.title)
    return found


def versions(reading: Reading) -> dict[str, Any]:
    """What env.json says of software and machine; the data's part stands with the hashes."""
    return {key: value for key, value in reading.env.items() if key != "data"}
