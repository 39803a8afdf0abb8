"""The collector over HTTP (RSGI): POST /v1/events, PUT /v1/items|users/{id}, health, metrics, the browser client."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
from contextlib import suppress
from importlib import resources
from typing import Any
from urllib.parse import unquote

from schemas import metric_names as names
from serving.collector.bodies import warm_up
from serving.collector.dead import DeadLetters
from serving.collector.metrics import Counters
from serving.collector.packer import Packer
from serving.collector.router import EventRouter, Outcome
from serving.collector.settings import CollectorSettings, beside, creating, open_for_writing
from serving.collector.stamps import Stamps
from serving.collector.suppress import URGENT, Suppressor
from serving.collector.upserts import Upserts
from serving.collector.wire import MAX_BODY_BYTES
from serving.eventlog import EventLog, LogError, Producer
from serving.logs import LOGGER

_log = logging.getLogger(LOGGER)
_JSON, _TEXT, _SCRIPT = "application/json", "text/plain; version=0.0.4; charset=utf-8", "text/javascript; charset=utf-8"
_EVENTS, _ITEMS, _USERS = "/v1/events", "/v1/items/", "/v1/users/"
Headers = list[tuple[str, str]]
_GARBAGE = 20_000
"""New objects between collections."""
_JSON_HEADER = ("content-type", _JSON)


class BodyTooLargeError(Exception):
    """The body is over MAX_BODY_BYTES."""


class Collector:
    """One worker: the logs it writes, its router, and the counters of both."""

    def __init__(self, settings: CollectorSettings) -> None:
        self._settings = settings
        self.counters = Counters()
        self._logs: list[EventLog] = []
        self._producers: list[Producer] = []
        self._stores: list[Stamps | Suppressor] = []

    def open(self) -> None:
        """Opens the logs, creating those that are not there; raises LogError."""
        settings, counters = self._settings, self.counters
        log, producer = self._opened(creating(settings.log, settings.partitions))
        dead = DeadLetters(self._opened(beside(settings.log, "dead"))[1])
        stamps = suppressor = None
        if settings.store is not None:
            stamps, suppressor = Stamps(settings.store, counters), Suppressor(settings.store, counters)
            self._stores = [stamps, suppressor]
        self.packer = Packer(producer, log.partitions(), counters, settings.linger_ms / 1000, settings.max_waiting,
                             needs_stamps=stamps is not None, leaves=URGENT if suppressor is not None else ())
        self.router = EventRouter(self.packer, dead, stamps, suppressor, counters)
        self.upserts = {}
        for entity in ("item", "user"):
            their_log, their_producer = self._opened(beside(settings.log, f"{entity}s"))
            self.upserts[entity] = Upserts(entity, their_producer, their_log.partitions(), dead, counters)
        counters.gauges = {names.COLLECT_WAITING: lambda: self.packer.waiting, names.COLLECT_BACKLOG: producer.backlog}

    def _opened(self, uri: str) -> tuple[EventLog, Producer]:
        log = open_for_writing(uri)
        self._logs.append(log)
        producer = log.producer()
        self._producers.append(producer)
        return log, producer

    async def flush(self) -> None:
        """Returns once everything accepted so far is durable."""
        await self.packer.flush()
        for producer in self._producers:
            with suppress(LogError):
                await producer.flush()

    def close(self) -> None:
        """Releases logs and stores."""
        for store in self._stores:
            store.close()
        for producer in self._producers:
            producer.close()
        for log in self._logs:
            log.close()


class CollectorApp:
    """The RSGI application over a Collector."""

    def __init__(self, settings: CollectorSettings) -> None:
        self._collector = Collector(settings)
        self._counters = self._collector.counters
        self._origins = frozenset(settings.cors_origins)
        self._client = resources.files("serving.clients").joinpath("client.js").read_bytes()
        self._closing = False

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called by the server before the first request."""
        self._collector.open()
        self._collector.router.quick = False
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()
        gc.collect()
        gc.freeze()  # what is there now stays; walking it at every collection costs requests their milliseconds
        gc.set_threshold(_GARBAGE)
        _log.info("worker started")

    def _warm_up(self) -> None:
        """Events go one by one until the compiled loops are there: at once, but for the first start on a machine."""
        started = time.perf_counter()
        warm_up()
        self._collector.router.quick = True
        _log.info("loops ready", extra={"fields": {"seconds": round(time.perf_counter() - started, 1)}})

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called by the server after the last answer."""
        self._closing = True
        if not loop.is_closed() and not loop.is_running():
            loop.run_until_complete(self._collector.flush())
        self._collector.close()
        _log.info("worker stopped", extra={"fields": {"accepted": sum(self._counters.accepted.values())}})

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """One request."""
        started = time.perf_counter()
        method, path = scope.method, scope.path
        outcome: bytes | Outcome
        route = _EVENTS
        try:
            if path == _EVENTS and method == "POST":
                outcome = await self._events(scope, protocol)
            elif method == "PUT" and path.startswith((_ITEMS, _USERS)):
                route, outcome = path[: len(_ITEMS)], await self._upsert(scope, protocol)
            else:
                return self._other(scope, protocol)
        except BodyTooLargeError:
            route, outcome = "body", Outcome(413, detail=f"a request has at most {MAX_BODY_BYTES:,} bytes")
        except Exception as error:
            self._counters.log_failure("request", error)
            route, outcome = "error", Outcome(500, detail="the collector could not answer; its log has the reason")
        if isinstance(outcome, bytes):
            status, headers, content = 202, [_JSON_HEADER], outcome
        else:
            status, headers, content = outcome.status, [("content-type", outcome.content_type)], outcome.body()
            if outcome.retry_after_s:
                headers.append(("retry-after", str(math.ceil(outcome.retry_after_s))))
            if route == "body":
                headers.append(("connection", "close"))  # the rest of it is not read
        self._allow_origin(scope, headers)
        protocol.response_bytes(status, headers, content)
        self._counters.requests[route, status] += 1
        self._counters.seconds.add(time.perf_counter() - started)

    async def _events(self, scope: Any, protocol: Any) -> bytes | Outcome:
        headers = scope.headers
        if headers.get("content-encoding") not in (None, "identity"):
            return Outcome(415, detail="send the body without Content-Encoding")
        body, key = await _body(headers, protocol), headers.get("idempotency-key")
        router = self._collector.router
        return (None if key is not None else await router.accept_quickly(body)) or await router.accept_slowly(body, key)

    async def _upsert(self, scope: Any, protocol: Any) -> Outcome:
        entity = "item" if scope.path.startswith(_ITEMS) else "user"
        body = await _body(scope.headers, protocol)
        return await self._collector.upserts[entity].put(unquote(scope.path[len(_ITEMS) :]), body)

    def _other(self, scope: Any, protocol: Any) -> None:
        method, path = scope.method, scope.path
        headers: Headers = []
        self._allow_origin(scope, headers)
        allowed = "POST" if path == _EVENTS else "PUT" if path.startswith((_ITEMS, _USERS)) else (
            "GET" if path in ("/healthz", "/readyz", "/metrics", "/client.js") else "")
        if method == "OPTIONS" and allowed:
            headers += [("access-control-allow-methods", allowed), ("access-control-max-age", "86400"),
                        ("access-control-allow-headers", "content-type, idempotency-key, authorization"), ("allow", allowed)]
            return protocol.response_empty(204, headers)
        if allowed != "GET" or method not in ("GET", "HEAD"):
            outcome = Outcome(405, detail=f"{path} takes {allowed}") if allowed else Outcome(404, detail=f"no {path} here")
            headers += [("content-type", outcome.content_type)] + ([("allow", allowed)] if allowed else [])
            return protocol.response_bytes(outcome.status, headers, outcome.body())
        status, kind, content = self._read(path)
        protocol.response_bytes(status, [*headers, ("content-type", kind), ("cache-control", "no-cache")], content)

    def _read(self, path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, _TEXT, self._counters.text().encode()
        if path == "/client.js":
            return 200, _SCRIPT, self._client
        if path == "/readyz" and self._closing:
            return 503, _JSON, b'{"status":"closing"}'
        return 200, _JSON, b'{"status":"ok"}'

    def _allow_origin(self, scope: Any, headers: Headers) -> None:
        if self._origins:
            origin = scope.headers.get("origin")
            if origin is not None and ("*" in self._origins or origin in self._origins):
                headers += [("access-control-allow-origin", origin), ("vary", "origin")]


async def _body(headers: Any, protocol: Any) -> bytes:
    length = headers.get("content-length")
    if length is not None:
        if int(length) > MAX_BODY_BYTES:
            raise BodyTooLargeError
        return await protocol()
    parts, size = [], 0
    async for part in protocol:
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise BodyTooLargeError
        parts.append(part)
    return b"".join(parts)


def create_app() -> CollectorApp:
    """The application of a worker, from its environment."""
    return CollectorApp(CollectorSettings.from_env())
