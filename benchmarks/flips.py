"""Flips and rollbacks under load: does any answer mix versions, come empty, or fail; how long until everybody sees a flip?

Three versions with items of their own are served by two workers. Publishes of one version after another (POST /v1/models/flip),
canaries of half of the users that are promoted or rolled back, and rollbacks as 'beamrec rollback' does them follow each
other, while a load of pages and next pages looks at every item, explanation and title of every answer. A flip is done when
every connection got an answer from behind it; versions that are named again must have their bundles loaded anew.

  max_flip_s   from the start of the flip until the last connection saw it (of the call itself: max_call_s)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beam_pipelines.jobs import pointers
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from benchmarks.serve import serving
from benchmarks.serve_checked import Answered, CheckedLoad, percentile, post, wait_until_ready
from benchmarks.serve_world import ServeWorld, user_id
from serving.stores import open_store
from serving.stores.base import Active
from serving.versions import version_for

VERSIONS = 3
SEEN_WITHIN_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--work", default=".bench/flips", metavar="DIR", help="data (default: .bench/flips)")
    parser.add_argument("--flips", type=int, default=1000, metavar="N", help="flips and rollbacks (default: 1000)")
    parser.add_argument("--users", type=int, default=20_000, help="with lists in each version (default: 20,000)")
    parser.add_argument("--items", type=int, default=12_000, help="of all versions together (default: 12,000)")
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second (default: 400)")
    parser.add_argument("--workers", type=int, default=2, help="of the server (default: 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Runs the drill and prints what came of it; 1 where anything was mixed, empty, wrong or late."""
    work = Path(args.work).absolute()
    world = ServeWorld.make(work, args.users, args.items, VERSIONS)
    _write_manifests(world)
    with serving(world, args.workers) as server:
        wait_until_ready(server.url)
        result = asyncio.run(_Drill(world, server.url, args).run())
    good = not (result["mixed"] or result["empty"] or result["errors"] or result["late"]) and result["max_flip_s"] <= 1
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{result['flips']:,} flips, {result['requests']:,} answers: {result['mixed']} mixed, {result['empty']} empty, "
              f"{result['errors']} errors; seen by all within {result['median_flip_s']:.3f} s (median), "
              f"{result['max_flip_s']:.3f} s (slowest); answers p50 {result['p50_ms']:.1f} ms, p99 {result['p99_ms']:.1f} ms")
    return 0 if good else 1


def _write_manifests(world: ServeWorld) -> None:
    """As recommend and publish leave them: the gate let every version through."""
    world.workspace.lists.mkdir(exist_ok=True)
    for version in world.versions:
        report = {"surface": "homepage", "model_version": f"m-{version}", "users": world.users,
                  "items": world.items // VERSIONS, "as_of": world.workspace.now()}
        (world.workspace.lists / f"{version}.json").write_text(json.dumps({"report": report, "gate": {"checked_at": 0}}))


@dataclass
class _Seen:
    """A flip that is to be seen: the pointers before and after, when it was called, and the connections that have not shown
    it yet."""

    before: Active
    after: Active
    called: float
    waiting: set[int]
    done: asyncio.Event = field(default_factory=asyncio.Event)


class _Drill:
    def __init__(self, world: ServeWorld, url: str, args: argparse.Namespace) -> None:
        self._world, self._url, self._args = world, url, args
        self._config = Config.of(world.workspace.root, quiet=True)
        self._load = CheckedLoad(url, lambda rng: user_id(rng.randrange(world.users)), self._version_of, args.rate,
                                 connections=8, on_answer=self._answered)
        self._seen: _Seen | None = None
        self._calls: list[float] = []
        self._spans: list[float] = []
        self._late, self._all_saw = 0, 0.0

    def _version_of(self, item: str) -> str:
        return self._world.versions[int(item.removeprefix("item-")) % VERSIONS]

    async def run(self) -> dict[str, Any]:
        load = asyncio.create_task(self._load.run())
        rng = random.Random(1)
        kinds: dict[str, int] = {}
        try:
            await asyncio.sleep(1)
            with Stage("bench flips", self._args.flips, self._args.quiet) as stage:
                done = 0
                while done < self._args.flips:
                    for name, act in self._steps(rng):
                        await self._flip(act)
                        kinds[name] = kinds.get(name, 0) + 1
                        done += 1
                        stage.advance(1)
            await asyncio.sleep(0.5)
        finally:
            self._load.stop()
            await load
        return self._result(kinds)

    def _steps(self, rng: random.Random) -> list[tuple[str, Callable[[], Any]]]:
        """A publish, and what follows it; every step changes what some users see."""
        champion = self._active().champion
        second, third = rng.sample([v for v in self._world.versions if v != champion], 2)
        config, surface = self._config, "homepage"

        def api(action: str, **body: Any) -> Callable[[], Any]:
            return lambda: post(f"{self._url}/v1/models/{action}", body)

        return rng.choice([
            [("publish", api("flip", version=second)), ("rollback", lambda: pointers.rollback(config, surface))],
            [("publish", api("flip", version=second)), ("publish", api("flip", version=third)),
             ("rollback", api("rollback"))],
            [("canary", api("canary", version=second, percent=50)), ("promote", lambda: pointers.promote(config, surface)),
             ("rollback", api("rollback"))],
            [("canary", api("canary", version=third, percent=50)), ("rollback", lambda: pointers.rollback(config, surface))],
        ])

    def _active(self) -> Active:
        store = open_store(self._world.store, create=False)
        try:
            found = store.active("homepage")
        finally:
            store.close()
        assert found is not None
        return found

    async def _flip(self, act: Callable[[], Any]) -> None:
        before, self._seen = self._active(), None
        started = time.monotonic()
        await asyncio.to_thread(act)
        called = time.monotonic()
        seen = self._seen = _Seen(before, self._active(), called, set(range(self._load.connections)))
        async with asyncio.timeout(SEEN_WITHIN_S):
            await seen.done.wait()
        self._calls.append(called - started)
        self._spans.append(time.monotonic() - started)
        await asyncio.sleep(0.02)

    def _answered(self, answer: Answered) -> None:
        """A connection has seen a flip once a user whose version it changed gets the new one; from when all have, who gets the
        old one is late."""
        seen = self._seen
        if seen is None or answer.paged or answer.sent < seen.called or answer.status != 200:
            return
        old, new = version_for(seen.before, answer.user), version_for(seen.after, answer.user)
        if seen.done.is_set():
            self._late += answer.sent > self._all_saw and answer.version != new
        elif answer.version == new != old:
            seen.waiting.discard(answer.connection)
            if not seen.waiting:
                self._all_saw = time.monotonic()
                seen.done.set()

    def _result(self, kinds: dict[str, int]) -> dict[str, Any]:
        answers = self._load.answers
        good = [a for a in answers if a.status == 200]
        latencies = [a.ms for a in good]
        tiers: dict[str, int] = {}
        for answer in good:
            tiers[answer.tier] = tiers.get(answer.tier, 0) + 1
        return {
            "flips": sum(kinds.values()), "kinds": kinds, "requests": len(answers),
            "mixed": sum(a.mixed for a in good), "empty": sum(not a.items for a in good),
            "short": sum(0 < a.items < 20 for a in good), "errors": len(answers) - len(good),
            "max_flip_s": round(max(self._spans), 4), "median_flip_s": round(percentile(self._spans, 0.5), 4),
            "late": self._late, "max_call_s": round(max(self._calls), 4), "p50_ms": round(percentile(latencies, 0.5), 2),
            "p99_ms": round(percentile(latencies, 0.99), 2), "max_ms": round(max(latencies, default=0), 2),
            "tiers": tiers, "details": [a.detail for a in answers if a.status != 200][:3],
        }
