"""The whole path in one command: data, features, model, index, lists, publish, and a report of what came of it.

  beamrec demo                      on a small simulated world
  beamrec demo --data PATH          on MovieLens 100K, MovieLens latest or Globo clicks, whichever PATH holds

The report names what was read, rejected and stored, the model's quality beside popularity and item-CF (every item ranked,
split by time), the index's recall against brute force, time and peak memory of each stage, and three users with their
lists. What is done already is not done again. A workspace that holds other data is left alone: a folder beside it, named
after the data, is used and shown.
"""

from __future__ import annotations

import argparse
import sys

from beam_pipelines.options import Config, add_common_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --data and the size of the simulated world."""
    from beam_pipelines.simulate.world import WorldSpec

    parser.add_argument("--data", metavar="PATH", help="MovieLens or Globo data (default: simulate)")
    for name in ("users", "items", "days"):
        default = getattr(WorldSpec(), name)
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"simulated {name} (default: {default})")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the demo and prints its report."""
    import msgspec
    from rich.console import Console

    from beam_pipelines.errors import UserError
    from beam_pipelines.jobs import daily, demo
    from beam_pipelines.report import render
    from beam_pipelines.simulate.world import WorldSpec

    config = Config.from_args(args)
    try:
        spec = WorldSpec(users=args.users, items=args.items, days=args.days, seed=config.seed)
    except ValueError as error:
        raise UserError(str(error)) from error

    def say(line: str) -> None:
        if not config.quiet:
            print(line, file=sys.stderr)

    try:
        report = demo.run(config, args.data, spec, lambda step: say(daily.line(step)), say)
    except daily.StepFailed as error:
        print(f"beamrec demo: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(msgspec.json.encode(report).decode())
    else:
        Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(render(report))
    return 0
