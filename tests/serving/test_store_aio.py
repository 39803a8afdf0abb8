"""What is the asynchronous stores' own: deadlines, a loop that goes on meanwhile, a store that goes away and comes back."""

import asyncio
import itertools
import os
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from flaky import ANSWER, BREAK, CALL, Flaky, between

from schemas.keys import USER, row_key
from serving.stores import StoreError, StoreUriError, open_store
from serving.stores.aio import DeadlineError, open_async
from serving.stores.base import Active, Cell, FeatureWrite, ListWrite
from serving.stores.sqlite_file import SEEN_S
from serving.stores.sqlite_row import Wanted

NAMES = itertools.count()
ANN = row_key(USER, "ann")


@pytest.fixture
def bigtable(bigtable_emulator, monkeypatch):
    for name, value in bigtable_emulator.environment.items():
        monkeypatch.setenv(name, value)
    return f"bigtable://test/aio-{os.getpid()}-{next(NAMES)}"


@pytest.fixture(params=["sqlite", "bigtable"])
def uri(request, tmp_path):
    """A store with some cells of ann."""
    made = f"sqlite:{tmp_path / 'store.db'}" if request.param == "sqlite" else request.getfixturevalue("bigtable")
    store = open_store(made)
    store.write_features([FeatureWrite(ANN, family, group, Cell(f"{family} {group}".encode(), 1000))
                          for family in ("batch", "stream") for group in ("a", "b", "s:1", "s:2", "user")])
    store.close()
    return made


def run(uri, work):
    async def all_of_it():
        store = open_async(uri)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(all_of_it())


def test_a_row_is_read_in_one_round_as_family_by_family(uri):
    wanted = {"batch": ["a", "absent"], "stream": ["b", "s:*"], "meta": ["user"]}

    async def both(store):
        one = await store.read_row(ANN, wanted)
        return one, {f: (await store.read_features([ANN], f, g))[0] for f, g in wanted.items()}

    row, families = run(uri, both)
    assert row == families
    assert {f: set(c) for f, c in row.items()} == {"batch": {"a"}, "stream": {"b", "s:1", "s:2"}, "meta": set()}
    assert run(uri, lambda store: store.read_row("00#u#nobody", wanted)) == {"batch": {}, "stream": {}, "meta": {}}


def test_changes_at_once_are_all_in_the_cell(uri):
    def add(held):
        return Cell((held.value if held else b"") + b"x", held.timestamp if held else 1000)

    async def race(store):
        await asyncio.gather(*(store.change_cell(ANN, "batch", "sum", add, 30) for _ in range(20)))
        return (await store.read_features([ANN], "batch", ["sum"]))[0]["sum"]

    assert run(uri, race) == Cell(b"x" * 20, 1000)


def test_a_closed_store_refuses_and_a_wrong_uri_is_named(uri):
    async def closed(store):
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.active("homepage")

    run(uri, closed)
    for wrong in ("sqlite:", "store.db", "bigtable://p", "bigtable://p/i?speed=1"):
        with pytest.raises(StoreUriError):
            run(wrong, None)


def test_a_slow_read_of_sqlite_ends_at_its_deadline_and_the_store_goes_on(tmp_path):
    uri = f"sqlite:{tmp_path / 'store.db'}"
    store = open_store(uri)
    store.write_features(FeatureWrite(ANN, "stream", f"s:{i:07}", Cell(b"x", i * 1000)) for i in range(100_000))

    async def read(opened):
        started = time.monotonic()
        with pytest.raises(DeadlineError):
            await opened.read_row(ANN, {"stream": ["s:*"]}, timeout=0.001)
        took = time.monotonic() - started
        return took, await opened.read_features([ANN], "stream", ["s:0000001"], 1.0)

    took, cells = run(uri, read)
    assert took < 0.2 and cells == [{"s:0000001": Cell(b"x", 1000)}]
    store.close()


def test_a_write_that_waits_for_another_writer_does_not_hold_the_loop(tmp_path):
    uri, path = f"sqlite:{tmp_path / 'store.db'}", tmp_path / "store.db"
    open_store(uri).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def write(store):
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        beating = asyncio.get_running_loop().create_task(beat())
        with pytest.raises(DeadlineError):
            await store.write_features([FeatureWrite(ANN, "batch", "a", Cell(b"x", 1000))], timeout=0.2)
        assert await store.read_features([ANN], "batch", ["a"]) == [{}]  # reads go on
        beating.cancel()
        other.execute("COMMIT")
        await store.write_features([FeatureWrite(ANN, "batch", "a", Cell(b"y", 2000))], timeout=5)
        assert await store.read_features([ANN], "batch", ["a"]) == [{"a": Cell(b"y", 2000)}]
        return beats

    assert run(uri, write) >= 5
    other.close()


def test_a_file_that_goes_away_and_comes_back_is_found_again(tmp_path):
    uri, path = f"sqlite:{tmp_path / 'store.db'}", tmp_path / "store.db"

    async def live(store):
        with pytest.raises(StoreError, match="no store"):
            await store.active("homepage")
        assert not path.exists()  # a reader makes none
        made = open_store(uri)
        made.flip("homepage", None, Active("v1"))
        made.close()
        await asyncio.sleep(0.15)
        assert await store.active("homepage") == Active("v1")
        path.rename(tmp_path / "away.db")
        with pytest.raises(StoreError):
            await store.active("homepage")
        (tmp_path / "away.db").rename(path)
        await asyncio.sleep(0.15)
        assert await store.active("homepage") == Active("v1")
        assert await store.write_lists([ListWrite("row", "v1", Cell(b"l", 1000))]) == 1

    run(uri, live)


def test_a_file_that_was_removed_is_read_no_longer_than_it_counts_as_seen(tmp_path):
    path = tmp_path / "store.db"
    made = open_store(f"sqlite:{path}")
    made.write_features([FeatureWrite(ANN, "batch", "a", Cell(b"x", 1000))])
    made.close()

    async def read(store):
        wanted = Wanted.of({"batch": ["a"], "stream": ["b"]})
        for _ in range(3):
            assert store.read_user(ANN, wanted, "row", "v1", 1.0).cells() == {"batch": {"a": Cell(b"x", 1000)}, "stream": {}}
        path.rename(tmp_path / "away.db")
        await asyncio.sleep(SEEN_S)
        with pytest.raises(StoreError, match="removed"):
            store.read_user(ANN, wanted, "row", "v1", 1.0)

    run(f"sqlite:{path}", read)


@pytest.mark.parametrize("fault", [CALL, ANSWER, BREAK])
def test_calls_to_bigtable_that_fail_on_the_way_are_tried_again(bigtable, bigtable_emulator, monkeypatch, fault):
    with between(bigtable_emulator.address) as (proxy, address):
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", address)
        open_store(bigtable).close()
        writes = [FeatureWrite(row_key(USER, f"u{i}"), "batch", "a", Cell(b"x", 1000)) for i in range(1500)]
        rows = [w.row for w in writes]

        async def work(store):
            proxy.faults["MutateRows"].extend([fault, fault])
            assert await store.write_features(writes, 20) == 1500
            proxy.faults["ReadRows"].extend([fault, fault])
            assert await store.read_features(rows, "batch", ["a"], 20) == [{"a": Cell(b"x", 1000)}] * 1500
            proxy.faults["CheckAndMutateRow"].append(fault)
            assert await store.flip("homepage", None, Active("v1"))
            proxy.faults["CheckAndMutateRow"].append(fault)
            assert await store.flip("homepage", Active("v1"), Active("v2", previous="v1"))
            assert await store.active("homepage") == Active("v2", previous="v1")
            assert not await store.flip("homepage", Active("v1"), Active("v3"))
            proxy.faults["CheckAndMutateRow"].append(fault)
            grown = await store.change_cell(rows[0], "batch", "a", lambda held: Cell(b"longer", held.timestamp))
            assert grown == (await store.read_features(rows[:1], "batch", ["a"]))[0]["a"] == Cell(b"longer", 1000)
            proxy.faults["ReadRows"].extend([CALL] * 3)
            with pytest.raises(StoreError, match="UNAVAILABLE"):
                await store.active("homepage")

        run(bigtable, work)


def test_what_bigtable_refuses_is_said_and_the_rest_is_written(bigtable):
    open_store(bigtable).close()
    good = [FeatureWrite(row_key(USER, f"u{i}"), "batch", "a", Cell(b"x", 1000)) for i in range(5)]

    async def work(store):
        with pytest.raises(StoreError) as caught:
            await store.write_features([*good[:2], FeatureWrite("", "batch", "a", Cell(b"x", 1000)), *good[2:]])
        assert "u0" not in str(caught.value)
        await store.write_features(good)
        return await store.read_features([w.row for w in good], "batch", ["a"])

    assert run(bigtable, work) == [{"a": Cell(b"x", 1000)}] * 5


def test_a_bigtable_that_says_nothing_costs_its_deadline(bigtable, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", f"127.0.0.1:{silent.getsockname()[1]}")

        async def work(store):
            started = time.monotonic()
            with pytest.raises(StoreError):
                await store.read_lists(["row"], "v1", timeout=0.1)
            return time.monotonic() - started

        assert run(bigtable, work) < 1.0


def test_a_bigtable_that_comes_back_is_found_within_two_seconds(bigtable, bigtable_emulator, monkeypatch):
    open_store(bigtable).close()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("BIGTABLE_EMULATOR_HOST", f"127.0.0.1:{port}")

    async def work(store):
        for _ in range(20):  # the channel's pauses would grow to minutes
            with pytest.raises(StoreError):
                await store.active("homepage", timeout=0.2)
            await asyncio.sleep(0.05)
        server = grpc.server(ThreadPoolExecutor(4), handlers=[Flaky(bigtable_emulator.address)])
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        since = time.monotonic()
        try:
            while True:
                try:
                    assert await store.active("homepage", timeout=0.2) is None
                    return time.monotonic() - since
                except StoreError:
                    assert time.monotonic() - since < 10
                    await asyncio.sleep(0.05)
        finally:
            server.stop(0)

    assert run(bigtable, work) < 2.5


def test_without_bigtables_client_the_extra_is_named():
    """In a process of its own: here the client is loaded already."""
    script = ("import sys; sys.modules['google.cloud.bigtable_v2'] = None\n"
              "from serving.stores.aio import open_async\nopen_async('bigtable://p/i')")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).resolve().parents[2])
    assert "pip install 'beamrec[bigtable]'" in done.stderr
