"""The collector over a real Kafka: two workers, and a broker that goes away and comes back."""

import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from servers import kafka_broker, need  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from collect_world import CollectServer

from beam_pipelines.services import kafka
from serving.clients.events import EventClient
from serving.eventlog import open_log
from transforms.records import decode

CLICK = {"user_id": "u", "item_id": "i", "event_type": "click"}


def ids_in(uri):
    log = open_log(uri)
    ends = {p: log.latest(p) for p in range(log.partitions())}
    reader = log.reader({p: log.earliest(p) for p in ends})
    found = Counter()
    deadline = time.monotonic() + 30
    while any(reader.positions()[p] < end for p, end in ends.items()) and time.monotonic() < deadline:
        found.update(decode(reader.poll(1 << 24, 1.0), "log").events.column("event_id").to_pylist())
    reader.close()
    log.close()
    return found


def test_two_workers_write_one_topic(kafka_broker, tmp_path):  # noqa: F811
    uri = f"kafka://{kafka_broker.bootstrap}/two-workers"
    server = CollectServer(tmp_path, "--log", uri, "--workers", "2")
    try:
        sent = []

        def work(number):
            with EventClient(server.url, batch_size=20, wait_s=0.01) as events:
                sent.extend(events.track("click", f"u{i}", f"i{number}") for i in range(200))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        assert server.stop() == 0
    assert ids_in(uri) == Counter(sent) and len(sent) == 800


@pytest.mark.slow
def test_while_the_broker_is_away_nothing_is_accepted_and_nothing_accepted_is_lost(tmp_path):
    need("kafka")
    pytest.importorskip("confluent_kafka")
    with kafka.running(tmp_path / "kafka") as broker:
        uri = f"kafka://{broker.bootstrap}/away"
        server = CollectServer(tmp_path / "ws", "--log", uri)
        server.client.timeout = 60
        try:
            before = server.post(CLICK)
            broker.kill()
            away = server.post(CLICK)
            broker.start()
            deadline = time.monotonic() + 60
            while (after := server.post(CLICK)).status_code != 202 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert (before.status_code, away.status_code, after.status_code) == (202, 503, 202)
            assert int(away.headers["Retry-After"]) >= 1
            assert [e["status"] for e in away.json()["events"]] == ["unavailable"]
            found = ids_in(uri)
            assert all(found[a.json()["events"][0]["event_id"]] == 1 for a in (before, after))
        finally:
            server.stop()
