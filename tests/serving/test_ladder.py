"""Where a list comes from: every tier, what guards it, and that the page is full whatever fails."""

import asyncio
import contextlib
import time
from dataclasses import replace

import numpy as np
import pytest
from ranking.bundle_world import make_bundle
from serving_world import DAY, NOW

from schemas.cells import RankedList, decode_recs
from schemas.keys import hash64, list_key
from serving import ladder
from serving.ladder import NothingPublishedError
from serving.made_lists import Budget
from serving.ranking import policy
from serving.ranking.model import Ask, Signals
from serving.ranking.on_demand import Fresh
from serving.ranking.overlay import ItemUpsert, Overlay
from serving.recommender import Recommender
from serving.stores.aio import open_async
from serving.stores.base import StoreError

PLAIN = policy.parse("""
[contexts.homepage]
preference = 0
session = 0
diversity = 0
calibration = 0
max_per_category = 0
explore_slot = 0
""", "plain", policy.load())
"""A homepage in the order of its list: what is tested here is where the list comes from."""


class Switched:
    """An AsyncStore whose calls fail, or take long, as told."""

    def __init__(self, store):
        self.inner, self.down, self.slow_s, self.calls = store, set(), 0.0, []

    def __getattr__(self, name):
        call = getattr(self.inner, name)

        async def guarded(*args, **kwargs):
            self.calls.append(name)
            if name in self.down:
                raise StoreError("switched off")
            if self.slow_s and name in ("read_lists", "read_row"):
                await asyncio.sleep(min(self.slow_s, kwargs["timeout"] if "timeout" in kwargs else args[2]))
                raise StoreError("out of time")
            return await call(*args, **kwargs)

        return guarded


class Signalled:
    """Signals by user, through the store as the real ones are."""

    def __init__(self, **users):
        self.users = users

    async def __call__(self, store, user_id, now, seconds):
        await store.read_features([user_id], "stream", ["x"], timeout=seconds)
        return self.users.get(user_id, Signals())


def made_list(ask, signals, bundle, how, now):
    """A list on demand of the neighbours of the user's history."""
    if not signals.history:
        return None
    ids = [f"i{k}" for k in range(20, 50)]
    n = len(ids)
    return RankedList(ids, np.linspace(1, 0, n).astype(np.float32), ["item_cf"] * n, ["similar_taste"] * n, [""] * n, "m1",
                      now, now + DAY)


@contextlib.asynccontextmanager
async def opened(world, **more):
    store = Switched(open_async(world.uri))
    made = Recommender(store, lambda: NOW, world.workspace.root / "bundles", PLAIN, **more)
    await made.open()
    try:
        yield made, store
    finally:
        await made.close()
        await store.inner.close()


def bundle(world, version="v1", **more):
    return make_bundle(world.workspace.root / "bundles" / version, version=version, **more)


def run(coroutine):
    return asyncio.run(coroutine)


def ids_of(answer):
    return list(answer.ranked.item_ids)


LISTED = [f"i{k}" for k in range(10, 40)]


@pytest.fixture
def published(world):
    """v1 before v2; ann has a list in both, old Bob in v1 alone, late's is expired, nobody's are the popular ones."""
    for version in ("v1", "v2"):
        bundle(world, version, segments={"power": [f"i{k}" for k in range(50, 20, -1)]})
        world.put_list("", version, ["i0", "i1"])
        world.put_list("ann", version, LISTED if version == "v2" else LISTED[::-1], model="m1")
    world.put_list("bob", "v1", LISTED)
    world.put_list("late", "v2", LISTED, expires_at=NOW)
    world.flip("v2", previous="v1")
    return world


def test_each_tier_answers_with_a_full_page_of_one_version(published):
    async def drill():
        known = Signals(known=True, history=[("i3", 1.0)])
        signals = Signalled(cat=known, dora=Signals(known=True, segment="power"))
        async with opened(published, make_list=made_list, read_signals=signals) as (recommender, _):
            for user, tier, version, first in (("ann", "list", "v2", "i10"), ("bob", "previous_list", "v1", "i10"),
                                               ("late", "expired_list", "v2", "i10"), ("cat", "on_demand", "v2", "i20"),
                                               ("dora", "segment_popular", "v2", "i50"), ("eve", "popular", "v2", "i0"),
                                               ("", "popular", "v2", "i0")):
                answer = await recommender.recommend(Ask(user))
                assert (answer.candidates.tier, answer.candidates.version) == (tier, version), user
                assert ids_of(answer)[0] == first and len(set(ids_of(answer))) == 20
                assert answer.bundle.version == version

    run(drill())


def test_an_expired_list_is_made_anew_where_that_is_possible_and_the_new_one_is_kept(published):
    async def drill():
        signals = Signalled(late=Signals(known=True, history=[("i3", 1.0)]))
        async with opened(published, make_list=made_list, read_signals=signals) as (recommender, _):
            answers = [await recommender.recommend(Ask("late")) for _ in range(3)]
            assert [a.candidates.tier for a in answers] == ["on_demand"] * 3
            assert recommender.ladder.made.get("v2", "homepage", "late", NOW) is not None
            await recommender.ladder.made.close()
            answer = await recommender.recommend(Ask("late"))
            assert answer.candidates.tier == "list" and ids_of(answer) == ids_of(answers[0])
        cell = published.store.read_lists([list_key("late", "homepage")], "v2")[0]
        assert decode_recs(cell.value).item_ids[0] == "i20"

    run(drill())


def test_without_the_store_popular_items_of_the_bundle_answer_and_no_call_is_made_while_the_breaker_is_open(published):
    async def drill():
        async with opened(published, read_signals=Signalled()) as (recommender, store):
            await recommender.recommend(Ask("ann"))
            store.down = {"read_lists", "read_features", "read_row", "active"}
            tiers = [(await recommender.recommend(Ask("ann"))).candidates.tier for _ in range(5)]
            assert tiers == ["popular_in_memory"] * 5
            assert recommender.breakers.lists.state == recommender.breakers.features.state == "open"
            calls = len(store.calls)
            answer = await recommender.recommend(Ask("ann"))
            assert len(ids_of(answer)) == 20 and answer.signals.missing
            assert [c for c in store.calls[calls:] if c != "active"] == []
            store.down = set()
            deadline = time.monotonic() + 5
            while (await recommender.recommend(Ask("ann"))).candidates.tier != "list":
                assert time.monotonic() < deadline, "it did not recover by itself"
                await asyncio.sleep(0.05)
            assert recommender.breakers.lists.state == "closed"

    run(drill())


def test_features_alone_lost_the_list_is_served_as_it_is_stored(published):
    async def drill():
        async with opened(published, read_signals=Signalled()) as (recommender, store):
            store.down = {"read_features"}
            for _ in range(5):
                answer = await recommender.recommend(Ask("ann"))
                assert answer.candidates.tier == "list" and answer.signals.missing and ids_of(answer) == LISTED[:20]
            assert recommender.breakers.features.state == "open" and recommender.breakers.lists.state == "closed"

    run(drill())


def test_an_index_that_fails_costs_only_lists_on_demand(published):
    def broken(ask, signals, bundle, how, now):
        raise ValueError("no index")

    async def drill():
        signals = Signalled(cat=Signals(known=True, history=[("i3", 1.0)], segment="power"))
        async with opened(published, make_list=broken, read_signals=signals) as (recommender, _):
            tiers = [(await recommender.recommend(Ask("cat"))).candidates.tier for _ in range(6)]
            assert tiers == ["segment_popular"] * 6 and recommender.breakers.index.state == "open"
            assert (await recommender.recommend(Ask("ann"))).candidates.tier == "list"

    run(drill())


def test_a_slow_store_costs_the_deadline_and_then_nothing(published):
    async def drill():
        async with opened(published) as (recommender, store):
            store.slow_s = 10
            started = time.monotonic()
            for _ in range(20):
                answer = await recommender.recommend(Ask("ann"))
                assert answer.candidates.tier == "popular_in_memory" and len(ids_of(answer)) == 20
            assert time.monotonic() - started < 1

    run(drill())


def test_new_items_are_shown_to_users_with_a_list_and_to_strangers(published):
    async def drill():
        async with opened(published, read_signals=Signalled()) as (recommender, _):
            recommender.policies = policy.load()
            recommender.fresh = Fresh(Overlay.of([ItemUpsert(f"new{n}", 1, categories=(f"c{n}",)) for n in range(3)]))
            for user, tier in (("ann", "list"), ("eve", "popular"), ("", "popular")):
                shown = set()
                for number in range(40):
                    answer = await recommender.recommend(Ask(user, request_id=f"r{number}"))
                    assert answer.candidates.tier == tier and len(set(ids_of(answer))) == 20
                    shown |= {i for i in ids_of(answer) if i.startswith("new")}
                assert shown == {"new0", "new1", "new2"}, user

    run(drill())


def test_a_page_is_full_when_the_catalogue_has_enough_whatever_is_hidden(published):
    async def drill():
        hidden = frozenset(LISTED) | {f"i{k}" for k in range(8)}
        signals = Signalled(ann=Signals(known=True, hidden=hidden),
                            all=Signals(known=True, hidden=frozenset(f"i{k}" for k in range(60))))
        async with opened(published, read_signals=signals) as (recommender, _):
            answer = await recommender.recommend(Ask("ann", page_size=20))
            assert len(ids_of(answer)) == 20 and not set(ids_of(answer)) & hidden
            rest = await recommender.recommend(Ask("ann", page_size=30))
            assert len(ids_of(rest)) == 60 - len(hidden), "there are no more"
            everything = await recommender.recommend(Ask("all", page_size=5, exclude=frozenset(["i0"])))
            assert ids_of(everything) == ["i1", "i2", "i3", "i4", "i5"], "rather what was seen than nothing"

    run(drill())


def test_a_real_list_on_demand_for_who_has_history_but_no_list(published):
    async def drill():
        signals = Signalled(cat=Signals(known=True, hidden=frozenset(["i4"]), history=[("i4", 2.0), ("i8", 2.0)],
                                        history_days=[0.1, 0.2], segment="power"))
        async with opened(published, read_signals=signals) as (recommender, _):
            answer = await recommender.recommend(Ask("cat"))
            assert answer.candidates.tier == "on_demand" and len(set(ids_of(answer))) == 20 and "i4" not in ids_of(answer)
            assert "because_you_watched" in answer.ranked.reasons

    run(drill())


CAT = Signals(known=True, history=[("i4", 2.0), ("i8", 2.0)], history_days=[0.1, 0.2])


def test_a_list_made_for_another_context_is_not_the_surfaces_list(published):
    async def drill():
        async with opened(published, read_signals=Signalled(cat=CAT)) as (recommender, _):
            email = (await recommender.recommend(Ask("cat", "email"))).candidates
            assert email.tier == "on_demand" and email.recs.expires_at == NOW + 86_400_000_000
            await recommender.ladder.made.close()
            homepage = (await recommender.recommend(Ask("cat"))).candidates
            assert homepage.tier == "on_demand" and homepage.recs.expires_at == NOW + 300_000_000
            assert (await recommender.recommend(Ask("cat", "email"))).candidates.recs is email.recs
            await recommender.ladder.made.close()
        cell = published.store.read_lists([list_key("cat", "homepage")], "v2")[0]
        assert decode_recs(cell.value).expires_at == NOW + 300_000_000

    run(drill())


def test_a_list_around_items_that_is_refused_never_becomes_the_users_list(published):
    answers = [False, True]

    class Busy(Budget):
        def allows(self):
            return answers.pop(0) if answers else True

    async def drill():
        async with opened(published, read_signals=Signalled(cat=CAT)) as (recommender, _):
            recommender.ladder._budget = Busy()
            for context in ("item", "homepage"):
                answer = await recommender.recommend(Ask("cat", context, ("i3",) if context == "item" else ()))
                assert answer.candidates.tier == "on_demand"
                assert "similar_item" not in answer.candidates.recs.reasons

    run(drill())


@pytest.mark.parametrize(("pages", "state"), [(0, "closed"), (3, "open")])
def test_what_one_ask_computes_is_no_failure_of_the_index_but_waiting_for_its_disk_is(published, monkeypatch, pages, state):
    read = [0]
    monkeypatch.setattr(ladder, "_pages_read", lambda: read[0])

    def slow(ask, signals, bundle, how, now):
        time.sleep(0.09)
        read[0] += pages

    async def drill():
        async with opened(published, make_list=slow, read_signals=Signalled(cat=CAT)) as (recommender, _):
            recommender.ladder._budget = Budget(burst_s=60)
            for _ in range(4):
                await recommender.recommend(Ask("cat"))
            assert recommender.breakers.index.state == state

    run(drill())


def test_lists_around_items_are_kept_as_long_as_the_policy_says_for_everybody(published):
    async def drill():
        async with opened(published, read_signals=Signalled()) as (recommender, _):
            made, whole = [], recommender.ladder._around
            recommender.ladder._around = lambda *given: made.append(given) or whole(*given)
            first = await recommender.recommend(Ask("ann", "item", ("i3",)))
            again = await recommender.recommend(Ask("bob", "item", ("i3",)))
            assert len(made) == 1 and ids_of(first) == ids_of(again) and again.candidates.tier == "on_demand"
            for context, items in (("item", ("i4",)), ("cart", ("i3",))):
                await recommender.recommend(Ask("ann", context, items))
            assert len(made) == 3
            choice, item = recommender.choose(Ask("ann", "item")), recommender.policy("item")
            for later, calls in ((599, 3), (600, 4)):
                recommender.ladder.around(Ask("ann", "item", ("i3",)), choice, Signals(), item, NOW + later * 1_000_000)
                assert len(made) == calls

    run(drill())


@pytest.mark.parametrize(("context", "reason"), [("item", "similar_item"), ("cart", "goes_together")])
def test_contexts_around_items_start_from_what_lies_around_them_also_without_the_store(published, context, reason):
    async def drill():
        async with opened(published, read_signals=Signalled()) as (recommender, store):
            ask = Ask("ann", context, ("i3",), page_size=3)
            for down in (set(), {"read_lists", "read_features", "read_row", "active"}):
                store.down = down
                answer = await recommender.recommend(ask)
                assert answer.candidates.tier == "on_demand" and "i3" not in ids_of(answer)
                assert set(answer.ranked.reasons) == {reason} and set(answer.ranked.because) == {"i3"}
            store.down = set()
            unknown = await recommender.recommend(Ask("ann", context, ("nothing",)))
            assert len(ids_of(unknown)) == 20, "an item nobody knows is no reason for an empty page"

    run(drill())


def test_similar_items_with_and_without_the_index(published):
    async def drill():
        async with opened(published, read_signals=Signalled(ann=Signals(hidden=frozenset(["i7"])))) as (recommender, _):
            found = await recommender.similar("i3", "ann", 10)
            assert len(found.items) == 10 and not found.degraded and not {"i3", "i7"} & {s.item_id for s in found.items}
            assert await recommender.similar("nothing") is None
            for _ in range(3):
                recommender.breakers.index.failed()
            found = await recommender.similar("i3", "ann", 10)
            assert found.degraded and [s.item_id for s in found.items] == ["i11", "i15"]

    run(drill())


def test_a_list_of_the_client_is_ordered_by_fresh_signals_and_nothing_joins_it(published):
    async def drill():
        signals = Signalled(ann=Signals(hidden=frozenset(["i12"]), session=[("i1", 3.0)]))
        async with opened(published, read_signals=signals) as (recommender, store):
            recommender.policies = policy.load()
            ids = ["i10", "i5", "i12", "i11"]
            answer = await recommender.rerank(Ask("ann"), ids)
            assert sorted(ids_of(answer)) == ["i10", "i11", "i5"] and ids_of(answer)[0] == "i5"
            store.down = {"read_features"}
            assert ids_of(await recommender.rerank(Ask("ann"), ids))[0] == "i10" and len(ids) == 4

    run(drill())


def test_versions_without_bundles_answer_from_lists_and_remember_the_popular_one(world):
    async def drill():
        world.put_list("", "v1", ["p1", "p2"])
        world.put_list("ann", "v1", ["a1", "a2"])
        world.flip("v1")
        async with opened(world) as (recommender, store):
            assert ids_of(await recommender.recommend(Ask("ann"))) == ["a1", "a2"]
            assert ids_of(await recommender.recommend(Ask("new"))) == ["p1", "p2"]
            store.down = {"read_lists"}
            answer = await recommender.recommend(Ask("ann"))
            assert ids_of(answer) == ["p1", "p2"] and answer.candidates.tier == "popular_in_memory"
            assert recommender.check() == "ready"

    run(drill())


def test_nothing_published_is_said(world):
    async def drill():
        async with opened(world) as (recommender, _):
            with pytest.raises(NothingPublishedError):
                await recommender.recommend(Ask("ann"))
            with pytest.raises(NothingPublishedError):
                recommender.check()

    run(drill())


def test_pages_go_on_in_the_version_they_began_in(published):
    async def drill():
        async with opened(published) as (recommender, _):
            first = await recommender.recommend(Ask("ann"))
            published.flip("v3", previous="v2")
            bundle(published, "v3")
            published.put_list("ann", "v3", ["i1", "i2"])
            await until(lambda: recommender.versions.served["homepage"].champion == "v3")
            shown = np.array([hash64(i) & 0xFFFFFFFF for i in ids_of(first)], np.uint32)
            ask = Ask("ann", page_size=10, version=first.candidates.version, shown=shown)
            assert ids_of(await recommender.recommend(ask)) == LISTED[20:]
            assert (await recommender.recommend(replace(ask, version="gone"))).candidates.version == "v3"

    run(drill())


async def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_the_budget_of_lists_on_demand_is_a_share_of_time():
    budget = Budget(share=0.5, burst_s=0.02)
    assert budget.allows()
    budget.spent(0.05)
    assert not budget.allows()
    time.sleep(0.07)
    assert budget.allows()
