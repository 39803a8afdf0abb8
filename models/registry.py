"""Model versions on disk: one folder each, complete or absent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MANIFEST = "manifest.json"


class ModelNotFoundError(LookupError):
    """No complete model of that version."""


@dataclass(frozen=True)
class ModelVersion:
    """Paths of one model version.

    ``transform_graph`` is tf.Transform's output, ``saved_model`` the exported towers, ``items`` the vectors of the active
    items (Arrow file: item_id, vector fixed_size_list<float32>), ``index`` the item index built from them.
    """

    root: Path

    @property
    def version(self) -> str:
        """Its name, e.g. ``tt-1998-04-23-0a1b2c3d``."""
        return self.root.name

    @property
    def transform_graph(self) -> Path:
        """tft.TFTransformOutput reads this folder."""
        return self.root / "transform"

    @property
    def saved_model(self) -> Path:
        """tf.saved_model.load reads this folder."""
        return self.root / "saved_model"

    @property
    def items(self) -> Path:
        """Arrow file of item vectors; dot(user_vector, vector) is the score."""
        return self.root / "items.arrow"

    @property
    def index(self) -> Path:
        """Folder of the item index; absent until it is built."""
        return self.root / "index"

    @property
    def tower(self) -> Path:
        """The user tower as arrays (models.two_tower.weights); absent until a version of lists needs it."""
        return self.root / "tower"

    def metrics(self) -> dict[str, Any]:
        """metrics.json: quality on the held-out part, beside the baselines."""
        return dict(json.loads((self.root / "metrics.json").read_text()))

    def manifest(self) -> dict[str, Any]:
        """manifest.json: what the model was made from."""
        return dict(json.loads((self.root / MANIFEST).read_text()))

    def item_vectors(self) -> tuple[list[str], npt.NDArray[np.float32]]:
        """(n ids, (n, dim) vectors)."""
        return read_vectors(self.items)


class Registry:
    """The model versions under a folder (Workspace.models)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def versions(self) -> list[str]:
        """Complete versions, oldest as_of first; of one as_of the one that was written first."""
        if not self._root.is_dir():
            return []
        found = [p for p in self._root.iterdir() if not p.name.startswith(".") and (p / MANIFEST).is_file()]
        return [p.name for p in sorted(found, key=_age)]

    def has(self, version: str) -> bool:
        """Whether that version is complete."""
        return (self._root / version / MANIFEST).is_file()

    def get(self, version: str) -> ModelVersion:
        """Raises ModelNotFoundError, naming the known versions."""
        if not self.has(version):
            known = ", ".join(self.versions()) or "none yet"
            raise ModelNotFoundError(f"no model {version!r}; known: {known}")
        return ModelVersion(self._root / version)

    def newest(self) -> ModelVersion:
        """The version of the newest as_of, of several the one written last; raises ModelNotFoundError when there is none."""
        versions = self.versions()
        if not versions:
            raise ModelNotFoundError("no model yet: run 'beamrec train'")
        return ModelVersion(self._root / versions[-1])

    @contextmanager
    def writing(self, version: str) -> Iterator[ModelVersion]:
        """A folder to fill; it becomes the version when the block ends well, and vanishes when it does not.

        A folder left behind by a killed process is removed first. The manifest must be among the files written.
        """
        folder = self._root / f".{version}.writing"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield ModelVersion(folder)
            if not (folder / MANIFEST).is_file():
                raise ValueError(f"model {version} was written without {MANIFEST}")
            shutil.rmtree(self._root / version, ignore_errors=True)
            os.replace(folder, self._root / version)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _age(folder: Path) -> tuple[int, int, str]:
    """as_of of a version (0 when its manifest has none), when it was written, and its name where both are equal."""
    manifest = folder / MANIFEST
    as_of = json.loads(manifest.read_text()).get("as_of", 0)
    return int(as_of), manifest.stat().st_mtime_ns, folder.name


def write_vectors(path: Path, ids: list[str], vectors: npt.NDArray[np.float32]) -> None:
    """Writes n ids and their (n, dim) vectors as one Arrow file: item_id, vector."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    batch = pa.record_batch({"item_id": pa.array(ids, pa.string()),
                             "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read_vectors(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    """(n ids, (n, dim) float32 vectors) of a file that write_vectors wrote."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        dim = table.schema.field("vector").type.list_size
        vectors = table["vector"].combine_chunks()
        flat = (vectors.chunk(0) if isinstance(vectors, pa.ChunkedArray) else vectors).flatten().to_numpy()
        return table["item_id"].to_pylist(), flat.reshape(-1, dim).copy()
