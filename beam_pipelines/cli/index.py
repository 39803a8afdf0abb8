"""Builds the item index of a model: what finds the items of highest dot product with a user vector.

  beamrec index                        of the newest model; exact up to 20,000 items, ScaNN above
  beamrec index --model VERSION --kind exact|scann

The index lies beside the model, carries its version and refuses the vectors of any other. ScaNN's effort is calibrated
against brute force when it is built, with the vectors of users of the newest snapshot; 'recall' is what it reached.
"""

from __future__ import annotations

import argparse
import dataclasses

from beam_pipelines.cli.main import print_json
from beam_pipelines.options import Config, add_common_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``index``."""
    parser.add_argument("--model", metavar="VERSION", help="model version (default: the newest)")
    parser.add_argument("--kind", choices=("auto", "exact", "scann"), default="auto", help="which index (default: auto)")
    parser.add_argument("--force", action="store_true", help="build it again even when it is there")
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Builds the index and prints what it is."""
    from beam_pipelines.jobs import index

    report = index.run(Config.from_args(args), args.model, args.kind, args.force)
    if args.json:
        print_json(dataclasses.asdict(report))
    else:
        state = "found" if report.reused else "built"
        print(f"{state} {report.kind} index of model {report.model_version}: {report.items:,} items, "
              f"recall {report.recall:.3f}, {report.seconds:.1f} s")
    return 0
