"""The source on real runners: FnApiRunner to an end, Prism without one; over the local log and over Kafka."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from source_world import NOON, SECOND, Reader, event, reading, record, views

from beam_pipelines.errors import UserError
from beam_pipelines.io.source import DEAD, ReadLog, _ReadOnAndOn
from beam_pipelines.services import kafka, prism
from beam_pipelines.services.install import java, location
from schemas import metric_names
from serving.eventlog import EventLog, open_log

PARTITIONS = 3


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka.Broker]:
    """A Kafka broker."""
    pytest.importorskip("confluent_kafka", reason="needs the Kafka client: pip install 'beamrec[stream]'")
    try:
        location("kafka"), java()
    except UserError as error:
        pytest.skip(str(error))
    with kafka.running(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture(scope="module")
def prism_flags(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Beam's flags for a Prism server."""
    try:
        prism.binary()
    except UserError as error:
        pytest.skip(str(error))
    with prism.running(tmp_path_factory.mktemp("prism")) as server:
        yield server.pipeline_options()


@pytest.fixture(params=["local", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventLog]:
    """A new log of PARTITIONS partitions."""
    if request.param == "local":
        uri = f"dir:{tmp_path}/log"
    else:
        uri = f"kafka://{request.getfixturevalue('broker').bootstrap}/source-{os.getpid()}-{time.monotonic_ns()}"
    opened = open_log(f"{uri}?partitions={PARTITIONS}")
    yield opened
    opened.close()


def uri_of(log: EventLog) -> str:
    return log.uri.partition("?")[0]


def fill(log: EventLog, records: int, first: int = 0) -> None:
    """Packs of five events, one event that is refused and one record that is none, over the partitions."""
    for i in range(first, first + records):
        log.append(i % PARTITIONS, [views(10 * i, 5, NOON + i * SECOND), record(event("", NOON))], NOON + i * SECOND)
    log.append(0, [b"no record"], NOON)


def positions(batch: Any) -> list[tuple[int, int, int]]:
    return list(zip(*(batch.column(name).to_pylist() for name in ("partition", "offset", "index")), strict=True))


def test_a_bounded_read_gives_every_event_once_and_counts(log: EventLog, tmp_path: Path) -> None:
    fill(log, 30)
    good, dead = tmp_path / "good", tmp_path / "dead"
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as p:
        read = p | ReadLog(uri_of(log), readers=2, stop="end", bundle_s=0.0, poll_bytes=1)
        read.events | "Write events" >> beam.ParDo(_Note(good))
        read[DEAD] | "Write dead letters" >> beam.ParDo(_Note(dead))
    found = noted(good)
    assert len(found) == 150 and set(found.values()) == {1}
    assert len(noted(dead)) == 31 and set(noted(dead).values()) == {1}
    counters = {m.key.metric.name: m.committed for m in
                p.result.metrics().query(MetricsFilter().with_namespace(metric_names.NAMESPACE))["counters"]}
    assert counters[metric_names.EVENTS_READ] == 181
    assert counters[metric_names.RECORDS_READ] == 61
    assert counters[metric_names.EVENTS_REJECTED] == 31
    assert counters[metric_names.rejected("missing_event_id")] == 30
    gauges = {m.key.metric.name for m in p.result.metrics().query()["gauges"]}  # of which this runner keeps the first value
    assert gauges == {metric_names.lag(partition) for partition in range(PARTITIONS)}


def test_an_unbounded_read_checkpoints_and_follows_the_log(log: EventLog, prism_flags: list[str], tmp_path: Path) -> None:
    fill(log, 12)
    good, marks = tmp_path / "good", tmp_path / "marks"
    p = beam.Pipeline(options=PipelineOptions(prism_flags))
    read = p | ReadLog(uri_of(log), readers=2, bundle_s=0.1, poll_bytes=1)
    read.events | "Write events" >> beam.ParDo(_Note(good))
    read.events | "Key" >> beam.Map(_keyed) | "Timer" >> beam.ParDo(_WhenOver(NOON + 60 * SECOND, marks))
    result = p.run()
    try:
        for packs in (12, 24, 36):
            wait_for(lambda packs=packs: noted(good).total() == 5 * packs, 60)  # type: ignore[misc]
            fill(log, 12, first=packs)
        wait_for(lambda: noted(good).total() == 240, 60)
        time.sleep(0.5)
        assert not marks.exists(), "event time is not that far yet"
        for partition in range(PARTITIONS):
            log.append(partition, [record(event(f"later{partition}", NOON + 90 * SECOND))], NOON + 90 * SECOND)
        wait_for(lambda: marks.exists() and noted(good).total() == 243, 60)
    finally:
        result.cancel()
    assert set(noted(good).values()) == {1}


def test_a_broker_that_is_away_loses_nothing(broker: kafka.Broker) -> None:
    log = open_log(f"kafka://{broker.bootstrap}/away-{time.monotonic_ns()}?partitions={PARTITIONS}")
    fill(log, 6)
    dofn = _ReadOnAndOn(reading(uri_of(log), idle_s=5.0))
    dofn.setup()
    reader = Reader(dofn).until_read(30)
    before = reader.watermark
    broker.stop()
    log.close()
    until = time.monotonic() + 8
    while time.monotonic() < until:
        assert reader.bundle() == 0
    assert reader.watermark == before, "time in which nobody could look is not quiet time"
    broker.start()
    log = open_log(log.uri)
    fill(log, 6, first=6)
    reader.until_read(60, bundles=2000)
    assert set(reader.positions.values()) == {1} and len(reader.positions) == 60
    dofn.teardown()
    log.close()


def noted(path: Path) -> Counter[str]:
    return Counter(path.read_text().splitlines() if path.exists() else [])


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.05)


def _keyed(batch: Any) -> tuple[str, int]:
    return "all", batch.num_rows


class _Note(beam.DoFn):  # type: ignore[misc]
    def __init__(self, path: Path) -> None:
        self._path = path

    def process(self, batch: Any) -> None:
        with self._path.open("a") as file:
            file.write("".join(f"{position}\n" for position in positions(batch)))


class _WhenOver(beam.DoFn):  # type: ignore[misc]
    """Writes a file once the watermark has passed a time."""

    TIMER = beam.transforms.userstate.TimerSpec("over", beam.transforms.timeutil.TimeDomain.WATERMARK)

    def __init__(self, micros: int, path: Path) -> None:
        self._micros, self._path = micros, path

    def process(self, element: Any, timer: Any = beam.DoFn.TimerParam(TIMER)) -> None:
        timer.set(beam.utils.timestamp.Timestamp(micros=self._micros))

    @beam.transforms.userstate.on_timer(TIMER)
    def over(self) -> None:
        self._path.touch()
