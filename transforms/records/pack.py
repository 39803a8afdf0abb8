"""Many events of one partition as one record of the log: a pack.

Layout: ``01 'B' 'R' 'P'``, u8 version (1), u32 little-endian length of the Arrow IPC stream, then that stream (one schema,
one record batch, no dictionaries) as one LZ4 block. The length stands in front, so it is checked before memory is taken.
"""

from __future__ import annotations

import functools
import struct

import numpy as np
import pyarrow as pa

from schemas.arrow import arrow_schema
from transforms.ingest import whole
from transforms.records.base import MAX_PACK_BYTES, MAX_PACK_ROWS, MAX_RECORD_BYTES
from transforms.records.kernels import ascending, is_ascii

MAGIC = b"\x01BRP"
VERSION = 1
_HEADER = struct.Struct("<4sBI")
_CODEC = "lz4_raw"
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow


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
    return sealed(b"".join((schema_message(), events.serialize(), STREAM_END)))


def sealed(stream: bytes | pa.Buffer) -> bytes:
    """The record of an Arrow stream of one batch; raises ValueError: it is too large."""
    size = len(stream)
    record = _HEADER.pack(MAGIC, VERSION, size) + pa.Codec(_CODEC).compress(stream, asbytes=True)
    if size > MAX_PACK_BYTES or len(record) > MAX_RECORD_BYTES:
        raise ValueError(f"a pack of {size:,} bytes is too large")
    return record


@functools.cache
def schema_message() -> bytes:
    """What a stream begins with: the same for every pack, and half of a small one's time."""
    return bytes(arrow_schema("event").serialize())


def unpack(record: memoryview) -> pa.RecordBatch:
    """The events of a pack, with the columns of event.v1 (newer ones left out, missing nullable ones null).

    Sizes and types are right then; that strings lie within their buffers and are UTF-8 is for ``sound`` to say, which costs
    less for many packs at once.

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
        batch = pa.ipc.open_stream(body).read_next_batch()
        batch.validate()
    except (pa.ArrowException, OSError, StopIteration) as error:
        raise PackError(str(error).splitlines()[0] if str(error) else "it holds no events") from error
    if batch.num_rows > MAX_PACK_ROWS:
        raise PackError(f"{batch.num_rows:,} events are over the limit of {MAX_PACK_ROWS:,}", too_large=True)
    schema = arrow_schema("event")
    if not batch.schema.equals(schema):
        batch = _conform(batch, schema)
    for i in _required():
        if batch.column(i).null_count:
            raise PackError(f"column {schema.names[i]} has nulls")
    return batch


@functools.cache
def _required() -> tuple[int, ...]:
    return tuple(i for i, field in enumerate(arrow_schema("event")) if not field.nullable)


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
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
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def sound(events: pa.RecordBatch) -> bool:
    """Whether every string and list of unpacked events lies within its buffers, and every string is UTF-8."""
    return all(_sound(column) for column in events.columns)


def _sound(column: pa.Array) -> bool:
    kind = column.type
    if not len(column) or not (pa.types.is_string(kind) or pa.types.is_list(kind) or pa.types.is_map(kind)):
        return True
    _, offsets, data = column.buffers()[:3]
    bounds = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
    if pa.types.is_string(kind):
        size = data.size if data is not None else 0
        if not ascending(bounds, size):
            return False
        if size == 0 or is_ascii(np.frombuffer(data, np.uint8), int(bounds[0]), int(bounds[-1])):
            return True
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return False
        return True
    parts = (column.keys, column.items) if pa.types.is_map(kind) else (column.values,)
    return ascending(bounds, len(parts[0])) and all(part.null_count == 0 and _sound(part) for part in parts)
