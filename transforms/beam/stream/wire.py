"""Columns as bytes: what is shuffled between the stream's stages and kept in their state."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.keys import bucket_of, hash64_column

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
_LENGTH = struct.Struct("<I")


def pack(batch: pa.RecordBatch) -> bytes:
    """One batch as an Arrow IPC stream, lz4; only the rows it shows are written."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def unpack(data: bytes | memoryview) -> pa.RecordBatch:
    """The batch of ``pack``; raises ValueError on anything else."""
    try:
        return pa.ipc.open_stream(pa.py_buffer(data)).read_next_batch()
    except (pa.ArrowInvalid, StopIteration, OSError) as error:
        raise ValueError(f"not a packed batch: {error}") from error


def pack_parts(parts: Sequence[pa.RecordBatch | None]) -> bytes:
    """Several batches, some of them missing, as one message."""
    packed = [pack(part) if part is not None and part.num_rows else b"" for part in parts]
    return b"".join(piece for data in packed for piece in (_LENGTH.pack(len(data)), data))


def unpack_parts(data: bytes | memoryview) -> list[pa.RecordBatch | None]:
    """The batches of ``pack_parts``."""
    view, parts, at = memoryview(data), [], 0
    while at < len(view):
        (size,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        parts.append(unpack(view[at : at + size]) if size else None)
        at += size
    return parts


def plain(column: pa.Array) -> pa.Array:
    """A column without dictionaries: a part of it is then packed without what the other parts need."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if pa.types.is_list(column.type) and pa.types.is_dictionary(column.type.value_type):
        return column.cast(pa.list_(pa.field("element", column.type.value_type.value_type)))
    return column


def split(batch: pa.RecordBatch, key: str, buckets: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(bucket of the ids in column ``key``, its rows in their order) of every bucket that has rows; null ids are left out."""
    ids = batch.column(key)
    bucket = bucket_of(hash64_column(ids), buckets)
    if ids.null_count:
        bucket = np.where(ids.is_valid().to_numpy(zero_copy_only=False), bucket, buckets)
    order, bounds = _grouped(bucket, buckets + 1)
    arranged = pa.RecordBatch.from_arrays([plain(c) for c in batch.columns], names=batch.schema.names).take(pa.array(order))
    for b in range(buckets):
        if bounds[b] < bounds[b + 1]:
            yield b, arranged.slice(bounds[b], bounds[b + 1] - bounds[b])


def _grouped(bucket: npt.NDArray[np.int32], buckets: int) -> tuple[npt.NDArray[np.int64], list[int]]:
    order = np.argsort(bucket.astype(np.uint16 if buckets <= 1 << 16 else np.int32), kind="stable")  # a radix sort
    return order, np.concatenate(([0], np.cumsum(np.bincount(bucket, minlength=buckets)))).tolist()
