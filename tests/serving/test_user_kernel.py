"""Cells of a user read in one compiled pass say what they say one by one, and are refused alike."""

import numpy as np
import pytest
from cell_world import DAY, HOUR, MINUTE, PANE, batch_cells, decayed, head, ring, session, stream_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import NOW

from schemas.cells import CellError, encode_list, encode_vector
from schemas.features import features_of, group
from schemas.keys import hash64
from schemas.stream_cells import SESSION_GAP
from serving.signal_values import NUMBERS
from serving.signals import _read_at_once, _read_each
from serving.stores.base import Cell

READ = ("user_stats", "user_consumed", "user_panes", "user_day", "user_session", "user_preference")
PLAIN = st.text(st.characters(max_codepoint=127), max_size=20)
NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=30, unique=True)
FLOATS = st.floats(width=32)


def bits(values):
    return np.asarray(values, np.float64).tobytes()


def check(batch, stream, alive=True, now=NOW):
    """Both ways; whether the compiled one took them."""
    found = _read_at_once(batch, stream, alive, now)
    try:
        wanted = _read_each(batch, stream, alive, now)
    except CellError:
        assert found is None
        return False
    if found is None:
        return False
    assert found.hidden == wanted.hidden and found.suppressed == wanted.suppressed
    assert set(found.hidden.hashes.tolist()) == set(wanted.hidden.hashes.tolist()) == {hash64(i) for i in wanted.hidden}
    assert [i for i, _ in found.session] == [i for i, _ in wanted.session]
    assert bits([w for _, w in found.session]) == bits([w for _, w in wanted.session])
    if found.session:
        assert found.session.hashes.tolist() == [hash64(i) for i, _ in wanted.session]
    assert list(found.preference.items()) == list(wanted.preference.items())
    assert found.segment == wanted.segment
    assert found.values.found == wanted.values.found and list(found.values) == list(wanted.values)
    return True


def made(**cells):
    """Batch and stream of the groups given, on top of everybody's."""
    batch, stream = batch_cells(NOW - DAY, ["a", "b", "c"]), stream_cells(NOW - MINUTE, ["c", "d"])
    for name, cell in cells.items():
        (batch if name in batch else stream)[name] = Cell(cell, NOW - MINUTE)
    return batch, stream


@settings(max_examples=200, deadline=None)
@given(stats=st.lists(FLOATS, max_size=len(features_of("user_stats")) + 3), age=st.sampled_from([0, 7 * DAY, 7 * DAY + 1000]),
       consumed=st.lists(PLAIN, max_size=40), there=st.sets(st.sampled_from(READ)), alive=st.booleans(),
       seed=st.integers(0, 999))
def test_batch_and_counts(stats, age, consumed, there, alive, seed):
    listed = encode_list(7, consumed, np.arange(len(consumed)), np.ones(len(consumed), np.float32))
    batch, stream = made(user_stats=encode_vector(1, np.array(stats, np.float32)), user_consumed=listed,
                         user_panes=ring("user_panes", NOW + (seed % 27 - 13) * 300_000_000, seed),
                         user_day=ring("user_day", NOW + (seed % 3 - 1) * DAY, seed))
    batch["user_stats"] = Cell(batch["user_stats"].value, NOW - age)
    batch, stream = ({k: c for k, c in cells.items() if k in there or k not in READ} for cells in (batch, stream))
    assert check(batch, stream, alive) or not any(k in batch or (alive and k in stream) for k in READ)


@settings(max_examples=200, deadline=None)
@given(items=st.lists(PLAIN, max_size=20, unique=True), names=NAMES, ended=st.sampled_from([0, HOUR, SESSION_GAP]), liked=NAMES,
       last=st.integers(-60, 60))
def test_sessions_and_preferences(items, names, ended, liked, last):
    cells = made(user_session=session(items, names, NOW - 2 * HOUR, NOW - ended),
                 user_preference=decayed("user_preference", NOW // PANE + last, liked))
    assert check(*cells)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(READ), cut=st.sampled_from([0, 0, 1, 4, 9]))
def test_damaged_bytes_are_refused_by_both_or_read_the_same(data, name, cut):
    batch, stream = made()
    cell = bytearray((batch if name in batch else stream)[name].value)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(cell) - 1) | st.integers(0, 40).map(lambda n: n % len(cell)))
        cell[at] = data.draw(st.sampled_from([0, 1, 255, 127, 128]) | st.integers(0, 255))
    check(*made(**{name: bytes(cell)[: len(cell) - cut]}))


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(READ), body=st.binary(max_size=200), count=st.integers(0, 6))
def test_foreign_bytes_are_never_read(name, body, count):
    kinds = {"user_stats": 0, "user_consumed": 1, "user_panes": 3, "user_day": 3, "user_session": 4, "user_preference": 5}
    check(*made(**{name: body}))
    check(*made(**{name: head(kinds[name], name, count) + body}))


@pytest.mark.parametrize("name", READ)
def test_every_cut_of_a_cell_is_left_out(name):
    batch, stream = made()
    cell = (batch if name in batch else stream)[name].value
    assert check(batch, stream)
    for size in range(len(cell)):
        assert not check(*made(**{name: cell[:size]}))


def test_ids_that_are_not_ascii_or_long_and_huge_numbers_are_read_one_by_one():
    for ids in (["ü"], ["x" * 129]):
        assert not check(*made(user_session=session(ids, [], NOW - HOUR, NOW)))
        assert not check(*made(user_consumed=encode_list(7, ids, np.zeros(1, np.int64), np.zeros(1, np.float32))))
    huge = bytearray(session(["a"], [], NOW - HOUR, NOW))
    huge[8 + 5 * 8 : 8 + 6 * 8] = ((1 << 53) + 1).to_bytes(8, "little")
    assert not check(*made(user_session=bytes(huge)))
    assert not check(*made(user_preference=decayed("user_preference", -(2**63), ["a"])))


@pytest.mark.parametrize("last", [0, -60])
def test_names_that_are_not_utf8_are_refused_whether_they_count_or_not(last):
    good = decayed("user_preference", NOW // PANE + last, ["Komödie", "ü"])
    assert check(*made(user_preference=good))
    assert not check(*made(user_preference=good.replace("ö".encode(), b"\xc3\xc3")))
    good = session(["a"], ["Komödie"], NOW - HOUR, NOW)
    assert check(*made(user_session=good))
    assert not check(*made(user_session=good.replace("ö".encode(), b"\xc3\xc3")))


def test_the_numbers_of_a_user_have_one_name_each():
    assert len(set(NUMBERS)) == len(NUMBERS)
    assert group("user_stats").layout == "vector"
