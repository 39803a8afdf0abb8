"""What is shown of an item: its catalogue entry, read from the store and kept for a minute."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from schemas.keys import ITEM, row_key
from serving.stores.base import Store

GROUP, USER_GROUP = "item", "user"
CACHED_ITEMS = 100_000
CACHE_SECONDS = 60.0


class CatalogueItem(msgspec.Struct, frozen=True):
    """A catalogue entry: the JSON value of family ``meta``, group ``item``; fields not named here are skipped."""

    title: str | None = None
    categories: list[str] | None = None
    price: float | None = None
    image: str | None = None
    attributes: dict[str, str | None] | None = None


class CatalogueUser(msgspec.Struct, frozen=True):
    """What a user said at sign-up: the JSON value of family ``meta``, group ``user``. Times are microseconds, UTC."""

    signup_at: int | None = None
    country: str | None = None
    attributes: dict[str, str | None] | None = None


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(CatalogueItem)
_user_decoder = msgspec.json.Decoder(CatalogueUser)


class Catalogue:
    """Reads catalogue entries; a bounded cache answers for the items that many lists share."""

    def __init__(self, capacity: int = CACHED_ITEMS, seconds: float = CACHE_SECONDS) -> None:
        self._capacity, self._seconds = capacity, seconds
        self._cache: dict[str, tuple[float, CatalogueItem | None]] = {}

    def items(self, store: Store, item_ids: Iterable[str]) -> dict[str, CatalogueItem]:
        """The entries of those items that have one; raises StoreError.

        An entry that cannot be decoded counts as absent: a list without a title is better than no list.
        """
        now = time.monotonic()
        found: dict[str, CatalogueItem] = {}
        missing: list[str] = []
        for item_id in dict.fromkeys(item_ids):
            cached = self._cache.get(item_id)
            if cached is None or now - cached[0] > self._seconds:
                missing.append(item_id)
            elif cached[1] is not None:
                found[item_id] = cached[1]
        if missing:
            rows = store.read_features([row_key(ITEM, i) for i in missing], "meta", [GROUP])
            for item_id, cells in zip(missing, rows, strict=True):
                entry = decode_item(cells[GROUP].value) if GROUP in cells else None
                if entry is not None:
                    found[item_id] = entry
                self._cache.pop(item_id, None)  # re-inserted at the end: the front of the dict is the oldest
                self._cache[item_id] = (now, entry)
            while len(self._cache) > self._capacity:
                del self._cache[next(iter(self._cache))]
        return found


def decode_item(value: bytes) -> CatalogueItem | None:
    """A catalogue entry, None when its bytes are none."""
    try:
        return _decoder.decode(value)
    except msgspec.DecodeError:
        return None


def encode_item(title: str | None, categories: Sequence[str] | None, price: float | None, image: str | None,
                attributes: Mapping[str, str | None]) -> bytes:
    """The entry of an item; equal fields give equal bytes, whoever writes it."""
    return _encode({"title": title, "categories": categories, "price": price, "image": image, "attributes": attributes})


def encode_user(signup_at: int | None, country: str | None, attributes: Mapping[str, str | None]) -> bytes:
    """The entry of a user; ``signup_at`` in microseconds."""
    return _encode({"signup_at": signup_at, "country": country, "attributes": attributes})


def decode_user(value: bytes) -> CatalogueUser | None:
    """A user's entry, None when its bytes are none."""
    try:
        return _user_decoder.decode(value)
    except msgspec.DecodeError:
        return None


def title_of(items: dict[str, CatalogueItem], item_id: str) -> str | None:
    """The title of an item, None when it has none."""
    entry = items.get(item_id)
    return entry.title if entry is not None else None
