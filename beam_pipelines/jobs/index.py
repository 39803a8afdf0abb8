"""Builds the item index of a model, beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import Lake
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from models.inference import index as item_index
from models.registry import ModelNotFoundError, ModelVersion, Registry
from schemas.keys import hash64_column
from schemas.workspace import DAY_MICROS

_CALIBRATION_USERS = 1024
_CALIBRATION_GROUPS = 8  # row groups of the snapshot that they are drawn from


@dataclass(frozen=True)
class IndexReport:
    """What ``run`` did. ``recall``: of the best 100 items by brute force the share that is among 150 returned, on sample
    users (1 for an exact index)."""

    model_version: str
    kind: str
    items: int
    recall: float
    seconds: float
    reused: bool


def run(config: Config, model_version: str | None = None, kind: Literal["auto", "exact", "scann"] = "auto",
        force: bool = False) -> IndexReport:
    """Builds the index of a model (default: the newest), or finds it built.

    Args:
      kind: ``exact``, ``scann``, or ``auto``: exact on small catalogues.
      force: build it again.

    Raises:
      UserError: no such model, or a model without items.
    """
    model = find_model(config, model_version)
    started = time.monotonic()
    if not force:
        found = _built(model, kind)
        if found is not None:
            return _report(found, time.monotonic() - started, reused=True)
    with Stage("item index", quiet=config.quiet):
        try:
            item_ids, vectors = item_index.read_vectors(model.items)
            approximate = item_index.kind_for(len(vectors), kind) == "scann"
            queries = _user_vectors(config, model) if approximate else None
            built = item_index.build(item_ids, vectors, model.version, kind, queries)
        except (OSError, ValueError) as error:
            raise UserError(f"no index can be built of model {model.version}: {error}") from error
        built.save(model.index)
    return _report(built, time.monotonic() - started, reused=False)


def find_model(config: Config, model_version: str | None) -> ModelVersion:
    """The model of that version, or the newest; raises UserError when it is not there."""
    registry = Registry(config.workspace.models)
    try:
        return registry.get(model_version) if model_version else registry.newest()
    except ModelNotFoundError as error:
        raise UserError(str(error)) from error


def _user_vectors(config: Config, model: ModelVersion) -> npt.NDArray[np.float32] | None:
    """Vectors of some users of the newest snapshot, so that recall is reached for them; None without a snapshot."""
    lake = Lake.open(config.lake, config.catalog)
    days = lake.days("user_snapshots")
    if not days:
        return None
    from models.two_tower.export import Scorer  # loads TensorFlow
    from models.two_tower.inference import user_vectors

    sample = _sample_users([f.path for f in lake.files("user_snapshots", days[-1], days[-1] + DAY_MICROS)])
    if not sample.num_rows:
        return None
    listed = user_vectors(Scorer(model.saved_model), sample)
    vectors: npt.NDArray[np.float32] = listed.flatten().to_numpy(zero_copy_only=False).reshape(len(listed), -1)
    usable = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
    return vectors[usable] if usable.any() else None


def _sample_users(paths: list[str]) -> pa.RecordBatch:
    """Users with the lowest hashes of a hash (a bucket is no random sample) of evenly spread row groups."""
    groups = [(path, group) for path in paths for group in range(pq.read_metadata(path).num_row_groups)]
    chosen = np.unique(np.linspace(0, len(groups) - 1, min(len(groups), _CALIBRATION_GROUPS)).astype(int))
    parts = []
    for place in chosen.tolist():
        path, group = groups[place]
        rows = pq.ParquetFile(path).read_row_group(group)
        rows = rows.filter(pc.greater(pc.list_value_length(pc.struct_field(rows["last_items"], "ids")), 0))
        order = np.argsort(hash64_column(rows["user_id"]) * np.uint64(0x9E3779B97F4A7C15), kind="stable")
        parts.append(rows.take(pa.array(order[: -(-_CALIBRATION_USERS // len(chosen))])))
    table = pa.concat_tables(parts)
    return pa.RecordBatch.from_arrays([pa.concat_arrays(c.chunks) for c in table.columns], schema=table.schema)


def _built(model: ModelVersion, kind: str) -> item_index.ItemIndex | None:
    try:
        found = item_index.load(model.index)
    except item_index.IndexFormatError:
        return None
    return found if found.model_version == model.version and kind in ("auto", found.kind) else None


def _report(index: item_index.ItemIndex, seconds: float, reused: bool) -> IndexReport:
    recall = float(getattr(index, "settings", {}).get("recall", 1.0))
    return IndexReport(index.model_version, index.kind, len(index.vectors), recall, seconds, reused)
