"""A small bundle for tests: items i0, i1, ... in clusters of one category each, with vectors, neighbours and titles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models.inference import index as item_index
from models.inference.bundle import Bundle, BundleManifest
from models.inference.bundle_write import write_bundle
from schemas.tables import ITEMS
from transforms.catalogue import make_catalogue

WORDS = ("red", "blue", "green", "old", "new", "big", "small")


def make_bundle(folder: Path, items: int = 60, categories: int = 4, dimensions: int = 8, version: str = "v1",
                model: str = "m1", inactive: Sequence[str] = (), without_vector: int = 4, seed: int = 3,
                segments: dict[str, Sequence[str]] | None = None, extra: Sequence[str] = (),
                titles: dict[str, str] | None = None, **shared: Any) -> Bundle:
    """Writes and opens a bundle.

    Item i<k> is of category c<k % categories>; the last ``without_vector`` have no vector; popularity falls with k; the
    neighbours of an item are the next ones of its category; every third item has 2,000 impressions, the rest 10 * k.

    Args:
      extra: more item ids at the end, without vectors, e.g. those of a list a test made up.
      segments: ids of popular lists.
      shared: further arguments of write_bundle.
    """
    ids = [*(f"i{k}" for k in range(items)), *extra]
    count = len(ids)
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(categories, dimensions))
    vectors = (centres[np.arange(items) % categories] + 0.6 * rng.normal(size=(items, dimensions))).astype(np.float32)
    vectors = vectors[: items - without_vector]
    near = [[f"i{k + categories * step}" for step in (1, 2, 3) if k + categories * step < items] for k in range(items)]
    listed = [{"ids": n, "times": [0] * len(n), "scores": [0.5 / (1 + at) for at in range(len(n))]} for n in near]
    listed += [{"ids": [], "times": [], "scores": []}] * len(extra)
    struct = pa.struct([("ids", pa.list_(pa.string())), ("times", pa.list_(pa.int64())), ("scores", pa.list_(pa.float32()))])
    snapshot = pa.table({
        "item_id": ids, "popularity_30d": pa.array([float(1000 - k) for k in range(count)], pa.float32()),
        "cooccurring_items": pa.array(listed, struct),
        "impressions_total": pa.array([2000.0 if k % 3 == 0 else 10.0 * k for k in range(count)], pa.float32()),
        "ctr_smoothed_30d": pa.array([0.05 + 0.001 * (k % 10) for k in range(count)], pa.float32()),
        "age_days": pa.array([float(k) for k in range(count)], pa.float32())})
    table = pa.Table.from_pylist([
        {**{f.name: None for f in ITEMS.schema}, "item_id": i,
         "title": (titles or {}).get(i, f"{WORDS[k % len(WORDS)]} thing {WORDS[k // 7 % len(WORDS)]} {i}"),
         "categories": [f"c{k % categories}"], "price": 1.0 + k, "is_active": i not in inactive, "updated_at": 0,
         "attributes": [("year", str(1990 + k % 10))], "schema_version": 1} for k, i in enumerate(ids)], schema=ITEMS.schema)
    index = item_index.build(pa.array(ids[: len(vectors)]), vectors, model)
    index.save(folder.with_name(folder.name + "-index"))
    catalogue = make_catalogue(index.item_ids, index.vectors, snapshot, table)
    made = {name: (catalogue_positions(catalogue, some), np.linspace(1, 0.5, len(some)).astype(np.float32))
            for name, some in (segments or {}).items()}
    manifest = BundleManifest(version, model, model, model, "homepage", 0, 0, 0, 0)
    write_bundle(folder, manifest, catalogue, table, snapshot, folder.with_name(folder.name + "-index"), made, **shared)
    return Bundle.open(folder)


def catalogue_positions(catalogue: Any, ids: Sequence[str]) -> np.ndarray:
    """Positions of ids that are there."""
    where = {i: at for at, i in enumerate(catalogue.item_ids.to_pylist())}
    return np.array([where[i] for i in ids], np.int32)
