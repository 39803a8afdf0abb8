"""``beamrec collect`` with keys: who may write, how often, and that the short way for events asks too."""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from collect_world import CollectServer, events_in, upserts_in

from beam_pipelines.cli.main import main
from serving.clients.events import CollectorError, EventClient, put_item

CLICK = {"user_id": "u1", "item_id": "i1", "event_type": "click"}


@pytest.fixture
def server_of(tmp_path):
    started = []

    def start(*flags):
        started.append(CollectServer(tmp_path / "w", *flags))
        while not any("loops ready" in line for line in started[-1].log):  # until then all events go the long way
            time.sleep(0.05)
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def key_of(tmp_path, capsys):
    def add(*flags):
        assert main(["keys", "add", "--json", "--workspace", str(tmp_path / "w"), *flags]) == 0
        return json.loads(capsys.readouterr().out)

    return add


def bearer(key):
    return {"Authorization": f"Bearer {key['key']}"}


def test_a_writer_s_key_opens_events_and_upserts_and_others_do_not(server_of, key_of, tmp_path):
    writer, reader = key_of("--role", "write_events"), key_of("--role", "read")
    server = server_of("--cors-origin", "https://shop.example")
    calls = (("POST", "/v1/events", CLICK), ("PUT", "/v1/items/a%2Fb", {"title": "T"}), ("PUT", "/v1/users/private", {}))
    for headers, status in (({}, 401), ({"Authorization": "Bearer br_0_x"}, 401), (bearer(reader), 403), (bearer(writer), 202)):
        for method, path, document in calls:
            answer = server.client.request(method, path, json=document, headers={**headers, "Origin": "https://shop.example"})
            assert answer.status_code == status, (method, path)
            assert answer.headers["access-control-allow-origin"] == "https://shop.example"
            assert status == 202 or answer.headers["content-type"] == "application/problem+json"
            assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    assert server.client.get("/readyz").status_code == server.client.get("/metrics").status_code == 200
    server.stop()
    assert len(events_in(tmp_path / "w")) == 1 and [u["item_id"] for u in upserts_in(tmp_path / "w", "item")] == ["a/b"]
    audited = [e for e in map(json.loads, server.log) if e["event"] == "audit"]
    assert [e["action"] for e in audited] == ["item", "user"] and {e["key"] for e in audited} == {writer["id"]}
    assert not any("private" in line or writer["key"] in line for line in server.log)


def test_a_key_that_passed_is_asked_again_once_it_is_revoked(server_of, key_of, tmp_path):
    key = key_of("--role", "write_events")
    server = server_of()
    for _ in range(3):  # the first looks the key up, the others go the short way
        assert server.post(CLICK, **bearer(key)).status_code == 202
    assert server.post(CLICK).status_code == 401
    assert main(["keys", "revoke", key["id"], "--workspace", str(tmp_path / "w")]) == 0
    deadline = time.monotonic() + 5
    while server.post(CLICK, **bearer(key)).status_code == 202:
        assert time.monotonic() < deadline
    assert server.post(CLICK, **bearer(key)).status_code == 401


def test_a_key_made_while_the_collector_runs_ends_what_everybody_might(server_of, key_of):
    server = server_of()
    assert [server.post(CLICK).status_code for _ in range(3)] == [202] * 3
    key = key_of("--role", "write_events")
    deadline = time.monotonic() + 5
    while server.post(CLICK).status_code == 202:
        assert time.monotonic() < deadline
    assert server.post(CLICK).status_code == 401 and server.post(CLICK, **bearer(key)).status_code == 202


def test_a_key_has_its_rate_on_every_way(server_of, key_of):
    key = key_of("--role", "write_events", "--rate", "5")
    server = server_of()
    statuses = Counter(server.post(CLICK, **bearer(key)).status_code for _ in range(40))
    assert set(statuses) == {202, 429} and statuses[202] < 30


def test_others_need_keys_or_a_flag(tmp_path, capsys, server_of):
    assert main(["collect", "--host", "0.0.0.0", "--port", "0", "--workspace", str(tmp_path / "none")]) == 2
    assert "beamrec keys add --role write_events" in (said := capsys.readouterr().err) and "--open" in said
    assert main(["collect", "--keys", "/nowhere", "--workspace", str(tmp_path / "none")]) == 2
    server = server_of("--host", "0.0.0.0", "--open")
    assert [server.post(CLICK).status_code for _ in range(2)] == [202] * 2


def test_the_clients_send_a_key(server_of, key_of, tmp_path):
    key, server = key_of("--role", "write_events")["key"], server_of()
    dropped = []
    with EventClient(server.url, key=key) as events:
        events.track("click", user_id="u1", item_id="i1")
    with EventClient(server.url, on_drop=lambda event, reason: dropped.append(reason)) as events:
        events.track("click", user_id="u2", item_id="i1")
    assert dropped == ["refused: 401"]
    put_item(server.url, "i1", key=key, title="T")
    with pytest.raises(CollectorError, match="401"):
        put_item(server.url, "i2", title="T")
    flags = ["--rate", "100", "--seconds", "1", "--users", "20", "--items", "20", "--quiet", "--workspace", str(tmp_path / "s")]
    assert main(["simulate", "--to", server.url, *flags]) == 1
    assert main(["simulate", "--to", server.url, "--key", key, *flags]) == 0
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    server.stop()
    assert {"u1"} <= (users := {e["user_id"] for e in events_in(tmp_path / "w")}) and "u2" not in users and len(users) > 1
