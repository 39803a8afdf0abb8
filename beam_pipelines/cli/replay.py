"""Run the streaming job again over a part of its log, beside production: other values to compare, nothing changed.

  beamrec replay --log URI --from 2026-03-01T08:00 --to 2026-03-01T12:00 --group fix-1
                                           what the log got in between, on FnApiRunner in this process
  beamrec replay ... --runner prism        or flink: the same job as 'beamrec stream'
  beamrec diff --b fix-1                   its values beside the live ones
  beamrec replay list                      what there is
  beamrec replay drop fix-1                delete one, with its store

--from and --to are times of the log's records (UTC), turned into exact offsets, which are printed and kept: a replay that is
repeated under its name reads the same records and gives the same cells. It has a store and an audit of its own in
WORKSPACE/replays/NAME; the live store, its status row and the live job's place in the log stay as they are.

State begins empty at --from, so a window that reaches further back is not whole: begin a day earlier for whole days. --to may
be left out: now. A name that a live job or another replay is using is refused.

With --json: first and last (offsets by partition), records, counters, cells by group, cut (partitions that retention left
later than --from), seconds.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beam_pipelines.errors import UserError
from beam_pipelines.options import Config, add_common_flags, parse_seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``beamrec replay``."""
    parser.add_argument("action", nargs="?", choices=("run", "list", "drop"), default="run", help="default: run")
    parser.add_argument("name", nargs="?", metavar="NAME", help="which one to drop")
    parser.add_argument("--log", metavar="URI", help="dir:PATH or kafka://HOST:PORT/TOPIC[?client=FILE]")
    parser.add_argument("--from", dest="start", metavar="T1", help="a date or time, UTC where it names no zone")
    parser.add_argument("--to", dest="end", metavar="T2", help="the same; what came then or later is not read (default: now)")
    parser.add_argument("--group", metavar="NAME", help="name of the replay: its job, folder and store")
    parser.add_argument("--lateness", default="1h", metavar="T", help="as of 'beamrec stream' (default: 1h)")
    parser.add_argument("--watermark-delay", default="10s", metavar="T", help="as of 'beamrec stream' (default: 10s)")
    parser.add_argument("--readers", type=int, default=2, help="parallel readers of the log (default: 2)")
    parser.add_argument("--services", metavar="DIR", help="folder of 'beamrec services' (default: WORKSPACE/services)")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    config = Config.from_args(args)
    services = Path(args.services).absolute() if args.services else None
    if args.action == "list":
        return _list(args, config)
    if args.action == "drop":
        return _drop(args, config, services)
    return _replay(args, config, services)


def _replay(args: argparse.Namespace, config: Config, services: Path | None) -> int:
    from beam_pipelines.cli.features import parse_time
    from beam_pipelines.cli.main import print_json
    from beam_pipelines.cli.stream import absolute_log
    from beam_pipelines.jobs import replay
    from beam_pipelines.progress import Stage
    from beam_pipelines.runner import quiet_logs
    from schemas.metric_names import EVENTS_READ
    from serving.eventlog import LogError

    missing = [f"--{flag}" for flag, value in (("log", args.log), ("from", args.start), ("group", args.group)) if not value]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given; see beamrec replay --help")
    lateness = parse_seconds(args.lateness)
    if lateness != int(lateness):
        raise UserError("--lateness is in whole seconds")
    if args.readers < 1:
        raise UserError(f"--readers is at least 1, not {args.readers}")
    quiet_logs()
    try:
        found = replay.plan(config, args.group, absolute_log(args.log), parse_time(args.start),
                            parse_time(args.end) if args.end else None, int(lateness), parse_seconds(args.watermark_delay))
    except LogError as error:
        raise UserError(str(error)) from error
    if not args.json and not config.quiet:
        print("\n".join(_offsets(found)), flush=True)
    with Stage(f"replay {found.name}", quiet=config.quiet) as stage:
        seen = 0

        def tell(status: dict[str, Any]) -> None:
            nonlocal seen
            read = int(status["counters"].get(EVENTS_READ, 0))
            stage.advance(read - seen, note=f"{read:,} events")
            seen = read

        found = replay.perform(config, found, services, args.readers, tell)
    if gone := replay.lost_meanwhile(found):
        print_note(f"retention deleted records of partitions {gone} meanwhile: the replay may have missed some")
    if args.json:
        print_json(replay.summary(found))
    else:
        print(f"{sum(found.cells.values()):,} cells in {replay.store_uri(config.workspace, found.name)} after "
              f"{found.seconds:.0f} s; compare: beamrec diff --b {found.name}")
    return 0


def print_note(text: str) -> None:
    """One line on stderr."""
    import sys

    print(f"beamrec replay: {text}", file=sys.stderr, flush=True)


def _moment(micros: int) -> str:
    return f"{datetime.fromtimestamp(micros / 1e6, UTC):%Y-%m-%d %H:%M:%S}"


def _offsets(found: Any) -> list[str]:
    lines = [f"{found.records:,} records of {found.log.partition('?')[0]}, {_moment(found.start_at)} to "
             f"{_moment(found.end_at)} UTC"]
    lines += [f"  partition {p}: offsets {first:,} to {found.last[p] - 1:,}" for p, first in found.first.items()
              if first < found.last[p]]
    if found.cut:
        lines.append(f"  retention left nothing before that of partitions {', '.join(map(str, found.cut))}")
    return lines


def _list(args: argparse.Namespace, config: Config) -> int:
    from beam_pipelines.cli.main import print_json
    from beam_pipelines.jobs.replay import replays, summary

    found = replays(config.workspace)
    if args.json:
        print_json([summary(one) for one in found])
        return 0
    if not found:
        print(f"no replays in {config.workspace.root / 'replays'}")
    for one in found:
        print(f"{one.name:<20} {one.state:<8} {_moment(one.start_at)} to {_moment(one.end_at)}  {one.records:>12,} records  "
              f"{sum(one.cells.values()):>12,} cells")
    return 0


def _drop(args: argparse.Namespace, config: Config, services: Path | None) -> int:
    from beam_pipelines.cli.main import print_json
    from beam_pipelines.jobs.replay import drop

    name, began = args.name or args.group, time.monotonic()
    if not name:
        raise UserError("which one? beamrec replay drop NAME")
    if not drop(config.workspace, name, services):
        raise UserError(f"no replay {name} in {config.workspace.root / 'replays'}")
    if args.json:
        print_json({"dropped": name, "seconds": round(time.monotonic() - began, 1)})
    else:
        print(f"dropped {name}")
    return 0
