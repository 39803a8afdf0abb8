"""What is Bigtable's own: failures on the way, rows that are refused, other tools' view. The contract suite runs elsewhere."""

import dataclasses
import itertools
import json
import os
import subprocess
import time

import pytest
from flaky import ANSWER, BREAK, CALL, between

from beam_pipelines.cli.main import main
from beam_pipelines.errors import UserError
from beam_pipelines.services.install import program
from schemas.keys import USER, list_key, row_key
from serving.stores import StoreError, open_store
from serving.stores.base import Active, Cell, FeatureWrite, ListWrite

NAMES = itertools.count()


@pytest.fixture
def uri(bigtable_emulator, monkeypatch):
    for name, value in bigtable_emulator.environment.items():
        monkeypatch.setenv(name, value)
    return f"bigtable://test/own-{os.getpid()}-{next(NAMES)}"


@pytest.fixture
def flaky(uri, bigtable_emulator, monkeypatch):
    """(proxy, store behind it)."""
    with between(bigtable_emulator.address) as (proxy, address):
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", address)
        store = open_store(uri)
        yield proxy, store
        store.close()


def writes(count, timestamp=1000, value=b"x"):
    return [FeatureWrite(row_key(USER, f"u{i}"), "batch", "g", Cell(value, timestamp)) for i in range(count)]


@pytest.mark.parametrize("fault", [CALL, ANSWER, BREAK])
def test_a_bulk_write_that_fails_on_the_way_is_repeated(flaky, fault):
    proxy, store = flaky
    proxy.faults["MutateRows"].extend([fault, fault])
    assert store.write_features(writes(2500)) == 2500
    assert sum(1 for _ in store.scan_features("batch", "g")) == 2500
    assert proxy.calls["MutateRows"] == (3 if fault == BREAK else 5)  # what was answered is not sent again


@pytest.mark.parametrize("fault", [CALL, ANSWER, BREAK])
def test_a_read_that_breaks_off_goes_on_behind_what_came(flaky, fault):
    proxy, store = flaky
    store.write_features(writes(300, value=b"y" * 20_000))
    rows = [w.row for w in writes(300)]
    proxy.faults["ReadRows"].extend([fault, fault])
    assert [c["g"].value for c in store.read_features(rows, "batch", ["g"])] == [b"y" * 20_000] * 300
    proxy.faults["ReadRows"].extend([fault, fault])
    assert [row for row, _ in store.scan_features("batch", "g")] == sorted(rows)


@pytest.mark.parametrize("fault", [CALL, ANSWER])
def test_a_flip_whose_answer_is_lost_tells_the_truth(flaky, fault):
    proxy, store = flaky
    proxy.faults["CheckAndMutateRow"].append(fault)
    assert store.flip("homepage", None, Active("v1"))
    proxy.faults["CheckAndMutateRow"].append(fault)
    assert store.flip("homepage", Active("v1"), Active("v2", previous="v1"))
    assert store.active("homepage") == Active("v2", previous="v1")
    proxy.faults["CheckAndMutateRow"].append(fault)
    assert not store.flip("homepage", Active("v1"), Active("v3"))
    assert store.active("homepage") == Active("v2", previous="v1")


def test_a_reader_gives_up_within_a_second_or_two(flaky, uri):
    proxy, store = flaky
    store.write_features(writes(1))
    reader = open_store(uri, create=False)
    proxy.faults["ReadRows"].extend([CALL] * 1000)
    started = time.monotonic()
    with pytest.raises(StoreError, match="UNAVAILABLE"):
        reader.read_features([row_key(USER, "u0")], "batch", ["g"])
    assert time.monotonic() - started < 3
    reader.close()


def test_what_bigtable_refuses_is_said_without_a_row_key_and_the_rest_is_written(uri):
    store = open_store(uri)
    good, bad = writes(5), FeatureWrite("", "batch", "g", Cell(b"x", 1000))
    with pytest.raises(StoreError) as caught:
        store.write_features([*good[:2], bad, *good[2:]])
    assert "u0" not in str(caught.value)
    assert store.write_features(good) == 5
    store.close()


@pytest.mark.parametrize("whole_call", [False, True])
def test_refused_rows_are_kept_with_the_reason_and_replayed(uri, bigtable_emulator, monkeypatch, tmp_path, whole_call, capsys):
    path = tmp_path / "refused.jsonl"
    with between(bigtable_emulator.address) as (proxy, address):
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", address)
        store = open_store(f"{uri}?refused={path}")
        good = writes(2500)
        bad = FeatureWrite("poison" if whole_call else "", "batch", "g", Cell(b"bad", 7000))
        proxy.refuse = b"poison"
        proxy.faults["MutateRows"].append(ANSWER)  # rows that fail for a while are not refused
        assert store.write_features([*good[:1200], bad, *good[1200:]]) == 2501
        proxy.refuse = None
        assert sum(1 for _ in store.scan_features("batch", "g")) == 2500
        (line,) = [json.loads(text) for text in path.read_text().splitlines()]
        assert (line["row"], line["timestamp"]) == (bad.row, 7000) and ("injected" if whole_call else "key") in line["reason"]
        assert path.stat().st_mode & 0o777 == 0o600
        store.close()
        code = main(["store", "replay", str(path), "--store", uri, "--json"])
        said = json.loads(capsys.readouterr().out)
        assert (code, said["written"], said["refused"]) == ((0, 1, 0) if whole_call else (1, 0, 1))


def test_an_instance_without_tables_is_no_store_to_a_reader(uri):
    with pytest.raises(StoreError, match=r"no store at projects/test/instances/own-.*no table features"):
        open_store(uri, create=False)


def test_stores_with_a_prefix_share_an_instance(uri):
    one, other = open_store(f"{uri}?prefix=one_"), open_store(f"{uri}?prefix=two_")
    one.write_features(writes(3))
    assert sum(1 for _ in one.scan_features("batch", "g")) == 3 and list(other.scan_features("batch", "g")) == []
    one.close(), other.close()


def test_names_that_mean_something_to_a_regular_expression_are_names(uri):
    store = open_store(uri)
    groups = ["a.b", "axb", "s:é.*", "s:", "a|b", "\\C", "s:ü\n"]
    store.write_features(FeatureWrite("row", "stream", g, Cell(g.encode(), 1000)) for g in groups)
    for group in groups[:2] + groups[3:]:
        assert store.read_features(["row"], "stream", [group]) == [{group: Cell(group.encode(), 1000)}]
    assert set(store.read_features(["row"], "stream", ["s:*"])[0]) == {"s:é.*", "s:", "s:ü\n"}
    store.close()


def test_an_older_write_that_comes_late_masks_nothing_and_a_flip_back_shows(uri):
    store = open_store(uri)
    store.write_features(writes(1, 9000, b"new"))
    store.write_features(writes(1, 5000, b"old"))
    assert store.read_features([row_key(USER, "u0")], "batch", ["g"]) == [{"g": Cell(b"new", 9000)}]
    first = Active("v1")
    for new in (dataclasses.replace(first, percent=5), first):
        before = store.active("homepage")
        assert store.flip("homepage", before, new) and store.active("homepage") == new
    store.close()


def test_cbt_reads_what_we_wrote(uri):
    try:
        cbt = program("cbt")
    except UserError as error:
        pytest.skip(str(error))
    store = open_store(uri)
    store.write_lists([ListWrite(list_key("ann", "homepage"), "20260101T000000-00000000", Cell(b"packed", 7000))])
    store.close()
    project, instance = uri.removeprefix("bigtable://").split("/")
    done = subprocess.run([cbt, "-project", project, "-instance", instance, "read", "recommendations"], capture_output=True,
                          text=True, timeout=60, check=True, env=dict(os.environ))
    assert list_key("ann", "homepage") in done.stdout and "lists:20260101T000000-00000000" in done.stdout
    assert '"packed"' in done.stdout


def test_rows_are_longer_than_grpcs_default_message(uri):
    """4 MiB: the limit of a channel that nobody has told otherwise."""
    store = open_store(uri)
    store.write_features(FeatureWrite("row", "batch", f"g{i}", Cell(bytes([i]) * (2 << 20), 1000)) for i in range(4))
    (cells,) = store.read_features(["row"], "batch", ["g*"])
    assert {g: len(c.value) for g, c in cells.items()} == {f"g{i}": 2 << 20 for i in range(4)}
    store.close()


def test_garbage_collection_keeps_the_newest_cell_however_old_it_is(uri):
    """Rules apply in the emulator once a family was modified; age would count event time, and an old backfill vanish."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigtable
    from google.cloud.bigtable.column_family import MaxVersionsGCRule

    store = open_store(uri)
    store.write_features(writes(3, 1000, b"of 1970"))
    project, instance = uri.removeprefix("bigtable://").split("/")
    admin = bigtable.Client(project=project, admin=True, credentials=AnonymousCredentials())
    table = admin.instance(instance).table("features")
    families = table.list_column_families()
    assert {name: family.gc_rule for name, family in families.items()} == dict.fromkeys(
        ("batch", "stream", "meta"), MaxVersionsGCRule(1))
    for family in families.values():
        family.update()
    store.write_features(writes(3, 500_000, b"of 1970 too"))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(len(row.cells["batch"][b"g"]) > 1 for row in table.read_rows()):
        time.sleep(0.1)
    rows = [w.row for w in writes(3)]
    assert store.read_features(rows, "batch", ["g"]) == [{"g": Cell(b"of 1970 too", 500_000)}] * 3
    store.close()
