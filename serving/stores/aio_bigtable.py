"""Bigtable for the request path: the calls of bigtable_rpc as coroutines on channels of the running loop.

Plain protobuf messages through grpc.aio: the client library's own data client does several times the work per row.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

import grpc

from serving.stores.aio import READ_SECONDS, WRITE_SECONDS
from serving.stores.base import Active, Cell, DeadlineError, Family, FeatureWrite, ListWrite, StoreError
from serving.stores.bigtable_layout import (
    POINTER,
    Layout,
    RawCell,
    capped,
    cells_of,
    check_family,
    chunks,
    in_family,
    key_parts,
    list_cell,
    mutations,
    named,
    pointer_of,
    registration,
    surface_row,
)
from serving.stores.bigtable_rpc import EMULATOR, Calls, Row, Taken, async_channel, failed, passing, rows_of

_ATTEMPTS = 3
_PAUSE = 0.01
_CHANNELS = 4
"""Connections to Bigtable; one carries about 100 calls at once. An emulator gets one."""
_RECONNECT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100),
              ("grpc.max_reconnect_backoff_ms", 1000), ("grpc.use_local_subchannel_pool", 1))
"""A server that is back is found within a second; by default a channel waits for up to two minutes."""
_T = TypeVar("_T")


class AsyncBigtableStore:
    """Implements serving.stores.aio.AsyncStore over ``bigtable://PROJECT/INSTANCE``; see BigtableStore for the URI.

    A call that fails for a while is tried again after some milliseconds, three times in all, as far as its deadline allows.

    Raises:
      StoreError: not such a URI; credentials are only looked for at the first call.
    """

    waits: ClassVar[bool] = True

    def __init__(self, uri: str) -> None:
        self._layout = Layout.of(uri)
        self._closed = False
        self._channels: list[Any] = []
        self._calls: itertools.cycle[Calls] | None = None
        self._registered: set[str] = set()

    async def read_features(self, rows: Sequence[str], family: Family, groups: Sequence[str],
                            timeout: float | None = None) -> list[dict[str, Cell]]:
        """See AsyncStore."""
        check_family(family)
        if not (rows and groups):
            return [{} for _ in rows]
        filters = in_family(family), named(groups)
        found = {row.key.decode(): capped(cells_of(row), groups)
                 for row in await self._read("features", rows, filters, _seconds(timeout, READ_SECONDS))}
        return [found.get(row, {}) for row in rows]

    async def read_row(self, row: str, wanted: Mapping[Family, Sequence[str]],
                       timeout: float | None = None) -> dict[Family, dict[str, Cell]]:
        """See AsyncStore; one call. A name asked in one family is read in all of them and then left out."""
        cells: dict[str, dict[str, Cell]] = {family: {} for family in wanted}
        groups = dict.fromkeys(itertools.chain.from_iterable(wanted.values()))
        if groups:
            filters = in_family(*wanted), named(groups)
            for found in await self._read("features", [row], filters, _seconds(timeout, READ_SECONDS)):
                for family, qualifier, stamp, value in found.cells:
                    cells[family][qualifier.decode()] = Cell(value, stamp)
        return {family: _among(capped(cells[family], groups), groups) for family, groups in wanted.items()}

    async def read_lists(self, rows: Sequence[str], version: str, timeout: float | None = None) -> list[Cell | None]:
        """See AsyncStore."""
        if not rows:
            return []
        found = {row.key.decode(): Cell(row.cells[0][3], row.cells[0][2])
                 for row in await self._read("recommendations", rows, (named([version]),), _seconds(timeout, READ_SECONDS))}
        return [found.get(row) for row in rows]

    async def active(self, surface: str, timeout: float | None = None) -> Active | None:
        """See AsyncStore."""
        rows = await self._read("active", [surface_row(surface)], (in_family(POINTER),), _seconds(timeout, READ_SECONDS))
        return pointer_of(rows[0]) if rows else None

    async def write_features(self, writes: Sequence[FeatureWrite], timeout: float | None = None) -> int:
        """See AsyncStore."""
        until = time.monotonic() + _seconds(timeout, WRITE_SECONDS)
        cells = [(w.row, w.family, w.group.encode(), w.cell.timestamp, w.cell.value) for w in writes]
        await self._write("features", cast(list[RawCell], cells), until)
        return len(writes)

    async def write_lists(self, writes: Sequence[ListWrite], timeout: float | None = None) -> int:
        """See AsyncStore; a version is known to ``versions`` before its first list is there."""
        until = time.monotonic() + _seconds(timeout, WRITE_SECONDS)
        if new := {write.version for write in writes} - self._registered:
            await self._write("active", [registration(version) for version in sorted(new)], until)
            self._registered |= new
        await self._write("recommendations", [list_cell(write) for write in writes], until)
        return len(writes)

    async def change_cell(self, row: str, family: Family, group: str, change: Callable[[Cell | None], Cell],
                          timeout: float | None = None) -> Cell:
        """See AsyncStore; a CheckAndMutate on what was read, again where another came first."""
        until = time.monotonic() + _seconds(timeout, WRITE_SECONDS)
        while True:
            left = until - time.monotonic()
            held = (await self.read_features([row], family, [group], left))[0].get(group)
            new = change(held)
            if new == held:
                return new
            request = self._layout.swap(row, family, group, held, new)

            async def attempt(calls: Calls, left: float, request: Any = request) -> bool:
                return bool((await calls.check(request, timeout=left)).predicate_matched)

            if await self._try("write", until, attempt) == (held is not None):
                return new
            await asyncio.sleep(random.random() * _PAUSE)

    async def flip(self, surface: str, expected: Active | None, new: Active, timeout: float | None = None) -> bool:
        """See AsyncStore; where an answer is lost, what stands there tells whether it was done."""
        until = time.monotonic() + _seconds(timeout, WRITE_SECONDS)
        request, lost = self._layout.flip(surface, expected, new), False

        async def attempt(calls: Calls, left: float) -> bool:
            nonlocal lost
            if lost and await self.active(surface, left) == new:
                return True
            lost = True
            return bool((await calls.check(request, timeout=left)).predicate_matched) == bool(expected)

        return await self._try("flip", until, attempt)

    async def close(self) -> None:
        """See AsyncStore."""
        self._closed, self._calls = True, None
        channels, self._channels = self._channels, []
        for channel in channels:
            await channel.close()

    async def _read(self, table: str, rows: Sequence[str], filters: Sequence[Any], seconds: float) -> list[Row]:
        until = time.monotonic() + seconds
        found: list[Row] = []
        for keys in key_parts(rows):
            request = self._layout.read(table, *filters)
            request.rows.row_keys.extend(keys)

            async def attempt(calls: Calls, left: float, request: Any = request) -> list[Row]:
                return list(rows_of([answer async for answer in calls.read(request, timeout=left)]))

            found += await self._try("read", until, attempt)
        return found

    async def _write(self, table: str, cells: Sequence[RawCell], until: float) -> None:
        """Chunk after chunk: rows of one request may be applied in any order, those of two may not."""
        for chunk in chunks(cells):
            rows = mutations(table, chunk)

            async def attempt(calls: Calls, left: float, rows: dict[str, list[Any]] = rows) -> None:
                names, taken = list(rows), Taken(len(rows))
                try:
                    async for answer in calls.mutate(self._layout.mutate(table, rows), timeout=left):
                        taken.add(answer)
                except grpc.RpcError as error:
                    if passing(error):
                        raise
                    taken.broke(error)
                for index, name in enumerate(names):  # what was taken is not sent again
                    if index not in taken.left:
                        del rows[name]
                if reasons := [taken.reason] if taken.reason is not None else list(taken.refused.values()):
                    raise StoreError(f"Bigtable did not take {len(rows)} of {len(names)} rows: {reasons[0]}")
                if rows:
                    raise _RowsLeftError

            await self._try("write", until, attempt)

    async def _try(self, what: str, until: float, attempt: Callable[[Calls, float], Awaitable[_T]]) -> _T:
        """What an attempt comes to; again after failures that pass, while there is time."""
        for number in itertools.count(1):
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineError(f"Bigtable could not {what} in time")
            try:
                return await attempt(self._connected(), left)
            except _RowsLeftError as error:
                if number >= _ATTEMPTS:
                    raise StoreError("Bigtable did not take some rows: it stayed unavailable") from error
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and until - time.monotonic() <= _PAUSE:
                    raise DeadlineError(f"Bigtable could not {what} in time") from error
                if number >= _ATTEMPTS or not passing(error):
                    raise failed(what, error) from error
            await asyncio.sleep(random.uniform(0.5, 1.0) * _PAUSE * number)
        raise AssertionError("unreachable")

    def _connected(self) -> Calls:
        if self._closed:
            raise StoreError(f"the store at {self._layout.instance} is closed")
        if self._calls is None:
            self._channels = [async_channel(_RECONNECT) for _ in range(1 if EMULATOR in os.environ else _CHANNELS)]
            self._calls = itertools.cycle([Calls(channel) for channel in self._channels])
        return next(self._calls)


class _RowsLeftError(Exception):
    """Rows of a bulk write were not taken for a reason that passes."""


def _seconds(timeout: float | None, default: float) -> float:
    return default if timeout is None else timeout


def _among(cells: dict[str, Cell], groups: Sequence[str]) -> dict[str, Cell]:
    """Cells of the groups asked, without those of other families' names."""
    names = {g for g in groups if not g.endswith("*")}
    prefixes = tuple(g[:-1] for g in groups if g.endswith("*"))
    return {g: c for g, c in cells.items() if g in names or (prefixes and g.startswith(prefixes))}
