"""An AsyncStore seen as a Store, so that the contract suite runs over it: calls go to a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

from serving.stores import open_store
from serving.stores.aio import open_async

ASYNC = "async+"


class Blocking:
    """What an AsyncStore has is asked of it, with a patient deadline; the calls of jobs of a Store on the same URI."""

    def __init__(self, uri: str) -> None:
        self._jobs = open_store(uri)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.store = self.wait(self._open(uri))
        self._closed = False

    async def _open(self, uri: str) -> Any:
        return open_async(uri)

    def wait(self, doing: Any) -> Any:
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(60)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in ("read_features", "read_lists", "active", "flip", "read_row", "change_cell") and not self._closed:
            return lambda *args: self.wait(getattr(self.store, name)(*args, timeout=30))
        if name in ("active",):
            return lambda *args: asyncio.run(getattr(self.store, name)(*args))
        return getattr(self._jobs, name)

    def write_features(self, writes: Iterable[Any]) -> int:
        return self.wait(self.store.write_features(list(writes), timeout=30))

    def write_lists(self, writes: Iterable[Any]) -> int:
        return self.wait(self.store.write_lists(list(writes), timeout=30))

    def close(self) -> None:
        if not self._closed:
            self.wait(self.store.close())
            self._closed = True
            self._jobs.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()


def open_any(uri: str) -> Any:
    """The store of a URI; of one after ASYNC the store for an event loop."""
    return Blocking(uri.removeprefix(ASYNC)) if uri.startswith(ASYNC) else open_store(uri)
