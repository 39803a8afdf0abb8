"""The feature registry: one record per feature, one group per packed cell. ``beamrec features list`` prints it.

To add a feature: add its record here and compute the column of that name in ``transforms/``. Positions inside a vector
group are part of the stored layout: append to a group, never reorder it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from schemas.event_types import NAMES as EVENT_NAMES

DAY = 86_400
LAST_ITEMS_CAP = 50
COOCCURRENCE_CAP = 200
AFFINITY_CAP = 64
CONSUMED_CAP = 2_000
SESSION_ITEMS_CAP = 50
SESSION_CATEGORIES_CAP = 64
RECENT_ITEMS_CAP = 50
PREFERENCE_CAP = 64
PRESENCE_CAP = 32  # a user with more items in a pane makes no pairs there
PANE_PARTNERS_CAP = 32  # partners of an item that count in one pane
"""Declared caps of what could grow without end; batch, stream and the tests' oracles share them."""

SEGMENTS = ("new", "casual", "power", "dormant")
"""Code of the ``segment`` feature = position here."""


@dataclass(frozen=True)
class Group:
    """A feature group: one packed cell per entity. Layouts: schemas.cells (vector, list) and schemas.stream_cells."""

    id: int
    name: str
    entity: Literal["user", "item"]
    source: Literal["batch", "stream"]
    layout: Literal["vector", "list", "ring", "session", "decayed"]


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
    Group(32, "user_panes", "user", "stream", "ring"),
    Group(33, "user_day", "user", "stream", "ring"),
    Group(34, "user_session", "user", "stream", "session"),
    Group(35, "user_preference", "user", "stream", "decayed"),
    Group(36, "user_recent", "user", "stream", "list"),
    Group(37, "item_minutes", "item", "stream", "ring"),
    Group(38, "item_cooccurring", "item", "stream", "decayed"),
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


STREAM_TTL = 600
"""A stream value counts while its job's status row is younger than this, seconds."""

HOUR, MINUTE = 3_600, 60


def _stream() -> list[Feature]:
    """Positions inside a ring group: for each count its windows, shortest first; a new event type appends."""
    def user(name: str, group_name: str, description: str, window: int | None, default: float | None = None) -> Feature:
        return Feature(name, "user", group_name, description, window, default=default, source="stream", ttl=STREAM_TTL,
                       sensitivity="personal")

    def listed(name: str, entity: Literal["user", "item"], group_name: str, description: str, window: int | None,
               cap: int) -> Feature:
        return Feature(name, entity, group_name, description, window, "list", (cap,), source="stream", ttl=STREAM_TTL,
                       sensitivity="personal" if entity == "user" else "internal")

    def session(name: str, description: str, default: float | None = None) -> Feature:
        return user(name, "user_session", description + " Open session: no 30 minutes without an event.", None, default)

    panes = [user(f"count_{event}_{label}", "user_panes", f"Events of type {event} in {said}.", window, 0.0)
             for event in EVENT_NAMES
             for label, window, said in (("5m", 5 * MINUTE, "the 5-minute pane that holds t"),
                                         ("1h", HOUR, "the 5-minute pane that holds t and the 11 before it"))]
    day = [user(f"count_{event}_day", "user_day", f"Events of type {event} in the UTC day of t.", DAY, 0.0)
           for event in EVENT_NAMES]
    minutes = [Feature(f"popularity_{label}", "item", "item_minutes", "Sum of event weights in the minute that holds t"
                       + (f" and the {minutes - 1} before it." if minutes > 1 else "."), minutes * MINUTE, default=0.0,
                       source="stream", ttl=STREAM_TTL) for label, minutes in (("1m", 1), ("10m", 10), ("1h", 60))]
    return [
        *panes, *day,
        session("session_length_s", "Seconds from the first to the last event.", 0.0),
        session("session_events", "Events of any type.", 0.0),
        session("session_dwell_ms", "Sum of dwell, milliseconds.", 0.0),
        session("session_price_min", "Lowest price of events with weight > 0 and a price."),
        session("session_price_max", "Highest price of events with weight > 0 and a price."),
        session("session_price_mean", "Mean price of events with weight > 0 and a price."),
        listed("session_items", "user", "user_session", "Distinct items of events with weight > 0, newest first, with the time "
               "and weight of their last such event.", None, SESSION_ITEMS_CAP),
        listed("session_categories", "user", "user_session", "Share of event weight per category among the heaviest; highest "
               "first, ties by category.", None, SESSION_CATEGORIES_CAP),
        listed("category_preference", "user", "user_preference", "Share of decayed event weight per category: each 5-minute "
               "pane counts half as much per hour of age, 48 panes at most; of the categories that weigh most at the user's "
               "newest event. Highest first, ties by category.", 4 * HOUR, PREFERENCE_CAP),
        listed("recent_items", "user", "user_recent", "Distinct items of events with weight > 0 in the last 24 hours, newest "
               "first, with the time and weight of their last such event.", DAY, RECENT_ITEMS_CAP),
        *minutes,
        listed("recent_cooccurring_items", "item", "item_cooccurring", "Items that the same users touched in the same 5-minute "
               "pane or one of the 6 before it: users per pane, a pane counting half as much per hour of age, 48 panes at "
               "most. Best first, ties by item.", 4 * HOUR, COOCCURRENCE_CAP),
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
    *_stream(),
)


class Registry:
    """Feature groups and their features, looked up by name.

    Args:
      groups, features: a feature names its group; its position among them is part of the stored layout.
    """

    def __init__(self, groups: Iterable[Group], features: Iterable[Feature]) -> None:
        self.groups, self.features = tuple(groups), tuple(features)
        self._groups = {g.name: g for g in self.groups}
        self._held: dict[str, tuple[Feature, ...]] = {
            name: tuple(f for f in self.features if f.group == name) for name in self._groups}

    def group(self, name: str) -> Group:
        """The group of that name; raises KeyError with the known names."""
        if name in self._groups:
            return self._groups[name]
        raise KeyError(f"no feature group {name!r}; known: {', '.join(self._groups)}")

    def features_of(self, group_name: str) -> tuple[Feature, ...]:
        """The features of a group, in the order of its stored layout."""
        return self._held.get(group_name, ())

    def of(self, entity: str, source: str | None = None) -> tuple[Feature, ...]:
        """The features of an entity, of one source or of both, in order."""
        return tuple(f for f in self.features if f.entity == entity and source in (None, f.source))


REGISTRY = Registry(GROUPS, FEATURES)


def group(name: str) -> Group:
    """The group of that name; raises KeyError with the known names."""
    return REGISTRY.group(name)


def features_of(group_name: str) -> tuple[Feature, ...]:
    """The features of a group, in the order of its stored layout."""
    return REGISTRY.features_of(group_name)
