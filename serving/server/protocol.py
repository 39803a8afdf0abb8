"""HTTP/1.1 of one connection: uvicorn's protocol over httptools, and a short way for the request that a server is for.

The short way is for a GET without a body that an application answers without waiting: no task, no scope, head and body in one
write. Whatever is not that goes uvicorn's way. Beside it: limits that uvicorn leaves to a proxy (size and time of a head), and
one sweep a second for what a timer per request would do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import cast

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.server.quick import QuickApp

MAX_HEAD = 64 << 10
"""Bytes that a client may send without a head, or a part of a body, becoming whole."""
IDLE_S, HEAD_S = 75.0, 30.0
"""A connection without a request is kept for so long, longer than balancers keep theirs; a head takes at most so long."""
MANY_LATER = 64
"""From so many on, more than one thing is done between two looks."""
_REFUSED = {400: "this is not an HTTP request", 414: f"an address has at most {MAX_HEAD:,} bytes",
            431: f"a request's head has at most {MAX_HEAD:,} bytes"}
_LINE = b"%b: %b\r\n"


class Later:
    """What remains to be done of requests that are answered, one between two looks at the sockets: who waits for an answer
    comes first. For one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()

    def __call__(self, what: Callable[[], None]) -> None:
        """Calls it soon."""
        self._waiting.append(what)
        if len(self._waiting) == 1:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        waiting = self._waiting
        try:
            for _ in range(1 + len(waiting) // MANY_LATER):
                waiting[0]()
                waiting.popleft()
        except Exception:
            waiting.popleft()
            raise
        finally:
            if waiting:
                self._loop.call_soon(self._next)


class Connection(HttpToolsProtocol):
    """One connection, see the module.

    Attributes:
      later: of the worker.
    """

    later: Later
    _unread = 0  # bytes since the last whole head or part of a body
    _quickly = False  # the message that is being read has been answered
    _taken = False  # of what came at once one request is answered at once: others get their turn between
    _since = 0.0
    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # an answer leaves now, not behind those of all others that came with it
        self._since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        self._taken = False
        if not self._unread and not self._in_head:
            self._since = self.loop.time()
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MAX_HEAD and not self.transport.is_closing():
            self._refuse(414 if self._in_head and not self.headers and len(self.url) > MAX_HEAD // 2 else 431)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP request is answered as all errors are."""
        if not self.transport.is_closing():
            self._refuse(400)

    def _refuse(self, status: int) -> None:
        """Answers before there is a request, and closes."""
        body = msgspec.json.encode({"status": status, "title": HTTPStatus(status).phrase, "detail": _REFUSED[status]})
        self.transport.write(b"".join((STATUS_LINE[status], b"content-type: application/problem+json\r\n",
                                       b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body), body)))
        self.transport.close()

    def on_message_begin(self) -> None:
        """As uvicorn's, without the scope of ASGI, which the short way does not need."""
        self._in_head, self.url, self.headers, self.expect_100_continue = True, b"", [], False

    def on_headers_complete(self) -> None:
        self._unread, self._in_head = 0, False
        if self._answer():
            return
        read = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, _, self.expect_100_continue = read
        self.headers += read[1]  # the list that the scope holds
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        if self._quickly:
            self._quickly = False
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, without a timer."""
        self.server_state.total_requests += 1
        self._since = self.loop.time()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def sweep(self, now: float) -> None:
        """Closes a connection that has had its time."""
        if self.cycle is not None and not self.cycle.response_complete:
            return
        if now - self._since > (HEAD_S if self._in_head else IDLE_S) and not self.transport.is_closing():
            self.transport.close()

    def respond(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, keep_alive: bool) -> None:
        """Writes a whole answer at once."""
        lines = [_LINE % line for line in (*self.server_state.default_headers, *headers)]
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        self.transport.write(b"".join((STATUS_LINE[status], *lines, b"content-length: %d\r\n" % len(body), end, body)))
        if not keep_alive:
            self.transport.close()

    def _answer(self) -> bool:
        """Answers the request whose head is there, if it is one for the short way."""
        app, cycle, parser, url = cast(QuickApp, self.app), self.cycle, self.parser, self.url
        path = app.quick_path
        if path is None or self._taken or self.flow.write_paused or self.pipeline or not url.startswith(path) \
                or parser.get_method() != b"GET" or (cycle is not None and not cycle.response_complete):
            return False
        query, size = b"", len(path)
        if len(url) > size:
            if url[size] != 0x3F or b"#" in url:
                return False
            query = url[size + 1 :]
        headers = dict(self.headers[::-1])
        if b"content-length" in headers or b"transfer-encoding" in headers or parser.should_upgrade() \
                or parser.get_http_version() != "1.1" or self.transport.is_closing():
            return False
        status, head, body, after = app.quick(headers, query, self.client[0] if self.client else "")
        self.respond(status, head, body, parser.should_keep_alive())
        self._quickly = self._taken = True
        self._since = self.loop.time()
        self.server_state.total_requests += 1
        self.later(after)
        return True
