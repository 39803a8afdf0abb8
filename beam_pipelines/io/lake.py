"""The lake: Iceberg tables through pyiceberg. Parquet files are written by us and added by reference.

A write is one Iceberg transaction: readers see all of it or none. ``replace_days`` makes a re-run of a day harmless.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, GreaterThanOrEqual, LessThan, Or
from pyiceberg.table import Table as IcebergTable
from pyiceberg.transforms import DayTransform

from schemas.tables import TABLES
from schemas.workspace import DAY_MICROS

NAMESPACE = "beamrec"


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
        try:
            made.create_namespace(NAMESPACE)
        except NamespaceAlreadyExistsError:
            pass
        return cls(made, root / "warehouse")

    def table(self, name: str) -> IcebergTable:
        """The Iceberg table; created, or given the columns it lacks, when needed. Raises KeyError for another name."""
        wanted = TABLES[name]
        try:
            table = self._catalog.load_table((NAMESPACE, name))
        except NoSuchTableError:
            try:
                table = self._catalog.create_table((NAMESPACE, name), schema=wanted.schema)
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

    def new_path(self, name: str, day: int | None = None) -> str:
        """A path for a new data file of a table (its folder exists); write it, then commit it by a call below."""
        folder = self._warehouse / NAMESPACE / name / "data"
        if day is not None:
            folder = folder / f"day={datetime.fromtimestamp(day // 1_000_000, UTC):%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / f"{uuid.uuid4().hex}.parquet")

    def write_file(self, name: str, rows: pa.Table, day: int | None = None, row_group_size: int = 262_144) -> str:
        """Writes rows of one day as one Parquet file (zstd) of the table's schema and returns its path."""
        path = self.new_path(name, day)
        pq.write_table(rows.cast(TABLES[name].schema), path, compression="zstd", compression_level=1,
                       row_group_size=row_group_size)
        return path

    def replace_days(self, name: str, files: Mapping[int, Sequence[str]],
                     summary: Mapping[str, str] | None = None) -> int | None:
        """Makes the rows of each day given (midnight in microseconds) exactly those of its files, in one transaction.

        A day with no files is emptied. Files are not copied: they must lie where ``new_path`` said.
        """
        column = TABLES[name].day_column
        if column is None:
            raise ValueError(f"table {name} has no days")
        table = self.table(name)
        present = set(self.days(name))
        stale: list[BooleanExpression] = [_between(column, d, d + DAY_MICROS) for d in sorted(set(files) & present)]
        paths = [f"file://{p}" for d in sorted(files) for p in files[d]]
        with table.transaction() as tx:
            if stale:
                tx.delete(Or(*stale) if len(stale) > 1 else stale[0], snapshot_properties=dict(summary or {}))
            if paths:
                tx.add_files(paths, snapshot_properties=dict(summary or {}), check_duplicate_files=False)
        return self.snapshot_id(name)

    def replace_all(self, name: str, rows: pa.Table, summary: Mapping[str, str] | None = None) -> int | None:
        """Makes a table exactly these rows, in one transaction."""
        path = self.write_file(name, rows)
        table = self.table(name)
        with table.transaction() as tx:
            if table.current_snapshot() is not None:
                tx.delete(AlwaysTrue(), snapshot_properties=dict(summary or {}))
            tx.add_files([f"file://{path}"], snapshot_properties=dict(summary or {}), check_duplicate_files=False)
        return self.snapshot_id(name)

    def append(self, name: str, paths: Iterable[str], summary: Mapping[str, str] | None = None) -> int | None:
        """Adds files (each of one day); a file that the table holds already is refused with ValueError."""
        self.table(name).add_files([f"file://{p}" for p in paths], snapshot_properties=dict(summary or {}))
        return self.snapshot_id(name)


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
