"""Make a seeded world of users and items, let it run for some days, and write what happens into the lake.

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
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags
from beam_pipelines.simulate.world import WorldSpec

_HELP = {
    "users": "users there will ever be; 30 %% sign up during the first 60 days", "items": "items there will ever be",
    "days": "days to simulate, from 2026-01-01 on", "sessions": "mean sessions of a user on a day",
    "bots": "accounts that click 300 items a day without looking", "outages": "mean outages of the collector per day",
    "duplicates": "share of events sent twice", "late": "share of events that arrive minutes to hours late",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of the world."""
    sizes = parser.add_argument_group("the world")
    for spec_field in fields(WorldSpec):
        if spec_field.name in _HELP:
            kind, default = type(spec_field.default), spec_field.default
            sizes.add_argument(f"--{spec_field.name}", type=kind, default=default, metavar="N" if kind is int else "X",
                               help=f"{_HELP[spec_field.name]} (default: {default})")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Simulates and prints what was written."""
    from beam_pipelines.simulate.write import simulate

    config = Config.from_args(args)
    try:
        spec = WorldSpec(**{name: getattr(args, name) for name in _HELP}, seed=config.seed)
    except ValueError as error:
        raise UserError(str(error)) from error
    report = simulate(config, spec)
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
