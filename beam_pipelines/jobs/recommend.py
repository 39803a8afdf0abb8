"""Writes every user's ranked list under a shadow version: nothing is served from it before ``publish``."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from beam_pipelines import crashpoints
from beam_pipelines.errors import UserError
from beam_pipelines.io.lake import DataFile, Lake
from beam_pipelines.io.store_sink import WriteLists, write_catalogue
from beam_pipelines.jobs import bundling
from beam_pipelines.jobs.index import find_model
from beam_pipelines.jobs.popular_lists import read_profiles
from beam_pipelines.options import Config, active_days
from beam_pipelines.progress import Stage
from beam_pipelines.runner import pipeline
from models.inference import index as item_index
from models.inference.bundle import MANIFEST
from models.inference.bundle_write import SNAPSHOT_COLUMNS
from models.registry import ModelVersion
from schemas import metric_names
from schemas.keys import list_key
from schemas.tables import USER_SNAPSHOTS
from schemas.workspace import DAY_MICROS, write_atomically
from serving.stores import open_store
from serving.stores.base import Cell, ListWrite, Store
from transforms import definitions
from transforms.beam.recommend import Recommend, Retrieval, Stamp, pack
from transforms.candidates import Blend, Ranker, Users
from transforms.catalogue import Catalogue, load_catalogue, make_catalogue, save_catalogue

BATCH_ROWS = 8192
_UNREAD = ("published_at", "last_items", "consumed_items")
_USER_COLUMNS = [*(n for n in USER_SNAPSHOTS.schema.names if n not in _UNREAD), "last_items.ids", "last_items.scores",
                 "consumed_items.ids"]
"""Half of a snapshot's bytes are times and scores that neither the user tower nor the ranking reads; when a snapshot was
published decides nothing here."""
_ITEM_COLUMNS = ("as_of", "item_id", "popularity_30d", "cooccurring_items", *SNAPSHOT_COLUMNS)


@dataclass(frozen=True)
class RecommendSettings:
    """What decides the lists, beside the inputs; part of the version.

    Attributes:
      ttl_days: lists expire so long after generation.
      active_days: only who had an event of weight > 0 in so many days before as_of gets a list; a dormant user's list is made
        when they come back, at the request. 0: everybody. None: the default of options.active_days.
    """

    surface: str = "homepage"
    ttl_days: float = 7.0
    blend: Blend = field(default_factory=Blend)
    active_days: float | None = None


@dataclass(frozen=True)
class RecommendReport:
    """What ``run`` did.

    Attributes:
      users: of the snapshot, active ones; every one has a list.
      without_vector: users ranked by popularity alone.
      items: active ones.
      recall: share of the true best items that retrieval found, on sampled users; 1 for an exact index, None: none sampled.
      catalogue_changed: item entries written because they differed.
      stages: seconds of each stage; ``bundle`` is what writing it took, most of it while lists were made.
      reused: the version was complete already.
      dormant: users of the snapshot without a list, see RecommendSettings.active_days.
    """

    version: str
    model_version: str
    surface: str
    as_of: int
    users: int
    without_vector: int
    items: int
    list_length: int
    index: str
    recall: float | None
    catalogue_changed: int
    seconds: float
    stages: dict[str, float]
    reused: bool = False
    dormant: int = 0


@dataclass(frozen=True)
class LocalRetrieval:
    """Loads the index and the catalogue from folders that every worker sees."""

    index: str
    catalogue: str
    model_version: str

    def open(self) -> Retrieval:
        """See transforms.beam.recommend.RetrievalSource."""
        index = item_index.load(Path(self.index))
        catalogue = load_catalogue(Path(self.catalogue), index.item_ids, index.vectors)
        search = functools.partial(_search, index, self.model_version)
        return Retrieval(catalogue, search, exact=index.kind == "exact")


def _search(index: item_index.ItemIndex, model_version: str, queries: Any, k: int) -> Any:
    return index.search(queries, k, model_version)


def run(config: Config, as_of: int, model_version: str | None = None, settings: RecommendSettings | None = None,
        handler: ModelHandler | None = None) -> RecommendReport:
    """Writes the lists of all users as of a time; a version that is complete already is left alone.

    Args:
      as_of: microseconds; the feature snapshot of its UTC midnight is read.
      model_version: default the newest.
      handler: makes user vectors; default the model's user tower.

    Raises:
      UserError: no snapshot as of then, no such model, or no index.
    """
    settings, started, stages = settings or RecommendSettings(), time.monotonic(), {}
    settings = dataclasses.replace(settings, active_days=active_days(config.workspace, settings.active_days))
    as_of = as_of // DAY_MICROS * DAY_MICROS
    model = find_model(config, model_version)
    with Stage("recommend: catalogue", quiet=config.quiet) as stage:
        index = _index(model)
        lake = Lake.open(config.lake, config.catalog)
        files = lake.files("user_snapshots", as_of, as_of + DAY_MICROS)
        if not files:
            raise UserError(f"no user features as of {_day(as_of)}: run 'beamrec features --as-of {_day(as_of)}' first")
        with ThreadPoolExecutor(1) as beside:  # half of the stage's work, and Arrow's: it needs no interpreter
            users = beside.submit(_users_fingerprints, files)
            snapshot = lake.read("item_snapshots", _ITEM_COLUMNS, as_of, as_of + DAY_MICROS)
            snapshot = snapshot.filter(pc.equal(snapshot["as_of"].cast(pa.int64()), as_of))
            items = lake.read("items")
            profiles = read_profiles(lake)
            manifest = _manifest(as_of, model, index, settings, users.result(), snapshot, items)
            if profiles is not None:
                manifest["inputs"]["users"] = _table_fingerprint(profiles, "user_id")
        version = version_of(manifest)
        done = _completed(config, version)
        if done is not None:
            return done
        catalogue = make_catalogue(index.item_ids, index.vectors, snapshot, items)
        folder = config.workspace.scratch / f"recommend-{version}"
        save_catalogue(catalogue, folder)
    stages["catalogue"] = stage.seconds

    now = config.workspace.now() // 1000 * 1000
    stamp = Stamp(settings.surface, model.version, now, now + int(settings.ttl_days * DAY_MICROS))
    store = open_store(config.store)
    try:
        with ThreadPoolExecutor(1) as beside:  # item entries need no ranking: they are written meanwhile
            entries = beside.submit(write_catalogue, store, items)
            bundle = beside.submit(bundling.write, config, version, settings.surface, as_of, model, index, catalogue, items,
                                   snapshot, files, profiles)
            with Stage("recommend: lists", quiet=config.quiet) as stage:
                _write_unknown_user(store, version, catalogue, settings.blend, stamp)
                counters = _run_pipeline(config, version, files, _ReadUsers(as_of, settings.active_days or 0),
                                         handler or _user_tower(model), settings.blend, stamp,
                                         LocalRetrieval(str(model.index), str(folder), model.version))
            stages["lists"] = stage.seconds
            with Stage("recommend: item entries", quiet=config.quiet) as stage:
                changed = entries.result()
            stages["item_entries"] = stage.seconds
            with Stage("recommend: bundle", quiet=config.quiet):
                stages["bundle"] = bundle.result()
    finally:
        store.close()
    wanted = counters.get(metric_names.RETRIEVAL_WANTED, 0)
    recall = counters.get(metric_names.RETRIEVAL_FOUND, 0) / wanted if wanted else 1.0 if index.kind == "exact" else None
    report = RecommendReport(version, model.version, settings.surface, as_of, counters.get(metric_names.LISTS_WRITTEN, 0),
                             counters.get(metric_names.USERS_WITHOUT_VECTOR, 0), int(catalogue.active.sum()),
                             settings.blend.list_length, index.kind, recall, changed, time.monotonic() - started,
                             stages, dormant=counters.get(metric_names.USERS_DORMANT, 0))
    document = {"manifest": manifest, "report": dataclasses.asdict(report)}
    crashpoints.reached("lists.written")
    write_atomically(config.workspace.list_manifest(version), json.dumps(document, indent=1, sort_keys=True).encode())
    shutil.rmtree(folder, ignore_errors=True)
    return report


def version_of(manifest: dict[str, Any]) -> str:
    """``<as_of YYYYMMDDTHHMMSS>-<8 hex digits>`` of a manifest's content."""
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    as_of = datetime.fromtimestamp(manifest["as_of"] // 1_000_000, UTC)
    return f"{as_of:%Y%m%dT%H%M%S}-{xxhash.xxh3_128_hexdigest(content)[:8]}"


def read_report(config: Config, version: str) -> RecommendReport:
    """The report of a complete version; raises UserError when there is none."""
    try:
        return RecommendReport(**json.loads(config.workspace.list_manifest(version).read_bytes())["report"])
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in config.workspace.lists.glob("*.json"))) or "none yet"
        raise UserError(f"no complete version {version!r}; complete versions: {known}") from None


def _completed(config: Config, version: str) -> RecommendReport | None:
    """The report of a version that is complete, still in the store and has its bundle."""
    if not config.workspace.list_manifest(version).exists():
        return None
    store = open_store(config.store)
    try:
        if version not in store.versions() or not (config.workspace.bundles / version / MANIFEST).is_file():
            return None
    finally:
        store.close()
    return dataclasses.replace(read_report(config, version), reused=True)


def _manifest(as_of: int, model: ModelVersion, index: item_index.ItemIndex, settings: RecommendSettings, users: list[str],
              snapshot: pa.Table, items: pa.Table) -> dict[str, Any]:
    """Everything the lists follow from, by content: no wall time, path, lake snapshot id or measured recall, so that the same
    inputs give the same version in any workspace."""
    searched = {name: value for name, value in getattr(index, "settings", {}).items() if name != "recall"}
    return {
        "definition": definitions.LISTS,
        "as_of": as_of,
        "model_version": model.version,
        "index": {"kind": index.kind, **searched},
        "inputs": {
            "user_snapshots": users,
            "item_snapshots": _table_fingerprint(snapshot.drop_columns(["as_of"])),
            "items": _table_fingerprint(items),
        },
        "settings": dataclasses.asdict(settings),
    }


def _users_fingerprints(files: list[DataFile]) -> list[str]:
    """Of the columns that the job reads of snapshot files, whatever their order, metadata, encoding and row groups."""
    return sorted(_users_fingerprint(f.path) for f in files)


def _users_fingerprint(path: str) -> str:
    digest = xxhash.xxh3_128()
    for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS, columns=_USER_COLUMNS):
        digest.update(_plain_bytes(pa.Table.from_batches([batch])))
    return digest.hexdigest()


def _table_fingerprint(table: pa.Table, key: str = "item_id") -> str:
    """Of the rows in the order of their key, however they are stored."""
    return xxhash.xxh3_128_hexdigest(_plain_bytes(table.take(pc.sort_indices(table[key])).combine_chunks()))


def _plain_bytes(table: pa.Table) -> memoryview:
    """The rows as one Arrow stream without metadata."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None))
    return memoryview(sink.getvalue())


def _index(model: ModelVersion) -> item_index.ItemIndex:
    try:
        index = item_index.load(model.index)
    except item_index.IndexFormatError as error:
        raise UserError(f"model {model.version} has no index ({error}): run 'beamrec index' first") from error
    if index.model_version != model.version:
        raise UserError(f"the index beside model {model.version} was built from {index.model_version}: run 'beamrec index'")
    return index


def _user_tower(model: ModelVersion) -> ModelHandler:
    from models.two_tower.inference import UserTowerHandler

    return UserTowerHandler(str(model.saved_model))


class _ReadUsers(beam.DoFn):  # type: ignore[misc]
    """(path, row group) -> the RecordBatches of users of one as_of; ``active_days`` as in RecommendSettings."""

    def __init__(self, as_of: int, active_days: float) -> None:
        self._as_of, self._active_days = as_of, active_days
        self._dormant = Metrics.counter(metric_names.NAMESPACE, metric_names.USERS_DORMANT)

    def process(self, element: tuple[str, int]) -> Iterator[pa.RecordBatch]:
        path, group = element
        for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=_USER_COLUMNS):
            wanted = pc.equal(batch.column("as_of").cast(pa.int64()), self._as_of)
            if not pc.all(wanted).as_py():  # a filter copies
                batch = batch.filter(wanted)
            if self._active_days:
                # Without any such event recency is null: such users are few and new, so they keep their lists.
                active = pc.fill_null(pc.less_equal(batch.column("recency_days"), self._active_days), True)
                before, batch = batch.num_rows, batch.filter(active)
                self._dormant.inc(before - batch.num_rows)
            if batch.num_rows:
                yield batch


def _run_pipeline(config: Config, version: str, files: list[DataFile], read: _ReadUsers, handler: ModelHandler, blend: Blend,
                  stamp: Stamp, retrieval: LocalRetrieval) -> dict[str, int]:
    groups = [(f.path, group) for f in files for group in range(pq.read_metadata(f.path).num_row_groups)]
    built = pipeline(config, "recommend")
    (built
     | "Snapshot row groups" >> beam.Create(groups)
     | "Read users" >> beam.ParDo(read)
     | "Recommend" >> Recommend(handler, retrieval, blend, stamp)
     | "Write lists" >> beam.ParDo(WriteLists(config.store, version, stamp.generated_at)))
    result = built.run()
    result.wait_until_finish()
    counters = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(metric_names.NAMESPACE))["counters"]
    totals: dict[str, int] = {}
    for counter in counters:
        totals[counter.key.metric.name] = totals.get(counter.key.metric.name, 0) + int(counter.result)
    return totals


def _write_unknown_user(store: Store, version: str, catalogue: Catalogue, blend: Blend, stamp: Stamp) -> None:
    """The popular items, as the list of user "": what the API answers for a user it does not know."""
    nobody = Users(pa.array([""]), np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32),
                   np.zeros(2, np.int64), np.zeros(0, np.int32))
    nothing = np.zeros((1, catalogue.vectors.shape[1]), np.float32)
    lists = Ranker(catalogue, blend, threads=1).rank(nobody, nothing, np.zeros(1, bool), np.zeros((1, 0), np.int32),
                                                     np.zeros((1, 0), np.float32))
    packed = pack(nobody.user_ids, lists, catalogue, stamp)
    store.write_lists([ListWrite(list_key("", stamp.surface), version, Cell(packed.column("value")[0].as_py(),
                                                                            stamp.generated_at))])


def _day(micros: int) -> str:
    return f"{datetime.fromtimestamp(micros // 1_000_000, UTC):%Y-%m-%d}"
