"""Who may do what: keys with roles, limits, the audit line, and what never stands in a log."""

import contextlib
import json
import stat
import time

import pytest
from api_world import client_of, ids, publish

from beam_pipelines.cli.main import main
from serving.api.auth import Guard
from serving.api.limits import SharedBuckets, TokenBuckets
from serving.api.problems import ProblemError
from serving.api_keys import KeyFile
from serving.settings import Settings

USER = "a-very-private-id"


def add(capsys, world, *flags):
    assert main(["keys", "add", "--json", "--workspace", str(world.workspace.root), *flags]) == 0
    return json.loads(capsys.readouterr().out)


def bearer(key):
    return {"Authorization": f"Bearer {key['key']}"}


@pytest.fixture
def published(world):
    return publish(world)


def guarded(world, **settings):
    return client_of(world, keys=world.workspace.keys, anonymous=(), **settings)


def test_a_role_opens_what_it_names_and_nothing_else(published, capsys):
    reader = add(capsys, published, "--role", "read", "--name", "shop")
    writer = add(capsys, published, "--role", "write_events")
    admin = add(capsys, published, "--role", "admin")
    with guarded(published) as client:
        read, flip, event = ("GET", "/v1/recommendations?user_id=ann"), ("POST", "/v1/models/rollback"), ("POST", "/v1/events")
        statuses = {}
        for who, headers in (("nobody", {}), ("reader", bearer(reader)), ("writer", bearer(writer)), ("admin", bearer(admin)),
                             ("forger", {"Authorization": f"Bearer {reader['key']}x"}),
                             ("basic", {"Authorization": f"Basic {reader['key']}"})):
            statuses[who] = [client.request(*call, headers=headers, content=b"{}").status_code for call in (read, flip, event)]
        assert statuses == {"nobody": [401, 401, 401], "forger": [401] * 3, "basic": [401] * 3, "reader": [200, 403, 403],
                            "writer": [403, 403, 503], "admin": [200, 409, 503]}
        refused = client.get("/v1/recommendations?user_id=ann")
        assert refused.headers["www-authenticate"] == "Bearer" and refused.json()["status"] == 401
        assert client.get("/healthz").status_code == 200


def test_the_file_holds_hashes_only_and_a_revoked_key_is_refused_without_a_restart(published, capsys, monkeypatch):
    key = add(capsys, published, "--role", "read")
    text = published.workspace.keys.read_text()
    assert key["key"] not in text and key["key"].split("_", 2)[2] not in text
    assert stat.S_IMODE(published.workspace.keys.stat().st_mode) == 0o600
    monkeypatch.setattr("serving.api.auth.RELOAD_SECONDS", 0.0)
    with guarded(published) as client:
        assert ids(client.get("/v1/recommendations?user_id=ann", headers=bearer(key)))
        assert main(["keys", "revoke", key["id"], "--workspace", str(published.workspace.root)]) == 0
        assert client.get("/v1/recommendations?user_id=ann", headers=bearer(key)).status_code == 401
    assert KeyFile.read(published.workspace.keys).keys[0].revoked_at
    assert main(["keys", "revoke", "nobody", "--workspace", str(published.workspace.root)]) == 2


def test_a_key_has_its_rate(published, capsys):
    key = add(capsys, published, "--role", "read", "--rate", "5")
    with guarded(published) as client:
        answers = [client.get("/v1/recommendations?user_id=ann", headers=bearer(key)) for _ in range(30)]
    refused = [a for a in answers if a.status_code == 429]
    assert refused and int(refused[0].headers["retry-after"]) >= 1 and answers[0].status_code == 200


@pytest.mark.parametrize("shared", [False, True])
def test_buckets_fill_again_and_are_bounded(shared, tmp_path):
    clock = [100.0]
    buckets = SharedBuckets(tmp_path / "limits", lambda: clock[0]) if shared else TokenBuckets(lambda: clock[0])
    assert [buckets.take("a", 2, 4) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    clock[0] += 0.5
    assert buckets.take("a", 2, 4) == 0 and buckets.take("a", 2, 4) > 0
    for n in range(20_000):
        assert buckets.take(str(n), 1, 1) == 0
    assert (tmp_path / "limits").stat().st_size < 1 << 20 if shared else len(buckets._buckets) <= 10_000
    clock[0] += 1
    assert buckets.take("19999", 1, 1) == 0 < buckets.take("19999", 1, 1)


def test_workers_share_a_rate_wherever_the_connections_are(tmp_path):
    clock = [100.0]
    settings = Settings("", tmp_path, workers=4, run=tmp_path)
    workers = [Guard(settings, lambda: clock[0]) for _ in range(4)]

    def passed(chosen):
        count = 0
        for worker in chosen:
            with contextlib.suppress(ProblemError):
                worker._take("key", 8)
                count += 1
        return count

    assert passed([workers[0]] * 30) == 16  # two seconds' worth, all at one worker
    clock[0] += 1
    assert passed([workers[0]] * 8) == 8 and passed(workers * 10) == 0
    clock[0] += 2
    assert passed(workers * 10) == 16


def test_a_key_made_while_the_server_runs_ends_what_everybody_might(published, capsys, monkeypatch):
    monkeypatch.setattr("serving.api.auth.RELOAD_SECONDS", 0.05)
    path = "/v1/recommendations?user_id=ann"
    with client_of(published, keys=published.workspace.keys, until_keys=True) as client:
        assert client.get(path).status_code == 200 and client.get("/openapi.json").json()["paths"]
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 403
        key = add(capsys, published, "--role", "read")
        deadline = time.monotonic() + 5
        while client.get(path).status_code == 200:
            assert time.monotonic() < deadline
        assert client.get(path).status_code == 401 and ids(client.get(path, headers=bearer(key)))
    with client_of(published, keys=published.workspace.root / "later.json", anonymous=("read",)) as client:
        (published.workspace.root / "later.json").write_text("{}")
        time.sleep(0.3)
        assert client.get(path).status_code == 200  # what was said, stays


def test_a_file_of_keys_that_cannot_be_read_lets_nobody_in(published, monkeypatch):
    monkeypatch.setattr("serving.api.auth.RELOAD_SECONDS", 0.05)
    with client_of(published, keys=published.workspace.keys, until_keys=True) as client:
        published.workspace.keys.write_text("no keys")
        deadline = time.monotonic() + 5
        while client.get("/v1/recommendations?user_id=ann").status_code == 200:
            assert time.monotonic() < deadline


def test_a_server_without_keys_answers_this_machine_only(published):
    with client_of(published) as client:
        assert client.get("/v1/recommendations?user_id=ann", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/v1/recommendations?user_id=ann", headers={"Origin": "https://evil.example"}).status_code == 403
        assert client.get("/v1/recommendations?user_id=ann", headers={"Origin": "http://127.0.0.1"}).status_code == 200


def test_others_need_keys_or_a_flag(published, capsys):
    where = ["--workspace", str(published.workspace.root), "--port", "0"]
    assert main(["serve", "--host", "0.0.0.0", *where]) == 2
    assert "beamrec keys add" in capsys.readouterr().err
    assert main(["serve", "--anonymous", "everything", *where]) == 2
    assert main(["serve", "--keys", "/nowhere/keys.json", *where]) == 2


def test_writes_leave_an_audit_line_and_no_log_names_a_user_or_a_key(published, capsys, tmp_path, server_of):
    key = add(capsys, published, "--role", "admin")
    server = server_of(published.workspace.root, "--log", f"dir:{tmp_path / 'log'}", "--log-requests")
    headers = bearer(key)
    event = {"user_id": USER, "item_id": "i10", "event_type": "click"}
    assert server.client.post("/v1/events", json=event, headers=headers).status_code == 202
    assert server.client.put(f"/v1/users/{USER}", json={"country": "DE"}, headers=headers).status_code == 202
    assert server.client.put("/v1/items/i77", json={"title": "New"}, headers=headers).status_code == 202
    assert server.client.post("/v1/models/rollback", json={}, headers=headers).status_code == 409
    assert server.client.get("/v1/recommendations", params={"user_id": USER}, headers=headers).status_code == 200
    assert server.client.get(f"/recommendations/{USER}", headers=headers).status_code == 200
    server.stop()
    entries = [json.loads(line) for line in server.log]
    audited = [e for e in entries if e["event"] == "audit"]
    assert {"events", "user", "item"} <= {e["action"] for e in audited} and all(e["key"] == key["id"] for e in audited)
    masked = {e["user"] for e in audited if e["action"] == "user"}
    assert len(masked) == 1 and len(masked.pop()) == 16
    text = "\n".join(server.log)
    assert USER not in text and key["key"] not in text and KeyFile.read(published.workspace.keys).mask not in text
    assert "/recommendations/{user_id:path}" in text
