"""How far event time has come in the partitions of one reader: watermark, idle partitions, partitions that run ahead."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa

from beam_pipelines.io.source_tracker import NOTHING_YET, Place
from transforms.ingest import MAX_AHEAD_MICROS, micros
from transforms.records import Records

_PAUSE_MICROS = 1_000_000
"""A longer time between two polls is not quiet in the log: nobody looked."""

STUCK_MICROS = 60_000_000
"""A partition with a backlog that gives nothing for so long (its broker is away) holds no other one back."""


class EventClock:
    """Event time of a reader's partitions. Times are microseconds; ``now`` is processing time and is always passed in.

    A partition stands at its newest event time less ``delay``. Once it gave no valid event for ``idle`` and nothing waits in
    it (next offset == high watermark: an empty poll alone proves nothing), it stands at now less ``delay``. The reader stands
    where its slowest partition does.
    """

    def __init__(self, delay: int, idle: int | None, skew: int) -> None:
        """``idle`` None: an idle partition is waited for, as a replay of old data by a slow producer needs it."""
        self._delay, self._idle, self._skew = delay, idle, skew
        self._quiet_since: dict[int, int] = {}
        self._looked: int | None = None
        self.paused: frozenset[int] = frozenset()

    def polled(self, places: Mapping[int, Place], gave: Collection[int], now: int) -> None:
        """Takes note of a poll after which partitions stand at ``places``; those in ``gave`` brought valid events."""
        unseen = 0 if self._looked is None else now - self._looked
        unseen = unseen if unseen > _PAUSE_MICROS else 0
        self._looked = now
        for partition in places:
            if partition in gave or partition in self.paused or partition not in self._quiet_since:
                self._quiet_since[partition] = now
            else:
                self._quiet_since[partition] += unseen

    def is_idle(self, partition: int, place: Place, now: int) -> bool:
        """Whether a partition has been quiet for long enough, with nothing waiting in it."""
        since = self._quiet_since.get(partition)
        return self._idle is not None and since is not None and place.next >= place.high and now - since >= self._idle

    def watermark(self, places: Mapping[int, Place], now: int) -> int | None:
        """No event before it is expected of these partitions any more; None while that is not known."""
        marks = []
        for partition, place in places.items():
            if place.done:
                continue
            mark = place.newest - self._delay if place.newest != NOTHING_YET else NOTHING_YET
            if self.is_idle(partition, place, now):
                mark = max(mark, now - self._delay)
            if mark == NOTHING_YET:
                return None
            marks.append(mark)
        if not places:
            return now - self._delay
        return min(marks) if marks else None

    def pause(self, places: Mapping[int, Place], now: int) -> frozenset[int]:
        """The partitions that should not be polled now: those more than ``skew`` ahead of the slowest one that has a backlog.

        One is polled again when the slowest has come to within half of that. Kept in ``paused``.
        """
        behind = [place.newest for partition, place in places.items()
                  if not place.done and place.next < place.high and now - self._quiet_since.get(partition, now) < STUCK_MICROS]
        if not behind:
            self.paused = frozenset()
            return self.paused
        slowest = min(behind)
        self.paused = frozenset(
            partition for partition, place in places.items()
            if place.newest != NOTHING_YET
            and place.newest - slowest > (self._skew // 2 if partition in self.paused else self._skew))
        return self.paused


def newest_events(events: pa.RecordBatch, records: Records, now: int) -> dict[int, int]:
    """The newest event time of each partition of a poll.

    An event may claim any time. One more than ten minutes after its record was written (or, where the log says nothing of
    that, after now) does not count, and no event counts as newer than its record: it would make all others late.

    Args:
      events: with columns partition and occurred_at.
      records: the poll they came from.
    """
    if not events.num_rows:
        return {}
    partition = events.column("partition").to_numpy()
    occurred = micros(events.column("occurred_at"))
    newest = {}
    for p in np.unique(partition).tolist():
        written = int(records.timestamp[records.partition == p].max())
        written = written if written > 0 else now
        times = occurred[partition == p]
        times = times[times <= written + MAX_AHEAD_MICROS]
        if len(times):
            newest[p] = min(int(times.max()), written)
    return newest
