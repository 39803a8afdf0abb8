"""Moves what was written from SQLite's write-ahead log into its file beside the writers.

Left to SQLite, the commit that finds the log long enough does it, and waits for the disk twice: one commit in ten of a
streaming job takes 100 to 800 ms instead of 15. A passive checkpoint in a thread of its own holds up nobody; but while
others write it never reaches the end of the log, so that the log is not begun anew. One that does waits for the writers, for
the little that the passive one has left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from serving.stores.base import StoreError

AFTER_CELLS = 20_000
LONGEST_PAGES = 15_000
"""A log of more pages is begun anew; 16 KiB each."""
BACKSTOP_PAGES = 45_000
"""Of such a log SQLite takes care itself: a checkpointer has died."""
_PASSES = 3
_log = logging.getLogger(__name__)


class Checkpointer:
    """A thread that checkpoints after every AFTER_CELLS written cells; it starts with the first of them.

    Args:
      execute: executes a statement on a connection of the calling thread; whatever it raises, the next checkpoint tries again.
    """

    def __init__(self, execute: Callable[[str], list[tuple]]) -> None:
        self._execute = execute
        self._wanted, self._lock = threading.Event(), threading.Lock()
        self._cells, self._closed = 0, False
        self._thread: threading.Thread | None = None

    def wrote(self, cells: int) -> None:
        """Counts cells that are committed."""
        with self._lock:
            self._cells += cells
            if self._cells < AFTER_CELLS or self._closed:
                return
            self._cells = 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="beamrec-wal", daemon=True)
                self._thread.start()
        self._wanted.set()

    def close(self) -> None:
        """Ends the thread, after the checkpoint at which it is."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._wanted.set()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while self._wanted.wait() and not self._closed:
            self._wanted.clear()
            try:
                self._execute("PRAGMA busy_timeout=100")  # who begins the log anew keeps writers out while it waits for readers
                for _ in range(_PASSES):  # each leaves what was written in its time, which gets less and less
                    if self._pages("PASSIVE") < LONGEST_PAGES:
                        break
                else:
                    self._pages("RESTART")
            except StoreError as error:  # what is away its writers wait for
                _log.info("no checkpoint: %s", error)

    def _pages(self, mode: str) -> int:
        """Pages in the log, after a checkpoint."""
        return int(self._execute(f"PRAGMA wal_checkpoint({mode})")[0][1])
