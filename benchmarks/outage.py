"""Losing what a request depends on, one by one and together, under load: is every answer a full page, in time?

A 'beamrec serve' of two workers answers listed users (four of five), users whose list is broken or expired, and users that
nobody knows, while real faults come and go:

  lists, features   their tables are renamed away: the statements fail
  page              the root page of the lists is overwritten: the database is malformed
  store             the database file is moved away
  stream_file       the file of the stream's features is: workers read on in the one that they have open
  index             a version is flipped to whose index cannot be read
  store_and_index   both
  bigtable          the emulator's process is stopped: every call hangs (skipped where it is not installed)

Listed users have just purchased the best items of their list: shown_again counts answers that show one of them and do not say
that the user's features could not be read (signals missing, counted beside).

After each fault that is taken away the drill waits until lists come from the store again, without anybody doing anything:
recovered_s. p99_ms is over all requests of all faults and counts from when a request was due; deadline_ms is the sum of the
deadlines of the homepage's policy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from beam_pipelines.errors import UserError
from beam_pipelines.progress import Stage
from beam_pipelines.services import bigtable
from benchmarks.serve import serving
from benchmarks.serve_checked import PAGE, Answered, CheckedLoad, percentile, wait_until_ready
from benchmarks.serve_world import ServeWorld, user_id
from schemas.cells import RankedList, decode_recs, encode_recs
from schemas.keys import USER, list_key, row_key, suppressed_group
from schemas.stream_cells import encode_suppression
from serving.ranking.policy import load
from serving.stores import open_store
from serving.stores.base import Active, Cell, FeatureWrite, ListWrite

RECOVER_S = 10.0
PURCHASED = 3
Fault = Callable[[], contextlib.AbstractContextManager[None]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--work", default=".bench/outage", metavar="DIR", help="data (default: .bench/outage)")
    parser.add_argument("--users", type=int, default=20_000, help="default: 20,000; over Bigtable a tenth")
    parser.add_argument("--items", type=int, default=8_000, help="default: 8,000")
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second (default: 300)")
    parser.add_argument("--seconds", type=float, default=4.0, help="that a fault lasts (default: 4)")
    parser.add_argument("--workers", type=int, default=2, help="of the server (default: 2)")
    parser.add_argument("--store", choices=("both", "sqlite", "bigtable"), default="both", help="default: both")
    parser.add_argument("--faults", metavar="NAMES", help="only these, with commas (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Runs the drill and prints what came of it; 1 where a page was empty, not 200, late, or something did not recover."""
    work = Path(args.work).absolute()
    faults: dict[str, dict[str, Any]] = {}
    answers: list[Answered] = []
    if args.store != "bigtable":
        world = ServeWorld.make(work / "sqlite", args.users, args.items, versions=2)
        _spoil(world)
        with _broken_index(world):
            _drill(args, world, _sqlite_faults(world), faults, answers)
    if args.store != "sqlite":
        try:
            with tempfile.TemporaryDirectory(prefix="beamrec-outage-") as folder, bigtable.running(Path(folder)) as emulator:
                os.environ.update(emulator.environment)
                world = ServeWorld.make(work / "bigtable", args.users // 10, args.items, 2, "bigtable://bench/outage")
                _spoil(world)
                process = emulator.process
                assert process is not None
                _drill(args, world, {"bigtable": lambda: _stopped(process.pid)}, faults, answers)
        except UserError as error:
            print(f"bigtable skipped: {error}", file=sys.stderr)
    result = _result(faults, answers)
    wrong = [result[name] for name in ("shown_again", "empty", "short", "non_200")]
    good = not any(wrong) and result["p99_ms"] <= result["deadline_ms"] and all(
        f["recovered_s"] is not None for f in faults.values())
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        for name, found in faults.items():
            recovered = "never" if found["recovered_s"] is None else f"after {found['recovered_s']:.2f} s"
            print(f"{name:<16} {found['requests']:>6,} answers, {found['empty']} empty, {found['non_200']} not 200, "
                  f"{found['signals_missing']} without signals, {found['shown_again']} show what was purchased, p99 "
                  f"{found['p99_ms']:.1f} ms, recovered {recovered}; {found['tiers']}")
        print(f"all of them: p99 {result['p99_ms']:.1f} ms, deadline {result['deadline_ms']:.0f} ms")
    return 0 if good else 1


def _drill(args: argparse.Namespace, world: ServeWorld, wanted: dict[str, Fault], faults: dict[str, dict[str, Any]],
           answers: list[Answered]) -> None:
    if args.faults:
        wanted = {name: fault for name, fault in wanted.items() if name in args.faults.split(",")}
    purchased = _purchase(world)
    with serving(world, args.workers) as server, Stage(f"bench outage {world.store.partition(':')[0]}", len(wanted) + 1,
                                                       args.quiet) as stage:
        wait_until_ready(server.url)
        counter = itertools.count()
        drill = CheckedLoad(server.url, lambda rng: _user(rng, counter, world.users), lambda _: None, args.rate,
                            hidden_of=purchased.__getitem__)
        asyncio.run(_faults(drill, wanted, args.seconds, faults, stage))
        answers.extend(drill.answers)


async def _faults(drill: CheckedLoad, wanted: dict[str, Fault], seconds: float, faults: dict[str, dict[str, Any]],
                  stage: Stage) -> None:
    running = asyncio.create_task(drill.run())
    try:
        await asyncio.sleep(seconds)
        faults["none"] = faults.get("none") or _figures(drill.answers, 0.0)
        stage.advance(1)
        for name, fault in wanted.items():
            first = len(drill.answers)
            made = fault()
            await asyncio.to_thread(made.__enter__)  # a fault may wait for a lock; the load goes on
            try:
                await asyncio.sleep(seconds)
            finally:
                await asyncio.to_thread(made.__exit__, None, None, None)
            cleared = time.monotonic()
            recovered = await _recovery(drill, cleared)
            faults[name] = _figures(drill.answers[first:], recovered)
            await asyncio.sleep(0.5)
            stage.advance(1)
    finally:
        drill.stop()
        await running


async def _recovery(drill: CheckedLoad, cleared: float) -> float | None:
    """Seconds until every connection got a listed user's list of the store again, the index's users one made on demand."""
    waiting = set(range(drill.connections))
    looked = len(drill.answers)
    while time.monotonic() - cleared < RECOVER_S:
        await asyncio.sleep(0.02)
        fresh, looked = drill.answers[looked:], len(drill.answers)
        waiting -= {a.connection for a in fresh if a.sent >= cleared and a.tier == "list"}
        if not waiting:
            return time.monotonic() - cleared
    return None


def _user(rng: random.Random, counter: Iterator[int], users: int) -> str:
    """Of ten: eight listed users, one whose list is spoiled (each once in a while), one that nobody knows."""
    kind = rng.randrange(10)
    if kind == 0:
        return f"stranger-{rng.randrange(1_000_000)}"
    if kind == 1:
        return user_id(users // 2 + next(counter) % (users - users // 2))
    return user_id(rng.randrange(users // 2))


def _purchase(world: ServeWorld) -> defaultdict[str, frozenset[str]]:
    """Suppresses the PURCHASED best items of the lists, of each version, of the users with a good one; by user."""
    users = [user_id(n) for n in range(world.users // 2)]
    found: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
    now = world.workspace.now()
    store = open_store(world.store)
    try:
        for version in world.versions:
            for start in range(0, len(users), 1000):
                part = users[start : start + 1000]
                cells = store.read_lists([list_key(user, "homepage") for user in part], version)
                for user, cell in zip(part, cells, strict=True):
                    if cell is not None:
                        found[user] |= frozenset(decode_recs(cell.value).item_ids[:PURCHASED])
        cell = Cell(encode_suppression(now), now)
        store.write_features(FeatureWrite(row_key(USER, user), "stream", suppressed_group(item), cell)
                             for user, items in found.items() for item in sorted(items))
    finally:
        store.close()
    return found


def _spoil(world: ServeWorld) -> None:
    """Makes the lists of the second half of the users expired or, of every other one, unreadable."""
    now = world.workspace.now()
    store = open_store(world.store)
    try:
        for version in world.versions:
            rows = [list_key(user_id(n), "homepage") for n in range(world.users // 2, world.users)]
            for start in range(0, len(rows), 1000):
                part = rows[start : start + 1000]
                found = store.read_lists(part, version)
                store.write_lists(ListWrite(row, version, Cell(_expired(cell.value, now) if n % 2 else b"\x01\x02", now + 1000))
                                  for n, (row, cell) in enumerate(zip(part, found, strict=True)) if cell is not None
                                  and len(cell.value) > 2)
    finally:
        store.close()


def _expired(value: bytes, now: int) -> bytes:
    recs = decode_recs(value)
    return encode_recs(RankedList(recs.item_ids, recs.scores, recs.sources, recs.reasons, recs.source_item_ids,
                                  recs.model_version, recs.generated_at, now - 1))


@contextlib.contextmanager
def _broken_index(world: ServeWorld) -> Iterator[None]:
    """The second version's index cannot be read; nothing else is wrong with its bundle."""
    manifest = world.workspace.bundles / world.versions[1] / "index" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[: len(whole) // 2])
    try:
        yield
    finally:
        manifest.write_bytes(whole)


def _sqlite_faults(world: ServeWorld) -> dict[str, Fault]:
    path = world.workspace.store

    @contextlib.contextmanager
    def tables_away(*names: str) -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(path, timeout=30, check_same_thread=False)) as connection:
            for name in names:
                connection.execute(f"ALTER TABLE {name} RENAME TO {name}_away")
            try:
                yield
            finally:
                for name in names:
                    connection.execute(f"ALTER TABLE {name}_away RENAME TO {name}")

    @contextlib.contextmanager
    def page_overwritten() -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(path, timeout=30, check_same_thread=False)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            size = int(connection.execute("PRAGMA page_size").fetchone()[0])
            root = int(connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'recommendations'").fetchone()[0])
        with path.open("r+b") as file:
            file.seek((root - 1) * size)
            whole = file.read(size)
            file.seek((root - 1) * size)
            file.write(bytes(size))
            file.flush()
            try:
                yield
            finally:
                file.seek((root - 1) * size)
                file.write(whole)

    @contextlib.contextmanager
    def moved_away() -> Iterator[None]:
        away = path.with_suffix(".away")
        path.rename(away)
        try:
            yield
        finally:
            away.rename(path)

    @contextlib.contextmanager
    def stream_away() -> Iterator[None]:
        file = next(f for f in path.parent.glob(f"{path.name}-stream-*") if f.stat().st_size > 1 << 20)
        file.rename(away := file.with_name("away"))
        try:
            yield
        finally:
            away.rename(file)

    @contextlib.contextmanager
    def flipped() -> Iterator[None]:
        store = open_store(world.store, create=False, patient=True)
        try:
            before = store.active("homepage")
            assert before is not None and store.flip("homepage", before, Active(world.versions[1], previous=before.champion))
            try:
                yield
            finally:
                store.flip("homepage", store.active("homepage"), before)
        finally:
            store.close()

    @contextlib.contextmanager
    def both() -> Iterator[None]:
        with flipped():
            time.sleep(0.5)  # seen by the workers before they lose the store
            with moved_away():
                yield

    return {"lists": lambda: tables_away("recommendations"),
            "features": lambda: tables_away("features_batch"),
            "page": page_overwritten, "store": moved_away, "stream_file": stream_away, "index": flipped,
            "store_and_index": both}


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """A process that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _figures(answers: list[Answered], recovered: float | None) -> dict[str, Any]:
    good = [a for a in answers if a.status == 200]
    return {"requests": len(answers), "empty": sum(not a.items for a in good), "short": sum(0 < a.items < PAGE for a in good),
            "non_200": len(answers) - len(good), "signals_missing": sum(a.signals == "missing" for a in good),
            "shown_again": sum(a.hidden > 0 and a.signals != "missing" for a in good),
            "p50_ms": round(percentile([a.ms for a in answers], 0.5), 2),
            "p99_ms": round(percentile([a.ms for a in answers], 0.99), 2),
            "max_ms": round(max((a.ms for a in answers), default=0), 2),
            "tiers": dict(Counter(a.tier for a in good).most_common()),
            "slow_from_s": [round(a.due - answers[0].due, 2) for a in answers if a.ms > 150][:8],
            "recovered_s": None if recovered is None else round(recovered, 3)}


def _result(faults: dict[str, dict[str, Any]], answers: list[Answered]) -> dict[str, Any]:
    total = _figures(answers, 0.0)
    del total["recovered_s"]
    return {**total, "deadline_ms": sum(load().of("homepage").deadlines_ms), "faults": faults,
            "details": [a.detail for a in answers if a.status != 200][:3]}
