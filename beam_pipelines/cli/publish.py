"""Checks a shadow version and makes it the one that is served.

  beamrec publish                          the newest complete version
  beamrec publish VERSION --min-coverage 0.01

Every list is read and checked: share of users that have one, length, share of the catalogue shown, scores (finite, never
rising), one model version, retrieval recall. Only when nothing is wrong is the surface switched, in one step; otherwise what
was served stays, the reasons are printed and the exit code is 3. Older versions than the newest --keep are deleted, but never
the one that 'beamrec rollback' returns to.
"""

from __future__ import annotations

import argparse
import dataclasses

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from transforms.gate import Thresholds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``publish``."""
    limits = Thresholds()
    parser.add_argument("version", nargs="?", metavar="VERSION", help="what 'beamrec recommend' printed (default: the newest)")
    parser.add_argument("--surface", default="homepage", help="which surface (default: homepage)")
    parser.add_argument("--keep", type=int, default=3, metavar="N",
                        help="versions to keep, the active one included (default: 3)")
    for name, meaning in (("users", "share of users with a list"), ("full-lists", "share of lists at full length"),
                          ("coverage", "share of the items that stand in some list"), ("recall", "retrieval recall")):
        default = getattr(limits, name.replace("-", "_"))
        parser.add_argument(f"--min-{name}", type=float, default=default, metavar="X", help=f"{meaning} (default: {default})")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Publishes; KeptPrevious says why not."""
    config = Config.from_args(args)
    if args.keep < 1:
        raise UserError(f"--keep is at least 1, not {args.keep}")
    from beam_pipelines.jobs import publish

    version = args.version or max((p.stem for p in config.workspace.lists.glob("*.json")), default=None)
    if version is None:
        raise UserError("there is no version yet: run 'beamrec recommend' first")
    limits = Thresholds(args.min_users, args.min_full_lists, args.min_coverage, args.min_recall)
    report = publish.run(config, version, args.surface, limits, args.keep)
    if args.json:
        print_json(dataclasses.asdict(report))
        return 0
    assert report.stats is not None
    state = "is now served" if report.changed else "was served already"
    print(f"version {report.version} {state} on {report.surface}: {report.stats.lists:,} lists, "
          f"{report.stats.distinct_items:,} items shown, checked in {report.seconds:.1f} s")
    if report.previous:
        print(f"'beamrec rollback' returns to {report.previous}")
    for old in report.expired:
        print(f"deleted old version {old}")
    return 0
