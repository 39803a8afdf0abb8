"""A replay on a Flink cluster: killed, refused while its job lives on, dropped, run again; the values are FnApiRunner's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from e2e.servers import need

from beam_pipelines.cli.main import main
from beam_pipelines.jobs.replay import STREAM_GROUPS, perform, plan, store_uri
from beam_pipelines.options import Config
from beam_pipelines.services import flink
from beam_pipelines.services.flink_rest import ENDED
from schemas.arrow import arrow_schema
from serving.eventlog import open_log
from serving.stores import open_store
from transforms.records import pack

NOON = 1_770_000_000_000_000
SECOND = 1_000_000
EVENTS = 2_000


def fill(uri: str) -> None:
    log = open_log(f"{uri}?partitions=2")
    for start in range(0, EVENTS, 100):
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


def test_killed_dropped_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("flink")
    uri, root, services = f"dir:{tmp_path}/log", tmp_path / "w", tmp_path / "services"
    fill(uri)
    config = Config.of(root, quiet=True)
    start, end = NOON + 300 * SECOND, NOON + 1_800 * SECOND
    perform(config, plan(config, "here", uri, start, end))
    words = ["replay", "--log", uri, "--from", "2026-02-02T02:45:00", "--to", "2026-02-02T03:10:00", "--group", "there",
             "--runner", "flink", "--workspace", str(root), "--services", str(services), "--quiet"]
    assert plan(config, "there", uri, start, end).first == plan(config, "here", uri, start).first
    with flink.running(services / "flink") as cluster:
        command = subprocess.Popen([sys.executable, "-m", "beam_pipelines.cli.main", *words], start_new_session=True)
        until = time.monotonic() + 120
        while not (root / "replays/there/streams/there.json").exists() and time.monotonic() < until:
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
