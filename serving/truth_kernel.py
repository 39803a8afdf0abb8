"""The numbers and the items of a ServedFeatures record, compiled: Avro's encoding of up to 100 items with their numbers."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from transforms.records.memory import copy

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
_MAX_VARINT = 10


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
def encode_numbers_and_items(numbers: npt.NDArray[np.float64], named: U8, named_ends: I64, ids: U8, id_ends: I32, position: int,
                             scores: F32, codes: I32, sources: U8, source_ends: I64, template: U8, places: I64,
                             values: F32) -> U8:
    """A map from names to arrays of one float each, then an array of n items; both as Avro.

    Args:
      numbers: (m,), NaN for none.
      named: for each number an Avro string and the head of an array of one; one behind the other, named_ends: (m,).
      ids: one behind the other, id_ends: (n,); position: of the first item, from 1; scores: (n,).
      codes: (n,) number of each item's source among ``sources``: Avro strings, one behind the other.
      template: a map from feature to an array of one float, still 0; places: (k,) where the floats begin.
      values: (k, n).
    """
    n, size, count = len(id_ends), np.int64(0), 0
    for i in range(n):
        size = max(size, source_ends[codes[i]] - (source_ends[codes[i] - 1] if codes[i] else 0))
    text = np.int64(id_ends[n - 1]) if n else np.int64(0)
    out = np.empty(3 * _MAX_VARINT + len(named) + 5 * len(numbers) + text + n * (2 * _MAX_VARINT + 4 + size + len(template)),
                   np.uint8)
    small = numbers.astype(np.float32)
    to, at_named, at_small, at_ids = (np.int64(out.ctypes.data), np.int64(named.ctypes.data), np.int64(small.ctypes.data),
                                      np.int64(ids.ctypes.data))
    at_scores, at_sources, at_template, at_values = (np.int64(scores.ctypes.data), np.int64(sources.ctypes.data),
                                                     np.int64(template.ctypes.data), np.int64(values.ctypes.data))
    for i in range(len(numbers)):
        count += not np.isnan(numbers[i])
    at = _varint(count, out, 0) if count else 0
    for i in range(len(numbers)):
        if np.isnan(numbers[i]):
            continue
        first = named_ends[i - 1] if i else 0
        copy(to + at, at_named + first, named_ends[i] - first)
        at += named_ends[i] - first
        copy(to + at, at_small + 4 * i, 4)
        out[at + 4] = 0
        at += 5
    out[at] = 0
    at += 1
    if n:
        at = _varint(n, out, at)
    start = np.int64(0)
    for i in range(n):
        length = id_ends[i] - start
        at = _varint(length, out, at)
        copy(to + at, at_ids + start, length)
        start = np.int64(id_ends[i])
        at = _varint(position + i, out, at + length)
        copy(to + at, at_scores + 4 * i, 4)
        at += 4
        code = np.int64(codes[i])
        first = source_ends[code - 1] if code else 0
        copy(to + at, at_sources + first, source_ends[code] - first)
        at += source_ends[code] - first
        copy(to + at, at_template, len(template))
        for k in range(len(places)):
            copy(to + at + places[k], at_values + 4 * (k * n + i), 4)
        at += len(template)
    out[at] = 0
    return out[: at + 1]
