"""What torch.compile saves of a training step, and what it costs at the start: results/speed/compile.json.

    python benchmarks/compile.py --out results/speed/compile.json

The same step as it is and compiled, in interleaved rounds of one process and one thread; the wait is the first step of a compiled
run, with nothing compiled before (cold) and with what an earlier process left on disk (warm). `repays`: the floating-point
operations of a run at which the cold wait is saved again; `diabolo.compiling.REPAYS` is chosen above them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

ROUNDS = 7
STEPS = {"mnist-grey": 100, "cifar10-conv": 12}


def measured(preset: str, precision: str, compared: bool) -> dict[str, Any]:
    """Seconds of the first compiled step and, where asked for, of later steps, as they are and compiled."""
    import torch

    from diabolo import data, runs
    from diabolo.compiling import forward_operations
    from diabolo.config import resolve
    from diabolo.data import Access
    from diabolo.progress import Progress
    from diabolo.training import Trainer, parts_of

    torch.set_num_threads(1)
    config = resolve(preset, [f"train.precision={precision}"]).config
    dataset = data.load(config.data.name, config.data.params, Access(offline=True))
    trainers, rounds = {}, {"eager": [], "compiled": []}
    first: dict[str, float] = {}
    for name in rounds:
        trainer = Trainer(
            config,
            dataset,
            Path(tempfile.mkdtemp()),
            torch.device("cpu"),
            Progress(),
            compiled=name == "compiled",
            parts=parts_of(config, dataset),
        )
        trainer.journal = runs.Journal(trainer.path / "metrics.jsonl")
        trainer.step.train()
        batches = cycle(list(islice(trainer.loader.shuffled(config.train.batch, 0, 1), 12)))
        trainers[name] = (trainer, batches)
        first[name] = _seconds(trainer, batches, 1)
    for _ in range(ROUNDS if compared else 0):
        for name, (trainer, batches) in trainers.items():
            rounds[name].append(_seconds(trainer, batches, STEPS[preset]) / STEPS[preset])
    return {"first": first["compiled"], "rounds": rounds, "operations": 3 * forward_operations(config, dataset.spec)}


def _seconds(trainer: Any, batches: Any, steps: int) -> float:
    began = time.perf_counter()
    for batch in islice(batches, steps):
        trainer._take_step(batch.x, batch.y)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        preset, precision, compared = given.row
        print(json.dumps(measured(preset, precision, compared == "compared")))
        return
    rows = [row(preset, precision) for preset in STEPS for precision in ("fp32", "bf16")]
    from diabolo.engine import environment

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    import torch

    found = {"commit": commit, "threads": 1, "rows": rows, "environment": environment(torch.device("cpu"))}
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def row(preset: str, precision: str) -> dict[str, Any]:
    """One preset in one precision: a process with an empty cache, then one with what it left."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        cold = _child(env, preset, precision, "cold")
        warm = _child(env, preset, precision, "compared")
    eager, compiled = (median(warm["rounds"][name]) for name in ("eager", "compiled"))
    ratios = [a / b for a, b in zip(warm["rounds"]["eager"], warm["rounds"]["compiled"])]
    found = {
        "preset": preset,
        "precision": precision,
        "eager_ms": 1e3 * eager,
        "compiled_ms": 1e3 * compiled,
        "ratio": median(ratios),
        "ratio_least": min(ratios),
        "ratio_largest": max(ratios),
        "cold_seconds": cold["first"],
        "warm_seconds": warm["first"],
        "repays": warm["operations"] * cold["first"] / (eager - compiled) if compiled < eager else None,
    }
    print(json.dumps(found), flush=True)
    return found


def _child(env: dict[str, str], *words: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--row", *words]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
