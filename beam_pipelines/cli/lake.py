"""Write an event log into the lake, a commit a minute.

  beamrec lake --log dir:PATH              or kafka://HOST:PORT/TOPIC[?client=FILE]; runs until it is stopped
  beamrec lake --log URI --until-end       ends once everything that was there at the start is written

Every record goes to raw_events exactly as it came, with its partition and offset; clean events to events, each event id once,
by day; what is no event to dead_letters with its reason. The offsets of a commit stand in its snapshot, so a writer that was
killed goes on where the last commit ended and adds nothing twice. One writer at a time works on a lake; others wait.

The collector's logs beside it are stored too, each once it is there: LOG-dead (what it refused) in dead_letters, LOG-items
and LOG-users in items and users, where the newest updated_at wins; always from their beginning. LOG-served, what 'beamrec
serve' showed with the feature values it used, goes to the table served.

Ctrl-C or SIGTERM commits what was read, then ends. A log or a lake that is away is waited for.

A workspace whose clock an import stopped has the wall clock again once this follows a log (without --until-end).

This is a process of its own beside 'beamrec stream': a lake that is away delays no feature, and a stream that is stopped no
lake. Both read the log by their own offsets.

With --json, at the end: read = stored + duplicates + rejected, conflicts, rejected_by_reason, commits, lost (records that
retention deleted before they were read), next (offset by partition); items and users changed, served, letters and next_beside
of the logs beside it.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from dataclasses import asdict

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakewriter import COMMIT_EVERY_S, Written, write_lake
from beam_pipelines.options import Config, add_common_flags
from beam_pipelines.progress import Stage
from serving.eventlog import LogError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", required=True, metavar="URI", help="dir:PATH or kafka://HOST:PORT/TOPIC[?client=FILE]")
    parser.add_argument("--from", dest="start", choices=("earliest", "latest"), default="earliest",
                        help="where to begin a log of which the lake holds nothing yet (default: earliest)")
    parser.add_argument("--every", type=float, default=COMMIT_EVERY_S, metavar="SECONDS",
                        help=f"between commits (default: {COMMIT_EVERY_S:.0f}); a full buffer is committed earlier")
    parser.add_argument("--until-end", action="store_true", help="end once what was there at the start is written")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    if not args.every > 0:
        raise UserError(f"--every takes a number of seconds above 0, not {args.every:g}")
    config = Config.from_args(args)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    if not args.until_end:
        config.workspace.run_clock()
    with Stage(f"lake from {args.log.partition('?')[0]}", quiet=config.quiet) as stage:

        def committed(written: Written) -> None:
            beside = f", {written.items:,} items, {written.users:,} users" if written.items or written.users else ""
            beside += f", {written.served:,} served" if written.served else ""
            stage.advance(note=f"{written.stored:,} stored, {written.rejected:,} rejected, {written.commits:,} commits{beside}")

        try:
            written = write_lake(Lake.open(config.lake, config.catalog), args.log, start=args.start, until_end=args.until_end,
                                 every_s=args.every, stop=stop, progress=committed)
        except LogError as error:
            raise UserError(str(error)) from error
    if args.json:
        print_json(asdict(written))
    else:
        print(f"read {written.read:,}, stored {written.stored:,}, duplicates {written.duplicates:,} ({written.conflicts:,} in "
              f"conflict), rejected {written.rejected:,}, in {written.commits:,} commits")
        for reason, number in written.rejected_by_reason.items():
            print(f"  rejected: {number:,} {reason} (table dead_letters)")
        if written.next_beside:
            print(f"beside it: {written.letters:,} dead letters and {written.served:,} answers stored; "
                  f"{written.items:,} items and {written.users:,} users changed")
    return 0
