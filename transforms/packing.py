"""Ranked lists of many users as cells of the store: the bytes of schemas.cells.encode_recs, written by one compiled loop."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.cells import RankedList, encode_recs

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_COUNT_AT = 4
"""Where the header of a cell says how many items follow."""


def encode_lists(catalogue: pa.StringArray, counts: I32, positions: I32, scores: F32, sources: U8, reasons: U8, because: I32,
                 model_version: str, generated_at: int, expires_at: int) -> pa.BinaryArray:
    """Packs n lists of at most L items each.

    Args:
      catalogue: ids by position.
      counts: (n,) items of each list.
      positions, because: (n, L) positions of the items and of those that explain them (-1: none).
      scores: (n, L).
      sources, reasons: (n, L) codes: positions in SOURCES and REASONS of schemas.cells.

    Returns:
      n cells.

    Raises:
      OverflowError: more than 2 GiB of them; pack fewer lists at a time.
    """
    empty = np.zeros(0, np.float32)
    head = np.frombuffer(encode_recs(RankedList([], empty, [], [], [], model_version, generated_at, expires_at)), np.uint8)
    _, offsets, data = catalogue.cast(pa.string()).buffers()
    id_offsets = np.frombuffer(offsets, np.int32, len(catalogue) + 1, 4 * catalogue.offset)
    id_bytes = np.frombuffer(data if data is not None else b"", np.uint8)
    ends = np.zeros(len(counts) + 1, np.int64)
    _ends(len(head), counts, positions, because, id_offsets, ends)
    if ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError(f"{ends[-1]} bytes of lists do not fit in one column")
    cells = np.empty(int(ends[-1]), np.uint8)
    _write(head, counts, positions, scores, sources, reasons, because, id_offsets, id_bytes, ends, cells)
    return pa.Array.from_buffers(pa.binary(), len(counts), [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(cells)])


@numba.njit(cache=True, nogil=True)
def _ends(head: int, counts: I32, positions: I32, because: I32, id_offsets: I32, ends: I64) -> None:
    for row in range(len(counts)):
        size = head + counts[row] * (4 + 1 + 1 + 4 + 4)
        for j in range(counts[row]):
            item, cause = positions[row, j], because[row, j]
            size += id_offsets[item + 1] - id_offsets[item]
            if cause >= 0:
                size += id_offsets[cause + 1] - id_offsets[cause]
        ends[row + 1] = ends[row] + size


@numba.njit(cache=True, nogil=True, inline="always")
def _put(cells: U8, at: int, value: int) -> None:
    """An unsigned 32-bit number, little-endian."""
    for byte in range(4):
        cells[at + byte] = (value >> (8 * byte)) & 0xFF


@numba.njit(cache=True, nogil=True)
def _put_ids(cells: U8, at: int, listed: I32, count: int, id_offsets: I32, id_bytes: U8) -> int:
    """``count`` end offsets, then the ids; returns where they end."""
    first = at + 4 * count
    end = first
    for j in range(count):
        if listed[j] >= 0:
            for byte in range(id_offsets[listed[j]], id_offsets[listed[j] + 1]):
                cells[end] = id_bytes[byte]
                end += 1
        _put(cells, at + 4 * j, end - first)
    return end


@numba.njit(cache=True, nogil=True)
def _write(head: U8, counts: I32, positions: I32, scores: F32, sources: U8, reasons: U8, because: I32, id_offsets: I32,
           id_bytes: U8, ends: I64, cells: U8) -> None:
    for row in range(len(counts)):
        at, count = ends[row], counts[row]
        cells[at : at + len(head)] = head
        _put(cells, at + _COUNT_AT, count)
        at += len(head)
        cells[at : at + 4 * count] = scores[row, :count].view(np.uint8)
        at += 4 * count
        cells[at : at + count] = sources[row, :count]
        at += count
        cells[at : at + count] = reasons[row, :count]
        at = _put_ids(cells, at + count, positions[row], count, id_offsets, id_bytes)
        _put_ids(cells, at, because[row], count, id_offsets, id_bytes)
