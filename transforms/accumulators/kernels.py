"""Compiled loops over columns that NumPy has no word for. Each works on sorted or grouped rows, without the GIL."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def sum_groups(group: Ints, values: Ints, groups: int) -> Ints:
    """Sum of values per group, shape (groups,)."""
    out = np.zeros(groups, np.int64)
    for i in range(len(group)):
        out[group[i]] += values[i]
    return out


@njit(cache=True, nogil=True)
def min_groups(group: Ints, values: Ints, groups: int) -> Ints:
    """Minimum per group, shape (groups,); the largest int64 for a group without rows."""
    out = np.full(groups, np.iinfo(np.int64).max, np.int64)
    for i in range(len(group)):
        if values[i] < out[group[i]]:
            out[group[i]] = values[i]
    return out


@njit(cache=True, nogil=True)
def max_groups(group: Ints, values: Ints, groups: int) -> Ints:
    """Maximum per group, shape (groups,); the smallest int64 for a group without rows."""
    out = np.full(groups, np.iinfo(np.int64).min, np.int64)
    for i in range(len(group)):
        if values[i] > out[group[i]]:
            out[group[i]] = values[i]
    return out


@njit(cache=True, nogil=True)
def last_rows(group: Ints, time: Ints, tie: npt.NDArray[np.uint64], groups: int) -> Ints:
    """Row with the greatest (time, tie) of each group, shape (groups,); equal rows are copies of one event."""
    out = np.full(groups, -1, np.int64)
    for i in range(len(group)):
        best = out[group[i]]
        if best < 0 or time[i] > time[best] or (time[i] == time[best] and tie[i] > tie[best]):
            out[group[i]] = i
    return out


@njit(cache=True, nogil=True)
def dense_groups(keys: Ints, width: int, size: int) -> tuple[Ints, Ints]:
    """Groups of rows whose ``(high << 32 | low)`` keys fill a small rectangle.

    Args:
      keys: (n,) keys; every low part is below ``width`` and high * width + low below ``size``.

    Returns:
      the distinct keys in ascending order, and each row's position among them, (n,).
    """
    slot = np.zeros(size, np.int32)
    for i in range(len(keys)):
        slot[(keys[i] >> 32) * width + (keys[i] & 0xFFFFFFFF)] = 1
    count = 0
    for s in range(size):
        if slot[s]:
            count += 1
            slot[s] = count
    distinct = np.empty(count, np.int64)
    group = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        at = slot[(keys[i] >> 32) * width + (keys[i] & 0xFFFFFFFF)] - 1
        group[i] = at
        distinct[at] = keys[i]
    return distinct, group


@njit(cache=True, nogil=True)
def _capped(offsets: Ints, cap: int) -> Ints:
    """Bounds of segments cut to at most ``cap`` rows."""
    bounds = np.zeros(len(offsets), np.int64)
    for s in range(len(offsets) - 1):
        bounds[s + 1] = bounds[s] + min(cap, offsets[s + 1] - offsets[s])
    return bounds


@njit(cache=True, nogil=True)
def newest(offsets: Ints, time: Ints, tie: npt.NDArray[np.uint64], cap: int) -> tuple[Ints, Ints]:
    """Rows of each segment by (time, tie) descending, at most ``cap`` of each.

    Args:
      offsets: (segments + 1,) bounds of the segments in ``time``.

    Returns:
      offsets of the result (segments + 1,), and the chosen rows in order.
    """
    segments = len(offsets) - 1
    bounds = _capped(offsets, cap)
    rows = np.empty(bounds[segments], np.int64)
    for s in range(segments):
        start, end = offsets[s], offsets[s + 1]
        order = np.argsort(time[start:end])
        for i in range(1, len(order)):  # equal times are rare: mend their order by insertion
            j = i
            while j > 0 and time[start + order[j]] == time[start + order[j - 1]] and \
                    tie[start + order[j]] < tie[start + order[j - 1]]:
                order[j], order[j - 1] = order[j - 1], order[j]
                j -= 1
        for i in range(bounds[s + 1] - bounds[s]):
            rows[bounds[s] + i] = start + order[len(order) - 1 - i]
    return bounds, rows


@njit(cache=True, nogil=True)
def best(offsets: Ints, rank: Ints, cap: int) -> tuple[Ints, Ints]:
    """Rows of each segment by ``rank`` descending, at most ``cap`` of each; ranks of a segment are distinct.

    Returns:
      offsets of the result (segments + 1,), and the chosen rows in order.
    """
    segments = len(offsets) - 1
    bounds = _capped(offsets, cap)
    rows = np.empty(bounds[segments], np.int64)
    for s in range(segments):
        start, end = offsets[s], offsets[s + 1]
        keep = bounds[s + 1] - bounds[s]
        chosen = np.arange(start, end)
        if len(chosen) > 4 * cap:  # only the rows that can be among the best are sorted
            floor = np.partition(rank[start:end], len(chosen) - cap)[len(chosen) - cap]
            chosen = chosen[rank[start:end] >= floor]
        order = np.argsort(-rank[chosen])
        for i in range(keep):
            rows[bounds[s] + i] = chosen[order[i]]
    return bounds, rows


@njit(cache=True, nogil=True)
def pair_codes(offsets: Ints, item: Ints, time: Ints, counts: npt.NDArray[np.bool_], first: Ints, reach: int,
               gap: int, out: Ints) -> int:
    """Distinct item pairs of each user's day, both directions, as ``a << 32 | b``.

    Args:
      offsets: (users + 1,) bounds of each user's rows, which are in (time, tie) order.
      item, time: (n,) item codes and microseconds.
      counts: (n,) whether the row may be the later one of a pair (False: a row of the day before).
      first: (users,) rows before this one may not be the later one (the cap on heavy users).
      reach: how many rows back a pair reaches at most; gap: how many microseconds.
      out: room for the pairs, filled from its start.

    Returns:
      how many pairs are in ``out``; negative, when it has too little room, minus the room needed so far.
    """
    filled = 0
    for u in range(len(offsets) - 1):
        begin = filled
        for i in range(max(first[u], offsets[u]), offsets[u + 1]):
            if not counts[i]:
                continue
            j = i - 1
            while j >= offsets[u] and i - j <= reach and time[i] - time[j] <= gap:
                if item[i] != item[j]:
                    if filled + 2 > len(out):
                        return -(filled + 2)
                    low, high = min(item[i], item[j]), max(item[i], item[j])
                    out[filled] = (low << 32) | high
                    filled += 1
                j -= 1
        found = np.sort(out[begin:filled])
        filled = begin
        room = len(found)
        last = np.int64(-1)
        distinct = 0
        for i in range(room):
            if found[i] != last:
                found[distinct] = found[i]
                distinct += 1
                last = found[i]
        if begin + 2 * distinct > len(out):
            return -(begin + 2 * distinct)
        for i in range(distinct):
            out[filled] = found[i]
            out[filled + 1] = ((found[i] & 0xFFFFFFFF) << 32) | (found[i] >> 32)
            filled += 2
    return filled


@njit(cache=True, nogil=True)
def explode(keep: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int32], codes: Ints, bare: int) -> tuple[Ints, Ints]:
    """(row, code) of every distinct code in the list of every row kept; an empty list has the code ``bare``.

    Args:
      keep: (n,) rows that count; offsets: (n + 1,) bounds of their lists in ``codes``.
    """
    room = 0
    for i in range(len(keep)):
        if keep[i]:
            room += max(1, offsets[i + 1] - offsets[i])
    row, code = np.empty(room, np.int64), np.empty(room, np.int64)
    filled = 0
    for i in range(len(keep)):
        if not keep[i]:
            continue
        begin = filled
        for j in range(offsets[i], offsets[i + 1]):
            repeated = False
            for k in range(begin, filled):
                repeated |= code[k] == codes[j]
            if not repeated:
                row[filled], code[filled] = i, codes[j]
                filled += 1
        if filled == begin:
            row[filled], code[filled] = i, bare
            filled += 1
    return row[:filled], code[:filled]


@njit(cache=True, nogil=True)
def union_groups(one: Ints, other: Ints) -> tuple[Ints, Ints]:
    """Groups of two runs of ascending distinct keys, in one pass.

    Returns:
      the distinct keys in ascending order, and the position among them of each key of ``one`` and then ``other``.
    """
    n, m = len(one), len(other)
    distinct = np.empty(n + m, np.int64)
    group = np.empty(n + m, np.int64)
    i = j = count = 0
    while i < n or j < m:
        if j == m or (i < n and one[i] < other[j]):
            distinct[count] = one[i]
            group[i] = count
            i += 1
        elif i == n or other[j] < one[i]:
            distinct[count] = other[j]
            group[n + j] = count
            j += 1
        else:
            distinct[count] = one[i]
            group[i] = group[n + j] = count
            i += 1
            j += 1
        count += 1
    return distinct[:count], group
