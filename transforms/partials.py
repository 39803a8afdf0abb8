"""Files of packed accumulator states: one row per (accumulator, bucket), a row group per bucket, so a bucket is one read.

A row of bucket MARK says that an accumulator is complete in the file: ``inputs`` is the fingerprint of what it was made
from, ``rows`` the number of buckets of the state (buckets nest, so that a small day need not be cut as finely).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import TIMESTAMP
from schemas.tables import PARTIALS
from schemas.workspace import DAY_MICROS

MARK = -1


def write_states(path: str, day: int, buckets: int, inputs: Mapping[str, str],
                 states: Iterable[tuple[int, str, int, bytes]]) -> None:
    """Writes one file of ``partials`` or ``states``.

    Args:
      path: the file.
      day: day number.
      buckets: how many buckets the states are cut into.
      inputs: accumulator name -> fingerprint, of every accumulator that is complete in this file, even without rows.
      states: (bucket, accumulator name, rows, packed state).
    """
    by_bucket: dict[int, list[tuple[str, int, str, bytes]]] = {MARK: [(n, buckets, inputs[n], b"") for n in sorted(inputs)]}
    for bucket, name, rows, data in states:
        by_bucket.setdefault(bucket, []).append((name, rows, inputs[name], data))
    with pq.ParquetWriter(path, PARTIALS.schema, compression="none", use_dictionary=False, store_schema=False,
                          write_statistics=True) as writer:
        for bucket in sorted(by_bucket):
            found = sorted(by_bucket[bucket])
            n = len(found)
            names, counts, prints, packed = (list(column) for column in zip(*found, strict=True))
            writer.write_table(pa.table([
                pa.array([day * DAY_MICROS] * n, TIMESTAMP), pa.array(names), pa.array([bucket] * n, pa.int32()),
                pa.array(counts, pa.int64()), pa.array(prints), pa.array(packed, pa.large_binary()),
            ], schema=PARTIALS.schema))


@dataclass(frozen=True)
class Marks:
    """What a file is complete in: accumulator name -> fingerprint; and its number of buckets."""

    inputs: dict[str, str]
    buckets: int


def read_marks(path: str) -> Marks:
    """The marks of a file of ``write_states``."""
    file = pq.ParquetFile(path, memory_map=True)
    rows = file.read_row_group(0, columns=["group", "inputs", "rows"])
    names, inputs = rows.column("group").to_pylist(), rows.column("inputs").to_pylist()
    return Marks(dict(zip(names, inputs, strict=True)), rows.column("rows")[0].as_py())


def read_states(path: str, names: Iterable[str], bucket: int = 0, buckets: int = 1) -> Iterator[tuple[str, int, pa.Buffer]]:
    """States that hold entities of one bucket.

    Args:
      path: the file.
      names: accumulators.
      bucket, buckets: which bucket of how many; 0 of 1: everything.

    Yields:
      accumulator name, bucket in the file's own count, packed state (of more entities, when the file has fewer buckets).
    """
    file = pq.ParquetFile(path, memory_map=True)
    wanted = set(names)
    held = file.read_row_group(0, columns=["rows"]).column("rows")[0].as_py()
    at = PARTIALS.schema.get_field_index("bucket")
    for group in range(1, file.num_row_groups):
        found = file.metadata.row_group(group).column(at).statistics.min
        if found * buckets // held != bucket and bucket * held // buckets != found:
            continue
        rows = file.read_row_group(group, columns=["group", "state"])
        for name, state in zip(rows.column("group").to_pylist(), rows.column("state").combine_chunks(), strict=True):
            if name in wanted:
                yield name, found, state.as_buffer()
