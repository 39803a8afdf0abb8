"""Every item by position: what candidates are drawn from and lists are packed with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_ARRAYS = ("active", "popularity", "by_popularity", "offsets", "neighbours", "strengths")


@dataclass(frozen=True)
class Catalogue:
    """Every item by position; the first n are the index's, in its order.

    Attributes:
      item_ids: m ids.
      vectors: (n, d), n <= m.
      active: (m,) bool.
      popularity: (m,) in [0, 1], see the module's formula.
      by_popularity: positions of active items, most popular first, ties by position.
      offsets, neighbours, strengths: co-occurring items of position i are neighbours[offsets[i]:offsets[i + 1]].
    """

    item_ids: pa.StringArray
    vectors: F32
    active: npt.NDArray[np.bool_]
    popularity: F32
    by_popularity: I32
    offsets: I64
    neighbours: I32
    strengths: F32


def make_catalogue(index_ids: pa.StringArray, vectors: F32, snapshot: pa.Table, items: pa.Table,
                   popularity: str = "popularity_30d") -> Catalogue:
    """Joins the index's items, an item snapshot (item_id, ``popularity``, cooccurring_items) and the catalogue (item_id,
    is_active). An item that the catalogue does not know is active: events came before its upsert."""
    named = [chunk.cast(pa.string()) for table in (snapshot, items) for chunk in table["item_id"].chunks]
    known = pa.concat_arrays([index_ids, *named]).unique()
    rest = known.slice(len(index_ids))  # unique keeps first occurrences, so the index's items come first
    ids = pa.concat_arrays([index_ids, rest.take(pc.array_sort_indices(rest))])  # the order of the rows must not matter
    count = len(ids)
    active = np.ones(count, bool)
    active[positions_of(items["item_id"], ids)] = items["is_active"].to_numpy()
    at = positions_of(snapshot["item_id"], ids)
    weight = np.zeros(count, np.float64)
    weight[at] = np.nan_to_num(snapshot[popularity].to_numpy())
    logs = np.log1p(np.maximum(weight, 0))
    share = (logs / max(float(logs.max(initial=0)), 1e-12)).astype(np.float32)
    order = np.argsort(-share, kind="stable").astype(np.int32)
    offsets, neighbours, strengths = _neighbours(snapshot["cooccurring_items"], at, ids)
    return Catalogue(ids, np.ascontiguousarray(vectors, np.float32), active, share, order[active[order]], offsets, neighbours,
                     strengths)


def save_catalogue(catalogue: Catalogue, folder: Path) -> None:
    """Writes everything but the vectors, which the index holds."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "arrays.npz", **{name: getattr(catalogue, name) for name in _ARRAYS})
    table = pa.table({"item_id": catalogue.item_ids})
    with pa.OSFile(str(folder / "ids.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def load_catalogue(folder: Path, index_ids: pa.StringArray, vectors: F32) -> Catalogue:
    """Reads what save_catalogue wrote; raises ValueError when it was made for another index."""
    with pa.memory_map(str(folder / "ids.arrow")) as source:
        item_ids = pa.concat_arrays(pa.ipc.open_file(source).read_all()["item_id"].chunks)
    if not item_ids.slice(0, len(index_ids)).equals(index_ids):
        raise ValueError("the catalogue was made for another index")
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return Catalogue(item_ids, vectors, **{name: arrays[name] for name in _ARRAYS})


def positions_of(ids: pa.ChunkedArray | pa.Array, catalogue: pa.StringArray) -> I32:
    """Position of each id, -1 for one that is not there."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    found = pc.index_in(ids.cast(pa.string()), catalogue)
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)


def ragged_of(column: pa.ChunkedArray | pa.StructArray) -> tuple[I64, pa.Array, F32]:
    """(lengths per row, ids, scores) of a snapshot's list column; a null row is empty."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    ids, scores = pc.struct_field(column, "ids"), pc.struct_field(column, "scores")
    flat = pc.list_flatten(scores).to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return lengths_of(ids), pc.list_flatten(ids), flat


def lengths_of(column: pa.Array) -> I64:
    """Length of each list of a column; a null is empty."""
    lengths: I64 = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _neighbours(column: pa.ChunkedArray, at: I32, ids: pa.StringArray) -> tuple[I64, I32, F32]:
    lengths, names, scores = ragged_of(column)
    owner = np.repeat(at, lengths)
    found = positions_of(names, ids)
    keep = (found >= 0) & (owner >= 0)
    owner, found, scores = owner[keep], found[keep], scores[keep]
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=len(ids))
    return offsets_of(counts), found[order], scores[order]


def offsets_of(lengths: npt.NDArray[Any]) -> I64:
    """(n + 1,) where each of n rows begins in their flat values."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
