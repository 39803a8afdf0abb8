"""Upserts of items and users as records: Avro's single-object encoding (C3 01, fingerprint of the schema, the record)."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from schemas import avro
from schemas.arrow import arrow_schema
from schemas.tables import DEAD_LETTERS
from transforms.records.base import NOT_AVRO, UNKNOWN_FORMAT, UNKNOWN_SCHEMA, Records
from transforms.records.single_object import HEAD_BYTES, MARK, head, writers


def encode_upsert(entity: str, values: Mapping[str, Any]) -> bytes:
    """The record of an item or user: ``values`` by field name, times in microseconds.

    Raises:
      ValueError, TypeError: a value that does not fit the newest schema of the entity.
    """
    stream = io.BytesIO()
    stream.write(head(entity))
    fastavro.schemaless_writer(stream, _schema(entity), dict(values))
    return stream.getvalue()


def decode_upserts(records: Records, entity: str, source: str) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The upserts of a poll in order, columns of ``schemas.arrow.arrow_schema(entity)``; and its dead letters
    (``schemas.tables.DEAD_LETTERS``). Never raises on bad input."""
    rows: list[dict[str, Any]] = []
    dead: list[dict[str, Any]] = []
    for row in range(len(records)):
        record = records.record(row)
        try:
            found = _read(record, entity)
        except Exception as error:  # the library raises whatever its parts raise
            reason = error.args[0] if isinstance(error, _UnreadableError) else NOT_AVRO
            dead.append({"source": source, "partition": int(records.partition[row]), "offset": int(records.offset[row]),
                         "index": 0, "reason": reason, "detail": f"{type(error).__name__}: {error}"[:200], "payload": record})
            continue
        rows.append(found)
    return (pa.RecordBatch.from_pylist(rows, arrow_schema(entity)), pa.RecordBatch.from_pylist(dead, DEAD_LETTERS.schema))


def newest(upserts: pa.Table, entity: str) -> pa.Table:
    """Of each entity the upsert with the newest updated_at, of equals the last; in the order of their ids."""
    ids = upserts[f"{entity}_id"].combine_chunks().dictionary_encode()
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    code = ids.indices.to_numpy()
    order = np.lexsort([np.arange(len(code)), upserts["updated_at"].cast(pa.int64()).to_numpy(), code])
    last = np.append(code[order][1:] != code[order][:-1], True) if len(order) else np.zeros(0, bool)
    return upserts.take(order[last]).sort_by(f"{entity}_id")


class _UnreadableError(ValueError):
    """args: the reason."""


def _read(record: bytes, entity: str) -> dict[str, Any]:
    if record[:2] != MARK or len(record) < HEAD_BYTES:
        raise _UnreadableError(UNKNOWN_FORMAT)
    writer = writers(entity).get(record[2:HEAD_BYTES])
    if writer is None:
        raise _UnreadableError(UNKNOWN_SCHEMA)
    stream = io.BytesIO(record[HEAD_BYTES:])
    found = fastavro.schemaless_reader(stream, dict(writer), avro.load(entity))
    if stream.tell() != len(record) - HEAD_BYTES:
        raise ValueError("bytes follow the record")
    if not isinstance(found, dict) or not found[f"{entity}_id"]:
        raise ValueError("it has no id")
    return found


@functools.cache
def _schema(entity: str) -> Any:
    return fastavro.parse_schema(avro.load(entity))
