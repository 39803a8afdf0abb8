"""The exported model: towers and tf.Transform graph in one SavedModel that takes raw columns.

Signatures (a list arrives as Arrow holds it, flat values and row splits: ``liked_items`` [n], ``liked_items_splits`` [b + 1]):
  serving_default     raw user columns -> user_vector [b, dim]
  item_vectors        raw item columns -> item_vector [b, dim]
  transform_features  raw user and item columns -> every column of preprocessing_fn, lists padded
The score of an item for a user is the dot product of their vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.two_tower.config import TwoTowerConfig
from models.two_tower.model import ITEM_COLUMNS, PADDING, USER_COLUMNS, TwoTower
from models.two_tower.runtime import tf
from transforms.examples import ITEM_SCHEMA, USER_SCHEMA
from transforms.preprocessing import LISTS
from transforms.tf_runtime import tft

Tensors = dict[str, "tf.Tensor"]
_OWNER = {"liked_ages": "liked_items", "affinity_shares": "affinity_ids"}
"""Lists that share another list's row splits."""


def _splits_of(name: str) -> str:
    return f"{_OWNER.get(name, name)}_splits"


def signature_specs(schema: pa.Schema) -> dict[str, tf.TensorSpec]:
    """The named inputs of a signature over the columns of an Arrow schema."""
    specs = {}
    for field in schema:
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        dtype = tf.string if pa.types.is_string(kind) else tf.float32
        specs[field.name] = tf.TensorSpec([None], dtype, name=field.name)
        if pa.types.is_list(field.type):
            specs[_splits_of(field.name)] = tf.TensorSpec([None], tf.int64, name=_splits_of(field.name))
    return specs


def signature_inputs(table: pa.Table) -> Tensors:
    """Raw columns (USER_SCHEMA, ITEM_SCHEMA or both) as the inputs of a signature; no per-row Python."""
    inputs: Tensors = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        values = column
        if pa.types.is_list(column.type):
            values = column.flatten()
            offsets = column.offsets.to_numpy().astype(np.int64)
            inputs[_splits_of(name)] = tf.constant(offsets - offsets[0])
        inputs[name] = _strings(values) if pa.types.is_string(values.type) else tf.constant(_numbers(values), tf.float32)
    return inputs


def _strings(values: pa.Array) -> tf.Tensor:
    if not len(values):
        return tf.constant([], tf.string)
    encoded = values.dictionary_encode()  # each distinct id becomes a Python object once
    names = encoded.dictionary.cast(pa.binary()).to_numpy(zero_copy_only=False)
    return tf.gather(tf.constant(names), tf.constant(encoded.indices.to_numpy()))


def _numbers(values: pa.Array) -> npt.NDArray[Any]:
    return values.to_numpy(zero_copy_only=False).astype(np.float32)


class ExportedModel(tf.Module):
    """What is saved: a trained TwoTower behind its transform graph."""

    def __init__(self, model: TwoTower, transform: tft.TFTransformOutput, config: TwoTowerConfig) -> None:
        super().__init__(name="exported_two_tower")
        self._model = model
        self._layer = transform.transform_features_layer()
        self.endpoints = {
            "serving_default": tf.function(self._user, input_signature=[signature_specs(USER_SCHEMA)]),
            "item_vectors": tf.function(self._item, input_signature=[signature_specs(ITEM_SCHEMA)]),
            "transform_features": tf.function(
                self._transform, input_signature=[signature_specs(pa.schema([*USER_SCHEMA, *ITEM_SCHEMA]))]),
        }

    def _user(self, inputs: Mapping[str, tf.Tensor]) -> Tensors:
        features = self._dense(inputs, USER_SCHEMA)
        return {"user_vector": self._model.user_tower({n: features[n] for n in USER_COLUMNS})}

    def _item(self, inputs: Mapping[str, tf.Tensor]) -> Tensors:
        features = self._dense(inputs, ITEM_SCHEMA)
        return {"item_vector": self._model.item_tower({n: features[n] for n in ITEM_COLUMNS})}

    def _transform(self, inputs: Mapping[str, tf.Tensor]) -> Tensors:
        return self._dense(inputs, pa.schema([*USER_SCHEMA, *ITEM_SCHEMA]))

    def _dense(self, inputs: Mapping[str, tf.Tensor], schema: pa.Schema) -> Tensors:
        raw = {}
        for field in schema:
            values = inputs[field.name]
            if pa.types.is_list(field.type):
                values = tf.RaggedTensor.from_row_splits(values, inputs[_splits_of(field.name)]).to_sparse()
            raw[field.name] = values
        done = self._layer(raw)
        return {name: _pad(name, value) for name, value in done.items()}


def _pad(name: str, value: tf.Tensor | tf.SparseTensor) -> tf.Tensor:
    if name not in LISTS:
        return value
    fill = tf.cast(0 if name == "affinity_shares" else PADDING, value.dtype)
    return tf.sparse.to_dense(value, default_value=fill)


def save(model: TwoTower, transform_graph: str, folder: str, config: TwoTowerConfig) -> None:
    """Writes the SavedModel of a trained model and the transform graph that made its inputs."""
    exported = ExportedModel(model, tft.TFTransformOutput(transform_graph), config)
    tf.saved_model.save(exported, folder, signatures={
        name: function.get_concrete_function() for name, function in exported.endpoints.items()})


class Scorer:
    """A SavedModel loaded for batch use: raw columns in, float32 vectors out, in chunks of bounded memory."""

    def __init__(self, folder: Path | str, chunk_rows: int = 4096) -> None:
        self._model = tf.saved_model.load(str(folder))
        self._chunk = chunk_rows

    def user_vectors(self, rows: pa.Table) -> npt.NDArray[np.float32]:
        """(n, dim) vectors of n rows of USER_SCHEMA."""
        return self._run("serving_default", "user_vector", rows.select(USER_SCHEMA.names))

    def item_vectors(self, rows: pa.Table) -> npt.NDArray[np.float32]:
        """(n, dim) vectors of n rows of ITEM_SCHEMA."""
        return self._run("item_vectors", "item_vector", rows.select(ITEM_SCHEMA.names))

    def _run(self, signature: str, output: str, rows: pa.Table) -> npt.NDArray[np.float32]:
        call = self._model.signatures[signature]
        starts: Sequence[int] = range(0, rows.num_rows, self._chunk) or [0]
        parts = [call(**signature_inputs(rows.slice(at, self._chunk)))[output].numpy() for at in starts]
        return np.ascontiguousarray(np.concatenate(parts), np.float32)
