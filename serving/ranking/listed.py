"""A page of a list that lies packed in a cell: one compiled call from the cell's bytes to the page, in which ids stay bytes.

page.py has the pool and the choice; here the list is read where it lies, and what is chosen is packed again: model.Packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from models.inference.idtable import find
from schemas.cells import _RECS, HEADER_BYTES, REASONS, SOURCES, RankedList
from schemas.packed import PackedIds, read_recs
from serving.ranking.kernels import F32, I32, I64, U32, U64, Bools
from serving.ranking.page import choose, is_in, pool, set_of
from transforms.records.hashes import MAX_BYTES, hash_one
from transforms.records.memory import copy

U8 = npt.NDArray[np.uint8]

NEW_DAYS = 30
POSITION, BECAUSE, ID_END, BECAUSE_END, SOURCE, REASON, LOW, NUMBERS = range(8)
"""Rows of model.Packed.numbers: the item's position in the bundle (-1: it is not there); that of the item that explains it
(NOBODY: none does, -1: it is not there); where their ids end; codes of SOURCES and REASONS; low half of the id's hash."""
NOBODY = -2
_ITEM_CF, _EXPLORATION = SOURCES.index("item_cf"), SOURCES.index("exploration")
_WATCHED, _NEW, _DISCOVERY = (REASONS.index(name) for name in ("because_you_watched", "new", "discovery"))


@dataclass(frozen=True)
class ListCell(RankedList):
    """A ranked list that was read from a cell, all of whose ids are ASCII. ``at``: where the scores begin, the first of its
    arrays."""

    cell: bytes = b""
    at: int = 0


def read_listed(cell: bytes) -> RankedList:
    """schemas.cells.decode_recs; a ListCell where that can be. Raises CellError."""
    recs = read_recs(cell)
    if not isinstance(recs.item_ids, PackedIds) or not isinstance(recs.source_item_ids, PackedIds):
        return recs
    at = HEADER_BYTES + _RECS.size + int.from_bytes(cell[HEADER_BYTES + _RECS.size - 2 : HEADER_BYTES + _RECS.size], "little")
    return ListCell(recs.item_ids, recs.scores, recs.sources, recs.reasons, recs.source_item_ids, recs.model_version,
                    recs.generated_at, recs.expires_at, cell, at)


@numba.njit(cache=True, nogil=True)
def _word(cell: U8, at: int) -> np.uint32:
    return (np.uint32(cell[at]) | (np.uint32(cell[at + 1]) << np.uint32(8)) | (np.uint32(cell[at + 2]) << np.uint32(16))
            | (np.uint32(cell[at + 3]) << np.uint32(24)))


@numba.njit(cache=True, nogil=True)
def packed_page(cell: U8, at: int, n: int, left_out: U64, shown: U32, overlaid: U64, session_hashes: U64,
                session_weights: F32, wanted: int, half_life: float, own_hashes: U64, table: I32, vectors: F32, norms: F32,
                category_offsets: I64, category_codes: I32, impressions: F32, neighbour_offsets: I64, neighbours: I32,
                strengths: F32, boost: F32, blocked: Bools, share: F32, preference: float, session: float, size: int,
                diversity: float, calibration: float, smoothing: float, cap: int, slots: I64, below: float, seed: int,
                draws: int, rate: float, explorable: I32, clicks: F32, age_days: F32, id_ends: I32,
                id_text: U8) -> tuple[int, int, int, I32, F32, U8]:
    """The page of the n items that lie in a cell from ``at`` on (ListCell).

    Args:
      left_out: hashes of what is not shown; overlaid: set of those that something newer is known of.
      session_hashes, ..., clicks: as serving.ranking.page.pool and choose.
      id_ends, id_text: the bundle's ids.

    Returns:
      candidates left (-1: it takes more than this, for one of them is overlaid or its id is too long), rank of the
      last explored item, split, numbers, the (ROWS, k) table, text: see model.Packed.
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
    found = pool(hashes, dropped, shown, session_hashes, session_weights, wanted, half_life, own_hashes, table, vectors, norms,
                 category_offsets, category_codes, impressions, neighbour_offsets, neighbours, strengths, boost, blocked)
    if len(overlaid):
        for i in range(len(found[0])):
            plain = plain and not is_in(overlaid, hashes[i] if i < n else own_hashes[found[0][i]])
    if not plain:
        return -1, -1, 0, np.empty((NUMBERS, 0), np.int32), np.empty((0, 0), np.float32), np.empty(0, np.uint8)
    chosen, positions, led, explored, numbers_of, rest = choose(
        found, bits.view(np.float32), share, preference, session, len(session_hashes) > 0, size, diversity, calibration,
        smoothing, cap, slots, below, seed, draws, rate, explorable, clicks, dropped, shown, own_hashes, vectors, norms,
        blocked, impressions)
    session_at = find(own_hashes, table, session_hashes)
    k, because_ends = len(chosen), starts[n]
    because_base = because_ends + 4 * n
    numbers, sources = np.empty((NUMBERS, k), np.int32), np.empty((2, 2, k), np.int64)  # of id and because: where, how long
    ids = whys = 0
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
                    one = np.empty(1, np.uint64)
                    one[0] = hash_one(cell, because_base + start, length)
                    numbers[BECAUSE, i] = find(own_hashes, table, one)[0]
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
        ids, whys = ids + sources[0, 1, i], whys + sources[1, 1, i]
        numbers[ID_END, i], numbers[BECAUSE_END, i] = ids, whys
    text = np.empty(ids + whys, np.uint8)
    target = np.int64(text.ctypes.data)
    for part in range(2):
        for i in range(k):
            start, length = sources[part, 0, i], sources[part, 1, i]
            if length:
                raw = np.int64(cell.ctypes.data) + start if start >= 0 else np.int64(id_text.ctypes.data) - 1 - start
                copy(target, raw, length)
                target += length
    return rest[0], rest[1], ids, numbers, numbers_of, text
