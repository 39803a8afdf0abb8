"""The cells of a user in one compiled pass: numbers, hashes of what is hidden, the session, the preference.

It reads what schemas.cells and schemas.stream_cells describe, and only what they would accept: anything else (a broken cell, an
id that is not ASCII, a number that float64 does not hold) is left to them. No place that a cell names is used unchecked.

Few array operations: each compiles for a tenth of a second or two.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from schemas.cells import HEADER_BYTES, LIST, VECTOR
from schemas.stream_cells import DECAYED, RING, SESSION
from transforms.records.hashes import MAX_BYTES, hash_one
from transforms.records.memory import byte_at, float_of, int32_at, int64_at

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

STATS, EVENTS, PANE, PANES, DAY, DAYS, GAP, LAYOUT, WINDOW, FIXED = range(10)
"""Places in a plan: numbers of the stats vector, event types, microseconds of a pane, panes of the ring, and so for days, the
gap that ends a session, the layout of cells, panes of the decay; from FIXED on a ttl (seconds) per number of the stats vector,
then the decay per pane."""
SESSION_NUMBERS = 6
OPEN, ITEMS, ITEM_SCORES, NAMES, NAMES_END, LIKED, LIKED_END, RANKED, PAIRS = range(9)
"""Places in what is found: whether a session is open (0 or 1), its items, where their scores lie; where the names of its
categories lie (0: they are ASCII), and those of the preference; how many are liked; where each of these lies, from and to."""
STAMP_BYTES = 8
_BIG, _MANY = np.int64(1) << np.int64(53), 4096
_SESSION_BYTES, _DECAYED_BYTES = 76, 12


@numba.njit(cache=True, nogil=True)
def _uint(raw: int, at: int) -> int:
    """Four bytes."""
    return np.int64(int32_at(raw, at)) & 0xFFFFFFFF  # type: ignore[return-value]


@numba.njit(cache=True, nogil=True)
def _count(raw: int, at: int, size: int, kind: int, layout: int) -> int:
    """What the header of a cell says; -1 for another kind."""
    if size < HEADER_BYTES or byte_at(raw, at) != layout or byte_at(raw, at + 1) != kind:
        return -1
    return _uint(raw, at + 4)


@numba.njit(cache=True, nogil=True)
def _ids_end(raw: int, at: int, end: int, count: int) -> int:
    """The byte behind n ids whose offsets begin at ``at``; -1 where they do not fit before ``end`` or one begins inside a
    character."""
    base = at + 4 * count
    if base > end:
        return -1
    last = np.int64(0)
    for i in range(count):
        here = _uint(raw, at + 4 * i)
        if here < last or base + here > end or (here > last and byte_at(raw, base + last) & 0xC0 == 0x80):
            return -1
        last = here
    return base + last  # type: ignore[return-value]


@numba.njit(cache=True, nogil=True)
def _is_ascii(raw: int, at: int, end: int) -> bool:
    every = np.int64(0)
    for i in range(at, end):
        every |= byte_at(raw, i)
    return bool(every < 0x80)


@numba.njit(cache=True, nogil=True)
def _hash_ids(cells: U8, raw: int, at: int, count: int, out: U64, to: int) -> bool:
    """Hashes of n ids whose offsets begin at ``at``; False where one is too long for that."""
    base, start = at + 4 * count, np.int64(0)
    for i in range(count):
        end = _uint(raw, at + 4 * i)
        if end - start > MAX_BYTES:
            return False
        out[to + i] = hash_one(cells, base + start, end - start)
        start = end
    return True


@numba.njit(cache=True, nogil=True)
def _stats(raw: int, at: int, size: int, age: float, plan: I64, out: F64) -> bool:
    """Numbers of batch that are younger than their ttls; a vector from before one was appended is shorter."""
    count = _count(raw, at, size, VECTOR, plan[LAYOUT])
    if count < 0 or size != HEADER_BYTES + 4 * count:
        return False
    for i in range(min(count, plan[STATS])):
        if age <= plan[FIXED + i]:
            out[i] = float_of(_uint(raw, at + HEADER_BYTES + 4 * i))
    return True


@numba.njit(cache=True, nogil=True)
def _ring(raw: int, at: int, size: int, now: int, step: int, panes: int, windows: int, plan: I64, out: F64, to: int) -> bool:
    """Counts of the pane that holds now and, of two windows, of all panes up to it; event by event."""
    count = _count(raw, at, size, RING, plan[LAYOUT])
    if count < 0 or size != HEADER_BYTES + 8 + 4 * count or count % panes:
        return False
    first, width, events = int64_at(raw, at + HEADER_BYTES), count // panes, plan[EVENTS]
    if not -_BIG <= first <= _BIG:
        return False
    after, base = now // step - first + 1, at + HEADER_BYTES + 8
    for e in range(min(width, events)):
        for w in range(windows):
            total = np.int64(0)
            for p in range(max(0, after - (1 if w == 0 else panes)), min(panes, after)):
                total += int32_at(raw, base + 4 * (p * width + e))
            out[to + e * windows + w] = total
    return True


@numba.njit(cache=True, nogil=True)
def _session(raw: int, at: int, size: int, now: int, plan: I64, out: F64, to: int, found: I64) -> int:
    """Numbers of a session that is open; where the offsets of its ids begin, -1 for a cell that is left to others."""
    count, end = _count(raw, at, size, SESSION, plan[LAYOUT]), at + size
    ids = at + HEADER_BYTES + _SESSION_BYTES + 12 * count
    if count < 0 or ids > end:
        return -1
    after, names = _ids_end(raw, ids, end, count), _uint(raw, at + HEADER_BYTES + 72)
    if after < 0 or not _is_ascii(raw, ids + 4 * count, after) or after + 8 * names > end:
        return -1
    base = after + 12 * names
    if _ids_end(raw, after + 8 * names, end, names) != end:
        return -1
    if not _is_ascii(raw, base, end):
        found[NAMES], found[NAMES_END] = base, end
    numbers = np.empty(9, np.int64)
    for i in range(9):
        numbers[i] = int64_at(raw, at + HEADER_BYTES + 8 * i)
        if not -_BIG <= numbers[i] <= _BIG:
            return -1
    if not numbers[0] <= now < numbers[1] + plan[GAP]:
        return ids
    found[OPEN], found[ITEMS], found[ITEM_SCORES] = 1, count, ids - 4 * count
    out[to], out[to + 1], out[to + 2] = (numbers[1] - numbers[0]) / 1e6, numbers[2], numbers[3]
    if numbers[6] > 0:
        out[to + 3], out[to + 4] = numbers[7] / 1e6, numbers[8] / 1e6
        out[to + 5] = numbers[5] / numbers[6] / 1e6
    return ids


@numba.njit(cache=True, nogil=True)
def _before(raw: int, base: int, at: int, a: int, b: int) -> bool:
    """Whether the bytes of id a sort before those of id b; offsets begin at ``at``, ids at ``base``."""
    low_a = _uint(raw, at + 4 * (a - 1)) if a else 0
    low_b = _uint(raw, at + 4 * (b - 1)) if b else 0
    size_a, size_b = _uint(raw, at + 4 * a) - low_a, _uint(raw, at + 4 * b) - low_b
    for i in range(min(size_a, size_b)):
        one, other = byte_at(raw, base + low_a + i), byte_at(raw, base + low_b + i)
        if one != other:
            return bool(one < other)
    return size_a < size_b


@numba.njit(cache=True, nogil=True)
def _preference(raw: int, at: int, size: int, count: int, now: int, plan: I64, found: I64, out: F64, to: int) -> bool:
    """Shares, float32, of the names with a score above 0, highest first, ties by name; False for a cell that is left to
    others."""
    end, ids = at + size, at + HEADER_BYTES + _DECAYED_BYTES
    if ids > end:
        return False
    last, entries = int64_at(raw, at + HEADER_BYTES), _uint(raw, at + HEADER_BYTES + 8)
    base, behind = ids + 4 * count, _ids_end(raw, ids, end, count)
    if behind < 0 or behind + 7 * entries != end or not -_BIG <= last <= _BIG:
        return False
    later, window, scores = now // plan[PANE] - last, plan[WINDOW], np.zeros(count, np.int64)
    decay = len(plan) - window
    for e in range(entries):
        name = byte_at(raw, behind + 2 * e) | (byte_at(raw, behind + 2 * e + 1) << 8)
        age = byte_at(raw, behind + 2 * entries + e)
        if name >= count or age >= window:
            return False
        if 0 <= age + later < window:
            weight = int32_at(raw, behind + 3 * entries + 4 * e)
            scores[name] += plan[decay + age + later] * weight
    ranked, many, total = np.empty(count, np.int64), 0, np.int64(0)
    for i in range(count):
        if scores[i] <= 0:
            continue
        total += scores[i]
        place = many
        while place and (scores[ranked[place - 1]] < scores[i] or (
                scores[ranked[place - 1]] == scores[i] and _before(raw, base, ids, i, ranked[place - 1]))):
            ranked[place] = ranked[place - 1]
            place -= 1
        ranked[place] = i
        many += 1
    found[RANKED] = many
    if not _is_ascii(raw, base, behind):
        found[LIKED], found[LIKED_END] = base, behind
    for i in range(many):
        name = ranked[i]
        out[to + i] = np.float32(scores[name] / max(1, total))
        found[PAIRS + 2 * i] = base + (_uint(raw, ids + 4 * (name - 1)) if name else 0)
        found[PAIRS + 2 * i + 1] = base + _uint(raw, ids + 4 * name)
    return True


@numba.njit(cache=True, nogil=True)
def read_cells(cells: U8, stats: int, consumed: int, panes: int, day: int, session: int, preference: int, stats_at: int,
               now: int, room: int, plan: I64) -> tuple[bool, F64, U64, I64]:
    """What a request needs of a user.

    Args:
      cells: six of them, one behind the other, the last four behind STAMP_BYTES each; then the bytes of each, -1 for one of
        the first two, 0 for one of the others that is not there.
      stats_at: timestamp of the first one; now: both in microseconds.
      room: hashes to leave room for, behind those of consumed items.
      plan: see STATS.

    Returns:
      whether the cells could be read; numbers, NaN for none: stats, then counts of panes, of the day, then SESSION_NUMBERS,
      and behind them the shares of the names that are liked, highest first; hashes of consumed items, the room, hashes of the
      items of the open session; found (see OPEN).
    """
    raw = np.int64(cells.ctypes.data)
    events, liked, no_hashes = plan[EVENTS], 0, np.empty(0, np.uint64)
    if preference:
        liked = _count(raw, len(cells) - preference + STAMP_BYTES, preference - STAMP_BYTES, DECAYED, plan[LAYOUT])
    many, at = max(0, min(liked, _MANY)), 0
    shares = plan[STATS] + 3 * events + SESSION_NUMBERS
    numbers, found = np.empty(shares + many, np.float64), np.zeros(PAIRS + 2 * many, np.int64)
    for i in range(len(numbers)):
        numbers[i] = np.nan
    bad = False, numbers, no_hashes, found
    if not 0 <= liked <= _MANY:
        return bad
    if stats >= 0:
        if not _stats(raw, at, stats, (now - stats_at) / 1e6, plan, numbers):
            return bad
        at += stats
    count = at_ids = at_session = 0
    if consumed >= 0:
        count, end = _count(raw, at, consumed, LIST, plan[LAYOUT]), at + consumed
        at_ids = at + HEADER_BYTES + 12 * count
        if count < 0 or _ids_end(raw, at_ids, end, count) != end or not _is_ascii(raw, at_ids + 4 * count, end):
            return bad
        at = end
    to = plan[STATS]
    if panes:
        if not _ring(raw, at + STAMP_BYTES, panes - STAMP_BYTES, now, plan[PANE], plan[PANES], 2, plan, numbers, to):
            return bad
        at += panes
    to += 2 * events
    if day:
        if not _ring(raw, at + STAMP_BYTES, day - STAMP_BYTES, now, plan[DAY], plan[DAYS], 1, plan, numbers, to):
            return bad
        at += day
    to += events
    if session:
        at_session = _session(raw, at + STAMP_BYTES, session - STAMP_BYTES, now, plan, numbers, to, found)
        if at_session < 0:
            return bad
        at += session
    if preference and not _preference(raw, at + STAMP_BYTES, preference - STAMP_BYTES, liked, now, plan, found,
                                      numbers, shares):
        return bad
    hashes = np.empty(count + room + found[ITEMS], np.uint64)
    for part in range(2):
        if not _hash_ids(cells, raw, at_session if part else at_ids, found[ITEMS] if part else count, hashes,
                         count + room if part else 0):
            return bad
    return True, numbers, hashes, found
