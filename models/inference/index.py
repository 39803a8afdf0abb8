"""The item index: the k items of highest dot product with a user vector, exactly or by ScaNN.

An index carries the model version whose vectors it holds and refuses queries of another. Every implementation passes one
contract suite (tests/models/test_index.py); the exact one is the oracle of the approximate one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from models.inference.index_base import (
    ITEMS,
    LAYOUT,
    MANIFEST,
    IndexFormatError,
    IndexVersionError,
    ItemIndex,
    Kind,
    Matrix,
    Positions,
    check_queries,
    read_vectors,
    replacing,
    write_index,
    write_vectors,
)
from models.inference.scann_index import ScannIndex
from transforms.topk import exact_top_k

__all__ = ["EXACT_UP_TO", "ExactIndex", "IndexFormatError", "IndexVersionError", "ItemIndex", "build", "kind_for",
           "load", "read_vectors", "write_vectors"]

EXACT_UP_TO = 20_000
"""Catalogues of at most this many items are searched exactly: as fast there, and never wrong."""


@dataclass(frozen=True)
class ExactIndex:
    """Brute force: every item is scored."""

    item_ids: pa.StringArray
    vectors: Matrix
    model_version: str
    kind: Kind = "exact"

    def search(self, queries: Matrix, k: int, query_model_version: str) -> tuple[Positions, Matrix]:
        """See ItemIndex.search."""
        return exact_top_k(check_queries(self, queries, query_model_version), self.vectors, k)

    def save(self, folder: Path) -> None:
        """See ItemIndex.save."""
        with replacing(folder) as temporary:
            write_index(temporary, self, {})


def kind_for(items: int, kind: Kind | Literal["auto"] = "auto") -> Kind:
    """Which index a catalogue of that size gets: exact for at most EXACT_UP_TO items, else ScaNN, unless ``kind`` says."""
    if kind != "auto":
        return kind
    return "exact" if items <= EXACT_UP_TO else "scann"


def build(item_ids: pa.StringArray, vectors: Matrix, model_version: str, kind: Kind | Literal["auto"] = "auto",
          queries: Matrix | None = None) -> ItemIndex:
    """Builds an index of the kind that ``kind_for`` says.

    Args:
      item_ids, vectors: n ids and (n, d) vectors.
      queries: (q, d) user vectors that an approximate index is calibrated with; None: it makes up some.

    Raises:
      ValueError: no items, ids and vectors of different length, repeated ids, or a value that is not finite.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or len(item_ids) != len(vectors) or not len(vectors):
        raise ValueError(f"{len(item_ids)} ids and vectors of shape {vectors.shape} make no index")
    if len(item_ids.unique()) != len(item_ids):
        raise ValueError("an item id is repeated")
    if not np.isfinite(vectors).all():
        raise ValueError("an item vector has a value that is not finite")
    if kind_for(len(vectors), kind) == "exact":
        return ExactIndex(item_ids, vectors, model_version)
    return ScannIndex.build(item_ids, vectors, model_version, queries)


def load(folder: Path) -> ItemIndex:
    """Reads a saved index; raises IndexFormatError when the folder holds none that this version can read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise IndexFormatError(f"{folder} holds no index: {error}") from error
    if manifest.get("layout") != LAYOUT:
        raise IndexFormatError(f"{folder} has index layout {manifest.get('layout')}, this version reads {LAYOUT}")
    try:
        item_ids, vectors = read_vectors(folder / ITEMS)
        if manifest["kind"] == "exact":
            return ExactIndex(item_ids, vectors, manifest["model_version"])
        return ScannIndex.open(folder, item_ids, vectors, manifest["model_version"], manifest["settings"])
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise IndexFormatError(f"{folder} holds a broken index: {error}") from error
