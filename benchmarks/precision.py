"""What bfloat16 costs: the ELBO of Model 1 trained in 32 bits and in bf16, three seeds each, evaluated in 32 bits.

    python benchmarks/precision.py --out results/speed/precision.json

The runs are single-threaded processes, one a core. ELBO: test split, n = 10,000, grey levels (unnormalised), nats/image. The
difference is paired over the same images and seeds; its standard error is over seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from statistics import fmean, stdev

import torch

from diabolo import workers
from diabolo.config import resolve
from diabolo.engine import environment
from diabolo.evaluation import Settings
from diabolo.options import say
from diabolo.progress import Progress
from diabolo.workers import Job

#: The largest difference that is accepted for a preset to take bf16, nats.
BOUND = 0.3
SETTINGS = Settings(k=0, probes=False)


class Told(Progress):
    def say(self, text: str) -> None:
        say(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, help="keep the runs here, to go on with them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", default="mnist-grey")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(args.runs or Path(scratch), args.preset, args.seeds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["summary"], indent=1))
    return 0 if abs(found["summary"]["bf16 - fp32"]) <= BOUND else 1


def measure(folder: Path, preset: str, seeds: int) -> dict[str, object]:
    rows = [(precision, seed) for precision in ("fp32", "bf16") for seed in range(seeds)]
    jobs = [
        Job(
            folder / f"{preset}-{precision}-{seed}",
            resolve(preset, [f"seed={seed}", f"train.precision={precision}", "train.curve=none"]).config,
            SETTINGS,
        )
        for precision, seed in rows
    ]
    runs = workers.run(jobs, device="cpu", progress=Told())
    elbo = {row: run.evaluation()["elbo"]["value"] for row, run in zip(rows, runs)}
    seconds = {
        row: sum(lap["seconds"] for lap in run.timing() if lap["stage"] == "train") for row, run in zip(rows, runs)
    }
    differences = [elbo["bf16", seed] - elbo["fp32", seed] for seed in range(seeds)]
    summary = {
        "fp32": fmean(elbo["fp32", seed] for seed in range(seeds)),
        "bf16": fmean(elbo["bf16", seed] for seed in range(seeds)),
        "bf16 - fp32": fmean(differences),
        "se over seeds": stdev(differences) / seeds**0.5 if seeds > 1 else None,
        "bound": BOUND,
        "unit": "nats/image, test, n = 10,000, grey levels, unnormalised",
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "preset": preset,
        "summary": summary,
        "rows": [{"precision": p, "seed": s, "elbo": elbo[p, s], "training_seconds": seconds[p, s]} for p, s in rows],
        "commit": commit,
        "threads_each": 1,
        "environment": environment(torch.device("cpu")),
    }


if __name__ == "__main__":
    raise SystemExit(main())
