"""Plants the bugs of teeth.toml one at a time into a copy of the package and checks that the tests catch each.

    python tools/teeth.py [--only NAME ...] [--jobs 2] [--out results/teeth.json]

A bug counts only if the program still runs with it and gives another number: tools/teeth_probe.py must end with finite
numbers, at least one of which differs from the sound copy's (or stands where that one refuses). Then one of the test files
named in teeth.toml must fail on the copy; the same files must pass on a sound copy. Exit code 1 if a bug survives or does
not count.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOLS, TESTS, SOURCE = ROOT / "tools", ROOT / "tests", ROOT / "src" / "diabolo"
#: Read once: the sound copy and every bug run the same one.
PROBE = (TOOLS / "teeth_probe.py").read_text(encoding="utf-8")
#: A planted bug may make the program slow; nothing here takes a tenth of this.
SECONDS = 600


@dataclass(frozen=True)
class Bug:
    """`old`, which stands once in `file`, becomes `new`; one of `tests` must notice. To save time the probe runs only the
    parts `probe`, and of the tests those that `select` matches (pytest -k)."""

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: Sequence[str]
    probe: Sequence[str] = ()
    select: str = ""

    def planted(self, package: Path = SOURCE) -> str:
        """The file's text with the bug.

        Raises:
            ValueError: if `old` does not stand there exactly once.
        """
        text = (package / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(f"{self.name}: its text stands {text.count(self.old)} times in {self.file}:\n{self.old}")
        return text.replace(self.old, self.new)


def bugs() -> list[Bug]:
    """The list, in its order."""
    return [Bug(**bug) for bug in tomllib.loads((TOOLS / "teeth.toml").read_text(encoding="utf-8"))["bug"]]


# ------------------------------------------------------------------------------------------------ one copy
class Copy:
    """A copy of the package in a folder of its own, with what runs on it."""

    def __init__(self, folder: Path, bug: Bug | None = None) -> None:
        self.folder, self.package = folder, folder / "src" / "diabolo"
        shutil.copytree(SOURCE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        if bug:
            (self.package / bug.file).write_text(bug.planted(self.package), encoding="utf-8")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(folder / "src"), str(TOOLS))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "TEETH_SOURCE": str(self.package),
            "TEETH_REPORT": str(folder / "failure.json"),
        }

    def _python(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
        )

    def probe(self, parts: Sequence[str] = ()) -> dict[str, Any]:
        """The numbers that the program prints; all parts where none is named.

        Raises:
            RuntimeError: if it does not end well, or another copy ran.
        """
        done = self._python("-c", PROBE, *parts)
        if done.returncode:
            raise RuntimeError(f"the program does not run: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        found = json.loads(done.stdout)
        if Path(found["source"]) != self.package:
            raise RuntimeError(f"the probe ran on {found['source']}")
        numbers: dict[str, Any] = found["numbers"]
        return numbers

    def failure(self, tests: Sequence[str], select: str = "") -> dict[str, str] | None:
        """The first test that fails; None if all pass.

        Raises:
            RuntimeError: if the tests could not be run.
        """
        words = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "teeth_watch", "--durations=0")
        done = self._python(*words, *(str(TESTS / name) for name in tests), *(("-k", select) if select else ()))
        report = Path(self.environment["TEETH_REPORT"])
        if done.returncode == 0 and not report.exists():
            return None
        if done.returncode != 1 or not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        found: dict[str, str] = json.loads(report.read_text(encoding="utf-8"))
        return found


def changed(sound: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The numbers that a bug makes wrong: finite and another than the sound copy's, or given where that one refuses. A
    number that the sound copy does not have proves nothing.

    Raises:
        RuntimeError: if one is not finite.
    """
    numbers = {name: value for name, value in found.items() if value != "refused"}
    odd = [name for name, value in numbers.items() if not math.isfinite(value)]
    if odd:
        raise RuntimeError(f"not finite: {', '.join(odd[:3])}")
    return [name for name, value in numbers.items() if name in sound and value != sound[name]]


def examine(bug: Bug, sound: dict[str, Any]) -> dict[str, Any]:
    """Plant one bug; the row of the result."""
    began = time.monotonic()
    row: dict[str, Any] = {"name": bug.name, "what": bug.what, "file": bug.file, "runs": False, "caught_by": None}
    with tempfile.TemporaryDirectory(prefix="teeth-") as folder:
        try:
            copy = Copy(Path(folder).resolve(), bug)
            found = copy.probe(bug.probe)
            wrong = changed(sound, found)
            row["runs"] = bool(wrong)
            row["wrong_numbers"] = len(wrong)
            if wrong:
                row["example"] = {"number": wrong[0], "sound": sound[wrong[0]], "planted": found[wrong[0]]}
            failure = copy.failure(bug.tests, bug.select)
            if failure:
                row |= {"caught_by": failure["test"].removeprefix("tests/"), "why": failure["why"]}
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            row["error"] = str(error)
    return {**row, "seconds": round(time.monotonic() - began, 1)}


def sound_numbers() -> dict[str, Any]:
    """What the probe prints of a sound copy."""
    with tempfile.TemporaryDirectory(prefix="teeth-") as folder:
        return Copy(Path(folder).resolve()).probe()


def sound_tests(tests: Sequence[str]) -> str:
    """Run whole test files on a sound copy, on which they must pass: "", or what fails."""
    with tempfile.TemporaryDirectory(prefix="teeth-") as folder:
        failure = Copy(Path(folder).resolve()).failure(tests)
    return f"{failure['test']}: {failure['why']}" if failure else ""


# ------------------------------------------------------------------------------------------------ the whole list
def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    return done.stdout.strip()


def about() -> dict[str, Any]:
    changes = git("status", "--porcelain", "--", "src", "tests", "tools")
    return {
        "command": "python tools/teeth.py",
        "commit": git("rev-parse", "HEAD") + (" with changes" if changes else ""),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in ("torch", "numpy", "pytest")},
    }


def write(path: Path, made: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write the result; rows of bugs that were not planted this time stay, each says of which commit it is."""
    before = json.loads(path.read_text(encoding="utf-8"))["bugs"] if path.exists() else []
    known = {row["name"]: row for row in before} | {row["name"]: {**row, "commit": made["commit"]} for row in rows}
    listed = [known[bug.name] for bug in bugs() if bug.name in known]
    caught = sum(row["runs"] and bool(row["caught_by"]) for row in listed)
    result = {**made, "planted": len(listed), "caught": caught, "bugs": listed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    verdict = "caught by " + row["caught_by"] if row["caught_by"] else "SURVIVES"
    if not row["runs"]:
        verdict = "DOES NOT COUNT: " + row.get("error", "no number differs")
    elif "error" in row:
        verdict = "ERROR: " + row["error"]
    return f"{row['name']:28} {row['seconds']:6.1f} s  {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="plant only these")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    chosen = [bug for bug in bugs() if not options.only or bug.name in options.only]
    unknown = set(options.only or ()) - {bug.name for bug in chosen}
    if unknown:
        parser.error(f"no such bug: {', '.join(sorted(unknown))}")
    made, began, tests = about(), time.monotonic(), sorted({name for bug in chosen for name in bug.tests})
    sound, rows = sound_numbers(), []
    with ThreadPoolExecutor(options.jobs) as pool:
        passing = pool.submit(sound_tests, tests)
        for done in as_completed([pool.submit(examine, bug, sound) for bug in chosen]):
            rows.append(done.result())
            print(line(rows[-1]), flush=True)
            if options.out:
                write(options.out, made, rows)
    caught = sum(row["runs"] and bool(row["caught_by"]) for row in rows)
    print(f"without a bug, {', '.join(tests)}: {passing.result() or 'all pass'}")
    took = time.monotonic() - began
    print(f"{len(rows)} bugs planted, {caught} run, give a wrong number and are caught; {took:.0f} s")
    return 0 if caught == len(rows) and not passing.result() else 1


if __name__ == "__main__":
    sys.exit(main())
