"""How fast the streaming job catches up: an event log of 6 hours of event time, read to its end, values in the embedded store.

``packed``: 1,000 events a record, user_panes and user_session (5-minute and 1-hour counts, sessions). ``single``: the same, an
event a record (Avro). ``full_job``: packed, every feature group of users and items. A rate is all events over the seconds from
the first batch counted to the last event in the state; the final write is ``drain_s``, and ``to_stored`` the rate with it.
Flink runs with checkpoints every 10 s. ``paced``: the full job on events of now, so many a second, writing each second what
changed.

``peers``, over the records of ``single`` in Kafka, store the same windows (5 minutes, 1 hour every 5 minutes, sessions; per
user): Flink SQL, Spark Structured Streaming, row-wise Beam. Their ``ratio`` is our ``single_to_stored_events_per_s`` over their
events_per_s. Ours counts by event type, drops copies, and keeps sliding windows as panes that readers sum; theirs count events
and write every sliding window. A slow engine gets fewer events of as many fewer users, so that windows are as full.

All results are compared with DuckDB over the same events (``equal``). ``where`` is the CPU of each stage on one core,
microseconds an event, in this process, so that it says where the time goes without a runner.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from beam_pipelines.errors import UserError
from beam_pipelines.jobs.stream_run import flags_of, launched
from beam_pipelines.options import Config, StreamConfig, runner_of
from beam_pipelines.runner import quiet_logs
from beam_pipelines.services import flink, kafka
from benchmarks.stream_feed import events_of, fill
from benchmarks.stream_paced import paced
from benchmarks.stream_peers import run as peers
from benchmarks.stream_peers.truth import WINDOWS, Truth
from benchmarks.stream_where import where
from benchmarks.synthetic import print_measured
from schemas.metric_names import EVENTS_ACCEPTED
from serving.stores import open_store

COMPARED = ("user_panes", "user_session")
KINDS = ("packed", "single", "full_job", "paced")
_WARM = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--events", type=int, default=5_000_000, help="in each log (default: 5,000,000)")
    parser.add_argument("--users", type=int, default=200_000, help="Zipf users (default: 200,000)")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--runner", default="flink", help="flink, prism or direct (default: flink)")
    parser.add_argument("--services", metavar="DIR", help="folder of 'beamrec services' (default: Flink is started for it)")
    parser.add_argument("--log", choices=("local", "kafka"), default="kafka", help="kind of event log (default: kafka)")
    parser.add_argument("--kafka", metavar="HOST:PORT", help="a broker that runs (default: one is started)")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"comma-separated (default: {','.join(KINDS)})")
    parser.add_argument("--peers", default=",".join(peers.NOTES), help="comma-separated, or none (default: all of "
                                                                       f"{','.join(peers.NOTES)}; they need Kafka)")
    parser.add_argument("--windows", default=",".join(WINDOWS), help=f"of the peers (default: {','.join(WINDOWS)})")
    parser.add_argument("--spark-events", type=int, default=1_000_000, help="for Spark, at most (default: 1,000,000)")
    parser.add_argument("--rowwise-events", type=int, default=100_000, help="for row-wise Beam, at most (default: 100,000)")
    parser.add_argument("--rate", type=int, default=20_000, help="of paced, events a second (default: 20,000)")
    parser.add_argument("--seconds", type=int, default=60, help="of paced (default: 60)")
    parser.add_argument("--work", metavar="DIR", help="where everything goes (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Runs every kind and every peer; exit code 1 when results differ."""
    return print_measured(args, measure)


@dataclass(frozen=True)
class Feeds:
    """Logs by what they hold; each is filled when it is first asked for."""

    args: argparse.Namespace
    work: Path
    broker: str | None
    made: dict[str, tuple[str, Truth]] = dataclasses.field(default_factory=dict)

    def get(self, events: int, single: bool) -> tuple[str, Truth]:
        """The URI of a log of so many events, and what is right for them; users are fewer as events are."""
        users = max(1, round(self.args.users * events / self.args.events))
        name = f"{'single' if single else 'packed'}-{events}-{users}"
        if name not in self.made:
            table, truth = self.table(events, users)
            uri = f"kafka://{self.broker}/{name}" if self.broker else f"dir:{(self.work / name).absolute()}/log"
            _tell(f"filling {uri}")
            fill(uri, table, single)
            self.made[name] = uri, truth
        return self.made[name]

    def table(self, events: int, users: int) -> tuple[pa.Table, Truth]:
        """Made again for each log rather than kept: 5 M events are 1 GB."""
        table = events_of(events, users, self.args.items)
        known = next((truth for name, (_, truth) in self.made.items() if name.endswith(f"-{events}-{users}")), None)
        return table, known or Truth(table["user_id"], np.asarray(table["occurred_at"].cast(pa.int64())))


def measure(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """The figures, by the names that ``--json`` prints."""
    kinds = [kind for kind in args.kinds.split(",") if kind]
    wanted = [] if args.peers in ("", "none") or args.log != "kafka" else args.peers.split(",")
    _check("--kinds", kinds, KINDS)
    _check("--peers", wanted, tuple(peers.NOTES))
    if "paced" in kinds and runner_of(args.runner) == "direct":
        raise UserError("--runner direct reads bounded input only: leave paced out of --kinds")
    quiet_logs()
    figures: dict[str, object] = {"events": args.events, "users": args.users, "runner": args.runner, "log": args.log,
                                  "flags": flags_of(StreamConfig(Config.of(work, runner=args.runner), ""))}
    equal = True
    with _broker(args, work) as broker:
        feeds = Feeds(args, work, broker)
        with _services(args, work) as services:
            if kinds:
                _run(args, work / "warm", feeds.get(min(_WARM, args.events), single=True), None, services)
            for kind in (k for k in KINDS if k in kinds and k != "paced"):
                feed = feeds.get(args.events, kind == "single")
                ours = _run(args, work / kind, feed, COMPARED if kind != "full_job" else None, services)
                figures |= {f"{kind}_events_per_s": round(args.events / ours.seconds),
                            f"{kind}_drain_s": round(ours.drain_s, 1),
                            f"{kind}_to_stored_events_per_s": round(args.events / (ours.seconds + ours.drain_s))}
                equal &= ours.differing == 0
            if "paced" in kinds:
                _tell(f"paced: {args.rate} events/s")
                uri = f"kafka://{broker}/paced-{time.time_ns()}" if broker else f"dir:{(work / 'paced').absolute()}/log"
                figures["paced"] = paced(args, work / "paced", uri, services)
        if wanted:
            figures["peers"] = found = _peers(args, work, feeds, wanted, figures)
            equal &= all(peer.get("equal", "skipped" in peer) for peer in found.values())
    table, _ = feeds.table(min(args.events, 1_000_000), args.users)
    return {**figures, "where": where(table), "equal": equal}


def _peers(args: argparse.Namespace, work: Path, feeds: Feeds, names: list[str],
           figures: dict[str, object]) -> dict[str, dict[str, object]]:
    found = {}
    sizes = {"spark": args.spark_events, "beam_rowwise": args.rowwise_events}
    warm = peers.Feed(*feeds.get(min(_WARM, args.events), single=True), min(_WARM, args.events))
    for name in names:
        events = min(args.events, sizes.get(name, args.events))
        feed = peers.Feed(*feeds.get(events, single=True), events)
        _tell(f"{name}: {events} events")
        found[name] = peer = peers.run(name, feed, warm, work, args.windows.split(","))
        ours = figures.get("single_to_stored_events_per_s")
        if isinstance(ours, int) and isinstance(theirs := peer.get("events_per_s"), int):
            peer["ratio"] = round(ours / theirs, 2)
    return found


@contextlib.contextmanager
def _broker(args: argparse.Namespace, work: Path) -> Iterator[str | None]:
    """HOST:PORT of the broker to use: the one named, or one that lives as long as the ``with``; None for local logs."""
    if args.log == "local" or args.kafka:
        yield args.kafka if args.log == "kafka" else None
        return
    with kafka.running(work.absolute() / "services" / "kafka") as broker:
        yield broker.bootstrap


@contextlib.contextmanager
def _services(args: argparse.Namespace, work: Path) -> Iterator[Path | None]:
    """The folder of the services to use: the one named, or of a Flink cluster that lives as long as the ``with``."""
    if args.services or runner_of(args.runner) != "flink":
        yield Path(args.services).absolute() if args.services else None
        return
    with flink.running(work.absolute() / "services" / "flink"):
        yield work.absolute() / "services"


@dataclass(frozen=True)
class Ours:
    """A run of our job: seconds from the first batch to the last event in the state, and on to its end; rows that differ."""

    seconds: float
    drain_s: float
    differing: int


def _run(args: argparse.Namespace, folder: Path, feed: tuple[str, Truth], groups: tuple[str, ...] | None,
         services: Path | None) -> Ours:
    uri, truth = feed
    _tell(f"beamrec: {folder.name}")
    shutil.rmtree(folder / "run", ignore_errors=True)
    common = Config.of(folder / "run", runner=args.runner, quiet=True)
    common.workspace.root.mkdir(parents=True)
    config = StreamConfig(common, uri, name=f"bench{time.time_ns() % 1_000_000}", until_end=True, groups=groups,
                          audit=folder / "run" / "audit")
    seen: list[tuple[float, int]] = []

    def tell(status: dict[str, object]) -> None:
        counters = status["counters"]
        assert isinstance(counters, dict)
        seen.append((int(str(status["written_at"])) / 1e6, counters.get(EVENTS_ACCEPTED, 0)))

    began = time.time()
    with launched(config, services=services) as job:
        job.wait(tell)
        ended = (job.status() or {}).get("written_at", 0) / 1e6
    first = max((at for at, count in seen if count == 0), default=began)
    last = min((at for at, count in seen if count == truth.events), default=ended)
    store = open_store(config.common.store, create=False)
    try:
        differing = truth.differing_ours(folder / "run" / "audit", store)
    finally:
        store.close()
    return Ours(max(last - first, 1e-9), ended - last, differing)


def _check(flag: str, names: list[str], known: tuple[str, ...]) -> None:
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"{flag} takes {', '.join(known)}, not {wrong[0]!r}")


def _tell(line: str) -> None:
    print(f"bench stream: {line}", file=sys.stderr, flush=True)
