"""What a run costs against images, their size, width, latents, draws of z and processes: results/speed/scaling.json.

    python benchmarks/scaling.py [--out results/speed/scaling.json] [--quick]

Each point is a process of its own; the images are noise, which costs what pictures cost. Training: one thread, Model 1's network
and batch, seconds of the second epoch. log p(x): ms an image. Processes have one thread each: so many runs at once, and so many
that share one run, started by torchrun.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.speed.rounds import carry_out, environment  # noqa: E402


@dataclass(frozen=True)
class Point:
    """One measurement. `k` draws of z for log p(x) of `images` images where it is above 0, else training on `images` of them."""

    images: int = 4096
    side: int = 28
    network: str = "mlp"
    width: int = 400
    latent: int = 20
    k: int = 0


BASE = Point()
CONV = Point(images=640, side=32, network="conv", width=32, latent=64)
LOG_P = Point(images=10, k=1000)
SERIES: dict[str, list[Point]] = {
    "images": [replace(BASE, images=n) for n in (1024, 2048, 4096, 8192, 16384)],
    "resolution, mlp": [replace(BASE, side=side, images=1024) for side in (14, 28, 56, 112)],
    "resolution, conv": [replace(CONV, side=side) for side in (16, 32, 64)],
    "width": [replace(BASE, width=width) for width in (100, 200, 400, 800, 1600)],
    "latents": [replace(BASE, latent=latent) for latent in (2, 20, 200)],
    "draws": [replace(LOG_P, k=k) for k in (100, 1000, 5000, 10000)],
}
PROCESSES = (1, 2)
#: Runs that processes share, as torchrun starts them.
SHARED = {
    "Model 1": ["mnist-grey"],
    "ConvVAE": ["cifar10-conv", "data=clouds", "data.examples=4000", "data.size=32"],
}


# ------------------------------------------------------------------------------------------------ a point's own process
def measured(point: Point) -> None:
    """Train, or train shortly and estimate log p(x), and tell the seconds."""
    import torch

    import diabolo
    from benchmarks.speed.emitting import emit
    from diabolo import data, evaluation
    from diabolo.evaluation import Settings

    generator, kept = torch.Generator().manual_seed(0), max(2, point.images if point.k else 2)
    trained = 256 if point.k else point.images
    noise = torch.randint(256, (trained + kept, 1, point.side, point.side), generator=generator, dtype=torch.uint8)
    dataset = data.from_tensor(noise, validation=0, test=kept / len(noise))
    parts = [f"model.{part}={point.network}" for part in ("encoder", "decoder")]
    widths = [f"model.{part}.width={point.width}" for part in ("encoder", "decoder")]
    overrides = [
        *parts,
        *widths,
        f"model.latent={point.latent}",
        "train.epochs=2",
        "train.curve=none",
        "train.keep=last",
    ]
    with tempfile.TemporaryDirectory() as out:
        run = diabolo.train(
            "mnist-grey", dataset, overrides=overrides, out=Path(out) / "run", device="cpu", progress=None
        )
        if point.k:
            settings = Settings(k=point.k, images=point.images, elbo_samples=2, curve_images=0, probes=False)
            found = evaluation.evaluate(run, settings, data=dataset, device="cpu")
            emit(seconds=found["about"]["seconds"]["importance"], parameters=_parameters(run))
        else:
            epochs = [row["seconds"] for row in run.timing() if row["stage"] == "train"]
            emit(seconds=epochs[-1], parameters=_parameters(run))


def _parameters(run: Any) -> int:
    return sum(p.numel() for p in run.model().parameters())


# ------------------------------------------------------------------------------------------------ all points
def _command(point: Point) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--point", json.dumps(asdict(point))]


def cost(point: Point) -> dict[str, Any]:
    """A point with what was measured of it."""
    done = carry_out(_command(point), environment(1))
    if done.failure:
        sys.exit(f"error: {point}\n{done.failure}")
    [told] = done.lines
    each = told["seconds"] / point.images
    named = {
        "ms_an_image": 1e3 * each,
        "seconds": told["seconds"],
        "parameters": told["parameters"],
        "max_rss": done.max_rss,
    }
    return {**asdict(point), **named}


def at_once(processes: int) -> dict[str, Any]:
    """The same training so many times at once: images a second of all together."""
    with ThreadPoolExecutor(processes) as pool:
        rows = list(pool.map(cost, [replace(BASE, images=16384)] * processes))
    return {
        "processes": processes,
        "images_a_second": sum(row["images"] / row["seconds"] for row in rows),
        "seconds": [row["seconds"] for row in rows],
    }


def shared(name: str, processes: int) -> dict[str, Any]:
    """One run by so many processes: images a second in its second epoch."""
    with tempfile.TemporaryDirectory() as out:
        run = Path(out) / "run"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
        order = ["-m", "diabolo", "train", *SHARED[name], "train.epochs=2", "train.curve=none", "--device", "cpu"]
        done = carry_out([*command, *order, "--no-evaluate", "--yes", "--out", str(run)], environment(1))
        if done.failure:
            sys.exit(f"error: {name} by {processes} processes\n{done.failure}")
        seconds = _rows(run / "timing.jsonl", stage="train")[-1]["seconds"]
        images = _rows(run / "metrics.jsonl", split="train")[-1]["examples"]
    return {"run": name, "processes": processes, "images_a_second": images / seconds, "max_rss": done.max_rss}


def _rows(path: Path, **wanted: str) -> list[dict[str, Any]]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if wanted.items() <= row.items()]


def _machine() -> dict[str, Any]:
    code = "import json, torch; from diabolo.engine import environment as e; print(json.dumps(e(torch.device('cpu'))))"
    printed = subprocess.run([sys.executable, "-c", code], env=environment(1), capture_output=True, check=True).stdout
    return json.loads(printed)


def _series(name: str, points: Sequence[Point]) -> list[dict[str, Any]]:
    print(name, flush=True)
    found = []
    for point in points:
        found.append(cost(point))
        row = found[-1]
        print(f"  {point}: {row['ms_an_image']:.3g} ms/image, {(row['max_rss'] or 0) / 1e6:.0f} MB", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed" / "scaling.json")
    parser.add_argument("--quick", action="store_true", help="the first point of each series: does everything work?")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        measured(Point(**json.loads(given.point)))
        return
    if given.quick and given.out == parser.get_default("out"):
        given.out = ROOT / "runs" / "benchmarks" / "scaling.json"
    series = {name: points[:1] if given.quick else points for name, points in SERIES.items()}
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
        "quick": given.quick,
        "threads": 1,
        "cores": os.cpu_count(),
        "machine": _machine(),
    }
    found = {name: _series(name, points) for name, points in series.items()}
    counts = PROCESSES[:1] if given.quick else PROCESSES
    together = [at_once(count) for count in counts]
    one_run = [shared(name, count) for name in SHARED for count in counts]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "series": found, "processes": together, "one_run": one_run}
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"kept in {given.out}")


if __name__ == "__main__":
    main()
