"""Positions of ids by their hash: open addressing over two arrays that processes share through a memory map."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
import xxhash

from schemas.packed import PackedIds
from transforms.records.hashes import hash_packed
from transforms.records.memory import prefetch

I32 = npt.NDArray[np.int32]
U64 = npt.NDArray[np.uint64]


def build_table(hashes: U64) -> I32:
    """The table of (m,) hashes, a power of two of at least 2 m places: a position, or -1.

    Raises:
      ValueError: two ids have one hash (64 bits: one in a million catalogues of ten million items).
    """
    table = np.full(1 << max(4, (2 * len(hashes) - 1).bit_length()), -1, np.int32)
    if _fill(hashes, table) >= 0:
        raise ValueError("two item ids have the same hash: one of them must be renamed")
    return table


def hashes_of(ids: Sequence[str]) -> U64:
    """schemas.keys.hash64 of k ids."""
    if isinstance(ids, PackedIds):
        out = np.empty(len(ids), np.uint64)
        if hash_packed(np.frombuffer(ids.raw, np.uint8), ids.ends, out):
            return out
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter([digest(i.encode()) for i in ids], np.uint64, len(ids))


@numba.njit(cache=True, nogil=True)
def _fill(hashes: U64, table: I32) -> int:
    """Position of an id whose hash was there already, -1 for none."""
    mask = np.uint64(len(table) - 1)
    for position in range(len(hashes)):
        place = (hashes[position] >> np.uint64(16)) & mask
        while table[place] >= 0:
            if hashes[table[place]] == hashes[position]:
                return position
            place = (place + np.uint64(1)) & mask
        table[place] = position
    return -1


@numba.njit(cache=True, nogil=True)
def find(hashes: U64, table: I32, wanted: U64) -> I32:
    """Position of each of k hashes, -1 for one that is not there."""
    found = np.full(len(wanted), -1, np.int32)
    mask = np.uint64(len(table) - 1)
    places, rows = np.int64(table.ctypes.data), np.int64(hashes.ctypes.data)
    for i in range(len(wanted)):  # the misses of all of them at once, not one behind the other
        prefetch(places, 4 * np.int64((wanted[i] >> np.uint64(16)) & mask))
    for i in range(len(wanted)):
        prefetch(rows, 8 * max(0, table[(wanted[i] >> np.uint64(16)) & mask]))
    for i in range(len(wanted)):
        place = (wanted[i] >> np.uint64(16)) & mask
        while table[place] >= 0:
            if hashes[table[place]] == wanted[i]:
                found[i] = table[place]
                break
            place = (place + np.uint64(1)) & mask
    return found
