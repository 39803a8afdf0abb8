"""Arrow forms of the Avro schemas: derived, never written twice. Iceberg tables are created from these."""

from __future__ import annotations

import functools
from typing import Any

import pyarrow as pa

from schemas import avro

TIMESTAMP = pa.timestamp("us", tz="UTC")
_PRIMITIVES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bytes": pa.binary(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
}


def arrow_type(avro_type: Any) -> tuple[pa.DataType, bool]:
    """The Arrow type of an Avro type, and whether it is nullable.

    Raises:
      ValueError: a union other than [null, T], or a type without an Arrow form.
    """
    if isinstance(avro_type, list):
        rest = [t for t in avro_type if t != "null"]
        if len(rest) != 1:
            raise ValueError(f"only unions of null and one type have an Arrow form, not {avro_type}")
        return arrow_type(rest[0])[0], True
    if isinstance(avro_type, str):
        if avro_type not in _PRIMITIVES:
            raise ValueError(f"no Arrow form of Avro type {avro_type!r}")
        return _PRIMITIVES[avro_type], False
    logical, kind = avro_type.get("logicalType"), avro_type["type"]
    if logical == "timestamp-micros":
        return TIMESTAMP, False
    if kind == "array":
        item, nullable = arrow_type(avro_type["items"])
        return pa.list_(pa.field("element", item, nullable=nullable)), False
    if kind == "map":
        value, nullable = arrow_type(avro_type["values"])
        return pa.map_(pa.string(), pa.field("value", value, nullable=nullable)), False
    if kind == "record":
        return pa.struct(_fields(avro_type)), False
    return arrow_type(kind)


def _fields(record: dict[str, Any]) -> list[pa.Field]:
    fields = []
    for field in record["fields"]:
        kind, nullable = arrow_type(field["type"])
        fields.append(pa.field(field["name"], kind, nullable=nullable))
    return fields


@functools.cache
def arrow_schema(record: str, version: int | None = None) -> pa.Schema:
    """The Arrow schema of a record of ``schemas/avro`` (newest version by default)."""
    return pa.schema(_fields(avro.load(record, version)))
