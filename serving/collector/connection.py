"""A connection of the collector: what serving.server does, and a short way for POST /v1/events.

The short way has neither task nor future per request: a body goes to the router as soon as it is whole, and the round that made
it durable writes the answers of all its requests. While one is under way it stands where uvicorn keeps its cycle, so that what
a client pipelines behind it waits for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from serving.collector.wire import MAX_BODY_BYTES
from serving.server.protocol import IDLE_S, Connection

EVENTS = b"/v1/events"
_KEY = b"authorization"
_LOOKED_AT = frozenset((b"transfer-encoding", b"content-encoding", b"idempotency-key", b"expect", b"upgrade", _KEY))
"""A request with one of these headers goes uvicorn's way, but with a key that has passed before."""

Headers = Sequence[tuple[bytes, bytes]]
Done = Callable[[int, Headers, bytes], None]


class TakesPosts(Protocol):
    """What this asks of the application, beside ASGI."""

    @property
    def takes_posts(self) -> bool:
        """Whether ``post`` may be called now."""
        ...

    def knows(self, authorization: bytes) -> bool:
        """Whether who sent this header, b"" for none, may post without being looked at again."""
        ...

    def post(self, body: bytes, done: Done) -> None:
        """Takes the body of a POST /v1/events; calls ``done`` with status, headers and body of the answer."""
        ...


class _Nobody:
    def set(self) -> None:
        """As asyncio.Event: nobody waits."""


class _Post:
    """A request under way, with what uvicorn looks at in a cycle of its own."""

    __slots__ = ("body", "disconnected", "keep_alive", "message_event", "more_body", "parts", "response_complete")

    def __init__(self, keep_alive: bool, nobody: _Nobody = _Nobody()) -> None:  # noqa: B008 - it has no state
        self.keep_alive, self.message_event = keep_alive, nobody
        self.body, self.parts = b"", list[bytes]()
        self.more_body, self.response_complete, self.disconnected = True, False, False


class CollectorConnection(Connection):
    """One connection, see the module."""

    def on_headers_complete(self) -> None:
        if self._is_post():
            self._unread, self._in_head = 0, False
            self.cycle = cast(Any, _Post(self.parser.should_keep_alive()))
        else:
            super().on_headers_complete()

    def _is_post(self) -> bool:
        """Whether the request whose head is there is one for the short way."""
        parser, cycle = self.parser, self.cycle
        if self.url != EVENTS or not cast(TakesPosts, self.app).takes_posts or parser.get_method() != b"POST" \
                or (cycle is not None and not cycle.response_complete) or self.pipeline or self.flow.write_paused:
            return False
        size, key = b"0", b""
        for name, value in self.headers:
            if name == b"content-length":
                size = value
            elif name in _LOOKED_AT:
                if name != _KEY or key:
                    return False
                key = value
        return 0 < int(size) <= MAX_BODY_BYTES and cast(TakesPosts, self.app).knows(key) \
            and parser.get_http_version() == "1.1" and not self.transport.is_closing()

    def on_body(self, body: bytes) -> None:
        post: Any = self.cycle
        if type(post) is _Post:
            self._unread = 0
            post.parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        post: Any = self.cycle
        if type(post) is not _Post:
            return super().on_message_complete()
        self._unread, post.more_body = 0, False
        cast(TakesPosts, self.app).post(b"".join(post.parts), functools.partial(self._reply, post))

    def sweep(self, now: float) -> None:
        post: Any = self.cycle
        if type(post) is _Post and post.more_body and now - self._since > IDLE_S:
            self.transport.close()
        super().sweep(now)

    def _reply(self, post: _Post, status: int, headers: Headers, content: bytes) -> None:
        post.response_complete, post.parts = True, []
        if self.transport.is_closing():
            return
        self.respond(status, headers, content, post.keep_alive)
        self.on_response_complete()
