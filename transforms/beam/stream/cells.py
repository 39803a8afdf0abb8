"""Cells on their way to the store: one row of columns per cell."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.cells import CELLS, encode_list
from schemas.keys import ENTITY_KINDS, SUPPRESSED, TRENDING, USER, trending_key
from schemas.stream_cells import encode_suppression
from transforms.accumulators.stream.base import Cells


@cache
def _prefixes(kind: str) -> pa.Array:
    return pa.array([f"{byte:02x}#{kind}#" for byte in range(256)], pa.string())


def row_keys(kind: str, hashes: npt.NDArray[np.uint64], ids: pa.Array) -> pa.Array:
    """schemas.keys.row_key of n entities."""
    prefix = _prefixes(kind).take(pa.array((hashes >> np.uint64(56)).astype(np.int32)))
    return pc.binary_join_element_wise(prefix, ids.cast(pa.string()), "")


def cell_rows(entity: str, cells: Cells) -> pa.RecordBatch:
    """Cells of one group as CELLS."""
    n = len(cells)
    return pa.RecordBatch.from_arrays(
        [row_keys(ENTITY_KINDS[entity], cells.entities.hashes, cells.entities.ids),
         pa.repeat(pa.scalar(cells.group, pa.string()), n), cells.packed.cast(pa.binary()), pa.array(cells.timestamps)],
        schema=CELLS)


def trending_row(job: str, bucket: int, ids: list[str], weights: npt.NDArray[np.float32], newest: int) -> pa.RecordBatch:
    """The cell of what is trending in a bucket of items, heaviest first, as CELLS; its times are not told."""
    value = encode_list(0, ids, np.zeros(len(ids), np.int64), weights)
    return pa.RecordBatch.from_pydict({"row": [trending_key(job)], "group": [f"{TRENDING}{bucket:x}"], "value": [value],
                                       "timestamp": [newest // 1000 * 1000]}, schema=CELLS)


def suppression_rows(user_hashes: npt.NDArray[np.uint64], user_ids: pa.Array, item_ids: pa.Array,
                     times: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """The cells that hide items from users who are done with them, one per event, as CELLS."""
    groups = pc.binary_join_element_wise(SUPPRESSED, item_ids.cast(pa.string()), "")
    values = [encode_suppression(time) for time in times.tolist()]
    return pa.RecordBatch.from_arrays([row_keys(USER, user_hashes, user_ids), groups, pa.array(values, pa.binary()),
                                       pa.array(times // 1000 * 1000)], schema=CELLS)
