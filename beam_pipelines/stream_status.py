"""What a streaming job says of itself: for people, on one line while it runs, and as JSON."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from schemas.metric_names import (
    CELLS_WRITTEN,
    EVENTS_ACCEPTED,
    EVENTS_DUPLICATE,
    EVENTS_LATE,
    EVENTS_READ,
    FRESHNESS,
    FRESHNESS_MS,
    STATE_BYTES,
)

if TYPE_CHECKING:
    from beam_pipelines.services.flink_rest import OnFlink


def freshness(counters: dict[str, int]) -> dict[str, list[float]]:
    """Seconds, p50 and p99, from an event's acceptance to each stage that events have reached."""
    from transforms.beam.stream.freshness import STAGES, quantiles

    found = {stage: quantiles(counters, stage) for stage in STAGES}
    return {stage: points for stage, points in found.items() if points is not None}


def told(status: dict[str, Any], on_flink: OnFlink | None = None) -> dict[str, Any]:
    """A status row ({} before the first) for printing as JSON, with ``freshness_s`` by stage, and ``flink`` where known."""
    flink = {} if on_flink is None else {"flink": asdict(on_flink)}
    if not status:
        return flink
    found = {stage: [s if s < math.inf else None for s in points] for stage, points in freshness(status["counters"]).items()}
    by_stage = {stage: dict(zip(("p50", "p99"), points, strict=True)) for stage, points in found.items()}
    return {**status, "freshness_s": by_stage, **flink}


def _time(micros: int | None) -> str:
    from transforms.ingest import END_OF_TIME

    if micros is None:
        return "unknown"
    return "the end" if micros >= END_OF_TIME else f"{datetime.fromtimestamp(micros / 1e6, UTC):%Y-%m-%d %H:%M:%S}"


def line(status: dict[str, Any]) -> str:
    """A status row beside a progress bar."""
    return f"event time {_time(status['watermark'])}, {status['counters'].get(CELLS_WRITTEN, 0)} cells"


def report(status: dict[str, Any], on_flink: OnFlink | None = None) -> str:
    """A status row ({} before the first) for people, a fact a line."""
    of_flink = [] if on_flink is None else _flink_lines(on_flink)
    if not status:
        return "\n".join([*of_flink, "written       nothing yet"])
    from transforms.beam.stream.freshness import BOUNDS_S

    counters = dict(status["counters"])
    age = time.time() - status["written_at"] / 1e6
    lines = [f"event time    {_time(status['watermark'])}",
             f"written       {age:.0f} s ago" + (", the job has ended" if status["ended"] else ""),
             f"run           {status['run']}", *of_flink]
    if offsets := status.get("offsets"):
        lags = {partition: lag for partition, (_, lag) in sorted(offsets.items(), key=lambda each: int(each[0])) if lag}
        where = ", ".join(f"partition {partition}: {lag:,}" for partition, lag in lags.items())
        lines.append(f"lag           {sum(lags.values()):,} records wait" + (f" ({where})" if where else ""))
    if sizes := status.get(STATE_BYTES):
        lines.append("state         " + ", ".join(f"{size / 1e6:,.1f} MB of {name}s" for name, size in sorted(sizes.items())))
    for stage, points in freshness(counters).items():
        half, most = (f"{s:.1f} s" if s < math.inf else f"over {BOUNDS_S[-1]:.0f} s" for s in points)
        lines.append(f"{stage:<13} {half} after an event was accepted (p50), {most} (p99)")
    first = (EVENTS_READ, EVENTS_ACCEPTED, EVENTS_DUPLICATE, EVENTS_LATE, CELLS_WRITTEN)
    names = [*first, *sorted(n for n in counters if n not in first and n.partition("/")[0] not in (FRESHNESS, FRESHNESS_MS))]
    lines += [f"{name:<40} {counters[name]:>14,}" for name in names if name in counters]
    return "\n".join(lines)


def _flink_lines(on_flink: OnFlink) -> list[str]:
    times = "once" if on_flink.restarts == 1 else f"{on_flink.restarts:,} times"
    again = f", started again {times}" if on_flink.restarts else ""
    failure = on_flink.last_failure
    return [f"Flink         job {on_flink.job} is {on_flink.state}{again}",
            *([f"last failure  {_time(round(failure.at * 1e6))}: {failure.reason}"] if failure is not None else [])]
