"""Rows of the stream that are final, as Parquet parts: one file per table, bucket and hour in which they became final.

A part holds all rows of its name, so writing it again after a crash replaces it with the truth and doubles nothing; an hour
without rows has no file. ``collect_parts`` puts them into the lake's tables of the same names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.io.lake import Lake
from schemas.tables import TABLES
from transforms.beam.stream.state import Final
from transforms.ingest import days_of, whole


@dataclass(eq=False)
class WriteFinal(beam.PTransform):  # type: ignore[misc]
    """(bucket, state.Final) -> parts under ``folder`` (shared by all workers).

    Attributes:
      folder: where parts go.
    """

    folder: str

    def expand(self, finals: beam.PCollection) -> beam.PCollection:
        """See the class."""
        return finals | "Write final rows" >> beam.Map(write_part, self.folder)


def part_path(folder: str | Path, table: str, bucket: int, hour: int) -> Path:
    """Where the rows of a table live that became final in the hour beginning at ``hour`` (microseconds)."""
    return Path(folder) / table / f"{hour // 3_600_000_000:09d}-{bucket:05d}.parquet"


def write_part(element: tuple[int, Final], folder: str) -> None:
    """Makes a part's file say what the element says."""
    bucket, final = element
    path = part_path(folder, final.table, bucket, final.hour)
    if final.rows.num_rows == 0:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(pa.Table.from_batches([final.rows]).cast(TABLES[final.table].schema), temporary)
    os.replace(temporary, path)


def read_parts(folder: str | Path, table: str) -> pa.Table:
    """All rows of a table among the parts."""
    return pa.concat_tables([TABLES[table].schema.empty_table(), *_parts(folder, table)])


def collect_parts(lake: Lake, folder: str | Path) -> dict[str, int]:
    """Makes the days that the parts cover exactly their rows, in the lake's tables; a repetition changes nothing.

    Returns:
      rows by table.
    """
    counts = {}
    for name in sorted(path.name for path in Path(folder).iterdir() if path.name in TABLES):
        rows = read_parts(folder, name)
        if not len(rows):
            continue
        day = days_of(whole(rows[str(TABLES[name].day_column)]))
        with lake.writer():
            lake.replace_days(name, {int(d): [lake.write_file(name, rows.filter(pa.array(day == d)), int(d))]
                                     for d in np.unique(day)})
        counts[name] = len(rows)
    return counts


def _parts(folder: str | Path, table: str) -> Iterator[pa.Table]:
    for path in sorted((Path(folder) / table).glob("[0-9]*.parquet")):
        yield pq.read_table(path, schema=TABLES[table].schema)
