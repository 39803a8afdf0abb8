"""The windows of the stream states against stock Beam, one element per event: FixedWindows, SlidingWindows, Sessions."""

from collections import Counter

import apache_beam as beam
import numpy as np
import pytest
import stream_oracle as oracle
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import FixedWindows, Sessions, SlidingWindows, TimestampedValue

from schemas import stream_cells
from transforms.accumulators.events import Events
from transforms.accumulators.stream.user import UserState

START = 1_700_000_000 - 1_700_000_000 % 3_600


@pytest.fixture(scope="module")
def events():
    """500 events of 12 users in 5 hours, at whole seconds; some exactly a gap, a pane or a window apart."""
    rng = np.random.default_rng(3)
    seconds = np.where(rng.random(500) < 0.3, rng.integers(0, 60, 500) * 300, rng.integers(0, 18_000, 500))
    kinds = [oracle.NAMES[k] for k in rng.integers(0, len(oracle.NAMES), 500)]
    return [oracle.Event(f"e{k}", f"u{u}", "i", kind, (START + int(s)) * 1_000_000, None, None, ())
            for k, (u, kind, s) in enumerate(zip(rng.integers(0, 12, 500), kinds, seconds, strict=True))]


@pytest.fixture(scope="module")
def state(events):
    users = UserState(["user_panes"])
    for start in range(0, len(events), 37):
        users.add(Events(oracle.batch(events[start : start + 37])))
    return users


class _WithWindow(beam.DoFn):
    def process(self, counted, window=beam.DoFn.WindowParam):
        key, count = counted
        yield (*key, int(window.start), int(window.end), count)


def check(events, windows, key, expected):
    """Asserts that stock Beam counts ``expected``: rows (*key, window start, window end, events), in seconds."""
    def same(got):
        assert sorted(got) == sorted(expected)

    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as p:
        counted = (p | "Events" >> beam.Create(events)
                   | "Event times" >> beam.Map(lambda e: TimestampedValue((key(e), 1), e.time // 1_000_000))
                   | "Windows" >> beam.WindowInto(windows) | "Count" >> beam.CombinePerKey(sum)
                   | "Name windows" >> beam.ParDo(_WithWindow()))
        assert_that(counted, same)


def test_five_minute_panes_are_fixed_windows(events, state):
    rows = state.final(1 << 60, 0)["stream_panes"].to_pylist()
    found = [(r["user_id"], n, int(r["start"].timestamp()), int(r["start"].timestamp()) + 300, r[f"count_{n}"])
             for r in rows for n in oracle.NAMES if r[f"count_{n}"]]
    check(events, FixedWindows(300), lambda e: (e.user, e.kind), found)


def test_hours_are_sliding_windows(events):
    """The 1-hour count as of the last microsecond of a pane is the sliding window that ends with the pane."""
    users, found, ordered = UserState(["user_panes"]), [], sorted(events, key=lambda e: e.time)
    for end in range(START + 300, START + 18_000 + 3_600 + 300, 300):
        now = [e for e in ordered if end - 300 <= e.time // 1_000_000 < end]
        if now:
            users.add(Events(oracle.batch(now)))
        for cells in users.cells():
            values = stream_cells.extract_rings("user_panes", cells.values, end * 1_000_000 - 1)
            for user, of_user in zip(cells.entities.ids.to_pylist(), values.tolist(), strict=True):
                found += [(user, n, end - 3_600, end, count) for n, count in zip(oracle.NAMES, of_user[1::2], strict=True)
                          if count]
    check(events, SlidingWindows(3_600, 300), lambda e: (e.user, e.kind), found)


def test_sessions_are_session_windows(events, state):
    rows = state.final(1 << 60, 0)["stream_sessions"]
    found = [(u, s // 1_000_000, e // 1_000_000 + 1_800, n) for u, s, e, n in zip(
        rows.column("user_id").to_pylist(), rows.column("start").cast("int64").to_pylist(),
        rows.column("end").cast("int64").to_pylist(), rows.column("events").to_pylist(), strict=True)]
    assert max(Counter(u for u, *_ in found).values()) > 2
    check(events, Sessions(1_800), lambda e: (e.user,), found)
