"""Where the watermark stands, and which partitions wait for others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from beam_pipelines.io.source_clock import STUCK_MICROS, EventClock, newest_events
from beam_pipelines.io.source_tracker import Place
from schemas.arrow import TIMESTAMP
from transforms.records import Records

S = 1_000_000
MINUTE = 60 * S
NOW = 1_770_000_000 * S
OLD = NOW - 300 * 86_400 * S
DELAY, IDLE, SKEW = 10 * S, 10 * S, 10 * MINUTE


def clock(idle: int | None = IDLE) -> EventClock:
    return EventClock(DELAY, idle, SKEW)


def run(it: EventClock, places: dict[int, Place], seconds: float, now: int = NOW, gave: tuple[int, ...] = ()) -> int:
    """Polls five times a second with the same outcome; the time after the last poll."""
    for _ in range(int(seconds * 5)):
        it.polled(places, gave, now)
        now += S // 5
    it.polled(places, gave, now)
    return now


def test_the_watermark_is_behind_the_slowest_partition() -> None:
    it, places = clock(), {0: Place(5, newest=NOW, high=9), 1: Place(5, newest=NOW - 7 * S, high=9)}
    it.polled(places, {0, 1}, NOW)
    assert it.watermark(places, NOW) == NOW - 17 * S


def test_unknown_until_every_partition_gave_an_event_or_is_known_to_be_idle() -> None:
    it, places = clock(), {0: Place(5, newest=OLD, high=9), 1: Place(0, high=4)}
    it.polled(places, {0}, NOW)
    assert it.watermark(places, NOW) is None
    later = run(it, places, 60)
    assert it.watermark(places, later) is None, "records wait in partition 1: nothing is known of their times"


def test_an_empty_topic_and_a_reader_without_partitions_hold_nothing_back() -> None:
    it, places = clock(), {0: Place(0), 1: Place(0)}
    it.polled(places, (), NOW)
    assert it.watermark(places, NOW) is None
    later = run(it, places, 11)
    assert it.watermark(places, later) == later - DELAY
    assert clock().watermark({}, NOW) == NOW - DELAY


def test_empty_polls_of_an_old_backlog_never_jump_to_now() -> None:
    # While a broker prepares its answer a poll is empty; taking that for idleness once made 80 of 208 windows late.
    it, places = clock(), {0: Place(500, newest=OLD, high=2_000), 1: Place(2_000, newest=OLD + MINUTE, high=2_000)}
    later = run(it, places, 120)
    assert it.watermark(places, later) == OLD - DELAY


def test_a_replay_that_catches_up_between_two_appends_does_not_jump() -> None:
    it, now = clock(), NOW
    for step in range(100):
        places = {0: Place(step, newest=OLD + step * MINUTE, high=step)}
        it.polled(places, {0}, now)
        now = run(it, places, 5, now)
        assert it.watermark(places, now) == OLD + step * MINUTE - DELAY


def test_time_in_which_nobody_polled_is_not_quiet_time() -> None:
    it, places = clock(), {0: Place(7, newest=OLD, high=7)}
    it.polled(places, {0}, NOW)
    it.polled(places, (), NOW + 3600 * S)  # the runner held the bundles back, or the log was away
    assert it.watermark(places, NOW + 3600 * S) == OLD - DELAY
    later = run(it, places, 11, NOW + 3600 * S)
    assert it.watermark(places, later) == later - DELAY


def test_an_idle_partition_follows_the_clock_and_the_others_count() -> None:
    it = clock()
    places = {0: Place(7, newest=NOW - MINUTE, high=7), 1: Place(3, newest=NOW, high=9)}
    later = run(it, places, 20, gave=(1,))
    places[1] = places[1]._replace(newest=later - 3 * S)
    assert it.watermark(places, later) == later - 3 * S - DELAY


def test_never_idle_when_asked_so() -> None:
    it, places = clock(idle=None), {0: Place(7, newest=OLD, high=7)}
    later = run(it, places, 600)
    assert it.watermark(places, later) == OLD - DELAY


def test_dead_letters_alone_do_not_hold_the_watermark() -> None:
    it, now = clock(), NOW
    for offset in range(60):  # a record a second, none of them valid
        places = {0: Place(offset, high=offset)}
        now = run(it, places, 1, now)
    assert it.watermark(places, now) == now - DELAY


def test_a_partition_read_to_its_stop_does_not_count() -> None:
    it, places = clock(), {0: Place(9, 9, OLD, 9), 1: Place(3, 9, OLD + MINUTE, 9)}
    it.polled(places, {1}, NOW)
    assert it.watermark(places, NOW) == OLD + MINUTE - DELAY


def test_a_partition_that_runs_ahead_waits_until_half_the_gap_is_left() -> None:
    it = clock()
    slow, fast = Place(1, newest=OLD, high=99), Place(50, newest=OLD + 11 * MINUTE, high=99)
    assert it.pause({0: slow, 1: fast}, NOW) == {1}
    assert it.pause({0: slow._replace(newest=OLD + 5 * MINUTE), 1: fast}, NOW) == {1}
    assert it.pause({0: slow._replace(newest=OLD + 6 * MINUTE), 1: fast}, NOW) == frozenset()
    assert it.pause({0: slow._replace(newest=OLD + 6 * MINUTE), 1: fast}, NOW) == frozenset(), "it went on"


def test_nobody_waits_for_an_idle_partition() -> None:
    places = {0: Place(1, newest=OLD, high=1), 1: Place(50, newest=NOW, high=99)}
    assert clock().pause(places, NOW) == frozenset()


def test_a_partition_not_read_yet_comes_first() -> None:
    places = {0: Place(0, high=99), 1: Place(50, newest=OLD, high=99)}
    assert clock().pause(places, NOW) == {1}


def test_nobody_waits_for_a_backlog_that_cannot_be_read() -> None:
    it = clock()
    places = {0: Place(1, newest=OLD, high=99), 1: Place(50, newest=NOW, high=99)}
    it.polled(places, (), NOW)
    assert it.pause(places, NOW) == {1}
    later = run(it, places, STUCK_MICROS // S + 1)
    assert it.pause(places, later) == frozenset()


def test_a_waiting_partition_is_never_idle() -> None:
    it, places = clock(), {0: Place(1, newest=OLD, high=99), 1: Place(50, newest=OLD + 60 * MINUTE, high=50)}
    assert it.pause(places, NOW) == {1}
    later = run(it, places, 30, gave=(0,))
    assert it.watermark(places, later) == OLD - DELAY
    assert not it.is_idle(1, places[1], later)


def poll(partitions: list[int], occurred: list[int], written: int) -> tuple[pa.RecordBatch, Records]:
    events = pa.RecordBatch.from_pydict({"partition": pa.array(partitions, pa.int32()),
                                         "occurred_at": pa.array(occurred, pa.int64()).cast(TIMESTAMP)})
    n = len(partitions)
    return events, Records(np.zeros(n, np.uint8), np.arange(1, n + 1), np.array(partitions, np.int32), np.arange(n),
                           np.full(n, written))


def test_a_bogus_future_event_does_not_count() -> None:
    events, records = poll([0, 0, 1], [NOW - S, NOW + 86_400 * S, NOW - 3 * S], written=NOW)
    assert newest_events(events, records, NOW) == {0: NOW - S, 1: NOW - 3 * S}
    events, records = poll([0], [NOW + 3600 * S], written=NOW)
    assert newest_events(events, records, NOW) == {}


def test_a_clock_that_is_ahead_does_not_make_others_late() -> None:
    events, records = poll([0, 0], [NOW - S, NOW + 9 * MINUTE], written=NOW)
    assert newest_events(events, records, NOW) == {0: NOW}


def test_a_log_without_times_is_held_to_now() -> None:
    events, records = poll([0, 0], [NOW - S, NOW + 3600 * S], written=-1)
    assert newest_events(events, records, NOW) == {0: NOW - S}


def test_old_events_replayed_now_count_by_their_own_time() -> None:
    events, records = poll([0, 0], [OLD, OLD - S], written=NOW)
    assert newest_events(events, records, NOW) == {0: OLD}
