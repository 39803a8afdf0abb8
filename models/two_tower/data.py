"""Transformed example files -> padded NumPy columns -> training batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.two_tower.model import ITEM_COLUMNS, PADDING, USER_COLUMNS
from models.two_tower.runtime import tf
from transforms.examples import ORDER
from transforms.preprocessing import LISTS

Columns = dict[str, npt.NDArray[Any]]


def read_columns(paths: Sequence[str]) -> Columns:
    """The columns of transformed example files, sorted by ORDER: lists padded to (n, longest), scalars (n,).

    Integers become int32, numbers float32. Lists end in PADDING, affinity_shares in 0.
    """
    names = [*USER_COLUMNS, *ITEM_COLUMNS]
    table = pa.concat_tables(pq.read_table(path, columns=[*names, *ORDER]) for path in paths)
    keys = [pc.list_flatten(table[name]).to_numpy() for name in reversed(ORDER)]
    table = table.take(np.lexsort(keys)).combine_chunks()
    return {name: _column(table, name) for name in names}


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    column = table[name].chunk(0) if table.num_rows else pa.array([], table.schema.field(name).type)
    values = column.flatten().to_numpy()
    values = values.astype(np.float32 if np.issubdtype(values.dtype, np.floating) else np.int32)
    if name not in LISTS:
        return values
    lengths = np.diff(column.offsets.to_numpy())
    fill = 0 if name == "affinity_shares" else PADDING
    padded = np.full((len(column), max(1, int(lengths.max(initial=0)))), fill, values.dtype)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = values
    return padded


def batches(columns: Columns, batch_size: int, seed: int, shuffle: bool = True) -> tf.data.Dataset:
    """One pass over the rows per epoch in whole batches, shuffled anew each epoch from the seed."""
    n = len(columns["item_id"])
    size = min(batch_size, n)
    held = {name: tf.constant(values) for name, values in columns.items()}
    rows = tf.data.Dataset.range(n)
    if shuffle:
        rows = rows.shuffle(n, seed=seed, reshuffle_each_iteration=True)
    rows = rows.batch(size, drop_remainder=True)
    return rows.map(lambda at: {name: tf.gather(values, at) for name, values in held.items()},
                    num_parallel_calls=2, deterministic=True).prefetch(2)
