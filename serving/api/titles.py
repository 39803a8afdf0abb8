"""Metadata of items that no bundle holds (new ones, or a version has none): read from the store, kept a minute."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from schemas.keys import ITEM, row_key
from serving.catalogue import CACHE_SECONDS, GROUP, CatalogueItem, decode_item
from serving.responses import Metadata
from serving.stores.aio import AsyncStore
from serving.stores.base import StoreError

READ_SECONDS = 0.01
"""A list without titles now is better than one with titles later."""
MAX_KEPT = 50_000
_encode = msgspec.json.Encoder().encode


class Titles:
    """Reads metadata of items. For one event loop."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._kept: dict[str, tuple[float, bytes | None]] = {}

    async def of(self, item_ids: Sequence[str]) -> dict[str, bytes]:
        """JSON (serving.responses.Metadata) of those items that the store has an entry of; what was known where it is away."""
        now = time.monotonic()
        stale = [i for i in dict.fromkeys(item_ids) if i not in self._kept or now - self._kept[i][0] > CACHE_SECONDS]
        if stale:
            try:
                rows = await self._store.read_features([row_key(ITEM, i) for i in stale], "meta", [GROUP], timeout=READ_SECONDS)
            except StoreError:
                pass
            else:
                if len(self._kept) + len(stale) > MAX_KEPT:
                    self._kept.clear()
                for item_id, cells in zip(stale, rows, strict=True):
                    self._kept[item_id] = now, encode_metadata(cells[GROUP].value) if GROUP in cells else None
        found = {i: self._kept[i][1] for i in item_ids if i in self._kept}
        return {i: metadata for i, metadata in found.items() if metadata is not None}


def encode_metadata(value: bytes) -> bytes | None:
    """The metadata shown of a catalogue cell's entry, None when it holds none."""
    entry = decode_item(value)
    return None if entry is None else _encode(metadata_of(entry))


def metadata_of(entry: CatalogueItem) -> Metadata:
    """What is shown of a catalogue entry."""
    categories = entry.categories or []
    return Metadata(entry.title, entry.image, entry.price, categories[0] if categories else None, categories,
                    entry.attributes or {})
