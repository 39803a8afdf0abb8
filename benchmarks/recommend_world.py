"""The world of ``beamrec bench recommend``: a lake with snapshots of clustered users and items, and a model trained on it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.io.lake import Lake
from beam_pipelines.options import Config
from models.registry import ModelVersion, Registry, write_vectors
from models.two_tower.config import TwoTowerConfig
from schemas.keys import hash64_column
from schemas.tables import ITEM_SNAPSHOTS, ITEMS, USER_SNAPSHOTS, Table
from schemas.workspace import DAY_MICROS
from transforms.examples import EXAMPLE_SCHEMA, item_rows

AS_OF = 20_000 * DAY_MICROS
MODEL = "tt-bench"
CONSUMED = 50
NEIGHBOURS = 50
ITEMS_PER_CLUSTER = 200
_FILE_USERS = 50_000

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Who likes what: (users, CONSUMED) items, distinct within a user; (items,) cluster and popularity."""

    histories: Ints
    cluster: Ints
    popularity: npt.NDArray[np.float64]

    @property
    def clusters(self) -> int:
        """How many clusters there are; each is a category."""
        return int(self.cluster.max()) + 1


def draw(users: int, items: int, seed: int) -> World:
    """A world in which a user takes items of three clusters, popular ones more often."""
    rng = np.random.default_rng(seed)
    clusters = max(4, items // ITEMS_PER_CLUSTER)
    cluster = np.arange(items) % clusters
    size = items // clusters
    own = np.stack([rng.permutation(clusters)[:3] for _ in range(4096)])[rng.integers(0, 4096, users)]
    # Ranks within a cluster, each once: item = cluster + rank * clusters. The square favours the popular ones.
    ranks = np.argsort(rng.random((4096, size)) * np.sqrt(np.arange(1, size + 1)), axis=1)[rng.integers(0, 4096, users)]
    per = -(-CONSUMED // 3)
    histories = np.concatenate([own[:, [c]] + clusters * ranks[:, c * per : (c + 1) * per] for c in range(3)], axis=1)
    histories = rng.permuted(histories, axis=1)[:, :CONSUMED]
    return World(histories, cluster, 1e6 / (1 + np.arange(items) // clusters))


def write(config: Config, world: World) -> None:
    """Snapshots and catalogue into the lake."""
    lake = Lake.open(config.lake)
    order = np.argsort(hash64_column(user_ids(np.arange(len(world.histories)))), kind="stable")  # as the features job writes
    parts = [_user_snapshot(world, order[start : start + _FILE_USERS]) for start in range(0, len(order), _FILE_USERS)]
    lake.replace_days("user_snapshots", {AS_OF: [lake.write_file("user_snapshots", part, AS_OF) for part in parts]})
    lake.replace_days("item_snapshots", {AS_OF: [lake.write_file("item_snapshots", _item_snapshot(world), AS_OF)]})
    lake.replace_all("items", catalogue(world))


def catalogue(world: World) -> pa.Table:
    """Rows of schemas.tables.ITEMS."""
    count = len(world.cluster)
    return _table(ITEMS, count, {
        "item_id": item_ids(np.arange(count)),
        "title": pa.array([f"Title of item {i}" for i in range(count)]),
        "categories": pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32)), _names("c", world.cluster)),
        "price": pa.array(np.arange(count) % 90 + 9.9),
        "is_active": pa.array(np.arange(count) % 100 != 99),
        "updated_at": pa.array(np.zeros(count, np.int64)),
        "attributes": pa.array([[("year", str(1950 + i % 70))] for i in range(count)], pa.map_(pa.string(), pa.string())),
        "schema_version": pa.array(np.ones(count, np.int32)),
    })


def train(config: Config, world: World, scratch: Path) -> ModelVersion:
    """A two-tower model of the product (d = 64) over one example per item, so that every item is in its vocabulary."""
    from beam_pipelines.jobs import fitting
    from models.two_tower.export import Scorer

    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    examples = scratch / "examples.parquet"
    items = catalogue(world)
    pq.write_table(_examples(world, items), examples, row_group_size=16_384)
    settings = TwoTowerConfig(dim=64, epochs=2)
    snapshot = _item_snapshot(world)
    with Registry(config.workspace.models).writing(MODEL) as model:
        fitting.fit(config, settings, [str(examples)], model, scratch / "fit", "model for the benchmark")
        rows = item_rows(items, snapshot, items["item_id"], np.full(items.num_rows, AS_OF + 1))
        write_vectors(model.items, items["item_id"].to_pylist(), Scorer(model.saved_model).item_vectors(rows))
        (model.root / "manifest.json").write_text("{}")
    return Registry(config.workspace.models).get(MODEL)


def item_ids(numbers: Ints) -> pa.Array:
    """Ids like ``item-000042``."""
    return _names("item-", numbers, 6)


def user_ids(numbers: Ints) -> pa.Array:
    """Ids like ``user-0000042``."""
    return _names("user-", numbers, 7)


def _names(prefix: str, numbers: Ints, width: int = 1) -> pa.Array:
    distinct, codes = np.unique(numbers, return_inverse=True)
    words = pa.array([f"{prefix}{n:0{width}d}" for n in distinct.tolist()])
    return words.take(pa.array(codes.reshape(-1)))


def _table(table: Table, rows: int, columns: dict[str, Any]) -> pa.Table:
    made = [columns[f.name].cast(f.type) if f.name in columns else _filler(f, rows) for f in table.schema]
    return pa.Table.from_arrays(made, schema=table.schema)


def _filler(field: pa.Field, rows: int) -> pa.Array:
    if field.type == pa.float32():
        return pa.array(np.arange(rows) % 7, pa.float32())
    return pa.nulls(rows, field.type)


def _lists(names: pa.Array, per_row: int, rows: int, scores: npt.NDArray[np.float32]) -> pa.StructArray:
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * per_row)
    times = AS_OF - 1_000_000 * (1 + np.arange(rows * per_row, dtype=np.int64) % per_row)
    parts = [pa.ListArray.from_arrays(offsets, values) for values in (names, pa.array(times), pa.array(scores))]
    return pa.StructArray.from_arrays(parts, names=["ids", "times", "scores"])


def _user_snapshot(world: World, users: Ints) -> pa.Table:
    rows, taken = len(users), world.histories[users].reshape(-1)
    weights = np.full(len(taken), 3, np.float32)
    items = _lists(item_ids(taken), CONSUMED, rows, weights)
    own = np.sort(world.cluster[world.histories[users]], axis=1)[:, [0, CONSUMED // 2, -1]]
    return _table(USER_SNAPSHOTS, rows, {
        "as_of": pa.array(np.full(rows, AS_OF)), "published_at": pa.array(np.full(rows, AS_OF)),
        "user_id": user_ids(users), "last_items": items, "liked_items": items,
        "consumed_items": items,
        "category_affinity_30d": _lists(_names("c", own.reshape(-1)), 3, rows, np.full(3 * rows, 1 / 3, np.float32)),
    })


def _item_snapshot(world: World) -> pa.Table:
    count, clusters = len(world.cluster), world.clusters
    size = count // clusters
    rank, shift = np.arange(count) // clusters, 1 + np.arange(NEIGHBOURS)
    near = world.cluster[:, None] + clusters * ((rank[:, None] + shift) % size)
    scores = np.tile((0.3 / shift).astype(np.float32), count)
    return _table(ITEM_SNAPSHOTS, count, {
        "as_of": pa.array(np.full(count, AS_OF)), "published_at": pa.array(np.full(count, AS_OF)),
        "item_id": item_ids(np.arange(count)), "popularity_30d": pa.array(world.popularity.astype(np.float32)),
        "cooccurring_items": _lists(item_ids(near.reshape(-1)), NEIGHBOURS, count, scores),
    })


def _examples(world: World, items: pa.Table) -> pa.Table:
    """One example per item: a user who likes its cluster, with that history less the item itself."""
    count, users = len(world.cluster), len(world.histories)
    first = world.cluster[world.histories[:, 0]]
    order = np.argsort(first, kind="stable")
    starts = np.searchsorted(first[order], world.cluster)
    ends = np.maximum(np.searchsorted(first[order], world.cluster, "right"), starts + 1)
    chosen = order[np.minimum(starts + np.arange(count) % (ends - starts), users - 1)]
    liked = world.histories[chosen].copy()
    liked[liked == np.arange(count)[:, None]] = liked[0, 0]
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * CONSUMED)
    ages = pa.array((np.arange(count * CONSUMED) % CONSUMED).astype(np.float32) / 10)
    three = pa.array(np.arange(count + 1, dtype=np.int32) * 3)
    own = np.sort(world.cluster[liked], axis=1)[:, [0, CONSUMED // 2, -1]].reshape(-1)
    columns = {
        "user_id": user_ids(chosen), "occurred_at": pa.array(np.full(count, AS_OF - 1)),
        "event_hash": pa.array(np.arange(count)),
        "liked_items": pa.ListArray.from_arrays(offsets, item_ids(liked.reshape(-1))),
        "liked_ages": pa.ListArray.from_arrays(offsets, ages),
        "affinity_ids": pa.ListArray.from_arrays(three, _names("c", own)),
        "affinity_shares": pa.ListArray.from_arrays(three, pa.array(np.full(3 * count, 1 / 3, np.float32))),
        "item_id": items["item_id"].combine_chunks(), "categories": items["categories"].combine_chunks(),
        "price": items["price"].combine_chunks(),
    }
    made = []
    for field in EXAMPLE_SCHEMA:
        values = columns.get(field.name, pa.array(np.arange(count) % 7, pa.float32()))
        values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
        made.append(values.cast(field.type))
    return pa.Table.from_arrays(made, schema=EXAMPLE_SCHEMA).take(pa.array(np.random.default_rng(0).permutation(count)))
