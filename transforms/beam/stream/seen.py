"""Which events a bucket has had: exact de-duplication, bounded by time.

An event's key is 64 bits of its event_id and its user (``event_keys``), kept in one open-addressing table per pane, so that a
pane's keys go when no event can enter it any more. It costs 16 to 32 bytes an event; copies of an event share event_id, user
and occurred_at, so they meet in one table.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Keys = npt.NDArray[np.uint64]
Panes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def event_keys(event_hashes: Keys, user_hashes: Keys) -> Keys:
    """(n,) keys of events, never 0: two of n events share one by chance with probability about n^2 / 2^65."""
    keys = event_hashes ^ ((user_hashes << np.uint64(23)) | (user_hashes >> np.uint64(41)))
    keys[keys == 0] = 1
    return keys


@njit(cache=True, nogil=True)
def _insert(slots: Keys, keys: Keys, rows: Panes, new: Mask) -> int:
    mask, added = np.uint64(len(slots) - 1), 0
    for row in rows:
        key = keys[row]
        at = (key * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20)) & mask
        while slots[at] != 0 and slots[at] != key:
            at = (at + np.uint64(1)) & mask
        if slots[at] == 0:
            slots[at] = key
            new[row] = True
            added += 1
    return added


class SeenEvents:
    """The keys of events by pane."""

    def __init__(self) -> None:
        self._slots: dict[int, Keys] = {}
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    @property
    def nbytes(self) -> int:
        """Memory of the tables."""
        return sum(slots.nbytes for slots in self._slots.values())

    def add(self, keys: Keys, panes: Panes) -> Mask:
        """(n,) whether each event is seen for the first time (of copies within the batch, the first row)."""
        new = np.zeros(len(keys), bool)
        if len(panes) and panes[0] == panes[-1] and (panes == panes[0]).all():
            groups = [(int(panes[0]), np.arange(len(panes)))]
        else:
            order = np.argsort(panes, kind="stable")
            cuts = np.flatnonzero(np.diff(panes[order])) + 1
            groups = [(int(panes[rows[0]]), rows) for rows in np.split(order, cuts) if len(rows)]
        for pane, rows in groups:
            slots = self._room(pane, len(rows))
            self._counts[pane] += _insert(slots, keys, rows, new)
        return new

    def _room(self, pane: int, more: int) -> Keys:
        count = self._counts.setdefault(pane, 0)
        slots = self._slots.get(pane)
        if slots is None or 2 * (count + more) > len(slots):
            grown = np.zeros(1 << max(6, (3 * (count + more) - 1).bit_length()), np.uint64)
            if slots is not None:
                keys = slots[slots != 0]
                _insert(grown, keys, np.arange(len(keys)), np.empty(len(keys), bool))
            slots = self._slots[pane] = grown
        return slots

    def expire(self, pane: int) -> None:
        """Forgets every pane before ``pane``."""
        for old in [p for p in self._slots if p < pane]:
            del self._slots[old], self._counts[old]

    def to_columns(self) -> tuple[list[int], list[int], Keys]:
        """(panes, how many keys of each, all keys in ascending order within their pane)."""
        panes = sorted(self._slots)
        parts = [np.sort(slots[slots != 0]) for slots in (self._slots[p] for p in panes)]
        return panes, [len(part) for part in parts], np.concatenate(parts) if parts else np.empty(0, np.uint64)

    @classmethod
    def from_columns(cls, panes: list[int], counts: list[int], keys: Keys) -> SeenEvents:
        """What ``to_columns`` gave."""
        seen, at = cls(), 0
        for pane, count in zip(panes, counts, strict=True):
            seen.add(keys[at : at + count], np.full(count, pane))
            at += count
        return seen
