"""The Avro schemas: every version reads every other, and a change that would break that is refused."""

import copy
import io
import itertools
from datetime import UTC, datetime

import fastavro
import pyarrow as pa
import pytest

from schemas import avro, compat
from schemas.arrow import TIMESTAMP, arrow_schema, arrow_type
from schemas.tables import EVENTS, TABLES

PUBLISHED = {
    "event.v1": "2e25dd6535c2c797",
    "item.v1": "1722385e1e8928fa",
    "user.v1": "6952dffe550796a6",
    "recommendation.v1": "5cbce0b50ba2cdfb",
    "served_features.v1": "1d9f87fd80253d9c",
}
"""Fingerprints of the published files. A new version adds a line; an old line never changes."""

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
VALUES = {
    "string": "x", "int": 3, "long": 4, "float": 0.5, "double": 0.25, "boolean": True, "bytes": b"z",
}


def example(schema):
    """A record with every field set."""

    def value(kind):
        if isinstance(kind, list):
            return value(next(k for k in kind if k != "null"))
        if isinstance(kind, str):
            return VALUES[kind]
        if kind.get("logicalType") == "timestamp-micros":
            return MOMENT
        if kind["type"] == "array":
            return [value(kind["items"])]
        if kind["type"] == "map":
            return {"k": value(kind["values"])}
        if kind["type"] == "record":
            return {f["name"]: value(f["type"]) for f in kind["fields"]}
        return value(kind["type"])

    return value(schema)


def resolve(record, writer, reader):
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, copy.deepcopy(writer), record)
    buffer.seek(0)
    return fastavro.schemaless_reader(buffer, copy.deepcopy(writer), copy.deepcopy(reader))


@pytest.mark.parametrize("record", avro.RECORDS)
def test_every_version_reads_every_other(record):
    for old, new in itertools.product(avro.versions(record), repeat=2):
        writer, reader = avro.load(record, old), avro.load(record, new)
        written = example(writer)
        read = resolve(written, writer, reader)
        shared = {f["name"] for f in writer["fields"]} & {f["name"] for f in reader["fields"]}
        assert {k: read[k] for k in shared} == {k: written[k] for k in shared}
        assert compat.problems(writer, reader) == []


def test_published_versions_are_never_edited():
    now = {f"{r}.v{v}": compat.fingerprint(avro.load(r, v)) for r in avro.RECORDS for v in avro.versions(r)}
    assert now == PUBLISHED


def test_an_added_field_with_a_default_reads_both_ways():
    old = avro.load("event")
    new = copy.deepcopy(old)
    new["fields"].append({"name": "campaign", "type": ["null", "string"], "default": None})
    assert compat.problems(old, new) == []
    assert resolve(example(old), old, new)["campaign"] is None
    assert "campaign" not in resolve(example(new), new, old)


def drop_required(schema):
    schema["fields"] = [f for f in schema["fields"] if f["name"] != "user_id"]


def add_required(schema):
    schema["fields"].append({"name": "tenant", "type": "string"})


def change_type(schema):
    next(f for f in schema["fields"] if f["name"] == "occurred_at")["type"] = "string"


def make_nullable(schema):
    next(f for f in schema["fields"] if f["name"] == "event_type")["type"] = ["null", "string"]


def change_array(schema):
    next(f for f in schema["fields"] if f["name"] == "categories")["type"] = {"type": "array", "items": "int"}


@pytest.mark.parametrize("change", [drop_required, add_required, change_type, make_nullable, change_array])
def test_a_breaking_change_is_refused_and_really_breaks(change):
    old = avro.load("event")
    new = copy.deepcopy(old)
    change(new)
    assert len(compat.problems(old, new)) == 1
    broken = 0
    for writer, reader in ((old, new), (new, old)):
        record = example(writer)
        if change is make_nullable and writer is new:
            record["event_type"] = None
        try:
            resolve(record, writer, reader)
        except Exception:
            broken += 1
    assert broken


def test_a_nested_breaking_change_is_found():
    old = avro.load("recommendation")
    new = copy.deepcopy(old)
    items = next(f for f in new["fields"] if f["name"] == "items")
    items["type"]["items"]["fields"].append({"name": "bid", "type": "double"})
    assert compat.problems(old, new) == ["Recommendation.items[].bid: added without a default, so older records cannot be read"]


def test_arrow_forms_are_derived_with_nullability():
    schema = arrow_schema("event")
    assert schema.field("occurred_at") == pa.field("occurred_at", TIMESTAMP, nullable=False)
    assert schema.field("dwell_ms") == pa.field("dwell_ms", pa.int64(), nullable=True)
    assert schema.field("categories").type == pa.list_(pa.field("element", pa.string(), nullable=False))
    assert schema.field("attributes").type == pa.map_(pa.string(), pa.field("value", pa.string(), nullable=False))
    assert schema.names == [f["name"] for f in avro.load("event")["fields"]]
    assert EVENTS.schema.names[: len(schema.names)] == schema.names


def test_a_type_without_an_arrow_form_is_refused():
    with pytest.raises(ValueError, match="unions"):
        arrow_type(["int", "string"])
    with pytest.raises(ValueError, match="fixed"):
        arrow_type("fixed")


def test_an_unknown_record_names_the_known_ones():
    with pytest.raises(KeyError, match="served_features"):
        avro.versions("nothing")


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_has_an_iceberg_form_that_keeps_names_and_nullability(name):
    pytest.importorskip("pyiceberg", reason="needs pyiceberg: pip install 'beamrec[batch]'")
    from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids

    iceberg = _pyarrow_to_schema_without_ids(TABLES[name].schema)
    assert [(f.name, f.required) for f in iceberg.fields] == [(f.name, not f.nullable) for f in TABLES[name].schema]
