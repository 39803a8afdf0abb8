"""Import a published data set into the lake.

  beamrec import movielens PATH    MovieLens 100K (u.data, u.item, u.user) or latest (ratings.csv, movies.csv):
                                   each rating is an event with its value, each movie an item with genres and year
  beamrec import globo PATH        Globo.com clicks (clicks_hour_*.csv): each row is a click with device, os, country,
                                   referrer and session
  beamrec import auto PATH         whichever of these PATH holds

PATH is the folder of the files, or one file of events; .csv and .csv.gz alike. The files are streamed, so they may be
larger than memory. A row that cannot be read does not stop the import: it is kept in the table dead_letters with its file,
line, reason and original bytes. Importing again changes nothing (stored 0), also after the import was killed half-way.
Afterwards the workspace's clock stands still at the midnight (UTC) after the last event.

With --json: read = stored + duplicates + rejected, conflicts (duplicates that differ), rejected_by_reason, seconds.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from beam_pipelines.cli.main import print_json
from beam_pipelines.importers import detect
from beam_pipelines.importers import run as importing
from beam_pipelines.options import Config, add_common_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=("auto", *detect.KINDS), help="what PATH holds")
    parser.add_argument("path", metavar="PATH", help="folder of the files, or one file")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    report = importing.run(Config.from_args(args), detect.detect(args.path, args.dataset))
    if args.json:
        print_json(report.as_json())
        return 0
    counts = report.counts
    print(f"{report.dataset} from {report.path}: read {counts.read:,}, stored {counts.stored:,}, duplicates "
          f"{counts.duplicates:,} ({counts.conflicts:,} in conflict), rejected {counts.rejected:,}, in {counts.seconds:.1f} s")
    for reason, number in counts.rejected_by_reason.items():
        print(f"  rejected: {number:,} {reason} (table dead_letters)")
    print(f"changed {report.items:,} items and {report.users:,} users; the clock stands at "
          f"{datetime.fromtimestamp(report.now / 1e6, UTC):%Y-%m-%d %H:%M} UTC")
    return 0
