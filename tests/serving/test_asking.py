"""The answer of a server without a server: what a command shows is what GET /v1/recommendations says."""

import msgspec
import pytest
from ranking.bundle_world import make_bundle
from serving_world import DAY, NOW
from starlette.testclient import TestClient

from schemas.keys import USER, row_key, suppressed_group
from serving.api import create_app
from serving.asking import Asker
from serving.ladder import NothingPublishedError
from serving.responses import Recommendations
from serving.settings import Settings
from serving.stores.base import Cell, FeatureWrite


@pytest.fixture
def asker(world):
    with Asker(world.uri, world.workspace.root / "bundles", lambda: NOW) as made:
        yield made


def suppress(world, user, item, at=NOW):
    """As the collector does before it answers, and the stream after it."""
    world.store.write_features([FeatureWrite(row_key(USER, user), "stream", suppressed_group(item), Cell(b"", at))])


def ids_of(answer):
    return [i.item_id for i in answer.items]


@pytest.mark.parametrize("user", ["ann", "nobody"])
def test_it_says_what_a_server_says(world, asker, user):
    make_bundle(world.workspace.root / "bundles" / "v1", version="v1")
    world.put_list("ann", "v1", [f"i{k}" for k in range(10, 40)], because="i3", reason="because_you_watched")
    world.flip("v1")
    mine = asker.recommend(user, page_size=10, request_id="same")
    with TestClient(create_app(Settings(world.uri, world.workspace.root)), base_url="http://127.0.0.1") as client:
        theirs = client.get("/v1/recommendations", params={"user_id": user, "page_size": 10, "request_id": "same"})
    said = msgspec.json.decode(theirs.content, type=Recommendations)
    assert msgspec.structs.replace(said, next_cursor=None) == mine


def test_versions_without_bundles_get_titles_of_the_catalogue(world, asker):
    world.catalogue("a", b="The b")
    world.put_list("ann", "v1", ["a", "b", "c"], reason="because_you_watched", because="b")
    world.flip("v1")
    answer = asker.recommend("ann")
    assert [i.metadata.title for i in answer.items] == ["Title of a", "The b", None]
    assert answer.items[0].explanation.reason == "Because you watched The b"


def test_each_question_sees_the_pointer_as_it_is(world, asker):
    world.put_list("", "v1", ["p1"])
    world.put_list("", "v3", ["p3"])
    with pytest.raises(NothingPublishedError, match="nothing is published yet"):
        asker.recommend("ann")
    world.flip("v1")
    assert ids_of(asker.recommend("ann")) == ["p1"]
    world.flip("v2", previous="v1")
    world.flip("v3", previous="v2")
    world.store.drop_version("v1")
    assert ids_of(asker.recommend("ann")) == ["p3"]


def test_a_suppressed_item_is_gone_from_the_next_answer(world, asker):
    world.put_list("ann", "v1", ["a", "b", "c", "d"])
    world.put_list("", "v1", ["p1", "p2"])
    world.flip("v1")
    assert ids_of(asker.recommend("ann", page_size=2)) == ["a", "b"]
    suppress(world, "ann", "b")
    suppress(world, "ann", "c", at=NOW + 60_000_000)  # a client's clock may run ahead
    assert ids_of(asker.recommend("ann")) == ["a", "d"]
    assert ids_of(asker.recommend("bob")) == ["p1", "p2"]  # of another user nothing is hidden
    suppress(world, "bob", "p2")
    assert ids_of(asker.recommend("bob")) == ["p1"]
    suppress(world, "bob", "p1")
    assert ids_of(asker.recommend("bob")) == ["p1", "p2"]  # who is done with all there is still gets an answer
    world.put_features("cat", "user_consumed", ["p1", "p2"])
    suppress(world, "cat", "p1")
    assert ids_of(asker.recommend("cat")) == ["p2"]  # but rather what was consumed long ago than what was just now


def test_a_suppression_ends_when_batch_has_long_had_the_event(world, asker):
    world.put_list("ann", "v1", ["new", "week", "old"])
    world.flip("v1")
    for item, days in (("new", 1), ("week", 7), ("old", 8)):
        suppress(world, "ann", item, NOW - days * DAY)
    assert ids_of(asker.recommend("ann")) == ["old"]
