"""The collector over HTTP (ASGI): POST /v1/events, PUT /v1/items|users/{id}, health, metrics, the browser client."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, cast

from schemas import metric_names as names
from serving.api.auth import Caller, Guard, RawHeaders, audit
from serving.api.problems import ProblemError
from serving.collector.bodies import warm_up
from serving.collector.connection import ACCEPTED, CollectorConnection, Done
from serving.collector.dead import DeadLetters
from serving.collector.metrics import Counters
from serving.collector.packer import Packer
from serving.collector.router import FAILED, EventRouter, Outcome
from serving.collector.settings import CollectorSettings, beside, creating, open_for_writing
from serving.collector.stamps import Stamps
from serving.collector.suppress import URGENT, Suppressor
from serving.collector.upserts import Upserts
from serving.collector.wire import MAX_BODY_BYTES
from serving.eventlog import EventLog, LogError, Producer
from serving.logs import LOGGER, Mask
from serving.settings import Settings
from serving.settled import settle

_log = logging.getLogger(LOGGER)
_JSON, _TEXT, _SCRIPT = b"application/json", b"text/plain; version=0.0.4; charset=utf-8", b"text/javascript; charset=utf-8"
_EVENTS, _ITEMS, _USERS = "/v1/events", "/v1/items/", "/v1/users/"
Headers = list[tuple[bytes, bytes]]
Received = Mapping[bytes, bytes]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
_MAX_KNOWN = 10_000


class BodyTooLargeError(Exception):
    """The body is over MAX_BODY_BYTES."""


class ClientGoneError(Exception):
    """The client went before its body was whole."""


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
    """The ASGI application over a Collector; serving.server gives it its connections."""

    connection = CollectorConnection
    quick_path: bytes | None = None
    """No GET is answered without ASGI (serving.server.quick)."""

    def __init__(self, settings: CollectorSettings) -> None:
        self._collector = Collector(settings)
        self._counters = self._collector.counters
        self._origins = frozenset(settings.cors_origins)
        self._mask = Mask(settings.mask)
        self._known: set[bytes] = set()
        self._guard = Guard(_limits(settings), changed=self._known.clear)
        self._client = resources.files("serving.clients").joinpath("client.js").read_bytes()

    def _start(self) -> None:
        self._collector.open()
        self._guard.start()
        self._collector.router.quick = False
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()
        settle()
        _log.info("worker started")

    def _warm_up(self) -> None:
        """Events go one by one until the compiled loops are there: at once, but for the first start on a machine."""
        started = time.perf_counter()
        warm_up()
        self._collector.router.quick = True
        _log.info("loops ready", extra={"fields": {"seconds": round(time.perf_counter() - started, 1)}})

    async def _end(self) -> None:
        self._guard.close()
        await self._collector.flush()
        self._collector.close()
        _log.info("worker stopped", extra={"fields": {"accepted": sum(self._counters.accepted.values())}})

    @property
    def takes_posts(self) -> bool:
        """See TakesPosts."""
        return not self._origins and self._collector.router.quick

    def knows(self, authorization: bytes) -> bool:
        """See TakesPosts."""
        return authorization in self._known

    def post(self, body: bytes, done: Done) -> None:
        """See TakesPosts."""
        self._collector.router.take(body, functools.partial(self._posted, time.perf_counter(), done))

    def _posted(self, started: float, done: Done, outcome: bytes | Outcome) -> None:
        status, headers, content = (202, ACCEPTED, outcome) if type(outcome) is bytes else _answer(outcome)
        done(status, headers, content)
        self._counted(_EVENTS, status, started)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        method, path, headers = scope["method"], scope["path"], dict(reversed(scope["headers"]))
        route, outcome = _EVENTS, cast(bytes | Outcome | ProblemError, FAILED)
        try:
            if path == _EVENTS and method == "POST":
                self._writer(scope, headers)
                outcome = await self._events(headers, receive)
            elif method == "PUT" and path.startswith((_ITEMS, _USERS)):
                route = path[: len(_ITEMS)]
                caller = self._writer(scope, headers)
                outcome = await self._upsert(caller, path, headers, receive)
            else:
                return await self._other(method, path, headers, send)
        except ProblemError as problem:
            outcome = problem
        except BodyTooLargeError:
            route, outcome = "body", Outcome(413, detail=f"a request has at most {MAX_BODY_BYTES:,} bytes")
        except ClientGoneError:
            return
        except Exception as error:
            self._counters.log_failure("request", error)
            route, outcome = "error", FAILED
        status, said, content = _answer(outcome)
        if route == "body":
            said.append((b"connection", b"close"))  # the rest of it is not read
        self._allow_origin(headers, said)
        await _send(send, status, said, content)
        self._counted(route, status, started)

    def _counted(self, route: str, status: int, started: float) -> None:
        self._counters.requests[route, status] += 1
        self._counters.seconds.add(time.perf_counter() - started)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._start()
        except Exception as error:
            _log.error("cannot start", extra={"fields": {"detail": str(error)}})
            return await send({"type": "lifespan.startup.failed"})
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._end()
        await send({"type": "lifespan.shutdown.complete"})

    async def _events(self, headers: Received, receive: Receive) -> Outcome | bytes:
        if headers.get(b"content-encoding") not in (None, b"identity"):
            return Outcome(415, detail="send the body without Content-Encoding")
        key = headers.get(b"idempotency-key")
        body, router = await _body(headers, receive), self._collector.router
        if key is None and (quick := await router.accept_quickly(body)) is not None:
            return quick
        return await router.accept_slowly(body, None if key is None else key.decode("latin-1"))

    async def _upsert(self, caller: Caller, path: str, headers: Received, receive: Receive) -> Outcome:
        entity, entity_id = "item" if path.startswith(_ITEMS) else "user", path[len(_ITEMS) :]
        outcome = await self._collector.upserts[entity].put(entity_id, await _body(headers, receive))
        who = {"user": self._mask(entity_id)} if entity == "user" else {"item_id": entity_id[:256]}
        audit(caller, entity, **who, status=outcome.status)
        return outcome

    def _writer(self, scope: Scope, headers: Received) -> Caller:
        """Who writes; raises ProblemError."""
        caller = self._guard.check(RawHeaders(headers), "write_events", scope["client"][0] if scope["client"] else "")
        if not caller.limited:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known.add(headers.get(b"authorization", b""))
        return caller

    async def _other(self, method: str, path: str, received: Received, send: Send) -> None:
        headers: Headers = []
        self._allow_origin(received, headers)
        allowed = "POST" if path == _EVENTS else "PUT" if path.startswith((_ITEMS, _USERS)) else (
            "GET" if path in ("/healthz", "/readyz", "/metrics", "/client.js") else "")
        if method == "OPTIONS" and allowed:
            headers += [(b"access-control-allow-methods", allowed.encode()), (b"access-control-max-age", b"86400"),
                        (b"access-control-allow-headers", b"content-type, idempotency-key, authorization"),
                        (b"allow", allowed.encode())]
            return await _send(send, 204, headers, b"")
        if allowed != "GET" or method not in ("GET", "HEAD"):
            outcome = Outcome(405, detail=f"{path} takes {allowed}") if allowed else Outcome(404, detail=f"no {path} here")
            status, said, content = _answer(outcome)
            return await _send(send, status, headers + said + ([(b"allow", allowed.encode())] if allowed else []), content)
        kind, content = self._read(path)
        await _send(send, 200, [*headers, (b"content-type", kind), (b"cache-control", b"no-cache")], content)

    def _read(self, path: str) -> tuple[bytes, bytes]:
        if path == "/metrics":
            return _TEXT, self._counters.text().encode()
        return (_SCRIPT, self._client) if path == "/client.js" else (_JSON, b'{"status":"ok"}')

    def _allow_origin(self, received: Received, headers: Headers) -> None:
        origin = received.get(b"origin", b"") if self._origins else b""
        if origin and ("*" in self._origins or origin.decode("latin-1") in self._origins):
            headers += [(b"access-control-allow-origin", origin), (b"vary", b"origin")]


def _limits(settings: CollectorSettings) -> Settings:
    """What a Guard asks of a server's settings."""
    return Settings("", Path(), keys=Path(settings.keys) if settings.keys is not None else None, anonymous=settings.anonymous,
                    workers=settings.workers, run=Path(settings.run) if settings.run is not None else None,
                    until_keys=settings.until_keys)


def _answer(outcome: bytes | Outcome | ProblemError) -> tuple[int, Headers, bytes]:
    """Status, headers and body."""
    if isinstance(outcome, bytes):
        return 202, [(b"content-type", _JSON)], outcome
    if isinstance(outcome, ProblemError):
        return outcome.status, outcome.head(), outcome.body()
    headers = [(b"content-type", outcome.content_type.encode())]
    if outcome.retry_after_s:
        headers.append((b"retry-after", b"%d" % math.ceil(outcome.retry_after_s)))
    return outcome.status, headers, outcome.body()


async def _send(send: Send, status: int, headers: Headers, content: bytes) -> None:
    size = [] if status == 204 else [(b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *size]})
    await send({"type": "http.response.body", "body": content})


async def _body(headers: Received, receive: Receive) -> bytes:
    if int(headers.get(b"content-length", b"0")) > MAX_BODY_BYTES:
        raise BodyTooLargeError
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise BodyTooLargeError
        more = message.get("more_body", False)
    return b"".join(parts)


def create_app() -> CollectorApp:
    """The application of a worker, from its environment."""
    return CollectorApp(CollectorSettings.from_env())
