"""The shape of an answer over HTTP and in ``beamrec show --json``: add fields, never rename or retype one."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from serving.ranking.model import Tier

ServedFrom = Tier
"""The tier that answered: ``serving.ranking.model.Tier``."""


class Explanation(msgspec.Struct, frozen=True):
    """Why the item is in the list. ``type`` is a name of schemas.cells.REASONS, ``reason`` a sentence for people."""

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
    """One page of a ranked list. Times are RFC 3339 in UTC; ``next_cursor`` is null on the last page."""

    request_id: str
    items: list[RankedItem]
    model_version: str
    generated_at: str
    expires_at: str
    served_from: ServedFrom
    next_cursor: str | None


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


_REASONS = {
    "similar_taste": "Matches your taste",
    "popular": "Popular right now",
    "trending": "Trending now",
    "new": "New in the catalogue",
}


def reason_sentence(kind: str, source_title: str | None) -> str:
    """The sentence of a reason: ``Because you watched X`` names what the user did, the others stand alone."""
    if kind == "because_you_watched":
        return f"Because you watched {source_title}" if source_title else "Because of what you watched"
    return _REASONS.get(kind, "Recommended for you")


def rfc3339(micros: int) -> str:
    """Microseconds since 1970 as an RFC 3339 UTC time, ``2026-11-21T09:00:00Z``."""
    return datetime.fromtimestamp(micros / 1e6, UTC).isoformat(timespec="auto").replace("+00:00", "Z")
