"""The bundles a worker holds: loaded beside those in use, in a thread, warmed, and only then handed out (blue-green)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from models.inference.bundle import MANIFEST, Bundle, BundleError
from models.inference.index import IndexFormatError

RETRY_SECONDS = 5.0
"""A bundle that could not be read is tried again after so long: it may be on its way."""
_WARM_BYTES = 1 << 20

Health = Literal["loading", "ready", "absent", "broken"]


class Bundles:
    """Bundles by version. ``get`` never waits; ``want`` says which versions to hold and starts loading what is missing.

    Args:
      folder: holds one folder per version; None: there are none.
      on_state: told ("bundle loaded" | "bundle broken" | "index broken" | "bundle dropped", fields), for logs.
      warm: run over a bundle before it is handed out; raises as the index where that is broken.
    """

    def __init__(self, folder: Path | None, on_state: Callable[[str, dict[str, str]], None] | None = None,
                 warm: Callable[[Bundle], None] | None = None) -> None:
        self._folder, self._on_state, self._warm = folder, on_state, warm
        self._held: dict[str, Bundle] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[Health, float]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bundle")  # one at a time: loading must not crowd out requests

    def get(self, version: str) -> Bundle | None:
        """The bundle of a version, None while it is not loaded."""
        return self._held.get(version)

    def health(self, version: str) -> Health:
        """``absent``: there is no such folder; ``broken``: there is one that cannot be read."""
        if version in self._held:
            return "ready"
        return self._failed[version][0] if version in self._failed else "loading"

    @property
    def versions(self) -> list[str]:
        """Those that are loaded."""
        return sorted(self._held)

    def want(self, versions: Iterable[str]) -> None:
        """Holds exactly these: starts loading those that are missing, lets go of the rest. Needs a running loop."""
        wanted, now = set(versions), time.monotonic()
        for version in set(self._held) - wanted:
            del self._held[version]  # requests under way keep their reference
            self._tell("bundle dropped", version)
        for version in set(self._failed) - wanted:
            del self._failed[version]
        for version in wanted - set(self._held) - set(self._loading):
            if version not in self._failed or now >= self._failed[version][1]:
                self._loading[version] = asyncio.get_running_loop().create_task(self._load(version))

    async def settled(self) -> None:
        """Returns when nothing is being loaded."""
        while self._loading:
            await asyncio.gather(*self._loading.values(), return_exceptions=True)

    async def close(self) -> None:
        """Waits for what is being loaded and lets go of everything."""
        await self.settled()
        self._thread.shutdown()
        self._held.clear()

    async def _load(self, version: str) -> None:
        try:
            if self._folder is None or not (self._folder / version / MANIFEST).exists():
                self._failed[version] = ("absent", time.monotonic() + RETRY_SECONDS)
                return
            bundle, trouble = await asyncio.get_running_loop().run_in_executor(
                self._thread, _open, self._folder / version, self._warm)
        except BundleError as error:
            self._failed[version] = ("broken", time.monotonic() + RETRY_SECONDS)
            self._tell("bundle broken", version, detail=str(error))
        else:
            self._failed.pop(version, None)
            self._held[version] = bundle
            self._tell("bundle loaded", version, items=f"{bundle.manifest.items}")
            if trouble:
                self._tell("index broken", version, detail=trouble)
        finally:
            del self._loading[version]

    def _tell(self, event: str, version: str, **fields: str) -> None:
        if self._on_state is not None:
            self._on_state(event, {"version": version, **fields})


def _open(folder: Path, warm: Callable[[Bundle], None] | None) -> tuple[Bundle, str]:
    """The bundle, warmed, and what is wrong with its index: without one, lists made ahead can still be served."""
    bundle = Bundle.open(folder)
    if bundle.version != folder.name:
        raise BundleError(f"{folder} holds the bundle of version {bundle.version}")
    trouble = ""
    try:
        bundle.load_index()
        bundle.canary_recall()  # its first search
        if warm is not None:
            warm(bundle)
    except (BundleError, IndexFormatError, ValueError) as error:
        trouble = str(error)
    _ = bundle.catalogue, bundle.category_code
    for array in (bundle.metadata_bytes, bundle.hashes, bundle.table, bundle.neighbours):  # so that no request waits for a disk
        raw = array.view("u1").reshape(-1)
        for start in range(0, len(raw), _WARM_BYTES):
            raw[start : start + _WARM_BYTES : 4096].max(initial=0)
    return bundle, trouble
