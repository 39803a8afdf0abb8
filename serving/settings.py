"""Settings of a server process; they travel to its workers in one environment variable."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from schemas.keys import STREAM_JOB
from schemas.workspace import Workspace

ENVIRONMENT = "BEAMREC_SERVE"


@dataclass(frozen=True)
class Settings:
    """What a worker needs.

    Attributes:
      store: URI of the store.
      workspace: folder that holds the clock and the bundles.
      log_requests: one log line per request.
      log: URI of the event log: events are taken and what was served is told; None for neither.
      policies: file of policies instead of the packaged one.
      keys: file of API keys (``beamrec keys``), which may come later; None: only ``anonymous`` roles.
      anonymous: roles of a request without a key.
      anonymous_rate: requests a second of one client address without a key; 0 for no limit.
      bundles: folder of bundles; None: the workspace's.
      stream_job: name of the streaming job whose values are read.
      workers: processes that share each limit.
      events: take events too; else a collector does, and only what was served is told.
      partitions: of logs that are not there yet.
      cors_origins: web origins that may call this API; "*" for all.
      mask: secret under which user ids are hashed in logs; "" for one of this process.
      run: folder where the workers of one server tell each other their counts, and share limits; None: each has its own.
      until_keys: ``anonymous`` counts while there is no file of keys, and no longer.
    """

    store: str
    workspace: Path
    log_requests: bool = False
    log: str | None = None
    policies: Path | None = None
    keys: Path | None = None
    anonymous: tuple[str, ...] = ("read", "write_events", "write_features", "admin")
    anonymous_rate: float = 0.0
    bundles: Path | None = None
    stream_job: str = STREAM_JOB
    workers: int = 1
    events: bool = True
    partitions: int = 4
    cors_origins: tuple[str, ...] = ()
    mask: str = ""
    run: Path | None = None
    until_keys: bool = False

    @classmethod
    def from_env(cls) -> Settings:
        """The settings of this process's environment; by default those of ./workspace."""
        said = os.environ.get(ENVIRONMENT)
        if said is not None:
            return msgspec.json.decode(said, type=cls, dec_hook=_path)
        workspace = Path("workspace").absolute()
        return cls(f"sqlite:{Workspace(workspace).store}", workspace)

    def to_env(self) -> dict[str, str]:
        """The environment variables that from_env reads."""
        return {ENVIRONMENT: msgspec.json.encode(self, enc_hook=str).decode()}


def _path(kind: type, value: object) -> object:
    return kind(value)


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
