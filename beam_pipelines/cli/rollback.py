"""Makes the version that was served before the active one active again, in one step.

  beamrec rollback                         on the homepage
  beamrec rollback --surface cart

The version left behind keeps its lists: 'beamrec publish VERSION' brings it back. A second rollback in a row is refused.
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
    from beam_pipelines.jobs import publish

    report = publish.rollback(Config.from_args(args), args.surface)
    if args.json:
        print_json(dataclasses.asdict(report))
    else:
        print(f"version {report.version} is served again on {report.surface}")
    return 0
