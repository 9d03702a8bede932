"""bench.json as a picture beside it: a panel for each job, a bar for each row, its whisker from the least to the largest.

python -m benchmarks.speed.figure results/speed/bench.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.speed.emitting import emit
from diabolo.plots import PALETTE, svg_file

TITLES = {
    "model1": "Model 1 on MNIST",
    "three-models": "the article's three models",
    "convvae": "convolutional VAE on CIFAR-10",
    "log_p": "log p(x) of Model 1",
    "target-mnist": "Model 1's network",
    "target-cifar10": "convolutional VAE on CIFAR-10",
    "startup": "start-up",
}
LABELS = {
    "floor-fp32": "GEMM floor, fp32",
    "floor-bf16": "GEMM floor, bf16",
    "diabolo-bf16": "diabolo, bf16",
    "diabolo-adaptive": "diabolo, adaptive",
    "speedrun": "diabolo, mnist-speedrun",
    "script": "article-style script",
    "script-workers": "script, 2 workers",
    "script-tensors": "script, TensorDataset",
    "eager": "eager tensors, fused Adam",
    "pythae-1000": "pythae, batch 1,000",
    "help": "diabolo --help",
    "smoke": "diabolo train mnist --smoke",
    "python": "python -c pass",
    "torch": "python -c 'import torch'",
}


def drawn(jobs: Mapping[str, Any]) -> Figure | None:
    """A panel for each job that has numbers; None if none has."""
    shown = {name: _numbers(job) for name, job in jobs.items()}
    shown = {name: rows for name, rows in shown.items() if rows}
    if not shown:
        return None
    heights = [len(rows) + 1.2 for rows in shown.values()]
    figure = Figure(figsize=(8, 0.3 * sum(heights) + 0.3), layout="constrained")
    for axes, (name, rows) in zip(
        figure.subplots(len(shown), height_ratios=heights, squeeze=False)[:, 0], shown.items()
    ):
        _panel(axes, rows, jobs[name]["rows"])
        axes.set_title(f"{TITLES[name]}, {jobs[name]['unit']}; {_rounds(jobs[name])}", loc="left", fontsize=10)
    return figure


def _rounds(job: Mapping[str, Any]) -> str:
    """What a bar and its whiskers are."""
    kept = job["summary"]["rounds"]["kept"]
    return "one round" if kept == 1 else f"median, least and largest of {kept} rounds"


def _numbers(job: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """The floors, where there is arithmetic, and the rows."""
    found = job["summary"]
    floors = {f"floor-{precision}": took for precision, took in found["floor"].items() if took}
    return {**floors, **{name: row["seconds"] for name, row in found["rows"].items() if row["seconds"]}}


def _panel(axes: Axes, rows: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]) -> None:
    for place, (name, took) in enumerate(rows.items()):
        middle = took["median"]
        whisker = [[middle - took["min"]], [took["max"] - middle]]
        colour = PALETTE[2] if name not in facts else PALETTE[0] if facts[name]["ours"] else PALETTE[7]
        axes.barh(place, middle, xerr=whisker, color=colour, height=0.7, error_kw={"linewidth": 1, "capsize": 2})
        axes.annotate(
            f"{middle:.3g}", (took["max"], place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), [LABELS.get(name, name) for name in rows], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def main(path: str) -> None:
    figure = drawn(json.loads(Path(path).read_text(encoding="utf-8"))["jobs"])
    if figure is not None:
        Path(path).with_suffix(".svg").write_bytes(svg_file(figure, "bench"))
    emit(drawn=figure is not None)


if __name__ == "__main__":
    main(*sys.argv[1:])
