"""The approximate item index: ScaNN (Guo et al. 2020, "Accelerating Large-Scale Inference with Anisotropic Vector
Quantization") through its pybind interface, calibrated against brute force when it is built."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models.inference.index_base import Kind, Matrix, Positions, check_queries, replacing, write_index
from transforms.topk import exact_top_k

TARGET_RECALL = 0.99
"""Calibration works harder until this share of the true best items of the sample queries is found."""

_LISTED = 100
_CALIBRATION_K = 150
"""A list of 100 and what its user has consumed: what the recommend job asks for. The best _LISTED of them are to be found:
what lies behind them is on no list."""
_SAMPLE = 512
_LADDER = ((0.02, 2), (0.03, 2), (0.05, 2), (0.03, 2.5), (0.04, 2.5), (0.06, 2.5), (0.06, 3), (0.1, 3), (0.15, 3),
           (0.15, 4), (0.2, 4), (0.2, 6), (0.3, 6), (0.3, 10), (0.45, 10), (0.45, 16), (0.6, 24), (1.0, 24), (1.0, 60))
"""Share of the leaves searched and neighbours re-ordered exactly per neighbour asked, dearer from step to step."""
_SEARCH_BATCH = 64
"""Queries a thread takes at a time: with more of them one thread waits for the other at the end of a batch."""

_SINGLE_THREAD_UP_TO = 1_000_000
_FOLDER = "scann"


def _pybind() -> Any:
    """ScaNN's pybind module, without the package's __init__: that one loads TensorFlow, and fails beside TF 2.21."""
    if "scann" not in sys.modules:
        spec = importlib.util.find_spec("scann")
        if spec is None:
            raise ModuleNotFoundError("the item index of a large catalogue needs ScaNN: pip install 'beamrec[train]'",
                                      name="scann")
        sys.modules["scann"] = importlib.util.module_from_spec(spec)
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind


@dataclass(frozen=True)
class ScannIndex:
    """Tree, asymmetric hashing and exact re-ordering; ``settings`` says what calibration chose and the recall it saw."""

    item_ids: pa.StringArray
    vectors: Matrix
    model_version: str
    searcher: Any
    settings: dict[str, float]
    kind: Kind = "scann"

    @classmethod
    def build(cls, item_ids: pa.StringArray, vectors: Matrix, model_version: str, queries: Matrix | None = None) -> ScannIndex:
        """Trains, and calibrates with ``queries`` (see index.build); the same input gives the same index up to
        _SINGLE_THREAD_UP_TO items."""
        # Three times the usual sqrt(n): smaller leaves find the same share of the best items in half the time.
        leaves = max(1, min(int(3 * np.sqrt(len(vectors))), len(vectors) // 20))
        builder = _pybind().builder(vectors, min(100, len(vectors)), "dot_product")
        if len(vectors) <= _SINGLE_THREAD_UP_TO:
            builder = builder.set_n_training_threads(1)  # parallel k-means sums in any order: no two builds alike
        searcher = (builder
                    .tree(num_leaves=leaves, num_leaves_to_search=max(1, leaves // 10),
                          training_sample_size=min(len(vectors), 250_000),
                          random_init=False)  # k-means++; the random start has another seed each time
                    .score_ah(2, anisotropic_quantization_threshold=0.2)
                    .reorder(300)
                    .build())
        index = cls(item_ids, vectors, model_version, searcher, {"leaves": leaves})
        return index._calibrated(_made_up_queries(vectors) if queries is None else np.ascontiguousarray(queries, np.float32))

    @classmethod
    def open(cls, folder: Path, item_ids: pa.StringArray, vectors: Matrix, model_version: str,
             settings: dict[str, float]) -> ScannIndex:
        """Reads what ``save`` wrote."""
        return cls(item_ids, vectors, model_version, _pybind().load_searcher(str(folder / _FOLDER)), settings)

    def _calibrated(self, queries: Matrix) -> ScannIndex:
        """This index with the least work that reaches TARGET_RECALL on the queries."""
        k = min(_CALIBRATION_K, len(self.vectors))
        truth, _ = exact_top_k(queries, self.vectors, min(_LISTED, k))
        for share, reorder in _LADDER:
            settings = {**self.settings, "search_share": share, "reorder": reorder}
            index = ScannIndex(self.item_ids, self.vectors, self.model_version, self.searcher, settings)
            found, _ = index.search(queries, k, self.model_version)
            settings["recall"] = recall(found, truth)
            if settings["recall"] >= TARGET_RECALL:
                break
        return index

    def search(self, queries: Matrix, k: int, query_model_version: str) -> tuple[Positions, Matrix]:
        """See ItemIndex.search."""
        queries = check_queries(self, queries, query_model_version)
        positions = np.full((len(queries), k), -1, np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        wanted = min(k, len(self.vectors))
        if not len(queries) or not wanted:
            return positions, scores
        # More neighbours lie in more leaves.
        share = min(1.0, self.settings["search_share"] * max(1.0, wanted / (1.1 * _CALIBRATION_K)))
        leaves = max(1, round(self.settings["leaves"] * share))
        reordered = int(self.settings["reorder"] * max(wanted, _CALIBRATION_K))  # who asks for fewer gets no worse ones
        found, dots = self.searcher.search_batched_parallel(
            queries, final_num_neighbors=wanted, leaves_to_search=leaves,
            pre_reorder_num_neighbors=min(len(self.vectors), reordered), batch_size=_SEARCH_BATCH)
        missing = np.isnan(dots)  # ScaNN pads a short row with position 0 and NaN
        positions[:, :wanted] = np.where(missing, -1, found.astype(np.int32))
        scores[:, :wanted] = np.where(missing, -np.inf, dots)
        return positions, scores

    def save(self, folder: Path) -> None:
        """See ItemIndex.save."""
        with replacing(folder) as temporary:
            (temporary / _FOLDER).mkdir()
            self.searcher.serialize(str(temporary / _FOLDER), relative_path=True)
            write_index(temporary, self, self.settings)


def _made_up_queries(vectors: Matrix) -> Matrix:
    """Half of them items, half means of five items: a user vector pools a history, so it lies between items."""
    chosen = np.random.default_rng(0).integers(0, len(vectors), (_SAMPLE, 5))
    return np.concatenate([vectors[chosen[::2, 0]], vectors[chosen[1::2]].mean(axis=1)])


def recall(found: Positions, truth: Positions) -> float:
    """Share of the true positions that were found, row by row; -1 counts for nothing."""
    hits = sum(int(np.isin(t[t >= 0], f).sum()) for t, f in zip(truth, found, strict=True))
    return hits / max(1, int((truth >= 0).sum()))
