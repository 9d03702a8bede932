"""The list of bugs that tools/teeth.py plants has not rotted. That the tests catch them is what `make teeth` shows."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import teeth  # noqa: E402

BUGS = {bug.name: bug for bug in teeth.bugs()}
RESULT = ROOT / "results" / "teeth.json"


@pytest.mark.parametrize("name", BUGS)
def test_every_planted_text_stands_in_the_source_once_and_becomes_python(name):
    bug = BUGS[name]
    ast.parse(bug.planted())
    assert bug.tests and all((teeth.TESTS / test).is_file() for test in bug.tests)


def test_names_are_unique_and_a_text_that_is_not_there_once_is_refused():
    assert len(BUGS) == len(teeth.bugs()) >= 24
    for old in ("no such text", "import"):
        with pytest.raises(ValueError, match="times in metrics.py"):
            teeth.Bug("x", "", "metrics.py", old, "", ()).planted()


def test_what_counts_as_a_wrong_number():
    sound = {"a": 1.0, "b": 2.0, "c": "refused", "d": "refused"}
    assert teeth.changed(sound, {"a": 1.0, "b": 2.5, "c": 3.0, "d": "refused"}) == ["b", "c"]
    assert teeth.changed(sound, {**sound, "a": "refused"}) == [], "a refusal is no wrong number"
    assert teeth.changed(sound, {**sound, "e": 1.0}) == [], "nothing to compare it with"
    with pytest.raises(RuntimeError, match="not finite: a"):
        teeth.changed(sound, {**sound, "a": float("nan")})


def test_the_committed_result_is_of_this_list_and_every_bug_was_caught():
    rows = {row["name"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))["bugs"]}
    assert list(rows) == list(BUGS)
    for name, row in rows.items():
        assert row["runs"] and row["wrong_numbers"] > 0, name
        assert row["example"]["sound"] is not None and row["example"]["planted"] != row["example"]["sound"], name
        file, _, test = row["caught_by"].partition("::")
        assert file in BUGS[name].tests
        assert f"def {test.partition('[')[0]}(" in (teeth.TESTS / file).read_text(encoding="utf-8"), row["caught_by"]
