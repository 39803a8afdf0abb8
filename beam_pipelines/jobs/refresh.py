"""New lists for users with events in the last hour: of the versions they are served, with newer timestamps.

Everything comes from the store and the versions' bundles, nothing from the lake: what the stream knows since the night stands
in the lists minutes later. A list made here replaces the one of the night and is replaced by the next publish.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from beam_pipelines import crashpoints
from beam_pipelines.errors import KeptPrevious, UserError
from beam_pipelines.io.store_sink import WriteLists
from beam_pipelines.jobs.index import find_model
from beam_pipelines.options import Config
from beam_pipelines.progress import Stage
from beam_pipelines.runner import pipeline
from models.inference.bundle import Bundle, BundleError
from schemas import metric_names
from schemas.keys import USER, row_key
from serving.stores import Store, StoreError, open_store
from serving.stores.base import Active, Family
from serving.versions import version_for
from transforms.beam.recommend import Recommend, Retrieval, Stamp
from transforms.candidates import Blend
from transforms.gate import Expected, ListScan
from transforms.refresh import BATCH_GROUPS, STREAM_GROUPS, user_rows

BATCH_ROWS = 4096
ACTIVE_GROUP = "user_recent"
"""The cell whose timestamp is a user's latest event of weight > 0."""


@dataclass(frozen=True)
class RefreshReport:
    """What ``run`` did.

    Attributes:
      since: microseconds; users with an event at or after it got new lists.
      users: how many, by version (of the champion and of a challenger).
      expires_at: of the new lists.
    """

    surface: str
    since: int
    users: dict[str, int]
    generated_at: int
    expires_at: int
    seconds: float
    stages: dict[str, float]


@dataclass(frozen=True)
class BundleRetrieval:
    """Loads index and catalogue from a bundle's folder, which every worker sees."""

    folder: str

    def open(self) -> Retrieval:
        """See transforms.beam.recommend.RetrievalSource."""
        bundle = Bundle.open(Path(self.folder))
        return Retrieval(bundle.catalogue, partial(_search, bundle), exact=bundle.index.kind == "exact")


def _search(bundle: Bundle, queries: Any, k: int) -> Any:
    return bundle.index.search(queries, k, bundle.manifest.model_version)


def run(config: Config, within_s: float, surface: str = "homepage", handler: ModelHandler | None = None) -> RefreshReport:
    """Writes new lists for users with events in the last ``within_s`` seconds of the workspace clock.

    Args:
      handler: makes user vectors; default the user tower of each version's model.

    Raises:
      UserError: nothing is published on the surface, or its bundle or model is gone.
      KeptPrevious: a list that was made cannot be served; what was written before is complete lists of users.
    """
    started, stages = time.monotonic(), {}
    now = config.workspace.now() // 1000 * 1000
    since = now - int(within_s * 1_000_000)
    try:
        store = open_store(config.store, create=False, patient=True)
    except StoreError as error:
        raise UserError(f"nothing is published on {surface} yet: {error}") from error
    folder = config.workspace.scratch / f"refresh-{surface}-{now}"
    expires = now
    try:
        active = store.active(surface)
        if active is None:
            raise UserError(f"nothing is published on {surface} yet: run 'beamrec publish' first")
        with Stage("refresh: active users", quiet=config.quiet) as stage:
            found = _write_active(store, active, since, folder)
        stages["active_users"] = stage.seconds
        with Stage("refresh: lists", total=len(found), quiet=config.quiet) as stage:
            for version in sorted(found):
                expires = max(expires, _refresh(config, version, surface, folder / f"{version}.parquet", now, handler))
                stage.advance(1)
        stages["lists"] = stage.seconds
    finally:
        store.close()
        shutil.rmtree(folder, ignore_errors=True)
    return RefreshReport(surface, since, found, now, expires, time.monotonic() - started, stages)


def _write_active(store: Store, active: Active, since: int, folder: Path) -> dict[str, int]:
    """One Parquet file of user ids per version, in row groups of BATCH_ROWS; returns the users by version."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting: dict[str, list[str]] = {}
    writers: dict[str, pq.ParquetWriter] = {}
    counts: dict[str, int] = {}
    schema = pa.schema([("user_id", pa.string())])

    def write(version: str) -> None:
        users = waiting.pop(version)
        if version not in writers:
            writers[version] = pq.ParquetWriter(folder / f"{version}.parquet", schema)
        writers[version].write_batch(pa.record_batch([users], schema=schema))
        counts[version] = counts.get(version, 0) + len(users)

    try:
        for row, cell in store.scan_features("stream", ACTIVE_GROUP):
            if cell.timestamp >= since:
                user = row.split("#", 2)[2]  # <hash>#u#<id>
                held = waiting.setdefault(version_for(active, user), [])
                held.append(user)
                if len(held) == BATCH_ROWS:
                    write(version_for(active, user))
        for version in list(waiting):
            write(version)
    finally:
        for writer in writers.values():
            writer.close()
    return counts


def _refresh(config: Config, version: str, surface: str, users: Path, now: int, handler: ModelHandler | None) -> int:
    """Writes lists of one version; returns when they expire."""
    settings = _settings(config, version)
    folder = config.workspace.bundles / version
    try:
        bundle = Bundle.open(folder)
    except BundleError as error:
        raise UserError(f"version {version} is served, but its bundle cannot be read: {error}") from error
    model = bundle.manifest.model_version
    if handler is None:
        from models.two_tower.inference import UserTowerHandler

        handler = UserTowerHandler(str(find_model(config, model).saved_model))
    blend = Blend(**settings["blend"])
    stamp = Stamp(surface, model, now, now + int(settings["ttl_days"] * 86_400_000_000))
    expected = Expected(0, int(bundle.active.sum()), blend.list_length, model, None)
    groups = [(str(users), group) for group in range(pq.read_metadata(users).num_row_groups)]
    built = pipeline(config, "refresh")
    (built
     | "Active users" >> beam.Create(groups)
     | "Read what is known of them" >> beam.ParDo(_ReadUsers(config.store, now))
     | "Recommend" >> Recommend(handler, BundleRetrieval(str(folder)), blend, stamp)
     | "Check lists" >> beam.ParDo(_CheckLists(expected))
     | "Write lists" >> beam.ParDo(WriteLists(config.store, version, now)))
    result = built.run()
    result.wait_until_finish()
    unfit = sum(int(c.result) for c in result.metrics().query(
        beam.metrics.MetricsFilter().with_namespace(metric_names.NAMESPACE).with_name(metric_names.LISTS_UNFIT))["counters"])
    if unfit:
        raise KeptPrevious(f"version {version}: {unfit} lists were not fit to be served and were not written; the ones of "
                           "before are served on")
    crashpoints.reached("refresh.written")
    return stamp.expires_at


def _settings(config: Config, version: str) -> dict[str, Any]:
    """What the version's lists were made with, so that a refreshed list is made alike."""
    path = config.workspace.list_manifest(version)
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())["manifest"]["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"version {version} is served, but its manifest {path} cannot be read: {error}") from error
    return found


class _ReadUsers(beam.DoFn):  # type: ignore[misc]
    """(path, row group) of user ids -> a RecordBatch of what the store knows of them now."""

    def __init__(self, store: str, now: int) -> None:
        self._uri, self._now = store, now
        self._read = Metrics.counter(metric_names.NAMESPACE, metric_names.USERS_REFRESHED)

    def setup(self) -> None:
        self._store = open_store(self._uri, create=False, patient=True)

    def process(self, element: tuple[str, int]) -> Iterator[pa.RecordBatch]:
        path, group = element
        users = pq.ParquetFile(path).read_row_group(group)["user_id"].to_pylist()
        rows = [row_key(USER, user) for user in users]
        batch, stream = self._cells(rows, "batch", BATCH_GROUPS), self._cells(rows, "stream", STREAM_GROUPS)
        self._read.inc(len(users))
        yield user_rows(users, batch, stream, self._now)

    def _cells(self, rows: list[str], family: Family, groups: tuple[str, ...]) -> list[dict[str, bytes]]:
        return [{group: cell.value for group, cell in held.items()}
                for held in self._store.read_features(rows, family, groups)]

    def teardown(self) -> None:
        self._store.close()


class _CheckLists(beam.DoFn):  # type: ignore[misc]
    """Lets batches of packed lists through that are fit to be served, for nobody looks at them before users do; of others it
    counts the lists."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._unfit = Metrics.counter(metric_names.NAMESPACE, metric_names.LISTS_UNFIT)

    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        scan = ListScan(self._expected)
        scan.add(batch.column("value").to_pylist())
        found = scan.stats()
        if found.empty or found.not_finite or found.increasing or found.other_model or found.broken:
            self._unfit.inc(batch.num_rows)
        else:
            yield batch
