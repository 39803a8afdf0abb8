"""Small files become few larger ones while commits add to a table: how many there are does not grow with the commits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipelines.io.lake import Lake, conform
from schemas.tables import TABLES

MAX_FILES = 4
MERGE_BYTES = 256 << 20
"""The smaller files of a day that has more than MAX_FILES are merged, into files of at most so many bytes, uncompressed."""


def to_merge(sizes: Mapping[str, int], most: int) -> list[str]:
    """Of a day with too many files those to merge: the smallest, and each next one not much larger than all before it.

    So a row of a day that grows by many small commits is rewritten a number of times that grows with their logarithm.

    Args:
      sizes: of each file, by path.
      most: the size that a merged file may have; what is over half of it is large enough and is left alone.
    """
    small = sorted((size, path) for path, size in sizes.items() if size <= most // 2)
    if len(small) <= MAX_FILES:
        return []
    chosen: list[str] = []
    total = 0
    for size, path in small:
        if total + size > most or (len(chosen) > len(small) - MAX_FILES and size > 2 * total):
            break
        chosen.append(path)
        total += size
    return chosen if len(chosen) > 1 else []


def append(lake: Lake, name: str, paths: Iterable[str], summary: Mapping[str, str] | None = None) -> int | None:
    """Adds files, each where ``lake.new_path`` said, to a table; small ones of the same days are merged in the same snapshot.

    One writer at a time (``lake.writer``). Returns the snapshot, as ``lake.commit`` does.
    """
    new = set(paths)
    if not new:
        return lake.snapshot_id(name)
    folders: dict[Path, dict[str, int]] = defaultdict(dict)
    for path in sorted(new):
        folders[Path(path).parent][path] = _bytes(path)
    held = {file.path for file in lake.files(name) if Path(file.path).parent in folders and file.bytes <= MERGE_BYTES // 2}
    for path in sorted(held):
        folders[Path(path).parent][path] = _bytes(path)
    add, drop = set(new), set[str]()
    for sizes in folders.values():
        if merged := to_merge(sizes, MERGE_BYTES):
            tables = [conform(pq.read_table(path, partitioning=None), TABLES[name].schema) for path in merged]
            add = add - set(merged) | {lake.write_file(name, pa.concat_tables(tables), lake.day_of(merged[0]))}
            drop |= held & set(merged)
    snapshot = lake.commit(name, sorted(add), drop, summary)
    for path in new - add:
        Path(path).unlink(missing_ok=True)
    return snapshot


def _bytes(path: str) -> int:
    """The size of a file's rows in memory, about."""
    meta = pq.read_metadata(path)
    return sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
