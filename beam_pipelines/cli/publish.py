"""Checks a shadow version and makes it the one that is served, to everybody or first to a few.

  beamrec publish                          the newest complete version, to everybody
  beamrec publish VERSION --min-coverage 0.01
  beamrec publish VERSION --canary 1%      to 1 % of the users, beside what is served (from 0.01 %)
  beamrec publish --percent 10%            gives the canary to more of them; who had it keeps it
  beamrec publish --promote                gives it to everybody; 'beamrec rollback' returns to what was served before
  beamrec publish --withdraw               takes it back

Every list is read and checked: share of users that have one, length, share of the catalogue shown, scores (finite, never
rising), one model version, retrieval recall. So is the bundle that servers load with it: lists, index and item vectors of one
model, and an index that finds the known answers of the canary queries. Only when nothing is wrong is the surface switched, in
one step; otherwise what was served stays, the reasons are printed and the exit code is 3. Older versions than the newest
--keep are deleted with their bundles, but never the one that 'beamrec rollback' returns to.
"""

from __future__ import annotations

import argparse
import dataclasses

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from serving.pointer import PointerError, parse_percent
from transforms.gate import Thresholds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``publish``."""
    limits = Thresholds()
    parser.add_argument("version", nargs="?", metavar="VERSION", help="what 'beamrec recommend' printed (default: the newest)")
    parser.add_argument("--surface", default="homepage", help="which surface (default: homepage)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--canary", metavar="PERCENT", help="only to that share of the users, by hash, like 1%% or 0.5%%")
    ways.add_argument("--percent", metavar="PERCENT", help="gives the canary that runs to another share of the users")
    ways.add_argument("--promote", action="store_true", help="gives the canary that runs to everybody")
    ways.add_argument("--withdraw", action="store_true", help="takes the canary that runs back")
    parser.add_argument("--keep", type=int, default=3, metavar="N",
                        help="versions to keep, the active one included (default: 3)")
    for name, meaning in (("users", "share of users with a list"), ("full-lists", "share of lists at full length"),
                          ("coverage", "share of the items that stand in some list"), ("recall", "retrieval recall"),
                          ("canary", "share of the canary queries' known answers that the index finds")):
        default = getattr(limits, name.replace("-", "_"))
        parser.add_argument(f"--min-{name}", type=float, default=default, metavar="X", help=f"{meaning} (default: {default})")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Publishes, or moves the canary; KeptPrevious says why not."""
    config = Config.from_args(args)
    if args.keep < 1:
        raise UserError(f"--keep is at least 1, not {args.keep}")
    if args.percent or args.promote or args.withdraw:
        return _move(config, args)
    canary = _percent(args.canary)
    from beam_pipelines.jobs import publish

    version = args.version or max((p.stem for p in config.workspace.lists.glob("*.json")), default=None)
    if version is None:
        raise UserError("there is no version yet: run 'beamrec recommend' first")
    limits = Thresholds(args.min_users, args.min_full_lists, args.min_coverage, args.min_recall, args.min_canary)
    report = publish.run(config, version, args.surface, limits, args.keep, canary)
    if args.json:
        print_json(dataclasses.asdict(report))
        return 0
    state = "is now served" if report.changed else "was served already"
    whom = "" if canary is None else f" to {canary:g}% of the users"
    print(f"version {report.version} {state}{whom} on {report.surface}: {report.stats.lists:,} lists, "
          f"{report.stats.distinct_items:,} items shown, checked in {report.seconds:.1f} s")
    if canary is not None:
        print("next: beamrec publish --percent 10%, then beamrec publish --promote; 'beamrec rollback' withdraws it")
    elif report.previous:
        print(f"'beamrec rollback' returns to {report.previous}")
    for old in report.expired:
        print(f"deleted old version {old}")
    return 0


def _move(config: Config, args: argparse.Namespace) -> int:
    if args.version:
        raise UserError("--percent, --promote and --withdraw are about the canary that runs: leave VERSION out")
    percent = _percent(args.percent)
    from beam_pipelines.jobs import pointers

    if percent is not None:
        report = pointers.share(config, percent, args.surface)
    else:
        report = (pointers.promote if args.promote else pointers.withdraw)(config, args.surface)
    if args.json:
        print_json(dataclasses.asdict(report))
    elif report.challenger:
        print(f"version {report.challenger} is now served to {report.percent:g}% of the users on {report.surface}, "
              f"{report.version} to the rest")
    else:
        print(f"version {report.version} is now served to everybody on {report.surface}; {report.left} is seen no more")
    return 0


def _percent(text: str | None) -> float | None:
    try:
        return None if text is None else parse_percent(text)
    except PointerError as error:
        raise UserError(str(error)) from error
