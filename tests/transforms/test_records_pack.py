"""Packs: many events as one record; whatever their bytes, decode returns events or a dead letter and takes bounded memory."""

import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_world import EVENTS, NOW, batch, event, letters_of, rows, single

from schemas.arrow import arrow_schema
from transforms.records import Records, decode, pack
from transforms.records.base import MAX_PACK_BYTES

FAR = 4_100_000_000_000_000


@given(st.lists(st.lists(EVENTS, max_size=5), max_size=4))
def test_events_of_packs_come_back_as_they_were_packed(packs):
    found, dead = rows(Records.of([pack(batch(p)) for p in packs], timestamp=FAR))
    assert dead == []
    assert found == [{**e, "ingested_at": FAR} for p in packs for e in p]


def test_the_index_in_the_pack_is_part_of_the_position():
    records = [pack(batch([event(i) for i in range(k)])) for k in (2, 0, 3)]
    events = decode(Records.of(records, partition=4, first_offset=10), "t").events
    assert events["offset"].to_pylist() == [10, 10, 12, 12, 12]
    assert events["index"].to_pylist() == [0, 1, 0, 1, 2]
    assert set(events["partition"].to_pylist()) == {4}


def test_packs_and_single_events_come_in_the_records_order():
    records = [single(event(0)), pack(batch([event(1), event(2, device=None)])), b"", single(event(3, device="tv")),
               pack(batch([event(4)]))]
    found, dead = rows(Records.of(records))
    assert found == [event(0), event(1), event(2, device=None), event(3, device="tv"), event(4)]
    assert [d["offset"] for d in dead] == [2]


def test_dictionary_encoded_columns_and_decoded_events_can_be_packed_again():
    events = decode(Records.of([single(event(i)) for i in range(9)]), "t").events
    assert rows(Records.of([pack(events)]))[0] == [event(i) for i in range(9)]


def test_a_refused_event_of_a_pack_is_kept_as_json_with_its_place():
    records = [pack(batch([event(0), event(1, event_type="dance"), event(2)]))]
    found, (letter,) = rows(Records.of(records))
    assert [e["event_id"] for e in found] == ["e0", "e2"]
    assert (letter["offset"], letter["index"], letter["reason"]) == (0, 1, "unknown_event_type")
    assert json.loads(letter["payload"])["event_id"] == "e1"


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_pack_harms_no_other_record(data):
    body = bytearray(pack(batch([event(i, attributes={"k": "v"}) for i in range(20)])))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(4, len(body) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(4, len(body) - 1)) :]
    decoded = decode(Records.of([single(event(1)), bytes(body), single(event(2))]), "t")
    decoded.events.validate(full=True)
    assert {0, 2} <= set(decoded.events["offset"].to_pylist())
    assert len(decoded.events) + len(decoded.dead) >= 3


def written(table, codec="lz4_raw"):
    """Columns as a pack, whatever they are."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for part in table.to_batches():
            writer.write_batch(part)
    body = sink.getvalue()
    return struct.pack("<4sBI", b"\x01BRP", 1, body.size) + pa.Codec(codec).compress(body, asbytes=True)


def test_columns_of_a_newer_writer_are_left_out_and_missing_nullable_ones_are_null():
    table = pa.Table.from_batches([batch([event(1)])])
    newer = table.append_column("campaign", pa.array(["x"])).drop_columns(["referrer", "device"])
    (found,), dead = rows(Records.of([written(newer)]))
    assert dead == [] and found == event(1, device=None)


@pytest.mark.parametrize("change", [
    lambda t: t.drop_columns(["user_id"]), lambda t: t.set_column(1, "user_id", pa.array([3])),
    lambda t: t.set_column(1, pa.field("user_id", pa.string()), pa.array([None], pa.string())),
    lambda t: t.set_column(14, "categories", pa.array([[None]], t.schema.field("categories").type)),
    lambda t: t.set_column(3, "event_type", pa.array(["view"]).dictionary_encode()), lambda t: t.slice(0, 0).select([])])
def test_columns_of_another_kind_make_a_dead_letter(change):
    table = pa.Table.from_batches([batch([event(1)])])
    records = [written(change(table)), single(event(2))]
    assert letters_of(records) == {0: "bad_pack"}


def test_sizes_are_limited_before_memory_is_taken():
    bomb = struct.pack("<4sBI", b"\x01BRP", 1, 0xFFFFFFFF) + b"\0" * 100
    lie = struct.pack("<4sBI", b"\x01BRP", 1, MAX_PACK_BYTES) + pa.Codec("lz4_raw").compress(bytes(1000), asbytes=True)
    many = written(pa.Table.from_batches([batch([event(i) for i in range(10_001)])]))
    assert letters_of([bomb, lie, many]) == {0: "record_too_large", 1: "bad_pack", 2: "record_too_large"}
    with pytest.raises(ValueError, match="at most 10,000"):
        pack(batch([event(i) for i in range(10_001)]))
    with pytest.raises(ValueError, match="too large"):
        pack(batch([event(i, referrer="x" * 3000 + str(i)) for i in range(9_000)]))


def test_an_unknown_version_and_other_first_bytes_are_told():
    good = pack(batch([event(1)]))
    assert letters_of([good[:4] + b"\x09" + good[5:], b"\x01BRX" + good[4:], good[:6]]) == {
        0: "bad_pack", 1: "unknown_format", 2: "bad_pack"}


def test_a_column_of_the_wrong_type_is_not_packed():
    with pytest.raises((pa.ArrowInvalid, pa.ArrowNotImplementedError)):
        pack(batch([event(1)]).set_column(4, "occurred_at", pa.array(["x"])))
    with pytest.raises(KeyError):
        pack(batch([event(1)]).select(["event_id"]))


def test_large_polls_of_packs_are_read_whole():
    rng = np.random.default_rng(0)
    events = [event(i, device=f"d{rng.integers(0, 200)}", categories=[f"c{j}" for j in range(i % 4)]) for i in range(3000)]
    records = [pack(batch(events[i : i + 100])) for i in range(0, 3000, 100)]
    found, dead = rows(Records.of(records, timestamp=NOW))
    assert dead == [] and found == events
    assert arrow_schema("event").names == list(found[0])
