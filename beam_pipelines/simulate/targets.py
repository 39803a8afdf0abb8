"""Where live events go: a collector over HTTP, or an event log directly. Both take tables of events, from several threads."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from beam_pipelines.errors import UserError
from schemas.arrow import TIMESTAMP, arrow_schema
from serving.eventlog import LogError, LogUnavailable, open_log, partitions_of
from transforms.records import pack

PATH = "/v1/events"
TIMEOUT_S = 30.0
MAX_WAIT_S = 10.0
_LEFT_OUT = ("ingested_at", "attributes", "model_version", "schema_version")


@dataclass
class Outcome:
    """What became of a batch.

    Attributes:
      accepted, rejected: events, none of those that were given up on; ``reasons`` counts the rejected ones.
      retries: attempts that were answered "later" or not at all.
      seconds: the successful attempt took so long; NaN without one.
    """

    accepted: int = 0
    rejected: int = 0
    retries: int = 0
    seconds: float = float("nan")
    reasons: Counter[str] = field(default_factory=Counter)


class Target(Protocol):
    """Takes events; each thread that sends opens a channel of its own."""

    def channel(self, stopped: threading.Event) -> Callable[[pa.Table], Outcome]:
        """A function that sends a table and returns what became of it; it stops trying soon after ``stopped``."""
        ...

    def close(self) -> None:
        """Releases connections."""
        ...


def open_target(uri: str, key: str | None = None) -> Target:
    """The target of ``http://HOST:PORT`` or of an event log's URI; raises UserError when it is neither or is not there.

    Args:
      key: for a collector that asks for one.
    """
    if uri.startswith(("http://", "https://")):
        return HttpTarget(uri, key)
    try:
        return LogTarget(uri)
    except LogError as error:
        raise UserError(f"{error}; --to takes http://HOST:PORT of a collector, or a log") from error


class _Verdict(msgspec.Struct):
    """What the collector says about an event."""

    status: str = ""
    reason: str | None = None


class _Answer(msgspec.Struct):
    """What it says about a batch."""

    accepted: int
    events: list[_Verdict] = []


_decoder = msgspec.json.Decoder(_Answer)


class HttpTarget:
    """A collector. A batch that it cannot take now is sent again, with the same event ids, so that nothing counts twice."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.username:
            raise UserError(f"--to {url}: an address like http://127.0.0.1:8000")
        path = parts.path.rstrip("/")
        self._path = path if path.endswith(PATH) else path + PATH
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connect = lambda: kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        self._url = url

    def channel(self, stopped: threading.Event) -> Callable[[pa.Table], Outcome]:
        """See Target."""
        connection = self._connect()

        def send(events: pa.Table) -> Outcome:
            body, outcome = encode(events), Outcome()
            while True:
                started = time.perf_counter()
                try:
                    connection.request("POST", self._path, body, self._headers)
                    response = connection.getresponse()
                    raw = response.read()
                except (OSError, http.client.HTTPException):
                    connection.close()  # opened again by the next request
                    wait = None
                else:
                    if response.status not in (429, 500, 502, 503, 504):
                        outcome.seconds = time.perf_counter() - started
                        _count(outcome, response.status, raw, len(events))
                        return outcome
                    wait = _seconds(response.getheader("Retry-After"))
                outcome.retries += 1
                if stopped.is_set():
                    return outcome
                stopped.wait(backoff(outcome.retries) if wait is None else wait)

        return send

    def close(self) -> None:
        """See Target."""


def encode(events: pa.Table) -> bytes:
    """The body of a POST: ``{"events": [...]}``, times in microseconds, absent values left out by null."""
    frame = pl.DataFrame(pl.from_arrow(events.select([f.name for f in arrow_schema("event") if f.name not in _LEFT_OUT])))
    frame = frame.with_columns(pl.col("occurred_at").cast(pl.Int64))
    documents = frame.select(pl.struct(pl.all()).struct.json_encode()).to_series()
    return ('{"events":[' + ",".join(documents.to_list()) + "]}").encode()


def _count(outcome: Outcome, status: int, raw: bytes, sent: int) -> None:
    try:
        answer = _decoder.decode(raw)
    except msgspec.DecodeError:
        outcome.reasons = Counter({f"HTTP {status}": sent})
    else:
        outcome.accepted = answer.accepted
        outcome.reasons = Counter(v.reason or v.status for v in answer.events if v.status != "accepted")
    outcome.rejected = sent - outcome.accepted


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After, bounded; None where it names no seconds."""
    try:
        return min(MAX_WAIT_S, max(0.0, float(retry_after or "")) * random.uniform(1.0, 1.3))
    except ValueError:
        return None


def backoff(attempt: int) -> float:
    """Seconds before another attempt: doubling from 0.1 to MAX_WAIT_S, with jitter."""
    return random.uniform(0.5, 1.0) * min(MAX_WAIT_S, 0.1 * 2.0 ** min(attempt, 10))


class LogTarget:
    """An event log, written without a collector: a pack per partition, stamped with the time it is written."""

    def __init__(self, uri: str) -> None:
        self._log = open_log(uri)
        self._partitions = self._log.partitions()

    def channel(self, stopped: threading.Event) -> Callable[[pa.Table], Outcome]:
        """See Target."""

        def send(events: pa.Table) -> Outcome:
            outcome, started = Outcome(), time.perf_counter()
            now = time.time_ns() // 1000
            stamps = pa.array(np.full(len(events), now, np.int64)).view(TIMESTAMP)
            events = events.set_column(events.schema.get_field_index("ingested_at"), "ingested_at", stamps)
            users = events["user_id"].combine_chunks().dictionary_encode()
            users = users.chunk(0) if isinstance(users, pa.ChunkedArray) else users
            homes = partitions_of(users.dictionary, self._partitions)
            home = homes[users.indices.to_numpy()]
            for partition in np.unique(home).tolist():
                mine = events.take(np.flatnonzero(home == partition))
                record = pack(mine)
                while not self._append(partition, record, now, outcome):
                    if stopped.is_set():
                        break
                    stopped.wait(backoff(outcome.retries))
                else:
                    outcome.accepted += len(mine)
            outcome.seconds = time.perf_counter() - started
            return outcome

        return send

    def _append(self, partition: int, record: bytes, now: int, outcome: Outcome) -> bool:
        try:
            self._log.append(partition, [record], now)
        except LogUnavailable:
            outcome.retries += 1
            return False
        return True

    def close(self) -> None:
        """See Target."""
        self._log.close()
