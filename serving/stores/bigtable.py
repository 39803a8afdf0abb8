"""The store on Bigtable: tables ``features``, ``recommendations`` and ``active``, laid out as docs/store.md says.

Cells of one column are kept by their timestamps, so the newest wins by itself; a read takes the newest of each column.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, get_args
from urllib.parse import parse_qsl

import grpc
from google.cloud.bigtable_v2.types import data as data_types

from serving.stores.base import ANY, MAX_PREFIX_CELLS, Active, Cell, Family, FeatureWrite, ListWrite, StoreError
from serving.stores.bigtable_rpc import (
    Backoff,
    CheckAndMutateRowRequest,
    CreateTableRequest,
    MutateRowsRequest,
    Pending,
    ReadRowsRequest,
    Row,
    Rpc,
)

FAMILIES: tuple[str, ...] = get_args(Family)
LISTS, POINTER, KNOWN = "lists", "pointer", "versions"
TABLES: dict[str, tuple[str, ...]] = {"features": FAMILIES, "recommendations": (LISTS,), "active": (POINTER, KNOWN)}
"""Tables and their families. In each the newest cell of a column counts; older ones are garbage."""

CHUNK_ROWS = 1_000
CHUNK_BYTES = 4 << 20
IN_FLIGHT = 4
"""Requests of a bulk write that are under way at once: enough to keep a server busy, few enough that it can push back."""
READ_KEYS = 1_000
SECONDS = {True: 60.0, False: 1.0}
"""How long a call is tried, by ``patient``: jobs wait for a server that comes back, an API rather answers from memory."""

_SURFACE = "surface#"
_VERSIONS = b"versions"
_COLUMN = b"active"
_Filter = type(data_types.RowFilter.pb(data_types.RowFilter()))
_Ranges = type(data_types.RowRange.pb(data_types.RowRange()))
_Mutation = type(data_types.Mutation.pb(data_types.Mutation()))
_Cells = list[tuple[str, str, bytes, int, bytes]]
"""(row, family, qualifier, timestamp, value) of each."""


class BigtableStore:
    """Implements serving.stores.base.Store over ``bigtable://PROJECT/INSTANCE``.

    Args:
      uri: may end in ``?prefix=NAME_`` (before the tables' names) and ``&app_profile=ID``.
      create: make the tables that are missing; False refuses an instance without them.
      patient: see SECONDS.

    Raises:
      StoreError: no such instance, no credentials, or no tables; and whatever Bigtable reports later.
    """

    def __init__(self, uri: str, create: bool = True, patient: bool = True) -> None:
        self._instance, options = parse_uri(uri)
        self._prefix, self._profile = options.get("prefix", ""), options.get("app_profile", "")
        self._create, self._patient, self._closed = create, patient, False
        self._lock = threading.Lock()
        self._pid, self._opened = os.getpid(), Rpc(SECONDS[patient])
        self._registered: set[str] = set()
        for table, families in TABLES.items():
            self._ensure(table, families)

    def _ensure(self, table: str, families: Sequence[str]) -> None:
        name = self._table(table)
        if self._rpc.has_table(name):
            return
        if not self._create:
            raise StoreError(f"no store at {self._instance}: it has no table {self._prefix}{table}")
        request = CreateTableRequest(parent=self._instance, table_id=self._prefix + table)
        for family in families:
            request.table.column_families[family].gc_rule.max_num_versions = 1
        self._rpc.create_table(request)

    @property
    def _rpc(self) -> Rpc:
        if self._closed:
            raise StoreError(f"the store at {self._instance} is closed")
        if self._pid != os.getpid():  # a channel does not survive a fork
            with self._lock:
                if self._pid != os.getpid():
                    self._pid, self._opened = os.getpid(), Rpc(SECONDS[self._patient])
        return self._opened

    def _table(self, name: str) -> str:
        return f"{self._instance}/tables/{self._prefix}{name}"

    def _read(self, table: str, rows: Sequence[str] | None, *filters: Any, prefix: str = "") -> Iterator[Row]:
        """The newest cells that pass the filters, of some rows or, for None, of all that begin with ``prefix``."""
        chain = _Filter(chain=_Filter.Chain(filters=[*filters, _Filter(cells_per_column_limit_filter=1)]))
        if rows is None:
            request = self._request(table, chain)
            span = _Ranges(start_key_closed=prefix.encode())
            if prefix:
                span.end_key_open = prefix.encode()[:-1] + bytes([prefix.encode()[-1] + 1])
            request.rows.row_ranges.append(span)
            yield from self._rpc.read_rows(request)
            return
        keys = sorted({row.encode() for row in rows})
        for start in range(0, len(keys), READ_KEYS):
            request = self._request(table, chain)
            request.rows.row_keys.extend(keys[start : start + READ_KEYS])
            yield from self._rpc.read_rows(request)

    def _request(self, table: str, chain: Any) -> Any:
        return ReadRowsRequest(table_name=self._table(table), app_profile_id=self._profile, filter=chain)

    def read_features(self, rows: Sequence[str], family: Family, groups: Sequence[str]) -> list[dict[str, Cell]]:
        """See Store."""
        _check_family(family)
        found: dict[str, dict[str, Cell]] = {}
        if rows and groups:
            prefixes = [g[:-1] for g in groups if g.endswith(ANY)]
            for row in self._read("features", rows, _family(family), _named(groups)):
                cells = {q.decode(): Cell(value, stamp) for _, q, stamp, value in row.cells}
                found[row.key.decode()] = _capped(cells, prefixes, set(groups)) if prefixes else cells
        return [found.get(row, {}) for row in rows]

    def write_features(self, writes: Iterable[FeatureWrite]) -> int:
        """See Store."""
        return self._write("features", ((w.row, w.family, w.group.encode(), w.cell.timestamp, w.cell.value) for w in writes))

    def write_cells(self, family: Family, rows: Sequence[str], groups: Sequence[str], values: Sequence[bytes],
                    timestamps: Sequence[int]) -> int:
        """See Store."""
        names = {group: group.encode() for group in set(groups)}
        return self._write("features", zip(rows, itertools.repeat(family), map(names.__getitem__, groups), timestamps, values))

    def read_lists(self, rows: Sequence[str], version: str) -> list[Cell | None]:
        """See Store."""
        found = {row.key.decode(): Cell(row.cells[0][3], row.cells[0][2])
                 for row in self._read("recommendations", rows, _named([version]))} if rows else {}
        return [found.get(row) for row in rows]

    def write_lists(self, writes: Iterable[ListWrite]) -> int:
        """See Store; a version is known to ``versions`` before its first list is there."""
        return self._write("recommendations", self._lists(writes))

    def _lists(self, writes: Iterable[ListWrite]) -> Iterator[tuple[str, str, bytes, int, bytes]]:
        for write in writes:
            if write.version not in self._registered:
                self._write("active", [(_VERSIONS.decode(), KNOWN, write.version.encode(), 0, b"")])
                self._registered.add(write.version)
            yield write.row, LISTS, write.version.encode(), write.cell.timestamp, write.cell.value

    def _write(self, table: str, cells: Iterable[tuple[str, str, bytes, int, bytes]]) -> int:
        """Sends chunks, IN_FLIGHT at once; rows of one request may be applied in any order, so each row is in it once, and
        a row that is under way is waited for."""
        offered, flying = 0, deque[tuple[set[str], Pending]]()
        try:
            for chunk in _chunks(cells):
                rows: dict[str, list[Any]] = {}
                for row, family, qualifier, timestamp, value in chunk:
                    _check_cell(table, family, timestamp)
                    rows.setdefault(row, []).append(_Mutation(set_cell=_Mutation.SetCell(
                        family_name=family, column_qualifier=qualifier, timestamp_micros=timestamp, value=value)))
                while flying and (len(flying) >= IN_FLIGHT or any(not under.isdisjoint(rows) for under, _ in flying)):
                    flying.popleft()[1].finish()
                flying.append((set(rows), self._send(table, rows)))
                offered += len(chunk)
        finally:
            while flying:  # also when the source of the writes fails: what was sent is not left in the air
                flying.popleft()[1].finish()
        return offered

    def _send(self, table: str, rows: dict[str, list[Any]]) -> Pending:
        request = MutateRowsRequest(table_name=self._table(table), app_profile_id=self._profile)
        for row, mutations in rows.items():
            request.entries.add(row_key=row.encode(), mutations=mutations)
        return self._rpc.mutate_rows(request)

    def active(self, surface: str) -> Active | None:
        """See Store."""
        for row in self._read("active", [_SURFACE + surface], _family(POINTER)):
            return _pointer(row)
        return None

    def flip(self, surface: str, expected: Active | None, new: Active) -> bool:
        """See Store; one CheckAndMutate. Where its answer is lost, what stands there tells whether it was done."""
        exactly = _Filter(value_range_filter=data_types.ValueRange.pb(data_types.ValueRange(
            start_value_closed=_bytes_of(expected), end_value_closed=_bytes_of(expected)))) if expected else None
        seen = [_family(POINTER), _named([_COLUMN.decode()]), _Filter(cells_per_column_limit_filter=1)]
        # The column is emptied too: a cell with an older timestamp than the one there would change nothing.
        write = [_Mutation(delete_from_column=_Mutation.DeleteFromColumn(family_name=POINTER, column_qualifier=_COLUMN)),
                 _Mutation(set_cell=_Mutation.SetCell(family_name=POINTER, column_qualifier=_COLUMN, timestamp_micros=0,
                                                      value=_bytes_of(new)))]
        request = CheckAndMutateRowRequest(
            table_name=self._table("active"), app_profile_id=self._profile, row_key=(_SURFACE + surface).encode(),
            predicate_filter=_Filter(chain=_Filter.Chain(filters=[*seen, *([exactly] if exactly else [])])),
            **{"true_mutations" if expected else "false_mutations": write})
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
        for row in self._read("active", [_VERSIONS.decode()], _family(KNOWN)):
            return sorted(qualifier.decode() for _, qualifier, _, _ in row.cells)
        return []

    def drop_version(self, version: str) -> int:
        """See Store; raises StoreError when a surface serves the version or would return to it in a rollback."""
        for row in self._read("active", None, _family(POINTER), prefix=_SURFACE):
            pointer = _pointer(row)
            if version in (pointer.champion, pointer.challenger, pointer.previous):
                raise StoreError(f"version {version} is in use on surface {row.key.decode().removeprefix(_SURFACE)}")
        gone = _Mutation(delete_from_column=_Mutation.DeleteFromColumn(family_name=LISTS, column_qualifier=version.encode()))
        rows = self._read("recommendations", None, _named([version]), _Filter(strip_value_transformer=True))
        dropped = 0
        while part := [row.key.decode() for row in itertools.islice(rows, CHUNK_ROWS)]:
            self._send("recommendations", {row: [gone] for row in part}).finish()
            dropped += len(part)
        known = _Mutation(delete_from_column=_Mutation.DeleteFromColumn(family_name=KNOWN, column_qualifier=version.encode()))
        self._send("active", {_VERSIONS.decode(): [known]}).finish()
        self._registered.discard(version)
        return dropped

    def scan_lists(self, version: str) -> Iterator[tuple[str, Cell]]:
        """See Store."""
        return _scanned(self._read("recommendations", None, _named([version])))

    def scan_features(self, family: Family, group: str) -> Iterator[tuple[str, Cell]]:
        """See Store."""
        _check_family(family)
        return _scanned(self._read("features", None, _family(family), _named([group])))

    def close(self) -> None:
        """See Store; calls that come later raise StoreError."""
        if self._pid == os.getpid() and not self._closed:
            self._closed = True
            self._opened.close()


def parse_uri(uri: str) -> tuple[str, dict[str, str]]:
    """(``projects/P/instances/I``, options) of ``bigtable://P/I?prefix=x_&app_profile=y``; raises StoreError."""
    place, _, query = uri.removeprefix("bigtable://").partition("?")
    project, _, instance = place.partition("/")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not uri.startswith("bigtable://") or not project or not instance or "/" in instance:
        raise StoreError(f"--store {uri!r} is not bigtable://PROJECT/INSTANCE")
    if unknown := set(options) - {"prefix", "app_profile"}:
        raise StoreError(f"--store {uri!r}: no option {', '.join(sorted(unknown))}; there are prefix and app_profile")
    return f"projects/{project}/instances/{instance}", options


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; one of {', '.join(FAMILIES)}")


def _check_cell(table: str, family: str, timestamp: int) -> None:
    if timestamp % 1000:
        raise StoreError("a timestamp is a multiple of 1000 microseconds")
    if table == "features":
        _check_family(family)


def _chunks(cells: Iterable[tuple[str, str, bytes, int, bytes]]) -> Iterator[_Cells]:
    part: _Cells = []
    size = 0
    for cell in cells:
        part.append(cell)
        size += len(cell[4]) + 100
        if len(part) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _family(name: str) -> Any:
    return _Filter(family_name_regex_filter=name)


def _named(groups: Iterable[str]) -> Any:
    """Columns of these names, or that begin with those that end in ANY."""
    patterns = [_escaped(g[:-1]) + b"\\C*" if g.endswith(ANY) else _escaped(g) for g in groups]
    return _Filter(column_qualifier_regex_filter=b"|".join(patterns))


def _escaped(name: str) -> bytes:
    """For RE2, byte by byte: a name is not UTF-8 to it."""
    return b"".join(bytes([b]) if chr(b).isalnum() and b < 128 else b"\\x%02x" % b for b in name.encode())


def _capped(cells: dict[str, Cell], prefixes: Sequence[str], named: set[str]) -> dict[str, Cell]:
    """The cells asked by name, and of each prefix the newest MAX_PREFIX_CELLS."""
    kept = {group: cell for group, cell in cells.items() if group in named}
    for prefix in prefixes:
        under = sorted((g for g in cells if g.startswith(prefix)), key=lambda g: (-cells[g].timestamp, g))
        kept.update((g, cells[g]) for g in under[:MAX_PREFIX_CELLS])
    return kept


def _scanned(rows: Iterable[Row]) -> Iterator[tuple[str, Cell]]:
    for row in rows:
        yield row.key.decode(), Cell(row.cells[0][3], row.cells[0][2])


def _bytes_of(pointer: Active) -> bytes:
    return json.dumps(asdict(pointer), sort_keys=True).encode()


def _pointer(row: Row) -> Active:
    return Active(**json.loads(row.cells[0][3]))
