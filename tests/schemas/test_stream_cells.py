"""Cells of the stream family: 1000 rings in one sum, narrower old rings, and damaged bytes that are refused, never misread."""

import contextlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import stream_cells as cells
from schemas.cells import LAYOUT, CellError, encode_list
from schemas.event_types import NAMES
from schemas.features import GROUPS, features_of, group

T0 = 1_700_000_100_000_000  # a pane begins here: 1_700_000_100 = 300 * 5_666_667


def packed_ids(ids):
    raw = [i.encode() for i in ids]
    return np.cumsum([len(r) for r in raw], dtype="<u4").tobytes() + b"".join(raw)


def head(kind, name, count):
    return struct.pack("<BBHI", LAYOUT, kind, group(name).id, count)


def ring(name, first, counts):
    counts = np.asarray(counts, "<i4")
    return head(cells.RING, name, counts.size) + struct.pack("<q", first) + counts.tobytes()


def session(items, categories, end=T0):
    ids, times, scores = items
    names, weights = categories
    return (head(cells.SESSION, "user_session", len(ids)) + struct.pack("<9qI", T0 - 60_000_000, end, 4, 900, 2, 5_000_000, 2,
            1_000_000, 4_000_000, len(names)) + np.asarray(times, "<i8").tobytes() + np.asarray(scores, "<f4").tobytes()
            + packed_ids(ids) + np.asarray(weights, "<i8").tobytes() + packed_ids(names))


def decayed(name, last, ids, entries):
    index, age, weight = zip(*entries, strict=True) if entries else ((), (), ())
    return (head(cells.DECAYED, name, len(ids)) + struct.pack("<qI", last, len(entries)) + packed_ids(ids)
            + np.asarray(index, "<u2").tobytes() + np.asarray(age, np.uint8).tobytes() + np.asarray(weight, "<i4").tobytes())


GOOD = {
    "user_panes": ring("user_panes", T0 // cells.PANE - 11, np.arange(12 * len(NAMES)).reshape(12, -1)),
    "user_day": ring("user_day", T0 // cells.DAY_MICROS, np.arange(len(NAMES)).reshape(1, -1)),
    "item_minutes": ring("item_minutes", T0 // cells.MINUTE - 59, np.ones((60, 1))),
    "user_session": session((["i1", "ü2"], [T0, T0 - 5], [2, 1]), (["c1", "c2"], [3, 1])),
    "user_recent": encode_list(group("user_recent").id, ["i1", "i2"], np.array([T0, T0 - 5]), np.array([1, 2], np.float32)),
    "user_preference": decayed("user_preference", T0 // cells.PANE, ["c1", "c2"], [(0, 0, 4), (0, 47, 9), (1, 1, 2)]),
    "item_cooccurring": decayed("item_cooccurring", T0 // cells.PANE, ["i7"], [(0, 12, 3)]),
}


def test_every_stream_group_has_a_cell_and_names_only_its_features():
    assert GOOD.keys() == {g.name for g in GROUPS if g.source == "stream"}
    for name, cell in GOOD.items():
        assert cells.extract(name, cell, T0).keys() == {f.name for f in features_of(name)}


def test_windows_slide_and_sessions_end_without_a_write():
    counts = np.zeros((12, len(NAMES)), int)
    counts[0, 1], counts[11, 1] = 5, 2  # views 55 minutes before and now
    cell = ring("user_panes", T0 // cells.PANE - 11, counts)

    def views(t):
        values = cells.extract("user_panes", cell, t)
        return values["count_view_5m"], values["count_view_1h"]

    assert views(T0) == views(T0 + cells.PANE - 1) == (2, 7)
    assert views(T0 + cells.PANE) == (0, 2)
    assert views(T0 + 11 * cells.PANE) == (0, 2)
    assert views(T0 + 12 * cells.PANE) == (0, 0)
    assert views(T0 - cells.PANE) == (0, 5)  # an earlier t never sees later panes
    end = T0 + cells.SESSION_GAP
    assert cells.extract("user_session", GOOD["user_session"], end - 1)["session_events"] == 4
    assert cells.extract("user_session", GOOD["user_session"], end) == {}
    day = cells.extract("user_day", GOOD["user_day"], T0 + cells.DAY_MICROS)
    assert set(day.values()) == {0.0}
    recent = cells.extract("user_recent", GOOD["user_recent"], T0 - 5 + cells.DAY_MICROS)["recent_items"]
    assert recent[0] == ["i1"]


def test_decay_halves_in_an_hour_and_ends_after_48_panes():
    def score(t):
        return cells.extract("item_cooccurring", GOOD["item_cooccurring"], t)["recent_cooccurring_items"]

    assert (score(T0)[0], score(T0)[2].tolist()) == (["i7"], [1.5])
    assert score(T0 + 3_600_000_000)[2].tolist() == [0.75]
    assert score(T0 + 35 * cells.PANE)[0] == ["i7"] and score(T0 + 36 * cells.PANE)[0] == []
    ids, _, shares = cells.extract("user_preference", GOOD["user_preference"], T0)["category_preference"]
    weights = np.array([4 + 9 * 2 ** (-47 / 12), 2 * 2 ** (-1 / 12)])
    assert ids == ["c1", "c2"] and shares == pytest.approx(weights / weights.sum(), rel=1e-6)


def test_a_thousand_rings_are_one_sum():
    rng = np.random.default_rng(0)
    first = T0 // cells.MINUTE - rng.integers(0, 130, 1000)
    counts = rng.integers(0, 9, (1000, 60, 1))
    found = cells.extract_rings("item_minutes", [ring("item_minutes", f, c) for f, c in zip(first, counts, strict=True)], T0)
    now = T0 // cells.MINUTE
    for k in range(1000):
        wanted = [sum(int(counts[k, p - first[k], 0]) for p in range(max(now - n + 1, first[k]), min(now, first[k] + 59) + 1))
                  for n in (1, 10, 60)]
        assert found[k].tolist() == wanted
    assert cells.extract_rings("item_minutes", [], T0).shape == (0, 3)


def test_a_ring_from_before_an_event_type_was_added_reads_zero_for_it():
    narrow = ring("user_day", T0 // cells.DAY_MICROS, [[1, 2, 3]])
    found = cells.extract_rings("user_day", [GOOD["user_day"], narrow], T0)
    assert found[0].tolist() == list(range(len(NAMES)))
    assert found[1].tolist() == [1, 2, 3] + [0] * (len(NAMES) - 3)
    assert cells.extract("user_day", narrow, T0) == {"count_impression_day": 1, "count_view_day": 2, "count_click_day": 3}


def test_a_suppression_says_when():
    assert cells.decode_suppression(cells.encode_suppression(T0)) == T0
    for broken in (b"", cells.encode_suppression(T0)[:-1], cells.encode_suppression(T0) + b"x", GOOD["user_recent"]):
        with pytest.raises(CellError):
            cells.decode_suppression(broken)


@pytest.mark.parametrize("name", GOOD)
def test_every_cut_and_every_extension_of_a_cell_is_refused(name):
    for size in range(len(GOOD[name])):
        with pytest.raises(CellError):
            cells.extract(name, GOOD[name][:size], T0)
    with pytest.raises(CellError):
        cells.extract(name, GOOD[name] + b"x", T0)


@settings(max_examples=400)
@given(name=st.sampled_from(sorted(GOOD)), data=st.data())
def test_damaged_bytes_are_a_value_or_a_cell_error(name, data):
    cell = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(1, 4))):
        cell[data.draw(st.integers(0, len(cell) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CellError):
        cells.extract(name, bytes(cell), T0)


@given(name=st.sampled_from(sorted(GOOD)), cell=st.binary(max_size=300))
def test_foreign_bytes_are_a_cell_error(name, cell):
    with pytest.raises(CellError):
        cells.extract(name, cell, T0)


def test_a_cell_of_another_group_is_refused():
    with pytest.raises(CellError):
        cells.extract("user_panes", GOOD["user_recent"], T0)
    with pytest.raises(CellError, match="another group"):
        cells.extract("item_cooccurring", GOOD["user_preference"], T0)
    with pytest.raises(KeyError, match="no stream group"):
        cells.extract("user_stats", GOOD["user_preference"], T0)


def test_reading_cells_loads_neither_beam_nor_compiled_code():
    code = "import schemas.stream_cells, sys; print([m for m in ('numba', 'apache_beam', 'tensorflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@given(st.sampled_from(sorted(cells.RINGS)), st.integers(-70, 140), st.integers(0, 2**32 - 1))
def test_one_ring_is_read_as_many_are(name, panes, seed):
    ring_ = cells.RINGS[name]
    counts = np.random.default_rng(seed).integers(0, 9, (ring_.size, len(features_of(name)) // len(ring_.windows)))
    cell, t = ring(name, T0 // ring_.step, counts), T0 + panes * ring_.step
    assert cells.ring_values(name, cell, t) == cells.extract_rings(name, [cell], t)[0].tolist()
