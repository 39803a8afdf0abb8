"""/v1/features over a real store: merge, partial and concurrent PUTs, expiry, what is refused, a thousand items at once."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import DAY, NOW
from starlette.testclient import TestClient

from schemas.cells import CellError
from schemas.features import FEATURES
from schemas.keys import ITEM, row_key
from schemas.put_cells import PUTS, Put, decode_puts, encode_puts, merge_puts
from serving.api import create_app
from serving.features import FeatureReader
from serving.logs import LOGGER
from serving.puts import write_puts
from serving.responses import rfc3339
from serving.settings import Settings
from serving.stores import open_store
from serving.stores.aio import open_async
from serving.stores.base import Cell, FeatureWrite

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cell_world import batch_cells, stream_cells, write, write_status

HOUR = 3_600_000_000


@pytest.fixture
def client(world):
    with TestClient(create_app(Settings(world.uri, world.workspace.root)), base_url="http://127.0.0.1") as made:
        yield made


def put(client, entity="item", entity_id="toy", computed_at=NOW, **more):
    said = {"features": more.pop("features"), "computed_at": rfc3339(computed_at), **more}
    return client.put(f"/v1/features/{entity}/{entity_id}", json=said)


def get(client, entity="item", entity_id="toy", **query):
    answer = client.get(f"/v1/features/{entity}/{entity_id}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_feature_with_source_and_age(client, world):
    write(world.store, "ann", "batch", batch_cells(NOW - DAY, ["a", "b"]))
    write(world.store, "ann", "stream", stream_cells(NOW - 60_000_000, ["b", "c"]))
    write_status(world.store, NOW)
    said = get(client, "user", "ann")
    oracle = FeatureReader().one(world.store, "user", "ann", NOW).values
    names = {f.name for f in FEATURES if f.entity == "user"}
    assert said["features"].keys() == oracle.keys() == said["sources"].keys() == names
    for name, value in oracle.items():
        origin = said["sources"][name]
        assert (origin["source"], origin["age_s"], origin["label"]) == (value.source, value.age_s, value.label)
        shown = said["features"][name]
        assert shown == ([{k: v for k, v in (("id", e.id), ("score", e.score), ("at", e.at)) if v is not None}
                          for e in value.value] if isinstance(value.value, list) else value.value)
    assert said["known"] and said["computed_at"] == rfc3339(NOW - 60_000_000) and said["ttl_seconds"] == 600
    assert get(client, "user", "ann", name=["segment"])["sources"] == {
        "segment": {"source": "batch", "age_s": 86400.0, "ttl_seconds": 604800, "label": "power"}}
    nobody = client.get("/features/user/nobody").json()
    assert not nobody["known"] and nobody["computed_at"] is None
    assert {origin["source"] for origin in nobody["sources"].values()} == {"default"}


def test_a_partial_put_keeps_the_others_and_what_get_says_can_be_put(client, world):
    world.put_stats("item", "toy", at=NOW - DAY, popularity_7d=5, ctr_smoothed_30d=0.25)
    answer = put(client, features={"popularity_7d": 9.5, "cooccurring_items": [{"id": "car", "score": 0.5}]}, ttl_seconds=60)
    assert answer.status_code == 200 and answer.json() == {
        "entity": "item", "id": "toy", "written": ["popularity_7d", "cooccurring_items"], "superseded": [],
        "computed_at": rfc3339(NOW), "ttl_seconds": 60}
    said = get(client)
    assert said["features"]["popularity_7d"] == 9.5 and said["features"]["ctr_smoothed_30d"] == 0.25
    assert said["sources"]["popularity_7d"] == {"source": "batch", "age_s": 0.0, "ttl_seconds": 60, "label": None}
    assert said["sources"]["ctr_smoothed_30d"]["age_s"] == 86400 and said["ttl_seconds"] == 60
    assert said["features"]["cooccurring_items"] == [{"id": "car", "score": 0.5}]
    batch = {f.name for f in FEATURES if f.entity == "item" and f.source == "batch"}
    again = {"features": {n: v for n, v in said["features"].items() if n in batch}, "computed_at": said["computed_at"],
             "ttl_seconds": said["ttl_seconds"]}
    assert client.put("/features/item/copy", json=again).status_code == 200
    assert get(client, entity_id="copy", name=sorted(batch))["features"] == get(client, name=sorted(batch))["features"]


def test_a_line_break_in_an_id_is_refused_and_not_cut_off(client):
    for entity_id in ("toy%0A", "t%0Aoy", "%0Atoy"):
        assert client.get(f"/v1/features/item/{entity_id}").status_code == 422
        assert client.get(f"/recommendations/{entity_id}").status_code == 422


@pytest.mark.parametrize("entity_id", ["a/b", "/a", "a/", "a?b#c d"])
def test_an_id_may_hold_what_a_path_is_made_of(client, entity_id):
    name = next(f.name for f in FEATURES if f.entity == "item" and f.dtype != "list" and f.source == "batch")
    written = put(client, "item", quote(entity_id, safe=""), features={name: 1.0})
    assert written.status_code == 200 and written.json()["id"] == entity_id, written.text
    assert get(client, "item", quote(entity_id, safe=""))["features"][name] == 1.0
    assert get(client, "item", "other")["known"] is False


def test_the_newest_counts_whoever_computed_it_and_expiry_brings_back_the_other(client, world, monkeypatch):
    put(client, features={"popularity_7d": 9}, computed_at=NOW - HOUR, ttl_seconds=7200)
    world.put_stats("item", "toy", at=NOW - 2 * HOUR, popularity_7d=1)
    assert get(client)["features"]["popularity_7d"] == 9
    late = put(client, features={"popularity_7d": 3, "popularity_30d": 4}, computed_at=NOW - 2 * HOUR)
    assert late.json()["superseded"] == ["popularity_7d"] and get(client)["features"]["popularity_30d"] == 4
    world.put_stats("item", "toy", at=NOW - HOUR + 1000, popularity_7d=2)
    assert get(client)["features"]["popularity_7d"] == 2
    put(client, features={"popularity_7d": 8}, ttl_seconds=1)
    assert get(client)["features"]["popularity_7d"] == 8
    later = NOW + 1_000_001
    one = FeatureReader().one(world.store, "item", "toy", later).values["popularity_7d"]
    many = FeatureReader().many(world.store, "item", ["toy"], later, ["popularity_7d"])
    assert one.value == many.values[0, 0] == 2
    put(client, features={"popularity_7d": None})
    assert get(client)["features"]["popularity_7d"] == 2  # withdrawn


@pytest.mark.parametrize(("body", "said"), [
    ({"features": {"popularty_7d": 1}}, "is no feature of items; features to PUT: popularity_1d, popularity_7d"),
    ({"features": {"count_click_1d": 1}}, "is no feature of items"),
    ({"features": {"popularity_1h": 1}}, "is computed by the stream"),
    ({"features": {"popularity_7d": "many"}}, "is a number"),
    ({"features": {"popularity_7d": True}}, "is a number"),
    ({"features": {"popularity_7d": [1, 2]}}, "is a number"),
    ({"features": {"popularity_7d": 1e39}}, "finite float32"),
    ({"features": {"cooccurring_items": 3}}, "list of at most 200"),
    ({"features": {"cooccurring_items": [{"id": str(i)} for i in range(201)]}}, "list of at most 200"),
    ({"features": {"cooccurring_items": [{"id": "a"}, {"id": "a"}]}}, "names each id once"),
    ({"features": {"cooccurring_items": [{"item": "a"}]}}, "unknown field"),
    ({"features": {}}, "at least one"),
    ({}, "features"),
    ({"features": {"popularity_7d": 1}, "ttl": 5}, "unknown field"),
    ({"features": {"popularity_7d": 1}, "ttl_seconds": 0}, ">= 1"),
    ({"features": {"popularity_7d": 1}, "computed_at": rfc3339(NOW + HOUR)}, "lies in the future"),
    ({"features": {"popularity_7d": 1}, "computed_at": "yesterday"}, "RFC3339"),
    ([], "Expected `object`"),
])
def test_what_is_refused_is_named_with_what_would_do_and_nothing_is_written(client, body, said):
    answer = client.put("/v1/features/item/toy", json=body)
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"] and not get(client)["known"]


def test_other_bad_requests(client):
    assert client.put("/v1/features/item/toy", content=b"{" * 100_000).status_code == 422
    assert client.get("/v1/features/shop/toy").status_code == 422
    assert client.get("/v1/features/item/toy", params={"name": "size"}).status_code == 422
    assert client.get("/v1/features/item/" + "x" * 300).status_code == 422
    assert client.post("/v1/features/batch", json={"item_ids": ["i"] * 1001}).status_code == 422
    assert "is no number of items" in client.post("/v1/features/batch", json={"item_features": ["cooccurring_items"]}).text
    assert client.put("/v1/features/item/toy", content=b"x" * 2_000_000).status_code == 413


def test_a_user_and_a_thousand_items_in_one_call(client, world):
    for i in range(0, 1000, 7):
        world.put_stats("item", f"i{i}", popularity_7d=i)
    put(client, entity_id="i3", features={"popularity_7d": 0.5})
    world.put_stats("user", "ann", recency_days=2)
    ids = [f"i{i}" for i in range(1000)]
    said = client.post("/v1/features/batch", json={"user_id": "ann", "item_ids": ids,
                                                   "item_features": ["popularity_7d", "age_days"]}).json()
    assert said["user"]["features"]["recency_days"] == 2 and said["items"]["ids"] == ids
    assert [row[0] for row in said["items"]["values"]] == [0.5 if i == 3 else i if i % 7 == 0 else 0 for i in range(1000)]
    assert {row[1] for row in said["items"]["values"]} == {None}
    named = said["items"]["source_names"]
    assert [named[row[0]] for row in said["items"]["sources"][:4]] == ["batch", "default", "default", "batch"]
    assert said["items"]["ages_s"][0] == [0.0, None]
    empty = client.post("/features/batch", json={}).json()
    assert empty["user"] is None and empty["items"]["values"] == []


def test_a_user_id_is_masked_in_the_audit_line(client, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        put(client, "user", "ann@example.org", features={"recency_days": 1})
    (line,) = [r.fields for r in caplog.records if r.getMessage() == "audit"]
    assert line["action"] == "features" and line["status"] == 200 and "ann" not in json.dumps(line)


@pytest.fixture(params=["sqlite", "bigtable"])
def store_uri(request, tmp_path, monkeypatch):
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'store.db'}"
    for name, value in request.getfixturevalue("bigtable_emulator").environment.items():
        monkeypatch.setenv(name, value)
    return f"bigtable://test/{tmp_path.name}"


def test_of_partial_puts_at_once_none_is_lost(store_uri):
    open_store(store_uri).close()
    names = [f.name for f in FEATURES if f.group == "item_stats"]

    async def race():
        stores = [open_async(store_uri) for _ in range(4)]
        await asyncio.gather(*(write_puts(stores[i % 4], "item", "toy", {name: Put(float(i), NOW - i * 1000)}, 20)
                               for i, name in enumerate(names)))
        held = await write_puts(stores[0], "item", "toy", {names[0]: Put(0.0, NOW)}, 20)
        for store in stores:
            await store.close()
        return held

    assert {n: p.value for n, p in asyncio.run(race()).items()} == {n: float(i) for i, n in enumerate(names)}
    store = open_store(store_uri)
    (cells,) = store.read_features([row_key(ITEM, "toy")], "batch", [PUTS])
    assert cells[PUTS].timestamp == NOW and len(decode_puts(cells[PUTS].value)) == len(names)
    store.close()


def test_a_broken_cell_is_replaced_by_the_next_put(client, world):
    world.store.write_features([FeatureWrite(row_key(ITEM, "toy"), "batch", PUTS, Cell(b"broken", NOW))])
    assert client.get("/v1/features/item/toy").status_code == 503
    assert put(client, features={"popularity_7d": 1}).status_code == 200 and get(client)["features"]["popularity_7d"] == 1


LISTS = st.lists(st.text(max_size=5), unique=True, max_size=4).map(
    lambda ids: (ids, np.arange(len(ids), dtype=np.int64), np.ones(len(ids), np.float32)))
VALUES = st.floats(width=32, allow_nan=False) | LISTS
PUT = st.builds(Put, VALUES, st.integers(0, 5), st.none() | st.integers(1, 9))


def flat(puts):
    return {n: (p.computed_at, p.ttl, p.value if isinstance(p.value, float) else (p.value[0], p.value[1].tolist()))
            for n, p in puts.items()}


@given(st.dictionaries(st.text(max_size=8), PUT, max_size=5))
def test_a_cell_holds_what_was_put(puts):
    cell = encode_puts(puts)
    assert flat(decode_puts(cell)) == flat(puts)
    for cut in (1, len(cell) // 2, len(cell) - 1):
        with pytest.raises(CellError):
            decode_puts(cell[:cut])


@settings(max_examples=50)
@given(st.lists(st.dictionaries(st.sampled_from("ab"), st.integers(0, 5), max_size=2), max_size=6), st.randoms())
def test_any_order_and_repetition_of_puts_ends_the_same(writes, chance):
    def of(order):
        held = {}
        for write_ in order:
            held = merge_puts(held, {n: Put(float(at * 7 % 5), at) for n, at in write_.items()})
        return flat(held)

    shuffled = [*writes, *writes]
    chance.shuffle(shuffled)
    assert of(shuffled) == of(writes)
