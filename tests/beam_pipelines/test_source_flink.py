"""The source on a Flink cluster: a worker is killed in the middle, and every event is in the state exactly once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.userstate import BagStateSpec
from source_world import NOON, SECOND, views

from beam_pipelines.errors import UserError
from beam_pipelines.io.source import ReadLog
from beam_pipelines.services import flink
from beam_pipelines.services.install import java, location
from serving.eventlog import open_log

PARTITIONS = 4
_PACK = 50


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[flink.Cluster]:
    """A Flink cluster with two Python workers."""
    try:
        location("flink"), java()
    except UserError as error:
        pytest.skip(str(error))
    with flink.running(tmp_path / "flink") as running:
        yield running


def counting(uri: str, notes: Path) -> Any:
    """Log -> state by partition -> a line of what the state holds, after every batch. Pickled by value."""
    from json import dumps
    from os import getpid

    class Remember(beam.DoFn):  # type: ignore[misc]
        SEEN = BagStateSpec("seen", beam.coders.BytesCoder())

        def process(self, element: Any, seen: Any = beam.DoFn.StateParam(SEEN)) -> None:
            partition, offsets = element
            for offset in offsets:
                seen.add(b"%d" % offset)
            held = list(seen.read())
            with (notes / f"{partition}-{getpid()}").open("a") as file:
                file.write(dumps([partition, len(held), len(set(held))]) + "\n")

    def by_partition(batch: Any) -> Any:
        partitions, offsets = batch.column("partition").to_numpy(), batch.column("offset").to_numpy()
        index = batch.column("index").to_numpy()
        for partition in sorted(set(partitions.tolist())):
            mine = partitions == partition
            yield partition, (offsets[mine] * 1000 + index[mine]).tolist()

    def build(p: beam.Pipeline) -> None:
        events = (p | ReadLog(uri, readers=2)).events
        (events | "By partition" >> beam.FlatMap(by_partition) | "Remember" >> beam.ParDo(Remember()))
    return build


def held(notes: Path) -> dict[int, tuple[int, int]]:
    """By partition, the newest (events, distinct events) that its state held."""
    newest: dict[int, tuple[float, int, int]] = {}
    for path in notes.iterdir():
        lines = path.read_text().splitlines()
        if lines:
            partition, events, distinct = json.loads(lines[-1])
            newest[partition] = max(newest.get(partition, (0.0, 0, 0)), (path.stat().st_mtime, events, distinct))
    return {partition: value[1:] for partition, value in newest.items()}


@pytest.mark.slow
def test_a_killed_worker_neither_loses_nor_doubles(cluster: flink.Cluster, tmp_path: Path) -> None:
    log = open_log(f"dir:{tmp_path}/log?partitions={PARTITIONS}")
    notes = tmp_path / "notes"
    notes.mkdir()

    def fill(packs: int, first: int) -> None:
        for i in range(first, first + packs):
            log.append(i % PARTITIONS, [views(i * _PACK, _PACK, NOON + i * SECOND)], NOON + i * SECOND)

    def wait_for(packs: int, seconds: float = 120) -> None:
        until, wanted = time.monotonic() + seconds, (packs // PARTITIONS * _PACK,) * 2
        while held(notes) != dict.fromkeys(range(PARTITIONS), wanted):
            assert time.monotonic() < until, f"{held(notes)}, not {wanted} each"
            time.sleep(0.1)

    fill(40, 0)
    p = beam.Pipeline(options=PipelineOptions(cluster.pipeline_options(job="source", checkpoint_ms=1000)))
    counting(f"dir:{tmp_path}/log", notes)(p)
    result = p.run()
    try:
        wait_for(40)
        for i in range(10):
            fill(8, 40 + 8 * i)
            if i == 5:
                cluster.kill_worker()
            time.sleep(0.3)
        wait_for(120)
    finally:
        result.cancel()
        log.close()
