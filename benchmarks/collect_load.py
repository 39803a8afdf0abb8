"""A load generator for HTTP posts: one process, one epoll loop, keep-alive connections; it knows what was answered.

Run as a process of its own (``python -m benchmarks.collect_load``): a JSON job on stdin, a JSON report on stdout.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

_RECEIVE = 1 << 18


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
    """What came of it: ``accepted`` are numbers of requests answered with 202 and every event accepted."""

    sent: int = 0
    seconds: float = 0.0
    accepted: list[int] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    processor_s: float = 0.0


def event_id(request: int, place: int) -> str:
    """The id of an event."""
    return f"bench-{request:012d}-{place:04d}"


_EVENT = (
    '{"event_id":"%s","user_id":"user-%07d","item_id":"item-%06d","event_type":"%s","occurred_at":%d,"surface":"homepage",'
    '"device":"mobile","session_id":"session-%09d","page_position":%d,"request_id":"0f3c9a52b7e84d1d9c1f7a2b3c4d5e6f",'
    '"model_version":"two-tower-20261120-a1b2c3d4","dwell_ms":%d,"categories":["Drama","Thriller"],"price":9.99,'
    '"country":"DE","os":"android","attributes":{"experiment":"b"}}'
)
_TYPES = ("click", "view", "impression", "save", "cart")


def request_bytes(job: Job, number: int) -> bytes:
    """A whole POST request of ``batch`` events of about 400 bytes."""
    now = time.time_ns() // 1000
    events = []
    for place in range(job.batch):
        n = number * job.batch + place
        user = (n * 2_654_435_761) % job.users
        events.append(_EVENT % (event_id(number, place), user, n * 40_503 % 50_000, _TYPES[n % 5], now, user, n % 40 + 1,
                                n % 9000))
    body = events[0] if job.batch == 1 else f"[{','.join(events)}]"
    return (f"POST /v1/events HTTP/1.1\r\nHost: {job.host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}").encode()


class _Connection:
    __slots__ = ("due", "got", "number", "outgoing", "socket", "wanted")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.number, self.due = -1, 0.0
        self.got, self.wanted = b"", 0
        self.outgoing = b""


def run(job: Job) -> Report:
    """Sends until the time is over, then waits for what is outstanding."""
    report = Report()
    poller = select.epoll()
    free: list[_Connection] = []
    by_fd: dict[int, _Connection] = {}
    for _ in range(job.connections):
        sock = socket.create_connection((job.host, job.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        free.append(_Connection(sock))
        by_fd[sock.fileno()] = free[-1]
        poller.register(sock.fileno(), select.EPOLLIN)
    ready = _prepared(job)
    accepted_mark = b'{"accepted":%d,"rejected":0' % job.batch
    started, processor = time.perf_counter(), time.process_time()
    end, next_due, outstanding = started + job.seconds, started, 0
    while True:
        now = time.perf_counter()
        while free and now < end and (not job.rate or next_due <= now):
            connection = free.pop()
            connection.number = job.first + report.sent
            connection.due = next_due if job.rate else now
            next_due += 1 / job.rate if job.rate else 0
            _send(poller, connection, ready(connection.number))
            report.sent += 1
            outstanding += 1
        if now >= end and not outstanding:
            break
        if now > end + 30:
            raise RuntimeError(f"{outstanding} requests were not answered within 30 s")
        wait = max(0.0, min(next_due, end) - now) if job.rate and free and now < end else 0.05
        for fd, what in poller.poll(wait):
            connection = by_fd[fd]
            if what & select.EPOLLOUT:
                _send(poller, connection, connection.outgoing)
                continue
            if not _receive(connection):
                continue
            done = time.perf_counter()
            report.latencies_ms.append((done - connection.due) * 1000)
            status = connection.got[9:12].decode()
            if status == "202" and accepted_mark in connection.got:
                report.accepted.append(connection.number)
            report.statuses[status] = report.statuses.get(status, 0) + 1
            connection.got, connection.wanted = b"", 0
            outstanding -= 1
            free.append(connection)
    report.seconds = time.perf_counter() - started
    report.processor_s = time.process_time() - processor
    for connection in by_fd.values():
        connection.socket.close()
    return report


def _prepared(job: Job) -> Callable[[int], bytes]:
    """Makes requests. Of batches only the ids differ: to make each anew would take the time of the server beside it."""
    if job.batch == 1:
        return lambda number: request_bytes(job, number)
    template = request_bytes(job, 0).replace(event_id(0, 0).encode()[:18], b"bench-@@@@@@@@@@@@")
    return lambda number: template.replace(b"@@@@@@@@@@@@", b"%012d" % number)


def _send(poller: select.epoll, connection: _Connection, data: bytes) -> None:
    try:
        sent = connection.socket.send(data)
    except BlockingIOError:
        sent = 0
    waiting = bool(connection.outgoing)
    connection.outgoing = data[sent:]
    if bool(connection.outgoing) != waiting:
        poller.modify(connection.socket.fileno(), select.EPOLLOUT if connection.outgoing else select.EPOLLIN)


def _receive(connection: _Connection) -> bool:
    """Whether the whole answer is there."""
    part = connection.socket.recv(_RECEIVE)
    if not part:
        raise ConnectionError("the server closed a connection")
    connection.got = connection.got + part if connection.got else part
    if not connection.wanted:
        head = connection.got.find(b"\r\n\r\n")
        if head < 0:
            return False
        at = connection.got.find(b"content-length: ")
        connection.wanted = head + 4 + int(connection.got[at + 16 : connection.got.find(b"\r", at)])
    return len(connection.got) >= connection.wanted


if __name__ == "__main__":
    json.dump(asdict(run(Job(**json.load(sys.stdin)))), sys.stdout)
