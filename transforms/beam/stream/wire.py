"""Columns as bytes: what is shuffled between the stream's stages and kept in their state."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from schemas.keys import bucket_of
from schemas.xxh3 import hash64_strings

Bounds = npt.NDArray[np.int64]
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


def split(batch: pa.RecordBatch, key: str, buckets: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(bucket of the ids in column ``key``, its rows in their order) of every bucket that has rows; null ids are left out.

    The key, and strings that come as dictionaries, are dictionaries in the parts too: of what a part needs, in the order in
    which it needs it.
    """
    ids = batch.column(key)
    ids = ids if pa.types.is_dictionary(ids.type) else ids.dictionary_encode()
    bucket = _buckets_of(ids, buckets)
    order = np.argsort(bucket, kind="stable")  # a radix sort
    bounds = np.concatenate(([0], np.cumsum(np.bincount(bucket, minlength=buckets + 1)[:buckets])))
    order = order[: bounds[-1]]
    rows = pa.array(order)
    columns = [_parts(ids if name == key else batch.column(name), rows, bounds) for name in batch.schema.names]
    for b in np.flatnonzero(np.diff(bounds)).tolist():
        yield b, pa.RecordBatch.from_arrays([part(b) for part in columns], names=batch.schema.names)


def by_item(events: list[pa.RecordBatch], pairs: list[pa.RecordBatch], buckets: int) -> Iterator[tuple[int, bytes]]:
    """(item bucket, message of ItemBucket) of every item bucket that events or changes of pairs belong to."""
    parts: dict[int, list[pa.RecordBatch | None]] = {}
    for at, batches in enumerate((events, pairs)):
        if batches:
            whole = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()[0]
            for bucket, part in split(whole, "item_id", buckets):
                parts.setdefault(bucket, [None, None])[at] = part
    for bucket, found in parts.items():
        yield bucket, pack_parts(found)


def _buckets_of(ids: pa.DictionaryArray, buckets: int) -> npt.NDArray[np.uint16]:
    """(n,) bucket of each id; ``buckets`` for a null."""
    of_text = np.append(bucket_of(hash64_strings(ids.dictionary), buckets), buckets).astype(np.uint16)
    return of_text[_codes(ids.indices)]


def _codes(indices: pa.Array) -> npt.NDArray[np.int32]:
    """(n,) indices into a dictionary, -1 for a null."""
    filled = indices.fill_null(-1) if indices.null_count else indices
    return filled.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)


def _parts(column: pa.Array, rows: pa.Array, bounds: Bounds) -> Callable[[int], pa.Array]:
    """What gives part b of a column: its rows ``rows[bounds[b]:bounds[b + 1]]``."""
    if pa.types.is_dictionary(column.type):
        return _texts(column.dictionary, _codes(column.indices.take(rows)), bounds)
    taken = column.take(rows)
    if pa.types.is_list(column.type) and pa.types.is_dictionary(column.type.value_type) and not column.null_count:
        ends = taken.offsets.to_numpy()
        values = _texts(taken.values.dictionary, _codes(taken.values.indices), ends[bounds].astype(np.int64))

        def part_of_lists(b: int) -> pa.Array:
            mine = ends[bounds[b] : bounds[b + 1] + 1]
            return pa.ListArray.from_arrays(pa.array(mine - mine[0]), values(b))

        return part_of_lists
    return lambda b: taken.slice(bounds[b], bounds[b + 1] - bounds[b])


def _texts(dictionary: pa.Array, codes: npt.NDArray[np.int32], bounds: Bounds) -> Callable[[int], pa.Array]:
    local, used, used_bounds = _compacted(codes, bounds, len(dictionary))
    texts = dictionary.take(pa.array(used))

    def part(b: int) -> pa.Array:
        mine = local[bounds[b] : bounds[b + 1]]
        nulls = mine < 0
        return pa.DictionaryArray.from_arrays(pa.array(mine, mask=nulls if nulls.any() else None),
                                              texts.slice(used_bounds[b], used_bounds[b + 1] - used_bounds[b]))

    return part


@njit(cache=True, nogil=True)
def _compacted(codes: npt.NDArray[np.int32], bounds: Bounds, size: int) -> tuple[npt.NDArray[np.int32], Bounds, Bounds]:
    """Codes of each part counted anew: (n,) codes into the part's own dictionary, -1 for none; the codes that the dictionaries
    are made of, one part after the other; and where each part's begin, (parts + 1,)."""
    local = np.full(len(codes), -1, np.int32)
    used, known = np.empty(len(codes), np.int64), np.full(size, -1, np.int64)
    used_bounds, count = np.zeros(len(bounds), np.int64), 0
    for b in range(len(bounds) - 1):
        first = count
        for i in range(bounds[b], bounds[b + 1]):
            code = codes[i]
            if code < 0:
                continue
            at = known[code]
            if at < first:
                at = known[code] = count
                used[count] = code
                count += 1
            local[i] = at - first
        used_bounds[b + 1] = count
    return local, used[:count], used_bounds
