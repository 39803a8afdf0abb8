"""The collector's short way for POST /v1/events, byte by byte: pipelined, split, unusual, broken off."""

import json
import socket
import sys
import time
from http.client import HTTPResponse
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from collect_world import CollectServer, events_in

CLOSE = "connection: close\r\n"


def post(user, body=None, head="", version="1.1"):
    text = body if body is not None else json.dumps({
        "event_id": f"e-{user}", "user_id": user, "item_id": "i", "event_type": "view", "occurred_at": 1_790_000_000_000,
        "price": 1.5, "categories": ["c"]})  # nothing that the catalogue must add
    return f"POST /v1/events HTTP/{version}\r\nhost: x\r\n{head}content-length: {len(text.encode())}\r\n\r\n{text}".encode()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("collect")


@pytest.fixture(scope="module")
def server(workspace):
    server = CollectServer(workspace)
    for _ in range(300):  # until the loops are compiled, events go the long way
        if any("loops ready" in line for line in server.log):
            break
        server.client.get("/healthz")
    yield server
    server.stop()


def told(server, *parts):
    """(status, document) of each answer to bytes, sent part by part, until the server closes."""
    host, _, port = server.url.rpartition("//")[2].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as opened:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            opened.sendall(part)
        data = b""
        while got := opened.recv(1 << 16):
            data += got
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size = int(fields[b"content-length"])
        answers.append((int(head.split()[1]), json.loads(data[:size])))
        data = data[size:]
    return answers


def talked(server, *requests):
    """(status, document) of each answer; a request, of one or more parts, is sent when the one before is answered."""
    host, _, port = server.url.rpartition("//")[2].rpartition(":")
    answers = []
    with socket.create_connection((host, int(port)), timeout=10) as opened:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for parts in requests:
            for part in parts:
                opened.sendall(part)
                time.sleep(0.02)  # as a chunk of its own
            answer = HTTPResponse(opened)
            answer.begin()
            answers.append((answer.status, json.loads(answer.read())))
        opened.settimeout(0.2)
        with pytest.raises(TimeoutError):
            opened.recv(1)
    return answers


def ids(answers):
    return [[e["event_id"] for e in document["events"]] for _, document in answers]


def test_what_is_pipelined_is_answered_in_its_order(server):
    users = [f"p{i}" for i in range(20)]
    answers = told(server, b"".join(post(u) for u in users) + post("last", head=CLOSE))
    assert [status for status, _ in answers] == [202] * 21
    assert ids(answers) == [[f"e-{u}"] for u in [*users, "last"]]


def test_the_short_and_the_long_way_take_turns(server):
    health = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    keyed = post("t2", head="idempotency-key: k\r\n")
    answers = told(server, post("t1") + health + keyed + post("t3") + post("t4", head=CLOSE))
    assert [status for status, _ in answers] == [202, 200, 202, 202, 202]
    assert ids([a for a in answers if "events" in a[1]]) == [["e-t1"], ["e-t2"], ["e-t3"], ["e-t4"]]


def test_requests_with_the_same_head_are_each_answered(server):
    texts = [post(f"{'long' * i}{i}", head="x-from: a client\r\n") for i in range(8)]
    other = post("other", head="x-from: another\r\n")
    split = (texts[3][:70], texts[3][70:]), (texts[4][:-5], texts[4][-5:])
    wrong = post("", "{not json", head="x-from: a client\r\n")
    answers = talked(server, *((t,) for t in texts[:3]), (other,), *split, (wrong,), *((t,) for t in texts[5:]))
    assert [status for status, _ in answers] == [202] * 6 + [422] + [202] * 3
    assert [e for [e] in ids(answers[:6]) + ids(answers[7:])] == [
        f"e-{u}" for u in ("0", "long1", "longlong2", "other", *(f"{'long' * i}{i}" for i in range(3, 8)))]


def test_a_body_that_looks_like_a_request_is_a_body(server):
    hidden = post("hidden")
    head, body = post("", hidden.decode()).split(b"\r\n\r\n", 1)
    chunked = b"POST /v1/events HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % len(hidden)
    answers = talked(server, (post("k1"),), (post("k2"),), (head + b"\r\n\r\n", body),
                     (chunked, hidden, b"\r\n0\r\n\r\n"), (post("k3"),))
    assert [status for status, _ in answers] == [202, 202, 422, 422, 202]


def test_a_request_may_come_a_byte_at_a_time(server):
    request = post("slow", head=CLOSE)
    assert ids(told(server, *(request[i : i + 1] for i in range(len(request))))) == [["e-slow"]]


def test_what_the_short_way_cannot_read_is_answered_all_the_same(server):
    escaped = '{"event_id":"e-esc","user_id":"a\\u0062","item_id":"i","event_type":"view"}'
    answers = told(server, post("", escaped) + post("", "{not json") + post("", "") + post("", "[]", head=CLOSE))
    assert [status for status, _ in answers] == [202, 422, 422, 422]
    assert ids(answers[:1]) == [["e-esc"]]


def test_an_old_client_is_answered_and_its_connection_closed(server):
    assert ids(told(server, post("old", version="1.0"))) == [["e-old"]]


def test_a_client_that_goes_before_its_answer_harms_nobody(server, workspace):
    host, _, port = server.url.rpartition("//")[2].rpartition(":")
    for sent in (post("gone"), post("half")[:-20]):
        with socket.create_connection((host, int(port))) as opened:
            opened.sendall(sent)
    assert ids(told(server, post("after", head=CLOSE))) == [["e-after"]]
    assert server.stop() == 0
    users = [event["user_id"] for event in events_in(workspace)]
    assert "after" in users and "half" not in users and len(users) == len(set(users)), "each once"
    assert not any('"level": "error"' in line for line in server.log)
