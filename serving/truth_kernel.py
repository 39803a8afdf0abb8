"""The numbers and the items of a ServedFeatures record, compiled: Avro's encoding of up to 100 items with their numbers."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from transforms.records.memory import bits_of

U8 = npt.NDArray[np.uint8]
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
def _float(value: np.float32, out: U8, at: int) -> int:
    """Writes an Avro float; the place behind it."""
    bits = bits_of(value)
    for b in range(4):
        out[at + b] = np.uint8((bits >> (8 * b)) & 0xFF)
    return at + 4


@numba.njit(cache=True, nogil=True)
def _copy(source: U8, start: int, end: int, out: U8, at: int) -> int:
    """Writes some bytes; the place behind them."""
    for i in range(end - start):
        out[at + i] = source[start + i]
    return at + end - start


@numba.njit(cache=True, nogil=True)
def encode_numbers_and_items(numbers: npt.NDArray[np.float64], named: U8, named_ends: I64, ids: U8, id_ends: I64, position: int,
                             scores: F32, codes: U8, sources: U8, source_ends: I64, template: U8, places: I64,
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
    n, size = len(id_ends), np.int64(0)
    for i in range(n):
        size = max(size, source_ends[codes[i]] - (source_ends[codes[i] - 1] if codes[i] else 0))
    out = np.empty(3 * _MAX_VARINT + len(named) + 5 * len(numbers) + len(ids)
                   + n * (2 * _MAX_VARINT + 4 + size + len(template)), np.uint8)
    count = 0
    for i in range(len(numbers)):
        count += not np.isnan(numbers[i])
    at = _varint(count, out, 0) if count else 0
    for i in range(len(numbers)):
        if np.isnan(numbers[i]):
            continue
        at = _copy(named, named_ends[i - 1] if i else 0, named_ends[i], out, at)
        at = _float(np.float32(numbers[i]), out, at)
        out[at] = 0
        at += 1
    out[at] = 0
    at += 1
    if n:
        at = _varint(n, out, at)
    start = np.int64(0)
    for i in range(n):
        at = _varint(id_ends[i] - start, out, at)
        at = _copy(ids, start, id_ends[i], out, at)
        start = id_ends[i]
        at = _varint(position + i, out, at)
        at = _float(scores[i], out, at)
        code = np.int64(codes[i])
        at = _copy(sources, source_ends[code - 1] if code else 0, source_ends[code], out, at)
        _copy(template, 0, len(template), out, at)
        for k in range(len(places)):
            _float(values[k, i], out, at + places[k])
        at += len(template)
    out[at] = 0
    return out[: at + 1]
