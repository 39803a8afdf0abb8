"""What every item index shares: the protocol, its errors, and the form of a saved index."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

LAYOUT = 1
MANIFEST = "manifest.json"
ITEMS = "items.arrow"

Kind = Literal["exact", "scann"]
Positions = npt.NDArray[np.int32]
Matrix = npt.NDArray[np.float32]


class IndexVersionError(ValueError):
    """The query vectors come from another model than the index: their dot products would mean nothing."""


class IndexFormatError(ValueError):
    """A folder that holds no readable index."""


class ItemIndex(Protocol):
    """Items by dot product."""

    @property
    def item_ids(self) -> pa.StringArray:
        """n ids; a position is an index into them."""
        ...

    @property
    def vectors(self) -> Matrix:
        """(n, d) float32."""
        ...

    @property
    def model_version(self) -> str:
        """Of the model that made the vectors."""
        ...

    @property
    def kind(self) -> Kind:
        """Which implementation."""
        ...

    def search(self, queries: Matrix, k: int, query_model_version: str) -> tuple[Positions, Matrix]:
        """The k best items of each query, best first.

        Args:
          queries: (n, d) float32.
          k: how many; where fewer are found the rest of a row is position -1, score -inf.
          query_model_version: the model that made the queries.

        Returns:
          (positions (n, k) int32, scores (n, k) float32: dot products, non-increasing).

        Raises:
          IndexVersionError: the queries come from another model.
          ValueError: queries of another dimension.
        """
        ...

    def save(self, folder: Path) -> None:
        """Writes the index; a reader, or a restart after a crash, finds a whole index in the folder or none."""
        ...


def check_queries(index: ItemIndex, queries: Matrix, query_model_version: str) -> Matrix:
    """Contiguous float32 queries that fit the index; raises as ItemIndex.search says."""
    if query_model_version != index.model_version:
        raise IndexVersionError(f"the index was built from model {index.model_version}, the queries come from model "
                                f"{query_model_version}: rebuild the index ('beamrec index') or use the matching model")
    if queries.ndim != 2 or queries.shape[1] != index.vectors.shape[1]:
        raise ValueError(f"queries of shape {queries.shape} do not fit vectors of {index.vectors.shape[1]} dimensions")
    return np.ascontiguousarray(queries, np.float32)


def read_vectors(path: Path) -> tuple[pa.StringArray, Matrix]:
    """Ids and (n, d) vectors of an Arrow file with columns item_id and vector (a fixed-size list of float32)."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
    if not table.num_rows:
        raise pa.ArrowInvalid(f"{path} holds no items")
    column = table["vector"].chunk(0)
    vectors = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return table["item_id"].chunk(0).cast(pa.string()), vectors.reshape(len(column), column.type.list_size)


def write_vectors(path: Path, item_ids: pa.StringArray, vectors: Matrix) -> None:
    """Writes what ``read_vectors`` reads."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table({"item_id": item_ids, "vector": column})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=len(item_ids))


def write_index(folder: Path, index: ItemIndex, settings: dict[str, float]) -> None:
    """The part of a saved index that all kinds share."""
    write_vectors(folder / ITEMS, index.item_ids, index.vectors)
    manifest = {"layout": LAYOUT, "kind": index.kind, "model_version": index.model_version, "items": len(index.vectors),
                "dimensions": index.vectors.shape[1], "settings": settings}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place when the block ends without an error."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)  # a crash here leaves no index: the job builds it again
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
