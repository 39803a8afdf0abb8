"""The nightly features run after one new day, against computing all 30 days from events; every value must be identical.

All groups, from events to written snapshots and lake commits; the store is not written on either side (it would cost the
same on both). The night starts from what the run of the day before left in the lake: day partials and running states.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import features
from beam_pipelines.options import Config
from benchmarks.synthetic import FIRST_DAY, write_events
from schemas.workspace import DAY_MICROS

DAYS = 31
TABLES = {"user_snapshots": "user_id", "item_snapshots": "item_id"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    parser.add_argument("--events", type=int, default=10_000_000, help="over 30 days (default: 10,000,000)")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--work", metavar="DIR", help="where everything goes (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Runs both; exit code 1 when a value differs."""
    with tempfile.TemporaryDirectory(prefix="beamrec-bench-") as temporary:
        document = measure(args, Path(args.work or temporary))
    print(json.dumps(document) if args.json else "\n".join(f"{k}: {v}" for k, v in document.items()))
    return 0 if document["equal"] else 1


def measure(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """The figures, by the names that ``--json`` prints."""
    shutil.rmtree(work / "events", ignore_errors=True)
    events = args.events * DAYS // (DAYS - 1)
    paths = write_events(Lake.open(work / "events"), events, DAYS, args.users, args.items)
    as_of = (FIRST_DAY + DAYS) * DAY_MICROS
    warm = _lake(work / "warm", paths[:1])  # compiled kernels and imports are nobody's cost
    features.run(warm, (FIRST_DAY + 1) * DAY_MICROS, publish=False)
    nightly = _lake(work / "nightly", paths)
    features.run(nightly, as_of - DAY_MICROS, publish=False)
    started, cpu = time.perf_counter(), time.process_time()
    night = features.run(nightly, as_of, publish=False)
    night_s = time.perf_counter() - started
    night_cpu = time.process_time() - cpu
    full = _lake(work / "full", paths)
    started, cpu = time.perf_counter(), time.process_time()
    features.run(full, as_of, publish=False)
    full_s, full_cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "events": events, "days": DAYS, "users": night.users, "items": night.items, "days_read": night.days_read,
        "full_s": round(full_s, 2), "nightly_s": round(night_s, 2), "ratio": round(night_s / full_s, 4),
        "full_cpu_s": round(full_cpu, 2), "nightly_cpu_s": round(night_cpu, 2), "ratio_cpu": round(night_cpu / full_cpu, 4),
        "equal": all(_same(nightly, full, table, as_of) for table in TABLES),
    }


def _lake(folder: Path, paths: list[str]) -> Config:
    shutil.rmtree(folder, ignore_errors=True)
    config = Config.of(folder, quiet=True)
    Lake.open(config.lake).append("events", paths)
    return config


def _same(one: Config, other: Config, table: str, as_of: int) -> bool:
    rows = [Lake.open(c.lake).read(table, start=as_of, end=as_of + DAY_MICROS).drop_columns(["published_at"])
            .sort_by(TABLES[table]) for c in (one, other)]
    return bool(rows[0].equals(rows[1]))
