"""How a row tells what it measured: one line of JSON on stdout for each piece."""

from __future__ import annotations

import json
import sys
from typing import Any


def emit(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def skip(reason: str) -> None:
    """Leave: this row cannot be measured here, and why."""
    emit(skipped=reason)
    sys.exit(0)


def orders() -> dict[str, Any]:
    """What the row was asked to do: the JSON object behind its name on the command line."""
    return json.loads(sys.argv[2])
