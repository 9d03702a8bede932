"""The first losses of every preset, in 64 and 32 bits: written once before work on speed, compared after it.

    python benchmarks/first_losses.py --out results/speed/first_losses.json
    python benchmarks/first_losses.py --against results/speed/first_losses.json --out results/speed/first_losses_after.json

What is compared is `loss`, nats per example, of each of the first steps. Speed may change the order of additions, so losses
agree to 1e-10 in 64 bits and to 1e-4 in 32 bits, relative to the old ones. Exit code 1 where they do not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import torch

from diabolo import data as data_module
from diabolo import runs
from diabolo.config import preset_names, resolve
from diabolo.data import Access
from diabolo.data.loader import Loader
from diabolo.engine import environment
from diabolo.progress import Progress
from diabolo.step import Average
from diabolo.training import Trainer, parts_of

BOUNDS = {"float64": 1e-10, "float32": 1e-4}


def first_losses(preset: str, dtype: torch.dtype, steps: int) -> list[float]:
    config = resolve(preset, ["train.log_every=1", "train.clip=none"]).config
    dataset = data_module.load(config.data.name, config.data.params, Access(offline=True))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            config, dataset, Path(folder), torch.device("cpu"), Progress(), parts=parts_of(config, dataset)
        )
        trainer.model.to(dtype)
        if trainer.descent.average:
            trainer.descent.average = Average(trainer.model, config.train.ema)
        trainer.step.train()
        trainer.loader = Loader(dataset, "train", "cpu", dtype)
        trainer.journal = runs.Journal(Path(folder) / "metrics.jsonl")
        for batch in islice(trainer.loader.shuffled(config.train.batch, config.seed, 1), steps):
            trainer._take_step(batch.x, batch.y)
        trainer.journal.close()
        rows = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    if len(losses) != min(steps, trainer.batches):
        raise SystemExit(f"{preset}: {len(losses)} of {steps} steps were taken")
    return losses


def furthest(before: list[float], after: list[float]) -> float:
    """The largest difference relative to the old loss, over the steps."""
    return max(abs(a - b) / abs(b) for a, b in zip(after, before, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--presets", nargs="*", default=preset_names())
    args = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads(args.against.read_text(encoding="utf-8")) if args.against else None
    presets = [name for name in args.presets if before is None or name in before["losses"]]
    losses: dict[str, dict[str, list[float]]] = {}
    distances: dict[str, dict[str, dict[str, float]]] = {}
    too_far = 0
    for preset in presets:
        losses[preset] = {}
        for name, bound in BOUNDS.items():
            losses[preset][name] = first_losses(preset, getattr(torch, name), args.steps)
            if before is None:
                print(f"{preset} {name}: {losses[preset][name][0]:.6f} ... {losses[preset][name][-1]:.6f}", flush=True)
                continue
            old = before["losses"][preset][name]
            distance = furthest(old, losses[preset][name])
            of_largest = max(abs(a - b) for a, b in zip(losses[preset][name], old)) / max(map(abs, old))
            distances.setdefault(preset, {})[name] = {"relative": distance, "of the largest loss": of_largest}
            too_far += distance > bound
            print(
                f"{preset} {name}: {distance:.1e} (bound {bound:.0e}); of the largest loss {of_largest:.1e}", flush=True
            )
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        made = {"commit": commit, "environment": environment(torch.device("cpu")), "threads": 1}
        made |= {"losses": losses} if before is None else {"against": before["commit"], "furthest": distances}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 1 if too_far else 0


if __name__ == "__main__":
    sys.exit(main())
