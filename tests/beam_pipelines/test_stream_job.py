"""The whole job on real runners: the store, the final rows and the counters of a log with copies and rubbish in it."""

from __future__ import annotations

import functools
import itertools
import json
import random
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from source_world import NOON, SECOND, event, record

from beam_pipelines.cli.main import main
from beam_pipelines.cli.stream import seconds, start_of
from beam_pipelines.errors import UserError
from beam_pipelines.io import source
from beam_pipelines.io.stream_audit import part_path, read_parts, write_part
from beam_pipelines.io.stream_sink import AWAY, StoreAwayError, write_patiently
from beam_pipelines.io.stream_status import Probe, _Offsets, merged
from beam_pipelines.jobs import stream
from beam_pipelines.jobs.stream import construct
from beam_pipelines.jobs.stream_metrics import exposition, serving_metrics
from beam_pipelines.jobs.stream_run import Record, Shape, flags_of, launched, status_of
from beam_pipelines.options import Config, StreamConfig
from beam_pipelines.services import prism
from schemas.arrow import TIMESTAMP
from schemas.keys import STATUS, row_key, status_key, suppressed_group
from schemas.metric_names import (
    EVENTS_ACCEPTED,
    EVENTS_DUPLICATE,
    EVENTS_LATE,
    EVENTS_READ,
    FRESHNESS,
    FRESHNESS_MS,
    by_segment,
    rejected,
)
from schemas.stream_cells import extract
from schemas.tables import STREAM_PANES
from serving.breaker import Breaker
from serving.eventlog import open_log, partition_of
from serving.stores import open_store
from serving.stores.base import Cell, FeatureWrite, StoreError
from transforms.beam.stream.state import Final

HOUR = 3600 * SECOND
_KINDS = ("view", "click", "impression", "purchase", "save")


def fill(uri: str, events: int = 3_000, seed: int = 3) -> int:
    """A log of two partitions: events of 40 users over 3 hours, each tenth twice, and two records that are no events."""
    rng, log = random.Random(seed), open_log(f"{uri}?partitions=2")
    try:
        copies = 0
        for start in range(0, events, 50):
            packs: dict[int, list[dict[str, object]]] = {0: [], 1: []}
            for i in range(start, start + 50):
                user = f"u{rng.randrange(40)}"
                at = NOON + i * 3 * HOUR // events
                fields = {"user_id": user, "item_id": f"i{rng.randrange(30)}", "event_type": rng.choice(_KINDS),
                          "surface": "homepage", "device": "phone", "ingested_at": at, "categories": ["a", rng.choice("bc")]}
                again = 1 + (i % 10 == 0)
                copies += again - 1
                packs[partition_of(user, 2)] += [event(f"e{i}", at, **fields)] * again
            for partition, pack in packs.items():
                if pack:
                    log.append(partition, [record(*pack)], NOON)
        log.append(0, [b"", b"\xff nothing of the kind"], NOON)
    finally:
        log.close()
    return copies


def config(folder: Path, uri: str, runner: str, **fields: Any) -> StreamConfig:
    folder.mkdir(parents=True, exist_ok=True)
    return StreamConfig(Config.of(folder, runner=runner, quiet=True), uri, user_buckets=4, item_buckets=2,
                        audit=folder / "audit", **fields)


def user_cells(store: str) -> dict[tuple[str, str], Any]:
    opened = open_store(store)
    try:
        return {(group, row): cell for group in ("user_panes", "user_day", "user_session", "user_preference", "user_recent")
                for row, cell in opened.scan_features("stream", group)}
    finally:
        opened.close()


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


def test_values_are_those_of_the_events(bounded: tuple[str, StreamConfig, int]) -> None:
    _, done, _ = bounded
    store = open_store(done.common.store)
    mine = [e for e in _events() if e["user_id"] == "u7"]
    last = max(int(e["occurred_at"]) for e in mine)  # type: ignore[call-overload]
    cell = store.read_features([row_key("u", "u7")], "stream", ["user_panes"])[0]["user_panes"]
    values = extract("user_panes", cell.value, last)
    pane = last // (300 * SECOND)
    for kind in _KINDS:
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
        drawn.append({"user_id": user, "item_id": f"i{rng.randrange(30)}", "event_type": rng.choice(_KINDS),
                      "occurred_at": NOON + i * 3 * HOUR // events, "category": rng.choice("bc")})
    return drawn


def test_final_rows_hold_every_event_once(bounded: tuple[str, StreamConfig, int]) -> None:
    assert bounded[1].audit is not None
    for table in ("stream_panes", "stream_sessions"):
        rows = read_parts(bounded[1].audit, table)
        assert sum(sum(rows.column(f"count_{kind}").to_pylist()) for kind in _KINDS) == 3_000
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


class _Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_a_store_that_is_away_for_a_while_is_waited_for() -> None:
    left, retries, clock = [7], [], _Time()
    breaker = Breaker("store", AWAY, clock=clock)

    def write() -> int:
        if left[0]:
            left[0] -= 1
            raise StoreError("away")
        return 5

    assert write_patiently(write, breaker, 60.0, lambda: retries.append(1), clock, clock.sleep) == 5
    assert len(retries) == 7
    assert all(pause <= clock.slept[i] <= 1.25 * pause for i, pause in enumerate([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 4.0]))
    assert write_patiently(lambda: 6, breaker, 60.0, lambda: None, clock, clock.sleep) == 6 and len(clock.slept) == 7


def test_a_store_that_stays_away_fails_the_bundle_in_the_end_and_the_next_one_does_not_hurry() -> None:
    tried, clock = [], _Time()
    breaker = Breaker("store", AWAY, clock=clock)

    def write() -> int:
        tried.append(clock.now)
        raise StoreError("away")

    for _ in range(3):
        with pytest.raises(StoreAwayError, match="refused every write for 20 s: away"):
            write_patiently(write, breaker, 20.0, lambda: None, clock, clock.sleep)
    gaps = [after - before for before, after in itertools.pairwise(tried)]
    assert all(pause <= gap <= 1.26 * pause for gap, pause in zip(gaps, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2], strict=False))
    assert len(gaps) > 9 and min(gaps[6:]) >= 3.99


def test_offsets_are_the_furthest_in_whatever_order_they_come() -> None:
    parts = [{"events_read": 2, "offsets": {"0": [5, 3], "1": [1, 0]}}, {"events_read": 3}, {"offsets": {"0": [9, 0]}},
             {"offsets": {"0": [9, 2], "2": [0, 7]}}, {"events_late": 1}]
    for order in itertools.permutations(parts):
        counters, offsets = merged(json.loads(json.dumps(part)) for part in order)
        assert counters == {"events_read": 5, "events_late": 1} and offsets == {"0": [9, 2], "1": [1, 0], "2": [0, 7]}
        again = merged([{**counters, "offsets": offsets}, {"offsets": {"2": [7, 0]}}])
        assert again == (counters, {**offsets, "2": [7, 0]})


def test_progress_is_told_once_a_second_and_when_all_is_read() -> None:
    doing = _Offsets("job")
    doing.setup()
    told = [json.loads(row)["offsets"] for lag in (5, 4, 0, 0, 3, 0) for _, row in doing.process(_progress_of(9 - lag, lag))]
    assert told == [{"1": [4, 5], "3": [0, 0]}, {"1": [9, 0], "3": [0, 0]}]
    assert not list(doing.process(_progress_of(0, 0).slice(0, 0)))


def _progress_of(place: int, lag: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([1, 3], pa.int32()), pa.array([place, 0]), pa.array([lag, 0]),
                                       pa.nulls(2, TIMESTAMP)], schema=source.PROGRESS_SCHEMA)


def test_a_probe_finds_the_watermark() -> None:
    probe, watermark = Probe(at=NOON), NOON + 5 * HOUR + 17 * SECOND
    for _ in range(60):
        while probe.at <= watermark:
            probe.reached()
        probe.rest()
    assert probe.known is not None and watermark - SECOND <= probe.known <= watermark


def test_a_part_is_what_it_was_written_as_last(tmp_path: Path) -> None:
    one = {f.name: [1] for f in STREAM_PANES.schema} | {"user_id": ["u1"]}
    full = pa.RecordBatch.from_pydict(one, schema=STREAM_PANES.schema)
    write_part((3, Final("stream_panes", 0, full)), str(tmp_path))
    write_part((3, Final("stream_panes", 0, full)), str(tmp_path))
    assert read_parts(tmp_path, "stream_panes").num_rows == 1
    write_part((3, Final("stream_panes", 0, full.slice(0, 0))), str(tmp_path))
    assert not part_path(tmp_path, "stream_panes", 3, 0).exists()


def test_flags(tmp_path: Path) -> None:
    assert [seconds(t) for t in ("10", "10s", "5m", "1.5h", "1d")] == [10, 10, 300, 5400, 86400]
    offsets = tmp_path / "offsets.json"
    offsets.write_text(json.dumps({"1": 7, "0": 5}))
    assert start_of(str(offsets)) == ((0, 5), (1, 7))
    assert start_of("2026-02-01") == 1_769_904_000_000_000
    for bad in ("soon", "5 weeks"):
        with pytest.raises(UserError, match="no length of time"):
            seconds(bad)


@pytest.mark.parametrize(("flags", "says"), [
    ([], "--log is needed"),
    (["--log", "dir:nowhere/at-all"], "nowhere/at-all"),
    (["--log", "ftp://x"], "is not a log"),
    (["--status"], "no job stream has written"),
    (["--log", "dir:x", "--user-buckets", "12"], "--user-buckets is a power of two"),
    (["--log", "dir:x", "--lateness", "1.5s"], "whole seconds"),
    (["--drain"], "no Flink cluster runs here"),
])
def test_wrong_input_is_one_clear_line(flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", *flags, "--workspace", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and len(error.splitlines()) == 1


def test_direct_needs_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_log(f"dir:{tmp_path}/log?partitions=1").close()
    assert main(["stream", "--log", f"dir:{tmp_path}/log", "--runner", "direct", "--workspace", str(tmp_path)]) == 2
    assert "--until-end" in capsys.readouterr().err


def test_the_command_reports_and_status_prints_it_again(bounded: tuple[str, StreamConfig, int], tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--log", bounded[0], "--runner", "direct", "--until-end", "--workspace", str(tmp_path), "--quiet", "--json"]
    assert main(["stream", *flags]) == 0
    done = json.loads(capsys.readouterr().out)
    assert main(["stream", "--status", "--workspace", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == done
    assert done["counters"][EVENTS_ACCEPTED] == 3_000


def test_metrics_are_prometheus_text() -> None:
    counters = {EVENTS_READ: 3, by_segment(EVENTS_READ, 'vi"ew', "phone"): 3, rejected("bad_pack"): 1}
    text = exposition({"written_at": 5_000_000, "watermark": 4_000_000, "ended": False, "run": "r", "counters": counters},
                      {"lag_3": 12.0}, 7.0)
    assert 'beamrec_events_read_by_segment_total{event_type="vi\\"ew",device="phone"} 3' in text
    assert 'beamrec_events_rejected_by_reason_total{reason="bad_pack"} 1' in text
    assert 'beamrec_lag{partition="3"} 12' in text and "beamrec_status_age_seconds 2\n" in text
    assert exposition(None, {}, 0.0) == "\n"


def test_freshness_is_a_histogram_for_prometheus_and_quantiles_for_people(tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    done = config(tmp_path, "dir:x", "prism")
    counters = {by_segment(FRESHNESS, "user_stored", bound): n for bound, n in (("0.75", 50), ("1", 49), ("+Inf", 1))}
    row = {"written_at": 5_000_000, "watermark": 4_000_000, "ended": False, "run": "r",
           "counters": {EVENTS_READ: 100, **counters, by_segment(FRESHNESS_MS, "user_stored"): 75_000}}
    lines = exposition(row, {}, 7.0).splitlines()
    assert lines.count("# TYPE beamrec_freshness_seconds histogram") == 1
    for bound, n in (("0.5", 0), ("0.75", 50), ("1", 99), ("60", 99), ("+Inf", 100)):
        assert f'beamrec_freshness_seconds_bucket{{stage="user_stored",le="{bound}"}} {n}' in lines
    assert 'beamrec_freshness_seconds_count{stage="user_stored"} 100' in lines
    assert 'beamrec_freshness_seconds_sum{stage="user_stored"} 75' in lines
    store = open_store(done.common.store)
    store.write_features([FeatureWrite(status_key(done.name), "stream", STATUS, Cell(json.dumps(row).encode(), 5_000_000))])
    store.close()
    assert main(["stream", "--status", "--workspace", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "user_stored   0.8 s after an event was accepted (p50), 1.0 s (p99)" in told and "freshness_seconds" not in told


def test_the_flags_that_decide_are_printed_and_are_the_defaults(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["stream", "--print-flags", "--runner", "flink", "--workspace", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == flags_of(StreamConfig(Config.of(tmp_path, runner="flink"), ""))
    assert printed["bundle_ms"] == 200 and printed["flush_s"] == 0.8


def test_the_graph_builds_for_dataflow_without_credentials(tmp_path: Path) -> None:
    pipeline = beam.Pipeline(options=PipelineOptions(["--streaming", "--job_name=stream"]))
    construct(pipeline, config(tmp_path, "kafka://broker:9092/events", "DataflowRunner"))
    proto = pipeline.to_runner_api()
    names = {t.unique_name for t in proto.components.transforms.values()}
    for step in ("Read the event log", "Users/User state", "Items/Item state", "Users' cells/Write cells", "Status"):
        assert any(step in name for name in names), step
    specs = [t.spec for t in proto.components.transforms.values() if t.spec.urn == "beam:transform:pardo:v1"]
    payloads = [beam.portability.api.beam_runner_api_pb2.ParDoPayload.FromString(spec.payload) for spec in specs]
    assert sum(bool(p.state_specs) for p in payloads) == 3
    assert sum(bool(p.restriction_coder_id) for p in payloads) == 1


def test_a_job_is_resumed_only_as_it_was(tmp_path: Path) -> None:
    one = config(tmp_path, "dir:x", "flink")
    shape = Shape.of(one)
    record_of = Record(vars(shape), ["job1"], None)
    record_of.write(one.common.workspace, one.name)
    assert Record.read(one.common.workspace, one.name) == record_of
    assert Shape.of(config(tmp_path, "dir:x", "flink", readers=3)) != shape
    assert Record.read(one.common.workspace, "another") is None
