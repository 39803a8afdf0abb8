"""``beamrec collect`` as a process: HTTP, killed and stopped under load; nothing answered with 202 is ever lost."""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from collect_world import CollectServer, dead_in, events_in

CLICK = {"user_id": "u1", "item_id": "i1", "event_type": "click"}


@pytest.fixture
def server_of(tmp_path):
    started = []

    def start(*flags, workspace=tmp_path):
        started.append(CollectServer(workspace, *flags))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def test_http(server_of, tmp_path):
    server = server_of("--cors-origin", "https://shop.example")
    assert server.post(CLICK).status_code == 202
    refused = server.post({"user_id": "u"})
    assert refused.status_code == 422 and refused.headers["content-type"] == "application/problem+json"
    assert server.post(b"{" + b" " * (1 << 20)).status_code == 413
    assert server.post([CLICK] * 1001).status_code == 413
    assert server.client.post("/v1/events", content=(b" " * 65536 for _ in range(40))).status_code == 413  # no length given
    assert server.post(b"x", **{"Content-Encoding": "gzip"}).status_code == 415
    assert server.client.get("/v1/events").status_code == 405
    assert server.client.get("/v1/nothing").status_code == 404
    assert server.client.delete("/v1/items/i").headers["allow"] == "PUT"
    assert server.client.get("/healthz").json() == server.client.get("/readyz").json() == {"status": "ok"}
    assert server.client.get("/client.js").headers["content-type"].startswith("text/javascript")
    text = server.client.get("/metrics").text
    assert 'beamrec_collector_events_accepted_total{event_type="click",device=""} 1\n' in text
    assert 'beamrec_collector_requests_total{route="/v1/events",status="422"} 1\n' in text
    # a page of the allowed origin may post, another may not
    preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    allowed = server.client.options("/v1/events", headers=preflight)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, "https://shop.example")
    assert "access-control-allow-origin" not in server.client.options("/v1/events", headers={**preflight, "Origin": "https://x"}).headers
    assert server.stop() == 0
    assert [r["user_id"] for r in events_in(tmp_path)] == ["u1"]
    assert [letter.reason for letter in dead_in(tmp_path)] == ["unknown_event_type"]
    assert not any("u1" in line for line in server.log)


def flood(server, stop, accepted, batch):
    """Posts until told to stop or until the server is gone; collects the ids of what was answered with 202."""
    number = 0
    with httpx.Client(base_url=server.url, timeout=10) as client:
        while not stop.is_set():
            sent = [{**CLICK, "user_id": f"u{number % 50}-{i}"} for i in range(batch)]
            number += 1
            try:
                answer = client.post("/v1/events", content=json.dumps(sent))
            except httpx.TransportError:
                return
            if answer.status_code == 202:
                accepted.extend(e["event_id"] for e in answer.json()["events"])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_what_was_answered_is_in_the_log_once(server_of, tmp_path, how):
    accepted, stop = [], threading.Event()
    server = server_of()
    threads = [threading.Thread(target=flood, args=(server, stop, accepted, batch)) for batch in (1, 1, 40)]
    for thread in threads:
        thread.start()
    while len(accepted) < 500:
        time.sleep(0.01)
    if how == signal.SIGKILL:
        os.kill(server.worker(), signal.SIGKILL)
        server.process.send_signal(signal.SIGTERM)
    else:
        assert server.stop() == 0
    stop.set()
    for thread in threads:
        thread.join()
    server.stop()
    found = Counter(r["event_id"] for r in events_in(tmp_path))
    assert set(accepted) <= set(found) and set(found.values()) == {1}
    again = server_of()
    assert again.post(CLICK).status_code == 202  # the log goes on after a crash
    again.stop()
    later = Counter(r["event_id"] for r in events_in(tmp_path))  # what was written and not yet answered may be there too
    assert set(found) < set(later) and set(later.values()) == {1}


@pytest.mark.parametrize(("flags", "message"), [
    (["--log", "nonsense:x"], "is not a log"), (["--workers", "2"], "needs Kafka"), (["--port", "70000"], "--port"),
    (["--linger-ms", "-1"], "--linger-ms"), (["--store", "redis:x"], "is not a store")])
def test_wrong_flags_are_told_in_one_line(tmp_path, capsys, flags, message):
    from beam_pipelines.cli.main import main

    assert main(["collect", "--workspace", str(tmp_path), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_second_collector_on_one_local_log_is_told(server_of, tmp_path, capsys):
    from beam_pipelines.cli.main import main

    server_of()
    assert main(["collect", "--workspace", str(tmp_path), "--port", "0"]) == 2
    assert "another process" in capsys.readouterr().err
