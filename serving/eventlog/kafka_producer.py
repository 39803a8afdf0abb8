"""The idempotent producer: deliveries are gathered by a thread of its own and told to the event loop in batches."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as Client

from serving.eventlog.base import MAX_RECORD_BYTES, LogBusy, LogError, LogUnavailable, Outcome
from serving.eventlog.client_settings import ClientSettings
from serving.eventlog.committer import MAX_BACKLOG_BYTES, tell

_RETRY_S = 0.1
_AWAY_S = 1.0
_CLOSE_S = 30.0

Done = Callable[[Outcome], None]


class KafkaProducer:
    """Producer of a KafkaLog; see serving.eventlog.base."""

    in_flight = 5  # requests of an idempotent client to a broker

    def __init__(self, settings: ClientSettings, topic: str, uri: str, partitions: int,
                 max_backlog_bytes: int = MAX_BACKLOG_BYTES) -> None:
        """Connects lazily.

        Raises:
          LogError: a setting that the client refuses.
        """
        self._settings, self._topic, self._uri = settings, topic, uri
        self.partitions, self._max = partitions, max_backlog_bytes
        self._lock = threading.Lock()
        self._backlog = self._pending = 0
        self._away = ""  # why nothing is delivered now
        self._spoilt = self._closed = False
        self._futures: set[asyncio.Future[int]] = set()
        self._outcomes: list[tuple[asyncio.Future[int], Outcome]] = []
        self._idle = threading.Condition(self._lock)
        self._client = self._connect()
        self._thread = threading.Thread(target=self._run, name="kafka-deliveries", daemon=True)
        self._thread.start()

    def _connect(self) -> Any:
        try:
            return Client({**self._settings, "error_cb": self._error})
        except KafkaException as error:
            text = self._settings.scrub(error.args[0].str())
            raise LogError(f"{self._uri}: the client refuses its settings: {text}") from None

    async def send(self, partition: int, record: bytes, timestamp: int) -> int:
        """Writes a record; returns its offset once every in-sync replica has it."""
        future = asyncio.get_running_loop().create_future()
        self._post(partition, record, timestamp, functools.partial(self._gather, future))
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return await future

    async def send_all(self, sends: Sequence[tuple[int, bytes]], timestamp: int) -> list[Outcome]:
        """Writes records of several partitions; each one's offset, or why it could not be written."""
        for partition, record in sends:
            self._check(partition, record)
        found: list[Outcome] = []
        for outcome in await asyncio.gather(*(self.send(p, record, timestamp) for p, record in sends), return_exceptions=True):
            if not isinstance(outcome, int | LogError):
                raise outcome
            found.append(outcome)
        return found

    async def flush(self) -> None:
        """Returns once every send so far is delivered or has failed."""
        if self._futures:
            await asyncio.wait(tuple(self._futures))

    def backlog(self) -> int:
        """Bytes that wait to be delivered."""
        return self._backlog

    def append(self, partition: int, records: Sequence[bytes], timestamp: int) -> int:
        """Writes records and waits for them; the first one's offset."""
        batch = _Batch(len(records))
        for i, record in enumerate(records):
            while True:
                try:
                    self._post(partition, record, timestamp, functools.partial(batch.settle, i))
                    break
                except LogBusy as busy:
                    time.sleep(busy.retry_after_s)
        return batch.first()

    def close(self) -> None:
        """Writes what waits, for up to half a minute, then disconnects."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if not self._wait_idle(_CLOSE_S):
            self._client.purge()
            self._wait_idle(_AWAY_S)
        self._thread.join(_CLOSE_S)

    def _check(self, partition: int, record: bytes) -> None:
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(f"a record has at most {MAX_RECORD_BYTES:,} bytes, not {len(record):,}")
        if not 0 <= partition < self.partitions:
            raise ValueError(f"{self._uri} has no partition {partition}")

    def _post(self, partition: int, record: bytes, timestamp: int, done: Done) -> None:
        self._check(partition, record)
        with self._lock:
            if self._closed:
                raise LogUnavailable("the producer is closed")
            if self._away and self._pending:  # what waits already finds out when it is back
                raise LogUnavailable(f"{self._uri} is away: {self._away}", _AWAY_S)
            if self._backlog + len(record) > self._max:
                raise LogBusy(f"{self._backlog:,} bytes wait to be written to {self._uri}", _RETRY_S)
            if self._spoilt:
                raise LogUnavailable(f"{self._uri}: the client connects anew", _RETRY_S)
            self._backlog += len(record)
            self._pending += 1
        try:
            self._client.produce(self._topic, value=record, partition=partition, timestamp=timestamp // 1000,
                                 on_delivery=functools.partial(self._delivered, len(record), done))
        except (BufferError, KafkaException) as error:
            self._settled(len(record))
            if isinstance(error, BufferError):
                raise LogBusy(f"the client's queue for {self._uri} is full", _RETRY_S) from None
            raise self._said(error.args[0]) from None

    def _run(self) -> None:
        while not (self._closed and not self._pending):
            self._client.poll(0.2)
            outcomes, self._outcomes = self._outcomes, []
            by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], Outcome]]] = defaultdict(list)
            for outcome in outcomes:
                by_loop[outcome[0].get_loop()].append(outcome)
            for loop, mine in by_loop.items():
                tell(loop, mine)
            if self._spoilt:
                self._renew()

    def _renew(self) -> None:
        """A fatal error ends an idempotent client for good: what it holds fails, and another takes its place."""
        self._client.purge()
        self._client.flush(_AWAY_S)
        self._client = self._connect()
        with self._lock:
            self._spoilt = False

    # The three below run in the thread of deliveries, inside poll.

    def _delivered(self, size: int, done: Done, error: KafkaError | None, message: Message) -> None:
        self._settled(size)
        if error is None:
            self._away = ""
            done(message.offset() or 0)
            return
        self._spoilt |= error.fatal()
        done(self._said(error))

    def _gather(self, future: asyncio.Future[int], outcome: Outcome) -> None:
        self._outcomes.append((future, outcome))

    def _error(self, error: KafkaError) -> None:
        if error.fatal():
            self._spoilt = True
        elif error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._away = self._settings.scrub(error.str())

    def _settled(self, size: int) -> None:
        with self._idle:
            self._backlog -= size
            self._pending -= 1
            if not self._pending:
                self._idle.notify_all()

    def _wait_idle(self, seconds: float | None) -> bool:
        with self._idle:
            return self._idle.wait_for(self._nothing_pending, seconds)

    def _nothing_pending(self) -> bool:
        return not self._pending

    def _said(self, error: KafkaError) -> LogError:
        return LogUnavailable(f"{self._uri}: {self._settings.scrub(error.str())}", _AWAY_S)


class _Batch:
    """Records written together by a caller that waits."""

    def __init__(self, size: int) -> None:
        self._left, self._first = size, -1
        self._error: LogError | None = None
        self._ready = threading.Event()

    def settle(self, row: int, outcome: Outcome) -> None:
        """Takes what became of a record."""
        if isinstance(outcome, LogError):
            self._error = outcome
        elif row == 0:
            self._first = outcome
        self._left -= 1
        if not self._left:
            self._ready.set()

    def first(self) -> int:
        """The first record's offset, once all have one."""
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self._first
