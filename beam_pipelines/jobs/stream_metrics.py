"""Metrics of a running stream in Prometheus' text format, served by the process that submitted it.

Counters come from the job's status row, which the state makes exact; gauges and distributions (lag by partition, watermark
delay, flush time, state size) from the runner.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from beam_pipelines.jobs.stream_run import Running
from schemas.metric_names import (
    EVENTS_LATE,
    EVENTS_READ,
    FRESHNESS,
    FRESHNESS_MS,
    NAMESPACE,
    STREAM_STATUS_AGE,
    STREAM_UP,
    STREAM_WATERMARK,
    by_segment,
)
from transforms.beam.stream.freshness import STAGES, cumulated
from transforms.ingest import END_OF_TIME

_log = logging.getLogger(__name__)
_SEGMENTS = {EVENTS_READ: ("event_type", "device"), EVENTS_LATE: ("event_type", "surface")}


def exposition(status: dict[str, Any] | None, metrics: dict[str, float], now: float) -> str:
    """The text of a scrape.

    Args:
      status: the job's status row.
      metrics: gauges by name, such as ``lag_0``.
      now: seconds since 1970.
    """
    families: dict[str, list[tuple[str, float]]] = {}

    def put(name: str, value: float, **labels: str) -> None:
        inside = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items())
        families.setdefault(f"{NAMESPACE}_{name}", []).append((f"{{{inside}}}" if inside else "", value))

    if status is not None:
        put(STREAM_STATUS_AGE, now - status["written_at"] / 1e6)
        put(STREAM_UP, 0.0 if status["ended"] else 1.0)
        if status["watermark"] is not None and status["watermark"] < END_OF_TIME:
            put(STREAM_WATERMARK, status["watermark"] / 1e6)
        for name, value in status["counters"].items():
            base, *parts = name.split("/")
            if base in (FRESHNESS, FRESHNESS_MS):
                continue
            if parts:
                put(f"{base}_by_segment_total", value, **dict(zip(_SEGMENTS.get(base, ("a", "b")), parts, strict=False)))
            elif base.startswith("events_rejected_"):
                put("events_rejected_by_reason_total", value, reason=base.removeprefix("events_rejected_"))
            else:
                put(f"{base}_total", value)
        for stage in STAGES:
            for bound, value in cumulated(status["counters"], stage):
                put(f"{FRESHNESS}_bucket", value, stage=stage, le=bound)
                if bound == "+Inf":
                    put(f"{FRESHNESS}_count", value, stage=stage)
                    put(f"{FRESHNESS}_sum", status["counters"].get(by_segment(FRESHNESS_MS, stage), 0) / 1000, stage=stage)
    for name, value in metrics.items():
        found = re.fullmatch(r"lag_(\d+)", name)
        put("lag", value, partition=found[1]) if found else put(name, value)
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


def runner_metrics(result: Any) -> dict[str, float]:
    """Gauges, and means and maxima of distributions, as the runner knows them; {} where it tells none."""
    try:
        found = result.metrics().query()
    except Exception as error:
        _log.debug("the runner tells no metrics: %s", error)
        return {}
    values: dict[str, float] = {}
    for gauge in found["gauges"]:
        if gauge.key.metric.namespace == NAMESPACE and gauge.result is not None:
            values[gauge.key.metric.name] = float(gauge.result.value)
    for each in found["distributions"]:
        if each.key.metric.namespace == NAMESPACE and each.result is not None and each.result.count:
            values[f"{each.key.metric.name}_mean"] = each.result.sum / each.result.count
            values[f"{each.key.metric.name}_max"] = float(each.result.max)
    return values


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
            body = exposition(job.status(), runner_metrics(job.result), time.time()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            _log.debug(format, *args)

    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
