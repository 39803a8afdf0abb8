"""The SQLite file of an embedded store: its layout, a connection for each thread, transactions, deadlines."""

from __future__ import annotations

import functools
import glob
import math
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from serving.stores.base import DeadlineError, Family, StoreError
from serving.stores.streamed import StreamedCells

LAYOUT = 2
"""Layout of the file (PRAGMA user_version); another one is refused."""
FAMILIES: tuple[str, ...] = get_args(Family)
STREAM: Family = "stream"
PAGE_BYTES = 16_384
"""A list of 100 items lies in one page."""
LOOK_STEPS = 2_000
"""Steps of SQLite's machine, some tens of microseconds, between two looks at the clock."""
LOOK_AGAIN_S = 0.002
"""Between two tries to get the writers' lock."""
SEEN_S = 0.005
"""For so long a file that was seen at its path counts as there, for calls that say what time it is."""
BUSY_SECONDS = {True: 60.0, False: 1.0}
"""How long a call waits for a lock, by ``patient``: jobs wait for other writers, a server rather answers from memory."""

_OPEN = """
PRAGMA synchronous=NORMAL;
PRAGMA cache_size=-65536;
PRAGMA mmap_size=1073741824;
PRAGMA wal_autocheckpoint=4000;
PRAGMA journal_size_limit=134217728;
"""
_CELL = """timestamp INTEGER NOT NULL CONSTRAINT "a timestamp is a multiple of 1000 microseconds" CHECK (timestamp % 1000 = 0),
  value BLOB NOT NULL"""
_SCHEMA = [
    *(f'CREATE TABLE IF NOT EXISTS features_{family} ("row" TEXT, "group" TEXT, {_CELL},'
      ' PRIMARY KEY ("row", "group")) WITHOUT ROWID' for family in FAMILIES if family != STREAM),
    "CREATE TABLE IF NOT EXISTS streamed (id TEXT NOT NULL)",  # of the file with family stream; one row
    # The version leads the key, so that writing a new version appends and dropping one is a range.
    f'CREATE TABLE IF NOT EXISTS recommendations (version TEXT, "row" TEXT, {_CELL},'
    ' PRIMARY KEY (version, "row")) WITHOUT ROWID',
    "CREATE TABLE IF NOT EXISTS active (surface TEXT PRIMARY KEY, champion TEXT NOT NULL, challenger TEXT,"
    " percent INTEGER NOT NULL, previous TEXT) WITHOUT ROWID",
    f"PRAGMA user_version={LAYOUT}",
]


class _Connection(sqlite3.Connection):
    """A connection that can be weakly referenced: those of ended threads close by themselves.

    Attributes:
      inode: of the file that it opened; seen: when it was at its path, as far as calls said the time.
      until: one number, the time (of time.monotonic()) at which a statement is given up.
    """

    inode: int
    seen: float = -math.inf
    until: list[float]


class SqliteFile:
    """A file, and the one of family ``stream`` beside it.

    Each thread gets a connection of its own at its first call, also after a fork. ``create`` False refuses a path
    where there is no store yet, so that a reader's typing error does not leave an empty file. Once open, a store that is
    gone is never made anew. ``patient``: see BUSY_SECONDS.

    Raises:
      StoreError: no store there, not a store, or one of another layout; and whatever SQLite reports later.
    """

    def __init__(self, path: str | Path, create: bool = True, patient: bool = True) -> None:
        self.path = Path(path)
        self._create, self._patient = create, patient
        self._reset()
        if create:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"cannot make the folder of {self.path}: {error}") from error
        self._connection()
        self._create = False

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._local = threading.local()
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False
        self._beside: StreamedCells | None = None

    def _connection(self, now: float = math.inf) -> _Connection:
        """That of this thread; ``now`` (of time.monotonic()): see SEEN_S."""
        if self._pid != os.getpid():
            self._inherited = self._local  # kept alive: closing a parent's connection in a fork drops the parent's locks
            self._reset()
        if self._closed:
            raise StoreError(f"{self.path} is closed")
        found: _Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = self._local.connection = self._connect()
            with self._lock:
                self._open.add(found)
        if now - found.seen >= SEEN_S:
            if _inode(self.path) != found.inode:  # else a rebuilt workspace would be read, and written, in its old file
                self._local = threading.local()
                self._leave_streamed()
                raise StoreError(f"{self.path} was moved, removed or replaced; opening it again helps")
            if now < math.inf:
                found.seen = now
        return found

    def _connect(self) -> _Connection:
        if not self._create and not self.path.exists():
            raise StoreError(f"no store at {self.path}")
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS[self._patient], isolation_level=None,
                                         check_same_thread=False, cached_statements=256, factory=_Connection)
            connection.executescript(_OPEN)
            layout = connection.execute("PRAGMA user_version").fetchone()[0]
            if layout == 0:
                if not self._create:
                    raise StoreError(f"{self.path} is not a beamrec store")
                self._initialise(connection)
            elif layout != LAYOUT:
                raise StoreError(f"{self.path} has store layout {layout}, this beamrec reads {LAYOUT}: move it away, and "
                                 "'beamrec run' and 'beamrec stream' fill a new one")
        except sqlite3.Error as error:
            raise StoreError(f"cannot open {self.path}: {error}") from error
        connection.inode, connection.until = _inode(self.path), [math.inf]
        connection.set_progress_handler(functools.partial(_is_late, connection.until), LOOK_STEPS)
        return connection

    def _initialise(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + BUSY_SECONDS[True]
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        while True:  # the switch to WAL ignores busy_timeout when several processes open a new file at once
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        if connection.execute("SELECT count(*) FROM streamed").fetchone() == (0,):
            connection.execute("INSERT INTO streamed VALUES (?)", (os.urandom(4).hex(),))
            for stale in self.path.parent.glob(f"{glob.escape(self.path.name)}-stream-*"):  # of a store that is no more
                stale.unlink(missing_ok=True)
        connection.execute("COMMIT")

    def _streamed(self, seen: bool = False) -> StreamedCells:
        """Family ``stream`` of the store that is there now; ``seen``: it was looked at just before."""
        found = self._beside
        if not seen or found is None:
            self._connection()  # forgets the file of a store that is no more
            found = self._beside
        if found is None:
            name = self._read("SELECT id FROM streamed")[0][0]
            with self._lock:
                if self._closed:
                    raise StoreError(f"{self.path} is closed")
                found = self._beside
                if found is None:
                    found = self._beside = StreamedCells(Path(f"{self.path}-stream-{name}"), BUSY_SECONDS[self._patient])
        return found

    def _leave_streamed(self) -> None:
        with self._lock:
            found, self._beside = self._beside, None
        if found is not None:
            found.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction that takes its lock at once, so that what it reads cannot change before it writes."""
        connection = self._connection()
        try:
            self._begin(connection)
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back when, for one, the disk is full
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _begin(self, connection: _Connection) -> None:
        """Takes the writers' lock. SQLite itself would look again after pauses of up to 100 ms, while the lock is free."""
        until = min(time.monotonic() + BUSY_SECONDS[self._patient], connection.until[0])
        connection.execute("PRAGMA busy_timeout=0")
        try:
            while True:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                        raise
                time.sleep(LOOK_AGAIN_S)
        finally:
            connection.execute(f"PRAGMA busy_timeout={round(BUSY_SECONDS[self._patient] * 1000)}")

    def _read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple]:
        try:
            return self._connection().execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StoreError:
        late = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT
        return DeadlineError(f"{self.path}: out of time") if late else StoreError(f"{self.path}: {error}")

    def limit(self, until: float = math.inf) -> None:
        """Calls of this thread that are not done at a time (of time.monotonic()) raise DeadlineError."""
        found: _Connection | None = getattr(self._local, "connection", None)
        (found if found is not None and self._pid == os.getpid() else self._connection()).until[0] = until

    def close(self) -> None:
        """See Store; calls that come later raise StoreError."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            for connection in list(self._open):
                connection.close()
            self._open = weakref.WeakSet()
        self._leave_streamed()


def _is_late(until: list[float]) -> bool:
    return time.monotonic() > until[0]


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0
