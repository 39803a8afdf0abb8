"""The bucket engine: failed bundles and dead workers change nothing; copies and late events are told apart."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_oracle import HOUR, MINUTE, ORIGIN, PANE, Event, batch, events
from stream_runner import OneBucket

from schemas.features import GROUPS
from schemas.keys import hash64, row_key
from schemas.metric_names import EVENTS_ACCEPTED, EVENTS_DUPLICATE, EVENTS_LATE, by_segment
from schemas.stream_cells import decode_suppression
from transforms.accumulators.events import Events
from transforms.accumulators.stream.item import ItemState
from transforms.accumulators.stream.user import UserState
from transforms.beam.stream import state
from transforms.beam.stream.cells import cell_rows
from transforms.beam.stream.item import PARTNERS, PARTNERS_EVERY_S, ItemBucket
from transforms.beam.stream.seen import SeenEvents, event_keys
from transforms.beam.stream.state import LAYOUT, PIECE_BYTES, Marker, Rules, StateLayoutError, in_pieces, whole_of
from transforms.beam.stream.user import UserBucket
from transforms.beam.stream.wire import by_item, pack, pack_parts, split, unpack, unpack_parts
from transforms.ingest import END_OF_TIME

FOR_EVER = Rules(lateness=10_000 * HOUR)


def packed(chosen: list[Event], surface: str = "homepage") -> bytes:
    rows = batch(chosen)
    return pack(rows.append_column("surface", pa.array([surface] * len(chosen), pa.string())))


def plain_cells(chosen: list[Event]) -> dict[tuple[str, str], tuple[int, bytes]]:
    """The user cells of a state that is simply given every event once."""
    unique = list({e.id: e for e in chosen}.values())
    state = UserState()
    state.add(Events(batch(unique)))
    return cells_in(state)


def cells_in(state: UserState | ItemState) -> dict[tuple[str, str], tuple[int, bytes]]:
    """All cells of a state, as a store holds them."""
    rows = [cell for cells in state.cells() for cell in cell_rows(state.ENTITY, cells).to_pylist()]
    return {(cell["row"], cell["group"]): (cell["timestamp"], cell["value"]) for cell in rows}


def feature_cells(runner: OneBucket) -> dict[tuple[str, str], tuple[int, bytes]]:
    return {at: cell for at, cell in runner.cells.items() if not at[1].startswith("s:")}


@settings(max_examples=60)
@given(events(40), st.data())
def test_cells_are_those_of_the_events_whatever_fails(chosen: list[Event], data: st.DataObject) -> None:
    offered = data.draw(st.permutations(chosen + data.draw(st.lists(st.sampled_from(chosen), max_size=10))))
    runner = OneBucket.of_users(FOR_EVER)
    while offered:
        n = data.draw(st.integers(1, 8))
        part, offered = offered[:n], offered[n:]
        match data.draw(st.sampled_from(["add", "add", "fail", "die", "flush", "fail in flush", "die in flush"])):
            case "fail":
                runner.bundle(("add", packed(part)), fails=True)
            case "die":
                runner.bundle(("add", packed(part)), fails=True)
                runner.dies()
            case "flush":
                runner.bundle(("flush", None))
            case "fail in flush":
                runner.bundle(("flush", None), fails=True)
            case "die in flush":
                runner.bundle(("flush", None), fails=True)
                runner.dies()
        runner.bundle(("add", packed(part)))
    runner.bundle(("end", END_OF_TIME))
    assert feature_cells(runner) == plain_cells(chosen)
    counted = [json.loads(s) for s in runner.stats]
    assert sum(s.get(EVENTS_ACCEPTED, 0) for s in counted) == len({e.id for e in chosen})


@settings(max_examples=30)
@given(events(40), st.data())
def test_final_rows_and_cells_survive_restarts_between_ticks(chosen: list[Event], data: st.DataObject) -> None:
    rules = Rules(lateness=HOUR, audit=True)
    calm, shaken = OneBucket.of_users(rules), OneBucket.of_users(rules)
    for at in range(0, len(chosen), 5):
        part = packed(chosen[at : at + 5])
        for runner in (calm, shaken):
            runner.bundle(("add", part), ("flush", None))
            runner.watermark(chosen[at].time)
        if data.draw(st.booleans()):
            shaken.bundle(("add", part), fails=True)
        if data.draw(st.booleans()):
            shaken.dies()
    for runner in (calm, shaken):
        runner.bundle(("end", END_OF_TIME))
    assert feature_cells(calm) == feature_cells(shaken)
    assert calm.finals == shaken.finals
    panes = [row for (table, _), rows in calm.finals.items() if table == "stream_panes" for row in rows]
    assert sum(row[f"count_{kind}"] for row in panes for kind in {e.kind for e in chosen}) == len(chosen)
    assert len({(row["user_id"], row["start"]) for row in panes}) == len(panes)


@pytest.mark.parametrize("piece_bytes", [PIECE_BYTES, 1000])
def test_snapshots_replace_deltas_and_hold_everything(monkeypatch, piece_bytes) -> None:
    monkeypatch.setattr(state, "PIECE_BYTES", piece_bytes)
    runner = OneBucket.of_users(FOR_EVER)
    many = [Event(f"e{i}", f"u{i % 7}", f"i{i % 11}", "click", ORIGIN + i * MINUTE, None, None, ()) for i in range(120)]
    most = 0
    for at in range(0, 120, 2):
        runner.bundle(("add", packed(many[at : at + 2])), ("flush", None))
        most = max(most, len(runner.deltas))
    assert (len(runner.snapshot) == 1) == (piece_bytes == PIECE_BYTES) and 0 < len(runner.snapshot) < 60 and most < 60
    runner.dies()
    runner.bundle(("add", packed(many)))
    assert json.loads(runner.stats[-1])[EVENTS_DUPLICATE] == 120
    runner.dies()
    runner.bundle(("end", END_OF_TIME))
    assert feature_cells(runner) == plain_cells(many)


def test_a_store_that_lost_everything_is_written_again() -> None:
    runner = OneBucket.of_users(FOR_EVER)
    many = [Event(f"e{i}", f"u{i % 7}", f"i{i % 11}", "click", ORIGIN + i * MINUTE, None, None, ()) for i in range(120)]
    late = Event("last", "u1", "i1", "click", ORIGIN + 3 * HOUR, None, None, ())
    for at in range(0, 120, 2):
        runner.bundle(("add", packed(many[at : at + 2])), ("flush", None))
    assert runner.snapshot
    anew = OneBucket.of_users(replace(FOR_EVER, rewrite=True))
    anew.marker, anew.deltas, anew.snapshot = runner.marker, runner.deltas, runner.snapshot
    anew.bundle(("add", packed([late])), ("flush", None))
    assert feature_cells(anew) == plain_cells([*many, late])


def test_partners_and_counts_of_items_are_written_again() -> None:
    bucket = ItemBucket(FOR_EVER)
    shown = [Event(f"e{i}", f"u{i % 3}", f"i{i % 5}", "click", ORIGIN + i * MINUTE, None, None, ()) for i in range(40)]
    users = UserBucket(FOR_EVER)
    taken = users.take(unpack(packed(shown)))
    for _, message in by_item([taken.fresh], [taken.pairs], 1):
        bucket.take(message)
    first = {(c["row"], c["group"]): c["value"] for rows in bucket.flush() for c in rows.to_pylist()}
    restored = ItemBucket.restore(replace(FOR_EVER, rewrite=True), bucket.marker, bucket.snapshot(), [])
    again = {(c["row"], c["group"]): c["value"] for rows in restored.flush() for c in rows.to_pylist()}
    assert again == first and any(group == PARTNERS for _, group in again)


def test_only_what_changed_is_written() -> None:
    runner = OneBucket.of_users(FOR_EVER)
    one, two = (Event(f"e{i}", f"u{i}", "i1", "view", ORIGIN, None, None, ()) for i in (1, 2))
    runner.bundle(("add", packed([one, two])), ("flush", None))
    runner.cells.clear()
    runner.bundle(("add", packed([one])), ("flush", None))
    assert not runner.cells
    runner.bundle(("add", packed([Event("e3", "u2", "i2", "view", ORIGIN + 1, None, None, ())])), ("flush", None))
    assert {row for row, _ in runner.cells} == {row_key("u", "u2")}


def test_too_late_is_counted_by_segment_and_changes_nothing() -> None:
    runner = OneBucket.of_users(Rules(lateness=HOUR))
    early = Event("e1", "u1", "i1", "view", ORIGIN, None, None, ())
    runner.bundle(("add", packed([early])))
    assert runner.tick == (ORIGIN // PANE + 1) * PANE + HOUR
    runner.watermark(runner.tick - 1)
    runner.bundle(("add", packed([Event("e2", "u1", "i1", "click", ORIGIN + 1, None, None, ())])))
    runner.watermark(ORIGIN + 2 * HOUR)
    runner.bundle(("add", packed([Event("e3", "u1", "i1", "click", ORIGIN + 2, None, None, ())], "cart")), ("flush", None))
    late = json.loads(runner.stats[-1])
    assert late[EVENTS_LATE] == 1 and late[by_segment(EVENTS_LATE, "click", "cart")] == 1
    assert feature_cells(runner) == plain_cells([early, Event("e2", "u1", "i1", "click", ORIGIN + 1, None, None, ())])


def test_an_event_of_long_ago_costs_a_tick_and_not_a_tick_for_every_pane_since() -> None:
    runner = OneBucket.of_users(Rules(lateness=HOUR))
    runner.bundle(("add", packed([Event("old", "u1", "i1", "view", 0, None, None, ())])))
    ticks = 0
    while runner.tick is not None and runner.tick <= ORIGIN:
        runner.bundle(("tick", runner.tick))
        ticks += 1
    assert ticks < 400
    runner.bundle(("add", packed([Event("new", "u1", "i1", "view", ORIGIN + HOUR, None, None, ())])))
    assert json.loads(runner.stats[-1]) == {EVENTS_ACCEPTED: 1}


def test_consumed_items_are_suppressed() -> None:
    runner = OneBucket.of_users(FOR_EVER)
    runner.bundle(("add", packed([Event("e1", "u1", "i7", "purchase", ORIGIN, None, None, ()),
                                  Event("e2", "u1", "i8", "view", ORIGIN, None, None, ())])))
    runner.dies()
    runner.bundle(("flush", None))
    hidden = {at: value for at, (_, value) in runner.cells.items() if at[1].startswith("s:")}
    assert {at: decode_suppression(value) for at, value in hidden.items()} == {(row_key("u", "u1"), "s:i7"): ORIGIN}


def test_state_of_another_layout_is_refused_with_the_reason() -> None:
    runner = OneBucket.of_users(FOR_EVER)
    runner.bundle(("add", packed([Event("e1", "u1", "i1", "view", ORIGIN, None, None, ())])))
    assert runner.marker is not None
    runner.marker = bytes([LAYOUT + 1]) + runner.marker[1:]
    runner.dies()
    with pytest.raises(StateLayoutError, match=f"layout {LAYOUT + 1}, this version reads layout {LAYOUT}"):
        runner.bundle(("flush", None))


def test_groups_choose_what_is_kept() -> None:
    runner = OneBucket.of_users(Rules(lateness=HOUR, groups=("user_panes",)))
    runner.bundle(("add", packed([Event("e1", "u1", "i1", "view", ORIGIN, None, None, ())])), ("flush", None))
    assert {group for _, group in runner.cells} == {"user_panes"}
    assert {g.name for g in GROUPS if g.source == "stream" and g.entity == "user"} == set(UserState.GROUPS)


def test_an_impression_writes_only_what_it_changes() -> None:
    runner = OneBucket.of_users(FOR_EVER)
    runner.bundle(("add", packed([Event("e1", "u1", "i1", "view", ORIGIN, None, None, ())])), ("flush", None))
    assert {group for _, group in runner.cells} == set(UserState.GROUPS)
    runner.cells.clear()
    runner.bundle(("add", packed([Event("e2", "u1", "i2", "impression", ORIGIN + 1_000, None, None, ())])), ("flush", None))
    assert {group for _, group in runner.cells} == {"user_panes", "user_day", "user_session"}


@settings(max_examples=40)
@given(events(50), st.integers(1, 12))
def test_items_get_each_event_and_pair_once(chosen: list[Event], size: int) -> None:
    whole, parts = OneBucket.of_users(FOR_EVER), OneBucket.of_users(FOR_EVER)
    whole.bundle(("add", packed(chosen)))
    for at in range(0, len(chosen), size):
        parts.bundle(("add", packed(chosen[at : at + size])), fails=True)
        parts.dies()
        parts.bundle(("add", packed(chosen[at : at + size])), ("add", packed(chosen[at : at + size])))
    cells = []
    for runner in (whole, parts):
        bucket = ItemBucket.new(FOR_EVER)
        for message in runner.messages:
            bucket.take(message)
        cells.append([rows.to_pylist() for rows in bucket.flush()])
    assert cells[0] == cells[1]


def messages_of(chosen: list[Event], size: int) -> list[bytes]:
    """What the users' side sends to the items for events that come a few at a time."""
    runner = OneBucket.of_users(FOR_EVER)
    for at in range(0, len(chosen), size):
        runner.bundle(("add", packed(chosen[at : at + size])))
    return runner.messages


def latest(cells: dict[tuple[str, str], bytes], batches: list[pa.RecordBatch]) -> dict[tuple[str, str], bytes]:
    for rows in batches:
        for cell in rows.to_pylist():
            cells[cell["row"], cell["group"]] = cell["value"]
    return cells


@settings(max_examples=40)
@given(events(60), st.integers(1, 6), st.floats(0.1, 2 * PARTNERS_EVERY_S))
def test_partners_come_in_turns_and_none_is_missed(chosen: list[Event], size: int, step: float) -> None:
    at_once, in_turns = ItemBucket.new(FOR_EVER), ItemBucket.new(FOR_EVER)
    whole: dict[tuple[str, str], bytes] = {}
    found: dict[tuple[str, str], bytes] = {}
    now = 1_000.0
    for number, message in enumerate(messages_of(chosen, size)):
        at_once.take(message)
        in_turns.take(message)
        latest(whole, at_once.flush())
        latest(found, in_turns.flush(now))
        minutes = [{key: cell for key, cell in cells.items() if key[1] == "item_minutes"} for cells in (whole, found)]
        assert minutes[0] == minutes[1]  # these never wait
        if number % 2:
            in_turns = ItemBucket.restore(FOR_EVER, in_turns.marker, in_turns.snapshot(), [])
        now += step
    for _ in range(3):  # a restored bucket writes all at its first flush, any other within a round
        latest(found, in_turns.flush(now))
        now += PARTNERS_EVERY_S - 0.01
    assert found == whole and not in_turns.is_dirty


def test_partners_of_many_items_are_spread_over_the_turns() -> None:
    bucket, counts = ItemBucket.new(FOR_EVER), []
    for second in range(int(3 * PARTNERS_EVERY_S)):
        pairs = [Event(f"{second}-{n}", f"u{n // 4}", f"i{n}", "view", ORIGIN, None, None, ()) for n in range(400)]
        for message in messages_of(pairs, 400):
            bucket.take(message)
        written = [cell["group"] for rows in bucket.flush(1_000.0 + second) for cell in rows.to_pylist()]
        assert written.count("item_minutes") == 400
        counts.append(written.count(PARTNERS))
    assert counts[0] == 400 and max(counts[1:]) < 50
    assert sum(counts[1:]) == pytest.approx(400 * (len(counts) - 1) / PARTNERS_EVERY_S, abs=20)


def test_what_is_seen_is_exact_and_expires() -> None:
    seen, rng = SeenEvents(), np.random.default_rng(5)
    keys = event_keys(rng.integers(0, 2**63, 50_000).astype(np.uint64), rng.integers(0, 2**63, 50_000).astype(np.uint64))
    panes = rng.integers(0, 5, len(keys))
    offered = rng.integers(0, len(keys), 120_000)
    known: set[int] = set()
    for part in np.split(offered, range(7_000, 120_000, 7_000)):
        expected = []
        for row in part.tolist():
            expected.append(row not in known)
            known.add(row)
        assert seen.add(keys[part], panes[part]).tolist() == expected
    again = SeenEvents.from_columns(*seen.to_columns())
    assert len(again) == len(seen) == len(known)
    again.expire(3)
    assert len(again) == sum(panes[row] >= 3 for row in known)


def test_a_part_is_packed_without_the_rest() -> None:
    ids = pa.array([f"user-{i}" for i in range(10_000)]).dictionary_encode()
    rows = pa.RecordBatch.from_pydict({"user_id": ids, "n": pa.array(range(10_000))})
    parts = dict(split(rows, "user_id", 16))
    assert sum(part.num_rows for part in parts.values()) == 10_000
    for bucket, part in parts.items():
        assert all(hash64(user) >> 60 == bucket for user in part.column("user_id").to_pylist())
    assert max(len(pack(part)) for part in parts.values()) < len(pack(rows)) / 8
    restored = pa.Table.from_batches([unpack(pack(part)) for part in parts.values()]).unify_dictionaries().sort_by("n")
    assert restored.column("user_id").to_pylist() == ids.to_pylist()


@given(st.lists(st.tuples(st.none() | st.sampled_from(["u1", "u2", "u3", "ü"]), st.none() | st.sampled_from(["i1", "i2"]),
                          st.lists(st.sampled_from(["a", "b", "c"]), max_size=3)), max_size=40), st.sampled_from([1, 4]))
@settings(max_examples=60, deadline=None)
def test_parts_hold_the_rows_of_their_bucket_in_order(events, buckets) -> None:
    users, items, categories = (list(column) for column in zip(*events, strict=True)) if events else ([], [], [])
    lists = pa.array(categories, pa.list_(pa.string()))
    coded = pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode())
    rows = pa.RecordBatch.from_pydict({
        "user_id": pa.array(users, pa.string()), "item_id": pa.array(items, pa.string()).dictionary_encode(),
        "plain": pa.array(items, pa.string()), "categories": coded, "n": pa.array(range(len(users)), pa.int64())})
    for key in ("user_id", "item_id"):
        expected: dict[int, list[object]] = {}
        for row in rows.to_pylist():
            if row[key] is not None:
                expected.setdefault(hash64(row[key]) * buckets >> 64, []).append(row)
        found = {bucket: unpack(pack(part)).to_pylist() for bucket, part in split(rows, key, buckets)}
        assert found == expected


def test_messages_keep_their_parts_apart() -> None:
    rows = pa.RecordBatch.from_pydict({"item_id": pa.array(["i1", "i2"])})
    assert unpack_parts(pack_parts([None, rows])) == [None, rows]
    assert unpack_parts(pack_parts([rows, rows.slice(0, 0)])) == [rows, None]
    ((_, message),) = by_item([], [rows], 1)
    events, changes = unpack_parts(message)
    assert events is None and changes.to_pylist() == rows.to_pylist()
    with pytest.raises(ValueError, match="not a packed batch"):
        unpack(b"nothing of the kind")


def test_markers_survive_packing() -> None:
    marker = Marker(b"12345678", 5, 6, 7, 8, 9, 10)
    assert Marker.unpack(marker.pack()) == marker
    assert UserBucket.new(FOR_EVER).marker.horizon < 0


@given(st.integers(0, 3 * PIECE_BYTES + 5), st.randoms())
@settings(max_examples=25, deadline=None)
def test_a_snapshot_is_kept_in_small_pieces_that_may_come_in_any_order(size, rng):
    snapshot = rng.randbytes(size)
    pieces = list(in_pieces(snapshot))
    assert all(len(piece) <= PIECE_BYTES + 8 for piece in pieces)
    rng.shuffle(pieces)
    assert (whole_of(pieces) or b"") == snapshot
