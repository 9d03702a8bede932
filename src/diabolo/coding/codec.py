"""A codec: a quantiser and one table of frequencies a dimension, both fitted to the codes of the training split.

It is written once, beside the run, as JSON; a stream holds no tables, only the codec's digest. Floating-point numbers are
written so that they are read back as the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diabolo.coding import range_coder
from diabolo.coding.quantiser import MAX_LEVELS, Codes, Quantiser
from diabolo.coding.range_coder import Symbols, Table
from diabolo.errors import DataError

SCHEMA = 1
DIGEST = 16  # bytes of a SHA-256 that are kept: no two codecs share them by accident


@dataclass(frozen=True)
class Codec:
    """`weights`: SHA-256 of the weights whose codes these are, empty where there are none. tables: d of them."""

    quantiser: Quantiser
    tables: tuple[Table, ...]
    weights: str = ""

    def encode(self, symbols: Symbols) -> bytes:
        """The stream of symbols (N, d)."""
        return range_coder.encode(symbols, self.tables)

    def decode(self, stream: bytes, count: int) -> Symbols:
        """The symbols (count, d) of a stream.

        Raises:
            ValueError: if it is no stream of `count` rows.
        """
        return range_coder.decode(stream, count, self.tables)

    def ideal_bits(self, symbols: Symbols) -> float:
        """The code length sum log2(1 / p) of symbols (N, d), which no coder with these tables can undercut."""
        return math.fsum(table.bits(symbols[:, j]) for j, table in enumerate(self.tables))

    def to_json(self) -> bytes:
        """The codec as a file."""
        content = {
            "schema": SCHEMA,
            "weights_sha256": self.weights,
            "origin": self.quantiser.origin.tolist(),
            "step": self.quantiser.step.tolist(),
            "frequencies": [table.frequencies.tolist() for table in self.tables],
        }
        return (json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n").encode("ascii")

    @cached_property
    def digest(self) -> bytes:
        """What a stream names its codec by."""
        return hashlib.sha256(self.to_json()).digest()[:DIGEST]


def fit(quantiser: Quantiser, codes: Codes, weights: str = "") -> Codec:
    """The codec of a quantiser for codes like these of the training split (N, d).

    The frequency of a symbol is the number of times it occurs there, plus one, so that every symbol can be coded:
    p_k = (n_k + 1) / (N + K).
    """
    symbols = quantiser.symbols(codes)
    counts = [np.bincount(column, minlength=levels) + 1 for column, levels in zip(symbols.T, quantiser.levels)]
    return Codec(quantiser, tuple(Table(column.tolist()) for column in counts), weights)


def from_json(content: bytes, name: str) -> Codec:
    """Read the content of a codec's file; `name` is for the message.

    Raises:
        DataError: if it is none.
    """
    try:
        return _built(json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{name} is no codec", f"{type(error).__name__}: {error}") from error


def _built(found: Mapping[str, Any]) -> Codec:
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']!r} is not known, only {SCHEMA}")
    weights, rows = found["weights_sha256"], found["frequencies"]
    origin, step = (np.array([float(v) for v in found[key]]) for key in ("origin", "step"))
    if not isinstance(weights, str) or not len(origin) == len(step) == len(rows) > 0:
        raise ValueError("its parts do not fit one another")
    if not np.isfinite([origin, step]).all() or not (step > 0).all():
        raise ValueError("a step must be greater than 0, and all numbers finite")
    if not all(type(f) is int and f > 0 for row in rows for f in row) or max(map(len, rows)) > MAX_LEVELS:
        raise ValueError(f"frequencies must be whole numbers of at least 1, at most {MAX_LEVELS} a dimension")
    tables = tuple(Table(row) for row in rows)
    return Codec(Quantiser(origin, step, np.array([len(row) for row in rows])), tables, weights)
