"""Live events for a collector at a given rate, of users who come and go: a process of its own, posting batches.

``python -m benchmarks.freshness_load``: a JSON Job on stdin; it sends until stdin is closed, then prints a JSON Report.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

PATH = "/v1/events"
_TYPES = ("view", "click", "impression", "save", "view", "cart", "view", "impression")
_EVENT = ('{"event_id":"%s","user_id":"user-%08d","item_id":"item-%06d","event_type":"%s","occurred_at":%d,'
          '"surface":"homepage","device":"mobile","page_position":%d,"dwell_ms":%d,"categories":["c%02d","c%02d"],'
          '"price":%d.5,"country":"DE","os":"android"}')


@dataclass(frozen=True)
class EventTime:
    """The event time of a moment: the moment itself, or with ``speed`` above 1 a past that runs so many times faster.

    Attributes:
      begin: wall clock at which it begins, seconds since 1970.
      span: seconds of wall clock after which it has caught up with the wall clock.
    """

    begin: float
    span: float = 0.0
    speed: float = 1.0

    def at(self, now: float) -> float:
        """Event time at a wall clock's moment, seconds since 1970; never in the future."""
        return min(now, now - (self.speed - 1) * (self.begin + self.span - now))


@dataclass(frozen=True)
class Job:
    """What to send.

    Attributes:
      rate: events per second; batch: events per request.
      users: how many are active at any moment; each stays for ``stay_s`` seconds of event time, then never comes again.
      items: of which the events are, skewed.
    """

    host: str
    port: int
    time: EventTime
    rate: float
    users: int
    stay_s: float
    items: int = 20_000
    batch: int = 50
    connections: int = 4
    seed: int = 7


@dataclass
class Report:
    """What came of it; ``accepted`` by the whole second of the wall clock in which the answer came."""

    sent: int = 0
    rejected: int = 0
    retries: int = 0
    accepted: dict[int, int] = field(default_factory=dict)
    behind_s: float = 0.0


class _Sender:
    def __init__(self, job: Job) -> None:
        self._job, self._report, self._lock = job, Report(), threading.Lock()
        self._next, self._stop = 0, threading.Event()

    def run(self) -> Report:
        self._began = time.time()
        threads = [threading.Thread(target=self._send_on, args=(n,), daemon=True) for n in range(self._job.connections)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self._stop.set()
        for thread in threads:
            thread.join(30)
        return self._report

    def _send_on(self, number: int) -> None:
        job, rng = self._job, random.Random(self._job.seed * 1000 + number)
        connection = http.client.HTTPConnection(job.host, job.port, timeout=30)
        while not self._stop.is_set():
            with self._lock:
                due = self._began + self._next * job.batch / job.rate
                self._next += 1
            if self._stop.wait(max(0.0, due - time.time())):
                return
            late, body = time.time() - due, self._body(rng)
            done, retries = self._post(connection, body)
            with self._lock:
                self._report.sent += job.batch
                self._report.retries += retries
                self._report.behind_s = max(self._report.behind_s, late)
                second = int(time.time())
                self._report.accepted[second] = self._report.accepted.get(second, 0) + done
                self._report.rejected += job.batch - done

    def _post(self, connection: http.client.HTTPConnection, body: bytes) -> tuple[int, int]:
        """Events accepted, and how often it was tried again: with the same ids, so that none counts twice."""
        for retries in range(100):
            try:
                connection.request("POST", PATH, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer, status = response.read(), response.status
            except (OSError, http.client.HTTPException):
                connection.close()  # opened again by the next request
                status = 503
            if status not in (429, 503) or self._stop.wait(0.1):
                return (int(json.loads(answer)["accepted"]) if status == 202 else 0), retries
        return 0, 100

    def _body(self, rng: random.Random) -> bytes:
        job, now = self._job, self._job.time.at(time.time())
        oldest = int(now / job.stay_s * job.users)
        events = []
        for _ in range(job.batch):
            user = oldest + int(job.users * rng.random() ** 2)
            item = int(job.items * rng.random() ** 3)
            kind = _TYPES[int(rng.random() * len(_TYPES))]
            events.append(_EVENT % (f"{rng.getrandbits(96):024x}", user, item, kind, int(now * 1e6), item % 40 + 1, item % 9000,
                                    item % 37, item % 11, item % 97))
        return f"[{','.join(events)}]".encode()


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    json.dump(asdict(_Sender(Job(**{**given, "time": EventTime(**given["time"])})).run()), sys.stdout)
