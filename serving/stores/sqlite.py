"""The embedded store: a SQLite file in WAL mode, read by any process while another writes; family ``stream`` lies beside it
(serving.stores.streamed)."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from serving.stores.base import MAX_PREFIX_CELLS, Active, Cell, Family, FeatureWrite, ListWrite, StoreError
from serving.stores.columns import cell_columns
from serving.stores.sqlite_file import FAMILIES, STREAM, SqliteFile
from serving.stores.sqlite_row import Held, RowRead, Wanted, filter_of, table_of

CHUNK_ROWS = 20_000
"""Rows per transaction: long enough to amortise the commit, short enough for other writers to get their turn."""
PAGE_ROWS = 2_000
READ_KEYS = 512
WHOLE_CELLS = 256
"""A row of fewer cells is read whole; of a longer one only what is wanted."""

# An older cell and an equal one change nothing; of two that differ at one timestamp the later write wins.
_NEWEST = """ DO UPDATE SET timestamp = excluded.timestamp, value = excluded.value
  WHERE excluded.timestamp > timestamp OR (excluded.timestamp = timestamp AND excluded.value <> value)"""
_PUT_LIST = f'INSERT INTO recommendations VALUES (?, ?, ?, ?) ON CONFLICT (version, "row"){_NEWEST}'
_AT_ONCE = (512, 64, 8, 1)
"""Cells a statement; few lengths, so that each is compiled once."""
_PUT_FEATURES = {(family, many): f'INSERT INTO features_{family} VALUES {", ".join(["(?, ?, ?, ?)"] * many)}'
                                 f' ON CONFLICT ("row", "group"){_NEWEST}' for family in FAMILIES for many in _AT_ONCE}


class SqliteStore(SqliteFile):
    """Implements serving.stores.base.Store on one file, and one of family ``stream`` beside it; see SqliteFile."""

    def read_features(self, rows: Sequence[str], family: Family, groups: Sequence[str]) -> list[dict[str, Cell]]:
        """See Store."""
        named, prefixes = filter_of(tuple(groups))
        if family == STREAM:
            distinct = list(dict.fromkeys(rows))
            until = self._connection().until[0]
            cells = dict(zip(distinct, self._streamed(seen=True).read(distinct, named, prefixes, until), strict=True))
            return [cells[row] for row in rows]
        table = table_of(family)
        found: dict[str, dict[str, Cell]] = {row: {} for row in rows}
        if named:
            where_group = f'"group" IN ({_marks(len(named))})'
            for keys in _padded(list(found)):
                sql = (f'SELECT "row", "group", value, timestamp FROM {table}'
                       f' WHERE "row" IN ({_marks(len(keys))}) AND {where_group}')
                for row, group, value, timestamp in self._read(sql, (*keys, *named)):
                    found[row][group] = Cell(value, timestamp)
        self._read_prefixes(found, table, prefixes)
        return [found[row] for row in rows]

    def read_row(self, row: str, wanted: Mapping[Family, Sequence[str]]) -> dict[Family, dict[str, Cell]]:
        """Cells of one row in several families, as read_features has them."""
        whole = self.read_user(row, Wanted.of(wanted))
        if whole is not None:
            return whole.cells()
        found: dict[Family, dict[str, Cell]] = {}
        for family, groups in wanted.items():
            if family == STREAM:
                found[family] = self.read_features([row], family, groups)[0]
                continue
            sql, names, prefixes = _row_statement(family, tuple(groups))
            keys = [row, *names]
            for prefix in prefixes:
                keys += row, prefix, prefix + _LAST
            found[family] = {group: Cell(value, timestamp) for group, value, timestamp in self._read(sql, keys)}
        return found

    def read_user(self, row: str, wanted: Wanted, list_row: str = "", version: str = "", now: float = math.inf,
                  until: float | None = None) -> RowRead | None:
        """All that a row has, and a list of a version: one seek a family, in one statement but for family ``stream``. None for
        a row of WHOLE_CELLS or more. ``now``: see SEEN_S; ``until``: see ``limit``."""
        connection, sql = self._connection(now), wanted.with_list if version else wanted.sql
        held: dict[tuple[int, str], Held] = {}
        if until is not None:
            connection.until[0] = until
        if sql:
            try:
                cursor = connection.execute(sql, (row, version, list_row) if version else (row,))
                rows = cursor.fetchmany(WHOLE_CELLS)
                held = dict(zip(map(_key, rows), rows, strict=True))
            except sqlite3.Error as error:
                raise self._failed(error) from error
            if len(held) == WHOLE_CELLS:
                cursor.close()
                return None
        streamed = self._streamed(seen=True).row(row, WHOLE_CELLS) if STREAM in wanted.families else {}
        return RowRead(wanted, held, streamed) if streamed is not None else None

    def _read_prefixes(self, found: dict[str, dict[str, Cell]], table: str, prefixes: Sequence[str]) -> None:
        """Adds to ``found`` the newest cells whose group begins with a prefix: one range of the key per row."""
        sql = (f'SELECT "group", value, timestamp FROM {table} WHERE "row" = ? AND "group" >= ? AND "group" < ?'
               f" ORDER BY timestamp DESC, \"group\" LIMIT {MAX_PREFIX_CELLS}")
        for prefix in prefixes:
            after = prefix + _LAST
            for row, cells in found.items():
                for group, value, timestamp in self._read(sql, (row, prefix, after)):
                    cells[group] = Cell(value, timestamp)

    def write_features(self, writes: Iterable[FeatureWrite]) -> int:
        """See Store."""
        offered = 0
        for chunk in _chunks(writes):
            by_family: dict[str, list[tuple[str, str, int, bytes]]] = {}
            for w in chunk:
                by_family.setdefault(w.family, []).append((w.row, w.group, w.cell.timestamp, w.cell.value))
            for family, cells in by_family.items():
                table_of(family)
                cells.sort(key=_key)  # neighbours share pages; the sort is stable, so the later of equals stays later
            if streamed := by_family.pop(STREAM, None):
                self._streamed().write(streamed)
            if by_family:
                with self._transaction() as connection:
                    for family, cells in by_family.items():
                        _put_features(connection, family, cells)
            offered += len(chunk)
        return offered

    def change_cell(self, row: str, family: Family, group: str, change: Callable[[Cell | None], Cell]) -> Cell:
        """Makes a cell what ``change`` makes of the one that is there, with nothing between; returns it."""
        if family == STREAM:
            return self._streamed().change(row, group, change)
        with self._transaction() as connection:
            sql = f'SELECT value, timestamp FROM {table_of(family)} WHERE "row" = ? AND "group" = ?'
            found = connection.execute(sql, (row, group)).fetchone()
            new = change(Cell(*found) if found else None)
            _put_features(connection, family, [(row, group, new.timestamp, new.value)])
        return new

    def write_cells(self, family: Family, cells: pa.RecordBatch) -> int:
        """See Store."""
        table_of(family)
        if family == STREAM:
            self._streamed().write_columns(cells)
            return cells.num_rows
        for start in range(0, cells.num_rows, CHUNK_ROWS):
            rows, groups, values, timestamps = cell_columns(cells.slice(start, CHUNK_ROWS))
            put = sorted(zip(rows, groups, timestamps, values, strict=True), key=_key)
            with self._transaction() as connection:
                _put_features(connection, family, put)
        return cells.num_rows

    def read_lists(self, rows: Sequence[str], version: str) -> list[Cell | None]:
        """See Store."""
        found: dict[str, Cell | None] = dict.fromkeys(rows)
        for keys in _padded(list(found)):
            sql = f'SELECT "row", value, timestamp FROM recommendations WHERE version = ? AND "row" IN ({_marks(len(keys))})'
            for row, value, timestamp in self._read(sql, (version, *keys)):
                found[row] = Cell(value, timestamp)
        return [found[row] for row in rows]

    def write_lists(self, writes: Iterable[ListWrite]) -> int:
        """See Store."""
        offered = 0
        for chunk in _chunks(writes):
            cells = sorted(((w.version, w.row, w.cell.timestamp, w.cell.value) for w in chunk), key=_key)
            with self._transaction() as connection:
                connection.executemany(_PUT_LIST, cells)
            offered += len(cells)
        return offered

    def active(self, surface: str) -> Active | None:
        """See Store."""
        found = self._read(_GET_ACTIVE, (surface,))
        return Active(*found[0]) if found else None

    def flip(self, surface: str, expected: Active | None, new: Active) -> bool:
        """See Store."""
        with self._transaction() as connection:
            found = connection.execute(_GET_ACTIVE, (surface,)).fetchone()
            if (Active(*found) if found else None) != expected:
                return False
            connection.execute("INSERT OR REPLACE INTO active (surface, champion, challenger, percent, previous)"
                               " VALUES (?, ?, ?, ?, ?)",
                               (surface, new.champion, new.challenger, new.percent, new.previous))
        return True

    def versions(self) -> list[str]:
        """See Store."""
        # One seek per version instead of one step per list.
        return [version for (version,) in self._read(
            "WITH RECURSIVE v(version) AS (SELECT min(version) FROM recommendations UNION ALL"
            " SELECT (SELECT min(r.version) FROM recommendations r WHERE r.version > v.version) FROM v"
            " WHERE v.version IS NOT NULL) SELECT version FROM v WHERE version IS NOT NULL")]

    def drop_version(self, version: str) -> int:
        """See Store; raises StoreError when a surface serves the version or would return to it in a rollback."""
        dropped = 0
        while True:
            with self._transaction() as connection:
                users = connection.execute("SELECT surface FROM active WHERE ? IN (champion, challenger, previous)", (version,))
                if (used := users.fetchone()) is not None:
                    raise StoreError(f"version {version} is in use on surface {used[0]}")
                deleted = connection.execute(
                    'DELETE FROM recommendations WHERE version = ?1 AND "row" <= coalesce((SELECT "row" FROM recommendations'
                    ' WHERE version = ?1 ORDER BY "row" LIMIT 1 OFFSET ?2), (SELECT max("row") FROM recommendations'
                    " WHERE version = ?1))", (version, CHUNK_ROWS - 1)).rowcount
            if not deleted:
                return dropped
            dropped += deleted

    def scan_lists(self, version: str) -> Iterator[tuple[str, Cell]]:
        """See Store."""
        sql = ('SELECT "row", value, timestamp FROM recommendations WHERE version = ? AND "row" > ?'
               f' ORDER BY "row" LIMIT {PAGE_ROWS}')
        return self._scan(sql, version)

    def scan_features(self, family: Family, group: str) -> Iterator[tuple[str, Cell]]:
        """See Store."""
        if family == STREAM:
            return self._streamed().scan(group)
        sql = (f'SELECT "row", value, timestamp FROM {table_of(family)} WHERE "group" = ? AND "row" > ?'
               f' ORDER BY "row" LIMIT {PAGE_ROWS}')
        return self._scan(sql, group)

    def stamps(self, table: str, name: str, low: str, high: str) -> Iterator[tuple[str, str, int, int]]:
        """(row, group, timestamp, bytes) of the cells of a family, or of a version, in [low, high) of the keys; ``high`` "" for
        no end. For jobs."""
        if (table, name) == ("features", STREAM):
            yield from self._streamed().stamps(low, high)
            return
        if table == "features":
            where, group = f'{table_of(name)} WHERE ?1 = ?1', '"group"'
        else:
            where, group = "recommendations WHERE version = ?1", "''"
        last, after = low, ""
        while page := self._read(
                f'SELECT "row", {group}, timestamp, length(value) FROM {where} AND ("row", {group}) > (?2, ?3)'
                f' AND (?4 = \'\' OR "row" < ?4) ORDER BY "row", {group} LIMIT {PAGE_ROWS}', (name, last, after, high)):
            yield from page
            last, after = page[-1][0], page[-1][1]

    def forget_before(self, cells: Mapping[str, Mapping[str, int]]) -> None:
        """Deletes cells of family ``stream``, by row and group, that are older than a timestamp. For jobs."""
        gone = [(row, group, before) for row, groups in cells.items() for group, before in groups.items()]
        for start in range(0, len(gone), CHUNK_ROWS):
            self._streamed().forget_before(gone[start : start + CHUNK_ROWS])

    def streamed_bytes(self) -> int:
        """Size of the file with family ``stream``."""
        return self._streamed().size()

    def surfaces(self) -> dict[str, Active]:
        """The pointer of every surface. For jobs."""
        return {surface: Active(*rest) for surface, *rest in self._read(
            "SELECT surface, champion, challenger, percent, previous FROM active ORDER BY surface")}

    def _scan(self, sql: str, key: str) -> Iterator[tuple[str, Cell]]:
        last = ""
        while page := self._read(sql, (key, last)):  # by pages: a long read transaction would keep the WAL from shrinking
            for row, value, timestamp in page:
                yield row, Cell(value, timestamp)
            last = page[-1][0]


_LAST = "\U0010ffff"
"""No other character sorts after it, neither here nor in UTF-8."""


@functools.lru_cache(maxsize=256)
def _row_statement(family: str, groups: tuple[str, ...]) -> tuple[str, frozenset[str], tuple[str, ...]]:
    """The statement that reads groups of one row, the names and the prefixes among them."""
    table, columns = table_of(family), '"group", value, timestamp'
    names, prefixes = filter_of(groups)
    parts = [f'SELECT {columns} FROM {table} WHERE "row" = ? AND "group" IN ({_marks(len(names))})']
    parts += [f'SELECT * FROM (SELECT {columns} FROM {table} WHERE "row" = ? AND "group" >= ? AND "group" < ?'
              f' ORDER BY timestamp DESC, "group" LIMIT {MAX_PREFIX_CELLS})'] * len(prefixes)
    return " UNION ALL ".join(parts), names, prefixes


_GET_ACTIVE = "SELECT champion, challenger, percent, previous FROM active WHERE surface = ?"


_key = operator.itemgetter(0, 1)


def _put_features(connection: sqlite3.Connection, family: str, cells: list[tuple[str, str, int, bytes]]) -> None:
    """Many cells a statement: each step of a statement takes the interpreter's lock anew, which other threads then hold."""
    start = 0
    for many in _AT_ONCE:
        while len(cells) - start >= many:
            connection.execute(_PUT_FEATURES[family, many], list(itertools.chain.from_iterable(cells[start : start + many])))
            start += many


def _marks(count: int) -> str:
    return ",".join("?" * count)


def _padded(keys: list[str]) -> Iterator[list[str]]:
    """Slices of keys whose lengths are powers of two (the last key repeated), so that few statements are ever compiled."""
    for start in range(0, len(keys), READ_KEYS):
        part = keys[start : start + READ_KEYS]
        yield part + part[-1:] * ((1 << (len(part) - 1).bit_length()) - len(part))


def _chunks(writes: Iterable[FeatureWrite] | Iterable[ListWrite]) -> Iterator[list]:
    iterator = iter(writes)
    while chunk := list(itertools.islice(iterator, CHUNK_ROWS)):
        yield chunk
