"""What the streaming job tells and writes: patience with the store, offsets, progress, the watermark, final rows."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pytest
from source_world import NOON, SECOND
from stream_job_world import HOUR

from beam_pipelines.io import source
from beam_pipelines.io.stream_audit import part_path, read_parts, write_part
from beam_pipelines.io.stream_sink import AWAY, StoreAwayError, write_patiently
from beam_pipelines.io.stream_status import Probe, _Offsets, _summed, merged
from schemas.arrow import TIMESTAMP
from schemas.metric_names import EVENTS_READ, FRESHNESS, MOST_SEGMENTS, by_segment
from schemas.tables import STREAM_PANES
from serving.breaker import Breaker
from serving.stores.base import StoreError
from transforms.beam.stream.state import Final


class _Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_a_store_that_is_away_for_a_while_is_waited_for() -> None:
    left, retries, clock = [7], [], _Time()
    breaker = Breaker("store", AWAY, clock=clock)

    def write() -> int:
        if left[0]:
            left[0] -= 1
            raise StoreError("away")
        return 5

    assert write_patiently(write, breaker, 60.0, lambda: retries.append(1), clock, clock.sleep) == 5
    assert len(retries) == 7
    assert all(pause <= clock.slept[i] <= 1.25 * pause for i, pause in enumerate([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0]))
    assert write_patiently(lambda: 6, breaker, 60.0, lambda: None, clock, clock.sleep) == 6 and len(clock.slept) == 7


def test_a_store_that_stays_away_fails_the_bundle_in_the_end_and_the_next_one_does_not_hurry() -> None:
    tried, clock = [], _Time()
    breaker = Breaker("store", AWAY, clock=clock)

    def write() -> int:
        tried.append(clock.now)
        raise StoreError("away")

    for _ in range(3):
        with pytest.raises(StoreAwayError, match="refused every write for 20 s: away"):
            write_patiently(write, breaker, 20.0, lambda: None, clock, clock.sleep)
    gaps = [after - before for before, after in itertools.pairwise(tried)]
    assert all(pause <= gap <= 1.26 * pause for gap, pause in zip(gaps, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2], strict=False))
    assert len(gaps) > 9 and min(gaps[6:]) >= 3.99


def test_offsets_and_sizes_are_the_newest_in_whatever_order_they_come() -> None:
    parts = [{"events_read": 2, "offsets": {"0": [5, 3], "1": [1, 0]}}, {"events_read": 3}, {"offsets": {"0": [9, 0]}},
             {"offsets": {"0": [9, 2], "2": [0, 7]}, "state_bytes": {"user/3": [20, 5_000]}},
             {"events_late": 1, "state_bytes": {"user/3": [40, 900]}}]
    for order in itertools.permutations(parts):
        counters, newest = merged(json.loads(json.dumps(part)) for part in order)
        assert counters == {"events_read": 5, "events_late": 1}
        offsets = {"0": [9, 2], "1": [1, 0], "2": [0, 7]}
        assert newest == {"offsets": offsets, "state_bytes": {"user/3": [40, 900]}}
        again = merged([{**counters, **newest}, {"offsets": {"2": [7, 0]}}])
        assert again == (counters, {**newest, "offsets": {**offsets, "2": [7, 0]}})


def test_devices_without_end_are_counted_as_others_beyond_a_cap() -> None:
    parts = [{EVENTS_READ: 50, by_segment(FRESHNESS, "read", f"{start}"): 1,
              **{by_segment(EVENTS_READ, "view", f"Mozilla/{i}.0"): 1 for i in range(start, start + 50)}}
             for start in range(0, 10_000, 50)]
    bag = _Kept([json.dumps(part).encode() for part in parts[:100]])
    first, _ = _summed(bag)
    assert len(bag.values) == 1
    bag.values[:0] = [json.dumps(part).encode() for part in parts[100:]]  # bags have no order
    counters, _ = _summed(bag)
    segments = {name: n for name, n in counters.items() if name.startswith(f"{EVENTS_READ}/")}
    assert len(segments) == MOST_SEGMENTS + 1 and sum(segments.values()) == counters[EVENTS_READ] == 10_000
    assert segments[by_segment(EVENTS_READ, "view", "other")] == 10_000 - MOST_SEGMENTS
    assert all(counters[name] >= n for name, n in first.items())  # none goes back
    assert sum(name.startswith(FRESHNESS) for name in counters) == len(parts)


class _Kept:
    def __init__(self, values: list[bytes]) -> None:
        self.values = values

    def read(self) -> list[bytes]:
        return self.values

    def add(self, value: bytes) -> None:
        self.values.append(value)

    def clear(self) -> None:
        self.values = []


def test_progress_is_told_once_a_second_and_when_all_is_read() -> None:
    doing = _Offsets("job")
    doing.setup()
    told = [json.loads(row)["offsets"] for lag in (5, 4, 0, 0, 3, 0) for _, row in doing.process(_progress_of(9 - lag, lag))]
    assert told == [{"1": [4, 5], "3": [0, 0]}, {"1": [9, 0], "3": [0, 0]}]
    assert not list(doing.process(_progress_of(0, 0).slice(0, 0)))


def _progress_of(place: int, lag: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([1, 3], pa.int32()), pa.array([place, 0]), pa.array([lag, 0]),
                                       pa.nulls(2, TIMESTAMP)], schema=source.PROGRESS_SCHEMA)


def test_a_probe_finds_the_watermark() -> None:
    probe, watermark = Probe(at=NOON), NOON + 5 * HOUR + 17 * SECOND
    for _ in range(60):
        while probe.at <= watermark:
            probe.reached()
        probe.rest()
    assert probe.known is not None and watermark - SECOND <= probe.known <= watermark


def test_a_part_is_what_it_was_written_as_last(tmp_path: Path) -> None:
    one = {f.name: [1] for f in STREAM_PANES.schema} | {"user_id": ["u1"]}
    full = pa.RecordBatch.from_pydict(one, schema=STREAM_PANES.schema)
    write_part((3, Final("stream_panes", 0, full)), str(tmp_path))
    write_part((3, Final("stream_panes", 0, full)), str(tmp_path))
    assert read_parts(tmp_path, "stream_panes").num_rows == 1
    write_part((3, Final("stream_panes", 0, full.slice(0, 0))), str(tmp_path))
    assert not part_path(tmp_path, "stream_panes", 3, 0).exists()
