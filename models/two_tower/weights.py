"""The user tower of an exported model as arrays, for serving without TensorFlow (models.inference.user_vector).

Nothing is read out of the graph: the model's own transform_features signature says where it puts each id and where its buckets
begin, so what serving looks up is what the model does, hash buckets of unknown ids included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.inference.index_base import replacing
from models.inference.user_vector import UserTower, read_strings, write_strings
from models.two_tower.export import signature_inputs
from models.two_tower.runtime import tf
from transforms.examples import ITEM_SCHEMA, USER_SCHEMA
from transforms.preprocessing import CATEGORY_VOCABULARY, DAY_BOUNDS, ITEM_VOCABULARY, USER_BOUNDS, USER_BUCKETS

F32 = npt.NDArray[np.float32]
_DENSE = {"age_logits": "age_logits/embeddings", "hidden_kernel": "user_hidden/kernel", "hidden_bias": "user_hidden/bias",
          "out_kernel": "user_out/kernel", "out_bias": "user_out/bias"}
_ROWS = pa.schema([*USER_SCHEMA, *ITEM_SCHEMA])
_CHUNK = 100_000


VOCABULARY = "{}.arrow"
"""File of a tower's folder that names the ids behind its rows, with the hash buckets' share of the rows after them."""


def write_tower(saved_model: Path, folder: Path) -> None:
    """Writes the user tower of a SavedModel beside it, whole or not at all: rows are those of the model's own vocabularies.

    Raises:
      OSError: no SavedModel there.
      KeyError: one of another make.
    """
    items, categories = (pa.array((saved_model / "assets" / name).read_text("utf-8").splitlines(), pa.string())
                         for name in (ITEM_VOCABULARY, CATEGORY_VOCABULARY))
    tower = read_tower(saved_model, items, categories)
    with replacing(folder) as temporary:
        tower.save(temporary)
        write_strings(temporary / VOCABULARY.format(ITEM_VOCABULARY), items)
        write_strings(temporary / VOCABULARY.format(CATEGORY_VOCABULARY), categories)


def read_tower(saved_model: Path, item_ids: pa.StringArray, categories: pa.StringArray) -> UserTower:
    """The user tower, its tables looked up for m items and some categories; raises as ``write_tower``."""
    model = tf.saved_model.load(str(saved_model))
    call = model.signatures["transform_features"]
    held = {v.name.removeprefix("user_tower/").removesuffix(":0"): v for v in model.signatures["serving_default"].variables}
    dense: dict[str, Any] = {name: held[path].numpy() for name, path in _DENSE.items()}
    dense["age_logits"] = dense["age_logits"][:, 0]
    bounds = {name: np.asarray(values, np.float32) for name, values in USER_BOUNDS.items()}
    tables = {name: held[f"user_{name}/embeddings"].numpy() for name in USER_BUCKETS}
    for name in (n for n in USER_BUCKETS if n not in bounds):
        bounds[name] = bucket_bounds(functools.partial(_bucket, call, name), len(tables[name]))
    return UserTower(held["item_ids/embeddings"].numpy(), _rows(call, "item_id", item_ids),
                     held["affinity_bag/affinity_bag_table/embeddings"].numpy(), _rows(call, "categories", categories),
                     age_bounds=np.asarray(DAY_BOUNDS, np.float32),
                     buckets={name: (bounds[name], tables[name]) for name in USER_BUCKETS}, **dense)


def rows_of(folder: Path, name: str, ids: pa.StringArray, table_rows: int) -> npt.NDArray[np.int32]:
    """The row of each id in a tower's table: its place in the vocabulary, else the hash bucket behind it that tf.Transform's
    apply_vocabulary puts it into."""
    vocabulary = read_strings(folder / VOCABULARY.format(name))
    rows = pc.index_in(ids, vocabulary).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    unknown = np.flatnonzero(rows < 0)
    buckets = table_rows - len(vocabulary)
    if len(unknown) and buckets > 0:
        names = tf.constant(ids.take(pa.array(unknown)).to_pylist())
        rows[unknown] = len(vocabulary) + tf.strings.to_hash_bucket_fast(names, buckets).numpy()
    return rows


def _bucket(call: Any, name: str, values: F32) -> npt.NDArray[np.integer]:
    return _transformed(call, len(values), name, **{name: pa.array(values)})


def bucket_bounds(bucket: Callable[[F32], npt.NDArray[np.integer]], buckets: int) -> F32:
    """Where each bucket of a non-decreasing function of floats begins, to the last bit; at most ``buckets`` - 1 bounds.

    Bisects all bounds at once over the floats in their order, 32 calls in all; a bucket that no finite value falls into takes
    none.
    """
    low = np.full(buckets - 1, _order(np.float32(np.finfo(np.float32).min)), np.int64)
    high = np.full(buckets - 1, _order(np.float32(np.finfo(np.float32).max)), np.int64) + 1
    wanted = np.arange(1, buckets)
    while (low < high).any():
        middle = (low + high) // 2
        reached = bucket(_float(middle)) >= wanted
        high = np.where(reached & (low < high), middle, high)
        low = np.where(~reached & (low < high), middle + 1, low)
    found = low[low <= _order(np.float32(np.finfo(np.float32).max))]
    return _float(found)


def _order(value: np.float32) -> int:
    """The place of a float among all floats."""
    bits = int(value.view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _float(order: npt.NDArray[np.int64]) -> F32:
    bits = np.where(order >= 0, order, (-order) | 0x80000000).astype(np.uint32)
    return bits.view(np.float32)


def _rows(call: Any, name: str, ids: pa.StringArray) -> npt.NDArray[np.int32]:
    """The row of each id in the model's table."""
    found = [np.zeros(0, np.int32)]
    for start in range(0, len(ids), _CHUNK):
        part = ids.slice(start, _CHUNK)
        values = part
        if pa.types.is_list(_ROWS.field(name).type):
            values = pa.ListArray.from_arrays(pa.array(np.arange(len(part) + 1, dtype=np.int32)), part)
        rows = _transformed(call, len(part), name, **{name: values})
        found.append(rows.reshape(len(part), -1)[:, 0].astype(np.int32))
    return np.concatenate(found)


def _transformed(call: Any, count: int, wanted: str, **columns: pa.Array) -> npt.NDArray[Any]:
    """One output of transform_features over ``count`` rows; columns not given are empty, missing or ""."""
    def filler(field: pa.Field) -> pa.Array:
        if pa.types.is_list(field.type):
            return pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], field.type.value_type))
        return pa.array([""] * count) if pa.types.is_string(field.type) else pa.array(np.full(count, np.nan, np.float32))

    rows = pa.table([columns[f.name] if f.name in columns else filler(f) for f in _ROWS], names=_ROWS.names)
    return np.asarray(call(**signature_inputs(rows))[wanted].numpy())
