"""The items of a ServedFeatures record, compiled: Avro's encoding of up to 100 items with their numbers."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
MAX_VARINT = 10


@numba.njit(cache=True, nogil=True)
def _varint(value: int, out: U8, at: int) -> int:
    """Writes an Avro long >= 0; the place behind it."""
    left = np.uint64(value) << np.uint64(1)
    while left >= np.uint64(0x80):
        out[at] = np.uint8((left & np.uint64(0x7F)) | np.uint64(0x80))
        left >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(left)
    return at + 1


@numba.njit(cache=True, nogil=True)
def encode_items(ids: U8, id_sizes: I64, position: int, scores: U8, sources: U8, source_sizes: I64, template: U8, places: I64,
                 values: U8, out: U8) -> int:
    """Writes n items; how many bytes they take.

    Args:
      ids, sources: one behind the other, sources as Avro strings; id_sizes, source_sizes: (n,) bytes of each.
      position: of the first item, from 1.
      scores: (4 n,) bytes of float32.
      template: a map from feature to an array of one float, still 0; places: (k,) where the floats begin.
      values: (4 n k,) bytes of float32, feature by feature.
    """
    at, id_at, source_at, n = 0, 0, 0, len(id_sizes)
    for i in range(n):
        at = _varint(id_sizes[i], out, at)
        for b in range(id_sizes[i]):
            out[at + b] = ids[id_at + b]
        at, id_at = at + id_sizes[i], id_at + id_sizes[i]
        at = _varint(position + i, out, at)
        for b in range(4):
            out[at + b] = scores[4 * i + b]
        at += 4
        for b in range(source_sizes[i]):
            out[at + b] = sources[source_at + b]
        at, source_at = at + source_sizes[i], source_at + source_sizes[i]
        for b in range(len(template)):
            out[at + b] = template[b]
        for k in range(len(places)):
            for b in range(4):
                out[at + places[k] + b] = values[4 * (k * n + i) + b]
        at += len(template)
    return at
