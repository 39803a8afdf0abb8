"""Ranked lists against the documented formula in plain Python, and the rules that every list keeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cells import REASONS, SOURCES
from transforms.candidates import (
    Blend,
    Lists,
    Ranker,
    Users,
    fetch_classes,
    users_of,
)
from transforms.catalogue import Catalogue, load_catalogue, make_catalogue, save_catalogue
from transforms.topk import exact_top_k

LISTED = pa.struct([("ids", pa.list_(pa.string())), ("times", pa.list_(pa.int64())), ("scores", pa.list_(pa.float32()))])


def listed(ids: list[str], scores: list[float] | None = None) -> dict[str, Any]:
    return {"ids": ids, "times": [0] * len(ids), "scores": scores or [1.0] * len(ids)}


def snapshot(popularity: dict[str, float], together: dict[str, dict[str, float]]) -> pa.Table:
    ids = sorted({*popularity, *together})
    return pa.table({
        "item_id": pa.array(ids, pa.string()),
        "popularity_30d": pa.array([popularity.get(i, 0.0) for i in ids], pa.float32()),
        "cooccurring_items": pa.array([listed([*others], [*others.values()]) for others in (together.get(i, {}) for i in ids)],
                                      LISTED),
    })


def catalogue_of(vectors: np.ndarray, popularity: dict[str, float], together: dict[str, dict[str, float]],
                 inactive: tuple[str, ...] = ()) -> Catalogue:
    ids = [f"i{n}" for n in range(len(vectors))]
    items = pa.table({"item_id": ids, "is_active": [i not in inactive for i in ids]})
    return make_catalogue(pa.array(ids, pa.string()), vectors, snapshot(popularity, together), items)


def user_batch(users: list[tuple[list[str], list[str]]]) -> pa.RecordBatch:
    return pa.record_batch({
        "user_id": pa.array([f"u{n}" for n in range(len(users))]),
        "last_items": pa.array([listed(last) for last, _ in users], LISTED),
        "consumed_items": pa.array([listed(done) for _, done in users], LISTED),
    })


def rank(catalogue: Catalogue, blend: Blend, users: list[tuple[list[str], list[str]]], vectors: np.ndarray,
         has_vector: list[bool], k: int | None = None) -> Lists:
    flat = users_of(user_batch(users), catalogue, blend)
    found, dots = exact_top_k(vectors, catalogue.vectors, k or len(catalogue.vectors))
    return Ranker(catalogue, blend).rank(flat, vectors, np.array(has_vector), found, dots)


def names(catalogue: Catalogue, lists: Lists, row: int) -> list[str]:
    return [catalogue.item_ids[p].as_py() for p in lists.positions[row, : lists.counts[row]].tolist()]


def expected(vectors: np.ndarray, popularity: dict[str, float], together: dict[str, dict[str, float]], inactive: set[str],
             user: tuple[list[str], list[str]], vector: np.ndarray | None, blend: Blend) -> dict[str, float]:
    """Score of every item that may be listed, straight from the module's docstring; no candidate limits."""
    ids = [f"i{n}" for n in range(len(vectors))]
    allowed = [i for i in ids if i not in inactive and i not in user[1]]
    most = max(math.log1p(v) for v in popularity.values())
    popular = {i: math.log1p(popularity.get(i, 0.0)) / most for i in allowed}
    sums = dict.fromkeys(allowed, 0.0)
    for place, h in enumerate(user[0][: blend.history]):
        for other, strength in list(together.get(h, {}).items())[: blend.neighbours]:
            if other in sums:
                sums[other] += 2.0 ** (-place / blend.half_life) * strength
    best = max(sums.values(), default=0.0)
    if vector is None and best == 0:
        return popular
    tower = dict.fromkeys(allowed, 0.0)
    if vector is not None:
        dots = {i: float(vectors[int(i[1:])] @ vector) for i in allowed}
        order = sorted(dots.values(), reverse=True)
        high, low = order[0], order[min(blend.list_length, len(order)) - 1]
        tower = {i: max(blend.floor, (d - low) / (high - low)) if high > low else 0.0 for i, d in dots.items()}
    return {i: tower[i] + (blend.item_cf * sums[i] / best if best else 0.0) + blend.popularity * popular[i] for i in allowed}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 40), with_vector=st.booleans())
def test_scores_are_the_documented_formula(seed: int, length: int, with_vector: bool) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    ids = [f"i{n}" for n in range(30)]
    popularity = {i: float(v) for i, v in zip(ids, rng.integers(1, 50, 30), strict=True)}
    together = {i: {str(o): float(s) for o, s in zip(rng.choice(ids, 6, False), rng.random(6).round(3), strict=True) if o != i}
                for i in ids[:20]}
    inactive = set(rng.choice(ids, 3, False).tolist())
    last = rng.choice(ids, rng.integers(0, 8), False).tolist()
    user = (last, [*last[: len(last) // 2], *rng.choice(ids, 3, False).tolist()])
    vector = rng.normal(size=4).astype(np.float32) if with_vector else None
    blend = Blend(list_length=length, item_cf_candidates=30, popular_candidates=30)
    catalogue = catalogue_of(vectors, popularity, together, tuple(inactive))
    lists = rank(catalogue, blend, [user], np.zeros((1, 4), np.float32) if vector is None else vector[None],
                 [vector is not None], min(30, length + 3 + len(user[1])))  # what the index does not return ranks below
    want = expected(vectors, popularity, together, inactive, user, vector, blend)
    got = dict(zip(names(catalogue, lists, 0), lists.scores[0].tolist(), strict=False))
    assert len(got) == min(length, len(want))
    for item, score in got.items():
        assert score == pytest.approx(want[item], abs=2e-5)
    assert min(got.values()) >= sorted(want.values(), reverse=True)[len(got) - 1] - 2e-5
    assert (np.diff(lists.scores[0, : lists.counts[0]]) <= 0).all()


def test_consumed_and_inactive_items_are_never_listed() -> None:
    vectors = np.eye(6, 2, dtype=np.float32) + 1
    catalogue = catalogue_of(vectors, {"i5": 9.0, "i4": 5.0}, {"i0": {"i1": 1.0, "i5": 1.0}}, inactive=("i5",))
    lists = rank(catalogue, Blend(list_length=6), [(["i0"], ["i0", "i1"])], np.ones((1, 2), np.float32), [True])
    assert sorted(names(catalogue, lists, 0)) == ["i2", "i3", "i4"]
    assert lists.positions[0, 3:].tolist() == [-1] * 3


def test_reasons_name_the_history_item_that_gave_most() -> None:
    vectors = np.array([[0, 1], [0, 1], [1, 0], [0.9, 0.1], [0.0, 0.5]], np.float32)
    together = {"i0": {"i2": 0.9, "i4": 0.1}, "i1": {"i2": 0.2, "i4": 0.8}}
    catalogue = catalogue_of(vectors, {"i3": 3.0}, together)
    blend = Blend(list_length=3, history=2)
    lists = rank(catalogue, blend, [(["i0", "i1"], ["i0", "i1"])], np.array([[1, 0]], np.float32), [True])
    by_item = {name: (SOURCES[s], REASONS[r], b) for name, s, r, b in zip(
        names(catalogue, lists, 0), lists.sources[0], lists.reasons[0], lists.because[0].tolist(), strict=False)}
    assert by_item["i2"] == ("two_tower", "because_you_watched", 0)  # tower 1.0 beside item-CF 0.5
    assert by_item["i3"] == ("two_tower", "similar_taste", -1)
    assert by_item["i4"] == ("item_cf", "because_you_watched", 1)


def test_a_history_item_explains_at_most_three_of_twenty_places() -> None:
    count = 60
    ids = [f"i{n}" for n in range(count)]
    # i0 gives most of everything; i1 gives some of every second item.
    together = {"i0": dict.fromkeys(ids[2:], 1.0), "i1": dict.fromkeys(ids[2::2], 0.4)}
    catalogue = catalogue_of(np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32), {}, together)
    user, vector = (["i0", "i1"], ["i0", "i1"]), np.ones((1, 3), np.float32)
    lists = rank(catalogue, Blend(list_length=50), [user], vector, [True])
    causes, reasons = lists.because[0].tolist(), [REASONS[r] for r in lists.reasons[0]]
    for start in (0, 20, 40):
        window = causes[start : start + 20]
        assert window.count(0) <= 3 and window.count(1) <= 3
    assert causes[:20].count(0) == 3
    for place, cause in enumerate(causes):
        assert reasons[place] == ("because_you_watched" if cause >= 0 else "similar_taste")
        if cause == 1:  # the second best is named only when the best is used up
            assert causes[place // 20 * 20 : place].count(0) == 3
    without = rank(catalogue, Blend(list_length=20), [user], vector, [False])
    assert set(without.because[0].tolist()) <= {0, 1}  # nothing else would be true


def test_a_user_without_history_or_vector_gets_the_popular_items() -> None:
    catalogue = catalogue_of(np.ones((4, 2), np.float32), {"i3": 9.0, "i1": 3.0, "i0": 1.0}, {})
    lists = rank(catalogue, Blend(list_length=3), [([], [])], np.zeros((1, 2), np.float32), [False])
    assert names(catalogue, lists, 0) == ["i3", "i1", "i0"]
    assert lists.scores[0].tolist() == pytest.approx([1.0, math.log(4) / math.log(10), math.log(2) / math.log(10)])
    assert {SOURCES[s] for s in lists.sources[0]} == {"popular"} == {REASONS[r] for r in lists.reasons[0]}


def test_a_history_without_a_vector_still_explains() -> None:
    catalogue = catalogue_of(np.ones((4, 2), np.float32), {"i3": 9.0}, {"i0": {"i1": 0.5}})
    lists = rank(catalogue, Blend(list_length=2), [(["i0"], ["i0"])], np.zeros((1, 2), np.float32), [False])
    assert names(catalogue, lists, 0) == ["i1", "i3"]
    assert [SOURCES[s] for s in lists.sources[0]] == ["item_cf", "popular"]


def test_items_that_the_index_does_not_know_can_still_be_listed() -> None:
    items = pa.table({"item_id": ["new", "i0"], "is_active": [True, True]})
    catalogue = make_catalogue(pa.array(["i0"]), np.ones((1, 2), np.float32),
                               snapshot({"i0": 1.0, "unknown": 2.0}, {"i0": {"new": 1.0}}), items)
    assert catalogue.item_ids.to_pylist() == ["i0", "new", "unknown"]
    lists = rank(catalogue, Blend(list_length=5), [(["i0"], ["i0"])], np.ones((1, 2), np.float32), [True])
    assert sorted(names(catalogue, lists, 0)) == ["new", "unknown"]


def test_a_batch_ranks_as_its_users_do_alone() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(60, 4)).astype(np.float32)
    ids = [f"i{n}" for n in range(60)]
    together = {i: {str(o): 0.5 for o in rng.choice(ids, 5, False)} for i in ids}
    catalogue = catalogue_of(vectors, dict.fromkeys(ids, 2.0), together)
    users = [(rng.choice(ids, n % 7, False).tolist(), rng.choice(ids, n % 5, False).tolist()) for n in range(40)]
    queries = rng.normal(size=(40, 4)).astype(np.float32)
    usable = [n % 3 != 0 for n in range(40)]
    blend = Blend(list_length=10)
    flat = users_of(user_batch(users), catalogue, blend)
    found, dots = exact_top_k(queries, vectors, 30)
    ranker = Ranker(catalogue, blend)
    batch = ranker.rank(flat, queries, np.array(usable), found, dots)
    for n in range(40):
        row = slice(n, n + 1)
        alone = ranker.rank(flat.take(np.array([n])), queries[row], np.array(usable[row]), found[row], dots[row])
        for name in ("counts", "positions", "scores", "sources", "reasons", "because"):
            np.testing.assert_array_equal(getattr(batch, name)[n], getattr(alone, name)[0])


def test_users_taken_keep_their_histories() -> None:
    catalogue = catalogue_of(np.ones((5, 2), np.float32), {"i0": 1.0}, {})
    users = users_of(user_batch([(["i0", "i1"], ["i2"]), ([], []), (["i3", "gone"], ["i4", "gone"])]), catalogue, Blend())
    some = users.take(np.array([2, 0]))
    assert some.user_ids.to_pylist() == ["u2", "u0"]
    assert some.history.tolist() == [3, 0, 1] and some.history_offsets.tolist() == [0, 1, 3]
    assert some.consumed.tolist() == [4, -1, 2] and some.consumed_offsets.tolist() == [0, 2, 3]


def test_who_consumed_more_fetches_more() -> None:
    catalogue = catalogue_of(np.ones((5000, 2), np.float32), {"i0": 1.0}, {})
    counts = [0, 60, 61, 240, 900, 2000]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    users = Users(pa.array([str(n) for n in counts]), np.zeros(7, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32),
                  offsets, np.zeros(offsets[-1], np.int32))
    groups = fetch_classes(users, catalogue, Blend())
    assert sorted(np.concatenate([rows for rows, _ in groups]).tolist()) == list(range(6))
    for rows, k in groups:
        assert all(k >= min(5000, 100 + counts[row]) for row in rows)


def test_a_catalogue_is_read_back_as_it_was_written(tmp_path: Any) -> None:
    catalogue = catalogue_of(np.ones((5, 2), np.float32), {"i0": 1.0, "zz": 2.0}, {"i0": {"i1": 0.5, "i2": 0.25}})
    save_catalogue(catalogue, tmp_path / "c")
    again = load_catalogue(tmp_path / "c", catalogue.item_ids.slice(0, 5), catalogue.vectors)
    assert again.item_ids.equals(catalogue.item_ids)
    for name in ("active", "popularity", "by_popularity", "offsets", "neighbours", "strengths"):
        np.testing.assert_array_equal(getattr(again, name), getattr(catalogue, name))
    with pytest.raises(ValueError, match="another index"):
        load_catalogue(tmp_path / "c", pa.array(["other"]), catalogue.vectors)
