r"""A range coder with static models: integers in, bytes out, and exactly the same integers back.

A message is a point in [0, 1). Each symbol k of an alphabet with frequencies f (total T) narrows the interval [low, low + span)
to the share f_k / T of it that starts at F_k = f_0 + ... + f_{k-1}:

.. math:: low \leftarrow low + F_k \lfloor span / T \rfloor, \qquad span \leftarrow f_k \lfloor span / T \rfloor

Whenever span falls below 2^56, the 32 leading bits of low are written and both are shifted up. A carry into what has been
written is kept in the word and resolved once, at the end, so that no bits have to be held back.

What it costs: span is at least 2^56 and T at most 2^32, so the rounding of span / T wastes less than 2^-23 bits a symbol
(2^-39 with T = 60,000); the end takes less than 1 byte more than the point needs. A stream is therefore longer than the ideal
code length sum_i log2(T / f_k) by less than 2 bytes + 2^-23 bits a symbol.

Reference: Martin, Range encoding: an algorithm for removing redundancy from a digitised message (1979).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain, repeat

import numpy as np
from numpy.typing import NDArray

_WORD, _LEAST = 32, 56  # bits written at once; span stays at or above 2^_LEAST
_STATE = (_WORD + _LEAST) // 8  # bytes of low
_MASK = (1 << _LEAST) - 1
#: The largest total of a table.
MAX_TOTAL = 1 << 32

Symbols = NDArray[np.int64]


class Table:
    """The frequencies of one alphabet: `frequencies` (K,), integers of at least 0 with a sum between 1 and `MAX_TOTAL`.

    A symbol of frequency 0 cannot be coded.

    Raises:
        ValueError: for anything else.
    """

    def __init__(self, frequencies: Sequence[int]) -> None:
        values = [int(f) for f in frequencies]
        if not values or min(values) < 0 or not 0 < sum(values) <= MAX_TOTAL:
            raise ValueError(f"frequencies must be at least 0, their sum between 1 and {MAX_TOTAL:,}")
        self.frequencies = np.array(values, dtype=np.int64)
        self.total = sum(values)
        self.starts = [0, *accumulate(values)]  # (K + 1,)

    def bits(self, symbols: Symbols) -> float:
        """The ideal code length sum_i log2(T / f_i) of symbols (N,)."""
        counts = np.bincount(symbols, minlength=len(self.frequencies))
        used = counts > 0
        lengths = np.log2(self.total) - np.log2(self.frequencies[used].astype(np.float64))
        return float(counts[used] @ lengths)


def encode(symbols: Symbols, tables: Sequence[Table]) -> bytes:
    """The stream of symbols (N, d), column j with tables[j], row after row.

    Raises:
        ValueError: for a symbol that its table does not have, or has with frequency 0.
    """
    low, span = 0, 1 << (_WORD + _LEAST)
    words: list[int] = []
    for start, width, total in zip(*_intervals(symbols, tables)):
        step = span // total
        low += start * step
        span = width * step
        if span <= _MASK:  # once is enough: width >= 1 leaves span >= 2^24
            words.append(low >> _LEAST)
            low = (low & _MASK) << _WORD
            span <<= _WORD
    return _written(words, *_ending(low, span))


def _intervals(symbols: Symbols, tables: Sequence[Table]) -> tuple[list[int], list[int], list[int]]:
    """F_k, f_k and T of each symbol, in the order of coding."""
    if symbols.ndim != 2 or symbols.shape[1] != len(tables):
        raise ValueError(f"{len(tables)} tables do not fit symbols of shape {symbols.shape}")
    starts, widths = np.empty(symbols.shape, np.int64), np.empty(symbols.shape, np.int64)
    for j, table in enumerate(tables):
        column = symbols[:, j]
        if column.size and not 0 <= column.min() <= column.max() < len(table.frequencies):
            raise ValueError(f"column {j} holds a symbol outside 0..{len(table.frequencies) - 1}")
        starts[:, j], widths[:, j] = np.array(table.starts)[column], table.frequencies[column]
    if widths.size and widths.min() == 0:
        raise ValueError("a symbol of frequency 0 cannot be coded")
    totals = [table.total for table in tables] * len(symbols)
    return starts.ravel().tolist(), widths.ravel().tolist(), totals


def _ending(low: int, span: int) -> tuple[int, int]:
    """The number in [low, low + span) with the fewest bytes that are not 0 at its end, and how many bytes those are."""
    for count in range(_STATE + 1):
        spare = 8 * (_STATE - count)
        value = -(-low >> spare) << spare  # low, rounded up
        if value < low + span:
            return value, count
    raise AssertionError("low itself lies in the interval")


def _written(words: list[int], last: int, count: int) -> bytes:
    """The words and the first `count` bytes of `last` as bytes, with all carries added."""
    carry, last = divmod(last, 1 << (_WORD + _LEAST))
    resolved = np.empty(len(words), dtype=">u4")
    for i in range(len(words) - 1, -1, -1):
        carry, resolved[i] = divmod(words[i] + carry, 1 << _WORD)
    assert carry == 0, "the interval lies below 1"
    return resolved.tobytes() + last.to_bytes(_STATE, "big")[:count]


def decode(stream: bytes, count: int, tables: Sequence[Table]) -> Symbols:
    """The `count` rows of symbols (count, d) that were encoded with these tables.

    Raises:
        ValueError: if no symbols give this stream: it is too short, too long, or leads outside a table.
    """
    padded = stream + bytes(_STATE)  # the end left out what is 0
    words = iter(np.frombuffer(padded, ">u4", len(stream) // 4, _STATE).tolist())
    code, span, taken = int.from_bytes(padded[:_STATE], "big"), 1 << (_WORD + _LEAST), 0
    columns = [(table.starts, table.total) for table in tables]
    found: list[int] = []
    for starts, total in chain.from_iterable(repeat(columns, count)):
        step = span // total
        after = bisect_right(starts, code // step)
        if after == len(starts):
            raise ValueError(f"the stream leads outside the table of symbol {len(found)}")
        start = starts[after - 1]
        code -= start * step
        span = (starts[after] - start) * step
        found.append(after - 1)
        if span <= _MASK:
            code, span, taken = (code << _WORD) | next(words, 0), span << _WORD, taken + 1
            if 4 * taken > len(stream):
                raise ValueError(f"the stream ends before symbol {len(found)}")
    if len(stream) > 4 * taken + _STATE:
        raise ValueError("the stream is longer than its symbols")
    return np.array(found, dtype=np.int64).reshape(count, len(tables))
