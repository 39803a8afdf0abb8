"""Ids of a state: each has a code, the position at which it was first seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.xxh3 import hash64_strings
from transforms.accumulators.frame import Ids, Ints
from transforms.accumulators.stream import kernels


class Names:
    """A growing set of ids, told apart by their text. hash64 is computed once for each, when it is first asked for."""

    def __init__(self) -> None:
        self.count = 0
        self._slots = np.full(16, -1, np.int32)
        self._marks = np.empty(8, np.uint64)
        self._ends = np.zeros(9, np.int64)
        self._data = np.empty(64, np.uint8)
        self._hashes = np.empty(8, np.uint64)
        self._hashed = 0  # how many hashes are known
        self._hash_slots = np.full(16, -1, np.int32)
        self._slotted = 0  # how many of them are in the slots

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        """Memory in use."""
        return sum(a.nbytes for a in (self._slots, self._marks, self._ends, self._data, self._hashes, self._hash_slots))

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """(n,) hash64 by code."""
        if self._hashed < self.count:
            fresh = hash64_strings(self.strings(np.arange(self._hashed, self.count)))
            self._know(fresh)
        return self._hashes[: self.count]

    def _know(self, fresh: npt.NDArray[np.uint64]) -> None:
        if self.count > len(self._hashes):
            self._hashes = np.resize(self._hashes, max(self.count, 2 * len(self._hashes)))
        self._hashes[self._hashed : self.count] = fresh
        self._hashed = self.count

    def codes(self, column: pa.Array) -> Ints:
        """(n,) codes of a string (or dictionary of string) column, new ids being taken in; -1 for a null."""
        if not pa.types.is_dictionary(column.type):
            entries = np.arange(len(column))
            if column.null_count:
                entries[column.is_null().to_numpy(zero_copy_only=False)] = -1
            return self._intern(column, entries)
        indices = column.indices.fill_null(-1) if column.indices.null_count else column.indices
        return self._intern(column.dictionary, indices.to_numpy(zero_copy_only=False).astype(np.int64))

    def adopt(self, ids: Ids) -> Ints:
        """(n,) codes of distinct ids that come with their hashes."""
        before, known = self.count, self._hashed == self.count
        codes = self._intern(ids.ids, np.arange(len(ids), dtype=np.int64))
        if known:
            self._know(ids.hashes[codes >= before])  # new codes are given in the order of the ids
        return codes

    def _intern(self, texts: pa.Array, entries: Ints) -> Ints:
        codes = np.empty(len(entries), np.int64)
        if len(texts) == 0:
            codes[:] = -1
            return codes
        wide = pa.types.is_large_string(texts.type)
        _, offsets, data = texts.buffers()
        kind = np.int64 if wide else np.int32
        ends = np.frombuffer(offsets, kind, len(texts) + 1, texts.offset * np.dtype(kind).itemsize).astype(np.int64)
        raw = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        self._reserve(self.count + len(texts), int(self._ends[self.count] + ends[-1] - ends[0]))
        self.count = kernels.intern(self._slots, self._marks, self._ends, self._data, self.count, ends, raw, entries, codes)
        return codes

    def _reserve(self, count: int, size: int) -> None:
        if count > len(self._marks):
            room = max(count, 2 * len(self._marks))
            self._marks = np.resize(self._marks, room)
            self._ends = np.resize(self._ends, room + 1)
        if size > len(self._data):
            self._data = np.resize(self._data, max(size, 2 * len(self._data)))
        if 2 * count > len(self._slots):
            self._slots = _slots(count)
            kernels.reslot(self._slots, self._marks, 0, self.count)

    def find(self, hashes: npt.NDArray[np.uint64]) -> Ints:
        """(n,) codes of hashes, -1 for an id that is not here."""
        known = self.hashes
        if 2 * self.count > len(self._hash_slots):
            self._hash_slots, self._slotted = _slots(self.count), 0
        kernels.reslot(self._hash_slots, known, self._slotted, self.count)
        self._slotted = self.count
        return kernels.find_ids(self._hash_slots, known, np.ascontiguousarray(hashes, np.uint64))

    def texts(self, codes: Ints) -> tuple[Ints, npt.NDArray[np.uint8]]:
        """UTF-8 of the ids of codes: offsets (n + 1,) and bytes."""
        return kernels.take_strings(self._ends, self._data, codes)

    def utf8(self) -> tuple[Ints, npt.NDArray[np.uint8]]:
        """UTF-8 of every id, in place: ends (n + 1,), the first of them 0, and bytes."""
        return self._ends[: self.count + 1], self._data

    def strings(self, codes: Ints) -> pa.Array:
        """Ids of codes as large strings, (n,)."""
        offsets, data = self.texts(codes)
        return pa.LargeStringArray.from_buffers(len(codes), pa.py_buffer(offsets), pa.py_buffer(data))

    def ids(self, codes: Ints) -> Ids:
        """Ids of distinct codes whose hashes ascend."""
        return Ids(self.hashes[codes], self.strings(codes))

    def by_hash(self, codes: Ints) -> Ints:
        """The codes, in ascending order of their hashes."""
        return codes[np.argsort(self.hashes[codes])]

    def named(self, codes: Ints) -> pa.DictionaryArray:
        """Ids of codes, (n,), dictionary-encoded."""
        distinct, index = np.unique(codes, return_inverse=True)
        return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), self.strings(distinct).cast(pa.string()))


def _slots(count: int) -> npt.NDArray[np.int32]:
    """Free slots for so many ids, and twice as many soon."""
    return np.full(1 << (4 * count).bit_length(), -1, np.int32)
