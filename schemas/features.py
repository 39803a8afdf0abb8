"""The feature registry: one record per feature, one group per packed cell. ``beamrec features list`` prints it.

To add a feature: add its record here and compute the column of that name in ``transforms/``. Positions inside a vector
group are part of the stored layout: append to a group, never reorder it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from schemas.event_types import NAMES as EVENT_NAMES

DAY = 86_400
LAST_ITEMS_CAP = 50
COOCCURRENCE_CAP = 200
AFFINITY_CAP = 64
CONSUMED_CAP = 2_000
"""Declared caps of what could grow without end; batch, stream and the tests' oracles share them."""

SEGMENTS = ("new", "casual", "power", "dormant")
"""Code of the ``segment`` feature = position here."""


@dataclass(frozen=True)
class Group:
    """A feature group: one packed cell per entity. ``layout`` is vector or list."""

    id: int
    name: str
    entity: Literal["user", "item"]
    source: Literal["batch", "stream"]
    layout: Literal["vector", "list"]


@dataclass(frozen=True)
class Feature:
    """One feature. ``window`` and ``ttl`` are seconds (window None: all time); shape () is a scalar, (n,) at most n."""

    name: str
    entity: Literal["user", "item"]
    group: str
    description: str
    window: int | None = None
    dtype: Literal["float32", "list"] = "float32"
    shape: tuple[int, ...] = ()
    default: float | None = None
    source: Literal["batch", "stream"] = "batch"
    ttl: int = 7 * DAY
    owner: str = "recommendations"
    sensitivity: Literal["public", "internal", "personal"] = "internal"


GROUPS: tuple[Group, ...] = (
    Group(1, "user_stats", "user", "batch", "vector"),
    Group(2, "user_affinity", "user", "batch", "list"),
    Group(3, "user_last_items", "user", "batch", "list"),
    Group(4, "user_liked_items", "user", "batch", "list"),
    Group(5, "item_stats", "item", "batch", "vector"),
    Group(6, "item_cooccurrence", "item", "batch", "list"),
    Group(7, "user_consumed", "user", "batch", "list"),
)

COUNT_WINDOWS = (1, 7, 30)


def _user_stats() -> list[Feature]:
    def stat(name: str, description: str, window: int | None, default: float | None = None) -> Feature:
        return Feature(name, "user", "user_stats", description, window, default=default, sensitivity="personal")

    counts = [
        stat(f"count_{event}_{days}d", f"Events of type {event} in the last {days} whole days.", days * DAY, 0.0)
        for event in EVENT_NAMES
        for days in COUNT_WINDOWS
    ]
    stats = [
        stat("dwell_mean_7d", "Mean dwell of events that have one, milliseconds.", 7 * DAY),
        stat("distinct_items_30d", "Distinct items of events with weight > 0.", 30 * DAY, 0.0),
        stat("active_days_30d", "UTC days with at least one event of weight > 0.", 30 * DAY, 0.0),
        stat("price_mean_30d", "Mean price of events with weight > 0 and a price.", 30 * DAY),
        stat("price_min_30d", "Lowest price of events with weight > 0 and a price.", 30 * DAY),
        stat("price_max_30d", "Highest price of events with weight > 0 and a price.", 30 * DAY),
        stat("recency_days", "Days from the last event of weight > 0 to as_of.", None),
        stat("segment", "Code in SEGMENTS: dormant without an event of weight > 0 in 30 days; else new when the first "
             "event is less than 7 days old; else power from 8 active days in 30; else casual.", None, 3.0),
    ]
    return stats + counts  # counts last: a new event type appends to the stored layout


def _item_stats() -> list[Feature]:
    def stat(name: str, description: str, window: int | None, default: float | None = None) -> Feature:
        return Feature(name, "item", "item_stats", description, window, default=default)

    popularity = [
        stat(f"popularity_{days}d", f"Sum of event weights in the last {days} whole days.", days * DAY, 0.0)
        for days in COUNT_WINDOWS
    ]
    share = [
        stat(f"popularity_share_{days}d", f"popularity_{days}d / its sum over all items.", days * DAY, 0.0)
        for days in COUNT_WINDOWS
    ]
    return popularity + share + [
        stat("ctr_smoothed_30d", "(clicks + 20 p) / (impressions + 20), p the clicks per impression of all items in the "
             "window; null for an item without impressions.", 30 * DAY),
        stat("impressions_total", "Impressions in all.", None, 0.0),
        stat("dwell_mean_30d", "Mean dwell of events that have one, milliseconds.", 30 * DAY),
        stat("age_days", "Days from the item's first event to as_of.", None),
    ]


FEATURES: tuple[Feature, ...] = (
    *_user_stats(),
    Feature("category_affinity_30d", "user", "user_affinity", "Share of event weight per category; each category of an "
            "event gets its full weight. Highest share first, ties by category.", 30 * DAY, "list", (AFFINITY_CAP,),
            sensitivity="personal"),
    Feature("last_items", "user", "user_last_items", "Distinct items of events with weight > 0, newest first, with the "
            "time and weight of their last such event.", None, "list", (LAST_ITEMS_CAP,), sensitivity="personal"),
    Feature("liked_items", "user", "user_liked_items", "Distinct items of positive events (event_types), newest first, "
            "with the time and weight of their last such event.", None, "list", (LAST_ITEMS_CAP,),
            sensitivity="personal"),
    Feature("consumed_items", "user", "user_consumed", "Distinct items of events that consume (event_types), newest first, "
            "with the time and weight of their last such event: never recommended again.", None, "list", (CONSUMED_CAP,),
            sensitivity="personal"),
    *_item_stats(),
    Feature("cooccurring_items", "item", "item_cooccurrence", "Items whose events of weight > 0 lie within 30 minutes of "
            "this item's, by the same user; decayed, shrunk cosine. Best first.", None, "list", (COOCCURRENCE_CAP,)),
)


def group(name: str) -> Group:
    """The group of that name; raises KeyError with the known names."""
    for candidate in GROUPS:
        if candidate.name == name:
            return candidate
    raise KeyError(f"no feature group {name!r}; known: {', '.join(g.name for g in GROUPS)}")


def features_of(group_name: str) -> tuple[Feature, ...]:
    """The features of a group, in the order of its stored layout."""
    return tuple(f for f in FEATURES if f.group == group_name)
