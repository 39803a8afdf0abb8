"""Lists made at a request: what they are made of, and what is said of users who are little known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bundle_world import make_bundle

from models.inference.bundle import Bundle
from models.inference.words import WordIndex, items_of_words
from schemas.cells import encode_recs
from serving.ranking.model import Ask, Signals
from serving.ranking.on_demand import Fresh, make, user_vector
from serving.ranking.overlay import ItemUpsert, Overlay, centroid, content_vector
from serving.ranking.policy import load
from serving.ranking.prior import prior
from serving.ranking.warm import warm_up
from transforms.candidates import Blend, Ranker, users_of

KNOWN = Signals(known=True, history=[("i4", 3.0), ("i8", 2.0), ("i12", 1.0)], hidden=frozenset(["i4", "i8"]))
NOW = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: Any) -> Bundle:
    segments = {"new": ["i40", "i41"], "age=25": ["i50", "i51"]}
    return make_bundle(tmp_path_factory.mktemp("b") / "v1", items=120, segments=segments)


def test_it_is_the_list_that_the_recommend_job_would_make(bundle: Bundle) -> None:
    found = make(Ask("u"), KNOWN, bundle, NOW)
    struct = pa.struct([("ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])
    snapshot = pa.record_batch({
        "user_id": pa.array(["u"]), "last_items": pa.array([{"ids": ["i4", "i8", "i12"], "scores": [3.0, 2.0, 1.0]}], struct),
        "consumed_items": pa.array([{"ids": ["i4", "i8"], "scores": [1.0, 1.0]}], struct)})
    users = users_of(snapshot, bundle.catalogue, Blend())
    vector = user_vector(KNOWN, bundle, bundle.positions(["i4", "i8", "i12"]), Blend())[None, :]
    nearest, dots = bundle.index.search(vector, 102, "m1")
    lists = Ranker(bundle.catalogue, Blend()).rank(users, vector, np.ones(1, bool), nearest, dots)
    assert found is not None and list(found.item_ids) == bundle.ids(lists.positions[0, : lists.counts[0]])
    assert np.allclose(found.scores, lists.scores[0, : lists.counts[0]])
    assert (found.model_version, found.generated_at, found.expires_at) == ("m1", NOW, NOW + 900_000_000)
    assert encode_recs(found)  # it can be stored as a list of its version


def test_a_list_has_neither_hidden_nor_inactive_items_and_says_why(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "v1", items=120, inactive=["i16"])
    found = make(Ask("u"), KNOWN, bundle, NOW)
    assert found is not None and len(found.item_ids) == 100 and len(set(found.item_ids)) == 100
    assert not {"i4", "i8", "i16"} & set(found.item_ids)
    assert ("because_you_watched", "i8") in zip(found.reasons, found.source_item_ids, strict=True)
    top = [int(i[1:]) % 4 for i in found.item_ids[:10]]
    assert top.count(0) >= 7  # the category of the history


def test_the_mean_of_what_was_liked_with_decay_where_there_is_no_tower(bundle: Bundle) -> None:
    positions = bundle.positions(["i4", "i8", "i12"])
    weights = np.array([3.0, 2.0 * 2**-0.1])  # i12 was only viewed: weight 1 is no like
    wanted = (weights @ bundle.vectors[positions[:2]]) / weights.sum()
    assert np.allclose(user_vector(KNOWN, bundle, positions, Blend()), wanted, atol=1e-6)


def test_nothing_is_made_of_nothing(bundle: Bundle) -> None:
    assert make(Ask("u"), Signals(), bundle, NOW) is None
    assert make(Ask("u"), replace(KNOWN, missing=True), bundle, NOW) is None
    assert make(Ask("u"), Signals(history=[("gone", 3.0)]), bundle, NOW) is None


def test_who_signed_up_gets_what_people_like_them_like(bundle: Bundle) -> None:
    found = make(Ask("u"), Signals(known=True, attributes={"age": "25", "country": "XX"}, segment="new"), bundle, NOW)
    assert found is not None and list(found.item_ids[:4]) == ["i50", "i40", "i51", "i41"]
    positions, scores = prior(bundle, {"age": "25"}, "new")
    named = dict(zip(bundle.ids(positions), scores.tolist(), strict=True))
    everybody = dict(zip(bundle.ids(bundle.popular()[0]), bundle.popular()[1].tolist(), strict=True))
    assert named["i50"] == pytest.approx(0.5 + 0.2 * everybody["i50"])
    assert named["i41"] == pytest.approx(0.3 * 0.5 + 0.2 * everybody["i41"])
    assert (np.diff(scores) <= 0).all()


def test_named_interests_are_categories(bundle: Bundle) -> None:
    found = make(Ask("u"), Signals(known=True, attributes={"interests": "c3, nothing"}), bundle, NOW)
    assert found is not None
    assert [int(i[1:]) % 4 for i in found.item_ids[:8]] == [3] * 8


def test_the_first_events_weigh_more_and_more(bundle: Bundle) -> None:
    likes = [(f"i{k}", 3.0) for k in range(1, 40, 4)]
    expected = dict(zip(*[x.tolist() for x in prior(bundle, {"age": "25"}, "new")], strict=True))
    top = []
    for count in (1, 3, 10):
        signals = Signals(known=True, low_confidence=True, history=likes[:count], attributes={"age": "25"}, segment="new")
        found = make(Ask("u"), signals, bundle, NOW)
        assert found is not None
        top.append(np.mean([expected.get(int(p), 0) for p in bundle.positions(found.item_ids[:10])]))
    assert top[0] > top[2]
    sure = make(Ask("u"), Signals(known=True, history=likes[:1]), bundle, NOW)
    doubtful = make(Ask("u"), Signals(known=True, low_confidence=True, history=likes[:1]), bundle, NOW)
    assert sure is not None and doubtful is not None and list(sure.item_ids) != list(doubtful.item_ids)


def test_a_new_item_of_a_known_taste_joins_within_minutes(bundle: Bundle) -> None:
    overlay = Overlay.of([ItemUpsert("fresh", 1, title="green thing old", categories=("c0",)),
                          ItemUpsert("other", 1, title="", categories=("c1",)), ItemUpsert("unknown", 1, title="Zzz qqq"),
                          ItemUpsert("gone", 1, categories=("c0",), is_active=False)])
    found = make(Ask("u"), KNOWN, bundle, NOW, Fresh(overlay))
    assert found is not None
    place = {i: at for at, i in enumerate(found.item_ids)}
    assert place["fresh"] < 20 and place["fresh"] < place.get("other", 100) and not {"unknown", "gone"} & set(place)
    assert (found.sources[place["fresh"]], found.reasons[place["fresh"]]) == ("content", "new")
    hidden = make(Ask("u"), replace(KNOWN, hidden=frozenset(["fresh"])), bundle, NOW, Fresh(overlay))
    assert hidden is not None and "fresh" not in hidden.item_ids


def test_what_is_trending_joins(bundle: Bundle) -> None:
    found = make(Ask("u"), KNOWN, bundle, NOW, Fresh(trending=[("i77", 9.0), ("i4", 8.0), ("i78", 1.0)]))
    assert found is not None
    place = found.item_ids.index("i77")
    assert (found.sources[place], found.reasons[place]) == ("trending", "trending") and "i4" not in found.item_ids


def test_the_content_vector(bundle: Bundle) -> None:
    c0 = centroid(bundle, "c0")
    members = bundle.units(bundle.positions([f"i{k}" for k in range(0, 116, 4)]))
    mean = members.mean(axis=0)
    assert np.allclose(c0, mean / np.linalg.norm(mean), atol=1e-5)
    only_category = content_vector(bundle, ItemUpsert("x", 0, categories=("c0",)))
    assert np.allclose(only_category, c0, atol=1e-6)
    titled = content_vector(bundle, ItemUpsert("x", 0, title="GREEN things", categories=("c0",)))
    assert 0.5 < float(titled @ c0) < 0.9999
    words = [bundle.units(items).mean(axis=0) / np.log1p(len(items)) for items in items_of_words(
        WordIndex(bundle.word_hashes, bundle.word_offsets, bundle.word_items), "GREEN things")]
    text = sum(words) / np.linalg.norm(sum(words))
    content = (text + c0) / np.linalg.norm(text + c0)
    wanted = 0.7 * content + 0.3 * c0
    assert np.allclose(titled, wanted / np.linalg.norm(wanted), atol=1e-5)
    assert not content_vector(bundle, ItemUpsert("x", 0, title="no such word", categories=("none",))).any()


def test_overlays_keep_the_newest_of_an_item() -> None:
    first, second = ItemUpsert("a", 5, title="new"), ItemUpsert("a", 3, title="old", is_active=False)
    for order in ([first, second], [second, first]):
        assert Overlay.of(order).items["a"].title == "new" and not Overlay.of(order).removed
    gone = Overlay.of([first]).with_items([ItemUpsert("a", 9, is_active=False)])
    assert gone.removed == {"a"}


def test_warming_up_reaches_every_context(bundle: Bundle) -> None:
    warm_up(load(), bundle)
    warm_up(load(), bundle)
