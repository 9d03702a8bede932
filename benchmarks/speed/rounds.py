"""Carrying the rows out: a process each, fresh, one after another, A B C A B C, the hardware's peak measured around each.

This process imports no torch, so that it is small and idle while a row runs, and a row's peak memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.jobs import Job, Row, Sizes
from benchmarks.speed.numbers import differ

ROOT = Path(__file__).parents[2]
#: A row that takes longer has hung.
_LIMIT_SECONDS = 1800.0
#: Rounds that are dropped are made up for by at most so many more.
MORE_ROUNDS = 2


@dataclass
class Done:
    """What became of one process: its lines of JSON, wall seconds, peak memory in bytes (None where the system does not tell),
    and the end of what it said on stderr where it failed."""

    lines: list[dict[str, Any]]
    wall: float
    max_rss: int | None
    failure: str | None


def environment(threads: int, *paths: Path) -> dict[str, str]:
    """A row's environment: as many threads as every other row's, this project to be imported, `paths` behind it."""
    found = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), *map(str, paths)]
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(found)}


def carry_out(command: Sequence[str], env: Mapping[str, str]) -> Done:
    """Run one process to its end."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        )
        late = threading.Timer(_LIMIT_SECONDS, child.kill)
        late.start()
        printed = child.stdout.read().decode("utf-8", "replace")
        max_rss = _wait(child)
        late.cancel()
        wall = time.perf_counter() - began
        said.seek(0)
        last = said.read().decode("utf-8", "replace").strip().splitlines()[-8:]
    child.stdout.close()
    failed = f"exit code {child.returncode}: " + "\n".join(last) if child.returncode else None
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return Done(lines, wall, max_rss, failed)


def _wait(child: subprocess.Popen[bytes]) -> int | None:
    """Wait for a process; its peak memory in bytes, or that of its largest child."""
    if not hasattr(os, "wait4"):
        child.wait()
        return None
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Floor(AbstractContextManager["Floor"]):
    """The process that measures what the hardware allows, whenever it is asked."""

    def __init__(self, threads: int, sizes: Sizes) -> None:
        command = [sys.executable, "-m", "benchmarks.speed.floor", str(sizes.product), str(sizes.products)]
        self.child = subprocess.Popen(
            command, env=environment(threads), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
        self.measure()  # the first products pay for the start of the threads

    def measure(self) -> dict[str, float]:
        """GFLOP/s by precision, now."""
        print(file=self.child.stdin, flush=True)
        return json.loads(self.child.stdout.readline())

    def __exit__(self, *error: object) -> None:
        self.child.stdin.close()
        self.child.wait()
        self.child.stdout.close()


@dataclass
class Rounds:
    """The rounds of one job. `missing`: why a row is not there."""

    job: Job
    floor: Floor
    threads: int
    folder: Path
    peer: Path | str  # the folder that pythae is in, or why it is not there
    done: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def run(self, count: int) -> None:
        """Until so many rounds count, or the spare ones are used up too."""
        for name, row in self.job.rows.items():
            if row.peer and isinstance(self.peer, str):
                self._leave_out(name, self.peer)
        most = count + (MORE_ROUNDS if count > 1 else 0)
        while len(self.done) < most and sum(not differ(one["peaks"]) for one in self.done) < count:
            self.done.append(self._round(len(self.done) + 1))

    def _round(self, number: int) -> dict[str, Any]:
        floors, rows = [self.floor.measure()], {}
        for name, row in self.job.rows.items():
            if name in self.missing:
                continue
            told = self._row(name, row, number)
            floors.append(self.floor.measure())
            if told:
                highest = {key: max(floor[key] for floor in floors[-2:]) for key in floors[-1]}
                rows[name] = {**told, "peak": highest}
        peaks = [floors[0]["fp32"], floors[-1]["fp32"]]
        dropped = "; dropped: the peaks differ" if differ(peaks) else ""
        print(f"  round {number}: GEMM peak {peaks[0]:.0f} and {peaks[1]:.0f} GFLOP/s{dropped}", flush=True)
        return {"round": number, "peaks": peaks, "floors": floors, "rows": rows}

    def _row(self, name: str, row: Row, number: int) -> dict[str, Any] | None:
        env = environment(self.threads, *([self.peer] if row.peer else []))
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            processes = [carry_out(command, env) for command in row.commands(number - 1, Path(out))]
        failures = [one.failure for one in processes if one.failure]
        lines = [line for one in processes for line in one.lines]
        skipped = [line["skipped"] for line in lines if "skipped" in line]
        if failures or skipped:
            return self._leave_out(name, f"failed: {failures[0]}" if failures else skipped[0])
        if row.kind == "wall":
            lines = [{"wall": one.wall} for one in processes]
        sizes = [one.max_rss for one in processes if one.max_rss]
        wall = sum(one.wall for one in processes)
        print(f"    {name:18} {wall:6.1f} s of wall time", flush=True)
        return {"lines": lines, "wall": round(wall, 3), "max_rss": max(sizes, default=None)}

    def _leave_out(self, name: str, why: str) -> None:
        self.missing[name] = why
        print(f"    {name:18} left out: {why}", flush=True)

    def record(self) -> dict[str, Any]:
        """What bench.json keeps of the job."""
        return {
            "unit": self.job.unit,
            "rows": {name: row.facts() for name, row in self.job.rows.items()},
            "missing": self.missing,
            "checks": list(self.job.checks),
            "targets": list(self.job.targets),
            "rounds": self.done,
        }
