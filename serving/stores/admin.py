"""Looking after a store: what is in it, and what nobody can read any more. For jobs and the command line, never a read path.

Rows of a large store are counted in a sample: ids are hashed, so that the first SAMPLED of 256 parts of the key range stand for
all of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.features import REGISTRY
from schemas.keys import STATUS, SUPPRESS_DAYS, SUPPRESSED
from schemas.workspace import DAY_MICROS
from serving.stores.base import Store
from serving.stores.sqlite import SqliteStore
from serving.stores.sqlite_file import FAMILIES

SAMPLED = 8
EXACT_BELOW = 20_000
"""A table with fewer cells, by the sample, is counted whole."""
STREAM_DAYS = 2
"""A stream cell whose newest event is older says nothing more: the longest window is the last 24 hours."""
_STREAMED = tuple(g.name for g in REGISTRY.groups if g.source == "stream")


@dataclass
class Held:
    """Cells of one feature group, or of one version of lists.

    Attributes:
      cells, bytes: of its values; estimates where ``sampled``.
      oldest, newest: timestamps, microseconds; of the sample.
      expired: of the cells, those that nobody can read any more.
    """

    cells: int = 0
    bytes: int = 0
    oldest: int = 0
    newest: int = 0
    expired: int = 0
    sampled: bool = False


@dataclass
class Contents:
    """What a store holds.

    Attributes:
      kind: sqlite or bigtable; where: its file or instance.
      tables: families of each and their GC rules, as the server has them; of SQLite its size.
      features: by family and group; ``s:*`` are the suppressions.
      lists: by version.
      active: the pointer of each surface.
    """

    kind: str
    where: str
    tables: dict[str, Any] = field(default_factory=dict)
    features: dict[str, dict[str, Held]] = field(default_factory=dict)
    lists: dict[str, Held] = field(default_factory=dict)
    active: dict[str, dict[str, Any]] = field(default_factory=dict)


def inspect(store: Store, now: int) -> Contents:
    """What a store holds at ``now`` (microseconds); raises StoreError."""
    if isinstance(store, SqliteStore):
        found = Contents("sqlite", str(store.path), _sqlite_files(store))
    else:
        found = Contents("bigtable", store.where, store.tables())  # type: ignore[attr-defined]
    for family in FAMILIES:
        found.features[family] = _counted(lambda parts, f=family: _feature_cells(store, f, parts), now, family)  # type: ignore[misc]
    for version in store.versions():
        held = _counted(lambda parts, v=version: _list_cells(store, v, parts), now, "")  # type: ignore[misc]
        found.lists[version] = held.get("", Held())
    found.active = {surface: asdict(active) for surface, active in store.surfaces().items()}  # type: ignore[attr-defined]
    return found


def cutoff(group: str, now: int) -> int:
    """Cells of family ``stream`` with a timestamp before this say nothing at ``now`` and later; 0 for those that stay."""
    if group.startswith(SUPPRESSED):
        return now - SUPPRESS_DAYS * DAY_MICROS
    return now - STREAM_DAYS * DAY_MICROS if group in _STREAMED else 0


def collect(store: Store, now: int, apply: bool, parts: Iterable[int] = range(256)) -> Counter[str]:
    """Counts the stream cells and suppressions that say nothing any more, and with ``apply`` deletes them; by group.

    ``parts``: of the 256 of the key range. A cell that is written meanwhile stays: a delete names the time before which.
    Raises StoreError.
    """
    gone: Counter[str] = Counter()
    for part in parts:
        expired: dict[str, list[str]] = {}
        for row, group, stamp, _ in _feature_cells(store, "stream", range(part, part + 1)):
            if group != STATUS and stamp < cutoff(group, now):
                expired.setdefault(row, []).append(group)
                gone["s:*" if group.startswith(SUPPRESSED) else group] += 1
        if expired and apply:
            before = {row: {g: cutoff(g, now) for g in groups} for row, groups in expired.items()}
            store.forget_before(before)  # type: ignore[attr-defined]
    return gone


Cells = Iterator[tuple[str, str, int, int]]
"""row, group, timestamp, bytes of the value."""


def _counted(cells: Any, now: int, family: str) -> dict[str, Held]:
    """Cells by group: of a sample, or of all where there are few."""
    found = _held(cells(range(SAMPLED)), now, family)
    if sum(held.cells for held in found.values()) * 256 // SAMPLED < EXACT_BELOW:
        return _held(cells(range(256)), now, family)
    for held in found.values():
        held.cells, held.bytes, held.expired = (n * 256 // SAMPLED for n in (held.cells, held.bytes, held.expired))
        held.sampled = True
    return found


def _held(cells: Cells, now: int, family: str) -> dict[str, Held]:
    found: dict[str, Held] = {}
    for _, group, stamp, size in cells:
        held = found.setdefault("s:*" if group.startswith(SUPPRESSED) else group, Held(oldest=stamp, newest=stamp))
        held.cells += 1
        held.bytes += size
        held.oldest, held.newest = min(held.oldest, stamp), max(held.newest, stamp)
        held.expired += family == "stream" and group != STATUS and stamp < cutoff(group, now)
    return dict(sorted(found.items()))


def _feature_cells(store: Store, family: str, parts: range) -> Cells:
    """The newest cells of a family in some of the 256 parts of the key range."""
    yield from store.stamps("features", family, *_bounds(parts))  # type: ignore[attr-defined]


def _list_cells(store: Store, version: str, parts: range) -> Cells:
    for row, _, stamp, size in store.stamps("recommendations", version, *_bounds(parts)):  # type: ignore[attr-defined]
        yield row, "", stamp, size


def _bounds(parts: range) -> tuple[str, str]:
    """The first key of the parts and the first behind them; the last part also has what begins with no hash."""
    low = f"{parts.start:02x}" if parts.start else ""
    return low, f"{parts.stop:02x}" if parts.stop < 256 else ""


def _sqlite_files(store: SqliteStore) -> dict[str, Any]:
    def size(suffix: str) -> int:
        try:
            return os.stat(f"{store.path}{suffix}").st_size
        except FileNotFoundError:
            return 0

    return {"file": {"bytes": size("")}, "write-ahead log": {"bytes": size("-wal")},
            "family stream": {"bytes": store.streamed_bytes()}}
