"""The processes behind ``beamrec serve``: connections dealt out, workers replaced, HTTP as clients of every kind send it."""

import contextlib
import os
import re
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
from serving_world import Server, World

from serving.server.protocol import MAX_HEAD

HOT = "GET /v1/recommendations?user_id=ann&page_size=2 HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("served") / "workspace")
    world.catalogue(*(f"i{n}" for n in range(4)), "p1")
    world.put_list("ann", "v1", [f"i{n}" for n in range(4)])
    world.put_list("", "v1", ["p1"], reason="popular", model="none")
    world.flip("v1")
    started = Server(world.workspace.root, "--workers", "2")
    eventually(lambda: len(workers_of(started)) == 2 and sum("worker started" in line for line in started.log) == 2)
    yield started
    started.stop()
    world.store.close()


def eventually(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.05)


def workers_of(server):
    pid = server.process.pid
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def sockets_of(pid):
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(fd).startswith("socket:")
    return found


def connect(server):
    host, _, port = server.url.rpartition("//")[2].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answers(sent, count):
    """(status, head, body) of the next answers on a connection."""
    data, found = b"", []
    while len(found) < count:
        head, sep, rest = data.partition(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head)
        if sep and size and len(rest) >= int(size[1]):
            found.append((int(head[9:12]), head, rest[: int(size[1])]))
            data = rest[int(size[1]) :]
            continue
        more = sent.recv(65536)
        assert more, f"closed after {len(found)} answers and {data[:200]!r}"
        data += more
    return found


def test_each_worker_gets_its_share_of_the_connections(server):
    before = {pid: sockets_of(pid) for pid in workers_of(server)}

    def shares():
        opened = [connect(server) for _ in range(10)]
        for one in opened:
            one.sendall(f"{HOT}\r\n".encode())
            assert answers(one, 1)[0][0] == 200
        found = [sockets_of(pid) - count for pid, count in before.items()]
        for one in opened:
            one.close()
        eventually(lambda: {pid: sockets_of(pid) for pid in before} == before)
        return found

    eventually(lambda: shares() == [5, 5])  # not before both have said that they can answer


def test_a_worker_that_dies_is_replaced_and_others_answer_meanwhile(server):
    gone = workers_of(server)[0]
    os.kill(gone, signal.SIGKILL)
    eventually(lambda: gone not in workers_of(server))
    assert server.items("ann")
    eventually(lambda: len(workers_of(server)) == 2 and sum("worker started" in line for line in server.log) == 3)
    assert any("worker died" in line for line in server.log)
    assert {tuple(httpx.get(f"{server.url}/v1/recommendations?user_id=ann").json()["items"][0]["item_id"])
            for _ in range(4)} == {("i", "0")}


def test_requests_that_come_at_once_are_answered_in_their_order(server):
    with connect(server) as one:
        other = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        one.sendall(f"{HOT}\r\n{other}{HOT}\r\n{HOT}\r\n{other}".encode())
        kinds = [b"items" in body for _, _, body in answers(one, 5)]
    assert kinds == [True, False, True, True, False]


@pytest.mark.parametrize("request_text", [
    f"{HOT}Connection: close\r\n\r\n", HOT.replace("HTTP/1.1", "HTTP/1.0") + "\r\n",
])
def test_a_connection_that_is_not_to_be_kept_is_closed(server, request_text):
    with connect(server) as one:
        one.sendall(request_text.encode())
        ((status, head, _),) = answers(one, 1)
        assert status == 200 and b"date: " in head
        assert one.recv(1) == b""


def test_a_head_may_come_in_pieces_and_a_get_may_have_a_body(server):
    with connect(server) as one:
        for piece in re.findall(".{1,7}", f"{HOT}\r\n", re.S):
            one.sendall(piece.encode())
            time.sleep(0.001)
        assert answers(one, 1)[0][0] == 200
        one.sendall(f"{HOT}Content-Length: 5\r\n\r\nhello{HOT}\r\n".encode())
        assert [status for status, _, _ in answers(one, 2)] == [200, 200]
        one.sendall(f"{HOT}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n{HOT}\r\n".encode())
        assert [status for status, _, _ in answers(one, 2)] == [200, 200]


def test_both_ways_of_an_answer_say_the_same(server):
    with connect(server) as one:
        one.sendall(f"{HOT}\r\n{HOT}Content-Length: 0\r\n\r\n".encode())
        (_, quick, first), (_, slow, second) = answers(one, 2)
    assert sorted(quick.lower().split(b"\r\n")) == sorted(slow.lower().split(b"\r\n"))
    assert first.partition(b"items")[2] == second.partition(b"items")[2]


@pytest.mark.parametrize(("text", "status"), [("nonsense\r\n\r\n", b"400"), (f"{HOT}X: {'x' * MAX_HEAD}", b"431"),
                                              (f"GET /{'x' * MAX_HEAD}", b"414")])
def test_what_is_no_request_or_does_not_end_is_refused(server, text, status):
    with connect(server) as one:
        one.sendall(text.encode())
        said = one.recv(4096)
    assert said[9:12] == status and b"application/problem+json" in said and b'"status":%b' % status in said


def test_workers_end_with_the_process_that_accepts(server, tmp_path_factory):
    pids = workers_of(server)
    server.process.kill()
    server.process.wait()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), seconds=30)
