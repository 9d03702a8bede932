"""Kills a training run with SIGKILL many times and checks that it comes out as if nothing had happened.

    python tools/soak.py [--kills 50] [--out results/soak.json]

The test is that of tests/test_reliability.py, with a longer run. A kill counts only if a step was logged since the last resume
and the run had not ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import teeth

TEST = "tests/test_reliability.py::test_a_run_killed_again_and_again_is_the_uninterrupted_one"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = (
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout=7200",
            "-o",
            "junit_family=xunit1",
            f"--junitxml={report}",
            TEST,
        )
        environment = {**os.environ, "DIABOLO_KILLS": str(options.kills)}
        done = subprocess.run([sys.executable, *words], cwd=teeth.ROOT, env=environment, check=False)
        if done.returncode:
            return done.returncode
        properties = ElementTree.parse(report).iter("property")
        steps = next(json.loads(p.attrib["value"]) for p in properties if p.attrib["name"] == "killed_at_steps")
    seconds = round(time.monotonic() - began, 1)
    print(f"{len(steps)} kills counted, the run is the uninterrupted one to the bit; {seconds:.0f} s")
    if options.out:
        about = {**teeth.about(), "command": "python tools/soak.py", "test": TEST}
        result = {**about, "kills": len(steps), "identical": True, "seconds": seconds, "killed_at_steps": steps}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
