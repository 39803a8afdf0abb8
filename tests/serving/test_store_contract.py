"""The contract of serving.stores.base.Store, over every implementation."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from async_stores import ASYNC
from async_stores import open_any as open_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.keys import ITEM, USER, list_key, row_key
from serving import stores
from serving.stores import StoreError, StoreUriError
from serving.stores.base import MAX_PREFIX_CELLS, Active, Cell, FeatureWrite, ListWrite
from serving.stores.columns import cell_batch

NAMES = itertools.count()


@pytest.fixture(params=["sqlite", "bigtable", "async+sqlite", "async+bigtable"])
def uri(request, tmp_path, monkeypatch):
    """The URI of a new, empty store of each implementation."""
    how, _, kind = request.param.rpartition("+")
    before = ASYNC if how else ""
    if kind == "sqlite":
        return f"{before}sqlite:{tmp_path / f'store{next(NAMES)}.db'}"
    for name, value in request.getfixturevalue("bigtable_emulator").environment.items():
        monkeypatch.setenv(name, value)
    return f"{before}bigtable://test/{tmp_path.name}-{next(NAMES)}"


def plain(uri):
    """The URI for another process: there is no loop to share."""
    if uri.startswith(ASYNC):
        pytest.skip("about processes that write: the same store without a loop has it")
    return uri


@pytest.fixture
def store(uri):
    opened = open_store(uri)
    yield opened
    opened.close()


ANN, BOB, TOY = row_key(USER, "ann"), row_key(USER, "bob"), row_key(ITEM, "toy")


def put(store, row=ANN, family="batch", group="user_stats", value=b"v", timestamp=1000):
    return store.write_features([FeatureWrite(row, family, group, Cell(value, timestamp))])


def put_list(store, user="ann", version="v1", value=b"l", timestamp=1000):
    return store.write_lists([ListWrite(list_key(user, "homepage"), version, Cell(value, timestamp))])


def test_cells_in_columns_are_written_as_features_are(store):
    rows = [row_key(USER, f"u{i % 300}") for i in range(1000)]  # some more than once: the newest wins, of equals the last
    groups = [("a", "b")[i % 2] for i in range(1000)]
    times = [(i * 7919 % 5) * 1000 for i in range(1000)]
    values = [b"%d" % i for i in range(1000)]
    assert store.write_cells("stream", cell_batch(rows, groups, values, times)) == 1000
    expected = {}
    for row, group, value, time_ in zip(rows, groups, values, times, strict=True):
        if (row, group) not in expected or expected[row, group].timestamp <= time_:
            expected[row, group] = Cell(value, time_)
    distinct = sorted(set(rows))
    found = store.read_features(distinct, "stream", ["a", "b"])
    assert {(r, g): c for r, cells in zip(distinct, found, strict=True) for g, c in cells.items()} == expected
    assert store.read_features(distinct, "batch", ["a", "b"]) == [{}] * len(distinct)
    assert store.write_cells("stream", cell_batch(rows, groups, values, times)) == 1000
    assert store.read_features(distinct, "stream", ["a", "b"]) == found
    assert store.write_cells("stream", cell_batch([], [], [], [])) == 0


def test_reads_answer_in_the_order_asked_with_misses_and_repeats(store):
    put(store, ANN, value=b"a")
    put(store, BOB, value=b"b")
    absent = row_key(USER, "nobody")
    values = [{"user_stats": Cell(b"b", 1000)}, {}, {"user_stats": Cell(b"a", 1000)}, {"user_stats": Cell(b"b", 1000)}]
    assert store.read_features([BOB, absent, ANN, BOB], "batch", ["user_stats", "user_affinity"]) == values
    put_list(store, "ann", value=b"x")
    rows = [list_key(u, "homepage") for u in ("bob", "ann", "ann")]
    assert store.read_lists(rows, "v1") == [None, Cell(b"x", 1000), Cell(b"x", 1000)]
    assert store.read_lists(rows, "another") == [None, None, None]
    assert store.read_features([], "batch", ["user_stats"]) == [] and store.read_lists([], "v1") == []
    assert store.read_features([ANN], "batch", []) == [{}]


def test_many_rows_in_one_read(store):
    rows = [row_key(ITEM, str(i)) for i in range(1500)]
    assert store.write_features(FeatureWrite(r, "batch", "item_stats", Cell(r.encode(), 0)) for r in rows) == 1500
    asked = [*reversed(rows), "00#i#absent"]
    assert [c["item_stats"].value.decode() if c else None for c in store.read_features(asked, "batch", ["item_stats"])] == [
        *reversed(rows), None]


def test_families_and_groups_do_not_overwrite_each_other(store):
    put(store, family="batch", value=b"batch")
    put(store, family="stream", value=b"stream")
    put(store, group="user_affinity", value=b"other")
    put(store, TOY, family="meta", group="item", value=b"title")
    assert store.read_features([ANN], "batch", ["user_stats"]) == [{"user_stats": Cell(b"batch", 1000)}]
    assert store.read_features([ANN], "stream", ["user_stats"]) == [{"user_stats": Cell(b"stream", 1000)}]
    assert store.read_features([ANN, TOY], "meta", ["item"]) == [{}, {"item": Cell(b"title", 1000)}]


def test_a_prefix_stands_for_every_group_that_begins_with_it(store):
    for group in ("s:a", "s:b", "s:", "s", "t:a", "s;"):
        put(store, group=group, value=group.encode(), family="stream")
    put(store, BOB, group="s:c", value=b"c", family="stream")
    put(store, group="s:a", value=b"another family")
    found = [{g: Cell(g.encode(), 1000) for g in ("s:", "s:a", "s:b")}, {}, {"s:c": Cell(b"c", 1000)}]
    assert store.read_features([ANN, TOY, BOB], "stream", ["s:*"]) == found
    both = {**found[0], "t:a": Cell(b"t:a", 1000)}
    assert store.read_features([ANN, ANN], "stream", ["t:a", "s:*", "absent", "none*"]) == [both, both]
    assert set(store.read_features([ANN], "stream", ["*"])[0]) == {"s:a", "s:b", "s:", "s", "t:a", "s;"}


def test_a_prefix_answers_with_the_newest_cells_of_a_row_at_most(store):
    asked = [row_key(USER, "heavy"), ANN]
    store.write_features(FeatureWrite(asked[0], "stream", f"s:{i:05}", Cell(b"x", i % 2500 * 1000)) for i in range(5000))
    put(store, family="stream", group="s:1")
    heavy, ann = store.read_features(asked, "stream", ["s:*"])
    assert len(heavy) == MAX_PREFIX_CELLS and set(ann) == {"s:1"}
    assert {cell.timestamp for cell in heavy.values()} == {t * 1000 for t in range(1500, 2500)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_newest_wins_whatever_the_order_and_repetition(uri, data):
    cells = st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.binary(max_size=3))
    writes = data.draw(st.lists(cells, max_size=12))
    cuts = data.draw(st.integers(1, 5))
    store = open_store(f"{uri}.{next(NAMES)}")
    try:
        oracle: dict[str, Cell] = {}
        for key, time_, value in writes:
            if key not in oracle or time_ * 1000 >= oracle[key].timestamp:  # on equal timestamps the later write wins
                oracle[key] = Cell(value, time_ * 1000)
        for start in range(0, len(writes), cuts):
            part = [(k, Cell(v, t * 1000)) for k, t, v in writes[start : start + cuts]]
            assert store.write_features(FeatureWrite(k, "batch", "g", c) for k, c in part) == len(part)
            assert store.write_lists(ListWrite(k, "v1", c) for k, c in part) == len(part)
        for _ in range(2):
            keys = sorted(oracle)
            assert store.read_features(keys, "batch", ["g"]) == [{"g": oracle[k]} for k in keys]
            assert store.read_lists(keys, "v1") == [oracle[k] for k in keys]
            last = [(k, oracle[k]) for k in keys]  # writing what is there again changes nothing
            store.write_features(FeatureWrite(k, "batch", "g", c) for k, c in last)
            store.write_lists(ListWrite(k, "v1", c) for k, c in last)
    finally:
        store.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations([0, 1, 2, 3, 4]))
def test_any_order_of_the_same_writes_ends_the_same(uri, order):
    store = open_store(f"{uri}.{next(NAMES)}")
    try:
        for t in order:
            put(store, value=f"at {t}".encode(), timestamp=t * 1000)
            put_list(store, value=f"at {t}".encode(), timestamp=t * 1000)
        assert store.read_features([ANN], "batch", ["user_stats"]) == [{"user_stats": Cell(b"at 4", 4000)}]
        assert store.read_lists([list_key("ann", "homepage")], "v1") == [Cell(b"at 4", 4000)]
    finally:
        store.close()


def test_a_timestamp_is_a_multiple_of_1000(store):
    with pytest.raises(StoreError, match="multiple of 1000"):
        put(store, timestamp=1001)
    assert store.read_features([ANN], "batch", ["user_stats"]) == [{}]


def test_a_failing_source_of_writes_loses_nothing_written_before_and_can_be_repeated(store):
    put(store, value=b"old")

    def broken():
        yield FeatureWrite(BOB, "batch", "user_stats", Cell(b"new", 2000))
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        store.write_features(broken())
    assert store.read_features([ANN], "batch", ["user_stats"]) == [{"user_stats": Cell(b"old", 1000)}]
    assert put(store, BOB, value=b"new", timestamp=2000) == 1


def test_versions_and_scans_are_in_order_and_a_dropped_version_is_gone(store):
    assert store.versions() == []
    for version in ("v2", "v1", "v3"):
        store.write_lists(ListWrite(list_key(str(u), "homepage"), version, Cell(version.encode(), 1000)) for u in range(30))
    assert store.versions() == ["v1", "v2", "v3"]
    scanned = list(store.scan_lists("v2"))
    assert [row for row, _ in scanned] == sorted(list_key(str(u), "homepage") for u in range(30))
    assert {cell for _, cell in scanned} == {Cell(b"v2", 1000)}
    assert store.drop_version("v2") == 30
    assert store.versions() == ["v1", "v3"] and list(store.scan_lists("v2")) == []
    assert store.drop_version("v2") == 0


def test_scan_features_reads_one_group_in_row_order(store):
    rows = [row_key(ITEM, str(i)) for i in range(5000)]
    store.write_features(FeatureWrite(r, "batch", g, Cell(g.encode(), 1000)) for r in rows for g in ("a", "b"))
    scanned = list(store.scan_features("batch", "a"))
    assert [row for row, _ in scanned] == sorted(rows) and {c.value for _, c in scanned} == {b"a"}


def test_flip_is_a_compare_and_set(store):
    first, second = Active("v1"), Active("v2", challenger="v3", percent=5, previous="v1")
    assert store.active("homepage") is None
    assert not store.flip("homepage", first, second) and store.active("homepage") is None
    assert store.flip("homepage", None, first)
    assert not store.flip("homepage", None, second) and store.active("homepage") == first
    assert store.flip("homepage", first, second) and store.active("homepage") == second
    assert store.active("cart") is None


def test_of_flips_at_once_exactly_one_wins_and_none_fails(store):
    for round_ in range(25):
        barrier, outcomes = threading.Barrier(6), []
        before = store.active("homepage")

        def race(name, barrier=barrier, before=before, outcomes=outcomes):
            barrier.wait()
            outcomes.append((store.flip("homepage", before, Active(name)), name))

        threads = [threading.Thread(target=race, args=(f"v{round_}-{i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 6  # a thread that raised leaves none
        (winner,) = [name for won, name in outcomes if won]
        assert store.active("homepage") == Active(winner)


def test_a_version_in_use_is_not_dropped(store):
    for version in ("v1", "v2", "v3"):
        put_list(store, version=version)
    store.flip("homepage", None, Active("v2", challenger="v3", percent=5, previous="v1"))
    for version in ("v1", "v2", "v3"):
        with pytest.raises(StoreError, match="in use"):
            store.drop_version(version)
    assert store.versions() == ["v1", "v2", "v3"]


def test_threads_share_a_store(store):
    errors = []

    def work(name):
        try:
            for i in range(50):
                put(store, row_key(USER, f"{name}{i}"), value=name.encode())
                assert store.read_features([row_key(USER, f"{name}{i}")], "batch", ["user_stats"])[0]["user_stats"].value
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and sum(1 for _ in store.scan_features("batch", "user_stats")) == 200


def test_a_closed_store_refuses(uri):
    store = open_store(uri)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.active("homepage")


WRITER = """
import sys
from serving.stores import open_store
from serving.stores.base import Cell, FeatureWrite, ListWrite
store = open_store(sys.argv[1])
for i in range(1_000_000):
    store.write_lists(ListWrite(f"{j:03}", "v1", Cell(b"%d" % i, i * 1000)) for j in range(200))
    store.write_features([FeatureWrite("row", "batch", "g", Cell(b"%d" % i, i * 1000))])
    print(i, flush=True)
"""


@contextlib.contextmanager
def writing(uri):
    """A process that writes generation after generation and prints each one that is committed."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, uri], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_reads_go_on_while_another_process_writes(uri):
    with writing(plain(uri)) as process:
        process.stdout.readline()
        store, seen, deadline = open_store(uri), set(), time.monotonic() + 20
        while len(seen) < 5 and time.monotonic() < deadline:
            (cells,) = store.read_features(["row"], "batch", ["g"])
            seen.add(int(cells["g"].value))
            generations = {cell.value for cell in store.read_lists([f"{j:03}" for j in range(200)], "v1")}
            if uri.startswith("sqlite:"):
                assert len(generations) == 1  # one call's chunk is one transaction: never half of it
        store.close()
    assert len(seen) >= 5


@pytest.mark.parametrize("generations", [1, 7, 20])
def test_kill_9_of_a_writer_loses_nothing_committed(uri, generations):
    with writing(plain(uri)) as process:
        for _ in range(generations):
            committed = int(process.stdout.readline())
        time.sleep(0.002 * generations)  # into the middle of some write
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        committed = max([committed, *map(int, process.stdout.read().split())])
    store = open_store(uri)
    (cells,) = store.read_features(["row"], "batch", ["g"])
    lists = {int(cell.value) for _, cell in store.scan_lists("v1")}
    assert int(cells["g"].value) >= committed and min(lists) >= committed
    assert len(lists) == 1 or not uri.startswith("sqlite:")  # there a chunk is one transaction
    assert put(store) == 1  # and it goes on
    store.close()


def test_many_processes_open_a_new_store_at_once(uri):
    script = "import sys; from serving.stores import open_store; open_store(sys.argv[1]).active('homepage')"
    started = [subprocess.Popen([sys.executable, "-c", script, plain(uri)], stderr=subprocess.PIPE) for _ in range(6)]
    errors = [p.communicate()[1].decode() for p in started]
    assert [p.returncode for p in started] == [0] * 6, errors


@pytest.mark.parametrize("wrong", ["redis://localhost", "sqlite:", "store.db", "", "bigtable://p", "bigtable://p/i?speed=1"])
def test_an_unknown_uri_is_named_with_what_would_do(wrong):
    with pytest.raises(StoreUriError, match=r"sqlite:PATH|bigtable://PROJECT/INSTANCE|no option speed"):
        open_store(wrong)


def test_a_reader_does_not_make_a_store(tmp_path):
    with pytest.raises(StoreError, match="no store at"):
        stores.open_store(f"sqlite:{tmp_path / 'typo.db'}", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_was_replaced_is_not_used_any_more(tmp_path):
    uri = f"sqlite:{tmp_path / 'store.db'}"
    first = open_store(uri)
    put(first, value=b"old")
    path = Path(uri.partition(":")[2])
    path.rename(path.with_suffix(".away"))
    with pytest.raises(StoreError, match="moved, removed or replaced"):
        put(first, value=b"lost")
    first.close()
    second = open_store(uri)
    assert second.read_features([ANN], "batch", ["user_stats"]) == [{}]
    second.close()


def test_another_file_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but longer than a header of SQLite\n" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="cannot open"):
        open_store(f"sqlite:{path}")
    assert path.read_bytes() == before
