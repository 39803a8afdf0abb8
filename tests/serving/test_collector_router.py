"""What becomes of each event: real local logs and stores behind the router."""

import asyncio
import json
import time
from datetime import UTC, datetime

import pytest
from collect_world import dead_in, events_in, upserts_in, with_router
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.arrow import arrow_schema
from schemas.event_types import NAMES
from schemas.keys import ITEM, USER, row_key, suppressed_group
from schemas.stream_cells import decode_suppression
from serving.collector import packer
from serving.collector.wire import MAX_BODY_BYTES, EventIn
from serving.eventlog import LogUnavailable, partition_of
from serving.stores import open_store
from serving.stores.base import Cell, FeatureWrite

CLICK = {"user_id": "u1", "item_id": "i1", "event_type": "click"}


def accept(root, document, key=None, **more):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    async def once(collector):
        return await collector.router.accept(body, key)

    return with_router(root, once, **more)


def answer(outcome):
    return json.loads(outcome.body())


def test_the_fields_of_an_event_are_those_of_the_schema_in_order():
    assert list(EventIn.__struct_fields__) == arrow_schema("event").names


@pytest.mark.parametrize("shape", [lambda e: e, lambda e: [e], lambda e: {"events": [e]}], ids=["one", "array", "envelope"])
def test_an_event_is_in_the_log_as_it_was_sent(tmp_path, shape):
    event = {**CLICK, "event_id": "e1", "occurred_at": "2026-11-21T10:00:00.123456+01:00", "surface": "item", "device": "tv",
             "session_id": "s", "page_position": 3, "request_id": "r", "model_version": "m", "dwell_ms": 70, "value": 4.5,
             "categories": ["Drama"], "price": 9.5, "country": "DE", "os": "x", "referrer": "y", "attributes": {"a": "b"}}
    before = time.time_ns() // 1000
    outcome = accept(tmp_path, shape(event))
    assert outcome.status == 202
    assert answer(outcome) == {"accepted": 1, "rejected": 0, "events": [{"event_id": "e1", "status": "accepted"}]}
    (row,) = events_in(tmp_path)
    assert row["occurred_at"] == datetime(2026, 11, 21, 9, 0, 0, 123456, UTC)
    assert before <= row["ingested_at"].timestamp() * 1e6 <= time.time_ns() // 1000
    assert dict(row["attributes"]) == {"a": "b"}
    assert {k: row[k] for k in event if k not in ("occurred_at", "attributes")} == {
        k: v for k, v in event.items() if k not in ("occurred_at", "attributes")}


@pytest.mark.parametrize(("sent", "micros"), [(1_700_000_000_123, 1_700_000_000_123_000), (1_700_000_000_123_456,) * 2,
                                              ("2023-11-14T22:13:20Z", 1_700_000_000_000_000)])
def test_times_are_rfc_3339_or_milliseconds_or_microseconds(tmp_path, sent, micros):
    assert accept(tmp_path, {**CLICK, "occurred_at": sent}).status == 202
    assert round(events_in(tmp_path)[0]["occurred_at"].timestamp() * 1e6) == micros


def test_without_an_id_each_event_gets_a_new_one_that_sorts_by_time(tmp_path):
    ids = [e.event_id for e in accept(tmp_path, [CLICK] * 50).events]
    assert len(set(ids)) == 50
    time.sleep(0.002)
    assert max(ids) < min(e.event_id for e in accept(tmp_path, [CLICK] * 5).events)
    assert {row["event_id"] for row in events_in(tmp_path)} >= set(ids)


def test_an_idempotency_key_makes_copies_of_a_retry_and_no_copies_of_others(tmp_path):
    body = json.dumps([CLICK, {**CLICK, "user_id": "u2"}]).encode()

    async def thrice(collector):
        first = await collector.router.accept(body, "k1")
        again = await collector.router.accept(body, "k1")
        return first, again, await collector.router.accept(body, "k2")

    first, again, other = with_router(tmp_path, thrice)
    ids = [e.event_id for e in first.events]
    assert ids == [e.event_id for e in again.events] and len({*ids, *(e.event_id for e in other.events)}) == 4
    rows = [r for r in events_in(tmp_path) if r["event_id"] in ids]
    assert len(rows) == 4
    assert len({(r["event_id"], r["user_id"], r["occurred_at"]) for r in rows}) == 2  # copies share all three


BAD = [
    ({"item_id": "i", "event_type": "click"}, "missing_user_id"),
    ({**CLICK, "user_id": ""}, "missing_user_id"),
    ({"user_id": "u", "event_type": "click"}, "missing_item_id"),
    ({**CLICK, "event_type": "clack"}, "unknown_event_type"),
    ({"user_id": "u", "item_id": "i"}, "unknown_event_type"),
    ({**CLICK, "user_id": "x" * 513}, "id_too_long"),
    ({**CLICK, "item_id": "é" * 300}, "id_too_long"),
    ({**CLICK, "occurred_at": int(time.time() * 1000) + 3_600_000}, "from_the_future"),
    ({**CLICK, "occurred_at": 9_999_999_999_999_999}, "time_out_of_range"),
    ({**CLICK, "occurred_at": "2026-01-01T00:00:00"}, "invalid_field"),  # no offset: nobody knows when that was
    ({**CLICK, "occured_at": 1}, "unknown_field"),
    ({**CLICK, "price": "9"}, "invalid_field"),
    ({**CLICK, "attributes": {"a": 1}}, "invalid_field"),
    ({**CLICK, "attributes": {str(i): "" for i in range(65)}}, "invalid_field"),
    ({**CLICK, "page_position": 2**31}, "invalid_field"),
    (7, "not_an_event"),
]


@pytest.mark.parametrize(("event", "reason"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_a_bad_event_is_refused_with_its_reason_and_kept(tmp_path, event, reason):
    outcome = accept(tmp_path, [event])
    assert outcome.status == 422
    assert [(e.status, e.reason) for e in outcome.events] == [("rejected", reason)]
    assert outcome.events[0].detail
    (letter,) = dead_in(tmp_path)
    assert letter.reason == reason
    kept = json.loads(letter.payload)
    assert kept == event if not isinstance(event, dict) else {k: kept[k] for k in event if k != "occurred_at"} == {
        k: v for k, v in event.items() if k != "occurred_at"}
    assert events_in(tmp_path) == []


def test_bad_events_take_no_good_one_with_them(tmp_path):
    sent = [CLICK, *(event for event, _ in BAD), {**CLICK, "event_id": "last"}]
    outcome = accept(tmp_path, sent)
    assert outcome.status == 202
    assert [e.reason for e in outcome.events] == ["", *(reason for _, reason in BAD), ""]
    assert (answer(outcome)["accepted"], answer(outcome)["rejected"]) == (2, len(BAD))
    assert len(events_in(tmp_path)) == 2
    assert sorted(letter.index for letter in dead_in(tmp_path)) == list(range(1, len(BAD) + 1))


@pytest.mark.parametrize("body", [b"", b"nope", b"[", b'{"user_id":', b"\xff\xfe", b"[" * 100_000, b'[{"user_id":"a"},]'])
def test_what_is_no_json_is_refused_and_kept(tmp_path, body):
    assert accept(tmp_path, body).status == 422
    assert [letter.payload for letter in dead_in(tmp_path)] == [body]


@pytest.mark.parametrize("body", [b"[]", b'{"events":[]}'])
def test_no_events_are_no_request(tmp_path, body):
    assert accept(tmp_path, body).status == 422


def test_limits(tmp_path):
    assert accept(tmp_path, [CLICK] * 1000).status == 202
    assert accept(tmp_path, [CLICK] * 1001).status == 413
    assert accept(tmp_path, [{"x": 1}] * 1001).status == 413
    assert accept(tmp_path, json.dumps(CLICK).encode().ljust(MAX_BODY_BYTES + 1)).status == 413
    assert accept(tmp_path, CLICK, key="k" * 257).status == 413
    assert len(events_in(tmp_path)) == 1000


TEXT = st.text(max_size=40)
EVENTS = st.fixed_dictionaries(
    {"user_id": TEXT, "event_type": st.sampled_from([*NAMES, "x"])},
    optional={"item_id": TEXT | st.none(), "event_id": TEXT, "surface": TEXT | st.none() | st.integers(),
              "value": st.floats() | st.none(),
              "price": st.floats(allow_nan=False), "occurred_at": st.integers(-10, 2**63) | st.datetimes().map(str),
              "categories": st.lists(TEXT, max_size=3), "attributes": st.dictionaries(TEXT, TEXT, max_size=3),
              "page_position": st.integers(-2, 2**33), "dwell_ms": st.integers(0, 2**54)})


@settings(max_examples=40)
@given(st.lists(EVENTS, min_size=1, max_size=8))
def test_every_event_is_readable_in_the_log_or_a_dead_letter(tmp_path_factory, events):
    root = tmp_path_factory.mktemp("log")
    outcome = accept(root, events)
    if len(outcome.events) != len(events):  # NaN and lone surrogates: no JSON
        assert [letter.reason for letter in dead_in(root)] == ["not_json"]
        return
    status = [e.status for e in outcome.events]
    accepted = [e.event_id for e in outcome.events if e.status == "accepted"]
    assert sorted(r["event_id"] for r in events_in(root)) == sorted(accepted)
    assert len(dead_in(root)) == status.count("rejected")
    assert set(status) <= {"accepted", "rejected"}


def put_item(store, item, entry):
    store.write_features([FeatureWrite(row_key(ITEM, item), "meta", "item", Cell(json.dumps(entry).encode(), 0))])


def test_the_catalogue_stamps_what_the_client_left_out(tmp_path):
    uri = f"sqlite:{tmp_path / 'store.db'}"
    store = open_store(uri)
    put_item(store, "i1", {"categories": ["Drama", "Crime"], "price": 3.5})
    assert accept(tmp_path, [
        {**CLICK, "event_id": "a"}, {**CLICK, "event_id": "b", "price": 1.0}, {**CLICK, "event_id": "c", "categories": ["own"]},
        {**CLICK, "event_id": "d", "item_id": "unheard"}], store=uri).status == 202
    assert {r["event_id"]: (r["categories"], r["price"]) for r in events_in(tmp_path)} == {
        "a": (["Drama", "Crime"], 3.5), "b": (["Drama", "Crime"], 1.0), "c": (["own"], 3.5), "d": ([], None)}


def test_a_purchase_is_suppressed_before_it_is_answered(tmp_path):
    uri = f"sqlite:{tmp_path / 'store.db'}"
    store = open_store(uri)
    seen = {}

    async def buy(collector):
        outcome = await collector.router.accept(json.dumps([
            {**CLICK, "event_type": "purchase", "occurred_at": 1_700_000_000_123_456}, {**CLICK, "item_id": "i2"}]).encode())
        seen.update(store.read_features([row_key(USER, "u1")], "stream", [suppressed_group("i1"), suppressed_group("i2")])[0])
        return outcome

    assert with_router(tmp_path, buy, store=uri).status == 202
    assert list(seen) == [suppressed_group("i1")]
    cell = seen[suppressed_group("i1")]
    assert decode_suppression(cell.value) == 1_700_000_000_123_456
    assert cell.timestamp == 1_700_000_000_123_000


def test_without_a_store_events_go_on(tmp_path):
    async def buy(collector):
        outcome = await collector.router.accept(json.dumps({**CLICK, "event_type": "purchase"}).encode())
        return outcome, collector.counters.suppressions, collector.counters.stamp_failures

    outcome, suppressions, failures = with_router(tmp_path, buy, store=f"sqlite:{tmp_path / 'nowhere.db'}")
    assert outcome.status == 202
    assert suppressions == {"late_or_failed": 1} and failures == 1
    assert len(events_in(tmp_path)) == 1


class Away:
    """A producer whose log is away for some partitions."""

    in_flight = 1

    def __init__(self, producer, partitions):
        self._producer, self._away = producer, partitions

    async def send_all(self, sends, timestamp):
        return [LogUnavailable("the broker is away", 2.0) if partition in self._away
                else (await self._producer.send_all([(partition, record)], timestamp))[0] for partition, record in sends]


def test_when_the_log_is_away_nothing_is_accepted(tmp_path):
    async def post(collector):
        collector.packer._producer = Away(collector.packer._producer, range(4))
        return await collector.router.accept(json.dumps([CLICK] * 3).encode())

    outcome = with_router(tmp_path, post)
    assert (outcome.status, outcome.retry_after_s) == (503, 2.0)
    assert {e.status for e in outcome.events} == {"unavailable"}
    assert events_in(tmp_path) == []


def test_when_one_partition_is_away_its_events_alone_are_to_be_sent_again(tmp_path):
    users = [f"u{i}" for i in range(20)]

    async def post(collector):
        producer = collector.packer._producer
        collector.packer._producer = Away(producer, {1})
        first = await collector.router.accept(json.dumps([{**CLICK, "user_id": u} for u in users]).encode())
        collector.packer._producer = producer
        left = [{**CLICK, "user_id": u, "event_id": e.event_id} for u, e in zip(users, first.events, strict=True)
                if e.status == "unavailable"]
        return first, await collector.router.accept(json.dumps(left).encode())

    first, second = with_router(tmp_path, post)
    assert (first.status, second.status) == (503, 202)
    assert [e.status for e in first.events] == ["unavailable" if partition_of(u, 4) == 1 else "accepted" for u in users]
    assert sorted(r["event_id"] for r in events_in(tmp_path)) == sorted(e.event_id for e in first.events)


def test_more_than_may_wait_is_pushed_back(tmp_path):
    async def post(collector):
        body = json.dumps([CLICK] * 60).encode()
        return await asyncio.gather(*(collector.router.accept(body) for _ in range(4)))

    outcomes = with_router(tmp_path, post, max_waiting=100)
    assert sorted(o.status for o in outcomes) == [202, 429, 429, 429]
    assert all(o.retry_after_s >= 0.1 for o in outcomes if o.status == 429)
    assert len(events_in(tmp_path)) == 60


def test_items_and_users_are_upserted_through_logs_of_their_own(tmp_path):
    async def put(collector):
        item, user = collector.upserts["item"], collector.upserts["user"]
        whole = b'{"title":"T","categories":["a"],"price":1.5,"updated_at":"2026-01-01T00:00:00Z"}'
        return [(await item.put("i/1", whole)).status,
                (await item.put("i2", b'{"is_active":false,"attributes":{"year":"1999"}}')).status,
                (await user.put("u1", b'{"country":"DE","signup_at":1700000000000}')).status,
                (await item.put("i3", b'{"item_id":"i4"}')).status, (await user.put("u2", b'{"name":"x"}')).status,
                (await user.put("u2", b"[]")).status, (await item.put("x" * 513, b"{}")).status]

    assert with_router(tmp_path, put) == [202, 202, 202, 422, 422, 422, 422]
    first, second = upserts_in(tmp_path, "item")
    assert (first["item_id"], first["title"], first["price"], first["is_active"]) == ("i/1", "T", 1.5, True)
    assert first["updated_at"] == datetime(2026, 1, 1, tzinfo=UTC)
    assert (second["is_active"], dict(second["attributes"])) == (False, {"year": "1999"})
    (user,) = upserts_in(tmp_path, "user")
    assert (user["country"], user["signup_at"]) == ("DE", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC))
    assert len(dead_in(tmp_path)) == 4


BODIES = [json.dumps({**CLICK, "event_id": f"e{i}", "user_id": f"u{i % 7}", "occurred_at": 1_700_000_000_000 + i}).encode()
          for i in range(40)]


@pytest.mark.parametrize("way", ["quick", "slow", "failing scan", "small rounds"])
def test_each_way_of_a_body_ends_in_the_same_log(tmp_path, monkeypatch, way):
    def fail(*args):
        raise ZeroDivisionError

    if way == "failing scan":
        monkeypatch.setattr(packer, "scanned", fail)
    if way == "small rounds":
        monkeypatch.setattr(packer, "ROUND_EVENTS", 3)

    async def post(collector):
        collector.router.quick = way != "slow"
        outcomes = await asyncio.gather(*map(collector.router.accept, BODIES))
        assert collector.packer.waiting == 0
        return outcomes, dict(collector.counters.accepted), collector.counters.packs

    outcomes, accepted, packs = with_router(tmp_path, post)
    assert [answer(o) for o in outcomes] == [
        {"accepted": 1, "rejected": 0, "events": [{"event_id": f"e{i}", "status": "accepted"}]} for i in range(40)]
    rows = events_in(tmp_path)
    assert sorted(r["event_id"] for r in rows) == sorted(f"e{i}" for i in range(40))
    assert accepted == {("click", ""): 40}
    assert packs <= (8 if way != "small rounds" else 40), "requests that come together share records"


def test_a_request_that_is_given_up_keeps_nothing_waiting(tmp_path):
    async def post(collector):
        tasks = [asyncio.create_task(collector.router.accept(body)) for body in BODIES]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        await collector.flush()
        return [o.status for o in done[1::2]], collector.packer.waiting

    assert with_router(tmp_path, post) == ([202] * 20, 0)
    assert {f"e{i}" for i in range(1, 40, 2)} <= {r["event_id"] for r in events_in(tmp_path)}
