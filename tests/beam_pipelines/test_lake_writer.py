"""The lake writer: whatever the order, chunks, memory and repeats, each event is stored once, its lowest position."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_pipelines.io.ingest import ingest, upsert_items, upsert_users
from beam_pipelines.io.lake import Lake
from schemas.arrow import TIMESTAMP
from schemas.keys import hash64
from schemas.tables import EVENTS, ITEMS, USERS
from schemas.workspace import DAY_MICROS

DAY = 20_000 * DAY_MICROS
SCHEMA = pa.schema([f.with_nullable(True) for f in EVENTS.schema if f.name != "event_hash"])


def event(event_id: str | None = "e", offset: int = 0, occurred: int = DAY, **other: Any) -> dict[str, Any]:
    return {"event_id": event_id, "user_id": "u", "item_id": "i", "event_type": "click", "occurred_at": occurred,
            "ingested_at": occurred, "categories": [], "attributes": [], "schema_version": 1, "source": "log",
            "partition": 0, "offset": offset, "index": 0, **other}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def stored(lake: Lake) -> list[dict[str, Any]]:
    rows = lake.read("events").to_pylist()
    return sorted(rows, key=lambda r: (r["event_id"], r["source"], r["offset"]))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


def test_events_are_stored_with_their_hash_by_day(lake: Lake) -> None:
    rows = [event("a", 1, DAY + 5), event("b", 2, DAY + DAY_MICROS, categories=["x", "y"], attributes=[("k", "v")])]
    counts = ingest(lake, [table(rows)])
    assert (counts.read, counts.stored, counts.rejected, counts.duplicates) == (2, 2, 0, 0)
    assert counts.last_event == DAY + DAY_MICROS
    a, b = stored(lake)
    assert (a["event_hash"] & (2**64 - 1), b["categories"], b["attributes"]) == (hash64("a"), ["x", "y"], [("k", "v")])
    assert lake.days("events") == [DAY, DAY + DAY_MICROS]


def test_a_second_time_changes_nothing(lake: Lake) -> None:
    rows = table([event(str(i), i, DAY + i * DAY_MICROS // 4) for i in range(20)])
    ingest(lake, [rows])
    before = lake.snapshot_id("events")
    again = ingest(lake, [rows.slice(10), rows.slice(0, 10)])
    assert (again.read, again.stored, again.duplicates, again.conflicts) == (20, 0, 20, 0)
    assert lake.snapshot_id("events") == before


@pytest.mark.parametrize("first", ["low", "high", "together"])
@pytest.mark.parametrize("days_apart", [0, 1])
def test_of_copies_that_differ_the_lowest_position_wins(lake: Lake, first: str, days_apart: int) -> None:
    low, high = event("a", 1, DAY, value=1.0), event("a", 2, DAY + days_apart * DAY_MICROS, value=2.0)
    neighbour = event("b", 3, DAY)
    groups = {"low": [[low], [high, neighbour]], "high": [[high, neighbour], [low]],
              "together": [[high, neighbour, low]]}[first]
    counts = [ingest(lake, [table(rows)]) for rows in groups]
    assert [(r["event_id"], r["value"]) for r in stored(lake)] == [("a", 1.0), ("b", None)]
    assert sum(c.conflicts for c in counts) == 1
    assert sum(c.stored for c in counts) == 2 and sum(c.duplicates for c in counts) == 1


def test_a_copy_sent_again_is_no_conflict(lake: Lake) -> None:
    later = event("a", 9) | {"ingested_at": DAY + 60_000_000, "source": "log-2"}
    counts = ingest(lake, [table([event("a", 1), later])])
    assert (counts.duplicates, counts.conflicts) == (1, 0)


@pytest.mark.parametrize(("change", "reason"), [
    ({"event_id": None}, "missing_event_id"), ({"event_id": ""}, "missing_event_id"), ({"user_id": None}, "missing_user_id"),
    ({"item_id": None}, "missing_item_id"), ({"event_type": "tap"}, "unknown_event_type"),
    ({"event_type": None}, "unknown_event_type"), ({"user_id": "x" * 513}, "id_too_long"),
    ({"ingested_at": DAY - 600_000_001}, "from_the_future"),
    ({"occurred_at": -1, "ingested_at": -1}, "time_out_of_range"),
    ({"occurred_at": 10**16, "ingested_at": None}, "time_out_of_range"),
    ({"value": float("nan")}, "value_not_finite"),
])
@pytest.mark.parametrize("encoded", [False, True])
def test_bad_events_become_dead_letters(lake: Lake, change: dict[str, Any], reason: str, encoded: bool) -> None:
    rows = table([event("good", 1), event("bad", 2) | change])
    if encoded:
        for name in ("event_id", "user_id", "item_id", "event_type"):
            rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].dictionary_encode())
    counts = ingest(lake, [rows])
    assert (counts.read, counts.stored, counts.rejected_by_reason) == (2, 1, {reason: 1})
    (letter,) = lake.read("dead_letters").to_pylist()
    assert (letter["reason"], letter["offset"]) == (reason, 2) and b'"offset": 2' in letter["payload"]
    ingest(lake, [rows])
    assert len(lake.read("dead_letters")) == 1, "a dead letter is kept once"


def test_what_is_allowed(lake: Lake) -> None:
    rows = [event("s", 1, item_id=None, event_type="signup"), event("n", 2, ingested_at=None),
            event("f", 3, ingested_at=DAY - 600_000_000)]
    assert ingest(lake, [table(rows)]).stored == 3


def test_equal_hashes_of_different_ids_are_both_kept(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr("beam_pipelines.io.ingest.hash64_strings", lambda column: np.full(len(column), 7, np.uint64))
    rows = [event(str(i), i, DAY + i % 3 * DAY_MICROS) for i in range(9)]
    assert ingest(lake, [table(rows[:6])]).stored == 6
    again = ingest(lake, [table(rows)])
    assert (again.stored, again.duplicates, again.conflicts) == (3, 6, 0)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(0, 2)), max_size=40),
       st.randoms(use_true_random=False), st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_any_order_and_any_chunks_store_the_same(tmp_path_factory: pytest.TempPathFactory, copies: list[tuple[int, int, int]],
                                                 shuffle: random.Random, chunk: int, ingests: int, tight: bool) -> None:
    rows = [event(f"e{e}", offset, DAY + day * DAY_MICROS, value=float(v)) for offset, (e, day, v) in enumerate(copies)]
    wanted: dict[str, dict[str, Any]] = {}
    for row in rows:  # ascending positions: the first of each id is the lowest
        wanted.setdefault(row["event_id"], row)
    shuffle.shuffle(rows)
    chunks = [table(rows[i : i + chunk]) for i in range(0, len(rows), chunk)]
    lake = Lake.open(tmp_path_factory.mktemp("lake"))
    total = [ingest(lake, chunks[i::ingests], budget_bytes=1 if tight else 1 << 20) for i in range(ingests)]
    found = {r["event_id"]: (r["offset"], r["value"]) for r in stored(lake)}
    assert found == {k: (r["offset"], r["value"]) for k, r in wanted.items()}
    assert len(stored(lake)) == len(wanted) == sum(c.stored for c in total)
    assert sum(c.duplicates for c in total) == len(rows) - len(wanted)


def test_a_day_of_many_files_is_merged(lake: Lake) -> None:
    for i in range(7):
        ingest(lake, [table([event(str(i), i)])])
    assert len(lake.files("events")) <= 4 and len(stored(lake)) == 7


def test_upserts_keep_the_newest(lake: Lake) -> None:
    def items(*rows: tuple[str, str, int]) -> pa.Table:
        return pa.table({"item_id": [r[0] for r in rows], "title": [r[1] for r in rows], "categories": [["c"]] * len(rows),
                         "is_active": [True] * len(rows), "updated_at": pa.array([r[2] for r in rows]).cast(TIMESTAMP),
                         "attributes": pa.array([[("year", "1995")]] * len(rows), ITEMS.schema.field("attributes").type),
                         "schema_version": [1] * len(rows)})

    assert upsert_items(lake, items(("b", "B", 0), ("a", "A", 5))) == 2
    before = lake.snapshot_id("items")
    assert upsert_items(lake, items(("a", "old", 4), ("b", "B", 0))) == 0
    assert lake.snapshot_id("items") == before, "nothing changed, so nothing is written"
    assert upsert_items(lake, items(("a", "new", 6), ("b", "again", 0), ("c", "C", 1), ("c", "C2", 0))) == 3
    rows = [(r["item_id"], r["title"]) for r in lake.read("items").to_pylist()]
    assert rows == [("a", "new"), ("b", "again"), ("c", "C")]


def test_users_need_only_what_has_no_default(lake: Lake) -> None:
    users = pa.table({"user_id": ["u"], "is_active": [True], "updated_at": pa.array([0]).cast(TIMESTAMP),
                      "attributes": pa.array([[]], USERS.schema.field("attributes").type), "schema_version": [1]})
    assert upsert_users(lake, users) == 1
    assert lake.read("users").to_pylist()[0]["signup_at"] is None
