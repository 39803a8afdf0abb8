"""The files of the ``events`` table during one ingest: each event id ends up in exactly one row of the whole table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.io.compact import to_merge
from beam_pipelines.io.daybuffer import DayBuffer
from beam_pipelines.io.lake import Lake, conform
from schemas.tables import EVENTS
from transforms.ingest import Mask, Rows, dedupe, whole

_MERGE_ROWS = 4_000_000
"""The smaller files of a day that has many are merged, into files of at most so many rows."""

_SORT_AT_ONCE = 8_000_000
_MAX_RUNS = 64

Hashes = npt.NDArray[np.int64]


@dataclass
class Written:
    """What to commit: files to add and to drop, and how many copies lost."""

    add: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    duplicates: int = 0
    conflicts: int = 0


@dataclass(frozen=True)
class _File:
    path: str
    day: int
    hashes: Hashes | None  # of a file written now; a stored file's are read when needed


class EventFiles:
    """Takes events by ``add``; ``close`` says which files make the table right."""

    def __init__(self, lake: Lake, budget_bytes: int, across_days: bool = True) -> None:
        self._lake, self._across_days = lake, across_days
        self._stored: dict[int, list[_File]] = defaultdict(list)
        for f in lake.files("events"):
            self._stored[f.day or 0].append(_File(f.path, f.day or 0, None))
        self._new: dict[int, list[_File]] = defaultdict(list)
        self._lost: dict[str, list[Rows]] = defaultdict(list)  # rows of a file, stored or new, that lost to another copy
        self._written = Written()
        self._lock = Lock()
        self._days = _EventDays(lake, budget_bytes, self)

    def add(self, events: pa.Table) -> None:
        """Takes events of any days, with event_hash."""
        self._days.add(events)

    def close(self) -> Written:
        """Writes everything and settles copies across days; the files are not yet part of the table."""
        self._days.close()
        if self._across_days:
            self._settle_across_days()
        for day in sorted({*self._new, *(f.day for fs in self._stored.values() for f in fs if f.path in self._lost)}):
            self._settle_files(day)
        return self._written

    def discard(self) -> None:
        """Frees threads and spilled rows."""
        self._days.discard()

    def write_day(self, day: int, events: pa.Table) -> None:
        """Writes the events of one day that no earlier copy of that day beats."""
        keep = np.ones(len(events), bool)
        within = dedupe(events)
        keep[within.lost] = False
        self._count(within.lost, within.conflicts)
        hashes = whole(events["event_hash"]).to_numpy()
        earlier = [*self._stored[day], *self._new[day]]
        if earlier:
            parts = self._holding(earlier, HashSet(hashes[keep]))
            if parts:
                held = [_read(path, rows) for path, rows in parts]
                known = HashSet(np.concatenate([whole(t["event_hash"]).to_numpy() for t in held]))
                again = np.flatnonzero(keep & known.contains(hashes))
                beaten = self._settle(parts, held, _as_stored(events.take(again)))
                keep[again[beaten]] = False
        if not keep.all():
            events = _only(events, keep)
        if len(events):
            path = self._lake.write_file("events", events, day)
            self._new[day].append(_File(path, day, whole(events["event_hash"]).to_numpy()))

    def _settle(self, parts: Sequence[tuple[str, Rows]], held: Sequence[pa.Table], new: pa.Table | None = None) -> Rows:
        """Lets the lowest position win among rows of files and new rows; returns which of the new rows lost."""
        tables = [*held, *([new] if new is not None else [])]
        before = np.array([path in self._paths_stored for path, _ in parts] + [False] * (new is not None))
        stored = np.repeat(before, [len(t) for t in tables])
        result = dedupe(pa.concat_tables(tables).combine_chunks(), stored)
        self._count(result.lost, result.conflicts)
        start = 0
        for (path, rows), table in zip(parts, held, strict=True):
            mine = result.lost[(result.lost >= start) & (result.lost < start + len(table))] - start
            if len(mine):
                with self._lock:
                    self._lost[path].append(rows[mine])
            start += len(table)
        return result.lost[result.lost >= start] - start

    @property
    def _paths_stored(self) -> set[str]:
        return {f.path for files in self._stored.values() for f in files}

    def _settle_across_days(self) -> None:
        """An event id that occurs in two days (a copy with another time) keeps its lowest position."""
        new = [f for files in self._new.values() for f in files]
        stored = [f for files in self._stored.values() for f in files]
        if not new:
            return
        alive = [f.hashes[self._alive(f)] if f.path in self._lost else f.hashes for f in new if f.hashes is not None]
        with ThreadPoolExecutor(2) as pool:
            shared = _repeated(alive, pool)
            if stored:  # the only read that grows with the table: 8 bytes an event
                wanted = HashSet(np.concatenate(alive))
                shared += pool.map(lambda f: (h := self._hashes(f))[wanted.contains(h) & self._alive(f)], stored)
        suspects = HashSet(np.concatenate(shared))
        if not suspects.size:
            return
        parts = self._holding([*stored, *new], suspects)
        self._settle(parts, [_read(path, rows) for path, rows in parts])

    def _settle_files(self, day: int) -> None:
        """Rewrites files with lost rows, and merges the smaller files of a day that has too many."""
        out, stored, new = self._written, self._stored[day], self._new[day]
        files = [*stored, *new]
        small = to_merge({f.path: pq.read_metadata(f.path).num_rows for f in files}, _MERGE_ROWS)
        merged = [f for f in files if f.path in small]
        stale = [f for f in files if f.path in self._lost and f not in merged]
        out.add += [self._lake.write_file("events", t, day) for f in stale if len(t := self._living(f))]
        if merged:
            left = [t for f in merged if len(t := self._living(f))]
            out.add += [self._lake.write_file("events", pa.concat_tables(left), day)] if left else []
        gone = {f.path for f in (*stale, *merged)}
        out.drop += [f.path for f in stored if f.path in gone]
        out.add += [f.path for f in new if f.path not in gone]
        for f in new:
            if f.path in gone:
                Path(f.path).unlink()

    def _living(self, file: _File) -> pa.Table:
        return _read(file.path, np.flatnonzero(self._alive(file)))

    def _holding(self, files: Sequence[_File], wanted: HashSet) -> list[tuple[str, Rows]]:
        """The files with a living row of a wanted hash, and those rows."""
        found = [(f.path, np.flatnonzero(wanted.contains(self._hashes(f)) & self._alive(f))) for f in files]
        return [(path, rows) for path, rows in found if len(rows)]

    def _alive(self, file: _File) -> Mask:
        alive = np.ones(pq.read_metadata(file.path).num_rows if file.hashes is None else len(file.hashes), bool)
        for rows in self._lost.get(file.path, []):
            alive[rows] = False
        return alive

    @staticmethod
    def _hashes(file: _File) -> Hashes:
        if file.hashes is not None:
            return file.hashes
        return whole(pq.read_table(file.path, columns=["event_hash"], partitioning=None)["event_hash"]).to_numpy()

    def _count(self, lost: Rows, conflicts: Mask) -> None:
        with self._lock:
            self._written.duplicates += len(lost)
            self._written.conflicts += int(conflicts.sum())


class _EventDays(DayBuffer):
    def __init__(self, lake: Lake, budget_bytes: int, files: EventFiles) -> None:
        super().__init__(lake, "events", "occurred_at", budget_bytes)
        self._files = files

    def write_day(self, day: int, rows: pa.Table) -> None:
        self._files.write_day(day, rows)


def _repeated(parts: list[Hashes], pool: ThreadPoolExecutor) -> list[Hashes]:
    """The hashes that occur more than once among all parts; a range of hashes at a time, so that memory stays bounded."""
    bits = max(1, (sum(map(len, parts)) // _SORT_AT_ONCE).bit_length())
    shift = np.uint64(64 - bits)

    def within(index: int) -> Hashes:
        mine = [p[p.view(np.uint64) >> shift == index] for p in parts]
        ordered = np.sort(np.concatenate(mine))
        return ordered[1:][ordered[1:] == ordered[:-1]]

    return list(pool.map(within, range(1 << bits)))


class HashSet:
    """A set of 64-bit hashes: a bit table of their high bits answers most of ``contains``, a binary search the rest."""

    def __init__(self, hashes: Hashes) -> None:
        self._sorted = np.sort(hashes)
        self.size = len(hashes)
        self._shift = np.uint64(64 - min(max(self.size.bit_length() + 3, 10), 28))
        self._marked = np.zeros(1 << (64 - int(self._shift)), bool)
        self._marked[hashes.view(np.uint64) >> self._shift] = True

    def contains(self, hashes: Hashes) -> Mask:
        """Which of n hashes are in the set; shape (n,)."""
        found = self._marked[hashes.view(np.uint64) >> self._shift]
        maybe = np.flatnonzero(found)
        if len(maybe):
            at = np.minimum(np.searchsorted(self._sorted, hashes[maybe]), self.size - 1)
            found[maybe] = self._sorted[at] == hashes[maybe]
        return found


def _only(events: pa.Table, keep: Mask) -> pa.Table:
    """The rows where ``keep`` (n,) is true; in few long runs, as copies sent again often leave them, nothing is copied."""
    edges = np.flatnonzero(np.diff(keep, prepend=False, append=False))
    if len(edges) > 2 * _MAX_RUNS:
        return events.take(np.flatnonzero(keep))
    runs = [events.slice(start, end - start) for start, end in edges.reshape(-1, 2).tolist()]
    return pa.concat_tables(runs) if runs else events.slice(0, 0)


def _read(path: str, rows: Rows) -> pa.Table:
    """Rows of a file in the table's newest columns."""
    return _as_stored(pq.read_table(path, partitioning=None).take(rows))


def _as_stored(events: pa.Table) -> pa.Table:
    return conform(events, EVENTS.schema).cast(EVENTS.schema)
