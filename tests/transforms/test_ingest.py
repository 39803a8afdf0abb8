"""De-duplication against plain Polars, and the content comparison against Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.keys import hash64
from schemas.tables import EVENTS
from transforms.ingest import days_of, dedupe, differ, validate

COPY = st.fixed_dictionaries({
    "event_id": st.sampled_from([f"e{i}" for i in range(8)]), "source": st.sampled_from(["a", "b", "ä", "z"]),
    "partition": st.integers(0, 2), "offset": st.integers(0, 5), "index": st.integers(0, 1),
    "value": st.none() | st.sampled_from([1.0, 2.0]), "surface": st.none() | st.sampled_from(["home", "cart"]),
    "categories": st.lists(st.sampled_from(["x", "y"]), max_size=2),
    "attributes": st.lists(st.tuples(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2"])), max_size=2),
})


def table(copies: list[dict[str, Any]], collide: bool = False) -> pa.Table:
    rest = {"user_id": "u", "item_id": "i", "event_type": "click", "occurred_at": 5, "schema_version": 1}
    hashed = [np.int64(7) if collide else np.uint64(hash64(c["event_id"])).astype(np.int64) for c in copies]
    rows = [{**rest, **c, "event_hash": int(h)} for c, h in zip(copies, hashed, strict=True)]
    return pa.Table.from_pylist(rows, EVENTS.schema)


@settings(max_examples=200, deadline=None)
@given(st.lists(COPY, max_size=40), st.booleans(), st.booleans())
def test_the_lowest_position_is_kept(copies: list[dict[str, Any]], collide: bool, encode: bool) -> None:
    events = table(copies, collide)
    if encode:
        for name in ("source", "surface"):
            events = events.set_column(events.schema.get_field_index(name), name, events[name].dictionary_encode())
    result = dedupe(events)
    frame = pl.DataFrame(copies, schema={"event_id": pl.String, "source": pl.String, "partition": pl.Int32, "offset": pl.Int64,
                                         "index": pl.Int32}).with_row_index("row")
    kept = frame.sort("source", "partition", "offset", "index", "row").unique("event_id", keep="first")
    assert sorted(set(range(len(copies))) - set(result.lost.tolist())) == sorted(kept["row"].to_list())
    winner = dict(zip(kept["event_id"], kept["row"], strict=True))

    def content(row: int) -> tuple[Any, ...]:
        return tuple(repr(copies[row][c]) for c in ("value", "surface", "categories", "attributes"))

    expected = [content(row) != content(winner[copies[row]["event_id"]]) for row in result.lost.tolist()]
    assert result.conflicts.tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(COPY, COPY), max_size=15))
def test_differ_compares_content_only(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    names = ("event_id", "value", "surface", "categories", "attributes")
    found = differ(table([a for a, _ in pairs]), table([b for _, b in pairs]))
    assert found.tolist() == [any(a[n] != b[n] for n in names) for a, b in pairs]


def test_of_equal_positions_the_stored_copy_is_kept() -> None:
    copy = {"event_id": "e", "source": "a", "partition": 0, "offset": 1, "index": 0, "categories": [], "attributes": []}
    events = table([copy | {"value": 1.0}, copy | {"value": 2.0}])
    assert dedupe(events, np.array([False, True])).lost.tolist() == [0]
    assert dedupe(events).lost.tolist() == [1]


def test_days_and_codes_have_one_entry_a_row() -> None:
    times = pa.array([0, 86_400_000_000 - 1, 86_400_000_000]).cast(pa.timestamp("us", "UTC"))
    assert days_of(times).tolist() == [0, 0, 86_400_000_000]
    assert validate(table([])).shape == (0,)
