"""A table that is committed to for ever stays small: files, manifests, snapshots and versions do not grow with the commits."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.table import Table

from beam_pipelines.io import compact, history
from beam_pipelines.io.compact import MAX_FILES, to_merge
from beam_pipelines.io.ingest import Captured, ingest
from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakeside import offsets_of, summary_of
from schemas.tables import EVENTS, RAW_EVENTS
from schemas.workspace import DAY_MICROS

DAY = 20_000 * DAY_MICROS


def raw(first: int, n: int, day: int = 0) -> pa.Table:
    return pa.table({"source": ["log"] * n, "partition": [0] * n, "offset": list(range(first, first + n)), "index": [0] * n,
                     "captured_at": [DAY + day * DAY_MICROS] * n, "payload": [b"x"] * n}).cast(RAW_EVENTS.schema)


def add(lake: Lake, first: int, n: int = 2, day: int = 0, source: str = "log") -> None:
    paths = [lake.write_file("raw_events", raw(first, n, day), DAY + day * DAY_MICROS)]
    compact.append(lake, "raw_events", paths, summary_of(source, {0: first + n}))


def manifests(table: Table) -> int:
    snapshot = table.current_snapshot()
    return len(snapshot.manifests(table.io)) if snapshot else 0


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


@pytest.mark.parametrize("name", ["raw_events", "events"])
def test_many_commits_leave_little(lake: Lake, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEEP_SNAPSHOTS", 5)  # so that the commits are fast; the rule is the same
    monkeypatch.setattr(history, "_EXPIRE_EVERY", 5)
    commits = 100 if name == "raw_events" else 30
    for n in range(commits):
        if name == "raw_events":
            add(lake, 2 * n, day=n // 75)
        else:
            one = {"event_id": f"{n}", "user_id": "u", "item_id": "i", "event_type": "click", "occurred_at": DAY + n,
                   "categories": [], "attributes": [], "schema_version": 1, "source": "log", "partition": 0, "offset": n,
                   "index": 0}
            schema = pa.schema([f.with_nullable(True) for f in EVENTS.schema if f.name != "event_hash"])
            ingest(lake, [Captured(pa.Table.from_pylist([one], schema))], since=n, across_days=False,
                   summary=summary_of("log", {0: n + 1}))
    table = lake.table(name)
    days = 2 if name == "raw_events" else 1
    assert len(lake.files(name)) <= days * MAX_FILES and manifests(table) < 12
    assert len(table.snapshots()) <= 5 + 5 + 2
    folder = lake.metadata_folder(name)
    assert folder is not None and len(list(folder.glob("*.metadata.json"))) <= 11
    assert sorted(lake.read(name, ["offset"])["offset"].to_pylist()) == list(range(commits * (2 if days == 2 else 1)))
    assert offsets_of(lake, name, "log") == {0: commits * days}


def test_the_offsets_of_a_log_that_is_quiet_are_kept(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEEP_SNAPSHOTS", 2)
    monkeypatch.setattr(history, "_EXPIRE_EVERY", 1)
    monkeypatch.setattr(history, "KEEP_HOURLY_DAYS", 0)
    add(lake, 0, source="quiet")
    for n in range(6):
        add(lake, 10 + n)
    assert len(lake.table("raw_events").snapshots()) == 3
    assert offsets_of(lake, "raw_events", "quiet") == {0: 2}


def test_a_lake_of_an_earlier_release_gets_it_at_its_next_commit(lake: Lake) -> None:
    table = lake.table("raw_events")
    with table.transaction() as tx:
        tx.remove_properties(*table.properties)
    for n in range(6):
        lake.commit("raw_events", [lake.write_file("raw_events", raw(n, 1), DAY)])
        with (table := lake.table("raw_events")).transaction() as tx:
            tx.remove_properties(*(set(table.properties) - {"schema.name-mapping.default"}))
    assert len(lake.files("raw_events")) == 6
    add(lake, 6, 1)
    assert lake.table("raw_events").properties["write.metadata.delete-after-commit.enabled"] == "true"
    assert len(lake.files("raw_events")) <= MAX_FILES
    assert sorted(lake.read("raw_events")["offset"].to_pylist()) == list(range(7))


def test_snapshots_of_a_week_are_kept_by_the_hour(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiceberg.table.snapshots import Operation, Snapshot, Summary

    monkeypatch.setattr(history, "KEEP_SNAPSHOTS", 3)
    minutes = [Snapshot(snapshot_id=n, sequence_number=n, timestamp_ms=n * 60_000, manifest_list="",
                        summary=Summary(Operation.APPEND)) for n in range(10 * 24 * 60)]
    gone = set(history.expendable(minutes))
    kept = [n for n in range(len(minutes)) if n not in gone]
    last = len(minutes) - 1
    assert kept[-3:] == [last - 2, last - 1, last]
    assert kept[:-3] == [n for n in range(59, last - 3, 60) if n >= last - 7 * 24 * 60]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=300))
def test_few_files_are_left_and_a_row_is_rewritten_few_times(sizes: list[int]) -> None:
    files: dict[str, int] = {}
    written, most = 0, 1000
    for n, size in enumerate(sizes):
        files[str(n)] = size
        if chosen := to_merge(files, most):
            total = sum(files.pop(path) for path in chosen)
            assert total <= most
            files[f"m{n}"] = total
            written += total
    full = [size for size in files.values() if size > most // 2]
    assert len(files) - len(full) <= MAX_FILES and sum(files.values()) == sum(sizes)
    assert written <= 8 * sum(sizes)
