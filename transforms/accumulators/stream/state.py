"""What user and item states share: named tables, merged, pruned, packed and read group by group."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa

from transforms.accumulators.base import Extract
from transforms.accumulators.frame import Ids, Ints
from transforms.accumulators.stream import codec
from transforms.accumulators.stream.base import FAR, Cells, Hashes, StreamAccumulator, clip
from transforms.accumulators.stream.names import Names
from transforms.accumulators.stream.table import Table

Kept = tuple[Ints, Ints]
"""Rows of a table that stay, in ascending order, and the pane that each has from now on."""
_SLACK = 4096


class TableState(StreamAccumulator):
    """A state made of tables.

    ``OPS``: table -> how its values merge. ``PARTS``: table -> names of its entities, and of its members (None: none).
    ``NEEDS``: feature group (or extra) -> the tables it is read from.
    """

    OPS: ClassVar[dict[str, tuple[int, ...]]]
    PARTS: ClassVar[dict[str, tuple[str, str | None]]]
    NEEDS: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, groups: Iterable[str] | None = None) -> None:
        super().__init__(groups)
        used = {table for group in (*self.groups, *self.extras) for table in self.NEEDS[group]}
        self.tables = {name: Table(ops) for name, ops in self.OPS.items() if name in used}
        self.parts = {name: self.PARTS[name] for name in self.tables}
        self.names = {role: Names() for part in self.PARTS.values() for role in part if role}
        self.horizon = -FAR
        self._marks = dict.fromkeys(self.tables, 0)  # rows of a table before its mark were seen by whoever set it
        self._limit = _SLACK

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    @property
    def nbytes(self) -> int:
        """See StreamAccumulator."""
        return sum(t.nbytes for t in self.tables.values()) + sum(n.nbytes for n in self.names.values())

    def _like(self) -> Self:
        other = type(self)((*self.groups, *self.extras))
        other.horizon = self.horizon
        return other

    def merge(self, *others: Self) -> Self:
        """See StreamAccumulator."""
        for other in others:
            for name, table in other.tables.items():
                self._take(name, other, np.arange(len(table)))
            self.horizon = max(self.horizon, other.horizon)
        return self

    def select(self, hashes: Hashes) -> Self:
        """See StreamAccumulator."""
        chosen = self._like()
        codes = self._codes(hashes)
        for name, table in self.tables.items():
            chosen._take(name, self, table.rows_of(codes)[1])
        return chosen

    def _take(self, name: str, other: Self, rows: Ints) -> None:
        """Merges rows of a table of another state into this one's."""
        source, (entity, member) = other.tables[name], self.parts[name]
        owners = self._adopt(entity, other, source.entity[rows].astype(np.int64))
        members = self._adopt(member, other, source.member[rows].astype(np.int64)) if member else np.zeros(len(rows), np.int64)
        self.tables[name].add(owners, source.pane[rows], members, source.values[rows])

    def _adopt(self, role: str, other: Self, codes: Ints) -> Ints:
        distinct, index = np.unique(codes, return_inverse=True)
        return self.names[role].adopt(other.names[role].ids(distinct))[index]

    def hashes_of(self, ids: pa.Array) -> Hashes:
        """(n,) hash64 of entities, which must be added then; each is computed once. No nulls."""
        names = self.names[self.ENTITY]
        codes = names.codes(ids)
        return names.hashes[codes]

    def entities(self) -> Ids:
        """See StreamAccumulator."""
        names = self.names[self.ENTITY]
        return names.ids(self._all())

    def _all(self) -> Ints:
        names = self.names[self.ENTITY]
        used = np.zeros(len(names), bool)
        for table in self.tables.values():
            used[table.entity] = True
        return names.by_hash(np.flatnonzero(used))

    def _codes(self, only: Hashes | None) -> Ints:
        if only is None:
            return self._all()
        found = self.names[self.ENTITY].find(only)
        return found[found >= 0]

    def cells(self, only: Hashes | None = None, groups: Collection[str] | None = None) -> list[Cells]:
        """See StreamAccumulator."""
        codes = self._codes(only)
        wanted = [group for group in self.groups if groups is None or group in groups]
        found = [self._cells(group, codes) for group in wanted] if len(codes) else []
        return [cells for cells in found if len(cells)]

    def extract(self, t: int) -> list[Extract]:
        """See StreamAccumulator."""
        codes = self._all()
        return [self._features(group, codes, t) for group in self.groups]

    def _cells(self, group: str, codes: Ints) -> Cells:
        raise NotImplementedError

    def _features(self, group: str, codes: Ints, t: int) -> Extract:
        raise NotImplementedError

    def _kept(self, horizon: int) -> dict[str, Kept]:
        """What of each table is still needed for extracts and cells at or after the horizon."""
        raise NotImplementedError

    def span(self, horizon: int, previous: int) -> tuple[int, int]:
        """Horizon and previous one, clipped."""
        return clip(horizon), clip(previous)

    @property
    def is_full(self) -> bool:
        """See StreamAccumulator: rows go once they are as many as those that stay."""
        return len(self) > self._limit

    def prune(self, horizon: int) -> None:
        """See StreamAccumulator."""
        self.horizon = max(self.horizon, clip(horizon))
        if self.is_full:
            self.compact()

    def compact(self) -> None:
        """Drops now what ``prune`` allowed to be dropped."""
        kept = self._kept(self.horizon) if self.horizon > -FAR else {}
        renamed = {role: np.zeros(len(names), bool) for role, names in self.names.items()}
        for name, table in self.tables.items():
            rows = kept[name][0] if kept else np.arange(len(table))
            for role, codes in zip(self.parts[name], (table.entity, table.member), strict=True):
                if role:
                    renamed[role][codes[rows]] = True
        codes_of = {}
        for role, used in renamed.items():
            old, self.names[role] = self.names[role], Names()
            codes_of[role] = np.full(len(old), -1, np.int64)
            codes_of[role][used] = self.names[role].adopt(old.ids(np.flatnonzero(used)))
        for name, table in self.tables.items():
            rows, pane = kept[name] if kept else (np.arange(len(table)), table.pane.copy())
            entity, member = self.parts[name]
            owners = codes_of[entity][table.entity[rows]]
            members = codes_of[member][table.member[rows]] if member else np.zeros(len(rows), np.int64)
            values, seen = table.values[rows], int(np.searchsorted(rows, self._marks[name]))
            table.clear(len(rows))
            table.add(owners[:seen], pane[:seen], members[:seen], values[:seen])
            self._marks[name] = len(table)
            table.add(owners[seen:], pane[seen:], members[seen:], values[seen:])
        self._limit = 2 * len(self) + _SLACK

    def to_bytes(self, ordered: bool = True) -> bytes:
        """See StreamAccumulator."""
        if ordered:
            self.compact()
        return codec.pack(self.LAYOUT, self.names, self.tables, self.parts, self.horizon, ordered)

    @classmethod
    def from_bytes(cls, data: bytes, groups: Iterable[str] | None = None) -> Self:
        """See StreamAccumulator."""
        state = cls(groups)
        state.horizon = codec.unpack(data, cls.LAYOUT, state.names, state.tables, state.parts)
        state._limit = 2 * len(state) + _SLACK
        state._marks = {name: len(table) for name, table in state.tables.items()}
        return state
