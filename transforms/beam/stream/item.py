"""Buckets of items: what their users' buckets let through is counted; it is neither late nor a copy."""

from __future__ import annotations

from typing import Self

import numpy as np
import pyarrow as pa

from schemas.stream_cells import PANE
from transforms.accumulators.events import Events
from transforms.accumulators.stream.item import ItemState
from transforms.beam.stream.cells import trending_row
from transforms.beam.stream.freshness import Moments, moments_of
from transforms.beam.stream.state import Bucket, Hashes, Rules, distinct, groups_of
from transforms.beam.stream.wire import unpack_parts

PARTNERS = "item_cooccurring"
"""The group whose cells come in turns."""
PARTNERS_EVERY_S = 30.0
TRENDING_EVERY_S = 10.0
TRENDING_ITEMS = 100
"""So many of a bucket's items may be trending."""
_PHASE_BITS, _PHASE_SHIFT = 16, 8  # of a hash: low ones, for the high ones choose the bucket


class ItemBucket(Bucket):
    """The items of a bucket; an element is two packed parts (wire.pack_parts): events, and changes of pairs.

    Who is seen with an item is written every PARTNERS_EVERY_S, items taking turns: with every view nearly all items get another
    partner, each cell is made from all its rows, and a second changes little in a weight that halves in an hour. What is
    trending in the bucket is written every TRENDING_EVERY_S.
    """

    ENTITY = "item"
    state: ItemState

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules, ItemState(groups_of(ItemState, rules.groups)))
        self.accepted: Moments = np.empty(0, np.uint32)  # of the last message's events
        self._partnered: list[Hashes] = []
        self._turned: float | None = None
        self._trends_changed, self._trends_at = False, 0.0

    @classmethod
    def new(cls, rules: Rules) -> Self:
        """See Bucket."""
        return cls(rules)

    def take(self, message: bytes) -> int:
        """Adds a message; returns its rows."""
        events, changed = unpack_parts(message)
        self.accepted = moments_of(events) if events is not None else np.empty(0, np.uint32)
        if events is not None:
            self.state.add(Events(events))
            self._trends_changed = self.rules.groups is None
            self.touch(self.state.hashes_of(events.column("item_id")), events.column("occurred_at").cast(pa.int64()).to_numpy())
        if changed is not None:
            self.state.add_pairs(changed)
            self._partnered.append(self.state.hashes_of(changed.column("item_id")))
            self._open(changed.column("pane").to_numpy() * np.int64(PANE))
        return sum(part.num_rows for part in (events, changed) if part is not None)

    def replay(self, payload: bytes) -> None:
        """See Bucket."""
        self.take(payload)

    def touch_all(self, hashes: Hashes) -> None:
        """See Bucket."""
        super().touch_all(hashes)
        self._partnered.append(hashes)

    @property
    def is_dirty(self) -> bool:
        """See Bucket."""
        return bool(self._dirty or self._partnered or self._trends_changed)

    def cells_due(self, now: float | None) -> list[pa.RecordBatch]:
        """See Bucket."""
        others = [group for group in self.state.groups if group != PARTNERS]
        return [*self._cells_of(self._taken(), others), *self._cells_of(self._turn(now), (PARTNERS,)), *self._trending(now)]

    def _trending(self, now: float | None) -> list[pa.RecordBatch]:
        if not self._trends_changed or (now is not None and now - self._trends_at < TRENDING_EVERY_S):
            return []
        self._trends_changed, self._trends_at = False, now or 0.0
        found = self.state.trending(TRENDING_ITEMS)
        return [trending_row(self.rules.job, self.key, *found)] if found is not None else []

    def _turn(self, now: float | None) -> Hashes:
        """The items whose partners are written now; the rest of those whose partners changed waits for its turn."""
        if not self._partnered:
            return np.empty(0, np.uint64)
        waiting, self._partnered = distinct(self._partnered), []
        last, self._turned = self._turned, now
        if now is None or last is None or now - last >= PARTNERS_EVERY_S:
            return waiting
        phases = waiting >> np.uint64(_PHASE_SHIFT) & np.uint64((1 << _PHASE_BITS) - 1)
        until = (phases.astype(np.float64) / (1 << _PHASE_BITS) * PARTNERS_EVERY_S - last) % PARTNERS_EVERY_S
        mine = until < now - last
        self._partnered = [waiting[~mine]] if not mine.all() else []
        return waiting[mine]

    def extra(self) -> bytes:
        """See Bucket: items whose partners are still to be written."""
        return distinct(self._partnered).tobytes()

    def restore_extra(self, data: bytes) -> None:
        """See Bucket."""
        self._partnered = [np.frombuffer(data, np.uint64)] if data else []
        self._trends_changed = self.rules.groups is None
