"""Metrics, baselines and splits against literal values and brute force."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from models import evaluation, splits
from models.evaluation import Candidates


def events_of(rows: list[tuple[str, str, str, float | None, int]]) -> pa.Table:
    users, items, kinds, values, times = map(list, zip(*rows, strict=True))
    return pa.table({"user_id": users, "item_id": items, "event_type": kinds, "value": pa.array(values, pa.float64()),
                     "occurred_at": pa.array(times).cast(pa.timestamp("us", tz="UTC")),
                     "event_hash": pa.array(range(len(rows)), pa.int64())})


def clicks(rows: list[tuple[str, str, int]]) -> pa.Table:
    return events_of([(u, i, "click", None, t) for u, i, t in rows])


def test_metrics_of_known_lists():
    lists, targets = [["a", "b", "c"], ["x"], []], [{"b", "z"}, {"x"}, {"q"}]
    assert evaluation.recall(lists, targets, 20).tolist() == [0.5, 1.0, 0.0]
    ideal = 1 + 1 / math.log2(3)
    assert evaluation.ndcg(lists, targets, 10).tolist() == pytest.approx([1 / math.log2(3) / ideal, 1.0, 0.0])
    assert evaluation.recall([["a"] * 30], [{str(n) for n in range(40)} | {"a"}], 20)[0] == 1.0  # over min(20, 41)


def test_bootstrap_holds_the_mean_and_narrows_with_more_users():
    values = np.random.default_rng(1).random(2000)
    few, many = evaluation.bootstrap(values[:100]), evaluation.bootstrap(values)
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert evaluation.bootstrap(values) == many


def test_fold_split_gives_the_first_half_of_later_events_as_input():
    rows = clicks([("u", "a", 1), ("v", "a", 2), ("u", "b", 10), ("u", "c", 11), ("u", "d", 12), ("v", "b", 13)])
    made = splits.fold_split(rows, 10)
    assert made.users == ["u", "v"]
    assert made.targets == [{"c", "d"}, {"b"}]
    assert sorted(zip(made.visible["user_id"].to_pylist(), made.visible["item_id"].to_pylist(), strict=True)) == [
        ("u", "a"), ("u", "b"), ("v", "a")]
    assert made.moments.tolist() == [11, 3]


def test_time_split_asks_only_for_new_positives_of_known_users():
    rows = events_of([("u", "a", "rating", 5.0, 1), ("u", "low", "rating", 2.0, 2), ("w", "a", "rating", 3.0, 2),
                      ("u", "a", "rating", 5.0, 20), ("u", "b", "rating", 4.0, 21), ("u", "c", "rating", 3.0, 22),
                      ("u", "low", "rating", 5.0, 23), ("w", "b", "rating", 5.0, 24), ("new", "b", "rating", 5.0, 25)])
    made = splits.time_split(rows, 10)
    assert made.users == ["u"]
    assert made.targets == [{"b"}]


def test_last_out_split_hides_everything_from_the_last_positive_on():
    rows = clicks([*(("u", str(n), n) for n in range(5)), *(("v", str(n), n) for n in range(4))])
    made = splits.last_out_split(rows)
    assert (made.users, made.targets, made.visible.num_rows) == (["u"], [{"4"}], 8)
    assert splits.last_out_split(rows, nth=2).targets == [{"3"}]


def random_split(seed: int = 3, users: int = 30, items: int = 25) -> tuple[list[str], splits.Split]:
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(users * items)[:280]
    rows = clicks([(f"u{p // items}", f"i{p % items}", int(t)) for t, p in enumerate(pairs)])
    return [f"i{n}" for n in range(items)], splits.fold_split(rows, 200)


def test_item_cf_equals_a_dense_cosine():
    ids, split = random_split()
    seen = {(u, i): t for u, i, t in zip(split.visible["user_id"].to_pylist(), split.visible["item_id"].to_pylist(),
                                         split.visible["occurred_at"].cast(pa.int64()).to_pylist(), strict=True)}
    trainers = sorted({u for (u, _), t in seen.items() if t < split.train_until})
    matrix = np.array([[float(seen.get((u, i), 10**9) < split.train_until) for i in ids] for u in trainers])
    norms = np.sqrt(np.maximum(matrix.sum(0), 1))
    cosine = matrix.T @ matrix / norms[:, None] / norms[None, :]
    found = Candidates(ids, split).by_item_cf(chunk=7)
    for user, ranked in zip(split.users, found, strict=True):
        history = np.array([float((user, i) in seen) for i in ids])
        score = history @ cosine
        allowed = [i for i in ids if (user, i) not in seen]
        assert sorted(ranked) == sorted(allowed)
        got = [score[ids.index(i)] for i in ranked]
        assert got == pytest.approx(sorted(got, reverse=True), abs=1e-5)


def test_popularity_counts_the_window_and_no_method_lists_what_was_consumed():
    ids, split = random_split()
    candidates = Candidates(ids, split)
    seen = set(zip(split.visible["user_id"].to_pylist(), split.visible["item_id"].to_pylist(), strict=True))
    rng = np.random.default_rng(0)
    vectors = candidates.by_vectors(rng.random((len(split.users), 4), np.float32), rng.random((25, 4), np.float32))
    for lists in (candidates.by_popularity(), candidates.by_item_cf(), vectors):
        assert len(lists) == len(split.users)
        assert all((user, i) not in seen for user, ranked in zip(split.users, lists, strict=True) for i in ranked)
        assert all(len(set(ranked)) == len(ranked) for ranked in lists)
    day = 86_400_000_000
    rows = clicks([("a", "old", 1), ("b", "old", 2), ("c", "old", 3), ("a", "new", 99 * day), ("z", "x", 99 * day + 1),
                   ("z", "new", 101 * day), ("z", "old", 102 * day)])
    late = splits.time_split(rows, 100 * day)
    assert Candidates(["old", "new", "x"], late).by_popularity()[0] == ["new", "old"]


def test_exact_retrieval_is_the_dot_product():
    ids, split = random_split()
    rng = np.random.default_rng(2)
    users, items = (rng.standard_normal((n, 8)).astype(np.float32) for n in (len(split.users), 25))
    for n, ranked in enumerate(Candidates(ids, split).by_vectors(users, items, k=5, chunk=4)):
        scores = {i: float(users[n] @ items[ids.index(i)]) for i in ids}
        assert [scores[i] for i in ranked] == sorted((scores[i] for i in ranked), reverse=True)
        better = [i for i in ids if scores[i] > scores[ranked[-1]] + 1e-5 and i not in ranked]
        seen = split.visible.filter(pa.compute.equal(split.visible["user_id"], split.users[n]))["item_id"].to_pylist()
        assert set(better) <= set(seen)
