"""Events and their bytes in every format, and what fastavro makes of them."""

import copy
import io
import struct

import fastavro
import fastavro.schema
import pyarrow as pa
from hypothesis import strategies as st

from schemas import avro
from schemas.arrow import arrow_schema
from schemas.event_types import NAMES
from transforms.records import Records, decode

NOW = 1_700_000_000_000_000
SCHEMA = avro.load("event", 1)
PLAIN = arrow_schema("event").names


def event(number=0, **changes):
    """A valid event."""
    return {"event_id": f"e{number}", "user_id": f"u{number % 7}", "item_id": f"i{number % 5}", "event_type": "view",
            "occurred_at": NOW + number, "ingested_at": NOW + number, "surface": None, "device": "web", "session_id": None,
            "page_position": None, "request_id": None, "model_version": None, "dwell_ms": None, "value": None,
            "categories": ["a"], "price": None, "country": None, "os": None, "referrer": None, "attributes": {},
            "schema_version": 1, **changes}


def single(made, schema=SCHEMA):
    """An event as Avro bytes."""
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, copy.deepcopy(schema), made)
    return buffer.getvalue()


def confluent(made, schema_id, schema=SCHEMA):
    """An event behind a Confluent header."""
    return b"\0" + struct.pack(">I", schema_id) + single(made, schema)


def object_encoded(made, schema=SCHEMA):
    """An event in Avro's single-object encoding."""
    text = fastavro.schema.to_parsing_canonical_form(schema)
    return b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(text, "CRC-64-AVRO")) + single(made, schema)


def batch(events):
    """Events as the columns that pack takes."""
    return pa.RecordBatch.from_pylist(events, schema=arrow_schema("event"))


def rows(records, registry=None):
    """(decoded events as plain dicts, dead letters as dicts)."""
    decoded = decode(records, "log", registry)
    decoded.events.validate(full=True)
    return plain(decoded.events), decoded.dead.to_pylist()


def plain(events):
    """Decoded events as event() makes them."""
    found = events.select(PLAIN).to_pylist()
    for row in found:
        row["attributes"] = dict(row["attributes"])
        for name in ("occurred_at", "ingested_at"):
            row[name] = round(row[name].timestamp() * 1_000_000)
    return found


def library(body):
    """What fastavro reads, the whole of it; raises when it refuses."""
    stream = io.BytesIO(body)
    made = fastavro.schemaless_reader(stream, copy.deepcopy(SCHEMA))
    if stream.tell() != len(body):
        raise ValueError("trailing bytes")
    return made


def letters_of(records):
    """reason by offset."""
    return {d["offset"]: d["reason"] for d in rows(Records.of(records))[1]}


_text = st.text(max_size=20)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_micros = st.integers(0, 4_000_000_000_000_000)


def _maybe(strategy):
    return st.none() | strategy


EVENTS = st.fixed_dictionaries({
    "event_id": st.text(min_size=1, max_size=40), "user_id": st.text(min_size=1, max_size=20),
    "item_id": st.text(min_size=1, max_size=20), "event_type": st.sampled_from(NAMES), "occurred_at": _micros,
    "ingested_at": st.none(), "surface": _maybe(_text), "device": _maybe(_text), "session_id": _maybe(_text),
    "page_position": _maybe(st.integers(-(1 << 31), (1 << 31) - 1)), "request_id": _maybe(_text),
    "model_version": _maybe(_text), "dwell_ms": _maybe(st.integers(-(1 << 63), (1 << 63) - 1)), "value": _maybe(_finite),
    "categories": st.lists(_text, max_size=6), "price": _maybe(_finite),
    "country": _maybe(_text), "os": _maybe(_text), "referrer": _maybe(_text),
    "attributes": st.dictionaries(_text, _text, max_size=5), "schema_version": st.integers(0, 9)})
"""Valid events: what any producer may write. The time of the record stands for ingested_at."""
