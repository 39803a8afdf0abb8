"""Lists, similar items, a client's own list: what is answered, and that it is what the schema says."""

import io
import time

import fastavro
import msgspec
import numpy as np
import pytest
from api_world import LISTED, client_of, ids, publish
from hypothesis import given
from hypothesis import strategies as st

from schemas import avro
from schemas.cells import encode_list
from schemas.keys import TRENDING, trending_key
from serving.api.cursors import CursorError, decode_cursor, encode_cursor
from serving.api.pages import Pieces
from serving.ranking.model import Ranked
from serving.responses import Recommendations, SimilarItems
from serving.stores.base import Cell, FeatureWrite
from serving.truth import encode_served
from transforms.records.single_object import HEAD_BYTES


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    from serving_world import World

    world = publish(World(tmp_path_factory.mktemp("lists") / "workspace"))
    with client_of(world) as made:
        yield made
    world.store.close()


def test_a_page_is_what_the_schema_says_with_metadata_of_the_bundle(client):
    answer = client.get("/v1/recommendations", params={"user_id": "ann", "page_size": 10, "request_id": "mine-1"})
    page = msgspec.json.decode(answer.content, type=Recommendations)
    assert page.request_id == "mine-1" and page.served_from == "list" and page.model_version == "m1"
    assert [item.rank for item in page.items] == list(range(1, 11))
    titled = {item.item_id: item for item in page.items}
    assert titled["i10"].metadata.title == 'Say "hi" to <b>' and titled["i10"].metadata.category == "c2"
    assert titled["i10"].explanation.reason.startswith("Because you watched ") and page.next_cursor
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.json() == client.get("/recommendations/ann", params={"limit": 10, "request_id": "mine-1"}).json()


def test_pages_never_repeat_and_ranks_go_on(client):
    seen, ranks, cursor = [], [], None
    while True:
        more = {"cursor": cursor} if cursor else {}
        body = client.get("/v1/recommendations", params={"user_id": "ann", "page_size": 7, **more})
        seen += ids(body)
        ranks += [item["rank"] for item in body.json()["items"]]
        if (cursor := body.json()["next_cursor"]) is None:
            break
    assert len(seen) == len(set(seen)) >= len(LISTED) and set(LISTED) <= set(seen)
    assert ranks == list(range(1, len(seen) + 1))


def test_what_is_trending_reaches_who_has_no_list(tmp_path):
    from serving_world import NOW, World

    world = publish(World(tmp_path / "workspace"))
    trending = encode_list(0, ["i51"], np.zeros(1, np.int64), np.ones(1, np.float32))
    world.store.write_features([FeatureWrite(trending_key(), "stream", f"{TRENDING}0", Cell(trending, NOW))])
    users = [f"bob-{n}" for n in range(100)]  # another each time: a list once made is kept
    for user in users:
        world.put_features(user, "user_last_items", ["i4", "i8"])
    with client_of(world) as client:
        for user in users:
            page = client.get("/v1/recommendations", params={"user_id": user, "page_size": 50}).json()
            assert page["served_from"] == "on_demand"
            sources = {item["item_id"]: item["rec_source"] for item in page["items"]}
            if sources.get("i51") == "trending":
                break
            time.sleep(0.05)
        assert sources["i51"] == "trending"
    world.store.close()


def test_item_and_cart_lists_are_around_their_items(client):
    asked = {"user_id": "ann", "context": "item", "item_id": "i4", "page_size": 5}
    around = ids(client.get("/v1/recommendations", params=asked))
    assert "i4" not in around and len(around) == 5
    cart = ids(client.get("/v1/recommendations", params=[("user_id", "ann"), ("context", "cart"), ("item_id", "i4"),
                                                         ("item_id", "i8"), ("page_size", "5")]))
    assert len(cart) == 5 and not {"i4", "i8"} & set(cart)


def test_similar_items_say_how_alike_they_are_and_in_what(client):
    answer = client.get("/v1/items/i4/similar", params={"limit": 5, "request_id": "r"})
    found = msgspec.json.decode(answer.content, type=SimilarItems)
    assert found.item_id == "i4" and found.request_id == "r" and found.served_from == "index" and len(found.items) == 5
    scores = [item.similarity_score for item in found.items]
    assert all(0 < score <= 1 for score in scores) and found.items[0].metadata.title
    assert found.items[0].shared_attributes["category"] == "c0"
    missing = client.get("/v1/items/nowhere/similar")
    assert missing.status_code == 404 and missing.headers["content-type"] == "application/problem+json"
    assert client.get("/v1/items/i4/similar", params={"diversity": 2}).status_code == 422


def test_a_clients_own_list_is_ordered_and_nothing_joins_it(client):
    asked = {"user_id": "ann", "item_ids": ["i9", "i3", "i9", "i7"], "request_id": "r"}
    answer = client.post("/v1/rerank", json=asked)
    assert {(i["rec_source"], i["explanation"]["type"]) for i in answer.json()["items"]} == {("client", "client")}
    assert answer.json()["served_from"] == "client" and answer.json()["signals"] == "read"
    assert sorted(ids(answer)) == ["i3", "i7", "i9"] and answer.json()["items"][0]["metadata"]["title"]
    for wrong in ({}, {**asked, "item_ids": []}, {**asked, "items": []}, {**asked, "item_ids": ["x" * 300]}, [1]):
        refused = client.post("/v1/rerank", json=wrong)
        assert refused.status_code == 422 and refused.json()["errors"][0]["parameter"] == "body"
    assert client.post("/v1/rerank", content=b"{" * 2_000_000).status_code == 413


@pytest.mark.parametrize("query", ["user_id=%FF", "user_id=ann&request_id=%20", "user_id=ann&item_id=",
                                   "user_id=ann&page_size=1e2", "user_id=ann&page_size=%D9%A1", "user_id=ann&context=",
                                   "user_id=" + "a" * 60_000])
def test_wrong_queries_are_refused_not_guessed(client, query):
    answer = client.get(f"/v1/recommendations?{query}")
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"


@given(st.text(max_size=40), st.lists(st.integers(0, 2**32 - 1), max_size=30), st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_a_cursor_reads_back(version, before, page):
    shown = np.array(before, np.uint32)
    text = encode_cursor(version, shown, np.array(page, np.uint32))
    if text is not None:
        found, hashes = decode_cursor(text)
        assert found == version and hashes.tolist() == [*before, *page]


@given(st.text(max_size=200) | st.binary(max_size=60).map(lambda raw: raw.hex()))
def test_anything_else_is_no_cursor(text):
    with pytest.raises(CursorError):
        decode_cursor(text)


def test_a_cursor_is_bounded():
    assert encode_cursor("v", np.zeros(995, np.uint32), np.arange(6, dtype=np.uint32)) is None


def test_a_title_or_price_that_was_put_is_shown_before_the_next_bundle(tmp_path):
    from serving_world import World

    world = publish(World(tmp_path / "workspace"))

    def shown(client, path="/v1/recommendations", **asked):
        page = client.get(path, params={"page_size": 30, "user_id": "ann", **asked}).json()
        return {item["item_id"]: item for item in page["items"]}

    with client_of(world, log=f"dir:{tmp_path / 'log'}?partitions=1") as client:
        assert shown(client)["i12"]["metadata"]["price"] == 13.0
        for item, said in (("i12", {"title": "Sale", "price": 5.5, "categories": ["c0"]}), ("i5", {"title": "Renamed"})):
            assert client.put(f"/v1/items/{item}", json=said).status_code == 202
        deadline = time.monotonic() + 10
        while len(client.app_state.recommender.fresh.overlay.items) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for asked in ({}, {"context": "email"}):
            found = shown(client, **asked)
            assert (found["i12"]["metadata"]["title"], found["i12"]["metadata"]["price"]) == ("Sale", 5.5)
            assert found["i11"]["metadata"]["price"] == 12.0
            assert found["i13"]["explanation"]["reason"] == "Because you watched Renamed"
        similar = client.get("/v1/items/i8/similar", params={"limit": 20}).json()["items"]
        assert {item["item_id"]: item["metadata"]["title"] for item in similar}["i12"] == "Sale"
    world.store.close()


def test_an_item_whose_title_could_not_be_read_gets_it_later(client):
    pieces = Pieces(client.app_state.recommender.bundles.get("v1"))
    assert b'"title":null' in pieces.item("x", {})[1] and b'"title":null' not in pieces.item("i1", {})[1]
    ranked = Ranked(["x", "i1"], np.ones(2, np.float32), ["popular"] * 2, ["popular"] * 2, [""] * 2, {}, False)
    assert pieces.missing(ranked.item_ids, ranked.because) == ["x"]
    assert b'"title":"X"' in pieces.page(ranked, 1, {"x": b'{"title":"X"}'})


def test_an_answer_says_whether_what_its_user_does_now_was_read(client):
    def said(**asked):
        return msgspec.json.decode(client.get("/v1/recommendations", params=asked).content, type=Recommendations)

    assert (said(user_id="ann").signals, said(user_id="eve").signals) == ("read", "read")
    breaker = client.app_state.recommender.breakers.features
    for _ in range(3):
        breaker.failed()
    assert (said(user_id="ann").served_from, said(user_id="ann").signals) == ("list", "missing")
    deadline = time.monotonic() + 5
    while said(user_id="ann").signals != "read":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_similar_items_are_told_and_counted_as_lists_are(tmp_path):
    from serving_world import World

    world, told = publish(World(tmp_path / "workspace")), []
    with client_of(world, log=f"dir:{tmp_path / 'log'}?partitions=1") as client:
        state = client.app_state
        state.truth.tell = lambda ask, answer: told.append(encode_served(ask, answer, 7))
        found = client.get("/v1/items/i4/similar", params={"limit": 5, "request_id": "mine", "user_id": "ann"}).json()["items"]
        assert state.counters.tiers["similar", "on_demand"] == 1 and state.counters.short == 0
        assert state.counters.shown.counts() == {item["item_id"]: 1 for item in found}
    record = fastavro.schemaless_reader(io.BytesIO(told[0][HEAD_BYTES:]), avro.load("served_features"))
    assert (record["request_id"], record["user_id"], record["surface"]) == ("mine", "ann", "similar")
    assert [(i["item_id"], i["position"]) for i in record["items"]] == [(i["item_id"], i["rank"]) for i in found]
    kinds = {"cooccurrence": "item_cf", "vector": "two_tower", "content": "content"}
    assert [i["rec_source"] for i in record["items"]] == [kinds[i["similarity_type"]] for i in found]
    world.store.close()
