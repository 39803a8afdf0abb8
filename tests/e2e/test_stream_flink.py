"""Jobs on a Flink cluster. A replay: killed, refused while its job lives on, dropped, run again; the values are FnApiRunner's.
A stream: watched, interrupted, drained, and resumed from what the drain wrote."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from e2e.servers import need

from beam_pipelines.cli.main import main
from beam_pipelines.errors import UserError
from beam_pipelines.jobs.replay import STREAM_GROUPS, perform, plan, store_uri
from beam_pipelines.jobs.stream_flink import Record, cluster_of, resumable
from beam_pipelines.jobs.stream_run import launched
from beam_pipelines.options import Config, StreamConfig
from beam_pipelines.services import flink
from beam_pipelines.services.flink_rest import ENDED, OnFlink, newest_checkpoint
from beam_pipelines.services.ports import free_port
from beam_pipelines.services.process import poll
from schemas.arrow import arrow_schema
from schemas.metric_names import EVENTS_ACCEPTED, EVENTS_READ
from schemas.workspace import Workspace
from serving.eventlog import open_log
from serving.stores import open_store
from transforms.records import pack

NOON = 1_770_000_000_000_000
SECOND = 1_000_000
EVENTS = 2_000


def fill(uri: str, first: int = 0, last: int = EVENTS) -> None:
    log = open_log(f"{uri}?partitions=2")
    for start in range(first, last, 100):
        rows = [{"event_id": f"e{i}", "user_id": f"u{i % 37}", "item_id": f"i{i % 23}", "event_type": ("view", "click")[i % 2],
                 "occurred_at": NOON + i * SECOND, "ingested_at": NOON + i * SECOND, "categories": ["c"], "attributes": [],
                 "schema_version": 1} for i in range(start, start + 100)]
        log.append(start // 100 % 2, [pack(pa.RecordBatch.from_pylist(rows, schema=arrow_schema("event")))],
                   NOON + start * SECOND)
    log.close()


def cells(store: str) -> dict[tuple[str, str], tuple[bytes, int]]:
    opened = open_store(store, create=False)
    try:
        return {(group, row): (cell.value, cell.timestamp) for group in STREAM_GROUPS
                for row, cell in opened.scan_features("stream", group)}
    finally:
        opened.close()


def jobs_of(root: Path, name: str) -> list[str]:
    """Flink's ids of a job's runs."""
    known = Record.read(Workspace(root), name)
    return known.jobs if known is not None else []


def followed_where_it_runs(uri: str, root: Path, services: Path, job: str, caplog: pytest.LogCaptureFixture) -> None:
    """As a supervisor does whose command died: the same flags find the job, others are refused; a failure is told."""
    config, cluster = StreamConfig(Config.of(root, runner="flink", quiet=True), uri), cluster_of(services)
    with (pytest.raises(UserError, match=r"with other flags \(flush_s 0.5, asked 3.0\): --drain"),
          launched(replace(config, flush_s=3.0), "if possible", services, checkpoint_s=600.0)):
        pass
    with launched(config, "if possible", services, checkpoint_s=600.0) as followed:
        assert followed.flink_job == job and not followed.ended and followed.on_flink() == OnFlink(job, "RUNNING", 0, None)
        assert (status := followed.status()) is not None and status["run"] == followed.run
        caplog.clear()
        cluster.kill_worker()
        assert poll(lambda: cluster.rest.last_failure(job) is not None, 90), followed.on_flink()
        for _ in range(2):  # told where it fell between two waits too
            followed.wait(seconds=6.0)
        assert poll(lambda: cluster.rest.running_tasks(job) and cluster.rest.restarts(job) == 1, 60), followed.on_flink()
        assert caplog.text.count("failed, Flink starts it again") == 1, caplog.text


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a cluster."""
    need("flink")
    folder = tmp_path_factory.mktemp("services")
    with flink.running(folder / "flink"):
        yield folder


def test_a_replay_killed_dropped_and_run_again(services: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri, root, cluster = f"dir:{tmp_path}/log", tmp_path / "w", cluster_of(services)
    fill(uri)
    config = Config.of(root, quiet=True)
    start, end = NOON + 300 * SECOND, NOON + 1_800 * SECOND
    perform(config, plan(config, "here", uri, start, end))
    words = ["replay", "--log", uri, "--from", "2026-02-02T02:45:00", "--to", "2026-02-02T03:10:00", "--group", "there",
             "--runner", "flink", "--workspace", str(root), "--services", str(services), "--quiet"]
    assert plan(config, "there", uri, start, end).first == plan(config, "here", uri, start).first
    command = subprocess.Popen([sys.executable, "-m", "beam_pipelines.cli.main", *words], start_new_session=True)
    until = time.monotonic() + 120
    while not jobs_of(root / "replays/there", "there") and time.monotonic() < until:
        assert command.poll() is None
        time.sleep(0.02)
    os.killpg(command.pid, signal.SIGKILL)
    command.wait()
    assert not set(cluster.rest.jobs().values()) <= set(ENDED), "Flink goes on without the command"
    assert main(words) == 2
    assert "there is in use: Flink job" in capsys.readouterr().err
    assert main(["replay", "drop", "there", "--workspace", str(root), "--services", str(services)]) == 0
    assert set(cluster.rest.jobs().values()) <= set(ENDED) and not (root / "replays/there").exists()
    assert main(words) == 0
    assert set(cluster.rest.jobs().values()) <= set(ENDED)
    there = cells(store_uri(config.workspace, "there"))
    assert there == cells(store_uri(config.workspace, "here")) and there
    assert main(["diff", "--a", "here", "--b", "there", "--workspace", str(root), "--quiet"]) == 0


def test_a_stream_watched_interrupted_drained_and_resumed(services: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str],
                                                          caplog: pytest.LogCaptureFixture) -> None:
    uri, root, cluster = f"dir:{tmp_path}/log", tmp_path / "w", cluster_of(services)
    fill(uri)
    port, where = free_port(), ["--workspace", str(root), "--services", str(services)]
    words = ["stream", "--log", uri, "--runner", "FlinkRunner", "--checkpoint-every", "10m", *where, "--quiet"]
    command = subprocess.Popen([sys.executable, "-m", "beam_pipelines.cli.main", *words, "--metrics-port", str(port)],
                               start_new_session=True, stderr=subprocess.PIPE, text=True)
    told: dict[str, float] = {}

    def scraped() -> bool:
        assert command.poll() is None
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = (line for line in answer.read().decode().splitlines() if line and not line.startswith("#"))
            told.update((name, float(value)) for name, _, value in (line.rpartition(" ") for line in lines))
        lags = {told.get(f'beamrec_lag{{partition="{partition}"}}') for partition in (0, 1)}
        sizes = [told.get(f'beamrec_state_bytes{{entity="{entity}"}}', 0.0) for entity in ("user", "item")]
        return told.get("beamrec_events_accepted_total") == EVENTS and lags == {0.0} and min(sizes) > 1_000

    try:
        assert poll(scraped, 120, 0.2), told
        assert told["beamrec_flushes_total"] > 0 and told["beamrec_flush_ms_total"] > 0
    finally:
        command.send_signal(signal.SIGINT)
        said = command.communicate(timeout=60)[1]
    job, = jobs_of(root, "stream")
    assert command.returncode == 130 and f"stream runs on as Flink job {job}" in said
    assert cluster.rest.state(job) == "RUNNING"
    chosen = [line for line in (cluster.directory / "jobmanager.log").read_text().splitlines()
              if "restart back off time strategy" in line and job in line]
    assert chosen and all("ExponentialDelayRestartBackoffTimeStrategy" in line for line in chosen), chosen
    assert main(words) == 2
    assert f"stream already runs as Flink job {job}" in capsys.readouterr().err
    followed_where_it_runs(uri, root, services, job, caplog)
    assert main(["stream", "--status", *where]) == 0
    status = capsys.readouterr().out
    assert f"job {job} is RUNNING, started again" in status and "last failure" in status
    assert main(["stream", "--drain", *where]) == 0
    assert "savepoint" in capsys.readouterr().out and cluster.rest.state(job) == "FINISHED"
    assert newest_checkpoint(cluster.checkpoint_dir, job) is None

    config, known = StreamConfig(Config.of(root, runner="flink", quiet=True), uri), Record.read(Workspace(root), "stream")
    assert known is not None and known.savepoint is not None
    fill(uri, EVENTS, EVENTS + 100)
    with launched(config, "if possible", services, checkpoint_s=600.0) as resumed:
        counted = {EVENTS_READ: EVENTS + 100, EVENTS_ACCEPTED: EVENTS + 100}  # nothing is read again

        def counters() -> dict[str, int]:
            status = resumed.status()
            found = status["counters"] if status is not None and status["run"] == resumed.run else {}
            return {name: found.get(name, 0) for name in counted}

        try:
            assert poll(lambda: counters() == counted, 90, 0.2), counters()
        finally:
            cluster.rest.cancel(str(resumed.flink_job))
    again = Record.read(Workspace(root), "stream")  # it ended before its first checkpoint
    assert resumable(config, again, True, cluster.checkpoint_dir) == Path(known.savepoint)
