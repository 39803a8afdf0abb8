"""What may become of an active pointer."""

import pytest

from serving.pointer import (
    PointerError,
    challenged,
    parse_percent,
    promoted,
    published,
    rolled_back,
    shared,
    withdrawn,
)
from serving.stores import open_store
from serving.stores.base import Active
from serving.versions import version_for


def test_a_publish_keeps_what_a_rollback_returns_to():
    first = published(None, "v1")
    second = published(first, "v2")
    assert first == Active("v1") and second == Active("v2", previous="v1")
    assert published(second, "v2") == second
    assert rolled_back(second) == Active("v1")
    with pytest.raises(PointerError, match="nothing to roll back to"):
        rolled_back(rolled_back(second))


def test_a_canary_grows_is_promoted_or_withdrawn_and_a_rollback_ends_it_first():
    canary = challenged(Active("v2", previous="v1"), "v3", 0.5)
    assert canary == Active("v2", "v3", 0.5, "v1")
    assert shared(canary, 10) == Active("v2", "v3", 10, "v1")
    assert promoted(canary) == published(canary, "v3") == Active("v3", previous="v2")
    assert withdrawn(canary) == rolled_back(canary) == Active("v2", previous="v1")
    assert published(canary, "v4") == Active("v4", "v3", 0.5, "v2"), "a publish leaves the experiment alone"


@pytest.mark.parametrize("change", [lambda a: shared(a, 5), promoted, withdrawn])
def test_without_a_challenger_it_says_how_to_start_one(change):
    with pytest.raises(PointerError, match="--canary"):
        change(Active("v1"))
    with pytest.raises(PointerError, match="nothing is published"):
        change(None)


def test_a_canary_needs_something_beside_it():
    with pytest.raises(PointerError, match="nothing is served yet"):
        challenged(None, "v1", 1)
    with pytest.raises(PointerError, match="everybody already"):
        challenged(Active("v1"), "v1", 1)


@pytest.mark.parametrize(("text", "percent"), [("1%", 1), ("0.5%", 0.5), ("25", 25), (" 100 % ", 100), ("0.01%", 0.01)])
def test_percentages(text, percent):
    assert parse_percent(text) == percent


@pytest.mark.parametrize("text", ["", "0", "0.001%", "101%", "-1", "nan", "inf", "a lot"])
def test_wrong_percentages_say_what_is_wanted(text):
    with pytest.raises(PointerError, match=r"from 0\.01% to 100%"):
        parse_percent(text)


def test_users_are_split_by_hundredths_of_a_percent_and_keep_their_version_as_the_share_grows():
    users = [f"user {n}" for n in range(40_000)]
    seen = set()
    for percent, low, high in ((0.01, 0, 15), (0.5, 140, 260), (1, 320, 480), (30, 11_500, 12_500), (100, 40_000, 40_000)):
        active = Active("champion", "challenger", percent)
        now = {u for u in users if version_for(active, u) == "challenger"}
        assert low <= len(now) <= high, percent
        assert seen <= now
        seen = now


def test_a_fine_share_survives_the_store_and_a_whole_one_is_one_value_however_written(tmp_path):
    store = open_store(f"sqlite:{tmp_path / 's.db'}")
    for active in (Active("a", "b", 0.25), Active("a", "b", 1.0), Active("a", "b", 1)):
        assert store.flip("homepage", store.active("homepage"), active)
        assert store.active("homepage") == active
    assert repr(Active("a", "b", 1.0)) == repr(Active("a", "b", 1))
    store.close()
