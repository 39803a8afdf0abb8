"""The logs beside an event log on a real broker: not there, then there, then read on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakewriter import write_lake
from schemas.dead_letters import DeadLetter, encode_dead_letter
from serving.collector.settings import beside
from serving.eventlog import open_log
from transforms.records.upserts import encode_upsert


def user(user_id: str, at: int) -> bytes:
    return encode_upsert("user", {"user_id": user_id, "signup_at": None, "country": None, "is_active": True, "updated_at": at,
                                  "attributes": {}, "schema_version": 1})


def append(uri: str, kind: str, records: list[bytes]) -> None:
    log = open_log(beside(uri, kind))
    log.append(0, records, time.time_ns() // 1000)
    log.close()


def test_dead_letters_and_upserts_from_kafka(kafka_broker: Any, tmp_path: Path) -> None:
    kafka_broker.create_topic("side", 2)
    uri, lake = f"kafka://{kafka_broker.bootstrap}/side", Lake.open(tmp_path / "lake")
    assert write_lake(lake, uri, until_end=True).next_beside == {}, "no log beside it, no error"
    append(uri, "users", [user("u", 1), user("v", 1)])
    append(uri, "dead", [encode_dead_letter(DeadLetter("not_json", "no", b"{", 1))])
    first = write_lake(lake, uri, until_end=True)
    assert (first.users, first.items, first.letters) == (2, 0, 1)
    append(uri, "users", [user("u", 2), b"rubbish"])
    again = write_lake(lake, uri, until_end=True)
    assert (again.users, again.letters) == (1, 1)
    assert len(lake.read("users")) == 2 and len(lake.read("dead_letters")) == 2
    assert write_lake(lake, uri, until_end=True).letters == 0
