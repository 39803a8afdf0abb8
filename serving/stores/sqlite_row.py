"""A row of an embedded store as one round of reads finds it, of which cells are made when somebody wants them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.stores.base import ANY, Cell, Family
from serving.stores.sqlite_file import FAMILIES, STREAM
from serving.stores.streamed import unpacked


def table_of(family: str) -> str:
    """Name of the table of a family; raises ValueError for what is none."""
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; one of {', '.join(FAMILIES)}")
    return f"features_{family}"


@functools.lru_cache(maxsize=256)
def filter_of(groups: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names and prefixes among groups, each once."""
    return frozenset(g for g in groups if not g.endswith(ANY)), tuple(dict.fromkeys(g[:-1] for g in groups if g.endswith(ANY)))


@dataclass(frozen=True)
class Wanted:
    """Groups of a row, made ready for read_user.

    Attributes:
      families: asked for; filters: names and prefixes of each.
      sql: reads a row (?1) of them all but ``stream``, numbered as in ``families``; with_list: and a list of a version (?2,
        ?3), whose number is -1.
    """

    families: tuple[Family, ...]
    filters: tuple[tuple[frozenset[str], tuple[str, ...]], ...]
    sql: str
    with_list: str

    @classmethod
    def of(cls, wanted: Mapping[Family, Sequence[str]]) -> Wanted:
        """Of groups by family, as read_row takes them."""
        return _wanted(tuple((family, tuple(groups)) for family, groups in wanted.items()))


@functools.lru_cache(maxsize=64)
def _wanted(wanted: tuple[tuple[Family, tuple[str, ...]], ...]) -> Wanted:
    parts = [f'SELECT {number}, "group", value, timestamp FROM {table_of(family)} WHERE "row" = ?1'
             for number, (family, _) in enumerate(wanted) if family != STREAM]
    listed = "SELECT -1, '', value, timestamp FROM recommendations WHERE version = ?2 AND \"row\" = ?3"
    return Wanted(tuple(family for family, _ in wanted), tuple(filter_of(groups) for _, groups in wanted),
                  " UNION ALL ".join(parts), " UNION ALL ".join([listed, *parts]))


LISTED = (-1, "")
"""Where a list is in a RowRead."""
Held = tuple[int, str, bytes, int]
"""A cell: number of its family (Wanted), group, value, timestamp."""


@dataclass(slots=True)
class RowRead:
    """A row as it lies in the store, with a list.

    Attributes:
      held: by number of the family and group, but for family ``stream``, also of groups that were not asked for; a list is
        under LISTED.
      streamed: see StreamedCells.row; not only of groups that were asked for.
    """

    wanted: Wanted
    held: dict[tuple[int, str], Held]
    streamed: dict[bytes, bytes]

    @property
    def listed(self) -> Cell | None:
        """The list."""
        found = self.held.get(LISTED)
        return Cell(found[2], found[3]) if found is not None else None

    def cells(self) -> dict[Family, dict[str, Cell]]:
        """What was asked for, as read_row has it."""
        found: dict[Family, dict[str, Cell]] = {family: {} for family in self.wanted.families}
        for number, (family, cells) in enumerate(found.items()):
            names, prefixes = self.wanted.filters[number]
            if family == STREAM:
                there = ((part.decode(), unpacked(held)) for part, held in self.streamed.items())
            else:
                there = ((group, Cell(value, stamp)) for n, group, value, stamp in self.held.values() if n == number)
            cells.update((group, cell) for group, cell in there if group in names or group.startswith(prefixes))
        return found
