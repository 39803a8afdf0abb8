"""Runs the engines beside beamrec over the same topics and makes their figures.

``seconds`` goes from the first record that an engine reads to its last result stored, after a run over a small topic that warms
it: interpreters, JVMs, clusters, sessions and submission come before it, on every side.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro

from beam_pipelines.errors import UserError
from beam_pipelines.jobs.stream_run import CHECKPOINT_S
from beam_pipelines.services import flink, install, process
from benchmarks.peer_python import peer_python
from benchmarks.stream_peers import beam_rowwise
from benchmarks.stream_peers.truth import Truth
from schemas import avro
from serving.eventlog import open_log

NOTES = {
    "flink_sql": "Flink SQL 2.3 in one process: window table functions, two-phase, object reuse, state on the heap; "
                 f"checkpoints every {CHECKPOINT_S:g} s",
    "spark": "Structured Streaming 4.0: RocksDB with changelog checkpoints, hours chained to panes, micro-batches back to "
             "back; it reads the topic once per kind of window",
    "beam_rowwise": "stock Beam on the same Flink cluster as beamrec: our source, a dict per event; "
                    f"checkpoints every {CHECKPOINT_S:g} s",
}
_CHECKPOINT_MS = round(CHECKPOINT_S * 1000)
_DELAY_S = 10
_SPARK_BATCH = 500_000
_LONGEST_S = 3600.0
_HEAP = "-Xmx4g -XX:+UseParallelGC"


@dataclass(frozen=True)
class Feed:
    """A Kafka topic of single Avro records.

    Attributes:
      uri: kafka://HOST:PORT/TOPIC.
      truth: what is right for its events.
      events: how many it holds.
    """

    uri: str
    truth: Truth
    events: int

    @property
    def bootstrap(self) -> str:
        """HOST:PORT of its broker."""
        return self.uri.split("/")[2]

    @property
    def topic(self) -> str:
        """Its name."""
        return self.uri.split("/")[3]


def run(name: str, feed: Feed, warm: Feed, work: Path, windows: Sequence[str]) -> dict[str, object]:
    """The figures of one engine: events, seconds, events_per_s, differing (rows), equal, note; or ``skipped`` and why.

    Args:
      name: one of NOTES.
      feed: what is measured.
      warm: a small topic, read before.
      work: an empty folder is made in it.
      windows: kinds of windows (truth.WINDOWS).
    """
    out = work / f"peer-{name}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        seconds, results = _ENGINES[name](feed, warm, out, list(windows))
    except _MissingError as missing:
        return {"skipped": str(missing)}
    differing = feed.truth.differing_files(results, windows, ends=name == "beam_rowwise")
    return {"events": feed.events, "seconds": round(seconds, 2), "events_per_s": round(feed.events / seconds),
            "differing": differing, "equal": differing == 0, "note": NOTES[name]}


class _MissingError(Exception):
    """An engine is not installed here."""


def _flink_sql(feed: Feed, warm: Feed, out: Path, windows: list[str]) -> tuple[float, Path]:
    spec = {**_common(feed, out, windows), "topics": [warm.topic, feed.topic], "jars": _jars("peer_flink_sql"),
            "checkpoint_ms": _CHECKPOINT_MS}
    took = _apart("flink_sql", _python("flink-sql"), spec, out)
    return took["stored"] - took["first"], out / "1"


def _spark(feed: Feed, warm: Feed, out: Path, windows: list[str]) -> tuple[float, Path]:
    python, jars = _python("spark-stream"), _jars("peer_spark")
    schema = dict(avro.load("event"))
    ends = [f"end-{time.time_ns()}-{n}" for n in range(2)]
    for topic in ends:
        open_log(f"kafka://{feed.bootstrap}/{topic}?partitions=1").close()
    spec = {**_common(feed, out, windows), "topics": [warm.topic, feed.topic], "end_topics": ends, "jars": jars,
            "batch": _SPARK_BATCH, "schema": schema, "end_record": _far_event(schema).hex(),
            "reader_schema": {**schema, "fields": [f for f in schema["fields"] if f["name"] in ("user_id", "occurred_at")]}}
    took = _apart("spark", python, spec, out)
    return took["seconds"], out / "1"


def _beam_rowwise(feed: Feed, warm: Feed, out: Path, windows: list[str]) -> tuple[float, Path]:
    try:
        install.location("flink"), install.java()
    except UserError as error:
        raise _MissingError(str(error)) from error
    with flink.running(out.absolute() / "flink") as cluster:
        for number, each in enumerate((warm, feed)):
            began, stored = beam_rowwise.run(cluster, each.uri, out / str(number), windows, _DELAY_S, _CHECKPOINT_MS)
    return stored - began, out / "1"


_ENGINES: dict[str, Callable[[Feed, Feed, Path, list[str]], tuple[float, Path]]] = {
    "flink_sql": _flink_sql, "spark": _spark, "beam_rowwise": _beam_rowwise}


def _common(feed: Feed, out: Path, windows: list[str]) -> dict[str, Any]:
    return {"bootstrap": feed.bootstrap, "out": str(out.absolute()), "result": str(out.absolute() / "result.json"),
            "cores": os.cpu_count(), "delay_s": _DELAY_S, "windows": windows}


def _apart(name: str, python: str, spec: dict[str, Any], out: Path) -> dict[str, float]:
    """Runs an engine's script to its end; its output is in NAME.log."""
    (out / "spec.json").write_text(json.dumps(spec))
    script = Path(__file__).with_name(f"{name}.py")
    part = process.start(out.absolute(), name, [python, str(script), str((out / "spec.json").absolute())], parent=os.getpid(),
                         environment={"JAVA_TOOL_OPTIONS": _HEAP} if name == "flink_sql" else {})
    try:
        process.poll(lambda: not part.alive, _LONGEST_S, 0.2)
    finally:
        part.kill()
    if not Path(spec["result"]).exists():
        raise UserError(f"the engine {name} failed; its log is {part.log}, last lines:\n{part.tail()}")
    found: dict[str, float] = json.loads(Path(spec["result"]).read_text())
    return found


def _python(name: str) -> str:
    try:
        install.java()
        return peer_python(name)
    except UserError as error:
        raise _MissingError(str(error)) from error


def _jars(part: str) -> list[str]:
    try:
        folder = install.location(part)
    except UserError:
        outcome = install.install([part], lambda done: None)[0]
        if outcome.state == "failed":
            raise _MissingError(f"{part}: {outcome.reason}") from None
        folder = install.location(part)
    return [str(jar) for jar in sorted(folder.glob("*.jar")) if not jar.name.startswith("jsr305")]


def _far_event(schema: dict[str, Any]) -> bytes:
    """An event of no user of the benchmark, far after all of theirs."""
    event = {"event_id": "end", "user_id": "~", "item_id": "~", "event_type": "view", "occurred_at": 4_000_000_000_000_000,
             "categories": [], "attributes": {}, "schema_version": 1}
    with io.BytesIO() as record:
        fastavro.schemaless_writer(record, fastavro.parse_schema(dict(schema)), event)
        return record.getvalue()
