"""The event router: bytes of a request in, what became of each event out. Knows nothing of HTTP but its status codes.

An event is answered once the log has it. Its id is the client's, else it follows from Idempotency-Key, user and place in the
request (so a request sent twice has the same ids), else it is a new UUIDv7. ``ingested_at`` is now, and so is a missing
``occurred_at``; of an id seen here before it is the time given then, so that a retry is a copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import xxhash

from serving.collector.dead import DeadLetters
from serving.collector.metrics import Counters
from serving.collector.packer import Answer, Packer, Partly
from serving.collector.stamps import Stamps
from serving.collector.suppress import URGENT, Suppressor
from serving.collector.wire import MAX_BODY_BYTES, EventIn, Refused, TooLargeError, encode, fault, micros, read_events, refuse
from serving.eventlog.base import LogBusy, LogError, LogUnavailable, partition_of

MAX_KEY = 256
REMEMBERED_IDS = 100_000
_URGENT = tuple(f'"{kind}"'.encode() for kind in sorted(URGENT))


class EventOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one event: accepted; rejected, with reason and detail; or unavailable: send it again, with this id."""

    event_id: str | None
    status: str
    reason: str = ""
    detail: str = ""


class Accepted(msgspec.Struct):
    """How many events were accepted and how many rejected, and what became of each, in the order sent."""

    accepted: int
    rejected: int
    events: Sequence[EventOutcome]


class EventProblem(msgspec.Struct, omit_defaults=True):
    """Problem details (RFC 9457), with what became of each event."""

    status: int
    title: str
    detail: str
    events: Sequence[EventOutcome] = ()


_TITLES = {404: "Not found", 405: "Method not allowed", 413: "Request too large", 415: "Unsupported encoding",
           422: "Invalid events", 429: "Too many requests", 500: "Internal error", 503: "Event log unavailable"}


@dataclass(frozen=True)
class Outcome:
    """The answer to a request.

    Attributes:
      status: 202 when at least one event was accepted; 413 too large; 422 none was valid; 429 busy, 503 the log is away:
        what is not ``accepted`` is to be sent again.
      events: in the order of the request.
      detail: why, when the status is not 202.
      retry_after_s: with 429 and 503.
    """

    status: int
    events: Sequence[EventOutcome] = ()
    detail: str = ""
    retry_after_s: float = 0.0

    @classmethod
    def of(cls, answer: bytes) -> Outcome:
        """The outcome that says 202 with a body made elsewhere."""
        return cls(202, msgspec.json.decode(answer, type=Accepted).events)

    @property
    def content_type(self) -> str:
        """Of ``body``."""
        return "application/json" if self.status < 400 else "application/problem+json"

    def body(self) -> bytes:
        """JSON: counts and events, or problem details (RFC 9457) with the events."""
        if self.status < 400:
            accepted = sum(e.status == "accepted" for e in self.events)
            return encode(Accepted(accepted, len(self.events) - accepted, self.events))
        return encode(EventProblem(self.status, _TITLES.get(self.status, "Refused"), self.detail, self.events))


FAILED = Outcome(500, detail="the collector could not answer; its log has the reason")


def unavailable(error: LogError, events: Sequence[EventOutcome] = ()) -> Outcome:
    """429 or 503, by what the log said."""
    wait = error.retry_after_s if isinstance(error, LogUnavailable) else 1.0
    return Outcome(429 if isinstance(error, LogBusy) else 503, events, str(error), wait)


def wall_clock() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def new_event_id(now: int) -> str:
    """A UUIDv7: milliseconds, then chance; ids of one time lie together."""
    chance = int.from_bytes(os.urandom(10), "big")
    value = (now // 1000 & 0xFFFFFFFFFFFF) << 80 | chance
    text = f"{value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class EventRouter:
    """Serves the collector and the API alike. For one event loop.

    Args:
      packer: where valid events go.
      dead: where the others go.
      stamps, suppressor: None without a store.
      now: microseconds since 1970.

    Attributes:
      quick: whether plain bodies are read by the round (see accept_quickly).
    """

    def __init__(self, packer: Packer, dead: DeadLetters, stamps: Stamps | None, suppressor: Suppressor | None,
                 counters: Counters, now: Callable[[], int] = wall_clock) -> None:
        self._packer, self._dead, self._stamps, self._suppressor = packer, dead, stamps, suppressor
        self._counters, self._now = counters, now
        self._times: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.quick = True

    async def accept(self, body: bytes, idempotency_key: str | None = None) -> Outcome:
        """Takes the events of a request body; returns when each is durable or refused."""
        quick = await self.accept_quickly(body) if idempotency_key is None else None
        if isinstance(quick, bytes):
            return Outcome.of(quick)
        return quick or await self.accept_slowly(body, idempotency_key)

    async def accept_quickly(self, body: bytes) -> bytes | Outcome | None:
        """As accept, for a body without an Idempotency-Key: the body of a 202, another outcome, or None for one that
        nobody has taken yet (then accept_slowly does): it needs the store, or holds something unusual."""
        if not self._is_plain(body):
            return None
        try:
            return _told(await self._packer.put_body(body))
        except LogError as error:
            return None if isinstance(error, LogBusy) else unavailable(error)

    def take(self, body: bytes, done: Callable[[bytes | Outcome], None]) -> None:
        """As accept without a key; calls ``done`` with the body of a 202, or another outcome, once that is known."""
        if self._is_plain(body):
            with contextlib.suppress(LogBusy):
                return self._packer.take_body(body, functools.partial(self._taken, body, done))
        self._later(body, done)

    def _taken(self, body: bytes, done: Callable[[bytes | Outcome], None], answer: Answer) -> None:
        outcome = _told(answer)
        if outcome is None:
            self._later(body, done)
        else:
            done(outcome)

    def _later(self, body: bytes, done: Callable[[bytes | Outcome], None]) -> None:
        async def accept() -> None:
            try:
                outcome = await self.accept_slowly(body)
            except Exception as error:
                self._counters.log_failure("request", error)
                outcome = FAILED
            done(outcome)

        task = asyncio.get_running_loop().create_task(accept())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _is_plain(self, body: bytes) -> bool:
        """Whether a glance finds nothing in a body that must go the slow way (what it overlooks is found in the scan)."""
        if not self.quick or len(body) > MAX_BODY_BYTES or b"\\" in body:
            return False
        if self._suppressor is not None and any(kind in body for kind in _URGENT):
            return False
        return self._stamps is None or (b'"price"' in body and b'"categories"' in body)

    async def accept_slowly(self, body: bytes, idempotency_key: str | None = None) -> Outcome:
        """As accept, event by event."""
        now = self._now()
        try:
            read = read_events(body)
            if idempotency_key is not None and len(idempotency_key) > MAX_KEY:
                raise TooLargeError(f"an Idempotency-Key has at most {MAX_KEY} characters")
        except TooLargeError as error:
            return Outcome(413, detail=str(error))
        if not read:
            return Outcome(422, detail="the request holds no events")
        good: list[EventIn] = []
        refused: list[tuple[int, Refused]] = []
        for index, event in enumerate(read):
            if type(event) is Refused:
                refused.append((index, event))
                continue
            assert isinstance(event, EventIn)
            self._complete(event, idempotency_key, index, now)
            reason = fault(event, now)
            if reason:
                read[index] = said = refuse(event, reason)
                refused.append((index, said))
            else:
                good.append(event)
        try:
            failed, partitions = await self._write(good)
            if refused:
                await self._dead.put(refused, now)
        except LogError as error:  # none of it counts: what was written is told apart by its ids when it comes again
            return unavailable(error, [_outcome(e, "unavailable") for e in read])
        for _, said in refused:
            self._counters.rejected[said.reason] += 1
        if failed:
            lost = {e.event_id for e, p in zip(good, partitions, strict=True) if p in failed}
            return unavailable(next(iter(failed.values())),
                               [_outcome(e, "unavailable" if e.event_id in lost else "accepted") for e in read])
        outcomes = [_outcome(e, "accepted") for e in read]
        if not good:
            reasons = ", ".join(dict.fromkeys(said.reason for _, said in refused))
            return Outcome(422, outcomes, f"no event is valid: {reasons}")
        return Outcome(202, outcomes)

    def _complete(self, event: EventIn, key: str | None, index: int, now: int) -> None:
        """Gives an event its id and makes its times microseconds."""
        comes_again = bool(event.event_id or key)
        if not event.event_id:
            event.event_id = (xxhash.xxh3_128_hexdigest(f"{key}\x00{event.user_id}\x00{index}".encode()) if key
                              else new_event_id(now))
        if event.occurred_at is not None:
            event.occurred_at = micros(event.occurred_at)
        else:
            event.occurred_at = self._remembered(event.event_id, now) if comes_again else now
        event.ingested_at = now

    def _remembered(self, event_id: str, now: int) -> int:
        found = self._times.get(event_id)
        if found is None:
            found = self._times[event_id] = now
            if len(self._times) > REMEMBERED_IDS:
                del self._times[next(iter(self._times))]
        return found

    async def _write(self, events: list[EventIn]) -> tuple[dict[int, LogError], list[int]]:
        """The partitions that failed, and each event's partition."""
        if not events:
            return {}, []
        if self._stamps is not None:
            await self._stamps.stamp(events)
        number = self._packer.partitions
        if len(events) == 1:
            partitions = [partition_of(events[0].user_id, number)]
            ticket = self._packer.put({partitions[0]: events})
        else:
            partitions = [partition_of(e.user_id, number) for e in events]
            by_partition: dict[int, list[EventIn]] = {}
            for event, partition in zip(events, partitions, strict=True):
                by_partition.setdefault(partition, []).append(event)
            ticket = self._packer.put(by_partition)
        await ticket.wait()
        stored = [e for e, p in zip(events, partitions, strict=True) if p not in ticket.failed] if ticket.failed else events
        if self._suppressor is not None:
            urgent = [e for e in stored if e.event_type in URGENT]
            if urgent:
                await self._suppressor.suppress(urgent)
        return ticket.failed, partitions


def _told(answer: Answer) -> bytes | Outcome | None:
    if isinstance(answer, Partly):
        return unavailable(next(iter(answer.failed.values())), [
            EventOutcome(i, "unavailable" if p in answer.failed else "accepted") for i, p in answer.fates])
    return answer


def _outcome(event: EventIn | Refused, status: str) -> EventOutcome:
    if isinstance(event, Refused):
        return EventOutcome(event.event_id, "rejected", event.reason, event.detail)
    return EventOutcome(event.event_id, status)
