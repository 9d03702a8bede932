"""A script that stands in for a registry's client (npm, apt-get): it logs how it was called, then delivers or fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

_SCRIPT = """#!{python}
import json, os, pathlib, sys
pathlib.Path({log!r}).open("a").write(json.dumps([sys.argv[1:], os.getcwd()]) + "\\n")
if {fails}:
    sys.exit({refusal!r})
kept = pathlib.Path({kept!r}).read_bytes()
{deliver}
"""


def stand_in(
    folder: Path, monkeypatch, name: str, kept: bytes, deliver: str, refusal: str, fails: bool
) -> Callable[[], list[list]]:
    """Put a script `name`, which runs `deliver` on the bytes `kept`, alone on the PATH; returns a reader of its calls."""
    script, log, stored = folder / "bin" / name, folder / f"{name}.log", folder / f"{name}.kept"
    stored.write_bytes(kept)
    script.parent.mkdir()
    words = {"python": sys.executable, "log": str(log), "fails": fails, "refusal": refusal, "kept": str(stored)}
    script.write_text(_SCRIPT.format(deliver=deliver, **words), encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    return lambda: [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
