"""How fast an event log is read: polled only, polled and decoded, and through the source on a Beam runner.

One log is filled with an event a record (Avro) and one with packs of 1,000, six hours of event time in order; each is read to
its end. ``poll``: records as they lie. ``lane``: decoded, validated, with positions (what a bundle does). ``prism``, ``flink``:
the source in a job that only counts, from its first batch to its last. ``--kafka HOST:PORT`` reads Kafka instead of local logs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from beam_pipelines.io.source_lane import Lane, Reading
from beam_pipelines.io.source_tracker import Span
from benchmarks.synthetic import FIRST_DAY, day_of_events, print_measured
from schemas.arrow import arrow_schema
from schemas.workspace import DAY_MICROS
from serving.eventlog import open_log
from transforms.records import encode_singles, pack

PARTITIONS = 4
_PACK = 1000
_POLL_BYTES = 16 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--events", type=int, default=2_000_000, help="in each log (default: 2,000,000)")
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--kafka", metavar="HOST:PORT", help="read from this broker (default: a local log)")
    parser.add_argument("--runners", default="prism", help="comma-separated: prism, flink (default: prism)")
    parser.add_argument("--work", metavar="DIR", help="where everything goes (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Reads both logs every way; exit code 1 when events are missing."""
    return print_measured(args, measure)


def measure(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """Events a second, by the names that ``--json`` prints."""
    figures: dict[str, object] = {"events": args.events, "readers": args.readers, "log": "kafka" if args.kafka else "local",
                                  "poll_bytes": _POLL_BYTES}
    equal = True
    uris = {kind: _uri(args, work, kind) for kind in ("packed", "single")}
    _fill(uris, args)
    for kind, uri in uris.items():
        figures[f"{kind}_poll_records_per_s"] = round(_poll(uri))
        _lane(uri)  # compiles
        rate, events = _lane(uri)
        figures[f"{kind}_lane_events_per_s"] = round(rate)
        equal &= events == args.events
        for runner in filter(None, args.runners.split(",")):
            rate, events = _RUNNERS[runner](uri, args.readers, work / f"{runner}-{kind}")
            figures[f"{kind}_{runner}_events_per_s"] = round(rate)
            equal &= events == args.events
    return {**figures, "equal": equal}


def _uri(args: argparse.Namespace, work: Path, kind: str) -> str:
    return f"kafka://{args.kafka}/{kind}-{time.time_ns()}" if args.kafka else f"dir:{work.absolute()}/{kind}"


def _fill(uris: dict[str, str], args: argparse.Namespace) -> None:
    table = day_of_events(FIRST_DAY, args.events, args.users, args.items).sort_by("occurred_at")
    step = max(1, DAY_MICROS // args.events // 4)
    times = pa.array(FIRST_DAY * DAY_MICROS + np.arange(args.events) * step).cast(table["occurred_at"].type)
    for name in ("occurred_at", "ingested_at"):
        table = table.set_column(table.column_names.index(name), name, times)
    schema = arrow_schema("event")
    table = pa.table({f.name: table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type)
                      for f in schema}).combine_chunks()
    logs = {kind: open_log(f"{uri}?partitions={PARTITIONS}") for kind, uri in uris.items()}
    now = time.time_ns() // 1000
    for number, first in enumerate(range(0, len(table), _PACK)):
        part = table.slice(first, _PACK).combine_chunks()
        logs["packed"].append(number % PARTITIONS, [pack(part.to_batches()[0])], now)
        logs["single"].append(number % PARTITIONS, encode_singles(part), now)
    for log in logs.values():
        log.close()


def _poll(uri: str) -> float:
    log = open_log(uri)
    ends = {p: log.latest(p) for p in range(PARTITIONS)}
    started, records = time.perf_counter(), 0
    reader = log.reader(dict.fromkeys(ends, 0))
    while reader.positions() != ends:
        records += len(reader.poll(_POLL_BYTES, 1.0))
    seconds = time.perf_counter() - started
    reader.close()
    log.close()
    return records / seconds


def _lane(uri: str) -> tuple[float, int]:
    lane = Lane(Reading(uri=uri, start="earliest", stop="end", readers=1, watermark_delay_s=10, idle_s=10, skew_s=600,
                        bundle_s=0.3, linger_s=0.05, poll_bytes=_POLL_BYTES, discover_s=30, on_gap="fail", run="bench"), 0)
    started, span, events = time.perf_counter(), Span(), 0
    while not span.done:
        step = lane.step(span, 1.0)
        span = step.span
        events += step.events.num_rows if step.events is not None else 0
    lane.close()
    return events / (time.perf_counter() - started), events


def _job(uri: str, readers: int, flags: list[str], notes: Path) -> tuple[float, int]:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from beam_pipelines.io.source import ReadLog

    notes.mkdir(parents=True)

    class Note(beam.DoFn):  # type: ignore[misc]
        """Pickled by value: workers need not know benchmarks."""

        def process(self, batch: Any) -> None:
            from os import getpid
            from time import time

            with (notes / str(getpid())).open("a") as file:
                file.write(f"{time()} {batch.num_rows}\n")

    with beam.Pipeline(options=PipelineOptions(flags)) as p:
        read = p | ReadLog(uri, readers=readers, stop="end")
        read.events | "Note" >> beam.ParDo(Note())
    lines = sorted(tuple(map(float, line.split())) for path in notes.iterdir() for line in path.read_text().splitlines())
    total = int(sum(rows for _, rows in lines))
    return (total - lines[0][1]) / max(lines[-1][0] - lines[0][0], 1e-9), total


def _prism(uri: str, readers: int, work: Path) -> tuple[float, int]:
    from beam_pipelines.services import prism

    with prism.running(work) as server:
        return _job(uri, readers, server.pipeline_options(), work / "notes")


def _flink(uri: str, readers: int, work: Path) -> tuple[float, int]:
    from beam_pipelines.services import flink

    with flink.running(work) as cluster:
        ends = "--shutdown_sources_after_idle_ms=1000"  # else a bounded job keeps its impulse, and never ends
        return _job(uri, readers, [*cluster.pipeline_options(parallelism=2), ends], work / "notes")


_RUNNERS: dict[str, Callable[[str, int, Path], tuple[float, int]]] = {"prism": _prism, "flink": _flink}
