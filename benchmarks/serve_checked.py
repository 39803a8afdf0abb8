"""A load that looks at every answer: for the drills, in which what is answered counts and the rate is moderate.

One asyncio loop; each of some connections keeps alive and sends its next request when it is due, whatever others do; a late
answer delays only its own connection, and latency counts from when the request was due. Speed as such is ``bench serve``.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

PAGE = 20
PATIENCE_S = 10.0


@dataclass
class Answered:
    """One answer: when it was due, sent and came (time.monotonic()), and what it said; ``status`` 0: none came. ``paged``: of a
    next page, which goes on in the version of the page before; ``hidden``: items on it that the user must not see."""

    connection: int
    due: float
    user: str = ""
    paged: bool = False
    sent: float = 0.0
    came: float = 0.0
    status: int = 0
    version: str = ""
    tier: str = ""
    items: int = 0
    mixed: bool = False
    signals: str = ""
    hidden: int = 0
    detail: str = ""

    @property
    def ms(self) -> float:
        """Milliseconds from due to answered."""
        return (self.came - self.due) * 1000


class _Explanation(msgspec.Struct):
    source_item_id: str | None = None


class _Metadata(msgspec.Struct):
    title: str | None = None


class _Item(msgspec.Struct):
    item_id: str
    explanation: _Explanation
    metadata: _Metadata


class _Page(msgspec.Struct):
    items: list[_Item]
    model_version: str
    served_from: str
    next_cursor: str | None = None
    signals: str = ""


_decode = msgspec.json.Decoder(_Page).decode


@dataclass
class CheckedLoad:
    """Asks for pages until it is stopped.

    Attributes:
      url: of the server.
      users: gives the user of each request.
      version_of: the version that an item belongs to, None for any: an answer whose items are of two, or of another than its
        model_version, is mixed.
      rate: requests a second of all connections.
      hidden_of: what a user must not see.
      on_answer: told of each answer.
    """

    url: str
    users: Callable[[random.Random], str]
    version_of: Callable[[str], str | None]
    rate: float = 400.0
    connections: int = 16
    paging: float = 0.2
    answers: list[Answered] = field(default_factory=list)
    on_answer: Callable[[Answered], None] | None = None
    hidden_of: Callable[[str], frozenset[str]] | None = None
    _stopped: bool = False

    def stop(self) -> None:
        """No more requests."""
        self._stopped = True

    async def run(self) -> None:
        """Until ``stop``."""
        await asyncio.gather(*(self._connection(n) for n in range(self.connections)))

    async def _connection(self, number: int) -> None:
        host = urllib.parse.urlsplit(self.url)
        rng, step = random.Random(number), self.connections / self.rate
        due = time.monotonic() + step * number / self.connections
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        cursor: tuple[str, str] | None = None
        while not self._stopped:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            user, more, page = self.users(rng), "", None
            if cursor is not None and rng.random() < self.paging:
                user, more = cursor[0], f"&cursor={cursor[1]}"
            answer = Answered(number, due, user, bool(more), time.monotonic())
            try:
                if streams is None:
                    streams = await asyncio.open_connection(host.hostname, host.port)
                target = f"/v1/recommendations?user_id={urllib.parse.quote(user)}&page_size={PAGE}{more}"
                streams[1].write(f"GET {target} HTTP/1.1\r\nHost: {host.netloc}\r\n\r\n".encode())
                async with asyncio.timeout(PATIENCE_S):
                    answer.status, body = await _answer(streams[0])
                answer.came = time.monotonic()
                page = self._look(answer, body)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
                answer.came, answer.status, answer.detail = time.monotonic(), 0, repr(error)
                if streams is not None:
                    streams[1].close()
                streams = None
            cursor = (user, page.next_cursor) if page is not None and page.next_cursor else None
            self.answers.append(answer)
            if self.on_answer is not None:
                self.on_answer(answer)
            due = max(due + step, time.monotonic() - 0.25)  # after a long wait it does not make up for all of it
        if streams is not None:
            streams[1].close()

    def _look(self, answer: Answered, body: bytes) -> _Page | None:
        if answer.status != 200:
            answer.detail = body[:200].decode(errors="replace")
            return None
        page = _decode(body)
        answer.version, answer.tier, answer.items = page.model_version.removeprefix("m-"), page.served_from, len(page.items)
        answer.signals = page.signals
        if self.hidden_of is not None:
            hidden = self.hidden_of(answer.user)
            answer.hidden = sum(item.item_id in hidden for item in page.items)
        named = [i for item in page.items for i in (item.item_id, item.explanation.source_item_id) if i]
        answer.mixed = any(self.version_of(i) not in (None, answer.version) for i in named) or any(
            item.metadata.title != f"The story of {item.item_id}" for item in page.items)
        return page


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    lengths = [line for line in lines if line.lower().startswith(b"content-length:")]
    if not lengths:
        raise ValueError("an answer without a length")
    return int(lines[0].split(b" ", 2)[1]), await reader.readexactly(int(lengths[0].split(b":")[1]))


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of all are not above; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def wait_until_ready(url: str, seconds: float = 30.0) -> None:
    """Returns once a server takes connections; raises OSError when it never does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url + "/readyz", timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def post(url: str, document: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer of a POST; raises HTTPError."""
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found
