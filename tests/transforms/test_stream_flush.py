"""When a bucket's cells are written: with the element that comes once they are due, by the timer in a quiet bucket, and before
rows go of which they are made."""

import itertools
from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_oracle import HOUR, ORIGIN, Event, batch, events
from stream_runner import OneBucket
from test_stream_state import cells_in, feature_cells, packed, plain_cells

from transforms.accumulators.events import Events
from transforms.accumulators.stream import state
from transforms.accumulators.stream.item import ItemState
from transforms.accumulators.stream.user import UserState
from transforms.beam.stream import bucket
from transforms.beam.stream.state import Rules
from transforms.ingest import END_OF_TIME


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


@settings(max_examples=40, deadline=None)
@given(events(40), st.data())
def test_cells_are_whole_however_far_the_horizon_runs_ahead_of_flushes(chosen, data):
    hours = data.draw(st.sampled_from([1, 3, 13]))
    chosen = [replace(one, time=one.time + number * hours * HOUR) for number, one in enumerate(chosen)]
    rules = Rules(lateness=HOUR, audit=data.draw(st.booleans()))
    with patch.object(state, "_SLACK", 0):  # rows are dropped as soon as half of them are old
        users, items = OneBucket.of_users(rules, flush_s=1e6), OneBucket.of_items(rules, flush_s=1e6)
        start = 0
        while start < len(chosen):
            some = chosen[start : start + data.draw(st.integers(1, 6))]
            start += len(some)
            users.bundle(("add", packed(some)))
            while users.messages:
                items.bundle(("add", users.messages.pop(0)))
            for runner in (users, items):
                if data.draw(st.booleans()):
                    runner.dies()
                runner.watermark(some[-1].time)
                if data.draw(st.integers(0, 3)) == 0:
                    runner.bundle(("flush", None))
        for runner in (users, items):
            runner.bundle(("end", END_OF_TIME))
    assert feature_cells(users) == plain_cells(chosen)
    assert {at: cell for at, cell in items.cells.items() if at[1] in ItemState.GROUPS} == plain_item_cells(chosen)


def plain_item_cells(chosen):
    """The item cells of states that are simply given every event once."""
    users, items = UserState((*UserState.GROUPS, *UserState.EXTRAS)), ItemState()
    users.add(Events(batch(chosen)))
    items.add(Events(batch(chosen)))
    items.add_pairs(users.take_pairs())
    return cells_in(items)


def event(number):
    return Event(f"e{number}", f"u{number}", "i1", "view", ORIGIN, None, None, ("a",))
