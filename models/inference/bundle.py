"""A bundle: everything of one published version that a request needs beside the store, in one memory-mapped folder.

Items are numbered by position: those of the item index first, in its order, then the rest. Arrays are .npy files mapped
copy-on-write, so that the workers of a machine share one copy of them. A bundle is written whole or not at all
(models.inference.bundle_write) and never changes; newer items stand in an Overlay (serving.ranking.overlay).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.inference import index as item_index
from models.inference.idtable import find, hashes_of
from models.inference.user_vector import UserTower, read_strings
from transforms.catalogue import Catalogue

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

LAYOUT = 1
MANIFEST, IDS, CATEGORIES, INDEX, METADATA, TOWER = ("manifest.json", "ids.arrow", "categories.arrow", "index", "metadata.json",
                                                     "tower")
EVERYBODY = ""
"""Names the popular list of all users among the segments."""

ARRAYS = ("hashes", "table", "active", "popularity", "by_popularity", "impressions", "age_days", "click_rate", "norms",
          "neighbour_offsets", "neighbours", "strengths", "category_offsets", "category_codes", "metadata_offsets",
          "segment_offsets", "segment_items", "segment_scores", "canary_queries", "canary_answers",
          "word_hashes", "word_offsets", "word_items")


class BundleError(ValueError):
    """A folder that holds no bundle this version can read, or one whose parts do not belong together."""


@dataclass(frozen=True)
class BundleManifest:
    """What a bundle is.

    Attributes:
      version: of the publish it belongs to.
      model_version, index_version, embedding_version: the model that made the lists, that the index was built from, that made
        the item vectors: must be equal.
      surface, as_of: of the lists; as_of in microseconds.
      items, vectors, dimensions: m, n and d.
      segments: names of the popular lists, EVERYBODY first.
    """

    version: str
    model_version: str
    index_version: str
    embedding_version: str
    surface: str
    as_of: int
    items: int
    vectors: int
    dimensions: int
    segments: tuple[str, ...] = (EVERYBODY,)
    layout: int = LAYOUT

    def to_json(self) -> bytes:
        """manifest.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    def check(self) -> None:
        """Raises BundleError when model, index and embeddings are not of one version."""
        if not self.model_version == self.index_version == self.embedding_version:
            raise BundleError(f"bundle {self.version} mixes versions: model {self.model_version}, index {self.index_version}, "
                              f"embeddings {self.embedding_version}")


@dataclass(frozen=True, eq=False)
class Bundle:
    """An open bundle of m items, n of them with vectors. Safe to read from several threads.

    Attributes:
      manifest: versions and sizes.
      folder: where it lies.
      item_ids: m ids by position.
      category_names: names by code.
      hashes: (m,) schemas.keys.hash64 of the ids.
      active: (m,) bool.
      popularity: (m,) in [0, 1], as in transforms.catalogue.
      by_popularity: active items, most popular first.
      impressions: (m,) impressions in all; age_days: (m,) days from the first event to as_of, NaN without one; click_rate:
        (m,) smoothed clicks per impression, NaN without impressions.
      vectors: (n, d) of the model, as the index has them; norms: (m,) their lengths, 0 where there is none.
      neighbour_offsets, neighbours, strengths: item-CF, best first: item i's are at offsets[i]:offsets[i + 1].
      category_offsets, category_codes: likewise.
      metadata_offsets: (m + 1,) into the bytes of ``metadata``.
      segment_offsets, segment_items, segment_scores: popular list per manifest.segments, best first.
      canary_queries: (q, d); canary_answers: (q, k) positions of their best active items by brute force.
      word_hashes, word_offsets, word_items: sorted hashes of words in titles; up to some items that hold each.
      tower: the user tower; None where the model has none that serving can run.
    """

    manifest: BundleManifest
    folder: Path
    item_ids: pa.StringArray
    category_names: tuple[str, ...]
    vectors: F32
    hashes: U64
    table: I32
    active: npt.NDArray[np.bool_]
    popularity: F32
    by_popularity: I32
    impressions: F32
    age_days: F32
    click_rate: F32
    norms: F32
    neighbour_offsets: I64
    neighbours: I32
    strengths: F32
    category_offsets: I64
    category_codes: I32
    metadata_offsets: I64
    segment_offsets: I64
    segment_items: I32
    segment_scores: F32
    canary_queries: F32
    canary_answers: I32
    word_hashes: U64
    word_offsets: I64
    word_items: I32
    metadata_bytes: npt.NDArray[np.uint8]
    tower: UserTower | None = None

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Maps a bundle; raises BundleError.

        The index is loaded at its first use (or by ``load_index``): only lists made on demand need it.
        """
        try:
            read = json.loads((folder / MANIFEST).read_bytes())
            if read.get("layout") != LAYOUT:
                raise BundleError(f"{folder} has bundle layout {read.get('layout')}, this version reads {LAYOUT}")
            manifest = BundleManifest(**{**read, "segments": tuple(read["segments"])})
            manifest.check()
            ids = read_strings(folder / IDS)
            arrays: dict[str, Any] = {name: _mapped(folder / f"{name}.npy") for name in ARRAYS}
            _, vectors = item_index.read_vectors(folder / INDEX / item_index.ITEMS)
            tower = UserTower.open(folder / TOWER) if (folder / TOWER).is_dir() else None
            bundle = cls(manifest, folder, ids, tuple(read_strings(folder / CATEGORIES).to_pylist()), vectors,
                         metadata_bytes=_mapped_bytes(folder / METADATA), tower=tower, **arrays)
        except BundleError:
            raise
        except (OSError, KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
            raise BundleError(f"{folder} holds no readable bundle: {error}") from error
        sizes = len(ids), len(bundle.hashes), len(bundle.active), len(bundle.metadata_offsets) - 1
        if any(size != manifest.items for size in sizes) or vectors.shape != (manifest.vectors, manifest.dimensions):
            raise BundleError(f"{folder} is broken: its parts have {sizes} items and vectors of shape {vectors.shape}, its "
                              f"manifest says {manifest.items} and {(manifest.vectors, manifest.dimensions)}")
        return bundle

    @property
    def version(self) -> str:
        """Of the publish it belongs to."""
        return self.manifest.version

    @functools.cached_property
    def index(self) -> item_index.ItemIndex:
        """The item index; raises BundleError when it is not of the bundle's model, IndexFormatError when broken."""
        index = item_index.load(self.folder / INDEX)
        if index.model_version != self.manifest.model_version:
            raise BundleError(f"bundle {self.version} holds an index of model {index.model_version}, its own is "
                              f"{self.manifest.model_version}")
        return index

    def load_index(self) -> None:
        """Loads the index now, so that no request waits for it; raises as ``index``."""
        _ = self.index

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """The items as transforms.candidates ranks them."""
        return Catalogue(self.item_ids, self.vectors, self.active, self.popularity, self.by_popularity, self.neighbour_offsets,
                         self.neighbours, self.strengths)

    @functools.cached_property
    def category_code(self) -> dict[str, int]:
        """Code of each category name."""
        return {name: code for code, name in enumerate(self.category_names)}

    def positions(self, ids: Sequence[str]) -> I32:
        """(k,) position of each id, -1 for one that is not there."""
        return self.find(hashes_of(ids))

    def find(self, hashes: U64) -> I32:
        """``positions`` of ids whose hashes are known already."""
        found: I32 = find(self.hashes, self.table, hashes)
        return found

    def ids(self, positions: npt.NDArray[np.integer]) -> list[str]:
        """The ids at k positions (>= 0)."""
        offsets, text = self._id_bytes
        starts, ends = offsets[positions].tolist(), offsets[positions + 1].tolist()
        return [str(text[a:b], "utf-8") for a, b in zip(starts, ends, strict=True)]

    @functools.cached_property
    def _id_bytes(self) -> tuple[I32, memoryview]:
        """Offsets and text of the ids: a few of them are read ten times faster than through Arrow."""
        _, offsets, text = self.item_ids.buffers()
        ends = np.frombuffer(offsets, np.int32, len(self.item_ids) + 1, 4 * self.item_ids.offset)
        return ends, memoryview(text if text is not None else b"")

    @functools.cached_property
    def id_arrays(self) -> tuple[I32, npt.NDArray[np.uint8]] | None:
        """(m + 1,) offsets and bytes of the ids, for compiled calls; None where not all of them are ASCII."""
        offsets, text = self._id_bytes
        raw = np.frombuffer(text, np.uint8) if len(text) else np.zeros(0, np.uint8)
        return (offsets, raw) if not (raw[offsets[0] : offsets[-1]] >= 0x80).any() else None

    def units(self, positions: npt.NDArray[np.integer]) -> F32:
        """(k, d) vectors of length 1; zeros for an item without a vector and for position -1."""
        rows = np.zeros((len(positions), self.manifest.dimensions), np.float32)
        there = (positions >= 0) & (positions < len(self.vectors))
        at = positions[there]
        rows[there] = self.vectors[at] / np.maximum(self.norms[at], 1e-12)[:, None]
        return rows

    def metadata(self, position: int) -> bytes:
        """JSON object {title, image, price, category, categories, attributes} of an item; nulls where unknown."""
        return self.metadata_bytes[self.metadata_offsets[position] : self.metadata_offsets[position + 1]].tobytes()

    def neighbours_of(self, position: int) -> tuple[I32, F32]:
        """(positions, strengths) of the items that co-occur with one, best first."""
        part = slice(int(self.neighbour_offsets[position]), int(self.neighbour_offsets[position + 1]))
        return self.neighbours[part], self.strengths[part]

    def categories_of(self, position: int) -> list[str]:
        """Category names of an item."""
        codes = self.category_codes[self.category_offsets[position] : self.category_offsets[position + 1]]
        return [self.category_names[code] for code in codes.tolist()]

    def popular(self, segment: str | None = None) -> tuple[I32, F32]:
        """(positions, scores) of a segment's popular list, everybody's for None and for a segment without one."""
        names = self.manifest.segments
        at = names.index(segment) if segment in names else names.index(EVERYBODY)
        part = slice(int(self.segment_offsets[at]), int(self.segment_offsets[at + 1]))
        return self.segment_items[part], self.segment_scores[part]

    def canary_recall(self) -> float:
        """Share of the canary queries' known answers that the index finds; 1 without canaries. Raises as ``index``."""
        if not self.canary_answers.size:
            return 1.0
        k = min(len(self.vectors), self.canary_answers.shape[1] + int((~self.active[: len(self.vectors)]).sum()), 1000)
        found, _ = self.index.search(self.canary_queries, k, self.manifest.model_version)
        hits = [np.isin(answer[answer >= 0], row).sum() for answer, row in zip(self.canary_answers, found, strict=True)]
        return float(sum(hits) / max(1, int((self.canary_answers >= 0).sum())))


def _mapped(path: Path) -> npt.NDArray[Any]:
    """Copy-on-write: to the kernels it is an array like any other, so they are compiled once, not once more for read-only."""
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))


def _mapped_bytes(path: Path) -> npt.NDArray[np.uint8]:
    if not path.stat().st_size:
        return np.zeros(0, np.uint8)  # an empty file cannot be mapped
    return np.asarray(np.memmap(path, np.uint8, "c"))
