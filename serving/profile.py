"""What the store knows of a user or an item, by feature name, each value with its source and age."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec

from schemas.cells import decode_list, decode_vector
from schemas.features import FEATURES, GROUPS, SEGMENTS, Feature
from schemas.keys import ITEM, USER, row_key
from serving.catalogue import Catalogue, CatalogueItem, title_of
from serving.responses import rfc3339
from serving.stores.base import Cell, Store

HISTORY, NEIGHBOURS = "last_items", "cooccurring_items"


class ListEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a list feature: an item (or category) with its score, and its time where it has one."""

    id: str
    score: float
    at: str | None = None


class FeatureValue(msgspec.Struct, frozen=True):
    """A value, where it came from (batch, or default when absent, null or past its ttl) and its age in seconds."""

    value: float | list[ListEntry] | None
    source: str
    age_s: float | None
    label: str | None = None


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
    """A user's history and features; ``known`` is False when the store holds nothing of them."""

    user_id: str
    known: bool
    history: list[HistoryItem] = field(default_factory=list)
    features: dict[str, FeatureValue] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemProfile:
    """An item's catalogue entry, features and neighbours; ``known`` is False when the store holds nothing of it."""

    item_id: str
    known: bool
    catalogue: CatalogueItem | None = None
    features: dict[str, FeatureValue] = field(default_factory=dict)
    cooccurring: list[Neighbour] = field(default_factory=list)


def read_user(store: Store, catalogue: Catalogue, user_id: str, now: int) -> UserProfile:
    """The profile of a user at ``now`` (microseconds); raises StoreError, CellError."""
    cells = _cells(store, "user", row_key(USER, user_id))
    features = decode_features("user", cells, now)
    entries = _entries(features[HISTORY])
    items = catalogue.items(store, [e.id for e in entries])
    history = [HistoryItem(e.id, title_of(items, e.id), e.at or "", e.score) for e in entries]
    return UserProfile(user_id, bool(cells), history, features)


def read_item(store: Store, catalogue: Catalogue, item_id: str, now: int) -> ItemProfile:
    """The profile of an item at ``now`` (microseconds); raises StoreError, CellError."""
    cells = _cells(store, "item", row_key(ITEM, item_id))
    features = decode_features("item", cells, now)
    entries = _entries(features[NEIGHBOURS])
    items = catalogue.items(store, [item_id, *(e.id for e in entries)])
    neighbours = [Neighbour(e.id, title_of(items, e.id), e.score) for e in entries]
    return ItemProfile(item_id, bool(cells) or item_id in items, items.get(item_id), features, neighbours)


def decode_features(entity: str, cells: dict[str, Cell], now: int) -> dict[str, FeatureValue]:
    """Every feature of an entity by name, from its packed cells (by group name); raises CellError.

    A feature whose cell is absent, null or older than its ttl at ``now`` has its default. A vector written before a
    feature was appended to its group is shorter than the registry says: the rest are absent.
    """
    values: dict[str, FeatureValue] = {}
    for group in GROUPS:
        if group.entity != entity:
            continue
        cell, age = cells.get(group.name), None
        if cell is not None:
            age = max(0.0, (now - cell.timestamp) / 1e6)
        vector = decode_vector(cell.value) if cell is not None and group.layout == "vector" else None
        for position, feature in enumerate(f for f in FEATURES if f.group == group.name):
            value: float | list[ListEntry] | None = None
            if cell is not None and age is not None and age <= feature.ttl:
                if vector is None:
                    value = _list(cell.value)
                elif position < len(vector) and not math.isnan(vector[position]):
                    value = float(f"{vector[position]:.7g}")
            values[feature.name] = _value(feature, value, age)
    return values


def _value(feature: Feature, value: float | list[ListEntry] | None, age: float | None) -> FeatureValue:
    source = feature.source if value is not None else "default"
    if value is None:
        value, age = ([] if feature.dtype == "list" else feature.default), None
    label = SEGMENTS[int(value)] if feature.name == "segment" and isinstance(value, float) and value < len(SEGMENTS) else None
    return FeatureValue(value, source, age, label)


def _list(cell: bytes) -> list[ListEntry]:
    ids, times, scores = decode_list(cell)
    return [ListEntry(i, float(f"{score:.7g}"), rfc3339(int(at)) if at else None)
            for i, at, score in zip(ids, times, scores, strict=True)]


def _entries(feature: FeatureValue) -> list[ListEntry]:
    return feature.value if isinstance(feature.value, list) else []


def _cells(store: Store, entity: str, row: str) -> dict[str, Cell]:
    names = [g.name for g in GROUPS if g.entity == entity and g.source == "batch"]
    return store.read_features([row], "batch", names)[0]
