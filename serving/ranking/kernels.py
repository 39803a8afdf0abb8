"""The compiled loops of re-ranking. Arrays only; tests/serving/ranking/twin.py is the same in plain Python.

A page is made of n candidates. Their items' data are gathered first, so that a kernel sees rows, never the catalogue.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from transforms.records.memory import prefetch

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

CATEGORIES = 8
"""Categories of an item that count in ranking; the first is the one that max_per_category counts."""
ROW = 16
NORM, SEEN, BOOST, CLICKS, BLOCKED = range(CATEGORIES, CATEGORIES + 5)
"""What ranking reads of an item, in one row of ROW numbers of 4 bytes: codes of its categories, -1 behind the last; then the
length of its vector, 0 without one; impressions; boost; clicks; whether it is blocked."""
SESSION_NEIGHBOURS = 50
LINE = 64
"""Bytes that memory hands over at once."""
_BLOCK = 16


@numba.njit(cache=True, nogil=True)
def session_slots(session: I32, offsets: I64, neighbours: I32, strengths: F32) -> int:
    """Places for the items near those of a session: a power of two, at most half of them used. What ``near_session`` reads of
    the neighbours is asked for."""
    near, places = 0, 64
    ids, weights = np.int64(neighbours.ctypes.data), np.int64(strengths.ctypes.data)
    for h in session:
        if h >= 0:
            start, end = offsets[h], min(offsets[h + 1], offsets[h] + SESSION_NEIGHBOURS)
            near += end - start
            for at in range(4 * start, 4 * end, LINE):
                prefetch(ids, at)
                prefetch(weights, at)
    while places < 2 * near:
        places *= 2
    return places


@numba.njit(cache=True, nogil=True)
def ask_for(positions: I32, values: Any) -> None:
    """Prefetches rows of an array, all before the first is waited for: together they take hardly longer than one."""
    base, width = np.int64(values.ctypes.data), np.int64(values.strides[0])
    for position in positions:
        if 0 <= position < len(values):
            for at in range(0, width, LINE):
                prefetch(base, width * position + at)


@numba.njit(cache=True, nogil=True)
def near_session(session: I32, weights: F32, offsets: I64, neighbours: I32, strengths: F32, half_life: float, items: I32,
                 sums: F32, because: I32, order: I32) -> int:
    """Sums the co-occurrence with the session per item into open-addressing places (``items`` -1: free).

    sum(i) = over session items h, newest first: weight(h) / 2^(rank / half_life) * strength(h, i); ``because`` is the place in
    the session of the h that gave most. Returns how many places are used; ``order`` has them, as they came.
    """
    items[:] = -1
    mask, used = len(items) - 1, 0
    best = np.zeros(len(items), np.float32)
    for rank in range(len(session)):
        h = session[rank]
        if h < 0:
            continue
        weight = weights[rank] * np.float32(2.0 ** (-rank / half_life))
        for e in range(offsets[h], min(offsets[h + 1], offsets[h] + SESSION_NEIGHBOURS)):
            item = neighbours[e]
            place = (item * 40503) & mask
            while items[place] >= 0 and items[place] != item:
                place = (place + 1) & mask
            if items[place] < 0:
                if 2 * used >= len(items):
                    continue
                items[place] = item
                sums[place], best[place], order[used] = np.float32(0), np.float32(-1), place
                used += 1
            share = weight * strengths[e]
            sums[place] += share
            if share > best[place]:
                best[place], because[place] = share, rank
    return used


@numba.njit(cache=True, nogil=True)
def session_of(positions: I32, items: I32, sums: F32, because: I32, out: F32, cause: I32) -> None:
    """Looks the candidates up in what ``near_session`` filled: (n,) sum and place in the session, 0 and -1 without one."""
    mask = len(items) - 1
    for i in range(len(positions)):
        out[i], cause[i] = np.float32(0), -1
        if positions[i] < 0:
            continue
        place = (positions[i] * 40503) & mask
        while items[place] >= 0:
            if items[place] == positions[i]:
                out[i], cause[i] = sums[place], because[place]
                break
            place = (place + 1) & mask


@numba.njit(cache=True, nogil=True)
def _mark(item: int, items: I32, marks: Bools) -> None:
    """Marks the place of an item, where it has one."""
    mask = len(items) - 1
    place = (item * 40503) & mask
    while item >= 0 and items[place] >= 0:
        if items[place] == item:
            marks[place] = True
            return
        place = (place + 1) & mask


@numba.njit(cache=True, nogil=True)
def session_extras(wanted: int, items: I32, order: I32, sums: F32, session: I32, candidates: I32, blocked: Bools, hashes: U64,
                   shown: U32) -> I32:
    """Of the items at the places of ``order`` those of the highest sums, best first, that are neither candidates nor in the
    session, blocked or shown."""
    best = np.full(wanted, -1, np.int32)
    scores = np.zeros(wanted, np.float32)
    listed = np.zeros(len(items), np.bool_)
    at_blocked = np.int64(blocked.ctypes.data)
    for place in order:
        prefetch(at_blocked, np.int64(items[place]))
    for i in range(len(candidates)):
        _mark(candidates[i], items, listed)
    for i in range(len(session)):
        _mark(session[i], items, listed)
    size = 0
    for place in order:
        item = items[place]
        if size == wanted and (sums[place] < scores[size - 1] or (sums[place] == scores[size - 1] and item > best[size - 1])):
            continue
        if listed[place] or blocked[item]:
            continue
        if len(shown):
            known, low = False, np.uint32(hashes[item] & np.uint64(0xFFFFFFFF))
            for i in range(len(shown)):
                known |= shown[i] == low
            if known:
                continue
        at = size if size < wanted else size - 1
        while at > 0 and (scores[at - 1] < sums[place] or (scores[at - 1] == sums[place] and best[at - 1] > item)):
            scores[at], best[at] = scores[at - 1], best[at - 1]
            at -= 1
        scores[at], best[at] = sums[place], item
        size = min(wanted, size + 1)
    return best[:size]


@numba.njit(cache=True, nogil=True)
def gather(positions: I32, vectors: F32, rows: I32, numbers: F32, units: F32, categories: I32, seen: F32, boosts: F32,
           keep: Bools) -> None:
    """Data of the candidates' items: unit vectors (n, d), zeros without one; category codes (n, CATEGORIES), -1 behind the
    end; impressions; boosts; ``keep`` is cleared where the item is blocked. A position of -1 has no data and is kept.

    Args:
      rows, numbers: of serving.ranking.rules.
    """
    for i in range(len(positions)):
        item = positions[i]
        for c in range(CATEGORIES):
            categories[i, c] = rows[item, c] if item >= 0 else -1
        seen[i] = numbers[item, SEEN] if item >= 0 else np.float32(0)
        boosts[i] = numbers[item, BOOST] if item >= 0 else np.float32(0)
        if item >= 0 and rows[item, BLOCKED]:
            keep[i] = False
        if item >= 0 and numbers[item, NORM] > 0:
            scale = np.float32(1) / numbers[item, NORM]
            for d in range(units.shape[1]):
                units[i, d] = vectors[item, d] * scale
        else:
            for d in range(units.shape[1]):
                units[i, d] = np.float32(0)


@numba.njit(cache=True, nogil=True)
def preference_match(categories: I32, share: F32, out: F32) -> None:
    """Cosine between the user's category shares (by code) and each candidate's categories, in [0, 1]."""
    norm = np.float32(0)
    for c in range(len(share)):
        norm += share[c] * share[c]
    norm = np.float32(math.sqrt(norm))
    for i in range(len(categories)):
        total, count = np.float32(0), 0
        for c in range(categories.shape[1]):
            code = categories[i, c]
            if code < 0:
                break
            count += 1
            total += share[code]
        out[i] = total / (norm * np.float32(math.sqrt(count))) if count and norm > 0 else np.float32(0)


@numba.njit(cache=True, nogil=True)
def drop_shown(hashes: U64, shown: U32, keep: Bools) -> None:
    """Clears ``keep`` of candidates whose hash's low 32 bits are among ``shown``."""
    for i in range(len(hashes)):
        low = np.uint32(hashes[i] & np.uint64(0xFFFFFFFF))
        for j in range(len(shown)):
            if shown[j] == low:
                keep[i] = False
                break


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _cosine(units: F32, a: int, b: int) -> np.float32:
    total = np.float32(0)
    for d in range(units.shape[1]):
        total += units[a, d] * units[b, d]
    return total


@numba.njit(cache=True, nogil=True)
def similarity(units: F32, categories: I32, has_vector: Bools, a: int, b: int) -> np.float32:
    """How alike two candidates are, in [0, 1]: the cosine of their vectors; where one lacks a vector, the overlap of their
    categories (Jaccard)."""
    if has_vector[a] and has_vector[b]:
        return min(np.float32(1), max(np.float32(0), _cosine(units, a, b)))
    both, one, other = 0, 0, 0
    for c in range(categories.shape[1]):
        one += categories[a, c] >= 0
        other += categories[b, c] >= 0
        if categories[a, c] < 0:
            continue
        for e in range(categories.shape[1]):
            both += categories[a, c] == categories[b, e]
    union = one + other - both
    return np.float32(both / union) if union > 0 else np.float32(0)


@numba.njit(cache=True, nogil=True)
def select(scores: F32, keep: Bools, units: F32, categories: I32, share: F32, counts: I64, size: int, strength: float,
           calibration: float, smoothing: float, max_per_category: int, chosen: I32) -> int:
    """Chooses up to ``size`` candidates, one after the other; returns how many.

    Each is the one of highest (1 - strength) * score - strength * ((1 - calibration) * m - calibration * g), ties by place:
    m is its greatest similarity to those chosen (maximal marginal relevance: Carbonell & Goldstein, SIGIR 1998); g is how much
    it lowers KL(p || q), p the user's category shares, q the page's mix, smoothed with p (Steck, "Calibrated
    recommendations", RecSys 2018). A first category that ``max_per_category`` items have is passed over until nothing
    else is left.

    A candidate's value never rises while others are chosen, so it is worked out anew only where its last value was the highest
    (lazy greedy: Minoux, 1978); the choice is the same.

    Args:
      share: (c,) p by category code, c above every code; all 0 without one: then calibration is 0.
      counts: (c,) scratch, all 0.
      chosen: (size,) places of the candidates, filled.
    """
    n, many = len(scores), len(share)
    has_vector, open_ = np.zeros(n, np.bool_), keep.copy()
    nearest, mix, bound = np.zeros(n, np.float32), np.zeros(many, np.float32), np.empty(n, np.float32)
    exact, compared = np.full(n, -1, np.int64), np.zeros(n, np.int64)
    free = np.full(-(-n // _BLOCK) * _BLOCK, -np.inf, np.float32)  # of those that are open and whose category is not full
    tops = np.full(len(free) // _BLOCK, -np.inf, np.float32)  # the highest of each block of ``free``
    for i in range(n):
        if not open_[i]:
            continue
        gain = _gain(categories, i, share, mix, 0, smoothing) if strength > 0 and calibration > 0 else 0.0
        bound[i], exact[i] = np.float32((1 - strength) * scores[i]) + np.float32(strength * calibration * gain), 0
        free[i] = bound[i]
        for d in range(units.shape[1]):
            if units[i, d] != 0:
                has_vector[i] = True
                break
    for block in range(len(tops)):
        tops[block] = _top(free, block)
    count = 0
    while count < size:
        best = _first_highest(free, tops)
        is_free = best >= 0
        if not is_free:
            best = _highest(bound, open_, categories, counts, max_per_category)
        if best < 0:
            break
        if exact[best] != count:  # as similar items are chosen its value only falls: what it was bounds what it is
            while compared[best] < count and strength > 0 and calibration < 1:
                other = chosen[compared[best]]
                if has_vector[best] and has_vector[other]:  # as ``similarity``, whose call takes three times as long as this
                    nearest[best] = max(nearest[best], min(np.float32(1), _cosine(units, best, other)))
                else:
                    nearest[best] = max(nearest[best], similarity(units, categories, has_vector, best, other))
                compared[best] += 1
            value = np.float32((1 - strength) * scores[best])
            if strength > 0:
                gain = _gain(categories, best, share, mix, count, smoothing) if calibration > 0 else 0.0
                value -= np.float32(strength * ((1 - calibration) * nearest[best] - calibration * gain))
            bound[best], exact[best] = value, count
            if is_free:
                free[best] = value
                tops[best // _BLOCK] = _top(free, best // _BLOCK)
            continue
        chosen[count] = best
        count += 1
        open_[best], free[best] = False, -np.inf
        tops[best // _BLOCK] = _top(free, best // _BLOCK)
        parts = 0
        for c in range(categories.shape[1]):
            parts += categories[best, c] >= 0
        if parts:
            counts[categories[best, 0]] += 1
            if counts[categories[best, 0]] == max_per_category:
                for i in range(n):
                    if categories[i, 0] == categories[best, 0]:
                        free[i] = -np.inf
                for block in range(len(tops)):
                    tops[block] = _top(free, block)
        for c in range(parts):
            mix[categories[best, c]] += np.float32(1.0 / parts)
    return count


@numba.njit(cache=True, nogil=True)
def _top(values: F32, block: int) -> np.float32:
    """The highest value of a block that is no nan; four at a time."""
    a = b = c = d = np.float32(-np.inf)
    for i in range(block * _BLOCK, (block + 1) * _BLOCK, 4):
        a, b = max(a, values[i]), max(b, values[i + 1])
        c, d = max(c, values[i + 2]), max(d, values[i + 3])
    return max(max(a, b), max(c, d))


@numba.njit(cache=True, nogil=True)
def _first_highest(values: F32, tops: F32) -> int:
    """The place of the highest value, the first of equal ones; -1 where all are -inf or no numbers."""
    highest, block = np.float32(-np.inf), -1
    for b in range(len(tops)):
        if tops[b] > highest:
            highest, block = tops[b], b
    if block >= 0:
        for i in range(block * _BLOCK, (block + 1) * _BLOCK):
            if values[i] == highest:
                return i
    return -1


@numba.njit(cache=True, nogil=True)
def _highest(bound: F32, open_: Bools, categories: I32, counts: I64, max_per_category: int) -> int:
    """The open candidate of the highest bound, ties by place, whose first category is not full; of all, where all are; -1."""
    best, best_free = -1, False
    for i in range(len(bound)):
        if not open_[i] or (best_free and bound[i] <= bound[best]):
            continue
        free = max_per_category == 0 or categories[i, 0] < 0 or counts[categories[i, 0]] < max_per_category
        if best < 0 or (free and not best_free) or (free == best_free and bound[i] > bound[best]):
            best, best_free = i, free
    return best


@numba.njit(cache=True, nogil=True)
def _gain(categories: I32, i: int, share: F32, mix: F32, count: int, smoothing: float) -> float:
    """By how much KL(p || q) of the page falls with candidate i: sum over its categories c of
    p_c log(q'_c / q_c), q = smoothing * p + (1 - smoothing) * mix / (count + 1), q' with i's own part in the mix."""
    parts = 0
    for c in range(categories.shape[1]):
        parts += categories[i, c] >= 0
    total = 0.0
    for c in range(parts):
        code = categories[i, c]
        if not share[code] > 0:
            continue
        base = smoothing * share[code] + (1 - smoothing) * mix[code] / (count + 1)
        total += share[code] * math.log(1 + (1 - smoothing) / (parts * (count + 1)) / base)
    return total
