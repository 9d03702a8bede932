"""Memory of training from a packed data set: does it grow with the number of images?

Images are generated and written straight through the packing writer; each measurement is a process of its own that trains some
hundred steps of `vae` and is then stopped as by Ctrl-C. RssAnon is memory that the system cannot drop, RssFile pages of files,
which it can; both are read from /proc every few milliseconds, so a peak shorter than that may be missed. As a check of the
measurement the largest set is also trained from memory. With --png so many PNG files are packed as a folder.
Linux only. Usage: python benchmarks/packed_memory.py OUT.json [--images 100000 1000000] [--steps 300] [--png 100000]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

SHAPE, CLASSES, ROWS = (1, 16, 16), ("left", "right"), 1000
#: 80 % train, 10 % validation, 10 % test.
SHARES = {"train": 8, "validation": 1, "test": 1}
OVERRIDES = ("train.epochs=1", "train.keep=last", "train.curve=none", "train.batch=128")


def resident() -> dict[str, float]:
    """RssAnon and RssFile of this process, MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {
        key: int(rest.split()[0]) * 1024 / 1e6
        for key, _, rest in (line.partition(":") for line in lines)
        if "Rss" in key
    }


class Peak:
    """The largest resident memory while the block runs, and what it was before."""

    def __enter__(self) -> Peak:
        self.before, self.peak, self.stop = resident(), resident(), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.stop.wait(0.003):
            self.peak = {key: max(value, self.peak[key]) for key, value in resident().items()}

    def report(self) -> dict[str, float]:
        growth = {key: self.peak[key] - self.before[key] for key in ("RssAnon", "RssFile")}
        return {"anonymous_growth_mb": round(growth["RssAnon"], 1), "file_growth_mb": round(growth["RssFile"], 1)}


# ------------------------------------------------------------------------------------------------ one process each
def written(out: Path, count: int) -> dict[str, object]:
    """Noise, brighter on one side, written through the packing writer."""
    from diabolo.data.shards import About, Writer, new_folder, verify

    began, generator = time.perf_counter(), np.random.default_rng(0)
    with Peak() as peak, new_folder(out) as place, Writer(place, SHAPE, CLASSES) as writer:
        for split, share in SHARES.items():
            for _ in range(count * share // 10 // ROWS):
                labels = generator.integers(0, 2, ROWS)
                levels = generator.integers(0, 200, (ROWS, *SHAPE), dtype=np.uint8)
                levels[..., 0] += (50 * labels[:, None, None]).astype(np.uint8)
                writer.add(split, levels, labels)
        index = writer.close(About(name="generated", note="generated"))
    packed, began = time.perf_counter() - began, time.perf_counter()
    verify(out)
    checked = time.perf_counter() - began
    return {
        "images": index.images,
        "bytes": index.bytes,
        "seconds": round(packed, 2),
        "check_seconds": round(checked, 2),
    } | (peak.report())


def png(out: Path, count: int) -> dict[str, object]:
    """Real PNG files, packed as a folder."""
    from PIL import Image

    from diabolo.data.access import Access
    from diabolo.data.packing import pack
    from diabolo.progress import Progress

    folder, generator = out.with_name("png"), np.random.default_rng(0)
    for i in range(count):
        place = folder / f"{i % 100:02d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, SHAPE[1:], dtype=np.uint8)).save(place / f"{i:07d}.png")
    began = time.perf_counter()
    with Peak() as peak:
        params = {"path": str(folder), "size": SHAPE[1], "colour": "auto"}
        index = pack("folder", params, out, Access(say=lambda text: None), Progress())
    return {
        "images": index.images,
        "bytes": index.bytes,
        "seconds": round(time.perf_counter() - began, 2),
        **peak.report(),
    }


def trained(packed: Path, steps: int, in_memory: bool) -> dict[str, object]:
    """Some steps of training, memory counted from before the data are opened; then an evaluation of the test split."""
    from diabolo import data, evaluation, training
    from diabolo.config import resolve
    from diabolo.progress import Progress
    from diabolo.session import InterruptedRun

    class Stopping(Progress):
        done = 0

        def advance(self, units: int = 1, note: str = "") -> None:
            self.done += units
            if self.done == steps:
                os.kill(os.getpid(), signal.SIGINT)

    warm = ["train.smoke=true", *OVERRIDES, "data=digits"]
    training.train(resolve("vae", warm).config, out=packed.with_name(f"warm-{os.getpid()}"), device="cpu")
    run, config = packed.with_name(f"run-{os.getpid()}"), resolve("vae", [*OVERRIDES, f"data=packed:{packed}"]).config
    with Peak() as peak:
        began = time.perf_counter()
        dataset = data.load(config.data.name, config.data.params)
        opening = time.perf_counter() - began
        if in_memory:
            splits = {name: getattr(dataset, name) for name in SHARES}
            dataset = replace(
                dataset,
                **{
                    name: replace(s, values=s.values.clone(), labels=s.labels.clone(), mapped=False)
                    for name, s in splits.items()
                },
            )
        began = time.perf_counter()
        with suppress(InterruptedRun):
            training.train(config, out=run, data=dataset, device="cpu", progress=Stopping())
        training_seconds = time.perf_counter() - began
    found = {"in_memory": in_memory, "open_seconds": round(opening, 4), "train_seconds": round(training_seconds, 2)}
    found |= {"steps": json.loads((run / "status.json").read_text(encoding="utf-8"))["step"], "training": peak.report()}
    settings = evaluation.Settings(k=10, images=20, elbo_samples=2, curve_images=0, probes=False)
    with Peak() as peak:
        began = time.perf_counter()
        evaluation.evaluate(run, settings, data=dataset, device="cpu")
    return found | {"evaluation": {"seconds": round(time.perf_counter() - began, 2), **peak.report()}}


# ------------------------------------------------------------------------------------------------ all of them
def child(*words: object) -> dict[str, object]:
    command = [sys.executable, __file__, "--child", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--png", type=int, default=0)
    given = parser.parse_args()
    import torch

    result: dict[str, object] = {
        "command": f"python benchmarks/packed_memory.py OUT.json --png {given.png}",
        "machine": f"{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}, numpy {np.__version__}",
        "threads": torch.get_num_threads(),
        "shape": SHAPE,
        "unit": "MB of 10^6 bytes, growth over what it was before the data were opened",
        "sets": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for count in given.images:
            place = Path(folder) / f"packed-{count}"
            row = {"written": child("written", place, count), "packed": child("trained", place, given.steps, False)}
            if count == max(given.images):
                row["from_memory"] = child("trained", place, given.steps, True)
            result["sets"].append(row)
        if given.png:
            result["png_folder"] = child("png", Path(folder) / "packed-png", given.png)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def one(kind: str, place: str, number: str, flag: str = "False") -> None:
    work = {"written": written, "png": png}.get(kind)
    found = work(Path(place), int(number)) if work else trained(Path(place), int(number), flag == "True")
    print(json.dumps(found))


if __name__ == "__main__":
    one(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
