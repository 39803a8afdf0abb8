"""Lists made at a request: kept in memory until they expire, and written back to the store as cells of their version.

So the next request, of this worker or another, reads what this one made; a store that is away costs only that.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from schemas.cells import RankedList, encode_recs
from schemas.keys import list_key
from serving.stores.base import Cell, ListWrite, StoreError

CAPACITY = 20_000
WAITING = 2_000
"""Lists that wait to be written; of more, the new ones are not written (``unwritten`` counts them)."""
WRITE_SECONDS = 0.2
_CHUNK = 200

Key = tuple[str, str, str]
"""(version, surface, user id)."""


class ListStore(Protocol):
    """What this needs of a serving.stores.aio.AsyncStore."""

    async def write_lists(self, writes: Sequence[ListWrite], timeout: float | None = None) -> int:
        """See Store.write_lists."""
        ...


class MadeLists:
    """The lists made by one worker."""

    def __init__(self, store: ListStore, capacity: int = CAPACITY) -> None:
        self._store, self._capacity = store, capacity
        self._kept: OrderedDict[Key, RankedList] = OrderedDict()
        self._waiting: list[ListWrite] = []
        self._task: asyncio.Task[None] | None = None
        self.written = self.unwritten = 0

    def get(self, version: str, surface: str, user_id: str, now: int) -> RankedList | None:
        """The list made for a user, None when there is none or it has expired (``now``: microseconds)."""
        key = (version, surface, user_id)
        recs = self._kept.get(key)
        if recs is None:
            return None
        if recs.expires_at <= now:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return recs

    def put(self, version: str, surface: str, user_id: str, recs: RankedList, write: bool = True) -> None:
        """Keeps a list; ``write`` False: not in the store, because that is where it would be missed."""
        self._kept[version, surface, user_id] = recs
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        if not write or len(self._waiting) >= WAITING:
            self.unwritten += 1
            return
        cell = Cell(encode_recs(recs), recs.generated_at // 1000 * 1000)
        self._waiting.append(ListWrite(list_key(user_id, surface), version, cell))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def close(self) -> None:
        """Writes what waits; gives up when the store does not answer."""
        if self._task is not None:
            await self._task

    async def _write(self) -> None:
        while self._waiting:
            await asyncio.sleep(WRITE_SECONDS)  # many lists a write
            part, self._waiting = self._waiting[:_CHUNK], self._waiting[_CHUNK:]
            try:
                self.written += await self._store.write_lists(part)
            except StoreError:
                self.unwritten += len(part)


class Budget:
    """A share of a worker's time: who wants to spend on lists made at a request asks first, so that many of them at once do
    not make everybody wait.

    Args:
      share: of all time that may be spent.
      burst_s: seconds that may be spent at once.
    """

    def __init__(self, share: float = 0.4, burst_s: float = 0.25) -> None:
        self._share, self._burst = share, burst_s
        self._left, self._at = burst_s, time.monotonic()

    def allows(self) -> bool:
        """Whether anything is left."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._share)
        self._at = now
        return self._left > 0

    def spent(self, seconds: float) -> None:
        """Takes off what was used."""
        self._left -= seconds
