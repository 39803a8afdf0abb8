"""Which version a request reads: the active pointers of the surfaces, read in the background, and the split of users.

A request decides its version once. Everything that it answers with (list, titles, explanations, ranking) is of that version.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.keys import hash64
from serving.bundles import Bundles
from serving.pointer import versions_of
from serving.stores.base import Active, StoreError

HOMEPAGE = "homepage"
"""The surface whose lists answer for a surface without lists of its own."""
POINTER_SECONDS = 0.1
"""A flip is seen by every worker within this time: the active pointers are read so often, and by no request."""
UNPUBLISHED_ROUNDS = 10
"""A surface without a pointer is looked at in every so many rounds only: most never get one."""
READ_SECONDS = 1.0
KEPT_WARM = 1
"""Versions that no pointer names any more whose bundles stay loaded, the last that were: a flip back to one loads nothing."""
GRAIN = 10_000
"""Users are split by so many parts: 0.01 %."""


def version_for(active: Active, user_id: str) -> str:
    """The version of a user: the challenger for ``percent`` of all users by hash, the champion for the rest."""
    if active.challenger is not None and hash64(user_id) % GRAIN < round(active.percent * GRAIN / 100):
        return active.challenger
    return active.champion


@dataclass(slots=True)
class Choice:
    """What one request reads.

    Attributes:
      surface: whose lists: the one asked for or HOMEPAGE.
      version: of the list, the bundle, and all that is answered.
      fallback: the version whose list answers where this one has none.
    """

    surface: str
    version: str
    fallback: str | None


class PointerStore(Protocol):
    """What this needs of a serving.stores.aio.AsyncStore."""

    async def active(self, surface: str, timeout: float | None = None) -> Active | None:
        """See Store.active."""
        ...


class Versions:
    """The pointers of a worker's surfaces. A new one counts once its bundles are loaded; a store that cannot be read changes
    nothing.

    Args:
      store: holds the pointers.
      bundles: loaded before a pointer to their version counts.
      surfaces: those that may have lists of their own.
      seconds: between two looks.
      prepare: awaited with (surface, pointer) before a pointer counts.
    """

    def __init__(self, store: PointerStore, bundles: Bundles, surfaces: Sequence[str], seconds: float = POINTER_SECONDS,
                 prepare: Callable[[str, Active], Awaitable[None]] | None = None) -> None:
        self._store, self._bundles, self._seconds, self._prepare = store, bundles, seconds, prepare
        self._surfaces = list(dict.fromkeys((HOMEPAGE, *surfaces)))
        self._read: dict[str, Active | None] = {}
        self._one_at_a_time = asyncio.Lock()
        self._served: dict[str, Active] = {}
        self._named: set[str] = set()
        self._warm: list[str] = []
        self._read_at: float | None = None
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def served(self) -> dict[str, Active]:
        """The pointers that count, by surface; do not change it."""
        return self._served

    @property
    def pending(self) -> dict[str, Active]:
        """Pointers that were read but do not count yet: their bundles are being loaded or are broken."""
        return {s: a for s, a in self._read.items() if a is not None and self._served.get(s) != a}

    @property
    def age_s(self) -> float | None:
        """Seconds since the pointers were last read; None: never yet."""
        return None if self._read_at is None else time.monotonic() - self._read_at

    @property
    def trouble(self) -> str:
        """Why the last look failed, "" when it did not."""
        return self._trouble

    def choose(self, surface: str, user_id: str, pinned: str | None = None) -> Choice | None:
        """What a request reads; None where nothing is published.

        Args:
          pinned: the version of the pages before: read on as long as it is one of the pointer's.
        """
        active = self._served.get(surface)
        if active is None:
            surface, active = HOMEPAGE, self._served.get(HOMEPAGE)
            if active is None:
                return None
        version = version_for(active, user_id)
        if pinned is not None and pinned != version and pinned in versions_of(active):
            version = pinned
        fallback = active.champion if version == active.challenger else active.previous
        return Choice(surface, version, fallback if fallback != version else None)

    async def start(self) -> None:
        """Reads the pointers and loads their bundles, then goes on reading in the background."""
        await self.refresh()
        await self._bundles.settled()
        await self.refresh()
        self._task = asyncio.get_running_loop().create_task(self._keep_reading())

    async def refresh(self, every_surface: bool = True) -> None:
        """Reads the pointers now; those whose bundles are loaded count at once. Never raises.

        Args:
          every_surface: also those that had no pointer.
        """
        async with self._one_at_a_time:  # an answer from before a flip must not come after one from behind it
            try:
                for surface in self._surfaces:
                    if every_surface or self._read.get(surface) is not None:
                        self._read[surface] = await self._store.active(surface, timeout=READ_SECONDS)
            except (StoreError, ValueError, TypeError) as error:  # away, or a pointer that cannot be understood
                self._trouble = str(error) or "the store cannot be read"
            else:
                self._read_at, self._trouble = time.monotonic(), ""
            named = _named([*self._read.values(), *self._served.values()])
            left = [*self._warm, *sorted(self._named - named)]
            self._warm = [v for v in left if v not in named and self._bundles.get(v) is not None][-KEPT_WARM:]
            self._named = named
            self._bundles.want(named.union(self._warm))
            await self._adopt()

    async def close(self) -> None:
        """Ends the background task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _keep_reading(self) -> None:
        for number in itertools.count():
            await asyncio.sleep(self._seconds)
            await self.refresh(number % UNPUBLISHED_ROUNDS == 0)

    async def _adopt(self) -> None:
        served = dict(self._served)
        for surface, active in self._read.items():
            if active is None:
                served.pop(surface, None)
            elif served.get(surface) != active and self._may_serve(active, served.get(surface)):
                if self._prepare is not None:
                    await self._prepare(surface, active)
                served[surface] = active
        self._served = served

    def _may_serve(self, active: Active, before: Active | None) -> bool:
        """Whether the bundles of a pointer are there: a broken one never replaces what is served, one that does not exist
        may (a version of before there were bundles)."""
        health = [self._bundles.health(v) for v in (active.champion, active.challenger) if v is not None]
        return "loading" not in health and (before is None or "broken" not in health)


def _named(pointers: Iterable[Active | None]) -> set[str]:
    return {version for active in pointers if active is not None for version in versions_of(active)}
