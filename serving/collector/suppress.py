"""The fast path of urgent events: the item's suppression cell is in the store before the event is answered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from schemas.event_types import EVENT_TYPES
from schemas.keys import USER, row_key, suppressed_group
from schemas.stream_cells import encode_suppression
from serving.collector.metrics import Counters
from serving.collector.rounds import Rounds
from serving.collector.wire import EventIn
from serving.stores import Store, StoreError, open_store
from serving.stores.base import Cell, FeatureWrite

URGENT = frozenset(t.name for t in EVENT_TYPES if t.urgent)
PATIENCE_SECONDS = 0.5
"""How long an answer waits for the store: the event itself is in the log, and the stream writes the cell again."""


class Suppressor:
    """Writes suppression cells; those of concurrent requests in one transaction."""

    def __init__(self, store_uri: str, counters: Counters) -> None:
        self._open = partial(open_store, store_uri, create=False)
        self._store: Store | None = None
        self._counters = counters
        self._writes: Rounds[FeatureWrite] = Rounds(self._write, "suppress")

    async def suppress(self, events: Sequence[EventIn]) -> None:
        """Hides the items of urgent events from their users; never raises, what fails is counted."""
        writes = [FeatureWrite(row_key(USER, e.user_id), "stream", suppressed_group(e.item_id),
                               Cell(encode_suppression(at := int(e.occurred_at or 0)), at // 1000 * 1000))  # type: ignore[arg-type]
                  for e in events if e.item_id]
        if writes:
            done = await self._writes.do(writes, PATIENCE_SECONDS)
            self._counters.suppressions["written" if done else "late_or_failed"] += len(writes)

    def _write(self, writes: list[FeatureWrite]) -> None:
        try:
            if self._store is None:
                self._store = self._open()
            self._store.write_features(writes)
        except StoreError:
            self._forget_store()
            raise

    def _forget_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def close(self) -> None:
        """Waits for the write that runs, then closes the store."""
        self._writes.close()
        self._forget_store()
