"""What a request may cost: sizes of bodies, lists and ids, and requests a second by key."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

MAX_ID, MAX_PAGE, MAX_EXCLUDE, MAX_EXCLUDE_BYTES, MAX_ITEMS = 256, 100, 500, 16_384, 50
"""Characters of an id; items of a page; ids left out, and characters of them; items that a list is to go with."""
MAX_RERANK = 500
"""Items of a list that the client brings."""
MAX_BODY = 1 << 20
MAX_QUERY = 65_536
_MAX_BUCKETS = 10_000
"""Keys and addresses that are told apart; more share the oldest one's place."""
_SLOTS, _PROBES = 1 << 14, 8
"""Of a file of buckets, and where in it one may lie."""


class TokenBuckets:
    """Requests a second by name: a bucket holds ``burst`` tokens and gets ``rate`` back a second.

    For one event loop.
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


class SharedBuckets:
    """The same for all workers of a server, on one machine: each maps the file that holds the buckets.

    A bucket is one number, the time at which it is full again, so nobody waits for a lock: two workers that take at the same
    instant let at most one request too many pass.

    Args:
      path: the file; whoever comes first makes it.
      now: of a clock that all workers share, as time.monotonic on one machine.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(file, 16 * _SLOTS)
            held = memoryview(mmap.mmap(file, 16 * _SLOTS))
        finally:
            os.close(file)
        self._names, self._full = held[: 8 * _SLOTS].cast("Q"), held[8 * _SLOTS :].cast("d")

    def take(self, name: str, rate: float, burst: float) -> float:
        """Seconds to wait, 0 when the request may pass."""
        now, place = self._now(), self._place(xxhash.xxh3_64_intdigest(name.encode()) or 1)
        full = max(self._full[place], now)
        left = burst - (full - now) * rate
        if left < 1.0:
            return (1.0 - left) / rate
        self._full[place] = full + 1.0 / rate
        return 0.0

    def _place(self, name: int) -> int:
        """Where a bucket lies: of the places it may have its own, else a free one, else that of who has been away longest."""
        names, places = self._names, [(name + k) % _SLOTS for k in range(_PROBES)]
        for place in places:
            if names[place] == name:
                return place
        place = min(places, key=self._full.__getitem__)  # of a free one it is 0
        names[place], self._full[place] = name, 0.0
        return place
