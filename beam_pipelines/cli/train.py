"""Build training examples, run tf.Transform, train and export the two-tower model.

  beamrec train                       on every event before the workspace's clock
  beamrec train --as-of 1998-04-01    on what was known then
  beamrec train --epochs 12 --json    other settings; one JSON document on stdout

A training example is a positive event (a click, a purchase, a rating of 4 or more) with only what was known at its moment:
the user's last 50 positives before it and the newest feature snapshots published before it. The model is first trained on
the first 80 % of the events and measured on the rest, over the full catalogue, beside popularity and item-to-item
filtering; then it is fitted to all of them and written to WORKSPACE/models/<version>. The version is a hash of data,
settings and seed, so training again on the same inputs finds the model there. Compute feature snapshots first ('beamrec
features') to let the towers read them; without any they fall back to defaults.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields, replace

from beam_pipelines.options import Config, add_common_flags, parse_as_of
from models.two_tower.config import TwoTowerConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``beamrec train``."""
    parser.add_argument("--as-of", metavar="TIME", help="train on events before this UTC time (default: the workspace's clock)")
    parser.add_argument("--force", action="store_true", help="train again even if this model is there")
    add_model_flags(parser)
    add_common_flags(parser)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that ``settings_of`` reads."""
    shown = parser.add_argument_group("model")
    defaults = TwoTowerConfig()
    for name in ("epochs", "max_steps", "batch_size", "dim"):
        shown.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default: {getattr(defaults, name)}")
    for name in ("learning_rate", "dropout", "temperature"):
        shown.add_argument(f"--{name.replace('_', '-')}", type=float, help=f"default: {getattr(defaults, name)}")


def settings_of(args: argparse.Namespace) -> TwoTowerConfig:
    """The model settings of the parsed flags."""
    given = {f.name: getattr(args, f.name) for f in fields(TwoTowerConfig) if getattr(args, f.name, None) is not None}
    return replace(TwoTowerConfig(), **given)


def run(args: argparse.Namespace) -> int:
    """Trains; prints the report."""
    from beam_pipelines.cli.main import print_json
    from beam_pipelines.jobs import train

    config = Config.from_args(args)
    report = train.run(config, parse_as_of(args.as_of, config.workspace), settings_of(args), args.force)
    if args.json:
        print_json(asdict(report))
        return 0
    state = "found, nothing to do" if report.reused else f"trained in {report.seconds:.0f} s"
    print(f"model {report.model_version}: {state}; {report.examples:,} examples, {report.items:,} items")
    print_quality(report.metrics)
    return 0


def print_quality(metrics: dict[str, object]) -> None:
    """Recall and NDCG of each method, with intervals, as lines."""
    print(f"held-out users: {metrics.get('users', 0)}   full catalogue, 95 % bootstrap intervals")
    for name, found in metrics.items():
        if isinstance(found, dict):
            parts = (f"{label} {found[key]['mean']:.3f} [{found[key]['low']:.3f}, {found[key]['high']:.3f}]"
                     for label, key in (("Recall@20", "recall_20"), ("NDCG@10", "ndcg_10")))
            print(f"  {name:<11}{'  '.join(parts)}  coverage@20 {found['coverage_20']:.3f}")
