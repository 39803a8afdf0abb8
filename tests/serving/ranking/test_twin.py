"""The kernels against the plain-Python twin, over worlds that hypothesis makes up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import twin
from bundle_world import make_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from models.inference.bundle import Bundle
from schemas.cells import RankedList
from serving.ranking import explore, kernels
from serving.ranking.model import Ask, Candidates, Signals
from serving.ranking.policy import load
from serving.ranking.rank import SESSION_HALF_LIFE, SMOOTHING, rank

CATEGORIES = [f"c{k}" for k in range(5)]
shares = st.floats(0, 1, width=32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: Any) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "v1", items=80, categories=5, without_vector=30)


@st.composite
def candidates(draw: Any) -> dict[str, Any]:
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = [rng.normal(size=4) if draw(st.booleans()) else None for _ in range(n)]
    categories = [draw(st.lists(st.sampled_from(CATEGORIES), unique=True, max_size=3)) for _ in range(n)]
    preference = draw(st.dictionaries(st.sampled_from(CATEGORIES), st.floats(0.015625, 1, width=32), max_size=4))
    total = sum(preference.values())
    return {"scores": rng.integers(0, 20, n) / 10 if draw(st.booleans()) else rng.random(n), "vectors": vectors,
            "categories": categories, "p": {c: v / total for c, v in preference.items()}, "strength": draw(shares),
            "calibration": draw(shares), "size": draw(st.integers(1, 12)), "cap": draw(st.integers(0, 3)),
            "keep": np.array([draw(st.integers(0, 4)) > 0 for _ in range(n)])}


@settings(max_examples=200)
@given(candidates())
def test_every_choice_is_the_best_there_is(case: dict[str, Any]) -> None:
    n = len(case["scores"])
    units = np.zeros((n, 4), np.float32)
    codes = np.full((n, kernels.CATEGORIES), -1, np.int32)
    for i in range(n):
        if case["vectors"][i] is not None:
            units[i] = case["vectors"][i] / np.linalg.norm(case["vectors"][i])
        codes[i, : len(case["categories"][i])] = [CATEGORIES.index(c) for c in case["categories"][i]]
    p = np.array([case["p"].get(c, 0) for c in CATEGORIES], np.float32)
    calibration = case["calibration"] if case["p"] else 0.0
    chosen = np.empty(case["size"], np.int32)
    scores = case["scores"].astype(np.float32)
    count = kernels.select(scores, case["keep"], units, codes, p, np.zeros(5, np.int64), case["size"], case["strength"],
                           calibration, SMOOTHING, case["cap"], chosen)
    assert count == min(case["size"], case["keep"].sum()) and len(set(chosen[:count].tolist())) == count
    for step in range(count):
        before, this = chosen[:step].tolist(), int(chosen[step])
        worth = twin.values(before, case["scores"], case["vectors"], case["categories"], case["p"], case["strength"],
                            calibration, SMOOTHING)
        firsts = [case["categories"][j][:1] for j in before]
        open_ = [i for i in range(n) if case["keep"][i] and i not in before]
        free = [i for i in open_ if not case["cap"] or not case["categories"][i]
                or firsts.count(case["categories"][i][:1]) < case["cap"]]
        assert this in (free or open_)
        assert worth[this] >= max(worth[i] for i in free or open_) - 1e-4


@settings(max_examples=100)
@given(st.lists(st.integers(0, 79), min_size=1, max_size=40, unique=True),
       st.lists(st.tuples(st.integers(0, 79), st.sampled_from([1.0, 2.0, 6.0])), max_size=10, unique_by=lambda s: s[0]),
       st.dictionaries(st.sampled_from(CATEGORIES), st.floats(0.015625, 1, width=32), max_size=4), st.integers(0, 9))
def test_the_score_and_who_joins(bundle: Bundle, listed: list[int], session: list[tuple[int, float]],
                                 preference: dict[str, float], extras: int) -> None:
    ids = [f"i{k}" for k in listed]
    scores = np.linspace(3, 1, len(ids)).astype(np.float32)
    recs = RankedList(ids, scores, ["two_tower"] * len(ids), ["similar_taste"] * len(ids), [""] * len(ids), "m1", 0, 1)
    policy = replace(load().of("homepage"), diversity=0.0, calibration=0.0, explore_slot=0, max_per_category=0, preference=0.3,
                     session=0.7, session_items=6, session_candidates=extras)
    signals = Signals(session=[(f"i{k}", w) for k, w in session], preference=preference)
    found = rank(Ask("u", page_size=90), Candidates(recs, "v1", "list", True), signals, policy, bundle)

    near_of = {i: dict(zip(bundle.ids(n), s.tolist(), strict=True)) for i, (n, s) in
               ((i, bundle.neighbours_of(at)) for at, i in enumerate(bundle.item_ids.to_pylist()))}
    near = twin.near_session([(i, w) for i, w in signals.session][:6], near_of, SESSION_HALF_LIFE)
    newcomers = sorted((i for i in near if i not in ids and i not in dict(list(signals.session)[:6])),
                       key=lambda i: (-np.float32(near[i]), int(bundle.positions([i])[0])))[:extras]
    assert set(found.item_ids) >= set(ids) and len(found.item_ids) == len(ids) + len(newcomers)
    joined = sorted(near[i] for i in set(found.item_ids) - set(ids))
    assert np.allclose(joined, sorted(near[i] for i in newcomers), rtol=1e-5)
    top = max((near.get(i, 0.0) for i in found.item_ids), default=0.0)
    base = dict(zip(ids, twin.list_share(scores.tolist()), strict=True))
    wanted = [base.get(i, 0.0) + 0.3 * twin.match(preference, [f"c{int(i[1:]) % 5}"]) + 0.7 * near.get(i, 0) / (top or 1)
              for i in found.item_ids]
    assert np.allclose(found.scores, wanted, atol=1e-5) and (np.diff(found.scores) <= 1e-6).all()


@given(st.integers(0, 2**62), st.integers(1, 12))
def test_thompson_draws_are_those_of_the_stream(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    fit, seen = rng.random(n).astype(np.float32), rng.integers(0, 1000, n).astype(np.float32)
    clicks = (seen * rng.random(n) * 0.2).astype(np.float32)
    drawn = twin.thompson(seed, 0.05, fit.tolist(), clicks.tolist(), seen.tolist())
    assert explore.thompson(seed, 0.05, np.arange(n, dtype=np.int32), fit, clicks, seen) == int(np.argmax(drawn))


def test_draws_have_the_moments_of_a_beta() -> None:
    drawn = np.array([twin.thompson(seed, 0.05, [0.5], [30.0], [400.0])[0] for seed in range(4000)])
    a, b = 20 * 0.05 + 30, 20 * 0.95 + 370
    assert drawn.mean() == pytest.approx(a / (a + b), rel=0.01)
    assert drawn.var() == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), rel=0.1)


def test_the_better_item_is_explored_more_and_the_unknown_one_not_never() -> None:
    clicks, seen = np.array([50, 5, 0], np.float32), np.array([500, 500, 0], np.float32)
    shown = [explore.thompson(s * 7919, 0.05, np.arange(3, dtype=np.int32), np.full(3, 0.5, np.float32), clicks, seen)
             for s in range(2000)]
    counts = np.bincount(shown, minlength=3)
    assert counts[0] > counts[2] > counts[1] and counts[2] > 50


@given(st.integers(0, 2**62), st.integers(0, 40), st.integers(0, 60))
def test_drawn_places_are_distinct(seed: int, count: int, among: int) -> None:
    found = explore.draw_places(seed, count, among).tolist()
    assert len(found) == min(count, among) == len(set(found)) and all(0 <= p < among for p in found) and found == sorted(found)
