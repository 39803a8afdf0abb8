"""Family ``stream`` of the embedded store: names of any kind, other writers, forks, and machines that stop."""

import fcntl
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.stores import streamed_file
from serving.stores.base import Cell, FeatureWrite, StoreError
from serving.stores.columns import cell_batch
from serving.stores.sqlite import SqliteStore
from serving.stores.streamed import StreamedCells

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
        assert {g: Cell(v, t) for g, t, v in cells.row(row, 1000)} == mine
        assert cells.read([row], (), (prefix,), until) == [{g: c for g, c in mine.items() if g.startswith(prefix)}]
    for group in {group for _, group in known}:
        assert dict(cells.scan(group)) == {r: c for (r, g), c in known.items() if g == group}
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
    monkeypatch.setattr(streamed_file, "_BOOT", tmp_path / "boot")
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
    cells, turn = StreamedCells(tmp_path / "cells", 1.0), tmp_path / "cells-turn"
    put(cells)
    assert turn.read_bytes()
    until = time.monotonic() + 10
    while turn.read_bytes() and time.monotonic() < until:
        time.sleep(0.02)
    assert not turn.read_bytes()
    put(cells, stamp=2000)
    assert turn.read_bytes()
    cells.close()
    assert not turn.read_bytes()


def test_without_a_known_boot_every_commit_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed_file, "_BOOT", tmp_path / "nowhere")
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
