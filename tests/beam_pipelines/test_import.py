"""Importing MovieLens and Globo files: what lands in the lake, what becomes a dead letter, and that repeating adds nothing."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.errors import UserError
from beam_pipelines.importers import run as importing
from beam_pipelines.importers.detect import detect
from beam_pipelines.io.lake import Lake
from beam_pipelines.options import Config
from schemas.keys import import_event_id
from schemas.workspace import DAY_MICROS

TABLES = ("events", "raw_events", "dead_letters", "items", "users")
GLOBO_HEADER = ("user_id,session_id,session_start,session_size,click_article_id,click_timestamp,click_environment,"
                "click_deviceGroup,click_os,click_country,click_region,click_referrer_type\n")


def click(user: int, item: int, millis: int = 1_507_365_405_624) -> str:
    return f"{user},1507365405396854,1507365405000,2,{item},{millis},4,3,20,11,28,2\n"


def ml_100k(folder: Path, ratings: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "u.data").write_text(ratings)
    toy = "1|Toy Story (1995)|01-Jan-1995||http://x|" + "|".join("1" if i in (3, 4, 5) else "0" for i in range(19))
    cafe = "2|Café (1994)|||http://x|" + "|".join("1" if i == 8 else "0" for i in range(19))
    (folder / "u.item").write_bytes(f"{toy}\n{cafe}\nbroken|line\n".encode("latin-1"))
    (folder / "u.user").write_text("10|24|M|technician|85711\n")
    return folder


def globo(folder: Path, *files: str, gz: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(files):
        data = (GLOBO_HEADER + text).encode()
        path = folder / f"clicks_hour_{i:03d}.csv"
        if gz:
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(data))
        else:
            path.write_bytes(data)
    return folder


def do_import(folder: Path, workspace: Path) -> importing.ImportReport:
    return importing.run(Config.of(workspace, quiet=True), detect(folder))


def rows(workspace: Path) -> dict[str, list[Any]]:
    lake = Lake.open(workspace / "lake")
    return {name: sorted(map(repr, lake.read(name).to_pylist())) for name in TABLES}


def test_movielens_100k_rows(tmp_path: Path) -> None:
    folder = ml_100k(tmp_path / "ml", "10\t1\t4\t881250949\n11\t2\t3\t881250950\n10\t7\t5\t881250951\n")
    report = do_import(folder, tmp_path / "w")
    assert (report.counts.read, report.counts.stored, report.counts.rejected) == (4, 3, 1)
    lake = Lake.open(tmp_path / "w" / "lake")
    first, second, third = sorted(lake.read("events").to_pylist(), key=lambda r: r["offset"])
    assert {k: first[k] for k in ("user_id", "item_id", "event_type", "value", "categories", "source", "offset")} == {
        "user_id": "10", "item_id": "1", "event_type": "rating", "value": 4.0, "source": "u.data", "offset": 1,
        "categories": ["Animation", "Children's", "Comedy"]}
    assert first["event_id"] == import_event_id("u.data", 1)
    assert first["occurred_at"] == first["ingested_at"] and first["occurred_at"].timestamp() == 881_250_949
    assert (second["categories"], third["categories"]) == (["Drama"], []), "an item that the catalogue lacks has none"
    items = {r["item_id"]: r for r in lake.read("items").to_pylist()}
    assert items["1"]["title"] == "Toy Story (1995)" and items["2"]["title"] == "Café (1994)"
    assert items["1"]["attributes"] == [("year", "1995")] and items["1"]["updated_at"].timestamp() == 0
    assert items["1"]["published_at"].isoformat() == "1995-01-01T00:00:00+00:00"
    assert items["2"]["published_at"].year == 1994 and items["7"]["title"] is None
    users = {r["user_id"]: r for r in lake.read("users").to_pylist()}
    assert users["10"]["attributes"] == [("age", "24"), ("gender", "M"), ("occupation", "technician")]
    assert set(users) == {"10", "11"} and "85711" not in repr(users), "no zip code"
    (letter,) = lake.read("dead_letters").to_pylist()
    assert (letter["source"], letter["offset"], letter["payload"]) == ("u.item", 3, b"broken|line")
    assert [r["payload"] for r in sorted(lake.read("raw_events").to_pylist(), key=lambda r: r["offset"])] == [
        b"10\t1\t4\t881250949", b"11\t2\t3\t881250950", b"10\t7\t5\t881250951"]
    assert Config.of(tmp_path / "w").workspace.now() == (881_250_951_000_000 // DAY_MICROS + 1) * DAY_MICROS


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_movielens_latest_rows(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "latest"
    folder.mkdir()
    files = {"ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.5,1112486027\n1,11,0.5,1112484676\n",
             "movies.csv": 'movieId,title,genres\n10,"American President, The (1995)",Comedy|Romance\n'
                           "11,X,(no genres listed)\n"}
    for name, text in files.items():
        data = text.encode()
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    assert do_import(folder, tmp_path / "w").counts.stored == 2
    lake = Lake.open(tmp_path / "w" / "lake")
    events = sorted(lake.read("events").to_pylist(), key=lambda r: r["offset"])
    assert [(e["source"], e["offset"], e["value"], e["categories"]) for e in events] == [
        ("ratings.csv", 2, 4.5, ["Comedy", "Romance"]), ("ratings.csv", 3, 0.5, [])]
    titles = {r["item_id"]: (r["title"], r["attributes"]) for r in lake.read("items").to_pylist()}
    assert titles == {"10": ("American President, The (1995)", [("year", "1995")]), "11": ("X", [])}


@pytest.mark.parametrize("gz", [False, True])
def test_globo_rows(tmp_path: Path, gz: bool) -> None:
    report = do_import(globo(tmp_path / "g", click(1, 5), click(2, 6), gz=gz), tmp_path / "w")
    assert (report.counts.stored, report.items, report.users) == (2, 2, 2)
    event = next(e for e in Lake.open(tmp_path / "w" / "lake").read("events").to_pylist() if e["user_id"] == "1")
    expected = {"event_type": "click", "item_id": "5", "session_id": "1507365405396854", "device": "3", "os": "20",
                "country": "11", "referrer": "2", "source": "clicks_hour_000.csv", "offset": 2}
    assert {k: event[k] for k in expected} == expected and event["occurred_at"].microsecond == 624_000


def test_malformed_rows_become_dead_letters_and_the_rest_is_stored(tmp_path: Path) -> None:
    lines = [click(i, i) for i in range(1, 200)]
    lines[10] = "1,2,3\n"
    lines[50] = click(1, 1).replace("1,", "x,", 1)
    lines[60] = click(1, 1).replace(",4,3,", ",,3,")
    lines[70] = click(1, 1, millis=-5)
    lines[80] = "\n"
    lines[90] = click(1, 1).rstrip("\n") + "\r\n"  # fine: a line of Windows
    lines[120] = click(1, 1, millis=10**18)
    lines[130] = "\xff\xfe\n"
    lines[198] = click(1, 1)[:20]
    report = do_import(globo(tmp_path / "g", "".join(lines)), tmp_path / "w")
    assert report.counts.rejected_by_reason == {"malformed_row": 5, "time_out_of_range": 2}
    assert (report.counts.read, report.counts.stored) == (198, 191), "a blank line is no row"
    letters = {r["offset"]: r for r in Lake.open(tmp_path / "w" / "lake").read("dead_letters").to_pylist()}
    assert sorted(letters) == [12, 52, 62, 72, 122, 132, 200]
    assert letters[12]["payload"] == b"1,2,3"
    assert letters[12]["detail"] == "clicks_hour_000.csv line 12: 3 fields instead of 12"
    assert letters[52]["detail"].endswith("user_id is not a number: 'x'")
    assert letters[62]["detail"].endswith("click_environment is missing")
    assert len(rows(tmp_path / "w")["raw_events"]) == 198


def test_a_torn_gzip_file_keeps_what_can_be_read(tmp_path: Path) -> None:
    import random

    folder = globo(tmp_path / "g", "".join(click(random.Random(i).randrange(10**6), i) for i in range(2_000)), gz=True)
    path = folder / "clicks_hour_000.csv.gz"
    path.write_bytes(path.read_bytes()[:-2_000])
    counts = do_import(folder, tmp_path / "w").counts
    assert counts.rejected_by_reason == {"truncated_file": 1} and 500 < counts.stored < 2_000
    (letter,) = Lake.open(tmp_path / "w" / "lake").read("dead_letters").to_pylist()
    assert letter["offset"] == counts.stored + 2 and "ends early" in letter["detail"]


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    folder = globo(tmp_path / "g", click(1, 5) + "bad\n", click(2, 6))
    do_import(folder, tmp_path / "w")
    before, snapshots = rows(tmp_path / "w"), [Lake.open(tmp_path / "w" / "lake").snapshot_id(n) for n in TABLES]
    again = do_import(folder, tmp_path / "w")
    assert (again.counts.read, again.counts.stored, again.counts.rejected, again.counts.duplicates) == (3, 0, 1, 2)
    assert (again.items, again.users) == (0, 0)
    assert rows(tmp_path / "w") == before
    assert [Lake.open(tmp_path / "w" / "lake").snapshot_id(n) for n in TABLES] == snapshots


def test_a_file_that_grew_adds_only_its_new_rows(tmp_path: Path) -> None:
    folder = globo(tmp_path / "g", click(1, 5))
    do_import(folder, tmp_path / "w")
    for path in globo(tmp_path / "g", click(1, 5) + click(2, 6)).iterdir():  # plain and gzipped are the same source
        (path.with_name(path.name + ".gz")).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert do_import(folder, tmp_path / "w").counts.stored == 1
    assert len(rows(tmp_path / "w")["raw_events"]) == 2


def test_little_memory_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hour = 3_600_000
    texts = ["".join(click(i % 97, i % 31, 1_507_365_405_624 + (i * 37 % 200) * hour) for i in range(j, 3_000, 3))
             for j in range(3)]
    folder = globo(tmp_path / "g", *texts)
    do_import(folder, tmp_path / "roomy")
    monkeypatch.setattr(importing, "BUDGET_BYTES", 50_000)
    monkeypatch.setattr("beam_pipelines.importers.lines.BLOCK_BYTES", 10_000)
    assert do_import(folder, tmp_path / "tight").counts.stored == 3_000
    assert rows(tmp_path / "tight") == rows(tmp_path / "roomy")


@pytest.mark.parametrize(("make", "message"), [
    (lambda p: p / "nowhere", "does not exist"),
    (lambda p: p, "no movielens or globo data in .*u.data"),
])
def test_a_wrong_folder_is_one_clear_error(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        detect(make(tmp_path))


def test_detection(tmp_path: Path) -> None:
    ml_100k(tmp_path / "ml", "")
    globo(tmp_path / "g", click(1, 5))
    assert detect(tmp_path / "ml").name == "movielens" and detect(tmp_path / "g").name == "globo"
    assert detect(tmp_path / "g" / "clicks_hour_000.csv").sources == ["clicks_hour_000.csv"]
    with pytest.raises(UserError, match="several data sets"):
        detect(tmp_path)
    with pytest.raises(UserError, match=r"no globo data in .*it holds movielens data"):
        detect(tmp_path / "ml", "globo")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from beam_pipelines.cli.main import main

    folder = globo(tmp_path / "g", click(1, 5) + "bad\n")
    common = ["--workspace", str(tmp_path / "w"), "--quiet"]
    assert main(["import", "globo", str(folder), *common, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {k: document[k] for k in ("read", "stored", "rejected", "duplicates", "conflicts", "rejected_by_reason")} == {
        "read": 2, "stored": 1, "rejected": 1, "duplicates": 0, "conflicts": 0, "rejected_by_reason": {"malformed_row": 1}}
    assert document["seconds"] > 0
    assert main(["import", "movielens", str(folder), *common]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no movielens data" in error


KILLED = """
import os, signal, sys
import polars, pyiceberg.io.pyarrow  # once, not in every child
from beam_pipelines.importers import run as importing
from beam_pipelines.importers.detect import detect
from beam_pipelines.io import lake
from beam_pipelines.options import Config

def commit_then_die(self, *args, **kwargs):
    global calls
    calls += 1
    if calls > moment:
        os.kill(os.getpid(), signal.SIGKILL)
    return commit(self, *args, **kwargs)

commit = lake.Lake.commit
for moment in (*range(3), 99):  # before the first commit (raw_events, dead_letters, events), between any two, and undisturbed
    child = os.fork()
    if not child:
        calls, lake.Lake.commit = 0, commit_then_die
        importing.run(Config.of(sys.argv[2], quiet=True), detect(sys.argv[1]))
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def test_killed_between_any_two_commits_and_run_again(tmp_path: Path) -> None:
    minute = 60_000
    texts = ["".join(click(i % 97, i % 31, 1_507_365_405_624 + (i * 7919 % 7_000) * minute) for i in range(j, 900, 3))
             + "bad row\n" for j in range(3)]
    folder = globo(tmp_path / "g", *texts)
    do_import(folder, tmp_path / "calm")
    arguments = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "w")]
    ends = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    assert ends == [str(signal.SIGKILL.value)] * 3 + ["0"]
    assert rows(tmp_path / "w") == rows(tmp_path / "calm")


@pytest.mark.skipif(not os.environ.get("BEAMREC_DATA"), reason="set BEAMREC_DATA to the folder of real data")
def test_the_whole_of_movielens_100k(tmp_path: Path) -> None:
    report = do_import(Path(os.environ["BEAMREC_DATA"]) / "ml-100k", tmp_path / "w")
    assert (report.counts.read, report.counts.stored, report.counts.rejected) == (100_000, 100_000, 0)
    assert (report.items, report.users) == (1_682, 943)
