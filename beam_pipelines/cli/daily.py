"""The daily run: from the events in the lake to published recommendations, doing only what is not done yet.

Steps, in order, each in a process of its own:
  features    features as of midnight, into the lake and the store, and as of the earlier days that training reads
  train       examples, tf.Transform, the two-tower model
  index       the item index of that model
  recommend   everybody's list, under a version nobody reads yet
  publish     check that version and make it the one that is served

What a step did stands in WORKSPACE/runs/DATE/STEP.json, the log in run.log beside it. A step is skipped when it was done
from the same inputs and settings and its output is still there. Killed at any moment, run it again: it goes on with the same
result. When features miss --deadline, or a check fails, the previous recommendations stay in place and the exit code is 3. At
the end, what killed writers left in the lake more than a day ago is removed, and from the store what nobody can read any more
('beamrec store gc --apply'; its counts are store_gc of --json).

  beamrec run                        as of this workspace's clock
  beamrec run --as-of 2026-02-01     as of an earlier midnight
  beamrec run --from-step train      train and all that follows, whatever is done
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from beam_pipelines.cli.main import print_json
from beam_pipelines.options import Config, add_common_flags, parse_as_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run."""
    parser.add_argument("--as-of", metavar="T", help="midnight (UTC) to work for, e.g. 2026-02-01 (default: the clock's)")
    parser.add_argument("--from-step", metavar="STEP", help="do this step and all after it, even if done")
    parser.add_argument("--to-step", metavar="STEP", help="stop after this step")
    parser.add_argument("--force", action="store_true", help="do every step, even if done")
    parser.add_argument("--deadline", type=float, metavar="SECONDS",
                        help="features must be there so long after the start, else the previous recommendations stay")
    parser.add_argument("--in-process", action="store_true", help="run the steps in this process instead of one each")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the steps and prints a line for each."""
    from beam_pipelines.jobs import daily

    config = Config.from_args(args)
    options = daily.RunOptions(args.from_step, args.to_step, args.force, args.deadline, not args.in_process)

    def tell(result: daily.StepResult) -> None:
        if not config.quiet:
            print(daily.line(result), file=sys.stderr)

    try:
        report = daily.run(config, parse_as_of(args.as_of, config.workspace), options, tell)
    except daily.StepFailed as error:
        print(f"beamrec run: {error}", file=sys.stderr)
        return 1
    if args.json:
        print_json(asdict(report))
    else:
        served = f"version {report.version} is served" if report.version else "nothing is published yet"
        print(f"run {report.run_id} as of {report.as_of}: {served} ({report.seconds:.1f} s)")
    return 0
