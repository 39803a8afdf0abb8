"""Items newer than the bundle are shown in the exploration slot of lists that were made before them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bundle_world import make_bundle
from test_rank import listed

from models.inference.bundle import Bundle
from schemas.cells import encode_recs
from schemas.keys import hash64
from serving.ranking.listed import read_listed
from serving.ranking.model import Ask, Candidates, Ranked, Signals
from serving.ranking.overlay import ItemUpsert, Overlay
from serving.ranking.policy import Rule, load
from serving.ranking.rank import rank
from serving.truth import _body

HOMEPAGE = replace(load().of("homepage"), diversity=0.0)
NEW = [ItemUpsert(f"new{n}", 1, title="green thing", categories=(f"c{n % 4}",)) for n in range(5)]
FRESH = Overlay.of([*NEW, ItemUpsert("gone", 1, categories=("c0",), is_active=False)])
CLUSTER = [f"i{k}" for k in range(0, 120, 4)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: Any) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "v1", items=120)


def pages(bundle: Bundle, overlay: Overlay = FRESH, policy: Any = HOMEPAGE, signals: Signals | None = None, count: int = 90,
          packed: bool = True, **ask: Any) -> list[Ranked]:
    candidates = listed(CLUSTER)
    if packed:
        candidates = Candidates(read_listed(encode_recs(candidates.recs)), "v1", "list", True)
    return [rank(Ask("u", **{"request_id": f"r{n}", "page_size": 10, **ask}), candidates, signals or Signals(), policy, bundle,
                 overlay) for n in range(count)]


def shown(found: list[Ranked]) -> Counter[str]:
    return Counter(item for page in found for item in page.item_ids if not item.startswith("i"))


@pytest.mark.parametrize("packed", [True, False])
def test_new_items_are_on_half_of_the_pages_and_those_that_fit_more_often(bundle: Bundle, packed: bool) -> None:
    found, before = pages(bundle, packed=packed), pages(bundle, Overlay(), packed=packed)
    seen = shown(found)
    assert set(seen) <= {u.item_id for u in NEW} and len(seen) >= 4 and 30 <= seen.total() <= 60
    for page, without in zip(found, before, strict=True):
        if not shown([page]):
            assert list(page.item_ids) == list(without.item_ids)
            continue
        assert (page.sources[7], page.reasons[7], page.because[7], page.explored) == ("exploration", "new", "", 7)
        assert [*page.item_ids[:7], *page.item_ids[8:]] == [*without.item_ids[:7], *without.item_ids[8:]]
        assert page.more == without.more and len(page.scores) == 10 and page.table is not None and page.table.shape == (5, 10)
        assert page.features["list_score"].tolist()[:7] == without.features["list_score"].tolist()[:7]
        assert _body({}, page, 1)
    assert [list(p.item_ids) for p in pages(bundle, packed=packed)] == [list(p.item_ids) for p in found], "can be replayed"
    assert shown(pages(bundle, count=600))["new0"] > 600 / 2 / 5 * 1.05  # the page is of category c0


def test_what_a_user_must_not_see_is_not_shown_though_it_is_new(bundle: Bundle) -> None:
    assert not shown(pages(bundle, policy=load().of("email")))
    assert not shown(pages(bundle, policy=replace(HOMEPAGE, rules=(Rule("block", category="c1"),)))).keys() & {"new1"}
    hidden = shown(pages(bundle, signals=Signals(hidden=frozenset(["new0"])), exclude=frozenset(["new1"]),
                         shown=np.array([hash64("new2") & 0xFFFFFFFF], np.uint32)))
    assert set(hidden) == {"new3", "new4"}
    assert not shown(pages(bundle, page_size=7)), "the slot is not on the page"


def test_a_page_without_an_explored_item_makes_room(bundle: Bundle) -> None:
    known = replace(bundle, impressions=np.full(120, 5000, np.float32))
    for page in pages(known):
        assert len(page.item_ids) == 10 and page.explored == (7 if shown([page]) else -1) and page.more
    short = rank(Ask("u", request_id="r1", page_size=10), listed(CLUSTER[:7]), Signals(), HOMEPAGE, known, FRESH)
    assert len(short.item_ids) in (7, 8)
