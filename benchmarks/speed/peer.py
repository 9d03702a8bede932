"""pythae for the benchmark alone: in a folder of its own that only its rows import from, beside the project's torch and NumPy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.speed.rounds import ROOT

VERSION = "0.1.2"
#: Exactly these, and nothing that they would pull in: torch, NumPy, SciPy and scikit-learn are the project's.
PACKAGES = (
    f"pythae=={VERSION}",
    "imageio==2.38.1",
    "pydantic==2.14.4",
    "pydantic-core==2.50.5",
    "annotated-types==0.8.0",
    "typing-inspection==0.4.5",
    "typing-extensions==4.16.0",
    "cloudpickle==3.1.3",
    "tqdm==4.70.1",
)


def installed() -> Path | str:
    """The folder that pythae is in, installed on first use; why not, where that fails."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folder = ROOT / "runs" / "benchmarks" / f"pythae-{VERSION}-{tag}"
    if folder.is_dir():
        return folder
    print(f"installing pythae {VERSION} into {folder} (for the benchmark only)", flush=True)
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(unfinished), *PACKAGES]
    done = subprocess.run(pip, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return f"pythae {VERSION} cannot be installed: {' '.join(last)}"
    unfinished.rename(folder)
    return folder
