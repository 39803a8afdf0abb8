"""/v1/models over a real store: what is served, what may be flipped to, and what is refused."""

import json
import logging
import time

import pytest
from ranking.bundle_world import make_bundle
from starlette.testclient import TestClient

from serving.api import create_app
from serving.logs import LOGGER
from serving.settings import Settings
from serving.stores.base import Active

LISTED = [f"i{k}" for k in range(10, 40)]


@pytest.fixture
def versions(world):
    """v1 and v2 checked, v3 not, all with lists and bundles; v1 served."""
    for version in ("v1", "v2", "v3"):
        make_bundle(world.workspace.root / "bundles" / version, version=version)
        world.put_list("", version, ["i0", "i1"])
        world.put_list("ann", version, LISTED, model=f"model-{version}")
        report = {"surface": "homepage", "model_version": f"model-{version}", "users": 1, "items": 60, "as_of": 0}
        gate = {} if version == "v3" else {"gate": {"checked_at": 1_000_000}}
        world.workspace.lists.mkdir(exist_ok=True)
        (world.workspace.lists / f"{version}.json").write_text(json.dumps({"report": report, **gate}))
    world.flip("v1")
    return world


@pytest.fixture
def client(versions):
    app = create_app(Settings(versions.uri, versions.workspace.root))
    with TestClient(app, base_url="http://127.0.0.1") as made:
        yield made


def served(client):
    answer = client.get("/v1/recommendations", params={"user_id": "ann"})
    assert answer.status_code == 200, answer.text
    return answer.json()["model_version"]


def test_versions_and_who_sees_which(client):
    said = client.get("/v1/models").json()
    assert said["surfaces"] == [{"surface": "homepage", "champion": "v1", "challenger": None, "percent": 0, "previous": None,
                                 "pending": False}]
    assert [(v["version"], v["state"], v["bundle"], v["checked_at"]) for v in said["versions"]] == [
        ("v3", "shadow", "idle", None), ("v2", "checked", "idle", "1970-01-01T00:00:01Z"),
        ("v1", "champion", "ready", "1970-01-01T00:00:01Z")]


def test_flip_canary_promote_and_roll_back(client, versions):
    assert client.post("/v1/models/canary", json={"version": "v2", "percent": 0.5}).json()["percent"] == 0.5
    assert versions.store.active("homepage") == Active("v1", "v2", 0.5)
    assert client.post("/v1/models/canary", json={"percent": 100}).status_code == 200
    wait_until(client, lambda: served(client) == "model-v2")
    assert client.post("/v1/models/rollback", json={}).json()["challenger"] is None
    assert served(client) == "model-v1"
    assert client.post("/v1/models/canary", json={"version": "v2", "percent": 1}).status_code == 200
    assert client.post("/v1/models/promote", json={}).json()["previous"] == "v1"
    wait_until(client, lambda: served(client) == "model-v2")
    assert client.post("/v1/models/rollback", content=b"").json()["champion"] == "v1"
    assert served(client) == "model-v1", "the version before is still loaded: this request reads it already"
    answer = client.post("/v1/models/rollback", json={})
    assert answer.status_code == 409 and "nothing to roll back to" in answer.json()["detail"]
    assert client.post("/v1/models/flip", json={"version": "v2"}).json()["previous"] == "v1"


@pytest.mark.parametrize(("path", "body", "status", "says"), [
    ("flip", {"version": "v3"}, 409, "not checked yet: 'beamrec publish v3'"),
    ("flip", {"version": "v9"}, 404, "no complete version"),
    ("flip", {"version": "v2", "surface": "cart"}, 409, "of surface homepage, not cart"),
    ("flip", {"version": "../etc"}, 422, "version"),
    ("flip", {"version": "v2", "more": 1}, 422, "more"),
    ("flip", {}, 422, "version"),
    ("canary", {"version": "v2", "percent": 0.001}, 422, "percent"),
    ("canary", {"percent": 5}, 409, "no challenger runs"),
    ("promote", {}, 409, "no challenger runs"),
    ("rollback", {"surface": "cart"}, 409, "nothing is published"),
])
def test_what_makes_no_sense_is_refused_and_changes_nothing(client, versions, path, body, status, says):
    answer = client.post(f"/v1/models/{path}", json=body)
    assert answer.status_code == status and says in answer.json()["detail"], answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert versions.store.active("homepage") == Active("v1") and versions.store.active("cart") is None


def test_lists_that_are_gone_cannot_be_flipped_to(client, versions):
    versions.store.drop_version("v2")
    answer = client.post("/v1/models/flip", json={"version": "v2"})
    assert answer.status_code == 409 and "are gone" in answer.json()["detail"]


def test_every_change_leaves_an_audit_line(client):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record)
    logging.getLogger(LOGGER).addHandler(handler)
    logging.getLogger(LOGGER).setLevel(logging.INFO)
    try:
        client.post("/v1/models/flip", json={"version": "v2"})
        client.post("/v1/models/promote", json={})
    finally:
        logging.getLogger(LOGGER).removeHandler(handler)
    audits = [(f["action"], f["surface"], f["version"], f["status"]) for f in
              (r.fields for r in lines if r.getMessage() == "audit")]
    assert audits == [("flip", "homepage", "v2", 200), ("promote", "homepage", None, 409)]


def wait_until(client, condition, tries=100):
    for _ in range(tries):
        if condition():
            return
        client.get("/healthz")
        time.sleep(0.02)
    raise AssertionError("never came")
