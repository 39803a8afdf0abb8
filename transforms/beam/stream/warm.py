"""Loads (or compiles) the compiled loops before the first event comes: a second of CPU, which a pane's end would wait for."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from schemas.arrow import arrow_schema
from schemas.event_types import NAMES
from schemas.stream_cells import PANE
from schemas.workspace import DAY_MICROS
from transforms.beam.stream.item import ItemBucket
from transforms.beam.stream.state import HOUR, Rules
from transforms.beam.stream.user import ITEM_COLUMNS, USER_COLUMNS, UserBucket
from transforms.beam.stream.wire import by_item, pack, split, unpack
from transforms.records import Records, decode
from transforms.records import pack as pack_record
from transforms.records.single import encode_singles

_EVENTS, _USERS, _ITEMS = 300, 7, 11


@functools.cache
def warm_up() -> None:
    """Sends some events through all that a job does to them, once in a process; what comes of them goes nowhere."""
    events = _events()
    packed = decode(Records.of([pack_record(events)]), "warm-up").events
    single = decode(Records.of(encode_singles(events)), "warm-up").events
    users, items = UserBucket.new(Rules(audit=True)), ItemBucket.new(Rules(audit=True))
    for batch in (packed, packed, single):  # twice the same: copies
        for _, part in split(batch.select(USER_COLUMNS), "user_id", 1):
            taken = users.take(unpack(pack(part)))
            pairs = [] if taken.pairs is None or not taken.pairs.num_rows else [taken.pairs]
            fresh = [taken.fresh.select(ITEM_COLUMNS)] if taken.fresh.num_rows else []
            for _, message in by_item(fresh, pairs, 1):
                items.take(message)
    for bucket in (users, items):
        bucket.flush()
        restored = type(bucket).restore(bucket.rules, bucket.marker, bucket.snapshot(), [])
        for horizon in (DAY_MICROS + HOUR, 3 * DAY_MICROS):
            restored.advance(horizon)
            restored.snapshot()


def _events() -> pa.RecordBatch:
    """Events of every type in two panes of one day."""
    schema, at = arrow_schema("event"), np.arange(_EVENTS)
    times = DAY_MICROS + at * (2 * PANE // _EVENTS)
    given = {
        "event_id": [f"warm-up-{i}" for i in at], "user_id": [f"user-{i % _USERS}" for i in at],
        "item_id": [f"item-{i % _ITEMS}" for i in at], "event_type": [NAMES[i % len(NAMES)] for i in at],
        "occurred_at": pa.array(times).cast(schema.field("occurred_at").type),
        "ingested_at": pa.array(times).cast(schema.field("ingested_at").type),
        "dwell_ms": (at * 10).tolist(), "price": (at / 4).tolist(),
        "categories": [[f"category-{i % 3}", f"category-{i % 2}"] for i in at], "attributes": [[]] * _EVENTS,
        "schema_version": [1] * _EVENTS}
    return pa.RecordBatch.from_arrays(
        [pa.array(given[f.name], f.type) if f.name in given else pa.nulls(_EVENTS, f.type) for f in schema], schema=schema)
