"""Group commit for the local log: what waits for a partition while it is being written is its next commit, one sync.

Partitions are written side by side: the file system then commits its journal for all of them together.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from serving.eventlog.base import MAX_RECORD_BYTES, LogBusy, LogError, LogUnavailable, Outcome

if TYPE_CHECKING:
    from serving.eventlog.local import LocalLog

T = TypeVar("T")

MAX_BACKLOG_BYTES = 64 << 20
_RETRY_S = 0.1

_THREADS = 32
_END = -1


class _Group:
    """What one call sends; for the thread that holds the producer's lock."""

    __slots__ = ("future", "left", "outcomes", "sends", "size", "timestamp")

    def __init__(self, future: asyncio.Future[list[Outcome]], sends: Sequence[tuple[int, bytes]], timestamp: int) -> None:
        self.future, self.sends, self.timestamp = future, sends, timestamp
        self.outcomes: list[Outcome] = [0] * len(sends)
        self.left = len(sends)
        self.size = sum(len(record) for _, record in sends)


class LocalProducer:
    """Producer of a LocalLog; see serving.eventlog.base."""

    in_flight = 1

    def __init__(self, log: LocalLog, max_backlog_bytes: int = MAX_BACKLOG_BYTES) -> None:
        self._log, self._max = log, max_backlog_bytes
        self._partitions = log.partitions()
        self._lock = threading.Lock()
        self._waiting: dict[int, list[tuple[_Group, int]]] = {}  # of a partition that is being written: what is next
        self._groups: set[_Group] = set()
        self._backlog = 0
        self._closed = False
        self._ready: queue.SimpleQueue[int] = queue.SimpleQueue()  # partitions to write; _END for each thread at the end
        self._threads = [threading.Thread(target=self._run, name=f"log-commit-{i}", daemon=True)
                         for i in range(min(_THREADS, self._partitions))]
        for thread in self._threads:
            thread.start()

    async def send(self, partition: int, record: bytes, timestamp: int) -> int:
        """Writes a record; returns its offset once it is durable."""
        (outcome,) = await self.send_all([(partition, record)], timestamp)
        if isinstance(outcome, LogError):
            raise outcome
        return outcome

    async def send_all(self, sends: Sequence[tuple[int, bytes]], timestamp: int) -> list[Outcome]:
        """Writes records of several partitions; each one's offset, or why it could not be written."""
        for partition, record in sends:
            if len(record) > MAX_RECORD_BYTES:
                raise ValueError(f"a record has at most {MAX_RECORD_BYTES:,} bytes, not {len(record):,}")
            if not 0 <= partition < self._partitions:
                raise ValueError(f"{self._log.uri} has no partition {partition}")
        if not sends:
            return []
        group = _Group(asyncio.get_running_loop().create_future(), sends, timestamp)
        idle = []
        with self._lock:
            if self._closed:
                raise LogUnavailable("the producer is closed")
            if self._backlog + group.size > self._max:
                raise LogBusy(f"{self._backlog:,} bytes wait to be written", _RETRY_S)
            self._backlog += group.size
            self._groups.add(group)
            for place, (partition, _) in enumerate(sends):
                if partition not in self._waiting:
                    self._waiting[partition] = []
                    idle.append(partition)
                self._waiting[partition].append((group, place))
            for partition in idle:
                self._ready.put(partition)
        return await group.future

    async def flush(self) -> None:
        """Returns once every send so far is durable or has failed."""
        mine = asyncio.get_running_loop()
        with self._lock:
            waiting = [group.future for group in self._groups if group.future.get_loop() is mine]
        if waiting:
            await asyncio.wait(waiting)

    def backlog(self) -> int:
        """Bytes that wait to be durable."""
        return self._backlog

    def close(self) -> None:
        """Writes what waits and ends the threads."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._ready.put(_END)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (partition := self._ready.get()) != _END:
            self._commit(partition)

    def _commit(self, partition: int) -> None:
        """Writes what waits for a partition until nothing does, all of it at once."""
        while True:
            with self._lock:
                mine, self._waiting[partition] = self._waiting[partition], []
                if not mine:
                    del self._waiting[partition]
                    return
            first = self._write(partition, mine)
            done = []
            with self._lock:
                for i, (group, place) in enumerate(mine):
                    group.outcomes[place] = first if isinstance(first, LogError) else first + i
                    group.left -= 1
                    if not group.left:
                        done.append(group)
                        self._groups.discard(group)
                        self._backlog -= group.size
            by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[list[Outcome]], list[Outcome]]]] = {}
            for group in done:
                by_loop.setdefault(group.future.get_loop(), []).append((group.future, group.outcomes))
            for loop, outcomes in by_loop.items():
                tell(loop, outcomes)

    def _write(self, partition: int, sends: list[tuple[_Group, int]]) -> Outcome:
        """The first offset of what a commit writes."""
        times = np.array([group.timestamp for group, _ in sends], np.int64)
        try:
            return self._log.writer(partition).append([group.sends[place][1] for group, place in sends], times)
        except LogError as error:
            return error
        except Exception as error:  # a bug must not leave senders waiting for ever
            return LogUnavailable(f"partition {partition} could not be written: {type(error).__name__}: {error}")


def tell(loop: asyncio.AbstractEventLoop, outcomes: Sequence[tuple[asyncio.Future[T], T | LogError]]) -> None:
    """Settles futures of a loop from another thread, all in one call."""
    try:
        loop.call_soon_threadsafe(_settle, outcomes)
    except RuntimeError:  # the loop is closed: nobody waits any more
        return


def _settle(outcomes: Sequence[tuple[asyncio.Future[T], T | LogError]]) -> None:
    for future, outcome in outcomes:
        if future.done():  # its sender was cancelled
            continue
        if isinstance(outcome, LogError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
