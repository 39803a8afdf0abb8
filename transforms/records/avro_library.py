"""What the compiled decoder leaves to fastavro: other writer schemas, resolved to ours, and unusual records."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from schemas import avro
from schemas.arrow import arrow_schema


@functools.cache
def event_fingerprints() -> Mapping[bytes, Mapping[str, Any]]:
    """The event schemas by their CRC-64-AVRO fingerprint, little-endian as the single-object encoding has it."""
    import fastavro.schema

    found: dict[bytes, Mapping[str, Any]] = {}
    for version in avro.versions("event"):
        schema = avro.load("event", version)
        text = fastavro.schema.to_parsing_canonical_form(schema)
        found[bytes.fromhex(fastavro.schema.fingerprint(text, "CRC-64-AVRO"))] = schema
    return found


def read_with_library(body: bytes, writer: Mapping[str, Any]) -> dict[str, Any]:
    """One event as a dict, read by Avro's rules of schema resolution.

    Raises:
      ValueError: it is no event of that schema, or bytes follow it.
    """
    import fastavro

    stream = io.BytesIO(body)
    try:
        event = fastavro.schemaless_reader(stream, dict(writer), avro.load("event"))
        pa.RecordBatch.from_pylist([event], schema=arrow_schema("event"))
    except Exception as error:  # the library raises whatever its parts raise
        raise ValueError(f"{type(error).__name__}: {error}"[:200]) from error
    if stream.tell() != len(body):
        raise ValueError("bytes follow the event")
    return event  # type: ignore[return-value]
