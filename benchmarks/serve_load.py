"""A load generator for GET /v1/recommendations: benchmarks.collect_loop with another request; a process of its own.

``python -m benchmarks.serve_load``: a JSON Ask on stdin, a JSON report on stdout.
"""

from __future__ import annotations

import json
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
    job = Job(ask.host, ask.port, ask.connections, ask.seconds, 1, ask.rate, ask.first, ask.users)
    return send(job, [(text, blanks)], b'{"request_id"')


if __name__ == "__main__":
    json.dump(asdict(run(Ask(**json.load(sys.stdin)))), sys.stdout)
