"""What was served (ServedFeatures, as serving.truth writes it) from records to columns."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import pyarrow as pa

from schemas import avro
from schemas.arrow import arrow_schema
from schemas.tables import DEAD_LETTERS, POSITION
from transforms.records.base import NOT_AVRO, UNKNOWN_FORMAT, UNKNOWN_SCHEMA, Records
from transforms.records.single_object import HEAD_BYTES, MARK, writers

RECORD = "served_features"


def decode_served(records: Records, source: str) -> tuple[pa.Table, pa.Table]:
    """The answers of a poll, in order: columns of ``schemas.tables.SERVED``; and its dead letters (DEAD_LETTERS). Never raises
    on bad input."""
    rows: list[dict[str, Any]] = []
    dead: list[dict[str, Any]] = []
    for row in range(len(records)):
        record = records.record(row)
        place = {"source": source, "partition": int(records.partition[row]), "offset": int(records.offset[row]), "index": 0}
        try:
            rows.append({**_read(record), **place})
        except Exception as error:  # the library raises whatever its parts raise
            reason = error.args[0] if isinstance(error, _UnreadableError) else NOT_AVRO
            dead.append({**place, "reason": reason, "detail": f"{type(error).__name__}: {error}"[:200], "payload": record})
    schema = pa.schema([*arrow_schema(RECORD), *POSITION])
    return pa.Table.from_pylist(rows, schema), pa.Table.from_pylist(dead, DEAD_LETTERS.schema)


class _UnreadableError(ValueError):
    """args: the reason."""


def _read(record: bytes) -> dict[str, Any]:
    if record[:2] != MARK or len(record) < HEAD_BYTES:
        raise _UnreadableError(UNKNOWN_FORMAT)
    writer = writers(RECORD).get(record[2:HEAD_BYTES])
    if writer is None:
        raise _UnreadableError(UNKNOWN_SCHEMA)
    stream = io.BytesIO(record)
    stream.seek(HEAD_BYTES)
    found: Any = fastavro.schemaless_reader(stream, dict(writer), avro.load(RECORD))
    if stream.tell() != len(record):
        raise ValueError("bytes follow the record")
    found["user_features"] = list(found["user_features"].items())
    for item in found["items"]:
        item["features"] = list(item["features"].items())
    row: dict[str, Any] = found
    return row
