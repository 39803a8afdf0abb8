"""Events that arrive within a few milliseconds become one record a partition: a pack, sent once, answered together.

What waits goes to the log by the round. While a round is under way the next one gathers; it begins when the log is free and
the linger time since the last beginning is over, so that a lone event is not kept waiting and many share a commit.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from serving.collector import LINGER_MS
from serving.collector.bodies import PACK_BYTES, PACK_ROWS, Scanned, count_of, scanned, type_mask
from serving.collector.columns import to_batch
from serving.collector.metrics import Counters
from serving.collector.wire import EventIn
from serving.eventlog.base import LogBusy, LogError, LogUnavailable, Producer
from transforms.records.pack import pack

ROUND_EVENTS, ROUND_BYTES = 8_000, 16 << 20
"""Bodies that wait beyond this are left to the next round: the loop has others to serve."""
MAX_WAITING_BYTES = 256 << 20


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


@dataclass(frozen=True)
class Partly:
    """Some events of a body could not be written: the partitions that failed, and (event id, partition) of each event."""

    failed: Mapping[int, LogError]
    fates: Sequence[tuple[str, int]]


Answer = bytes | Partly | None
"""What became of a body: what to answer once all of it is durable; what of it is not; None when it is left to ``wire``."""
Told = Callable[[Answer], None]
"""Hears what became of a body, from the loop."""


@dataclass
class _Waiting:
    """Events that wait for a round."""

    events: dict[int, list[EventIn]] = field(default_factory=dict)
    tickets: dict[int, list[Ticket]] = field(default_factory=dict)
    bodies: list[tuple[bytes, int, Told]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.events or self.bodies)


class Packer:
    """Packs and sends. For one event loop.

    Args:
      linger_s: how far apart rounds begin at least.
      max_waiting: events that may wait for their acknowledgement; more are refused with LogBusy.
      needs_stamps, leaves: which bodies are left to ``wire``; see serving.collector.scan.scan.
    """

    def __init__(self, producer: Producer, partitions: int, counters: Counters, linger_s: float = LINGER_MS / 1000,
                 max_waiting: int = 100_000, needs_stamps: bool = False, leaves: Collection[str] = ()) -> None:
        self._producer, self._counters = producer, counters
        self._needs_stamps, self._leaves = needs_stamps, type_mask(leaves)
        self.partitions = partitions
        self._linger, self._max = linger_s, max_waiting
        self._next = _Waiting()
        self._timer: asyncio.Handle | None = None
        self._begun = 0.0
        self._rounds: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self.waiting = 0

    def put(self, by_partition: Mapping[int, Sequence[EventIn]]) -> Ticket:
        """Takes the events of a request.

        Raises:
          LogBusy: too many wait already; none was taken.
        """
        self._take(sum(map(len, by_partition.values())))
        ticket = Ticket(len(by_partition))
        for partition, events in by_partition.items():
            self._next.events.setdefault(partition, []).extend(events)
            self._next.tickets.setdefault(partition, []).append(ticket)
        return ticket

    def put_body(self, body: bytes) -> asyncio.Future[Answer]:
        """Takes a request body as it is; raises as put."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.take_body(body, functools.partial(_settle, future))
        return future

    def take_body(self, body: bytes, told: Told) -> None:
        """As put_body, for one who is called."""
        number = count_of(body)
        self._take(number)
        self._bytes += len(body)
        self._next.bodies.append((body, number, told))

    def _take(self, number: int) -> None:
        if self.waiting + number > self._max or self._bytes > MAX_WAITING_BYTES:
            raise LogBusy(f"{self.waiting:,} events wait to be written", 1.0)
        self.waiting += number
        if self._timer is None:
            self._schedule()

    def _schedule(self) -> None:
        """Sees to it that what waits becomes a round."""
        if len(self._rounds) < self._producer.in_flight:
            loop = asyncio.get_running_loop()
            pause = self._begun + self._linger - loop.time()
            self._timer = loop.call_later(pause, self._begin) if pause > 0 else loop.call_soon(self._begin)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer, self._begun = None, loop.time()
        now, self._next = self._next, _Waiting()
        events = size = kept = 0
        for body, number, _ in now.bodies:
            if kept and (events + number > ROUND_EVENTS or size + len(body) > ROUND_BYTES):
                break
            events, size, kept = events + number, size + len(body), kept + 1
        self._next.bodies, now.bodies = now.bodies[kept:], now.bodies[:kept]
        task = loop.create_task(self._round(now, events))
        self._rounds.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._rounds.discard(task)
        if self._next and self._timer is None:
            self._schedule()

    async def _round(self, mine: _Waiting, room: int) -> None:
        started = time.perf_counter()
        sends: list[tuple[int, bytes]] = []
        failed: dict[int, LogError] = {}
        found = self._scan(mine, room, sends)
        rows = len(found.partition) if found is not None else 0
        for partition, events in mine.events.items():
            rows += len(events)
            try:
                sends += [(partition, pack(piece)) for at in range(0, len(events), PACK_ROWS)
                          for piece in pieces(to_batch(events[at : at + PACK_ROWS]))]
            except Exception as reason:  # a bug must not leave requests waiting for ever
                failed[partition] = LogUnavailable(f"the events could not be packed: {type(reason).__name__}")
                self._counters.log_failure("pack", reason)
        if sends:
            failed |= await self._send(sends)
        self._counters.round(len(sends), rows, time.perf_counter() - started, len(failed))
        self._settle(mine, found, failed)

    def _scan(self, mine: _Waiting, room: int, sends: list[tuple[int, bytes]]) -> Scanned | None:
        """Packs the bodies; those that are left to ``wire`` are told at once."""
        if not mine.bodies:
            return None
        found = None
        try:
            found = scanned([body for body, _, _ in mine.bodies], room, self.partitions, time.time_ns() // 1000,
                            self._needs_stamps, self._leaves)
            sends += found.records
        except Exception as reason:  # a bug here must lose no event: the other way knows each one by itself
            self._counters.log_failure("scan", reason)
            sends.clear()
            found = None
        for i, (body, number, told) in enumerate(mine.bodies):
            actual = 0 if found is None else int(found.first[i + 1] - found.first[i])
            self.waiting -= number - actual
            mine.bodies[i] = body, actual, told
            if not actual:
                self._bytes -= len(body)
                self._tell(told, None)
        return found

    async def _send(self, sends: list[tuple[int, bytes]]) -> dict[int, LogError]:
        """The partitions that failed."""
        try:
            outcomes = await self._producer.send_all(sends, time.time_ns() // 1000)
        except LogError as error:
            return {partition: error for partition, _ in sends}
        except Exception as reason:
            self._counters.log_failure("send", reason)
            unsent = LogUnavailable(f"the events could not be sent: {type(reason).__name__}")
            return {partition: unsent for partition, _ in sends}
        return {partition: outcome for (partition, _), outcome in zip(sends, outcomes, strict=True)
                if isinstance(outcome, LogError)}

    def _settle(self, mine: _Waiting, found: Scanned | None, failed: Mapping[int, LogError]) -> None:
        for partition, tickets in mine.tickets.items():
            events, error = mine.events[partition], failed.get(partition)
            self.waiting -= len(events)
            if error is None:
                self._counters.taken(Counter([(e.event_type, e.device or "") for e in events]))
            for ticket in tickets:
                ticket.settle(partition, error)
        if found is None:
            return
        self._counters.taken(found.kinds(failed))
        for i, (body, number, told) in enumerate(mine.bodies):
            if number:
                self.waiting -= number
                self._bytes -= len(body)
                self._tell(told, found.answers[i] if not failed else _partly(found, i, failed))

    def _tell(self, told: Told, answer: Answer) -> None:
        try:
            told(answer)
        except Exception as reason:  # one that cannot be answered must not leave the others waiting
            self._counters.log_failure("answer", reason)

    async def flush(self) -> None:
        """Returns once everything taken so far has been answered."""
        while self._next or self._rounds:
            if self._next:
                if self._timer is not None:
                    self._timer.cancel()
                self._begin()
            await asyncio.wait(set(self._rounds))


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():  # its request was cancelled
        future.set_result(answer)


def _partly(found: Scanned, body: int, failed: Mapping[int, LogError]) -> Answer:
    fates = found.fates(body)
    mine = {partition: failed[partition] for _, partition in fates if partition in failed}
    return Partly(mine, fates) if mine else found.answers[body]


def pieces(events: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Events in parts of at most PACK_BYTES, but for a single event that is larger."""
    # The first is cheap, and right for all but slices of something large.
    if events.num_rows <= 1 or events.get_total_buffer_size() <= PACK_BYTES or events.nbytes <= PACK_BYTES:
        yield events
        return
    half = events.num_rows // 2
    yield from pieces(events.slice(0, half))
    yield from pieces(events.slice(half))
