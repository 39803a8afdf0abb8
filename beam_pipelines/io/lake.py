"""The lake: Iceberg tables through pyiceberg. Parquet files are written by us and added by reference.

A write is one Iceberg transaction: readers see all of it or none. ``replace_days`` makes a re-run of a day harmless.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, GreaterThanOrEqual, In, LessThan
from pyiceberg.table import Table as IcebergTable
from pyiceberg.table import TableProperties, _parquet_files_to_data_files
from pyiceberg.transforms import DayTransform

from beam_pipelines import crashpoints
from beam_pipelines.io import history
from beam_pipelines.io.lakewait import AWAY
from schemas.tables import POSITION, TABLES
from schemas.workspace import DAY_MICROS

NAMESPACE = "beamrec"
_PLAIN_COLUMNS = {"event_id", "event_hash", "payload", "state", "occurred_at", "ingested_at", "captured_at"}
"""Nearly unique values: a dictionary of them would be built, found too large and thrown away."""
_RISING_COLUMNS = {"offset": "DELTA_BINARY_PACKED"}


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table. ``day`` is the midnight (microseconds) of its partition, None when unpartitioned."""

    path: str
    day: int | None
    rows: int
    bytes: int


class Lake:
    """The tables of ``schemas.tables`` in one Iceberg catalog; a table is created when it is first used."""

    def __init__(self, catalog: Catalog, warehouse: Path) -> None:
        self._catalog = catalog
        self._warehouse = warehouse
        self._mutex, self._held = threading.RLock(), 0

    @classmethod
    def open(cls, root: Path | str, catalog: str | None = None) -> Lake:
        """Opens (or creates) a lake.

        Args:
          root: folder of the default SQLite catalog and of new data files.
          catalog: name of a catalog of pyiceberg's own configuration (.pyiceberg.yaml or PYICEBERG_CATALOG__*);
            None for the SQLite catalog in ``root``.
        """
        root = Path(root).absolute()
        root.mkdir(parents=True, exist_ok=True)
        if catalog is None:
            made: Catalog = SqlCatalog("beamrec", uri=f"sqlite:///{root}/catalog.db", warehouse=f"file://{root}/warehouse")
        else:
            made = load_catalog(catalog)
        with contextlib.suppress(NamespaceAlreadyExistsError):
            made.create_namespace(NAMESPACE)
        return cls(made, root / "warehouse")

    def table(self, name: str) -> IcebergTable:
        """The Iceberg table; created, or given the columns it lacks, when needed. Raises KeyError for another name."""
        wanted = TABLES[name]
        try:
            table = self._catalog.load_table((NAMESPACE, name))
        except NoSuchTableError:
            try:
                table = self._catalog.create_table((NAMESPACE, name), schema=wanted.schema, properties=history.PROPERTIES)
                if wanted.day_column:
                    with table.update_spec() as spec:
                        spec.add_field(wanted.day_column, DayTransform(), "day_partition")
            except TableAlreadyExistsError:
                pass
            return self._catalog.load_table((NAMESPACE, name))
        missing = [f for f in wanted.schema if f.name not in {c.name for c in table.schema().fields}]
        if missing:
            with table.update_schema() as update:
                update.union_by_name(wanted.schema)
            table = self._catalog.load_table((NAMESPACE, name))
        return table

    def newest_summary(self, name: str, key: str) -> str | None:
        """The value that the newest snapshot with this property gives it; None when no snapshot has it."""
        for snapshot in sorted(self.table(name).snapshots(), key=lambda s: -(s.sequence_number or 0)):
            if snapshot.summary is not None and (value := snapshot.summary.additional_properties.get(key)) is not None:
                return value
        return None

    def snapshot_id(self, name: str) -> int | None:
        """The current snapshot of a table, None while it is empty; ``read`` and ``files`` take it for time travel."""
        snapshot = self.table(name).current_snapshot()
        return snapshot.snapshot_id if snapshot else None

    def files(self, name: str, start: int | None = None, end: int | None = None,
              snapshot_id: int | None = None) -> list[DataFile]:
        """Data files whose day lies in [start, end) (midnights, microseconds), by day and path."""
        table = self.table(name)
        column = TABLES[name].day_column
        if table.current_snapshot() is None:
            return []
        scan = table.scan(row_filter=_between(column, start, end), snapshot_id=snapshot_id)
        found = []
        for task in scan.plan_files():
            day = task.file.partition[0] * DAY_MICROS if column else None
            path = task.file.file_path.removeprefix("file://")
            found.append(DataFile(path, day, task.file.record_count, task.file.file_size_in_bytes))
        return sorted(found, key=lambda f: (f.day or 0, f.path))

    def days(self, name: str, snapshot_id: int | None = None) -> list[int]:
        """The days that hold rows, ascending, as midnights in microseconds."""
        return sorted({f.day for f in self.files(name, snapshot_id=snapshot_id) if f.day is not None})

    def read(self, name: str, columns: Sequence[str] | None = None, start: int | None = None, end: int | None = None,
             snapshot_id: int | None = None) -> pa.Table:
        """Rows of the days [start, end): for small tables and tests; jobs read ``files`` one by one instead."""
        table = self.table(name)
        scan = table.scan(row_filter=_between(TABLES[name].day_column, start, end), snapshot_id=snapshot_id,
                          selected_fields=tuple(columns) if columns else ("*",))
        return scan.to_arrow()

    def read_positions(self, name: str, sources: Sequence[str] | None = None, since: int = 0) -> pa.Table:
        """(source, partition, offset, index) of the rows of some sources (None: all), at offsets from ``since`` on.

        Files whose ranges of sources and offsets hold none of them are not opened.
        """
        names = tuple(f.name for f in POSITION)
        table = self.table(name)
        if table.current_snapshot() is None or (sources is not None and not sources):
            return pa.schema(POSITION).empty_table()
        only: BooleanExpression = AlwaysTrue() if sources is None else In("source", set(sources))
        if since > 0:
            only = And(only, GreaterThanOrEqual("offset", since))
        return table.scan(row_filter=only, selected_fields=names).to_arrow()

    @contextlib.contextmanager
    def writer(self, wait: bool = True) -> Iterator[None]:
        """Holds the lake for one writing process of this machine (others wait); it is free again when the process dies.

        A thread that holds it may take it again.

        Raises:
          BlockingIOError: not ``wait``, and another thread or process holds it.
        """
        if not self._mutex.acquire(blocking=wait):
            raise BlockingIOError("another thread writes")
        self._held += 1
        try:
            if self._held == 1:
                self._lock_file = open(self._warehouse.parent / "writer.lock", "wb")  # noqa: PTH123, SIM115
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            self._held -= 1
            if self._held == 0:
                self._lock_file.close()
            self._mutex.release()

    @property
    def spill_root(self) -> Path:
        """Where a writer puts rows that exceed its memory, in a folder of its own: on the tables' disk, for it is large."""
        return self._warehouse.parent / "spill"

    def data_folder(self, name: str) -> Path:
        """The folder of a table's data files."""
        return self._warehouse / NAMESPACE / name / "data"

    def known_files(self, name: str) -> set[str]:
        """Paths of the data files of every snapshot of a table, the earlier ones too."""
        table = self.table(name)
        manifests = {m.manifest_path: m for snapshot in table.snapshots() for m in snapshot.manifests(table.io)}
        return {entry.data_file.file_path.removeprefix("file://") for manifest in manifests.values()
                for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)}

    def metadata_folder(self, name: str) -> Path | None:
        """The folder of a table's metadata; None where there is none, or the catalog keeps them elsewhere."""
        folder = self._warehouse / NAMESPACE / name / "metadata"
        here = folder.is_dir() and Path(self.table(name).location().removeprefix("file://")) == folder.parent
        return folder if here else None

    def known_metadata(self, name: str) -> set[str]:
        """Paths of a table's metadata: this version and those before it that are kept, manifest lists and manifests."""
        table = self.table(name)
        found = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
        for snapshot in table.snapshots():
            found |= {snapshot.manifest_list, *(manifest.manifest_path for manifest in snapshot.manifests(table.io))}
        return {path.removeprefix("file://") for path in found}

    def new_path(self, name: str, day: int | None = None) -> str:
        """A path for a new data file of a table (its folder exists); write it, then commit it by a call below."""
        folder = self.data_folder(name)
        if day is not None:
            folder = folder / f"day={datetime.fromtimestamp(day // 1_000_000, UTC):%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / f"{uuid.uuid4().hex}.parquet")

    def day_of(self, path: str) -> int | None:
        """The day of a path that ``new_path`` gave."""
        folder = Path(path).parent.name
        if not folder.startswith("day="):
            return None
        return int(datetime.fromisoformat(folder.removeprefix("day=")).replace(tzinfo=UTC).timestamp()) * 1_000_000

    def write_file(self, name: str, rows: pa.Table, day: int | None = None, row_group_size: int = 1 << 20) -> str:
        """Writes rows of one day as one Parquet file (zstd) of the table's schema and returns its path.

        A string column may come dictionary-encoded: it is written as it is, which is several times faster.
        """
        path = self.new_path(name, day)
        schema = TABLES[name].schema
        names = set(schema.names)
        unencoded = _PLAIN_COLUMNS | _RISING_COLUMNS.keys()
        encoded = [leaf for field in schema if field.name not in unencoded for leaf in _leaves(field)]
        pq.write_table(
            conform(rows, schema), path, compression="zstd", compression_level=1, row_group_size=row_group_size,
            use_dictionary=encoded or False,
            column_encoding={n: e for n, e in _RISING_COLUMNS.items() if n in names} or None, store_schema=False)
        return path

    def commit(self, name: str, add: Sequence[str] = (), drop: Iterable[str] = (),
               summary: Mapping[str, str] | None = None) -> int | None:
        """Adds and drops data files in one snapshot, and returns its id (the current one when there is nothing to do).

        Files are not copied: those added must lie where ``new_path`` said, each with the rows of one day.

        Raises:
          ValueError: a file to add is in the table already, or one to drop is not.
        """
        table = self.table(name)
        wanted, current = set(drop), {}
        if table.current_snapshot() is not None:
            current = {task.file.file_path.removeprefix("file://"): task.file for task in table.scan().plan_files()}
        if repeated := sorted(set(add) & (current.keys() - wanted)):
            raise ValueError(f"already in table {name}: {', '.join(repeated)}")
        if missing := sorted(wanted - current.keys()):
            raise ValueError(f"not in table {name}: {', '.join(missing)}")
        if not add and not wanted:
            return self.snapshot_id(name)
        crashpoints.reached(f"{name}.files")
        with history.Transaction(table) as tx:
            properties = {k: v for k, v in history.PROPERTIES.items() if table.properties.get(k) != v}
            if table.name_mapping() is None:  # our files carry no field ids: columns are found by name
                properties[TableProperties.DEFAULT_NAME_MAPPING] = table.schema().name_mapping.model_dump_json()
            if properties:
                tx.set_properties(**properties)
            said = dict(summary or {})
            append = tx.update_snapshot(snapshot_properties=said).merge_append
            with history.Overwrite(tx, said) if wanted else append() as change:
                for path in wanted:
                    change.delete_data_file(current[path])
                for made in _parquet_files_to_data_files(tx.table_metadata, [f"file://{p}" for p in add], table.io):
                    change.append_data_file(made)
        crashpoints.reached(f"{name}.committed")
        table = self.table(name)
        with contextlib.suppress(*AWAY):  # the commit is done: what is not expired now is after the next one
            history.expire(table)
        snapshot = table.current_snapshot()
        return snapshot.snapshot_id if snapshot else None

    def replace_days(self, name: str, files: Mapping[int, Sequence[str]],
                     summary: Mapping[str, str] | None = None) -> int | None:
        """Makes the rows of each day given (midnight in microseconds) exactly those of its files, in one transaction.

        A day with no files is emptied; a file that its day holds already stays. Files are not copied: they must lie
        where ``new_path`` said.
        """
        if TABLES[name].day_column is None:
            raise ValueError(f"table {name} has no days")
        before = {f.path for f in self.files(name) if f.day in files}
        after = [path for day in sorted(files) for path in files[day]]
        return self.commit(name, [p for p in after if p not in before], before - set(after), summary)

    def replace_all(self, name: str, rows: pa.Table, summary: Mapping[str, str] | None = None) -> int | None:
        """Makes an undivided table exactly these rows, in one transaction."""
        return self.commit(name, [self.write_file(name, rows)], [f.path for f in self.files(name)], summary)

    def append(self, name: str, paths: Iterable[str], summary: Mapping[str, str] | None = None) -> int | None:
        """Adds files (each of one day); a file that the table holds already is refused with ValueError."""
        return self.commit(name, list(paths), (), summary)


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, in its order and types; a dictionary-encoded string column stays so where it pays.

    Raises:
      KeyError: a column that may not be null is missing (others become null).
      pa.ArrowInvalid: a value does not fit its type.
    """
    columns, fields = [], []
    for field in schema:
        if field.name not in rows.column_names:
            if not field.nullable:
                raise KeyError(f"column {field.name!r} is missing")
            column = pa.chunked_array([pa.nulls(len(rows), field.type)])
        else:
            column = rows.column(field.name)
        kind = field.type
        # A few rows cut from a large batch carry all of its dictionary: not worth keeping.
        if pa.types.is_dictionary(column.type) and pa.types.is_string(kind) and _entries(column) <= 2 * len(rows):
            kind = pa.dictionary(pa.int32(), pa.string())
        columns.append(column if column.type.equals(kind) else column.cast(kind))
        fields.append(pa.field(field.name, kind, field.nullable))
    return pa.table(columns, schema=pa.schema(fields)).unify_dictionaries()


def _entries(column: pa.ChunkedArray) -> int:
    return sum(len(chunk.dictionary) for chunk in column.chunks)


def _leaves(column: pa.Field) -> list[str]:
    """The Parquet paths of a column's leaves."""
    if pa.types.is_map(column.type):
        return [f"{column.name}.key_value.key", f"{column.name}.key_value.value"]
    if pa.types.is_list(column.type):
        return [f"{column.name}.list.element"]
    if pa.types.is_struct(column.type):
        return [f"{column.name}.{leaf}" for field in column.type for leaf in _leaves(field)]
    return [column.name]


def _between(column: str | None, start: int | None, end: int | None) -> BooleanExpression:
    parts: list[BooleanExpression] = []
    if column and start is not None:
        parts.append(GreaterThanOrEqual(column, _iso(start)))
    if column and end is not None:
        parts.append(LessThan(column, _iso(end)))
    if not parts:
        return AlwaysTrue()
    return And(*parts) if len(parts) == 2 else parts[0]


def _iso(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000).isoformat()
