"""The collector under load: a real server, a load generator on the same cores, and every answered event looked up in the log.

  beamrec bench collect [--json]                      over a local log: fdatasync before each answer
  beamrec bench collect --log kafka://HOST:PORT/T     over Kafka: acks=all, idempotent (a topic without other writers)

Events have about 400 bytes. First each connection sends its next request once it has its answer: requests_per_s (single
events) and batch_events_per_s (100 a request), with single_p99_ms and batch_p99_ms of this saturation. Then requests are sent
when they are due, 10,000 single ones and 150,000 events in batches a second (--single-rate, --batch-rate), whatever is
outstanding, and latency counts from when they were due: paced_*. p99_ms is the worse 99th percentile of these two, so it
means something where the paced rates were reached (paced_single_per_s, paced_batch_events_per_s). server_us_* and load_us_*
are processor microseconds of the server and of the load generator beside it. lost and doubled count events answered with 202
that the log does not hold exactly once.

What the machine does by itself is told beside it (benchmarks.stalls): stalled_ms_per_s and longest_stall_ms of its cores, and,
for a local log, whose rounds end with a sync, disk_stalled_ms_per_s and longest_disk_stall_ms of a bare small write with its
sync every 20 ms beside the load. A disk that stands still for 10 ms a second alone makes a 99th percentile of more than 10 ms.
disk_sync_p50_ms and disk_sync_p99_ms are of bare 8 KiB writes with their syncs before the server starts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks import stalls
from benchmarks.collect_load import Job, event_id
from serving.collector import LINGER_MS
from serving.collector.bodies import warm_up
from serving.collector.settings import creating
from serving.eventlog import open_log
from transforms.records import decode

_BATCH = 100
_SYNCS, _SYNC_BYTES, _SYNC_EVERY_S = 600, 8192, 0.005
_FIRST = 100_000_000
"""Numbers of one phase's requests begin so far from the next phase's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--log", help="log to collect into (default: a local one, made and removed)")
    parser.add_argument("--seconds", type=float, default=10, help="of each phase (default: 10)")
    parser.add_argument("--connections", type=int, default=64, help="of single requests (default: 64)")
    parser.add_argument("--batch-connections", type=int, default=8, help="of batches (default: 8)")
    parser.add_argument("--single-rate", type=float, default=10_000, help="paced single requests a second (default: 10000)")
    parser.add_argument("--batch-rate", type=float, default=150_000, help="paced events a second (default: 150000)")
    parser.add_argument("--partitions", type=int, default=4, help="of the log (default: 4)")
    parser.add_argument("--workers", type=int, default=1, help="of the collector (default: 1)")
    parser.add_argument("--linger-ms", type=float, default=LINGER_MS, help="of the collector (default: %(default)g)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    """Runs the four phases and checks the log."""
    with tempfile.TemporaryDirectory(prefix="beamrec-collect-") as folder:
        result = _measure(args, Path(folder))
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:<26} {value}")
    return 1 if result["lost"] or result["doubled"] else 0


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    uri = args.log or f"dir:{folder / 'log'}"
    if args.log:
        log = open_log(creating(uri, args.partitions))
        before = {p: log.latest(p) for p in range(log.partitions())}
        log.close()
    else:
        before = {}
    syncs = np.percentile(sync_times(folder), (50, 99)) if uri.startswith("dir:") else (None, None)
    warm_up()  # what the server would compile in its first seconds it then finds on the disk
    process = subprocess.Popen(
        [sys.executable, "-m", "beam_pipelines.cli.main", "collect", "--log", uri, "--workspace", str(folder), "--port", "0",
         "--partitions", str(args.partitions), "--workers", str(args.workers), "--linger-ms", str(args.linger_ms)],
        stderr=subprocess.PIPE, text=True)
    try:
        host, port = _listening(process)
        phases: dict[str, tuple[int, float, int]] = {
            "warm": (args.connections, 0, 1), "warm_batch": (args.batch_connections, 0, _BATCH),
            "single": (args.connections, 0, 1), "batch": (args.batch_connections, 0, _BATCH),
            "paced_single": (4 * args.connections, args.single_rate, 1),
            "paced_batch": (4 * args.batch_connections, args.batch_rate / _BATCH, _BATCH)}
        reports, sent = {}, []
        with stalls.watched(folder if uri.startswith("dir:") else None) as stalled:
            for number, (name, (connections, rate, batch)) in enumerate(phases.items()):
                seconds = min(2.0, args.seconds) if name.startswith("warm") else args.seconds
                print(f"{name} ...", file=sys.stderr, flush=True)
                before_s = _processor_s(process.pid)
                reports[name] = _load(Job(host, port, connections, seconds, batch, rate, number * _FIRST))
                reports[name]["server_s"] = _processor_s(process.pid) - before_s
                sent.append((batch, np.array(reports[name]["accepted"], np.int64)))
        started = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        stop_s = time.perf_counter() - started
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    print("looking up every answered event ...", file=sys.stderr, flush=True)
    lost, doubled, total = _look_up(uri, before, sent)
    p99 = {name: float(np.percentile(r["latencies_ms"], 99)) for name, r in reports.items()}
    rate_of = {name: len(r["accepted"]) / r["seconds"] for name, r in reports.items()}
    return {
        "requests_per_s": round(rate_of["single"]), "batch_events_per_s": round(rate_of["batch"] * _BATCH),
        "p99_ms": round(max(p99["paced_single"], p99["paced_batch"]), 2), "single_p99_ms": round(p99["single"], 2),
        "batch_p99_ms": round(p99["batch"], 2), "paced_single_per_s": round(rate_of["paced_single"]),
        "paced_single_p99_ms": round(p99["paced_single"], 2),
        "paced_batch_events_per_s": round(rate_of["paced_batch"] * _BATCH), "paced_batch_p99_ms": round(p99["paced_batch"], 2),
        "server_us_per_request": round(1e6 * reports["single"]["server_s"] / reports["single"]["sent"], 1),
        "server_us_per_batch_event": round(1e6 * reports["batch"]["server_s"] / reports["batch"]["sent"] / _BATCH, 2),
        "load_us_per_request": round(1e6 * reports["single"]["processor_s"] / reports["single"]["sent"], 1),
        "load_us_per_batch_event": round(1e6 * reports["batch"]["processor_s"] / reports["batch"]["sent"] / _BATCH, 2),
        "events_answered": total, "lost": lost, "doubled": doubled,
        "not_202": sum(r["sent"] - len(r["accepted"]) for r in reports.values()), "stop_s": round(stop_s, 2),
        "log": uri.partition(":")[0], "workers": args.workers, "cores": os.cpu_count(),
        **{f"disk_sync_p{q}_ms": value if value is None else round(float(value), 2)
           for q, value in zip((50, 99), syncs, strict=True)},
        **stalled, "load_before": round(os.getloadavg()[1], 1)}


def sync_times(folder: Path) -> np.ndarray:
    """Milliseconds of bare durable writes to a file in a folder."""
    times = np.empty(_SYNCS)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for i in range(_SYNCS):
            started = time.perf_counter()
            file.write(bytes(_SYNC_BYTES))
            os.fdatasync(file.fileno())
            times[i] = time.perf_counter() - started
            time.sleep(max(0.0, _SYNC_EVERY_S - times[i]))
    return times * 1e3


def _listening(process: subprocess.Popen[str]) -> tuple[str, int]:
    assert process.stderr is not None
    for line in process.stderr:
        entry = json.loads(line) if line.startswith("{") else {"event": line}
        if entry["event"] == "listening":
            host, _, port = entry["url"].rpartition("//")[2].rpartition(":")
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{entry['url']}/readyz", timeout=1).close()
                    return host, int(port)
                except (urllib.error.URLError, OSError):
                    time.sleep(0.1)
    raise RuntimeError("the collector did not start")


def _processor_s(pid: int) -> float:
    """Processor seconds of a process and of its children so far."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = [Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split() for p in (pid, *map(int, children))]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def _load(job: Job) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.collect_load"], input=json.dumps(asdict(job)), text=True,
                          stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _look_up(uri: str, before: dict[int, int], sent: list[tuple[int, np.ndarray]]) -> tuple[int, int, int]:
    """(lost, doubled, all) of the events that were answered with 202."""
    log = open_log(uri)
    ends = {p: log.latest(p) for p in range(log.partitions())}
    reader = log.reader({p: before.get(p, log.earliest(p)) for p in ends})
    parts = []
    while reader.positions() != ends:
        parts.append(decode(reader.poll(1 << 25, 5.0), "log").events.column("event_id"))
    reader.close()
    log.close()
    found = pc.value_counts(pa.chunked_array([p.cast(pa.string()) for p in parts]))
    counts = found.field("counts").to_numpy()
    number = pc.utf8_slice_codeunits(found.field("values"), 6, 18).cast(pa.int64()).to_numpy()
    place = pc.utf8_slice_codeunits(found.field("values"), 19, 23).cast(pa.int64()).to_numpy()
    lost = doubled = total = 0
    for phase, (batch, accepted) in enumerate(sent):
        assert event_id(7, 3) == "bench-000000000007-0003"  # what the slices above rely on
        low = phase * _FIRST
        here = (number >= low) & (number < low + _FIRST)
        held = np.zeros((_FIRST if not len(accepted) else int(accepted.max()) - low + 1) * batch, np.int32)
        at = (number[here] - low) * batch + place[here]
        inside = at < len(held)
        held[at[inside]] = counts[here][inside]
        mine = held.reshape(-1, batch)[accepted - low] if len(accepted) else held[:0]
        lost += int((mine == 0).sum())
        doubled += int((mine > 1).sum())
        total += mine.size
    return lost, doubled, total
