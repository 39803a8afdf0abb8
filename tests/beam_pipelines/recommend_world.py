"""A small lake with snapshots and a model of literal vectors, for the tests of recommend and publish."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler

from beam_pipelines.io.lake import Lake
from beam_pipelines.options import Config
from models.registry import ModelVersion, Registry, write_vectors
from schemas.tables import ITEM_SNAPSHOTS, ITEMS, USER_SNAPSHOTS, Table
from schemas.workspace import DAY_MICROS

AS_OF = 10_000 * DAY_MICROS


class _Vectors:
    def __init__(self, items: str) -> None:
        ids, vectors = ModelVersion(Path(items).parent).item_vectors()
        self.of = dict(zip(ids, vectors, strict=True))


class LiteralTower(ModelHandler):  # type: ignore[misc]
    """A user's vector is the mean of the vectors of its last items; null without any. Runs through RunInference."""

    def __init__(self, items: str) -> None:
        super().__init__()
        self._items = items

    def load_model(self) -> _Vectors:
        return _Vectors(self._items)

    def run_inference(self, batch: Sequence[pa.RecordBatch], model: _Vectors,
                      inference_args: Any = None) -> Iterable[pa.RecordBatch]:
        return [self._vectors(rows, model.of) for rows in batch]

    def _vectors(self, rows: pa.RecordBatch, model: dict[str, npt.NDArray[np.float32]]) -> pa.RecordBatch:
        size = len(next(iter(model.values())))
        vectors = []
        for listed in rows.column("last_items").to_pylist():
            known = [model[i] for i in (listed or {}).get("ids") or () if i in model]
            vectors.append(np.mean(known, axis=0).tolist() if known else None)
        return rows.append_column("vector", pa.array(vectors, pa.list_(pa.float32(), size)))

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {"min_batch_size": 1, "max_batch_size": 1}


def listed(ids: Sequence[str], scores: Sequence[float] | None = None) -> dict[str, Any]:
    """A list column's value."""
    return {"ids": list(ids), "times": [AS_OF - 1 - i for i in range(len(ids))], "scores": list(scores or [1.0] * len(ids))}


def rows_of(table: Table, rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of a lake table; columns not given are null."""
    return pa.Table.from_pylist([{f.name: row.get(f.name) for f in table.schema} for row in rows], schema=table.schema)


def write_world(config: Config, users: dict[str, tuple[Sequence[str], Sequence[str]]], vectors: npt.NDArray[np.float32],
                popularity: dict[str, float], together: dict[str, dict[str, float]], inactive: Sequence[str] = (),
                model_version: str = "tt-1", as_of: int = AS_OF) -> None:
    """Writes snapshots, items and a model: users -> (last items, consumed items), vectors of items i0, i1, ..."""
    lake = Lake.open(config.lake)
    stamp = {"as_of": as_of, "published_at": as_of}
    user_rows = [{**stamp, "user_id": user, "last_items": listed(last), "consumed_items": listed(done)}
                 for user, (last, done) in users.items()]
    item_rows = [{**stamp, "item_id": i, "popularity_30d": popularity.get(i, 0.0),
                  "cooccurring_items": listed(list(together.get(i, {})), list(together.get(i, {}).values()))}
                 for i in sorted({*popularity, *together})]
    for table, rows in ((USER_SNAPSHOTS, user_rows), (ITEM_SNAPSHOTS, item_rows)):
        lake.replace_days(table.name, {as_of: [lake.write_file(table.name, rows_of(table, rows), as_of)]})
    ids = [f"i{n}" for n in range(len(vectors))]
    lake.replace_all("items", rows_of(ITEMS, [
        {"item_id": i, "title": f"Title {i}", "categories": ["c"], "is_active": i not in inactive, "updated_at": 0,
         "attributes": [("year", "1999")], "schema_version": 1} for i in ids]))
    with Registry(config.workspace.models).writing(model_version) as model:
        write_vectors(model.items, ids, vectors)
        (model.root / "manifest.json").write_text(json.dumps({}))
