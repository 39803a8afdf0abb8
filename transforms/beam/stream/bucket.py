"""Bucket states in Beam: per bucket a marker, a bag of deltas, a snapshot and three timers; and a process's live copies."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from time import thread_time
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from schemas import metric_names
from transforms.beam.stream.freshness import Moments, ages, histogram
from transforms.beam.stream.state import Bucket, Final, Marker, Rules, in_pieces, pack_delta, whole_of
from transforms.ingest import END_OF_TIME

STATS, FINAL = "stats", "final"
"""Outputs beside the cells: (job name, JSON of a bundle's counters and of the sizes of its buckets), and rows that are final
(state.Final) by bucket."""

_IDLE_S = 600.0
_GOLDEN = 0.6180339887498949
_GRACE_S = 0.25
"""For so long an element may come and flush before the timer does. Timers are for quiet buckets: Prism 2.77 spins, and stalls
all else, while a timer is due whose key is in a bundle."""

_EARLY = 0.125
"""Of the time between flushes: an element that comes so shortly before its bucket's turn flushes, for the next one would come
about as long after it."""

_FLUSH_SHARE = 0.03
"""Of its CPU a process that catches up gives so much to making cells, and three times that to storing them; beyond it flushes
become rarer, and each writes more at once: of what changed again in the meantime, only the last value."""
_LONGEST_FLUSH_S = 10.0

B = TypeVar("B", bound=Bucket)


class LiveCopies:
    """The live copies of a process, by bucket. A bucket is in use by one bundle at a time, which takes its copy out and puts
    it back; what a failed bundle took is gone with it."""

    def __init__(self) -> None:
        self._copies: dict[int, Bucket] = {}

    def take(self, bucket: int, marker: Marker) -> Bucket | None:
        """The copy of a bucket, if it is in step with its state."""
        copy = self._copies.pop(bucket, None)
        return copy if copy is not None and copy.marker.token == marker.token else None

    def give(self, bucket: int, copy: Bucket) -> None:
        """Keeps a copy; those not used for long, whose buckets another worker has now, go."""
        copy.used = time.monotonic()
        self._copies[bucket] = copy
        for other in [b for b, c in list(self._copies.items()) if copy.used - c.used > _IDLE_S]:
            self._copies.pop(other, None)

    def __len__(self) -> int:
        return len(self._copies)

    def clear(self) -> None:
        """Forgets all of them."""
        self._copies.clear()


class Held(NamedTuple):
    """A bucket's state in the runner."""

    marker: Any
    deltas: Any
    snapshot: Any


class Timers(NamedTuple):
    """A bucket's timers. Their names must differ from stage to stage: FnApiRunner keeps those of one name together."""

    tick: Any
    end: Any
    flush: Any


DELTAS = BagStateSpec("deltas", BytesCoder())
SNAPSHOT = BagStateSpec("snapshot", BytesCoder())
MARKER = ReadModifyWriteStateSpec("marker", BytesCoder())


class BucketDoFn(beam.DoFn, Generic[B]):  # type: ignore[misc]
    """(bucket, packed element) -> cells of what changed (cells.CELLS), STATS and FINAL.

    A subclass declares the timers, forwards what Beam calls, and says how an element is added.

    Args:
      rules: of the buckets.
      job: name under which counters are summed.
      flush_s: how long after a change the cells are written, seconds of processing time; 0: with the element that changed
        them; None: when a snapshot is due and at the end (bounded input: no runner needs processing time then).
    """

    KIND: ClassVar[type[Bucket]]

    def __init__(self, rules: Rules, job: str, flush_s: float | None) -> None:
        self._rules, self._job, self._flush_s, self._shared = rules, job, flush_s, Shared()
        self._restored = Metrics.counter(metric_names.NAMESPACE, metric_names.STATE_RESTORED)
        self._state_bytes = Metrics.distribution(metric_names.NAMESPACE, metric_names.STATE_BYTES)

    def take(self, live: B, element: bytes) -> bytes | None:
        """Adds an element to a bucket; returns the delta to keep, None when nothing changed."""
        raise NotImplementedError

    def setup(self) -> None:
        """Finds the process's live copies."""
        self._live: LiveCopies = self._shared.acquire(LiveCopies)
        self._stats: Counter[str] = Counter()
        self._ages: list[Any] = []
        self._sizes: dict[str, tuple[int, int]] = {}
        self._oldest: Timestamp = MAX_TIMESTAMP

    def start_bundle(self) -> None:
        """Counts anew."""
        self._stats, self._ages, self._sizes, self._oldest = Counter(), [], {}, MAX_TIMESTAMP

    def reached(self, live: B, moments: Moments) -> None:
        """Notes that events, accepted at these moments, are in a bucket and wait for its flush."""
        live.waiting.add(moments)
        self._ages.append(ages(moments, time.time()))

    def added(self, bucket: int, payload: bytes, timestamp: Timestamp, held: Held, timers: Timers) -> list[pa.RecordBatch]:
        """Adds an element; returns the cells to write now."""
        self._oldest = min(self._oldest, timestamp)
        known = held.marker.read()
        live = self._copy(bucket, known, held)
        delta = self.take(live, payload)
        if delta is not None:
            delta = pack_delta(live.marker.sequence, delta)
            held.deltas.add(delta)
            live.changed(delta)
            earlier = live.earlier_tick()
            if earlier is not None:
                timers.tick.set(Timestamp(micros=earlier + self._rules.lateness))
        if delta is not None or not known:
            held.marker.write(live.marker.pack())
        if not known:
            timers.end.set(Timestamp(micros=END_OF_TIME))
        cells: list[pa.RecordBatch] = []
        if self._flush_s == 0 or (self._flush_s is None and live.wants_snapshot):
            cells = self._flushed(live, held)
        elif self._flush_s is not None and live.is_dirty:
            now, early = time.time(), _EARLY * self._flush_s
            if live.flush_due is None:
                # Set once: a timer set again and again would never be due.
                live.flush_due = turn_after(now + early, bucket, self._pace(live, self._flush_s))
                timers.flush.set(Timestamp.of(live.flush_due + _GRACE_S))
            elif now >= live.flush_due - early:
                live.flush_due = None
                cells = self._flushed(live, held, now)
        self._live.give(bucket, live)
        return cells

    def _pace(self, live: Bucket, least_s: float) -> float:
        """Seconds from a change to its cells: longer in a catch-up, while flushes would take too much of the process."""
        if live.waiting.youngest_s(time.time()) < _LONGEST_FLUSH_S:
            return least_s  # what was accepted just now is waited for by readers
        wanted = min(live.flush_costs) * (len(self._live) + 1) / _FLUSH_SHARE
        return max(least_s, min(wanted, _LONGEST_FLUSH_S))

    def flush_due(self, bucket: int, timestamp: Timestamp, held: Held, flush: Any) -> list[pa.RecordBatch]:
        """The cells of what changed; of a quiet bucket the timer alone brings those whose turn comes later."""
        self._oldest = min(self._oldest, timestamp)
        live, now = self._copy(bucket, held.marker.read(), held), time.time()
        live.flush_due = None
        cells = self._flushed(live, held, now)
        if live.is_dirty:
            flush.set(Timestamp.of(now + (self._flush_s or 0) + _GRACE_S))
        self._live.give(bucket, live)
        return cells

    def ticked(self, bucket: int, timestamp: Timestamp, held: Held, tick: Any, flush: Any) -> Iterator[Any]:
        """A pane has closed for this bucket: gives out what is final. One that was restored now may have cells to write."""
        self._oldest = min(self._oldest, timestamp)
        live = self._copy(bucket, held.marker.read(), held)
        cells: list[pa.RecordBatch] = []
        finals: list[Final] = []
        if live.marker.tick < END_OF_TIME:
            if timestamp.micros >= live.marker.tick + self._rules.lateness:  # else a timer that was set anew since
                # Rows go now, and in a catch-up the horizon passes days between two flushes: what they make is written first.
                cells = self._flushed(live, held) if live.state.is_full else []
                finals = live.advance(live.marker.tick)
                live.next_tick()
                held.marker.write(live.changed().pack())
            if live.marker.tick < END_OF_TIME:
                tick.set(Timestamp(micros=live.marker.tick + self._rules.lateness))
        if live.is_dirty and live.flush_due is None and self._flush_s:
            live.flush_due = time.time()
            flush.set(Timestamp.of(live.flush_due + self._flush_s))
        self._live.give(bucket, live)
        yield from cells
        yield from (beam.pvalue.TaggedOutput(FINAL, (bucket, final)) for final in finals)

    def ended(self, bucket: int, timestamp: Timestamp, held: Held, tick: Any) -> Iterator[Any]:
        """The input has ended: gives out everything."""
        self._oldest = min(self._oldest, timestamp)
        live = self._copy(bucket, held.marker.read(), held)
        cells = self._flushed(live, held)
        finals = live.advance(END_OF_TIME)
        live.no_tick()
        tick.clear()
        held.marker.write(live.changed().pack())
        self._live.give(bucket, live)
        yield from cells
        yield from (beam.pvalue.TaggedOutput(FINAL, (bucket, final)) for final in finals)

    def finish_bundle(self) -> Iterator[Any]:
        """Gives out the counters."""
        self._stats.update(histogram(f"{self.KIND.ENTITY}_state", self._ages))
        told = {**self._stats, metric_names.STATE_BYTES: self._sizes} if self._sizes else self._stats
        if told:
            yield self.at_end(STATS, (self._job, json.dumps(told)))

    def at_end(self, tag: str, value: Any) -> Any:
        """An output of finish_bundle, no later than what the bundle was made of."""
        oldest = self._oldest if self._oldest < MAX_TIMESTAMP else Timestamp(micros=0)
        return beam.pvalue.TaggedOutput(tag, GlobalWindows.windowed_value(value, oldest))

    def _copy(self, bucket: int, known: bytes | None, held: Held) -> Any:
        live = self._restored_copy(bucket, Marker.unpack(known), held) if known else self.KIND.new(self._rules)
        live.key = bucket
        return live

    def _restored_copy(self, bucket: int, marker: Marker, held: Held) -> Bucket:
        live = self._live.take(bucket, marker)
        if live is None:
            live = self.KIND.restore(self._rules, marker, whole_of(held.snapshot.read()), held.deltas.read())
            self._restored.inc()
            self._stats[metric_names.STATE_RESTORED] += 1
        return live

    def _flushed(self, live: Bucket, held: Held, now: float | None = None) -> list[pa.RecordBatch]:
        if not live.is_dirty:
            return []
        began = thread_time()
        cells = live.flush(now)
        live.flush_costs = live.flush_costs[1], thread_time() - began
        if live.wants_snapshot:
            data = live.snapshot()
            held.snapshot.clear()
            for piece in in_pieces(data):
                held.snapshot.add(piece)
            held.deltas.clear()
            self._state_bytes.update(len(data))
        held.marker.write(live.changed().pack())
        self._sizes[f"{live.ENTITY}/{live.key}"] = live.marker.sequence, live.snapshot_bytes + live.marker.delta_bytes
        return [live.waiting.stamp(whole, f"{live.ENTITY}_stored") for whole in as_one(cells)]


def turn_after(now: float, bucket: int, every_s: float) -> float:
    """When a bucket is to flush next, seconds since 1970: buckets take turns, so that their writes do not come all at once."""
    phase = bucket * _GOLDEN % 1.0 * every_s
    return now + every_s - (now - phase) % every_s


def as_one(cells: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """A flush as one batch: an entity's groups lie on the same pages of a store, which is then written once."""
    return pa.Table.from_batches(cells).combine_chunks().to_batches() if len(cells) > 1 else cells
