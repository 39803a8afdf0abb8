"""Blocking work beside an event loop: what arrives while one round runs in the thread is done together in the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Rounds(Generic[T]):
    """Runs ``work(items)`` in a thread of its own, one round at a time. For one event loop.

    Args:
      work: does a whole round; what it raises fails that round only.
      limit: how many items may wait for the next round.
    """

    def __init__(self, work: Callable[[list[T]], None], name: str, limit: int = 10_000) -> None:
        self._work, self._limit = work, limit
        self._pool = ThreadPoolExecutor(1, name)
        self._items: list[T] = []
        self._next: asyncio.Future[bool] | None = None
        self._running = False

    async def do(self, items: Sequence[T], timeout_s: float) -> bool:
        """Whether the items' round was done in time; it goes on when it was not."""
        if len(self._items) + len(items) > self._limit:
            return False
        self._items.extend(items)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        mine = self._next
        if not self._running:
            self._start()
        done, _ = await asyncio.wait((mine,), timeout=timeout_s)
        return bool(done) and mine.result()

    def _start(self) -> None:
        items, self._items = self._items, []
        future, self._next = self._next, None
        self._running = True
        asyncio.get_running_loop().create_task(self._round(items, future))

    async def _round(self, items: list[T], future: asyncio.Future[bool] | None) -> None:
        ok = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._work, items)
        except Exception as error:  # whatever the store's parts raise: the round failed
            ok = False
            logging.getLogger("beamrec.serving").warning("a round failed", extra={"fields": {"detail": str(error)}})
        if future is not None:
            future.set_result(ok)
        self._running = False
        if self._items:
            self._start()

    def close(self) -> None:
        """Waits for the round that runs."""
        self._pool.shutdown()
