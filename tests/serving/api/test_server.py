"""The API of a real server process over a real store."""

import json
import shutil
import signal
import time
from datetime import datetime

import numpy as np
import pytest
from serving_world import Server, World

from schemas.keys import list_key
from serving.api.cursors import encode_cursor
from serving.stores.base import Cell, ListWrite

POPULAR = ["p1", "p2", "p3"]


def eventually(holds, seconds=1.5):
    """Fails unless ``holds()`` becomes true within the time a pointer is believed, and a little."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.05)


def publish(world):
    """ann has a list of 30; everyone else gets three popular items."""
    world.catalogue(*(f"i{n}" for n in range(30)), *POPULAR, heat="Heat")
    world.put_list("ann", "v1", [f"i{n}" for n in range(30)], reason="because_you_watched", because="heat")
    world.put_list("", "v1", POPULAR, reason="popular", model="none")
    world.flip("v1")
    return world


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A server over a store that no test changes."""
    world = publish(World(tmp_path_factory.mktemp("served") / "workspace"))
    server = Server(world.workspace.root)
    yield server
    server.stop()
    world.store.close()


@pytest.fixture
def published(world):
    return publish(world)


@pytest.fixture
def server(published, server_of):
    return server_of(published.workspace.root)


def test_a_list_has_the_published_shape(reader):
    answer = reader.get("ann", context="homepage", page_size=2)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    body = answer.json()
    request_id, cursor = body.pop("request_id"), body.pop("next_cursor")
    scores = [item.pop("score") for item in body["items"]]
    assert len(request_id) == 32 and cursor and 1 >= scores[0] > scores[1] > 0
    assert body == {
        "items": [
            {"item_id": f"i{n}", "rank": n + 1, "rec_source": "two_tower",
             "explanation": {"type": "because_you_watched", "reason": "Because you watched Heat", "source_item_id": "heat"},
             "metadata": {"title": f"Title of i{n}", "image": None, "price": None, "category": "Drama", "categories": ["Drama"],
                          "attributes": {"year": "1995"}}} for n in range(2)],
        "model_version": "m1", "generated_at": "2023-11-15T00:00:00Z", "expires_at": "2023-11-16T00:00:00Z",
        "served_from": "list", "signals": "read"}
    assert reader.get("ann").json()["request_id"] != request_id


def test_twenty_items_by_default_and_as_many_as_asked(reader):
    assert reader.items("ann") == [f"i{n}" for n in range(20)]
    assert reader.items("ann", page_size=100) == [f"i{n}" for n in range(30)]


def test_pages_are_the_list_cut_up_with_ranks_that_go_on(reader):
    seen, ranks, cursor = [], [], None
    while True:
        body = reader.get("ann", page_size=7, exclude="i3", **({"cursor": cursor} if cursor else {})).json()
        seen += [i["item_id"] for i in body["items"]]
        ranks += [i["rank"] for i in body["items"]]
        if (cursor := body["next_cursor"]) is None:
            break
    assert seen == [f"i{n}" for n in range(30) if n != 3]
    assert ranks == list(range(1, 30))


def test_an_unknown_user_gets_the_popular_items(reader):
    body = reader.get("never seen").json()
    assert [i["item_id"] for i in body["items"]] == POPULAR
    assert body["served_from"] == "popular" and body["items"][0]["explanation"] == {
        "type": "popular", "reason": "Popular right now", "source_item_id": None}


def test_excluded_items_are_left_out_and_the_page_stays_full(reader):
    assert reader.items("ann", page_size=3, exclude=["i0", "i2"]) == ["i1", "i3", "i4"]
    assert reader.items("ann", page_size=3, exclude="i0,i2") == ["i1", "i3", "i4"]


def test_what_was_consumed_after_the_list_was_made_is_removed(published, server):
    published.put_features("ann", "user_consumed", ["i0", "i1"])
    assert server.items("ann", page_size=2) == ["i2", "i3"]
    published.put_features("bob", "user_consumed", ["p1"])
    assert server.items("bob") == ["p2", "p3"]


def test_never_an_empty_list_for_who_consumed_everything(published, server):
    published.put_features("ann", "user_consumed", [f"i{n}" for n in range(30)])
    assert server.items("ann") == POPULAR
    published.put_features("bob", "user_consumed", POPULAR)
    assert server.items("bob") == POPULAR


def test_a_context_without_lists_gets_those_of_the_homepage(published, server):
    assert server.items("ann", context="email", page_size=1) == ["i0"]
    published.put_list("ann", "v1", ["i9"], surface="cart")
    published.put_list("", "v1", POPULAR, surface="cart")
    published.flip("v1", surface="cart")
    eventually(lambda: server.items("ann", context="cart") == ["i9"])
    assert server.items("bob", context="cart") == POPULAR


def test_an_expired_list_is_served_and_marked(published, server):
    published.put_list("old", "v1", ["i5"], expires_at=published.workspace.now())
    assert server.get("old").json()["served_from"] == "expired_list" and server.items("old") == ["i5"]


def test_a_flip_is_seen_within_a_second_and_no_answer_mixes_versions(published, server):
    published.put_list("ann", "v2", [f"j{n}" for n in range(30)], model="m2")
    published.put_list("", "v2", ["q1"])
    first = server.get("ann", page_size=10).json()
    published.flip("v2", previous="v1")
    started = time.monotonic()
    while True:
        body = server.get("ann").json()
        kinds = {i["item_id"][0] for i in body["items"]}
        assert (kinds, body["model_version"]) in (({"i"}, "m1"), ({"j"}, "m2"))
        if kinds == {"j"}:
            break
        assert time.monotonic() - started < 1.5
    assert server.items("ann", page_size=10, cursor=first["next_cursor"]) == [f"i{n}" for n in range(10, 20)]


def test_a_share_of_users_reads_the_challenger(published, server):
    for n in range(200):
        published.put_list(f"u{n}", "v1", ["i1"])
        published.put_list(f"u{n}", "v2", ["i2"])
    published.flip("v1", challenger="v2", percent=30)
    eventually(lambda: 30 <= sum(server.items(f"u{n}") == ["i2"] for n in range(200)) <= 90)
    assert [server.items(f"u{n}") for n in range(20)] == [server.items(f"u{n}") for n in range(20)]


def test_a_shadow_version_is_never_served_by_a_forged_cursor(published, server):
    published.put_list("ann", "shadow", ["secret"])
    forged = encode_cursor("shadow", np.zeros(0, np.uint32), np.ones(1, np.uint32))
    assert "secret" not in server.items("ann", cursor=forged)


def test_a_broken_cell_costs_a_user_their_list_but_not_the_answer(published, server):
    published.store.write_lists([ListWrite(list_key("eve", "homepage"), "v1", Cell(b"broken", 0))])
    assert server.items("eve") == POPULAR


@pytest.mark.parametrize("parameters", [
    {"page_size": 0}, {"page_size": 101}, {"page_size": "many"}, {"user_id": ""}, {"user_id": "a" * 257},
    {"user_id": "line\nbreak"}, {"context": "Home Page"}, {"context": "x" * 33}, {"cursor": "nonsense"}, {"cursor": "x" * 600},
    {"cursor": "WyJ2MSIsImhvbWVwYWdlIix0cnVlLC01LDBd"}, {"exclude": ["x"] * 501}, {"exclude": "x," * 9000},
    {"exclude": ",".join(map(str, range(900)))},
])
def test_wrong_parameters_get_problem_details_that_name_them(reader, parameters):
    answer = reader.get(**{"user": "ann", **parameters}) if "user_id" not in parameters else reader.client.get(
        "/v1/recommendations", params=parameters)
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == 422 and body["title"] == "Invalid parameters"
    assert [e["parameter"] for e in body["errors"]] == list(parameters)


def test_other_errors_are_problem_details_too(reader):
    for method, path, status in (("GET", "/nowhere", 404), ("POST", "/v1/recommendations", 405),
                                 ("GET", "/v1/recommendations", 422)):
        answer = reader.client.request(method, path)
        assert answer.status_code == status and answer.json()["status"] == status
        assert answer.headers["content-type"] == "application/problem+json"


def test_ready_and_healthy(reader):
    assert reader.client.get("/healthz").json() == {"status": "ok"}
    assert reader.client.get("/readyz").json() == {"status": "ready"}
    described = reader.client.get("/openapi.json").json()
    assert set(described["components"]["schemas"]["Recommendations"]["properties"]) == set(reader.get("ann").json())


def test_before_the_first_publish_it_says_so_and_then_serves(world, server_of):
    world.store.close()
    shutil.rmtree(world.workspace.store.parent)
    world.workspace.freeze_after(0)
    server = server_of(world.workspace.root)
    for path in ("/readyz", "/v1/recommendations?user_id=ann"):
        answer = server.client.get(path)
        assert answer.status_code == 503 and answer.json()["title"] == "No recommendations yet"
        assert answer.headers["retry-after"]
    assert server.client.get("/healthz").status_code == 200
    later = type(world)(world.workspace.root)
    later.put_list("", "v1", POPULAR)
    later.flip("v1")
    eventually(lambda: server.client.get("/readyz").status_code == 200, seconds=3)
    assert server.items("ann") == POPULAR
    later.store.close()


def test_a_store_that_is_gone_leaves_the_popular_items_and_comes_back_by_itself(published, server):
    assert server.items("bob") == POPULAR
    store = published.workspace.store
    away = store.with_suffix(".away")
    store.rename(away)
    assert server.items("ann") == POPULAR
    body = server.get("bob").json()
    assert body["served_from"] == "popular_in_memory" and body["items"][0]["metadata"]["title"] == "Title of p1"
    assert server.items("ann", exclude="p1", page_size=1) == ["p2"]
    assert server.client.get("/readyz").json() == {"status": "degraded"}
    away.rename(store)
    eventually(lambda: server.get("ann").json()["served_from"] == "list", seconds=3)
    assert server.stop() == 0
    events = [json.loads(line)["event"] for line in server.log]
    assert events.count("lists breaker open") == 1 and events.count("lists breaker closed") == 1


def test_a_rebuilt_store_is_read_without_a_restart(published, server):
    assert server.items("ann", page_size=1) == ["i0"]
    published.store.close()
    shutil.rmtree(published.workspace.root)
    rebuilt = type(published)(published.workspace.root)
    rebuilt.put_list("", "v9", ["new"])
    rebuilt.flip("v9")
    eventually(lambda: server.items("ann") == ["new"], seconds=3)
    rebuilt.store.close()


def test_logs_are_json_without_user_ids(published, server_of):
    server = server_of(published.workspace.root, "--log-requests")
    server.get("a-very-private-id")
    server.get("a-very-private-id", page_size=0)
    assert server.stop() == 0
    entries = [json.loads(line) for line in server.log]
    requests = [e for e in entries if e["event"] == "request" and e["path"] == "/v1/recommendations"]
    assert [e["status"] for e in requests] == [200, 422] and all(e["ms"] > 0 for e in requests)
    assert "private" not in "\n".join(server.log)
    assert datetime.fromisoformat(entries[0]["time"]).tzinfo is not None


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_gracefully(server, how):
    assert server.items("ann")
    assert server.stop(how) == 0
    assert json.loads(server.log[-1])["level"] == "info"
    assert any(json.loads(line)["event"] == "worker stopped" for line in server.log)


def test_several_workers_answer_alike(published, server_of):
    server = server_of(published.workspace.root, "--workers", "2")
    eventually(lambda: sum("worker started" in line for line in server.log) == 2, seconds=20)
    assert {tuple(server.items("ann")) for _ in range(20)} == {tuple(f"i{n}" for n in range(20))}
