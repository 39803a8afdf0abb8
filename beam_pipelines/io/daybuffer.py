"""Rows in any order, gathered by day within a memory budget, then written as files of one day each."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from beam_pipelines.io.lake import Lake, conform
from schemas.tables import TABLES
from transforms.ingest import days_of, whole

_WORKERS = 2
_LARGE_ROWS = 65_536
"""A day with so many buffered rows becomes a file at once; smaller ones are spilled together and joined at the end."""


class DayBuffer:
    """Gathers rows by the day of a time column; ``close`` returns the files written (not yet part of the table).

    Under pressure large days are written at once and small ones are spilled to one Arrow file, a batch a day, so that a
    source that jumps through the years makes no thousands of tiny files. Writing runs in threads while rows come in.
    """

    def __init__(self, lake: Lake, name: str, time_column: str, budget_bytes: int) -> None:
        self.lake, self.name = lake, name
        self._schema = TABLES[name].schema
        self._time_column, self._budget = time_column, budget_bytes
        self._pending: dict[int, list[pa.Table]] = defaultdict(list)
        self._bytes = 0
        self._spills: list[tuple[Path, dict[int, list[int]]]] = []
        self._folder: Path | None = None
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix=name)
        self._writing: list[Future[None]] = []
        self._paths: list[str] = []

    def write_day(self, day: int, rows: pa.Table) -> None:
        """Writes one file of a day; called in a thread, never twice at a time for one day."""
        self._paths.append(self.lake.write_file(self.name, rows, day))

    def add(self, rows: pa.Table) -> None:
        """Takes rows of any days."""
        if not len(rows):
            return
        days = days_of(whole(rows[self._time_column]))
        self._bytes += rows.nbytes
        first = int(days[0])
        if (days == first).all():
            self._pending[first].append(rows)
        else:
            order = np.argsort(days, kind="stable")
            days, rows = days[order], rows.take(order)
            starts = np.flatnonzero(np.append(True, days[1:] != days[:-1]))
            for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(days)], strict=True):
                self._pending[int(days[start])].append(rows.slice(start, end - start))
        if self._bytes > self._budget:
            self._relieve()

    def close(self) -> list[str]:
        """Writes what is left; returns the paths of all files."""
        self._wait()
        for day in sorted({*self._pending, *(d for _, held in self._spills for d in held)}):
            self._writing.append(self._pool.submit(self._finish_day, day, self._pending.pop(day, [])))
        self._wait()
        return self._paths

    def discard(self) -> None:
        """Stops the threads and removes spilled rows; harmless after close and to repeat."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish_day(self, day: int, parts: list[pa.Table]) -> None:
        tables = [*self._spilled(day), *parts]
        if tables:
            self.write_day(day, _joined(tables, self._schema))

    def _wait(self) -> None:
        for future in self._writing:
            future.result()
        self._writing = []

    def _relieve(self) -> None:
        self._wait()  # at most one generation is being written while the next fills
        pending, self._pending, self._bytes = self._pending, defaultdict(list), 0
        small = {}
        for day, parts in sorted(pending.items()):
            if sum(map(len, parts)) >= _LARGE_ROWS:
                self._writing.append(self._pool.submit(self._write_parts, day, parts))
            else:
                small[day] = parts
        if small:
            self._spill(small)

    def _write_parts(self, day: int, parts: list[pa.Table]) -> None:
        self.write_day(day, _joined(parts, self._schema))

    def _spill(self, days: dict[int, list[pa.Table]]) -> None:
        if self._folder is None:
            self.lake.spill_root.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self.lake.spill_root))
        path = self._folder / f"{len(self._spills)}.arrow"
        held: dict[int, list[int]] = defaultdict(list)
        writer, count = None, 0
        with pa.OSFile(str(path), "wb") as sink:
            for day, parts in days.items():
                # One Arrow file holds one dictionary a column: spell the strings out.
                rows = _plain(_joined(parts, self._schema))
                if writer is None:
                    writer = pa.ipc.new_file(sink, rows.schema)
                for batch in rows.combine_chunks().to_batches():
                    writer.write_batch(batch)
                    held[day].append(count)
                    count += 1
            if writer is not None:
                writer.close()
        self._spills.append((path, dict(held)))

    def _spilled(self, day: int) -> Iterator[pa.Table]:
        for path, held in self._spills:
            if day in held:
                with pa.memory_map(str(path)) as source:
                    reader = pa.ipc.open_file(source)
                    yield pa.Table.from_batches([reader.get_batch(i) for i in held[day]])


def _plain(rows: pa.Table) -> pa.Table:
    return rows.cast(pa.schema([f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in rows.schema]))


def _joined(parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """One table of all parts, each column in the encoding that pays."""
    if any(not p.schema.equals(parts[0].schema) for p in parts):
        parts = [_plain(p) for p in parts]
    return conform(pa.concat_tables(parts), schema).combine_chunks()
