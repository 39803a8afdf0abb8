"""The status row of a streaming job: how far event time is known, and counters, written every second while the job lives."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from schemas.keys import STATUS, status_key
from schemas.metric_names import STATE_BYTES, add_counters
from serving.stores import open_store
from serving.stores.base import Cell, FeatureWrite, StoreError
from transforms.ingest import END_OF_TIME

_SECOND = 1_000_000
_PERIOD_S = 1.0
_FOLD_AFTER = 64
_OFFSETS = "offsets"
Newest = dict[str, list[int]]
"""Offsets by partition: the next record to read, and how many wait. Sizes by bucket: the number of deltas, and bytes."""
_log = logging.getLogger(__name__)


@dataclass
class Probe:
    """Finds the watermark with one event-time timer: it is set a step ahead of what is known; steps double while it fires,
    and halve, down to a second, while it does not.

    Attributes:
      known: the watermark has passed this (microseconds); None: not even the first probe.
      at: where the timer is set.
      step: how far ahead of ``known``.
    """

    known: int | None = None
    at: int = 0
    step: int = _SECOND
    fired: bool = False

    def reached(self) -> None:
        """The timer fired."""
        self.known, self.step, self.fired = self.at, 2 * self.step, True
        self.at += self.step

    def rest(self) -> bool:
        """A second has passed; whether the timer is to be set to a nearer place."""
        fired, self.fired = self.fired, False
        if fired or self.known is None or self.step == _SECOND:
            return False
        self.step = max(_SECOND, self.step // 2)
        self.at = self.known + self.step
        return True


@dataclass(eq=False)
class CountProgress(beam.PTransform):  # type: ignore[misc]
    """ReadLog's ``.progress`` -> (job, JSON) for WriteStatus, about once a second of each reader and when it has caught up.

    Attributes:
      job: name of the job.
    """

    job: str

    def expand(self, progress: beam.PCollection) -> beam.PCollection:
        """See the class."""
        return progress | "Take offsets" >> beam.ParDo(_Offsets(self.job)).with_output_types(tuple[str, str])


class _Offsets(beam.DoFn):  # type: ignore[misc]
    def __init__(self, job: str) -> None:
        self._job = job

    def setup(self) -> None:
        self._told: dict[int, tuple[float, bool]] = {}  # by a reader's first partition: when, and whether records waited

    def process(self, progress: pa.RecordBatch) -> Iterator[tuple[str, str]]:
        if not progress.num_rows:
            return
        partitions, places, lags = (progress.column(name).to_pylist() for name in ("partition", "next", "lag"))
        now, waits = time.monotonic(), any(lags)
        when, waited = self._told.get(partitions[0], (-math.inf, False))
        if now - when < _PERIOD_S and (waits or not waited):
            return
        self._told[partitions[0]] = now, waits
        offsets = {str(p): [place, lag] for p, place, lag in zip(partitions, places, lags, strict=True)}
        yield self._job, json.dumps({_OFFSETS: offsets})


@dataclass(eq=False)
class WriteStatus(beam.PTransform):  # type: ignore[misc]
    """(job, counters as JSON) of every stage -> the store's status row of the job: JSON of watermark, written_at (both in
    microseconds), run, ended, counters, offsets (by partition: offset of the next record to read, records that wait),
    state_bytes (by entity).

    The watermark is the slowest stage's, whose counters these are. A store that is away only makes the row old, which is
    what it then says. Offsets and sizes of buckets come among the counters, see ``CountProgress`` and BucketDoFn.

    Attributes:
      store: URI of the store.
      job: name of the job; run: of this run of it.
      streaming: write every second; otherwise only at the end.
    """

    store: str
    job: str
    run: str
    streaming: bool

    def expand(self, counters: beam.PCollection) -> beam.PCollection:
        """See the class."""
        return counters | "Write the status row" >> beam.ParDo(_Status(self.store, self.job, self.run, self.streaming))


class _Status(beam.DoFn):  # type: ignore[misc]
    COUNTED = BagStateSpec("counted", BytesCoder())
    PROBE = ReadModifyWriteStateSpec("probe", BytesCoder())
    AHEAD = TimerSpec("status_ahead", TimeDomain.WATERMARK)
    END = TimerSpec("status_end", TimeDomain.WATERMARK)
    BEAT = TimerSpec("status_beat", TimeDomain.REAL_TIME)

    def __init__(self, store: str, job: str, run: str, streaming: bool) -> None:
        self._uri, self._job, self._run, self._streaming = store, job, run, streaming

    def setup(self) -> None:
        self._store: Any = None

    def process(self, element: tuple[str, str], timestamp: Any = beam.DoFn.TimestampParam,
                counted: Any = beam.DoFn.StateParam(COUNTED), probe: Any = beam.DoFn.StateParam(PROBE),
                ahead: Any = beam.DoFn.TimerParam(AHEAD), end: Any = beam.DoFn.TimerParam(END),
                beat: Any = beam.DoFn.TimerParam(BEAT)) -> None:
        counted.add(element[1].encode())
        held = _read(probe)
        if held is None:
            held = Probe()
            end.set(Timestamp(micros=END_OF_TIME))
            if self._streaming:
                beat.set(Timestamp.of(time.time() + _PERIOD_S))
            _write(probe, held)
        if self._streaming and held.at == 0 and timestamp.micros > 0:  # the first element with a time of its own
            held.at = timestamp.micros // _SECOND * _SECOND
            ahead.set(Timestamp(micros=held.at))
            _write(probe, held)

    @on_timer(AHEAD)
    def on_ahead(self, probe: Any = beam.DoFn.StateParam(PROBE), ahead: Any = beam.DoFn.TimerParam(AHEAD),
                 timestamp: Any = beam.DoFn.TimestampParam) -> None:
        held = _read(probe)
        if held is None or timestamp.micros < held.at or held.at >= END_OF_TIME:
            return
        held.reached()
        if held.at < END_OF_TIME:
            ahead.set(Timestamp(micros=held.at))
        _write(probe, held)

    @on_timer(BEAT)
    def on_beat(self, counted: Any = beam.DoFn.StateParam(COUNTED), probe: Any = beam.DoFn.StateParam(PROBE),
                ahead: Any = beam.DoFn.TimerParam(AHEAD), beat: Any = beam.DoFn.TimerParam(BEAT)) -> None:
        held = _read(probe) or Probe()
        if held.at >= END_OF_TIME:
            return
        if held.rest():
            ahead.set(Timestamp(micros=held.at))
        _write(probe, held)
        beat.set(Timestamp.of(time.time() + _PERIOD_S))
        self._put(held.known, *_summed(counted), ended=False)

    @on_timer(END)
    def on_end(self, counted: Any = beam.DoFn.StateParam(COUNTED), probe: Any = beam.DoFn.StateParam(PROBE),
               ahead: Any = beam.DoFn.TimerParam(AHEAD)) -> None:
        ahead.clear()
        _write(probe, Probe(at=END_OF_TIME))
        self._put(END_OF_TIME, *_summed(counted), ended=True)

    def _put(self, watermark: int | None, counters: Counter[str], newest: dict[str, Newest], ended: bool) -> None:
        now = time.time_ns() // 1_000_000 * 1000
        sizes = Counter[str]()
        for bucket, (_, size) in newest[STATE_BYTES].items():
            sizes[bucket.partition("/")[0]] += size
        row = {"watermark": watermark, "written_at": now, "run": self._run, "ended": ended, "counters": counters,
               _OFFSETS: newest[_OFFSETS], STATE_BYTES: sizes}
        try:
            if self._store is None:
                self._store = open_store(self._uri, create=False, patient=True)
            self._store.write_features([FeatureWrite(status_key(self._job), "stream", STATUS,
                                                     Cell(json.dumps(row).encode(), now))])
        except StoreError as error:
            _log.warning("the status row could not be written: %s", error)

    def teardown(self) -> None:
        if self._store is not None:
            self._store.close()


def _read(probe: Any) -> Probe | None:
    held = probe.read()
    return Probe(**json.loads(held)) if held else None


def _write(probe: Any, held: Probe) -> None:
    probe.write(json.dumps(vars(held)).encode())


def _summed(counted: Any) -> tuple[Counter[str], dict[str, Newest]]:
    """The counters so far, the furthest offsets and the newest sizes; many are put back as one."""
    parts = [json.loads(part) for part in counted.read()]
    parts.sort(key=_is_new)
    total, newest = merged(parts)
    if len(parts) > _FOLD_AFTER:
        counted.clear()
        counted.add(json.dumps({**total, **newest}).encode())
    return total, newest


def _is_new(part: dict[str, Any]) -> bool:
    """Whether it is not what ``_summed`` put back, whose segments come first: those that were told apart stay so."""
    return not (_OFFSETS in part and STATE_BYTES in part)


def merged(parts: Iterable[dict[str, Any]]) -> tuple[Counter[str], dict[str, Newest]]:
    """Counters added; of each partition's offsets and each bucket's size the newest, and of those as new the most: in whatever
    order they come."""
    total, newest = Counter[str](), dict[str, Newest]({_OFFSETS: {}, STATE_BYTES: {}})
    for part in parts:
        for name, known in newest.items():
            for key, found in part.pop(name, {}).items():
                known[key] = max(found, known.get(key, found))
        add_counters(total, part)
    return total, newest


def read_status(store: Any, job: str) -> dict[str, Any] | None:
    """The status row of a job; None when it has never run on this store."""
    cell = store.read_features([status_key(job)], "stream", [STATUS])[0].get(STATUS)
    return json.loads(cell.value) if cell is not None else None

