"""The stream in one go, without Java and servers: a small history, a collector, the streaming job on Prism, live events, and a
visitor whose features are watched while they act.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np

from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs.demo_visit import Probes, Step, Visit
from beam_pipelines.options import Config
from beam_pipelines.services import prism
from beam_pipelines.services.ports import free_port
from beam_pipelines.services.process import Process, poll, start
from beam_pipelines.simulate.send import LiveReport, Pace
from beam_pipelines.simulate.send import run as send_live
from beam_pipelines.simulate.targets import HttpTarget
from beam_pipelines.simulate.world import World, WorldSpec
from beam_pipelines.typed import program, short
from schemas.cells import RankedList, encode_recs
from schemas.keys import list_key
from schemas.workspace import DAY_MICROS
from serving.asking import Asker
from serving.features import FeatureReader
from serving.ladder import ANYONE
from serving.stores import open_store
from serving.stores.base import Active, Cell, ListWrite, Store
from serving.versions import HOMEPAGE

FOLDER = "demo-stream"
SPEC = WorldSpec(users=2_000, items=300, days=7)
STARTED_S = 90.0
"""How long the collector and the job may take to come up."""
LIVE_S = 20.0
"""How long events come in at least."""
LISTED, KEPT_DAYS = 100, 7
JOB = "demo"
BUCKETS = ("--readers", "1", "--user-buckets", "2", "--item-buckets", "1")
"""Prism spends its time on each bucket, not on each event."""


@dataclass
class StreamDemo:
    """What ``beamrec demo --stream`` did and saw.

    Attributes:
      workspace: where it happened.
      history: events stored before the live ones; started_s: until collector and job were up.
      visitor: the user who acted; steps: what they did, and when it could be read.
      live: the simulated events beside them, as sent and accepted.
      stored, duplicates, late: of all live events, as the job counted them; refused: by the collector.
      probes: how many events were timed, lost: of them not readable in time; probed: sent, the first to warm up.
      freshness_p50_s, freshness_p99_s, freshness_max_s: of the probes, from accepted to readable.
      commands: what to type next.
    """

    workspace: str
    history: int
    visitor: str
    started_s: float = 0.0
    seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)
    live: LiveReport = field(default_factory=LiveReport)
    stored: int = 0
    duplicates: int = 0
    late: int = 0
    refused: int = 0
    probed: int = 0
    probes: int = 0
    lost: int = 0
    freshness_p50_s: float | None = None
    freshness_p99_s: float | None = None
    freshness_max_s: float | None = None
    commands: list[str] = field(default_factory=list)


def run(config: Config, rate: float, say: Callable[[str], None], on_step: Callable[[Step], None]) -> StreamDemo:
    """Runs it, about a minute.

    Args:
      config: its workspace is used when it is empty or holds an earlier demo of this kind; else a folder beside it.
      rate: simulated events per second.
      say: told what goes on, a line at a time.
      on_step: told each step of the visitor when its effect could be read.

    Raises:
      UserError: no Prism, or a process does not come up; names its log.
    """
    began = time.monotonic()
    config = _workspace_for(config, say)
    with ThreadPoolExecutor(1) as pool:  # Go builds Prism while the history is made
        built = None if prism.is_here() else pool.submit(prism.build, say)
        history = _history(config, say)
        if built is not None:
            built.result()
    root = config.workspace.root
    demo = StreamDemo(str(root), history, f"visitor-{int(time.time()):x}")
    with _running(config, say) as (url, started), _opened(config) as (store, lists):
        _publish_popular(config, store)
        started()
        demo.started_s = time.monotonic() - began
        say(f"up after {demo.started_s:.0f} s; {rate:g} simulated events/s come in beside {demo.visitor}")
        _live(config, url, rate, demo, store, lists, on_step)
        _count(store, demo)
    demo.seconds = time.monotonic() - began
    demo.commands = _commands(root, demo.visitor)
    return demo


def _live(config: Config, url: str, rate: float, demo: StreamDemo, store: Store, lists: Asker,
          on_step: Callable[[Step], None]) -> None:
    """The visitor and the probes, while simulated events come in."""
    stop = threading.Event()
    world = World.from_seed(_spec(config))

    def crowd() -> None:
        demo.live = send_live(world, HttpTarget(url), Pace(rate, batch=50, connections=2), stop, quiet=True)

    features = FeatureReader(JOB)
    thread = threading.Thread(target=crowd, name="crowd")
    with httpx.Client(base_url=url, timeout=30) as client, Probes(store, url, demo.visitor) as probes:
        if not poll(probes.came_through, STARTED_S):
            raise UserError(f"no event came through in {STARTED_S:.0f} s; the logs are in {config.workspace.root / FOLDER}")
        thread.start()
        began = time.monotonic()
        try:
            for step in Visit(client, store, features, lists, demo.visitor, config.workspace.now).steps():
                demo.steps.append(step)
                on_step(step)
            stop.wait(max(0.0, LIVE_S - (time.monotonic() - began)))
        finally:
            stop.set()
            thread.join()
    taken = probes.seconds
    demo.probed, demo.probes, demo.lost = probes.sent, len(taken) + probes.lost, probes.lost
    if taken:
        p50, p99, most = (float(f"{np.percentile(taken, q):.3g}") for q in (50, 99, 100))
        demo.freshness_p50_s, demo.freshness_p99_s, demo.freshness_max_s = p50, p99, most


def _count(store: Store, demo: StreamDemo) -> None:
    """What the job says of all of them, once it has read them."""
    from beam_pipelines.io.stream_status import read_status
    from schemas.metric_names import EVENTS_ACCEPTED, EVENTS_DUPLICATE, EVENTS_LATE

    sent = demo.live.accepted + demo.probed + sum(step.accepted for step in demo.steps)
    counters: dict[str, int] = {}

    def settled() -> bool:
        counters.update((read_status(store, JOB) or {}).get("counters", {}))
        return sum(counters.get(name, 0) for name in (EVENTS_ACCEPTED, EVENTS_DUPLICATE, EVENTS_LATE)) >= sent

    poll(settled, STARTED_S, 0.5)
    demo.stored, demo.duplicates = counters.get(EVENTS_ACCEPTED, 0), counters.get(EVENTS_DUPLICATE, 0)
    demo.late, demo.refused = counters.get(EVENTS_LATE, 0), sum(1 for step in demo.steps if step.refused)


def _workspace_for(config: Config, say: Callable[[str], None]) -> Config:
    asked = config.workspace.root
    for root in (asked, asked.with_name(f"{asked.name}-stream")):
        if (root / FOLDER).is_dir() or not (root / "lake").exists():
            if root == asked:
                return config
            there = Config.of(root)
            say(f"{short(asked)} holds other data, so this goes to {short(root)}")
            return replace(config, workspace=there.workspace, lake=there.lake, store=there.store)
    raise UserError(f"{short(asked)} and {short(asked)}-stream hold other data; name an empty folder with --workspace DIR "
                    "(make demo-stream WORKSPACE=DIR)")


def _spec(config: Config) -> WorldSpec:
    """The world of the workspace, up to yesterday."""
    from beam_pipelines.simulate.write import spec_of

    today = time.time_ns() // 1000 // DAY_MICROS
    held = spec_of(config)
    if held is None:
        first = datetime.fromtimestamp((today - SPEC.days) * 86_400, UTC)
        return replace(SPEC, start=f"{first:%Y-%m-%d}", seed=config.seed)
    return replace(held, days=max(held.days, today - held.first // DAY_MICROS))


def _history(config: Config, say: Callable[[str], None]) -> int:
    """Simulates the days up to yesterday and computes their batch features; what is done is not done again."""
    from beam_pipelines.jobs import features
    from beam_pipelines.simulate.write import simulate

    (config.workspace.root / FOLDER).mkdir(parents=True, exist_ok=True)
    spec = _spec(config)
    report = simulate(replace(config, quiet=True), spec)
    config.workspace.run_clock()
    lake = Lake.open(config.lake, config.catalog)
    stored = sum(f.rows for f in lake.files("events"))
    say(f"history: {stored:,} events of {spec.users:,} users and {spec.items:,} items in {spec.days} days"
        + ("" if report.already else f", simulated in {report.seconds:.1f} s"))
    as_of = spec.first + spec.days * DAY_MICROS
    if as_of not in lake.days("user_snapshots"):
        made = features.run(replace(config, quiet=True), as_of)
        say(f"batch features as of yesterday's end: {made.users:,} users, {made.items:,} items, {made.seconds:.1f} s")
    return stored


def _publish_popular(config: Config, store: Store) -> None:
    """The most popular items as everybody's list: what a user without a list of their own is shown."""
    spec = _spec(config)
    as_of = spec.first + spec.days * DAY_MICROS
    version = f"{datetime.fromtimestamp(as_of // 1_000_000, UTC):%Y%m%d}-popular"
    active = store.active(HOMEPAGE)
    if active is not None and active.champion == version:
        return
    snapshot = Lake.open(config.lake, config.catalog).read("item_snapshots", ("item_id", "popularity_7d"), as_of,
                                                           as_of + DAY_MICROS)
    score = snapshot["popularity_7d"].fill_null(0).to_numpy().astype(np.float32)
    ids = snapshot["item_id"].to_numpy(zero_copy_only=False)
    best = np.lexsort((ids, -score))[:LISTED]
    recs = RankedList([str(ids[i]) for i in best], score[best] / max(1.0, float(score.max(initial=0))),
                      ["popular"] * len(best), ["popular"] * len(best), [""] * len(best), "popular", as_of,
                      as_of + KEPT_DAYS * DAY_MICROS)
    store.write_lists([ListWrite(list_key(ANYONE, HOMEPAGE), version, Cell(encode_recs(recs), as_of))])
    store.flip(HOMEPAGE, active, Active(version, previous=active.champion if active else None))


@contextmanager
def _opened(config: Config) -> Iterator[tuple[Store, Asker]]:
    store = open_store(config.store)
    lists = Asker(config.store, config.workspace.bundles, config.workspace.now, JOB)
    try:
        yield store, lists
    finally:
        lists.close()
        store.close()


@contextmanager
def _running(config: Config, say: Callable[[str], None]) -> Iterator[tuple[str, Callable[[], None]]]:
    """A collector and the streaming job as processes of their own, killed with this one: the collector's address, and a
    function that waits for the job."""
    root = config.workspace.root
    folder = root / FOLDER
    beamrec = [sys.executable, "-m", "beam_pipelines.cli.main"]
    common = ["--workspace", str(root), "--store", config.store, "--quiet"]
    log = f"dir:{folder / 'log'}"
    running: list[Process] = []
    # The job would start one itself, but here it is ended with the rest, in whatever way the job ends.
    server = prism.Prism(folder / "services" / "prism", free_port(), parent=os.getpid())
    try:
        server.start()
        for old in folder.glob("log*"):  # of an earlier demo: its events would be read, and counted, again
            shutil.rmtree(old)
        (folder / "collect.log").unlink(missing_ok=True)
        running.append(start(folder, "collect", [*beamrec, "collect", "--port", "0", "--log", log, *common],
                             parent=os.getpid()))
        running[0].wait_ready(lambda: _address(folder / "collect.log") is not None, STARTED_S, "the collector")
        url = _address(folder / "collect.log") or ""
        since = time.time_ns() // 1000
        job = [*beamrec, "stream", "--log", log, "--name", JOB, *BUCKETS, *common, "--services", str(folder / "services")]
        running.append(start(folder, "stream", job, parent=os.getpid()))
        say(f"started: collector at {url}, streaming job on Prism; their logs are in {short(folder)}")

        def started() -> None:
            with _opened(config) as (store, _):
                def beats() -> bool:
                    status = FeatureReader(JOB, 0).status(store)
                    return status is not None and status.written_at >= since

                running[1].wait_ready(beats, STARTED_S, "the streaming job")

        yield url, started
    finally:
        for process in reversed(running):
            process.stop()
        server.stop()


def _address(log: Path) -> str | None:
    """Where the collector listens and answers, by its log; None while it does not."""
    try:
        lines = log.read_text().splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("event") == "listening":
            try:
                return str(entry["url"]) if httpx.get(f"{entry['url']}/readyz").status_code == 200 else None
            except httpx.TransportError:
                return None
    return None


def _commands(root: Path, visitor: str) -> list[str]:
    """What to type next: the same by hand, each in a terminal of its own."""
    here = short(root)
    flags = "" if here == "workspace" else f" --workspace {here}"
    beamrec = program()
    return [f"{beamrec} collect{flags}", f"{beamrec} stream --log dir:{here}/log{flags}",
            f"{beamrec} simulate --rate 500 --to http://127.0.0.1:8000{flags}",
            f"{beamrec} show user {visitor} --watch{flags}", f"{beamrec} stream --status{flags}"]
