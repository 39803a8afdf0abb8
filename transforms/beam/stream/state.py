"""The state of one bucket of entities: what has been seen, what changed since the last flush, how far time is known.

Plain Python over columns; bucket.py keeps it in a runner's state. What is durable is a marker (a few numbers), the events
since the last snapshot as deltas, and the snapshot. The live copy here is a cache of those, valid as long as its token is the
marker's: after a failed bundle or on another worker it is restored, and every entity in the deltas is taken as changed, so
that no flush is missed.

Known time: a bucket's horizon moves by ticks, event-time timers set to the end of a pane plus the allowed lateness. An event
is too late when its pane ended at or before the horizon: what FixedWindows(300) with that allowed lateness would drop.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.keys import STREAM_JOB
from schemas.stream_cells import PANE
from schemas.tables import TABLES
from transforms.accumulators.stream.base import StreamAccumulator
from transforms.beam.stream.cells import cell_rows
from transforms.beam.stream.freshness import Waiting
from transforms.ingest import END_OF_TIME

HOUR = 3_600_000_000
DAY = 24 * HOUR
UNKNOWN = -(1 << 62)
"""A time before all others: nothing is known yet."""
LAYOUT = 3
"""Of keys, markers, deltas and snapshots; another one is refused."""
_MARKER = struct.Struct("<B8sqqqQQQ")
_SEQUENCE = struct.Struct("<Q")
_SNAPSHOT_DELTAS = 20
_MOST_DELTAS = 1200
PIECE_BYTES = 1 << 20
"""Of a snapshot as it is kept: Flink copies every value while it writes a checkpoint, those of all buckets at once."""

Hashes = npt.NDArray[np.uint64]


class StateLayoutError(ValueError):
    """State written by a version whose layout this one does not read."""


@dataclass(frozen=True)
class Rules:
    """What every bucket of a stage goes by.

    Attributes:
      lateness: microseconds that an event may come after its pane ended.
      groups: feature groups that are kept and written; None: all, and the items that users are done with.
      audit: whether rows that are final are given out, by the hour in which they became final.
      job: whose row tells what is trending.
      rewrite: whether all that a bucket holds is written again when it is restored.
    """

    lateness: int = HOUR
    groups: tuple[str, ...] | None = None
    audit: bool = False
    job: str = STREAM_JOB
    rewrite: bool = False


def groups_of(kind: type[StreamAccumulator], groups: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """What a state of this kind keeps, given the feature groups that are wanted; None: everything."""
    if groups is None:
        return None
    mine = tuple(group for group in kind.GROUPS if group in groups)
    return (*mine, "pairs") if "pairs" in kind.EXTRAS and "item_cooccurring" in groups else mine


@dataclass(frozen=True)
class Marker:
    """The small part of a bucket's state.

    Attributes:
      token: of the live copy that is in step with the state.
      horizon: no event of a pane that ended at or before it is taken any more; UNKNOWN at first.
      tick: the horizon that the pending timer will set; END_OF_TIME for none.
      newest: end of the newest pane that had an event.
      sequence: of the next delta.
      deltas, delta_bytes: since the snapshot.
    """

    token: bytes = b""
    horizon: int = UNKNOWN
    tick: int = END_OF_TIME
    newest: int = UNKNOWN
    sequence: int = 0
    deltas: int = 0
    delta_bytes: int = 0

    def pack(self) -> bytes:
        """As bytes of a fixed size."""
        return _MARKER.pack(LAYOUT, self.token, self.horizon, self.tick, self.newest, self.sequence, self.deltas,
                            self.delta_bytes)

    @classmethod
    def unpack(cls, data: bytes) -> Marker:
        """The marker of ``pack``; raises StateLayoutError."""
        if data[:1] != bytes([LAYOUT]) or len(data) != _MARKER.size:
            raise StateLayoutError(f"the state of this stream has layout {data[0] if data else 'none'}, this version reads "
                                   f"layout {LAYOUT}; start anew, without --resume, and the log is read again")
        return cls(*_MARKER.unpack(data)[1:])


class _Snapshot(msgspec.Struct):
    layout: int
    accumulator: bytes
    panes: list[int]
    hours: list[int]
    extra: bytes


def pack_delta(sequence: int, payload: bytes | memoryview) -> bytes:
    """A delta, or a piece of a snapshot, as it is kept; bags have no order, so it carries its own."""
    return b"".join((_SEQUENCE.pack(sequence), payload))


def in_pieces(snapshot: bytes) -> Iterator[bytes]:
    """A snapshot as it is kept."""
    whole = memoryview(snapshot)
    for number, at in enumerate(range(0, len(whole), PIECE_BYTES)):
        yield pack_delta(number, whole[at : at + PIECE_BYTES])


def whole_of(pieces: Iterable[bytes]) -> bytes | None:
    """The snapshot of ``in_pieces``; None where there is none."""
    return b"".join(memoryview(piece)[_SEQUENCE.size :] for piece in sorted(pieces, key=_sequence_of)) or None


@dataclass(frozen=True)
class Final:
    """Rows of a lake table that became final in the hour that begins at ``hour``: all of this bucket's."""

    table: str
    hour: int
    rows: pa.RecordBatch


class Bucket:
    """The live copy of one bucket. Subclasses say what an element is and what is taken from it."""

    ENTITY: ClassVar[str]

    def __init__(self, rules: Rules, state: StreamAccumulator) -> None:
        self.rules, self.state = rules, state
        self.marker = Marker(token=os.urandom(8))
        self.key = 0  # of the bucket in the job
        self.snapshot_bytes = 0
        self.flush_due: float | None = None
        self.flush_costs = 0.0, 0.0  # CPU seconds of the last two flushes: one alone may have compiled something
        self.waiting = Waiting()
        self.used = 0.0
        self._dirty: list[Hashes] = []
        self._panes: set[int] = set()  # with events, not yet passed by the horizon
        self._hours: set[int] = set()  # with events whose final rows are still to be given out

    # What a subclass does.

    def replay(self, payload: bytes) -> None:
        """Adds a delta's payload again."""
        raise NotImplementedError

    def extra(self) -> bytes:
        """What a snapshot holds besides the accumulator."""
        return b""

    def restore_extra(self, data: bytes) -> None:
        """Takes ``extra`` back."""

    def pending_cells(self) -> list[pa.RecordBatch]:
        """Cells besides the accumulator's (CELLS) that changed since the last flush."""
        return []

    def expire(self, horizon: int) -> None:
        """Forgets what only events before the horizon need."""

    # What every bucket does.

    @classmethod
    def restore(cls, rules: Rules, marker: Marker, snapshot: bytes | None, deltas: Iterable[bytes]) -> Self:
        """The live copy of what is durable, with everything in the deltas (by the rules: in the snapshot too) taken as changed;
        raises StateLayoutError."""
        bucket = cls.new(rules)
        if snapshot is not None:
            held = msgspec.msgpack.decode(snapshot, type=_Snapshot)
            if held.layout != LAYOUT:
                raise StateLayoutError(f"a snapshot has layout {held.layout}, this version reads layout {LAYOUT}")
            bucket.state = type(bucket.state).from_bytes(held.accumulator, groups_of(type(bucket.state), rules.groups))
            bucket._panes, bucket._hours = set(held.panes), set(held.hours)
            bucket.restore_extra(held.extra)
            bucket.snapshot_bytes = len(snapshot)
            if rules.rewrite:
                bucket.touch_all(np.sort(bucket.state.entities().hashes))
        for delta in sorted(deltas, key=_sequence_of):
            bucket.replay(delta[_SEQUENCE.size :])
        bucket.marker = marker
        if marker.horizon > UNKNOWN:
            bucket._forget()
        return bucket

    @classmethod
    def new(cls, rules: Rules) -> Self:
        """An empty bucket."""
        raise NotImplementedError

    def changed(self, delta: bytes | None = None) -> Marker:
        """Moves to a new token, counting a delta that was written; the caller writes the marker."""
        more = 0 if delta is None else 1
        self.marker = dataclasses.replace(
            self.marker, token=os.urandom(8), sequence=self.marker.sequence + more, deltas=self.marker.deltas + more,
            delta_bytes=self.marker.delta_bytes + (0 if delta is None else len(delta)))
        return self.marker

    def touch(self, hashes: Hashes, times: npt.NDArray[np.int64]) -> None:
        """Notes entities that changed and the times of the events that changed them."""
        self._dirty.append(hashes)
        self._open(times)

    def touch_all(self, hashes: Hashes) -> None:
        """Notes that all cells of these entities, all that there are, are to be written."""
        self._dirty.append(hashes)

    def _open(self, times: npt.NDArray[np.int64]) -> None:
        """Notes the panes of these times."""
        panes = np.unique(times // PANE).tolist()
        if not panes:
            return
        self._panes.update(panes)
        if (panes[-1] + 1) * PANE > self.marker.newest:
            self.marker = dataclasses.replace(self.marker, newest=(panes[-1] + 1) * PANE)
        if self.rules.audit:
            for hour in {pane * PANE // HOUR for pane in panes}:
                self._hours.update((hour * HOUR, (hour + 1) * HOUR))  # a session ends up to half an hour after its last event

    @property
    def is_dirty(self) -> bool:
        """Whether anything changed since the last flush."""
        return bool(self._dirty)

    def flush(self, now: float | None = None) -> list[pa.RecordBatch]:
        """The full cells, as CELLS, of what changed since the last flush: of everything, or at ``now`` (seconds) of that whose
        turn it is, while the rest stays dirty."""
        found = [*self.cells_due(now), *self.pending_cells()]
        return [rows for rows in found if rows.num_rows]

    def cells_due(self, now: float | None) -> list[pa.RecordBatch]:
        """Cells of the accumulator for ``flush``."""
        return self._cells_of(self._taken())

    def _taken(self) -> Hashes:
        """What is dirty, ascending; from now on it is not."""
        dirty, self._dirty = self._dirty, []
        return distinct(dirty)

    def _cells_of(self, hashes: Hashes, groups: Collection[str] | None = None) -> list[pa.RecordBatch]:
        return [cell_rows(self.ENTITY, cells) for cells in self.state.cells(hashes, groups)] if len(hashes) else []

    def earlier_tick(self) -> int | None:
        """The tick to set when an open pane wants an earlier one than the one that is pending."""
        wanted = (min(self._panes) + 1) * PANE if self._panes else END_OF_TIME
        if wanted >= self.marker.tick:
            return None
        self.marker = dataclasses.replace(self.marker, tick=wanted)
        return wanted

    def advance(self, horizon: int) -> list[Final]:
        """Learns that no event before the horizon is taken any more; returns the rows of every hour that is now complete.

        Where ``state.is_full``, ``flush`` everything before: rows are dropped.
        """
        if horizon <= self.marker.horizon:
            return []
        self.marker = dataclasses.replace(self.marker, horizon=horizon)
        finals = self._finals(horizon)
        self._forget()
        self.state.prune(self._kept_until())
        return finals

    def next_tick(self) -> int:
        """The tick after the present horizon, which is the marker's from now on.

        Ticks follow each other pane by pane, so that what is too late is known exactly. Where a bucket has had no event for a
        day, the next open pane or ever longer steps do.
        """
        marker = self.marker
        oldest = (min(self._panes) + 1) * PANE if self._panes else END_OF_TIME
        tick = marker.horizon + PANE
        if self._panes:
            tick = oldest if oldest - marker.horizon > DAY else tick
        elif marker.horizon - marker.newest > DAY:
            tick += marker.horizon - marker.newest
        tick = min(tick, END_OF_TIME)
        self.marker = dataclasses.replace(marker, tick=tick)
        return tick

    def no_tick(self) -> None:
        """No timer is pending any more."""
        self.marker = dataclasses.replace(self.marker, tick=END_OF_TIME)

    def _forget(self) -> None:
        horizon = self.marker.horizon
        self._panes = {pane for pane in self._panes if (pane + 1) * PANE > horizon}
        self._hours = {hour for hour in self._hours if hour + HOUR > horizon}
        self.expire(horizon)

    def _kept_until(self) -> int:
        # What final() has not yet given out must stay: it is given out by whole hours.
        horizon = self.marker.horizon
        return horizon // HOUR * HOUR if self.rules.audit and horizon < END_OF_TIME else horizon

    def _finals(self, horizon: int) -> list[Final]:
        finals = []
        for hour in sorted(hour for hour in self._hours if hour + HOUR <= horizon):
            found = self.state.final(hour + HOUR, hour)
            finals += [Final(table, hour, rows) for table, rows in found.items() if table in TABLES]
        return finals

    @property
    def wants_snapshot(self) -> bool:
        """Whether the deltas are to be folded: so often that restoring is short, so rarely that little is rewritten."""
        marker = self.marker
        return marker.deltas >= _MOST_DELTAS or (marker.deltas >= _SNAPSHOT_DELTAS and
                                                 marker.delta_bytes >= self.snapshot_bytes)

    def snapshot(self) -> bytes:
        """Everything but the marker; the deltas so far are in it. After a flush only: what is dirty still is in ``extra``."""
        state = self.state.to_bytes(ordered=False)
        data = msgspec.msgpack.encode(_Snapshot(LAYOUT, state, sorted(self._panes), sorted(self._hours), self.extra()))
        self.snapshot_bytes = len(data)
        self.marker = dataclasses.replace(self.marker, deltas=0, delta_bytes=0)
        return data


def distinct(parts: list[Hashes]) -> Hashes:
    """The hashes in any of the parts, ascending."""
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)


def _sequence_of(delta: bytes) -> int:
    return int(_SEQUENCE.unpack_from(delta)[0])
