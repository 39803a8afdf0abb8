"""Train and judge on a published time split of MovieLens.

  beamrec evaluate movielens ml-100k --protocol ml_fold
  beamrec evaluate movielens ml-100k --protocol ml_time --out recs.csv --json

Protocols (the split is by time, the ranking over the whole catalogue, items already seen are never listed):
  ml_fold   the first 80 % of ratings train; the first half of each user's later events is input, the positives (rating of 4
            or more) of the other half are the targets: a trained model and fresh events, as in production
  ml_time   the first 80 % of ratings are known; new positives after them are the targets
  ml_lvo    the last positive of each user with at least 5 is the target

What a protocol lets be known is imported into a scratch workspace; features, examples, tf.Transform, training, export and
exact retrieval run there by the same code as the daily run. Shown are Recall@20 (hits over the smaller of 20 and the targets)
and NDCG@10 with 95 % bootstrap intervals over users, beside popularity (30 days) and item-to-item cosine. --out writes 100
items per user as user,rank,item with the published ids; --method chooses whose.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from beam_pipelines.cli.main import print_json
from beam_pipelines.cli.train import add_model_flags, print_quality, settings_of
from beam_pipelines.options import Config, add_common_flags

_METHODS = ("two_tower", "popularity", "item_cf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``beamrec evaluate``."""
    parser.add_argument("dataset", choices=("movielens",), help="what PATH holds")
    parser.add_argument("path", metavar="PATH", help="folder of MovieLens 100K or latest")
    parser.add_argument("--protocol", choices=("ml_fold", "ml_time", "ml_lvo"), default="ml_fold", help="default: ml_fold")
    parser.add_argument("--out", type=Path, metavar="CSV", help="write the lists: user,rank,item")
    parser.add_argument("--method", choices=_METHODS, default="two_tower", help="whose lists --out writes (default: two_tower)")
    add_model_flags(parser)
    add_common_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates; prints the report."""
    from beam_pipelines.jobs import evaluate

    report = evaluate.run(Config.from_args(args), args.path, args.protocol, args.out, args.method, settings_of(args))
    if args.json:
        print_json(asdict(report))
        return 0
    print(f"{report.protocol}: {report.examples:,} examples, {report.items:,} items, {report.seconds:.0f} s")
    print_quality({"users": report.users, **report.metrics})
    if report.out:
        print(f"lists of {args.method}: {report.out}")
    return 0
