"""Replays of a log: the live job's values again, from exact offsets, with nothing of production changed; and their diff."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from e2e.servers import need
from hypothesis import given
from hypothesis import strategies as st
from source_world import NOON, SECOND, event, record

from beam_pipelines.cli.main import main
from beam_pipelines.errors import UserError
from beam_pipelines.io.stream_audit import read_parts
from beam_pipelines.jobs.diff import compare, compare_group, joined, masked, side_of, time_compared
from beam_pipelines.jobs.replay import STREAM_GROUPS, Replay, alone, folder, perform, plan, replays, store_uri
from beam_pipelines.jobs.stream_run import launched
from beam_pipelines.options import Config, StreamConfig
from schemas.keys import STATUS, row_key, status_key
from schemas.metric_names import EVENTS_READ
from schemas.workspace import Workspace
from serving.eventlog import LogError, open_log, partition_of
from serving.stores import open_store
from serving.stores.base import Cell, FeatureWrite

HOUR = 3600 * SECOND
_KINDS = ("view", "click", "impression", "purchase", "save")
EVENTS = 1_200


def fill(uri: str) -> None:
    """Events of 40 users over 3 hours in two partitions, five of them and their items in the first quarter only; each record
    has the time of its first event."""
    rng, log = random.Random(5), open_log(f"{uri}?partitions=2")
    for start in range(0, EVENTS, 20):
        packs: dict[int, list[dict[str, object]]] = {0: [], 1: []}
        for i in range(start, start + 20):
            early = i < EVENTS // 4 and i % 3 == 0
            user, at = f"u{rng.randrange(5) if early else rng.randrange(5, 40)}", at_of(i)
            item = f"i{rng.randrange(5) if early else rng.randrange(5, 30)}"
            packs[partition_of(user, 2)].append(event(f"e{i}", at, user_id=user, item_id=item,
                                                      event_type=rng.choice(_KINDS), ingested_at=at,
                                                      categories=[rng.choice("abc")]))
        for partition, pack in packs.items():
            if pack:
                log.append(partition, [record(*pack)], at_of(start))
    log.close()


def at_of(i: int) -> int:
    return NOON + i * 3 * HOUR // EVENTS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str]:
    """A workspace whose live job has read all of a log on FnApiRunner."""
    home = tmp_path_factory.mktemp("replay")
    uri = f"dir:{home}/log"
    fill(uri)
    config = Config.of(home / "work", quiet=True)
    with launched(StreamConfig(config, uri, user_buckets=4, item_buckets=2, until_end=True)) as job:
        job.wait()
    return config, uri


@pytest.fixture
def world(made: tuple[Config, str], tmp_path: Path) -> tuple[Config, str]:
    """A copy of it that a test may change."""
    config, uri = made
    shutil.copytree(config.workspace.root, tmp_path / "work")
    return Config.of(tmp_path / "work", quiet=True), uri


def cells(store: str) -> dict[tuple[str, str], Cell]:
    opened = open_store(store, create=False)
    try:
        return {(group, row): cell for group in (*STREAM_GROUPS, STATUS) for row, cell in opened.scan_features("stream", group)}
    finally:
        opened.close()


def stamp(micros: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(micros / 1e6, UTC).isoformat()


def test_a_replay_of_everything_is_the_live_job_again(world: tuple[Config, str], capsys: pytest.CaptureFixture[str]) -> None:
    config, uri = world
    live, root = cells(config.store), str(config.workspace.root)
    assert main(["replay", "--log", uri, "--from", stamp(NOON - HOUR), "--group", "all", "--workspace", root, "--json",
                 "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    log = open_log(uri)
    assert said["first"] == {"0": 0, "1": 0} and said["last"] == {str(p): log.latest(p) for p in (0, 1)}
    assert said["counters"][EVENTS_READ] == EVENTS and said["cut"] == [] and said["state"] == "done"
    assert cells(config.store) == live, "production is as it was, its status row too"
    replayed = cells(store_uri(config.workspace, "all"))
    assert {key: cell for key, cell in replayed.items() if key[0] != STATUS} == \
        {key: cell for key, cell in live.items() if key[0] != STATUS}
    assert [key[1] for key in replayed if key[0] == STATUS] == [status_key("all")]
    assert said["cells"]["user_panes"] == sum(key[0] == "user_panes" for key in live)
    assert read_parts(folder(config.workspace, "all") / "audit", "stream_panes").num_rows > 0
    assert main(["diff", "--b", "all", "--workspace", root, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == sum(g["equal_bytes"] for g in found["groups"]) == len(live) - 1
    assert found["skipped"] == 0 and found["at"] == said["until"] > max(c.timestamp for k, c in live.items() if k[0] != STATUS)
    log.close()


def test_a_part_is_exact_offsets_and_repeats(world: tuple[Config, str]) -> None:
    config, uri = world
    since, until = at_of(400), at_of(800)
    found = plan(config, "part", uri, since, until)
    log = open_log(uri)
    assert found.first == {p: log.offset_at(p, since) for p in (0, 1)}
    assert found.last == {p: log.offset_at(p, until) for p in (0, 1)}
    log.close()
    done = perform(config, found)
    assert done.counters[EVENTS_READ] == 400 and done.until == min(until, done.newest + 999)  # type: ignore[operator]
    first = cells(store_uri(config.workspace, "part"))
    store = open_store(store_uri(config.workspace, "part"))
    store.write_features([FeatureWrite(row_key("u", "ghost"), "stream", "user_panes", Cell(b"of a killed run", NOON))])
    store.close()
    again = plan(config, "part", uri, since)
    assert (again.first, again.last, again.end_at) == (found.first, found.last, until), "--to is remembered"
    perform(config, again, readers=1)
    second = cells(store_uri(config.workspace, "part"))
    assert {k: c for k, c in first.items() if k[0] != STATUS} == {k: c for k, c in second.items() if k[0] != STATUS}
    assert [r.name for r in replays(config.workspace)] == ["part"]


def test_a_part_differs_where_windows_reach_back(world: tuple[Config, str], capsys: pytest.CaptureFixture[str]) -> None:
    config, uri = world
    root = str(config.workspace.root)
    perform(config, plan(config, "late", uri, at_of(600)))
    assert main(["diff", "--b", "late", "--groups", "user_day", "user_panes", "--workspace", root, "--json", "--quiet"]) == 1
    day, panes = json.loads(capsys.readouterr().out)["groups"]
    assert day["differing"] > 0 and day["reaches_back"] and day["only_b"] == 0 and len(day["largest"]) == 5
    assert panes["differing"] == 0 and not panes["reaches_back"], "an hour before the end lies within the replay"
    sizes = [one["difference"] for one in day["largest"]]
    assert sizes == sorted(sizes, reverse=True)
    assert all(one["feature"].startswith("count_") and len(one["row"]) == 8 and not one["row"].startswith("u")
               for one in day["largest"])
    assert main(["diff", "--b", "late", "--workspace", root, "--quiet"]) == 1
    assert "looks back further" in capsys.readouterr().out


def test_rows_that_know_of_later_events_are_skipped(world: tuple[Config, str]) -> None:
    config, uri = world
    done = perform(config, plan(config, "early", uri, NOON, at_of(600)))
    sides = side_of(config, "live"), side_of(config, "early")
    at = time_compared(sides, 0)
    assert at == done.until
    found = compare(*sides, at)
    assert [out.group for out in found if out.differing] == [], "events came in order: what can be compared is equal"
    assert all(out.skipped and out.equal_bytes + out.equal_values == out.rows == 5 for out in found)
    a, b = (open_store(side.uri, create=False) for side in sides)
    for out in found:
        assert out.rows + out.skipped == len({row for s in (a, b) for row, _ in s.scan_features("stream", out.group)})
    a.close()
    b.close()


def test_diff_names_what_was_changed(world: tuple[Config, str]) -> None:
    config, uri = world
    perform(config, plan(config, "one", uri, NOON - HOUR))
    b = open_store(store_uri(config.workspace, "one"))
    rows = dict(b.scan_features("stream", "user_panes"))
    (row, cell), (other, _), (broken, _) = sorted(rows.items())[:3]
    size = cell.value
    twice = size[:16] + b"".join((2 * int.from_bytes(size[i:i + 4], "little")).to_bytes(4, "little")
                                 for i in range(16, len(size), 4))
    b.write_features([FeatureWrite(row, "stream", "user_panes", Cell(twice, cell.timestamp)),
                      FeatureWrite(broken, "stream", "user_panes", Cell(b"rubbish", rows[broken].timestamp)),
                      FeatureWrite(row_key("u", "new"), "stream", "user_panes", rows[other])])
    a = open_store(config.store)
    out = compare_group(a, b, "user_panes", max(c.timestamp for c in rows.values()) + 999, top=100)
    assert (out.only_a, out.only_b, out.equal_bytes, out.differing) == (0, 1, len(rows) - 2, 3)
    by_row = {one.row: one for one in out.largest}
    assert by_row[masked(row)].b == 2 * by_row[masked(row)].a  # type: ignore[operator]
    assert (by_row[masked(broken)].feature, by_row[masked(broken)].difference) == ("(unreadable)", None)
    assert by_row[masked(row_key("u", "new"))].a == 0.0
    assert out.largest[0].row == masked(broken) and masked(row_key("i", "i7")) == "i7"
    assert len(compare_group(a, b, "user_panes", NOON + 4 * HOUR, top=1).largest) == 1
    a.close()
    b.close()


_SCAN = st.dictionaries(st.text(max_size=3).filter(lambda t: t.isprintable()), st.binary(max_size=2), max_size=12)


@given(_SCAN, _SCAN)
def test_scans_are_merged_as_dictionaries_are(a: dict[str, bytes], b: dict[str, bytes]) -> None:
    left, right = ({row: Cell(value, 0) for row, value in scan.items()} for scan in (a, b))
    found = list(joined(iter(sorted(left.items())), iter(sorted(right.items()))))
    assert found == [(row, left.get(row), right.get(row)) for row in sorted(left.keys() | right.keys())]


def test_names_in_use_are_refused(world: tuple[Config, str]) -> None:
    config, uri = world
    store = open_store(config.store)
    now = time.time_ns() // 1_000_000 * 1000
    status = {"watermark": None, "written_at": now, "run": "x", "ended": False, "counters": {}}
    store.write_features([FeatureWrite(status_key("busy"), "stream", STATUS, Cell(json.dumps(status).encode(), now))])
    store.close()
    with pytest.raises(UserError, match="busy is in use"):
        plan(config, "busy", uri, NOON)
    found = plan(config, "mine", uri, NOON)
    with alone(config.workspace, "mine"), pytest.raises(UserError, match="mine is in use"):
        perform(config, found)
    for name in ("", "list", "../up", "Upper", "a b"):
        with pytest.raises(UserError, match="is no name of a replay"):
            plan(config, name, uri, NOON)


def test_a_name_keeps_what_it_was_planned_with(world: tuple[Config, str]) -> None:
    config, uri = world
    plan(config, "kept", uri, NOON, at_of(100)).write(config.workspace)
    others = (({"start_at": NOON + 1}, "--from"), ({"end_at": at_of(101)}, "--to"), ({"lateness_s": 60}, "--lateness"))
    for fields, flag in others:
        values: dict[str, Any] = {"start_at": NOON, "end_at": None, **fields}
        with pytest.raises(UserError, match=f"planned with another {flag}"):
            plan(config, "kept", uri, **values)
    with pytest.raises(UserError, match="not finished"):
        side_of(config, "kept")


def test_what_retention_deleted_is_said(world: tuple[Config, str], monkeypatch: pytest.MonkeyPatch) -> None:
    config, uri = world
    plan(config, "gone", uri, NOON, at_of(100)).write(config.workspace)
    log = open_log(uri)
    monkeypatch.setattr(type(log), "earliest", lambda self, partition: 2)
    log.close()
    with pytest.raises(UserError, match="retention deleted the rest"):
        plan(config, "gone", uri, NOON)


@pytest.mark.parametrize(("words", "said"), [
    (["--from", "2026-02-02T03:00", "--group", "x"], "--log must be given"),
    (["--log", "dir:LOG", "--from", "2026-02-02T03:00"], "--group must be given"),
    (["--log", "dir:LOG", "--from", "2026-02-02", "--to", "2099-01-01", "--group", "x"], "lies in the future"),
    (["--log", "dir:LOG", "--from", "2026-02-03", "--to", "2026-02-02", "--group", "x"], "--from must lie before --to"),
    (["--log", "dir:LOG", "--from", "2020-01-01", "--to", "2020-01-02", "--group", "x"], "holds no record"),
    (["--log", "dir:LOG", "--from", "noon", "--group", "x"], "is not a date or time"),
    (["--log", "dir:none", "--from", "2026-02-02", "--group", "x"], "no log at"),
    (["drop", "x"], "no replay x"),
])
def test_wrong_input_is_one_clear_line(world: tuple[Config, str], words: list[str], said: str,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    config, uri = world
    words = [uri if word == "dir:LOG" else word for word in words]
    assert main(["replay", *words, "--workspace", str(config.workspace.root), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (config.workspace.root / "replays" / "x").exists()


def test_replays_are_listed_and_dropped(world: tuple[Config, str], capsys: pytest.CaptureFixture[str]) -> None:
    config, uri = world
    root = str(config.workspace.root)
    plan(config, "old", uri, NOON, at_of(100)).write(config.workspace)
    assert main(["replay", "list", "--workspace", root]) == 0
    assert "old" in capsys.readouterr().out
    assert main(["replay", "drop", "old", "--workspace", root]) == 0
    assert replays(config.workspace) == [] and Replay.read(config.workspace, "old") is None
    with pytest.raises(UserError, match="no replay old"):
        side_of(config, "old")


def test_a_damaged_manifest_is_said(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    (folder(space, "bad")).mkdir(parents=True)
    (folder(space, "bad") / "replay.json").write_text("{}")
    with pytest.raises(UserError, match="replay drop bad"):
        Replay.read(space, "bad")


def test_diff_of_what_is_not_there(world: tuple[Config, str], capsys: pytest.CaptureFixture[str]) -> None:
    root = str(world[0].workspace.root)
    for words in (["--b", "never"], ["--b", "sqlite:none.db"], ["--b", "live", "--groups", "user_stats"], ["--b", "mysql:x"]):
        assert main(["diff", *words, "--workspace", root, "--quiet"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_on_prism_it_is_the_same(world: tuple[Config, str]) -> None:
    need("prism")
    config, uri = world
    perform(Config.of(config.workspace.root, runner="prism", quiet=True), plan(config, "prism", uri, NOON - HOUR))
    live = {k: c for k, c in cells(config.store).items() if k[0] != STATUS}
    assert {k: c for k, c in cells(store_uri(config.workspace, "prism")).items() if k[0] != STATUS} == live


def test_a_log_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no log at"):
        plan(Config.of(tmp_path), "x", f"dir:{tmp_path}/none", NOON)
