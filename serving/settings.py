"""Settings of a server process; they travel to its workers in environment variables."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from schemas.workspace import Workspace

STORE, WORKSPACE, LOG_REQUESTS = "BEAMREC_STORE", "BEAMREC_WORKSPACE", "BEAMREC_LOG_REQUESTS"


@dataclass(frozen=True)
class Settings:
    """What a worker needs.

    Attributes:
      store: URI of the store.
      workspace: folder that holds the clock.
      log_requests: one log line per request.
    """

    store: str
    workspace: Path
    log_requests: bool = False

    @classmethod
    def from_env(cls) -> Settings:
        """The settings of this process's environment; by default those of ./workspace."""
        workspace = Path(os.environ.get(WORKSPACE, "workspace")).absolute()
        store = os.environ.get(STORE, f"sqlite:{Workspace(workspace).store}")
        return cls(store, workspace, os.environ.get(LOG_REQUESTS) == "1")

    def to_env(self) -> dict[str, str]:
        """The environment variables that from_env reads."""
        return {STORE: self.store, WORKSPACE: str(self.workspace), LOG_REQUESTS: "1" if self.log_requests else "0"}


class Clock:
    """The workspace clock; its file is looked at once a second."""

    def __init__(self, workspace: Workspace, seconds: float = 1.0) -> None:
        self._workspace, self._seconds = workspace, seconds
        self._checked, self._frozen_at = -seconds, 0

    def __call__(self) -> int:
        """Microseconds since 1970, UTC."""
        monotonic = time.monotonic()
        if monotonic - self._checked >= self._seconds:
            self._checked = monotonic
            self._frozen_at = self._workspace.now() if self._workspace.is_frozen else 0
        return self._frozen_at or time.time_ns() // 1000
