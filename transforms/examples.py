"""Point-in-time rows for the two-tower model: what was known of a user and of an item at a moment, and nothing later.

A training example is a user's first positive event on an item (schemas.event_types). Its user side is the last 50 distinct
positive items strictly before the moment, newest first, and the newest user snapshot published before it; its item side
the catalogue entry and the newest item snapshot published before it. Queries at evaluation and rows at inference come
from the same functions, so a model never sees a column built in two ways.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from schemas.event_types import EVENT_TYPES
from schemas.features import LAST_ITEMS_CAP

Ints = npt.NDArray[np.int64]

USER_STATS = ("recency_days", "active_days_30d", "distinct_items_30d", "segment", "dwell_mean_7d", "price_mean_30d")
ITEM_STATS = ("popularity_share_30d", "ctr_smoothed_30d")
"""Snapshot features that the towers read; NaN where there is no snapshot or no value.

Item values that drift with the calendar (age, popularity of a day or week) stay out: a batch's negatives come from other
moments, so the softmax would tell them from positives by their date (validation Recall@20 .19 with them, .28 without).
"""

EVENT_COLUMNS = ("user_id", "item_id", "event_type", "value", "occurred_at", "event_hash")
"""Columns of the events table that examples need."""
USER_SNAPSHOT_COLUMNS = ("user_id", "as_of", "published_at", "category_affinity_30d", *USER_STATS)
ITEM_SNAPSHOT_COLUMNS = ("item_id", "as_of", "published_at", *ITEM_STATS)
"""Columns of the snapshot tables that examples need; a user's history comes from the events themselves."""
ORDER = ("occurred_at", "event_hash")
"""Examples are ordered by these two int64 columns, whatever files they come in."""

_STRINGS, _FLOATS = pa.list_(pa.string()), pa.list_(pa.float32())
USER_SCHEMA = pa.schema([
    ("liked_items", _STRINGS),  # newest first, at most LAST_ITEMS_CAP
    ("liked_ages", _FLOATS),  # days from each to the moment
    ("affinity_ids", _STRINGS),
    ("affinity_shares", _FLOATS),
    *((name, pa.float32()) for name in USER_STATS),
])
ITEM_SCHEMA = pa.schema([
    ("item_id", pa.string()),
    ("categories", _STRINGS),
    ("year", pa.float32()),
    ("price", pa.float32()),
    *((name, pa.float32()) for name in ITEM_STATS),
])
KEY_SCHEMA = pa.schema([("user_id", pa.string()), ("occurred_at", pa.int64()), ("event_hash", pa.int64())])
EXAMPLE_SCHEMA = pa.schema([*KEY_SCHEMA, *USER_SCHEMA, *ITEM_SCHEMA])
"""One row per example; occurred_at in microseconds."""

DAY_MICROS = 86_400_000_000


def plain(rows: pa.Table) -> pa.Table:
    """The same rows with dictionary-encoded columns written out, as the lake's files may hold either."""
    decoded = [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in rows.columns]
    return pa.table(decoded, names=rows.column_names)


def positives(events: pa.Table) -> pa.Table:
    """The events that are positive by schemas.event_types, without rows that have no item. Column order is kept."""
    keep = pa.scalar(False)
    for kind in EVENT_TYPES:
        if kind.positive:
            same = pc.equal(events["event_type"], kind.name)
            if kind.min_value is not None:
                same = pc.and_(same, pc.fill_null(pc.greater_equal(events["value"], kind.min_value), False))
            keep = pc.or_(keep, same)
    return events.filter(pc.and_(keep, pc.is_valid(events["item_id"])))


def consumed(events: pa.Table) -> pa.Table:
    """The events that consume their item by schemas.event_types."""
    names = pa.array([kind.name for kind in EVENT_TYPES if kind.consumes])
    return events.filter(pc.and_(pc.is_in(events["event_type"], names), pc.is_valid(events["item_id"])))


def labels(events: pa.Table) -> pa.Table:
    """The first positive event of each (user, item), by (occurred_at, event_hash): the labels of training.

    Args:
      events: EVENT_COLUMNS; the order does not matter.

    Returns:
      user_id, item_id, occurred_at (int64 microseconds), event_hash, sorted by (occurred_at, event_hash).
    """
    frame = pl.DataFrame(_keyed(positives(events)))
    first = frame.sort("occurred_at", "event_hash").unique(("user_id", "item_id"), keep="first", maintain_order=True)
    return first.to_arrow().cast(pa.schema([("user_id", pa.string()), ("item_id", pa.string()),
                                            ("occurred_at", pa.int64()), ("event_hash", pa.int64())]))


def user_rows(events: pa.Table, snapshots: pa.Table | None, user_ids: pa.Array | pa.ChunkedArray, moments: Ints) -> pa.Table:
    """The user side at each of n (user, moment) queries.

    Args:
      events: EVENT_COLUMNS; only positives strictly before a moment count for it.
      snapshots: rows of the user_snapshots table with ``published_at``; None when there are none yet.
      user_ids, moments: n users and microseconds.

    Returns:
      (n rows) USER_SCHEMA, in the order asked.
    """
    liked, ages = _histories(positives(events), user_ids, moments)
    found = _newest(snapshots, "user_id", user_ids, moments)
    return pa.table([liked, ages, *_snapshot_columns(snapshots, found)], schema=USER_SCHEMA)


def user_rows_of_snapshot(snapshot: pa.RecordBatch | pa.Table) -> pa.Table:
    """The user side of each row of a user snapshot, as of its own ``as_of``: what batch inference feeds the model.

    Absent columns count as null, so that a caller may read only what it needs; liked_items without ``as_of`` get age 0.
    """
    table = pa.table(snapshot) if isinstance(snapshot, pa.RecordBatch) else snapshot
    n = table.num_rows
    if "liked_items" in table.column_names:
        ids, times = _parts(table["liked_items"], "ids", "times")
        as_of = table["as_of"].cast(pa.int64()).to_numpy() if "as_of" in table.column_names else None
        lengths = np.diff(ids.offsets.to_numpy())
        at = times.values.to_numpy() if as_of is None else np.repeat(as_of, lengths)
        days = (at - times.values.to_numpy()) / DAY_MICROS
        ages = pa.ListArray.from_arrays(ids.offsets, pa.array(days.astype(np.float32)))
    else:
        ids, ages = _empty_lists(n, _STRINGS), _empty_lists(n, _FLOATS)
    return pa.table([ids, ages, *_snapshot_columns(table, np.arange(n))], schema=USER_SCHEMA)


def item_rows(catalogue: pa.Table, snapshots: pa.Table | None, item_ids: pa.Array | pa.ChunkedArray, moments: Ints) -> pa.Table:
    """The item side at each of n (item, moment) queries.

    Args:
      catalogue: rows of the items table (item_id, categories, price, attributes with ``year``), one per item.
      snapshots: rows of the item_snapshots table with ``published_at``; None when there are none yet.
      item_ids, moments: n items and microseconds.

    Returns:
      (n rows) ITEM_SCHEMA, in the order asked; an item outside the catalogue has no categories.
    """
    ids = _one(item_ids).cast(pa.string())
    at = pc.index_in(ids, _one(catalogue["item_id"]))
    categories = pc.fill_null(_one(catalogue["categories"]).cast(_STRINGS).take(at), pa.scalar([], _STRINGS))
    year = catalogue_years(catalogue).take(at)
    price = _one(catalogue["price"]).cast(pa.float32()).take(at)
    found = _newest(snapshots, "item_id", ids, moments)
    stats = [_floats(snapshots, name, found) for name in ITEM_STATS]
    return pa.table([ids, categories, _nan(year), _nan(price), *stats], schema=ITEM_SCHEMA)


def catalogue_years(catalogue: pa.Table) -> pa.Array:
    """The year of each catalogue row: the attribute ``year``, else that of published_at, else null. float32."""
    text = pc.map_lookup(_one(catalogue["attributes"]), "year", "first")
    named = pc.if_else(pc.match_substring_regex(text, r"^\d{4}$"), text, None).cast(pa.float32())
    if "published_at" not in catalogue.column_names:
        return named
    return pc.coalesce(named, pc.year(_one(catalogue["published_at"])).cast(pa.float32()))


def build_examples(events: pa.Table, catalogue: pa.Table, user_snapshots: pa.Table | None,
                   item_snapshots: pa.Table | None) -> pa.Table:
    """Training examples of these users' events.

    All events of a user must be here (split by user, never by day). The arguments are those of ``labels``, ``user_rows``
    and ``item_rows``.

    Returns:
      EXAMPLE_SCHEMA, sorted by (occurred_at, event_hash). An example without history is kept: new users are real.
    """
    label = labels(events)
    moments = label["occurred_at"].to_numpy()
    users = user_rows(events, user_snapshots, label["user_id"], moments)
    items = item_rows(catalogue, item_snapshots, label["item_id"], moments)
    keys = [label[name] for name in KEY_SCHEMA.names]
    return pa.table([*keys, *users.columns, *items.columns], schema=EXAMPLE_SCHEMA)


def _keyed(events: pa.Table) -> dict[str, pa.Array]:
    return {"user_id": _one(events["user_id"]).cast(pa.string()), "item_id": _one(events["item_id"]).cast(pa.string()),
            "occurred_at": _one(events["occurred_at"]).cast(pa.int64()), "event_hash": _one(events["event_hash"])}


def _histories(liked: pa.Table, user_ids: pa.Array | pa.ChunkedArray, moments: Ints) -> tuple[pa.Array, pa.Array]:
    users = _one(liked["user_id"]).cast(pa.string()).dictionary_encode()
    items = _one(liked["item_id"]).cast(pa.string()).dictionary_encode()
    user_codes = users.indices.to_numpy()
    times = _one(liked["occurred_at"]).cast(pa.int64()).to_numpy()
    order = np.lexsort((_one(liked["event_hash"]).to_numpy(), times, user_codes))
    starts = np.searchsorted(user_codes[order], np.arange(len(users.dictionary) + 1))
    asked = pc.fill_null(pc.index_in(_one(user_ids).cast(pa.string()), users.dictionary), -1).to_numpy()
    codes, when, counts = _last_distinct(items.indices.to_numpy()[order], times[order], starts, asked,
                                         np.ascontiguousarray(moments, np.int64), LAST_ITEMS_CAP)
    offsets = pa.array(np.concatenate(([0], np.cumsum(counts))).astype(np.int32))
    ages = ((np.repeat(moments, counts) - when) / DAY_MICROS).astype(np.float32)
    names = items.dictionary.take(pa.array(codes))
    return pa.ListArray.from_arrays(offsets, names), pa.ListArray.from_arrays(offsets, pa.array(ages))


@numba.njit(cache=True)
def _last_distinct(items, times, starts, asked, moments, cap):  # type: ignore[no-untyped-def]
    """Walks back from each moment over a user's events (ascending) until ``cap`` distinct items are found."""
    n = len(asked)
    counts = np.zeros(n, np.int64)
    codes = np.empty(n * cap, np.int32)
    when = np.empty(n * cap, np.int64)
    at = 0
    for q in range(n):
        user = asked[q]
        if user < 0:
            continue
        low, high = starts[user], starts[user + 1]
        while low < high:  # first event not before the moment
            middle = (low + high) // 2
            if times[middle] < moments[q]:
                low = middle + 1
            else:
                high = middle
        first = at
        for k in range(low - 1, starts[user] - 1, -1):
            known = False
            for j in range(first, at):
                if codes[j] == items[k]:
                    known = True
                    break
            if not known:
                codes[at] = items[k]
                when[at] = times[k]
                at += 1
                if at - first == cap:
                    break
        counts[q] = at - first
    return codes[:at].copy(), when[:at].copy(), counts


def _newest(snapshots: pa.Table | None, key: str, ids: pa.Array | pa.ChunkedArray, moments: Ints) -> Ints:
    """Row of the newest snapshot of each id published strictly before its moment; -1 for none."""
    if snapshots is None or not snapshots.num_rows:
        return np.full(len(moments), -1)
    rows = pl.DataFrame({"id": _one(snapshots[key]).cast(pa.string()), "row": np.arange(snapshots.num_rows),
                         "at": _one(snapshots["published_at"]).cast(pa.int64()),
                         "as_of": _one(snapshots["as_of"]).cast(pa.int64())})
    asked = pl.DataFrame({"id": _one(ids).cast(pa.string()), "at": moments}).with_row_index("query")
    joined = asked.sort("at", "query").join_asof(rows.sort("at", "as_of", "row"), on="at", by="id", strategy="backward",
                                                 allow_exact_matches=False, check_sortedness=False)
    return joined.sort("query")["row"].fill_null(-1).to_numpy().astype(np.int64)


def _snapshot_columns(snapshots: pa.Table | None, rows: Ints) -> list[pa.Array]:
    """affinity_ids, affinity_shares and USER_STATS of snapshot rows; -1 is a missing row."""
    if snapshots is None or "category_affinity_30d" not in snapshots.column_names:
        shares = [_empty_lists(len(rows), _STRINGS), _empty_lists(len(rows), _FLOATS)]
    else:
        taken = _one(snapshots["category_affinity_30d"]).take(_rows(rows))
        shares = list(_parts(taken, "ids", "scores"))
    return [*shares, *(_floats(snapshots, name, rows) for name in USER_STATS)]


def _floats(snapshots: pa.Table | None, name: str, rows: Ints) -> pa.Array:
    if snapshots is None or name not in snapshots.column_names:
        return pa.array(np.full(len(rows), np.nan, np.float32))
    return _nan(_one(snapshots[name]).take(_rows(rows)))


def _parts(column: pa.Array | pa.ChunkedArray, *names: str) -> tuple[pa.ListArray, ...]:
    """List fields of a struct column; a null struct or list becomes an empty list, offsets start at 0."""
    whole = _one(column)
    kinds = {"ids": _STRINGS, "times": pa.list_(pa.int64()), "scores": _FLOATS}
    return tuple(_compact(pc.fill_null(pc.struct_field(whole, name).cast(kinds[name]), pa.scalar([], kinds[name])))
                 for name in names)


def _compact(lists: pa.ListArray) -> pa.ListArray:
    offsets = lists.offsets.to_numpy()
    return pa.ListArray.from_arrays(pa.array((offsets - offsets[0]).astype(np.int32)), lists.flatten())


def _empty_lists(n: int, kind: pa.DataType) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.zeros(n + 1, np.int32)), pa.array([], kind.value_type))


def _rows(rows: Ints) -> pa.Array:
    return pa.array(rows, mask=rows < 0)


def _nan(column: pa.Array) -> pa.Array:
    return pc.fill_null(column.cast(pa.float32()), float("nan"))


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        merged = column.combine_chunks()
        return merged if isinstance(merged, pa.Array) else pa.concat_arrays(merged.chunks)
    return column
