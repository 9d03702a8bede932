"""The range coder, the quantisers, the codec and the container: exact inverses, known code lengths, nothing damaged accepted."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from fractions import Fraction
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diabolo.coding import codec as codecs
from diabolo.coding import container, quantiser, range_coder
from diabolo.coding.container import Container, unpack
from diabolo.coding.range_coder import MAX_TOTAL, Table, decode, encode
from diabolo.errors import DataError

#: One symbol; even; skewed to the least and the greatest that a table can hold; with symbols that cannot occur.
FREQUENCIES = st.one_of(
    st.lists(st.integers(0, 300), min_size=1, max_size=12).filter(any),
    st.sampled_from([[1], [1, 1], [1, MAX_TOTAL - 1], [MAX_TOTAL - 1, 1], [MAX_TOTAL], [0, 7, 0], [1] * 300]),
)


@st.composite
def messages(draw):
    """Tables and rows of symbols that they can code."""
    tables = [Table(frequencies) for frequencies in draw(st.lists(FREQUENCIES, min_size=1, max_size=4))]
    possible = [np.flatnonzero(table.frequencies).tolist() for table in tables]
    rows = draw(st.lists(st.tuples(*(st.sampled_from(symbols) for symbols in possible)), max_size=60))
    return tables, np.array(rows, dtype=np.int64).reshape(len(rows), len(tables))


def ideal(symbols, tables):
    return math.fsum(
        math.log2(table.total) - math.log2(int(table.frequencies[s]))
        for row in symbols
        for s, table in zip(row, tables)
    )


def drawn(count, tables, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(len(t.frequencies), count, p=t.frequencies / t.total) for t in tables], 1)


# ------------------------------------------------------------------------------------------------ the range coder
@settings(deadline=None)
@given(messages())
def test_what_is_encoded_is_decoded(message):
    tables, symbols = message
    stream = encode(symbols, tables)
    assert np.array_equal(decode(stream, len(symbols), tables), symbols)
    assert 8 * len(stream) < ideal(symbols, tables) + 8 + symbols.size * 2**-23 + 1e-6


@pytest.mark.parametrize("total", [1 << 8, 60_000, 60_256, MAX_TOTAL])
def test_long_messages_cost_their_entropy(total):
    """What was drawn from the tables themselves: within a byte of the ideal code length, and that near its expectation."""
    rng = np.random.default_rng(total)
    shares = [rng.dirichlet(np.full(2 + j, 0.3)) for j in range(20)]
    tables = [Table((1 + (share * (total - len(share) - 1)).astype(np.int64)).tolist()) for share in shares]
    symbols = drawn(10_000, tables)
    stream = encode(symbols, tables)
    assert np.array_equal(decode(stream, 10_000, tables), symbols)
    exact = ideal(symbols, tables)
    assert -64 < 8 * len(stream) - exact < 8 + symbols.size * 2**-23
    assert sum(table.bits(symbols[:, j]) for j, table in enumerate(tables)) == pytest.approx(exact, rel=1e-12)
    p = [table.frequencies / table.total for table in tables]
    assert exact / 10_000 == pytest.approx(-sum(float(q @ np.log2(q)) for q in p), rel=0.02)


def test_even_bytes_cost_a_byte_each():
    symbols = np.random.default_rng(0).integers(0, 256, (50_000, 1))
    stream = encode(symbols, [Table([1] * 256)])
    assert len(stream) == 50_000
    assert stream == symbols.astype(np.uint8).tobytes(), "the symbols themselves are the point in base 256"


def test_the_stream_is_a_point_of_the_interval_in_exact_arithmetic():
    """With frequencies that are powers of two nothing is rounded: the interval of the message is known as fractions."""
    tables = [Table([1, 1, 2, 4, 8]), Table([1, 1]), Table([128, 64, 64])]
    symbols = drawn(40, tables, seed=3)
    low, width = Fraction(0), Fraction(1)
    for row in symbols:
        for symbol, table in zip(row, tables):
            low += width * Fraction(table.starts[symbol], table.total)
            width *= Fraction(int(table.frequencies[symbol]), table.total)
    stream = encode(symbols, tables)
    assert 256 ** len(stream) < 256 / width
    point = Fraction(int.from_bytes(stream, "big"), 256 ** len(stream))
    assert low <= point < low + width


def test_carries_reach_back_over_many_words():
    """The last symbol over and over leads to the end of the interval: 0xFFFFFFFF a word, until something carries."""
    tables = [Table([1, (1 << 20) - 1]), Table([3, 1])]
    high = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        symbols = np.stack([rng.random(3000) < 0.9999, rng.random(3000) < 0.999], 1).astype(np.int64)
        stream = encode(symbols, tables)
        assert np.array_equal(decode(stream, 3000, tables), symbols)
        high += b"\xff" * 4 in stream
    assert high > 10


def test_one_symbol_and_nothing_cost_nothing():
    assert encode(np.zeros((100_000, 1), np.int64), [Table([60_000])]) == b""
    assert encode(np.zeros((0, 2), np.int64), [Table([1, 2]), Table([3])]) == b""
    assert decode(b"", 100_000, [Table([60_000])]).sum() == 0
    assert decode(b"", 0, [Table([1, 2]), Table([3])]).shape == (0, 2)


@pytest.mark.parametrize("frequencies", [[], [0, 0], [-1, 2], [MAX_TOTAL, 1]])
def test_tables_that_are_none_are_refused(frequencies):
    with pytest.raises(ValueError, match="frequencies"):
        Table(frequencies)


def test_symbols_that_the_table_does_not_have_are_refused():
    table = Table([2, 0, 1])
    for symbol in (-1, 3, 1):
        with pytest.raises(ValueError, match="symbol"):
            encode(np.array([[0], [symbol]]), [table])
    with pytest.raises(ValueError, match="tables"):
        encode(np.zeros((2, 3), np.int64), [table])


def test_streams_of_another_length_are_refused():
    tables = [Table([1] * 16), Table([1, 2, 3])]
    symbols = drawn(500, tables)
    stream = encode(symbols, tables)
    for wrong in (stream[: len(stream) // 2], stream[:-20], b"", stream + bytes(20)):
        with pytest.raises(ValueError, match="the stream"):
            decode(wrong, 500, tables)
    for count in (400, 700):
        with pytest.raises(ValueError, match="the stream"):
            decode(stream, count, tables)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40))
def test_any_bytes_are_decoded_or_refused(stream, count):
    tables = [Table([3, 5, 1]), Table([1, 60_000])]
    try:
        found = decode(stream, count, tables)
    except ValueError:
        return
    assert found.shape == (count, 2)
    assert not count or (found.min() >= 0 and found[:, 0].max() < 3 and found[:, 1].max() < 2)


# ------------------------------------------------------------------------------------------------ quantisers
def some_codes(count=500, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, d)) * np.array([1, 5, 0.1, 2])[:d]


@pytest.mark.parametrize("bits", [1, 2, 6, 12])
def test_a_grid_of_bits_is_off_by_half_a_step_at_most(bits):
    codes = some_codes()
    grid = quantiser.by_bits(codes, bits)
    symbols = grid.symbols(codes)
    assert (symbols.min(0) == 0).all() and (symbols.max(0) == 2**bits - 1).all()
    assert (np.abs(grid.points(symbols) - codes) <= grid.step * (0.5 + 1e-9)).all()
    assert np.allclose(grid.step, np.ptp(codes, axis=0) / 2**bits, rtol=1e-12)
    assert np.array_equal(grid.symbols(grid.points(symbols)), symbols)


def test_codes_outside_go_to_the_nearest_end():
    grid = quantiser.by_bits(some_codes(), 3)
    assert grid.symbols(np.full((1, 4), -1e30)).tolist() == [[0] * 4]
    assert grid.symbols(np.full((1, 4), 1e30)).tolist() == [[7] * 4]
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            grid.symbols(np.full((1, 4), bad))


def test_a_constant_dimension_has_one_point_which_is_it():
    codes = some_codes()
    codes[:, 1] = 0.3
    for grid in (quantiser.by_bits(codes, 4), quantiser.by_deviation(codes, np.zeros(4))):
        assert grid.levels[1] == 1
        assert np.abs(grid.points(grid.symbols(codes))[:, 1] - 0.3).max() < 1e-15


def test_steps_of_the_deviation_spend_nothing_on_collapsed_dimensions():
    codes, deviation = some_codes(), np.array([0.5, 0.2, 1.0, 0.3])
    grid = quantiser.by_deviation(codes, deviation)
    assert np.array_equal(grid.step, deviation) and grid.levels[2] == 1 and grid.levels[1] > 100
    symbols = grid.symbols(codes)
    assert (symbols.min(0) == 0).all() and np.array_equal(symbols.max(0), grid.levels - 1)
    assert (np.abs(grid.points(symbols) - codes) <= deviation * (0.5 + 1e-9)).all()
    assert codecs.fit(grid, codes).tables[2].bits(symbols[:, 2]) == 0
    assert np.array_equal(quantiser.by_deviation(codes, deviation, scale=2).step, 2 * deviation)


def test_a_step_that_would_need_too_many_points_is_widened():
    grid = quantiser.by_deviation(some_codes(), np.full(4, 1e-9))
    assert (grid.levels <= quantiser.MAX_LEVELS).all() and (grid.levels >= quantiser.MAX_LEVELS - 3).all()


# ------------------------------------------------------------------------------------------------ the codec
@pytest.fixture(scope="module")
def codec():
    codes = some_codes()
    return codecs.fit(quantiser.by_bits(codes, 4), codes, "ab" * 32)


def test_frequencies_are_counts_plus_one(codec):
    symbols = codec.quantiser.symbols(some_codes())
    for j, table in enumerate(codec.tables):
        assert table.frequencies.tolist() == [1 + int((symbols[:, j] == k).sum()) for k in range(16)]
        assert table.total == 500 + 16
    counts = [np.bincount(column, minlength=16) for column in symbols.T]
    bits = -sum(float(n @ np.log2((n + 1) / 516)) for n in counts)
    assert codec.ideal_bits(symbols) == pytest.approx(bits, rel=1e-12)


def test_every_symbol_can_be_coded(codec):
    every = np.arange(16)[:, None].repeat(4, 1)
    assert np.array_equal(codec.decode(codec.encode(every), 16), every)


def test_a_codec_read_back_is_the_same_to_the_bit(codec):
    again = codecs.from_json(codec.to_json(), "c.json")
    assert again.to_json() == codec.to_json() and again.digest == codec.digest and again.weights == codec.weights
    codes = some_codes(seed=1)
    symbols = codec.quantiser.symbols(codes)
    assert np.array_equal(again.quantiser.symbols(codes), symbols)
    assert np.array_equal(again.quantiser.points(symbols), codec.quantiser.points(symbols))
    assert again.encode(symbols) == codec.encode(symbols)


def test_another_codec_has_another_digest(codec):
    tables = (Table([*codec.tables[0].frequencies[:-1], 99]), *codec.tables[1:])
    assert len({codec.digest, replace(codec, tables=tables).digest, replace(codec, weights="").digest}) == 3


WRONG = {
    "schema": 2,
    "weights_sha256": 3,
    "origin": [0.0],
    "step": [1.0, 1.0, 0.0, 1.0],
    "frequencies": [[1, 2], [0, 1], [1], [1]],
}


@pytest.mark.parametrize("key", WRONG)
def test_files_that_are_no_codec_are_refused(key, codec):
    sound = json.loads(codec.to_json())
    broken = [{**sound, key: WRONG[key]}, {k: v for k, v in sound.items() if k != key}]
    for content in (*(json.dumps(found).encode() for found in broken), b"", b"[1]", b"\xff", b"[" * 100_000):
        with pytest.raises(DataError, match=r"c\.json is no codec"):
            codecs.from_json(content, "c.json")


@pytest.mark.parametrize("rows", [[[]] * 4, [[1] * 5000] * 4, [[1.5]] * 4, [[True]] * 4, [[1 << 40]] * 4, 7, [7] * 4])
def test_frequencies_that_are_none_are_refused(rows, codec):
    sound = json.loads(codec.to_json())
    with pytest.raises(DataError, match="no codec"):
        codecs.from_json(json.dumps({**sound, "frequencies": rows}).encode(), "c.json")


# ------------------------------------------------------------------------------------------------ the container
SOUND = Container(bytes(range(16)), bytes(range(16, 32)), 6, 5, (1, 28, 28), b"some stream of bytes")


@pytest.mark.parametrize("change", [{}, {"count": 0, "stream": b""}, {"shape": (16,)}, {"bits": 0}])
def test_what_is_packed_is_unpacked(change):
    wanted = replace(SOUND, **change)
    assert unpack(wanted.pack()) == wanted


def test_a_flipped_bit_anywhere_is_refused():
    content = SOUND.pack()
    for at in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            with pytest.raises(DataError):
                unpack(bytes(flipped))


def test_every_cut_and_every_addition_is_refused():
    content = SOUND.pack()
    for length in range(len(content)):
        with pytest.raises(DataError):
            unpack(content[:length])
    with pytest.raises(DataError, match="damaged"):
        unpack(content + b"\0")


def signed(content):
    return content + blake2b(content, digest_size=8).digest()


def header(version=1, count=5, sides=3, shape=(1, 28, 28), length=4, stream=b"abcd"):
    head = struct.pack("<8sH16s16sBIB", container.MAGIC, version, b"w" * 16, b"c" * 16, 6, count, sides)
    return signed(head + struct.pack(f"<{len(shape)}I", *shape) + struct.pack("<Q", length) + stream)


HOSTILE = {
    "another version": header(version=2),
    "billions of images": header(count=2**32 - 1),
    "vast images": header(shape=(3, 2**32 - 1, 2**32 - 1)),
    "no sides": header(sides=0, shape=()),
    "many sides": header(sides=255, shape=(1,) * 255),
    "more sides than bytes": header(sides=8, shape=(), length=0, stream=b""),
    "a longer stream": header(length=2**63),
    "a shorter stream": header(length=3),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_claims_are_checked_although_the_checksum_is_right(what):
    assert unpack(header()).count == 5
    with pytest.raises(DataError):
        unpack(HOSTILE[what])


def test_the_coder_never_needs_torch():
    """So that a stream can be read where there is none."""
    for module in (range_coder, quantiser, codecs, container):
        assert "torch" not in vars(module)
