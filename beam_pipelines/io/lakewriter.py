"""The lake writer: an event log into the lake, a commit a minute, from where the last commit ended.

The offsets up to which a commit read stand in the summary of its snapshot of ``events``: the lake itself says where to go on.
A writer that was killed reads some records again; they are known by their positions and event ids, so nothing is added twice.
After each commit the logs beside it (the collector's dead letters, items, users, what was served) are stored too: ``lakeside``.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.io.ingest import Captured, IngestCounts, ingest
from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakeside import SideLogs, offsets_of, summary_of
from beam_pipelines.io.lakewait import patiently
from beam_pipelines.io.source_lane import Away, Lane, Reading, Start, Step
from beam_pipelines.io.source_tracker import Span
from schemas.tables import EVENTS, RAW_EVENTS
from serving.eventlog import open_log
from transforms.records import Records

COMMIT_EVERY_S = 60.0
BUFFER_BYTES = 256 << 20
_POLL_BYTES = 16 << 20
_POLL_S = 0.2
_NO_SKEW_S = 1e9

_NO_EVENTS = EVENTS.schema.empty_table().drop_columns("event_hash")


@dataclass
class Written:
    """What a lake writer did so far.

    Attributes:
      read: events, = stored + duplicates + rejected; lost: records that retention deleted before they were read.
      next: the offsets it goes on from.
      items, users: upserts that changed something.
      served: answers of the API.
      letters: dead letters from the logs beside the event log.
      next_beside: offsets of those logs by dead, items, users and served, where they are there.
    """

    read: int = 0
    stored: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    commits: int = 0
    lost: int = 0
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    next: dict[int, int] = field(default_factory=dict)
    items: int = 0
    users: int = 0
    served: int = 0
    letters: int = 0
    next_beside: dict[str, dict[int, int]] = field(default_factory=dict)

    def add(self, counts: IngestCounts, offsets: Mapping[int, int]) -> None:
        """Counts a commit."""
        self.read += counts.read
        self.stored += counts.stored
        self.duplicates += counts.duplicates
        self.conflicts += counts.conflicts
        self.rejected += counts.rejected
        self.rejected_by_reason = dict(sorted((Counter(self.rejected_by_reason) + Counter(counts.rejected_by_reason)).items()))
        self.commits += 1
        self.next = dict(offsets)

    def look_beside(self, sides: SideLogs) -> None:
        """Takes over what the logs beside gave so far."""
        logs = sides.logs
        self.items, self.users, self.served = logs["items"].stored, logs["users"].stored, logs["served"].stored
        self.letters = logs["dead"].stored + sum(logs[kind].refused for kind in ("items", "users", "served"))
        self.next_beside = {kind: dict(log.next) for kind, log in logs.items() if log.next}


def committed_offsets(lake: Lake, source: str) -> dict[int, int]:
    """Where the lake's newest commit of a log ended, by partition; empty before the first."""
    return offsets_of(lake, "events", source)


def write_lake(lake: Lake, uri: str, *, start: Start = "earliest", until_end: bool = False, every_s: float = COMMIT_EVERY_S,
               stop: threading.Event | None = None, progress: Callable[[Written], None] | None = None) -> Written:
    """Writes a log into ``raw_events``, ``events`` and ``dead_letters`` until told to stop, and the logs beside it.

    Args:
      lake: where to.
      uri: of the event log.
      start: where to begin a log that the lake holds nothing of.
      until_end: end once everything that was there at the start is written.
      every_s: seconds between commits; a full buffer is committed earlier.
      stop: set it to end after one last commit.
      progress: called after each commit.

    Raises:
      LogError: there is no such log, or it is damaged.
      OSError, OperationalError, ...: the lake was away, and still is some tries after ``stop`` was set.
    """
    stop, written = stop or threading.Event(), Written()
    log = open_log(uri)
    source = log.uri
    log.close()
    known = patiently(functools.partial(committed_offsets, lake, source), stop)
    reading = Reading(uri=uri, start=known or start, stop="end" if until_end else None, readers=1, watermark_delay_s=0.0,
                      idle_s=None, skew_s=_NO_SKEW_S, bundle_s=_POLL_S, linger_s=0.0, poll_bytes=_POLL_BYTES,
                      discover_s=30.0, on_gap="skip", run=f"lake:{uri}")
    lane, sides = Lane(reading, 0), SideLogs(lake, uri)
    try:
        span = Span()
        while not (span.done and span.started) and not stop.is_set():
            gathered, span = _gather(lane, span, every_s, stop, written)
            offsets = {p: place.next for p, place in span.places.items()}
            if gathered:
                written.add(_commit(lake, source, gathered, offsets, stop), offsets)
            sides.catch_up(stop, until_end)
            written.look_beside(sides)
            if progress is not None:
                progress(written)
    finally:
        lane.close()
    return written


def _gather(lane: Lane, span: Span, every_s: float, stop: threading.Event, written: Written) -> tuple[list[Captured], Span]:
    """Reads for ``every_s`` seconds, or until the buffer is full, the log's end is reached or ``stop`` is set."""
    gathered: list[Captured] = []
    size, until = 0, time.monotonic() + every_s
    while size < BUFFER_BYTES and time.monotonic() < until and not stop.is_set():
        try:
            step = lane.step(span, min(_POLL_S, max(until - time.monotonic(), 0.0)))
        except Away as away:
            stop.wait(min(away.wait_s, max(until - time.monotonic(), 0.0)))
            continue
        span = step.span
        written.lost += sum(gap.end - gap.first for gap in step.lost)
        if step.polled is not None and len(step.polled):
            gathered.append(_captured(step, lane.name))
            size += len(step.polled.data) + (step.events.nbytes if step.events is not None else 0)
        if span.started and span.done:
            break
    return gathered, span


def _captured(step: Step, source: str) -> Captured:
    assert step.polled is not None
    events = pa.Table.from_batches([step.events]).drop_columns("event_hash") if step.events is not None else _NO_EVENTS
    dead = pa.Table.from_batches([step.dead]) if step.dead is not None else None
    return Captured(events, raw=_raw(step.polled, source), dead=dead)


def _raw(records: Records, source: str) -> pa.Table:
    """``raw_events`` of records: their bytes as they came, on the day of their log timestamp."""
    n = len(records)
    offsets = np.concatenate([np.zeros(1, np.int64), records.ends])
    payload = pa.LargeBinaryArray.from_buffers(pa.large_binary(), n, [None, pa.py_buffer(offsets), pa.py_buffer(records.data)])
    return pa.table({
        "source": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([source])),
        "partition": records.partition, "offset": records.offset, "index": np.zeros(n, np.int32),
        "captured_at": pa.array(records.timestamp).cast(RAW_EVENTS.schema.field("captured_at").type),
        "payload": payload.cast(pa.binary()),
    })


def _commit(lake: Lake, source: str, gathered: list[Captured], offsets: Mapping[int, int],
            stop: threading.Event) -> IngestCounts:
    """Commits; a catalog or disk that is away is waited for, and nothing more is read meanwhile."""
    since = min(int(pc.min(part.raw["offset"]).as_py()) for part in gathered if part.raw is not None)
    return patiently(functools.partial(ingest, lake, gathered, sources=[source], since=since, across_days=False,
                                       summary=summary_of(source, offsets)), stop)
