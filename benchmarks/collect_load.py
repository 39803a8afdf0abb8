"""A load generator for HTTP posts: one process, one epoll loop, keep-alive connections; it knows what was answered.

Run as a process of its own (``python -m benchmarks.collect_load``): a JSON job on stdin, a JSON report on stdout. It shares the
machine with the server it measures, so the loop is compiled and little more than its system calls. Where requests are due at
a time it comes before what it measures, if the system lets it (the highest nice value, root or CAP_SYS_NICE): a generator that
waits 3 ms for a core sends late what was due, and takes an answer that has long arrived for a late one. A real-time priority
would be too much: Linux then wakes it on the server's core, and that once per answer, while another core is idle.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection

import numpy as np

from benchmarks.collect_loop import NUMBER_DIGITS, PATIENCE_S, drive

MOST_PER_S = 60_000
"""Requests a second that a report has room for."""


@dataclass(frozen=True)
class Job:
    """What to send.

    Attributes:
      batch: events per request; 1 sends single events.
      rate: requests a second, sent when they are due whatever is outstanding (latency counts from then); 0: each
        connection sends its next request when it has its answer.
      first: number of the first request; event ids follow from numbers.
    """

    host: str
    port: int
    connections: int
    seconds: float
    batch: int
    rate: float = 0.0
    first: int = 0
    users: int = 200_000


@dataclass
class Report:
    """What came of it: ``accepted`` are numbers of requests answered with 202 and every event accepted; ``processor_s`` of
    the generator."""

    sent: int = 0
    seconds: float = 0.0
    accepted: list[int] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    processor_s: float = 0.0


def event_id(request: int, place: int) -> str:
    """The id of an event."""
    return f"bench-{request:0{NUMBER_DIGITS}d}-{place:04d}"


_EVENT = (
    '{"event_id":"bench-NNNNNNNNNNNN-%04d","user_id":"user-UUUUUUU","item_id":"item-IIIIII","event_type":"%s",'
    '"occurred_at":TTTTTTTTTTTTTTTT,"surface":"homepage","device":"mobile","session_id":"session-SSSSSSSSS","page_position":%d,'
    '"request_id":"0f3c9a52b7e84d1d9c1f7a2b3c4d5e6f","model_version":"two-tower-20261120-a1b2c3d4","dwell_ms":%d,'
    '"categories":["Drama","Thriller"],"price":9.99,"country":"DE","os":"android","attributes":{"experiment":"b"}}'
)
_TYPES = ("click", "view", "impression", "save", "cart")
_BLANKS = re.compile(b"NNNNNNNNNNNN|UUUUUUU|IIIIII|SSSSSSSSS|TTTTTTTTTTTTTTTT")
_KINDS = b"NUIST"


def template(job: Job, variant: int) -> tuple[bytes, np.ndarray]:
    """A whole POST request of ``batch`` events of about 400 bytes, and its blanks: (m, 4) place, digits, kind, event."""
    events = [_EVENT % (i, _TYPES[(variant + i) % len(_TYPES)], (variant + i) % 40 + 1, 37 * (variant + i) % 9000)
              for i in range(job.batch)]
    body = events[0] if job.batch == 1 else f"[{','.join(events)}]"
    text = (f"POST /v1/events HTTP/1.1\r\nHost: {job.host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}").encode()
    blanks, place = [], -1
    for found in _BLANKS.finditer(text):
        kind = _KINDS.index(found.group()[0])
        place += kind == 0
        blanks.append((found.start(), len(found.group()), kind, place))
    return text, np.array(blanks, np.int64)


def run(job: Job) -> Report:
    """Sends events until the time is over, then waits for what is outstanding; raises as ``send``."""
    variants = [template(job, v) for v in range(len(_TYPES))]
    return send(job, variants, b'{"accepted":%d,"rejected":0,"events":[{"event_id":"bench-' % job.batch)


def send(job: Job, variants: list[tuple[bytes, np.ndarray]], mark: bytes) -> Report:
    """Sends requests until the time is over, then waits for what is outstanding.

    Args:
      variants: requests that take turns, each with its blanks (see ``template``).
      mark: what the body of a 202 begins with, before the number of the request.

    Raises:
      OSError: the server takes no connection.
      RuntimeError: an answer is no whole HTTP/1.1 answer with a length, is not to what was asked, or does not come.
    """
    sockets = [_connected(job) for _ in range(job.connections)]
    longest = max(len(text) for text, _ in variants)
    texts = np.zeros((len(variants), longest), np.uint8)
    for row, (text, _) in zip(texts, variants, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    sizes = np.array([len(text) for text, _ in variants], np.int64)
    blanks = np.stack([blanks for _, blanks in variants])
    marked = np.frombuffer(mark, np.uint8)
    fds = np.array([s.fileno() for s in sockets], np.int32)
    room = int((job.rate or MOST_PER_S) * (job.seconds + 1)) + job.connections
    nothing = np.zeros(0, np.int32)
    drive(nothing, texts, sizes, blanks, marked, job.users, 0, 0.0, 0.0, job.batch, 0)  # compiles, or loads
    if job.rate:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
    used, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    sent, accepted, latencies, statuses, problem = drive(fds, texts, sizes, blanks, marked, job.users, job.first,
                                                         float(job.seconds), float(job.rate), job.batch, room)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    for opened in sockets:
        opened.close()
    if problem:
        raise RuntimeError(("", "the server closed a connection", "an answer is not what was expected",
                            "requests were not answered within 30 s")[problem])
    return Report(sent, seconds, accepted.tolist(), {str(s): int(n) for s, n in enumerate(statuses) if n}, latencies.tolist(),
                  after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)


def _connected(job: Job) -> socket.socket:
    """A connection that the server has taken: the clock starts when all are there."""
    made = HTTPConnection(job.host, job.port, timeout=PATIENCE_S)
    made.request("GET", "/healthz")
    made.getresponse().read()
    made.sock.setblocking(False)
    return made.sock


if __name__ == "__main__":
    json.dump(asdict(run(Job(**json.load(sys.stdin)))), sys.stdout)
