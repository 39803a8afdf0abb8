"""The user tower in NumPy: the same vector as the exported model's serving_default signature, to 1e-5.

It reads what models.two_tower.weights writes beside a model. Items and categories come as positions and codes of the bundle;
where the model put each into its tables, hash buckets of unknown ones included, was looked up when the bundle was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

TABLES = ("items", "item_rows", "categories", "category_rows")
"""Mapped arrays, a .npy file each."""
DENSE = ("age_logits", "hidden_kernel", "hidden_bias", "out_kernel", "out_bias")
"""Small arrays of weights.npz, beside one ``bucket:<feature>`` table per bucketed feature."""
_LOGIT_LIMIT = 8.0


@dataclass(frozen=True, eq=False)
class UserTower:
    """Weights of a user tower.

    Attributes:
      items: (rows, d - 1) embeddings of liked items; item_rows: (m,) row of each item by position.
      categories: (rows, w); category_rows: row of each category by code.
      age_logits: (b + 1,) pooling logit of a like by the bucket of its age; age_bounds: (b,) days.
      buckets: per statistic its bounds and its table, in the order of the tower's input.
      hidden_kernel, hidden_bias, out_kernel, out_bias: of the two dense layers.
    """

    items: F32
    item_rows: I32
    categories: F32
    category_rows: I32
    age_logits: F32
    age_bounds: F32
    buckets: Mapping[str, tuple[F32, F32]]
    hidden_kernel: F32
    hidden_bias: F32
    out_kernel: F32
    out_bias: F32

    @classmethod
    def open(cls, folder: Path) -> UserTower:
        """Maps the tables; raises OSError, KeyError, ValueError when the folder holds no tower."""
        bounds = {name: np.asarray(values, np.float32) for name, values in
                  json.loads((folder / "bounds.json").read_bytes()).items()}
        tables: dict[str, Any] = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))
                                  for name in TABLES}
        with np.load(folder / "weights.npz", allow_pickle=False) as found:
            dense = {name: found[name] for name in DENSE}
            buckets = {name: (values, found[f"bucket:{name}"]) for name, values in bounds.items() if name != "age"}
        return cls(**tables, **dense, age_bounds=bounds["age"], buckets=buckets)

    def save(self, folder: Path) -> None:
        """Writes what ``open`` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        weights: dict[str, Any] = {name: getattr(self, name) for name in DENSE}
        weights |= {f"bucket:{name}": table for name, (_, table) in self.buckets.items()}
        np.savez(folder / "weights.npz", **weights)
        bounds = {"age": self.age_bounds.tolist(), **{name: b.tolist() for name, (b, _) in self.buckets.items()}}
        (folder / "bounds.json").write_text(json.dumps(bounds))

    def vector(self, liked: I32, ages_days: F32, categories: I32, shares: F32, stats: Mapping[str, float]) -> F32:
        """The vector of one user.

        Args:
          liked: positions of liked items, newest first; ages_days: how long ago each was.
          categories: codes of the affinity's categories with their shares.
          stats: the statistics of transforms.examples.USER_STATS; an absent or NaN one is missing.

        Returns:
          (d,) float32.
        """
        pooled: npt.NDArray[np.floating] = np.zeros(self.items.shape[1], np.float32)
        there = liked >= 0
        if there.any():
            logits = self.age_logits[np.searchsorted(self.age_bounds, ages_days[there].astype(np.float32), side="right")]
            weights = np.exp(np.clip(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT))
            pooled = (weights / max(float(weights.sum()), 1e-6)) @ self.items[self.item_rows[liked[there]]]
        bag: npt.NDArray[np.floating] = np.zeros(self.categories.shape[1], np.float32)
        known = categories >= 0
        if known.any():
            share = shares[known].astype(np.float32)
            bag = (share / max(float(share.sum()), 1e-6)) @ self.categories[self.category_rows[categories[known]]]
        parts = [pooled, bag]
        for name, (bounds, table) in self.buckets.items():
            value = np.float32(stats.get(name, np.nan))
            parts.append(table[np.searchsorted(bounds, np.float32(-1) if np.isnan(value) else value, side="right")])
        hidden = np.maximum(np.concatenate(parts) @ self.hidden_kernel + self.hidden_bias, 0)
        direction = pooled + hidden @ self.out_kernel + self.out_bias
        direction /= np.sqrt(max(float(direction @ direction), 1e-12))
        return np.append(direction, np.float32(1)).astype(np.float32)


def read_strings(path: Path) -> pa.StringArray:
    """The one string column of an Arrow file, mapped."""
    with pa.memory_map(str(path)) as source:
        column = pa.ipc.open_file(source).read_all().column(0)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], pa.string()), *column.chunks])


def write_strings(path: Path, strings: pa.StringArray) -> None:
    """Writes what ``read_strings`` reads."""
    table = pa.table({"value": strings})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(strings)))
