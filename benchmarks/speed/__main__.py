"""diabolo beside the article's script, eager tensors and pythae: interleaved rounds in one run, kept in results/speed/bench.json.

    python -m benchmarks.speed [--jobs a,c] [--rounds 3] [--threads N] [--workers] [--out FILE] [--quick | --show]

Jobs: a Model 1 and the three models together, b convolutional VAE, c log p(x), d time to a test loss, e start-up; peak memory
(f) is that of every row. Jobs may be run in several pieces: each is put into the same file. Leaves with 1 if a row failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.speed.jobs import JOBS, LETTERS, QUICK, REAL, Job, Sizes
from benchmarks.speed.numbers import summary
from benchmarks.speed.peer import VERSION, installed
from benchmarks.speed.rounds import ROOT, Floor, Rounds, carry_out, environment

SCHEMA = 1
RESULTS = ROOT / "results" / "speed" / "bench.json"


def names(text: str) -> list[str]:
    """The jobs that letters or names ask for, in the order of running.

    Raises:
        ValueError: for anything else.
    """
    wanted = set()
    for word in text.split(","):
        if word not in JOBS and word not in LETTERS:
            raise ValueError(f"no job {word!r}; one of {', '.join([*LETTERS, *JOBS])}")
        wanted.update(LETTERS.get(word, (word,)))
    return [name for name in JOBS if name in wanted]


def cores() -> int:
    """How many cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _prepared(folder: Path, jobs: Mapping[str, Job], sizes: Sizes, threads: int) -> dict[str, Any]:
    """Arithmetic and machine; the files that the rows read are in the folder then."""
    data = sorted({name for job in jobs.values() for name in job.data})
    log_p = {"overrides": list(sizes.log_p_run), "images": sizes.log_p_images}
    orders = {"folder": str(folder), "data": data, "log_p": log_p if any(job.log_p for job in jobs.values()) else None}
    command = [sys.executable, "-m", "benchmarks.speed.prepare", "prepare", json.dumps(orders)]
    done = carry_out(command, environment(threads))
    if done.failure:
        sys.exit(
            f"error: the images or the model cannot be prepared\n{done.failure}\nGet the data with: diabolo data get mnist"
        )
    return done.lines[-1]


def _built(
    chosen: Sequence[str], folder: Path, sizes: Sizes, flops: Mapping[str, float], workers: bool
) -> dict[str, Job]:
    return {name: JOBS[name](folder, sizes, flops, workers) for name in chosen}


def _commit() -> str:
    """The version of the source, and whether it was changed since."""
    described = [
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, encoding="utf-8", check=False).stdout.strip()
        for words in (["rev-parse", "--short=7", "HEAD"], ["status", "--porcelain", "--", "src", "benchmarks"])
    ]
    return described[0] + ("-dirty" if described[1] else "")


def measure(chosen: Sequence[str], sizes: Sizes, threads: int, rounds: int | None, workers: bool, out: Path) -> bool:
    """Run the jobs one after another and put each into the file as it is done; whether no row failed."""
    sound = True
    with tempfile.TemporaryDirectory() as place, Floor(threads, sizes) as floor:
        folder, nothing = Path(place), dict.fromkeys(("model1", "model2", "model3", "cifar10", "draw"), 0.0)
        facts = _prepared(folder, _built(chosen, folder, sizes, nothing, workers), sizes, threads)
        jobs = _built(chosen, folder, sizes, facts["arithmetic"], workers)
        peer = installed() if any(row.peer for job in jobs.values() for row in job.rows.values()) else ""
        for name, job in jobs.items():
            print(f"{name} ({job.letter}), {job.unit}", flush=True)
            began = datetime.now(UTC)
            work = Rounds(job, floor, threads, folder, peer)
            work.run(rounds or job.rounds or sizes.rounds if sizes is REAL else 1)
            about = {
                "date": began.isoformat(timespec="seconds"),
                "minutes": round((datetime.now(UTC) - began).total_seconds() / 60, 2),
                "command": " ".join(["python -m benchmarks.speed", *sys.argv[1:]]),
                "commit": _commit(),
                "quick": sizes is not REAL,
                "sizes": asdict(sizes),
                "threads": threads,
                "pythae": VERSION,
                "machine": facts["environment"],
            }
            record = {"letter": job.letter, "about": about, **work.record()}
            put(out, name, {**record, "summary": summary(record)})
            show(name, json.loads(out.read_text(encoding="utf-8"))["jobs"][name])
            sound = sound and not any(why.startswith("failed") for why in work.missing.values())
    return sound


def put(out: Path, name: str, record: Mapping[str, Any]) -> None:
    """Put a job into the file, in place of what it holds of that job."""
    content = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"schema": SCHEMA, "jobs": {}}
    content["jobs"] = {key: value for key in JOBS if (value := record if key == name else content["jobs"].get(key))}
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    new.replace(out)


def show(name: str, record: Mapping[str, Any]) -> None:
    """A job's numbers as lines of text."""
    found, about = record["summary"], record["about"]
    rounds = "{kept} rounds count, {dropped} dropped".format(**found["rounds"])
    print(f"\n{name}: {record['unit']}; median (least to largest), {rounds}")
    for precision, took in found["floor"].items():
        if took:
            print(f"  {'floor, ' + precision:18} {_shown(took)}")
    for key, row in found["rows"].items():
        share = f"  {100 * row['share']['median']:.0f} % of the peak" if row["share"] else ""
        memory = f"  {row['memory'] / 1e6:.0f} MB" if row["memory"] else ""
        head = f"  first {row['first']['median']:.3g}" if row["first"] else ""
        took = f"{_shown(row['seconds'])}{head}{share}{memory}" if row["seconds"] else _absent(row)
        print(f"  {key:18} {took}")
    for one in found["ratios"]:
        print(
            f"  {one['slow']} / {one['fast']}: {one['of_medians']:.2f} of medians, {_shown(one['in_round'])} in the round"
        )
    for check in found["checks"]:
        verdict = "as it should be" if check["passed"] else "NOT AS IT SHOULD BE"
        print(f"  {check['what']}: {' and '.join(check['rows'])} {check['apart']:.3f} apart, {verdict}")
    for target in found["targets"]:
        met = {True: "met", False: "not met", None: "not measured"}[target["met"]]
        reached = "" if target["found"] is None else f" ({target['found']:.2f})"
        print(f"  target {target['kind']} {' / '.join(target['rows'])} {target['bound']}: {met}{reached}")
    quick = ", QUICK: the numbers mean nothing" if about["quick"] else ""
    print(f"  {about['date']}, {about['threads']} threads, {about['commit']}{quick}\n")


def _shown(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.3g} ({spread['min']:.3g} to {spread['max']:.3g})"


def _absent(row: Mapping[str, Any]) -> str:
    return row["missing"] or "no number: the target was not reached, or no round counts"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", default="a,b,c,d,e", help="letters or names, with commas between them")
    parser.add_argument("--rounds", type=int, help="rounds that are to count")
    parser.add_argument("--threads", type=int, default=cores(), help="of every row (OMP_NUM_THREADS); every core")
    parser.add_argument("--workers", action="store_true", help="the script with two loading processes, too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="one round of a few steps: does everything work?")
    parser.add_argument("--show", action="store_true", help="print what the file holds, measure nothing")
    given = parser.parse_args()
    try:
        chosen = names(given.jobs)
    except ValueError as error:
        parser.error(str(error))
    out = given.out or (ROOT / "runs" / "benchmarks" / "quick.json" if given.quick else RESULTS)
    if given.show:
        for name, record in json.loads(out.read_text(encoding="utf-8"))["jobs"].items():
            if name in chosen:
                show(name, record)
        return 0
    sound = measure(chosen, QUICK if given.quick else REAL, given.threads, given.rounds, given.workers, out)
    drawn = carry_out([sys.executable, "-m", "benchmarks.speed.figure", str(out)], environment(1))
    picture = (
        f"drawn in {out.with_suffix('.svg')}" if drawn.lines == [{"drawn": True}] else "no row has a number to draw"
    )
    print(drawn.failure or f"kept in {out}; {picture}")
    return 0 if sound and not drawn.failure else 1


if __name__ == "__main__":
    sys.exit(main())
