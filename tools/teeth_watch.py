"""A pytest plugin for `tools/teeth.py`: refuses to test another copy of the package, and writes the first failure to a file.

Environment: TEETH_SOURCE, the folder that diabolo must come from; TEETH_REPORT, the file to write.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import diabolo


def pytest_sessionstart(session: pytest.Session) -> None:
    source = Path(diabolo.__file__).parent
    if source != Path(os.environ["TEETH_SOURCE"]):
        pytest.exit(f"the tests would run on {source}", returncode=90)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    path = Path(os.environ["TEETH_REPORT"])
    if report.failed and not path.exists():
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message.splitlines()[0][:200] if crash and crash.message else ""
        path.write_text(json.dumps({"test": report.nodeid, "when": report.when, "why": why}), encoding="utf-8")
