"""Family ``stream`` of an embedded store: an LMDB file beside SQLite's.

A stream changes thousands of users a second, each on a page of its own. SQLite writes such a page twice, and drops its cache
when another process has written: 9 us of processor a cell; LMDB copies the page and writes it once: 3 us.

How it is opened and written: serving.stores.streamed_file.

Keys are row, NUL, group as UTF-8, so a row's cells are neighbours in the order of their names. A name that is too long for that
(LMDB's keys have 511 bytes), or has a NUL, is replaced by 0xff and its XXH3-128, and stands in the value.
"""

from __future__ import annotations

import heapq
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from serving.stores.base import MAX_PREFIX_CELLS, Cell, DeadlineError, StoreError
from serving.stores.columns import cell_columns, pieces
from serving.stores.streamed_file import OPENED

_PAGE_ROWS = 2_000
_LOOK_ROWS = 256
_LONG = 240
_STAMP, _NAMES = struct.Struct(">q"), struct.Struct(">HH")  # so that bytes are in the order of time
_NUL, _HASHED = b"\0", b"\xff"

Entry = tuple[str, int, bytes]
"""group, timestamp, value"""


class StreamedCells:
    """The cells of one file, for any thread; a process has it open once, however many of these there are.

    Args:
      path: of the file; it is made when it is not there.
      wait_s: how long a call waits for other writers.

    Raises:
      StoreError: the file cannot be opened; and whatever goes wrong later.
    """

    def __init__(self, path: Path, wait_s: float) -> None:
        self._wait_s = wait_s
        self._file = OPENED.acquire(os.path.realpath(path), wait_s)

    def close(self) -> None:
        """Gives the file back."""
        OPENED.release(self._file)

    def write(self, cells: Iterable[tuple[str, str, int, bytes]]) -> None:
        """Writes (row, group, timestamp, value); the newest wins, the later of equals. In one transaction."""
        parts, newest = _Parts(), dict[bytes, tuple[int, bytes]]()
        for row, group, stamp, value in cells:
            key = parts[row] + _NUL + parts[group]
            known = newest.get(key)
            if known is None or stamp >= known[0]:
                newest[key] = stamp, _packed(key, row, group, stamp, value)
        self._put({key: value for key, (_, value) in newest.items()})

    def write_columns(self, cells: pa.RecordBatch) -> None:
        """Writes CELLS, as ``write``."""
        stamps = cells.column("timestamp").to_numpy()
        longest = max(_longest(cells.column(name)) for name in ("row", "group"))
        if (stamps % 1000).any() or (stamps < 0).any() or longest > _LONG:
            keys: list[bytes] = []
        else:
            keys = pieces(pc.binary_join_element_wise(cells.column("row"), cells.column("group"), "\0"))
        ends = np.arange(len(stamps) + 1, dtype=np.int32) * _STAMP.size
        heads = pa.Array.from_buffers(pa.binary(), len(stamps), [None, pa.py_buffer(ends), pa.py_buffer(stamps.astype(">i8"))])
        packed = dict(zip(keys, pieces(pc.binary_join_element_wise(heads, cells.column("value"), b"")), strict=False))
        if len(packed) == len(stamps) and not any(key.count(_NUL) > 1 for key in packed):
            self._put(packed)
        else:  # names that are long or have a NUL, or more than one value of a cell
            rows, groups, contents, times = cell_columns(cells)
            self.write(zip(rows, groups, times, contents, strict=True))

    def _put(self, newest: dict[bytes, bytes]) -> None:
        """Writes packed values by key, but for those that are older than what is there."""
        if not newest:
            return
        keys = sorted(newest)
        with self._file.writing(self._wait_s) as transaction:
            cursor = transaction.cursor()
            for key, held in cursor.getmulti(keys):
                value = newest[key]
                if held >= value and (held == value or held[: _STAMP.size] > value[: _STAMP.size]):
                    del newest[key]
            cursor.putmulti([(key, newest[key]) for key in keys if key in newest])

    def change(self, row: str, group: str, change: Callable[[Cell | None], Cell]) -> Cell:
        """See SqliteStore.change_cell."""
        key = _key(row, group)
        with self._file.writing(self._wait_s) as transaction:
            held = transaction.get(key)
            known = None if held is None else Cell(*_value(key, held))
            new = change(known)
            if known is None or new.timestamp >= known.timestamp:
                transaction.put(key, _packed(key, row, group, new.timestamp, new.value))
        return new

    def forget_before(self, cells: Iterable[tuple[str, str, int]]) -> None:
        """Deletes those of (row, group, timestamp) that are older than it."""
        with self._file.writing(self._wait_s) as transaction:
            for row, group, before in cells:
                held = transaction.get(key := _key(row, group))
                if held is not None and _STAMP.unpack_from(held)[0] < before:
                    transaction.delete(key)

    def read(self, rows: Iterable[str], names: Iterable[str], prefixes: Sequence[str], until: float) -> list[dict[str, Cell]]:
        """Per row, the cells with these names, and the MAX_PREFIX_CELLS newest of those that begin with each prefix; raises
        DeadlineError when that takes longer than ``until`` (of time.monotonic())."""
        wanted = [(name, _part(name)) for name in names]
        found = []
        with self._file.reading() as transaction:
            cursor = transaction.cursor()
            for row in rows:
                begin, cells = _part(row) + _NUL, {}
                for name, part in wanted:
                    if (held := transaction.get(key := begin + part)) is not None:
                        cells[name] = Cell(*_value(key, held))
                for prefix in prefixes:
                    newest = heapq.nlargest(MAX_PREFIX_CELLS, _looked(_prefixed(cursor, begin, prefix), until), itemgetter(1))
                    cells |= {group: Cell(value, stamp) for group, stamp, value in newest}
                found.append(cells)
                if time.monotonic() > until:
                    raise DeadlineError(f"{self._file.path}: out of time")
        return found

    def row(self, row: str, most: int) -> dict[bytes, bytes] | None:
        """What a row holds by group, as UTF-8: values behind their timestamps (see ``unpacked``); None for a row of ``most``
        cells or more."""
        begin, found = _part(row) + _NUL, dict[bytes, bytes]()
        size = len(begin)
        try:
            with self._file.begin() as transaction:
                cursor = transaction.cursor()
                for key, held in islice(cursor.iternext(), most) if cursor.set_range(begin) else ():
                    if not key.startswith(begin):
                        break
                    found[key[size:]] = held
        except lmdb.Error as error:
            raise self._file.failed(error) from error
        if _HASHED in begin or _HASHED in b"".join(found):
            found = dict(_plain(begin + part, held) for part, held in found.items())
        return found if len(found) < most else None

    def scan(self, group: str) -> Iterator[tuple[str, Cell]]:
        """(row, cell) of every cell of a group, by row."""
        plain, hashed = (self._scan(*ends, group) for ends in ((b"", _HASHED), (_HASHED, b"")))
        yield from heapq.merge(plain, sorted(hashed, key=itemgetter(0)), key=itemgetter(0))

    def _scan(self, begin: bytes, end: bytes, group: str) -> Iterator[tuple[str, Cell]]:
        for key, held in self._pages(begin, end, _NUL + _part(group)):
            yield _names(key, held)[0], Cell(*_value(key, held))

    def stamps(self, low: str, high: str) -> Iterator[tuple[str, str, int, int]]:
        """(row, group, timestamp, bytes) of the cells of rows in [low, high), ``high`` "" for no end."""
        for begin, end in ((low.encode(), high.encode() or _HASHED), (_HASHED, b"")):
            for key, held in self._pages(begin, end, b""):
                row, group = _names(key, held)
                if low <= row and (not high or row < high):
                    value, stamp = _value(key, held)
                    yield row, group, stamp, len(value)

    def _pages(self, begin: bytes, end: bytes, ends_with: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys in [begin, end), ``end`` b"" for no end; by pages: a reader that stays keeps freed pages from being used."""
        while True:
            page: list[tuple[bytes, bytes]] = []
            with self._file.reading() as transaction:
                cursor = transaction.cursor()
                more = cursor.set_range(begin)
                for _ in range(_PAGE_ROWS):
                    if not more or (end and cursor.key() >= end):
                        more = False
                        break
                    if (key := cursor.key()).endswith(ends_with):
                        page.append((key, cursor.value()))
                    begin, more = key + _NUL, cursor.next()
            yield from page
            if not more:
                return

    def size(self) -> int:
        """Bytes of the file."""
        return os.stat(self._file.path).st_size


class _Parts(dict[str, bytes]):
    """What stands for a name in keys; each is made once."""

    def __missing__(self, name: str) -> bytes:
        part = self[name] = _part(name)
        return part


def _longest(column: pa.Array) -> int:
    return pc.max(pc.binary_length(column)).as_py() or 0


def _part(name: str) -> bytes:
    plain = name.encode()
    whole = len(plain) <= _LONG and _NUL not in plain
    return plain if whole else _HASHED + xxhash.xxh3_128_hexdigest(plain).encode()


def _key(row: str, group: str) -> bytes:
    return _part(row) + _NUL + _part(group)


def _packed(key: bytes, row: str, group: str, stamp: int, value: bytes) -> bytes:
    if stamp % 1000 or stamp < 0:
        raise StoreError(f"a timestamp is a multiple of 1000 microseconds since 1970, not {stamp}")
    if _HASHED not in key:
        return _STAMP.pack(stamp) + value
    names = row.encode(), group.encode()
    return b"".join((_STAMP.pack(stamp), _NAMES.pack(*map(len, names)), *names, value))


def _value(key: bytes, held: bytes) -> tuple[bytes, int]:
    begin = _STAMP.size
    if _HASHED in key:
        begin += _NAMES.size + sum(_NAMES.unpack_from(held, begin))
    return held[begin:], _STAMP.unpack_from(held)[0]


def stamp_of(held: bytes) -> int:
    """The timestamp before a value, microseconds."""
    return int(_STAMP.unpack_from(held)[0])


def unpacked(held: bytes) -> Cell:
    """A value behind its timestamp."""
    return Cell(held[_STAMP.size :], _STAMP.unpack_from(held)[0])


def _plain(key: bytes, held: bytes) -> tuple[bytes, bytes]:
    """Group, and value behind its timestamp, as if no name were too long."""
    return _names(key, held)[1].encode(), held[: _STAMP.size] + _value(key, held)[0]


def _names(key: bytes, held: bytes) -> tuple[str, str]:
    if _HASHED not in key:
        row, _, group = key.partition(_NUL)
        return row.decode(), group.decode()
    begin = _STAMP.size + _NAMES.size
    lengths = _NAMES.unpack_from(held, _STAMP.size)
    return held[begin : begin + lengths[0]].decode(), held[begin + lengths[0] : begin + sum(lengths)].decode()


def _row(cursor: Any, begin: bytes, size: int) -> Iterator[Entry]:
    """Cells whose keys begin with ``begin``; their rows, and the NUL, are ``size`` bytes."""
    more = cursor.set_range(begin)
    while more and (key := cursor.key()).startswith(begin):
        held = cursor.value()
        if _HASHED in key:
            value, stamp = _value(key, held)
            yield _names(key, held)[1], stamp, value
        else:
            yield key[size:].decode(), _STAMP.unpack_from(held)[0], held[_STAMP.size :]
        more = cursor.next()


def _prefixed(cursor: Any, begin: bytes, prefix: str) -> Iterator[Entry]:
    """Cells of a row whose names begin with a prefix: those with plain keys, then those with hashed ones."""
    yield from _row(cursor, begin + prefix.encode(), len(begin))
    if prefix:
        for entry in _row(cursor, begin + _HASHED, len(begin)):
            if entry[0].startswith(prefix):
                yield entry


def _looked(entries: Iterator[Entry], until: float) -> Iterator[Entry]:
    """The entries, with a look at the clock now and then."""
    for number, entry in enumerate(entries, 1):
        if number % _LOOK_ROWS == 0 and time.monotonic() > until:
            raise DeadlineError("out of time")
        yield entry
