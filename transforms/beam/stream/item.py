"""Buckets of items: what their users' buckets let through is counted; it is neither late nor a copy."""

from __future__ import annotations

from typing import Self

import numpy as np
import pyarrow as pa

from schemas.stream_cells import PANE
from transforms.accumulators.events import Events
from transforms.accumulators.stream.item import ItemState
from transforms.beam.stream.freshness import Moments, moments_of
from transforms.beam.stream.state import Bucket, Rules, groups_of
from transforms.beam.stream.wire import unpack_parts


class ItemBucket(Bucket):
    """The items of a bucket; an element is two packed parts (wire.pack_parts): events, and changes of pairs."""

    ENTITY = "item"
    state: ItemState

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules, ItemState(groups_of(ItemState, rules.groups)))
        self.accepted: Moments = np.empty(0, np.uint32)  # of the last message's events

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
            self.touch(self.state.hashes_of(events.column("item_id")), events.column("occurred_at").cast(pa.int64()).to_numpy())
        if changed is not None:
            self.state.add_pairs(changed)
            self.touch(self.state.hashes_of(changed.column("item_id")), changed.column("pane").to_numpy() * np.int64(PANE))
        return sum(part.num_rows for part in (events, changed) if part is not None)

    def replay(self, payload: bytes) -> None:
        """See Bucket."""
        self.take(payload)
