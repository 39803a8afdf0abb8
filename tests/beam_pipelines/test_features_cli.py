"""``beamrec features`` as a user runs it: the registry, a run that reaches the store, errors in one line, a killed run."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from beam_pipelines.cli.main import main
from beam_pipelines.io.ingest import upsert_items
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import features
from beam_pipelines.options import Config
from benchmarks.synthetic import FIRST_DAY, write_events
from schemas.cells import decode_list, decode_vector
from schemas.features import features_of
from schemas.keys import row_key
from schemas.tables import ITEMS
from schemas.workspace import DAY_MICROS
from serving.stores import open_store

AS_OF = (FIRST_DAY + 3) * DAY_MICROS
DATE = str(np.datetime64(FIRST_DAY + 3, "D"))


@pytest.fixture
def config(tmp_path):
    made = Config.of(tmp_path, quiet=True)
    write_events(Lake.open(made.lake), 600, 3, 20, 15)
    return made


def test_list_has_every_feature(capsys):
    assert main(["features", "list", "--json"]) == 0
    listed = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert listed["last_items"]["layout"] == "list" and listed["popularity_7d"]["window"] == 7 * 86_400


def test_a_run_reaches_tables_and_store(config, capsys):
    assert main(["features", "--workspace", str(config.workspace.root), "--as-of", DATE, "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = Lake.open(config.lake).read("user_snapshots").to_pylist()
    assert report["users"] == len(rows) > 0 and report["days_read"] == 3 and report["failures"] == []
    row = rows[0]
    store = open_store(config.store)
    cells = store.read_features([row_key("u", row["user_id"])], "batch", ["user_stats", "user_last_items"])[0]
    store.close()
    assert cells["user_stats"].timestamp == AS_OF
    names = [f.name for f in features_of("user_stats")]
    wanted = np.array([np.nan if row[n] is None else row[n] for n in names], np.float32)
    np.testing.assert_array_equal(decode_vector(cells["user_stats"].value), wanted)
    ids, times, _ = decode_list(cells["user_last_items"].value)
    assert ids == row["last_items"]["ids"] and times.tolist() == row["last_items"]["times"]


def test_after_features_alone_items_are_shown_by_title(config, capsys):
    lake = Lake.open(config.lake)
    item = lake.read("events", ["item_id"])["item_id"][0].as_py()
    row = {"item_id": item, "title": "Fargo", "categories": [], "is_active": True, "schema_version": 1, "updated_at": 0,
           "attributes": []}
    upsert_items(lake, pa.Table.from_pylist([row], schema=ITEMS.schema))
    features.run(config, AS_OF)
    capsys.readouterr()
    assert main(["show", "item", item, "--workspace", str(config.workspace.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Fargo"


@pytest.mark.parametrize(("words", "said"), [
    (["--as-of", "yesterday"], "'yesterday' is not a date"), (["--groups", "user_mood"], "no batch feature group user_mood"),
    (["--from", "2024-01-01"], "needs both"), (["--as-of", "1990-01-01"], "no events before"),
    (["--from", "2024-01-02", "--to", "2024-01-01"], "--to not before --from")])
def test_wrong_input_gets_one_line(config, capsys, words, said):
    assert main(["features", "--workspace", str(config.workspace.root), "--quiet", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_killed_between_any_two_commits_ends_with_the_same_rows(config, tmp_path, monkeypatch):
    """Each commit is the last thing that happens once; the next run finishes the work."""
    whole = Config.of(tmp_path / "whole", quiet=True)
    Lake.open(whole.lake).append("events", [f.path for f in Lake.open(config.lake).files("events")])
    features.run(whole, AS_OF)
    commit = Lake.commit

    for allowed in range(3):
        left = iter(range(allowed))

        def dies(self, name, *args, left=left, **kwargs):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return commit(self, name, *args, **kwargs)

        monkeypatch.setattr(Lake, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            features.run(config, AS_OF)
        monkeypatch.setattr(Lake, "commit", commit)
        (tmp_path / "store.db").unlink(missing_ok=True)
    features.run(config, AS_OF)
    for table, key in (("user_snapshots", "user_id"), ("item_snapshots", "item_id")):
        one, other = (Lake.open(c.lake).read(table).sort_by(key).drop_columns(["published_at"]) for c in (config, whole))
        assert one.equals(other)
    for table in ("partials", "states"):
        one, other = (Lake.open(c.lake).read(table).sort_by([("day", "ascending"), ("group", "ascending"),
                      ("bucket", "ascending")]).drop_columns(["inputs"]) for c in (config, whole))
        assert one.equals(other), table


def test_a_group_alone_leaves_the_others_null(config):
    features.run(config, AS_OF, ["user_affinity"], publish=False)
    lake = Lake.open(config.lake)
    rows = lake.read("user_snapshots")
    assert rows.column("last_items").null_count == len(rows) and lake.read("item_snapshots").num_rows == 0
    features.run(config, AS_OF, publish=False)
    assert lake.read("user_snapshots").column("last_items").null_count == 0


def test_a_reader_that_goes_ends_the_command_quietly():
    words = f"{sys.executable} -m beam_pipelines.cli.main features list --json"
    piped = subprocess.run(f"set -o pipefail; {words} | head -c 10", shell=True, executable="/bin/bash", capture_output=True,
                           check=False)
    assert (piped.returncode, piped.stderr, len(piped.stdout)) == (0, b"", 10)
