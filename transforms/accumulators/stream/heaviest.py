"""Compiled: the ids that weigh most at an entity's newest pane, and what each weighs in which pane."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from transforms.accumulators.stream.kernels import Bytes, Codes, Ints, Rows

Words = npt.NDArray[np.uint64]


@njit(inline="always")
def _better(weights: Ints, keys: Words, ids: Codes, a: int, b: int, ends: Ints, data: Bytes) -> bool:
    """Whether entry a comes before entry b: it weighs more, or as much and its id's UTF-8 is smaller."""
    if weights[a] != weights[b]:
        return bool(weights[a] > weights[b])
    if keys[a] != keys[b]:
        return bool(keys[a] < keys[b])
    one, other = ends[ids[a]], ends[ids[b]]
    one_end, other_end = ends[ids[a] + 1], ends[ids[b] + 1]
    while one < one_end and other < other_end:
        if data[one] != data[other]:
            return bool(data[one] < data[other])
        one += 1
        other += 1
    return bool(other < other_end)


@njit(cache=True, nogil=True)
def _sort_keys(ids: Codes, n: int, ends: Ints, data: Bytes, keys: Words) -> None:
    """Of the UTF-8 of each of n ids the eight bytes that follow what all have in common, as a number that sorts as they do."""
    first = ends[ids[0]]
    common = ends[ids[0] + 1] - first
    for i in range(1, n):
        start = ends[ids[i]]
        common = min(common, ends[ids[i] + 1] - start)
        at = 0
        while at < common and data[start + at] == data[first + at]:
            at += 1
        common = at
    for i in range(n):
        start, end = ends[ids[i]] + common, ends[ids[i] + 1]
        key = np.uint64(0)
        for b in range(start, start + 8):
            key = (key << np.uint64(8)) | np.uint64(data[b] if b < end else 0)
        keys[i] = key


@njit(cache=True, nogil=True)
def _sink(heap: Ints, at: int, size: int, weights: Ints, keys: Words, ids: Codes, ends: Ints, data: Bytes) -> None:
    """Lets an entry of a heap, whose root is the worst, sink to its place."""
    entry = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _better(weights, keys, ids, heap[child], heap[child + 1], ends, data):
            child += 1
        if not _better(weights, keys, ids, entry, heap[child], ends, data):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = entry


@njit(cache=True, nogil=True)
def _pick(weights: Ints, ids: Codes, n: int, cap: int, ends: Ints, data: Bytes, keys: Words, heap: Ints) -> int:
    """Fills ``heap`` with the best of n entries, at most ``cap``, best first; returns how many. ``keys`` is room for work."""
    size = min(n, cap)
    if size == 0:
        return 0
    _sort_keys(ids, n, ends, data, keys)
    for i in range(size):
        heap[i] = i
    for i in range(size // 2 - 1, -1, -1):
        _sink(heap, i, size, weights, keys, ids, ends, data)
    for i in range(size, n):
        if _better(weights, keys, ids, i, heap[0], ends, data):
            heap[0] = i
            _sink(heap, 0, size, weights, keys, ids, ends, data)
    for left in range(size - 1, 0, -1):
        heap[0], heap[left] = heap[left], heap[0]
        _sink(heap, 0, left, weights, keys, ids, ends, data)
    return size


@njit(cache=True, nogil=True)
def heaviest(bounds: Ints, rows: Ints, table: Rows, values: Ints, decay: Ints, cap: int, pane_cap: int, ends: Ints,
             data: Bytes) -> tuple[Ints, Ints, Ints, Ints, Ints, Ints]:
    """What weighs most of n entities, each with the decay that it has at the entity's newest pane; ties by id.

    Args:
      bounds, rows: (n + 1,) and the rows of each entity by ascending pane; one row for each (pane, member).
      table, values: of the table; column 0 of ``values`` is the weight, of which one below 1 does not count.
      decay: weight by age in panes; what is older does not count.
      pane_cap: of one pane only so many count.
      ends, data: UTF-8 of the members' ids.

    Returns:
      bounds and members (best first), bounds of entries, and of each entry its member's position, its pane and weight.
    """
    n = len(bounds) - 1
    widest = 0
    for i in range(n):
        widest = max(widest, bounds[i + 1] - bounds[i])
    here_weights, here_ids = np.empty(widest, np.int64), np.empty(widest, np.int32)
    here_rows, heap = np.empty(widest, np.int64), np.empty(widest, np.int64)
    keys = np.empty(widest, np.uint64)
    kept, totals, ids = np.empty(widest, np.int64), np.empty(widest, np.int64), np.empty(widest, np.int32)
    place, filled = np.empty(widest, np.int64), np.empty(widest + 1, np.int64)
    slot = np.full(len(ends), -1, np.int32)
    many = len(rows)
    out_bounds, out_entry_bounds = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    out_members, out_at = np.empty(many, np.int64), np.empty(many, np.int64)
    out_pane, out_weight = np.empty(many, np.int64), np.empty(many, np.int64)
    members, entries = 0, 0
    for i in range(n):
        start, end = bounds[i], bounds[i + 1]
        last = table[rows[end - 1]].pane if start < end else 0
        while start < end and table[rows[start]].pane <= last - len(decay):
            start += 1
        k = 0  # rows that count, by ascending pane
        while start < end:
            p, m = table[rows[start]].pane, 0
            while start < end and table[rows[start]].pane == p:
                row = rows[start]
                if values[row, 0] > 0:
                    here_rows[m], here_weights[m], here_ids[m] = row, values[row, 0], table[row].member
                    m += 1
                start += 1
            if m <= pane_cap:
                for j in range(m):
                    kept[k + j] = here_rows[j]
            else:
                m = _pick(here_weights, here_ids, m, pane_cap, ends, data, keys, heap)
                for j in range(m):
                    kept[k + j] = here_rows[heap[j]]
            k += m
        distinct = 0
        for j in range(k):
            row = kept[j]
            at = slot[table[row].member]
            if at < 0:
                at = distinct
                slot[table[row].member] = at
                ids[at], totals[at] = table[row].member, 0
                distinct += 1
            totals[at] += decay[last - table[row].pane] * values[row, 0]
        chosen = _pick(totals, ids, distinct, cap, ends, data, keys, heap)
        for j in range(distinct):
            place[j] = -1
        for j in range(chosen):
            place[heap[j]] = j
            out_members[members + j] = ids[heap[j]]
        filled[: chosen + 1] = 0
        for j in range(k):
            at = place[slot[table[kept[j]].member]]
            if at >= 0:
                filled[at + 1] += 1
        for j in range(chosen):
            filled[j + 1] += filled[j]
        used = filled[chosen]
        for j in range(k - 1, -1, -1):  # newest pane first
            row = kept[j]
            at = place[slot[table[row].member]]
            if at >= 0:
                entry = entries + filled[at]
                filled[at] += 1
                out_at[entry], out_pane[entry], out_weight[entry] = members + at, table[row].pane, values[row, 0]
        for j in range(distinct):
            slot[ids[j]] = -1
        members += chosen
        entries += used
        out_bounds[i + 1], out_entry_bounds[i + 1] = members, entries
    return (out_bounds, out_members[:members], out_entry_bounds, out_at[:entries], out_pane[:entries], out_weight[:entries])
