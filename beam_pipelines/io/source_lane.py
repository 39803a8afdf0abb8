"""One reader of an event log, as it lives between bundles: connection, place in the log, event clock.

A bundle takes the lane of its reader, reads step by step, and gives it back. Lanes are kept process-wide, because connecting
costs more than a bundle lasts. A lane never knows better than the span it is given: where they differ it seeks.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from beam_pipelines.io.source_clock import EventClock, newest_events
from beam_pipelines.io.source_tracker import FOR_EVER, Place, Span
from serving.eventlog import EventLog, LogError, LogReader, LogUnavailable, LogUriError, OffsetGone, open_log
from transforms.records import Records, decode

Start = Literal["earliest", "latest"] | int | Mapping[int, int]
Stop = Literal["end"] | int | Mapping[int, int] | None

_LOG = logging.getLogger(__name__)
_LONGEST_WAIT_S = 10.0
_SAY_AGAIN_S = 30.0
_PATIENCE_S = 120.0
"""A log that answers, but not with records, is asked again for so long: a topic may be unknown just after a broker's start."""


@dataclass(frozen=True)
class Reading:
    """What is read and how; see ``beam_pipelines.io.source.ReadLog`` for each field."""

    uri: str
    start: Start
    stop: Stop
    readers: int
    watermark_delay_s: float
    idle_s: float | None
    skew_s: float
    bundle_s: float
    linger_s: float
    poll_bytes: int
    discover_s: float
    on_gap: Literal["skip", "fail"]
    run: str


@dataclass(frozen=True)
class Lost:
    """Records that retention deleted before they were read: offsets first to end - 1."""

    partition: int
    first: int
    end: int


@dataclass(frozen=True)
class Step:
    """What one step of a lane gives.

    Attributes:
      span: where the partitions stand after it; to be claimed before anything of it is emitted.
      events: valid events, columns of EVENTS; None when there are none.
      dead: rows of DEAD_LETTERS; None when there are none.
      polled: the records that were read.
      lost: gaps that were skipped.
      watermark: no event before it is expected any more (microseconds); None while that is not known.
    """

    span: Span
    events: pa.RecordBatch | None = None
    dead: pa.RecordBatch | None = None
    polled: Records | None = None
    lost: tuple[Lost, ...] = field(default=())
    watermark: int | None = None


class LogGap(LogError):  # noqa: N818
    """The next records are not in the log any more, and cannot be gone without."""


class Away(Exception):  # noqa: N818 - a state
    """The log cannot be read now; try again after ``wait_s``."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"the event log is away; next try in {wait_s:.1f} s")
        self.wait_s = wait_s


class Lane:
    """Reads the partitions of one reader; for one bundle at a time."""

    def __init__(self, reading: Reading, index: int) -> None:
        self._reading, self._index = reading, index
        idle = None if reading.idle_s is None else int(reading.idle_s * 1e6)
        self.clock = EventClock(int(reading.watermark_delay_s * 1e6), idle, int(reading.skew_s * 1e6))
        self._log: EventLog | None = None
        self._reader: LogReader | None = None
        self._only: frozenset[int] | None = None
        self._looked_for_partitions = time.monotonic()
        self._failures, self._away_since, self._said = 0, 0.0, 0.0

    def step(self, span: Span, timeout_s: float) -> Step:
        """Reads on from a span; waits up to ``timeout_s`` for the first record.

        Raises:
          Away: the log cannot be reached; nothing was read.
          LogGap: records are gone, and gaps are to fail.
          LogError: there is no such log, or it is damaged.
        """
        try:
            step = self._step(span, timeout_s)
        except (LogUnavailable, OSError) as error:
            raise self._away(error) from error
        except (LogUriError, LogGap):
            raise
        except LogError as error:
            if not span.started or (self._failures and time.monotonic() - self._away_since > _PATIENCE_S):
                raise
            raise self._away(error) from error
        except BaseException:
            self._drop_reader()
            raise
        if self._failures:
            _LOG.info("%s reader %d: the log is back after %.0f s", self.name, self._index,
                      time.monotonic() - self._away_since)
            self._failures = 0
        return step

    def _step(self, span: Span, timeout_s: float) -> Step:
        if self._log is None:
            self._log = open_log(self._reading.uri)
        if not span.started:
            return Step(self._begin(self._log))
        if not span.closed and time.monotonic() - self._looked_for_partitions >= self._reading.discover_s:
            grown = self._discover(self._log, span)
            if grown is not None:
                return Step(grown)
        reader = self._at(self._log, span)
        try:
            records = reader.poll(self._reading.poll_bytes, timeout_s)
        except OffsetGone as gone:
            self._drop_reader()
            return self._skip(span, gone)
        return self._decoded(span, self._log, reader, records)

    def _begin(self, log: EventLog) -> Span:
        bounded = self._reading.stop is not None
        places = {}
        for p in range(self._index, log.partitions(), self._reading.readers):
            first, high = _offset(log, p, self._reading.start), log.latest(p)
            if first > high:
                raise LogGap(f"{self.name} partition {p} ends at offset {high}: no read can begin at {first}")
            stop = max(_stop(log, p, self._reading.stop, first), first) if bounded else FOR_EVER
            places[p] = Place(first, stop, high=high)
        return Span(places, True, bounded)

    def _discover(self, log: EventLog, span: Span) -> Span | None:
        self._looked_for_partitions = time.monotonic()
        new = {p: Place(log.earliest(p), high=log.latest(p))
               for p in range(self._index, log.partitions(), self._reading.readers) if p not in span.places}
        if not new:
            return None
        _LOG.info("%s reader %d: new partitions %s, read from their beginning", self.name, self._index, sorted(new))
        return Span({**span.places, **new}, True, span.closed)

    def _at(self, log: EventLog, span: Span) -> LogReader:
        """The log's reader, at the span's places, for the partitions that may be read now."""
        wanted = {p: place.next for p, place in span.places.items()}
        if self._reader is None:
            self._reader, self._only = log.reader(wanted), None
        else:
            held = self._reader.positions()
            elsewhere = {p: offset for p, offset in wanted.items() if held.get(p) != offset}
            if elsewhere:
                self._reader.seek(elsewhere)
        paused = self.clock.pause(span.places, _now())
        active = frozenset(p for p, place in span.places.items() if not place.done and p not in paused)
        only = None if len(active) == len(wanted) else active
        if only != self._only:
            self._reader.only(only)
            self._only = only
        return self._reader

    def _skip(self, span: Span, gone: OffsetGone) -> Step:
        place = span.places[gone.partition]
        if gone.earliest <= place.next:
            raise LogGap(f"{self.name} partition {gone.partition}: offset {place.next} lies after the log's end. Was the "
                           "log made anew? Start from a timestamp or from exact offsets") from gone
        end = min(gone.earliest, place.stop)
        lost = Lost(gone.partition, place.next, end)
        message = (f"{self.name} partition {lost.partition}: offsets {lost.first} to {lost.end - 1} were deleted before "
                   "they were read")
        if self._reading.on_gap == "fail":
            raise LogGap(f"{message}; a source with on_gap='skip' goes on without them") from gone
        _LOG.error("%s; going on at %d", message, end)
        return Step(Span({**span.places, lost.partition: place._replace(next=end)}, True, span.closed), lost=(lost,))

    def _decoded(self, span: Span, log: EventLog, reader: LogReader, records: Records) -> Step:
        now, positions, highs = _now(), reader.positions(), reader.high_watermarks()
        records = _before_stops(records, span.places)
        decoded = decode(records, self.name, log.registry) if len(records) else None
        newest = newest_events(decoded.events, records, now) if decoded else {}
        read = dict(zip(*np.unique(records.partition, return_counts=True), strict=True)) if len(records) else {}
        places = {p: place._replace(next=min(positions[p], place.stop), newest=max(place.newest, newest.get(p, place.newest)),
                                    high=highs.get(p, place.high), read=place.read + int(read.get(p, 0)))
                  for p, place in span.places.items()}
        self.clock.polled(places, newest.keys(), now)
        events = decoded.events if decoded and decoded.events.num_rows else None
        dead = decoded.dead if decoded and decoded.dead.num_rows else None
        return Step(Span(places, True, span.closed), events, dead, records,
                    watermark=self.clock.watermark(places, now))

    def _away(self, error: Exception) -> Away:
        self._drop_reader()
        self._close_log()
        self._failures += 1
        now = time.monotonic()
        if self._failures == 1:
            self._away_since = now
        if self._failures == 1 or now - self._said >= _SAY_AGAIN_S:
            _LOG.warning("%s reader %d cannot read (%.0f s so far): %s", self._reading.uri.partition("?")[0], self._index,
                         now - self._away_since, error)
            self._said = now
        wait = min(0.1 * 2 ** min(self._failures, 10), _LONGEST_WAIT_S) * random.uniform(0.5, 1)
        return Away(max(wait, getattr(error, "retry_after_s", 0.0) * random.uniform(0.5, 1)))

    @property
    def name(self) -> str:
        """The log's name in positions, once a step was taken."""
        assert self._log is not None
        return self._log.uri

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _close_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.close()

    def close(self) -> None:
        """Releases the connection."""
        self._drop_reader()
        self._close_log()


_LANES: dict[tuple[str, int], Lane] = {}
_LOCK = threading.Lock()


def take_lane(reading: Reading, index: int) -> Lane:
    """The lane of a reader for one bundle, new where there is none; nobody else gets it meanwhile."""
    with _LOCK:
        lane = _LANES.pop((reading.run, index), None)
    return lane or Lane(reading, index)


def give_lane(reading: Reading, index: int, lane: Lane) -> None:
    """Keeps a lane for the next bundle; of two that a restarted reader may have had, one."""
    with _LOCK:
        other = _LANES.pop((reading.run, index), None)
        _LANES[reading.run, index] = lane
    if other is not None:
        other.close()


def close_lanes(run: str) -> None:
    """Closes the lanes of a run that are not in use; a bundle that comes after all opens a new one."""
    with _LOCK:
        unused = [_LANES.pop(key) for key in list(_LANES) if key[0] == run]
    for lane in unused:
        lane.close()


def _now() -> int:
    return time.time_ns() // 1000


def _offset(log: EventLog, partition: int, start: Start) -> int:
    if isinstance(start, int):
        return log.offset_at(partition, start)
    if start == "latest":
        return log.latest(partition)
    if isinstance(start, Mapping) and partition in start:
        return start[partition]
    return log.earliest(partition)


def _stop(log: EventLog, partition: int, stop: Stop, first: int) -> int:
    if isinstance(stop, int):
        return log.offset_at(partition, stop)
    if isinstance(stop, Mapping):
        return stop.get(partition, first)
    return log.latest(partition)


def _before_stops(records: Records, places: Mapping[int, Place]) -> Records:
    keep = np.ones(len(records), bool)
    for partition, place in places.items():
        if place.stop != FOR_EVER:
            keep &= (records.partition != partition) | (records.offset < place.stop)
    if keep.all():
        return records
    sizes = (records.ends - records.starts)[keep]
    data = np.concatenate([np.zeros(0, np.uint8), *(records.data[s:e] for s, e in
                          zip(records.starts[keep].tolist(), records.ends[keep].tolist(), strict=True))])
    return Records(data, np.cumsum(sizes), records.partition[keep], records.offset[keep], records.timestamp[keep])
