"""Install the project and its development tools into the running environment, at the versions of requirements.lock.

A torch that is there and in the range of pyproject.toml is kept.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"


def installed_torch() -> str | None:
    """The version of an installed torch in range, or None."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return None
    major, minor = (int(part) for part in found.split(".")[:2])
    return found if (2, 8) <= (major, minor) < (3, 0) else None


def constraints(kept: str | None) -> Path:
    """The lock file, with the kept torch instead of its own."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    if kept:
        lines = [f"torch=={kept}" if line.startswith("torch==") else line for line in lines]
    path = Path(sys.prefix) / "constraints.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main() -> int:
    """Run pip once; its messages are shown if it fails."""
    kept = installed_torch()
    if kept:
        print(f"keeping torch {kept}", flush=True)
    elif sys.platform == "linux" and shutil.which("nvidia-smi") is None:
        print(
            "no NVIDIA driver here: where pip finds no CPU build it takes torch with about 3 GB of CUDA libraries;",
            flush=True,
        )
        print("README.md, 'Installation', says how to avoid them", flush=True)
    print("installing diabolo and its development tools (one or two minutes)", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        str(constraints(kept)),
        "--editable",
        ".[dev,dist]",
    ]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        print("error: the dependencies could not be installed; pip says why above", file=sys.stderr)
        print(
            "Without a network, or behind a proxy, set pip up first; then run the same command again.", file=sys.stderr
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
