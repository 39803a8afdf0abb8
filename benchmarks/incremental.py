"""The nightly features run after one new day, against computing 30 days from events; every value must be identical.

All groups, from events to written snapshots and lake commits; the store is not written on either side (it would cost the
same on both). First all of 30 days is computed from events; then come seven nights of one new day each: a whole cycle, one
of them writes the running states (jobs.features.STATE_EVERY). ``ratio`` is the mean night over the 30 days. What the last
night left must equal one pass over all 37 days.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import features
from beam_pipelines.options import Config
from benchmarks.synthetic import FIRST_DAY, add_world_flags, print_measured, write_events
from schemas.workspace import DAY_MICROS

DAYS, NIGHTS = 30, features.STATE_EVERY
TABLES = {"user_snapshots": "user_id", "item_snapshots": "item_id"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the benchmark."""
    add_world_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs both; exit code 1 when a value differs."""
    return print_measured(args, measure)


def measure(args: argparse.Namespace, work: Path) -> dict[str, object]:
    """The figures, by the names that ``--json`` prints."""
    shutil.rmtree(work / "events", ignore_errors=True)
    days = DAYS + NIGHTS
    paths = write_events(Lake.open(work / "events"), args.events * days // DAYS, days, args.users, args.items)
    warm = _lake(work / "warm", paths[:1])  # compiled kernels and imports are nobody's cost
    features.run(warm, (FIRST_DAY + 1) * DAY_MICROS, publish=False)
    nightly = _lake(work / "nightly", paths)
    full_s, full_cpu, _ = _timed(nightly, FIRST_DAY + DAYS)
    nights = [_timed(nightly, FIRST_DAY + DAYS + n) for n in range(1, NIGHTS + 1)]
    once = _lake(work / "once", paths)
    features.run(once, (FIRST_DAY + days) * DAY_MICROS, publish=False)
    night_s, night_cpu = statistics.fmean(n[0] for n in nights), statistics.fmean(n[1] for n in nights)
    last = nights[-1][2]
    return {
        "events": args.events, "days": DAYS, "users": last.users, "items": last.items, "nights": NIGHTS,
        "days_read": last.days_read, "full_s": round(full_s, 2), "nightly_s": round(night_s, 2),
        "each_night_s": [round(night[0], 2) for night in nights], "ratio": round(night_s / full_s, 4),
        "full_cpu_s": round(full_cpu, 2), "nightly_cpu_s": round(night_cpu, 2), "ratio_cpu": round(night_cpu / full_cpu, 4),
        "equal": all(_same(nightly, once, table, (FIRST_DAY + days) * DAY_MICROS) for table in TABLES),
    }


def _timed(config: Config, day: int) -> tuple[float, float, features.FeaturesReport]:
    """Wall seconds, CPU seconds and report of a run as of a day."""
    started, cpu = time.perf_counter(), time.process_time()
    report = features.run(config, day * DAY_MICROS, publish=False)
    return time.perf_counter() - started, time.process_time() - cpu, report


def _lake(folder: Path, paths: list[str]) -> Config:
    shutil.rmtree(folder, ignore_errors=True)
    config = Config.of(folder, quiet=True)
    Lake.open(config.lake).append("events", paths)
    return config


def _same(one: Config, other: Config, table: str, as_of: int) -> bool:
    rows = [Lake.open(c.lake).read(table, start=as_of, end=as_of + DAY_MICROS).drop_columns(["published_at"])
            .sort_by(TABLES[table]) for c in (one, other)]
    return bool(rows[0].equals(rows[1]))
