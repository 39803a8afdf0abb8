"""Accumulators: any order, grouping and bucketing of merges gives the same bits; packed states come back; collisions fail."""

import functools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.event_types import NAMES
from schemas.keys import hash64_column
from schemas.tables import EVENTS
from schemas.workspace import DAY_MICROS
from transforms.accumulators import ACCUMULATORS
from transforms.accumulators.cooccurrence import EPOCH, Interactions, ItemCooccurrence, pairs_of_day
from transforms.accumulators.events import Events
from transforms.accumulators.frame import HashCollisionError, Ids

DAY = 4 * EPOCH - 2  # the days drawn lie on both sides of the start of a decay epoch
EVENT = st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 6)), st.sampled_from(NAMES), st.integers(0, 4),
                  st.integers(0, 40), st.one_of(st.none(), st.integers(0, 9_000)), st.one_of(st.none(), st.integers(-5, 999)),
                  st.lists(st.integers(0, 3), max_size=3))
EVENTS_DRAWN = st.lists(EVENT, min_size=1, max_size=60)


def batch_of(drawn, first=0) -> pa.Table:
    ids = pa.array([f"e{first + k}" for k in range(len(drawn))])
    user, item, kind, day, minute, dwell, price, categories = zip(*drawn, strict=True)
    time = [(DAY + d) * DAY_MICROS + m * 60_000_000 for d, m in zip(day, minute, strict=True)]
    return pa.table({
        "user_id": [f"u{u}" for u in user], "item_id": pa.array([None if i is None else f"i{i}" for i in item], pa.string()),
        "event_type": list(kind), "occurred_at": pa.array(time, pa.int64()).cast(EVENTS.schema.field("occurred_at").type),
        "dwell_ms": pa.array(dwell, pa.int64()), "price": pa.array(price, pa.float64()), "value": pa.array([4.0] * len(drawn)),
        "categories": pa.array([[f"c{c}" for c in cs] for cs in categories], pa.list_(pa.string())),
        "event_hash": pa.array(hash64_column(ids).view(np.int64)),
    })


def parts_of(name, tables):
    """One accumulator per batch (per day and batch where days are made from pairs)."""
    kind = ACCUMULATORS[name]
    if name not in ("item_user_days", "item_cooccurrence"):
        made = []
        for table in tables:
            made.append(kind())
            made[-1].add(Events(table))
        return made
    together = pa.concat_tables(tables)
    days = Events(together).day
    made, before = [], Interactions.concat([])
    for day in range(DAY, DAY + 5):
        today = Interactions.of(Events(together.filter(pa.array(days == day))))
        made += [a for a in pairs_of_day(day, today, before) if isinstance(a, kind)]
        before = today.tail(day)
    return made


def rebuilt(accumulator):
    return type(accumulator).from_bytes(accumulator.to_bytes())


def merged(parts, order, shape):
    """Merges copies of the parts in an order, as a chain, a tree or all at once; some go through bytes."""
    chosen = [rebuilt(parts[i]) if i % 2 else parts[i].copy() for i in order]
    if shape == "chain":
        return functools.reduce(lambda a, b: a.merge(b), chosen)
    while shape == "tree" and len(chosen) > 1:
        chosen = [chosen[i].merge(*chosen[i + 1 : i + 2]) for i in range(0, len(chosen), 2)]
    return chosen[0].merge(*chosen[1:])


@pytest.mark.parametrize("name", ACCUMULATORS)
@settings(max_examples=25, deadline=None)
@given(drawn=EVENTS_DRAWN, data=st.data())
def test_any_merge_gives_the_same_bits(name, drawn, data):
    cut = data.draw(st.integers(1, 5))
    tables = [batch_of(drawn[i::cut], 1_000 * i) for i in range(cut) if drawn[i::cut]]
    parts = parts_of(name, tables)
    plain = merged(parts, range(len(parts)), "all").to_bytes()
    order = data.draw(st.permutations(range(len(parts))))
    assert merged(parts, order, data.draw(st.sampled_from(["chain", "tree", "all"]))).to_bytes() == plain


@pytest.mark.parametrize("name", [n for n, a in ACCUMULATORS.items() if a.TAKES_OUT])
@settings(max_examples=25, deadline=None)
@given(stays=EVENTS_DRAWN, leaves=EVENTS_DRAWN)
def test_what_is_taken_out_was_never_there(name, stays, leaves):
    kept, gone = parts_of(name, [batch_of(stays), batch_of(leaves, first=len(stays))])
    alone = kept.copy()
    alone.prune(DAY)
    both = kept.merge(rebuilt(gone)).merge(rebuilt(gone).negated())
    both.prune(DAY)
    assert both.to_bytes() == alone.to_bytes()


@pytest.mark.parametrize("name", ACCUMULATORS)
@settings(max_examples=15, deadline=None)
@given(drawn=EVENTS_DRAWN)
def test_buckets_nest_and_hold_everything(name, drawn):
    parts = parts_of(name, [batch_of(drawn)])
    whole = merged(parts, range(len(parts)), "all")
    eight = whole.split(8)
    assert sum(len(part) for _, part in eight) == len(whole)
    for bucket, part in whole.split(4):
        again = [p for b, p in eight if b // 2 == bucket]
        assert again[0].merge(*again[1:]).to_bytes() == part.to_bytes() == whole.bucket(bucket, 4).to_bytes()


@pytest.mark.parametrize("name", ["user_days", "user_last_items", "user_liked_items", "user_consumed", "item_days"])
@settings(max_examples=20, deadline=None)
@given(drawn=EVENTS_DRAWN)
def test_pruning_changes_no_extract(name, drawn):
    as_of = DAY + 5
    pruned, kept = (parts_of(name, [batch_of(drawn)])[0] for _ in range(2))
    pruned.prune(as_of)
    extra = (ACCUMULATORS["item_days"]().totals(as_of),) if name == "item_days" else ()
    one, other = (a.extract(as_of, *extra) for a in (pruned, kept))
    assert one.entities.ids.equals(other.entities.ids)
    for column, values in one.columns.items():
        expected = other.columns[column]
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(values, expected)
        else:
            assert values.ids.equals(expected.ids)
            np.testing.assert_array_equal(values.times, expected.times)


def test_two_ids_of_one_hash_are_never_merged():
    one = Ids(np.array([7], np.uint64), pa.array(["a"], pa.large_string()))
    other = Ids(np.array([7], np.uint64), pa.array(["b"], pa.large_string()))
    with pytest.raises(HashCollisionError):
        Ids.union([one, other])


@pytest.mark.parametrize("data", [b"", b"nonsense", b"12345678nonsense"])
def test_broken_bytes_are_refused(data):
    for kind in ACCUMULATORS.values():
        with pytest.raises(ValueError):
            kind.from_bytes(data)


def test_pairs_count_once_per_user_day_and_reach_over_midnight():
    last = 23 * 60 + 50
    drawn = [(user, item, "view", day, minute, None, None, []) for user, item, day, minute in (
        (0, 1, 0, last), (0, 2, 1, 5), (0, 1, 1, 6), (0, 2, 1, 8), (1, 3, 1, 5), (0, 4, 1, 60))]
    parts = parts_of("item_cooccurrence", [batch_of(drawn)])
    found = merged(parts, range(len(parts)), "all")
    assert isinstance(found, ItemCooccurrence)
    frame = found.frame
    pairs = {(frame.entities.ids[int(k >> 32)].as_py(), frame.members.ids[int(k & 0xFFFFFFFF)].as_py())
             for k in frame.keys}
    assert pairs == {("i1", "i2"), ("i2", "i1")}
    assert found.decayed(DAY + 2) == pytest.approx([2 ** (-1 / 30)] * 2)


def test_a_category_named_twice_counts_once_and_none_is_unknown():
    drawn = [(0, 1, "click", 0, 1, None, None, [2, 2]), (0, 1, "view", 0, 2, None, None, [])]
    lists = parts_of("user_affinity", [batch_of(drawn)])[0].extract(DAY + 1).columns["category_affinity_30d"]
    assert lists.ids.to_pylist() == ["c2", "unknown"]
    assert lists.scores.tolist() == pytest.approx([2 / 3, 1 / 3])
