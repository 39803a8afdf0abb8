"""The LMDB file of family ``stream``: once open in a process, one writer at a time, and known to be whole.

No commit waits for the disk, so a kill loses nothing, but after a crash of the machine the file cannot be trusted. Beside it
lies a file that says whether something is not yet on disk, and since which boot; what was written before the present one and
never got there is dropped: readers take the batch features, and a resumed job writes its values again. Idle, it is on disk.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb

from serving.stores.base import StoreError

MAP_BYTES = 256 << 30
"""Address space, not memory or disk: the most that the file can grow to."""
_READERS = 1024
_IDLE_S = 5.0
_LOOK_AGAIN_S = 0.002
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_log = logging.getLogger(__name__)


class File:
    """A file as a process has it open."""

    def __init__(self, path: str, wait_s: float) -> None:
        self.path, self.pid, self.users = path, os.getpid(), 0
        self._turn, self._in_process = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), threading.Lock()
        self._boot = _boot()
        self._wrote, self._written_at = -1, 0.0
        self._closing = threading.Event()
        self._settler: threading.Thread | None = None
        try:
            self._lmdb = self._open(wait_s)
        except BaseException:
            os.close(self._turn)
            raise

    def _open(self, wait_s: float) -> lmdb.Environment:
        if not self._is_whole():  # else opened at once, whoever writes
            with self._turn_of(wait_s):
                self._drop_unless_whole()
        found = lmdb.open(self.path, subdir=False, map_size=MAP_BYTES, max_readers=_READERS, sync=not self._boot,
                          mode=0o644, max_spare_txns=4)
        found.reader_check()  # gives back the places of readers that were killed
        if self._since():
            self._noted(found.info()["last_txnid"])
        return found

    def _since(self) -> bytes:
        """The boot since which something is not on disk; empty when all is."""
        return os.pread(self._turn, 64, 0)

    def _is_whole(self) -> bool:
        return self._since() in (b"", self._boot)

    def _drop_unless_whole(self) -> None:
        if self._is_whole():
            return
        _log.warning("%s was not on disk when the machine stopped: its values are dropped; 'beamrec stream --resume' "
                     "writes them again", self.path)
        for name in (self.path, f"{self.path}-lock"):
            Path(name).unlink(missing_ok=True)
        os.ftruncate(self._turn, 0)

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
                if self._boot and self._since() != self._boot:
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
                if self._lmdb.info()["last_txnid"] == self._wrote and self._since() == self._boot:
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


class Opened:
    """The files that this process has open, by path: LMDB allows each only once."""

    def __init__(self) -> None:
        self._pid, self._lock, self._files = os.getpid(), threading.Lock(), dict[str, File]()

    def acquire(self, path: str, wait_s: float) -> File:
        self._leave_parents()
        with self._lock:
            if path not in self._files:
                try:
                    self._files[path] = File(path, wait_s)
                except (lmdb.Error, OSError) as error:
                    raise StoreError(f"cannot open {path}: {error}") from error
            self._files[path].users += 1
            return self._files[path]

    def release(self, file: File) -> None:
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


OPENED = Opened()


def _boot() -> bytes:
    """Of the machine; empty where it is not known, and every commit waits for the disk."""
    try:
        return _BOOT.read_bytes().strip()
    except OSError:
        return b""
