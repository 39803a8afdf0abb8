"""The lake: days are replaced whole, snapshots stay readable, old partitions outlive new columns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipelines.io.lake import Lake
from schemas import tables
from schemas.workspace import DAY_MICROS

DAY = 20_000 * DAY_MICROS


def raw(day: int, payloads: list[bytes]) -> pa.Table:
    n = len(payloads)
    return pa.table({"source": ["f"] * n, "partition": [0] * n, "offset": list(range(n)), "index": [0] * n,
                     "captured_at": pa.array([day + i for i in range(n)]).cast(pa.timestamp("us", "UTC")),
                     "payload": payloads})


def payloads(lake: Lake, **where: int | None) -> list[bytes]:
    return sorted(lake.read("raw_events", **where)["payload"].to_pylist())  # type: ignore[arg-type]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


def test_a_day_is_replaced_and_its_neighbours_stay(lake: Lake) -> None:
    other = DAY + DAY_MICROS
    lake.replace_days("raw_events", {d: [lake.write_file("raw_events", raw(d, [b"a", b"b"]), d)] for d in (DAY, other)})
    first = lake.snapshot_id("raw_events")
    lake.replace_days("raw_events", {DAY: [lake.write_file("raw_events", raw(DAY, [b"c"]), DAY)]})
    assert payloads(lake, start=DAY, end=other) == [b"c"]
    assert payloads(lake, start=other) == [b"a", b"b"]
    assert lake.days("raw_events") == [DAY, other]
    assert payloads(lake, snapshot_id=first) == [b"a", b"a", b"b", b"b"], "time travel to before the change"
    lake.replace_days("raw_events", {DAY: []})
    assert lake.days("raw_events") == [other]


def test_a_change_is_one_snapshot(lake: Lake) -> None:
    lake.replace_days("raw_events", {DAY: [lake.write_file("raw_events", raw(DAY, [b"a"]), DAY)]})
    before = len(lake.table("raw_events").metadata.snapshots)
    kept = [f.path for f in lake.files("raw_events")]
    lake.replace_days("raw_events", {DAY: [*kept, lake.write_file("raw_events", raw(DAY, [b"b"]), DAY)]})
    lake.replace_days("raw_events", {DAY: [lake.write_file("raw_events", raw(DAY, [b"z"]), DAY)]})
    assert len(lake.table("raw_events").metadata.snapshots) == before + 2
    assert payloads(lake) == [b"z"]
    now = lake.snapshot_id("raw_events")
    assert lake.commit("raw_events") == now, "nothing to do makes no snapshot"


def test_a_file_is_added_once(lake: Lake) -> None:
    path = lake.write_file("raw_events", raw(DAY, [b"a"]), DAY)
    lake.append("raw_events", [path])
    with pytest.raises(ValueError, match="already in table raw_events"):
        lake.append("raw_events", [path])
    with pytest.raises(ValueError, match="not in table raw_events"):
        lake.commit("raw_events", drop=["/nowhere.parquet"])
    assert payloads(lake) == [b"a"]


def test_a_new_column_reads_null_in_old_partitions(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.append("raw_events", [lake.write_file("raw_events", raw(DAY, [b"old"]), DAY)])
    table = tables.TABLES["raw_events"]
    wider = dataclasses.replace(table, schema=table.schema.append(pa.field("producer", pa.string())))
    monkeypatch.setitem(tables.TABLES, "raw_events", wider)
    rows = raw(DAY, [b"new"]).append_column("producer", pa.array(["app"]))
    lake.append("raw_events", [lake.write_file("raw_events", rows, DAY)])
    read = lake.read("raw_events", columns=["payload", "producer"]).sort_by("payload")
    assert read.to_pydict() == {"payload": [b"new", b"old"], "producer": ["app", None]}


def test_dictionary_columns_are_written_as_plain_strings(lake: Lake) -> None:
    rows = raw(DAY, [b"a", b"b"])
    encoded = rows.set_column(0, "source", pa.array(["f", "g"]).dictionary_encode())
    lake.append("raw_events", [lake.write_file("raw_events", encoded, DAY)])
    assert sorted(lake.read("raw_events")["source"].to_pylist()) == ["f", "g"]


def test_another_catalog_by_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYICEBERG_CATALOG__MINE__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__MINE__URI", f"sqlite:///{tmp_path}/mine.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__MINE__WAREHOUSE", f"file://{tmp_path}/mine")
    from pyiceberg.utils.config import Config

    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    lake = Lake.open(tmp_path / "lake", catalog="mine")
    lake.append("raw_events", [lake.write_file("raw_events", raw(DAY, [b"a"]), DAY)])
    assert payloads(Lake.open(tmp_path / "lake", catalog="mine")) == [b"a"]
    assert (tmp_path / "mine.db").exists() and not (tmp_path / "lake" / "catalog.db").exists()
