"""Measure speed beside other engines, in one run, with equal results checked.

  beamrec bench affinity [--json]      30-day category affinity of 10 M events: beamrec, Polars, PySpark, row-wise Beam
  beamrec bench features [--json]      1 user x 250 features, 100 items x 30 features, beside Feast, over SQLite and Bigtable
  beamrec bench flips [--json]         1,000 flips, canaries and rollbacks under load: nothing mixed, empty or late
  beamrec bench freshness [--json]     from an event's 202 to its value in the store, and memory, through the whole stream
  beamrec bench incremental [--json]   the nightly run after one new day, against computing all 30 days
  beamrec bench outage [--json]        losing lists, features, index and store under load: full pages in time, recovery
  beamrec bench rank [--json]          one request ranked in the process, step by step, beside plain NumPy
  beamrec bench recommend [--json]     lists for 100,000 users x 100,000 items, written
  beamrec bench source [--json]        the event log: polled, decoded, through the source on Prism and Flink
  beamrec bench serve [--json]         GET /v1/recommendations of 100,000 users under load, over SQLite and Bigtable
  beamrec bench collect [--json]       the collector under load: requests/s, events/s, p99, nothing lost
  beamrec bench stream [--json]        the streaming job catching up on Flink: beamrec, Flink SQL, Spark, row-wise Beam; paced

'beamrec bench NAME --help' shows the sizes that can be changed. Data is made once, under --work.
"""

from __future__ import annotations

import argparse
import importlib
import sys

BENCHMARKS = ("affinity", "collect", "features", "flips", "freshness", "incremental", "outage", "rank", "recommend", "serve",
              "source", "stream")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The name; the rest belongs to that benchmark's own parser."""
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="flags of the benchmark")


def run(args: argparse.Namespace) -> int:
    """Runs ``benchmarks.NAME``."""
    module = importlib.import_module(f"benchmarks.{args.name}")
    parser = argparse.ArgumentParser(prog=f"beamrec bench {args.name}", description=module.__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    print(f"bench {args.name}", file=sys.stderr)
    return int(module.run(parser.parse_args(args.rest)) or 0)
