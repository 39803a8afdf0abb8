"""What a daily run did, one JSON file per step, and the lock that keeps two runs of one workspace apart."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from beam_pipelines.errors import UserError
from schemas.workspace import Workspace, write_atomically


@dataclass(frozen=True)
class Manifest:
    """One step, done.

    Attributes:
      step, as_of: what was done, for which midnight (microseconds).
      run_id: the run that did it.
      inputs: fingerprints by name; a step whose inputs and settings are these has nothing to do.
      settings: what else its result depends on.
      snapshots: Iceberg snapshot id of each lake table it read, as they were then (for time travel).
      outputs: what it made, as its report says.
      seconds: wall time; peak_rss_mib: highest resident memory of its process.
      beamrec: version of the package that did it; a newer one alone does not repeat a step (see transforms.definitions).
    """

    step: str
    as_of: int
    run_id: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    snapshots: dict[str, int | None]
    outputs: dict[str, Any]
    seconds: float
    peak_rss_mib: float
    beamrec: str = field(default_factory=lambda: version("beamrec"))

    def differs(self, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> list[str]:
        """Names of the inputs and settings that are not what they were."""
        now = {**inputs, **json.loads(json.dumps(dict(settings), default=str))}
        then = {**self.inputs, **self.settings}
        return sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))


def run_folder(workspace: Workspace, as_of: int) -> Path:
    """The folder of one midnight's manifests, e.g. runs/2026-02-15."""
    return workspace.runs / f"{datetime.fromtimestamp(as_of // 1_000_000, UTC):%Y-%m-%d}"


def read(workspace: Workspace, as_of: int, step: str) -> Manifest | None:
    """The manifest of a step, None when it was not done (or is not readable: then it is done again)."""
    try:
        return Manifest(**json.loads((run_folder(workspace, as_of) / f"{step}.json").read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def write(workspace: Workspace, manifest: Manifest) -> None:
    """Records that a step is done."""
    text = json.dumps(asdict(manifest), indent=1, default=str)
    write_atomically(run_folder(workspace, manifest.as_of) / f"{manifest.step}.json", text.encode())


def fingerprint(*parts: object) -> str:
    """16 hex digits of the JSON of some values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def new_run_id(as_of: int) -> str:
    """Names a run in logs and manifests, never in rows: when and by which process it was started."""
    return f"{datetime.fromtimestamp(as_of // 1_000_000, UTC):%Y%m%d}-{datetime.now(UTC):%H%M%S}-{os.getpid()}"


@contextlib.contextmanager
def locked(workspace: Workspace, run_id: str) -> Iterator[int]:
    """Holds the workspace for one run; yields the lock's descriptor, which a step's process inherits.

    The lock is the kernel's: it is free once the run and its step are dead, however they died, so none is ever stale.

    Raises:
      UserError: another run holds it.
    """
    workspace.runs.mkdir(parents=True, exist_ok=True)
    path = workspace.runs / "run.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(f"run {holder} of this workspace is still going on; wait for it or stop it") from None
        file.seek(0)
        file.truncate()
        file.write(run_id)
        file.flush()
        yield file.fileno()
