"""Files of packed accumulator states: one row per (accumulator, bucket), a row group per bucket, so a bucket is one read.

A row of bucket MARK says that an accumulator is complete in the file, with the fingerprint of what it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.arrow import TIMESTAMP
from schemas.tables import PARTIALS
from schemas.workspace import DAY_MICROS

MARK = -1


def write_states(path: str, day: int, inputs: Mapping[str, str], states: Iterable[tuple[int, str, int, bytes]]) -> None:
    """Writes one file of ``partials`` or ``states``.

    Args:
      path: the file.
      day: day number.
      inputs: accumulator name -> fingerprint, of every accumulator that is complete in this file, even without rows.
      states: (bucket, accumulator name, rows, packed state).
    """
    by_bucket: dict[int, list[tuple[str, int, str, bytes]]] = {MARK: [(n, 0, inputs[n], b"") for n in sorted(inputs)]}
    for bucket, name, rows, data in states:
        by_bucket.setdefault(bucket, []).append((name, rows, inputs[name], data))
    with pq.ParquetWriter(path, PARTIALS.schema, compression="none", use_dictionary=False, store_schema=False,
                          write_statistics=True) as writer:
        for bucket in sorted(by_bucket):
            found = sorted(by_bucket[bucket])
            n = len(found)
            names, rows, prints, packed = (list(column) for column in zip(*found, strict=True))
            writer.write_table(pa.table([
                pa.array([day * DAY_MICROS] * n, TIMESTAMP), pa.array(names), pa.array([bucket] * n, pa.int32()),
                pa.array(rows, pa.int64()), pa.array(prints), pa.array(packed, pa.large_binary()),
            ], schema=PARTIALS.schema))


def read_marks(path: str) -> dict[str, str]:
    """Accumulator name -> fingerprint, of the accumulators complete in a file."""
    file = pq.ParquetFile(path, memory_map=True)
    rows = file.read_row_group(0, columns=["group", "inputs"])
    return dict(zip(rows.column("group").to_pylist(), rows.column("inputs").to_pylist(), strict=True))


def read_states(path: str, buckets: Sequence[int] | None, names: Iterable[str]) -> Iterator[tuple[str, int, pa.Buffer]]:
    """(accumulator name, bucket, packed state) of some buckets (None: all) of a file."""
    file = pq.ParquetFile(path, memory_map=True)
    wanted = set(names)
    at = PARTIALS.schema.get_field_index("bucket")
    for group in range(1, file.num_row_groups):
        bucket = file.metadata.row_group(group).column(at).statistics.min
        if buckets is not None and bucket not in buckets:
            continue
        rows = file.read_row_group(group, columns=["group", "state"])
        for name, state in zip(rows.column("group").to_pylist(), rows.column("state").combine_chunks(), strict=True):
            if name in wanted:
                yield name, bucket, state.as_buffer()
