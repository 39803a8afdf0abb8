"""What an importer gives: batches of captured events, and the items and users that come with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_pipelines.importers.delimited import Parsed, constant
from beam_pipelines.importers.lines import Block, File
from beam_pipelines.io.ingest import Captured
from schemas.arrow import TIMESTAMP
from schemas.tables import DEAD_LETTERS, EVENTS, ITEMS, RAW_EVENTS, USERS
from schemas.xxh3 import fixed_strings, import_event_ids

EVENT_COLUMNS = pa.schema([f for f in EVENTS.schema if f.name != "event_hash"])


class Dataset(ABC):
    """A data set on disk: its events in batches, and the items and users that come with them."""

    name: ClassVar[str]

    def __init__(self, root: Path, files: Sequence[File]) -> None:
        self.root = root
        self.files = files
        """Files of events, in order."""
        self.seen_users: set[str] = set()
        self.seen_items: set[str] = set()
        """Ids that events name, once ``captured`` has been read."""

    @property
    def sources(self) -> list[str]:
        """Sources of the raw events."""
        return [f.source for f in self.files]

    @abstractmethod
    def captured(self) -> Iterator[tuple[File, Captured]]:
        """What was read, file by file, in batches of bounded size."""

    def items(self) -> pa.Table:
        """What is known of items (columns of ``schemas.tables.ITEMS``), beside those that only events name."""
        return ITEMS.schema.empty_table()

    def users(self) -> pa.Table:
        """What is known of users (columns of ``schemas.tables.USERS``), beside those that only events name."""
        return USERS.schema.empty_table()


def capture(block: Block, parsed: Parsed, occurred: npt.NDArray[np.int64], columns: dict[str, Any]) -> Captured:
    """The events, raw events and dead letters of a block.

    Args:
      block: what was read.
      parsed: which of its lines are events.
      occurred: (m,) event times of those, microseconds.
      columns: their other event columns; a missing nullable one is null.
    """
    good = block.numbers[parsed.rows]
    ids = import_event_ids(block.source, good)
    n = len(good)
    times = pa.array(occurred).cast(TIMESTAMP)
    events = filled(EVENT_COLUMNS, n, {"event_id": fixed_strings(ids), "occurred_at": times, "ingested_at": times,
                                       **_positions(block.source, good), **columns})
    # A line without a time of its own lies beside its neighbours.
    at = np.full(len(block), occurred[0] if n else 0, np.int64)
    at[parsed.rows] = occurred
    lines = block.lines.cast(pa.binary())
    raw = pa.table({**_positions(block.source, block.numbers), "captured_at": pa.array(at).cast(TIMESTAMP), "payload": lines},
                   ).select(RAW_EVENTS.schema.names)
    payloads = lines if n == len(block) else lines.take(pa.array(parsed.rows))
    return Captured(events, payloads, raw, dead_letters(block, parsed.bad))


def dead_letters(block: Block, bad: dict[int, tuple[str, str]]) -> pa.Table | None:
    """Rows of ``dead_letters`` for some lines of a block, None for none."""
    if not bad:
        return None
    rows = np.array(sorted(bad), np.int64)
    reasons = [bad[row] for row in rows.tolist()]
    numbers = block.numbers[rows]
    details = [f"{block.source} line {number}: {detail}" for number, (_, detail) in zip(numbers.tolist(), reasons, strict=True)]
    return pa.table({**_positions(block.source, numbers), "reason": pa.array([r for r, _ in reasons], pa.string()),
                     "detail": pa.array(details, pa.string()),
                     "payload": block.lines.take(pa.array(rows)).cast(pa.binary())}).select(DEAD_LETTERS.schema.names)


def _positions(source: str, numbers: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
    zeros = pa.array(np.zeros(len(numbers), np.int32))
    return {"source": constant(source, len(numbers)), "partition": zeros, "offset": pa.array(numbers), "index": zeros}


def filled(schema: pa.Schema, rows: int, given: dict[str, Any]) -> pa.Table:
    """A table of a schema: what is given, empty lists and maps, version 1, active, null for the rest."""
    empty = pa.array(np.zeros(rows + 1, np.int32))
    columns = []
    for field in schema:
        if field.name in given:
            columns.append(given[field.name])
        elif pa.types.is_list(field.type):
            columns.append(pa.ListArray.from_arrays(empty, pa.array([], pa.string())))
        elif pa.types.is_map(field.type):
            columns.append(pa.MapArray.from_arrays(empty, pa.array([], pa.string()), pa.array([], pa.string())))
        elif field.name == "schema_version":
            columns.append(pa.array(np.ones(rows, np.int32)))
        elif field.name == "is_active":
            columns.append(pa.array(np.ones(rows, bool)))
        else:
            columns.append(pa.nulls(rows, field.type))
    return pa.table(columns, names=schema.names)


def bare_rows(schema: pa.Schema, key: str, ids: Iterable[str]) -> pa.Table:
    """Items or users of which only the id is known, valid from 1970, by id."""
    listed = sorted(ids)
    since = pa.array(np.zeros(len(listed), np.int64)).cast(TIMESTAMP)
    return filled(schema, len(listed), {key: pa.array(listed, pa.string()), "updated_at": since}).cast(schema)
