"""A connection of the collector: what serving.server does, and a short way for POST /v1/events.

The short way has neither task nor future per request: a body goes to the router as soon as it is whole, and the round that made
it durable writes the answers of all its requests. While one is under way it stands where uvicorn keeps its cycle, so that what
a client pipelines behind it waits for it. A client's requests have one head, but for the length: once it has been parsed and
found right, the next are compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serving.collector.known_head import KnownHead, body_of, head_of
from serving.collector.wire import MAX_BODY_BYTES
from serving.server.protocol import IDLE_S, Connection

EVENTS = b"/v1/events"
_KEY = b"authorization"
_LOOKED_AT = frozenset((b"transfer-encoding", b"content-encoding", b"idempotency-key", b"expect", b"upgrade", _KEY))
"""A request with one of these headers goes uvicorn's way, but with a key that has passed before."""

_LEARNS = 4
"""Heads of a connection; a client that says something else each time is not learned from again and again."""

Headers = Sequence[tuple[bytes, bytes]]
Done = Callable[[int, Headers, bytes], None]
ACCEPTED: Headers = ((b"content-type", b"application/json"),)
"""Headers of a 202, which is nearly every answer."""


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


class _AcceptedHead:
    """What a 202 begins with, to the length of its body; made anew with uvicorn's headers, which change by the second."""

    def __init__(self) -> None:
        self._of: Headers | None = None
        self._text = b""

    def text(self, default: Headers) -> bytes:
        """The head below the server's own headers."""
        if default is not self._of:
            lines = [b"%b: %b\r\n" % line for line in (*default, *ACCEPTED)]
            self._of, self._text = default, b"".join((STATUS_LINE[202], *lines, b"content-length: "))
        return self._text


class CollectorConnection(Connection):
    """One connection, see the module."""

    _accepted = _AcceptedHead()
    _post: _Post  # the last; where a head is known, it is the cycle too
    _known: KnownHead | None = None
    _key = b""  # of the head read last
    _learned = 0
    _between = True  # two messages, as the parser sees it

    def data_received(self, data: bytes) -> None:
        known = self._known
        if known is not None and self._between and (body := body_of(data, known)) and self._takes(known.key):
            self._post.response_complete = False
            return cast(TakesPosts, self.app).post(body, self._reply)
        began_between = self._between
        super().data_received(data)
        if self._known is None and began_between and self._between and self._learned < _LEARNS \
                and type(self.cycle) is _Post and self.cycle.keep_alive:
            self._known, self._learned = head_of(data, self._key), self._learned + 1

    def on_message_begin(self) -> None:
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._is_post():
            self._unread, self._in_head = 0, False
            self._post = _Post(self.parser.should_keep_alive())
            self.cycle = cast(Any, self._post)
        else:
            self._known = None  # its cycle is not one of ours
            super().on_headers_complete()

    def _takes(self, key: bytes) -> bool:
        """Whether a request may go the short way now."""
        app, cycle = cast(TakesPosts, self.app), self.cycle
        return app.takes_posts and (cycle is None or cycle.response_complete) and not self.pipeline \
            and not self.flow.write_paused and app.knows(key) and not self.transport.is_closing()

    def _is_post(self) -> bool:
        """Whether the request whose head is there is one for the short way."""
        parser = self.parser
        if self.url != EVENTS or parser.get_method() != b"POST":
            return False
        size, key = b"0", b""
        for name, value in self.headers:
            if name == b"content-length":
                size = value
            elif name in _LOOKED_AT:
                if name != _KEY or key:
                    return False
                key = value
        self._key = key
        return 0 < int(size) <= MAX_BODY_BYTES and parser.get_http_version() == "1.1" and self._takes(key)

    def on_body(self, body: bytes) -> None:
        post: Any = self.cycle
        if type(post) is _Post:
            self._unread = 0
            post.parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._between = True
        post: Any = self.cycle
        if type(post) is not _Post:
            return super().on_message_complete()
        self._unread, post.more_body = 0, False
        body, post.parts = b"".join(post.parts), []
        cast(TakesPosts, self.app).post(body, self._reply)

    def sweep(self, now: float) -> None:
        post: Any = self.cycle
        if type(post) is _Post and post.more_body and now - self._since > IDLE_S:
            self.transport.close()
        super().sweep(now)

    def _reply(self, status: int, headers: Headers, content: bytes) -> None:
        """Answers the request that is under way; behind it there may be others already."""
        post = self._post
        post.response_complete = True
        if self.transport.is_closing():
            return
        if headers is ACCEPTED and post.keep_alive:
            self.transport.write(b"%b%d\r\n\r\n%b" % (
                self._accepted.text(self.server_state.default_headers), len(content), content))
        else:
            self.respond(status, headers, content, post.keep_alive)
        self.on_response_complete()
