"""Records of a log to valid events and dead letters, all in columns.

The first byte tells a record's format: ``01 'B' 'R' 'P'`` a pack; ``00`` and a 4-byte big-endian id the Confluent header
before an Avro event; ``C3 01`` and an 8-byte fingerprint Avro's single-object encoding; anything else an Avro event of
event.v1 without a header.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from typing import Any

import fastavro
import fastavro.schema
import numpy as np
import pyarrow as pa

from schemas import avro
from schemas.arrow import arrow_schema
from schemas.tables import DEAD_LETTERS, EVENTS
from schemas.xxh3 import hash64_strings
from transforms.ingest import REASONS, validate
from transforms.records.base import (
    BAD_PACK,
    EMPTY,
    MAX_RECORD_BYTES,
    NOT_AVRO,
    TOO_LARGE,
    UNKNOWN_FORMAT,
    UNKNOWN_SCHEMA,
    Decoded,
    Records,
    SchemaRegistry,
)
from transforms.records.pack import MAGIC, PackError, unpack


class _RefusedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


def decode(records: Records, source: str, registry: SchemaRegistry | None = None) -> Decoded:
    """The valid events of a poll, and its dead letters; never raises on bad input.

    Args:
      records: what was polled.
      source: name of the log in positions.
      registry: where the ids of Confluent headers are looked up; None: such records are of the newest event schema.
    """
    batches, origin, index, dead = [], [], [], []
    for row in range(len(records)):
        record = records.record(row)
        try:
            batch = _read(record, registry)
        except _RefusedError as refused:
            dead.append((row, 0, refused.reason, refused.detail, record))
            continue
        batches.append(batch)
        origin.append(np.full(len(batch), row))
        index.append(np.arange(len(batch), dtype=np.int32))
    events = pa.Table.from_batches(batches, arrow_schema("event")).combine_chunks()
    rows = np.concatenate([np.zeros(0, np.int64), *origin])
    at = np.concatenate([np.zeros(0, np.int32), *index])
    ingested = events["ingested_at"].to_pylist()
    stamps = pa.array(records.timestamp[rows], pa.int64()).cast(EVENTS.schema.field("ingested_at").type)
    if None in ingested:
        events = events.set_column(5, "ingested_at", pa.compute.coalesce(events["ingested_at"], stamps))
    code = validate(events)
    for bad in np.flatnonzero(code).tolist():
        reason = REASONS[code[bad]]
        record = records.record(int(rows[bad]))
        if record[:4] == MAGIC:
            record = json.dumps(events.slice(bad, 1).to_pylist()[0], default=str).encode()
        dead.append((int(rows[bad]), int(at[bad]), reason, f"the event is refused: {reason.replace('_', ' ')}", record))
    good = np.flatnonzero(code == 0)
    events, rows, at = events.take(good), rows[good], at[good]
    columns = {name: events[name].combine_chunks() for name in events.column_names}
    hashes = hash64_strings(pa.array(events["event_id"].to_pylist(), pa.string())).view(np.int64)
    columns |= {"source": pa.array([source] * len(rows), pa.string()).dictionary_encode(),
                "partition": pa.array(records.partition[rows]), "offset": pa.array(records.offset[rows]),
                "index": pa.array(at), "event_hash": pa.array(hashes)}
    for name in ("event_type", "surface", "device", "model_version", "country", "os", "referrer"):
        columns[name] = pa.array(columns[name].to_pylist(), pa.string()).dictionary_encode()
    return Decoded(pa.RecordBatch.from_pydict({f.name: columns[f.name] for f in EVENTS.schema}),
                   _letters(records, source, dead))


def _letters(records: Records, source: str, dead: list[tuple[int, int, str, str, bytes]]) -> pa.RecordBatch:
    rows = np.array([d[0] for d in dead], np.int64)
    return pa.RecordBatch.from_arrays([
        pa.array([source] * len(dead), pa.string()), pa.array(records.partition[rows]), pa.array(records.offset[rows]),
        pa.array([d[1] for d in dead], pa.int32()), pa.array([d[2] for d in dead], pa.string()),
        pa.array([d[3] for d in dead], pa.string()), pa.array([d[4] for d in dead], pa.binary()),
    ], schema=DEAD_LETTERS.schema)


def _read(record: bytes, registry: SchemaRegistry | None) -> pa.RecordBatch:
    if not record:
        raise _RefusedError(EMPTY, "the record has no bytes")
    if len(record) > MAX_RECORD_BYTES:
        raise _RefusedError(TOO_LARGE, f"the record has {len(record):,} bytes")
    if record[0] == 1:
        if record[:4] != MAGIC:
            raise _RefusedError(UNKNOWN_FORMAT, "the first bytes name no known format")
        try:
            return unpack(memoryview(record))
        except PackError as error:
            raise _RefusedError(TOO_LARGE if error.too_large else BAD_PACK, str(error)) from error
    writer: Mapping[str, Any] | None = avro.load("event", 1)
    body = record
    if record[0] == 0:
        if len(record) < 5:
            raise _RefusedError(UNKNOWN_FORMAT, "the record ends within its header")
        body = record[5:]
        schema_id = int.from_bytes(record[1:5], "big")
        writer = registry.writer_schema(schema_id) if registry is not None else avro.load("event")
        if writer is None:
            raise _RefusedError(UNKNOWN_SCHEMA, f"the registry knows no schema {schema_id}")
    elif record[:2] == b"\xc3\x01":
        writer = _fingerprints().get(record[2:10])
        body = record[10:]
        if writer is None:
            raise _RefusedError(UNKNOWN_SCHEMA, f"no event schema has the fingerprint {record[2:10].hex()}")
    stream = io.BytesIO(body)
    try:
        event = fastavro.schemaless_reader(stream, dict(writer or {}), avro.load("event"))
        if stream.tell() != len(body):
            raise ValueError("bytes follow the event")
        return pa.RecordBatch.from_pylist([event], schema=arrow_schema("event"))
    except Exception as error:  # the library raises whatever its parts raise
        raise _RefusedError(NOT_AVRO, f"{type(error).__name__}: {error}"[:200]) from error


@functools.cache
def _fingerprints() -> dict[bytes, Mapping[str, Any]]:
    """The event schemas by their CRC-64-AVRO fingerprint, little-endian as the single-object encoding has it."""
    found: dict[bytes, Mapping[str, Any]] = {}
    for version in avro.versions("event"):
        schema = avro.load("event", version)
        text = fastavro.schema.to_parsing_canonical_form(schema)
        found[bytes.fromhex(fastavro.schema.fingerprint(text, "CRC-64-AVRO"))] = schema
    return found
