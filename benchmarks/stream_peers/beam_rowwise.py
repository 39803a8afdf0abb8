"""The windows of the stream benchmark in stock Beam: a dict per event, window transforms, counts per key, default coders.

It reads with our source, which is faster than Beam's own KafkaIO, and from there on is what Beam's guide shows. Tuned as the
guide says: combiners that can be lifted, and types declared, so that keys have fast coders.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.combiners import CountCombineFn
from apache_beam.transforms.window import FixedWindows, Sessions, SlidingWindows, TimestampedValue

from beam_pipelines.io.source import ReadLog
from beam_pipelines.services.flink import Cluster
from beam_pipelines.services.flink_rest import ENDED
from transforms.beam.coder import register

WINDOWS = {"tumbling": FixedWindows(300), "sliding": SlidingWindows(3600, 300), "sessions": Sessions(1800)}


def run(cluster: Cluster, uri: str, out: Path, windows: list[str], delay_s: float,
        checkpoint_ms: int) -> tuple[float, float]:
    """Reads a log to its end on a cluster, checkpoints on.

    Returns:
      (when the first record was read, when the last result was stored), seconds since 1970.
    """
    out.mkdir(parents=True)
    name = f"rowwise{time.time_ns() % 1_000_000}"
    options = PipelineOptions([*cluster.pipeline_options(name, checkpoint_ms=checkpoint_ms),
                               "--shutdown_sources_after_idle_ms=1000"])
    pipeline = beam.Pipeline(options=options)
    construct(pipeline, uri, out, windows, delay_s)
    pipeline.run()
    while (job := cluster.rest.find(name)) is None or cluster.rest.state(job) not in ENDED:
        time.sleep(0.2)
    if cluster.rest.state(job) != "FINISHED":
        raise RuntimeError(f"row-wise Beam ended as {cluster.rest.state(job)}; see {cluster.directory}")
    began = min(float(path.read_text()) for path in out.glob("first-*"))
    stored = max(path.stat().st_mtime for name in windows for path in (out / name).glob("*.csv"))
    return began, stored


def construct(pipeline: beam.Pipeline, uri: str, out: Path, windows: list[str], delay_s: float) -> None:
    """Adds the whole job to a pipeline."""
    register()
    read = pipeline | "Read the log" >> ReadLog(uri, stop="end", readers=2, watermark_delay_s=delay_s, idle_s=None)
    rows = (read.events
            | "To rows" >> beam.ParDo(_ToRows(str(out))).with_output_types(dict[str, Any])
            | "Keyed and timed" >> beam.ParDo(_Keyed()).with_output_types(tuple[str, int]))
    for name in windows:
        (rows | f"{name} windows" >> beam.WindowInto(WINDOWS[name])
         | f"Count {name}" >> beam.CombinePerKey(CountCombineFn())
         | f"Store {name}" >> beam.ParDo(_Store(str(out / name))))


class _ToRows(beam.DoFn):  # type: ignore[misc]
    """RecordBatches -> a dict per event, of the columns that the windows need."""

    def __init__(self, out: str) -> None:
        self._out = Path(out)

    def setup(self) -> None:
        self._begun = False

    def process(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        if not self._begun:
            (self._out / f"first-{os.getpid()}").write_text(str(time.time()))
            self._begun = True
        yield from batch.select(["user_id", "event_type", "occurred_at"]).to_pylist()


class _Keyed(beam.DoFn):  # type: ignore[misc]
    def process(self, row: dict[str, Any]) -> Iterator[TimestampedValue]:
        yield TimestampedValue((row["user_id"], 1), row["occurred_at"].timestamp())


class _Store(beam.DoFn):  # type: ignore[misc]
    """Counts of a window -> lines user,start,end,events (seconds since 1970), a file per bundle."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def setup(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def start_bundle(self) -> None:
        self._lines: list[str] = []

    def process(self, counted: tuple[str, int], window: Any = beam.DoFn.WindowParam) -> None:
        user, count = counted
        self._lines.append(f"{user},{window.start.micros // 1_000_000},{window.end.micros // 1_000_000},{count}\n")

    def finish_bundle(self) -> None:
        if self._lines:
            (self._folder / f"{os.getpid()}-{time.time_ns()}.csv").write_text("".join(self._lines))
