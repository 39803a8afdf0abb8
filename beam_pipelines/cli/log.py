"""The event log in a folder: delete what is old and in the lake.

  beamrec log trim                        of dir:WORKSPACE/log: older than 7 days
  beamrec log trim --log dir:PATH --older-than 36h

Kafka deletes by its own retention; a log in a folder keeps everything until this is run, once a day say. It deletes whole
segments of up to 128 MiB, never the last one, all of whose records came before --older-than and are in the lake: what
'beamrec lake' has not committed stays, so a lake that is days behind loses nothing. The logs of dead letters and of what
was served (LOG-dead, LOG-served) are trimmed with it; those of items and users are not, for they are the catalogue.

Collector, stream and lake may go on meanwhile. Keep 2 days at least: a stream that begins anew (Prism after a restart) reads
the log from its beginning, and its longest window is a day. A replay reaches back as far as the log does. --dry-run deletes
nothing. With --json: a document a log with its partitions' earliest offsets, and the bytes that went.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.io.lakeside import offsets_of
from beam_pipelines.options import Config, add_common_flags, parse_seconds
from serving.eventlog import LocalLog, LogError, LogMissing, open_log, side_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``log``."""
    parser.add_argument("action", choices=("trim",))
    parser.add_argument("--log", metavar="URI", help="dir:PATH, as 'beamrec lake' names it (default: dir:WORKSPACE/log)")
    parser.add_argument("--older-than", default="7d", metavar="TIME", help="days or hours: 7d, 36h (default: 7d)")
    parser.add_argument("--dry-run", action="store_true", help="say what would go")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Trims the log and those beside it."""
    config = Config.from_args(args)
    uri = args.log or f"dir:{config.workspace.root / 'log'}"
    if re.fullmatch(r"\d{1,5}[dh]", args.older_than) is None:
        raise UserError(f"--older-than takes days or hours such as 7d or 36h, not {args.older_than!r}")
    before = time.time_ns() // 1000 - round(parse_seconds(args.older_than) * 1_000_000)
    lake = Lake.open(config.lake, config.catalog)
    told = []
    for table, one in (("events", uri), ("dead_letters", side_uri(uri, "dead")), ("served", side_uri(uri, "served"))):
        try:
            told.append(trim(lake, table, one, before, args.dry_run))
        except LogMissing:
            if one == uri:
                raise UserError(f"no log at {uri}") from None
        except LogError as error:
            raise UserError(str(error)) from error
    if args.json:
        print_json(told)
        return 0
    for log in told:
        verb = "would go" if args.dry_run else "deleted"
        why = "" if log["stored"] else "; the lake has stored nothing of a log of this name"
        print(f"{log['log']}: {log['bytes']:,} bytes {verb}{why}")
    return 0


def trim(lake: Lake, table: str, uri: str, before: int, dry_run: bool = False) -> dict[str, object]:
    """Deletes the segments of a log that came before a time (microseconds) and that a table of the lake has stored.

    Returns the log, its partitions' earliest offsets, the bytes deleted, and whether the lake knows the log.

    Raises:
      UserError: not a log in a folder.
      LogError: it is not there or cannot be read.
    """
    log = open_log(uri)
    try:
        if not isinstance(log, LocalLog):
            raise UserError("Kafka deletes by itself: set retention.ms of the topic")
        stored = offsets_of(lake, table, log.uri)
        earliest, gone = {}, 0
        for p in range(log.partitions()):
            upto = min(log.offset_at(p, before), stored.get(p, 0))
            gone += sum(_bytes(path) for path in log.before(p, upto))
            earliest[p] = log.earliest(p) if dry_run else log.trim(p, upto)
    finally:
        log.close()
    return {"log": log.uri, "earliest": earliest, "bytes": gone, "stored": bool(stored)}


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
