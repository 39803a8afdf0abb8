"""The LMDB file of family ``stream``: once open in a process, one writer at a time, and known to be whole.

No commit waits for the disk, so a kill loses nothing, but after a crash of the machine the file cannot be trusted. Beside it
lies its turn, marked while something is not yet on disk: what was written before the present boot and never got there is
dropped. Readers take the batch features then, and a resumed job writes its values again. A file at rest is put on disk.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb

from serving.stores.base import StoreError
from serving.stores.turn import Turn, this_boot

MAP_BYTES = 256 << 30
"""Address space, not memory or disk: the most that the file can grow to."""
_READERS = 1024
_IDLE_S = 5.0
_FORK_S = 10.0
_log = logging.getLogger(__name__)


class File:
    """A file as a process has it open.

    Attributes:
      users: how many have it.
    """

    def __init__(self, path: str, wait_s: float) -> None:
        self.path, self.pid, self.users = path, os.getpid(), 0
        self.turn, self._boot = Turn(f"{path}-turn"), this_boot()
        self._wrote, self._seen, self._failed = False, -1, False
        self._closing = threading.Event()
        try:
            self._lmdb = self._open(wait_s)
        except BaseException:
            self.turn.close()
            raise
        self._keeper = threading.Thread(target=self._keep, name="beamrec-streamed", daemon=True)
        self._keeper.start()

    def _open(self, wait_s: float) -> lmdb.Environment:
        if self.turn.mark not in (b"", self._boot):  # else opened at once, whoever writes
            with self.turn.taken(wait_s):
                if self.turn.mark not in (b"", self._boot) and not self._is_in_use():
                    _log.warning("%s was not on disk when the machine stopped: its values are dropped; "
                                 "'beamrec stream --resume' writes them again", self.path)
                    for name in (self.path, f"{self.path}-lock"):
                        Path(name).unlink(missing_ok=True)
                    self.turn.clear_mark()
        found = lmdb.open(self.path, subdir=False, map_size=MAP_BYTES, max_readers=_READERS, sync=not self._boot,
                          mode=0o644, max_spare_txns=4)
        found.reader_check()  # gives back the places of readers that were killed
        return found

    def _is_in_use(self) -> bool:
        """Whether a process has it open that counts boots otherwise, as containers may; LMDB keeps a lock meanwhile."""
        try:
            with Path(f"{self.path}-lock").open("r+b") as lock:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """A transaction that sees what is there now."""
        try:
            with self.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise self.failed(error) from error

    def begin(self) -> Any:
        """``reading``, for who handles lmdb.Error."""
        try:
            return self._lmdb.begin()
        except lmdb.BadRslotError:  # a fork gave back the place of a reader that waits to be used again
            return self._lmdb.begin()

    def failed(self, error: Exception) -> StoreError:
        """What callers are told of an error."""
        return StoreError(f"{self.path}: {error}")

    @contextmanager
    def writing(self, wait_s: float) -> Iterator[Any]:
        """A transaction, alone among all processes: LMDB itself would wait for ever."""
        with self.turn.taken(wait_s):
            try:
                if self._boot:
                    self.turn.set_mark(self._boot)
                self._wrote = True
                with self._lmdb.begin(write=True) as transaction:
                    yield transaction
            except (lmdb.Error, OSError) as error:
                raise self.failed(error) from error

    def _keep(self) -> None:
        """Now and then: places of readers that were killed, which keep freed pages from being used, and rest."""
        while not self._closing.wait(_IDLE_S):
            with suppress(StoreError, lmdb.Error, OSError):
                self._lmdb.reader_check()
                if self.turn.mark:
                    last, self._seen = self._seen, self._last()
                    if last == self._seen:
                        self.settle()

    def _last(self) -> int:
        return int(self._lmdb.info()["last_txnid"])

    def settle(self) -> None:
        """Puts on disk what was written; somebody who writes meanwhile leaves the mark. Raises StoreError."""
        if self._failed or not self._boot:
            return
        try:
            last = self._last()
            try:
                self._lmdb.sync(True)
            except lmdb.Error:
                self._failed = True  # the kernel tells of a page that it could not write only once
                raise
            with self.turn.taken(0.05):
                if self._last() == last and self.turn.mark == self._boot:
                    self.turn.clear_mark()
            self._wrote = False
        except (lmdb.Error, OSError) as error:
            raise self.failed(error) from error

    def close(self) -> None:
        """What this process wrote is on disk then, unless others write."""
        self._closing.set()
        self._keeper.join()
        if self._wrote:
            with suppress(StoreError):
                self.settle()
        self.turn.close()
        self._lmdb.close()

    def leave(self) -> None:
        """Gives up what a fork inherited."""
        self._lmdb.close()
        self.turn.leave()


class Opened:
    """The files that this process has open, by path: LMDB allows each only once."""

    def __init__(self) -> None:
        self._pid, self._files, self._held = 0, dict[str, File](), list[File]()
        self._changed = threading.Condition()
        self._opening = set[str]()
        """Paths that are being opened or closed, without the lock: both may take a while."""

    def acquire(self, path: str, wait_s: float) -> File:
        """The file at a path; raises StoreError, also when it is being closed for longer than ``wait_s``."""
        self._know_process()
        with self._alone(path, wait_s):
            if path not in self._files:
                try:
                    self._files[path] = File(path, wait_s)
                except (lmdb.Error, OSError) as error:
                    raise StoreError(f"cannot open {path}: {error}") from error
            self._files[path].users += 1
            return self._files[path]

    def release(self, file: File) -> None:
        """Closes a file that nobody else has."""
        if file.pid != os.getpid():
            return
        with self._alone(file.path, None):
            file.users -= 1
            if not file.users:
                self._files.pop(file.path).close()

    @contextmanager
    def _alone(self, path: str, wait_s: float | None) -> Iterator[None]:
        with self._changed:
            if not self._changed.wait_for(lambda: path not in self._opening, wait_s):
                raise StoreError(f"{path} is being closed")
            self._opening.add(path)
        try:
            yield
        finally:
            with self._changed:
                self._opening.discard(path)
                self._changed.notify_all()

    def _know_process(self) -> None:
        if not self._pid:
            os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork)
        if self._pid != os.getpid():
            inherited, self._files = list(self._files.values()), {}
            self._pid, self._held, self._changed, self._opening = os.getpid(), [], threading.Condition(), set()
            for file in inherited:
                file.leave()

    def _before_fork(self) -> None:
        """No transaction may be open that writes: the child could not leave it."""
        self._held = [file for file in list(self._files.values()) if file.turn.thread.acquire(timeout=_FORK_S)]

    def _after_fork(self) -> None:
        while self._held:
            self._held.pop().turn.thread.release()


OPENED = Opened()
