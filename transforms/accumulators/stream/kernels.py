"""Compiled loops of stream state: open addressing over ids and over row keys, chains of rows per entity."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from transforms.records.memory import copy

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.void]  # of table.ROW

_AHEAD = 64
_CHAINS = 16
SUM, MIN, MAX, TIME, TIE, CARRY = 0, 1, 2, 3, 4, 5
"""How a value column is merged. TIME, TIE, CARRY... are one group: the row with the greatest (time, tie) wins whole."""


@njit(inline="always")
def _mark(data: Bytes, start: int, end: int) -> np.uint64:
    """FNV-1a of some bytes, its high bits folded into the low ones."""
    h = np.uint64(0xCBF29CE484222325)
    for b in range(start, end):
        h = (h ^ np.uint64(data[b])) * np.uint64(0x100000001B3)
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True)
def intern(slots: Codes, marks: Hashes, ends: Ints, data: Bytes, count: int, new_ends: Ints, new_data: Bytes, entries: Ints,
           codes: Ints) -> int:
    """Gives every id used a code, appending those not yet known.

    Args:
      slots: open addressing by mark, -1 for free; a power of two, at least twice the ids it will hold.
      marks, ends, data: the ids known: hash of the text, end in ``data`` (one more than ids, ends[0] = 0), UTF-8; with room.
      count: how many are known.
      new_ends, new_data: ids offered, in the same form.
      entries: (n,) which offered id each row names, -1 for none.
      codes: (n,) filled with each row's code, -1 for none.

    Returns:
      how many ids are known now.
    """
    memo = np.full(len(new_ends) - 1, -1, np.int64)
    mask = np.int64(len(slots) - 1)
    for i in range(len(entries)):
        e = entries[i]
        if e < 0:
            codes[i] = -1
            continue
        code = memo[e]
        if code < 0:
            begin, size = new_ends[e], new_ends[e + 1] - new_ends[e]
            mark = _mark(new_data, begin, begin + size)
            at = np.int64(mark & np.uint64(mask))
            while slots[at] >= 0:
                known = slots[at]
                start = ends[known]
                if marks[known] == mark and ends[known + 1] - start == size:
                    b = 0
                    while b < size and data[start + b] == new_data[begin + b]:
                        b += 1
                    if b == size:
                        break
                at = (at + 1) & mask
            code = slots[at]
            if code < 0:
                code = count
                slots[at] = count
                marks[count] = mark
                start = ends[count]
                for b in range(size):
                    data[start + b] = new_data[begin + b]
                ends[count + 1] = start + size
                count += 1
            memo[e] = code
        codes[i] = code
    return count


@njit(cache=True, nogil=True)
def reslot(slots: Codes, hashes: Hashes, start: int, count: int) -> None:
    """Puts the codes ``start`` to ``count`` into slots by their hashes."""
    mask = np.int64(len(slots) - 1)
    for i in range(start, count):
        at = np.int64(hashes[i] & np.uint64(mask))
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at] = i


@njit(cache=True, nogil=True)
def find_ids(slots: Codes, hashes: Hashes, wanted: Hashes) -> Ints:
    """(n,) codes of hashes, -1 for one that is not known."""
    out = np.full(len(wanted), -1, np.int64)
    if len(slots) == 0:
        return out
    mask = np.uint64(len(slots) - 1)
    for i in range(len(wanted)):
        at = np.int64(wanted[i] & mask)
        while slots[at] >= 0 and hashes[slots[at]] != wanted[i]:
            at = (at + 1) & np.int64(mask)
        out[i] = slots[at]
    return out


@njit(cache=True, nogil=True)
def take_strings(ends: Ints, data: Bytes, codes: Ints) -> tuple[Ints, Bytes]:
    """Offsets (n + 1,) and bytes of the strings of codes."""
    offsets = np.zeros(len(codes) + 1, np.int64)
    for i in range(len(codes)):
        offsets[i + 1] = offsets[i] + ends[codes[i] + 1] - ends[codes[i]]
    out = np.empty(offsets[len(codes)], np.uint8)
    target, source = out.ctypes.data, data.ctypes.data
    for i in range(len(codes)):
        copy(target + offsets[i], source + ends[codes[i]], offsets[i + 1] - offsets[i])
    return offsets, out


@njit(inline="always")
def _slot(entity: int, pane: int, member: int, mask: int) -> np.int64:
    h = np.uint64(entity) * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(29))) + np.uint64(pane) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(31))) + np.uint64(member) * np.uint64(0x94D049BB133111EB)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.int64((h ^ (h >> np.uint64(32))) & np.uint64(mask))


@njit(cache=True, nogil=True)
def _reach(slots: Codes, rows: Rows, values: Ints, start: int, entity: Ints, pane: Ints, member: Ints, ahead: Ints,
           reached: Ints) -> None:
    """Finds the first slots of the next rows and loads what lies there: the misses of many rows are waited for together."""
    many = min(len(ahead), len(entity) - start)
    for j in range(many):
        ahead[j] = _slot(entity[start + j], pane[start + j], member[start + j], len(slots) - 1)
        reached[j] = slots[ahead[j]]
    for j in range(many):
        row = reached[j]
        if row >= 0:
            reached[j] = rows[row].pane + values[row, 0]


@njit(cache=True, nogil=True)
def upsert(slots: Codes, head: Codes, rows: Rows, values: Ints, count: int, ops: Ints, new_entity: Ints, new_pane: Ints,
           new_member: Ints, new_values: Ints, hot: Ints) -> int:
    """Merges n rows into a table, in any order and with repeats.

    Args:
      slots: open addressing over rows, -1 for free, a power of two with room; head: newest row of each entity, -1 for none.
      rows, values: the table's, the latter (capacity, k), with room for n more rows; ``following`` chains rows of an entity.
      count: rows in use.
      ops: (k,) how each value is merged.
      new_values: (n, k), or (n, j) with the last j values.
      hot: (n,) which one of the first k - j values, all of them sums, is 1 (the others are 0); not read when j is k.

    Returns:
      rows in use now.
    """
    mask = len(slots) - 1
    k = len(ops)
    sparse = k - new_values.shape[1]
    ahead, reached = np.empty(_AHEAD, np.int64), np.empty(_AHEAD, np.int64)
    for i in range(len(new_entity)):
        if i % _AHEAD == 0:
            _reach(slots, rows, values, i, new_entity, new_pane, new_member, ahead, reached)
        e, p, m = new_entity[i], new_pane[i], new_member[i]
        at = ahead[i % _AHEAD]
        row = slots[at]
        while row >= 0 and (rows[row].entity != e or rows[row].pane != p or rows[row].member != m):
            at = (at + 1) & mask
            row = slots[at]
        if row < 0:
            slots[at] = count
            rows[count].entity, rows[count].pane, rows[count].member = e, p, m
            rows[count].following = head[e]
            head[e] = count
            for c in range(sparse):
                values[count, c] = 0
            if sparse:
                values[count, hot[i]] = 1
            for c in range(sparse, k):
                values[count, c] = new_values[i, c - sparse]
            count += 1
            continue
        if sparse:
            values[row, hot[i]] += 1
        c = sparse
        while c < k:
            new = new_values[i, c - sparse]
            if ops[c] == SUM:
                values[row, c] += new
            elif ops[c] == MIN:
                values[row, c] = min(values[row, c], new)
            elif ops[c] == MAX:
                values[row, c] = max(values[row, c], new)
            elif ops[c] == TIME:
                wins = new > values[row, c] or (new == values[row, c] and
                                                np.uint64(new_values[i, c - sparse + 1]) > np.uint64(values[row, c + 1]))
                end = c + 2
                while end < k and ops[end] == CARRY:
                    end += 1
                if wins:
                    for x in range(c, end):
                        values[row, x] = new_values[i, x - sparse]
                c = end - 1
            c += 1
    return count


@njit(cache=True, nogil=True)
def reindex(slots: Codes, rows: Rows, count: int) -> None:
    """Fills empty slots with the rows of a table."""
    mask = len(slots) - 1
    for i in range(count):
        at = _slot(rows[i].entity, rows[i].pane, rows[i].member, mask)
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at] = i


@njit(cache=True, nogil=True)
def _walk(head: Codes, rows: Rows, codes: Ints) -> int:
    """How many rows some entities have. Walks many chains at a time, whose next rows are waited for together; they are in the
    caches then."""
    at = np.full(_CHAINS, -1, np.int64)
    begun, many, walking = 0, 0, True
    while walking:
        walking = False
        for chain in range(_CHAINS):
            row = at[chain]
            if row >= 0:
                many += 1
                at[chain] = rows[row].following
                walking = True
            elif begun < len(codes):
                at[chain] = head[codes[begun]] if codes[begun] < len(head) else -1
                begun += 1
                walking = True
    return many


@njit(cache=True, nogil=True)
def chained(head: Codes, rows: Rows, codes: Ints, least: Ints) -> tuple[Ints, Ints]:
    """Rows of some entities, each entity's in ascending order of their panes.

    Args:
      rows: of a table.
      codes: (n,) entities, distinct; one beyond ``head`` has no rows.
      least: (n,) the first pane wanted of each.

    Returns:
      bounds (n + 1,) and rows.
    """
    bounds = np.zeros(len(codes) + 1, np.int64)
    many = _walk(head, rows, codes)
    found, panes = np.empty(many, np.int64), np.empty(many, np.int64)
    end = 0
    for i in range(len(codes)):
        start = end
        row = np.int64(head[codes[i]] if codes[i] < len(head) else -1)
        while row >= 0:
            if rows[row].pane >= least[i]:
                found[end], panes[end] = row, rows[row].pane
                end += 1
            row = rows[row].following
        bounds[i + 1] = end
        for j in range((end - start) // 2):  # the newest came first
            x, y = start + j, end - 1 - j
            found[x], found[y] = found[y], found[x]
            panes[x], panes[y] = panes[y], panes[x]
        ordered = True
        for j in range(start + 1, end):
            ordered &= panes[j - 1] <= panes[j]
        if ordered:
            continue
        if end - start > 64:
            part = found[start:end].copy()
            found[start:end] = part[np.argsort(panes[start:end], kind="mergesort")]
            continue
        for j in range(start + 1, end):
            row, pane = found[j], panes[j]
            at = j
            while at > start and panes[at - 1] > pane:
                found[at], panes[at] = found[at - 1], panes[at - 1]
                at -= 1
            found[at], panes[at] = row, pane
    return bounds, found[:end].copy()
