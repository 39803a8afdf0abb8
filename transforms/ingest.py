"""Which events enter the lake: validation, and exact de-duplication where the lowest log position wins.

Pure functions over Arrow tables of ``schemas.tables.EVENTS``; string columns may be dictionary-encoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.event_types import NAMES
from schemas.tables import POSITION
from schemas.workspace import DAY_MICROS

MAX_ID_BYTES = 512
MAX_AHEAD_MICROS = 600_000_000
"""An event may occur at most ten minutes after it was ingested: clocks differ by less."""

END_OF_TIME = 7_258_118_400_000_000
"""The year 2200, in microseconds: a later time is a mistake."""

REASONS = ("", "missing_event_id", "missing_user_id", "unknown_event_type", "missing_item_id", "id_too_long",
           "from_the_future", "time_out_of_range", "value_not_finite")
"""Why validate() refuses an event; a reason's code is its position, 0 is fine."""

# A copy sent again is stamped anew and read elsewhere: that alone makes it no other event.
_NOT_CONTENT = {*(f.name for f in POSITION), "ingested_at", "event_hash", "schema_version"}

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, without a copy where it is one chunk."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _by_value(column: pa.Array, test: object, of_null: bool) -> Mask:
    """``test(values) -> bool array`` per row; run once per distinct value of a dictionary-encoded column."""
    if pa.types.is_dictionary(column.type):
        flags = np.append(test(column.dictionary), of_null)  # type: ignore[operator]
        return flags[column.indices.fill_null(len(flags) - 1).to_numpy(zero_copy_only=False)]
    flags = test(column)  # type: ignore[operator]
    if column.null_count:
        flags[column.is_null().to_numpy(zero_copy_only=False)] = of_null
    return flags


def _lengths(values: pa.Array) -> npt.NDArray[np.int32]:
    return pc.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False)


def _empty(values: pa.Array) -> Mask:
    return _lengths(values) == 0


def _long(values: pa.Array) -> Mask:
    return _lengths(values) > MAX_ID_BYTES


def _unknown_type(values: pa.Array) -> Mask:
    return ~pc.is_in(values, pa.array(NAMES)).to_numpy(zero_copy_only=False)


def _signup(values: pa.Array) -> Mask:
    return pc.equal(values, "signup").fill_null(False).to_numpy(zero_copy_only=False)


def micros(column: pa.Array) -> npt.NDArray[np.int64]:
    """A timestamp column as int64 microseconds; null reads 0."""
    numbers = column.cast(pa.int64())
    return (numbers.fill_null(0) if numbers.null_count else numbers).to_numpy(zero_copy_only=False)


def days_of(column: pa.Array) -> npt.NDArray[np.int64]:
    """The midnight (microseconds) of each timestamp's UTC day."""
    return micros(column) // DAY_MICROS * DAY_MICROS


def validate(events: pa.Table) -> npt.NDArray[np.int8]:
    """The code in REASONS of each of n events, 0 for those that may be stored; shape (n,)."""
    code = np.zeros(len(events), np.int8)

    def refuse(reason: str, bad: Mask) -> None:
        if bad.any():
            code[(code == 0) & bad] = REASONS.index(reason)

    event_id, user_id, item_id, event_type = (whole(events[c]) for c in ("event_id", "user_id", "item_id", "event_type"))
    refuse("missing_event_id", _by_value(event_id, _empty, True))
    refuse("missing_user_id", _by_value(user_id, _empty, True))
    refuse("unknown_event_type", _by_value(event_type, _unknown_type, True))
    missing = _by_value(item_id, _empty, True)
    if missing.any():
        refuse("missing_item_id", missing & ~_by_value(event_type, _signup, False))
    for column in (event_id, user_id, item_id):
        refuse("id_too_long", _by_value(column, _long, False))
    occurred, ingested = whole(events["occurred_at"]), whole(events["ingested_at"])
    ahead = micros(occurred) - micros(ingested) > MAX_AHEAD_MICROS
    if ingested.null_count:
        ahead &= ingested.is_valid().to_numpy(zero_copy_only=False)
    refuse("from_the_future", ahead)
    refuse("time_out_of_range", (micros(occurred) < 0) | (micros(occurred) >= END_OF_TIME))
    for name in ("value", "price"):
        numbers = whole(events[name])
        if numbers.null_count < len(numbers):
            refuse("value_not_finite", ~pc.is_finite(numbers).fill_null(True).to_numpy(zero_copy_only=False))
    return code


@dataclass(frozen=True)
class Deduped:
    """What dedupe() decided about n events.

    Attributes:
      lost: (m,) row numbers of the copies that lose, ascending.
      conflicts: (m,) whether each loser differs in content from the copy that is kept.
    """

    lost: Rows
    conflicts: Mask


def dedupe(events: pa.Table, stored: Mask | None = None) -> Deduped:
    """Finds the copies of events that lose: of those sharing an event_id the lowest position is kept.

    Position is (source, partition, offset, index); of equal positions a stored copy beats a new one, then the first row.
    Rows are grouped by ``event_hash`` (hash64 of event_id) and compared exactly where hashes are equal, so a collision
    of hashes never loses an event.

    Args:
      events: n events with their positions and event_hash.
      stored: (n,) whether the event is in the lake already; None for none.
    """
    hashes = whole(events["event_hash"]).to_numpy()
    none = Deduped(np.zeros(0, np.int64), np.zeros(0, bool))
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return none
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    involved = np.zeros(len(order), bool)
    same = ordered[1:] == ordered[:-1]
    involved[1:] |= same
    involved[:-1] |= same
    rows = np.sort(order[involved])
    some = events.take(rows)
    ids = whole(some["event_id"].cast(pa.string())).dictionary_encode().indices.to_numpy()
    keys = [whole(some[f.name]) for f in POSITION]
    columns = [_ranks(keys[0]), *(k.to_numpy() for k in keys[1:])]
    if stored is not None:
        columns.append(~stored[rows])
    # Least significant first, and a constant key sorts nothing: both spare lexsort passes.
    by = np.lexsort([c for c in reversed(columns) if len(c) and (c != c[0]).any()] + [ids])
    first = np.append(True, ids[by][1:] != ids[by][:-1])
    winner = by[np.maximum.accumulate(np.where(first, np.arange(len(by)), 0))]
    lost, kept = by[~first], winner[~first]
    if not len(lost):
        return none
    conflicts = differ(some.take(lost), some.take(kept))
    arranged = np.argsort(lost)
    return Deduped(rows[lost[arranged]], conflicts[arranged])


def _ranks(column: pa.Array) -> npt.NDArray[np.int64]:
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    _, rank = np.unique(np.array(encoded.dictionary.to_pylist(), object), return_inverse=True)
    return rank[encoded.indices.to_numpy()]


def differ(left: pa.Table, right: pa.Table) -> Mask:
    """Row by row, whether two events differ in content (all but position, ingested_at and schema_version); shape (n,)."""
    out = np.zeros(len(left), bool)
    for name in left.column_names:
        if name not in _NOT_CONTENT:
            out |= _column_differs(whole(left[name]), whole(right[name]))
    return out


def _column_differs(a: pa.Array, b: pa.Array) -> Mask:
    if pa.types.is_list(a.type) or pa.types.is_map(a.type):
        return _lists_differ(a, b)
    if pa.types.is_dictionary(a.type):
        a = a.cast(a.type.value_type)
    if pa.types.is_dictionary(b.type):
        b = b.cast(b.type.value_type)
    unlike = pc.not_equal(a, b).fill_null(False).to_numpy(zero_copy_only=False)
    if a.null_count or b.null_count:
        unlike = unlike | (a.is_null().to_numpy(zero_copy_only=False) != b.is_null().to_numpy(zero_copy_only=False))
    return unlike


def _lists_differ(a: pa.Array, b: pa.Array) -> Mask:
    if pa.types.is_map(a.type):
        return _lists_differ(_part(a, "keys"), _part(b, "keys")) | _lists_differ(_part(a, "items"), _part(b, "items"))
    sizes_a, sizes_b = (pc.list_value_length(x).fill_null(-1).to_numpy(zero_copy_only=False) for x in (a, b))
    out = np.asarray(sizes_a != sizes_b)
    rows = np.flatnonzero(~out & (sizes_a > 0))
    if len(rows):
        values = _column_differs(a.take(rows).flatten(), b.take(rows).flatten())
        owner = np.repeat(rows, sizes_a[rows])
        out[owner[values]] = True
    return out


def _part(column: pa.Array, part: str) -> pa.Array:
    return pa.ListArray.from_arrays(column.offsets, getattr(column, part))
