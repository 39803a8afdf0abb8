"""Buckets of users: what is too late or a copy is told apart, the rest is added and passed on to the items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.event_types import EVENT_TYPES
from schemas.stream_cells import PANE
from transforms.accumulators.events import Events
from transforms.accumulators.stream.item import ItemState
from transforms.accumulators.stream.user import UserState
from transforms.beam.stream.cells import suppression_rows
from transforms.beam.stream.seen import SeenEvents, event_keys
from transforms.beam.stream.state import UNKNOWN, Bucket, Hashes, Rules, distinct, groups_of
from transforms.beam.stream.wire import unpack

SEGMENT_COLUMNS = ("event_type", "surface")
"""By which events that are too late are counted."""
USER_COLUMNS = tuple(dict.fromkeys((*UserState.COLUMNS, *ItemState.COLUMNS, *SEGMENT_COLUMNS)))
"""Columns of events that travel to the user state."""
ITEM_COLUMNS = ItemState.COLUMNS
"""Columns of events that travel on to the item state."""


@dataclass(frozen=True)
class Taken:
    """What became of a batch.

    Attributes:
      fresh: events that are neither copies nor too late, all columns; may be empty.
      pairs: changes of pairs of items (transforms.accumulators.stream.pairs.PAIRS), None for none.
      duplicates: how many copies.
      late: how many events were too late, by (event type, surface).
    """

    fresh: pa.RecordBatch
    pairs: pa.RecordBatch | None
    duplicates: int
    late: dict[tuple[str, str], int]


_CONSUMES = np.array([t.consumes for t in EVENT_TYPES])


class _Seen(msgspec.Struct):
    panes: list[int]
    counts: list[int]
    keys: bytes


INTERACTIONS = ("user_preference", "user_recent")
"""Groups that only events of weight > 0 with an item change."""


class UserBucket(Bucket):
    """The users of a bucket; an element is a batch of events with USER_COLUMNS, whose copies it leaves out."""

    ENTITY = "user"
    state: UserState

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules, UserState(groups_of(UserState, rules.groups)))
        self.seen = SeenEvents()
        self._with_pairs = "pairs" in self.state.extras
        self._interacted: list[Hashes] = []  # users whose INTERACTIONS changed since the last flush
        self._consumed: list[tuple[npt.NDArray[np.uint64], pa.Array, pa.Array, npt.NDArray[np.int64]]] = []

    @classmethod
    def new(cls, rules: Rules) -> Self:
        """See Bucket."""
        return cls(rules)

    def take(self, batch: pa.RecordBatch) -> Taken:
        """Adds the events that are new and in time."""
        late: dict[tuple[str, str], int] = {}
        times = batch.column("occurred_at").cast(pa.int64()).to_numpy()
        horizon = self.marker.horizon
        if horizon > UNKNOWN:
            in_time = (times // PANE + 1) * PANE > horizon
            if not in_time.all():
                late = _segments(batch.filter(pa.array(~in_time)))
                batch, times = batch.filter(pa.array(in_time)), times[in_time]
        users = self.state.hashes_of(batch.column("user_id"))
        new = self.seen.add(event_keys(batch.column("event_hash").to_numpy().view(np.uint64), users), times // PANE)
        duplicates = len(new) - int(new.sum())
        if duplicates:
            batch, times, users = batch.filter(pa.array(new)), times[new], users[new]
        pairs = None
        if batch.num_rows:
            self._add(batch, times, users)
            pairs = self.state.take_pairs() if self._with_pairs else None
        return Taken(batch, pairs, duplicates, late)

    def _add(self, fresh: pa.RecordBatch, times: npt.NDArray[np.int64], users: npt.NDArray[np.uint64]) -> None:
        events = Events(fresh)
        self.state.add(events)
        self.touch(users, times)
        has_item = fresh.column("item_id").is_valid().to_numpy(zero_copy_only=False)
        self._interacted.append(users[(events.weight > 0) & has_item])
        if self.rules.groups is None:
            consumed = np.flatnonzero(_CONSUMES[events.type] & has_item)
            if len(consumed):
                rows = pa.array(consumed)
                self._consumed.append((users[consumed], fresh.column("user_id").take(rows),
                                       fresh.column("item_id").take(rows), times[consumed]))

    def replay(self, payload: bytes) -> None:
        """See Bucket."""
        fresh = unpack(payload)
        times = fresh.column("occurred_at").cast(pa.int64()).to_numpy()
        users = self.state.hashes_of(fresh.column("user_id"))
        self.seen.add(event_keys(fresh.column("event_hash").to_numpy().view(np.uint64), users), times // PANE)
        self._add(fresh, times, users)
        if self._with_pairs:
            self.state.settle()  # its pairs went to the items when the events first came

    def cells_due(self, now: float | None) -> list[pa.RecordBatch]:
        """See Bucket: an impression changes counts and sessions, and nothing else is written."""
        others = [group for group in self.state.groups if group not in INTERACTIONS]
        interacted, self._interacted = self._interacted, []
        return [*self._cells_of(self._taken(), others), *self._cells_of(distinct(interacted), INTERACTIONS)]

    def touch_all(self, hashes: Hashes) -> None:
        """See Bucket."""
        super().touch_all(hashes)
        self._interacted.append(hashes)

    def pending_cells(self) -> list[pa.RecordBatch]:
        """See Bucket: suppressions."""
        consumed, self._consumed = self._consumed, []
        return [suppression_rows(*rows) for rows in consumed]

    def expire(self, horizon: int) -> None:
        """See Bucket."""
        self.seen.expire(horizon // PANE)

    def extra(self) -> bytes:
        """See Bucket: keys of the events seen."""
        panes, counts, keys = self.seen.to_columns()
        return msgspec.msgpack.encode(_Seen(panes, counts, keys.tobytes()))

    def restore_extra(self, data: bytes) -> None:
        """See Bucket."""
        held = msgspec.msgpack.decode(data, type=_Seen)
        self.seen = SeenEvents.from_columns(held.panes, held.counts, np.frombuffer(held.keys, np.uint64))


def _segments(late: pa.RecordBatch) -> dict[tuple[str, str], int]:
    names = [pc.fill_null(late.column(c).cast(pa.string()), "") for c in SEGMENT_COLUMNS]
    counted = pa.table(names, list(SEGMENT_COLUMNS)).group_by(list(SEGMENT_COLUMNS)).aggregate([([], "count_all")])
    rows = zip(*(counted.column(c).to_pylist() for c in (*SEGMENT_COLUMNS, "count_all")), strict=True)
    return {(str(kind), str(surface)): int(count) for kind, surface, count in rows}
