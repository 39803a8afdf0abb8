"""Every record is given exactly once, however a runner splits, checkpoints and loses bundles."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_world import NOON, Reader, reading, views

from beam_pipelines.io.source import _ReadBounded
from beam_pipelines.io.source_lane import close_lanes
from beam_pipelines.io.source_tracker import FOR_EVER, NOTHING_YET, Place, Span, SpanCoder, SpanTracker
from serving.eventlog import open_log

PLACES = st.builds(Place, st.integers(0, 2**62), st.one_of(st.just(FOR_EVER), st.integers(0, 2**62)),
                   st.one_of(st.just(NOTHING_YET), st.integers(0, 2**60)), st.integers(0, 2**62), st.integers(0, 2**62))
SPANS = st.builds(Span, st.dictionaries(st.integers(0, 2**20), PLACES, max_size=20), st.booleans(), st.booleans())
_NUMBERS = itertools.count()


@given(SPANS)
def test_a_span_survives_its_bytes(span: Span) -> None:
    assert SpanCoder().decode(SpanCoder().encode(span)) == span


def test_equal_spans_are_equal_bytes() -> None:
    one = Span({2: Place(5), 1: Place(3)}, True)
    assert one.to_bytes() == Span({1: Place(3), 2: Place(5)}, True).to_bytes()


def test_positions_of_another_layout_are_refused_with_the_way_out() -> None:
    data = b"\x09" + Span({0: Place(1)}, True).to_bytes()[1:]
    with pytest.raises(ValueError, match=r"layout 9.*start anew"):
        Span.from_bytes(data)


def test_only_the_split_at_zero_is_granted_and_only_once() -> None:
    tracker = SpanTracker(Span({0: Place(0, 10)}, True, True))
    assert tracker.try_split(0.5) is None
    assert tracker.try_claim(Span({0: Place(4, 10)}, True, True))
    split = tracker.try_split(0)
    assert split is not None
    done, rest = split
    assert done.done and rest.places[0] == Place(4, 10)
    assert not tracker.try_claim(Span({0: Place(6, 10)}, True, True))
    assert tracker.try_split(0) is None
    tracker.check_done()


def test_a_bundle_that_would_lose_records_is_refused() -> None:
    tracker = SpanTracker(Span({0: Place(0, 10)}, True, True))
    with pytest.raises(ValueError, match="not read to its end"):
        tracker.check_done()
    with pytest.raises(ValueError, match="a claim goes from"):
        tracker.try_claim(Span({}, True, True))
    tracker.try_claim(Span({0: Place(10, 10)}, True, True))
    tracker.check_done()
    with pytest.raises(ValueError, match="a claim goes from"):
        tracker.try_claim(Span({0: Place(9, 10)}, True, True))
    assert tracker.try_split(0) is None, "nothing is left to give away"


ACTIONS = st.lists(st.sampled_from(["go", "go", "checkpoint", "half", "killed"]), min_size=1, max_size=30)


@settings(max_examples=60)
@given(sizes=st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=3), actions=ACTIONS,
       poll_bytes=st.sampled_from([1, 2000, 1 << 20]), bundle_s=st.sampled_from([0.0, 0.05]))
def test_every_record_is_given_once(tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]], actions: list[str],
                                    poll_bytes: int, bundle_s: float) -> None:
    path = tmp_path_factory.mktemp("log") / str(next(_NUMBERS))
    log = open_log(f"dir:{path}?partitions={len(sizes)}")
    for partition, records in enumerate(sizes):
        for i, count in enumerate(records):
            log.append(partition, [views(100 * partition + 10 * i, count)], NOON)
    dofn = _ReadBounded(reading(f"dir:{path}", stop="end", poll_bytes=poll_bytes, bundle_s=bundle_s))
    dofn.setup()
    reader = Reader(dofn)
    for action in itertools.islice(itertools.cycle([*actions, "go"]), 400):
        if reader.span is None:
            break
        fraction = {"checkpoint": 0.0, "half": 0.5}.get(action)
        reader.bundle(fraction, killed=action == "killed")
    assert reader.span is None
    expected = {(p, o, i): 1 for p, records in enumerate(sizes) for o, count in enumerate(records) for i in range(count)}
    assert dict(reader.positions) == expected
    close_lanes(dofn._reading.run)
    log.close()
