"""Make a seeded world of users and items: its history into the lake, or what happens in it now to a collector or log.

The world has a truth that a recommender should find: every user and item has a taste vector, items have qualities and
Zipf popularity, are born and disappear; users sign up, own several devices, and browse pages of which they look at the
top positions most. Behind every impression lies a funnel: click with a dwell, view, save, cart, purchase (at once or days
later), return, rating. Some events arrive late or twice; bots and outages of the collector come on request.

The same seed and sizes give the same rows, always; `truth.npz` in the workspace holds the tastes and true qualities, and
`beam_pipelines.simulate.world.World.from_seed` recreates them. Running it again adds nothing; with more --days the same
world goes on. The workspace's clock is then frozen at the midnight after the last day.

  beamrec simulate                                        a small world, some seconds
  beamrec simulate --users 100000 --items 20000 --days 30 tens of millions of events
  beamrec simulate --bots 5 --outages 0.2 --late 0.1      with trouble
  beamrec simulate --until-now                            the last day is yesterday, and the clock runs: for live events

With --rate the same users go on living now, as fast as the wall clock: events are posted in batches over several
connections, sent again (with the same ids) when the collector says 429 or 503, until --seconds are over or Ctrl-C.
From then on the workspace's clock runs, so features of a history that ended long ago count as expired: make it --until-now.

  beamrec simulate --rate 5000 --to http://127.0.0.1:8000              beamrec collect listens there
  beamrec simulate --rate 200 --seconds 60 --to dir:workspace/log      packs straight into a log, without a collector
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, fields, replace

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from beam_pipelines.simulate.world import WorldSpec
from schemas.workspace import DAY_MICROS

_HELP = {
    "users": "users there will ever be; 30 %% sign up during the first 60 days", "items": "items there will ever be",
    "days": "days to simulate", "start": "first of them", "sessions": "mean sessions of a user on a day",
    "bots": "accounts that click 300 items a day without looking", "outages": "mean outages of the collector per day",
    "duplicates": "share of events sent twice", "late": "share of events that arrive minutes to hours late",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of the world and the pace of live events."""
    sizes = parser.add_argument_group("the world", "defaults are those of the world in the workspace, if there is one")
    for spec_field in fields(WorldSpec):
        if spec_field.name in _HELP:
            kind, default = type(spec_field.default), spec_field.default
            sizes.add_argument(f"--{spec_field.name}", type=kind, metavar={int: "N", float: "X", str: "DATE"}[kind],
                               help=f"{_HELP[spec_field.name]} (default: {default})")
    sizes.add_argument("--until-now", action="store_true", help="let the days end with yesterday (UTC), and the clock run")
    live = parser.add_argument_group("live events")
    live.add_argument("--rate", type=float, metavar="N", help="events per second to send, as they happen now")
    live.add_argument("--to", "--log", dest="to", metavar="URI",
                      help="http://HOST:PORT of a collector, or a log: dir:PATH, kafka://HOST:PORT/TOPIC")
    live.add_argument("--key", default=os.environ.get("BEAMREC_KEY"), metavar="KEY",
                      help="of 'beamrec keys', for a collector that asks for one (default: the variable BEAMREC_KEY)")
    live.add_argument("--seconds", type=float, metavar="N", help="for so long (default: until Ctrl-C)")
    live.add_argument("--batch", type=int, default=100, metavar="N", help="events per request (default: 100)")
    live.add_argument("--connections", type=int, default=4, metavar="N", help="requests at once (default: 4)")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Simulates and prints what was written or sent."""
    config = Config.from_args(args)
    if (args.rate is None) != (args.to is None):
        raise UserError("live events need both --rate N and --to URI; a history into the lake takes neither")
    return _live(config, args) if args.to else _history(config, args)


def _history(config: Config, args: argparse.Namespace) -> int:
    from beam_pipelines.simulate.write import simulate

    report = simulate(config, _spec(config, args))
    if args.until_now:
        config.workspace.run_clock()
    if args.json:
        print_json(asdict(report))
    elif report.already:
        print(f"this world of {report.days} days is in {config.workspace.root} already; more --days would continue it")
    else:
        print(f"{report.events:,} events of {report.days} days stored in {report.seconds:.1f} s "
              f"({report.events_per_s:,.0f}/s); {report.duplicates:,} duplicates dropped, {report.late:,} late, "
              f"{report.lost:,} lost in outages")
        print("next: beamrec run", file=sys.stderr)
    return 0


def _spec(config: Config, args: argparse.Namespace) -> WorldSpec:
    """The world asked for: flags, over the world in the workspace where it is to go on, over the defaults."""
    from beam_pipelines.simulate.write import spec_of

    given = {name: value for name in _HELP if (value := getattr(args, name)) is not None}
    held = spec_of(config)
    try:
        if args.until_now:
            today = time.time_ns() // 1000 // DAY_MICROS
            if "days" in given and (held or "start" in given):
                raise UserError("--until-now sets the number of days; leave out --days")
            spec = held or WorldSpec(**given, seed=config.seed)
            if held is None and "start" not in given:
                given["start"] = time.strftime("%Y-%m-%d", time.gmtime((today - spec.days) * 86_400))
            else:
                given["days"] = today - spec.first // DAY_MICROS
        if args.to and held is not None:
            asked = replace(held, **given, **({"seed": args.seed} if args.seed is not None else {}))
            if asked != held:
                raise UserError(f"{config.workspace.root} holds another world; leave out the flags that describe it")
            return held
        return replace(held, **given) if args.until_now and held else WorldSpec(**given, seed=config.seed)
    except ValueError as error:
        raise UserError(str(error)) from error


def _live(config: Config, args: argparse.Namespace) -> int:
    from beam_pipelines.simulate.send import Pace, run
    from beam_pipelines.simulate.targets import open_target
    from beam_pipelines.simulate.world import World

    limits = {"--rate is a number above 0": args.rate > 0, "--batch is a number from 1 to 1000": 1 <= args.batch <= 1000,
              "--connections is a number from 1 to 64": 1 <= args.connections <= 64,
              "--seconds is a number above 0": args.seconds is None or args.seconds > 0,
              "--until-now makes a history; leave it out with --rate": not args.until_now}
    for message, good in limits.items():
        if not good:
            raise UserError(message)
    world = World.from_seed(_spec(config, args))
    target = open_target(args.to, args.key)
    if config.workspace.is_frozen:
        config.workspace.run_clock()
        print(f"the clock of {config.workspace.root} runs from now on: features and lists from before count by their age",
              file=sys.stderr)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        report = run(world, target, Pace(args.rate, args.seconds, args.batch, args.connections), stop, config.quiet)
    except ValueError as error:
        raise UserError(str(error)) from error
    finally:
        target.close()
    if args.json:
        print_json(asdict(report))
    else:
        reasons = "".join(f"\n  {count:,} x {reason}" for reason, count in report.reasons.items())
        took = f"; requests p50 {report.p50_ms:g} ms, p99 {report.p99_ms:g} ms" if report.requests else ""
        print(f"{report.accepted:,} of {report.sent:,} events accepted in {report.seconds:.1f} s ({report.rate:,.0f}/s); "
              f"{report.rejected:,} rejected, {report.unsent:,} unsent, {report.retries:,} retries{took}; "
              f"{report.behind_s:.1f} s behind at most{reasons}")
    return 1 if report.sent and not report.accepted else 0
