"""Ranking: what each strength does, what is never shown, and the page that no signal changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bundle_world import make_bundle

from models.inference.bundle import Bundle
from schemas.cells import RankedList
from schemas.keys import hash64
from serving.ranking.model import Ask, Candidates, Ranked, Signals
from serving.ranking.policy import ContextPolicy, Rule, load
from serving.ranking.rank import rank
from serving.ranking.rules import rules_of

PLAIN = replace(load().of("homepage"), preference=0.0, session=0.0, diversity=0.0, calibration=0.0, max_per_category=0,
                explore_slot=0)
BROWSING = Signals(known=True, session=[("i4", 2.0), ("i9", 1.0)], preference={"c1": 0.7, "c3": 0.3})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: Any) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "v1", items=200, categories=5, inactive=["i30"], extra=["x1"])


def listed(ids: list[str], scores: Any = None) -> Candidates:
    n = len(ids)
    values = np.linspace(2, 1, n) if scores is None else scores
    recs = RankedList(ids, np.asarray(values, np.float32), ["two_tower"] * n, ["similar_taste"] * n, [""] * n, "m1", 0, 1)
    return Candidates(recs, "v1", "list", True)


def ids(count: int = 100, first: int = 0) -> list[str]:
    return [f"i{k}" for k in range(first, first + count)]


def page(bundle: Bundle | None, candidates: Candidates, policy: ContextPolicy = PLAIN, signals: Signals | None = None,
         **ask: Any) -> Ranked:
    return rank(Ask("u", request_id="r", **ask), candidates, signals or Signals(), policy, bundle)


def test_without_signals_and_strengths_the_page_is_the_list(bundle: Bundle) -> None:
    wanted = [*ids(25, 40), "unknown", *ids(25, 70)]
    found = page(bundle, listed(wanted))
    assert list(found.item_ids) == wanted[:20] and found.more and found.explored == -1
    assert (np.diff(found.scores) < 0).all()
    assert list(page(bundle, listed(wanted, np.zeros(51)), page_size=51).item_ids) == wanted


def test_hidden_excluded_asked_shown_and_inactive_items_are_left_out(bundle: Bundle) -> None:
    shown = np.array([hash64("i27") & 0xFFFFFFFF], np.uint32)
    found = page(bundle, listed(ids(20, 20)), signals=Signals(hidden=frozenset(["i20", "i21"])), exclude=frozenset(["i23"]),
                 item_ids=("i25",), shown=shown)
    assert list(found.item_ids) == [i for i in ids(20, 20) if i not in ("i20", "i21", "i23", "i25", "i27", "i30")]
    assert not found.more


def test_without_a_bundle_the_list_stands(bundle: Bundle) -> None:
    found = page(None, listed(ids(20, 20)), signals=replace(BROWSING, hidden=frozenset(["i20"])), page_size=5)
    assert list(found.item_ids) == ids(5, 21) and found.more
    assert len(page(bundle, listed([])).item_ids) == 0


def test_paging_shows_everything_once(bundle: Bundle) -> None:
    policy, candidates, seen = load().of("homepage"), listed(ids(60)), []
    for _ in range(20):
        shown = np.array([hash64(i) & 0xFFFFFFFF for i in seen], np.uint32)
        found = page(bundle, candidates, replace(policy, explore_slot=0), BROWSING, shown=shown)
        seen += found.item_ids
        if not found.more:
            break
    assert len(seen) == len(set(seen)) and set(ids(60)) - {"i30"} <= set(seen)


def test_preference_lifts_its_categories(bundle: Bundle) -> None:
    found = page(bundle, listed(ids()), replace(PLAIN, preference=2.0), BROWSING, page_size=10)
    assert {int(i[1:]) % 5 for i in found.item_ids} == {1}
    assert found.features["preference"].tolist() == pytest.approx([0.7 / np.hypot(0.7, 0.3)] * 10)


def test_the_session_brings_its_neighbours_and_says_so(bundle: Bundle) -> None:
    found = page(bundle, listed(ids(50, 100)), replace(PLAIN, session=2.0), BROWSING, page_size=4)
    # i4's neighbours at weight 2: i9 (which is in the session), i14 .25, i19 .167; i9's at 2^(-1/4): i14 .5, i19 .25, i24 .167
    assert list(found.item_ids) == ["i14", "i19", "i100", "i101"]
    assert list(found.because) == ["i4", "i4", "", ""] and list(found.sources)[:2] == ["item_cf"] * 2
    assert list(found.reasons) == ["because_you_watched"] * 2 + ["similar_taste"] * 2
    i14, i19 = 2 * 0.25 + 2**-0.25 * 0.5, 2 * 0.5 / 3 + 2**-0.25 * 0.25
    assert found.features["session"].tolist() == pytest.approx([1, i19 / i14, 0, 0])
    hidden = replace(BROWSING, hidden=frozenset(["i14"]))
    found = page(bundle, listed(ids(50, 100)), replace(PLAIN, session=2.0), hidden, page_size=2)
    assert list(found.item_ids) == ["i19", "i100"]


def test_mmr_spreads_the_page(bundle: Bundle) -> None:
    same = [f"i{k}" for k in range(0, 200, 5)][:20]  # one category: alike
    mixed = listed([*same, *(f"i{k}" for k in range(1, 100, 5))])

    def alike(found: Ranked) -> float:
        rows = bundle.units(bundle.positions(found.item_ids))
        return float((rows @ rows.T).mean())

    pages = [page(bundle, mixed, replace(PLAIN, diversity=d), page_size=10) for d in (0.0, 0.3, 0.6)]
    assert alike(pages[0]) > alike(pages[1]) > alike(pages[2])
    assert all(p.item_ids[0] == "i0" for p in pages)


def test_calibration_follows_the_users_own_mix(bundle: Bundle) -> None:
    tastes = Signals(known=True, preference={"c1": 0.6, "c2": 0.4})
    policy = replace(PLAIN, diversity=0.8, calibration=1.0)
    found = page(bundle, listed(ids()), policy, tastes, page_size=10)
    counts = np.bincount([int(i[1:]) % 5 for i in found.item_ids], minlength=5)
    assert counts[1] == 6 and counts[2] == 4


def test_at_most_so_many_of_a_category_until_nothing_else_is_left(bundle: Bundle) -> None:
    one, other = [f"i{k}" for k in range(0, 50, 5)], [f"i{k}" for k in range(1, 20, 5)]
    found = page(bundle, listed([*one, *other]), replace(PLAIN, max_per_category=3), page_size=9)
    assert list(found.item_ids) == [*one[:3], *other[:3], *one[3:6]]


def test_rules(bundle: Bundle) -> None:
    rules = (Rule("block", item="i0"), Rule("block", attribute="year", value="1993"), Rule("boost", category="c4", add=5.0),
             Rule("boost", item="i2", add=9.0))
    found = page(bundle, listed(ids(20)), replace(PLAIN, rules=rules))
    assert list(found.item_ids) == ["i2", "i4", "i9", "i14", "i19", "i1", "i5", "i6", "i7", "i8", "i10", "i11", "i12", "i15",
                                    "i16", "i17", "i18"]
    assert float(found.features["boost"][1]) == 5.0


EXPLORING = replace(PLAIN, explore_slot=8)


def test_the_exploration_slot_is_replayable_and_takes_items_few_have_seen(bundle: Bundle) -> None:
    first = [f"i{k}" for k in range(0, 120, 3)]  # 2,000 impressions each: none of them may be explored
    chosen = set()
    for request in range(40):
        ask = Ask("u", request_id=f"r{request}", page_size=10)
        found = rank(ask, listed(first), Signals(), EXPLORING, bundle)
        again = rank(ask, listed(first), Signals(), EXPLORING, bundle)
        assert list(found.item_ids) == list(again.item_ids) and found.explored == 7
        assert list(found.item_ids[:7]) == first[:7] and list(found.item_ids[8:]) == first[7:9]
        assert found.sources[7] == "exploration" and found.more
        at = bundle.positions([found.item_ids[7]])[0]
        assert bundle.impressions[at] < 1000 and bundle.active[at]
        chosen.add(found.item_ids[7])
    assert len(chosen) > 5


def test_items_that_nobody_has_seen_are_explored_however_many_are_more_popular(tmp_path: Any) -> None:
    made = make_bundle(tmp_path / "v1", items=3000)
    never = np.arange(3000) >= 2700
    bundle = replace(made, impressions=np.where(never, 0, 500).astype(np.float32))
    assert np.isin(np.flatnonzero(never), rules_of(EXPLORING, bundle).explorable).all()
    pages = [rank(Ask("u", request_id=f"r{n}"), listed(ids(20)), Signals(), EXPLORING, bundle) for n in range(40)]
    assert any(never[bundle.positions([found.item_ids[7]])[0]] for found in pages)
    newest = replace(made, impressions=np.zeros(3000, np.float32), age_days=np.arange(3000, 0, -1).astype(np.float32))
    drawn = set(rules_of(EXPLORING, newest).explorable.tolist())
    assert len(drawn) == 2000 and {*range(1000), *range(2000, 2996)} <= drawn


def test_who_is_little_known_gets_more_exploration(bundle: Bundle) -> None:
    found = page(bundle, listed(ids(100)), EXPLORING, Signals(known=True, low_confidence=True), page_size=10)
    assert list(found.sources).count("exploration") == 2 and len(set(found.item_ids)) == 10 and found.explored == 7


def test_exploration_never_shows_what_is_hidden_and_needs_its_place(bundle: Bundle) -> None:
    for request in range(30):
        ask = Ask("u", request_id=f"r{request}", page_size=10, exclude=frozenset(ids(190, 10)))
        found = rank(ask, listed(ids(10)), Signals(hidden=frozenset(["x1"])), EXPLORING, bundle)
        assert set(found.item_ids) <= set(ids(10))
    assert page(bundle, listed(ids(100)), EXPLORING, page_size=7).explored == -1
