"""A table of integer rows under (entity, pane, member) keys that is updated in place: one probe a row, no sorting."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transforms.accumulators.frame import Ints
from transforms.accumulators.stream import kernels

NONE = np.int64(-(1 << 62))
"""Before every pane."""
ROW = np.dtype([("entity", np.int32), ("member", np.int32), ("pane", np.int64), ("following", np.int64)])
"""Key of a row and its entity's next row: side by side, for rows are reached in any order and each reach may miss a cache."""


class Table:
    """Rows whose entities and members are codes of ``Names``. ``ops``: how each of the k value columns is merged (kernels)."""

    def __init__(self, ops: tuple[int, ...]) -> None:
        self.ops = ops
        self._ops = np.array(ops, np.int64)
        self.clear(8)

    def clear(self, room: int) -> None:
        """Drops every row, and makes room for so many."""
        room = max(8, room)
        self.count = 0
        self._slots = np.full(1 << (2 * room - 1).bit_length(), -1, np.int32)
        self._head = np.full(8, -1, np.int32)
        self._rows = np.empty(room, ROW)
        self._values = np.empty((room, len(self.ops)), np.int64)

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        """Memory in use."""
        return sum(a.nbytes for a in (self._slots, self._head, self._rows, self._values))

    @property
    def rows(self) -> npt.NDArray[np.void]:
        """(n,) of ROW."""
        return self._rows[: self.count]

    @property
    def entity(self) -> npt.NDArray[np.int32]:
        """(n,) entity codes."""
        return self._rows["entity"][: self.count]

    @property
    def pane(self) -> Ints:
        """(n,) panes."""
        return self._rows["pane"][: self.count]

    @property
    def member(self) -> npt.NDArray[np.int32]:
        """(n,) member codes."""
        return self._rows["member"][: self.count]

    @property
    def values(self) -> Ints:
        """(n, k) values."""
        return self._values[: self.count]

    def add(self, entity: Ints, pane: Ints, member: Ints, values: Ints, hot: Ints | None = None) -> None:
        """Merges rows, in any order and with repeats.

        Args:
          values: (n, k); with ``hot`` the last j of them, (n, j).
          hot: (n,) which one of the first k - j values, all of them sums, is 1.
        """
        n = len(entity)
        if n == 0:
            return
        self._reserve(self.count + n, int(entity.max()) + 1)
        self.count = kernels.upsert(self._slots, self._head, self._rows, self._values, self.count, self._ops, entity, pane,
                                    member, values, entity if hot is None else hot)

    def _reserve(self, rows: int, entities: int) -> None:
        if entities > len(self._head):
            head = np.full(max(entities, 2 * len(self._head)), -1, np.int32)
            head[: len(self._head)] = self._head
            self._head = head
        if rows > len(self._rows):
            room = max(rows, 3 * len(self._rows) // 2)
            for name in ("_rows", "_values"):
                old = getattr(self, name)
                new = np.empty((room, *old.shape[1:]), old.dtype)
                new[: self.count] = old[: self.count]
                setattr(self, name, new)
        if 2 * rows > len(self._slots):
            self._slots = np.full(1 << (3 * rows - 1).bit_length(), -1, np.int32)
            kernels.reindex(self._slots, self._rows, self.count)

    def rows_of(self, entities: Ints, least: Ints | None = None) -> tuple[Ints, Ints]:
        """Rows of distinct entities from the pane ``least`` (n,) on: bounds (n + 1,), and rows by ascending pane."""
        if least is None:
            least = np.full(len(entities), NONE)
        return kernels.chained(self._head, self._rows, entities, least)
