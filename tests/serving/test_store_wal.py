"""SQLite's write-ahead log under a job that never stops writing: bounded, and no commit waits for a checkpoint of its own."""

import threading

import pytest

from serving.stores import wal
from serving.stores.columns import cell_batch
from serving.stores.sqlite import SqliteStore

PAGE = 16_384


@pytest.fixture
def often(monkeypatch):
    """Checkpoints as often as a small test writes."""
    monkeypatch.setattr(wal, "AFTER_CELLS", 400)
    monkeypatch.setattr(wal, "LONGEST_PAGES", 200)


def rows(begin, count):
    return [f"{i % 256:02x}#u#{i}" for i in range(begin, begin + count)]


def write(store, rounds, writer):
    for n in range(rounds):
        keys = rows(writer * 100_000 + n % 10 * 400, 400)
        cells = cell_batch(keys, ["user_day"] * 400, [b"%d" % n + b"x" * 300] * 400, [(n + 1) * 1000] * 400)
        store.write_cells("batch", cells)


def test_the_log_stays_bounded_while_two_jobs_write(tmp_path, often):
    path = tmp_path / "store.db"
    stores = [SqliteStore(path), SqliteStore(path)]
    threads = [threading.Thread(target=write, args=(store, 120, n)) for n, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pages = (tmp_path / "store.db-wal").stat().st_size / PAGE
    written = 2 * 120 * 256  # at least: every write changes a page of each of the 256 prefixes, or nearly so
    assert pages < written / 2
    for n, store in enumerate(stores):
        found = store.read_features(rows(n * 100_000, 400), "batch", ["user_day"])
        assert {cells["user_day"].value[:3] for cells in found} == {b"110"}
        store.close()


def test_a_commit_of_a_job_leaves_checkpoints_to_the_thread(tmp_path):
    store = SqliteStore(tmp_path / "store.db")
    write(store, 1, 0)
    assert store._read("PRAGMA wal_autocheckpoint")[0][0] == wal.BACKSTOP_PAGES
    store.close()


def test_a_reader_that_stays_holds_up_no_writer_for_long(tmp_path, often):
    store, reader = SqliteStore(tmp_path / "store.db"), SqliteStore(tmp_path / "store.db")
    write(store, 1, 0)
    connection = reader._connection()
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM features_batch").fetchone()
    done = threading.Thread(target=write, args=(store, 60, 0))
    done.start()
    done.join(20)
    assert not done.is_alive()
    connection.execute("ROLLBACK")
    store.close()
    reader.close()


def test_a_store_closes_while_its_thread_checkpoints(tmp_path, often):
    store = SqliteStore(tmp_path / "store.db")
    write(store, 20, 0)
    store.close()
    assert "beamrec-wal" not in {thread.name for thread in threading.enumerate()}
