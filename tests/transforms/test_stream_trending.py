"""What is trending in a bucket of items: by its definition one event at a time; written in turns, exact at the end."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_oracle import MINUTE, WEIGHT, Event, batch, events

from schemas.cells import decode_list
from schemas.keys import TRENDING, hash64, trending_key
from transforms.beam.stream.item import TRENDING_EVERY_S, ItemBucket
from transforms.beam.stream.state import Rules
from transforms.beam.stream.user import ITEM_COLUMNS
from transforms.beam.stream.wire import by_item

RULES = Rules(job="live")


def message(part: pa.RecordBatch) -> bytes:
    """What the users' side sends on to one bucket of items."""
    [(_, found)] = by_item([part.select(ITEM_COLUMNS)], [], 1)
    return found


def told(bucket: ItemBucket, now: float | None = None) -> list[tuple[str, int, list[str], list[float]]]:
    """(group, timestamp, ids, weights) of the cells of what is trending that a flush gives."""
    found = []
    for rows in bucket.flush(now):
        for cell in rows.to_pylist():
            if cell["group"].startswith(TRENDING):
                assert cell["row"] == trending_key("live")
                ids, _, weights = decode_list(cell["value"])
                found.append((cell["group"], cell["timestamp"], ids, weights.tolist()))
    return found


def expected(chosen: list[Event]) -> list[tuple[str, float]]:
    counted = [e for e in chosen if e.interacts]
    last = max((e.time // MINUTE for e in counted), default=0)
    weights: Counter[str] = Counter()
    for e in counted:
        age = last - e.time // MINUTE
        if age < 60:
            weights[str(e.item)] += WEIGHT[e.kind] * 2.0 ** (-age / 10)
    return sorted(weights.items(), key=lambda found: (-round(found[1], 4), hash64(found[0])))


@settings(max_examples=60, deadline=None)
@given(events(40), st.integers(1, 9))
def test_it_is_what_was_touched_in_the_last_hour_by_its_decayed_weight(chosen: list[Event], size: int) -> None:
    bucket = ItemBucket.new(RULES)
    bucket.key = 11
    for start in range(0, len(chosen), size):
        part = batch([e for e in chosen[start : start + size] if e.item is not None])
        if part.num_rows:
            bucket.take(message(part))
    found = told(bucket)
    wanted = expected(chosen)
    if not wanted:
        assert found == []
        return
    [(group, timestamp, ids, weights)] = found
    assert group == f"{TRENDING}b" and timestamp == max(e.time for e in chosen if e.interacts) // 1000 * 1000
    assert sorted(ids) == sorted(item for item, _ in wanted)
    np.testing.assert_allclose(weights, [dict(wanted)[item] for item in ids], rtol=1e-4)
    assert weights == sorted(weights, reverse=True)


def test_it_is_written_in_turns_and_exact_at_the_end() -> None:
    bucket, written = ItemBucket.new(RULES), []
    for second in range(25):
        view = Event(f"e{second}", "u", f"i{second % 7}", "view", second * 1_000_000, None, None, ())
        bucket.take(message(batch([view])))
        written += told(bucket, 1_000.0 + second)
        if second == 12:
            bucket = ItemBucket.restore(RULES, bucket.marker, bucket.snapshot(), [])
            bucket._trends_at = 1_012.0
    assert len(written) == 3  # at 0, 10 and 22 seconds
    assert bucket.is_dirty
    [last] = told(bucket, 1_025.0 + TRENDING_EVERY_S)
    assert sum(last[3]) == 25 * WEIGHT["view"] and not bucket.is_dirty


def test_a_job_of_some_groups_tells_nothing() -> None:
    bucket = ItemBucket.new(Rules(groups=("item_minutes",)))
    bucket.take(message(batch([Event("e", "u", "i", "view", 1_000_000, None, None, ())])))
    assert [cell["group"] for rows in bucket.flush() for cell in rows.to_pylist()] == ["item_minutes"]
