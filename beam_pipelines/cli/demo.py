"""The whole path in one command: data, features, model, index, lists, publish, and a report of what came of it.

  beamrec demo                      on a small simulated world
  beamrec demo --data PATH          on MovieLens 100K, MovieLens latest or Globo clicks, whichever PATH holds
  beamrec demo --stream             the stream: events in over HTTP, a visitor's features change as they act

The report names what was read, rejected and stored, the model's quality beside popularity and item-CF (every item ranked,
split by time), the index's recall against brute force, time and peak memory of each stage, and three users with their
lists. What is done already is not done again. A workspace that holds other data is left alone: a folder beside it, named
after the data, is used and shown.

--stream needs neither Java nor servers: a collector and the streaming job (on Prism, Beam's small runner) are started for it,
simulated users send --rate events a second, and one visitor views, clicks, buys, is late, repeats themselves and errs. Each
step shows what was read before and after, and how long after the event was accepted. It ends by itself after about a minute.
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
    parser.add_argument("--stream", action="store_true", help="show the stream at work instead")
    parser.add_argument("--rate", type=float, default=100, metavar="N", help="with --stream: events per second (default: 100)")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the demo and prints its report."""
    return _stream(args) if args.stream else _batch(args)


def _stream(args: argparse.Namespace) -> int:
    import msgspec
    from rich.console import Console

    from beam_pipelines.errors import UserError
    from beam_pipelines.jobs import demo_stream
    from beam_pipelines.runner import quiet_logs
    from beam_pipelines.stream_report import conclusion, heading, line

    config = Config.from_args(args)
    if not 0 < args.rate <= 5000:
        raise UserError(f"--rate is a number above 0 and at most 5000, not {args.rate:g}")
    quiet_logs()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, quiet=args.json)
    steps = 0

    def say(text: str) -> None:
        if not config.quiet:
            print(text, file=sys.stderr, flush=True)

    def show(step: demo_stream.Step) -> None:
        nonlocal steps
        if not steps:
            console.print(heading())
        steps += 1
        console.print(line(step))

    demo = demo_stream.run(config, args.rate, say, show)
    if args.json:
        print(msgspec.json.encode(demo).decode())
    else:
        console.print(conclusion(demo))
    return 0 if all(step.good for step in demo.steps) else 1


def _batch(args: argparse.Namespace) -> int:
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
