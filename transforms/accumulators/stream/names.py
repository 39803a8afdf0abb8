"""Ids of a state: each has a code, the position at which it was first seen. Its hash64 is its identity."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.xxh3 import hash64_strings
from transforms.accumulators.frame import Ids, Ints
from transforms.accumulators.stream import kernels


class Names:
    """A growing set of ids. Two ids of one hash64 would be one: the first one's text is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._slots = np.full(16, -1, np.int32)
        self._hashes = np.empty(8, np.uint64)
        self._ends = np.zeros(9, np.int64)
        self._data = np.empty(64, np.uint8)

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        """Memory in use."""
        return self._slots.nbytes + self._hashes.nbytes + self._ends.nbytes + self._data.nbytes

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """(n,) hashes by code."""
        return self._hashes[: self.count]

    def codes(self, column: pa.Array) -> Ints:
        """(n,) codes of a string (or dictionary of string) column, new ids being taken in; -1 for a null."""
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        indices = encoded.indices
        if indices.null_count:
            indices = indices.fill_null(-1)
        return self._intern(hash64_strings(encoded.dictionary), encoded.dictionary,
                            indices.to_numpy(zero_copy_only=False).astype(np.int64))

    def adopt(self, ids: Ids) -> Ints:
        """(n,) codes of ids that come with their hashes."""
        return self._intern(ids.hashes, ids.ids, np.arange(len(ids), dtype=np.int64))

    def _intern(self, hashes: npt.NDArray[np.uint64], texts: pa.Array, entries: Ints) -> Ints:
        codes = np.empty(len(entries), np.int64)
        if len(hashes) == 0:
            codes[:] = -1
            return codes
        values = texts.cast(pa.large_string())
        _, offsets, data = values.buffers()
        ends = np.frombuffer(offsets, np.int64, len(values) + 1, values.offset * 8)
        raw = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        self._reserve(self.count + len(hashes), int(self._ends[self.count] + ends[-1] - ends[0]))
        self.count = kernels.intern(self._slots, self._hashes, self._ends, self._data, self.count, hashes, ends, raw, entries,
                                    codes)
        return codes

    def _reserve(self, count: int, size: int) -> None:
        if count > len(self._hashes):
            room = max(count, 2 * len(self._hashes))
            self._hashes = np.resize(self._hashes, room)
            self._ends = np.resize(self._ends, room + 1)
        if size > len(self._data):
            self._data = np.resize(self._data, max(size, 2 * len(self._data)))
        if 2 * count > len(self._slots):
            self._slots = np.full(1 << (4 * count).bit_length() - 1, -1, np.int32)
            kernels.reslot(self._slots, self._hashes, self.count)

    def find(self, hashes: npt.NDArray[np.uint64]) -> Ints:
        """(n,) codes of hashes, -1 for an id that is not here."""
        return kernels.find_ids(self._slots, self._hashes, np.ascontiguousarray(hashes, np.uint64))

    def texts(self, codes: Ints) -> tuple[Ints, npt.NDArray[np.uint8]]:
        """UTF-8 of the ids of codes: offsets (n + 1,) and bytes."""
        return kernels.take_strings(self._ends, self._data, codes)

    def strings(self, codes: Ints) -> pa.Array:
        """Ids of codes as large strings, (n,)."""
        offsets, data = self.texts(codes)
        return pa.LargeStringArray.from_buffers(len(codes), pa.py_buffer(offsets), pa.py_buffer(data))

    def ids(self, codes: Ints) -> Ids:
        """Ids of distinct codes whose hashes ascend."""
        return Ids(self._hashes[codes], self.strings(codes))

    def by_hash(self, codes: Ints) -> Ints:
        """The codes, in ascending order of their hashes."""
        return codes[np.argsort(self._hashes[codes])]

    def named(self, codes: Ints) -> pa.DictionaryArray:
        """Ids of codes, (n,), dictionary-encoded."""
        distinct, index = np.unique(codes, return_inverse=True)
        return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), self.strings(distinct).cast(pa.string()))
