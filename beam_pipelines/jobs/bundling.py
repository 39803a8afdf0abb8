"""The bundle of a version of lists: what serving needs of it beside the store (models.inference.bundle)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from beam_pipelines import crashpoints
from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import DataFile
from beam_pipelines.jobs.popular_lists import popular_lists
from beam_pipelines.options import Config
from models.inference import index as item_index
from models.inference.bundle import BundleError, BundleManifest
from models.inference.bundle_write import Tower, write_bundle
from models.inference.user_vector import UserTower
from models.registry import ModelVersion
from transforms.catalogue import Catalogue


def write(config: Config, version: str, surface: str, as_of: int, model: ModelVersion, index: item_index.ItemIndex,
          catalogue: Catalogue, items: pa.Table, snapshot: pa.Table, users: Sequence[DataFile],
          profiles: pa.Table | None) -> float:
    """Writes the bundle of a version, whole or not at all; the same inputs write the same bytes. Returns the seconds it took.

    Args:
      catalogue: with which the lists are made; items, snapshot: that it was made from; users: snapshot files; profiles: of
        popular_lists.read_profiles.

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
                     popular_lists(users, profiles, catalogue, as_of), _tower(model, catalogue.item_ids))
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
