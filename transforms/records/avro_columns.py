"""Single Avro events to Arrow columns, for every writer schema whose fields are those of our events in any order."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.arrow import TIMESTAMP, arrow_schema, arrow_type
from transforms.records import kernels as k

Bytes = npt.NDArray[np.uint8]

ENCODED = frozenset({"event_type", "surface", "device", "model_version", "country", "os", "referrer", "categories"})
"""Columns whose strings repeat: they are dictionary-encoded."""

PROBLEMS = {
    k.SHORT: "the record ends early",
    k.VARINT: "a number is too long",
    k.UNION: "a union has no such branch",
    k.UTF8: "a string is not UTF-8",
    k.TRAILING: "bytes follow the event",
    k.NEGATIVE: "a length is negative",
    k.RANGE: "an int is out of range",
}
_KINDS = {pa.string(): k.STRING, pa.int64(): k.LONG, TIMESTAMP: k.LONG, pa.int32(): k.INT, pa.float64(): k.DOUBLE}


@dataclass(frozen=True)
class Plan:
    """How the records of one writer schema are read.

    Attributes:
      names: of its fields, in order.
      codes: (fields, 2) as serving read_avro.
    """

    names: tuple[str, ...]
    codes: npt.NDArray[np.int8]
    strings: tuple[str, ...]
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class AvroEvents:
    """Columns by name, of the records that are right.

    Attributes:
      columns: (m,) Arrow arrays, those of the plan.
      rows: (m,) which record each is.
      error: (n,) code in PROBLEMS, 0 for right, kernels.LIBRARY for those that a full Avro library must read.
      field: (n,) number of the plan's field where the error is, or -1.
    """

    columns: dict[str, pa.Array]
    rows: npt.NDArray[np.int32]
    error: npt.NDArray[np.int8]
    field: npt.NDArray[np.int32]


def plan_of(schema: Mapping[str, Any]) -> Plan | None:
    """The plan of a writer schema; None when it must be resolved by a full Avro library.

    That is: another record than Event, a field we do not know or of another type, or one of ours that is missing.
    """
    return _plan(json.dumps(schema, sort_keys=True))


@functools.lru_cache(64)
def _plan(text: str) -> Plan | None:
    schema, target = json.loads(text), arrow_schema("event")
    if schema.get("type") != "record" or schema.get("name") != "Event":
        return None
    fields = schema.get("fields", [])
    if sorted(f["name"] for f in fields) != sorted(target.names):
        return None
    codes, strings, numbers = [], [], []
    for field in fields:
        name, kind = field["name"], field["type"]
        try:
            if arrow_type(kind) != (target.field(name).type, target.field(name).nullable):
                return None
        except ValueError:
            return None
        code = _code(target.field(name).type)
        codes.append((code, kind.index("null") if isinstance(kind, list) else -1))
        if code == k.STRING:
            strings.append(name)
        elif code < k.STRINGS:
            numbers.append(name)
    return Plan(tuple(f["name"] for f in fields), np.array(codes, np.int8), tuple(strings), tuple(numbers))


def _code(kind: pa.DataType) -> int:
    if pa.types.is_list(kind):
        return k.STRINGS
    return k.STRING_MAP if pa.types.is_map(kind) else _KINDS[kind]


def read_events(data: Bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], plan: Plan) -> AvroEvents:
    """The columns of n Avro events; record i is data[starts[i]:ends[i]]."""
    data = data.view()
    data.flags.writeable = False  # one compiled form, whoever made the bytes
    list_room = map_room = 4 * len(starts) + 16
    while True:
        (begin, size, value, valid, list_end, list_begin, list_size, map_end, map_begin, map_size, rows, error,
         field) = k.read_avro(data, starts, ends, plan.codes, len(plan.strings), len(plan.numbers), list_room, map_room)
        if list_end[-1] <= list_room and map_end[-1] <= map_room:
            break
        list_room, map_room = max(list_room, int(list_end[-1])), max(map_room, int(map_end[-1]))
    m, schema = len(rows), arrow_schema("event")
    columns = {name: strings(data, begin[i, :m], size[i, :m], name in ENCODED) for i, name in enumerate(plan.strings)}
    for i, name in enumerate(plan.numbers):
        columns[name] = _numbers(value[i, :m], valid[i, :m], schema.field(name).type)
    for f in schema:
        if pa.types.is_list(f.type):
            values = strings(data, list_begin, list_size, f.name in ENCODED)
            kind = pa.list_(pa.field("element", values.type, nullable=False))
            columns[f.name] = pa.Array.from_buffers(kind, m, [None, pa.py_buffer(list_end)], 0, children=[values])
        elif pa.types.is_map(f.type):
            entries = pa.StructArray.from_arrays(
                [strings(data, map_begin[0::2], map_size[0::2], False), strings(data, map_begin[1::2], map_size[1::2], False)],
                fields=[f.type.key_field, f.type.item_field])
            columns[f.name] = pa.Array.from_buffers(f.type, m, [None, pa.py_buffer(map_end // 2)], 0, children=[entries])
    return AvroEvents(columns, rows, error, field)


def strings(data: Bytes, begin: npt.NDArray[np.int64], size: npt.NDArray[np.int32], encoded: bool) -> pa.Array:
    """Strings at n places of ``data`` (size -1: null) as an Arrow array, dictionary-encoded if wanted."""
    begin, size = np.ascontiguousarray(begin), np.ascontiguousarray(size)
    n, bits, nulls = len(begin), *_validity(size >= 0)
    if not encoded:
        return _plain(data, begin, size, bits, nulls)
    codes, first = k.number_strings(data, begin, size)
    indices = pa.Array.from_buffers(pa.int32(), n, [bits, pa.py_buffer(codes)], nulls)
    return pa.DictionaryArray.from_arrays(indices, _plain(data, begin[first], size[first], None, 0), safe=False)


def _plain(data: Bytes, begin: npt.NDArray[np.int64], size: npt.NDArray[np.int32], bits: pa.Buffer | None,
           nulls: int) -> pa.Array:
    offsets, values = k.gather_strings(data, begin, size)
    return pa.Array.from_buffers(pa.string(), len(begin), [bits, pa.py_buffer(offsets), pa.py_buffer(values)], nulls)


def _numbers(values: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    bits, nulls = _validity(valid)
    if kind == pa.int32():
        values = values.astype(np.int32)
    return pa.Array.from_buffers(kind, len(values), [bits, pa.py_buffer(np.ascontiguousarray(values))], nulls)


def _validity(valid: npt.NDArray[np.bool_]) -> tuple[pa.Buffer | None, int]:
    nulls = len(valid) - int(np.count_nonzero(valid))
    return (pa.py_buffer(np.packbits(valid, bitorder="little")) if nulls else None), nulls
