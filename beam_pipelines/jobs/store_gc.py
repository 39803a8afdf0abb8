"""Deletes from the store what nobody can read any more: expired stream cells, old suppressions, versions nobody serves."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass

from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from schemas.workspace import Workspace
from serving.pointer import versions_of
from serving.stores import Store, open_store
from serving.stores.admin import collect

KEPT = 3
"""Versions of a surface that stay though no pointer names them."""


@dataclass(frozen=True)
class GcReport:
    """What ``run`` deleted, or without ``applied`` would delete.

    Attributes:
      stream_cells: by group; ``s:*`` are suppressions.
      versions: lists deleted, by version; None: not counted, for nothing was deleted.
    """

    applied: bool
    stream_cells: dict[str, int]
    versions: dict[str, int | None]
    seconds: float


def run(config: Config, apply: bool, keep: int = KEPT) -> GcReport:
    """Looks through the store, and with ``apply`` deletes; killed at any moment, it can be run again.

    Args:
      keep: the newest versions of each surface that no pointer names, which stay.

    Raises:
      StoreError: there is no store, or it is away.
    """
    started = time.monotonic()
    with closing(open_store(config.store, create=False, patient=True)) as store:
        with Stage("look through the stream's cells", 256, config.quiet) as stage:
            gone = collect(store, config.workspace.now(), apply, stage.track(range(256)))
        dropped: dict[str, int | None] = {}
        for version in stale_versions(store, config.workspace, keep):
            dropped[version] = store.drop_version(version) if apply else None
            if apply:
                config.workspace.forget_version(version)
    return GcReport(apply, dict(sorted(gone.items())), dropped, round(time.monotonic() - started, 3))


def stale_versions(store: Store, workspace: Workspace, keep: int) -> list[str]:
    """Versions that no pointer names, but the newest ``keep`` of each surface; those half made count as of one of their own."""
    named = {v for active in store.surfaces().values() for v in versions_of(active)}  # type: ignore[attr-defined]
    loose: dict[str | None, list[str]] = defaultdict(list)
    for version in sorted(store.versions()):
        if version not in named:
            loose[workspace.surface_of(version)].append(version)
    return sorted(v for versions in loose.values() for v in versions[: max(0, len(versions) - keep)])
