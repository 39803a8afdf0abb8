"""The lake writer on a real local log: every event once, raw records as they came, from where the last commit ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakewriter import committed_offsets, write_lake
from schemas.arrow import arrow_schema
from schemas.workspace import DAY_MICROS, Workspace
from serving.eventlog import LogError, open_log
from transforms.records import pack

DAY = 20_000 * DAY_MICROS


def packed(ids: list[str], day: int = 0) -> bytes:
    rows: list[dict[str, Any]] = [{"event_id": i, "user_id": f"u{i}", "item_id": "i", "event_type": "click",
                                   "occurred_at": DAY + day * DAY_MICROS + n, "categories": ["c"], "attributes": [],
                                   "schema_version": 1} for n, i in enumerate(ids)]
    return pack(pa.RecordBatch.from_pylist(rows, schema=arrow_schema("event")))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A log of two partitions: seven events in three packs, a copy of one of them, and a record that is no event."""
    log = open_log(f"dir:{tmp_path / 'log'}?partitions=2")
    log.append(0, [packed(["a", "b", "c"]), b"\x01garbage"], DAY)
    log.append(1, [packed(["d", "e"]), packed(["f", "g"], day=1), packed(["d"])], DAY + DAY_MICROS)
    log.close()
    return f"dir:{tmp_path / 'log'}"


def ids(lake: Lake) -> list[str]:
    return sorted(lake.read("events")["event_id"].to_pylist())


def test_every_event_once_and_every_record_as_it_came(tmp_path: Path, uri: str) -> None:
    lake = Lake.open(tmp_path / "lake")
    written = write_lake(lake, uri, until_end=True)
    assert (written.read, written.stored, written.duplicates, written.rejected) == (9, 7, 1, 1)
    assert written.rejected_by_reason == {"unknown_format": 1}
    assert ids(lake) == list("abcdefg")
    assert lake.days("events") == [DAY, DAY + DAY_MICROS]
    raw = {(r["partition"], r["offset"]): r["payload"] for r in lake.read("raw_events").to_pylist()}
    assert len(raw) == 5 and raw[0, 1] == b"\x01garbage" and raw[1, 1] == packed(["f", "g"], day=1)
    dead = lake.read("dead_letters").to_pylist()
    assert [(d["source"], d["partition"], d["offset"], d["payload"]) for d in dead] == [(uri, 0, 1, b"\x01garbage")]
    assert committed_offsets(lake, uri) == {0: 2, 1: 3} == written.next


def test_it_goes_on_where_the_last_commit_ended(tmp_path: Path, uri: str) -> None:
    lake = Lake.open(tmp_path / "lake")
    write_lake(lake, uri, until_end=True)
    assert write_lake(lake, uri, until_end=True).read == 0
    log = open_log(uri)
    log.append(1, [packed(["h"]), packed(["a"])], DAY)
    log.close()
    again = write_lake(lake, uri, until_end=True)
    assert (again.read, again.stored, again.duplicates) == (2, 1, 1)
    assert ids(lake) == list("abcdefgh")


def test_a_new_partition_is_read_from_its_beginning(tmp_path: Path, uri: str) -> None:
    lake = Lake.open(tmp_path / "lake")
    write_lake(lake, uri, until_end=True)
    log = open_log(f"{uri}?partitions=3")
    log.append(2, [packed(["h"])], DAY)
    log.close()
    write_lake(lake, uri, until_end=True)
    assert ids(lake) == list("abcdefgh")


def test_told_to_stop_it_commits_what_it_has_read(tmp_path: Path, uri: str) -> None:
    lake, stop = Lake.open(tmp_path / "lake"), threading.Event()
    threading.Timer(1.5, stop.set).start()
    written = write_lake(lake, uri, every_s=3600, stop=stop)
    assert written.commits == 1 and ids(lake) == list("abcdefg")


def test_following_a_log_starts_a_clock_that_an_import_stopped(tmp_path: Path, uri: str) -> None:
    space = Workspace(tmp_path / "w")
    space.freeze_after(DAY)
    command = [sys.executable, "-m", "beam_pipelines.cli.main", "lake", "--log", uri, "--quiet", "--workspace", str(space.root)]
    subprocess.run([*command, "--until-end"], check=True)
    assert space.is_frozen  # an old log that is read once is no live one
    with subprocess.Popen(command) as following:
        deadline = time.monotonic() + 60
        while space.is_frozen and time.monotonic() < deadline:
            time.sleep(0.05)
        following.terminate()
    assert following.returncode == 0 and not space.is_frozen


def test_many_commits_leave_few_files(tmp_path: Path) -> None:
    log = open_log(f"dir:{tmp_path / 'log'}?partitions=1")
    lake = Lake.open(tmp_path / "lake")
    for n in range(12):
        log.append(0, [packed([f"{n}-{i}" for i in range(20)])], DAY)
        write_lake(lake, log.uri, until_end=True)
    assert len(ids(lake)) == 240 and len(lake.files("events")) <= 5


def test_a_log_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no log at"):
        write_lake(Lake.open(tmp_path / "lake"), f"dir:{tmp_path / 'none'}", until_end=True)


@pytest.mark.parametrize("point", ["raw_events.files", "raw_events.committed", "dead_letters.committed", "events.files",
                                   "events.committed"])
def test_killed_anywhere_and_run_again_nothing_is_lost_or_doubled(tmp_path: Path, uri: str, point: str) -> None:
    words = [sys.executable, "-m", "beam_pipelines.cli.main", "lake", "--log", uri, "--until-end", "--json", "--quiet",
             "--workspace", str(tmp_path / "w")]
    killed = subprocess.run(words, env={**os.environ, "BEAMREC_CRASH_AT": point}, capture_output=True, check=False)
    assert killed.returncode == -9
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    lake = Lake.open(tmp_path / "w" / "lake")
    assert ids(lake) == list("abcdefg")
    assert (len(lake.read("raw_events")), len(lake.read("dead_letters"))) == (5, 1)
    assert json.loads(again.stdout)["next"] == ({} if point == "events.committed" else {"0": 2, "1": 3})
