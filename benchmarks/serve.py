"""The API under load: GET /v1/recommendations of 100,000 users, with suppression, re-rank, diversity and exploration on.

  beamrec bench serve [--json]                     over SQLite and over the Bigtable emulator
  beamrec bench serve --store sqlite --rate 5000

A real 'beamrec serve' (two workers, telling a local log what was served) and its load share this machine's cores. First wrk
sends each connection's next request once its last was answered: max_requests_per_s. Then requests are sent when they are due,
--rate a second, whatever is outstanding, and latency counts from when they were due: requests_per_s that were answered, p50_ms,
p99_ms. So p99_ms means something where requests_per_s reaches the rate. Users are drawn evenly, 20 items a page, lists of 100,
with sessions, preferences and 50 consumed items each. store_read_p99_ms: one list read from the store alone, in this process.
not_200 and empty count answers (of a sample, for empty). Keys by store: sqlite, bigtable.

A store that is slower than the deadlines of a request is done without (docs/versions.md): own_lists is the share of the paced
answers that were made from the user's own list, with_signals of those whose session and history were read in time; max_* are
the same of what wrk asked. stalled_ms_per_s and longest_stall_ms: what the machine itself took meanwhile (benchmarks.stalls).

  beamrec bench serve --in-process [--profile]

asks the application within this process over SQLite, without sockets or load: microseconds of processor a request, and by step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from beam_pipelines.errors import UserError
from beam_pipelines.services import bigtable
from benchmarks import stalls
from benchmarks.serve_inside import in_process
from benchmarks.serve_load import Ask
from benchmarks.serve_world import ServeWorld, user_id
from schemas import metric_names as names
from schemas.keys import list_key
from serving.api.peers import PERIOD_S
from serving.stores.aio import open_async

WRK = "wrk"
_SCRIPT = """
math.randomseed(%d)
request = function()
  return wrk.format("GET", string.format("/v1/recommendations?user_id=user-%%07d&context=homepage&page_size=20",
                                         math.random(0, %d)))
end
"""
_READS = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--store", choices=("sqlite", "bigtable", "both"), default="both", help="default: both")
    parser.add_argument("--users", type=int, default=100_000, help="default: 100000")
    parser.add_argument("--items", type=int, default=20_000, help="default: 20000")
    parser.add_argument("--rate", type=float, default=2000, help="paced requests a second over SQLite (default: 2000)")
    parser.add_argument("--bigtable-rate", type=float, default=150, help="over the emulator (default: 150)")
    parser.add_argument("--seconds", type=float, default=8, help="of each phase (default: 8)")
    parser.add_argument("--connections", type=int, default=32, help="of the paced requests, and of wrk (default: 32)")
    parser.add_argument("--bigtable-connections", type=int, default=2, help="of wrk over the emulator, which shares the cores: "
                        "more only make reads miss their deadlines (default: 2)")
    parser.add_argument("--workers", type=int, default=2, help="of the server (default: 2)")
    parser.add_argument("--no-truth", action="store_true", help="do not tell a log what was served")
    parser.add_argument("--in-process", action="store_true", help="processor time by step, without sockets")
    parser.add_argument("--profile", action="store_true", help="with --in-process: where it goes, by function, on stderr")
    parser.add_argument("--requests", type=int, default=4000, help="with --in-process (default: 4000)")
    parser.add_argument("--dir", default=".bench/serve", help="where the world is kept (default: .bench/serve)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    if args.in_process:
        world = ServeWorld.make(Path(args.dir).absolute() / "sqlite", args.users, args.items)
        return _print(in_process(world, args.requests, not args.no_truth, args.profile), args.json)
    if shutil.which(WRK) is None:
        raise UserError("needs wrk: apt-get install wrk")
    result: dict[str, Any] = {"users": args.users, "items": args.items, "workers": args.workers, "cores": os.cpu_count()}
    if args.store != "bigtable":
        world = ServeWorld.make(Path(args.dir).absolute() / "sqlite", args.users, args.items)
        result["sqlite"] = _measure(args, world, args.rate, args.connections)
    if args.store != "sqlite":
        with emulator() as uri:
            print("writing the emulator's world ...", file=sys.stderr, flush=True)
            world = ServeWorld.make(Path(args.dir).absolute() / "bigtable", args.users, args.items, store=uri)
            result["bigtable"] = _measure(args, world, args.bigtable_rate, args.bigtable_connections)
    return _print(result, args.json)


def _print(result: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            for key, figure in (value.items() if isinstance(value, dict) else ((None, value),)):
                print(f"{name if key is None else f'{name}.{key}':<36} {figure}")
    return 0


@contextmanager
def emulator() -> Iterator[str]:
    """A Bigtable emulator of its own; the URI of an empty store in it. Raises UserError."""
    with tempfile.TemporaryDirectory(prefix="beamrec-emulator-") as folder, bigtable.running(Path(folder)) as started:
        os.environ.update(started.environment)
        yield "bigtable://bench/serve"


def _measure(args: argparse.Namespace, world: ServeWorld, rate: float, connections: int) -> dict[str, Any]:
    reads = asyncio.run(read_times(world, _READS if world.store.startswith("sqlite:") else _READS // 10))
    with tempfile.TemporaryDirectory(prefix="beamrec-serve-bench-") as folder:
        flags = [] if args.no_truth else ["--log", f"dir:{folder}/log", "--no-events"]
        with serving(world, args.workers, *flags) as server:
            load(server, Ask(server.host, server.port, args.connections, min(3.0, args.seconds), 0, args.users))
            print("wrk ...", file=sys.stderr, flush=True)
            before = server.counts()
            most = wrk(server, args.users, connections, args.seconds)
            after_most = server.counts()
            print(f"paced, {rate:g} a second ...", file=sys.stderr, flush=True)
            spent = server.processor_s()
            with stalls.watched() as stalled:
                report = load(server, Ask(server.host, server.port, 4 * args.connections, args.seconds, rate, args.users))
            used, after = server.processor_s() - spent, server.counts()
            empty = sum(not server.items(user_id(n)) for n in range(0, args.users, max(1, args.users // 200)))
    latencies = np.array(report["latencies_ms"])
    return {"rate": rate, "requests_per_s": round(len(latencies) / report["seconds"]),
            "p50_ms": round(float(np.percentile(latencies, 50)), 2), "p99_ms": round(float(np.percentile(latencies, 99)), 2),
            **_shares(after - after_most), "max_requests_per_s": most["requests_per_s"], "max_p50_ms": most["p50_ms"],
            "max_p99_ms": most["p99_ms"], **{f"max_{name}": share for name, share in _shares(after_most - before).items()},
            "store_read_p50_ms": round(float(np.percentile(reads, 50)), 3),
            "store_read_p99_ms": round(float(np.percentile(reads, 99)), 3),
            "not_200": report["sent"] - report["statuses"].get("200", 0) + most["not_200"], "empty": empty,
            "server_us_per_request": round(1e6 * used / max(1, report["sent"])),
            "load_us_per_request": round(1e6 * report["processor_s"] / max(1, report["sent"]), 1),
            **stalled, "load_before": round(os.getloadavg()[0], 1)}


def _shares(counts: Counter[str]) -> dict[str, float]:
    """What the answers were made from; see the module."""
    lists = sum(n for name, n in counts.items() if name.startswith("tier "))
    return {"own_lists": round(counts["tier list"] / max(1, lists), 4),
            "with_signals": round(1 - counts["without signals"] / max(1, lists), 4)}


async def read_times(world: ServeWorld, reads: int) -> np.ndarray:
    """Milliseconds of reading one list of one user each."""
    store, rng = open_async(world.store), np.random.default_rng(5)
    times = np.empty(reads)
    keys = [list_key(user_id(n), "homepage") for n in rng.integers(0, world.users, reads + 200).tolist()]
    for key in keys[:200]:
        await store.read_lists([key], world.versions[0])
    for i, key in enumerate(keys[200:]):
        started = time.perf_counter()
        await store.read_lists([key], world.versions[0])
        times[i] = time.perf_counter() - started
    await store.close()
    return times * 1e3


class Server:
    """``beamrec serve`` in a process of its own."""

    def __init__(self, world: ServeWorld, workers: int, *flags: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "beam_pipelines.cli.main", "serve", "--workspace", str(world.workspace.root), "--store",
             world.store, "--port", "0", "--workers", str(workers), *flags], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.log: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._started(workers)
        self.host, _, port = self.url.rpartition("//")[2].rpartition(":")
        self.port = int(port)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line) if line.startswith("{") else {"event": line.rstrip()})

    def _started(self, workers: int) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if sum(entry["event"] == "worker started" for entry in self.log) >= workers:
                return str(next(entry["url"] for entry in self.log if entry["event"] == "listening"))
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"the server did not start: {self.log[-5:]}")

    def items(self, user: str) -> list[str]:
        """What a user is shown; [] for an answer that is no page."""
        try:
            with urllib.request.urlopen(f"{self.url}/v1/recommendations?user_id={user}", timeout=10) as answer:
                return [item["item_id"] for item in json.load(answer)["items"]]
        except urllib.error.URLError:
            return []

    def counts(self) -> Counter[str]:
        """Answers of all workers so far: ``tier NAME`` by tier, and ``without signals``."""
        time.sleep(1.5 * PERIOD_S)  # workers tell each other that often
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        counts = Counter[str]()
        for tier, value in re.findall(rf'^{names.SERVE_TIERS}{{[^}}]*tier="(\w+)"[^}}]*}} (\S+)', text, re.M):
            counts[f"tier {tier}"] += int(float(value))
        for value in re.findall(rf"^{names.SERVE_WITHOUT_SIGNALS} (\S+)", text, re.M):
            counts["without signals"] += int(float(value))
        return counts

    def processor_s(self) -> float:
        """Processor seconds of the server and its workers so far."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        fields = [Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split() for p in (pid, *map(int, children))]
        return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ends it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def serving(world: ServeWorld, workers: int, *flags: str) -> Iterator[Server]:
    """A server over a world."""
    server = Server(world, workers, *flags)
    try:
        yield server
    finally:
        server.stop()


def load(server: Server, job: Ask) -> dict[str, Any]:
    """What a load generator in a process of its own reports."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.serve_load"], input=json.dumps(asdict(job)), text=True,
                          stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def wrk(server: Server, users: int, connections: int, seconds: float) -> dict[str, Any]:
    """As many requests as wrk gets answered."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT % (11, users - 1))
        script.flush()
        done = subprocess.run([WRK, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "-s", script.name,
                               server.url], text=True, stdout=subprocess.PIPE, check=True)
    rate = float(_found(r"Requests/sec:\s+([\d.]+)", done.stdout))
    failed = re.search(r"Non-2xx or 3xx responses:\s+(\d+)", done.stdout)
    return {"requests_per_s": round(rate), "p50_ms": _ms(_found(r"50%\s+([\d.]+\w+)", done.stdout)),
            "p99_ms": _ms(_found(r"99%\s+([\d.]+\w+)", done.stdout)), "not_200": int(failed.group(1)) if failed else 0}


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk said: {text}")
    return found.group(1)


def _ms(text: str) -> float:
    for unit, factor in (("us", 1e-3), ("ms", 1.0), ("s", 1e3)):
        if text.endswith(unit):
            return round(float(text[: -len(unit)]) * factor, 2)
    raise ValueError(text)
