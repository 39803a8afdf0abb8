"""Events as read from JSON, in Arrow columns: one conversion per column and pack, nothing per event in Python."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa

from schemas.arrow import arrow_schema
from serving.collector.wire import EventIn

SCHEMA = arrow_schema("event")
_COLUMNS = [(field.name, field.type, pa.types.is_list(field.type), pa.types.is_map(field.type), field.nullable)
            for field in SCHEMA]
_EMPTY_LIST = pa.array([], SCHEMA.field("categories").type.value_type)
_EMPTY_MAP = pa.array([], pa.struct([SCHEMA.field("attributes").type.key_field, SCHEMA.field("attributes").type.item_field]))
"""What lies within a column of empty lists, or maps."""


def to_batch(events: Sequence[EventIn]) -> pa.RecordBatch:
    """n events, their times in microseconds, as columns of ``schemas.arrow.arrow_schema("event")``."""
    columns = []
    for values, (_, kind, is_list, is_map, nullable) in zip(zip(*map(msgspec.structs.astuple, events), strict=True), _COLUMNS,
                                                            strict=True):
        if is_list or is_map:
            columns.append(_nested(values, kind, is_map))
        elif nullable and not any(values) and values.count(None) == len(values):
            columns.append(pa.nulls(len(values), kind))
        else:
            columns.append(pa.array(values, kind))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _nested(values: tuple, kind: pa.DataType, is_map: bool) -> pa.Array:
    if any(values):
        return pa.array([list(v.items()) if v else () for v in values] if is_map else [v or () for v in values], kind)
    offsets = pa.py_buffer(np.zeros(len(values) + 1, np.int32))
    return pa.Array.from_buffers(kind, len(values), [None, offsets], children=[_EMPTY_MAP if is_map else _EMPTY_LIST])
