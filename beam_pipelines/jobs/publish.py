"""Checks a shadow version, lists and bundle, and makes it active, for everybody or for a share of the users."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import asdict, dataclass

from beam_pipelines import crashpoints
from beam_pipelines.errors import KeptPrevious, UserError
from beam_pipelines.jobs.pointers import flip
from beam_pipelines.jobs.recommend import RecommendReport, read_report
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from models.inference.bundle import Bundle, BundleError
from models.inference.index import IndexFormatError
from schemas.workspace import write_atomically
from serving.pointer import PointerError, challenged, published, versions_of
from serving.stores import Store, StoreError, open_store
from serving.stores.base import Active
from transforms.gate import BundleStats, Expected, ListScan, ListStats, Thresholds, bundle_failures, failures

_CHUNK = 4096


@dataclass(frozen=True)
class PublishReport:
    """What ``run`` did.

    Attributes:
      version: that was checked.
      percent: of the users that see it: 100, or a challenger's share.
      previous: what a rollback would return to.
      changed: False when it was served so already.
      stats: of its lists.
      bundle: of what serving loads with them.
      expired: old versions whose lists and bundles were deleted.
    """

    version: str
    surface: str
    percent: float
    previous: str | None
    changed: bool
    stats: ListStats
    bundle: BundleStats
    expired: tuple[str, ...]
    seconds: float


def run(config: Config, version: str, surface: str = "homepage", thresholds: Thresholds | None = None,
        keep: int = 3, canary: float | None = None) -> PublishReport:
    """Checks every list of a version and its bundle, and flips the surface to it; then deletes versions older than the
    newest ``keep``.

    The flip is one compare-and-set: readers see the old version or the new, and of two publishers at once one loses.

    Args:
      canary: percentage of the users that are to see it as the challenger; None: everybody.

    Raises:
      UserError: no complete version of that name, or of that surface; a canary with nothing beside it.
      KeptPrevious: the gate found something wrong, or another publish came between; what was active still is.
    """
    started = time.monotonic()
    recommended = read_report(config, version)
    if recommended.surface != surface:
        raise UserError(f"version {version} holds lists of surface {recommended.surface}, not {surface}")
    limits = thresholds or Thresholds()
    # One more list than users: the unknown user's.
    expected = Expected(recommended.users + 1, recommended.items, recommended.list_length,
                        recommended.model_version, recommended.recall)
    store = open_store(config.store)
    try:
        active = store.active(surface)
        try:
            new = published(active, version) if canary is None else challenged(active, version, canary)
        except PointerError as error:
            raise UserError(f"{surface}: {error}") from error
        with Stage("publish: gate", total=expected.users, quiet=config.quiet) as stage:
            stats = _scan(store, version, expected, stage)
            bundle = _bundle_stats(config, recommended)
        wrong = [*failures(stats, expected, limits), *bundle_failures(bundle, version, expected, limits)]
        if wrong:
            served = f"still serving {active.champion}" if active else "nothing is served yet"
            raise KeptPrevious(f"version {version} was not published, {served}: " + "; ".join(wrong))
        _record(config, version, stats, bundle)
        crashpoints.reached("publish.gated")
        if new != active:
            flip(store, surface, active, new, f"version {version} was not published")
        crashpoints.reached("publish.flipped")
        expired = _expire(config, store, surface, new, keep)
        return PublishReport(version, surface, 100 if canary is None else canary, new.previous, new != active, stats, bundle,
                             expired, time.monotonic() - started)
    finally:
        store.close()


def _scan(store: Store, version: str, expected: Expected, stage: Stage) -> ListStats:
    scan = ListScan(expected)
    cells = store.scan_lists(version)
    while chunk := [cell.value for _, cell in itertools.islice(cells, _CHUNK)]:
        scan.add(chunk)
        stage.advance(len(chunk))
    return scan.stats()


def _bundle_stats(config: Config, recommended: RecommendReport) -> BundleStats:
    """What the gate wants to know of a version's bundle, by opening it as a server does."""
    try:
        bundle = Bundle.open(config.workspace.bundles / recommended.version)
        found = bundle.manifest
        recall, queries = bundle.canary_recall(), len(bundle.canary_answers)
    except (BundleError, IndexFormatError, ValueError) as error:
        return BundleStats(trouble=str(error))
    return BundleStats(found.version, found.model_version, found.index_version, found.embedding_version,
                       int(bundle.active.sum()), queries, recall)


def _record(config: Config, version: str, stats: ListStats, bundle: BundleStats) -> None:
    """Notes in the version's manifest that the gate let it through, so that it may be flipped to by its name alone."""
    path = config.workspace.list_manifest(version)
    document = json.loads(path.read_bytes())
    gate = {"checked_at": config.workspace.now(), "lists": asdict(stats), "bundle": asdict(bundle)}
    write_atomically(path, json.dumps({**document, "gate": gate}, indent=1, sort_keys=True).encode())


def _expire(config: Config, store: Store, surface: str, active: Active, keep: int) -> tuple[str, ...]:
    """Drops the surface's versions older than the champion, but the newest ``keep - 1`` of them, and what a rollback needs;
    and what is left of versions that were dropped half."""
    there, surface_of = store.versions(), config.workspace.surface_of
    older = [v for v in there if v < active.champion and surface_of(v) in (surface, None)]
    stale = [v for v in older[: max(0, len(older) - (keep - 1))] if v not in versions_of(active)]
    expired = []
    for version in stale:
        try:
            store.drop_version(version)
        except StoreError:  # another surface serves it
            continue
        crashpoints.reached("publish.dropped")
        config.workspace.forget_version(version)
        expired.append(version)
    for folder in config.workspace.bundles.glob("*"):
        if folder.name not in there and folder.name < active.champion and surface_of(folder.name) in (surface, None):
            config.workspace.forget_version(folder.name)
    return tuple(expired)
