"""User vectors in a Beam pipeline: a RunInference handler over RecordBatches, one batch an element."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler

from transforms.examples import user_rows_of_snapshot


class UserTowerHandler(ModelHandler):  # type: ignore[misc]
    """``batches | RunInference(UserTowerHandler(path))``: user snapshots in, the same rows with their user vectors out.

    An element is a RecordBatch with columns of schemas.tables.USER_SNAPSHOTS: user_id, and what there is of as_of, liked_items,
    category_affinity_30d and the statistics of transforms.examples.USER_STATS (an absent column counts as null). The
    result is that batch with one column more, ``vector`` fixed_size_list<float32>: no key is needed to put them together.

    Args:
      saved_model: folder of the exported model (ModelVersion.saved_model).
    """

    def __init__(self, saved_model: str) -> None:
        super().__init__()
        self._saved_model = str(saved_model)

    def load_model(self) -> Any:
        from models.two_tower.export import Scorer

        return Scorer(self._saved_model)

    def run_inference(self, batch: Sequence[pa.RecordBatch], model: Any,
                      inference_args: dict[str, Any] | None = None) -> Iterable[pa.RecordBatch]:
        return [rows.append_column("vector", user_vectors(model, rows)) for rows in batch]

    def get_num_bytes(self, batch: Sequence[pa.RecordBatch]) -> int:
        return sum(rows.nbytes for rows in batch)

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {"min_batch_size": 1, "max_batch_size": 1}  # an element is a batch already

    def get_metrics_namespace(self) -> str:
        return "user_tower"

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        if inference_args:
            raise ValueError("the user tower takes no inference arguments")


def user_vectors(model: Any, snapshot: pa.RecordBatch) -> pa.FixedSizeListArray:
    """Vectors (fixed_size_list<float32>) of the rows of a user snapshot; ``model`` is an export.Scorer."""
    vectors = model.user_vectors(user_rows_of_snapshot(snapshot))
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
