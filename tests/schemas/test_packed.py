"""Cells read where they lie say what schemas.cells says, and refuse what it refuses."""

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from models.inference.idtable import hashes_of
from schemas import cells
from schemas.packed import PackedIds, read_list, read_recs, take

names = st.lists(st.text(max_size=8) | st.text(st.characters(max_codepoint=127), max_size=150), max_size=40)


def recs_of(ids):
    n = len(ids)
    return cells.RankedList(ids, np.linspace(1, 0, n, dtype=np.float32), [cells.SOURCES[k % 7] for k in range(n)],
                            [cells.REASONS[k % 8] for k in range(n)], ids[::-1], "m1", 5, 9)


def same(found, wanted):
    assert list(found.item_ids) == list(wanted.item_ids) and found.item_ids == wanted.item_ids
    assert list(found.source_item_ids) == list(wanted.source_item_ids)
    assert found.scores.tolist() == wanted.scores.tolist()
    assert (found.model_version, found.generated_at, found.expires_at) == (
        wanted.model_version, wanted.generated_at, wanted.expires_at)
    assert (list(found.sources), list(found.reasons)) == (list(wanted.sources), list(wanted.reasons))


@given(names)
def test_a_ranked_list(ids):
    cell = cells.encode_recs(recs_of(ids))
    same(read_recs(cell), cells.decode_recs(cell))
    found, places = read_recs(cell), list(range(0, len(ids), 3))
    assert take(found.item_ids, places) == ids[::3] and take(found.sources, places) == list(found.sources)[::3]


@given(names)
def test_a_list_and_its_hashes(ids):
    cell = cells.encode_list(3, ids, np.arange(len(ids)), np.ones(len(ids), np.float32))
    (found, times, scores), (wanted, *_) = read_list(cell), cells.decode_list(cell)
    assert list(found) == wanted and times.tolist() == list(range(len(ids))) and (scores == 1).all()
    assert hashes_of(found).tolist() == [xxhash.xxh3_64_intdigest(i.encode()) for i in ids]


def test_every_length_hashes_as_the_library_does():
    ids = ["".join(chr(33 + (k * 7 + n) % 90) for k in range(n)) for n in range(129)]
    packed = PackedIds("".join(ids).encode(), np.cumsum([len(i) for i in ids], dtype=np.uint32))
    assert hashes_of(packed).tolist() == [xxhash.xxh3_64_intdigest(i.encode()) for i in ids]


@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 400))
def test_a_broken_cell_is_refused_by_both_or_read_the_same(at, byte, end):
    cell = bytearray(cells.encode_recs(recs_of([f"item {k}" for k in range(9)])))
    cell[at % len(cell)] = byte
    cell = bytes(cell[: len(cell) - end % 7])
    try:
        wanted = cells.decode_recs(cell)
    except cells.CellError:
        with pytest.raises(cells.CellError):
            read_recs(cell)
    else:
        if not np.isnan(wanted.scores).any():
            same(read_recs(cell), wanted)
