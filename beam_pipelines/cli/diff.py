"""Compare the stream values of a replay with the live ones, or of any two stores.

  beamrec diff --b fix-1                         the live store of the workspace and the replay fix-1
  beamrec diff --a before --b after              two replays
  beamrec diff --a sqlite:one.db --b sqlite:two.db --at 2026-03-01T12:00

Every feature of every row is read from both as of one time T: --at, or the end of the replay (of its newest event, where the
log holds events older than that), or now. A live job may go on meanwhile: rows that know of events after T are skipped, and
counted; an event that happened before T but came after the replay's end is in the live value alone, and differs. A row that one
store lacks has every default there. Both are scanned once, in row order, in little memory.

Of each group: rows compared = same bytes + same values + different; rows that only one store has; skipped; and the largest
differences, where users are shown as 8 digits of a hash and lists as how many entries differ. Windows that begin before a
replay did may differ for that alone, and the group says so ("looks back further"): begin the replay earlier, or leave the
group out with --groups. Suppressed items are not compared: the collector writes those too.

Exits with 1 when values differ.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import UTC, datetime

from beam_pipelines.options import Config, add_common_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``beamrec diff``."""
    parser.add_argument("--a", default="live", metavar="STORE_OR_NAME",
                        help="a replay, the URI of a store, or live: that of the workspace or --store (default: live)")
    parser.add_argument("--b", required=True, metavar="STORE_OR_NAME", help="what to compare it with")
    parser.add_argument("--groups", nargs="+", metavar="GROUP", help="stream feature groups (default: all)")
    parser.add_argument("--at", metavar="T", help="a date or time, UTC where it names no zone")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="of the largest differences of a group (default: 5)")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from beam_pipelines.cli.features import parse_time
    from beam_pipelines.cli.main import print_json
    from beam_pipelines.errors import UserError
    from beam_pipelines.jobs.diff import compare, side_of, time_compared
    from beam_pipelines.progress import Stage

    if args.top < 0:
        raise UserError(f"--top is 0 or more, not {args.top}")
    config = Config.from_args(args)
    a, b = side_of(config, args.a), side_of(config, args.b)
    at = parse_time(args.at) if args.at else time_compared((a, b), config.workspace.now())
    with Stage(f"diff {a.name} {b.name}", quiet=config.quiet) as stage:
        found = compare(a, b, at, args.groups, args.top, lambda group, rows: stage.advance(rows, note=group))
    differing = sum(group.differing for group in found)
    if args.json:
        print_json({"a": a.name, "b": b.name, "at": at, "rows": sum(g.rows for g in found), "differing": differing,
                    "skipped": sum(g.skipped for g in found), "groups": [asdict(group) for group in found]})
        return 1 if differing else 0
    print(f"a: {a.name}, b: {b.name}, as of {datetime.fromtimestamp(at / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC")
    print(f"{'group':<18}{'rows':>12}{'only a':>12}{'only b':>12}{'same bytes':>12}{'same values':>12}{'different':>12}"
          f"{'skipped':>12}")
    for group in found:
        print(f"{group.group:<18}{group.rows:>12,}{group.only_a:>12,}{group.only_b:>12,}{group.equal_bytes:>12,}"
              f"{group.equal_values:>12,}{group.differing:>12,}{group.skipped:>12,}"
              + ("  looks back further" if group.reaches_back and group.differing else ""))
    for group in found:
        for one in group.largest:
            print(f"  {one.feature} of {one.row}: {_said(one.a)} and {_said(one.b)}, difference {_said(one.difference)}")
    print(f"{differing:,} rows differ" if differing else "no value differs")
    return 1 if differing else 0


def _said(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
