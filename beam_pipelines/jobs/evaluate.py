"""Judges the two-tower model on a published time split of MovieLens, by the very path that production takes.

Only what a protocol lets be known is written to a lake of its own; features, examples, tf.Transform, training, export and exact
retrieval run on that lake as they do on any other, so nothing later can leak in.
"""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.errors import UserError
from beam_pipelines.importers import detect
from beam_pipelines.importers import run as importing
from beam_pipelines.io.lake import Lake
from beam_pipelines.jobs import features, fitting
from beam_pipelines.jobs.steps import snapshot_days
from beam_pipelines.jobs.train import METHODS, evaluate_split
from beam_pipelines.options import Config
from models.evaluation import Lists
from models.registry import ModelVersion
from models.splits import Split, cut_at_share, fold_split, last_out_split, time_split
from models.two_tower.config import TwoTowerConfig
from schemas.workspace import DAY_MICROS, Workspace, write_atomically
from transforms.examples import plain

LISTED = 100


@dataclass(frozen=True)
class EvaluateReport:
    """What ``run`` found; ``metrics``: per method, evaluation.Quality as plain values; ``out``: the file of lists."""

    protocol: str
    users: int
    examples: int
    items: int
    seconds: float
    out: str | None
    metrics: dict[str, Any]


def _at_80_percent(split: Callable[[pa.Table, int], Split]) -> Callable[[pa.Table], Split]:
    def cut(events: pa.Table) -> Split:
        return split(events, cut_at_share(events))
    return cut


PROTOCOLS: dict[str, tuple[str, Callable[[pa.Table], Split]]] = {
    "ml_fold": ("the first 80 % of ratings train; half of each user's later events are input, positives of the other half "
                "targets", _at_80_percent(fold_split)),
    "ml_time": ("the first 80 % of ratings are known; new positives after them are the targets", _at_80_percent(time_split)),
    "ml_lvo": ("the last positive of each user with at least 5 is the target; what came before it is known", last_out_split),
}
"""Protocol -> (what it does, its split)."""


def run(config: Config, path: Path | str, protocol: str, out: Path | None = None, method: str = "two_tower",
        settings: TwoTowerConfig | None = None) -> EvaluateReport:
    """Trains and judges in a scratch workspace, which is deleted at the end.

    Args:
      config: its workspace holds the scratch folder; runner, buckets and seed are used.
      path: folder of MovieLens 100K or latest.
      protocol: of PROTOCOLS.
      out: receives the lists of ``method``: user, rank (from 1), item, published ids, LISTED per user.
      settings: of the model; None for the defaults.

    Raises:
      UserError: no such protocol, not a MovieLens folder, or nobody to ask in it.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol {protocol!r}; one of: {', '.join(PROTOCOLS)}")
    started = time.monotonic()
    scratch = config.workspace.scratch / f"evaluate-{protocol}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        whole, known = _config(config, scratch / "whole"), _config(config, scratch / "known")
        importing.run(whole, detect.detect(path, "movielens"))
        split = PROTOCOLS[protocol][1](_in_published_order(Lake.open(whole.lake)))
        if not split.users:
            raise UserError(f"{path}: no user has what {protocol} asks for")
        lake = _known_lake(whole, known, split)
        nights = {*snapshot_days(lake, known.workspace.now()), split.train_until // DAY_MICROS * DAY_MICROS}
        features.backfill(known, sorted(nights))
        examples = fitting.make_examples(known, lake, scratch / "examples", split.train_until, split.train_until)
        model = ModelVersion(scratch / "model")
        fitting.fit(known, settings or TwoTowerConfig(), examples.first, model, scratch / "fit", protocol)
        found, lists = evaluate_split(known, lake, model, examples, split)
        if out is not None:
            write_lists(out, split.users, lists[method])
        items = fitting.catalogue_size(examples)
        return EvaluateReport(protocol, len(split.users), examples.rows(), items, time.monotonic() - started,
                              str(out) if out else None, {name: found[name].as_dict() for name in METHODS})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_lists(path: Path, users: list[str], lists: Lists) -> None:
    """Writes user,rank,item rows, best first, LISTED per user."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("user", "rank", "item"))
    for user, ranked in zip(users, lists, strict=True):
        rows.writerows((user, rank, item) for rank, item in enumerate(ranked[:LISTED], 1))
    write_atomically(path, text.getvalue().encode())


def _config(config: Config, root: Path) -> Config:
    workspace = Workspace(root)
    return replace(config, workspace=workspace, lake=workspace.lake, catalog=None, store=f"sqlite:{workspace.store}")


def _in_published_order(lake: Lake) -> pa.Table:
    """All events by time, ties by user and item number: the order that the published splits are defined in."""
    events = plain(lake.read("events"))
    keys = [pc.cast(events[name], pa.int64()).to_numpy() for name in ("item_id", "user_id", "occurred_at")]
    return events.take(np.lexsort(keys))


def _known_lake(whole: Config, known: Config, split: Split) -> Lake:
    """A lake of the visible events and the catalogue; its clock stands after the last of them."""
    lake, source = Lake.open(known.lake), Lake.open(whole.lake)
    days = split.visible["occurred_at"].cast(pa.int64()).to_numpy() // DAY_MICROS
    files = {}
    for day in np.unique(days):
        at = int(day) * DAY_MICROS
        files[at] = [lake.write_file("events", split.visible.filter(pa.array(days == day)), at)]
    lake.replace_days("events", files)
    lake.replace_all("items", plain(source.read("items")))
    known.workspace.freeze_after(max(files))
    return lake
