"""The store protocol: features by entity, ranked lists by version, the active pointer, the catalogue.

Contract of every implementation (tests/serving/test_store_contract.py runs over all of them):
- Reads return results in the order asked, one per key, None for a miss; a key asked twice is answered twice.
- A write carries a cell timestamp (microseconds since 1970, multiples of 1000) that says what the value knows. The newest
  timestamp wins whatever the order of writes; the same write twice changes nothing; on equal timestamps the later write wins.
- A group asked as ``PREFIX*`` stands for every group whose name begins with PREFIX; of one row it answers with at most
  MAX_PREFIX_CELLS cells, the newest by timestamp. Prefixes and names may be asked together.
- Bulk writes are idempotent and chunked by the implementation; a failed chunk raises StoreError and may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa

Family = Literal["batch", "stream", "meta"]
"""Families of ``features``. ``meta`` holds the catalogue: one JSON cell per item, group "item", or user, group "user"."""

MAX_PREFIX_CELLS = 2_000
"""Cells that one ``PREFIX*`` of one row answers with: what a row holds must not decide how long a read takes."""
ANY = "*"
"""Ends a group name that stands for every group it is a prefix of."""


class StoreError(RuntimeError):
    """The store refused or could not finish a call; repeating the call is safe."""


class DeadlineError(StoreError):
    """A call took longer than it was given."""


@dataclass(slots=True, unsafe_hash=True)
class Cell:
    """A packed value (schemas.cells) and its timestamp in microseconds. Nobody changes one; ``frozen`` would double what it
    takes to make one, and a request reads a dozen."""

    value: bytes
    timestamp: int


@dataclass(frozen=True)
class Active:
    """What a surface serves: users whose hash falls under ``percent`` (grain 0.01) read the challenger, the rest the
    champion."""

    champion: str
    challenger: str | None = None
    percent: float = 0
    previous: str | None = None  # what rollback returns to

    def __post_init__(self) -> None:
        if isinstance(self.percent, float) and self.percent.is_integer():  # 1.0 and 1 are stored, and compared, as one
            object.__setattr__(self, "percent", int(self.percent))


@dataclass(frozen=True)
class FeatureWrite:
    """One cell of ``features``: row key of schemas.keys.row_key, family, feature group name."""

    row: str
    family: Family
    group: str
    cell: Cell


@dataclass(frozen=True)
class ListWrite:
    """One cell of ``recommendations``: row key of schemas.keys.list_key; the version is the qualifier."""

    row: str
    version: str
    cell: Cell


class Store(Protocol):
    """Features, lists, versions. Safe to use from several threads; several processes may share one store."""

    def read_features(self, rows: Sequence[str], family: Family, groups: Sequence[str]) -> list[dict[str, Cell]]:
        """Per row, the cells present among the groups asked ({} for a row that is not there); ``PREFIX*`` as above."""
        ...

    def write_features(self, writes: Iterable[FeatureWrite]) -> int:
        """Writes cells, newest timestamp wins; returns how many were offered."""
        ...

    def write_cells(self, family: Family, cells: pa.RecordBatch) -> int:
        """``write_features`` in columns (schemas.cells.CELLS), of one family: for jobs that write hundreds of thousands."""
        ...

    def read_lists(self, rows: Sequence[str], version: str) -> list[Cell | None]:
        """The ranked-list cell of each row at a version."""
        ...

    def write_lists(self, writes: Iterable[ListWrite]) -> int:
        """Writes ranked lists; returns how many were offered."""
        ...

    def active(self, surface: str) -> Active | None:
        """The active pointer of a surface, None before the first flip."""
        ...

    def flip(self, surface: str, expected: Active | None, new: Active) -> bool:
        """Sets the pointer if it still is ``expected``; False (and no change) when it is not."""
        ...

    def versions(self) -> list[str]:
        """Versions that hold lists, ascending. For jobs."""
        ...

    def drop_version(self, version: str) -> int:
        """Deletes the lists of a version that is not active anywhere; returns how many. For jobs."""
        ...

    def scan_lists(self, version: str) -> Iterator[tuple[str, Cell]]:
        """Every (row, cell) of a version in row order. For jobs only, never on a read path."""
        ...

    def scan_features(self, family: Family, group: str) -> Iterator[tuple[str, Cell]]:
        """Every (row, cell) of a group in row order. For jobs only, never on a read path."""
        ...

    def close(self) -> None:
        """Releases connections."""
        ...
