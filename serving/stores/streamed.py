"""Family ``stream`` of an embedded store: an LMDB file beside SQLite's.

A stream changes thousands of users a second, each on a page of its own. SQLite writes such a page twice, and drops its cache
when another process has written: 9 us of processor a cell; LMDB copies the page and writes it once: 3 us.

No commit waits for the disk, so a kill loses nothing, but after a crash of the machine the file cannot be trusted. Beside it
lies a file that says whether something is not yet on disk, and since which boot; what was written before the present one and
never got there is dropped: readers take the batch features, and a resumed job writes its values again. Idle, it is on disk.

Keys are row, NUL, group as UTF-8, so a row's cells are neighbours in the order of their names. A name that is too long for that
(LMDB's keys have 511 bytes), or has a NUL, is replaced by 0xff and its XXH3-128, and stands in the value.
"""

from __future__ import annotations

import fcntl
import heapq
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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

MAP_BYTES = 256 << 30
"""Address space, not memory or disk: the most that the file can grow to."""
_READERS = 1024
_PAGE_ROWS = 2_000
_LOOK_ROWS = 256
_IDLE_S = 5.0
_LOOK_AGAIN_S = 0.002
_LONG = 240
_STAMP, _NAMES = struct.Struct(">q"), struct.Struct(">HH")  # so that bytes are in the order of time
_NUL, _HASHED = b"\0", b"\xff"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)

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
        self._file = _OPENED.acquire(os.path.realpath(path), wait_s)

    def close(self) -> None:
        """Gives the file back."""
        _OPENED.release(self._file)

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
        if (stamps % 1000).any() or max(_longest(cells.column(name)) for name in ("row", "group")) > _LONG:
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
                if held >= value and (held == value or held[:8] > value[:8]):
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
                        value, stamp = _value(key, held)
                        cells[name] = Cell(value, stamp)
                for prefix in prefixes:
                    newest = heapq.nlargest(MAX_PREFIX_CELLS, _looked(_prefixed(cursor, begin, prefix), until), itemgetter(1))
                    cells |= {group: Cell(value, stamp) for group, stamp, value in newest}
                found.append(cells)
                if time.monotonic() > until:
                    raise DeadlineError(f"{self._file.path}: out of time")
        return found

    def row(self, row: str, most: int) -> list[Entry]:
        """The first ``most`` cells of a row."""
        begin = _part(row) + _NUL
        with self._file.reading() as transaction:
            return list(islice(_row(transaction.cursor(), begin, len(begin)), most))

    def scan(self, group: str) -> Iterator[tuple[str, Cell]]:
        """(row, cell) of every cell of a group, by row."""
        for key, held in self._pages(b"", b"", _NUL + _part(group)):
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


class _File:
    """A file as a process has it open."""

    def __init__(self, path: str, wait_s: float) -> None:
        self.path, self.pid, self.users = path, os.getpid(), 0
        self._turn, self._in_process = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), threading.Lock()
        self._boot = _boot()
        self._wrote, self._written_at = -1, 0.0
        self._closing = threading.Event()
        self._settler: threading.Thread | None = None
        with self._turn_of(wait_s):
            since = os.pread(self._turn, 64, 0)
            if since and since != self._boot:
                _log.warning("%s was not on disk when the machine stopped: its values are dropped; 'beamrec stream --resume' "
                             "writes them again", path)
                for name in (path, f"{path}-lock"):
                    Path(name).unlink(missing_ok=True)
                os.ftruncate(self._turn, 0)
            self._lmdb = lmdb.open(path, subdir=False, map_size=MAP_BYTES, max_readers=_READERS, sync=not self._boot,
                                   max_spare_txns=4)
            self._lmdb.reader_check()  # gives back the places of readers that were killed
            if since == self._boot != b"":
                self._noted(self._lmdb.info()["last_txnid"])

    @contextmanager
    def reading(self) -> Iterator[Any]:
        try:
            with self._lmdb.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    @contextmanager
    def writing(self, wait_s: float) -> Iterator[Any]:
        """A transaction, alone among all processes."""
        with self._turn_of(wait_s):
            try:
                if self._boot and os.pread(self._turn, 64, 0) != self._boot:
                    os.pwrite(self._turn, self._boot, 0)
                    os.fsync(self._turn)
                with self._lmdb.begin(write=True) as transaction:
                    yield transaction
                    number = transaction.id()
            except (lmdb.Error, OSError) as error:
                raise StoreError(f"{self.path}: {error}") from error
            self._noted(number)

    @contextmanager
    def _turn_of(self, wait_s: float) -> Iterator[None]:
        """LMDB itself would wait for ever."""
        until = time.monotonic() + wait_s
        if not self._in_process.acquire(timeout=wait_s):
            raise StoreError(f"{self.path}: another thread has been writing for {wait_s:g} s")
        try:
            while True:
                try:
                    fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise StoreError(f"{self.path}: another process has been writing for {wait_s:g} s") from None
                time.sleep(_LOOK_AGAIN_S)
            try:
                yield
            finally:
                fcntl.flock(self._turn, fcntl.LOCK_UN)
        finally:
            self._in_process.release()

    def _noted(self, transaction: int) -> None:
        self._wrote, self._written_at = transaction, time.monotonic()
        if self._settler is None and self._boot:
            self._settler = threading.Thread(target=self._settle_when_idle, name="beamrec-streamed", daemon=True)
            self._settler.start()

    def _settle_when_idle(self) -> None:
        while not self._closing.wait(_IDLE_S):
            if self._wrote >= 0 and time.monotonic() - self._written_at >= _IDLE_S:
                with suppress(StoreError):
                    self._settle()

    def _settle(self) -> None:
        """Puts on disk what was written, if nobody has written since; who did will."""
        with self._turn_of(0.05):
            try:
                if self._lmdb.info()["last_txnid"] == self._wrote and os.pread(self._turn, 64, 0) == self._boot:
                    self._lmdb.sync(True)
                    os.ftruncate(self._turn, 0)
                    os.fsync(self._turn)
            except (lmdb.Error, OSError) as error:
                raise StoreError(f"{self.path}: {error}") from error
            self._wrote = -1

    def close(self) -> None:
        self._closing.set()
        if self.pid == os.getpid():
            if self._settler is not None and self._settler is not threading.current_thread():
                self._settler.join()
            if self._wrote >= 0:
                with suppress(StoreError):
                    self._settle()
        self._lmdb.close()
        os.close(self._turn)


class _Opened:
    """The files that this process has open, by path: LMDB allows each only once."""

    def __init__(self) -> None:
        self._pid, self._lock, self._files = os.getpid(), threading.Lock(), dict[str, _File]()

    def acquire(self, path: str, wait_s: float) -> _File:
        self._leave_parents()
        with self._lock:
            if path not in self._files:
                try:
                    self._files[path] = _File(path, wait_s)
                except (lmdb.Error, OSError) as error:
                    raise StoreError(f"cannot open {path}: {error}") from error
            self._files[path].users += 1
            return self._files[path]

    def release(self, file: _File) -> None:
        if file.pid != os.getpid():
            return
        with self._lock:
            file.users -= 1
            if not file.users:
                self._files.pop(file.path).close()

    def _leave_parents(self) -> None:
        """After a fork: closed here, they stay open in the parent."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
            while self._files:
                self._files.popitem()[1].close()


_OPENED = _Opened()


def _boot() -> bytes:
    """Of the machine; empty where it is not known, and every commit waits for the disk."""
    try:
        return _BOOT.read_bytes().strip()
    except OSError:
        return b""


class _Parts(dict[str, bytes]):
    """What stands for a name in keys; each is made once."""

    def __missing__(self, name: str) -> bytes:
        plain = name.encode()
        whole = len(plain) <= _LONG and _NUL not in plain
        part = self[name] = plain if whole else _HASHED + xxhash.xxh3_128_hexdigest(plain).encode()
        return part


def _longest(column: pa.Array) -> int:
    return pc.max(pc.binary_length(column)).as_py() or 0


def _part(name: str) -> bytes:
    return _Parts()[name]


def _key(row: str, group: str) -> bytes:
    return _part(row) + _NUL + _part(group)


def _packed(key: bytes, row: str, group: str, stamp: int, value: bytes) -> bytes:
    if stamp % 1000:
        raise StoreError(f"a timestamp is a multiple of 1000 microseconds, not {stamp}")
    if _HASHED not in key:
        return _STAMP.pack(stamp) + value
    names = row.encode(), group.encode()
    return b"".join((_STAMP.pack(stamp), _NAMES.pack(*map(len, names)), *names, value))


def _value(key: bytes, held: bytes) -> tuple[bytes, int]:
    begin = _STAMP.size
    if _HASHED in key:
        begin += _NAMES.size + sum(_NAMES.unpack_from(held, begin))
    return held[begin:], _STAMP.unpack_from(held)[0]


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
