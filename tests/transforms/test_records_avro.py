"""Single Avro events: the compiled decoder against fastavro, byte for byte, whatever the bytes."""

import copy
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_world import EVENTS, NOW, SCHEMA, confluent, event, letters_of, library, object_encoded, plain, rows, single

from schemas import avro
from transforms.records import Records, decode
from transforms.records.avro_columns import plan_of, read_events

FAR = 4_100_000_000_000_000  # no event of the strategy is from the future then


def read(bodies):
    """(what the compiled decoder reads, by number of the body; numbers of those left to the library)."""
    records = Records.of(bodies)
    out = read_events(records.data, records.starts, records.ends, plan_of(SCHEMA))
    columns = {name: column.to_pylist() for name, column in out.columns.items()}
    found = {}
    for at, row in enumerate(out.rows.tolist()):
        found[row] = {name: values[at] for name, values in columns.items()}
        found[row]["attributes"] = dict(found[row]["attributes"])
    return found, set(np.flatnonzero(out.error == 8).tolist())


@given(st.lists(EVENTS, max_size=8))
def test_events_come_back_as_they_were_written(events):
    found, dead = rows(Records.of([single(e) for e in events], timestamp=FAR))
    assert dead == []
    assert found == [{**e, "ingested_at": FAR} for e in events]


def mutated(data, body):
    body = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["change", "cut", "add", "insert"]))
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        if kind == "change" and body:
            body[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del body[at:]
        elif kind == "add":
            body += data.draw(st.binary(min_size=1, max_size=3))
        else:
            body[at:at] = data.draw(st.binary(min_size=1, max_size=3))
    return bytes(body)


@settings(max_examples=200)
@given(st.data())
def test_damaged_bytes_are_read_as_fastavro_reads_them_or_refused(data):
    bodies = [mutated(data, single(e)) for e in data.draw(st.lists(EVENTS, min_size=1, max_size=4))]
    found, _ = read(bodies)
    for number, body in enumerate(bodies):
        try:
            expected = library(body)
        except Exception:
            assert number not in found, "fastavro refuses it"
            continue
        if number in found:
            same(found[number], expected)
    decode(Records.of(bodies), "log")  # never raises


def same(ours, theirs):
    for name, value in theirs.items():
        if isinstance(value, float) and np.isnan(value):
            assert np.isnan(ours[name])
        else:
            assert ours[name] == value, name


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_any_bytes_are_read_or_become_dead_letters(bodies):
    decoded = decode(Records.of(bodies), "log")
    found = set(decoded.events["offset"].to_pylist()) | set(decoded.dead["offset"].to_pylist())
    assert found == set(range(len(bodies)))
    payloads = dict(zip(decoded.dead["offset"].to_pylist(), decoded.dead["payload"].to_pylist(), strict=True))
    assert all(payloads[i] == bodies[i] for i in payloads if not bodies[i].startswith(b"\x01BRP"))


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
def test_a_record_that_ends_early_is_a_dead_letter_with_its_field(cut):
    found, (letter,) = rows(Records.of([single(event(1)), single(event(2))[:-cut], single(event(3))], 3, 100))
    assert [e["event_id"] for e in found] == ["e1", "e3"]
    assert (letter["reason"], letter["partition"], letter["offset"], letter["index"]) == ("not_avro", 3, 101, 0)
    assert "field" in letter["detail"] and letter["payload"] == single(event(2))[:-cut]


def blocks(*parts):
    """An array of strings as Avro blocks: a list is one block, a tuple a block with its size in bytes before it."""
    out = b""
    for part in parts:
        items = b"".join(bytes([2 * len(s)]) + s.encode() for s in part)
        out += bytes([2 * len(part) - 1, 2 * len(items)]) if isinstance(part, tuple) else bytes([2 * len(part)])
        out += items
    return out + b"\0"


@pytest.mark.parametrize("parts", [
    ([],), (["x"],), (["x", "y"], ["z"]), (("x", "y"),), (("x",), ["y"], ("z", "w"))])
def test_arrays_in_any_blocks_are_read(parts):
    if parts == ([],):
        written, want = b"\0", []
    else:
        written, want = blocks(*parts), [s for part in parts for s in part]
    marker = single(event(1, categories=["MARK"]))
    body = marker.replace(b"\x02\x08MARK\x00", written)
    assert library(body)["categories"] == want
    found, _ = read([body])
    assert found[0]["categories"] == want


def test_a_map_in_blocks_is_read_and_a_key_twice_takes_its_last_value():
    marker = single(event(1, attributes={"MARK": "v"}))
    entry = b"\x02\x08MARK\x02v\x00"
    assert entry in marker
    two = marker.replace(entry, b"\x03\x10\x02a\x021\x02b\x022\x00")
    found, _ = read([two])
    assert found[0]["attributes"] == {"a": "1", "b": "2"} == library(two)["attributes"]
    twice = marker.replace(entry, b"\x04\x02a\x021\x02a\x022\x00")
    found, left = read([twice])
    assert left == {0}
    assert rows(Records.of([twice]))[0][0]["attributes"] == {"a": "2"} == library(twice)["attributes"]


def test_many_list_items_and_many_keys_are_read():
    events = [event(i, categories=[f"c{j}" for j in range(300)], attributes={f"k{j}": "v" for j in range(100 * (i % 2))})
              for i in range(6)]
    found, dead = rows(Records.of([single(e) for e in events]))
    assert dead == [] and found == events


def test_a_count_of_items_beyond_the_record_takes_no_memory():
    marker = single(event(1, categories=["MARK"]))
    nine = b"\xff" * 8
    for count in (b"\xfe\xff\xff\xff\x0f", b"\xff" + nine + b"\x01", b"\xfe" + nine + b"\x01"):
        assert letters_of([marker.replace(b"\x02\x08MARK\x00", count)]) == {0: "not_avro"}


@pytest.mark.parametrize("text", [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff\xfe", b"\xe2\x82", b"\x80abc"])
def test_text_that_is_not_utf8_is_refused(text):
    marker = single(event(1, device="M" * len(text)))
    assert letters_of([marker.replace(b"M" * len(text), text)]) == {0: "not_avro"}


def test_long_texts_of_many_alphabets_come_back():
    events = [event(i, device="日本語 Ünïcödé 🎬" * i, referrer="x" * 1000 + "é") for i in range(5)]
    found, dead = rows(Records.of([single(e) for e in events]))
    assert dead == [] and found == events


def test_refused_events_keep_their_bytes_and_their_reason():
    bodies = [single(event(0)), single(event(1, event_type="dance")), single(event(2, value=float("nan"))),
              single(event(3, user_id="u" * 513)), single(event(4, item_id=None)), single(event(5, ingested_at=NOW - 10**9))]
    found, dead = rows(Records.of(bodies, timestamp=NOW))
    assert [e["event_id"] for e in found] == ["e0"]
    assert {d["offset"]: d["reason"] for d in dead} == {
        1: "unknown_event_type", 2: "value_not_finite", 3: "id_too_long", 4: "missing_item_id", 5: "from_the_future"}
    assert {d["offset"]: d["payload"] for d in dead} == {i: bodies[i] for i in range(1, 6)}


def test_headers_name_the_writer():
    bodies = [confluent(event(1), 7), object_encoded(event(2)), single(event(3)), b"\0\0\0", b"\xc3\x01" + bytes(20)]
    found, dead = rows(Records.of(bodies))
    assert found == [event(1), event(2), event(3)]
    assert [(d["offset"], d["reason"]) for d in dead] == [(3, "unknown_format"), (4, "unknown_schema")]


class Registry:
    """Schemas by id; others are unknown."""

    def __init__(self, schemas):
        self.schemas = schemas

    def writer_schema(self, schema_id):
        return self.schemas.get(schema_id)


def test_newer_writers_of_a_registry_are_resolved_to_our_fields():
    newer = copy.deepcopy(SCHEMA)
    newer["fields"].insert(3, {"name": "campaign", "type": ["null", "string"], "default": None})
    turned = copy.deepcopy(SCHEMA)
    turned["fields"].reverse()
    bodies = [confluent({**event(1), "campaign": "x"}, 10, newer), confluent(event(2), 11, turned), confluent(event(3), 12),
              confluent(event(4), 99), confluent({**event(5), "campaign": "y"}, 10, newer)[:-3]]
    found, dead = rows(Records.of(bodies), Registry({10: newer, 11: turned, 12: SCHEMA}))
    assert found == [event(1), event(2), event(3)]
    assert [(d["offset"], d["reason"]) for d in dead] == [(3, "unknown_schema"), (4, "not_avro")]
    assert plan_of(newer) is None and plan_of(turned) is not None


def test_a_missing_ingestion_time_is_that_of_the_record():
    found = decode(Records.of([single(event(0, ingested_at=None)), single(event(1))], timestamp=NOW + 77), "log").events
    assert [e["ingested_at"] for e in plain(found)] == [NOW + 77, NOW + 1]


def test_positions_and_hashes_are_filled_and_nothing_is_an_empty_batch():
    from schemas.keys import hash64

    events = decode(Records.of([single(event(4))], partition=5, first_offset=9, timestamp=NOW), "topic").events
    row = events.to_pylist()[0]
    assert (row["source"], row["partition"], row["offset"], row["index"]) == ("topic", 5, 9, 0)
    assert np.int64(row["event_hash"]).view(np.uint64) == hash64("e4")
    assert row["occurred_at"] == datetime.fromtimestamp((NOW + 4) / 1e6, UTC)
    empty = decode(Records.of([]), "topic")
    assert (len(empty.events), len(empty.dead)) == (0, 0) and empty.events.schema == events.schema


def test_every_published_event_schema_is_read_by_the_compiled_decoder():
    for version in avro.versions("event"):
        assert plan_of(avro.load("event", version)) is not None


def test_a_record_over_the_limit_is_a_dead_letter():
    huge = single(event(1, referrer="x" * (9 << 20)))
    assert letters_of([single(event(0)), huge]) == {1: "record_too_large"}


def test_an_int_out_of_range_is_refused():
    body = single(event(1, schema_version=1))
    assert body[-1] == 2
    assert letters_of([body[:-1] + b"\x80\x80\x80\x80\x20"]) == {0: "not_avro"}
