"""The whole job on real runners: the store, the final rows and the counters of a log with copies and rubbish in it."""

from __future__ import annotations

import functools
import itertools
import os
import random
import re
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from source_world import NOON, SECOND, event, record
from stream_job_world import HOUR, KINDS, config, fill, user_cells

from beam_pipelines.errors import UserError
from beam_pipelines.io import source
from beam_pipelines.io.stream_audit import read_parts
from beam_pipelines.jobs import stream
from beam_pipelines.jobs.stream_flink import Record, Shape, resumable
from beam_pipelines.jobs.stream_metrics import exposition, serving_metrics
from beam_pipelines.jobs.stream_run import launched, status_of
from beam_pipelines.options import StreamConfig
from beam_pipelines.services import prism
from schemas.keys import row_key, suppressed_group
from schemas.metric_names import EVENTS_ACCEPTED, EVENTS_DUPLICATE, EVENTS_LATE, EVENTS_READ, rejected
from schemas.stream_cells import extract
from schemas.tables import STREAM_PANES
from serving.eventlog import open_log
from serving.stores import open_store
from serving.stores.base import StoreError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, StreamConfig, int]:
    """A log, read to its end on FnApiRunner, and how many copies it has."""
    folder = tmp_path_factory.mktemp("bounded")
    uri = f"dir:{folder}/log"
    copies = fill(uri)
    with launched(done := config(folder / "work", uri, "direct", until_end=True)) as job:
        job.wait()
    return uri, done, copies


def test_a_bounded_run_that_reads_for_long_finds_nothing_late(bounded: tuple[str, StreamConfig, int], tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """FnApiRunner does not hold the watermark back for what a bundle leaves over."""
    uri, done, _ = bounded
    seconds = itertools.count(0, 10)
    monkeypatch.setattr(source, "time", SimpleNamespace(**{**vars(time), "monotonic": lambda: next(seconds)}))
    monkeypatch.setattr(stream, "ReadLog", functools.partial(source.ReadLog, poll_bytes=1))
    with launched(again := config(tmp_path, uri, "direct", until_end=True)) as job:
        job.wait()
    status = status_of(again)
    assert status is not None and EVENTS_LATE not in status["counters"]
    assert user_cells(again.common.store) == user_cells(done.common.store)


def test_a_bounded_run_counts_everything_and_ends(bounded: tuple[str, StreamConfig, int]) -> None:
    _, done, copies = bounded
    status = status_of(done)
    assert status is not None and status["ended"]
    counters = status["counters"]
    assert counters[EVENTS_READ] == 3_000 + copies and counters[EVENTS_ACCEPTED] == 3_000
    assert counters[EVENTS_DUPLICATE] == copies and EVENTS_LATE not in counters
    assert sum(n for name, n in counters.items() if name.startswith(f"{EVENTS_READ}/")) == 3_000 + copies
    assert sum(n for name, n in counters.items() if name.startswith(rejected(""))) == 2
    log = open_log(done.log)
    assert status["offsets"] == {str(p): [log.latest(p), 0] for p in range(log.partitions())}


def test_the_dashboard_and_the_alerts_name_what_a_run_tells(bounded: tuple[str, StreamConfig, int]) -> None:
    status = status_of(bounded[1])
    assert status is not None
    text = exposition({**status, "watermark": NOON, "ended": False}, time.time(), restarts=0)
    told = set(re.findall(r"^(beamrec_\w+)", text, re.M))
    used = {name for path in ("deploy/grafana/beamrec.json", "docs/deploy.md", "docs/stream.md")
            for name in re.findall(r"\bbeamrec_(?!serve_|collector_)\w+", (ROOT / path).read_text())}
    assert len(used) > 10 and used - told == {"beamrec_freshness_seconds", "beamrec_events_"}  # a histogram, a pattern
    samples = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) == len(set(samples))


def test_values_are_those_of_the_events(bounded: tuple[str, StreamConfig, int]) -> None:
    _, done, _ = bounded
    store = open_store(done.common.store)
    mine = [e for e in _events() if e["user_id"] == "u7"]
    last = max(int(e["occurred_at"]) for e in mine)  # type: ignore[call-overload]
    cell = store.read_features([row_key("u", "u7")], "stream", ["user_panes"])[0]["user_panes"]
    values = extract("user_panes", cell.value, last)
    pane = last // (300 * SECOND)
    for kind in KINDS:
        for window, panes in (("5m", 1), ("1h", 12)):
            counted = sum(e["event_type"] == kind and pane - panes < int(e["occurred_at"]) // (300 * SECOND) <= pane  # type: ignore[call-overload]
                          for e in mine)
            assert values[f"count_{kind}_{window}"] == counted
    bought = next(e for e in mine if e["event_type"] == "purchase")
    group = suppressed_group(str(bought["item_id"]))
    assert group in store.read_features([row_key("u", "u7")], "stream", [group])[0]
    store.close()


def _events(events: int = 3_000, seed: int = 3) -> list[dict[str, object]]:
    """The same draws as ``fill``."""
    rng, drawn = random.Random(seed), []
    for i in range(events):
        user = f"u{rng.randrange(40)}"
        drawn.append({"user_id": user, "item_id": f"i{rng.randrange(30)}", "event_type": rng.choice(KINDS),
                      "occurred_at": NOON + i * 3 * HOUR // events, "category": rng.choice("bc")})
    return drawn


def test_final_rows_hold_every_event_once(bounded: tuple[str, StreamConfig, int]) -> None:
    assert bounded[1].audit is not None
    for table in ("stream_panes", "stream_sessions"):
        rows = read_parts(bounded[1].audit, table)
        assert sum(sum(rows.column(f"count_{kind}").to_pylist()) for kind in KINDS) == 3_000
        keys = list(zip(rows.column("user_id").to_pylist(), rows.column("start").to_pylist(), strict=True))
        assert len(set(keys)) == len(keys)


@pytest.fixture(scope="module")
def prism_here() -> None:
    """Skips without Prism."""
    try:
        prism.binary()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("prism_here")
def test_prism_gives_the_same_cells_and_final_rows(bounded: tuple[str, StreamConfig, int], tmp_path: Path) -> None:
    uri, done, _ = bounded
    with launched(streamed := config(tmp_path, uri, "prism", until_end=True)) as job:
        job.wait(seconds=90)
    assert user_cells(streamed.common.store) == user_cells(done.common.store)
    assert streamed.audit is not None and done.audit is not None
    for table in ("stream_panes", "stream_sessions", "stream_minutes"):
        by = [(name, "ascending") for name in STREAM_PANES.schema.names[:2]] if table != "stream_minutes" else \
            [("item_id", "ascending"), ("start", "ascending")]
        assert read_parts(streamed.audit, table).sort_by(by).equals(read_parts(done.audit, table).sort_by(by))


@pytest.mark.usefixtures("prism_here")
def test_a_stream_writes_within_seconds_and_says_that_it_lives(tmp_path: Path) -> None:
    uri = f"dir:{tmp_path}/log"
    log = open_log(f"{uri}?partitions=2")
    running = config(tmp_path / "work", uri, "prism", flush_s=0.2)
    now = time.time_ns() // 1000
    with launched(running) as job, serving_metrics(0, job) as port:
        log.append(0, [record(event("e1", now, user_id="u1"))], now)
        first = _wait(lambda: _counts(running, "u1", now))
        assert first == {"count_view_5m": 1.0}
        log.append(0, [record(event("e2", now + 1, user_id="u1"), event("e1", now, user_id="u1"))], now)
        assert _wait(lambda: _counts(running, "u1", now + 1) == {"count_view_5m": 2.0})
        status = _wait(lambda: (s := job.status()) and s["counters"].get(EVENTS_DUPLICATE) and s)
        assert not status["ended"] and time.time() - status["written_at"] / 1e6 < 5
        assert _wait(lambda: (job.status() or {})["offsets"] == {"0": [2, 0], "1": [0, 0]})
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        assert "beamrec_events_accepted_total 2" in text and "beamrec_up 1" in text
        assert 'beamrec_lag{partition="0"} 0\n' in text and 'beamrec_state_bytes{entity="user"}' in text
        server = prism.Prism.found(running.common.workspace.root / f"scratch/prism-{running.name}")
        assert server is not None
        server.kill()
        with pytest.raises(UserError, match="the runner of stream does not answer any more"):
            job.wait(seconds=30)


def _counts(of: StreamConfig, user: str, t: int) -> dict[str, Any] | None:
    try:
        store = open_store(of.common.store, create=False)
    except StoreError:
        return None
    cell = store.read_features([row_key("u", user)], "stream", ["user_panes"])[0].get("user_panes")
    store.close()
    return {k: v for k, v in extract("user_panes", cell.value, t).items() if k == "count_view_5m"} if cell else None


def _wait(until: Any, seconds: float = 45.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end, "not seen in time"
        time.sleep(0.1)
    return found


def test_a_job_is_resumed_only_as_it_was(tmp_path: Path) -> None:
    one, folder = config(tmp_path, "dir:x", "flink"), tmp_path / "checkpoints"
    record_of = Record(vars(Shape.of(one)), ["job1", "job2"], str(folder / "savepoints/savepoint-1"))
    record_of.write(one.common.workspace, one.name)
    assert Record.read(one.common.workspace, one.name) == record_of
    assert Record.read(one.common.workspace, "another") is None
    with pytest.raises(UserError, match="no complete checkpoint of stream"):
        resumable(one, record_of, True, folder)
    assert resumable(one, record_of, "if possible", folder) is None  # killed before its first checkpoint
    for at, path in enumerate(("job1/chk-7", "savepoints/savepoint-1", "job2/chk-1", "job3/chk-9")):
        (folder / path).mkdir(parents=True)
        (folder / path / "_metadata").touch()
        os.utime(folder / path / "_metadata", (1_000 + at, 1_000 + at))
    (folder / "job2/chk-2").mkdir()  # not complete
    assert resumable(one, record_of, True, folder) == folder / "job2/chk-1"
    os.utime(folder / "savepoints/savepoint-1/_metadata", (2_000, 2_000))
    assert resumable(one, record_of, True, folder) == folder / "savepoints/savepoint-1"
    with pytest.raises(UserError, match="no job stream has run"):
        resumable(one, None, True, folder)
    assert resumable(one, None, "if possible", folder) is None


def test_what_another_version_or_other_buckets_left_is_not_resumed(tmp_path: Path) -> None:
    one = config(tmp_path, "dir:x", "flink")
    older = Record({**vars(Shape.of(one)), "layout": 1}, ["job1"])
    with pytest.raises(UserError, match="layout was 1, now it is"):
        resumable(one, older, True, tmp_path)
    assert resumable(one, older, "if possible", tmp_path) is None  # an upgrade: the log is read again
    for resume in (True, "if possible"):
        with pytest.raises(UserError, match="readers was 2, now it is 3; layout was 1"):
            resumable(config(tmp_path, "dir:x", "flink", readers=3), older, resume, tmp_path)  # type: ignore[arg-type]
