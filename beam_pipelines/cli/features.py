"""Compute batch features of users and items as of a time, on columnar Beam.

  beamrec features                           as of now (the workspace clock)
  beamrec features --as-of 1998-04-23        every event before that UTC midnight counts
  beamrec features --from 1997-10-01 --to 1998-04-01 --every 7
                                             snapshots for training, one every 7 days, in one pass
  beamrec features list [--json]             the registry: every feature, its window, default and meaning

A day of events is read once: its partial aggregates stay in the lake, so that a nightly run reads one new day and merges.
A day that was replaced is read again; what is done is not repeated. Rows go to the lake tables user_snapshots and
item_snapshots; the newest as-of also goes to the store, unless --no-publish.
"""

from __future__ import annotations

import argparse
import dataclasses
from datetime import UTC, datetime

from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from schemas.features import FEATURES, GROUPS
from schemas.workspace import DAY_MICROS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``beamrec features``."""
    parser.add_argument("action", nargs="?", choices=("compute", "list"), default="compute")
    parser.add_argument("--as-of", metavar="T", help="date or time, UTC (default: now by the workspace clock)")
    parser.add_argument("--groups", nargs="+", metavar="GROUP", help="feature groups (default: all of source batch)")
    parser.add_argument("--from", dest="start", metavar="T", help="first as-of of a backfill")
    parser.add_argument("--to", dest="end", metavar="T", help="last as-of of a backfill")
    parser.add_argument("--every", type=int, default=1, metavar="DAYS", help="days between as-ofs of a backfill (default: 1)")
    parser.add_argument("--no-publish", action="store_true", help="do not write the store")
    add_common_flags(parser)


def parse_time(text: str) -> int:
    """Microseconds since 1970 of an ISO date or time, UTC where it names no zone; raises UserError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{text!r} is not a date or time like 1998-04-23 or 1998-04-23T00:00:00+00:00") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def run(args: argparse.Namespace) -> int:
    """Runs the command; exit code 3 when the snapshot fails its checks."""
    if args.action == "list":
        return _list(args)
    from beam_pipelines.cli.main import print_json
    from beam_pipelines.jobs import features

    config = Config.from_args(args)
    if (args.start is None) != (args.end is None):
        raise UserError("a backfill needs both --from and --to")
    if args.start is not None:
        if args.as_of is not None:
            raise UserError("--as-of is one time, --from and --to are many: give one or the other")
        first, last = parse_time(args.start), parse_time(args.end)
        if args.every < 1 or last < first:
            raise UserError("--every is at least 1 day and --to not before --from")
        report = features.backfill(config, list(range(first, last + 1, args.every * DAY_MICROS)), args.groups,
                                   publish=not args.no_publish)
    else:
        as_of = parse_time(args.as_of) if args.as_of else config.workspace.now()
        report = features.run(config, as_of, args.groups, publish=not args.no_publish)
    if args.json:
        print_json({**dataclasses.asdict(report), "as_ofs": [_iso(t) for t in report.as_ofs],
                    "made": [_iso(t) for t in report.made]})
    else:
        print(f"as of {_iso(report.as_ofs[-1])}: {report.users} users, {report.items} items; {len(report.made)} of "
              f"{len(report.as_ofs)} snapshots made, {report.days_read} days read, {report.partials_reused} reused; "
              f"{report.published} cells to the store; {report.seconds:.1f} s")
        for failure in report.failures:
            print(f"check failed: {failure}")
    return 3 if report.failures else 0


def _iso(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).isoformat()


def _list(args: argparse.Namespace) -> int:
    from beam_pipelines.cli.main import print_json

    layouts = {g.name: g for g in GROUPS}
    if args.json:
        print_json([{**dataclasses.asdict(f), "layout": layouts[f.group].layout} for f in FEATURES])
        return 0
    for group in GROUPS:
        print(f"{group.name} ({group.entity}, {group.source}, {group.layout})")
        for feature in FEATURES:
            if feature.group == group.name:
                window = _window(feature.window)
                print(f"  {feature.name:<24} {window:<9} default {'null' if feature.default is None else feature.default!s:<5} "
                      f"{feature.description}")
    return 0


def _window(seconds: int | None) -> str:
    if seconds is None:
        return "all time"
    return next(f"{seconds // size} {unit}" for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)) if seconds >= size)
