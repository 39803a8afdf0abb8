"""Similar items, what goes with a cart, a client's list in a fresher order, and items newer than the bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bundle_world import make_bundle

from models.inference.bundle import Bundle
from models.inference.idtable import hashes_of
from models.inference.words import word_hashes, words_of
from serving.ranking.model import Ask, Signals
from serving.ranking.overlay import ItemUpsert, Overlay
from serving.ranking.policy import Rule, load
from serving.ranking.rank import rank
from serving.ranking.similar import around, rerank, similar

POLICIES = load()
ITEM = replace(POLICIES.of("item"), diversity=0.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: Any) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "v1", items=120, inactive=["i12"], titles={"i119": "green island"})


def test_the_formula(bundle: Bundle) -> None:
    found = {s.item_id: s for s in similar(bundle, "i4", ITEM, limit=200) or []}
    at = bundle.positions(["i4", "i8", "i16"])
    cosine = bundle.units(at) @ bundle.units(at[:1])[0]
    # i4's neighbours: i8 .5, i12 (inactive), i16 .1667. Shared with i8: the category, and the title word "thing" is too common.
    overlap = found["i8"].similarity_score - 0.5 - 0.4 * max(0, cosine[1])
    assert 0 < overlap <= 0.1 and found["i8"].similarity_type == "cooccurrence"
    assert found["i16"].similarity_score == pytest.approx(0.5 / 3 + 0.4 * max(0, cosine[2]) + overlap, abs=0.08)
    assert {"i4", "i12"}.isdisjoint(found)
    assert all(0 <= s.similarity_score <= 1 for s in found.values())


def test_types_and_shared_attributes(bundle: Bundle) -> None:
    found = similar(bundle, "i4", ITEM, limit=40) or []
    assert found[0].item_id == "i8" and found[0].shared_attributes == {"category": "c0"}
    assert {s.similarity_type for s in found} >= {"cooccurrence", "vector"}
    i44 = next(s for s in similar(bundle, "i4", ITEM, limit=200) or [] if s.item_id == "i44")
    assert i44.shared_attributes == {"category": "c0", "year": "1994"}
    without_vector = similar(bundle, "i119", ITEM, limit=5)
    assert without_vector and {s.similarity_type for s in without_vector} == {"content"}


def test_what_the_viewer_must_not_see(bundle: Bundle) -> None:
    policy = replace(ITEM, rules=(Rule("block", item="i16"),))
    found = similar(bundle, "i4", policy, Signals(hidden=frozenset(["i8"])), limit=200) or []
    assert {"i8", "i16"}.isdisjoint(s.item_id for s in found)
    assert similar(bundle, "nowhere", ITEM) is None


def test_diversity_spreads(bundle: Bundle) -> None:
    def alike(strength: float) -> float:
        found = similar(bundle, "i4", ITEM, limit=10, diversity=strength) or []
        rows = bundle.units(bundle.positions([s.item_id for s in found]))
        return float((rows @ rows.T).mean())

    assert alike(0.0) > alike(0.7)


def test_an_item_newer_than_the_bundle_has_similar_ones(bundle: Bundle) -> None:
    overlay = Overlay.of([ItemUpsert("fresh", 1, title="green", categories=("c2",))])
    found = similar(bundle, "fresh", ITEM, limit=8, overlay=overlay) or []
    assert len(found) == 8 and sum(int(s.item_id[1:]) % 4 == 2 for s in found) >= 6


def test_a_cart_gets_what_goes_with_it_and_not_more_of_the_same(bundle: Bundle) -> None:
    cart = POLICIES.of("cart")
    found = around(Ask("u", "cart", item_ids=("i4", "i20")), cart, bundle, 7)
    assert found is not None and set(found.reasons) == {"goes_together"} and set(found.source_item_ids) <= {"i4", "i20"}
    names = list(found.item_ids)
    assert set(names) == {"i8", "i12", "i16", "i24", "i28", "i32"}
    at = bundle.positions(names)
    alike = np.clip(bundle.units(at) @ bundle.units(bundle.positions(["i4", "i20"])).T, 0, 1).max(axis=1)
    strength = {"i8": 0.5, "i12": 0.25, "i16": 0.5 / 3, "i24": 0.5, "i28": 0.25, "i32": 0.5 / 3}
    wanted = np.array([strength[i] for i in names]) / 0.5 * (1 - 0.5 * alike)
    assert np.allclose(found.scores, wanted, atol=1e-6) and (np.diff(found.scores) <= 0).all()
    assert found.expires_at == 7 + int(cart.cache_seconds * 1e6)


def test_around_an_item(bundle: Bundle) -> None:
    found = around(Ask("u", "item", item_ids=("i4",)), POLICIES.of("item"), bundle, 0)
    assert found is not None and found.item_ids[0] == "i8" and set(found.source_item_ids) == {"i4"}
    assert around(Ask("u", "item", item_ids=("nowhere",)), POLICIES.of("item"), bundle, 0) is None


def test_a_clients_list_is_reordered_and_nothing_joins(bundle: Bundle) -> None:
    ids = [f"i{k}" for k in range(40, 60)]
    signals = Signals(known=True, session=[("i36", 3.0)], preference={"c3": 1.0}, hidden=frozenset(["i50"]))
    policy = replace(POLICIES.of("homepage"), diversity=0.0)
    found = rerank(ids, Ask("u"), signals, policy, bundle)
    assert set(found.item_ids) == set(ids) - {"i50"} and found.item_ids[0] == "i40" and not found.more
    assert list(rerank(ids, Ask("u"), Signals(), policy, bundle).item_ids) == ids
    assert list(rerank(ids, Ask("u"), signals, policy, None).item_ids) == [i for i in ids if i != "i50"]


def test_upserts_newer_than_the_bundle_count_in_ranking(bundle: Bundle) -> None:
    ids = [f"i{k}" for k in range(0, 20)] + ["fresh"]
    policy = replace(POLICIES.of("homepage"), diversity=0.0, explore_slot=0, max_per_category=0, preference=2.0, session=0.0,
                     rules=(Rule("block", category="banned"), Rule("boost", category="c9", add=5.0)))
    overlay = Overlay.of([ItemUpsert("fresh", 1, categories=("c9",)), ItemUpsert("i1", 1, is_active=False),
                          ItemUpsert("i2", 1, categories=("banned",)), ItemUpsert("i12", 1, categories=("c0",))])
    from test_rank import listed

    found = rank(Ask("u", page_size=30), listed(ids), Signals(preference={"c9": 1.0}), policy, bundle, overlay)
    assert found.item_ids[0] == "fresh" and float(found.scores[0]) == pytest.approx(7.0)
    assert {"i1", "i2"}.isdisjoint(found.item_ids) and "i12" in found.item_ids  # active again


FRESH = Overlay.of([ItemUpsert("fresh", 1, title="green", categories=("c0", "c9"), attributes={"year": "1994"}),
                    ItemUpsert("far", 1, categories=("c1",)), ItemUpsert("gone", 1, categories=("c0",), is_active=False)])


def test_items_newer_than_the_bundle_are_similar_by_content(bundle: Bundle) -> None:
    for item in ("i4", "i44"):
        found = {s.item_id: s for s in similar(bundle, item, ITEM, limit=200, overlay=FRESH) or []}
        assert found["fresh"].similarity_type == "vector" and found["fresh"].shared_attributes["category"] == "c0"
        assert 0.2 < found["fresh"].similarity_score < 0.5 and "gone" not in found
        assert found["fresh"].similarity_score > found.get("far", found["i5"]).similarity_score
    assert "year" in found["fresh"].shared_attributes
    policy = replace(ITEM, rules=(Rule("block", category="c9"),))
    assert "fresh" not in [s.item_id for s in similar(bundle, "i4", policy, limit=200, overlay=FRESH) or []]
    hidden = similar(bundle, "i4", ITEM, Signals(hidden=frozenset(["fresh"])), limit=200, overlay=FRESH) or []
    assert "fresh" not in [s.item_id for s in hidden]
    spread = similar(bundle, "fresh", ITEM, limit=20, diversity=0.8, overlay=FRESH) or []
    assert len(spread) == 20 and "fresh" not in [s.item_id for s in spread]


def test_items_newer_than_the_bundle_lie_around_an_item(bundle: Bundle) -> None:
    found = around(Ask("u", "item", item_ids=("i4",)), POLICIES.of("item"), bundle, 0, FRESH)
    assert found is not None and "gone" not in found.item_ids
    place = list(found.item_ids).index("fresh")
    assert (found.sources[place], found.reasons[place], found.source_item_ids[place]) == ("content", "similar_item", "i4")


def test_a_cart_of_new_items_gets_what_goes_with_items_like_them(bundle: Bundle) -> None:
    found = around(Ask("u", "cart", item_ids=("fresh",)), POLICIES.of("cart"), bundle, 0, FRESH)
    assert found is not None and set(found.source_item_ids) == {"fresh"} and set(found.reasons) == {"goes_together"}
    assert sum(int(i[1:]) % 4 == 0 for i in found.item_ids) >= len(found.item_ids) / 2  # neighbours are of one category
    assert around(Ask("u", "cart", item_ids=("nowhere",)), POLICIES.of("cart"), bundle, 0, FRESH) is None


def test_a_list_around_many_items_costs_no_more_than_one_around_a_few(bundle: Bundle) -> None:
    few, many = (around(Ask("u", "item", item_ids=tuple(f"i{k}" for k in range(n))), POLICIES.of("item"), bundle, 0)
                 for n in (5, 50))
    assert few is not None and many is not None and list(few.item_ids) == list(many.item_ids)


def test_the_words_of_a_plain_title_are_those_of_any() -> None:
    for title in ("Green  ISLAND-2, a b'c", "", "x y", "the_end 42"):
        _, words = words_of(pa.array([title]))
        assert word_hashes(title).tolist() == np.unique(hashes_of(words.to_pylist())).tolist()
