"""Group commit for the local log: sends of event loops queue up; all that wait is written at once, one fdatasync a partition.

The partitions' fdatasync run side by side: the file system then commits its journal for all of them together.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from serving.eventlog.base import MAX_RECORD_BYTES, LogBusy, LogError, LogUnavailable, Outcome

if TYPE_CHECKING:
    from serving.eventlog.local import LocalLog

T = TypeVar("T")

MAX_BACKLOG_BYTES = 64 << 20
_RETRY_S = 0.1

_THREADS = 8


@dataclass(frozen=True, eq=False)
class _Group:
    """What one call sends."""

    future: asyncio.Future[list[Outcome]]
    sends: Sequence[tuple[int, bytes]]
    timestamp: int
    size: int


class LocalProducer:
    """Producer of a LocalLog; see serving.eventlog.base."""

    in_flight = 1

    def __init__(self, log: LocalLog, max_backlog_bytes: int = MAX_BACKLOG_BYTES) -> None:
        self._log, self._max = log, max_backlog_bytes
        self._partitions = log.partitions()
        self._waiting: list[_Group] = []
        self._backlog = 0
        self._closed = False
        self._ready = threading.Condition()
        self._beside = ThreadPoolExecutor(min(_THREADS, self._partitions), "log-sync")
        self._thread = threading.Thread(target=self._run, name="log-commit", daemon=True)
        self._thread.start()

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
        size = sum(len(record) for _, record in sends)
        if self._backlog + size > self._max:
            raise LogBusy(f"{self._backlog:,} bytes wait to be written", _RETRY_S)
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        with self._ready:
            if self._closed:
                raise LogUnavailable("the producer is closed")
            self._waiting.append(_Group(future, sends, timestamp, size))
            self._backlog += size
            self._ready.notify()
        return await future

    async def flush(self) -> None:
        """Returns once every send so far is durable or has failed."""
        if not self._closed:
            await self.send_all([], 0)

    def backlog(self) -> int:
        """Bytes that wait to be durable."""
        return self._backlog

    def close(self) -> None:
        """Writes what waits and ends the threads."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()
        self._beside.shutdown()

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._waiting and not self._closed:
                    self._ready.wait()
                groups, self._waiting = self._waiting, []
                if not groups:
                    return
            self._commit(groups)

    def _commit(self, groups: list[_Group]) -> None:
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)  # of a partition: group, and which of its sends
        outcomes: list[list[Outcome]] = [[0] * len(group.sends) for group in groups]
        for number, group in enumerate(groups):
            for place, (partition, _) in enumerate(group.sends):
                places[partition].append((number, place))
        first, *others = list(places.items()) or [(0, [])]
        running = [self._beside.submit(self._write, groups, *other) for other in others]
        firsts = [self._write(groups, *first), *(task.result() for task in running)]
        for wanted, written in zip(itertools.chain([first[1]], (o[1] for o in others)), firsts, strict=True):
            for i, (number, place) in enumerate(wanted):
                outcomes[number][place] = written if isinstance(written, LogError) else written + i
        with self._ready:
            self._backlog -= sum(group.size for group in groups)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[list[Outcome]], list[Outcome]]]] = defaultdict(list)
        for group, outcome in zip(groups, outcomes, strict=True):
            by_loop[group.future.get_loop()].append((group.future, outcome))
        for loop, mine in by_loop.items():
            tell(loop, mine)

    def _write(self, groups: list[_Group], partition: int, places: list[tuple[int, int]]) -> Outcome:
        """The first offset of what a commit writes to a partition."""
        if not places:
            return 0
        times = np.array([groups[number].timestamp for number, _ in places], np.int64)
        try:
            return self._log.writer(partition).append([groups[number].sends[place][1] for number, place in places], times)
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
