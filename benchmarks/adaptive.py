"""What the adaptive log p(x) costs and how far it is from K = 5,000: the same images, once with each, in one process.

    python benchmarks/adaptive.py RUN --out results/speed/adaptive.json [--images 500]

Estimates of log p(x), nats/image, test split, of one run: adaptive (its proposal fitted to each image), K = 5,000 draws from
q(z | x), and K = 5,000 from the same kind of proposal, fitted again with other noise. Differences are paired over the images;
`se` is over images, `mc_se` the draws' share by the delta method, too small where q's effective sample size is. The three take
turns on a tenth of the images at a time, so that other work on the machine meets all of them. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diabolo import adaptive, evaluation, proposals, runs
from diabolo.data import Access, Loader, load
from diabolo.engine import environment
from diabolo.metrics import mean_and_se
from diabolo.models.autoencoder import Autoencoder
from diabolo.seeds import fold

K, SE, PARTS = 5000, 0.05, 10
ADAPTIVE, Q, FITTED = "adaptive", "K = 5000, q", "K = 5000, fitted proposal"


@dataclass
class Row:
    """One way to estimate, added up over the parts."""

    name: str
    seconds: float = 0.0
    processor_seconds: float = 0.0
    fit_draws: int = 0
    plans: list[adaptive.Plan] = field(default_factory=list)
    parts: list[adaptive.Estimates] = field(default_factory=list)

    @property
    def plan(self) -> adaptive.Plan:
        k, at_ceiling = (torch.cat([getattr(p, name) for p in self.plans]) for name in ("k", "at_ceiling"))
        return adaptive.Plan(k, at_ceiling, sum(p.pilot_draws for p in self.plans))

    @property
    def estimates(self) -> adaptive.Estimates:
        names = [f.name for f in fields(adaptive.Estimates)]
        return adaptive.Estimates(*(torch.cat([getattr(p, name) for p in self.parts]) for name in names))

    def add(self, model: Autoencoder, loader: Loader, index: Tensor) -> None:
        """Estimate the images `index`, each row with noise of its own."""
        began, busy, seed = time.perf_counter(), time.process_time(), fold(0, self.name)
        fitted = None if self.name == Q else proposals.fit_all(model, loader, index, seed, lambda done: None)
        weights = partial(evaluation._weights, model, loader, fitted=fitted)
        adapt = self.name == ADAPTIVE
        improve = None if fitted is None else partial(fitted.improve, model, loader)
        plan = adaptive.plan(weights, index, SE, seed, improve) if adapt else adaptive.constant(len(index), K)
        self.parts.append(adaptive.estimates(weights, index, plan.k, seed, lambda done: None))
        self.plans.append(plan)
        self.fit_draws += 0 if fitted is None else fitted.draws
        self.seconds += time.perf_counter() - began
        self.processor_seconds += time.process_time() - busy


def measure(folder: Path, images: int) -> dict[str, Any]:
    run = runs.Run(folder)
    model, dataset = run.model(), load(run.config.data.name, run.config.data.params, Access())
    run.check_data(dataset)
    loader, rows = Loader(dataset, "test"), [Row(name) for name in (ADAPTIVE, Q, FITTED)]
    index = evaluation.stratified(dataset.test.labels, len(loader), images, fold(0, "images"))
    with torch.no_grad():
        for number, part in enumerate(index.chunk(PARTS), 1):
            for row in rows:
                row.add(model, loader, part)
            print(
                f"part {number} of {PARTS}: " + ", ".join(f"{row.name} {row.seconds:.1f} s" for row in rows), flush=True
            )
    return {
        "run": run.config.preset,
        "images": images,
        "rows": {row.name: described(row) for row in rows},
        "adaptive - K = 5000": {row.name: difference(rows[0], row) for row in rows[1:]},
        "relative to K = 5000 from q": {
            "draws": scored(rows[0]) / scored(rows[1]),
            "seconds": rows[0].seconds / rows[1].seconds,
            "processor_seconds": rows[0].processor_seconds / rows[1].processor_seconds,
        },
        "environment": environment(torch.device("cpu")),
        "evaluation_source": evaluation.evaluation_source_hash(),
    }


def scored(row: Row) -> int:
    """All draws, a gradient of the fit counted as two."""
    return int(row.plan.k.sum()) + row.plan.pilot_draws + 2 * row.fit_draws


def described(row: Row) -> dict[str, Any]:
    estimates, images = row.estimates, len(row.estimates.log_p)
    mean, se = mean_and_se(estimates.log_p)
    summary = adaptive.summary(row.plan, estimates, SE)
    return {
        "log_p": mean,
        "se": se,
        "mc_se": math.sqrt(estimates.variance.sum().item()) / images,
        **{name: summary[name] for name in ("k_median", "k_min", "k_max", "draws", "pilot_draws", "at_ceiling")},
        "fit_draws": row.fit_draws,
        "within_share": summary["within"] / images,
        "ess_median": estimates.ess.median().item(),
        "milliseconds_per_image": 1000 * row.seconds / images,
        "processor_milliseconds_per_image": 1000 * row.processor_seconds / images,
    }


def difference(a: Row, b: Row) -> dict[str, float]:
    """The mean of a - b over the images, in nats."""
    mean, se = mean_and_se(a.estimates.log_p - b.estimates.log_p)
    variance = (a.estimates.variance + b.estimates.variance).sum().item()
    return {"mean": mean, "se": se, "mc_se": math.sqrt(variance) / len(a.estimates.log_p)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.run, args.images)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: found[name] for name in ("adaptive - K = 5000", "relative to K = 5000 from q")}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
