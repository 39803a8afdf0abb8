"""Training examples in Beam: events by user bucket, one bucket at a time, written as Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.keys import bucket_of, hash64_column
from transforms.examples import EVENT_COLUMNS, USER_SNAPSHOT_COLUMNS, build_examples, plain, positives


@dataclass(eq=False)  # Beam sets the label, and hashes by identity
class BuildExamples(beam.PTransform):
    """(kind, path) of lake files -> paths of example files, ``<output_folder>/<first|rest>/bucket-NNN.parquet``.

    ``kind`` is "events" or "user_snapshots". Rows shuffle by the bucket of their user, so no call holds more than one file or
    one bucket.

    Attributes:
      catalogue: Parquet file of the items table; item_snapshots: Parquet file of the item snapshots, "" for none.
      until: events before this moment (microseconds) count.
      split_at: examples before this moment go to ``first``, the others to ``rest``.
      buckets: a power of two.
    """

    catalogue: str
    item_snapshots: str
    output_folder: str
    until: int
    split_at: int
    buckets: int

    def expand(self, files: beam.PCollection) -> beam.PCollection:
        return (files
                | "ReadByUserBucket" >> beam.ParDo(_ReadByBucket(self.until, self.buckets))
                | "GatherUserBucket" >> beam.GroupByKey()
                | "BuildBucketExamples" >> beam.ParDo(
                    _BuildBucket(self.catalogue, self.item_snapshots, self.output_folder, self.split_at)))


class _ReadByBucket(beam.DoFn):
    def __init__(self, until: int, buckets: int) -> None:
        self._until, self._buckets = until, buckets

    def process(self, file: tuple[str, str]) -> Iterator[tuple[int, tuple[str, bytes]]]:
        kind, path = file
        if kind == "events":
            rows = positives(plain(pq.read_table(path, columns=list(EVENT_COLUMNS))))
            rows = rows.filter(pc.less(rows["occurred_at"].cast(pa.int64()), self._until))
        else:
            rows = plain(pq.read_table(path, columns=list(USER_SNAPSHOT_COLUMNS)))
        bucket = pa.array(bucket_of(hash64_column(rows["user_id"]), self._buckets))
        for key in sorted(pc.unique(bucket).to_pylist()):
            yield key, (kind, _pack(rows.filter(pc.equal(bucket, key))))


class _BuildBucket(beam.DoFn):
    def __init__(self, catalogue: str, item_snapshots: str, output_folder: str, split_at: int) -> None:
        self._paths = catalogue, item_snapshots
        self._output_folder, self._split_at = output_folder, split_at

    def setup(self) -> None:
        catalogue, item_snapshots = self._paths
        self._catalogue = pq.read_table(catalogue)
        self._item_snapshots = pq.read_table(item_snapshots) if item_snapshots else None

    def process(self, keyed: tuple[int, Iterable[tuple[str, bytes]]]) -> Iterator[str]:
        bucket, parts = keyed
        tables: dict[str, list[pa.Table]] = {"events": [], "user_snapshots": []}
        for kind, packed in parts:
            tables[kind].append(pa.ipc.open_stream(packed).read_all())
        if not tables["events"]:
            return
        snapshots = pa.concat_tables(tables["user_snapshots"]) if tables["user_snapshots"] else None
        made = build_examples(pa.concat_tables(tables["events"]), self._catalogue, snapshots, self._item_snapshots)
        early = pc.less(made["occurred_at"], self._split_at)
        for part, rows in (("first", made.filter(early)), ("rest", made.filter(pc.invert(early)))):
            if rows.num_rows:
                path = Path(self._output_folder) / part / f"bucket-{bucket:03d}.parquet"
                pq.write_table(rows, path, compression="zstd", compression_level=1)
                yield str(path)


def _pack(rows: pa.Table) -> bytes:
    """Arrow IPC of compacted rows: a slice would carry its whole parent."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(rows.combine_chunks())
    return sink.getvalue().to_pybytes()
