"""Group commit for the local log: sends of an event loop queue up; one thread writes all that wait, one fdatasync each."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from serving.eventlog.base import MAX_RECORD_BYTES, LogBusy, LogError, LogUnavailable

if TYPE_CHECKING:
    from serving.eventlog.local import LocalLog

MAX_BACKLOG_BYTES = 64 << 20
_RETRY_S = 0.1

Sent = tuple["asyncio.Future[int]", int, bytes, int]  # the sender's future, partition, record, timestamp


class LocalProducer:
    """Producer of a LocalLog; see serving.eventlog.base."""

    def __init__(self, log: LocalLog, max_backlog_bytes: int = MAX_BACKLOG_BYTES) -> None:
        self._log, self._max = log, max_backlog_bytes
        self._partitions = log.partitions()
        self._waiting: list[Sent] = []
        self._backlog = 0
        self._closed = False
        self._ready = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log-commit", daemon=True)
        self._thread.start()

    async def send(self, partition: int, record: bytes, timestamp: int) -> int:
        """Writes a record; returns its offset once it is durable."""
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(f"a record has at most {MAX_RECORD_BYTES:,} bytes, not {len(record):,}")
        if not 0 <= partition < self._partitions:
            raise ValueError(f"{self._log.uri} has no partition {partition}")
        if self._backlog + len(record) > self._max:
            raise LogBusy(f"{self._backlog:,} bytes wait to be written", _RETRY_S)
        future = asyncio.get_running_loop().create_future()
        with self._ready:
            if self._closed:
                raise LogUnavailable("the producer is closed")
            self._waiting.append((future, partition, record, timestamp))
            self._backlog += len(record)
            if len(self._waiting) == 1:
                self._ready.notify()
        return await future

    async def flush(self) -> None:
        """Returns once every send so far is durable or has failed."""
        future = asyncio.get_running_loop().create_future()
        with self._ready:
            if self._closed:
                return
            self._waiting.append((future, -1, b"", 0))
            self._ready.notify()
        await future

    def backlog(self) -> int:
        """Bytes that wait to be durable."""
        return self._backlog

    def close(self) -> None:
        """Writes what waits and ends the thread."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._waiting and not self._closed:
                    self._ready.wait()
                sent, self._waiting = self._waiting, []
                if not sent:
                    return
            self._commit(sent)

    def _commit(self, sent: list[Sent]) -> None:
        by_partition: dict[int, list[Sent]] = defaultdict(list)
        for entry in sent:
            by_partition[entry[1]].append(entry)
        barrier = by_partition.pop(-1, [])
        outcomes: list[tuple[asyncio.Future[int], int | LogError]] = []
        for partition, entries in by_partition.items():
            records = [record for _, _, record, _ in entries]
            try:
                times = np.fromiter((t for *_, t in entries), np.int64, len(entries))
                first = self._log.writer(partition).append(records, times)
                outcomes += [(entry[0], first + i) for i, entry in enumerate(entries)]
            except LogError as error:
                outcomes += [(entry[0], error) for entry in entries]
        with self._ready:
            self._backlog -= sum(len(record) for _, _, record, _ in sent)
        outcomes += [(entry[0], 0) for entry in barrier]
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], int | LogError]]] = defaultdict(list)
        for outcome in outcomes:
            by_loop[outcome[0].get_loop()].append(outcome)
        for loop, mine in by_loop.items():
            tell(loop, mine)


def tell(loop: asyncio.AbstractEventLoop, outcomes: list[tuple[asyncio.Future[int], int | LogError]]) -> None:
    """Settles futures of a loop from another thread, all in one call."""
    try:
        loop.call_soon_threadsafe(_settle, outcomes)
    except RuntimeError:  # the loop is closed: nobody waits any more
        return


def _settle(outcomes: list[tuple[asyncio.Future[int], int | LogError]]) -> None:
    for future, outcome in outcomes:
        if future.done():  # its sender was cancelled
            continue
        if isinstance(outcome, LogError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
