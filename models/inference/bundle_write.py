"""Writing a bundle: columns of the lake and of an index in, a folder of mapped arrays out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.inference.bundle import (
    ARRAYS,
    CATEGORIES,
    EVERYBODY,
    IDS,
    INDEX,
    MANIFEST,
    METADATA,
    TOWER,
    BundleManifest,
)
from models.inference.idtable import build_table
from models.inference.index_base import replacing
from models.inference.user_vector import write_strings
from models.inference.words import word_index
from schemas.keys import hash64_column
from transforms.catalogue import Catalogue, lengths_of, offsets_of, positions_of
from transforms.topk import exact_top_k

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

SNAPSHOT_COLUMNS = ("impressions_total", "age_days", "ctr_smoothed_30d")
NEIGHBOURS = 50
"""Co-occurring items of each: what lists are made from."""
POPULAR_ITEMS = 500
"""Items of a popular list: pages enough for who has no list of their own."""
SHOWN_ATTRIBUTES = 32
"""Attributes that the metadata of an item keeps: to be shown, and for business rules."""
CANARIES, CANARY_ANSWERS = 16, 10
_METADATA_ROWS = 20_000
_METADATA = ["title", "image", "price", "categories", "attributes"]


@dataclass(frozen=True)
class Tower:
    """The user tower of a model: its folder, and the row of its tables of each position and of some category names."""

    folder: Path
    item_rows: I32
    category_rows: Callable[[pa.StringArray], I32]


def write_bundle(folder: Path, manifest: BundleManifest, catalogue: Catalogue, items: pa.Table, snapshot: pa.Table,
                 index: Path, segments: Mapping[str, tuple[I32, F32]] | None = None, tower: Tower | None = None) -> None:
    """Writes a bundle; a reader, or a restart after a crash, finds a whole one in the folder or none.

    Args:
      manifest: versions; sizes and segments are filled in here.
      catalogue: every item by position, as the lists were made with.
      items: rows of schemas.tables.ITEMS; snapshot: item_id and SNAPSHOT_COLUMNS of the items' features.
      index: folder of the saved index whose items come first in the catalogue.
      segments: popular list per segment; everybody's follows from the catalogue.
      tower: the user tower, for lists on demand.

    Raises:
      BundleError: the versions differ.
      OSError: no room, or no such index.
    """
    manifest.check()
    everybody = catalogue.by_popularity[:POPULAR_ITEMS]
    popular = {EVERYBODY: (everybody, catalogue.popularity[everybody]), **(segments or {})}
    manifest = replace(manifest, items=len(catalogue.item_ids), vectors=len(catalogue.vectors),
                       dimensions=catalogue.vectors.shape[1], segments=tuple(popular))
    names, arrays = _arrays(catalogue, items, snapshot, popular)
    with replacing(folder) as temporary:
        write_strings(temporary / IDS, catalogue.item_ids)
        write_strings(temporary / CATEGORIES, names)
        arrays["metadata_offsets"] = _write_metadata(temporary / METADATA, items, catalogue)
        for name in ARRAYS:
            np.save(temporary / f"{name}.npy", np.ascontiguousarray(arrays[name]), allow_pickle=False)
        link_tree(index, temporary / INDEX)
        if tower is not None:
            link_tree(tower.folder, temporary / TOWER)
            for name, rows in (("item_rows", tower.item_rows), ("category_rows", tower.category_rows(names))):
                (temporary / TOWER / f"{name}.npy").unlink()  # a link: written over it would change the model's
                np.save(temporary / TOWER / f"{name}.npy", rows, allow_pickle=False)
        (temporary / MANIFEST).write_bytes(manifest.to_json())


def link_tree(source: Path, target: Path) -> None:
    """A copy of a folder of files that never change; hard links where the file system has them."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(exist_ok=True)
            continue
        try:
            os.link(path, there)
        except OSError:
            shutil.copy2(path, there)


def _arrays(catalogue: Catalogue, items: pa.Table, snapshot: pa.Table,
            popular: Mapping[str, tuple[I32, F32]]) -> tuple[pa.StringArray, dict[str, npt.NDArray[Any]]]:
    count = len(catalogue.item_ids)
    hashes = hash64_column(catalogue.item_ids)
    norms = np.zeros(count, np.float32)
    norms[: len(catalogue.vectors)] = np.sqrt(np.einsum("nd,nd->n", catalogue.vectors, catalogue.vectors))
    at = positions_of(snapshot["item_id"], catalogue.item_ids)
    impressions, ages = np.zeros(count, np.float32), np.full(count, np.nan, np.float32)
    impressions[at] = np.nan_to_num(snapshot["impressions_total"].to_numpy())
    ages[at] = snapshot["age_days"].to_numpy()
    rates = np.full(count, np.nan, np.float32)
    rates[at] = snapshot["ctr_smoothed_30d"].to_numpy()
    lengths = np.diff(catalogue.offsets)
    kept = np.arange(len(catalogue.neighbours)) - np.repeat(catalogue.offsets[:-1], lengths) < NEIGHBOURS
    row = positions_of(items["item_id"], catalogue.item_ids)
    names, category_offsets, category_codes = _categories(items["categories"], row, count)
    words = word_index(items["title"], row, catalogue.popularity)
    queries, answers = _canaries(catalogue)
    return names, {
        "hashes": hashes, "table": build_table(hashes), "active": catalogue.active, "popularity": catalogue.popularity,
        "by_popularity": catalogue.by_popularity, "impressions": impressions, "age_days": ages,
        "click_rate": rates, "norms": norms,
        "neighbour_offsets": offsets_of(np.minimum(lengths, NEIGHBOURS)), "neighbours": catalogue.neighbours[kept],
        "strengths": catalogue.strengths[kept], "category_offsets": category_offsets, "category_codes": category_codes,
        "segment_offsets": offsets_of(np.array([len(p) for p, _ in popular.values()])),
        "segment_items": np.concatenate([p for p, _ in popular.values()]).astype(np.int32),
        "segment_scores": np.concatenate([s for _, s in popular.values()]).astype(np.float32),
        "canary_queries": queries, "canary_answers": answers,
        "word_hashes": words.hashes, "word_offsets": words.offsets, "word_items": words.items,
    }


def _categories(column: pa.ChunkedArray, row: I32, count: int) -> tuple[pa.StringArray, I64, I32]:
    """(names, offsets, codes) of the categories of each position."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.list_(pa.string()))
    lengths = lengths_of(lists)
    encoded = pc.list_flatten(lists).cast(pa.string()).dictionary_encode()
    owner = np.repeat(row, lengths)
    order = np.argsort(owner, kind="stable")
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return encoded.dictionary, offsets_of(np.bincount(owner, minlength=count)), codes[order]


def _write_metadata(path: Path, items: pa.Table, catalogue: Catalogue) -> I64:
    """Writes the JSON of every position, b"{}"-like for an item the catalogue has no entry of; returns (m + 1,) offsets."""
    count = len(catalogue.item_ids)
    entry = np.full(count, -1, np.int64)
    entry[positions_of(items["item_id"], catalogue.item_ids)] = np.arange(items.num_rows)
    lengths = np.zeros(count, np.int64)
    with path.open("wb") as file:
        for start in range(0, count, _METADATA_ROWS):
            wanted = entry[start : start + _METADATA_ROWS]
            texts = list(_metadata_of(items.select(_METADATA).take(pa.array(wanted, mask=wanted < 0)).combine_chunks()))
            lengths[start : start + len(texts)] = [len(text) for text in texts]
            file.write(b"".join(texts))
    return offsets_of(lengths)


def _metadata_of(rows: pa.Table) -> Iterator[bytes]:
    """The JSON of each row; one of nulls for a row of nulls. Strings leave Arrow flat: a list or map a row is ten times
    dearer."""
    encode = msgspec.json.Encoder().encode
    titles, images, prices = (rows[name].to_numpy().tolist() for name in _METADATA[:3])
    lists, maps = (pa.concat_arrays(rows[name].chunks) for name in _METADATA[3:])
    names = pc.list_flatten(lists).cast(pa.string()).to_numpy(zero_copy_only=False).tolist()
    last = np.cumsum(lengths_of(lists)).tolist()
    pairs = maps.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])))
    flat = pc.list_flatten(pairs)
    keys, values = (pc.struct_field(flat, name).to_numpy(zero_copy_only=False).tolist() for name in ("key", "value"))
    ends = np.cumsum(lengths_of(pairs)).tolist()
    at = entry = 0
    for title, image, price, end, stop in zip(titles, images, prices, last, ends, strict=True):
        shown = zip(keys[entry:stop], values[entry:stop], strict=True)
        yield encode({"title": title, "image": image, "price": None if price != price else price,
                      "category": names[at] if end > at else None, "categories": names[at:end],
                      "attributes": dict(sorted(shown)[:SHOWN_ATTRIBUTES])})
        at, entry = end, stop


def _canaries(catalogue: Catalogue) -> tuple[F32, I32]:
    """Vectors of popular items as queries, and their best active items by brute force."""
    allowed = np.flatnonzero(catalogue.active[: len(catalogue.vectors)]).astype(np.int32)
    popular = catalogue.by_popularity[catalogue.by_popularity < len(catalogue.vectors)][:CANARIES]
    queries = np.ascontiguousarray(catalogue.vectors[popular], np.float32)
    best, _ = exact_top_k(queries, catalogue.vectors[allowed], CANARY_ANSWERS)
    return queries, np.where(best >= 0, allowed[best] if len(allowed) else best, -1).astype(np.int32)
