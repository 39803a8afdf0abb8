"""``beamrec store``: what is in a store of each kind, what may go and what stays, also while others write."""

import itertools
import json
import os

import pytest
from cell_world import DAY, stream_cells, write, write_status
from serving_world import NOW

from beam_pipelines.cli.main import main
from schemas.keys import ITEM, USER, list_key, row_key
from schemas.workspace import Workspace
from serving.stores import admin, open_store
from serving.stores.base import Active, Cell, FeatureWrite, ListWrite

NAMES = itertools.count()
VERSIONS = [f"2026010{i}T000000-00000000" for i in range(1, 7)]


@pytest.fixture(params=["sqlite", "bigtable"])
def place(request, tmp_path, monkeypatch):
    """(store, run): run calls ``beamrec store`` on it and gives its JSON."""
    workspace = Workspace(tmp_path / "workspace")
    workspace.freeze_after(NOW - 1)
    uri = f"sqlite:{workspace.store}"
    if request.param == "bigtable":
        for name, value in request.getfixturevalue("bigtable_emulator").environment.items():
            monkeypatch.setenv(name, value)
        uri = f"bigtable://test/admin-{os.getpid()}-{next(NAMES)}"

    def call(*words, code=0):
        capsys = request.getfixturevalue("capsys")
        capsys.readouterr()
        assert main(["store", *words, "--workspace", str(workspace.root), "--store", uri, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    call("create")
    store = open_store(uri)
    yield store, call, workspace
    store.close()


def fill(store):
    for user, age in (("fresh", 0), ("yesterday", DAY), ("old", 3 * DAY)):
        write(store, user, "stream", stream_cells(NOW - age, ["a", "b"]))  # each with suppressions an hour and 8 days older
    write_status(store, NOW - 30 * DAY)
    for version in VERSIONS:
        store.write_lists(ListWrite(list_key(f"u{i}", "homepage"), version, Cell(b"packed", NOW)) for i in range(10))
    store.flip("homepage", None, Active(VERSIONS[1], challenger=VERSIONS[3], percent=5, previous=VERSIONS[0]))
    store.write_features([FeatureWrite(row_key(ITEM, "toy"), "meta", "item", Cell(b"{}", NOW))])


def test_what_is_in_a_store(place):
    store, call, _ = place
    fill(store)
    said = call("inspect")
    assert {v: held["cells"] for v, held in said["lists"].items()} == dict.fromkeys(VERSIONS, 10)
    assert said["active"]["homepage"]["challenger"] == VERSIONS[3]
    stream = said["features"]["stream"]
    assert stream["user_panes"]["cells"] == 3 and stream["user_panes"]["expired"] == 1
    assert stream["s:*"]["cells"] == 6 and stream["s:*"]["expired"] == 3 and stream["status"]["expired"] == 0
    assert stream["user_panes"]["oldest"] == NOW - 3 * DAY and not stream["user_panes"]["sampled"]
    assert said["features"]["meta"]["item"]["cells"] == 1 and not said["features"]["batch"]
    if said["kind"] == "bigtable":
        assert said["tables"]["features"] == dict.fromkeys(("batch", "stream", "meta"), "maxversions() == 1")
    else:
        assert said["tables"]["file"]["bytes"] > 0 and stream["user_panes"]["bytes"] > 0


def test_gc_says_what_it_would_do_and_does_that(place, capsys):
    store, call, workspace = place
    fill(store)
    workspace.lists.mkdir(parents=True)
    for version in VERSIONS:
        (workspace.lists / f"{version}.json").write_text("{}")
    before = call("inspect")
    dry = call("gc", "--keep", "1")
    assert call("inspect") == before and not dry["applied"]
    groups = ("user_panes", "user_day", "user_session", "user_preference", "user_recent")
    assert dry["stream_cells"] == {**dict.fromkeys(groups, 1), "s:*": 3}
    assert dry["versions"] == {VERSIONS[2]: None, VERSIONS[4]: None}
    done = call("gc", "--keep", "1", "--apply")
    assert done["stream_cells"] == dry["stream_cells"] and done["versions"] == {VERSIONS[2]: 10, VERSIONS[4]: 10}
    after = call("inspect")
    assert list(after["lists"]) == [VERSIONS[i] for i in (0, 1, 3, 5)]
    assert after["features"]["stream"]["user_panes"]["cells"] == 2 and after["features"]["stream"]["s:*"]["cells"] == 3
    assert after["features"]["stream"]["status"]["cells"] == 1
    assert sorted(p.stem for p in workspace.lists.iterdir()) == list(after["lists"])
    again = call("gc", "--keep", "1", "--apply")
    assert not again["stream_cells"] and not again["versions"]


def test_a_cell_that_is_written_between_the_look_and_the_delete_stays(place, monkeypatch):
    store, _, _ = place
    write(store, "old", "stream", stream_cells(NOW - 3 * DAY, ["a"]))
    forget = type(store).forget_before

    def late(self, cells):
        write(self, "old", "stream", {"user_panes": stream_cells(NOW, ["a"])["user_panes"]})
        forget(self, cells)

    monkeypatch.setattr(type(store), "forget_before", late)
    assert admin.collect(store, NOW, apply=True)["user_panes"] == 1
    (cells,) = store.read_features([row_key(USER, "old")], "stream", ["*"])
    assert cells["user_panes"].timestamp == NOW and set(cells) == {"user_panes", "s:sold"}


def test_a_large_store_is_counted_in_a_sample(place, monkeypatch):
    store, call, _ = place
    monkeypatch.setattr(admin, "EXACT_BELOW", 2_000)
    store.write_features(FeatureWrite(row_key(USER, f"u{i}"), "batch", "g", Cell(b"x" * 10, NOW)) for i in range(8_000))
    held = call("inspect")["features"]["batch"]["g"]
    assert held["sampled"] and 6_000 < held["cells"] < 10_000


def test_create_mends_a_policy_that_was_changed(place):
    store, call, _ = place
    if not hasattr(store, "mend"):
        pytest.skip("SQLite has no policy")
    rpc, table = store._rpc, store._layout.table("features")
    rpc.set_families(table, {"batch": True})
    from serving.stores.bigtable_rpc import ModifyColumnFamiliesRequest

    request = ModifyColumnFamiliesRequest(name=table)
    request.modifications.add(id="stream").update.gc_rule.max_age.seconds = 60
    rpc._modify(request)
    assert store.tables()["features"]["stream"] == "maxage() > 60s"
    assert call("create")["mended"] == ["features: stream"] and call("create")["mended"] == []
    assert store.tables()["features"]["stream"] == "maxversions() == 1"


def test_wrong_calls_are_told(tmp_path, capsys):
    for words, said in ((["inspect"], "no store at"), (["gc", "--keep", "-1"], "0 or more"), (["replay"], "takes a file"),
                        (["inspect", "x"], "takes no file"), (["create", "--store", "redis:x"], "not a store")):
        assert main(["store", *words, "--workspace", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err
    main(["store", "create", "--workspace", str(tmp_path)])
    (tmp_path / "dead.jsonl").write_text("{}\n")
    assert main(["store", "replay", str(tmp_path / "dead.jsonl"), "--workspace", str(tmp_path)]) == 2
    assert "line 1 is no refused row" in capsys.readouterr().err
    for words in (["inspect"], ["gc"]):
        assert main(["store", *words, "--workspace", str(tmp_path)]) == 0
    assert "nothing to delete" in capsys.readouterr().out
