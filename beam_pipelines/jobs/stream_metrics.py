"""Metrics of a running stream in Prometheus' text format, served by the process that submitted it.

Nearly all of it comes from the job's status row, whatever the runner: counters, which the state makes exact, offsets,
watermark, size of the state. How often a job was started again is Flink's to tell. How much of the log waits is also looked for
in the log: a job that hangs does not tell.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from beam_pipelines.jobs.stream_run import Running
from schemas.metric_names import (
    CELLS_RETRIED,
    CELLS_WRITTEN,
    EVENTS_ACCEPTED,
    EVENTS_DUPLICATE,
    EVENTS_LATE,
    EVENTS_READ,
    FLUSH_MS,
    FLUSHES,
    FRESHNESS,
    FRESHNESS_MS,
    JOB_RESTARTS,
    NAMESPACE,
    SEGMENTS,
    STATE_BYTES,
    STATE_RESTORED,
    STREAM_LAG,
    STREAM_STATUS_AGE,
    STREAM_UP,
    STREAM_WATERMARK,
    STREAM_WATERMARK_DELAY,
    by_segment,
    segment_of,
)
from serving.eventlog import EventLog, LogError, open_log
from transforms.beam.stream.freshness import STAGES, cumulated
from transforms.ingest import END_OF_TIME

_log = logging.getLogger(__name__)
_ASK_AGAIN_S = 60.0
_ALWAYS = (EVENTS_READ, EVENTS_ACCEPTED, EVENTS_DUPLICATE, EVENTS_LATE, CELLS_WRITTEN, CELLS_RETRIED, FLUSHES, FLUSH_MS,
           STATE_RESTORED)
"""Counters that are told from the start: a rate needs the 0 before the first."""


def exposition(status: dict[str, Any] | None, now: float, ends: Mapping[int, int] | None = None,
               restarts: int | None = None) -> str:
    """The text of a scrape.

    Args:
      status: the job's status row.
      now: seconds since 1970.
      ends: by partition, where the log ends now; what is not known is as the row tells.
      restarts: how often the runner has started the job again; None where nobody knows.
    """
    families: dict[str, list[tuple[str, float]]] = {}

    def put(name: str, value: float, **labels: str) -> None:
        inside = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items())
        families.setdefault(f"{NAMESPACE}_{name}", []).append((f"{{{inside}}}" if inside else "", value))

    if restarts is not None:
        put(f"{JOB_RESTARTS}_total", restarts)
    if status is not None:
        put(STREAM_STATUS_AGE, now - status["written_at"] / 1e6)
        put(STREAM_UP, 0.0 if status["ended"] else 1.0)
        if status["watermark"] is not None and status["watermark"] < END_OF_TIME:
            put(STREAM_WATERMARK, status["watermark"] / 1e6)
            put(STREAM_WATERMARK_DELAY, max(0.0, now - status["watermark"] / 1e6))
        for partition, (place, waits) in status.get("offsets", {}).items():
            end = (ends or {}).get(int(partition))
            put(STREAM_LAG, waits if end is None else max(0, end - place), partition=partition)
        for entity, size in status.get(STATE_BYTES, {}).items():
            put(STATE_BYTES, size, entity=entity)
        for name in _ALWAYS:
            put(f"{name}_total", status["counters"].get(name, 0))
        for name, value in status["counters"].items():
            base, *parts = segment_of(name)
            if base in (FRESHNESS, FRESHNESS_MS):
                continue
            if parts:
                put(f"{base}_by_segment_total", value, **dict(zip(SEGMENTS.get(base, ("a", "b")), parts, strict=False)))
            elif base.startswith("events_rejected_"):
                put("events_rejected_by_reason_total", value, reason=base.removeprefix("events_rejected_"))
            elif base not in _ALWAYS:
                put(f"{base}_total", value)
        for stage in STAGES:
            for bound, value in cumulated(status["counters"], stage):
                put(f"{FRESHNESS}_bucket", value, stage=stage, le=bound)
                if bound == "+Inf":
                    put(f"{FRESHNESS}_count", value, stage=stage)
                    put(f"{FRESHNESS}_sum", status["counters"].get(by_segment(FRESHNESS_MS, stage), 0) / 1000, stage=stage)
    lines = []
    for family, samples in sorted(families.items()):
        of_histogram = family.removeprefix(f"{NAMESPACE}_{FRESHNESS}_")
        if of_histogram == "bucket":
            lines.append(f"# TYPE {NAMESPACE}_{FRESHNESS} histogram")
        elif of_histogram == family:
            lines.append(f"# TYPE {family} {'counter' if family.endswith('_total') else 'gauge'}")
        lines += [f"{family}{labels} {value:.16g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Ends:
    """Where a log ends, by partition. One that is away is not asked again for a while: a scrape must not wait for it."""

    def __init__(self, uri: str) -> None:
        self._uri, self._lock, self._asked_again = uri, threading.Lock(), 0.0
        self._log: EventLog | None = None

    def known(self) -> dict[int, int]:
        """The next offset to be written; {} while the log is away."""
        with self._lock:
            if time.monotonic() < self._asked_again:
                return {}
            try:
                self._log = self._log or open_log(self._uri)
                return {partition: self._log.latest(partition) for partition in range(self._log.partitions())}
            except (LogError, OSError) as error:
                _log.debug("the log does not say where it ends: %s", error)
                self._asked_again = time.monotonic() + _ASK_AGAIN_S
                return {}

    def close(self) -> None:
        """Leaves the log."""
        with self._lock:
            if self._log is not None:
                self._log.close()
                self._log = None


@contextlib.contextmanager
def serving_metrics(port: int | None, job: Running, host: str = "127.0.0.1") -> Iterator[int | None]:
    """Serves GET /metrics on an address for the length of a ``with``; gives the port (0 takes a free one); None: nothing."""
    if port is None:
        yield None
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            known = {} if job.config.until_end else ends.known()  # one with an end tells what waits until then
            on_flink = job.on_flink()
            body = exposition(job.status(), time.time(), known, on_flink.restarts if on_flink is not None else None).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            _log.debug(format, *args)

    ends = Ends(job.config.log)
    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        ends.close()
