"""Writes users' ranked lists under a shadow version; nobody reads it before 'beamrec publish VERSION'.

  beamrec recommend                        as of the workspace clock's midnight, with the newest model
  beamrec recommend --as-of 1998-04-23 --model VERSION
  beamrec recommend --active-days 0        lists for everybody, the dormant too
  beamrec recommend --active-within 1h     new lists of the version that is served, for users with events in the last hour

User vectors come from the model's user tower, candidates from the item index, item co-occurrence and popularity. What a
user has consumed and what is no longer active is left out; every item says why it is there. Unknown users get the popular
items. Lists are made ahead for users with an event in the last 30 days; a dormant user's list is made when they come back, at
their request. In a workspace whose clock stands still (imported or simulated data) everybody gets one.

The version's name follows from the content of its inputs: the same inputs give the same version, and a version that
is complete is not written again.

--active-within makes no version: users that were active get newer lists in the versions they are served (the challenger's
users in the challenger's), from what the stream knows of them. Run it every 15 minutes beside the nightly run:
  */15 * * * *  beamrec recommend --active-within 1h --quiet
   10  1 * * *  beamrec run --quiet
"""

from __future__ import annotations

import argparse
import dataclasses
import re

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.options import ACTIVE_DAYS, Config, add_common_flags, parse_as_of
from transforms.candidates import Blend


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``recommend``."""
    blend = Blend()
    parser.add_argument("--as-of", metavar="TIME", help="of the feature snapshot (default: the workspace clock's midnight)")
    parser.add_argument("--model", metavar="VERSION", help="model version (default: the newest)")
    parser.add_argument("--surface", default="homepage", help="where the lists are shown (default: homepage)")
    parser.add_argument("--length", type=int, default=blend.list_length, metavar="N",
                        help=f"items per list (default: {blend.list_length})")
    parser.add_argument("--ttl-days", type=float, default=7.0, metavar="DAYS", help="lists expire after (default: 7)")
    parser.add_argument("--item-cf", type=float, default=blend.item_cf, metavar="W",
                        help=f"weight of item co-occurrence beside the two-tower's 1 (default: {blend.item_cf})")
    parser.add_argument("--popularity", type=float, default=blend.popularity, metavar="W",
                        help=f"weight of popularity (default: {blend.popularity})")
    parser.add_argument("--active-days", type=float, metavar="DAYS", help="no list ahead for who did nothing in so many days: "
                        f"theirs is made when they come back; 0 makes everybody's (default: {ACTIVE_DAYS:g}; 0 where the "
                        "clock stands still)")
    parser.add_argument("--active-within", metavar="TIME", help="like 1h, 90m or 2d: only refresh the lists of who was active; "
                        "what the lists are made with is that of their version")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the lists and prints the version."""
    config = Config.from_args(args)
    if args.active_within is not None:
        return _refresh(config, args)
    if not 1 <= args.length <= 1000:
        raise UserError(f"--length is a number from 1 to 1000, not {args.length}")
    if args.active_days is not None and not args.active_days >= 0:
        raise UserError(f"--active-days is a number of days, or 0 for everybody, not {args.active_days:g}")
    if args.ttl_days <= 0 or args.item_cf < 0 or args.popularity < 0:
        raise UserError("--ttl-days must be positive, --item-cf and --popularity not negative")
    as_of = parse_as_of(args.as_of, config.workspace)
    from beam_pipelines.jobs import recommend

    blend = Blend(list_length=args.length, item_cf=args.item_cf, popularity=args.popularity)
    settings = recommend.RecommendSettings(args.surface, args.ttl_days, blend, args.active_days)
    report = recommend.run(config, as_of, args.model, settings)
    if args.json:
        print_json({**dataclasses.asdict(report), "users_per_s": report.users / max(report.seconds, 1e-9)})
        return 0
    if report.reused:
        print(f"version {report.version} is complete already: {report.users:,} lists")
    else:
        recall = "not measured" if report.recall is None else f"{report.recall:.3f}"
        print(f"version {report.version}: {report.users:,} lists in {report.seconds:.1f} s, {report.without_vector:,} by "
              f"popularity alone; model {report.model_version}, retrieval recall {recall}")
        if report.dormant:
            print(f"{report.dormant:,} dormant users have none: theirs are made when they come back")
    print(f"next: beamrec publish {report.version}")
    return 0


def _refresh(config: Config, args: argparse.Namespace) -> int:
    if args.as_of or args.model:
        raise UserError("--active-within refreshes lists of the version that is served, now: leave --as-of and --model out")
    seconds = parse_span(args.active_within)
    from beam_pipelines.jobs import refresh

    report = refresh.run(config, seconds, args.surface)
    users = sum(report.users.values())
    if args.json:
        print_json({**dataclasses.asdict(report), "users_per_s": users / max(report.seconds, 1e-9)})
    elif users:
        said = ", ".join(f"{count:,} of version {version}" for version, count in sorted(report.users.items()))
        print(f"{users:,} users were active in the last {args.active_within}: new lists, {said}, in {report.seconds:.1f} s")
    else:
        print(f"nobody was active in the last {args.active_within}: no list was changed")
    return 0


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_span(text: str) -> float:
    """Seconds of ``45s``, ``90m``, ``1h`` or ``2d``; raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= 366 * 86_400:
        raise UserError(f"--active-within is a time like 1h, 90m or 2d, not {text!r}")
    return seconds
