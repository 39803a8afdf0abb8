"""Many events of one partition as one record of the log: a pack.

Layout: ``01 'B' 'R' 'P'``, u8 version (1), u32 little-endian length of the Arrow IPC stream, then that stream (one schema,
one record batch, no dictionaries) as one LZ4 block. The length stands in front, so it is checked before memory is taken.
"""

from __future__ import annotations

import struct

import pyarrow as pa

from schemas.arrow import arrow_schema
from transforms.ingest import whole
from transforms.records.base import MAX_PACK_BYTES, MAX_PACK_ROWS, MAX_RECORD_BYTES

MAGIC = b"\x01BRP"
VERSION = 1
_HEADER = struct.Struct("<4sBI")
_CODEC = "lz4_raw"


class PackError(ValueError):
    """Bytes that are no readable pack; ``too_large`` when a size limit is why."""

    def __init__(self, message: str, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


def pack(events: pa.RecordBatch | pa.Table) -> bytes:
    """The record of up to MAX_PACK_ROWS events; columns of ``schemas.arrow.arrow_schema("event")``, others are left out.

    Raises:
      ValueError: too many rows or bytes.
      KeyError, pa.ArrowInvalid: a column is missing, or of another type.
    """
    if events.num_rows > MAX_PACK_ROWS:
        raise ValueError(f"a pack holds at most {MAX_PACK_ROWS:,} events, not {events.num_rows:,}")
    schema = arrow_schema("event")
    if not isinstance(events, pa.RecordBatch) or not events.schema.equals(schema):
        columns = []
        for field in schema:
            column = events.column(field.name)
            column = whole(column) if isinstance(column, pa.ChunkedArray) else column
            columns.append(column if column.type == field.type else column.cast(field.type))
        events = pa.RecordBatch.from_arrays(columns, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(events)
    body = sink.getvalue()
    record = _HEADER.pack(MAGIC, VERSION, body.size) + pa.Codec(_CODEC).compress(body, asbytes=True)
    if body.size > MAX_PACK_BYTES or len(record) > MAX_RECORD_BYTES:
        raise ValueError(f"a pack of {body.size:,} bytes is too large")
    return record


def unpack(record: memoryview) -> pa.RecordBatch:
    """The events of a pack, with the columns of event.v1 (newer ones left out, missing nullable ones null).

    Raises:
      PackError: it is damaged, of another version or over a limit.
    """
    if len(record) < _HEADER.size:
        raise PackError("it ends within its header")
    magic, version, size = _HEADER.unpack_from(record)
    if magic != MAGIC or version != VERSION:
        raise PackError(f"version {version} is not known")
    if size > MAX_PACK_BYTES:
        raise PackError(f"{size:,} bytes are over the limit of {MAX_PACK_BYTES:,}", too_large=True)
    try:
        body = pa.Codec(_CODEC).decompress(pa.py_buffer(record[_HEADER.size :]), decompressed_size=size)
        with pa.ipc.open_stream(body) as reader:
            if any(pa.types.is_dictionary(f.type) for f in reader.schema):
                raise PackError("a column is dictionary-encoded")
            batch = reader.read_next_batch()
        batch.validate(full=True)
        if batch.num_rows > MAX_PACK_ROWS:
            raise PackError(f"{batch.num_rows:,} events are over the limit of {MAX_PACK_ROWS:,}", too_large=True)
        return _conform(batch)
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise PackError(str(error).splitlines()[0] if str(error) else "it holds no events") from error


def _conform(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = arrow_schema("event")
    columns = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            if not field.nullable:
                raise PackError(f"column {field.name} is missing")
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(at)
        if column.type != field.type:
            raise PackError(f"column {field.name} is of type {column.type}, not {field.type}")
        if column.null_count and not field.nullable:
            raise PackError(f"column {field.name} has nulls")
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)
