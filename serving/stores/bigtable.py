"""The store on Bigtable: tables ``features``, ``recommendations`` and ``active``, laid out as docs/store.md says.

Cells of one column are kept by their timestamps, so the newest wins by itself; a read takes the newest of each column.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import pyarrow as pa
from google.cloud.bigtable_v2.types import data as data_types

from serving.stores.base import Active, Cell, Family, FeatureWrite, ListWrite, StoreError
from serving.stores.bigtable_layout import (
    CHUNK_ROWS,
    KNOWN,
    LISTS,
    POINTER,
    SURFACE,
    TABLES,
    VERSIONS,
    Filter,
    Layout,
    RawCell,
    capped,
    cells_of,
    check_family,
    chunks,
    delete_column,
    in_family,
    key_parts,
    list_cell,
    mutations,
    named,
    pointer_of,
    registration,
    surface_row,
)
from serving.stores.bigtable_rpc import Backoff, CreateTableRequest, Pending, Row, Rpc
from serving.stores.columns import cell_columns
from serving.stores.dead import DeadRows, Refusals

IN_FLIGHT = 4
"""Requests of a bulk write that are under way at once: enough to keep a server busy, few enough that it can push back."""
SECONDS = {True: 60.0, False: 1.0}
"""How long a call is tried, by ``patient``: jobs wait for a server that comes back, an API rather answers from memory."""
_Ranges = type(data_types.RowRange.pb(data_types.RowRange()))


class BigtableStore:
    """Implements serving.stores.base.Store over ``bigtable://PROJECT/INSTANCE``.

    Args:
      uri: may end in ``?prefix=NAME_`` (before the tables' names), ``&app_profile=ID`` and ``&refused=FILE``: rows of bulk
        writes that Bigtable refuses for good go there (serving.stores.dead), the others are written; without it they raise.
      create: make the tables that are missing; False refuses an instance without them.
      patient: see SECONDS.

    Raises:
      StoreError: no such instance, no credentials, or no tables; and whatever Bigtable reports later.
    """

    def __init__(self, uri: str, create: bool = True, patient: bool = True) -> None:
        self._layout = Layout.of(uri)
        self._dead = DeadRows(self._layout.refused) if self._layout.refused is not None else None
        self._create, self._patient, self._closed = create, patient, False
        self._lock = threading.Lock()
        self._pid, self._opened = os.getpid(), Rpc(SECONDS[patient])
        self._registered: set[str] = set()
        for table, families in TABLES.items():
            self._ensure(table, families)

    def _ensure(self, table: str, families: Sequence[str]) -> None:
        layout = self._layout
        if self._rpc.has_table(layout.table(table)):
            return
        if not self._create:
            raise StoreError(f"no store at {layout.instance}: it has no table {layout.prefix}{table}")
        request = CreateTableRequest(parent=layout.instance, table_id=layout.prefix + table)
        for family in families:
            request.table.column_families[family].gc_rule.max_num_versions = 1
        self._rpc.create_table(request)

    @property
    def _rpc(self) -> Rpc:
        if self._closed:
            raise StoreError(f"the store at {self._layout.instance} is closed")
        if self._pid != os.getpid():  # a channel does not survive a fork
            with self._lock:
                if self._pid != os.getpid():
                    self._pid, self._opened = os.getpid(), Rpc(SECONDS[self._patient])
        return self._opened

    def _read(self, table: str, rows: Sequence[str] | None, *filters: Any, prefix: str = "") -> Iterator[Row]:
        """The newest cells that pass the filters, of some rows or, for None, of all that begin with ``prefix``."""
        if rows is None:
            request = self._layout.read(table, *filters)
            span = _Ranges(start_key_closed=prefix.encode())
            if prefix:
                span.end_key_open = prefix.encode()[:-1] + bytes([prefix.encode()[-1] + 1])
            request.rows.row_ranges.append(span)
            yield from self._rpc.read_rows(request)
            return
        for keys in key_parts(rows):
            request = self._layout.read(table, *filters)
            request.rows.row_keys.extend(keys)
            yield from self._rpc.read_rows(request)

    def read_features(self, rows: Sequence[str], family: Family, groups: Sequence[str]) -> list[dict[str, Cell]]:
        """See Store."""
        check_family(family)
        found: dict[str, dict[str, Cell]] = {}
        if rows and groups:
            for row in self._read("features", rows, in_family(family), named(groups)):
                found[row.key.decode()] = capped(cells_of(row), groups)
        return [found.get(row, {}) for row in rows]

    def write_features(self, writes: Iterable[FeatureWrite]) -> int:
        """See Store."""
        return self._write("features", ((w.row, w.family, w.group.encode(), w.cell.timestamp, w.cell.value) for w in writes))

    def write_cells(self, family: Family, cells: pa.RecordBatch) -> int:
        """See Store."""
        rows, groups, values, timestamps = cell_columns(cells)
        names = {group: group.encode() for group in set(groups)}
        return self._write("features", zip(rows, itertools.repeat(family), map(names.__getitem__, groups), timestamps, values))

    def read_lists(self, rows: Sequence[str], version: str) -> list[Cell | None]:
        """See Store."""
        found = {row.key.decode(): Cell(row.cells[0][3], row.cells[0][2])
                 for row in self._read("recommendations", rows, named([version]))} if rows else {}
        return [found.get(row) for row in rows]

    def write_lists(self, writes: Iterable[ListWrite]) -> int:
        """See Store; a version is known to ``versions`` before its first list is there."""
        return self._write("recommendations", self._lists(writes))

    def _lists(self, writes: Iterable[ListWrite]) -> Iterator[RawCell]:
        for write in writes:
            if write.version not in self._registered:
                self._write("active", [registration(write.version)])
                self._registered.add(write.version)
            yield list_cell(write)

    def _write(self, table: str, cells: Iterable[RawCell]) -> int:
        """Sends chunks, IN_FLIGHT at once; rows of one request may be applied in any order, so each row is in it once, and
        a row that is under way is waited for. Rows that are refused for good go to the file of such, else they raise once all
        others are written."""
        offered, flying, refused = 0, deque[tuple[set[str], list[RawCell], Pending]](), Refusals(table, self._dead)

        def land() -> None:
            _, chunk, pending = flying.popleft()
            refused.add(chunk, pending.finish())

        try:
            for chunk in chunks(cells):
                rows = mutations(table, chunk)
                while flying and (len(flying) >= IN_FLIGHT or any(not under.isdisjoint(rows) for under, _, _ in flying)):
                    land()
                flying.append((set(rows), chunk, self._send(table, rows)))
                offered += len(chunk)
        finally:
            while flying:  # also when the source of the writes fails: what was sent is not left in the air
                land()
        refused.settle(offered)
        return offered

    def _send(self, table: str, rows: dict[str, list[Any]]) -> Pending:
        return self._rpc.mutate_rows(self._layout.mutate(table, rows))

    def mutate(self, table: str, rows: dict[str, list[Any]]) -> None:
        """Applies mutations by row; raises StoreError when one is refused. For jobs."""
        if refused := self._send(table, rows).finish():
            raise StoreError(f"Bigtable did not take {len(refused)} of {len(rows)} rows: {next(iter(refused.values()))}")

    def active(self, surface: str) -> Active | None:
        """See Store."""
        for row in self._read("active", [surface_row(surface)], in_family(POINTER)):
            return pointer_of(row)
        return None

    def flip(self, surface: str, expected: Active | None, new: Active) -> bool:
        """See Store; one CheckAndMutate. Where its answer is lost, what stands there tells whether it was done."""
        request = self._layout.flip(surface, expected, new)
        backoff = Backoff(self._rpc.seconds)
        while True:
            try:
                return self._rpc.check_and_mutate(request) == bool(expected)
            except grpc.RpcError as error:
                if not backoff.wait():
                    raise StoreError(f"Bigtable could not flip {surface}: {error.code().name}") from error
                if self.active(surface) == new:
                    return True

    def versions(self) -> list[str]:
        """See Store."""
        for row in self._read("active", [VERSIONS], in_family(KNOWN)):
            return sorted(qualifier.decode() for _, qualifier, _, _ in row.cells)
        return []

    def drop_version(self, version: str) -> int:
        """See Store; raises StoreError when a surface serves the version or would return to it in a rollback."""
        for row in self._read("active", None, in_family(POINTER), prefix=SURFACE):
            pointer = pointer_of(row)
            if version in (pointer.champion, pointer.challenger, pointer.previous):
                raise StoreError(f"version {version} is in use on surface {row.key.decode().removeprefix(SURFACE)}")
        gone = delete_column(LISTS, version.encode())
        rows = self._read("recommendations", None, named([version]), Filter(strip_value_transformer=True))
        dropped = 0
        while part := [row.key.decode() for row in itertools.islice(rows, CHUNK_ROWS)]:
            self.mutate("recommendations", {row: [gone] for row in part})
            dropped += len(part)
        known = delete_column(KNOWN, version.encode())
        self.mutate("active", {VERSIONS: [known]})
        self._registered.discard(version)
        return dropped

    def scan_lists(self, version: str) -> Iterator[tuple[str, Cell]]:
        """See Store."""
        return _scanned(self._read("recommendations", None, named([version])))

    def scan_features(self, family: Family, group: str) -> Iterator[tuple[str, Cell]]:
        """See Store."""
        check_family(family)
        return _scanned(self._read("features", None, in_family(family), named([group])))

    @property
    def where(self) -> str:
        """The instance, and the prefix of the tables."""
        return f"{self._layout.instance} {self._layout.prefix}".strip()

    def tables(self) -> dict[str, dict[str, str]]:
        """Families of each table with their GC rules, as Bigtable has them."""
        return {table: self._rpc.families(self._layout.table(table)) for table in TABLES}

    def mend(self) -> list[str]:
        """Makes families and GC rules what they should be; what was changed."""
        changed = []
        for table, families in TABLES.items():
            there = self._rpc.families(self._layout.table(table))
            wrong = {family: family in there for family in families if there.get(family) != "maxversions() == 1"}
            if wrong:
                self._rpc.set_families(self._layout.table(table), wrong)
                changed += [f"{table}: {family}" for family in wrong]
        return changed

    def stamps(self, table: str, name: str, low: str, high: str) -> Iterator[tuple[str, str, int, int]]:
        """See SqliteStore.stamps; values are not sent but for their size, which is not known: 0."""
        wanted = in_family(name) if table == "features" else named([name])
        request = self._layout.read(table, wanted, Filter(strip_value_transformer=True))
        span = _Ranges(start_key_closed=low.encode())
        if high:
            span.end_key_open = high.encode()
        request.rows.row_ranges.append(span)
        for row in self._rpc.read_rows(request):
            for _, qualifier, stamp, _ in row.cells:
                yield row.key.decode(), qualifier.decode(), stamp, 0

    def forget_before(self, cells: Mapping[str, Mapping[str, int]]) -> None:
        """See SqliteStore.forget_before."""
        rows = list(cells.items())
        for start in range(0, len(rows), CHUNK_ROWS):
            self.mutate("features", {row: [delete_column("stream", group.encode(), before) for group, before in groups.items()]
                                     for row, groups in rows[start : start + CHUNK_ROWS]})

    def surfaces(self) -> dict[str, Active]:
        """See SqliteStore.surfaces."""
        return {row.key.decode().removeprefix(SURFACE): pointer_of(row)
                for row in self._read("active", None, in_family(POINTER), prefix=SURFACE)}

    def close(self) -> None:
        """See Store; calls that come later raise StoreError."""
        if self._pid == os.getpid() and not self._closed:
            self._closed = True
            self._opened.close()


def _scanned(rows: Iterable[Row]) -> Iterator[tuple[str, Cell]]:
    for row in rows:
        yield row.key.decode(), Cell(row.cells[0][3], row.cells[0][2])
