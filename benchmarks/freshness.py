"""How fresh values are: from the collector's 202 to a value that can be read in the store, through the whole chain.

A load generator posts --rate events a second to a collector, the streaming job reads its log and writes an SQLite store; all
are processes of their own. 20 times a second one event of a probe user is posted beside them, and the store is looked at
every 20 ms until the user's cell (and the item's) tells of it. Memory of every process is sampled: users come and go, so what
grows in the later half of a long run is state that does not expire.

  beamrec bench freshness                                     5,000 events/s for 5 minutes: local log, Prism
  beamrec bench freshness --runner flink --log kafka          the same on Kafka and Flink (make services)
  beamrec bench freshness --seconds 1800 --speed 96           memory: two days of event time in half an hour

p50_s, p99_s, max_s are of users' values, items_* of items': an event reaches the item state through the user state.
stalled_ms_per_s and longest_stall_ms: what the machine itself took meanwhile (benchmarks.stalls).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from beam_pipelines.cli import stream
from beam_pipelines.errors import UserError
from beam_pipelines.io.stream_status import read_status
from beam_pipelines.jobs.stream_run import flags_of
from beam_pipelines.options import parse_seconds
from beam_pipelines.services import flink, kafka, prism
from beam_pipelines.services.ports import answers, free_port
from beam_pipelines.services.process import Process, poll, start
from benchmarks import stalls
from benchmarks.freshness_load import EventTime, Job
from benchmarks.freshness_memory import Memory
from benchmarks.freshness_probes import Probe, Probes
from benchmarks.synthetic import print_measured
from schemas.keys import ITEM, USER
from serving.stores import open_store
from transforms.beam.stream.freshness import STAGES
from transforms.beam.stream.freshness import quantiles as quantiles_of

JOB = "freshness"
_UP_S = 180.0
_SETTLE_S = 60.0
_BEAMREC = (sys.executable, "-m", "beam_pipelines.cli.main")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--rate", type=float, default=5000, help="events per second (default: 5000)")
    parser.add_argument("--seconds", type=float, default=300, help="measured, after the warm-up (default: 300)")
    parser.add_argument("--warm-up", type=float, default=20, help="seconds of load before (default: 20)")
    parser.add_argument("--users", type=int, default=200_000, help="active at any moment (default: 200,000)")
    parser.add_argument("--stay", type=float, default=1800, metavar="S",
                        help="seconds of event time after which a user has left for good (default: 1800)")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X",
                        help="let event time run X times as fast, through the past, so that state expires (default: 1)")
    parser.add_argument("--runner", choices=("prism", "flink"), default="prism")
    parser.add_argument("--log", choices=("dir", "kafka"), default="dir")
    parser.add_argument("--stream-flags", default="", metavar="FLAGS",
                        help="more flags of 'beamrec stream', such as '--flush 2s', or of Beam after '--'")
    parser.add_argument("--work", metavar="DIR", help="where everything goes (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Measures; exit code 1 when a probe's value never came."""
    return print_measured(args, measure)


@dataclass
class Chain:
    """The processes of a run: how to reach them, pids by role, other figures to sample."""

    store: str
    host: str
    port: int
    job: Process
    roles: dict[str, Callable[[], list[int]]]
    more: dict[str, Callable[[], float | None]] = field(default_factory=dict)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def measure(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """The figures that ``--json`` prints."""
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    flags = stream_flags(["--runner", args.runner, "--workspace", str(work), *args.stream_flags.split()])
    clock = EventTime(time.time(), args.seconds + args.warm_up + _UP_S, args.speed)
    with running(args, work) as chain, Memory(chain.roles, chain.more) as memory, \
            Probes(chain.store, chain.host, chain.port, clock) as probes, stalls.watched() as stalled:
        _say(f"processes are up; their logs are in {work}")
        _await_fresh(chain, probes)
        load = _load(chain, Job(chain.host, chain.port, clock, args.rate, args.users, args.stay))
        _watch(args.warm_up, chain, probes, "warming up")
        begin, wall, before = time.monotonic(), time.time(), _counters(chain)
        loads = _watch(args.seconds, chain, probes, "measuring")
        end, after = time.monotonic(), _counters(chain)
        probes.settle(_SETTLE_S)
        sent = json.loads(load.communicate()[0])
    taken = [probe for probe in probes.all if begin <= probe.accepted < end]
    accepted = sum(n for second, n in sent["accepted"].items() if wall <= int(second) < wall + end - begin)
    lost = sum(USER not in probe.readable or ITEM not in probe.readable for probe in taken)
    return {
        "events_per_s": round((accepted + len(taken)) / (end - begin)), **quantiles(taken, USER),
        **{f"items_{name}": value for name, value in quantiles(taken, ITEM).items()},
        "budget": budget(before, after), "probes": len(taken), "lost": lost, "accepted": accepted,
        "seconds": round(end - begin, 1),
        "refused": sent["rejected"] + probes.refused, "retries": sent["retries"], "sender_behind_s": round(sent["behind_s"], 2),
        "runner": args.runner, "log": args.log, "flags": flags, "users": args.users,
        "stay_s": args.stay, "speed": args.speed,
        "cores": {role: round(series.between(begin, end), 3) for role, series in memory.cpu.items()},
        **{f"{role}_rss_mib": series.since(begin) for role, series in memory.mib.items() if series.values},
        **{name: series.since(begin) for name, series in memory.more.items() if series.values},
        "over_time": {name: series.thinned(begin) for name, series in (*memory.mib.items(), *memory.more.items())},
        **stalled, "load_average": [round(load, 1) for load in loads], "equal": bool(taken) and not lost,
    }


def stream_flags(command: list[str]) -> dict[str, Any]:
    """What ``beamrec stream --print-flags`` tells of a command's flags."""
    parser = argparse.ArgumentParser()
    stream.add_arguments(parser)
    args = parser.parse_args(command)
    return flags_of(stream.config_of(args), parse_seconds(args.checkpoint_every))


def quantiles(probes: list[Probe], kind: str) -> dict[str, float | None]:
    """Seconds from accepted to readable."""
    seconds = [probe.readable[kind] - probe.accepted for probe in probes if kind in probe.readable]
    points = np.quantile(seconds, [0.5, 0.9, 0.99, 1.0]).round(3).tolist() if seconds else [None] * 4
    return dict(zip(("p50_s", "p90_s", "p99_s", "max_s"), points, strict=True))


def budget(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, dict[str, float | None]]:
    """Seconds from accepted to each stage (transforms.beam.stream.freshness), of all events between two readings."""
    grown = Counter(after)
    grown.subtract(before)
    stages: dict[str, dict[str, float | None]] = {}
    for stage in STAGES:
        if (found := quantiles_of(grown, stage, (0.5, 0.9, 0.99))) is not None:
            rounded = [round(seconds, 2) if np.isfinite(seconds) else None for seconds in found]
            stages[stage] = dict(zip(("p50_s", "p90_s", "p99_s"), rounded, strict=True))
    return stages


def _counters(chain: Chain) -> dict[str, int]:
    store = open_store(chain.store, create=False)
    try:
        return dict((read_status(store, JOB) or {"counters": {}})["counters"])
    finally:
        store.close()


@contextlib.contextmanager
def running(args: argparse.Namespace, work: Path) -> Iterator[Chain]:
    """Log, collector, runner and job, all ended afterwards."""
    store = f"sqlite:{work / 'store.db'}"
    common = ["--workspace", str(work), "--store", store, "--quiet"]
    host, port = "127.0.0.1", free_port()
    with contextlib.ExitStack() as stack:
        roles: dict[str, Callable[[], list[int]]] = {}
        log = f"dir:{work / 'log'}"
        if args.log == "kafka":
            broker = stack.enter_context(kafka.running(work / "services" / "kafka"))
            broker.create_topic("events", 4)
            log, roles["kafka"] = f"kafka://{broker.bootstrap}/events", _members(broker.process)
        runner = stack.enter_context((flink if args.runner == "flink" else prism).running(work / "services" / args.runner))
        collector = _started(stack, work, "collect", ["collect", "--log", log, "--port", str(port), *common])
        collector.wait_ready(lambda: answers(port), 60, "the collector")
        job = _started(stack, work, "stream", ["stream", "--log", log, "--name", JOB, "--runner", args.runner, "--services",
                                               str(work / "services"), *common, *args.stream_flags.split()])
        roles |= {"collector": _members(collector)}
        roles["bench"] = lambda: [os.getpid()]
        chain = Chain(store, host, port, job, roles, stack=stack)
        if args.runner == "prism":
            roles |= {"worker": _members(job), "prism": _members(runner.process)}
        else:
            roles |= {"worker": runner.worker_pids, "taskmanager": _members(runner.part("taskmanager")),
                      "jobmanager": _members(runner.part("jobmanager")), "submitter": _members(job)}
            chain.more["checkpoint_mib"] = lambda: _checkpoint_mib(runner)
        chain.more["store_mib"] = lambda: sum(file.stat().st_size for file in work.glob("store.db*")) / 2**20
        yield chain


def _started(stack: contextlib.ExitStack, work: Path, name: str, command: list[str]) -> Process:
    process = start(work, name, [*_BEAMREC, *command], parent=os.getpid())
    stack.callback(process.stop)
    return process


def _load(chain: Chain, job: Job) -> subprocess.Popen[str]:
    load = subprocess.Popen([sys.executable, "-m", "benchmarks.freshness_load"], stdin=subprocess.PIPE, text=True,
                            stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    chain.stack.callback(load.kill)
    chain.roles["load"] = lambda: [load.pid]
    assert load.stdin is not None
    load.stdin.write(json.dumps(asdict(job)) + "\n")
    load.stdin.flush()
    return load


def _members(process: Process | None) -> Callable[[], list[int]]:
    return process.members if process is not None else list


def _checkpoint_mib(cluster: flink.Cluster) -> float | None:
    """Size of the newest complete checkpoint: all state, as Flink keeps it."""
    try:
        job = cluster.rest.find(f"beamrec-{JOB}")
        if job is None:
            return None
        latest: dict[str, Any] = cluster.rest.call(f"/jobs/{job}/checkpoints")["latest"]["completed"] or {}
    except (UserError, LookupError):
        return None
    return latest["state_size"] / 2**20 if "state_size" in latest else None


def _await_fresh(chain: Chain, probes: Probes) -> None:
    """Waits until the job runs: a probe's values have become readable at once."""
    def fresh() -> bool:
        _check(chain, probes)
        since = time.monotonic() - 5
        return any(USER in p.readable and ITEM in p.readable for p in probes.all[-200:] if p.accepted > since)

    if not poll(fresh, _UP_S, 0.25):
        raise UserError(f"no value became readable within {_UP_S:.0f} s; the job's log is {chain.job.log}, last lines:\n"
                        f"{chain.job.tail()}")


def _watch(seconds: float, chain: Chain, probes: Probes, what: str) -> list[float]:
    """Lets time pass; returns the load average of each quarter."""
    end, loads, told = time.monotonic() + seconds, [os.getloadavg()[0]], 0
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(1.0, left))
        _check(chain, probes)
        quarter = int(4 * (1 - max(0.0, end - time.monotonic()) / seconds))
        if quarter > told:
            told, loads = quarter, [*loads, os.getloadavg()[0]]
            recent = [p.readable[USER] - p.accepted for p in probes.all[-400:] if USER in p.readable]
            fresh = f"lately {np.median(recent):.2f} s, at most {max(recent):.2f} s" if recent else "nothing readable lately"
            _say(f"{what}: {max(left - 1, 0):.0f} s left, {fresh}")
    return loads


def _check(chain: Chain, probes: Probes) -> None:
    if probes.failure is not None:
        raise UserError(f"probing failed: {probes.failure}; logs are in {chain.job.directory}") from probes.failure
    if not chain.job.alive:
        raise UserError(f"the job ended; its log is {chain.job.log}, last lines:\n{chain.job.tail()}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
