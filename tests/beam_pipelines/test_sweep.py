"""What killed writers left goes after a day; what any snapshot or a living writer may need stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipelines import manifest
from beam_pipelines.io.daybuffer import DayBuffer
from beam_pipelines.io.ingest import ingest
from beam_pipelines.io.lake import Lake
from beam_pipelines.io.sweep import Swept, sweep
from beam_pipelines.jobs import daily
from beam_pipelines.options import Config
from beam_pipelines.simulate.world import WorldSpec
from beam_pipelines.simulate.write import simulate
from schemas.tables import RAW_EVENTS
from schemas.workspace import DAY_MICROS

DAY = 20_000 * DAY_MICROS


def raw(days: list[int], payload: bytes) -> pa.Table:
    n = len(days)
    return pa.table({"source": ["f"] * n, "partition": [0] * n, "offset": list(range(n)), "index": [0] * n,
                     "captured_at": days, "payload": [payload] * n}).cast(RAW_EVENTS.schema)


def age(*paths: str | Path, hours: float = 30) -> None:
    then = time.time() - hours * 3600
    for path in paths:
        os.utime(path, (then, then))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


def test_only_old_files_that_no_snapshot_knows_are_removed(lake: Lake) -> None:
    replaced, held, dropped = (lake.write_file("raw_events", raw([DAY], p), DAY) for p in (b"a", b"b", b"c"))
    lake.replace_days("raw_events", {DAY: [replaced]})
    first = lake.snapshot_id("raw_events")
    lake.replace_days("raw_events", {DAY: [held]})
    old, young = lake.write_file("raw_events", raw([DAY], b"old"), DAY), lake.write_file("partials", pa.table({
        "day": pa.array([DAY]).cast(RAW_EVENTS.schema.field("captured_at").type), "group": ["g"], "bucket": [0], "rows": [0],
        "inputs": [""], "state": [b""]}), DAY)
    size = Path(old).stat().st_size + Path(dropped).stat().st_size
    age(replaced, held, dropped, old)
    assert sweep(lake) == Swept(2, size)
    assert not Path(old).exists() and not Path(dropped).exists() and Path(young).exists()
    assert lake.read("raw_events", snapshot_id=first)["payload"].to_pylist() == [b"a"]
    assert lake.read("raw_events")["payload"].to_pylist() == [b"b"]
    assert sweep(lake) == Swept()
    assert sweep(lake, older_than_hours=0).files == 1 and not Path(young).exists()


def test_metadata_of_expired_snapshots_go_and_what_is_kept_reads_as_before(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_pipelines.io.history.KEEP_SNAPSHOTS", 2)
    monkeypatch.setattr("beam_pipelines.io.history._EXPIRE_EVERY", 1)
    monkeypatch.setattr("beam_pipelines.io.history.KEEP_HOURLY_DAYS", 0)
    for n in range(4):
        lake.replace_days("raw_events", {DAY: [lake.write_file("raw_events", raw([DAY], str(n).encode()), DAY)]})
    folder = lake.metadata_folder("raw_events")
    assert folder is not None
    for path in folder.parent.rglob("*.*"):
        age(path)
    kept = [s.snapshot_id for s in lake.table("raw_events").snapshots()]
    assert len(kept) == 2 and sweep(lake).files > 0
    assert {str(path) for path in folder.iterdir()} == lake.known_metadata("raw_events")
    assert len(list(lake.data_folder("raw_events").rglob("*.parquet"))) == 2
    assert [lake.read("raw_events", snapshot_id=s)["payload"].to_pylist() for s in kept] == [[b"2"], [b"3"]]
    assert sweep(lake) == Swept()


def test_a_file_written_long_ago_and_committed_now_is_kept(lake: Lake) -> None:
    path = lake.write_file("raw_events", raw([DAY], b"a"), DAY)
    age(path)
    lake.append("raw_events", [path])
    assert sweep(lake) == Swept() and Path(path).exists()


def test_spilled_rows_of_a_killed_writer_are_removed_and_those_of_a_living_one_stay(lake: Lake) -> None:
    dead, alive = (DayBuffer(lake, "raw_events", "captured_at", budget_bytes=1) for _ in range(2))
    for buffer in (dead, alive):
        for _ in range(2):
            buffer.add(raw([DAY, DAY + DAY_MICROS], b"x" * 100))
    folders = sorted(lake.spill_root.iterdir())
    assert len(folders) == 2 and folders[0].parent.parent == Path(lake.data_folder("raw_events")).parents[3]
    age(*folders[0].iterdir(), folders[0])
    assert sweep(lake).files > 0
    assert sorted(lake.spill_root.iterdir()) == folders[1:]
    for buffer in (dead, alive):
        buffer.discard()
    assert not list(lake.spill_root.iterdir())


def test_a_living_writer_is_not_waited_for(lake: Lake, tmp_path: Path) -> None:
    code = ("import sys; from beam_pipelines.io.lake import Lake\n"
            "with Lake.open(sys.argv[1]).writer(): print('held', flush=True); sys.stdin.read()")
    orphan = lake.write_file("raw_events", raw([DAY], b"a"), DAY)
    age(orphan)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lake")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"held\n"
        assert sweep(lake) == Swept(busy=True) and Path(orphan).exists()
        writer.communicate(b"")
    assert sweep(lake).files == 1


def test_the_daily_run_sweeps(tmp_path: Path) -> None:
    config = Config.of(tmp_path / "workspace", quiet=True)
    simulate(config, WorldSpec(users=30, items=40, days=3, sessions=1.5))
    lake = Lake.open(config.lake)
    before = lake.read("events")
    orphan = lake.write_file("raw_events", raw([DAY], b"a"), DAY)
    for path in config.lake.rglob("*.parquet"):
        age(path)
    daily.run(config, config.workspace.now(), daily.RunOptions(to_step="features", isolate=False))
    assert not Path(orphan).exists() and lake.read("events") == before
    log = (manifest.run_folder(config.workspace, config.workspace.now()) / "run.log").read_text()
    assert "swept 1 files that no snapshot knows" in log
    assert ingest(lake, [before.drop_columns(["event_hash"])]).stored == 0, "everything that was stored is still known"
