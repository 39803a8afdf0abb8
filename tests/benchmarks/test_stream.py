"""The stream benchmark: what it compares with is right, tells every wrong row, and a whole small run is equal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from e2e.servers import need

from beam_pipelines.errors import UserError
from beam_pipelines.services import install
from benchmarks.peer_python import ROOT
from benchmarks.stream_feed import PARTITIONS, events_of, fill
from benchmarks.stream_paced import Sender
from benchmarks.stream_peers import run as peers
from benchmarks.stream_peers.truth import WINDOWS, Truth
from serving.eventlog import open_log
from transforms.records import decode

SECOND, START = 1_000_000, 1_728_000_000


@pytest.fixture(scope="module")
def events():
    """400 events of 9 users in 4 hours, some exactly a gap or a pane apart."""
    rng = np.random.default_rng(5)
    at = np.where(rng.random(400) < 0.4, rng.integers(0, 48, 400) * 300, rng.integers(0, 14_400, 400))
    return sorted((f"u{u}", (START + int(s)) * SECOND + int(m)) for u, s, m in
                  zip(rng.integers(0, 9, 400), at, np.where(at % 300, rng.integers(0, SECOND, 400), 0), strict=True))


@pytest.fixture(scope="module")
def truth(events):
    return Truth(pa.array([user for user, _ in events]), np.array([at for _, at in events]))


def expected(events, window):
    """Rows by plain loops."""
    if window == "tumbling":
        return Counter((user, at // (300 * SECOND) * 300) for user, at in events)
    if window == "sliding":
        return Counter((user, (at // (300 * SECOND) - k) * 300) for user, at in events for k in range(12))
    rows, open_ = [], {}
    for user, at in sorted(events, key=lambda event: event[1]):
        if user in open_ and at - open_[user][1] < 1800 * SECOND:
            open_[user][1:] = [at, open_[user][2] + 1]
        else:
            rows.append((user, open_.setdefault(user, [0, 0, 0])))
            rows[-1] = (user, fresh := [at, at, 1])
            open_[user] = fresh
    return Counter({(user, first // SECOND, last // SECOND + 1800): count for user, (first, last, count) in rows})


def table(rows, window):
    names = ["user_id", "start", *(["end"] if window == "sessions" else [])]
    columns = list(zip(*((*key, count) for key, count in rows.items()), strict=True))
    return pa.table({name: pa.array(column) for name, column in zip([*names, "events"], columns, strict=True)})


@pytest.mark.parametrize("window", WINDOWS)
def test_truth_is_what_plain_loops_count(events, truth, window):
    rows = expected(events, window)
    assert truth.rows(window) == len(rows) and sum(rows.values()) == 400 * (12 if window == "sliding" else 1)
    assert truth.differing(window, table(rows, window)) == 0


@pytest.mark.parametrize("window", WINDOWS)
def test_every_wrong_row_is_told(events, truth, window):
    rows = table(expected(events, window), window)
    assert truth.differing(window, rows.slice(1)) == 1  # one is missing
    assert truth.differing(window, pa.concat_tables([rows, rows.slice(0, 2)])) == 2  # two are there twice
    wrong = rows.set_column(rows.column_names.index("events"), "events", pa.array([rows["events"][0].as_py() + 1,
                                                                                     *rows["events"].to_pylist()[1:]]))
    assert truth.differing(window, wrong) == 2  # one is missing, one is too many
    late = truth.differing(window, rows.slice(0, 0), since=START + 7_200)
    assert late == sum(start >= START + 7_200 for start in rows["start"].to_pylist())


def test_files_of_an_engine(events, truth, tmp_path):
    for window in WINDOWS:
        (tmp_path / window / "_metadata").mkdir(parents=True)
        (tmp_path / window / ".part.crc").write_bytes(b"\0")
        (tmp_path / window / "part-1").write_text("")
        lines = [",".join(map(str, (*key, count))) for key, count in expected(events, window).items()]
        (tmp_path / window / "part-2.csv").write_text("\n".join(lines[:5]) + "\n")
        (tmp_path / window / "part-3.csv").write_text("\n".join(lines[5:]) + "\n")
    assert truth.differing_files(tmp_path, WINDOWS) == 0
    for part in (tmp_path / "sliding").glob("part-*"):
        part.unlink()
    assert truth.differing_files(tmp_path, WINDOWS) == truth.rows("sliding")


@pytest.mark.parametrize("single", [True, False])
def test_a_log_holds_each_event_once_in_order(tmp_path, single):
    table, uri = events_of(5_000, 200, 50), f"dir:{tmp_path}/log"
    fill(uri, table, single)
    fill(uri, table, single)  # it is filled already
    found = read(uri)
    assert sorted(found["event_id"].to_pylist()) == sorted(table["event_id"].to_pylist())
    for p in range(PARTITIONS):
        times = found.filter(pa.compute.equal(found["partition"], p))["occurred_at"].to_pylist()
        assert len(times) > 500 and times == sorted(times)


def read(uri):
    log = open_log(uri)
    reader, parts = log.reader(dict.fromkeys(range(PARTITIONS), 0)), []
    while any(reader.positions()[p] < log.latest(p) for p in range(PARTITIONS)):
        decoded = decode(reader.poll(1 << 24, 1.0), "test")
        assert decoded.dead.num_rows == 0
        parts.append(pa.Table.from_batches([decoded.events]))
    reader.close()
    log.close()
    return pa.concat_tables(parts).unify_dictionaries()


def test_a_sender_keeps_its_rate(tmp_path):
    uri = f"dir:{tmp_path}/log"
    sender, began = Sender(uri, rate=2_000, users=100, items=20), time.time_ns() // 1000
    sender.start()
    time.sleep(1.0)
    sender.stop()
    assert sender.error is None
    found = read(uri)
    assert len(found) == sender.sent == len(set(found["event_id"].to_pylist()))
    assert 1_000 <= sender.sent <= 2_000 * (time.time_ns() // 1000 - began) / SECOND
    assert min(found["occurred_at"].cast(pa.int64()).to_pylist()) >= began


def bench(*flags):
    done = subprocess.run([sys.executable, "-m", "beam_pipelines.cli.main", "bench", "stream", "--json", *flags],
                          capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_whole_small_run(tmp_path):
    figures = bench("--log", "local", "--runner", "direct", "--events", "4000", "--users", "100", "--items", "50",
                    "--kinds", "packed,single", "--work", str(tmp_path / "w"))
    assert figures["equal"] is True and "peers" not in figures
    for kind in ("packed", "single"):
        assert 0 < figures[f"{kind}_to_stored_events_per_s"] <= figures[f"{kind}_events_per_s"]
    assert figures["where"]["user state"] > 0


def test_what_is_no_kind_is_refused():
    done = subprocess.run([sys.executable, "-m", "beam_pipelines.cli.main", "bench", "stream", "--peers", "storm"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "--peers takes flink_sql, spark, beam_rowwise, not 'storm'" in done.stderr


@pytest.mark.parametrize("name", list(peers.NOTES))
def test_an_engine_that_is_not_there_is_skipped_with_the_reason(truth, tmp_path, monkeypatch, name):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("BEAMREC_SERVICES", str(tmp_path / "services"))
    feed = peers.Feed("kafka://127.0.0.1:1/none", truth, 400)
    found = peers.run(name, feed, feed, tmp_path, WINDOWS)
    assert list(found) == ["skipped"] and "\n" not in str(found["skipped"])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(peers.NOTES))
def test_an_engine_counts_as_duckdb_does(kafka_broker, tmp_path, name):
    if name == "beam_rowwise":
        need("flink")
    else:
        try:
            install.location(f"peer_{name}")
        except UserError:
            pytest.skip(f"no connectors: beamrec services install peer_{name}")
        if not (ROOT / ".bench" / {"spark": "spark-stream"}.get(name, "flink-sql") / "ready").exists():
            pytest.skip(f"{name} is not installed: beamrec bench stream --peers {name}")
    table = events_of(4_000, 160, 50)
    truth = Truth(table["user_id"], np.asarray(table["occurred_at"].cast(pa.int64())))
    fill(f"kafka://{kafka_broker.bootstrap}/{name}", table, single=True)
    feed = peers.Feed(f"kafka://{kafka_broker.bootstrap}/{name}", truth, 4_000)
    found = peers.run(name, feed, feed, tmp_path, WINDOWS)
    assert found["differing"] == 0 and found["equal"] is True, found
    assert found["events_per_s"] > 0
