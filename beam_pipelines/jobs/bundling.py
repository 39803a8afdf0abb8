"""The bundle of a version of lists: what serving needs of it beside the store (models.inference.bundle)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_pipelines import crashpoints
from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import DataFile
from beam_pipelines.options import Config
from models.inference import index as item_index
from models.inference.bundle import BundleError, BundleManifest
from models.inference.bundle_write import POPULAR_ITEMS, Tower, write_bundle
from models.inference.user_vector import UserTower
from models.registry import ModelVersion
from schemas.features import SEGMENTS
from transforms.catalogue import Catalogue, lengths_of, positions_of

SAMPLED_USERS = 50_000
"""Popular lists of segments come from so many users at most: snapshots lie in the order of a hash, so the first sample all."""
RECENT_ITEMS = 10
"""Newest items of a user that count in their segment's popular list."""

Popular = dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]


def write(config: Config, version: str, surface: str, as_of: int, model: ModelVersion, index: item_index.ItemIndex,
          catalogue: Catalogue, items: pa.Table, snapshot: pa.Table, users: Sequence[DataFile]) -> float:
    """Writes the bundle of a version, whole or not at all; the same inputs write the same bytes. Returns the seconds it took.

    Args:
      catalogue: with which the lists are made; items, snapshot: that it was made from; users: snapshot files.

    Raises:
      UserError: the model's vectors are not those of its index.
    """
    started = time.monotonic()
    manifest = BundleManifest(version, model.version, index.model_version, embedding_version(model, index), surface, as_of,
                              len(catalogue.item_ids), len(catalogue.vectors), catalogue.vectors.shape[1])
    crashpoints.reached("bundle.start")
    _sweep(config.workspace.bundles)
    try:
        write_bundle(config.workspace.bundles / version, manifest, catalogue, items, snapshot, model.index,
                     segment_popular(users, catalogue, as_of), _tower(model, catalogue.item_ids))
    except BundleError as error:
        raise UserError(f"{error}: run 'beamrec index --force' for model {model.version}") from error
    crashpoints.reached("bundle.written")
    return time.monotonic() - started


def _sweep(folder: Path) -> None:
    """Deletes what writers that were killed have left."""
    for path in folder.glob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            shutil.rmtree(path, ignore_errors=True)


def embedding_version(model: ModelVersion, index: item_index.ItemIndex) -> str:
    """The model's version where its vectors are those that the index holds; else that, marked."""
    ids, vectors = item_index.read_vectors(model.items)
    same = ids.equals(index.item_ids) and np.array_equal(vectors, index.vectors)
    return model.version if same else f"{model.version} (not what the index was built from)"


def segment_popular(files: Sequence[DataFile], catalogue: Catalogue, as_of: int) -> Popular:
    """What is popular in each segment of schemas.features: (positions of active items, scores in (0, 1]), best first.

    A score is log(1 + users who touched the item lately), divided by its maximum; ties by popularity with everybody.
    """
    counts = np.zeros((len(SEGMENTS), len(catalogue.item_ids)), np.int64)
    left = SAMPLED_USERS
    for path in (f.path for f in files):
        with pq.ParquetFile(path, read_dictionary=["last_items.ids.list.element"]) as file:
            for group in range(file.num_row_groups):
                if left <= 0:
                    break
                rows = file.read_row_group(group, columns=["as_of", "segment", "last_items.ids"])
                left -= _count(rows.filter(pc.equal(rows["as_of"].cast(pa.int64()), as_of)), catalogue, counts)
    found: Popular = {}
    for name, row in zip(SEGMENTS, counts, strict=True):
        best = catalogue.by_popularity[np.argsort(-row[catalogue.by_popularity], kind="stable")][:POPULAR_ITEMS]
        best = best[row[best] > 0]
        if len(best):
            logs = np.log1p(row[best])
            found[name] = best, (logs / logs[0]).astype(np.float32)
    return found


def _count(rows: pa.Table, catalogue: Catalogue, counts: npt.NDArray[np.int64]) -> int:
    """Adds the recent items of some users to the counts of their segments; returns how many users."""
    for batch in rows.to_batches():
        segment = np.nan_to_num(batch.column("segment").to_numpy(zero_copy_only=False), nan=-1).astype(np.int64)
        ids = pc.struct_field(batch.column("last_items"), "ids")
        lengths = lengths_of(ids)
        flat = pc.list_flatten(ids)
        rank = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        encoded = flat.filter(pa.array(rank < RECENT_ITEMS))
        encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
        at = positions_of(encoded.dictionary, catalogue.item_ids)
        item = at[encoded.indices.to_numpy(zero_copy_only=False)] if len(at) else np.zeros(0, np.int32)
        owner = np.repeat(segment, np.minimum(lengths, RECENT_ITEMS))
        keep = (item >= 0) & (owner >= 0) & (owner < len(SEGMENTS))
        np.add.at(counts, (owner[keep], item[keep]), 1)
    return int(rows.num_rows)


def _tower(model: ModelVersion, item_ids: pa.StringArray) -> Tower | None:
    """The model's user tower, taken out of its SavedModel the first time; None for a model without one, or of another make."""
    if not model.saved_model.is_dir():
        return None
    from models.two_tower import weights  # loads TensorFlow

    if not model.tower.is_dir():
        try:
            weights.write_tower(model.saved_model, model.tower)
        except KeyError:
            return None
    tower = UserTower.open(model.tower)
    return Tower(model.tower, weights.rows_of(model.tower, "items", item_ids, len(tower.items)),
                 lambda names: weights.rows_of(model.tower, "categories", names, len(tower.categories)))
