"""The lake's tables: Arrow schema, partition column and key of each. Event, item and user columns come from Avro."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from schemas.arrow import TIMESTAMP, arrow_schema
from schemas.event_types import NAMES
from schemas.features import FEATURES


@dataclass(frozen=True)
class Table:
    """A lake table. ``day_column`` is partitioned by its UTC day (None: not partitioned)."""

    name: str
    schema: pa.Schema
    day_column: str | None


POSITION = [
    pa.field("source", pa.string(), nullable=False),
    pa.field("partition", pa.int32(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("index", pa.int32(), nullable=False),
]
"""Where an event was read: topic or file, partition, offset or row, index in the pack. Of copies the lowest wins."""


def _snapshot(entity: str) -> pa.Schema:
    listed = pa.struct([("ids", pa.list_(pa.string())), ("times", pa.list_(pa.int64())),
                        ("scores", pa.list_(pa.float32()))])
    columns = [pa.field(f.name, listed if f.dtype == "list" else pa.float32()) for f in FEATURES
               if f.entity == entity and f.source == "batch"]
    return pa.schema([pa.field("as_of", TIMESTAMP, nullable=False), pa.field("published_at", TIMESTAMP, nullable=False),
                      pa.field(f"{entity}_id", pa.string(), nullable=False), *columns])


RAW_EVENTS = Table("raw_events", pa.schema([
    *POSITION,
    pa.field("captured_at", TIMESTAMP, nullable=False),  # the day of the event where it parsed, else of the capture
    pa.field("payload", pa.binary(), nullable=False),
]), "captured_at")
DEAD_LETTERS = Table("dead_letters", pa.schema([
    *POSITION,
    pa.field("reason", pa.string(), nullable=False),
    pa.field("detail", pa.string(), nullable=False),
    pa.field("payload", pa.binary(), nullable=False),
]), None)
EVENTS = Table("events", pa.schema([
    *arrow_schema("event"), *POSITION, pa.field("event_hash", pa.int64(), nullable=False),  # hash64 of event_id, as int64
]), "occurred_at")
SERVED = Table("served", pa.schema([*arrow_schema("served_features"), *POSITION]), "served_at")
ITEMS = Table("items", arrow_schema("item"), None)
USERS = Table("users", arrow_schema("user"), None)
PARTIALS = Table("partials", pa.schema([
    pa.field("day", TIMESTAMP, nullable=False),  # midnight of the day it covers
    pa.field("group", pa.string(), nullable=False),  # accumulator name
    pa.field("bucket", pa.int32(), nullable=False),
    pa.field("rows", pa.int64(), nullable=False),
    pa.field("inputs", pa.string(), nullable=False),  # fingerprint of what it was made from
    pa.field("state", pa.large_binary(), nullable=False),  # the accumulator's packed Arrow state
]), "day")
STATES = Table("states", PARTIALS.schema, "day")  # running states up to (not including) `day`
_COUNTS = [pa.field(f"count_{name}", pa.int64(), nullable=False) for name in NAMES]
_DWELL_PRICE = [pa.field("dwell_sum", pa.int64(), nullable=False),  # milliseconds
                pa.field("dwell_n", pa.int64(), nullable=False),
                pa.field("price_sum", pa.int64(), nullable=False),  # millionths, of events with weight > 0 and a price
                pa.field("price_n", pa.int64(), nullable=False),
                pa.field("price_min", pa.int64()), pa.field("price_max", pa.int64())]
STREAM_PANES = Table("stream_panes", pa.schema([
    pa.field("user_id", pa.string(), nullable=False), pa.field("start", TIMESTAMP, nullable=False), *_COUNTS,
    *_DWELL_PRICE]), "start")  # 5-minute panes of the stream that no event can change any more
STREAM_SESSIONS = Table("stream_sessions", pa.schema([
    pa.field("user_id", pa.string(), nullable=False), pa.field("start", TIMESTAMP, nullable=False),
    pa.field("end", TIMESTAMP, nullable=False), pa.field("events", pa.int64(), nullable=False), *_COUNTS,
    *_DWELL_PRICE]), "start")  # start and end: its first and last event
STREAM_MINUTES = Table("stream_minutes", pa.schema([
    pa.field("item_id", pa.string(), nullable=False), pa.field("start", TIMESTAMP, nullable=False),
    pa.field("weight", pa.int64(), nullable=False)]), "start")
USER_SNAPSHOTS = Table("user_snapshots", _snapshot("user"), "as_of")
ITEM_SNAPSHOTS = Table("item_snapshots", _snapshot("item"), "as_of")

TABLES: dict[str, Table] = {t.name: t for t in (
    RAW_EVENTS, DEAD_LETTERS, EVENTS, ITEMS, USERS, PARTIALS, STATES, USER_SNAPSHOTS, ITEM_SNAPSHOTS,
    STREAM_PANES, STREAM_SESSIONS, STREAM_MINUTES, SERVED)}
