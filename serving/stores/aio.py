"""The store of a request: the same contract as serving.stores.base, as coroutines in which every call has a deadline.

``open_async`` gives an implementation for any store URI. Opening reaches for nothing: a store that is away makes calls raise
StoreError, and the first call after it came back succeeds. An object belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ClassVar, Protocol, TypeVar

from serving.stores import StoreUriError
from serving.stores.base import Active, Cell, DeadlineError, Family, FeatureWrite, ListWrite, StoreError
from serving.stores.sqlite import SqliteStore
from serving.stores.sqlite_row import RowRead, Wanted

__all__ = ["AsyncStore", "DeadlineError", "open_async"]

READ_SECONDS, WRITE_SECONDS = 1.0, 2.0
"""Deadlines of calls that name none."""
_REOPEN_SECONDS = 0.1
_T = TypeVar("_T")


class AsyncStore(Protocol):
    """Features, lists and pointers for one event loop. ``waits``: calls wait for a network, so two at once take less time.

    Every method takes ``timeout``, seconds, and raises DeadlineError when it passes and StoreError when the store cannot
    answer. What a write that ran out of time did is unknown; repeating it is safe.
    """

    waits: ClassVar[bool]

    async def read_features(self, rows: Sequence[str], family: Family, groups: Sequence[str],
                            timeout: float | None = None) -> list[dict[str, Cell]]:
        """See Store.read_features."""
        ...

    async def read_row(self, row: str, wanted: Mapping[Family, Sequence[str]],
                       timeout: float | None = None) -> dict[Family, dict[str, Cell]]:
        """Cells of one row in several families, groups named as in read_features, in one round."""
        ...

    async def read_lists(self, rows: Sequence[str], version: str, timeout: float | None = None) -> list[Cell | None]:
        """See Store.read_lists."""
        ...

    async def active(self, surface: str, timeout: float | None = None) -> Active | None:
        """See Store.active."""
        ...

    async def write_features(self, writes: Sequence[FeatureWrite], timeout: float | None = None) -> int:
        """See Store.write_features."""
        ...

    async def write_lists(self, writes: Sequence[ListWrite], timeout: float | None = None) -> int:
        """See Store.write_lists."""
        ...

    async def change_cell(self, row: str, family: Family, group: str, change: Callable[[Cell | None], Cell],
                          timeout: float | None = None) -> Cell:
        """Makes a cell what ``change`` makes of the one that is there, and returns it; of changes at once none is lost.

        ``change`` may be called again, gives a timestamp that is not older, and gives an equal cell for one that holds it.
        """
        ...

    async def flip(self, surface: str, expected: Active | None, new: Active, timeout: float | None = None) -> bool:
        """See Store.flip."""
        ...

    async def close(self) -> None:
        """Releases connections; calls that come later raise StoreError."""
        ...


def open_async(uri: str) -> AsyncStore:
    """The store behind a URI (see serving.stores.open_store); call it in the running loop. It need not be there yet.

    Raises:
      StoreUriError: as open_store.
    """
    scheme, colon, rest = uri.partition(":")
    if scheme == "sqlite" and colon:
        if not rest:
            raise StoreUriError("--store sqlite:PATH needs a path")
        return AsyncSqliteStore(rest)
    if scheme == "bigtable" and colon:
        try:
            from serving.stores.aio_bigtable import AsyncBigtableStore  # seconds of Google's modules
        except ImportError as error:
            raise StoreUriError(f"{uri} needs Bigtable's client: pip install 'beamrec[bigtable]'") from error
        try:
            return AsyncBigtableStore(uri)
        except StoreError as error:
            raise StoreUriError(str(error)) from error
    raise StoreUriError(f"--store {uri!r} is not a store; use sqlite:PATH or bigtable://PROJECT/INSTANCE")


class AsyncSqliteStore:
    """A file: reads take tens of microseconds and run in the loop, less than a hop to a thread; SQLite itself looks at the
    clock and gives up. Writes wait for other writers, so they run in a thread."""

    waits: ClassVar[bool] = False

    def __init__(self, path: str) -> None:
        self._path, self._closed = path, False
        self._reader: SqliteStore | None = None
        self._writer: SqliteStore | None = None
        self._thread = ThreadPoolExecutor(1, "beamrec-store")
        self._failed_at, self._failure = -_REOPEN_SECONDS, ""

    async def read_features(self, rows: Sequence[str], family: Family, groups: Sequence[str],
                            timeout: float | None = None) -> list[dict[str, Cell]]:
        """See AsyncStore."""
        return self._read(lambda store: store.read_features(rows, family, groups), timeout)

    async def read_row(self, row: str, wanted: Mapping[Family, Sequence[str]],
                       timeout: float | None = None) -> dict[Family, dict[str, Cell]]:
        """See AsyncStore."""
        return self._read(lambda store: store.read_row(row, wanted), timeout)

    def read_user(self, row: str, wanted: Wanted, list_row: str, version: str, timeout: float) -> RowRead | None:
        """read_row and read_lists of one row each, in one round; None where that would read too much. Raises as they do."""
        now = time.monotonic()
        try:
            if self._reader is None:
                self._reader = self._open(now)
            return self._reader.read_user(row, wanted, list_row, version, now, now + timeout)
        except StoreError as error:
            raise self._failed(error) from error.__cause__

    async def read_lists(self, rows: Sequence[str], version: str, timeout: float | None = None) -> list[Cell | None]:
        """See AsyncStore."""
        return self._read(lambda store: store.read_lists(rows, version), timeout)

    async def active(self, surface: str, timeout: float | None = None) -> Active | None:
        """See AsyncStore."""
        return self._read(lambda store: store.active(surface), timeout)

    async def write_features(self, writes: Sequence[FeatureWrite], timeout: float | None = None) -> int:
        """See AsyncStore."""
        return await self._write(lambda store: store.write_features(writes), timeout)

    async def write_lists(self, writes: Sequence[ListWrite], timeout: float | None = None) -> int:
        """See AsyncStore."""
        return await self._write(lambda store: store.write_lists(writes), timeout)

    async def change_cell(self, row: str, family: Family, group: str, change: Callable[[Cell | None], Cell],
                          timeout: float | None = None) -> Cell:
        """See AsyncStore."""
        return await self._write(lambda store: store.change_cell(row, family, group, change), timeout)

    async def flip(self, surface: str, expected: Active | None, new: Active, timeout: float | None = None) -> bool:
        """See AsyncStore."""
        return await self._write(lambda store: store.flip(surface, expected, new), timeout)

    async def close(self) -> None:
        """See AsyncStore."""
        if self._closed:
            return
        self._closed = True
        if self._reader is not None:
            self._reader.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forget_writer)
        self._thread.shutdown()

    def _read(self, read: Callable[[SqliteStore], _T], timeout: float | None) -> _T:
        """What is read, given until ``timeout``."""
        now = time.monotonic()
        try:
            if self._reader is None:
                self._reader = self._open(now)
            self._reader.limit(now + (READ_SECONDS if timeout is None else timeout))
            return read(self._reader)
        except StoreError as error:
            raise self._failed(error) from error.__cause__

    def _open(self, now: float) -> SqliteStore:
        if self._closed:
            raise StoreError(f"{self._path} is closed")
        if now - self._failed_at < _REOPEN_SECONDS:
            raise StoreError(self._failure)
        return SqliteStore(self._path, create=False, patient=False)

    def _failed(self, error: StoreError) -> StoreError:
        """The next call opens the file anew, except after one that was only late; a file that cannot be opened is tried again
        only after a while."""
        if not isinstance(error, DeadlineError):
            if self._reader is not None:
                self._thread.submit(self._reader.close)  # the last one to close a file empties its write-ahead log
                self._reader = None
            elif time.monotonic() - self._failed_at >= _REOPEN_SECONDS:
                self._failed_at, self._failure = time.monotonic(), str(error)
        return error

    async def _write(self, write: Callable[[SqliteStore], _T], timeout: float | None) -> _T:
        if self._closed:
            raise StoreError(f"{self._path} is closed")
        seconds = WRITE_SECONDS if timeout is None else timeout
        doing = asyncio.get_running_loop().run_in_executor(self._thread, partial(self._written, write))
        try:
            return await asyncio.wait_for(asyncio.shield(doing), seconds)
        except TimeoutError as error:
            doing.add_done_callback(_heard)
            raise DeadlineError(f"{self._path}: a write took more than {seconds:g} s") from error

    def _written(self, write: Callable[[SqliteStore], _T]) -> _T:
        try:
            if self._writer is None:
                self._writer = SqliteStore(self._path, create=False, patient=False)
            return write(self._writer)
        except StoreError:
            self._forget_writer()
            raise

    def _forget_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _heard(done: asyncio.Future[_T]) -> None:
    """What became of a write that nobody waits for any more."""
    if not done.cancelled():
        done.exception()
