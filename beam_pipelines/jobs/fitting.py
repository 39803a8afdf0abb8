"""From a lake to one fitted model: example files, tf.Transform, run_fn, item vectors. Train and evaluate both stand on it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from beam_pipelines.io.lake import Lake
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from beam_pipelines.runner import pipeline
from models.registry import ModelVersion, write_vectors
from models.two_tower.config import TwoTowerConfig
from schemas.tables import TABLES
from schemas.workspace import DAY_MICROS
from transforms.beam.examples import BuildExamples
from transforms.examples import (
    EVENT_COLUMNS,
    ITEM_SNAPSHOT_COLUMNS,
    USER_SNAPSHOT_COLUMNS,
    consumed,
    item_rows,
    plain,
    positives,
)

CATALOGUE_COLUMNS = ("item_id", "categories", "price", "published_at", "is_active", "attributes")


@dataclass(frozen=True)
class Examples:
    """Example files of one lake, split at a moment.

    Attributes:
      first, rest: files of examples before and from ``split_at`` on, by bucket.
      catalogue, item_snapshots: Parquet copies that fitting reads; item_snapshots has no rows when there are none.
    """

    first: list[str]
    rest: list[str]
    catalogue: Path
    item_snapshots: Path
    split_at: int

    def fingerprint(self) -> str:
        """XXH3-128 of the content of every file, 32 hex digits."""
        digest = xxhash.xxh3_128()
        for path in [*self.first, *self.rest, str(self.catalogue), str(self.item_snapshots)]:
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()

    def rows(self) -> int:
        """Examples in all."""
        return sum(pq.read_metadata(path).num_rows for path in [*self.first, *self.rest])


def read_interactions(lake: Lake, until: int) -> pa.Table:
    """Positive and consuming events before ``until``, EVENT_COLUMNS, by (occurred_at, event_hash); one file at a time."""
    parts = []
    for file in lake.files("events", end=_day_after(until)):
        rows = plain(pq.read_table(file.path, columns=list(EVENT_COLUMNS)))
        rows = rows.filter(pc.less(rows["occurred_at"].cast(pa.int64()), until))
        numbered = rows.append_column("row", pa.array(np.arange(rows.num_rows)))
        kept = np.union1d(positives(numbered)["row"].to_numpy(), consumed(numbered)["row"].to_numpy())
        parts.append(rows.take(kept))
    if not parts:
        return pa.table({name: [] for name in EVENT_COLUMNS})
    return pa.concat_tables(parts).sort_by([("occurred_at", "ascending"), ("event_hash", "ascending")])


def make_examples(config: Config, lake: Lake, folder: Path, until: int, split_at: int) -> Examples:
    """Builds the examples of the events before ``until`` into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("first", "rest"):
        (folder / part).mkdir(parents=True)
    catalogue, snapshots = folder / "catalogue.parquet", folder / "item_snapshots.parquet"
    pq.write_table(_catalogue(lake), catalogue)
    found = _published_by(item_snapshots(lake, until), until)
    pq.write_table(found, snapshots)
    files = [("events", f.path) for f in lake.files("events", end=_day_after(until))]
    files += [("user_snapshots", f.path) for f in lake.files("user_snapshots", end=_day_after(until))]
    with Stage("examples", quiet=config.quiet), pipeline(config, "examples") as p:
        _ = (p | "LakeFiles" >> beam.Create(files, reshuffle=False)
             | "Examples" >> BuildExamples(str(catalogue), str(snapshots) if found.num_rows else "", str(folder), until,
                                           split_at, config.buckets))
    first, rest = (sorted(str(f) for f in (folder / part).glob("*.parquet")) for part in ("first", "rest"))
    return Examples(first, rest, catalogue, snapshots, split_at)


def catalogue_size(examples: Examples) -> int:
    """Items of the catalogue, active or not."""
    return int(pq.read_metadata(examples.catalogue).num_rows)


def fit(config: Config, settings: TwoTowerConfig, files: Sequence[str], model: ModelVersion, scratch: Path,
        title: str) -> dict[str, list[float]]:
    """tf.Transform and training over example files; fills model.transform_graph and model.saved_model.

    Returns:
      The loss of each epoch.
    """
    from models.two_tower.trainer import LocalFnArgs, run_fn
    from transforms.beam.analyze import AnalyzeAndTransformExamples

    shutil.rmtree(scratch, ignore_errors=True)
    transformed, temporary = scratch / "transformed", scratch / "tft"
    transformed.mkdir(parents=True)
    with Stage(f"{title}: tf.Transform", quiet=config.quiet), pipeline(config, "transform") as p:
        _ = (p | "ExampleFiles" >> beam.Create(list(files), reshuffle=False)
             | "Transform" >> AnalyzeAndTransformExamples(str(model.transform_graph), str(transformed), str(temporary)))
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    epochs = -(-settings.steps(rows) // settings.epoch_steps(rows))
    with Stage(f"{title}: epochs", total=epochs, quiet=config.quiet) as stage:
        def on_epoch(epoch: int, loss: float) -> None:
            stage.advance(note=f"loss {loss:.3f}")

        custom: dict[str, Any] = {"config": settings, "seed": config.seed, "on_epoch": on_epoch}
        history = run_fn(LocalFnArgs(sorted(str(f) for f in transformed.glob("*.parquet")), str(model.transform_graph),
                                     str(model.saved_model), custom_config=custom))
    shutil.rmtree(scratch, ignore_errors=True)
    return history


def write_item_vectors(model: ModelVersion, examples: Examples, as_of: int) -> int:
    """Vectors of every active item by a fitted model, with the newest item snapshot of as_of; returns how many."""
    from models.two_tower.export import Scorer

    catalogue = pq.read_table(examples.catalogue)
    active = catalogue.filter(pc.fill_null(catalogue["is_active"], True)).sort_by("item_id")
    rows = item_rows(active, newest_only(pq.read_table(examples.item_snapshots), as_of), active["item_id"],
                     np.full(active.num_rows, as_of))
    write_vectors(model.items, active["item_id"].to_pylist(), Scorer(model.saved_model).item_vectors(rows))
    return active.num_rows


def newest_only(snapshots: pa.Table, as_of: int) -> pa.Table:
    """The snapshot rows of the newest as_of that is not after ``as_of``, marked as published just before it."""
    times = snapshots["as_of"].cast(pa.int64())
    known = snapshots.filter(pc.less_equal(times, as_of))
    if not known.num_rows:
        return known
    newest = known.filter(pc.equal(known["as_of"], pc.max(known["as_of"])))
    at = newest.schema.get_field_index("published_at")
    before = pa.array(np.full(newest.num_rows, as_of - 1)).cast(newest.schema.field(at).type)
    return newest.set_column(at, "published_at", before)


def _published_by(snapshots: pa.Table, until: int) -> pa.Table:
    """The snapshots, none published after ``until``: no example is as late, and the hour of a night's run is no input."""
    at = snapshots.schema.get_field_index("published_at")
    times = pc.min_element_wise(snapshots["published_at"].cast(pa.int64()), until).cast(snapshots.schema.field(at).type)
    return snapshots.set_column(at, "published_at", times)


def item_snapshots(lake: Lake, until: int) -> pa.Table:
    """ITEM_SNAPSHOT_COLUMNS of every snapshot whose as_of is not after ``until``."""
    return _snapshots(lake, "item_snapshots", ITEM_SNAPSHOT_COLUMNS, until, None)


def user_snapshots(lake: Lake, until: int, user_ids: Sequence[str]) -> pa.Table:
    """USER_SNAPSHOT_COLUMNS of these users, of every snapshot whose as_of is not after ``until``."""
    return _snapshots(lake, "user_snapshots", USER_SNAPSHOT_COLUMNS, until, pa.array(user_ids, pa.string()))


def _snapshots(lake: Lake, table: str, columns: Sequence[str], until: int, wanted: pa.Array | None) -> pa.Table:
    parts = [TABLES[table].schema.empty_table().select(list(columns))]
    for file in lake.files(table, end=_day_after(until)):
        rows = plain(pq.read_table(file.path, columns=list(columns)))
        rows = rows.filter(pc.less_equal(rows["as_of"].cast(pa.int64()), until))
        parts.append(rows if wanted is None else rows.filter(pc.is_in(rows[columns[0]], wanted)))
    return pa.concat_tables(parts, promote_options="permissive").sort_by([(columns[0], "ascending"), ("as_of", "ascending")])


def _catalogue(lake: Lake) -> pa.Table:
    """The items table, one row per item by item_id, with a bare row for each item that only events name."""
    items = plain(lake.read("items", columns=list(CATALOGUE_COLUMNS))).select(list(CATALOGUE_COLUMNS)).sort_by("item_id")
    named: set[str] = set()
    for file in lake.files("events"):
        named.update(pc.unique(pq.read_table(file.path, columns=["item_id"])["item_id"]).to_pylist())
    unknown = sorted(n for n in named - set(items["item_id"].to_pylist()) if n is not None)
    bare = pa.table({"item_id": pa.array(unknown, pa.string())})
    return pa.concat_tables([items, bare], promote_options="permissive").sort_by("item_id")


def _day_after(moment: int) -> int:
    return (moment // DAY_MICROS + 1) * DAY_MICROS
