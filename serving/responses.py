"""The shape of an answer over HTTP and in ``beamrec show --json``: add fields, never rename or retype one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import msgspec

from serving.ranking.model import Tier

SignalsRead = Literal["read", "missing"]
ServedFrom = Tier
"""The tier that answered: ``serving.ranking.model.Tier``."""


class Explanation(msgspec.Struct, frozen=True):
    """Why the item is in the list. ``type`` is a name of schemas.cells.REASONS, or client where the list was the client's own;
    ``reason`` a sentence for people."""

    type: str
    reason: str
    source_item_id: str | None


class Metadata(msgspec.Struct, frozen=True):
    """What to draw; null where the catalogue does not know it. ``category`` is the first of ``categories``."""

    title: str | None
    image: str | None = None
    price: float | None = None
    category: str | None = None
    categories: list[str] = []
    attributes: dict[str, str | None] = {}


class RankedItem(msgspec.Struct, frozen=True):
    """One item; ``rank`` counts from 1 over all pages."""

    item_id: str
    rank: int
    score: float
    rec_source: str
    explanation: Explanation
    metadata: Metadata


class Recommendations(msgspec.Struct, frozen=True):
    """One page of a ranked list. Times are RFC 3339 in UTC; ``next_cursor`` is null on the last page.

    ``signals`` says whether what is known of the user now was read. Where it is missing (the store is away, or late) the list
    is in the order it was made in, and may hold what the user has consumed since.
    """

    request_id: str
    items: list[RankedItem]
    model_version: str
    generated_at: str
    expires_at: str
    served_from: ServedFrom
    next_cursor: str | None
    signals: SignalsRead = "read"


class SimilarItem(msgspec.Struct, frozen=True):
    """An item like another one. ``shared_attributes``: ``category`` and attribute names, with the value that both have."""

    item_id: str
    rank: int
    similarity_score: float
    similarity_type: Literal["cooccurrence", "vector", "content"]
    shared_attributes: dict[str, str]
    metadata: Metadata


class SimilarItems(msgspec.Struct, frozen=True):
    """Items like ``item_id``, best first. ``served_from`` cooccurrence: the index is away, so vectors and content are not
    looked at."""

    request_id: str
    item_id: str
    items: list[SimilarItem]
    model_version: str
    served_from: Literal["index", "cooccurrence"]


class ParameterError(msgspec.Struct, frozen=True):
    """What is wrong with one parameter."""

    parameter: str
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Problem details (RFC 9457), sent as application/problem+json."""

    status: int
    title: str
    detail: str
    errors: list[ParameterError] = []


_OF_AN_ITEM = {
    "because_you_watched": ("Because you watched {}", "Because of what you watched"),
    "similar_item": ("Similar to {}", "Similar items"),
    "goes_together": ("Goes together with {}", "Goes with what you chose"),
}
_REASONS = {
    "similar_taste": "Matches your taste",
    "popular": "Popular right now",
    "trending": "Trending now",
    "new": "New in the catalogue",
    "discovery": "Something different",
    "client": "From your own list",
}


def reason_sentence(kind: str, source_title: str | None) -> str:
    """The sentence of a reason: ``Because you watched X`` names an item, others stand alone."""
    if kind in _OF_AN_ITEM:
        named, unnamed = _OF_AN_ITEM[kind]
        return named.format(source_title) if source_title else unnamed
    return _REASONS.get(kind, "Recommended for you")


def rfc3339(micros: int) -> str:
    """Microseconds since 1970 as an RFC 3339 UTC time, ``2026-11-21T09:00:00Z``."""
    return datetime.fromtimestamp(micros / 1e6, UTC).isoformat(timespec="auto").replace("+00:00", "Z")
