"""The streaming job: event log -> user state -> item state -> cells in the store, with a status row every second.

``build`` is the middle, the same for every source and runner; ``construct`` puts a source before it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa

from beam_pipelines.io.source import BUNDLE_S, ONE_BUNDLE, ReadLog
from beam_pipelines.io.stream_audit import WriteFinal
from beam_pipelines.io.stream_sink import WriteCells
from beam_pipelines.io.stream_status import CountProgress, WriteStatus
from beam_pipelines.options import StreamConfig
from schemas.metric_names import EVENTS_READ, MOST_SEGMENTS, add_counters, by_segment, rejected
from transforms.accumulators.stream.item import ItemState
from transforms.beam.coder import register
from transforms.beam.stream import freshness
from transforms.beam.stream.stages import KeepItems, KeepUsers, SplitByUser
from transforms.beam.stream.state import Rules

STAMPED = tuple[str, str]


def construct(pipeline: beam.Pipeline, config: StreamConfig, run: str = "") -> None:
    """Adds the whole job to a pipeline; ``run`` names it in the status row."""
    register()
    start: Any = dict(config.start) if isinstance(config.start, tuple) else config.start
    stop: Any = dict(config.stop) if config.stop is not None else "end" if config.until_end else None
    read = pipeline | "Read the event log" >> ReadLog(
        config.log, start=start, stop=stop, readers=config.readers, watermark_delay_s=config.watermark_delay_s,
        idle_s=config.idle_s, bundle_s=ONE_BUNDLE if config.is_direct else BUNDLE_S)
    build(read.events, config, read.dead, run, read.progress)


def build(events: beam.PCollection, config: StreamConfig, dead: beam.PCollection | None = None,
          run: str = "", progress: beam.PCollection | None = None) -> None:
    """RecordBatches of valid events (schemas.tables.EVENTS) -> cells, final rows and the status row.

    Args:
      events: in the global window; which of them are late is told by occurred_at.
      config: of the job.
      dead: RecordBatches of dead letters, to be counted.
      run: names this run in the status row.
      progress: of the source (ReadLog), so that the status row tells offsets and what waits.
    """
    register()
    name, store = config.name, config.common.store
    flush_s = None if config.is_direct else config.flush_s
    rules = Rules(config.lateness_s * 1_000_000, config.groups, config.audit is not None, name, config.rewrite)
    wants_items = config.groups is None or any(group in ItemState.GROUPS for group in config.groups)
    users = (events | "Split" >> SplitByUser(config.user_buckets)
             | "Users" >> KeepUsers(rules, name, flush_s, config.item_buckets if wants_items else 0))
    items = users.items | "Items" >> KeepItems(rules, name, flush_s)
    stamps = [
        events.pipeline | "Beat" >> beam.Create([(name, "{}")], reshuffle=False).with_output_types(STAMPED),
        events | "Count events" >> beam.ParDo(_CountEvents(name)).with_output_types(STAMPED),
        users.stats, items.stats,
        users.cells | "Users' cells" >> WriteCells(store, name, config.store_wait_s),
        items.cells | "Items' cells" >> WriteCells(store, name, config.store_wait_s),
    ]
    if dead is not None:
        stamps.append(dead | "Count dead letters" >> beam.ParDo(_CountDead(name)).with_output_types(STAMPED))
    if progress is not None:
        stamps.append(progress | "Count progress" >> CountProgress(name))
    (stamps | "All counters" >> beam.Flatten()
     | "Status" >> WriteStatus(store, name, run, streaming=flush_s is not None))
    if config.audit is not None:
        for side, finals in (("Users'", users.final), ("Items'", items.final)):
            finals | f"{side} final rows" >> WriteFinal(str(config.audit))


class _Count(beam.DoFn):  # type: ignore[misc]
    """Counters of a bundle."""

    def __init__(self, job: str) -> None:
        self._job = job

    def start_bundle(self) -> None:
        self._counts: Counter[str] = Counter()

    def process(self, batch: pa.RecordBatch, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        self._timestamp = timestamp
        self.count(batch)

    def count(self, batch: pa.RecordBatch) -> None:
        """Adds a batch."""
        raise NotImplementedError

    def finish_bundle(self) -> Iterator[Any]:
        if self._counts:
            yield beam.transforms.window.GlobalWindows.windowed_value((self._job, json.dumps(self._counts)), self._timestamp)


class _CountEvents(_Count):
    def count(self, batch: pa.RecordBatch) -> None:
        self._counts[EVENTS_READ] += batch.num_rows
        self._counts.update(freshness.reached("read", batch.column("ingested_at"), time.time()))
        for kind, device, count in counted(batch, "event_type", "device"):
            self._counts[by_segment(EVENTS_READ, kind, device)] += count
        if len(self._counts) > 2 * MOST_SEGMENTS:
            counts, self._counts = self._counts, Counter()
            add_counters(self._counts, counts)


class _CountDead(_Count):
    def count(self, batch: pa.RecordBatch) -> None:
        for entry in batch.column("reason").value_counts().to_pylist():
            self._counts[rejected(str(entry["values"]))] += entry["counts"]


def counted(batch: pa.RecordBatch, *names: str) -> Iterator[tuple[Any, ...]]:
    """(value of each column..., rows) of every combination."""
    columns = [c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c for c in map(batch.column, names)]
    table = pa.table(columns, list(names)).group_by(list(names)).aggregate([([], "count_all")])
    yield from zip(*(table.column(c).to_pylist() for c in (*names, "count_all")), strict=True)
