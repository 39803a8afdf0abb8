"""``beamrec log trim``: old segments go once the lake has them, and nothing else does."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from beam_pipelines.cli.main import main
from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakewriter import write_lake
from schemas.arrow import arrow_schema
from serving.eventlog.local import LocalLog
from transforms.records import pack

HOUR = 3_600_000_000


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """A workspace whose log got a record an hour for 20 hours, the last one just now, four of them a segment."""
    log = LocalLog(tmp_path / "log", 1, segment_bytes=SEGMENT)
    append(log, range(20, 0, -1))
    log.close()
    return tmp_path


def record(at: int) -> bytes:
    event = {"event_id": uuid.uuid4().hex, "user_id": "u" * 400, "item_id": "i", "event_type": "click", "occurred_at": at,
             "categories": [], "attributes": [], "schema_version": 1}
    return pack(pa.RecordBatch.from_pylist([event], schema=arrow_schema("event")))


def append(log: LocalLog, ages: Any) -> None:
    for hours in ages:
        at = time.time_ns() // 1000 - hours * HOUR
        log.append(0, [record(at)], at)


SEGMENT = int(4.5 * len(record(HOUR)))


def trimmed(space: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["log", "trim", "--workspace", str(space), "--json", *words]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    return {**told, "segments": len(list((space / "log" / "p00000").glob("*.log")))}


def test_what_is_old_and_in_the_lake_goes(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = trimmed(space, capsys, "--older-than", "1h")
    assert (before["bytes"], before["stored"], before["segments"]) == (0, False, 5), "the lake has nothing yet"
    lake, uri = Lake.open(space / "lake"), f"dir:{space / 'log'}"
    write_lake(lake, uri, until_end=True)
    log = LocalLog(space / "log", segment_bytes=SEGMENT)
    append(log, [0] * 8)
    log.close()
    would = trimmed(space, capsys, "--older-than", "10h", "--dry-run")
    assert would["segments"] == 7 and would["earliest"] == {"0": 0} and would["bytes"] > 8 * len(record(HOUR))
    told = trimmed(space, capsys, "--older-than", "10h")
    assert told["bytes"] == would["bytes"] and told["earliest"] == {"0": 8} and told["segments"] == 5
    told = trimmed(space, capsys, "--older-than", "0h")
    assert told["earliest"] == {"0": 20}, "what came since the last commit stays"
    assert write_lake(lake, uri, until_end=True).lost == 0
    assert len(lake.read("raw_events")) == 28


@pytest.mark.parametrize(("words", "said"), [(["--older-than", "a week"], "takes days or hours"),
                                             (["--older-than", "7"], "takes days or hours"),
                                             (["--log", "dir:/nowhere"], "no log at dir:/nowhere"),
                                             (["--log", "nowhere"], "is not a log")])
def test_mistakes_are_said(space: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["log", "trim", "--workspace", str(space), *words]) == 2
    assert said in capsys.readouterr().err
