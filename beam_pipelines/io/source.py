"""Reads an event log as columns: one splittable DoFn for every kind of log, decoding fused in."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import Metrics
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp

from beam_pipelines.io.source_lane import Away, Reading, Start, Step, Stop, close_lanes, give_lane, take_lane
from beam_pipelines.io.source_tracker import NOTHING_YET, Span, SpanCoder, SpanTracker
from schemas import metric_names
from schemas.arrow import TIMESTAMP
from schemas.metric_names import NAMESPACE
from transforms.ingest import micros

EVENTS = "events"
DEAD = "dead"
PROGRESS = "progress"

PROGRESS_SCHEMA = pa.schema([
    pa.field("partition", pa.int32(), nullable=False),
    pa.field("next", pa.int64(), nullable=False),  # offset of the next record to read
    pa.field("lag", pa.int64(), nullable=False),  # records that wait
    pa.field("newest", TIMESTAMP),  # newest event time read; null before the first
])
"""Where each partition of a reader stands."""

BUNDLE_S, ONE_BUNDLE = 0.3, math.inf
_TRACKER = beam.DoFn.RestrictionParam()
_WATERMARK = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())


@dataclass(eq=False)
class ReadLog(beam.PTransform):  # type: ignore[misc]
    """An event log -> ``.events``: RecordBatches of valid events (schemas.tables.EVENTS), and ``.dead``: of DEAD_LETTERS.

    A third output, ``.progress``, has a RecordBatch of PROGRESS_SCHEMA at the end of each bundle, for status pages.

    One element is what one poll gave, in the global window; its timestamp is the watermark's floor, so no runner ever drops
    it: which events are late is for the state to say, by occurred_at. Every record is emitted exactly once as the runner
    counts bundles. A log that is away is waited for; nothing is lost.

    Attributes:
      uri: ``dir:PATH`` or ``kafka://HOST:PORT/TOPIC[?client=FILE]``.
      start: earliest, latest, a timestamp of the log's records (microseconds), or exact offsets by partition (partitions not
        named: earliest). Partitions found later are read from their beginning.
      stop: None to read without end; "end" up to what is there when the read begins, a timestamp, or exact offsets by
        partition (partitions not named are not read).
      readers: of the partitions, reader r has those with p % readers == r.
      watermark_delay_s: the watermark stays this far behind the newest event time of the slowest partition.
      idle_s: a partition in which nothing waits is taken as idle after so long without a valid event, and does not hold the
        watermark any more; None: never (for old data that is produced slowly while it is read).
      skew_s: a partition further ahead of the slowest one in event time waits for it, so that state stays bounded.
      bundle_s: how long a bundle lasts while there is more to read; ONE_BUNDLE: to the end. FnApiRunner takes what is left
        over for no reason to hold its watermark back, and events would be late that are not.
      linger_s: how long a reader that has read everything waits for the next batch to gather.
      poll_bytes: of records in one batch, about.
      discover_s: how often new partitions are looked for.
      on_gap: what to do when retention deleted records before they were read: skip (count and log them) or fail.
    """

    uri: str
    start: Start = "earliest"
    readers: int = 1
    stop: Stop = None
    watermark_delay_s: float = 10.0
    idle_s: float | None = 10.0
    skew_s: float = 600.0
    bundle_s: float = BUNDLE_S
    linger_s: float = 0.05
    poll_bytes: int = 16 << 20
    discover_s: float = 30.0
    on_gap: Literal["skip", "fail"] = "skip"

    def expand(self, begin: beam.pvalue.PBegin) -> Any:
        """See the class; raises ValueError for settings that make no sense."""
        if self.readers < 1 or self.poll_bytes < 1:
            raise ValueError(f"readers and poll_bytes are at least 1, not {self.readers} and {self.poll_bytes}")
        if self.on_gap not in ("skip", "fail"):
            raise ValueError(f"on_gap is skip or fail, not {self.on_gap!r}")
        run = os.urandom(8).hex()  # lanes kept in a process belong to one pipeline
        reading = Reading(run=run, **{f.name: getattr(self, f.name) for f in fields(Reading) if f.name != "run"})
        read = _ReadBounded(reading) if self.stop is not None else _ReadOnAndOn(reading)
        return (begin
                | "Readers" >> beam.Create(list(range(self.readers)), reshuffle=False)
                | "Spread the readers" >> beam.Reshuffle()
                | "Read and decode" >> beam.ParDo(read).with_outputs(DEAD, PROGRESS, main=EVENTS))


class _Read(beam.DoFn, RestrictionProvider):  # type: ignore[misc]
    """Both kinds of read; a subclass says whether it ends."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def initial_restriction(self, element: int) -> Span:
        """Nothing yet: the log is asked within the first bundle, where waiting for it is possible."""
        return Span()

    def create_tracker(self, restriction: Span) -> SpanTracker:
        return SpanTracker(restriction)

    def restriction_coder(self) -> SpanCoder:
        return SpanCoder()

    def restriction_size(self, element: int, restriction: Span) -> float:
        """The records that wait."""
        return float(sum(place.lag for place in restriction.places.values()))

    def truncate(self, element: int, restriction: Span) -> None:
        """A drain stops reading here; what was not read is read by the next job from these offsets."""
        return None

    def setup(self) -> None:
        self._meters = _Meters()

    def teardown(self) -> None:
        close_lanes(self._reading.run)

    def read(self, index: int, tracker: Any, watermark: Any) -> Iterator[Any]:
        """One bundle of a reader."""
        reading, began, gave = self._reading, time.monotonic(), False
        span: Span = tracker.current_restriction()
        lane = take_lane(reading, index)
        try:
            while not span.done:
                left = began + reading.bundle_s - time.monotonic()
                step = lane.step(span, 0.0 if gave else min(max(left, 0.0), BUNDLE_S))
                if not tracker.try_claim(step.span):
                    return  # the runner took a checkpoint: the rest, this step with it, is another bundle's
                span = step.span
                yield from _outputs(step, _floor(watermark))
                gave |= step.events is not None or step.dead is not None
                _advance(watermark, step.watermark)
                self._meters.note(step)
                caught_up = not any(place.lag for place in span.places.values())
                if span.done or (caught_up and gave) or time.monotonic() - began >= reading.bundle_s:
                    yield beam.pvalue.TaggedOutput(PROGRESS, TimestampedValue(_progress(span), _floor(watermark)))
                    tracker.defer_remainder(Duration(seconds=reading.linger_s) if caught_up else None)
                    return
        except Away as away:
            pause = min(away.wait_s, reading.bundle_s)
            time.sleep(pause)  # some runners do not honour a delay
            tracker.defer_remainder(Duration(seconds=away.wait_s - pause))
        finally:
            give_lane(reading, index, lane)


class _ReadOnAndOn(_Read):
    """Reads without end."""

    @beam.DoFn.unbounded_per_element()
    def process(self, element: int, tracker: Any = _TRACKER, watermark: Any = _WATERMARK) -> Iterator[Any]:
        yield from self.read(element, tracker, watermark)


class _ReadBounded(_Read):
    """Reads up to a stop."""

    def process(self, element: int, tracker: Any = _TRACKER, watermark: Any = _WATERMARK) -> Iterator[Any]:
        yield from self.read(element, tracker, watermark)


def _floor(watermark: Any) -> Timestamp:
    known = watermark.current_watermark()
    return known if known is not None else MIN_TIMESTAMP


def _progress(span: Span) -> pa.RecordBatch:
    places = span.places.values()
    newest = pa.array([None if place.newest == NOTHING_YET else place.newest for place in places], pa.int64())
    return pa.RecordBatch.from_arrays([
        pa.array(list(span.places), pa.int32()), pa.array([place.next for place in places], pa.int64()),
        pa.array([place.lag for place in places], pa.int64()), newest.cast(TIMESTAMP)], schema=PROGRESS_SCHEMA)


def _outputs(step: Step, floor: Timestamp) -> Iterator[Any]:
    if step.events is not None:
        oldest = Timestamp(micros=int(micros(step.events.column("occurred_at")).min()))
        yield TimestampedValue(step.events, max(floor, oldest))
    if step.dead is not None:
        yield beam.pvalue.TaggedOutput(DEAD, TimestampedValue(step.dead, floor))


def _advance(watermark: Any, to: int | None) -> None:
    if to is None:
        return
    known = watermark.current_watermark()
    if known is None or Timestamp(micros=to) > known:
        watermark.set_watermark(Timestamp(micros=to))


class _Meters:
    """The source's metrics."""

    def __init__(self) -> None:
        self._records = Metrics.counter(NAMESPACE, metric_names.RECORDS_READ)
        self._bytes = Metrics.counter(NAMESPACE, metric_names.BYTES_READ)
        self._events = Metrics.counter(NAMESPACE, metric_names.EVENTS_READ)
        self._rejected = Metrics.counter(NAMESPACE, metric_names.EVENTS_REJECTED)
        self._lost = Metrics.counter(NAMESPACE, metric_names.EVENTS_LOST)
        self._delay = Metrics.distribution(NAMESPACE, metric_names.WATERMARK_DELAY_MS)
        self._lag: dict[int, Any] = {}

    def note(self, step: Step) -> None:
        """Counts a step that was claimed."""
        if step.polled is not None and len(step.polled):
            self._records.inc(len(step.polled))
            self._bytes.inc(len(step.polled.data))
        if step.events is not None:
            self._events.inc(step.events.num_rows)
        if step.dead is not None:
            self._events.inc(step.dead.num_rows)
            for reason in step.dead.column("reason").value_counts().to_pylist():
                Metrics.counter(NAMESPACE, metric_names.rejected(reason["values"])).inc(reason["counts"])
            self._rejected.inc(step.dead.num_rows)
        for gap in step.lost:
            self._lost.inc(gap.end - gap.first)
        if step.watermark is not None:
            self._delay.update(max(time.time_ns() // 1000 - step.watermark, 0) // 1000)
        for partition, place in step.span.places.items():
            if partition not in self._lag:
                self._lag[partition] = Metrics.gauge(NAMESPACE, metric_names.lag(partition))
            self._lag[partition].set(place.lag)
