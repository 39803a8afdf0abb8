"""Categories and price of items, from the catalogue in the store, for events that carry none; never in the way of events."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from schemas.keys import ITEM, row_key
from serving.catalogue import GROUP, CatalogueItem, decode_item
from serving.collector.metrics import Counters
from serving.collector.rounds import Rounds
from serving.collector.wire import EventIn
from serving.stores import Store, StoreError, open_store

KEPT_SECONDS = 60.0
AWAY_SECONDS = 2.0
"""How long the store is left alone after it failed."""
PATIENCE_SECONDS = 0.02
"""How long an event waits for an item that is looked up; then it goes without, as ``unknown``."""
MAX_ITEMS = 200_000

_NOTHING = CatalogueItem()


class Stamps:
    """Stamps events. Items looked up are kept for a minute; misses of concurrent requests are read together."""

    def __init__(self, store_uri: str, counters: Counters) -> None:
        self._open = partial(open_store, store_uri, create=False)
        self._store: Store | None = None
        self._counters = counters
        self._kept: dict[str, tuple[float, CatalogueItem]] = {}
        self._reads: Rounds[str] = Rounds(self._read, "catalogue")
        self._away_until = 0.0

    async def stamp(self, events: Iterable[EventIn]) -> None:
        """Fills categories and price where the client sent none and the catalogue has them."""
        now, kept = time.monotonic(), self._kept
        late: list[EventIn] = []
        for event in events:
            if event.item_id and (not event.categories or event.price is None):
                found = kept.get(event.item_id)
                if found is None or found[0] < now:
                    late.append(event)
                else:
                    _apply(event, found[1])
        if late and now >= self._away_until:
            await self._reads.do({e.item_id for e in late if e.item_id}, PATIENCE_SECONDS)  # type: ignore[arg-type]
        for event in late:
            found = kept.get(event.item_id or "")
            if found is not None:  # an old value is better than none
                _apply(event, found[1])

    def _read(self, item_ids: list[str]) -> None:
        asked = list(dict.fromkeys(item_ids))
        try:
            if self._store is None:
                self._store = self._open()
            rows = self._store.read_features([row_key(ITEM, i) for i in asked], "meta", [GROUP])
        except StoreError:
            self._counters.stamp_failures += 1
            self._away_until = time.monotonic() + AWAY_SECONDS
            self._forget_store()
            raise
        until = time.monotonic() + KEPT_SECONDS
        for item_id, cells in zip(asked, rows, strict=True):
            entry = decode_item(cells[GROUP].value) if GROUP in cells else None
            self._kept.pop(item_id, None)  # inserted again at the end: the front of the dict is the oldest
            self._kept[item_id] = (until, entry or _NOTHING)
        while len(self._kept) > MAX_ITEMS:
            del self._kept[next(iter(self._kept))]

    def _forget_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def close(self) -> None:
        """Waits for the read that runs, then closes the store."""
        self._reads.close()
        self._forget_store()


def _apply(event: EventIn, item: CatalogueItem) -> None:
    if not event.categories and item.categories:
        event.categories = item.categories
    if event.price is None:
        event.price = item.price
