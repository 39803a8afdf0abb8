"""The lake writer: events in any order become clean, de-duplicated day partitions, once, whatever is killed or repeated.

Events are gathered by day within a memory budget (what exceeds it is spilled), validated, de-duplicated within their day
and then, by 8-byte hashes, against every other day. All of ``events`` changes in one snapshot at the very end; raw events
and dead letters are known by their source position. So a writer that was killed is simply run again.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.io import compact
from beam_pipelines.io.daybuffer import DayBuffer
from beam_pipelines.io.eventfiles import EventFiles
from beam_pipelines.io.lake import Lake, conform
from schemas.tables import DEAD_LETTERS, EVENTS, POSITION, TABLES
from schemas.xxh3 import hash64_strings
from transforms.ingest import REASONS, differ, micros, validate, whole

BUDGET_BYTES = 512 << 20
"""Buffered events before a flush; twice this may be in memory while one flush runs."""
_DEAD_ROWS = 100_000


@dataclass(frozen=True)
class Captured:
    """What one read of a source gave.

    Attributes:
      events: parsed events, columns of ``schemas.tables.EVENTS`` without event_hash.
      payloads: the bytes each event was parsed from; None where there are none (the dead letter holds JSON then).
      raw: rows of ``raw_events``, of every record read.
      dead: rows of ``dead_letters``: records that did not parse.
    """

    events: pa.Table
    payloads: pa.Array | None = None
    raw: pa.Table | None = None
    dead: pa.Table | None = None


@dataclass
class IngestCounts:
    """What an ingest did: read = stored + duplicates + rejected. ``last_event``: newest valid occurred_at, microseconds."""

    read: int = 0
    stored: int = 0
    rejected: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    last_event: int | None = None
    seconds: float = 0.0


def ingest(lake: Lake, batches: Iterable[pa.Table | Captured], *, sources: Sequence[str] = (), since: int = 0,
           across_days: bool = True, summary: Mapping[str, str] | None = None, budget_bytes: int = BUDGET_BYTES,
           progress: Callable[[int], None] | None = None) -> IngestCounts:
    """Writes events (and raw events and dead letters, where given) into the lake; run twice it changes nothing.

    Args:
      lake: where to; one writer at a time, a second one waits.
      batches: tables with the columns of EVENTS without event_hash, or Captured. Dictionary-encoded strings are welcome
        and faster. Rows of a day may come in any batch.
      sources: sources of the raw events in ``batches``: those captured before are not captured again.
      since: the lowest offset in ``batches``: positions before it are not looked up.
      across_days: look for copies with another day too, which reads 8 bytes of every event of the table; a source whose
        copies share occurred_at needs none of it.
      summary: properties of the snapshot of ``events``, the last one of an ingest.
      budget_bytes: see BUDGET_BYTES.
      progress: called with the number of records after each batch.

    Raises:
      KeyError: a batch lacks a column that may not be null.
      pa.ArrowInvalid: a batch has a column of another type.
    """
    started = time.monotonic()
    counts, reasons = IngestCounts(), Counter[str]()
    with lake.writer():
        events = EventFiles(lake, budget_bytes, across_days)
        raw = DayBuffer(lake, "raw_events", "captured_at", budget_bytes // 2)
        captured, buried = _Seen(lake, "raw_events", sources, since), _Seen(lake, "dead_letters", None, since)
        letters = _Letters(lake)
        try:
            for batch in batches:
                part = batch if isinstance(batch, Captured) else Captured(batch)
                good, dead = _sort_out(part)
                for table in dead:
                    reasons.update(_tally(table["reason"]))
                    letters.add(buried.unseen(table))
                if part.raw is not None:
                    raw.add(captured.unseen(part.raw))
                if len(good):
                    newest = int(micros(whole(good["occurred_at"])).max())
                    counts.last_event = max(newest, counts.last_event or 0)
                    events.add(good)
                read = len(part.events) + (len(part.dead) if part.dead is not None else 0)
                counts.read += read
                if progress is not None:
                    progress(read)
            raw_paths = raw.close()
            written = events.close()
        finally:
            raw.discard()
            events.discard()
        compact.append(lake, "raw_events", raw_paths)
        compact.append(lake, "dead_letters", letters.close())
        lake.commit("events", written.add, written.drop, summary)
    counts.rejected_by_reason = dict(sorted(reasons.items()))
    counts.rejected = sum(reasons.values())
    counts.duplicates, counts.conflicts = written.duplicates, written.conflicts
    counts.stored = counts.read - counts.rejected - counts.duplicates
    counts.seconds = time.monotonic() - started
    return counts


def _sort_out(part: Captured) -> tuple[pa.Table, list[pa.Table]]:
    """The events that may be stored, with event_hash, and tables of dead letters."""
    dead = [part.dead] if part.dead is not None and len(part.dead) else []
    if not len(part.events):
        return part.events, dead
    nullable = pa.schema([f.with_nullable(True) for f in EVENTS.schema if f.name != "event_hash"])
    events = conform(part.events, nullable)
    code = validate(events)
    bad = np.flatnonzero(code)
    if len(bad):
        payloads = part.payloads.take(pa.array(bad)) if part.payloads is not None else None
        dead.append(_refused(events.take(bad), code[bad], payloads))
        events = events.take(np.flatnonzero(code == 0))
    hashes = pa.array(hash64_strings(whole(events["event_id"]).cast(pa.string())).view(np.int64))
    return events.append_column("event_hash", hashes), dead


def _refused(events: pa.Table, code: np.ndarray, payloads: pa.Array | None) -> pa.Table:
    if payloads is None:
        payloads = pa.array([json.dumps(row, default=str).encode() for row in events.to_pylist()], pa.binary())
    reasons = [REASONS[c] for c in code.tolist()]
    details = pa.array([f"the event is refused: {reason.replace('_', ' ')}" for reason in reasons], pa.string())
    return conform(pa.table({**{f.name: events[f.name] for f in POSITION}, "reason": pa.array(reasons, pa.string()),
                             "detail": details, "payload": payloads}), DEAD_LETTERS.schema)


def _tally(column: pa.ChunkedArray) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}


class _Letters:
    """Dead letters on their way to files of a bounded size."""

    def __init__(self, lake: Lake) -> None:
        self._lake, self._tables, self._rows = lake, list[pa.Table](), 0
        self._paths: list[str] = []

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._rows += len(table)
        if self._rows >= _DEAD_ROWS:
            self._write()

    def _write(self) -> None:
        if self._rows:
            self._paths.append(self._lake.write_file("dead_letters", pa.concat_tables(self._tables)))
        self._tables, self._rows = [], 0

    def close(self) -> list[str]:
        self._write()
        return self._paths


class _Seen:
    """Which positions a table holds already, for some sources (None: all) from an offset on; read when first asked."""

    def __init__(self, lake: Lake, name: str, sources: Sequence[str] | None, since: int) -> None:
        self._lake, self._name, self._sources, self._since = lake, name, sources, since
        self._by_source: dict[str, Any] | None = None

    def unseen(self, table: pa.Table) -> pa.Table:
        """The rows at positions that the table does not hold."""
        table = conform(table, TABLES[self._name].schema)
        if self._by_source is None:
            self._by_source = self._read()
        if not self._by_source or not len(table):
            return table
        import polars as pl

        names = [f.name for f in POSITION]
        plain = table.select(names).set_column(0, "source", table["source"].cast(pa.string()))
        held = [self._by_source[s] for s in plain["source"].unique().to_pylist() if s in self._by_source]
        if not held:
            return table
        frame = pl.DataFrame(pl.from_arrow(plain)).with_row_index("row")
        rows = frame.join(pl.concat(held), on=names, how="anti")["row"].sort().to_numpy()
        return table if len(rows) == len(table) else table.take(rows)

    def _read(self) -> dict[str, Any]:
        parts = self._lake.read_positions(self._name, self._sources, self._since)
        if not len(parts):
            return {}
        import polars as pl

        frames = pl.DataFrame(pl.from_arrow(parts)).partition_by("source", as_dict=True)
        return {str(key[0]): frame for key, frame in frames.items()}


def upsert_items(lake: Lake, items: pa.Table, summary: Mapping[str, str] | None = None) -> int:
    """Upserts catalogue rows (columns of ``schemas.tables.ITEMS``); returns how many items changed.

    One row is kept per item_id: the newest updated_at, of equal ones the row given last. ``summary``: properties of the
    snapshot, which there is only when something changed.
    """
    return _upsert(lake, "items", "item_id", items, summary)


def upsert_users(lake: Lake, users: pa.Table, summary: Mapping[str, str] | None = None) -> int:
    """Upserts user profiles (columns of ``schemas.tables.USERS``), as upsert_items does; returns how many changed."""
    return _upsert(lake, "users", "user_id", users, summary)


def _upsert(lake: Lake, name: str, key: str, rows: pa.Table, summary: Mapping[str, str] | None) -> int:
    schema = TABLES[name].schema
    with lake.writer():
        held = lake.read(name).select(schema.names).cast(schema).combine_chunks()
        new = conform(rows, schema).cast(schema)
        both = pa.concat_tables([held, new]).combine_chunks()
        # Newest of each id last; the sort is stable, so of equal times the row given last.
        order = both.append_column("row", pa.array(np.arange(len(both)))).sort_by(
            [(key, "ascending"), ("updated_at", "ascending"), ("row", "ascending")])["row"].to_numpy()
        ids = whole(both[key].take(order))
        last = np.append(pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False), True)[: len(ids)].astype(bool)
        kept = order[last]
        merged = both.take(kept)
        from_new = merged.take(np.flatnonzero(kept >= len(held)))
        if merged.equals(held):
            return 0
        place = pc.index_in(whole(from_new[key]), whole(held[key]))
        known = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
        same = ~differ(from_new.take(known), held.take(place.drop_null()))
        changed = len(from_new) - int(same.sum())
        lake.replace_all(name, merged, summary)
    return changed
