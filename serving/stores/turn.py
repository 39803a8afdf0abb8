"""Who writes now, among threads and processes, and since which boot of the machine something may not be on disk."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.stores.base import StoreError

_LOOK_AGAIN_S = 0.002
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_boot() -> bytes:
    """Of the machine; empty where it is not known."""
    try:
        return _BOOT.read_bytes().strip()
    except OSError:
        return b""


class Turn:
    """A file that whoever writes holds locked, and whose content is the mark: empty when all that was written is on disk.

    Raises OSError when the file cannot be made.
    """

    def __init__(self, path: str) -> None:
        self._path, self._closed, self._marked = path, False, False
        self._file, self.thread = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), threading.Lock()
        """thread: held by the thread of this process that writes."""

    @contextmanager
    def taken(self, wait_s: float) -> Iterator[None]:
        """Alone among all processes; raises StoreError after ``wait_s`` of waiting for others."""
        until = time.monotonic() + wait_s
        if not self.thread.acquire(timeout=wait_s):
            raise StoreError(f"{self._path}: another thread has been writing for {wait_s:g} s")
        try:
            self._lock(until, wait_s)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        finally:
            self.thread.release()

    def _lock(self, until: float, wait_s: float) -> None:
        while not self._closed:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise StoreError(f"{self._path}: another process has been writing for {wait_s:g} s") from None
            time.sleep(_LOOK_AGAIN_S)
        raise StoreError(f"{self._path} is closed")

    @property
    def mark(self) -> bytes:
        """The boot since which something may not be on disk; empty for none."""
        return os.pread(self._file, 64, 0)

    def set_mark(self, boot: bytes) -> None:
        """From now on something may not be on disk; in one's turn. The mark is there itself when this returns, also one that
        somebody made who was killed before it was."""
        if self._marked and self.mark == boot:
            return
        os.pwrite(self._file, boot, 0)
        os.fsync(self._file)
        self._marked = True

    def clear_mark(self) -> None:
        """All is on disk; in one's turn."""
        self._marked = False
        os.ftruncate(self._file, 0)
        os.fsync(self._file)

    def close(self) -> None:
        """Once nobody of this process writes; who waits is told."""
        self._closed = True
        with self.thread:
            os.close(self._file)

    def leave(self) -> None:
        """Gives up what a fork inherited; its locks are the parent's."""
        os.close(self._file)
