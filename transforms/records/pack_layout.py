"""Where in the bytes of a pack, before they are compressed, its numbers stand: for compiled code that writes them itself.

A pack's Arrow stream begins with the same bytes whatever is in it, but for the numbers of its one record batch: rows, nulls,
and places of the buffers. The places of these numbers are read from a batch that Arrow wrote, by the rules of flatbuffers
(https://flatbuffers.dev/internals, https://github.com/apache/arrow/blob/main/format/Message.fbs).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.arrow import arrow_schema
from transforms.records.pack import STREAM_END, schema_message

_PREFIX = 8  # of a message: 0xFFFFFFFF, and the length of what describes it
_HEADER, _BODY_LENGTH = 2, 3  # fields of Message
_LENGTH, _NODES, _BUFFERS = 0, 1, 2  # fields of RecordBatch
_VECTOR = 4  # bytes before the elements: how many there are


class Layout(NamedTuple):
    """What a pack begins with, and the places in it of 8-byte numbers.

    Attributes:
      start: everything before the buffers' bytes.
      spots: (4,) places, multiples of 8: of the batch's rows; of the nodes (each column, and what lies in lists and maps, in
        their order: rows, nulls); of the buffers (those of each node in turn: place after ``start``, bytes); of the bytes
        between ``start`` and ``end``.
      buffer_count: how many buffers.
      end: what follows the buffers.
    """

    start: npt.NDArray[np.uint8]
    spots: npt.NDArray[np.int64]
    buffer_count: int
    end: npt.NDArray[np.uint8]


@functools.cache
def layout() -> Layout:
    """Of the packs of ``schemas.arrow.arrow_schema("event")``."""
    schema = arrow_schema("event")
    row = {field.name: _something(field.type) for field in schema}
    message = bytes(pa.RecordBatch.from_pylist([row], schema=schema).serialize())  # numbers that are 0 would be left out
    start = schema_message() + message[: _PREFIX + _u32(message, 4)]
    root = len(schema_message()) + _PREFIX
    table = root + _u32(start, root)
    header = _field(start, table, _HEADER)
    batch = header + _u32(start, header)
    nodes, buffers = (at + _u32(start, at) for at in (_field(start, batch, i) for i in (_NODES, _BUFFERS)))
    spots = np.array([_field(start, batch, _LENGTH), nodes + _VECTOR, buffers + _VECTOR, _field(start, table, _BODY_LENGTH)])
    return Layout(np.frombuffer(start, np.uint8), spots, _u32(start, buffers), np.frombuffer(STREAM_END, np.uint8))


def _something(kind: pa.DataType) -> object:
    if pa.types.is_map(kind):
        return [("k", "v")]
    if pa.types.is_list(kind):
        return ["x"]
    return "x" if pa.types.is_string(kind) else 1


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _field(data: bytes, table: int, number: int) -> int:
    """The place of a field of a flatbuffers table."""
    described = table - int.from_bytes(data[table : table + 4], "little", signed=True)
    slot = described + 4 + 2 * number
    return table + int.from_bytes(data[slot : slot + 2], "little")
