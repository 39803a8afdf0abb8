"""Training examples hold what was known at their moment: checked against plain Python over the same events."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.event_types import EVENT_TYPES
from schemas.features import LAST_ITEMS_CAP
from transforms import examples

DAY = examples.DAY_MICROS
POSITIVE = {t.name: t.min_value for t in EVENT_TYPES if t.positive}


def events_of(rows: list[tuple[str, str | None, str, float | None, int]]) -> pa.Table:
    users, items, kinds, values, times = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [], [])
    return pa.table({
        "user_id": pa.array(users, pa.string()), "item_id": pa.array(items, pa.string()),
        "event_type": pa.array(kinds, pa.string()), "value": pa.array(values, pa.float64()),
        "occurred_at": pa.array(times, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "event_hash": pa.array(range(len(rows)), pa.int64())})


def is_positive(kind: str, value: float | None) -> bool:
    if kind not in POSITIVE:
        return False
    least = POSITIVE[kind]
    return least is None or (value is not None and value >= least)


def plain_history(rows: list[tuple[str, str | None, str, float | None, int]], user: str, moment: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for _, item, _, _, time in sorted(
            ((u, i, k, v, t) for u, i, k, v, t in rows if u == user and i and is_positive(k, v) and t < moment),
            key=lambda r: (r[4], rows.index(r)), reverse=True):
        if item not in [name for name, _ in found] and len(found) < LAST_ITEMS_CAP:
            found.append((str(item), time))
    return found


EVENT = st.tuples(st.sampled_from("uvw"), st.one_of(st.none(), st.integers(0, 60).map(str)),
                  st.sampled_from(["click", "rating", "impression", "purchase", "return"]),
                  st.sampled_from([None, 1.0, 3.9, 4.0, 5.0]), st.integers(0, 40))


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENT, max_size=150, unique=True), st.lists(st.tuples(st.sampled_from("uvwx"), st.integers(0, 45)), max_size=8))
def test_history_is_the_last_distinct_positives_strictly_before(rows, asked):
    users, moments = [u for u, _ in asked], np.array([t for _, t in asked], np.int64)
    made = examples.user_rows(events_of(rows), None, pa.array(users, pa.string()), moments)
    expected = [plain_history(rows, user, int(moment)) for user, moment in asked]
    # events of one moment may come in any order between runs of different hashes; here the hash is the row number
    assert made["liked_items"].to_pylist() == [[item for item, _ in history] for history in expected]
    ages = [[(int(moment) - time) / DAY for _, time in history] for history, moment in zip(expected, moments, strict=True)]
    for found, wanted in zip(made["liked_ages"].to_pylist(), ages, strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENT, max_size=100, unique=True), st.randoms())
def test_a_label_is_the_first_positive_of_user_and_item_in_any_order_of_events(rows, shuffled):
    table = events_of(rows)
    order = list(range(len(rows)))
    shuffled.shuffle(order)
    first: dict[tuple[str, str], tuple[int, int]] = {}
    for number, (user, item, kind, value, time) in enumerate(rows):
        if item and is_positive(kind, value):
            first[user, item] = min(first.get((user, item), (time, number)), (time, number))
    made = examples.labels(table.take(pa.array(order, pa.int64())))
    found = list(zip(made["user_id"].to_pylist(), made["item_id"].to_pylist(), made["occurred_at"].to_pylist(), strict=True))
    assert found == [(u, i, t) for (u, i), (t, _) in sorted(first.items(), key=lambda entry: entry[1])]


def test_a_label_is_never_in_its_own_history():
    rows = [("u", str(n % 7), "click", None, n) for n in range(50)]
    made = examples.build_examples(events_of(rows), catalogue(), None, None)
    rows = zip(made["item_id"].to_pylist(), made["liked_items"].to_pylist(), strict=True)
    assert all(item not in liked for item, liked in rows)
    assert made.num_rows == 7


def catalogue() -> pa.Table:
    return pa.table({"item_id": ["0", "1"], "categories": pa.array([["a", "b"], []], pa.list_(pa.string())),
                     "price": pa.array([None, 2.5], pa.float64()),
                     "attributes": pa.array([[("year", "1987")], []], pa.map_(pa.string(), pa.string()))})


def snapshots(key: str, rows: list[tuple[str, int, float]], name: str) -> pa.Table:
    ids, published, values = map(list, zip(*rows, strict=True))
    times = pa.array(published, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return pa.table({key: ids, "as_of": times, "published_at": times, name: pa.array(values, pa.float32())})


def test_a_snapshot_counts_only_after_it_was_published():
    table = snapshots("user_id", [("u", 10, 1.0), ("u", 20, 2.0), ("v", 5, 9.0)], "recency_days")
    made = examples.user_rows(events_of([]), table, pa.array(["u", "u", "u", "v", "w"]), np.array([10, 11, 21, 99, 99]))
    assert np.array_equal(made["recency_days"].to_numpy(), np.array([np.nan, 1, 2, 9, np.nan], np.float32), equal_nan=True)
    assert made["affinity_ids"].to_pylist() == [[]] * 5


def test_item_side_from_catalogue_and_snapshot():
    table = snapshots("item_id", [("0", 10, 0.25)], "popularity_share_30d")
    made = examples.item_rows(catalogue(), table, pa.array(["1", "0", "other"]), np.array([99, 99, 99]))
    assert made["categories"].to_pylist() == [[], ["a", "b"], []]
    assert np.array_equal(made["year"].to_numpy(), np.array([np.nan, 1987, np.nan], np.float32), equal_nan=True)
    assert np.array_equal(made["price"].to_numpy(), np.array([2.5, np.nan, np.nan], np.float32), equal_nan=True)
    assert np.array_equal(made["popularity_share_30d"].to_numpy(), np.array([np.nan, 0.25, np.nan], np.float32), equal_nan=True)


def test_inference_rows_equal_training_rows_of_the_same_moment():
    rows = [("u", str(n), "click", None, n * DAY) for n in range(60)] + [("v", "3", "purchase", None, 7 * DAY)]
    as_of = 100 * DAY
    wanted = examples.user_rows(events_of(rows), None, pa.array(["u", "v"]), np.array([as_of, as_of]))
    ids = wanted["liked_items"].to_pylist()
    when = {("u", str(n)): n * DAY for n in range(60)} | {("v", "3"): 7 * DAY}
    struct = pa.array([{"ids": liked, "times": [when[user, item] for item in liked], "scores": [2.0] * len(liked)}
                       for user, liked in zip("uv", ids, strict=True)],
                      pa.struct([("ids", pa.list_(pa.string())), ("times", pa.list_(pa.int64())),
                                 ("scores", pa.list_(pa.float32()))]))
    snapshot = pa.record_batch({"user_id": ["u", "v"], "as_of": pa.array([as_of] * 2).cast(pa.timestamp("us", tz="UTC")),
                                "liked_items": struct})
    for part in (snapshot, pa.concat_batches([snapshot, snapshot]).slice(2, 2)):
        assert examples.user_rows_of_snapshot(part).select(["liked_items", "liked_ages"]).equals(
            wanted.select(["liked_items", "liked_ages"]))


def test_dictionary_columns_read_like_plain_ones():
    table = events_of([("u", "1", "click", None, 3)])
    encoded = table.set_column(1, "item_id", table["item_id"].dictionary_encode())
    assert examples.plain(encoded).equals(table)
