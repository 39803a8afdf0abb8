"""A Python client of the collector: batches events in the background, sends each until it is answered, with one event_id.

  with EventClient("http://127.0.0.1:8000") as events:
      events.track("click", user_id="u1", item_id="i1", surface="homepage")

Needs nothing beyond the standard library and msgspec.
"""

from __future__ import annotations

import http.client
import logging
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import msgspec

Event = dict[str, Any]
Dropped = Callable[[Event, str], None]

_log = logging.getLogger(__name__)


class CollectorError(RuntimeError):
    """The collector refused a call, or did not answer in time."""


class EventClient:
    """Sends events; safe to use from several threads. ``track`` never blocks and never raises for the network.

    Args:
      url: of the collector, such as http://127.0.0.1:8000.
      key: of 'beamrec keys add --role write_events', for a collector that asks for one.
      headers: sent with every request.
      batch_size: events per request, at most 1,000.
      wait_s: how long an event waits for others.
      max_queue: events that may wait; the oldest is dropped for a newer one.
      give_up_s: how long an event is tried.
      on_drop: told of every event that is given up, with the reason; by default one log line.
    """

    def __init__(self, url: str, *, key: str | None = None, headers: Mapping[str, str] | None = None,
                 batch_size: int = 100, wait_s: float = 0.2, max_queue: int = 100_000, give_up_s: float = 600.0,
                 timeout_s: float = 10.0, min_retry_s: float = 0.2, max_retry_s: float = 30.0,
                 on_drop: Dropped | None = None) -> None:
        self._connection = _Connection(url, _headers(key, headers), timeout_s)
        self._batch, self._wait = max(1, min(batch_size, 1000)), wait_s
        self._max_queue, self._give_up = max_queue, give_up_s
        self._min_retry, self._max_retry = min_retry_s, max_retry_s
        self._on_drop = on_drop or _log_drop
        self._queue: deque[tuple[float, Event]] = deque()
        self._sending = 0
        self._changed = threading.Condition()
        self._closing = self._hurry = False
        self._thread = threading.Thread(target=self._run, name="beamrec-events", daemon=True)
        self._thread.start()

    def track(self, event_type: str, user_id: str, item_id: str | None = None, **fields: Any) -> str:
        """Queues an event; returns its id. ``fields`` are those of POST /v1/events; occurred_at is now by default."""
        event: Event = {"event_id": str(uuid.uuid4()), "user_id": user_id, "event_type": event_type,
                        "occurred_at": time.time_ns() // 1000, **fields}
        if item_id is not None:
            event["item_id"] = item_id
        dropped = None
        with self._changed:
            if self._closing:
                raise CollectorError("the client is closed")
            if len(self._queue) >= self._max_queue:
                dropped = self._queue.popleft()[1]
            self._queue.append((time.monotonic(), event))
            if len(self._queue) in (1, self._batch):
                self._changed.notify_all()
        if dropped is not None:
            self._on_drop(dropped, "queue_full")
        return str(event["event_id"])

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Waits until everything queued so far was answered or given up; False when the time was over before."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(self._idle, timeout_s)

    def waiting(self) -> int:
        """Events not yet answered."""
        with self._changed:
            return len(self._queue) + self._sending

    def close(self, timeout_s: float = 30.0) -> None:
        """Flushes, then ends the thread; what is still not sent after ``timeout_s`` is dropped, and told."""
        self.flush(timeout_s)
        with self._changed:
            self._closing = True
            left = [event for _, event in self._queue]
            self._queue.clear()
            self._changed.notify_all()
        for event in left:
            self._on_drop(event, "closed")
        self._thread.join(self._connection.timeout_s + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _idle(self) -> bool:
        return not self._queue and not self._sending

    def _run(self) -> None:
        failures = 0
        while True:
            batch = self._next()
            if batch is None:
                self._connection.close()
                return
            retry, pause = self._send(batch)
            failures = failures + 1 if retry else 0
            with self._changed:
                self._sending = 0
                if not self._closing:
                    self._queue.extendleft(reversed(retry))
                if self._idle():
                    self._hurry = False
                self._changed.notify_all()
                if retry:
                    most = min(self._max_retry, self._min_retry * 2 ** (failures - 1))
                    self._changed.wait_for(self._is_closing, max(pause, random.uniform(most / 2, most)))

    def _is_closing(self) -> bool:
        return self._closing

    def _next(self) -> list[tuple[float, Event]] | None:
        """The next batch; None at the end."""
        with self._changed:
            while True:
                if self._queue:
                    left = self._queue[0][0] + self._wait - time.monotonic()
                    if len(self._queue) >= self._batch or left <= 0 or self._hurry or self._closing:
                        batch = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
                        self._sending = len(batch)
                        return batch
                    self._changed.wait(left)
                elif self._closing:
                    return None
                else:
                    self._changed.wait()

    def _send(self, batch: Sequence[tuple[float, Event]]) -> tuple[list[tuple[float, Event]], float]:
        """What is to be sent again, and how long the collector asked to wait."""
        try:
            status, headers, answer = self._connection.request("POST", "/v1/events", [event for _, event in batch])
        except (OSError, http.client.HTTPException):
            return self._young(batch), 0.0
        except (msgspec.EncodeError, TypeError, ValueError) as error:  # a field that is no JSON
            return self._apart(batch, f"not_json: {error}"), 0.0
        outcomes = answer.get("events") or []
        if status == 429 or status >= 500:
            again = [b for i, b in enumerate(batch) if i >= len(outcomes) or outcomes[i].get("status") == "unavailable"]
            return self._young(again), float(headers.get("Retry-After") or 0)
        if status in (202, 422):
            for (_, event), outcome in zip(batch, outcomes, strict=False):
                if outcome.get("status") == "rejected":
                    self._on_drop(event, f"rejected: {outcome.get('reason')}")
            return [], 0.0
        return self._apart(batch, "too_large" if status == 413 else f"refused: {status}"), 0.0

    def _apart(self, batch: Sequence[tuple[float, Event]], reason: str) -> list[tuple[float, Event]]:
        """Sends the events of a refused batch one by one, so that the bad one takes no other with it."""
        if len(batch) == 1:
            self._on_drop(batch[0][1], reason)
            return []
        return [left for one in batch for left in self._send([one])[0]]

    def _young(self, batch: Sequence[tuple[float, Event]]) -> list[tuple[float, Event]]:
        now, kept = time.monotonic(), []
        for since, event in batch:
            if now - since < self._give_up:
                kept.append((since, event))
            else:
                self._on_drop(event, "gave_up")
        return kept


def put_item(url: str, item_id: str, *, key: str | None = None, headers: Mapping[str, str] | None = None,
             timeout_s: float = 10.0, **fields: Any) -> None:
    """Upserts an item; raises CollectorError when it is refused or the collector does not answer."""
    _put(url, f"/v1/items/{quote(item_id, safe='')}", _headers(key, headers), timeout_s, fields)


def put_user(url: str, user_id: str, *, key: str | None = None, headers: Mapping[str, str] | None = None,
             timeout_s: float = 10.0, **fields: Any) -> None:
    """Upserts a user; raises as put_item."""
    _put(url, f"/v1/users/{quote(user_id, safe='')}", _headers(key, headers), timeout_s, fields)


def _headers(key: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    return {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}


def _put(url: str, path: str, headers: dict[str, str], timeout_s: float, fields: Event) -> None:
    connection = _Connection(url, headers, timeout_s)
    try:
        status, _, answer = connection.request("PUT", path, fields)
    except (OSError, http.client.HTTPException) as error:
        raise CollectorError(f"the collector does not answer: {error}") from error
    finally:
        connection.close()
    if status != 202:
        raise CollectorError(f"refused with {status}: {answer.get('detail', '')}")


class _Connection:
    """One keep-alive connection, opened again when it broke. For one thread."""

    def __init__(self, url: str, headers: dict[str, str], timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http(s) URL of a collector")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json", **headers}
        self.timeout_s = timeout_s
        self._open: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, document: Any) -> tuple[int, http.client.HTTPMessage, Event]:
        """Status, headers and the JSON object of the answer; raises OSError or HTTPException."""
        body = msgspec.json.encode(document)
        for fresh in (self._open is None, True):
            if self._open is None:
                self._open = self._kind(self._host, self._port, timeout=self.timeout_s)
            try:
                self._open.request(method, self._prefix + path, body, self._headers)
                response = self._open.getresponse()
                content = response.read()
                break
            except (OSError, http.client.HTTPException):
                self.close()
                if fresh:  # else the server may just have closed an idle connection
                    raise
        try:
            answer = msgspec.json.decode(content)
        except msgspec.DecodeError:
            answer = {}
        return response.status, response.headers, answer if isinstance(answer, dict) else {}

    def close(self) -> None:
        """Closes it."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _log_drop(event: Event, reason: str) -> None:
    _log.warning("event dropped: %s", reason)
