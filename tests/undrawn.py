"""Reports without matplotlib: for tests of what is trained, measured and used again; tests/test_report.py has the figures."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from diabolo import plots


def undrawn(patch: pytest.MonkeyPatch) -> None:
    """Every figure of a report becomes an empty drawing with its label."""
    patch.setattr(plots, "svg", _empty)


def _empty(figure: Figure, key: str, label: str) -> str:
    return f'<svg role="img" id="{key}" aria-label="{plots._attribute(label)}"></svg>'
