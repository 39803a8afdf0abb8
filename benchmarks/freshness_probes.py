"""Probes of freshness: single events whose way from the collector's 202 to a readable value is timed."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import deque
from dataclasses import dataclass

from benchmarks.freshness_load import PATH, EventTime
from schemas.keys import ITEM, USER, row_key
from serving.stores import open_store

PROBES = 64
"""Users, and items, that take turns: they lie in every bucket."""
EVERY_S, LOOK_S = 0.05, 0.02
_GROUPS = {USER: "user_panes", ITEM: "item_minutes"}


@dataclass
class Probe:
    """One event. Times are of time.monotonic(); ``readable`` by kind of entity, missing while it is not."""

    occurred_at: int
    accepted: float
    readable: dict[str, float]


class Probes:
    """Posts a view by a probe user of a probe item every 50 ms, and looks every 20 ms which cells tell of it.

    A cell's timestamp is the newest event time in it, and a probe user's events have ascending times, so a cell as new as an
    event holds it. ``with Probes(...) as probes``; ``settle`` waits for what is on its way.
    """

    def __init__(self, store: str, host: str, port: int, clock: EventTime) -> None:
        self._store, self._address, self._clock = store, (host, port), clock
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._waiting: dict[tuple[str, str], deque[Probe]] = {}
        self.all: list[Probe] = []
        self.refused = 0
        self.failure: BaseException | None = None

    def __enter__(self) -> Probes:
        self._threads = [threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in (self._post, self._look)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def settle(self, seconds: float) -> None:
        """Posts no more, and waits so long for what is not readable yet."""
        self._stop.set()
        end = time.monotonic() + seconds
        while any(self._waiting.values()) and time.monotonic() < end and self.failure is None:
            time.sleep(0.05)
        self._waiting.clear()

    def _guarded(self, work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            self.failure = error

    def _post(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        began, number = time.monotonic(), 0
        while not self._stop.wait(max(0.0, began + number * EVERY_S - time.monotonic())):
            name = f"probe-{number % PROBES}"
            occurred_at = int(self._clock.at(time.time()) * 1000) * 1000  # cells know whole milliseconds
            body = json.dumps({"event_id": f"{name}-{occurred_at}", "user_id": name, "item_id": name, "event_type": "view",
                               "occurred_at": occurred_at, "categories": ["probe"], "price": 1.0})
            number += 1
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            if response.status != 202:
                self.refused += 1
                continue
            probe = Probe(occurred_at, time.monotonic(), {})
            self.all.append(probe)
            with self._lock:
                for kind in _GROUPS:
                    self._waiting.setdefault((kind, row_key(kind, name)), deque()).append(probe)

    def _look(self) -> None:
        store = open_store(self._store, create=False)
        try:
            while not self._stop.is_set() or any(self._waiting.values()):
                for kind, group in _GROUPS.items():
                    rows = [row for (k, row), probes in list(self._waiting.items()) if k == kind and probes]
                    found = store.read_features(rows, "stream", [group]) if rows else []
                    now = time.monotonic()
                    for row, cells in zip(rows, found, strict=True):
                        if group in cells:
                            self._note(kind, row, cells[group].timestamp, now)
                time.sleep(LOOK_S)
        finally:
            store.close()

    def _note(self, kind: str, row: str, known: int, now: float) -> None:
        with self._lock:
            waiting = self._waiting.get((kind, row), deque())
            while waiting and waiting[0].occurred_at <= known:
                waiting.popleft().readable[kind] = now
