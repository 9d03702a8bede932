"""Fixtures that several test files share."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: several test processes share the cores

import pytest

from diabolo.data import Access, sources
from diabolo.errors import DataError


@pytest.fixture(scope="session")
def mnist_cache() -> Access:
    """Access to a cache that holds the real MNIST; skips where it cannot be had, and fails instead in CI."""
    try:
        sources.get("mnist", Access())
    except DataError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"MNIST is needed here and cannot be had:\n{error}")
        pytest.skip(f"MNIST CANNOT BE HAD, NOT TESTED:\n{error}")
    return Access(offline=True)
