"""The one table of event types: weight, whether it consumes the item, whether it is a positive example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EventType:
    """What an event of this type means.

    Attributes:
      name: the value of Event.event_type.
      weight: integer weight in affinity, popularity and co-occurrence; 0 counts for nothing there.
      consumes: the user is done with the item; it is not recommended to them again.
      positive: it is a label for training (subject to min_value).
      min_value: with it, only events whose value is at least this are positive.
      urgent: the collector suppresses the item at once, before the stream job sees the event.
    """

    name: str
    weight: int
    consumes: bool = False
    positive: bool = False
    min_value: float | None = None
    urgent: bool = False


EVENT_TYPES: tuple[EventType, ...] = (
    EventType("impression", 0),
    EventType("view", 1),
    EventType("click", 2, consumes=True, positive=True),
    EventType("skip", 0),
    EventType("save", 3, positive=True),
    EventType("cart", 4, consumes=True, positive=True),
    EventType("purchase", 6, consumes=True, positive=True, urgent=True),
    EventType("return", 0),
    EventType("rating", 3, consumes=True, positive=True, min_value=4.0),
    EventType("signup", 0),
)
NAMES: tuple[str, ...] = tuple(t.name for t in EVENT_TYPES)
CODES: dict[str, int] = {name: code for code, name in enumerate(NAMES)}
"""Stable small integers: only ever append to EVENT_TYPES."""
