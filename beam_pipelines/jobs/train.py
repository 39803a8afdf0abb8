"""Trains a two-tower model on everything before as_of, and measures it first on a time split of the same events."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from beam_pipelines import crashpoints
from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import fitting
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from models.evaluation import Candidates, Lists, Quality, quality
from models.registry import MANIFEST, ModelVersion, Registry
from models.splits import Split, cut_at_share, fold_split
from models.two_tower.config import FORMAT, TwoTowerConfig
from transforms.examples import item_rows, user_rows

MAX_EVALUATED_USERS = 5_000
TRAIN_SHARE = 0.8
METHODS = ("two_tower", "popularity", "item_cf")


@dataclass(frozen=True)
class TrainReport:
    """What ``run`` did. ``metrics``: per method of METHODS, evaluation.Quality as plain values."""

    model_version: str
    reused: bool
    examples: int
    items: int
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)


def run(config: Config, as_of: int, settings: TwoTowerConfig | None = None, force: bool = False) -> TrainReport:
    """Trains on the events before as_of (microseconds) and writes workspace.models/<version>.

    Quality is measured on a model of the first 80 % of the events (models.splits.fold_split), then the exported model is
    fitted to all of them. The version is a hash of examples, settings and seed: the same inputs find the model trained.

    Raises:
      UserError: the lake holds no positive event before as_of.
    """
    started = time.monotonic()
    settings = settings or TwoTowerConfig()
    lake = Lake.open(config.lake, config.catalog)
    scratch = config.workspace.scratch / "train"
    events = fitting.read_interactions(lake, as_of)
    if not events.num_rows:
        raise UserError("no positive events to train on before the time asked; import or simulate some first")
    examples = fitting.make_examples(config, lake, scratch / "examples", as_of, cut_at_share(events, TRAIN_SHARE))
    if not examples.first:
        raise UserError("too few positive events to train on; import or simulate more")
    registry = Registry(config.workspace.models)
    version = model_version(as_of, examples.fingerprint(), settings, config.seed)
    reused = registry.has(version) and not force
    if not reused:
        metrics = _measure(config, lake, settings, events, examples, scratch)
        with registry.writing(version) as model:
            losses = fitting.fit(config, settings, [*examples.first, *examples.rest], model, scratch / "whole", "train")
            items = fitting.write_item_vectors(model, examples, as_of)
            crashpoints.reached("model.written")
            _write(model.root / "metrics.json", metrics)
            _write(model.root / MANIFEST, {
                "model_version": version, "as_of": as_of, "examples": examples.rows(), "items": items, "seed": config.seed,
                "settings": settings.as_dict(), "inputs": examples.fingerprint(), "loss": losses["loss"], "format": FORMAT})
    shutil.rmtree(scratch, ignore_errors=True)
    model = registry.get(version)
    manifest = model.manifest()
    return TrainReport(version, reused, manifest["examples"], manifest["items"], time.monotonic() - started, model.metrics())


def model_version(as_of: int, inputs: str, settings: TwoTowerConfig, seed: int) -> str:
    """``tt-<day of as_of>-<8 hex>``: the hash covers what decides the weights, never the time of training."""
    text = json.dumps([FORMAT, inputs, settings.as_dict(), seed], sort_keys=True).encode()
    return f"tt-{datetime.fromtimestamp(as_of // 1_000_000, UTC):%Y-%m-%d}-{xxhash.xxh3_64_hexdigest(text)[:8]}"


def _measure(config: Config, lake: Lake, settings: TwoTowerConfig, events: pa.Table, examples: fitting.Examples,
             scratch: Path) -> dict[str, Any]:
    split = _sample(fold_split(events, examples.split_at))
    if not split.users:
        return {"split": "no user has positives on both sides of the split", "users": 0}
    model = ModelVersion(scratch / "measured")
    fitting.fit(config, settings, examples.first, model, scratch / "first", "train on the first 80 %")
    found, _ = evaluate_split(config, lake, model, examples, split)
    return {"split": "fold: first 80 % of events train; half of a user's later events are input, positives of the rest targets",
            "users": len(split.users), **{name: measured.as_dict() for name, measured in found.items()}}


def evaluate_split(config: Config, lake: Lake, model: ModelVersion, examples: fitting.Examples, split: Split,
                   methods: Sequence[str] = METHODS) -> tuple[dict[str, Quality], dict[str, Lists]]:
    """Quality and lists (100 per user) of a fitted model and the baselines on one split, over the full catalogue."""
    from models.two_tower.export import Scorer

    with Stage("evaluate", total=len(methods), quiet=config.quiet) as stage:
        catalogue = pq.read_table(examples.catalogue)
        candidates = Candidates(catalogue["item_id"].to_pylist(), split)
        lists: dict[str, Lists] = {}
        for name in methods:
            if name == "two_tower":
                scorer = Scorer(model.saved_model)
                snapshots = fitting.user_snapshots(lake, int(split.moments.max()), split.users)
                users = user_rows(split.visible, snapshots, pa.array(split.users, pa.string()), split.moments)
                items = item_rows(catalogue, fitting.newest_only(pq.read_table(examples.item_snapshots), split.train_until),
                                  catalogue["item_id"], np.full(catalogue.num_rows, split.train_until))
                lists[name] = candidates.by_vectors(scorer.user_vectors(users), scorer.item_vectors(items))
            else:
                lists[name] = candidates.by_popularity() if name == "popularity" else candidates.by_item_cf()
            stage.advance(note=name)
    return {name: quality(made, split.targets, catalogue.num_rows) for name, made in lists.items()}, lists


def _sample(split: Split) -> Split:
    """The MAX_EVALUATED_USERS users of the smallest hashes, so that measuring stays cheap on any lake."""
    if len(split.users) <= MAX_EVALUATED_USERS:
        return split
    hashes = [xxhash.xxh3_64_intdigest(user.encode()) for user in split.users]
    kept = np.sort(np.argsort(np.array(hashes, np.uint64), kind="stable")[:MAX_EVALUATED_USERS])
    return Split(split.train_until, split.visible, [split.users[k] for k in kept], split.moments[kept],
                 [split.targets[k] for k in kept])


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True))
