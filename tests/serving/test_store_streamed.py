"""Family ``stream`` of the embedded store: names of any kind, other writers, forks, and machines that stop."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from operator import itemgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.stores import streamed_file, turn
from serving.stores.base import Cell, FeatureWrite, StoreError
from serving.stores.columns import cell_batch
from serving.stores.sqlite import SqliteStore
from serving.stores.streamed import StreamedCells, unpacked

NAMES = st.one_of(st.text(st.sampled_from("ab#:\0\x01"), min_size=1, max_size=4),
                  st.sampled_from(["s:" + "ä" * 300, "s:" + "a" * 600, "s:a\0b", "s:a", "x" * 240, "x" * 241]))


@pytest.fixture
def file(tmp_path):
    opened = StreamedCells(tmp_path / "cells", 1.0)
    yield opened
    opened.close()


def put(cells, row="00#u#ann", group="a", value=b"v", stamp=1000):
    cells.write([(row, group, stamp, value)])


def read(cells, row="00#u#ann", group="a"):
    return cells.read([row], [group], (), time.monotonic() + 10)[0].get(group)


@settings(max_examples=60, deadline=None)
@given(writes=st.lists(st.tuples(NAMES, NAMES, st.integers(0, 3), st.binary(max_size=3)), max_size=30), columns=st.booleans(),
       prefix=st.sampled_from(["", "s:", "a", "s:a"]))
def test_cells_are_those_of_a_dictionary_whatever_their_names(tmp_path_factory, writes, columns, prefix):
    cells, known = StreamedCells(tmp_path_factory.mktemp("streamed") / "cells", 1.0), {}
    for row, group, stamp, value in writes:
        if columns:
            cells.write_columns(cell_batch([row], [group], [value], [stamp * 1000]))
        else:
            cells.write([(row, group, stamp * 1000, value)])
        if (row, group) not in known or known[row, group].timestamp <= stamp * 1000:
            known[row, group] = Cell(value, stamp * 1000)
    rows = {row for row, _ in known}
    until = time.monotonic() + 60
    for row in rows:
        mine = {group: cell for (r, group), cell in known.items() if r == row}
        assert cells.read([row], mine, (), until) == [mine]
        assert {g.decode(): unpacked(held) for g, held in cells.row(row, 1000).items()} == mine
        assert cells.row(row, len(mine)) is None
        assert cells.read([row], (), (prefix,), until) == [{g: c for g, c in mine.items() if g.startswith(prefix)}]
    for group in {group for _, group in known}:
        assert list(cells.scan(group)) == sorted(((r, c) for (r, g), c in known.items() if g == group), key=itemgetter(0))
    found = {(row, group): (stamp, size) for row, group, stamp, size in cells.stamps("", "")}
    assert found == {at: (cell.timestamp, len(cell.value)) for at, cell in known.items()}
    assert {row for row, *_ in cells.stamps("a", "b")} == {row for row in rows if "a" <= row < "b"}
    cells.forget_before([(row, group, 2000) for row, group in known])
    assert {at for at in known if known[at].timestamp >= 2000} == {(row, group) for row, group, *_ in cells.stamps("", "")}
    cells.close()


def test_many_cells_are_read_by_pages(file):
    file.write((f"{i % 256:02x}#u#{i}", "ab"[i % 2], 1000, b"%d" % i) for i in range(9000))
    assert len(list(file.scan("a"))) == 4500
    assert [row for row, *_ in file.stamps("10", "11")] == sorted(f"10#u#{i}" for i in range(9000) if i % 256 == 16)


def test_a_change_sees_what_is_there_and_an_older_one_changes_nothing(file):
    assert file.change("r", "g", lambda held: Cell(b"1" if held is None else b"?", 2000)) == Cell(b"1", 2000)
    file.change("r", "g", lambda held: Cell(held.value + b"2", 3000))
    file.change("r", "g", lambda held: Cell(b"old", 1000))
    assert read(file, "r", "g") == Cell(b"12", 3000)


def test_who_waits_too_long_for_another_writer_is_told(tmp_path):
    cells = StreamedCells(tmp_path / "cells", 0.2)
    with (tmp_path / "cells-turn").open("rb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process has been writing"):
            put(cells)
        assert read(cells) is None  # reads go on
        code = ("import sys, time; from pathlib import Path; from serving.stores.streamed import StreamedCells;"
                "print(StreamedCells(Path(sys.argv[1]), 0.2).read(['r'], ['g'], (), time.monotonic() + 10))")
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cells")], capture_output=True, text=True, check=True)
        assert done.stdout == "[{}]\n"  # and who comes to read does not wait
    put(cells)
    assert read(cells) == Cell(b"v", 1000)
    cells.close()


def test_a_fork_writes_and_reads_beside_its_parent(tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    one, two = (FeatureWrite("r", "stream", group, Cell(b"x", 1000)) for group in "ab")
    store.write_features([one])
    assert set(store.read_features(["r"], "stream", "ab")[0]) == {"a"}
    child = os.fork()
    if child == 0:
        try:
            store.write_features([two])
            os._exit(0 if set(store.read_features(["r"], "stream", "ab")[0]) == {"a", "b"} else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert set(store.read_features(["r"], "stream", "ab")[0]) == {"a", "b"}
    store.close()


def test_a_store_that_was_replaced_under_a_writer_is_written_where_it_is_now(tmp_path):
    old = SqliteStore(tmp_path / "store.db", create=True)
    write = [FeatureWrite("r", "stream", "a", Cell(b"x", 1000))]
    old.write_features(write)
    for file in list(tmp_path.glob("store.db*")):
        file.unlink()
    new = SqliteStore(tmp_path / "store.db")
    with pytest.raises(StoreError, match="replaced"):
        old.write_features(write)
    old.write_features(write)
    assert new.read_features(["r"], "stream", ["a"]) == [{"a": Cell(b"x", 1000)}]
    old.close()
    new.close()


def test_who_waits_to_write_while_it_is_closed_is_told(tmp_path):
    cells, told = StreamedCells(tmp_path / "cells", 30.0), []

    def write():
        try:
            put(cells)
        except StoreError as error:
            told.append(str(error))

    with (tmp_path / "cells-turn").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Thread(target=write)
        waiting.start()
        time.sleep(0.1)
        cells.close()
        waiting.join(10)
    assert len(told) == 1 and "closed" in told[0]


def test_what_a_killed_writer_left_is_put_on_disk_by_who_else_has_it_open(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_file, "_IDLE_S", 0.05)
    cells, mark = StreamedCells(tmp_path / "cells", 1.0), tmp_path / "cells-turn"
    write_and_die(tmp_path / "cells")
    assert mark.read_bytes()
    until = time.monotonic() + 10
    while mark.read_bytes() and time.monotonic() < until:
        time.sleep(0.02)
    assert not mark.read_bytes()
    cells.close()


def test_a_file_that_another_process_writes_is_not_dropped_however_it_counts_boots(tmp_path, monkeypatch):
    code = ("import sys; from pathlib import Path; from serving.stores.streamed import StreamedCells;"
            "cells = StreamedCells(Path(sys.argv[1]), 1.0); cells.write([('r', 'g', 1000, b'v')]); print(flush=True); input()")
    command = [sys.executable, "-c", code, str(tmp_path / "cells")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"\n"
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(turn, "_BOOT", tmp_path / "boot")
    cells = StreamedCells(tmp_path / "cells", 1.0)
    assert read(cells, "r", "g") == Cell(b"v", 1000)
    other.communicate(b"\n", timeout=30)
    cells.close()


def write_and_die(path):
    code = ("import os, sys; from pathlib import Path; from serving.stores.streamed import StreamedCells;"
            "StreamedCells(Path(sys.argv[1]), 1.0).write([('r', 'g', 1000, b'v')]); os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9


def test_a_kill_loses_nothing(tmp_path):
    write_and_die(tmp_path / "cells")
    cells = StreamedCells(tmp_path / "cells", 1.0)
    assert read(cells, "r", "g") == Cell(b"v", 1000)
    cells.close()


def test_what_was_not_on_disk_when_the_machine_stopped_is_dropped(tmp_path, monkeypatch, caplog):
    write_and_die(tmp_path / "cells")
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(turn, "_BOOT", tmp_path / "boot")
    cells = StreamedCells(tmp_path / "cells", 1.0)
    assert read(cells, "r", "g") is None and "--resume" in caplog.text
    put(cells)
    cells.close()  # orderly: on disk
    (tmp_path / "boot").write_text("a third")
    cells = StreamedCells(tmp_path / "cells", 1.0)
    assert read(cells) == Cell(b"v", 1000)
    cells.close()


def test_idle_it_is_on_disk_though_nobody_closes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_file, "_IDLE_S", 0.05)
    cells, mark = StreamedCells(tmp_path / "cells", 1.0), tmp_path / "cells-turn"
    put(cells)
    assert mark.read_bytes()
    until = time.monotonic() + 10
    while mark.read_bytes() and time.monotonic() < until:
        time.sleep(0.02)
    assert not mark.read_bytes()
    put(cells, stamp=2000)
    assert mark.read_bytes()
    cells.close()
    assert not mark.read_bytes()


def test_without_a_known_boot_every_commit_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(turn, "_BOOT", tmp_path / "nowhere")
    cells = StreamedCells(tmp_path / "cells", 1.0)
    put(cells)
    assert read(cells) == Cell(b"v", 1000) and not (tmp_path / "cells-turn").read_bytes()
    cells.close()


def test_a_store_made_anew_has_none_of_the_old_ones_cells(tmp_path):
    path = tmp_path / "store.db"
    for _ in range(2):
        store = SqliteStore(path)
        assert store.read_features(["r"], "stream", ["a"]) == [{}]
        store.write_features([FeatureWrite("r", "stream", "a", Cell(b"x", 1000))])
        store.close()
        for file in tmp_path.glob("store.db*"):
            if "stream" not in file.name:
                file.unlink()
    assert len(list(tmp_path.glob("store.db-stream-????????"))) == 1
