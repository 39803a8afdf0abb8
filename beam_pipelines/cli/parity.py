"""Prove that stream, batch and plain SQL give the same values: published clicks, disturbed, through all three.

  beamrec parity --data PATH                           on FnApiRunner over a local log (PATH: folder of the Globo clicks)
  beamrec parity --data PATH --runner prism            a streaming runner without Java
  beamrec parity --data PATH --runner flink --kills    Kafka and Flink (make services), with kill -9 of a Python worker, the
                                                       TaskManager and the JobManager while it runs

The clicks, in order of time, arrive with a fifth of them up to 50 minutes late, one in twenty doubled and one in a hundred
followed by a malformed record. Afterwards every closed pane and session, every stored cell and every feature read from it at
several times is compared with the batch accumulators over the lake and with DuckDB over the files.

With --json: events, cells, differing_cells, lost, doubled, kills, dead_letters, and how many of the published sessions are
exactly one of ours (published_equal of published_sessions; published_with_a_gap: those that hold 30 idle minutes). Exits
with 1 when anything differs.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from beam_pipelines.cli.main import print_json
from beam_pipelines.options import Config, add_common_flags, runner_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``beamrec parity``."""
    parser.add_argument("--data", required=True, type=Path, metavar="PATH", help="folder of clicks_hour_*.csv or .csv.gz")
    parser.add_argument("--form", choices=("packed", "single"), default="packed",
                        help="records of the log: packs of 500 events (default), or one Avro event each")
    parser.add_argument("--kills", action="store_true", help="kill -9 parts of the cluster meanwhile (flink)")
    parser.add_argument("--limit", type=int, metavar="N", help="of the clicks take about the first N")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from beam_pipelines.errors import UserError
    from beam_pipelines.jobs.stream_run import RUNNERS
    from beam_pipelines.parity.clicks import Disturbance
    from beam_pipelines.parity.run import Plan
    from beam_pipelines.parity.run import run as compare

    config = Config.from_args(args)
    runner = runner_of(args.runner or "direct")
    if runner not in RUNNERS:
        raise UserError(f"--runner is one of {', '.join(RUNNERS)}, not {args.runner}")
    plan = Plan(args.data, runner, args.form, args.kills, args.limit, Disturbance(seed=config.seed))  # type: ignore[arg-type]
    report = compare(config.workspace.root / f"parity-{runner}-{args.form}", plan, config.quiet)
    if args.json:
        print_json({**asdict(report), "equal": report.equal})
    else:
        print(f"{report.clicks:,} clicks in {report.events:,} records ({report.malformed:,} malformed) through {runner} "
              f"in {report.job_s:.0f} s, killed: {', '.join(report.kills) or 'nothing'}")
        print(f"{report.cells:,} cells compared, {report.differing_cells:,} differ; {report.lost:,} events lost, "
              f"{report.doubled:,} doubled; {report.dead_letters:,} dead letters, {report.dead_letters_wrong:,} of them wrong")
        print(f"{report.published_equal:,} of {report.published_sessions:,} published sessions are exactly one of ours; of the "
              f"others {report.published_with_a_gap:,} hold a gap of 30 minutes or more")
        for line in report.examples:
            print(f"  {line}")
    return 0 if report.equal else 1
