"""The stages of the stream's middle as typed transforms: split events, user state, item state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import TimerSpec, on_timer
from apache_beam.typehints import Tuple

from schemas import metric_names
from schemas.metric_names import by_segment
from transforms.beam.stream.bucket import DELTAS, FINAL, MARKER, SNAPSHOT, STATS, BucketDoFn, Held, Timers
from transforms.beam.stream.freshness import ACCEPTED, moments_of, with_accepted
from transforms.beam.stream.item import ItemBucket
from transforms.beam.stream.keys import bucket_keys
from transforms.beam.stream.state import Rules
from transforms.beam.stream.user import ITEM_COLUMNS, USER_COLUMNS, UserBucket
from transforms.beam.stream.warm import warm_up
from transforms.beam.stream.wire import by_item, pack, split, unpack

CELLS, ITEMS = "cells", "items"
_MARKER, _DELTAS, _SNAPSHOT = (beam.DoFn.StateParam(spec) for spec in (MARKER, DELTAS, SNAPSHOT))


@dataclass(eq=False)
class SplitByUser(beam.PTransform):  # type: ignore[misc]
    """RecordBatches with USER_COLUMNS and ingested_at -> (key of a user bucket, packed batch)."""

    buckets: int

    def expand(self, events: beam.PCollection) -> beam.PCollection:
        """See the class."""
        return (events | "Split events by user bucket" >> beam.ParDo(_Split(self.buckets))
                .with_output_types(tuple[int, bytes]))


class _Split(beam.DoFn):  # type: ignore[misc]
    def __init__(self, buckets: int) -> None:
        self._buckets = buckets

    def setup(self) -> None:
        self._keys = bucket_keys(self._buckets)
        warm_up()  # here, where the events come from: before the first of them

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[int, bytes]]:
        columns = with_accepted(batch.select(USER_COLUMNS), batch.column("ingested_at"), time.time())
        for bucket, part in split(columns, "user_id", self._buckets):
            yield self._keys[bucket], pack(part)


@dataclass(eq=False)
class KeepUsers(beam.PTransform):  # type: ignore[misc]
    """(user bucket, packed events) -> ``.cells``, ``.items`` (item bucket, packed parts), ``.stats``, ``.final``.

    Attributes:
      rules, job, flush_s: see BucketDoFn.
      item_buckets: hash shards of items; 0: nothing goes on to items.
    """

    rules: Rules
    job: str
    flush_s: float | None
    item_buckets: int

    def expand(self, events: beam.PCollection) -> Any:
        """See the class."""
        state = _Users(self.rules, self.job, self.flush_s, self.item_buckets)
        found = events | "User state" >> beam.ParDo(state).with_outputs(ITEMS, STATS, FINAL, main=CELLS)
        found[ITEMS].element_type = Tuple[int, bytes]
        return _typed(found)


class _Users(BucketDoFn[UserBucket]):
    KIND = UserBucket

    TICK = TimerSpec("users_tick", TimeDomain.WATERMARK)
    END = TimerSpec("users_end", TimeDomain.WATERMARK)
    FLUSH = TimerSpec("users_flush", TimeDomain.REAL_TIME)

    def process(self, element: tuple[int, bytes], timestamp: Any = beam.DoFn.TimestampParam,
                marker: Any = _MARKER, deltas: Any = _DELTAS, snapshot: Any = _SNAPSHOT, tick: Any = beam.DoFn.TimerParam(TICK),
                end: Any = beam.DoFn.TimerParam(END), flush: Any = beam.DoFn.TimerParam(FLUSH)) -> Iterator[Any]:
        yield from self.added(*element, timestamp, Held(marker, deltas, snapshot), Timers(tick, end, flush))

    @on_timer(FLUSH)
    def on_flush(self, bucket: Any = beam.DoFn.KeyParam, timestamp: Any = beam.DoFn.TimestampParam, marker: Any = _MARKER,
                 deltas: Any = _DELTAS, snapshot: Any = _SNAPSHOT, flush: Any = beam.DoFn.TimerParam(FLUSH)) -> Iterator[Any]:
        yield from self.flush_due(bucket, timestamp, Held(marker, deltas, snapshot), flush)

    @on_timer(TICK)
    def on_tick(self, bucket: Any = beam.DoFn.KeyParam, timestamp: Any = beam.DoFn.TimestampParam, marker: Any = _MARKER,
                deltas: Any = _DELTAS, snapshot: Any = _SNAPSHOT, tick: Any = beam.DoFn.TimerParam(TICK),
                flush: Any = beam.DoFn.TimerParam(FLUSH)) -> Iterator[Any]:
        yield from self.ticked(bucket, timestamp, Held(marker, deltas, snapshot), tick, flush)

    @on_timer(END)
    def on_end(self, bucket: Any = beam.DoFn.KeyParam, timestamp: Any = beam.DoFn.TimestampParam, marker: Any = _MARKER,
               deltas: Any = _DELTAS, snapshot: Any = _SNAPSHOT, tick: Any = beam.DoFn.TimerParam(TICK)) -> Iterator[Any]:
        yield from self.ended(bucket, timestamp, Held(marker, deltas, snapshot), tick)

    def __init__(self, rules: Rules, job: str, flush_s: float | None, item_buckets: int) -> None:
        super().__init__(rules, job, flush_s)
        self._item_buckets = item_buckets

    def start_bundle(self) -> None:
        super().start_bundle()
        self._events: list[pa.RecordBatch] = []
        self._pairs: list[pa.RecordBatch] = []

    def take(self, live: UserBucket, element: bytes) -> bytes | None:
        batch = unpack(element)
        taken = live.take(batch)
        fresh = taken.fresh.num_rows
        self._stats[metric_names.EVENTS_ACCEPTED] += fresh
        if taken.duplicates:
            self._stats[metric_names.EVENTS_DUPLICATE] += taken.duplicates
        for segment, count in taken.late.items():
            self._stats[metric_names.EVENTS_LATE] += count
            self._stats[by_segment(metric_names.EVENTS_LATE, *segment)] += count
        if not fresh:
            return None
        self.reached(live, moments_of(taken.fresh))
        if self._item_buckets:
            self._events.append(taken.fresh.select([c for c in (*ITEM_COLUMNS, ACCEPTED) if c in taken.fresh.schema.names]))
            if taken.pairs is not None and taken.pairs.num_rows:
                self._pairs.append(taken.pairs)
        return element if fresh == batch.num_rows else pack(taken.fresh)

    def finish_bundle(self) -> Iterator[Any]:
        """What goes on to the items leaves with the bundle: one message per item bucket, however many users' buckets it had."""
        for bucket, message in by_item(self._events, self._pairs, self._item_buckets):
            yield self.at_end(ITEMS, (bucket_keys(self._item_buckets)[bucket], message))
        self._events, self._pairs = [], []
        yield from super().finish_bundle()


@dataclass(eq=False)
class KeepItems(beam.PTransform):  # type: ignore[misc]
    """(item bucket, packed parts) -> ``.cells``, ``.stats``, ``.final``. Attributes: see KeepUsers."""

    rules: Rules
    job: str
    flush_s: float | None

    def expand(self, messages: beam.PCollection) -> Any:
        """See the class."""
        state = _Items(self.rules, self.job, self.flush_s)
        return _typed(messages | "Item state" >> beam.ParDo(state).with_outputs(STATS, FINAL, main=CELLS))


def _typed(found: Any) -> Any:
    # Beam has no way to say the types of tagged outputs; with them it takes cheap coders.
    found[STATS].element_type = Tuple[str, str]
    found[CELLS].element_type = pa.RecordBatch
    return found


class _Items(BucketDoFn[ItemBucket]):
    KIND = ItemBucket

    TICK = TimerSpec("items_tick", TimeDomain.WATERMARK)
    END = TimerSpec("items_end", TimeDomain.WATERMARK)
    FLUSH = TimerSpec("items_flush", TimeDomain.REAL_TIME)

    def process(self, element: tuple[int, bytes], timestamp: Any = beam.DoFn.TimestampParam,
                marker: Any = _MARKER, deltas: Any = _DELTAS, snapshot: Any = _SNAPSHOT, tick: Any = beam.DoFn.TimerParam(TICK),
                end: Any = beam.DoFn.TimerParam(END), flush: Any = beam.DoFn.TimerParam(FLUSH)) -> Iterator[Any]:
        yield from self.added(*element, timestamp, Held(marker, deltas, snapshot), Timers(tick, end, flush))

    @on_timer(FLUSH)
    def on_flush(self, bucket: Any = beam.DoFn.KeyParam, timestamp: Any = beam.DoFn.TimestampParam, marker: Any = _MARKER,
                 deltas: Any = _DELTAS, snapshot: Any = _SNAPSHOT, flush: Any = beam.DoFn.TimerParam(FLUSH)) -> Iterator[Any]:
        yield from self.flush_due(bucket, timestamp, Held(marker, deltas, snapshot), flush)

    @on_timer(TICK)
    def on_tick(self, bucket: Any = beam.DoFn.KeyParam, timestamp: Any = beam.DoFn.TimestampParam, marker: Any = _MARKER,
                deltas: Any = _DELTAS, snapshot: Any = _SNAPSHOT, tick: Any = beam.DoFn.TimerParam(TICK),
                flush: Any = beam.DoFn.TimerParam(FLUSH)) -> Iterator[Any]:
        yield from self.ticked(bucket, timestamp, Held(marker, deltas, snapshot), tick, flush)

    @on_timer(END)
    def on_end(self, bucket: Any = beam.DoFn.KeyParam, timestamp: Any = beam.DoFn.TimestampParam, marker: Any = _MARKER,
               deltas: Any = _DELTAS, snapshot: Any = _SNAPSHOT, tick: Any = beam.DoFn.TimerParam(TICK)) -> Iterator[Any]:
        yield from self.ended(bucket, timestamp, Held(marker, deltas, snapshot), tick)

    def take(self, live: ItemBucket, element: bytes) -> bytes | None:
        self._stats[metric_names.ITEM_ROWS] += live.take(element)
        self.reached(live, live.accepted)
        return element
