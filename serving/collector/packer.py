"""Events of one partition that arrive within a few milliseconds become one record: a pack, sent once, answered together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from serving.collector.columns import to_batch
from serving.collector.metrics import Counters
from serving.collector.wire import EventIn
from serving.eventlog.base import LogBusy, LogError, LogUnavailable, Producer
from transforms.records.pack import pack

PACK_ROWS = 2_000
PACK_BYTES = 2 << 20
"""A partition that holds so much (JSON bytes) is sent before its linger time is over."""


class Ticket:
    """What one request waits for: its events of each partition."""

    __slots__ = ("_future", "_left", "failed")

    def __init__(self, parts: int) -> None:
        self._left = parts
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed: dict[int, LogError] = {}

    def settle(self, partition: int, error: LogError | None) -> None:
        """The events of a partition are durable, or could not be written."""
        if error is not None:
            self.failed[partition] = error
        self._left -= 1
        if not self._left and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Returns when every partition has answered; then ``failed`` says which could not be written."""
        await self._future


class Packer:
    """Packs and sends. For one event loop.

    Args:
      linger_s: how long the first event of a pack waits for others.
      max_waiting: events that may wait for their acknowledgement; more are refused with LogBusy.
    """

    def __init__(self, producer: Producer, partitions: int, counters: Counters, linger_s: float = 0.003,
                 max_waiting: int = 100_000) -> None:
        self._producer, self._counters = producer, counters
        self._linger, self._max = linger_s, max_waiting
        self._events: list[list[EventIn]] = [[] for _ in range(partitions)]
        self._tickets: list[list[Ticket]] = [[] for _ in range(partitions)]
        self._bytes = [0] * partitions
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self.waiting = 0

    @property
    def partitions(self) -> int:
        """How many the log has."""
        return len(self._events)

    def put(self, by_partition: Mapping[int, Sequence[EventIn]], size: int) -> Ticket:
        """Takes the events of a request; ``size`` is about how many bytes they are.

        Raises:
          LogBusy: too many wait already; none was taken.
        """
        number = sum(map(len, by_partition.values()))
        if self.waiting + number > self._max:
            raise LogBusy(f"{self.waiting:,} events wait to be written", 1.0)
        self.waiting += number
        ticket = Ticket(len(by_partition))
        for partition, events in by_partition.items():
            self._events[partition].extend(events)
            self._tickets[partition].append(ticket)
            self._bytes[partition] += size * len(events) // number
            if len(self._events[partition]) >= PACK_ROWS or self._bytes[partition] >= PACK_BYTES:
                self._send(partition)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._linger, self._send_all)
        return ticket

    def _send_all(self) -> None:
        self._timer = None
        for partition, events in enumerate(self._events):
            if events:
                self._send(partition)

    def _send(self, partition: int) -> None:
        events, self._events[partition] = self._events[partition], []
        tickets, self._tickets[partition] = self._tickets[partition], []
        self._bytes[partition] = 0
        task = asyncio.get_running_loop().create_task(self._sent(partition, events, tickets))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _sent(self, partition: int, events: list[EventIn], tickets: list[Ticket]) -> None:
        error: LogError | None = None
        started = time.perf_counter()
        try:
            await self._producer.send(partition, pack(to_batch(events)), time.time_ns() // 1000)
        except LogError as reason:
            error = reason
        except Exception as reason:  # a bug must not leave requests waiting for ever
            error = LogUnavailable(f"the events could not be packed: {type(reason).__name__}")
            self._counters.log_failure("pack", reason)
        self.waiting -= len(events)
        self._counters.packed(events, time.perf_counter() - started, error)
        for ticket in tickets:
            ticket.settle(partition, error)

    async def flush(self) -> None:
        """Returns once everything taken so far has been answered."""
        if self._timer is not None:
            self._timer.cancel()
            self._send_all()
        while self._sending:
            await asyncio.wait(set(self._sending))
