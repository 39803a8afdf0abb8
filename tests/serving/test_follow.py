"""Items and users as they are PUT: in the store and in the overlay within seconds, by one writer, across restarts."""

import time
from pathlib import Path

import pytest
from serving_world import NOW

from schemas.keys import ITEM, USER, row_key
from schemas.workspace import Workspace
from serving.catalogue import Catalogue, decode_user
from serving.eventlog import open_log, side_uri
from serving.follow import Follower, grown
from serving.ranking.overlay import Overlay
from serving.stores.base import Cell, FeatureWrite
from transforms.records.upserts import encode_upsert


def upsert(kind, entity, at, **more):
    rest = {"title": None, "price": None, "image": None, "published_at": None, "categories": []} if kind == "item" else {
        "signup_at": None, "country": None}
    return encode_upsert(kind, {f"{kind}_id": entity, "is_active": True, "updated_at": at, "attributes": {},
                                "schema_version": 1, **rest, **more})


@pytest.fixture
def scene(world, tmp_path):
    """(log URI, followers by name); what is started ends with the test."""
    started = []

    class Scene:
        log = f"dir:{tmp_path / 'log'}"
        overlay = Overlay()

        def put(self, kind, *records):
            log = open_log(f"{side_uri(self.log, f'{kind}s')}?partitions=2")
            for number, record in enumerate(records):
                log.append(number % 2, [record], time.time_ns() // 1000)
            log.close()

        def follow(self, locks=(world.workspace.root / "follow.lock",)):
            def add(upserts):
                self.overlay = grown(self.overlay, upserts)

            follower = Follower(self.log, world.uri, locks, add)
            follower.start()
            started.append(follower)
            return follower

        def title(self, item):
            found = Catalogue().items(world.store, [item]).get(item)
            return found.title if found else None

    yield Scene()
    for follower in started:
        follower.close()


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_what_is_put_is_in_the_store_and_the_overlay_within_seconds(scene, world):
    follower = scene.follow()
    time.sleep(0.1)  # no log is there yet
    scene.put("item", upsert("item", "toy", 5_000_123, title="Toy", categories=["Games"], attributes={"year": "1995"}))
    until(lambda: scene.title("toy") == "Toy" and "toy" in scene.overlay.items)
    entry = Catalogue().items(world.store, ["toy"])["toy"]
    assert entry.categories == ["Games"] and entry.attributes == {"year": "1995"}
    assert world.store.read_features([row_key(ITEM, "toy")], "meta", ["item"])[0]["item"].timestamp == 5_000_000
    scene.put("user", upsert("user", "ann", 6_000_000, country="DE", signup_at=7, attributes={"age_group": "25-34"}))
    until(lambda: world.store.read_features([row_key(USER, "ann")], "meta", ["user"])[0])
    user = decode_user(world.store.read_features([row_key(USER, "ann")], "meta", ["user"])[0]["user"].value)
    assert (user.country, user.signup_at, user.attributes) == ("DE", 7, {"age_group": "25-34"})
    until(lambda: follower.state.written == 2 and not follower.state.waiting)


def test_the_newest_updated_at_wins_whatever_the_order_and_removal_is_seen(scene):
    scene.put("item", upsert("item", "a", 9_000_000, title="new"), upsert("item", "a", 1_000_000, title="old"),
              upsert("item", "b", 2_000_000, title="b", is_active=False), b"not a record")
    scene.follow()
    until(lambda: scene.title("b") == "b" and scene.title("a") == "new")
    assert scene.overlay.removed == {"b"} and scene.overlay.items["a"].title == "new"
    scene.put("item", upsert("item", "a", 3_000_000, title="late"), upsert("item", "b", 4_000_000, title="back"))
    until(lambda: scene.title("b") == "back" and not scene.overlay.removed)
    assert scene.title("a") == "new" == scene.overlay.items["a"].title


def test_of_two_one_writes_and_the_other_takes_over_where_it_was(scene):
    first = scene.follow()
    scene.put("item", upsert("item", "a", 1_000_000, title="A"))
    until(lambda: first.state.written == 1)
    second = scene.follow()
    until(lambda: second.state.seen == 1)  # into its overlay
    assert not second.state.writes
    first.close()
    scene.put("item", upsert("item", "b", 2_000_000, title="B"))
    until(lambda: scene.title("b") == "B")
    until(lambda: second.state.written == 1)  # what the first has written is not written again
    assert second.state.writes


def test_what_was_put_while_nobody_followed_is_not_lost(scene, world, monkeypatch):
    first = scene.follow()
    scene.put("item", upsert("item", "a", 1_000_000, title="A"))
    until(lambda: first.state.written == 1)
    first.close()
    scene.put("item", upsert("item", "b", 2_000_000, title="B"))
    monkeypatch.setattr("serving.follow.OVERLAY_SECONDS", -60)  # too old for the overlay
    second = scene.follow()
    until(lambda: scene.title("b") == "B" and second.state.written == 1)


def test_a_store_that_is_away_is_waited_for(scene, world):
    path = world.workspace.store
    world.store.close()
    path.rename(path.with_suffix(".away"))
    follower = scene.follow()
    scene.put("item", upsert("item", "a", 1_000_000, title="A"))
    until(lambda: follower.state.trouble)
    path.with_suffix(".away").rename(path)
    until(lambda: follower.state.written == 1 and not follower.state.trouble)


def test_a_place_of_another_log_or_that_cannot_be_read_is_none(scene, world):
    for number, place in enumerate((b"broken", b'{"source": "dir:elsewhere", "offsets": {"0": 100}}', b"[]")):
        world.store.write_features([FeatureWrite("status#follow#item", "meta", "place", Cell(place, 1000 * (number + 1)))])
        scene.put("item", upsert("item", f"i{number}", 1_000_000, title="T"))
        follower = scene.follow()
        until(lambda number=number: scene.title(f"i{number}") == "T")
        follower.close()


def test_an_overlay_keeps_the_newest(monkeypatch):
    from serving.ranking.overlay import ItemUpsert

    monkeypatch.setattr("serving.follow.MAX_OVERLAY", 3)
    overlay = Overlay()
    for at in (5, 1, 4, 2, 3):
        overlay = grown(overlay, [ItemUpsert(f"i{at}", at)])
    assert set(overlay.items) == {"i3", "i4", "i5"}


def test_an_item_put_over_http_is_in_the_store_of_that_server_within_seconds(scene, world):
    from starlette.testclient import TestClient

    from serving.api import create_app
    from serving.settings import Settings

    app = create_app(Settings(world.uri, world.workspace.root, log=f"{scene.log}?partitions=1"))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.put("/v1/items/new", json={"title": "Brand new", "categories": ["Games"]}).status_code == 202
        began = time.monotonic()
        until(lambda: scene.title("new") == "Brand new")
        assert time.monotonic() - began < 5
        until(lambda: "new" in app.state.recommender.fresh.overlay.items)


def test_a_server_that_can_only_read_its_workspace_starts_and_brings_new_items_to_the_store(scene, world, tmp_path, server_of,
                                                                                           read_only):
    world.put_list("ann", "v1", ["a", "b", "c"])
    world.flip("v1")
    mounted = Workspace(tmp_path / "mounted")
    mounted.freeze_after(NOW - 1)
    server = server_of(mounted.root, "--store", world.uri, "--log", f"{scene.log}?partitions=1", within=read_only(mounted.root))
    assert server.items() == ["a", "b", "c"]
    assert any("can only be read" in line and "beamrec lake" in line for line in server.log)
    assert server.client.put("/v1/items/new", json={"title": "Brand new"}).status_code == 202
    until(lambda: scene.title("new") == "Brand new")
    assert server.stop() == 0
    assert [path.name for path in mounted.root.iterdir()] == ["clock.json"]


def test_without_a_lock_it_reads_on_and_leaves_the_writing_to_others(scene):
    follower = scene.follow(locks=(Path("/proc/none/follow.lock"),))
    scene.put("item", upsert("item", "a", 1_000_000, title="A"))
    until(lambda: "a" in scene.overlay.items)
    assert not follower.state.writes and not follower.state.trouble and scene.title("a") is None
