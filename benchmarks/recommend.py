"""Speed of the recommend job: RunInference, retrieval, item-CF, exclusion, reasons, SQLite, gate and flip.

  beamrec bench recommend --json      100,000 users x 100,000 items, d = 64, 100 items per user, 50 consumed per user

A lake with clustered users and items is written and a two-tower model trained on it first; neither is timed. Timed is what
'beamrec recommend' and 'beamrec publish' do, in a store that starts empty. Keys: users_per_s (median of the repeats), recall
(retrieval against brute force, on sampled users: active items not consumed), seconds of each stage, peak memory.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from beam_pipelines.cli.main import print_json
from beam_pipelines.errors import UserError
from beam_pipelines.options import Config
from benchmarks import recommend_world


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``bench recommend``."""
    parser.add_argument("--users", type=int, default=100_000, help="default: 100000")
    parser.add_argument("--items", type=int, default=100_000, help="default: 100000")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs, each into an empty store (default: 3)")
    parser.add_argument("--dir", default=".bench/recommend", help="where the world is kept (default: .bench/recommend)")
    parser.add_argument("--fresh", action="store_true", help="make world and model again")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    if args.users < 100 or args.items < 1000 or args.repeat < 1:
        raise UserError("at least 100 users, 1000 items and one repeat")
    config = Config.of(Path(args.dir) / f"{args.users}x{args.items}", quiet=True)
    built = _prepare(config, args)
    runs = [_timed(config) for _ in range(args.repeat)]
    middle = sorted(runs, key=lambda r: r["seconds"])[len(runs) // 2]
    result: dict[str, Any] = {
        "users": args.users, "items": args.items, "dimensions": 64, "per_user": 100, **built,
        "users_per_s": round(args.users / statistics.median(r["seconds"] for r in runs)),
        "recall": middle["recall"],
        "stages_s": middle["stages"],
        "runs_users_per_s": [round(args.users / r["seconds"]) for r in runs],
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    if args.json:
        print_json(result)
    else:
        for key, value in result.items():
            print(f"{key:<18} {value}")
    return 0


def _prepare(config: Config, args: argparse.Namespace) -> dict[str, Any]:
    from beam_pipelines.jobs import index
    from models.registry import Registry

    root = config.workspace.root
    if args.fresh or not Registry(config.workspace.models).has(recommend_world.MODEL):
        shutil.rmtree(root, ignore_errors=True)
        world = recommend_world.draw(args.users, args.items, config.seed)
        recommend_world.write(config, world)
        recommend_world.train(config, world, config.workspace.scratch / "bench-model")
    config.workspace.freeze_after(recommend_world.AS_OF - 1)
    report = index.run(config, recommend_world.MODEL)
    return {"index": report.kind, "index_sample_recall": round(report.recall, 4)}


def _timed(config: Config) -> dict[str, Any]:
    from beam_pipelines.jobs import publish, recommend

    for path in config.workspace.root.glob("store.db*"):
        path.unlink()
    shutil.rmtree(config.workspace.lists, ignore_errors=True)
    started = time.perf_counter()
    made = recommend.run(config, recommend_world.AS_OF, recommend_world.MODEL)
    published = publish.run(config, made.version)
    seconds = time.perf_counter() - started
    stages = {name: round(value, 2) for name, value in made.stages.items()} | {"gate_and_flip": round(published.seconds, 2)}
    return {"seconds": seconds, "recall": made.recall, "stages": stages}
