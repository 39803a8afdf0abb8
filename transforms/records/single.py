"""Events as records of their own: schemaless Avro, what any other producer would write."""

from __future__ import annotations

import io

import fastavro
import pyarrow as pa

from schemas import avro


def encode_singles(events: pa.Table | pa.RecordBatch) -> list[bytes]:
    """One record for each event; columns of ``schemas.arrow.arrow_schema("event")``."""
    schema = fastavro.parse_schema(dict(avro.load("event")))
    records = []
    for event in events.to_pylist():
        with io.BytesIO() as stream:
            fastavro.schemaless_writer(stream, schema, {**event, "attributes": dict(event["attributes"] or ())})
            records.append(stream.getvalue())
    return records
