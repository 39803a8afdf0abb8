"""A page of a list that lies packed in a cell: one compiled call from the cell's bytes to the page, in which ids stay bytes.

page.py has the pool and the choice; here the list is read where it lies, and what is chosen is packed again: model.Packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from models.inference.idtable import find
from schemas.cells import _RECS, HEADER_BYTES, LAYOUT, REASONS, RECS, SOURCES, RankedList
from schemas.packed import read_recs
from serving.ranking.kernels import F32, I32, I64, U32, U64, Bools
from serving.ranking.page import choose, is_in, pool, set_of
from transforms.records.hashes import MAX_BYTES, hash_one
from transforms.records.memory import copy, int32_at, int64_at

U8 = npt.NDArray[np.uint8]

NEW_DAYS = 30
POSITION, BECAUSE, ID_END, BECAUSE_END, SOURCE, REASON, LOW, NUMBERS = range(8)
"""Rows of model.Packed.numbers: the item's position in the bundle (-1: it is not there); that of the item that explains it
(NOBODY: none does, -1: it is not there); where their ids end; codes of SOURCES and REASONS; low half of the id's hash."""
NOBODY = -2
_RECS_BYTES, _MANY_SOURCES, _MANY_REASONS = _RECS.size, len(SOURCES), len(REASONS)
_ITEM_CF, _EXPLORATION = SOURCES.index("item_cf"), SOURCES.index("exploration")
_WATCHED, _NEW, _DISCOVERY = (REASONS.index(name) for name in ("because_you_watched", "new", "discovery"))


class ListCell(RankedList):
    """A ranked list in a cell, all of whose ids are ASCII: read as far as somebody looks.

    Attributes:
      cell: its bytes, which are right; at: where the scores begin, the first of its arrays.
      count: items.
    """

    def __init__(self, cell: bytes, at: int, count: int, model_version: str, generated_at: int, expires_at: int) -> None:
        self.__dict__.update(cell=cell, at=at, count=count, model_version=model_version, generated_at=generated_at,
                             expires_at=expires_at)

    cell: bytes
    at: int
    count: int

    @cached_property
    def _all(self) -> RankedList:
        return read_recs(self.cell)

    @cached_property
    def item_ids(self) -> Sequence[str]:
        """See RankedList."""
        return self._all.item_ids

    @cached_property
    def scores(self) -> F32:
        """See RankedList."""
        return self._all.scores

    @cached_property
    def sources(self) -> Sequence[str]:
        """See RankedList."""
        return self._all.sources

    @cached_property
    def reasons(self) -> Sequence[str]:
        """See RankedList."""
        return self._all.reasons

    @cached_property
    def source_item_ids(self) -> Sequence[str]:
        """See RankedList."""
        return self._all.source_item_ids


def read_listed(cell: bytes) -> RankedList:
    """schemas.cells.decode_recs; a ListCell where that can be. Raises CellError."""
    at, count, generated_at, expires_at = _checked(np.frombuffer(cell, np.uint8))
    if at < 0:
        return read_recs(cell)
    return ListCell(cell, at, count, cell[HEADER_BYTES + _RECS.size : at].decode(), generated_at, expires_at)


def size_of(recs: RankedList) -> int:
    """Items of a list, none of which is read for that."""
    return recs.count if isinstance(recs, ListCell) else len(recs.item_ids)


@numba.njit(cache=True, nogil=True)
def _checked(cell: U8) -> Any:
    """(at, count, generated_at, expires_at) of a list cell; at is -1 for one that is broken or whose text is not all ASCII."""
    size, bad = len(cell), (-1, 0, 0, 0)
    if size < HEADER_BYTES + _RECS_BYTES or cell[0] != LAYOUT or cell[1] != RECS:
        return bad
    base, count = np.int64(cell.ctypes.data), np.int64(_word(cell, 4))
    at = HEADER_BYTES + _RECS_BYTES + np.int64(cell[HEADER_BYTES + 16]) + (np.int64(cell[HEADER_BYTES + 17]) << 8)
    if at + 14 * count > size:
        return bad
    high = np.uint8(0)
    for i in range(HEADER_BYTES + _RECS_BYTES, at):
        high |= cell[i]
    right: Any = True
    for i in range(at + 4 * count, at + 5 * count):
        right &= cell[i] < _MANY_SOURCES
    for i in range(at + 5 * count, at + 6 * count):
        right &= cell[i] < _MANY_REASONS
    ends = at + 6 * count
    for _ in range(2):
        text, end = ends + 4 * count, np.int64(0)
        if text > size:
            return bad
        for i in range(count):
            before, end = end, np.int64(int32_at(base, ends + 4 * i))
            right &= before <= end
        if not right or end > size - text:
            return bad
        for i in range(text, text + end):
            high |= cell[i]
        ends = text + end
    if ends != size or high >= 0x80:
        return bad
    return at, count, int64_at(base, HEADER_BYTES), int64_at(base, HEADER_BYTES + 8)


@numba.njit(cache=True, nogil=True)
def _word(cell: U8, at: int) -> np.uint32:
    return (np.uint32(cell[at]) | (np.uint32(cell[at + 1]) << np.uint32(8)) | (np.uint32(cell[at + 2]) << np.uint32(16))
            | (np.uint32(cell[at + 3]) << np.uint32(24)))


@numba.njit(cache=True, nogil=True)
def packed_page(cell: U8, at: int, n: int, left_out: U64, shown: U32, overlaid: U64, session_hashes: U64,
                session_weights: F32, wanted: int, half_life: float, own_hashes: U64, table: I32, vectors: F32, rows: I32,
                numbers_of: F32, neighbour_offsets: I64, neighbours: I32, strengths: F32, blocked: Bools, share: F32,
                preference: float, session: float, size: int, diversity: float, calibration: float, smoothing: float, cap: int,
                slots: I64, below: float, seed: int, draws: int, rate: float, explorable: I32, age_days: F32, id_ends: I32,
                id_text: U8) -> tuple[int, int, int, bool, I32, F32, U8]:
    """The page of the n items that lie in a cell from ``at`` on (ListCell).

    Args:
      left_out: hashes of what is not shown; overlaid: set of those that something newer is known of.
      session_hashes, ..., explorable: as serving.ranking.page.pool and choose.
      id_ends, id_text: the bundle's ids.

    Returns:
      candidates left (-1: it takes more than this, for one of them is overlaid or its id is too long), rank of the
      last explored item, split, known, numbers, the (ROWS, k) table, text: see model.Packed.
    """
    hashes, bits, starts = np.empty(n, np.uint64), np.empty(n, np.uint32), np.empty(n + 1, np.int64)
    base = at + 10 * n
    starts[0] = base
    plain = True
    for i in range(n):
        bits[i] = _word(cell, at + 4 * i)
        starts[i + 1] = base + np.int64(_word(cell, at + 6 * n + 4 * i))
        length = starts[i + 1] - starts[i]
        plain = plain and length <= MAX_BYTES
        hashes[i] = hash_one(cell, starts[i], length) if length <= MAX_BYTES else np.uint64(0)
    dropped = set_of(left_out)
    found = pool(hashes, dropped, shown, session_hashes, session_weights, wanted, half_life, own_hashes, table, vectors, rows,
                 numbers_of, neighbour_offsets, neighbours, strengths, blocked)
    if len(overlaid):
        for i in range(len(found[0])):
            plain = plain and not is_in(overlaid, hashes[i] if i < n else own_hashes[found[0][i]])
    if not plain:
        return -1, -1, 0, False, np.empty((NUMBERS, 0), np.int32), np.empty((0, 0), np.float32), np.empty(0, np.uint8)
    chosen, positions, led, explored, features, rest = choose(
        found, bits.view(np.float32), share, preference, session, len(session_hashes) > 0, size, diversity, calibration,
        smoothing, cap, slots, below, seed, draws, rate, explorable, dropped, shown, own_hashes, vectors, rows, numbers_of)
    session_at = find(own_hashes, table, session_hashes)
    k, because_ends = len(chosen), starts[n]
    because_base = because_ends + 4 * n
    numbers, sources = np.empty((NUMBERS, k), np.int32), np.empty((2, 2, k), np.int64)  # of id and because: where, how long
    ids, whys, known = 0, 0, True
    hashed, hashed_of, many = np.empty(k, np.uint64), np.empty(k, np.int64), 0
    for i in range(k):
        place, why = chosen[i], -1
        sources[1, 1, i], numbers[BECAUSE, i] = 0, NOBODY
        if place < n:
            sources[0, 0, i], sources[0, 1, i] = starts[place], starts[place + 1] - starts[place]
            numbers[LOW, i] = np.int32(np.uint32(hashes[place] & np.uint64(0xFFFFFFFF)))
            numbers[SOURCE, i], numbers[REASON, i] = cell[at + 4 * n + place], cell[at + 5 * n + place]
            start = np.int64(_word(cell, because_ends + 4 * (place - 1))) if place else 0
            length = np.int64(_word(cell, because_ends + 4 * place)) - start
            if length and led[i] < 0 and not explored[i]:
                sources[1, 0, i], sources[1, 1, i] = because_base + start, length
                numbers[BECAUSE, i] = -1
                if length <= MAX_BYTES:
                    hashed[many], hashed_of[many] = hash_one(cell, because_base + start, length), i
                    many += 1
        else:
            own = positions[i]
            sources[0, 0, i], sources[0, 1, i] = -1 - id_ends[own], id_ends[own + 1] - id_ends[own]
            numbers[LOW, i] = np.int32(np.uint32(own_hashes[own] & np.uint64(0xFFFFFFFF)))
            numbers[SOURCE, i], numbers[REASON, i] = _ITEM_CF, _WATCHED
        if explored[i]:
            numbers[SOURCE, i] = _EXPLORATION
            numbers[REASON, i] = _NEW if age_days[positions[i]] < NEW_DAYS else _DISCOVERY
        elif led[i] >= 0:
            why = session_at[led[i]]
            sources[1, 0, i], sources[1, 1, i] = -1 - id_ends[why], id_ends[why + 1] - id_ends[why]
            numbers[REASON, i], numbers[BECAUSE, i] = _WATCHED, why
        numbers[POSITION, i] = positions[i]
        known &= positions[i] >= 0
        ids, whys = ids + sources[0, 1, i], whys + sources[1, 1, i]
        numbers[ID_END, i], numbers[BECAUSE_END, i] = ids, whys
    found_at = find(own_hashes, table, hashed[:many])
    for i in range(many):
        numbers[BECAUSE, hashed_of[i]] = found_at[i]
    text = np.empty(ids + whys, np.uint8)
    target = np.int64(text.ctypes.data)
    for part in range(2):
        for i in range(k):
            start, length = sources[part, 0, i], sources[part, 1, i]
            if length:
                raw = np.int64(cell.ctypes.data) + start if start >= 0 else np.int64(id_text.ctypes.data) - 1 - start
                copy(target, raw, length)
                target += length
    return rest[0], rest[1], ids, known, numbers, features, text
