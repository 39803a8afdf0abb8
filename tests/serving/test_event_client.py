"""The Python client against a real collector that comes, goes and refuses."""

import socket
import threading
from pathlib import Path

import pytest
from collect_world import CollectServer, events_in, upserts_in

from serving.clients.events import CollectorError, EventClient, put_item, put_user


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = CollectServer(tmp_path_factory.mktemp("ws"))
    made.root = made.process.args[made.process.args.index("--workspace") + 1]
    yield made
    made.stop()


@pytest.fixture
def root(server):
    return Path(server.root)


def ids(root, user):
    return sorted(r["event_id"] for r in events_in(root) if r["user_id"] == user)


def test_events_of_many_threads_arrive_each_once(server, root):
    sent = []
    with EventClient(server.url, batch_size=50, wait_s=0.01) as events:
        def work(number):
            for i in range(100):
                sent.append(events.track("click", "threads", f"i{i}", attributes={"t": str(number)}))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert ids(root, "threads") == sorted(sent) and len(sent) == 500


def test_what_is_refused_is_told_with_its_reason(server, root):
    dropped = []
    with EventClient(server.url, on_drop=lambda e, why: dropped.append((e["event_id"], why))) as events:
        good = events.track("view", "refused", "i1")
        bad = events.track("clack", "refused", "i1")
        no_json = events.track("view", "refused", "i1", value=object())
        huge = events.track("view", "refused", "i1", referrer="x" * 2_000_000)
    assert ids(root, "refused") == [good]
    assert dict(dropped).keys() == {bad, no_json, huge}
    assert dict(dropped)[bad] == "rejected: unknown_event_type" and dict(dropped)[huge] == "too_large"
    assert dict(dropped)[no_json].startswith("not_json")


def test_a_client_waits_for_a_collector_that_is_away(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    events = EventClient(f"http://127.0.0.1:{port}", min_retry_s=0.05, max_retry_s=0.2)
    early = events.track("click", "late", "i1")
    assert not events.flush(0.3) and events.waiting() == 1
    server = CollectServer(tmp_path, port=port)
    try:
        assert events.flush(20)
        assert server.stop() == 0
        while_away = events.track("click", "late", "i2")
        assert not events.flush(0.3)
        server = CollectServer(tmp_path, port=port)
        events.close()
        assert ids(tmp_path, "late") == sorted([early, while_away])
    finally:
        server.stop()


def test_a_full_queue_drops_the_oldest_and_close_tells_what_is_left():
    dropped = []
    events = EventClient("http://127.0.0.1:9", max_queue=2, wait_s=60,
                         on_drop=lambda e, why: dropped.append((e["item_id"], why)))
    for i in range(3):
        events.track("click", "u", str(i))
    events.close(timeout_s=0.2)
    assert dropped[0] == ("0", "queue_full")
    assert {item for item, _ in dropped} == {"0", "1", "2"}
    with pytest.raises(CollectorError):
        events.track("click", "u", "4")


def test_upserts(server, root):
    put_item(server.url, "100% a/b", title="T", price=2.5)
    put_user(server.url, "ü", country="DE")
    assert [(i["item_id"], i["title"]) for i in upserts_in(root, "item")] == [("100% a/b", "T")]
    assert [u["user_id"] for u in upserts_in(root, "user")] == ["ü"]
    with pytest.raises(CollectorError, match=r"422.*unknown field"):
        put_item(server.url, "i", nope=1)
    with pytest.raises(CollectorError, match="does not answer"):
        put_item("http://127.0.0.1:9", "i")
