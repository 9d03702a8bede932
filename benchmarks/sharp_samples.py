"""The table of samples of one run with all of its priors, in one go: the sets to read it by are measured once.

    python benchmarks/sharp_samples.py RUN --guidance 2 --out results/sharp/samples.json

Rows as those of `diabolo measure`; of a prior that knows classes, samples for each class (guided where it can be) and for none.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from diabolo import data, fitted, sampling, sampling_table
from diabolo.engine import environment
from diabolo.features import load
from diabolo.fitted import OWN
from diabolo.runs import Run, sha256, write_json
from diabolo.sampling_table import ImageSet

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--guidance", type=float, required=True)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument(
        "--rows", nargs="*", help="the rows to draw, like own flow_matching:class; all of them left out"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    run, features = Run(given.run), load("cifar10_classifier")
    dataset = data.load(run.config.data.name, run.config.data.params)
    n, seconds = given.n, {}
    sets = [
        sampling_table.floor(dataset, n, 0),
        sampling_table.reconstructions(run, dataset, n, 0, device=CPU),
        *sampling_table.closed_form(dataset, n, 0),
    ]
    classes = sampling.each_in_turn(n, len(dataset.spec.classes))
    for prior, asked, guidance in plans(run, given.guidance):
        if given.rows and f"{prior}{':class' if asked else ''}" not in given.rows:
            continue
        name = f"{prior}, {'each class' if asked else 'no class'}" + (f", guidance {guidance:g}" if asked else "")
        began = time.perf_counter()
        levels = sampling.draw(run, n, 0, classes if asked else None, guidance, prior=prior, device=CPU)
        seconds[name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {seconds[name]} s", flush=True)
        sets.append(ImageSet(name, "samples", levels, classes if asked else None))
    found = sampling_table.measure(sets, dataset, features, "cifar10_classifier", device=CPU)
    about = {"weights_sha256": sha256(run.path / "weights.safetensors"), "seed": 0, "drawing_seconds": seconds}
    write_json(given.out, {"about": {**found["about"], **about, **environment(CPU)}, "rows": found["rows"]})


def plans(run: Run, guidance: float) -> list[tuple[str, bool, float]]:
    """(prior, whether classes are asked for, guidance) of each row."""
    rows = [(OWN, False, 1.0)]
    for name in fitted.names(run):
        prior = fitted.load_prior(run.path / "priors" / name / "weights.safetensors")
        if getattr(prior, "classes", 0):
            rows.append((name, True, guidance if prior.density == "estimate" else 1.0))
        rows.append((name, False, 1.0))
    return rows


if __name__ == "__main__":
    main()
