"""Run the CIFAR-10 chapter on the real images, check what was known beforehand, and keep what was measured in results/cifar10.

    python tools/verify_cifar.py --out results/cifar10 [--plan normal|full|locality|quick] [--runs runs/reproduce/cifar10]

Leaves with 1 if a check fails; the result is written either way. CI never runs this: it needs the 139 MB of CIFAR-10.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diabolo.engine import environment, pick_device
from diabolo.runs import Run, write_json

ROOT = Path(__file__).parent.parent
#: Bounds of the chapter on two cores: minutes, bytes.
MINUTES = {"normal": 45.0, "quick": 6.0}
MEMORY = 3e9
#: Test NLL in nats/image, bits/dim, rate and PSNR of the projection, of closed-form Gaussians at x = k/255: computed once
#: by a program of its own from the 50,000 and the 10,000 images. None: not given.
KNOWN: dict[str, tuple[float, float, float | None, float | None]] = {
    "pPCA, q = 20, sigma^2 = 1/2": (1836.82, 8.8626, 19.8, 17.99),
    "pPCA, q = 256, sigma^2 = 1/2": (1835.57, 8.8620, 23.4, None),
    "pPCA, q = 20, ML sigma": (-1940.79, 7.0886, 54.2, 17.99),
    "pPCA, q = 64, ML sigma": (-2803.51, 6.6834, 148.7, 20.76),
    "pPCA, q = 128, ML sigma": (-3418.29, 6.3947, 272.2, 22.94),
    "pPCA, q = 256, ML sigma": (-4138.29, 6.0565, 505.0, 25.82),
    "pPCA, q = 512, ML sigma": (-4986.48, 5.6582, 963.8, 29.92),
    "pPCA, q = 1024, ML sigma": (-5981.68, 5.1908, 1965.8, 36.48),
    "full covariance": (-7177.72, 4.6291, None, None),
}


class Memory(threading.Thread):
    """The largest memory that a process and its descendants held together, sampled every other second (Linux; elsewhere 0)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.over = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(2):
            self.peak = max(self.peak, sum(map(_resident, _family(self.pid))))


def _family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(after[1]), []).append(int(status.parent.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def _resident(pid: int) -> int:
    """Proportional set size: a page that two processes share counts half for each."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def chapter(plan: str, out: Path) -> dict[str, Any]:
    """Run the chapter in a process of its own: what it printed as JSON, wall seconds, peak memory."""
    flags = [] if plan == "normal" else [f"--{plan}"]
    command = [sys.executable, "-m", "diabolo", "reproduce", "cifar10", *flags, "--out", str(out), "--yes", "--json"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", cwd=ROOT) as child:
        memory = Memory(child.pid)
        memory.start()
        printed = child.communicate()[0]
        memory.over.set()
    if child.returncode:
        sys.exit(child.returncode)
    return {**json.loads(printed), "seconds": time.monotonic() - began, "memory": memory.peak}


def checks(plan: str, done: Mapping[str, Any], measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each check with what was expected, what was found, and whether they agree."""
    found = []
    lines = {line["name"]: line for line in measures["linear"]["grid"]}
    for name, known in KNOWN.items():
        line = lines[name]
        measured = (line["nll"], line["bits_per_dim"], line["rate"], line["psnr_projection"])
        for what, expected, value, digits in zip(
            ("nll", "bits_per_dim", "rate", "psnr"), known, measured, (2, 4, 1, 2), strict=True
        ):
            if expected is not None:
                found.append(_check(f"{name}: {what}", expected, value, abs(value - expected) <= 0.5001 * 10**-digits))
    whole = not done["reused"]
    if plan in MINUTES and whole:
        minutes = done["seconds"] / 60
        found.append(_check("wall minutes at most", MINUTES[plan], minutes, minutes <= MINUTES[plan]))
    if whole and done["memory"]:
        found.append(_check("bytes of memory at most", MEMORY, done["memory"], done["memory"] <= MEMORY))
    return found


def _check(name: str, expected: float, value: float, passed: bool) -> dict[str, Any]:
    return {"check": name, "expected": expected, "found": value, "passed": bool(passed)}


def _commit() -> str:
    described = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    return subprocess.run(described, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cifar10")
    parser.add_argument("--plan", choices=("normal", "full", "locality", "quick"), default="normal")
    parser.add_argument("--runs", type=Path)
    given = parser.parse_args()
    runs = given.runs or ROOT / "runs" / ("quick" if given.plan == "quick" else "reproduce") / "cifar10"
    done = chapter(given.plan, runs)
    measures = json.loads((runs / "measures.json").read_text(encoding="utf-8"))
    found = checks(given.plan, done, measures)
    given.out.mkdir(parents=True, exist_ok=True)
    suffix = "" if given.plan == "normal" else f"-{given.plan}"
    if given.plan in {"full", "locality"}:
        write_json(given.out / f"measures{suffix}.json", measures)
        write_json(given.out / f"evaluations{suffix}.json", done["runs"])
    write_json(
        given.out / f"verification{suffix}.json",
        {
            "command": f"python tools/verify_cifar.py --plan {given.plan}",
            "commit": _commit(),
            "environment": {**environment(pick_device("cpu")), "threads": "one a run, one run a core"},
            "seconds": done["seconds"],
            "used_again": len(done["reused"]),
            "peak_memory": done["memory"],
            "seconds_by_run": {name: _seconds(Run(runs / name)) for name in done["runs"]},
            "checks": found,
        },
    )
    failed = [check for check in found if not check["passed"]]
    for check in failed:
        print(f"FAILED {check['check']}: expected {check['expected']}, found {check['found']}")
    print(f"{len(found) - len(failed)} of {len(found)} checks passed in {done['seconds']:.0f} s; kept in {given.out}")
    return 1 if failed else 0


def _seconds(run: Run) -> float:
    """Wall seconds of a run's training and evaluation."""
    trained = sum(row["seconds"] for row in run.timing())
    return round(trained + sum(run.evaluation()["about"]["seconds"].values()), 1)


if __name__ == "__main__":
    sys.exit(main())
