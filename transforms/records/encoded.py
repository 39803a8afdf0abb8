"""Event columns as decode returns them: strings that repeat are dictionary-encoded, always the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from schemas.arrow import arrow_schema
from schemas.tables import EVENTS
from transforms.records.avro_columns import ENCODED, strings

_CODES = pa.dictionary(pa.int32(), pa.string())


def _field(field: pa.Field) -> pa.Field:
    if field.name not in ENCODED and field.name != "source":
        return field
    if pa.types.is_list(field.type):
        return field.with_type(pa.list_(pa.field("element", _CODES, nullable=False)))
    return field.with_type(_CODES)


ENCODED_EVENTS = pa.schema([_field(f) for f in EVENTS.schema])
"""``schemas.tables.EVENTS`` with the columns of ENCODED, and source, as dictionaries."""


def encoded(events: pa.RecordBatch) -> dict[str, pa.Array]:
    """Plain event columns (``arrow_schema("event")``), those of ENCODED dictionary-encoded."""
    columns = {}
    for field in arrow_schema("event"):
        column = events.column(field.name)
        if field.name in ENCODED:
            if pa.types.is_list(field.type):
                kind = ENCODED_EVENTS.field(field.name).type
                column = pa.Array.from_buffers(kind, len(column), column.buffers()[:2], column.null_count, column.offset,
                                               children=[_codes(column.values)])
            else:
                column = _codes(column)
        columns[field.name] = column
    return columns


def _codes(column: pa.Array) -> pa.Array:
    _, offsets, data = column.buffers()
    if not len(column) or data is None:
        return column.dictionary_encode()
    bounds = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
    size = np.diff(bounds)
    if column.null_count:
        size[column.is_null().to_numpy(zero_copy_only=False)] = -1
    return strings(np.frombuffer(data, np.uint8), bounds[:-1].astype(np.int64), size, True)


def joined(columns: Sequence[pa.Array]) -> pa.Array:
    """Columns of one type, one after the other; dictionaries become one."""
    kind = columns[0].type
    if pa.types.is_list(kind):
        offsets = np.concatenate([np.zeros(1, np.int32), *(np.diff(c.offsets.to_numpy()) for c in columns)])
        values = joined([c.flatten() for c in columns])
        return pa.Array.from_buffers(kind, sum(map(len, columns)), [None, pa.py_buffer(np.cumsum(offsets, dtype=np.int32))], 0,
                                     children=[values])
    if pa.types.is_dictionary(kind):
        chunks = pa.chunked_array(columns).unify_dictionaries().chunks
        codes = pa.concat_arrays([c.indices for c in chunks])
        return pa.DictionaryArray.from_arrays(codes, chunks[0].dictionary)
    return pa.concat_arrays(columns)
