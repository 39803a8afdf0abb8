"""How long events took: what is counted at each stage, what a flush makes readable, what is told of the counters."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.metric_names import FRESHNESS_MS, by_segment
from transforms.beam.stream.freshness import (
    ACCEPTED,
    BOUNDS_S,
    Waiting,
    ages,
    cumulated,
    histogram,
    moments_of,
    quantiles,
    reached,
    stored,
    with_accepted,
)
from transforms.beam.stream.wire import pack, unpack

NOW = 1_790_000_000.0


def accepted(*seconds_ago):
    return pa.array([int((NOW - s) * 1e6) for s in seconds_ago], pa.timestamp("us", "UTC"))


def cells():
    return pa.record_batch({"row": pa.array(["a#u#x"])})


@given(st.lists(st.floats(0, 200), min_size=1, max_size=50))
def test_every_event_is_counted_once_where_it_belongs(seconds):
    counts = dict(cumulated(reached("read", accepted(*seconds), NOW), "read"))
    for bound in BOUNDS_S:
        least = sum(s <= bound - 0.011 for s in seconds)
        most = sum(s <= bound + 0.011 for s in seconds)
        assert least <= counts[f"{bound:g}"] <= most
    assert counts["+Inf"] == len(seconds)


def test_an_event_carries_the_moment_to_where_it_is_counted():
    batch = with_accepted(pa.record_batch({"user_id": pa.array(["a", "b", "c"])}), accepted(0.5, 3600, 0.2), NOW)
    moments = moments_of(unpack(pack(batch)))
    assert batch.schema.names == ["user_id", ACCEPTED] and moments[1] == 0
    assert ages(moments, NOW + 1)[[0, 2]].tolist() == [150, 120] and ages(moments, NOW)[1] > 6000
    assert ages(moments, NOW - 2)[0] == 0  # another machine's clock is behind
    assert len(moments_of(pa.record_batch({"x": [1]}))) == 0


def test_a_flush_tells_what_it_makes_readable_and_tells_it_once():
    waiting = Waiting()
    assert waiting.youngest_s(NOW) == math.inf
    for seconds in ((0.9, 0.9, 100), (0.4,)):
        waiting.add(moments_of(with_accepted(pa.record_batch({"x": [1] * len(seconds)}), accepted(*seconds), NOW)))
    assert waiting.youngest_s(NOW) == pytest.approx(0.4, abs=0.011)
    written = waiting.stamp(cells(), "user_stored")
    counters = stored(unpack(pack(written)), NOW + 0.2)
    assert dict(cumulated(counters, "user_stored"))["0.75"] == 1 and dict(cumulated(counters, "user_stored"))["1.25"] == 3
    assert dict(cumulated(counters, "user_stored"))["+Inf"] == 4
    assert counters[by_segment(FRESHNESS_MS, "user_stored")] == pytest.approx(1100 * 2 + 600 + 60_000, abs=50)
    assert not stored(waiting.stamp(cells(), "user_stored"), NOW) and not stored(cells(), NOW)


def test_quantiles_are_near_those_of_the_events():
    rng = np.random.default_rng(7)
    seconds = rng.gamma(4, 0.3, 20_000)
    told = quantiles(histogram("s", [np.round(seconds * 100).astype(np.int64)]), "s", (0.5, 0.9, 0.99))
    assert told == pytest.approx(np.quantile(seconds, (0.5, 0.9, 0.99)), rel=0.1)
    assert quantiles(histogram("s", [np.array([9_999])]), "s") == [math.inf, math.inf]
    assert quantiles({}, "s") is None and not histogram("s", [])
