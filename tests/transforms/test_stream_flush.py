"""When a bucket's cells are written: with the element that comes once they are due, by the timer in a quiet bucket."""

import itertools

import pytest
from stream_oracle import ORIGIN, Event
from stream_runner import OneBucket
from test_stream_state import packed

from transforms.beam.stream import bucket
from transforms.beam.stream.state import Rules


class Clock:
    now = 1_000.0

    def time(self):
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bucket, "time", clock)
    return clock


def test_the_element_that_comes_nearest_to_when_cells_are_due_writes_them(clock):
    runner, written = OneBucket.of_users(Rules(), flush_s=1.0), []
    for after in (0.0, 0.4, 0.9, 1.0, 1.3, 1.9, 2.2, 2.3):
        clock.now = 1_000.0 + after
        runner.cells.clear()
        runner.bundle(("add", packed([event(round(after * 10))])))
        written.append(len({row for row, _ in runner.cells}))
    # The bucket's turn comes every whole second; an element of the eighth of a second before it is the nearest to it.
    assert written == [0, 0, 3, 0, 0, 3, 0, 0]


@pytest.mark.parametrize(("cost_s", "flushes"), [(0.0, 30), (0.02, 30), (0.1, 9), (9.0, 3)])
def test_dear_flushes_become_rarer(clock, monkeypatch, cost_s, flushes):
    spent = itertools.count()
    monkeypatch.setattr(bucket, "thread_time", lambda: next(spent) * cost_s)
    runner, found = OneBucket.of_users(Rules(), flush_s=1.0), 0
    for tenth in range(300):
        clock.now = 1_000.0 + tenth / 10
        runner.cells.clear()
        runner.bundle(("add", packed([event(tenth)])))
        found += bool(runner.cells)
    assert flushes - 2 <= found <= flushes + 2  # of 30 seconds: 3 % of the CPU, and never rarer than every 10 s


def test_a_failed_bundle_forgets_that_cells_were_written(clock):
    runner = OneBucket.of_users(Rules(), flush_s=1.0)
    runner.bundle(("add", packed([event(1)])))
    clock.now += 1.5
    runner.bundle(("add", packed([event(2)])), fails=True)
    assert not runner.cells
    runner.bundle(("add", packed([event(2)])))
    clock.now += 1.5
    runner.bundle(("add", packed([event(3)])))
    assert len({row for row, _ in runner.cells}) == 3


def test_a_flush_is_one_batch_of_every_group():
    runner = OneBucket.of_users(Rules(), flush_s=0)
    batches = []
    emit = runner._emit
    runner._emit = lambda output: (batches.append(output) if hasattr(output, "num_rows") else None, emit(output))
    runner.bundle(("add", packed([event(1), event(2)])))
    assert len(batches) == 1
    assert {"user_panes", "user_recent", "user_session"} <= set(batches[0].column("group").to_pylist())


def event(number):
    return Event(f"e{number}", f"u{number}", "i1", "view", ORIGIN, None, None, ("a",))
