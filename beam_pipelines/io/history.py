"""How a lake table's history stays short: metadata, manifests and snapshots do not grow with the commits."""

from __future__ import annotations

from collections.abc import Sequence

import pyiceberg.table
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update import TableUpdate
from pyiceberg.table.update.snapshot import _ManifestMergeManager, _OverwriteFiles

_MANIFESTS = 10
_MANIFEST_BYTES = 8 << 20
"""So many manifests of a table are joined into one of at most so many bytes."""
PROPERTIES = {
    TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED: "true",
    TableProperties.METADATA_PREVIOUS_VERSIONS_MAX: "10",
    TableProperties.MANIFEST_MERGE_ENABLED: "true",
    TableProperties.MANIFEST_MIN_MERGE_COUNT: str(_MANIFESTS),
    TableProperties.MANIFEST_TARGET_SIZE_BYTES: str(_MANIFEST_BYTES),
}
"""A table's metadata stay as large after a million commits as after a hundred; a table that lacks them gets them."""

KEEP_SNAPSHOTS = 60
KEEP_HOURLY_DAYS = 7
"""Time travel: to each of so many newest snapshots, and to the last one of each hour of so many days."""
_EXPIRE_EVERY, _EXPIRE_AT_ONCE = 30, 1000
PROPERTY_PREFIX = "beamrec."
"""Begins the properties that we give snapshots: the newest snapshot that has one is always kept, for a writer reads it."""


class Transaction(pyiceberg.table.Transaction):
    """Keeps the metadata between changes: pyiceberg copies all of it, snapshot by snapshot, twenty times a commit."""

    _kept: tuple[TableMetadata, tuple[TableUpdate, ...], TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        kept = self._kept
        if kept is None or kept[0] is not self._table.metadata or kept[1] is not self._updates:
            kept = self._kept = (self._table.metadata, self._updates, super().table_metadata)
        return kept[2]


class Overwrite(_OverwriteFiles):
    """An overwrite that joins manifests, as a merging append does, and drops those that only say what is long gone."""

    def __init__(self, transaction: Transaction, properties: dict[str, str]) -> None:
        replaces = transaction.table_metadata.current_snapshot() is not None
        super().__init__(Operation.OVERWRITE if replaces else Operation.APPEND, transaction, transaction._table.io,
                         snapshot_properties=properties)

    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        alive = [m for m in manifests
                 if m.has_added_files() or m.has_existing_files() or m.added_snapshot_id in (None, self.snapshot_id)]
        return _ManifestMergeManager(_MANIFEST_BYTES, _MANIFESTS, True, self).merge_manifests(alive)


def expire(table: Table) -> None:
    """Lets what is expendable of a table's snapshots expire, once in a while; their files go with the daily sweep."""
    if len(ids := expendable(table.snapshots())) >= _EXPIRE_EVERY:
        table.maintenance.expire_snapshots().by_ids(ids[:_EXPIRE_AT_ONCE]).commit()


def expendable(snapshots: Sequence[Snapshot]) -> list[int]:
    """Ids of the snapshots that nobody needs any more, oldest first; see KEEP_SNAPSHOTS and PROPERTY_PREFIX."""
    newest = sorted(snapshots, key=lambda s: -(s.sequence_number or 0))
    since = newest[0].timestamp_ms - KEEP_HOURLY_DAYS * 86_400_000 if newest else 0
    keep = {s.snapshot_id for s in newest[:KEEP_SNAPSHOTS]}
    said, hours = set[str](), set[int]()
    for snapshot in newest:
        summary = snapshot.summary.additional_properties if snapshot.summary is not None else {}
        properties = {key for key in summary if key.startswith(PROPERTY_PREFIX)}
        hour = snapshot.timestamp_ms // 3_600_000
        if properties - said or (snapshot.timestamp_ms >= since and hour not in hours):
            keep.add(snapshot.snapshot_id)
        said |= properties
        hours.add(hour)
    return [s.snapshot_id for s in reversed(newest) if s.snapshot_id not in keep]
