"""Removes what nobody needs from a lake: files that no snapshot knows, expired metadata, spilled rows of the killed."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from beam_pipelines.io.lake import Lake
from schemas.tables import TABLES

OLDER_THAN_HOURS = 24.0
"""No job holds a file so long before it commits it; one that did would fail, say so, and make it again when run again."""


@dataclass(frozen=True)
class Swept:
    """What was removed; ``busy``: nothing was looked at, for a writer holds the lake."""

    files: int = 0
    bytes: int = 0
    busy: bool = False


def sweep(lake: Lake, older_than_hours: float = OLDER_THAN_HOURS) -> Swept:
    """Removes files that were last written so long ago and that no snapshot of their table refers to.

    Whatever time travel can reach stays. The writer lock is held meanwhile; when another process has it, this one leaves
    it at that: what is left today goes tomorrow.
    """
    before = time.time() - older_than_hours * 3600
    try:
        with lake.writer(wait=False):
            removed = [size for name in TABLES for size in _orphans(lake, name, before)]
            removed += [size for name in TABLES for size in _metadata(lake, name, before)]
            removed += [size for folder in lake.spill_root.glob("*") for size in _spilled(folder, before)]
    except BlockingIOError:
        return Swept(busy=True)
    return Swept(len(removed), sum(removed))


def _orphans(lake: Lake, name: str, before: float) -> list[int]:
    """Removes data files of a table; returns their sizes."""
    # The disk first, the snapshots after: a file that is committed in between is found among the snapshots'.
    old = [path for path in lake.data_folder(name).rglob("*.parquet") if path.stat().st_mtime < before]
    if not old:
        return []
    return _remove(old, lake.known_files(name))


def _metadata(lake: Lake, name: str, before: float) -> list[int]:
    """Removes versions, manifest lists and manifests of a table that expired with their snapshots; returns their sizes."""
    folder = lake.metadata_folder(name)
    if folder is None:
        return []
    old = [path for pattern in ("*.metadata.json", "*.avro") for path in folder.glob(pattern) if path.stat().st_mtime < before]
    return _remove(old, lake.known_metadata(name)) if old else []


def _remove(old: list[Path], known: set[str]) -> list[int]:
    orphans = [path for path in old if str(path) not in known]
    sizes = [path.stat().st_size for path in orphans]
    for path in orphans:
        path.unlink(missing_ok=True)
    return sizes


def _spilled(folder: Path, before: float) -> list[int]:
    files = [(path.stat().st_mtime, path.stat().st_size) for path in (folder, *folder.iterdir())]
    if max(time for time, _ in files) >= before:
        return []
    shutil.rmtree(folder)
    return [size for _, size in files[1:]]
