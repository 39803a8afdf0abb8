"""Packing of many cells at once: sections of each entity are woven into one buffer, then cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from schemas.cells import LAYOUT
from transforms.accumulators.frame import Ints
from transforms.accumulators.stream.names import Names
from transforms.records.memory import copy

Bytes = npt.NDArray[np.uint8]
Section = tuple[Ints, Bytes]
"""Bounds (n + 1,) in bytes, and the bytes, of one part of n cells."""

_HEADER = np.dtype([("layout", "u1"), ("kind", "u1"), ("group", "<u2"), ("count", "<u4")])


def header(kind: int, group: int, counts: Ints) -> Section:
    """The headers of n cells."""
    heads = np.empty(len(counts), _HEADER)
    heads["layout"], heads["kind"], heads["group"], heads["count"] = LAYOUT, kind, group, counts
    return fixed(heads)


def fixed(rows: npt.NDArray[np.generic]) -> Section:
    """One row (of a structured or 2-d array) for each cell."""
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
    return np.arange(len(rows) + 1, dtype=np.int64) * (len(raw) // max(1, len(rows))), raw


def column(bounds: Ints, values: npt.NDArray[np.generic]) -> Section:
    """A flat array of numbers of which cell i has those at bounds[i] to bounds[i + 1]."""
    return bounds * values.itemsize, np.ascontiguousarray(values).view(np.uint8)


def strings(bounds: Ints, names: Names, codes: Ints) -> list[Section]:
    """Lists of ids: end offsets (uint32, counted within the cell), then UTF-8."""
    offsets, data = names.texts(codes)
    ends = offsets[1:] - np.repeat(offsets[bounds[:-1]], np.diff(bounds))
    return [column(bounds, ends.astype("<u4")), (offsets[bounds], data)]


def weave(sections: Sequence[Section]) -> pa.LargeBinaryArray:
    """The cells: cell i is the i-th part of every section, in their order."""
    sizes = [np.diff(bounds) for bounds, _ in sections]
    bounds = np.concatenate(([0], np.cumsum(np.sum(sizes, axis=0, dtype=np.int64))))
    out = np.empty(int(bounds[-1]), np.uint8)
    at = bounds[:-1].copy()
    for starts, data in sections:
        _copy(out, at, starts, data)
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(at), [None, pa.py_buffer(bounds), pa.py_buffer(out)])


@njit(cache=True, nogil=True)
def _copy(out: Bytes, at: Ints, starts: Ints, data: Bytes) -> None:
    """Copies part i of the data to out[at[i]:], and moves at[i] behind it."""
    target, source = out.ctypes.data, data.ctypes.data
    for i in range(len(at)):
        start, size = starts[i], starts[i + 1] - starts[i]
        if size > 0:
            copy(target + at[i], source + start, size)
            at[i] += size
