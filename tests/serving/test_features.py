"""Merged features: stream while it is alive, then batch, then the default; one by one and as a matrix."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import DAY, NOW

from schemas.cells import LAYOUT, CellError, encode_list, encode_vector
from schemas.features import FEATURES, GROUPS, Feature, Registry, features_of, group
from schemas.keys import ITEM, STATUS, USER, row_key, status_key
from schemas.stream_cells import PANE, RING, RINGS
from serving.catalogue import Catalogue
from serving.features import SOURCES, FeatureReader, FeatureValue
from serving.profile import read_user
from serving.stores.base import Cell, FeatureWrite

MINUTE, HOUR = 60_000_000, 3_600_000_000


def put(world, kind, entity, name, cell, at):
    world.store.write_features([FeatureWrite(row_key(kind, entity), "stream", name, Cell(cell, at))])


def ring(name, counts, first):
    """A ring cell of {(pane, position of a count): number}, its first pane being number ``first``."""
    size = RINGS[name].size
    width = len(features_of(name)) // len(RINGS[name].windows)
    grid = np.zeros((size, width), "<i4")
    for (pane, position), number in counts.items():
        grid[pane, position] = number
    return struct.pack("<BBHIq", LAYOUT, RING, group(name).id, grid.size, first) + grid.tobytes()


def put_panes(world, user, clicks, at):
    """Clicks of a user in the pane that holds ``at``."""
    position = [f.name for f in features_of("user_panes")].index("count_click_5m") // 2
    put(world, USER, user, "user_panes", ring("user_panes", {(11, position): clicks}, at // PANE - 11), at)


def put_status(world, written_at=NOW, job="stream", **more):
    status = {"watermark": NOW - 10_000_000, "written_at": written_at, "run": "r1", "counters": {"late": 1}, **more}
    cell = Cell(json.dumps(status).encode(), written_at // 1000 * 1000)
    world.store.write_features([FeatureWrite(status_key(job), "stream", STATUS, cell)])


def read(world, user="ann", now=NOW, reader=None):
    return (reader or FeatureReader()).one(world.store, "user", user, now)


def test_a_stream_value_is_extracted_now_so_that_windows_slide_without_a_write(world):
    put_status(world)
    put_panes(world, "ann", 3, NOW - MINUTE)
    values = read(world).values
    assert values["count_click_1h"] == FeatureValue(3.0, "stream", 60.0)
    assert values["count_click_5m"] == FeatureValue(0.0, "stream", 60.0)  # NOW begins a pane
    assert read(world, now=NOW - 1).values["count_click_5m"] == FeatureValue(3.0, "stream", pytest.approx(59.999999))
    put_status(world, NOW + 2 * HOUR)
    assert read(world, now=NOW + 55 * MINUTE - 1).values["count_click_1h"].value == 3.0
    assert read(world, now=NOW + 55 * MINUTE).values["count_click_1h"].value == 0.0


def test_stream_values_count_only_while_the_stream_is_alive_for_the_feature(world):
    put_panes(world, "ann", 3, NOW)
    assert read(world).values["count_click_5m"] == FeatureValue(0.0, "default", None)  # never ran
    put_status(world)
    ttl = next(f.ttl for f in FEATURES if f.name == "count_click_1h")
    assert read(world, now=NOW + ttl * 1_000_000).values["count_click_1h"].source == "stream"
    assert read(world, now=NOW + ttl * 1_000_000 + 1).values["count_click_1h"].source == "default"
    assert read(world, now=NOW - DAY).values["count_click_1h"].source == "stream"  # a frozen clock may lie before
    put_status(world, NOW + 2 * DAY, job="another")
    assert read(world, now=NOW + 2 * DAY).values["count_click_1h"].source == "default"
    another = FeatureReader("another")
    assert read(world, now=NOW + 2 * DAY, reader=another).values["count_click_1h"].source == "stream"


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"written_at": "soon"}', b'{"watermark": 1}'])
def test_a_status_that_cannot_be_read_is_no_status(world, broken):
    put_panes(world, "ann", 3, NOW)
    world.store.write_features([FeatureWrite(status_key(), "stream", STATUS, Cell(broken, NOW))])
    assert read(world).values["count_click_1h"].source == "default"


def test_the_status_is_read_once_a_second(world):
    put_panes(world, "ann", 3, NOW)
    put_status(world)
    reader = FeatureReader(status_seconds=60)
    assert reader.status(world.store).run == "r1"
    put_status(world, NOW + DAY)
    assert reader.status(world.store).written_at == NOW
    assert FeatureReader().status(world.store).written_at == NOW + DAY


def test_where_both_have_a_feature_the_stream_wins_while_alive_then_batch_then_the_default(world):
    """No feature is in both today; the rule is for the next one."""
    twin = Feature("count_click_1h", "user", "user_stats", "the same by name", source="batch", default=-1.0)
    stats, registry = (*features_of("user_stats"), twin), Registry(GROUPS, (*FEATURES, twin))
    put_panes(world, "ann", 3, NOW)
    vector = np.full(len(stats), np.nan, np.float32)
    vector[-1] = 7
    cell = Cell(encode_vector(group("user_stats").id, vector), NOW - HOUR)
    world.store.write_features([FeatureWrite(row_key(USER, u), "batch", "user_stats", cell) for u in ("ann", "bob")])

    def both(user, now=NOW):
        one = read(world, user, now, FeatureReader(registry=registry)).values["count_click_1h"]
        many = FeatureReader(registry=registry).many(world.store, "user", [user], now, ["count_click_1h"])
        assert (one.value, one.source) == (many.values[0, 0], SOURCES[many.sources[0, 0]])
        return one

    assert both("ann") == FeatureValue(7.0, "batch", 3600.0)
    put_status(world)
    assert both("ann") == FeatureValue(3.0, "stream", 0.0)
    assert both("bob") == FeatureValue(7.0, "batch", 3600.0)
    assert both("ann", NOW + DAY).source == "batch"
    assert both("ann", NOW + 8 * DAY).source == both("cat").source == "default"


def test_a_user_whom_only_the_stream_knows_is_flagged(world):
    put_status(world)
    put_panes(world, "new", 1, NOW)
    put_panes(world, "old", 1, NOW)
    world.put_stats("user", "old", count_click_7d=5)
    world.put_stats("user", "quiet", count_click_7d=5)
    found = {u: read(world, u) for u in ("new", "old", "quiet", "nobody")}
    assert {u: (f.known, f.low_confidence) for u, f in found.items()} == {
        "new": (True, True), "old": (True, False), "quiet": (True, False), "nobody": (False, False)}
    many = FeatureReader().many(world.store, "user", list(found), NOW, ["count_click_5m"])
    assert many.low_confidence.tolist() == [True, False, False, False]
    assert read_user(world.store, Catalogue(), "new", NOW).low_confidence


def test_history_is_the_newest_of_stream_and_batch_without_doubles(world):
    world.catalogue("a", "b", "c")
    put_status(world)
    world.put_features("ann", "user_last_items", ["a", "b"])  # a day ago
    times = np.array([NOW - MINUTE, NOW - 2 * MINUTE + 500_000])
    cell = encode_list(group("user_recent").id, ["c", "b"], times, np.array([2, 3], np.float32))
    put(world, USER, "ann", "user_recent", cell, NOW - MINUTE)
    history = read_user(world.store, Catalogue(), "ann", NOW).history
    assert [(h.item_id, h.at, h.weight, h.title) for h in history] == [
        ("c", "2023-11-14T23:59:00Z", 2.0, "Title of c"), ("b", "2023-11-14T23:58:00.500000Z", 3.0, "Title of b"),
        ("a", "2023-11-14T00:00:00Z", 1.0, "Title of a")]


def test_many_items_as_a_matrix_say_what_each_alone_says(world):
    rng = np.random.default_rng(5)
    put_status(world)
    ids = [f"i{n}" for n in range(300)]
    for n, item in enumerate(ids):
        if n % 3:
            world.put_stats("item", item, at=NOW - int(rng.integers(0, 9 * DAY)) // 1000 * 1000, popularity_7d=n, age_days=2.5)
        if n % 2:
            at = NOW - int(rng.integers(0, 2 * HOUR)) // 1000 * 1000
            counts = {(int(p), 0): int(rng.integers(1, 99)) for p in rng.integers(0, 60, 5)}
            put(world, ITEM, item, "item_minutes", ring("item_minutes", counts, at // MINUTE - 59), at)
    asked = [*ids[::-1], "absent", ids[1]]
    matrix = FeatureReader().many(world.store, "item", asked, NOW)
    assert matrix.names == tuple(f.name for f in FEATURES if f.entity == "item" and f.dtype != "list")
    assert matrix.values.shape == matrix.sources.shape == matrix.ages_s.shape == (302, len(matrix.names))
    for row, item in enumerate(asked):
        values = FeatureReader().one(world.store, "item", item, NOW).values
        for column, name in enumerate(matrix.names):
            one = values[name]
            value = np.nan if one.value is None else np.float32(one.value)
            assert np.array_equal(matrix.values[row, column], value, equal_nan=True), (item, name)
            assert SOURCES[matrix.sources[row, column]] == one.source
            age = np.nan if one.age_s is None else np.float32(one.age_s)
            assert np.array_equal(matrix.ages_s[row, column], age, equal_nan=True)
    some = FeatureReader().many(world.store, "item", asked, NOW, ["popularity_1h", "popularity_7d"])
    wanted = [matrix.names.index(n) for n in some.names]
    assert np.array_equal(some.values, matrix.values[:, wanted], equal_nan=True)
    assert FeatureReader().many(world.store, "item", [], NOW).values.shape == (0, len(matrix.names))
    for wrong in ("cooccurring_items", "count_click_5m", "nothing"):
        with pytest.raises(KeyError, match=wrong):
            FeatureReader().many(world.store, "item", ids, NOW, [wrong])


def test_a_vector_from_before_a_feature_was_appended_lacks_only_that(world):
    short = encode_vector(group("item_stats").id, np.array([1, 2], np.float32))
    world.store.write_features([FeatureWrite(row_key(ITEM, "old"), "batch", "item_stats", Cell(short, NOW))])
    world.put_stats("item", "new", popularity_1d=5)
    matrix = FeatureReader().many(world.store, "item", ["old", "new"], NOW)
    assert matrix.values[:, :2].tolist() == [[1, 2], [5, 0]] and np.isnan(matrix.values[0, matrix.names.index("age_days")])
    assert FeatureReader().one(world.store, "item", "old", NOW).values["popularity_7d"].value == 2.0


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(list(dict.fromkeys(f.group for f in FEATURES))))
def test_bytes_that_are_no_cell_are_a_cell_error_and_nothing_else(raw, name):
    store = OneCell(name, raw)
    kind = group(name).entity
    for attempt in (lambda: FeatureReader().one(store, kind, "x", NOW), lambda: FeatureReader().many(store, kind, ["x"], NOW)):
        with contextlib.suppress(CellError):
            attempt()


class OneCell:
    """A store that answers with one cell, whatever is asked."""

    def __init__(self, name, raw):
        self._name, self._raw = name, raw

    def read_features(self, rows, family, groups):
        if rows == [status_key()]:
            return [{STATUS: Cell(json.dumps({"written_at": NOW}).encode(), NOW)}]
        held = {self._name: Cell(self._raw, NOW)} if self._name in groups and group(self._name).source == family else {}
        return [held for _ in rows]
