"""A workspace: the folder that holds everything local, and its one clock."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

DAY_MICROS = 86_400_000_000
_READ_ONLY = (errno.EROFS, errno.EACCES)


@dataclass(frozen=True)
class Workspace:
    """Paths of a workspace, and its clock: the wall clock or, after an import of old data, frozen.

    Expiry, ``now`` and ``as_of`` all ask ``now()``. The clock is frozen at the midnight (UTC) after the last imported
    event, and only ever moves forward. Once live events come in it runs again, and no import freezes it.
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
    def keys(self) -> Path:
        """API keys, hashed (``beamrec keys``)."""
        return self.root / "keys.json"

    @property
    def runs(self) -> Path:
        """Manifests of daily runs."""
        return self.root / "runs"

    @property
    def lists(self) -> Path:
        """One manifest per version of ranked lists, written when the version is complete."""
        return self.root / "lists"

    @property
    def bundles(self) -> Path:
        """One folder per published version: what requests need of it, memory-mapped (models.inference.bundle)."""
        return self.root / "bundles"

    @property
    def scratch(self) -> Path:
        """Files that may be deleted whenever nothing runs."""
        return self.root / "scratch"

    def list_manifest(self, version: str) -> Path:
        """What the lists of a version were made of; without it a version is not complete."""
        return self.lists / f"{version}.json"

    def surface_of(self, version: str) -> str | None:
        """The surface that a version's lists are of; None for one that is not complete."""
        try:
            return str(json.loads(self.list_manifest(version).read_bytes())["report"]["surface"])
        except (OSError, ValueError, KeyError):
            return None

    def forget_version(self, version: str) -> None:
        """Deletes bundle and manifest of a version without lists; whoever has the bundle open keeps it."""
        shutil.rmtree(self.bundles / version, ignore_errors=True)
        self.list_manifest(version).unlink(missing_ok=True)

    @property
    def _clock_file(self) -> Path:
        return self.root / "clock.json"

    def _clock(self) -> dict[str, int]:
        try:
            return dict(json.loads(self._clock_file.read_text()))
        except FileNotFoundError:
            return {}

    def now(self) -> int:
        """Microseconds since 1970 (UTC) by this workspace's clock."""
        clock = self._clock()
        return int(clock["frozen_at"]) if clock and not clock.get("runs") else time.time_ns() // 1000

    @property
    def is_frozen(self) -> bool:
        """Whether the clock stands still."""
        clock = self._clock()
        return bool(clock) and not clock.get("runs")

    @property
    def data_until(self) -> int | None:
        """The midnight after the last imported event, microseconds; None before the first import."""
        found = self._clock().get("frozen_at")
        return None if found is None else int(found)

    def freeze_after(self, last_event: int) -> int:
        """Freezes the clock at the midnight after an event time (microseconds) and returns it; never moves it back.

        A clock that runs for live events goes on running; ``data_until`` moves all the same.
        """
        clock = self._clock()
        midnight = max((last_event // DAY_MICROS + 1) * DAY_MICROS, clock.get("frozen_at", 0))
        write_atomically(self._clock_file, json.dumps({**clock, "frozen_at": midnight}).encode())
        return midnight

    def run_clock(self) -> bool:
        """From now on the wall clock counts: live events are coming in.

        Returns:
          False for a frozen clock in a folder that this process may only read: somebody else has to.
        """
        clock = self._clock()
        if clock.get("runs"):
            return True
        try:
            write_atomically(self._clock_file, json.dumps({**clock, "runs": 1}).encode())
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            return not clock
        return True


def write_atomically(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Writes a file so that a reader, or a restart after a crash, sees the old content or the new, never a part.

    ``mode`` is that of a new file, less the process's umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
