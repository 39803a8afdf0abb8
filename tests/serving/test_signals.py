"""Signals are the answers of FeatureReader.one, whatever cells a user has and however old they are."""

import asyncio
import dataclasses
import itertools
import json
import random

import numpy as np
import pytest
from cell_world import DAY, HOUR, MINUTE, SECOND, batch_cells, puts, stream_cells, write, write_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_world import NOW

from schemas.cells import CellError
from schemas.features import FEATURES
from schemas.keys import USER, hash64, row_key
from serving.catalogue import Catalogue
from serving.features import FeatureReader
from serving.profile import read_user
from serving.signals import SignalReader
from serving.stores.aio import DeadlineError, open_async
from serving.stores.base import Cell, FeatureWrite, ListWrite, StoreError

NAMES = itertools.count()
ITEMS = [f"item {i}" for i in range(7)]
NUMBERS = [f.name for f in FEATURES if f.entity == "user" and f.dtype != "list"]


def signals(world, user="ann", now=NOW, reader=None, timeout=None):
    async def read():
        store = open_async(world.uri)
        try:
            return await (reader or SignalReader(status_seconds=0)).read(store, user, now, timeout)
        finally:
            await store.close()

    return asyncio.run(read())


def with_list(world, user, now, job, version="v1"):
    """The same read with the user's list, and that list."""
    async def read():
        store = open_async(world.uri)
        try:
            return await SignalReader(job, 0).read_with_list(store, user, f"list of {user}", version, now, 1.0)
        finally:
            await store.close()

    return asyncio.run(read())


def shares(value):
    return {entry.id: pytest.approx(entry.score, rel=1e-6) for entry in value}


def check(world, user, now, job="stream"):
    """Against the reader for people, feature by feature."""
    oracle = FeatureReader(job, 0).one(world.store, "user", user, now)
    profile = read_user(world.store, Catalogue(), user, now, FeatureReader(job, 0))
    found, values = signals(world, user, now, SignalReader(job, 0)), oracle.values
    at_once, listed = with_list(world, user, now, job)
    assert listed is None and all(getattr(at_once, f.name) == getattr(found, f.name) for f in dataclasses.fields(found))
    assert set(at_once.hidden.hashes.tolist()) == set(found.hidden.hashes.tolist()) == {hash64(item) for item in found.hidden}
    assert (found.known, found.low_confidence) == (oracle.known, oracle.low_confidence)
    assert list(found.session) == [(e.id, pytest.approx(e.score)) for e in values["session_items"].value]
    assert list(found.history) == [(h.item_id, pytest.approx(h.weight)) for h in profile.history]
    expected = values["category_preference"].value or values["category_affinity_30d"].value
    assert list(found.preference) == [e.id for e in expected] and found.preference == shares(expected)
    assert {e.id for e in values["consumed_items"].value} <= found.hidden
    taken = {name: v for name in NUMBERS if (v := values[name]).source != "default"}
    assert found.values == {name: pytest.approx(v.value, rel=1e-6) for name, v in taken.items()}
    assert found.sources == {name: v.source for name, v in taken.items()}
    if oracle.known and values["segment"].source == "batch":
        assert found.segment == values["segment"].label
    return found


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), batch_age=st.sampled_from([0, HOUR, 7 * DAY, 7 * DAY + 1000, 40 * DAY]),
       stream_age=st.sampled_from([0, MINUTE, 29 * MINUTE, 30 * MINUTE, 5 * HOUR, 23 * HOUR, 2 * DAY]),
       status_age=st.sampled_from([None, 0, 600 * SECOND, 601 * SECOND]), put_age=st.sampled_from([None, 0, HOUR, 8 * DAY]))
def test_signals_are_what_the_reader_for_people_says(world, seed, batch_age, stream_age, status_age, put_age):
    chance, user = random.Random(seed), f"u{next(NAMES)}"
    batch = batch_cells(NOW - batch_age, chance.sample(ITEMS, 5))
    stream = stream_cells(NOW - stream_age, chance.sample(ITEMS, 5))
    del batch["user_liked_items"]  # not read: who has it has all of the others
    write(world.store, user, "batch", {k: batch[k] for k in chance.sample(sorted(batch), chance.randint(0, len(batch)))})
    write(world.store, user, "stream", {k: stream[k] for k in chance.sample(sorted(stream), chance.randint(0, len(stream)))})
    if put_age is not None:
        entries = ["put item"], np.array([NOW - DAY]), np.array([3], np.float32)
        write(world.store, user, "batch", puts(NOW - put_age, segment=1.0, recency_days=0.5, last_items=entries,
                                               category_affinity_30d=entries, consumed_items=entries))
    if status_age is not None:
        write_status(world.store, NOW - status_age, job=user)
    check(world, user, NOW, job=user)


def test_everything_of_a_user(world):
    write(world.store, "ann", "batch", batch_cells(NOW - DAY, ["a", "b", "c"]))
    write(world.store, "ann", "stream", stream_cells(NOW - MINUTE, ["c", "d"]))
    profile = {"country": "DE", "signup_at": 1, "attributes": {"age_group": "25-34", "left": None}}
    write(world.store, "ann", "meta", {"user": Cell(json.dumps(profile).encode(), NOW)})
    write_status(world.store, NOW - SECOND)
    found = check(world, "ann", NOW)
    assert found.hidden == {"b", "c", "sold"} and found.segment == "power" and not found.missing
    assert [i for i, _ in found.session] == ["c", "d"] and [i for i, _ in found.history] == ["c", "d", "a", "b"]
    assert next(iter(found.preference)) and set(found.preference) == {"Crime", "Drama", "Noir"}
    assert found.attributes == {"country": "DE", "age_group": "25-34"}
    assert found.sources["count_view_1h"] == "stream" and found.sources["segment"] == "batch"


def test_without_a_stream_the_preference_is_that_of_30_days_and_what_was_bought_stays_hidden(world):
    write(world.store, "ann", "batch", batch_cells(NOW - DAY, ["a", "b"]))
    write(world.store, "ann", "stream", stream_cells(NOW - MINUTE, ["c"]))
    found = check(world, "ann", NOW)  # no status row: the stream never ran
    assert found.preference == {"Drama": 0.75, "Komödie": 0.25} and found.session == () and "sold" in found.hidden


def test_consumed_items_stay_hidden_however_old_the_batch_is(world):
    write(world.store, "ann", "batch", batch_cells(NOW - 100 * DAY, ["a", "b"]))
    assert signals(world).hidden == {"b"} and signals(world).history == []


def test_a_user_never_seen_and_one_whom_only_the_stream_knows(world):
    nobody = signals(world, "nobody")
    assert (nobody.known, nobody.segment, nobody.hidden, list(nobody.history), dict(nobody.values)) == (
        False, None, frozenset(), [], {})
    write(world.store, "new", "stream", stream_cells(NOW, ["a"]))
    write_status(world.store, NOW)
    new = signals(world, "new")
    assert new.known and new.low_confidence and new.segment == "new"


def test_the_list_of_a_version_comes_with_the_signals_and_without_them_where_a_cell_is_broken(world):
    write(world.store, "ann", "batch", batch_cells(NOW - DAY, ["a", "b"]))
    world.store.write_lists([ListWrite("list of ann", version, Cell(version.encode(), NOW)) for version in ("v1", "v2")])
    found, listed = with_list(world, "ann", NOW, "stream", "v2")
    assert found.hidden == {"b"} and listed == Cell(b"v2", NOW)
    write(world.store, "ann", "batch", {"user_consumed": Cell(b"", NOW)})
    assert with_list(world, "ann", NOW, "stream") == (None, Cell(b"v1", NOW))
    write(world.store, "ann", "stream", {f"s:{i}": Cell(b"x", NOW) for i in range(300)})
    assert with_list(world, "ann", NOW, "stream") is None  # too many for one round


def test_ids_that_are_too_long_for_a_key_or_have_a_zero_are_read_as_others(world):
    for user in ("ann", "a\0b", "c" * 256):
        gone = {f"s:{item}": Cell(b"x", NOW) for item in ("plain", "0\0", "d" * 256, "Käse" * 60)}
        write(world.store, user, "stream", stream_cells(NOW - MINUTE, ["c", "d"]) | gone)
        write_status(world.store, NOW)
        assert check(world, user, NOW).suppressed == {name[2:] for name in gone} | {"sold"}


def test_a_broken_cell_a_store_that_is_away_and_one_that_is_slow_are_three_errors(world):
    write(world.store, "ann", "batch", {"user_consumed": Cell(b"broken", NOW)})
    with pytest.raises(CellError):
        signals(world)
    many = [FeatureWrite(row_key(USER, "heavy"), "stream", f"s:{i:07}", Cell(b"x" * 100, NOW)) for i in range(60_000)]
    world.store.write_features(many)
    with pytest.raises(DeadlineError):
        signals(world, "heavy", timeout=0.0)
    world.uri = world.uri.replace("store.db", "elsewhere.db")
    with pytest.raises(StoreError, match="no store"):
        signals(world)


def test_the_status_is_read_once_a_second(world):
    write(world.store, "ann", "stream", stream_cells(NOW, ["a"]))
    write_status(world.store, NOW)
    reader = SignalReader(status_seconds=60)
    assert signals(world, reader=reader).session
    write_status(world.store, NOW + 2 * DAY)
    later = NOW + 700 * SECOND  # the session is open, but the status that is held is old
    assert not signals(world, now=later, reader=reader).session
    assert signals(world, now=later).session
