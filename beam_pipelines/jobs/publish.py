"""Checks a shadow version and makes it active; returns to the version before."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

from beam_pipelines import crashpoints
from beam_pipelines.errors import KeptPrevious, UserError
from beam_pipelines.jobs.recommend import read_report
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from serving.stores import Store, StoreError, open_store
from serving.stores.base import Active
from transforms.gate import Expected, ListScan, ListStats, Thresholds, failures

_CHUNK = 4096


@dataclass(frozen=True)
class PublishReport:
    """What ``run`` or ``rollback`` did.

    Attributes:
      version: what is served now.
      previous: what a rollback would return to.
      changed: False when the version was active already.
      stats: of its lists; None after a rollback.
      expired: old versions whose lists were deleted.
    """

    version: str
    surface: str
    previous: str | None
    changed: bool
    stats: ListStats | None
    expired: tuple[str, ...]
    seconds: float


def run(config: Config, version: str, surface: str = "homepage", thresholds: Thresholds | None = None,
        keep: int = 3) -> PublishReport:
    """Checks every list of a version and flips the surface to it; then deletes versions older than the newest ``keep``.

    The flip is one compare-and-set: readers see the old version or the new, and of two publishers at once one loses.

    Raises:
      UserError: no complete version of that name, or of that surface.
      KeptPrevious: the gate found something wrong, or another publish came between; what was active still is.
    """
    started = time.monotonic()
    recommended = read_report(config, version)
    if recommended.surface != surface:
        raise UserError(f"version {version} holds lists of surface {recommended.surface}, not {surface}")
    # One more list than users: the unknown user's.
    expected = Expected(recommended.users + 1, recommended.items, recommended.list_length,
                        recommended.model_version, recommended.recall)
    store = open_store(config.store)
    try:
        with Stage("publish: gate", total=expected.users, quiet=config.quiet) as stage:
            stats = _scan(store, version, expected, stage)
        wrong = failures(stats, expected, thresholds or Thresholds())
        active = store.active(surface)
        served = f"still serving {active.champion}" if active else "nothing is served yet"
        if wrong:
            raise KeptPrevious(f"version {version} was not published, {served}: " + "; ".join(wrong))
        changed = active is None or active.champion != version
        crashpoints.reached("publish.gated")
        if changed:
            new = Active(version, active.challenger, active.percent, active.champion) if active else Active(version)
            if not store.flip(surface, active, new):
                raise KeptPrevious(f"version {version} was not published: another publish changed {surface} meanwhile")
            active = new
        assert active is not None
        crashpoints.reached("publish.flipped")
        expired = _expire(config, store, active, keep)
        return PublishReport(version, surface, active.previous, changed, stats, expired, time.monotonic() - started)
    finally:
        store.close()


def rollback(config: Config, surface: str = "homepage") -> PublishReport:
    """Makes the previous version of a surface active again; the one left is not kept as previous, so that a second rollback
    cannot return to it.

    Raises:
      UserError: nothing was published before the active version, or its lists are gone.
      KeptPrevious: another publish came between.
    """
    started = time.monotonic()
    store = open_store(config.store)
    try:
        active = store.active(surface)
        if active is None:
            raise UserError(f"nothing is published on {surface} yet")
        if active.previous is None:
            raise UserError(f"no version was active on {surface} before {active.champion}: nothing to roll back to")
        if active.previous not in store.versions():
            raise UserError(f"the lists of version {active.previous} are gone: publish another version instead")
        if not store.flip(surface, active, replace(active, champion=active.previous, previous=None)):
            raise KeptPrevious(f"nothing was rolled back: another publish changed {surface} meanwhile")
        return PublishReport(active.previous, surface, None, True, None, (), time.monotonic() - started)
    finally:
        store.close()


def _scan(store: Store, version: str, expected: Expected, stage: Stage) -> ListStats:
    scan = ListScan(expected)
    cells = store.scan_lists(version)
    while chunk := [cell.value for _, cell in itertools.islice(cells, _CHUNK)]:
        scan.add(chunk)
        stage.advance(len(chunk))
    return scan.stats()


def _expire(config: Config, store: Store, active: Active, keep: int) -> tuple[str, ...]:
    """Drops versions older than the active one, but the newest ``keep - 1`` of them, and what a rollback needs."""
    older = [v for v in store.versions() if v < active.champion]
    stale = [v for v in older[: max(0, len(older) - (keep - 1))] if v not in (active.challenger, active.previous)]
    expired = []
    for version in stale:
        try:
            store.drop_version(version)
        except StoreError:  # another surface serves it
            continue
        (config.workspace.lists / f"{version}.json").unlink(missing_ok=True)
        expired.append(version)
    return tuple(expired)

