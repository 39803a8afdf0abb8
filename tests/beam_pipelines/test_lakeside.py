"""The logs beside an event log: the collector's dead letters and upserts reach the lake once, whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakeside import KINDS, side_uri
from beam_pipelines.io.lakewriter import write_lake
from schemas.dead_letters import DeadLetter, encode_dead_letter
from schemas.workspace import DAY_MICROS
from serving.collector.settings import beside
from serving.eventlog import LogError, open_log
from transforms.records.upserts import encode_upsert

DAY = 20_000 * DAY_MICROS


def item(item_id: str, at: int, **values: Any) -> bytes:
    return encode_upsert("item", {"item_id": item_id, "title": None, "categories": [], "price": None, "image": None,
                                  "published_at": None, "is_active": True, "updated_at": DAY + at, "attributes": {},
                                  "schema_version": 1, **values})


def user(user_id: str, at: int, country: str | None) -> bytes:
    return encode_upsert("user", {"user_id": user_id, "signup_at": None, "country": country, "is_active": True,
                                  "updated_at": DAY + at, "attributes": {}, "schema_version": 1})


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """An empty event log with all the logs beside it, as the collector makes them."""
    uri = f"dir:{tmp_path / 'log'}"
    open_log(f"{uri}?partitions=1").close()
    append(uri, "dead", [encode_dead_letter(DeadLetter("not_json", "no", b"{\xff", DAY, 3)), b"no dead letter"])
    append(uri, "items", [item("a", 2, title="new"), item("a", 1, title="old"), b"no item", item("b", 1, is_active=False)])
    append(uri, "users", [user("u", 1, "NL"), user("v", 1, None)])
    return uri


def append(uri: str, kind: str, records: list[bytes]) -> None:
    log = open_log(beside(uri, kind))
    log.append(0, records, DAY)
    log.close()


def check(lake: Lake, uri: str) -> None:
    items = {r["item_id"]: r for r in lake.read("items").to_pylist()}
    assert {i: (r["title"], r["is_active"]) for i, r in items.items()} == {"a": ("new", True), "b": (None, False)}
    assert sorted((r["user_id"], r["country"]) for r in lake.read("users").to_pylist()) == [("u", "NL"), ("v", None)]
    dead = sorted((r["source"].removeprefix(uri), r["offset"], r["index"], r["reason"], r["payload"])
                  for r in lake.read("dead_letters").to_pylist())
    assert dead == [("-dead", 0, 3, "not_json", b"{\xff"), ("-dead", 1, 0, "unknown_format", b"no dead letter"),
                    ("-items", 2, 0, "unknown_format", b"no item")]


def test_dead_letters_items_and_users_are_stored(tmp_path: Path, uri: str) -> None:
    lake = Lake.open(tmp_path / "lake")
    written = write_lake(lake, uri, until_end=True)
    check(lake, uri)
    assert (written.items, written.users, written.letters, written.read) == (2, 2, 3, 0)
    assert written.next_beside == {"dead": {0: 2}, "items": {0: 4}, "users": {0: 2}}


def test_it_goes_on_where_the_last_commit_ended(tmp_path: Path, uri: str) -> None:
    lake = Lake.open(tmp_path / "lake")
    write_lake(lake, uri, until_end=True)
    append(uri, "items", [item("b", 5, title="back"), item("a", 0, title="older still"), b"again no item"])
    written = write_lake(lake, uri, until_end=True)
    assert (written.items, written.users, written.letters) == (1, 0, 1)
    titles = {r["item_id"]: (r["title"], r["is_active"]) for r in lake.read("items").to_pylist()}
    assert titles == {"a": ("new", True), "b": ("back", True)}
    assert write_lake(lake, uri, until_end=True).letters == 0


def test_a_catalog_that_is_away_is_waited_for_wherever_it_is_asked(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch,
                                                                   caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("beam_pipelines.io.lakewait._LONGEST_WAIT_S", 0.01)
    log = open_log(uri)
    log.append(0, [b"no event"], DAY)
    log.close()
    failures = Counter[tuple[str, str]]()

    def twice_away(name: str) -> None:
        original = getattr(Lake, name)

        def call(lake: Lake, table: str, *args: Any, **named: Any) -> Any:
            if failures[name, table] < 2:
                failures[name, table] += 1
                raise OperationalError("SELECT", {}, Exception("unable to open database file"))
            return original(lake, table, *args, **named)

        monkeypatch.setattr(Lake, name, call)

    for name in ("newest_summary", "files", "commit"):
        twice_away(name)
    lake = Lake.open(tmp_path / "lake")
    written = write_lake(lake, uri, until_end=True)
    assert (written.rejected, written.items, written.users, written.letters) == (1, 2, 2, 3)
    assert {r["source"].removeprefix(uri) for r in lake.read("dead_letters").to_pylist()} == {"", "-dead", "-items"}
    tables = ("raw_events", "dead_letters", "items", "users")
    assert failures.keys() > {("commit", table) for table in tables} | {("newest_summary", "events")}
    assert set(failures.values()) == {2} and caplog.text.count("the lake is away") == failures.total()


def test_logs_that_are_not_there_are_no_error(tmp_path: Path) -> None:
    log = open_log(f"dir:{tmp_path / 'log'}?partitions=1")
    log.close()
    assert write_lake(Lake.open(tmp_path / "lake"), log.uri, until_end=True).next_beside == {}


def test_a_log_made_anew_is_said(tmp_path: Path, uri: str) -> None:
    lake = Lake.open(tmp_path / "lake")
    write_lake(lake, uri, until_end=True)
    (tmp_path / "log-items").rename(tmp_path / "log-gone")
    open_log(beside(uri, "items")).close()
    with pytest.raises(LogError, match="made anew"):
        write_lake(lake, uri, until_end=True)


@pytest.mark.parametrize("uri", ["dir:/a/log", "dir:/a/log?partitions=4", "kafka://h:1/t?client=/c&partitions=4"])
def test_the_logs_are_those_of_the_collector(uri: str) -> None:
    for kind in KINDS:
        assert beside(side_uri(uri, kind).partition("?")[0], "x").partition("?")[0] == \
            beside(uri, kind).partition("?")[0] + "-x"
        assert "partitions" not in side_uri(uri, kind)
    assert side_uri("kafka://h:1/t?client=/c&partitions=4", "dead") == "kafka://h:1/t-dead?client=/c"


@pytest.mark.parametrize("point", ["dead_letters.files", "dead_letters.committed", "dead_letters.committed:2", "items.files",
                                   "items.committed", "users.files", "users.committed"])
def test_killed_anywhere_and_run_again_nothing_is_lost_or_doubled(tmp_path: Path, uri: str, point: str) -> None:
    words = [sys.executable, "-m", "beam_pipelines.cli.main", "lake", "--log", uri, "--until-end", "--json", "--quiet",
             "--workspace", str(tmp_path / "w")]
    killed = subprocess.run(words, env={**os.environ, "BEAMREC_CRASH_AT": point}, capture_output=True, check=False)
    assert killed.returncode == -9
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    check(Lake.open(tmp_path / "w" / "lake"), uri)
    assert json.loads(again.stdout)["next_beside"] == {"dead": {"0": 2}, "items": {"0": 4}, "users": {"0": 2}}
