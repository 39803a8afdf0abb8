"""What is trending now, from the streaming job's row into a worker's memory: lists made on demand take candidates from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence

from schemas.cells import CellError, decode_list
from schemas.keys import STREAM_JOB, TRENDING, trending_key
from serving.logs import LOGGER
from serving.stores.aio import AsyncStore
from serving.stores.base import ANY, Cell, StoreError

PERIOD_S = 10.0
HALF_LIFE_S, OLDEST_S = 600.0, 3600.0
"""The job's weights are those of its newest minute; they halve on while nothing comes, and say nothing after an hour."""
ITEMS = 100
_log = logging.getLogger(LOGGER)
Trending = Sequence[tuple[str, float]]
"""(item id, weight), best first."""


def merged(cells: Iterable[Cell], now: int) -> Trending:
    """What the cells of all buckets say at a time (microseconds), at most ITEMS; a broken cell says nothing."""
    found: dict[str, float] = {}
    for cell in cells:
        age = max(0.0, (now - cell.timestamp) / 1e6)
        if age > OLDEST_S:
            continue
        with contextlib.suppress(CellError):
            ids, _, weights = decode_list(cell.value)
            found |= zip(ids, (weights * 0.5 ** (age / HALF_LIFE_S)).tolist(), strict=True)
    return sorted(found.items(), key=_heaviest)[:ITEMS]


def _heaviest(item: tuple[str, float]) -> tuple[float, str]:
    return -item[1], item[0]


class Trends:
    """Reads what is trending every PERIOD_S. For one event loop.

    Args:
      now: microseconds since 1970.
      tell: called with what was found; what was found last stays while the store is away.
      job: whose row is read.
    """

    def __init__(self, store: AsyncStore, now: Callable[[], int], tell: Callable[[Trending], None],
                 job: str = STREAM_JOB) -> None:
        self._store, self._now, self._tell, self._row = store, now, tell, trending_key(job)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep_reading())

    async def close(self) -> None:
        """Ends."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def read(self) -> None:
        """Reads once; raises StoreError."""
        cells = (await self._store.read_features([self._row], "stream", [TRENDING + ANY]))[0]
        self._tell(merged(cells.values(), self._now()))

    async def _keep_reading(self) -> None:
        while True:
            try:
                await self.read()
            except StoreError as error:
                _log.info("what is trending could not be read", extra={"fields": {"detail": str(error)}})
            await asyncio.sleep(PERIOD_S)
