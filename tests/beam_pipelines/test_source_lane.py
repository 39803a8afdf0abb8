"""One reader on a real local log: where it begins and ends, what it does when the log grows, shrinks or goes away."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from source_world import NOON, SECOND, Reader, event, reading, record, views

from beam_pipelines.io import source_lane
from beam_pipelines.io.source import _Read, _ReadBounded, _ReadOnAndOn
from beam_pipelines.io.source_lane import Away, Lane, LogGap, close_lanes
from beam_pipelines.io.source_tracker import Span
from serving.eventlog import LogError
from serving.eventlog.local import LocalLog
from serving.eventlog.registry import SchemaRegistry


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LocalLog]:
    """A log of two partitions; close its readers too."""
    it = LocalLog(tmp_path / "log", 2, segment_bytes=2000)
    yield it
    it.close()
    for run, _ in list(source_lane._LANES):
        close_lanes(run)


def reader(log: LocalLog, index: int = 0, **fields: Any) -> Reader:
    kind: type[_Read] = _ReadOnAndOn if fields.get("stop") is None else _ReadBounded
    dofn = kind(reading(log.uri, run=f"{log.uri} {fields}", **fields))
    dofn.setup()
    return Reader(dofn, index)


def fill(log: LocalLog, partition: int, count: int, first: int = 0, written: int = NOON) -> None:
    """Records of one event each, a second apart in event time and in the log's time."""
    for i in range(first, first + count):
        log.append(partition, [record(event(f"p{partition}-{i}", NOON + i * SECOND))], written + i * SECOND)


def offsets(it: Reader, partition: int = 0) -> list[int]:
    assert set(it.positions.values()) <= {1}
    return sorted(o for p, o, _ in it.positions if p == partition)


def test_a_bounded_read_ends_with_what_was_there_when_it_began(log: LocalLog) -> None:
    fill(log, 0, 5)
    fill(log, 1, 3)
    it = reader(log, stop="end", poll_bytes=1)
    it.bundle()
    fill(log, 0, 4, first=5)
    it.until_done()
    assert (offsets(it, 0), offsets(it, 1)) == ([0, 1, 2, 3, 4], [0, 1, 2])


def test_the_readers_share_the_partitions(log: LocalLog) -> None:
    fill(log, 0, 2)
    fill(log, 1, 3)
    three = [reader(log, index, stop="end", readers=3).until_done() for index in range(3)]
    assert [sorted(it.positions) for it in three] == [[(0, o, 0) for o in range(2)], [(1, o, 0) for o in range(3)], []]


def test_a_reader_without_partitions_keeps_up_with_the_clock(log: LocalLog) -> None:
    it = reader(log, 2, readers=3)
    assert it.bundle() == 0
    it.bundle()
    assert it.watermark is not None and abs(it.watermark + 10 * SECOND - time.time_ns() // 1000) < 5 * SECOND


@pytest.mark.parametrize(("start", "first"), [("earliest", 0), ("latest", 6), (NOON + 4 * SECOND, 4), ({0: 2}, 2), ({1: 0}, 0)])
def test_where_a_read_begins(log: LocalLog, start: Any, first: int) -> None:
    fill(log, 0, 6)
    it = reader(log, start=start)
    it.bundle()
    fill(log, 0, 2, first=6)
    assert offsets(it.until_read(8 - first)) == list(range(first, 8))


def test_a_read_cannot_begin_after_the_end(log: LocalLog) -> None:
    with pytest.raises(LogGap, match="partition 1 ends at offset 0: no read can begin at 3"):
        reader(log, start={1: 3}).bundle()


@pytest.mark.parametrize(("stop", "end"), [({0: 4}, 4), (NOON + 3 * SECOND, 3), ({}, 1), ({0: 1}, 1), ({0: 0}, 1)])
def test_where_a_read_ends(log: LocalLog, stop: Any, end: int) -> None:
    fill(log, 0, 6)
    assert offsets(reader(log, start={0: 1}, stop=stop).until_done()) == list(range(1, end))


def test_a_record_that_crosses_no_stop_is_cut_out_of_a_block(log: LocalLog) -> None:
    log.append(0, [record(event(f"a{i}", NOON + i)) for i in range(9)], NOON)
    assert offsets(reader(log, stop={0: 4}).until_done()) == [0, 1, 2, 3]


def test_bad_records_become_dead_letters_at_their_position(log: LocalLog) -> None:
    log.append(0, [views(0, 2), b"no record", record(event("late", NOON), event("", NOON))], NOON)
    it = reader(log, stop="end").until_done()
    assert sorted(it.positions) == [(0, 0, 0), (0, 0, 1), (0, 2, 0)]
    assert sorted(it.dead) == [(0, 1, 0), (0, 2, 1)]


def test_a_schema_registry_that_is_away_is_waited_for(log: LocalLog) -> None:
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        log.append(0, [b"\x00\x00\x00\x00\x07" + b"body"], NOON)
        lane = Lane(reading(log.uri), 0)
        span = lane.step(Span(), 0).span
        assert lane._log is not None
        lane._log.registry = SchemaRegistry(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(Away):
            lane.step(span, 0)
    step = lane.step(span, 0)  # connected anew: a local log has no registry
    assert step.dead is not None and step.span.places[0].next == 1
    lane.close()


def test_the_watermark_follows_the_slowest_partition_and_never_goes_back(log: LocalLog) -> None:
    fill(log, 0, 5)
    fill(log, 1, 2)
    it = reader(log).until_read(7)
    assert it.watermark == NOON + SECOND - 10 * SECOND
    log.append(1, [record(event("old", NOON - 3600 * SECOND))], NOON)
    it.until_read(8)
    assert it.watermark == NOON + SECOND - 10 * SECOND


def test_progress_says_what_waits(log: LocalLog) -> None:
    fill(log, 0, 20)
    it = reader(log, poll_bytes=1, bundle_s=0.0)
    it.bundle()
    it.bundle()
    assert it.lag == 20 - it.positions.total() > 0
    it.until_read(20)
    assert it.lag == 0


def test_new_partitions_are_found_and_read_from_their_beginning(log: LocalLog) -> None:
    fill(log, 0, 2)
    it = reader(log, start="latest", discover_s=0.0)
    it.bundle()
    grown = LocalLog(log.path, 3)
    fill(grown, 2, 4)  # type: ignore[arg-type]
    grown.close()
    assert offsets(it.until_read(4), 2) == [0, 1, 2, 3]


def test_partitions_found_after_a_restart(log: LocalLog) -> None:
    fill(log, 0, 2)
    it = reader(log, discover_s=0.0).until_read(2)
    close_lanes(it.dofn._reading.run)  # type: ignore[attr-defined]
    grown = LocalLog(log.path, 4)
    fill(grown, 3, 1)
    grown.close()
    assert offsets(it.until_read(3), 3) == [0]


def test_what_retention_deleted_is_said_and_skipped(log: LocalLog, caplog: pytest.LogCaptureFixture) -> None:
    fill(log, 0, 12)
    it = reader(log, poll_bytes=1, bundle_s=0.0)
    it.until_read(1)
    seen = offsets(it)
    close_lanes(it.dofn._reading.run)  # type: ignore[attr-defined]
    earliest = log.trim(0, 9)
    assert earliest > len(seen)
    it.until_read(len(seen) + 12 - earliest)
    assert offsets(it) == [*seen, *range(earliest, 12)]
    assert f"partition 0: offsets {len(seen)} to {earliest - 1} were deleted" in caplog.text


def test_lost_records_are_counted(log: LocalLog) -> None:
    fill(log, 0, 12)
    earliest = log.trim(0, 9)
    lane = Lane(reading(log.uri, start={0: 1}), 0)
    span = lane.step(Span(), 0).span
    step = lane.step(span, 0)
    assert [(gap.partition, gap.first, gap.end) for gap in step.lost] == [(0, 1, earliest)]
    assert step.span.places[0].next == earliest
    lane.close()


def test_a_gap_may_be_made_to_fail(log: LocalLog) -> None:
    fill(log, 0, 12)
    log.trim(0, 9)
    it = reader(log, start={0: 1}, on_gap="fail")
    with pytest.raises(LogError, match=r"offsets 1 to .* were deleted"):
        it.until_read(1)


def test_a_gap_beyond_the_stop_ends_the_read(log: LocalLog) -> None:
    fill(log, 0, 12)
    log.trim(0, 9)
    assert offsets(reader(log, start={0: 0}, stop={0: 1}).until_done()) == []


def test_a_log_that_goes_away_is_waited_for(log: LocalLog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fill(log, 0, 3)
    fill(log, 1, 1)
    it = reader(log).until_read(4)
    close_lanes(it.dofn._reading.run)  # type: ignore[attr-defined]
    hidden = log.path.with_name("hidden")
    log.path.rename(hidden)
    for _ in range(3):
        assert it.bundle() == 0
    assert it.watermark == NOON - 10 * SECOND, "time that nobody saw is not quiet time"
    hidden.rename(log.path)
    fill(log, 0, 2, first=3)
    assert offsets(it.until_read(6)) == [0, 1, 2, 3, 4]
    assert "cannot read" in caplog.text and "the log is back" in caplog.text


def test_a_log_that_stays_away_or_broken_is_an_error_in_the_end(log: LocalLog, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane(reading(log.uri), 0)
    span = lane.step(Span(), 0).span
    lane.close()
    (log.path / "log.json").unlink()
    with pytest.raises(Away):
        lane.step(span, 0)
    monkeypatch.setattr(source_lane, "_PATIENCE_S", 0.0)
    with pytest.raises(LogError, match="no log at"):
        lane.step(span, 0)


def test_a_log_that_never_was_is_an_error_at_once(tmp_path: Path) -> None:
    lane = Lane(reading(f"dir:{tmp_path}/nothing"), 0)
    with pytest.raises(LogError, match="no log at"):
        lane.step(Span(), 0)


def test_waits_grow_and_are_never_equal(log: LocalLog) -> None:
    lane = Lane(reading(log.uri), 0)
    span = lane.step(Span(), 0).span
    lane.close()
    log.path.rename(log.path.with_name("hidden"))
    waits = []
    for _ in range(12):
        with pytest.raises(Away) as away:
            lane.step(span, 0)
        waits.append(away.value.wait_s)
    log.path.with_name("hidden").rename(log.path)
    assert waits[0] < 0.3 and 5 <= waits[-1] <= 10 and len(set(waits)) == len(waits)


def test_a_partition_ahead_in_event_time_waits(log: LocalLog) -> None:
    for i in range(40):
        log.append(0, [record(event(f"fast{i}", NOON + i * 60 * SECOND))], NOON + 10**13)
        log.append(1, [record(event(f"slow{i}", NOON + i * SECOND))], NOON + 10**13)
    it = reader(log, poll_bytes=1, skew_s=600.0, bundle_s=0.0, idle_s=None)
    while it.positions.total() < 80:
        it.bundle()
        assert it.span is not None
        fast, slow = it.span.places[0], it.span.places[1]
        if 0 < slow.next < 40:
            assert fast.newest - slow.newest <= 602 * SECOND + 60 * SECOND
    assert (offsets(it, 0), offsets(it, 1)) == (list(range(40)), list(range(40)))


def test_a_reader_with_nothing_to_read_costs_a_bundle_and_no_more(log: LocalLog) -> None:
    it = reader(log, bundle_s=0.2)
    started = time.monotonic()
    assert it.bundle() == 0
    assert 0.15 < time.monotonic() - started < 2
    assert it.span is not None
