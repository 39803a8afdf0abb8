"""Bodies read by the round against the same bodies read event by event: what the scan takes, it takes alike."""

import json
import string
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.arrow import arrow_schema
from schemas.event_types import NAMES
from serving.collector.bodies import PACK_BYTES, PACK_ROWS, count_of, scanned, type_mask
from serving.collector.columns import to_batch
from serving.collector.wire import EventIn, fault, micros, read_events
from serving.eventlog import partition_of
from transforms.records.pack import pack, sound, unpack

NOW = 1_764_000_000_000_000
CLICK = {"user_id": "u1", "item_id": "i1", "event_type": "click", "event_id": "e1", "occurred_at": 1_763_999_000_000}
NONE = type_mask(())


def taken(bodies, partitions=4, needs_stamps=False, leaves=NONE):
    return scanned(bodies, sum(map(count_of, bodies)), partitions, NOW, needs_stamps, leaves)


def expected(body):
    """The rows of a body in which each event is right, as the way of single events has them; None for any other body."""
    read = read_events(body)
    for event in read:
        if not isinstance(event, EventIn):
            return None
        event.occurred_at = NOW if event.occurred_at is None else micros(event.occurred_at)
        event.ingested_at = NOW
        if fault(event, NOW):
            return None
    return to_batch(read).to_pylist()


def parts_of(found):
    """(partition, events) of each record, as a reader has them: to the byte what Arrow would have written."""
    parts = [(partition, unpack(memoryview(record))) for partition, record in found.records]
    for (_, record), (_, part) in zip(found.records, parts, strict=True):
        part.validate(full=True)
        assert sound(part) and pack(part) == record
    return parts


def events_of(found):
    """All events, in the order in which they were sent."""
    parts = [part for _, part in parts_of(found)]
    assert sorted(p for p, _ in found.records) == [p for p, _ in found.records]
    events = pa.Table.from_batches(parts, arrow_schema("event"))
    row = np.empty(len(found.partition), np.int64)
    row[np.argsort(found.partition, kind="stable")] = np.arange(len(row))
    return events.take(pa.array(row, pa.int64()))


def rows_of(found, body):
    return events_of(found).to_pylist()[found.first[body] : found.first[body + 1]]


def check(body, must_take=False):
    """What the scan takes of a body equals what wire reads; what wire refuses, the scan leaves."""
    found = taken([body])
    wanted = expected(body)
    if not found.answers[0]:
        assert not must_take, body
        assert not found.records
        return
    rows = rows_of(found, 0)
    assert wanted is not None, body
    for row, right in zip(rows, wanted, strict=True):
        if right["event_id"] in (None, ""):
            assert len(row.pop("event_id")) == 36
            right.pop("event_id")
        assert repr(row) == repr(right), body  # repr: -0.0 and NaN are told apart
    answer = json.loads(found.answers[0])
    assert (answer["accepted"], answer["rejected"]) == (len(wanted), 0)
    assert [e["status"] for e in answer["events"]] == ["accepted"] * len(wanted)
    assert [e["event_id"] for e in answer["events"]] == [r["event_id"] for r in rows_of(found, 0)]


PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=30)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60) | st.decimals(
    -10**6, 10**6, allow_nan=False, places=2).map(float)
MOMENTS = st.integers(0, 2**62) | st.integers(NOW - 10**9, NOW + 10**9) | st.integers(0, NOW // 1000) | st.datetimes().map(
    lambda t: t.isoformat() + "Z") | st.from_regex(
    r"20(0|1|2)[0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](\.[0-9]{1,9})?(Z|[+-][0-2][0-9]:[0-5][0-9])",
    fullmatch=True)
FIELDS = {
    "event_id": PLAIN | st.none(), "occurred_at": MOMENTS | st.none(), "surface": PLAIN | st.none() | st.integers(),
    "device": PLAIN | st.none(), "session_id": PLAIN, "page_position": st.integers(-1, 2**32) | st.none(), "request_id": PLAIN,
    "model_version": PLAIN, "dwell_ms": st.integers(0, 2**54), "value": NUMBERS | st.none(), "price": NUMBERS | st.none(),
    "categories": st.lists(PLAIN, max_size=4) | st.none(), "country": PLAIN, "os": PLAIN, "referrer": PLAIN | st.none(),
    "attributes": st.dictionaries(PLAIN, PLAIN, max_size=3) | st.none(), "schema_version": st.integers(-1, 3),
    "unheard": st.none()}
EVENTS = st.builds(
    lambda need, more, order: {k: (need | more)[k] for k in order if k in need | more},
    st.fixed_dictionaries({"user_id": PLAIN, "item_id": PLAIN | st.none(), "event_type": st.sampled_from([*NAMES, "clack"])}),
    st.fixed_dictionaries({}, optional={k: v for k, v in FIELDS.items() if k != "unheard"}),
    st.permutations(["user_id", "item_id", "event_type", *FIELDS]))


def written(events, shape, style):
    separators, ascii_only, indent = style
    document = {"one": events[0], "array": events, "envelope": {"events": events}}[shape]
    return json.dumps(document, separators=separators, ensure_ascii=ascii_only, indent=indent).encode()


@settings(max_examples=400)
@given(st.lists(EVENTS, min_size=1, max_size=3), st.sampled_from(["one", "array", "envelope"]),
       st.tuples(st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]), st.booleans(), st.sampled_from([None, 1])))
def test_what_the_scan_takes_is_what_single_events_are(events, shape, style):
    check(written(events, shape, style))


@settings(max_examples=300)
@given(st.sampled_from([b"%s", b"[%s]", b'{"events":[%s]}']), st.integers(0, 400), st.integers(0, 3),
       st.binary(max_size=3) | st.sampled_from([*(b"%c" % c for c in b'"{},[]\\\0 0-e'), b"null"]))
@example(b"%s", 0, 0, b"\0")
def test_a_damaged_body_is_never_taken_for_another(shape, at, size, noise):
    body = bytearray(shape % json.dumps({**CLICK, "value": 1.5, "price": 20, "categories": ["a", "b"], "dwell_ms": 7,
                                         "attributes": {"k": "v", "l": ""}, "page_position": 3}).encode())
    at %= len(body) + 1
    body[at : at + size] = noise
    check(bytes(body))


TAKEN = [
    {}, {"categories": ["Drama", "Krimi"], "attributes": {"a": "b", "c": ""}}, {"price": 9.99, "value": -0.001},
    {"price": 5, "value": 0.1}, {"dwell_ms": 2**53, "page_position": 2**31 - 1, "schema_version": 7},
    {"user_id": "пользователь", "device": "電話", "surface": "🎬"}, {"occurred_at": "2025-11-21T10:00:00.123456+01:00"},
    {"occurred_at": "2024-02-29T23:59:59Z"}, {"occurred_at": "1970-01-01T00:00:00Z"}, {"occurred_at": 0},
    {"event_type": "signup", "item_id": None}, {"event_id": None, "occurred_at": None}, {"event_id": "", "occurred_at": 5},
    {"categories": None, "attributes": None, "referrer": "r" * 2048}, {"event_id": "x" * 512}]


@pytest.mark.parametrize("more", TAKEN, ids=str)
@pytest.mark.parametrize("shape", ["one", "array", "envelope"])
def test_usual_events_are_taken(more, shape):
    check(written([{**CLICK, **more}] * 2, shape, ((",", ":"), False, None)), must_take=True)
    check(written([{**CLICK, **more}] * 2, shape, ((", ", ": "), False, 2)), must_take=True)


@pytest.mark.parametrize("event", [b'{"user_id":"u","user_id":"v","item_id":"i","event_type":"click"}',
                                   b'{"user_id":"u","item_id":"i","event_type":"click","attributes":{"a":"1","a":"2"}}',
                                   b'{"user_id":"u","item_id":"i","event_type":"click","value":1e3}',
                                   b'{"user_id":"u","item_id":"i","event_type":"click","ingested_at":5}',
                                   b'{"user_id":"\\u0075","item_id":"i","event_type":"click"}',
                                   b'{"user_id":"\xff","item_id":"i","event_type":"click"}',
                                   # the router remembers the time of this one
                                   b'{"user_id":"u","item_id":"i","event_type":"click","event_id":"e"}',
                                   b"{}", b"", b"[]", b"7", b'{"events":[]}', b'{"events":7}', b'{"events"'])
def test_the_unusual_is_left(event):
    assert taken([event]).answers == [b""]


def test_a_left_body_takes_no_other_with_it():
    bodies = [json.dumps({**CLICK, "event_id": f"e{i}"}).encode() for i in range(6)]
    bodies[1], bodies[4] = b'{"user_id":"u"', b'[{"user_id":"u","categories":["a","b"],"attributes":{"a":"b"},"price":"x"}]'
    found = taken(bodies)
    assert [bool(a) for a in found.answers] == [True, False, True, True, False, True]
    assert sorted(events_of(found).column("event_id").to_pylist()) == ["e0", "e2", "e3", "e5"]


def test_events_lie_by_partition_and_are_counted_by_kind():
    events = [{**CLICK, "event_id": f"e{i}", "user_id": f"u{i % 40}", "event_type": NAMES[i % 3],
               **({"device": "tv"} if i % 2 else {})} for i in range(300)]
    bodies = [json.dumps(events[i : i + 30]).encode() for i in range(0, 300, 30)]
    found = taken(bodies, partitions=5)
    placed = [(p, e) for p, part in parts_of(found) for e in part.column("event_id").to_pylist()]
    assert sorted(placed) == sorted((partition_of(e["user_id"], 5), e["event_id"]) for e in events)
    assert found.fates(3) == [(e["event_id"], partition_of(e["user_id"], 5)) for e in events[90:120]]
    assert found.kinds() == {(NAMES[k], "tv" if odd else ""): 50 for k in range(3) for odd in range(2)}
    rest = found.kinds({0, 2})
    assert sum(rest.values()) == sum(p not in (0, 2) for p, _ in placed)
    assert found.kinds({9}) == found.kinds()


def test_a_very_long_user_id_has_its_partition_too():
    events = [{**CLICK, "user_id": "é" * n} for n in (60, 64, 65, 200, 256)]
    found = taken([json.dumps(events, ensure_ascii=False).encode()], 7)
    assert [p for _, p in found.fates(0)] == [partition_of(e["user_id"], 7) for e in events]


def test_what_the_store_is_asked_or_told_about_is_left():
    whole = {**CLICK, "categories": ["a"], "price": 1.0}
    bodies = [json.dumps(e).encode() for e in (whole, {**whole, "price": None}, {**whole, "categories": []},
                                              {**whole, "event_type": "purchase"})]
    assert [bool(a) for a in taken(bodies, needs_stamps=True).answers] == [True, False, False, True]
    assert [bool(a) for a in taken(bodies, leaves=type_mask(["purchase"])).answers] == [True, True, True, False]


def test_new_ids_are_unique_and_sort_by_time():
    body = json.dumps([{"user_id": "u", "item_id": "i", "event_type": "click"}] * 500).encode()
    ids = events_of(taken([body, body])).column("event_id").to_pylist()
    assert len(set(ids)) == 1000 and all(set(i) <= set(string.hexdigits + "-") and i[14] == "7" for i in ids)
    later = events_of(scanned([body], 500, 1, NOW + 2000, False, NONE)).column("event_id").to_pylist()
    assert max(ids) < min(later)


def test_large_events_become_several_packs():
    big = {**CLICK, "attributes": {str(i): "x" * 2000 for i in range(60)}}
    bodies = [json.dumps({**big, "event_id": str(i)}).encode() for i in range(50)]
    parts = [part for _, part in parts_of(taken(bodies, 1))]
    assert len(parts) > 2 and all(part.nbytes <= PACK_BYTES for part in parts)
    assert [i for part in parts for i in part.column("event_id").to_pylist()] == [str(i) for i in range(50)]


def test_many_events_become_several_packs():
    bodies = [json.dumps([{**CLICK, "event_id": f"{i}-{j}"} for j in range(1000)]).encode() for i in range(5)]
    assert [part.num_rows for _, part in parts_of(taken(bodies, 1))] == [PACK_ROWS, PACK_ROWS, 1000]


def test_columns_are_those_of_the_schema():
    events = events_of(taken([json.dumps(CLICK).encode()]))
    assert events.schema.equals(arrow_schema("event")) and np.array_equal(events.column("ingested_at").cast(pa.int64()), [NOW])
    assert time.time_ns() // 1000 > NOW


def test_a_list_of_events_needs_its_colon():
    event = b'{"user_id":"u1","item_id":"i1","event_type":"click","event_id":"e1","occurred_at":1763999000000}'
    check(b'{"events":[' + event + b"]}", must_take=True)
    check(b'{"events" : [' + event + b"]}", must_take=True)
    for broken in (b'{"events"[', b'{"events" [', b' {"events"[', b'{"events"::['):
        check(broken + event + b"]}")
