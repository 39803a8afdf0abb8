"""Live events of a simulated world: the process itself, and what a collector or a log gets of it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from beam_pipelines.cli.main import main
from beam_pipelines.options import Config
from beam_pipelines.simulate.behaviour import MINUTE, SECOND, Rows
from beam_pipelines.simulate.columns import EventColumns
from beam_pipelines.simulate.live import LiveWorld
from beam_pipelines.simulate.send import LiveReport, Pace, run
from beam_pipelines.simulate.targets import encode, open_target
from beam_pipelines.simulate.world import World, WorldSpec
from beam_pipelines.simulate.write import simulate
from schemas.event_types import CODES
from schemas.workspace import DAY_MICROS
from serving.eventlog import open_log, partition_of
from transforms.records import decode

SPEC = WorldSpec(users=3_000, items=300, days=3, seed=5, duplicates=0.05, late=0.1)
NOW = SPEC.first + 100 * DAY_MICROS + 12_345


@pytest.fixture(scope="module")
def world() -> World:
    return World.from_seed(SPEC)


def lived(world: World, rate: float, seconds: int, step: int = SECOND, start: int = NOW) -> tuple[Rows, np.ndarray]:
    live = LiveWorld(world, rate, start)
    parts = [live.due(start + at) for at in range(step, seconds * SECOND + 1, step)]
    return Rows.concat([rows for rows, _ in parts]), np.concatenate([copies for _, copies in parts])


def test_events_come_at_the_rate_from_the_first_second_and_in_order(world: World) -> None:
    rows, _ = lived(world, 800, 120)
    sent = rows.at + rows.lag
    assert (np.diff(sent) >= 0).all() and sent[0] >= NOW and sent[-1] < NOW + 120 * SECOND
    per_second = np.bincount((sent - NOW) // SECOND, minlength=120)
    assert abs(per_second[:20].mean() / 800 - 1) < 0.15 and abs(per_second[-20:].mean() / 800 - 1) < 0.15
    kinds = Counter(rows.kind.tolist())
    assert kinds[CODES["impression"]] > kinds[CODES["click"]] > kinds[CODES["cart"]] > kinds[CODES["purchase"]] > 0


def test_users_and_items_are_those_of_the_history_and_newcomers_sign_up_first() -> None:
    world = World.from_seed(replace(SPEC, late=0))  # a sign-up may come late, too
    rows, _ = lived(world, 800, 300)
    items = rows.item[rows.item >= 0]
    assert np.isin(items, world.alive_items(world.end)).all()
    new = np.unique(rows.user[rows.kind == CODES["signup"]])
    others = rows.user[~np.isin(rows.user, new)]
    assert len(new) and (world.user_born[new] >= world.end).all() and (world.user_born[others] < world.end).all()
    for user in new.tolist():
        mine = rows.take(rows.user == user)
        assert mine.at[mine.kind == CODES["signup"]].min() <= mine.at.min()


def test_ids_are_new_in_each_run_and_only_copies_repeat_one(world: World) -> None:
    rows, copies = lived(world, 500, 60)
    table = EventColumns(world).table(rows, copies)
    ids = table["event_id"].to_numpy()
    once = ids[~copies]
    assert len(np.unique(once)) == len(once) and 0.02 < copies.mean() < 0.06
    first = dict(zip(once.tolist(), rows.at[~copies].tolist(), strict=True))
    again = [(i, at) for i, at in zip(ids[copies].tolist(), rows.at[copies].tolist(), strict=True) if i in first]
    assert len(again) > 100 and all(first[i] == at for i, at in again)
    late = rows.lag[~copies] > 0
    assert 0.05 < late.mean() < 0.15
    other, _ = lived(world, 500, 10, start=NOW + 60 * SECOND)
    history = EventColumns(world).table(other)["event_id"].to_numpy()
    assert not set(history.tolist()) & set(ids.tolist())


def test_how_often_it_is_asked_changes_nothing(world: World) -> None:
    one, other = lived(world, 300, 20)[0], lived(world, 300, 20, step=SECOND // 20)[0]
    assert sorted(one.number.tolist()) == sorted(other.number.tolist())


def test_what_lies_far_ahead_is_left_out_so_that_memory_is_bounded(world: World) -> None:
    live = LiveWorld(world, 20, NOW)
    held = []
    for minute in range(2, 31, 2):
        live.due(NOW + minute * MINUTE)
        held.append(sum(len(part) for parts in live._slots.values() for part in parts))
    assert max(held[10:]) < 1.3 * max(held[:5])


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 1e9])
def test_an_impossible_rate_is_refused(world: World, rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        LiveWorld(world, rate, NOW)


class Collector(ThreadingHTTPServer):
    """Takes batches as a collector does; puts off, drops or refuses some first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.accepted: list[dict] = []
        self.requests, self.connections = 0, set[object]()
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests += 1
            turn = self.server.requests
            self.server.connections.add(self.client_address)
        if turn % 7 == 2:
            self._answer(503, b"{}", {"Retry-After": "0.05"})
        elif turn % 7 == 4:
            self._answer(429, b"{}", {})
        elif turn % 7 == 6:
            self.close_connection = True  # without an answer, though it may have been taken
        else:
            with self.server.lock:
                self.server.accepted += body["events"]
            results = [{"event_id": e["event_id"], "status": "accepted"} for e in body["events"]]
            results[0] = {"event_id": results[0]["event_id"], "status": "rejected", "reason": "unknown_event_type"}
            answer = {"accepted": len(results) - 1, "rejected": 1, "events": results}
            self._answer(202, json.dumps(answer).encode(), {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: Collector) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def send(world: World, to: str, pace: Pace) -> LiveReport:
    target = open_target(to)
    try:
        return run(world, target, pace, threading.Event(), quiet=True)
    finally:
        target.close()


def test_a_collector_gets_every_event_also_when_it_puts_off_or_drops_requests(world: World, collector: Collector) -> None:
    before = time.time_ns() // 1000
    report = send(world, url(collector), Pace(400, 3, batch=25, connections=3))
    ids = [e["event_id"] for e in collector.accepted]
    assert report.sent > 900 and report.unsent == 0 and report.retries > 10
    assert len(set(ids)) == len(ids) == report.accepted + report.rejected == report.sent
    assert report.rejected == report.reasons["unknown_event_type"] == report.requests
    times = np.array([e["occurred_at"] for e in collector.accepted])
    assert before - 60 * MINUTE < times.min() and times.max() <= time.time_ns() // 1000
    assert 0 < report.p50_ms <= report.p99_ms <= report.max_ms


def test_connections_are_kept(world: World, collector: Collector) -> None:
    report = send(world, url(collector), Pace(200, 2, batch=20, connections=2))
    dropped = collector.requests // 7 + 1
    assert report.requests > 10 and len(collector.connections) <= 2 + dropped


def test_a_body_holds_what_an_event_says(world: World) -> None:
    rows, copies = lived(world, 300, 30)
    table = EventColumns(world).table(rows, copies)
    events = json.loads(encode(table))["events"]
    assert len(events) == len(table)
    for at in (0, len(table) // 2, len(table) - 1):
        row = table.slice(at, 1).to_pylist()[0]
        for name, value in events[at].items():
            expected = int(rows.at[at]) if name == "occurred_at" else row[name]
            assert value == expected, name
        assert {"event_id", "user_id", "item_id", "event_type", "categories", "price"} <= set(events[at])
        assert "ingested_at" not in events[at]


def test_nobody_there_ends_in_time_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_pipelines.simulate.send.DRAIN_S", 0.5)
    started = time.monotonic()
    report = send(world, "http://127.0.0.1:9", Pace(200, 0.5, batch=20, connections=2))
    assert report.accepted == 0 and report.unsent == report.sent > 50 and report.retries > 0
    assert time.monotonic() - started < 8


def test_a_log_gets_packs_on_the_users_partitions(world: World, tmp_path: Path) -> None:
    uri = f"dir:{tmp_path / 'log'}?partitions=4"
    report = send(world, uri, Pace(500, 2, batch=200, connections=2))
    log = open_log(f"dir:{tmp_path / 'log'}")
    reader = log.reader(dict.fromkeys(range(4), 0))
    found = []
    while len(records := reader.poll(1 << 22, 0.2)):
        decoded = decode(records, "test")
        assert decoded.dead.num_rows == 0
        found += decoded.events.select(["user_id", "partition", "occurred_at", "ingested_at"]).to_pylist()
    reader.close()
    log.close()
    assert len(found) == report.accepted == report.sent > 500
    assert all(partition_of(e["user_id"], 4) == e["partition"] for e in found)
    assert all(e["ingested_at"] >= e["occurred_at"] for e in found)


def test_the_command_goes_on_with_the_world_of_the_workspace(tmp_path: Path, collector: Collector,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    config = Config.of(tmp_path, quiet=True)
    simulate(config, SPEC)
    words = ["simulate", "--workspace", str(tmp_path), "--quiet", "--rate", "200", "--to", url(collector)]
    assert main([*words, "--seconds", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["accepted"] > 50 and report["rate"] > 50 and "clock" in err
    assert not config.workspace.is_frozen and config.workspace.data_until == World.from_seed(SPEC).end
    world = World.from_seed(SPEC)
    price = dict(zip(world.item_ids(np.arange(SPEC.items)).tolist(), world.item_price.tolist(), strict=True))
    priced = [e for e in collector.accepted if e["price"] is not None]
    assert priced and all(price[e["item_id"]] == e["price"] for e in priced)
    assert main([*words, "--seconds", "1", "--users", "17"]) == 2
    assert "another world" in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["--rate", "5"], ["--to", "http://127.0.0.1:1"], ["--rate", "0", "--to", "http://h"], ["--rate", "5", "--to", "ftp://h"],
    ["--rate", "5", "--to", "http://h", "--batch", "0"], ["--rate", "5", "--to", "dir:nowhere/log"],
    ["--rate", "5", "--to", "http://h", "--seconds", "-1"], ["--rate", "5", "--to", "http://h", "--until-now"]])
def test_what_makes_no_sense_is_one_line(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--workspace", str(tmp_path), *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_history_until_now_ends_with_yesterday_and_its_clock_runs(tmp_path: Path) -> None:
    words = ["simulate", "--users", "60", "--items", "40", "--workspace", str(tmp_path), "--quiet", "--until-now"]
    assert main([*words, "--days", "2"]) == 0
    config, today = Config.of(tmp_path), time.time_ns() // 1000 // DAY_MICROS * DAY_MICROS
    assert config.workspace.data_until == today and not config.workspace.is_frozen
    spec = json.loads((tmp_path / "world.json").read_text())
    assert main(words) == 0 and json.loads((tmp_path / "world.json").read_text()) == spec  # nothing to add on the same day
    spec["days"], spec["start"] = 1, spec["start"]
    (tmp_path / "world.json").write_text(json.dumps(spec))
    (tmp_path / "clock.json").write_text(json.dumps({"frozen_at": today - DAY_MICROS, "runs": 1}))
    assert main(words) == 0 and json.loads((tmp_path / "world.json").read_text())["days"] == 2  # a day later it goes on
