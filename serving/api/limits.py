"""What a request may cost: sizes of bodies, lists and ids, and requests a second by key."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_ID, MAX_PAGE, MAX_EXCLUDE, MAX_EXCLUDE_BYTES, MAX_ITEMS = 256, 100, 500, 16_384, 50
"""Characters of an id; items of a page; ids left out, and characters of them; items that a list is to go with."""
MAX_RERANK = 500
"""Items of a list that the client brings."""
MAX_BODY = 1 << 20
MAX_QUERY = 65_536
_MAX_BUCKETS = 10_000
"""Keys and addresses that are told apart; more share the oldest one's place."""


class TokenBuckets:
    """Requests a second by name: a bucket holds ``burst`` tokens and gets ``rate`` back a second.

    For one event loop. A worker counts for itself: give each its share of the rate.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, rate: float, burst: float) -> float:
        """Seconds to wait, 0 when the request may pass."""
        now = self._now()
        left, since = self._buckets.get(name, (burst, now))
        left = min(burst, left + (now - since) * rate)
        if name not in self._buckets and len(self._buckets) >= _MAX_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        if left >= 1.0:
            self._buckets[name] = left - 1.0, now
            return 0.0
        self._buckets[name] = left, now
        return (1.0 - left) / rate
