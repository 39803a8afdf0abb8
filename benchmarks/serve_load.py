"""A load generator for GET /v1/recommendations: benchmarks.collect_loop with another request; a process of its own.

It runs before the processes it measures wherever the system lets it (SCHED_RR, root or CAP_SYS_NICE): a generator that waits
3 ms for a core sends late what was due, and takes an answer that has long arrived for a late one.

``python -m benchmarks.serve_load``: a JSON Ask on stdin, a JSON report on stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.collect_load import Job, Report, send

_DIGITS = b"UUUUUUU"


@dataclass(frozen=True)
class Ask:
    """What to send: see benchmarks.collect_load.Job."""

    host: str
    port: int
    connections: int
    seconds: float
    rate: float
    users: int
    parameters: str = "context=homepage&page_size=20"
    first: int = 0


def run(ask: Ask) -> Report:
    """Sends until the time is over; raises RuntimeError as collect_load.run."""
    text = (f"GET /v1/recommendations?user_id=user-{_DIGITS.decode()}&{ask.parameters} HTTP/1.1\r\n"
            f"Host: {ask.host}:{ask.port}\r\n\r\n").encode()
    blanks = np.array([(text.index(_DIGITS), len(_DIGITS), 1, 0)], np.int64)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    job = Job(ask.host, ask.port, ask.connections, ask.seconds, 1, ask.rate, ask.first, ask.users)
    return send(job, [(text, blanks)], b'{"request_id"')


if __name__ == "__main__":
    json.dump(asdict(run(Ask(**json.load(sys.stdin)))), sys.stdout)
