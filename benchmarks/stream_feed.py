"""The event logs of the stream benchmark: events of Zipf users spread evenly over 6 hours of event time."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa

from benchmarks.synthetic import FIRST_DAY, day_of_events
from schemas.arrow import arrow_schema
from schemas.tables import EVENTS
from schemas.workspace import DAY_MICROS
from serving.eventlog import open_log
from serving.eventlog.base import partitions_of
from transforms.records import encode_singles, pack

PARTITIONS = 4
PACK = 1000
HOURS_MICROS = 6 * 3_600_000_000
_SENT = 200_000


def events_of(events: int, users: int, items: int) -> pa.Table:
    """Events in order of time, as many a second for 6 hours, with the columns of the event schema and event_hash."""
    table = day_of_events(FIRST_DAY, events, users, items).sort_by("occurred_at")
    times = pa.array(FIRST_DAY * DAY_MICROS + np.arange(events) * (HOURS_MICROS // events)).cast(EVENTS.schema.field(
        "occurred_at").type)
    for name in ("occurred_at", "ingested_at"):
        table = table.set_column(table.column_names.index(name), name, times)
    columns = {f.name: table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(events, f.type)
               for f in arrow_schema("event")}
    return pa.table({**columns, "event_hash": table["event_hash"]}).combine_chunks()


def fill(uri: str, table: pa.Table, single: bool) -> None:
    """Appends a table to a log that is empty, an event a record or ``PACK``; a log that holds records stays as it is."""
    log = open_log(f"{uri}?partitions={PARTITIONS}")
    try:
        if sum(log.latest(p) for p in range(PARTITIONS)):
            return
        now, plain = time.time_ns() // 1000, table.select(arrow_schema("event").names)
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as processes:
            for first in range(0, len(plain), _SENT):
                batches = parts(plain.slice(first, _SENT))
                made = processes.map(encode_singles, map(_plain, batches)) if single else map(packs, batches)
                for p, records in zip(itertools.cycle(range(PARTITIONS)), made, strict=False):
                    log.append(p, records, now)
    finally:
        log.close()


def parts(events: pa.Table) -> Iterator[pa.RecordBatch]:
    """About ``PACK`` events of partition 0, then of 1, 2, 3, 0..., so that partitions advance side by side."""
    for first in range(0, len(events), PARTITIONS * PACK):
        part = events.slice(first, PARTITIONS * PACK)
        of = partitions_of(part["user_id"], PARTITIONS)
        for p in range(PARTITIONS):
            mine = part.filter(pa.array(of == p)).combine_chunks()
            yield pa.RecordBatch.from_arrays([c.combine_chunks() for c in mine.columns], schema=mine.schema)


def packs(events: pa.RecordBatch) -> list[bytes]:
    """One record of all events."""
    return [pack(events)] if events.num_rows else []


def _plain(events: pa.RecordBatch) -> pa.RecordBatch:
    """Without dictionaries, which every batch would bring to another process whole."""
    return pa.RecordBatch.from_arrays(
        [c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in events.columns], events.schema.names)
