"""Items that the same users touch within about half an hour, from the presence of users' items in panes.

User u has item i in pane p if an event of weight > 0 says so, and has nothing in a pane where they would be more than
PRESENCE_CAP. The pair {a, b} holds for u in pane p if u has one of them in p and the other in p or one of the REACH panes
before it. Counted are the users per pane that hold a pair, for both of its items. All of it is a function of sets, so order
and repetition do not matter; what new events change is the difference of two such counts, which may be negative.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from schemas.features import PRESENCE_CAP
from transforms.accumulators.frame import Ints
from transforms.accumulators.stream.kernels import SUM
from transforms.accumulators.stream.names import Names
from transforms.accumulators.stream.table import Table

REACH = 6
PAIRS = pa.schema([
    pa.field("item_id", pa.dictionary(pa.int32(), pa.large_string())),
    pa.field("other_id", pa.dictionary(pa.int32(), pa.large_string())),
    pa.field("pane", pa.int64()), pa.field("users", pa.int32())])
"""How many more (or fewer) users hold a pair in a pane: one row for each (item, other, pane) that changed."""


def changes(items: Table, before: int, names: Names) -> pa.RecordBatch:
    """What the rows of a table of users' items (user, pane, item) from ``before`` on changed, as PAIRS."""
    fresh = items.entity[before:].astype(np.int64)
    codes, at = np.unique(fresh, return_inverse=True)
    least = np.full(len(codes), np.iinfo(np.int64).max)
    np.minimum.at(least, at, items.pane[before:])
    bounds, rows = items.rows_of(codes, least - REACH if len(codes) else None)
    room = 16 * (len(items) - before) + 1024
    while True:
        out = np.empty((room, 4), np.int64)
        filled = _changes(bounds, items.pane[rows], items.member[rows].astype(np.int64), rows >= before, REACH, PRESENCE_CAP,
                          out)
        if filled <= room:
            break
        room = filled
    out = out[:filled]
    summed = Table((SUM,))
    for one, other in ((0, 1), (1, 0)):
        summed.add(out[:, one], out[:, 2], out[:, other], out[:, 3:])
    kept = np.flatnonzero(summed.values[:, 0])
    a, b = summed.entity[kept], summed.member[kept]
    used = np.zeros(len(names), bool)
    used[a] = True  # every b is an a of the other direction
    position = (np.cumsum(used) - 1).astype(np.int32)
    texts = names.strings(np.flatnonzero(used))
    item, other_item = (pa.DictionaryArray.from_arrays(pa.array(position[codes]), texts) for codes in (a, b))
    return pa.RecordBatch.from_arrays([item, other_item, pa.array(summed.pane[kept]),
                                       pa.array(summed.values[kept, 0].astype(np.int32))], schema=PAIRS)


@njit(cache=True, nogil=True)
def _changes(bounds: Ints, pane: Ints, item: Ints, new: npt.NDArray[np.bool_], reach: int, cap: int, out: Ints) -> int:
    """Pairs of each user (an entry of bounds) that new rows make or unmake, as rows (a, b, pane, +1 or -1) of ``out``.

    Rows of a user are in order of their panes. Returns how many there are; with more than ``out`` has room for, only that.
    """
    filled = 0
    for u in range(len(bounds) - 1):
        start, end = bounds[u], bounds[u + 1]
        had = np.zeros(end - start, np.bool_)  # the row counts without, and with, the new rows
        has = np.zeros(end - start, np.bool_)
        i = start
        while i < end:
            j = i
            fresh = 0
            while j < end and pane[j] == pane[i]:
                fresh += new[j]
                j += 1
            for r in range(i, j):
                had[r - start] = not new[r] and j - i - fresh <= cap
                has[r - start] = j - i <= cap
            i = j
        i = start
        touched = np.int64(-(1 << 62))
        while i < end:
            # The next pane to look at: one with rows. Pairs of a pane change only within reach of a changed row.
            j = i
            while j < end and pane[j] == pane[i]:
                if had[j - start] != has[j - start]:
                    touched = pane[j]
                j += 1
            if pane[i] - touched <= reach:
                low = i
                while low > start and pane[low - 1] >= pane[i] - reach:
                    low -= 1
                filled = _pane_changes(low, i, j, start, item, had, has, pane[i], out, filled)
            i = j
    return filled


@njit(cache=True, nogil=True)
def _pane_changes(low: int, begin: int, end: int, start: int, item: Ints, had: npt.NDArray[np.bool_],
                  has: npt.NDArray[np.bool_], pane: int, out: Ints, filled: int) -> int:
    """Pairs of one pane, whose rows are begin to end and whose window begins at row low."""
    order = low + np.argsort(item[low:end])
    n = 0
    ids = np.empty(end - low, np.int64)
    flags = np.zeros(end - low, np.int64)  # 1, 2: in the pane before, after; 4, 8: in the window before, after
    for r in order:
        if n == 0 or ids[n - 1] != item[r]:
            ids[n] = item[r]
            n += 1
        here = 5 if r >= begin else 4
        flags[n - 1] |= (here if had[r - start] else 0) | (2 * here if has[r - start] else 0)
    for x in range(n):
        for y in range(x + 1, n):
            if not (flags[x] | flags[y]) & 3:
                continue
            before = (flags[x] & 1 and flags[y] & 4) or (flags[y] & 1 and flags[x] & 4)
            after = (flags[x] & 2 and flags[y] & 8) or (flags[y] & 2 and flags[x] & 8)
            if bool(before) != bool(after):
                if filled < len(out):
                    out[filled, 0], out[filled, 1], out[filled, 2] = ids[x], ids[y], pane
                    out[filled, 3] = 1 if after else -1
                filled += 1
    return filled


