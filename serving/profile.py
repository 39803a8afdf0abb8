"""What the store knows of a user or an item, by feature name, each value with its source and age."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from serving.catalogue import Catalogue, CatalogueItem, title_of
from serving.features import FeatureReader, FeatureValue, ListEntry
from serving.stores.base import Store

HISTORY, RECENT, NEIGHBOURS = "last_items", "recent_items", "cooccurring_items"


class HistoryItem(msgspec.Struct, frozen=True):
    """One item of a user's history, newest first."""

    item_id: str
    title: str | None
    at: str
    weight: float


class Neighbour(msgspec.Struct, frozen=True):
    """An item seen together with another one, best first."""

    item_id: str
    title: str | None
    score: float


@dataclass(frozen=True)
class UserProfile:
    """A user's history and features.

    Attributes:
      known: False when the store holds nothing of them.
      history: items of the stream and of batch, newest first, each once.
      low_confidence: only the stream knows them: their first events are younger than the last batch run.
    """

    user_id: str
    known: bool
    history: list[HistoryItem] = field(default_factory=list)
    features: dict[str, FeatureValue] = field(default_factory=dict)
    low_confidence: bool = False


@dataclass(frozen=True)
class ItemProfile:
    """An item's catalogue entry, features and neighbours; ``known`` is False when the store holds nothing of it."""

    item_id: str
    known: bool
    catalogue: CatalogueItem | None = None
    features: dict[str, FeatureValue] = field(default_factory=dict)
    cooccurring: list[Neighbour] = field(default_factory=list)


def read_user(store: Store, catalogue: Catalogue, user_id: str, now: int, reader: FeatureReader | None = None) -> UserProfile:
    """The profile of a user at ``now`` (microseconds); raises StoreError, CellError."""
    found = (reader or FeatureReader()).one(store, "user", user_id, now)
    entries = _newest([*_entries(found.values[RECENT]), *_entries(found.values[HISTORY])])
    items = catalogue.items(store, [e.id for e in entries])
    history = [HistoryItem(e.id, title_of(items, e.id), e.at or "", e.score) for e in entries]
    return UserProfile(user_id, found.known, history, found.values, found.low_confidence)


def read_item(store: Store, catalogue: Catalogue, item_id: str, now: int, reader: FeatureReader | None = None) -> ItemProfile:
    """The profile of an item at ``now`` (microseconds); raises StoreError, CellError."""
    found = (reader or FeatureReader()).one(store, "item", item_id, now)
    entries = _entries(found.values[NEIGHBOURS])
    items = catalogue.items(store, [item_id, *(e.id for e in entries)])
    neighbours = [Neighbour(e.id, title_of(items, e.id), e.score) for e in entries]
    return ItemProfile(item_id, found.known or item_id in items, items.get(item_id), found.values, neighbours)


def _newest(entries: list[ListEntry]) -> list[ListEntry]:
    """Newest first, each item once, with its newest entry; of entries of one time the first named."""
    kept: dict[str, ListEntry] = {}
    for entry in sorted(entries, key=_micros, reverse=True):
        kept.setdefault(entry.id, entry)
    return list(kept.values())


def _micros(entry: ListEntry) -> float:
    return datetime.fromisoformat(entry.at).timestamp() if entry.at else 0.0  # as text, a fraction sorts before none


def _entries(feature: FeatureValue) -> list[ListEntry]:
    return feature.value if isinstance(feature.value, list) else []
