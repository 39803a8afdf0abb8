"""One step back, at once: withdraws the challenger where one runs, else makes the version before the active one active again.

  beamrec rollback                         on the homepage
  beamrec rollback --surface cart

The version left behind keeps its lists: 'beamrec publish VERSION' brings it back. A second rollback in a row is refused.
Every server sees the change within a tenth of a second; the version returned to is loaded in it already.
"""

from __future__ import annotations

import argparse
import dataclasses

from beam_pipelines.cli.main import print_json
from beam_pipelines.options import Config, add_common_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``rollback``."""
    parser.add_argument("--surface", default="homepage", help="which surface (default: homepage)")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Rolls back and says to what."""
    from beam_pipelines.jobs import pointers

    report = pointers.rollback(Config.from_args(args), args.surface)
    if args.json:
        print_json(dataclasses.asdict(report))
    else:
        gone = f"; {report.left} is seen no more" if report.left else ""
        print(f"version {report.version} is served to everybody again on {report.surface}{gone}")
    return 0
