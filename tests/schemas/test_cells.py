"""Packed cells: what goes in comes out to the bit, and broken bytes are an error, never a wrong value."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cells

IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(width=32, allow_nan=True)
MICROS = st.integers(-(2**63), 2**63 - 1)


@given(st.integers(0, 65535), st.lists(FLOATS))
def test_vector_round_trip(group, values):
    vector = np.array(values, np.float32)
    cell = cells.encode_vector(group, vector)
    assert cells.decode_vector(cell).tobytes() == vector.tobytes()
    assert cells.decode_vectors([cell, cell], len(values)).tobytes() == vector.tobytes() * 2


@given(st.integers(0, 5), st.integers(0, 6))
def test_many_vectors_are_the_single_ones(rows, width):
    matrix = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    many = cells.encode_vectors(7, matrix)
    assert many == [cells.encode_vector(7, row) for row in matrix]


@given(st.lists(st.tuples(IDS, MICROS, FLOATS)))
def test_list_round_trip(entries):
    ids = [e[0] for e in entries]
    times, scores = np.array([e[1] for e in entries], np.int64), np.array([e[2] for e in entries], np.float32)
    found = cells.decode_list(cells.encode_list(3, ids, times, scores))
    assert found[0] == ids
    assert found[1].tobytes() == times.tobytes() and found[2].tobytes() == scores.tobytes()


ENTRY = st.tuples(IDS, FLOATS, st.sampled_from(cells.SOURCES), st.sampled_from(cells.REASONS), IDS)


@given(st.lists(ENTRY), IDS, MICROS, MICROS)
def test_ranked_list_round_trip(entries, version, generated, expires):
    columns = list(zip(*entries, strict=True)) if entries else [(), (), (), (), ()]
    recs = cells.RankedList(list(columns[0]), np.array(columns[1], np.float32), list(columns[2]), list(columns[3]),
                            list(columns[4]), version, generated, expires)
    found = cells.decode_recs(cells.encode_recs(recs))
    assert found.scores.tobytes() == recs.scores.tobytes()
    for name in ("item_ids", "sources", "reasons", "source_item_ids", "model_version", "generated_at", "expires_at"):
        assert getattr(found, name) == getattr(recs, name)


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_raise_a_cell_error(raw):
    for decode in (cells.decode_vector, cells.decode_list, cells.decode_recs):
        for prefix in (b"", b"\x01\x00\x00\x00", b"\x01\x01\x00\x00", b"\x01\x02\x00\x00"):
            with contextlib.suppress(cells.CellError):
                decode(prefix + raw)


def test_a_truncated_cell_is_an_error():
    cell = cells.encode_list(3, ["a", "bc"], np.array([1, 2]), np.array([1, 2], np.float32))
    for end in range(len(cell)):
        with pytest.raises(cells.CellError):
            cells.decode_list(cell[:end])
    with pytest.raises(cells.CellError, match="bytes"):
        cells.decode_vectors([cells.encode_vector(1, np.zeros(3, np.float32))], 4)
    with pytest.raises(cells.CellError, match="kind"):
        cells.decode_vector(cell)
