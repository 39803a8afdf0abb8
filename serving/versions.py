"""Which version a user reads: the active pointer of a surface, cached briefly, and the split of users."""

from __future__ import annotations

import time
from collections.abc import Callable

from schemas.keys import hash64
from serving.stores.base import Active, Store

POINTER_SECONDS = 1.0
"""A flip is seen by every reader within this time."""
MAX_SURFACES = 64
"""Bound of the cache: surface names come from outside."""


def version_for(active: Active, user_id: str) -> str:
    """The version of a user: the challenger for ``percent`` of all users by hash, the champion for the rest."""
    if active.challenger is not None and hash64(user_id) % 100 < active.percent:
        return active.challenger
    return active.champion


class Pointers:
    """The active pointers of surfaces, each read at most once a second.

    Args:
      seconds: for how long a pointer is believed.
      on_change: called with (surface, pointer) when a pointer is seen for the first time or has changed.
    """

    def __init__(self, seconds: float = POINTER_SECONDS, on_change: Callable[[str, Active], None] | None = None) -> None:
        self._seconds, self._on_change = seconds, on_change
        self._known: dict[str, tuple[float, Active | None]] = {}

    def get(self, store: Store, surface: str) -> Active | None:
        """The pointer of a surface, None where nothing was ever published; raises StoreError."""
        now = time.monotonic()
        known = self._known.get(surface)
        if known is not None and now - known[0] < self._seconds:
            return known[1]
        active = store.active(surface)
        if active is not None and (known is None or known[1] != active) and self._on_change is not None:
            self._on_change(surface, active)
        if len(self._known) >= MAX_SURFACES:
            self._known.clear()
        self._known[surface] = (now, active)
        return active

    def forget(self) -> None:
        """Reads every pointer anew at its next use."""
        self._known.clear()
