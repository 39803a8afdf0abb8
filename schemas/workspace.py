"""A workspace: the folder that holds everything local, and its one clock."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

DAY_MICROS = 86_400_000_000


@dataclass(frozen=True)
class Workspace:
    """Paths of a workspace, and its clock: the wall clock or, after an import of old data, frozen.

    Expiry, ``now`` and ``as_of`` all ask ``now()``. The clock is frozen at the midnight (UTC) after the last imported
    event, and only ever moves forward.
    """

    root: Path

    @property
    def lake(self) -> Path:
        """Iceberg catalog and warehouse."""
        return self.root / "lake"

    @property
    def store(self) -> Path:
        """The embedded store."""
        return self.root / "store.db"

    @property
    def models(self) -> Path:
        """One folder per model version: transform graph, SavedModel, vectors, index."""
        return self.root / "models"

    @property
    def runs(self) -> Path:
        """Manifests of daily runs."""
        return self.root / "runs"

    @property
    def lists(self) -> Path:
        """One manifest per version of ranked lists, written when the version is complete."""
        return self.root / "lists"

    @property
    def scratch(self) -> Path:
        """Files that may be deleted whenever nothing runs."""
        return self.root / "scratch"

    @property
    def _clock_file(self) -> Path:
        return self.root / "clock.json"

    def now(self) -> int:
        """Microseconds since 1970 (UTC) by this workspace's clock."""
        try:
            frozen = json.loads(self._clock_file.read_text())["frozen_at"]
        except FileNotFoundError:
            return time.time_ns() // 1000
        return int(frozen)

    @property
    def is_frozen(self) -> bool:
        """Whether the clock stands still."""
        return self._clock_file.exists()

    def freeze_after(self, last_event: int) -> int:
        """Freezes the clock at the midnight after an event time (microseconds) and returns it; never moves it back."""
        midnight = (last_event // DAY_MICROS + 1) * DAY_MICROS
        if self.is_frozen:
            midnight = max(midnight, self.now())
        write_atomically(self._clock_file, json.dumps({"frozen_at": midnight}).encode())
        return midnight


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a restart after a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
